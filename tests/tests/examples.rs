//! The client library's example programs, run as their first lines say.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use arborcast_tests::lines;
use arborcast_tests::master::Master;
use arborcast_tests::node::{Node, NodeBuilder};
use arborcast_tests::peer::Peer;
use arborcast_tests::process::Process;
use arborcast_tests::wait::{self, PATIENCE};
use serde_json::Value;

fn example(name: &str) -> &'static Path {
    static BUILT: OnceLock<Vec<PathBuf>> = OnceLock::new();
    let built = BUILT.get_or_init(build);
    built.iter().find(|path| path.file_stem() == Some(OsStr::new(name))).expect("cargo built all examples")
}

fn build() -> Vec<PathBuf> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--examples", "--package=arborcast-client"]);
    cargo.args(["--message-format=json-render-diagnostics", "--manifest-path"]);
    cargo.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
    let output = cargo.stderr(Stdio::inherit()).output().expect("cargo can be run");
    assert!(output.status.success(), "the examples don't build");
    let reports = output.stdout.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
    reports.filter_map(|report: Value| report["executable"].as_str().map(PathBuf::from)).collect()
}

#[track_caller]
fn expect_success(mut process: Process) -> Vec<String> {
    let status = process.wait_exit(PATIENCE);
    assert_eq!(status.code(), Some(0), "{:?}", process.stderr());
    process.stdout()
}

/// Publishes until a listener prints it, as it is in only some time after it was started.
#[track_caller]
fn expect_to_hear(listener: &Process, speaker: &mut Peer) {
    let expected = r#"{"verb":"greets","authenticated_user":"anonymous"}"#;
    wait::until(PATIENCE, || {
        speaker.send(lines::anonymous_activity(r#"{"verb":"greets"}"#));
        speaker.expect_message(&lines::broadcast(expected));
        let is_there = listener.stdout().iter().any(|line| line == expected);
        if is_there { Ok(()) } else { Err(format!("it hears nothing: {:?}", listener.stderr())) }
    });
}

#[test]
fn what_publish_publishes_subscribe_prints() {
    let node = Node::start();
    let address = node.address().to_string();
    let subscriber = Process::start(example("subscribe"), [&address]);
    let mut observer = Peer::anonymous(node.address());
    expect_to_hear(&subscriber, &mut observer);
    expect_success(Process::start(example("publish"), [&address, r#"{"verb":"rings","n":1.0}"#]));
    let expected = r#"{"verb":"rings","n":1.0,"authenticated_user":"anonymous"}"#;
    subscriber.stdout_line_matching(expected, |line| (line == expected).then_some(()));
}

/// The second time the name is taken, by itself.
#[test]
fn register_says_hello_under_its_name() {
    let node = Node::start();
    let mut observer = Peer::anonymous(node.address());
    for _ in 0..2 {
        let said = Process::start(example("register"), [&node.address().to_string(), "aaron", "s3"]);
        assert_eq!(expect_success(said), ["aaron has said hello"]);
        let hello = r#"{"verb":"says","object":"hello","authenticated_user":"aaron"}"#;
        observer.expect_message(&lines::broadcast(hello));
    }
    let mut wrong = Process::start(example("register"), [&node.address().to_string(), "aaron", "wrong"]);
    assert_eq!(wrong.wait_exit(PATIENCE).code(), Some(1));
}

#[test]
fn those_for_a_tree_that_heals_publish_with_acks_and_listen() {
    // One server, since of two the fuller one redirects.
    let master = Master::start();
    let node = NodeBuilder::default().flag("--master", master.address()).start();
    wait::until(PATIENCE, || {
        let nodes = master.topology()?.nodes.len();
        if nodes == 1 { Ok(()) } else { Err(format!("the master knows {nodes} nodes")) }
    });
    let listener = Process::start(example("listen_and_reconnect"), [master.address().to_string()]);
    expect_to_hear(&listener, &mut Peer::anonymous(node.address()));
    let said = expect_success(Process::start(example("publish_with_acks"), [node.address().to_string()]));
    assert_eq!(said.last().unwrap(), "all 1000 acknowledged");
    listener.stdout_line_matching("the last", |line| line.starts_with(r#"{"number":999,"#).then_some(()));
}
