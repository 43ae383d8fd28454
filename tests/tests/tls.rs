//! TLS (README): clients, links and masters, beside plain connections at the same port.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use arborcast_tests::lines;
use arborcast_tests::master::Master;
use arborcast_tests::node::{Node, NodeBuilder, SECRET, listening_port};
use arborcast_tests::peer::Peer;
use arborcast_tests::process::{Process, Signal, client_binary, master_binary};
use arborcast_tests::scrape::{get, get_over_tls, http_address, metrics, value, wait_for};
use arborcast_tests::wait::{self, PATIENCE};
use tempfile::TempDir;

/// A working set of certificates, as an operator makes one.
struct Certificates(TempDir);

impl Certificates {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        make(directory.path());
        Self(directory)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The flags of a node or a master that has all of it.
    fn flags(&self) -> [(&'static str, String); 3] {
        [("--tls-cert", "node.pem"), ("--tls-key", "node.key"), ("--tls-ca", "ca.pem")]
            .map(|(flag, name)| (flag, self.file(name).display().to_string()))
    }

    /// A master with these flags, all of this, and metrics.
    fn master(&self, flags: &[&str]) -> Process {
        let always = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "-s", SECRET];
        let files = self.flags();
        let files = files.iter().flat_map(|(flag, value)| [*flag, value]);
        let process = Process::start(master_binary(), always.into_iter().chain(flags.iter().copied()).chain(files));
        listening_port(&process);
        process
    }

    fn node(&self) -> NodeBuilder {
        let builder = NodeBuilder::default().flag("--http", "127.0.0.1:0");
        self.flags().into_iter().fold(builder, |builder, (flag, value)| builder.flag(flag, value))
    }

    fn send(&self, node: &Node, activity: &str) -> Process {
        client(node, &["--tls-ca", self.file("ca.pem").to_str().unwrap(), "send", activity])
    }
}

fn make(directory: &Path) {
    let mut process = Process::start(client_binary(), ["certs", directory.to_str().unwrap()]);
    assert_eq!(process.wait_exit(PATIENCE).code(), Some(0));
}

fn client(node: &Node, arguments: &[&str]) -> Process {
    let port = node.address().port().to_string();
    let server = ["-rh", "localhost", "-rp", &port, "--no-reconnect"];
    Process::start(client_binary(), server.into_iter().chain(arguments.iter().copied()))
}

#[track_caller]
fn assert_exits(mut process: Process, code: i32) -> String {
    let status = process.wait_exit(PATIENCE);
    let said = process.stderr().join("\n");
    assert_eq!(status.code(), Some(code), "{said}");
    said
}

fn handshakes(http: SocketAddr, outcome: &str) -> f64 {
    value(&metrics(http), &format!("arborcast_node_tls_handshakes_total{{outcome=\"{outcome}\"}}")).unwrap_or_default()
}

#[test]
fn clients_come_over_tls_and_plain_at_the_same_port() {
    let certificates = Certificates::new();
    let node = certificates.node().start();
    let mut plain = Peer::connect(node.address());
    plain.send(lines::login_anonymously());
    plain.expect_command("LOGIN_SUCCESS");
    assert_exits(certificates.send(&node, r#"{"n":1}"#), 0);
    assert!(plain.expect_command("ACTIVITY_BROADCAST").text().contains(r#""n":1"#));
    assert_eq!(handshakes(http_address(&node.process), "success"), 1.0);
}

/// Many bytes at once: what TLS holds back goes out as well.
#[test]
fn a_long_activity_comes_through_whole() {
    let certificates = Certificates::new();
    let node = certificates.node().start();
    let long = format!(r#"{{"text":"{}"}}"#, "x".repeat(100_000));
    let listener =
        client(&node, &["--tls-ca", certificates.file("ca.pem").to_str().unwrap(), "listen", "--count", "3"]);
    wait_for(http_address(&node.process), r#"arborcast_node_connections{kind="client"}"#, 1.0);
    for _ in 0..3 {
        assert_exits(certificates.send(&node, &long), 0);
    }
    assert_exits(listener, 0);
}

#[test]
fn a_tree_and_its_masters_speak_tls_and_heal_over_it() {
    let certificates = Certificates::new();
    let master = certificates.master(&["--require-tls"]);
    let master_address = format!("localhost:{}", listening_port(&master));
    let member = |id: &str| certificates.node().id(id).flag("--master", &master_address).flag("--require-tls", "links");
    let mut root = member("a").start();
    let children = ["b", "c"].map(|id| member(id).parent(root.address()).start());
    let https = children.each_ref().map(|node| http_address(&node.process));
    for http in https {
        wait_for(http, "arborcast_node_depth", 1.0);
        wait_for(http, &format!("arborcast_node_master_up{{master=\"{master_address}\"}}"), 1.0);
    }
    root.process.signal(Signal::SIGKILL);
    wait_for(https[1], r#"arborcast_node_parent_info{parent="b"}"#, 1.0);
    wait_for(https[0], "arborcast_node_children", 1.0);
    assert!(handshakes(https[0], "success") >= 1.0);
    assert_exits(certificates.send(&children[0], "{}"), 0);
}

/// With an authority, a server that comes over TLS has to show that it is of this tree; the secret is not enough.
#[test]
fn a_server_without_a_certificate_is_refused() {
    let certificates = Certificates::new();
    let node = certificates.node().flag("--require-tls", "links").start();
    let mut plain = Peer::connect(node.address());
    plain.send(lines::authenticate(SECRET));
    let refusal = plain.expect_last("AUTHENTICATION_FAIL");
    assert!(refusal.info().contains("certificate"), "{refusal:?}");
    let mut client = Peer::connect(node.address());
    client.send(lines::login_anonymously());
    client.expect_command("LOGIN_SUCCESS");
}

#[test]
fn a_plain_client_is_told_where_tls_is_required() {
    let certificates = Certificates::new();
    let node = certificates.node().flag("--require-tls", "all").start();
    let mut plain = Peer::connect(node.address());
    plain.send(lines::login_anonymously());
    assert!(plain.expect_command("INVALID_MESSAGE").info().contains("TLS"));
    let http = http_address(&node.process);
    assert!(get(http, "/healthz").is_err(), "all means all");
    let metrics = get_over_tls(http, &certificates.file("ca.pem"), "/metrics").unwrap().body;
    assert_eq!(value(&metrics, r#"arborcast_node_tls_handshakes_total{outcome="plain"}"#), Some(2.0));
}

#[test]
fn who_stops_in_the_handshake_is_closed_and_counted() {
    let certificates = Certificates::new();
    let node = certificates.node().flag("--login-timeout", "300ms").start();
    let mut stuck = TcpStream::connect(node.address()).unwrap();
    // The beginning of a handshake, and nothing more.
    stuck.write_all(b"\x16\x03\x01\x02\x00\x01").unwrap();
    stuck.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(!matches!(stuck.read(&mut [0; 1]), Ok(1..)), "closed");
    assert_eq!(handshakes(http_address(&node.process), "timeout"), 1.0);
}

/// The same at the other ports: a master's, and those for HTTP.
#[test]
fn who_stops_in_the_handshake_is_closed_and_counted_at_every_port() {
    let certificates = Certificates::new();
    let node = certificates.node().flag("--login-timeout", "300ms").start();
    let master = certificates.master(&[]);
    let (node_http, master_http) = (http_address(&node.process), http_address(&master));
    let ports = [node_http, master_http, SocketAddr::from(([127, 0, 0, 1], listening_port(&master)))];
    let mut stuck = ports.map(|port| TcpStream::connect(port).unwrap());
    for stream in &mut stuck {
        stream.write_all(b"\x16\x03\x01\x02\x00\x01").unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    for stream in &mut stuck {
        assert!(!matches!(stream.read(&mut [0; 1]), Ok(1..)), "closed");
    }
    assert_eq!(handshakes(node_http, "timeout"), 1.0);
    wait_for(master_http, r#"arborcast_master_tls_handshakes_total{outcome="timeout"}"#, 2.0);
}

#[test]
fn answers_over_http_come_over_tls_and_plain_at_the_same_port() {
    let certificates = Certificates::new();
    let node = certificates.node().start();
    let master = certificates.master(&[]);
    for (process, name) in [(&node.process, "arborcast_node"), (&master, "arborcast_master")] {
        let http = http_address(process);
        assert_eq!(get(http, "/healthz").unwrap().body, "alive\n");
        let metrics = get_over_tls(http, &certificates.file("ca.pem"), "/metrics").unwrap().body;
        assert_eq!(
            value(&metrics, &format!("{name}_tls_handshakes_total{{outcome=\"success\"}}")),
            Some(1.0),
            "{metrics}"
        );
        let stranger = Certificates::new();
        let refused = get_over_tls(http, &stranger.file("ca.pem"), "/metrics").unwrap_err();
        assert!(refused.to_string().contains("not from an authority that is trusted here"), "{refused}");
    }
}

/// A master with an authority takes reports over TLS from nodes of it only; who asks where to go as a client needs nothing.
#[test]
fn a_node_without_a_certificate_is_no_node_to_a_master() {
    let certificates = Certificates::new();
    let master = certificates.master(&["--require-tls"]);
    let address = format!("localhost:{}", listening_port(&master));
    let authority = certificates.file("ca.pem").display().to_string();
    let bare = NodeBuilder::default().flag("--http", "127.0.0.1:0").flag("--tls-ca", &authority);
    let bare = bare.flag("--master", &address).log("info").start();
    bare.process.wait_for_stderr("this call needs a certificate of this tree's authority");
    let up = format!("arborcast_node_master_up{{master=\"{address}\"}}");
    assert_eq!(value(&metrics(http_address(&bare.process)), &up), Some(0.0));
    let refused = r#"grpc_calls_total{method="arborcast.registry.v1.Registry/Report",code="Unauthenticated"}"#;
    let told = get_over_tls(http_address(&master), certificates.file("ca.pem").as_path(), "/metrics").unwrap().body;
    assert!(value(&told, &format!("arborcast_master_{refused}")).is_some_and(|times| times >= 1.0), "{told}");

    let node = certificates.node().flag("--master", &address).start();
    wait_for(http_address(&node.process), &up, 1.0);
    assert_exits(Process::start(client_binary(), ["--tls-ca", &authority, "--master", &address, "send", "{}"]), 0);
}

/// A plain connection to a master that requires TLS is closed, and a node says that it has no contact.
#[test]
fn a_plain_node_does_not_reach_a_master_that_requires_tls() {
    let certificates = Certificates::new();
    let master = certificates.master(&["--require-tls"]);
    let address = format!("localhost:{}", listening_port(&master));
    let node = NodeBuilder::default().flag("--master", &address).log("info").start();
    node.process.wait_for_stderr("no contact with this master");
    let told = get_over_tls(http_address(&master), certificates.file("ca.pem").as_path(), "/metrics").unwrap().body;
    let plain = value(&told, r#"arborcast_master_tls_handshakes_total{outcome="plain"}"#);
    assert!(plain.is_some_and(|times| times >= 1.0), "{told}");
}

/// With an authority all that is dialled is TLS, but for one server that is named as the exception.
#[test]
fn a_plain_parent_is_reached_where_it_is_named_as_one() {
    let certificates = Certificates::new();
    let parent = NodeBuilder::default().flag("--http", "127.0.0.1:0").start();
    let mut child = certificates.node().parent(parent.address()).spawn();
    assert_eq!(child.wait_exit(PATIENCE).code(), Some(1));
    child.wait_for_stderr("TLS");
    let _child = certificates.node().parent(parent.address()).switch("--plain-parent").start();
    wait_for(http_address(&parent.process), r#"arborcast_node_connections{kind="server"}"#, 1.0);
}

#[test]
fn wrong_certificates_are_clear_errors() {
    let (certificates, other) = (Certificates::new(), Certificates::new());
    let node = certificates.node().start();
    let said = assert_exits(other.send(&node, "{}"), 1);
    assert!(said.contains("not from an authority that is trusted here"), "{said}");
    let mut child = other.node().parent(node.address()).spawn();
    assert_eq!(child.wait_exit(PATIENCE).code(), Some(1));
    child.wait_for_stderr("not from an authority that is trusted here (--tls-ca)");
    let mut misnamed = certificates.node().hostname("tree1.example.org").spawn();
    assert_eq!(misnamed.wait_exit(PATIENCE).code(), Some(1));
    misnamed.wait_for_stderr("it is not for the name by which others reach this one");
}

/// SIGHUP: new connections get the new certificate, and those that stand stay.
#[test]
fn certificates_are_read_again_without_dropping_anybody() {
    let (certificates, next) = (Certificates::new(), Certificates::new());
    let mut node = certificates.node().log("info").start();
    let listener =
        client(&node, &["--tls-ca", certificates.file("ca.pem").to_str().unwrap(), "listen", "--count", "1"]);
    let http = http_address(&node.process);
    wait_for(http, r#"arborcast_node_connections{kind="client"}"#, 1.0);
    for name in ["ca.pem", "node.pem"] {
        fs::copy(next.file(name), certificates.file(name)).unwrap();
    }
    node.process.signal(Signal::SIGHUP);
    node.process.wait_for_stderr("the certificates stay as they are");
    fs::copy(next.file("node.key"), certificates.file("node.key")).unwrap();
    node.process.signal(Signal::SIGHUP);
    node.process.wait_for_stderr("certificates read again");
    wait::until(PATIENCE, || match next.send(&node, r#"{"n":2}"#).wait_exit(PATIENCE).code() {
        Some(0) => Ok(()),
        code => Err(format!("{code:?}")),
    });
    assert_exits(listener, 0);
}

/// Whoever reloads all services must not end those that have no certificates.
#[test]
fn without_certificates_a_hangup_ends_nobody() {
    let mut node = Node::start();
    let mut master = Master::start();
    node.process.signal(Signal::SIGHUP);
    master.process.signal(Signal::SIGHUP);
    // It has come before this is answered, or it ends what should answer.
    assert!(master.topology().is_ok());
    let mut client = Peer::connect(node.address());
    client.send(lines::login_anonymously());
    assert_eq!(client.next_line().command(), "LOGIN_SUCCESS");
    for process in [&mut node.process, &mut master.process] {
        process.signal(Signal::SIGTERM);
        assert_eq!(process.wait_exit(PATIENCE).code(), Some(0));
    }
}

/// The same at a master: the streams of its nodes stand, and who comes later sees the new certificate.
#[test]
fn a_master_reads_its_certificates_again_and_keeps_its_nodes() {
    let (certificates, next) = (Certificates::new(), Certificates::new());
    let mut master = certificates.master(&[]);
    let address = format!("localhost:{}", listening_port(&master));
    let node = certificates.node().flag("--master", &address).start();
    let (node_http, master_http) = (http_address(&node.process), http_address(&master));
    wait_for(node_http, &format!("arborcast_node_master_up{{master=\"{address}\"}}"), 1.0);
    for name in ["ca.pem", "node.pem", "node.key"] {
        fs::copy(next.file(name), certificates.file(name)).unwrap();
    }
    master.signal(Signal::SIGHUP);
    wait::until(PATIENCE, || match get_over_tls(master_http, &next.file("ca.pem"), "/healthz") {
        Ok(answer) if answer.status == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(value(&metrics(master_http), "arborcast_master_report_streams"), Some(1.0));
    assert_eq!(value(&metrics(master_http), "arborcast_master_report_streams_opened_total"), Some(1.0));
    let lost = format!("arborcast_node_master_streams_lost_total{{master=\"{address}\"}}");
    assert_eq!(value(&metrics(node_http), &lost), Some(0.0));
}

#[test]
fn certificates_that_are_there_are_not_overwritten() {
    let certificates = Certificates::new();
    let before = fs::read(certificates.file("node.key")).unwrap();
    let mut again = Process::start(client_binary(), ["certs", certificates.0.path().to_str().unwrap()]);
    assert_eq!(again.wait_exit(PATIENCE).code(), Some(1));
    assert_eq!(fs::read(certificates.file("node.key")).unwrap(), before);
}

#[test]
fn bench_measures_over_tls_what_it_measures_over_plain_connections() {
    let certificates = Certificates::new();
    let node = certificates.node().start();
    let authority = certificates.file("ca.pem").display().to_string();
    let line = "bench --publishers 2 --subscribers 3 --count 1001 --json --tls-ca";
    let arguments: Vec<&str> = line.split(' ').chain([authority.as_str()]).collect();
    let mut bench = client(&node, &arguments);
    assert_eq!(bench.wait_exit(PATIENCE).code(), Some(0), "{:?}", bench.stderr());
    let report: serde_json::Value = serde_json::from_str(&bench.stdout().concat()).unwrap();
    assert_eq!((&report["acknowledged"], &report["deliveries"]), (&1001.into(), &3003.into()), "{report}");
    assert!(handshakes(http_address(&node.process), "success") >= 5.0);
}
