//! Values that node and master read in the same way.

use std::fs;
use std::path::Path;

/// Reads `HOST:PORT`; an IPv6 address stands in brackets, which are left out of what is returned. Port 0 is allowed.
///
/// # Errors
/// What is wrong, with an example.
pub fn host_and_port(text: &str) -> Result<(String, u16), String> {
    let (host, port) = text.rsplit_once(':').ok_or("a host, a colon and a port, such as 127.0.0.1:7100")?;
    let port = port.parse().map_err(|_| format!("`{port}` is no port: a number from 0 to 65535"))?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if host.is_empty() || (bare.is_none() && host.contains(':')) {
        return Err("a host, a colon and a port, such as 127.0.0.1:7100, or [::1]:7100".into());
    }
    Ok((bare.unwrap_or(host).to_owned(), port))
}

/// Reads the file of this flag, without the end of its line.
///
/// # Errors
/// A file that can't be read or is empty, with the way out.
pub fn secret_in_file(flag: &str, file: &Path) -> Result<String, String> {
    let text = fs::read_to_string(file).map_err(|error| format!("cannot read {flag} {}: {error}", file.display()))?;
    let secret = text.trim_end_matches(['\n', '\r']);
    if secret.is_empty() {
        return Err(format!("{flag} {} is empty: write the secret into it", file.display()));
    }
    Ok(secret.to_owned())
}

/// Whether a secret can be shown to masters, which it is as metadata of gRPC.
///
/// # Errors
/// A sentence, where it can't.
pub fn can_travel_in_a_header(secret: &str) -> Result<(), String> {
    if secret.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
        Ok(())
    } else {
        Err("with masters the secret must be printable ASCII, since it travels in a header".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports() {
        for (text, host, port) in [("h:0", "h", 0), ("[::1]:7100", "::1", 7100), ("0.0.0.0:1", "0.0.0.0", 1)] {
            assert_eq!(host_and_port(text), Ok((host.to_owned(), port)));
        }
        for (text, hint) in [("7100", "127.0.0.1:7100"), (":1", "127.0.0.1:7100"), ("::1:1", "[::1]"), ("h:x", "`x`")] {
            assert!(host_and_port(text).unwrap_err().contains(hint), "{text}");
        }
    }

    #[test]
    fn secrets_in_files_and_in_headers() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        assert!(secret_in_file("--secret-file", &file).unwrap_err().contains("cannot read --secret-file"));
        fs::write(&file, "\n").unwrap();
        assert!(secret_in_file("--secret-file", &file).unwrap_err().contains("is empty"));
        fs::write(&file, "a b\r\n").unwrap();
        assert_eq!(secret_in_file("--secret-file", &file).unwrap(), "a b");
        assert!(can_travel_in_a_header("a b").is_ok() && can_travel_in_a_header("grün").is_err());
    }
}
