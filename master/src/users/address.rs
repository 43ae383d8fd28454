//! Where etcd is, as it stands on the command line.

/// etcd's usual port.
const DEFAULT_PORT: u16 = 2379;

/// The members of `etcd://HOST:PORT,HOST:PORT`, each as host and port.
///
/// # Errors
/// What is wrong, with the right form.
pub(crate) fn members(text: &str) -> Result<Vec<String>, String> {
    let form = "etcd://HOST:2379, with more members behind commas";
    let list = text.strip_prefix("etcd://").ok_or_else(|| format!("users are kept at {form}"))?;
    if list.contains('@') {
        return Err("give name and password with --users-login and --users-password-file".to_owned());
    }
    let list = list.strip_suffix('/').unwrap_or(list);
    list.split(',')
        .map(|member| self::member(member).ok_or_else(|| format!("`{member}` is no member: {form}")))
        .collect()
}

fn member(text: &str) -> Option<String> {
    let has_port = !text.ends_with(']') && text.rsplit_once(':').is_some();
    let (host, port) = if has_port { text.rsplit_once(':')? } else { (text, "") };
    let port = if has_port { port.parse::<u16>().ok().filter(|port| *port > 0)? } else { DEFAULT_PORT };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host =
        |host: &str| !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_graphic() && !b"/?#[]".contains(&byte));
    (is_host(bare.unwrap_or(host)) && (bare.is_some() || !host.contains(':'))).then(|| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_hosts_with_or_without_ports() {
        assert_eq!(members("etcd://a").unwrap(), ["a:2379"]);
        assert_eq!(members("etcd://a:1,b,[::1]:3,[::2]/").unwrap(), ["a:1", "b:2379", "[::1]:3", "[::2]:2379"]);
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_way_out() {
        for wrong in [
            "a:2379",
            "http://a",
            "etcd://",
            "etcd://a,",
            "etcd://a:0",
            "etcd://a:x",
            "etcd://::1",
            "etcd://a/b",
            "etcd://a b",
        ] {
            assert!(members(wrong).unwrap_err().contains("etcd://HOST:2379"), "{wrong}");
        }
        assert!(members("etcd://me:word@a").unwrap_err().contains("--users-password-file"));
    }
}
