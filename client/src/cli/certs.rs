//! `arborcast certs`: an authority and a certificate, for trying TLS out.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};

use super::failure::Failure;
use super::output::say;

/// Names that a certificate for one machine has.
const LOCAL_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Who has just been given a certificate may have a clock that is a little behind.
const CLOCKS_DIFFER: Duration = Duration::from_secs(3600);

/// Makes `ca.pem`, `node.pem` and `node.key` in a directory, and overwrites nothing. The key of the authority is not kept:
/// nobody can make another certificate of it.
pub(crate) fn run(directory: &Path, names: &[String], days: u32) -> Result<(), Failure> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let start = date_time_ymd(1970, 1, 1) + now.saturating_sub(CLOCKS_DIFFER);
    let end = date_time_ymd(1970, 1, 1) + now + Duration::from_secs(u64::from(days) * 24 * 3600);

    let mut authority = CertificateParams::new(Vec::new())?;
    authority.distinguished_name.push(DnType::CommonName, "arborcast, for trying out");
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (authority.not_before, authority.not_after) = (start, end);
    let authority_key = KeyPair::generate()?;
    let authority_certificate = authority.self_signed(&authority_key)?;

    let names = LOCAL_NAMES.into_iter().map(str::to_owned).chain(names.iter().cloned());
    let mut node = CertificateParams::new(names.collect::<Vec<_>>())?;
    node.distinguished_name.push(DnType::CommonName, "arborcast node");
    node.use_authority_key_identifier_extension = true;
    node.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // A node is the one to its children, and the other to its parent and masters.
    node.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    (node.not_before, node.not_after) = (start, end);
    let node_key = KeyPair::generate()?;
    let certificate = node.signed_by(&node_key, &Issuer::new(authority, authority_key))?;

    let unwritable = |path: &Path| {
        let path = path.to_owned();
        move |cause| Failure::Unwritable { path, cause }
    };
    std::fs::create_dir_all(directory).map_err(unwritable(directory))?;
    for (name, text) in [
        ("ca.pem", authority_certificate.pem()),
        ("node.pem", certificate.pem()),
        ("node.key", node_key.serialize_pem()),
    ] {
        let path = directory.join(name);
        write_new(&path, &text).map_err(unwritable(&path))?;
    }
    say(format_args!("ca.pem, node.pem and node.key are in {}, good for {days} days", directory.display()));
    Ok(())
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}
