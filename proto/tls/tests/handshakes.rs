//! Certificates that are right, and each way to be wrong: said clearly, and in time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arborcast_tls::{
    Acceptor, Either, Identity, Protocol, Settings, Stream, Tls, TlsError, Trouble, Trust, begins_with_tls,
    peer_is_certified, split, trouble_of,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// An authority, and a place for its files.
struct Authority {
    directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        fs::write(directory.path().join("ca.pem"), parameters.self_signed(&key).unwrap().pem()).unwrap();
        Self { directory, issuer: Issuer::new(parameters, key) }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    fn issue(&self, name: &str, expires: i32) -> Identity {
        let mut parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        parameters.not_after = date_time_ymd(expires, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        let file = |extension: &str| self.directory.path().join(format!("{name}-{expires}.{extension}"));
        fs::write(file("pem"), certificate.pem()).unwrap();
        fs::write(file("key"), key.serialize_pem()).unwrap();
        Identity { certificate: file("pem"), key: file("key") }
    }
}

fn load(identity: Option<Identity>, trust: Trust) -> Result<Arc<Tls>, TlsError> {
    Tls::load(Settings { identity, trust, name: None }).map(Arc::new)
}

/// Both ends of a handshake.
async fn shake(server: &Arc<Tls>, client: &Arc<Tls>, host: &str) -> (io::Result<Stream>, io::Result<Stream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let accepted = async { server.accept(listener.accept().await.unwrap().0, Protocol::Lines).await };
    tokio::join!(accepted, client.connect(host, stream, Protocol::Lines))
}

#[tokio::test]
async fn two_with_certificates_of_one_authority_know_each_other() {
    let authority = Authority::new();
    let trust = || Trust::Authority(authority.path());
    let server = load(Some(authority.issue("localhost", 4000)), trust()).unwrap();
    let client = load(Some(authority.issue("other", 4000)), trust()).unwrap();
    let (accepted, connected) = shake(&server, &client, "localhost").await;
    let (accepted, connected) = (accepted.unwrap(), connected.unwrap());
    assert!(peer_is_certified(&accepted) && peer_is_certified(&connected));
    let (mut reader, _kept) = split(accepted);
    let (_also_kept, mut writer) = split(connected);
    writer.write_all(b"a line\n").await.unwrap();
    writer.flush().await.unwrap();
    let mut line = [0; 7];
    reader.read_exact(&mut line).await.unwrap();
    assert_eq!(&line, b"a line\n");
}

#[tokio::test]
async fn a_client_without_a_certificate_is_taken_and_told_apart() {
    let authority = Authority::new();
    let trust = || Trust::Authority(authority.path());
    let server = load(Some(authority.issue("localhost", 4000)), trust()).unwrap();
    let (accepted, connected) = shake(&server, &load(None, trust()).unwrap(), "localhost").await;
    connected.unwrap();
    assert!(!peer_is_certified(&accepted.unwrap()));
}

#[tokio::test]
async fn each_wrong_certificate_is_named_for_what_is_wrong() {
    let (authority, other) = (Authority::new(), Authority::new());
    for (identity, trust, host, trouble, words) in [
        (authority.issue("localhost", 2020), &authority, "localhost", Trouble::Expired, "expired"),
        (authority.issue("localhost", 4000), &authority, "elsewhere", Trouble::WrongName, "not for the name elsewhere"),
        (authority.issue("localhost", 4000), &other, "localhost", Trouble::UnknownAuthority, "--tls-ca"),
    ] {
        let server = load(Some(identity), Trust::Nobody).unwrap();
        let client = load(None, Trust::Authority(trust.path())).unwrap();
        let (_refused, connected) = shake(&server, &client, host).await;
        let error = connected.unwrap_err();
        assert_eq!(trouble_of(&error), Some(trouble), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test]
async fn a_server_sees_through_a_client_of_another_authority() {
    let (authority, other) = (Authority::new(), Authority::new());
    let server = load(Some(authority.issue("localhost", 4000)), Trust::Authority(authority.path())).unwrap();
    // It shows what it has and trusts whom it should.
    let stranger = other.issue("localhost", 4000);
    fs::copy(authority.path(), other.directory.path().join("trusted.pem")).unwrap();
    let both = other.directory.path().join("both.pem");
    let texts = [authority.path(), other.path()].map(|path| fs::read_to_string(path).unwrap());
    fs::write(&both, texts.concat()).unwrap();
    let client = load(Some(stranger), Trust::Authority(both)).unwrap();
    let (accepted, _connected) = shake(&server, &client, "localhost").await;
    assert_eq!(trouble_of(&accepted.unwrap_err()), Some(Trouble::UnknownAuthority));
}

#[tokio::test]
async fn certificates_are_read_again_and_a_half_written_file_changes_nothing() {
    let authority = Authority::new();
    let identity = authority.issue("localhost", 4000);
    let server = load(Some(identity.clone()), Trust::Nobody).unwrap();
    let client = load(None, Trust::Authority(authority.path())).unwrap();
    let (accepted, connected) = shake(&server, &client, "localhost").await;
    let (mut before, mut still_there) = (accepted.unwrap(), connected.unwrap());
    let next = authority.issue("renamed", 4000);
    fs::copy(&next.certificate, &identity.certificate).unwrap();
    assert!(matches!(server.reload().unwrap_err(), TlsError::Unusable { .. }), "the key is still the old one");
    shake(&server, &client, "localhost").await.1.unwrap();
    fs::copy(&next.key, &identity.key).unwrap();
    server.reload().unwrap();
    assert_eq!(trouble_of(&shake(&server, &client, "localhost").await.1.unwrap_err()), Some(Trouble::WrongName));
    shake(&server, &client, "renamed").await.1.unwrap();
    before.write_all(b"x").await.unwrap();
    before.flush().await.unwrap();
    assert_eq!(still_there.read_u8().await.unwrap(), b'x', "a connection that stood stands");
}

#[test]
fn what_others_would_refuse_is_said_at_the_start() {
    let (authority, other) = (Authority::new(), Authority::new());
    let load = |identity: Identity, trust: &Authority, name: &str| {
        let trust = Trust::Authority(trust.path());
        let settings = Settings { identity: Some(identity), trust, name: Some(name.to_owned()) };
        Tls::load(settings).map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(load(authority.issue("localhost", 4000), &authority, "localhost"), Ok(()));
    for (outcome, words) in [
        (load(authority.issue("localhost", 2020), &authority, "localhost"), "it has expired"),
        (load(authority.issue("localhost", 4000), &authority, "tree1"), "not for the name"),
        (load(authority.issue("localhost", 4000), &other, "localhost"), "not signed by that authority"),
    ] {
        assert!(outcome.as_ref().unwrap_err().contains(words), "{outcome:?}");
    }
}

#[test]
fn files_that_are_not_there_or_nothing_are_named() {
    let authority = Authority::new();
    let right = authority.issue("localhost", 4000);
    let empty = authority.directory.path().join("empty.pem");
    fs::write(&empty, "nothing\n").unwrap();
    for path in [Path::new("/nowhere/at/all.pem"), &empty] {
        for identity in
            [Identity { certificate: path.into(), ..right.clone() }, Identity { key: path.into(), ..right.clone() }]
        {
            let error = load(Some(identity), Trust::Nobody).unwrap_err().to_string();
            assert!(error.contains(path.to_str().unwrap()), "{error}");
        }
    }
}

#[tokio::test]
async fn the_first_byte_tells_tls_and_plain_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for (bytes, expected) in [(&b"\x16\x03\x01"[..], true), (b"{", false), (b"PRI * HTTP/2.0", false)] {
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        peer.write_all(bytes).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        assert_eq!(begins_with_tls(&stream).await.unwrap(), expected);
        assert_eq!(stream.read_u8().await.unwrap(), bytes[0], "it is still there");
    }
}

#[tokio::test]
async fn who_does_not_speak_tls_is_found_out() {
    let authority = Authority::new();
    let client = load(None, Trust::Authority(authority.path())).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut plain, _) = listener.accept().await.unwrap();
    plain.write_all(b"{\"command\":\"INVALID_MESSAGE\"}\n").await.unwrap();
    let error = client.connect("localhost", stream, Protocol::Lines).await.unwrap_err();
    assert_eq!(trouble_of(&error), Some(Trouble::NotTls), "{error}");
}

/// Each end of a handshake is counted once, under a name of its own.
#[tokio::test]
async fn how_handshakes_end_is_counted() {
    let authority = Authority::new();
    let tls = load(Some(authority.issue("localhost", 4000)), Trust::Nobody).unwrap();
    let patience = Duration::from_millis(200);
    let acceptor = Acceptor { tls, protocol: Protocol::Http, requires_tls: true, patience, handshakes: Arc::default() };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for (outcome, said) in [
        ("timeout", &b""[..]),
        ("timeout", b"\x16\x03\x01\x02\x00\x01"),
        ("plain", b"GET / HTTP/1.1\r\n"),
        ("not_tls", b"\x16 that is none of TLS"),
    ] {
        let before = acceptor.handshakes.counts().get(outcome).copied().unwrap_or_default();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        peer.write_all(said).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        assert!(acceptor.accept(stream).await.is_err(), "{outcome}");
        assert_eq!(acceptor.handshakes.counts()[outcome], before + 1, "{:?}", acceptor.handshakes);
    }
    let client = load(None, Trust::Authority(authority.path())).unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let accepted = async { acceptor.accept(listener.accept().await.unwrap().0).await };
    let (accepted, connected) = tokio::join!(accepted, client.connect("localhost", stream, Protocol::Http));
    assert!(matches!((accepted.unwrap(), connected.unwrap()), (Either::Right(_), Either::Right(_))));
    assert_eq!(acceptor.handshakes.counts().len(), 4);
}
