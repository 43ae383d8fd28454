//! What an operator is told over HTTP (README, Metrics and health): metrics, and whether a node is alive and ready.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use arborcast_tests::lines;
use arborcast_tests::master::Master;
use arborcast_tests::node::{Node, NodeBuilder, SECRET, listening_port};
use arborcast_tests::peer::Peer;
use arborcast_tests::process::{Process, Signal, client_binary, master_binary};
use arborcast_tests::scrape::{get, http_address, metrics, value, wait_for};
use arborcast_tests::wait::{self, PATIENCE};

/// More than a node serves at once.
const MANY: usize = 70;

fn builder() -> NodeBuilder {
    NodeBuilder::default().flag("--http", "127.0.0.1:0")
}

fn start(builder: &NodeBuilder) -> (Node, SocketAddr) {
    let node = builder.start();
    let http = http_address(&node.process);
    (node, http)
}

/// A tree of three below one master: two children of a root.
fn family(master: &Master) -> Vec<(Node, SocketAddr)> {
    let member = |id: &str| builder().id(id).flag("--master", master.address());
    let root = start(&member("a"));
    let mut members = vec![root];
    for id in ["b", "c"] {
        let child = start(&member(id).parent(members[0].0.address()));
        wait_for(child.1, "arborcast_node_depth", 1.0);
        members.push(child);
    }
    members
}

fn monitoring() -> [PathBuf; 2] {
    ["../node/monitoring", "../master/monitoring"].map(|path| Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
}

/// All names of metrics in a text.
fn names(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = text.split(|c| !is_part(c)).filter(|word| {
        word.strip_prefix("arborcast_node_").or_else(|| word.strip_prefix("arborcast_master_")).is_some()
    });
    words.map(str::to_owned).collect()
}

/// The names of all families of metrics, as their types stand in an answer.
fn families(metrics: &str) -> BTreeSet<String> {
    let families = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    families.map(str::to_owned).collect()
}

/// What a master says, and a node that reports to it; both take TLS, so that nothing is left out.
fn metrics_of_both() -> [String; 2] {
    let certificates = tempfile::tempdir().unwrap();
    let directory = certificates.path().display();
    let mut made = Process::start(client_binary(), ["certs", &directory.to_string()]);
    assert_eq!(made.wait_exit(PATIENCE).code(), Some(0));
    let [certificate, key] = ["node.pem", "node.key"].map(|name| format!("{directory}/{name}"));
    let flags = ["--http", "127.0.0.1:0", "--tls-cert", &certificate, "--tls-key", &key];
    let master = ["-s", SECRET, "--listen", "127.0.0.1:0"];
    let master = Process::start(master_binary(), [&master[..], &flags].concat());
    let address = format!("127.0.0.1:{}", listening_port(&master));
    let node = builder().flag("--tls-cert", &certificate).flag("--tls-key", &key).flag("--master", &address);
    let (_node, http) = start(&node);
    wait_for(http, &format!("arborcast_node_master_up{{master=\"{address}\"}}"), 1.0);
    [metrics(http_address(&master)), metrics(http)]
}

/// What promtool says of its standard input, if it is there.
fn promtool(arguments: &[&str], input: &str) -> Option<(bool, String)> {
    let mut command = Command::new("promtool");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().ok()?;
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

#[test]
fn metrics_tell_what_clients_and_servers_did() {
    let (node, http) = start(&builder());
    let mut reader = Peer::registered(node.address(), "aaron", "s3");
    reader.send(lines::activity("aaron", "s3", r#"{"verb":"posts"}"#));
    reader.expect_command("ACTIVITY_BROADCAST");
    let mut link = Peer::link(node.address());
    link.send(lines::broadcast(r#"{"verb":"waves"}"#));
    reader.expect_command("ACTIVITY_BROADCAST");
    let mut stranger = Peer::connect(node.address());
    stranger.send(lines::login("aaron", "wrong"));
    stranger.expect_last("LOGIN_FAILED");
    let mut second = Peer::connect(node.address());
    second.send(lines::register("aaron", "other"));
    second.expect_last("REGISTER_FAILED");

    let text = metrics(http);
    for (name, expected) in [
        (r#"connections{kind="client"}"#, 1.0),
        (r#"connections{kind="server"}"#, 1.0),
        (r#"connections{kind="unidentified"}"#, 0.0),
        ("connections_accepted_total", 4.0),
        ("logins_total", 1.0),
        (r#"activities_received_total{from="client"}"#, 1.0),
        (r#"activities_received_total{from="server"}"#, 1.0),
        ("activities_published_total", 2.0),
        (r#"refusals_total{reason="wrong_secret"}"#, 1.0),
        (r#"connections_closed_total{reason="login_failed"}"#, 1.0),
        (r#"registrations_total{outcome="success"}"#, 1.0),
        (r#"registrations_total{outcome="name_taken"}"#, 1.0),
        ("ready", 1.0),
    ] {
        assert_eq!(value(&text, &format!("arborcast_node_{name}")), Some(expected), "{name} in\n{text}");
    }
    let sent = value(&text, "arborcast_node_sent_bytes_total").unwrap();
    let kept = value(&text, r#"arborcast_node_log_bytes{form="plain"}"#).unwrap();
    assert!(kept > 60.0 && sent > 2.0 * kept, "the log went to a client, and a line of it to a link: {text}");
    assert!(value(&text, "arborcast_node_received_bytes_total").unwrap() > 200.0, "{text}");
}

/// From the loss of the parent to the next one: which node moved, and how long it took.
#[test]
fn a_heal_is_seen_and_measured_where_it_happened() {
    let master = Master::start();
    let mut members = family(&master);
    for (_, http) in &members {
        wait_for(*http, &format!("arborcast_node_master_up{{master=\"{}\"}}", master.address()), 1.0);
        wait_for(*http, r#"arborcast_node_state{state="live"}"#, 1.0);
    }
    assert_eq!(value(&metrics(members[0].1), "arborcast_node_children"), Some(2.0));
    members[0].0.process.signal(Signal::SIGKILL);
    let (new_root, moved) = (members[1].1, members[2].1);
    wait_for(moved, "arborcast_node_heal_duration_seconds_count", 1.0);
    wait_for(new_root, "arborcast_node_children", 1.0);
    let (root, text) = (metrics(new_root), metrics(moved));
    assert_eq!(value(&root, "arborcast_node_heal_duration_seconds_count"), Some(0.0), "it has no parent again");
    for lost in [&root, &text] {
        assert_eq!(value(lost, "arborcast_node_parents_lost_total"), Some(1.0));
    }
    assert_eq!(value(&text, r#"arborcast_node_parent_info{parent="b"}"#), Some(1.0), "{text}");
    assert!(text.contains(r#"root="b""#), "{text}");
    assert_eq!(value(&text, r#"arborcast_node_heal_duration_seconds_bucket{le="+Inf"}"#), Some(1.0));
    let took = value(&text, "arborcast_node_heal_duration_seconds_sum").unwrap();
    assert!(took > 0.0 && took < PATIENCE.as_secs_f64(), "{took}");
}

/// From the metrics of a master alone: which node died, what moved where, and how long that took.
#[test]
fn a_master_tells_which_node_died_what_moved_where_and_how_long_it_took() {
    let master = Master::start_with_http();
    let http = http_address(&master.process);
    let mut members = family(&master);
    for (node, parent) in [("a", ""), ("b", "a"), ("c", "a")] {
        let place = format!("node_info{{node=\"{node}\",parent=\"{parent}\",state=\"live\"}}");
        wait_for(http, &format!("arborcast_master_{place}"), 1.0);
    }
    // It looks at the tree every now and then, and tells of what it has seen.
    wait_for(http, r#"arborcast_master_tree_events_total{kind="joined"}"#, 3.0);
    members[0].0.process.signal(Signal::SIGKILL);
    wait_for(http, r#"arborcast_master_node_info{node="c",parent="b",state="live"}"#, 1.0);
    wait_for(http, "arborcast_master_heal_seconds_count", 2.0);
    let text = metrics(http);
    assert!(value(&text, r#"arborcast_master_node_gone_time_seconds{node="a",how="lost"}"#).unwrap() > 1.7e9, "{text}");
    let took = value(&text, r#"arborcast_master_node_last_heal_seconds{node="c",from="a",to="b"}"#).unwrap();
    // What happens between two looks took no time.
    assert!((0.0..PATIENCE.as_secs_f64()).contains(&took), "{text}");
    assert!(value(&text, r#"arborcast_master_node_last_heal_seconds{node="b",from="",to=""}"#).is_some(), "{text}");
    for (kind, times) in [("lost", 1.0), ("reattached", 1.0), ("became_root", 1.0)] {
        let name = format!("arborcast_master_tree_events_total{{kind=\"{kind}\"}}");
        assert_eq!(value(&text, &name), Some(times), "{text}");
    }
    assert_eq!(value(&text, "arborcast_master_report_streams"), Some(2.0));
    assert_eq!(value(&text, r#"arborcast_master_report_streams_closed_total{reason="lost"}"#), Some(1.0), "{text}");
}

#[test]
fn a_master_that_is_gone_is_seen() {
    let mut master = Master::start();
    let (_node, http) = start(&builder().flag("--master", master.address()));
    let up = format!("arborcast_node_master_up{{master=\"{}\"}}", master.address());
    wait_for(http, &up, 1.0);
    master.process.signal(Signal::SIGKILL);
    wait_for(http, &up, 0.0);
    let lost = format!("arborcast_node_master_streams_lost_total{{master=\"{}\"}}", master.address());
    assert_eq!(value(&metrics(http), &lost), Some(1.0));
}

#[test]
fn a_node_is_alive_and_ready_and_says_so() {
    let (_node, http) = start(&builder());
    for path in ["/healthz", "/readyz"] {
        assert_eq!(get(http, path).unwrap().status, 200);
    }
    assert!(get(http, "/metrics").unwrap().head.contains("text/plain; version=0.0.4"));
    assert_eq!(get(http, "/somewhere").unwrap().status, 404);
}

#[test]
fn a_node_that_looks_for_its_place_is_not_ready_and_says_why() {
    // It takes the connection and never says a word.
    let parent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (_node, http) =
        start(&builder().extended().parent(parent.local_addr().unwrap()).flag("--heartbeat-timeout", "30s"));
    let answer = get(http, "/readyz").unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (503, "not ready: it looks for its place in the tree\n"));
    assert_eq!(get(http, "/healthz").unwrap().status, 200);
    assert_eq!(value(&metrics(http), r#"arborcast_node_state{state="joining"}"#), Some(1.0));
}

#[test]
fn a_node_that_drains_is_not_ready_and_says_why() {
    let member = |id: &str| builder().id(id).extended().flag("--heartbeat-timeout", "30s");
    let (mut root, http) = start(&member("a"));
    let mut children = ["b", "c"].map(|id| start(&member(id).parent(root.address())));
    children.iter().for_each(|(_, http)| wait_for(*http, "arborcast_node_depth", 1.0));
    // It can't go below the other one, so the root waits for it.
    children[1].0.process.signal(Signal::SIGSTOP);
    root.process.signal(Signal::SIGTERM);
    wait::until(PATIENCE, || match get(http, "/readyz") {
        Ok(answer) if answer.status == 503 && answer.body.contains("drains") => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

/// What others call themselves is text, whatever is in it.
#[test]
fn a_hostile_name_stays_within_its_quotes() {
    let id = "x\"} 1\narborcast_node_ready 7\n\\";
    let (_node, http) = start(&builder().id(id).extended());
    let text = metrics(http);
    assert_eq!(text.lines().filter(|line| line.starts_with("arborcast_node_ready ")).count(), 1, "{text}");
    if let Some((is_right, said)) = promtool(&["check", "metrics"], &text) {
        assert!(is_right, "{said}");
    }
}

#[test]
fn the_names_keep_the_conventions_of_prometheus() {
    for text in metrics_of_both() {
        for name in families(&text) {
            let counts = text.contains(&format!("# TYPE {name} counter"));
            assert_eq!(name.ends_with("_total"), counts, "{name}");
            assert!(text.contains(&format!("# HELP {name} ")), "{name}");
        }
        if let Some((is_right, said)) = promtool(&["check", "metrics"], &text) {
            assert!(is_right, "{said}");
        }
    }
}

/// Whoever connects and says nothing, or asks and never reads, is closed; who asks meanwhile gets an answer in the end.
#[test]
fn connections_that_say_nothing_or_read_nothing_give_way() {
    let (node, http) = start(&builder());
    let before = node.process.open_files();
    let mut silent: Vec<TcpStream> = (0..MANY).map(|_| TcpStream::connect(http).unwrap()).collect();
    for deaf in silent.iter_mut().step_by(2) {
        deaf.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n").unwrap();
    }
    wait::until(PATIENCE, || match node.process.open_files() - before {
        64 => Ok(()),
        other => Err(format!("{other} connections")),
    });
    assert_eq!(get(http, "/healthz").unwrap().status, 200);
    for stream in &mut silent {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // An end or a reset: it is closed.
        assert!(!matches!(stream.read(&mut [0; 1]), Ok(1..)));
    }
}

#[test]
fn thousands_of_scrapes_leave_nothing_behind() {
    let (node, http) = start(&builder());
    metrics(http);
    let (files, bytes) = (node.process.open_files(), node.process.resident_bytes());
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..250).for_each(|_| drop(metrics(http))));
        }
    });
    wait::until(PATIENCE, || match node.process.open_files() {
        now if now <= files => Ok(()),
        now => Err(format!("{now} open files, and {files} before")),
    });
    let now = node.process.resident_bytes();
    assert!(now < bytes + (32 << 20), "{now} bytes of memory, and {bytes} before");
    let mut client = Peer::connect(node.address());
    client.send(lines::login_anonymously());
    client.expect_command("LOGIN_SUCCESS");
}

#[test]
fn the_readme_names_every_metric() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let described = names(&readme);
    let missing: Vec<_> =
        families(&metrics_of_both().concat()).into_iter().filter(|name| !described.contains(name)).collect();
    assert_eq!(missing, [""; 0], "not in the README");
}

/// The dashboards and the alerts ask for nothing that nobody answers, and load.
#[test]
fn the_dashboards_and_the_alerts_load_and_ask_for_metrics_that_are_there() {
    let text = metrics_of_both().concat();
    // Those with labels are there once they have counted something.
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let known: BTreeSet<String> = families(&text).into_iter().chain(names(&readme)).collect();
    for monitoring in monitoring() {
        let dashboard = fs::read_to_string(monitoring.join("dashboard.json")).unwrap();
        let parsed: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
        assert!(parsed["panels"].as_array().unwrap().len() > 8 && parsed["title"].is_string());
        let path = monitoring.join("alerts.yml");
        let alerts = fs::read_to_string(&path).unwrap();
        let mut asked = names(&dashboard);
        asked.extend(names(&alerts));
        assert!(asked.len() > 10, "{asked:?}");
        let is_known = |name: &String| {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            known.contains(name) || base.is_some_and(|base| known.contains(base))
        };
        let unknown: Vec<_> = asked.iter().filter(|name| !is_known(name)).collect();
        assert_eq!(unknown, [""; 0], "nobody has these");
        if let Some((is_right, said)) = promtool(&["check", "rules", path.to_str().unwrap()], "") {
            assert!(is_right, "{said}");
        }
    }
}

/// A port that is taken is a clear error before anything is served.
#[test]
fn a_port_that_is_taken_is_said() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut process = NodeBuilder::default().flag("--http", taken.local_addr().unwrap()).spawn();
    assert_eq!(process.wait_exit(PATIENCE).code(), Some(1));
    process.wait_for_stderr("for HTTP: Address already in use");
    process.wait_for_stderr("--http");
}
