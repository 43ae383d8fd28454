//! Secrets are never logged (README), whatever is done with them and however much is logged.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use arborcast_tests::lines;
use arborcast_tests::master::Master;
use arborcast_tests::node::{Node, NodeBuilder};
use arborcast_tests::peer::Peer;
use arborcast_tests::process::{Process, client_binary, master_binary};
use arborcast_tests::wait::PATIENCE;
use serde_json::Value;

const CLUSTER: &str = "ClusterSecretOfTheTree";
const WRONG_CLUSTER: &str = "WrongSecretOfAServer";
const USER: &str = "SecretOfTheUser";
const WRONG_USER: &str = "WrongSecretOfTheUser";

#[track_caller]
fn assert_keeps_quiet(process: &Process, marker: &str) {
    process.wait_for_stderr(marker);
    let log = process.stderr().join("\n");
    for secret in [CLUSTER, WRONG_CLUSTER, USER, WRONG_USER] {
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret} is in the log");
    }
}

fn session(node: &Node) {
    let mut client = Peer::connect(node.address());
    client.send(lines::register("aaron", USER));
    client.expect_command("REGISTER_SUCCESS");
    client.send(lines::login("aaron", USER));
    client.expect_command("LOGIN_SUCCESS");
    client.send(lines::activity("aaron", USER, r#"{"verb":"posts"}"#));
    client.expect_command("ACTIVITY_BROADCAST");
    client.send(lines::activity("aaron", WRONG_USER, r#"{"verb":"posts"}"#));
    client.expect_last("AUTHENTICATION_FAIL");
    for (line, answer) in [
        (lines::login("aaron", WRONG_USER), "LOGIN_FAILED"),
        (lines::register("aaron", WRONG_USER), "REGISTER_FAILED"),
        (lines::lock_request("aaron", USER), "INVALID_MESSAGE"),
        // Cut short, of the wrong type, and with what does not belong there.
        (format!(r#"{{"command":"LOGIN","username":"aaron","secret":"{USER}""#), "INVALID_MESSAGE"),
        (format!(r#"{{"command":"LOGIN","username":["{USER}"],"secret":"{USER}"}}"#), "INVALID_MESSAGE"),
        (format!(r#"{{"command":"LOGIN","username":"aaron","secret":{{"{USER}":1}}}}"#), "INVALID_MESSAGE"),
    ] {
        let mut stranger = Peer::connect(node.address());
        stranger.send(&line);
        stranger.expect_last(answer);
    }
    let mut server = Peer::connect(node.address());
    server.send(lines::authenticate(WRONG_CLUSTER));
    server.expect_last("AUTHENTICATION_FAIL");
}

#[test]
fn a_plain_node_that_logs_everything_tells_no_secret() {
    let node = NodeBuilder::default().secret(CLUSTER).log("trace").start();
    let child = NodeBuilder::default().secret(CLUSTER).parent(node.address()).log("trace").start();
    session(&node);
    for node in [&node, &child] {
        assert_keeps_quiet(&node.process, "TRACE");
    }
    let mut refused = NodeBuilder::default().secret(WRONG_CLUSTER).parent(node.address()).log("trace").spawn();
    assert_eq!(refused.wait_exit(PATIENCE).code(), Some(1));
    assert_keeps_quiet(&refused, "refused");
}

#[test]
fn a_tree_with_masters_that_logs_everything_tells_no_secret() {
    let master = Process::start_logging(master_binary(), ["--listen", "127.0.0.1:0", "-s", CLUSTER], "trace");
    let address = master.stdout_line_matching("address", |line| line.strip_prefix("listening on ").map(str::to_owned));
    let member = |id: &str| {
        NodeBuilder::default().id(id).secret(CLUSTER).flag("--master", &address).flag("--log-format", "json")
    };
    let root = member("a").log("trace").start();
    let child = member("b").log("trace").parent(root.address()).start();
    child.process.wait_for_stderr("master found");
    session(&root);
    let stranger = member("c").secret(WRONG_CLUSTER).parent(root.address()).log("trace").start();
    assert_keeps_quiet(&stranger.process, "no contact with this master");
    for process in [&root.process, &child.process] {
        assert_keeps_quiet(process, "TRACE");
        let line = process.stderr().into_iter().find(|line| line.contains("master found")).unwrap();
        let fields: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((fields["level"].as_str(), fields["message"].as_str()), (Some("INFO"), Some("master found")));
    }
    assert_keeps_quiet(&master, "TRACE");
}

#[test]
fn a_client_that_logs_everything_tells_no_secret() {
    let master = Master::start();
    let node = NodeBuilder::default().flag("--master", master.address()).start();
    let port = node.address().port().to_string();
    for (command, secret, code) in [("register", USER, 0), ("send", USER, 0), ("send", WRONG_USER, 1)] {
        let server = ["-rh", "127.0.0.1", "-rp", &port, "-u", "aaron", "-s", secret, command];
        let activity = (command == "send").then_some("{}");
        let arguments = server.into_iter().chain(activity);
        let mut client = Process::start_logging(client_binary(), arguments, "trace");
        assert_eq!(client.wait_exit(PATIENCE).code(), Some(code), "{:?}", client.stderr());
        assert_keeps_quiet(&client, "DEBUG");
    }
}
