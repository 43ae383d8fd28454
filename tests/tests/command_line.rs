//! Part I, Command line of the original, and Servers joining where a node must not start.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use arborcast_tests::lines;
use arborcast_tests::node::{Node, NodeBuilder, SECRET, listening_port};
use arborcast_tests::peer::{Arrival, FakeParent, Line, Peer};
use arborcast_tests::process::{Process, Signal, node_binary};
use arborcast_tests::wait::{self, PATIENCE};
use socket2::{Domain, Socket, Type};

/// Waits for a node that can't run to end, and returns the one sentence in which it says why.
#[track_caller]
fn sentence_of_failure(mut process: Process) -> String {
    let status = process.wait_exit(PATIENCE);
    assert!(status.code().is_some_and(|code| code != 0), "{status}");
    let stderr = process.stderr();
    let mut sentences = stderr.iter().filter_map(|line| line.strip_prefix("arborcast-node: "));
    let sentence = sentences.next().unwrap_or_else(|| panic!("no sentence in {stderr:?}"));
    assert_eq!(sentences.next(), None);
    assert!(!stderr.iter().any(|line| line.contains("panicked")), "{stderr:?}");
    sentence.to_owned()
}

#[track_caller]
fn announced_by(address: SocketAddr, secret: &str) -> Line {
    let mut link = Peer::connect(address);
    link.send(lines::authenticate(secret));
    link.expect_command("SERVER_ANNOUNCE")
}

/// Part I, Command line: `-lh`, `-lp`, `-rh`, `-rp`, `-s`, `-a`, and "These one-dash names must work beside the ordinary
/// `--long` ones."
#[test]
fn the_one_dash_names_and_the_long_ones_mean_the_same() {
    for [lh, lp, rh, rp, s, a] in [
        ["-lh", "-lp", "-rh", "-rp", "-s", "-a"],
        ["--local-hostname", "--local-port", "--remote-hostname", "--remote-port", "--secret", "--activity-interval"],
    ] {
        let parent = FakeParent::listen();
        let port = parent.address().port().to_string();
        let arguments =
            [lh, "tree.example", lp, "0", rh, "127.0.0.1", rp, &port, s, SECRET, a, "50", "--bind", "127.0.0.1"];
        let process = Process::start(node_binary(), arguments);
        let mut link = parent.accept_link();
        let announcement = link.expect_announcement();
        assert_eq!(announcement["hostname"], "tree.example");
        // Announced again and again at this interval; a minute would be too long for this test.
        link.expect_announcement();
        link.expect_announcement();
        assert_eq!(announcement["port"], listening_port(&process));
    }
}

/// Part I, Command line: "No `-rh`: this is the first server; with no `-s` it makes a random secret and prints it."
#[test]
fn the_first_server_makes_a_random_secret_and_prints_it() {
    let start = || {
        let node = NodeBuilder::default().without_secret().start();
        let stdout = node.process.stdout();
        let secret = stdout[0].strip_prefix("secret: ").expect("the secret is printed first").to_owned();
        assert!(stdout[1].starts_with("listening on "), "{stdout:?}");
        (node, secret)
    };
    let ((first, secret), (_second, other_secret)) = (start(), start());
    assert_ne!(secret, other_secret);
    announced_by(first.address(), &secret);
    let below = NodeBuilder::default().secret(&secret).parent(first.address()).start();
    announced_by(below.address(), &secret);
}

/// What the operator is told on stdout is one line, and it is the address that really listens.
#[test]
fn a_node_says_where_it_listens_and_nothing_else() {
    let node = Node::start();
    assert_eq!(node.process.stdout(), [format!("listening on {}", node.address())]);
    Peer::anonymous(node.address());
}

/// Part I, Command line: "`-rh` needs `-s`", and other flags that can't be used.
#[test]
fn unusable_flags_are_refused_with_a_sentence() {
    for flags in [
        "-rh 127.0.0.1",
        "-lp 70000",
        "-lp x",
        "-rp 1 -s x",
        "-a 0",
        "-a soon",
        "-s",
        "--max-line 1",
        "--log-bytes 0",
        "--login-timeout soon",
        "--max-connections none",
        "--bind nowhere",
        "--frobnicate",
        "word",
    ] {
        let mut process = Process::start(node_binary(), flags.split(' '));
        let status = process.wait_exit(PATIENCE);
        assert!(status.code().is_some_and(|code| code != 0), "{flags}: {status}");
        let stderr = process.stderr();
        assert!(stderr[0].starts_with("error: "), "{flags}: {stderr:?}");
        assert!(!stderr.iter().any(|line| line.contains("panicked")), "{flags}: {stderr:?}");
        assert_eq!(process.stdout(), Vec::<String>::new(), "{flags}");
    }
}

/// A port that somebody else listens on.
#[test]
fn a_port_in_use_is_refused_with_a_sentence() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let sentence = sentence_of_failure(NodeBuilder::default().port(port).spawn());
    assert!(sentence.contains(&port.to_string()), "{sentence}");
}

/// SO_REUSEADDR is for ports of the past: two nodes can't share one.
#[test]
fn a_port_of_another_node_is_refused_with_a_sentence() {
    let node = Node::start();
    let sentence = sentence_of_failure(NodeBuilder::default().port(node.address().port()).spawn());
    assert!(sentence.contains(&node.address().port().to_string()), "{sentence}");
    Peer::anonymous(node.address());
}

/// Part I, Servers joining: the first connection "fails": nobody listens there.
#[test]
fn an_absent_parent_is_a_reason_not_to_start() {
    // Bound and not listening: nobody else gets the port, and whoever dials it is refused.
    let absent = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    absent.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let address = absent.local_addr().unwrap().as_socket().unwrap();
    let sentence = sentence_of_failure(NodeBuilder::default().parent(address).spawn());
    assert!(sentence.contains(&address.port().to_string()), "{sentence}");
}

/// Part I, Servers joining: the first connection "is refused": by a real server, for a wrong secret.
#[test]
fn a_wrong_secret_is_a_reason_not_to_start() {
    let parent = Node::start();
    let sentence = sentence_of_failure(NodeBuilder::default().secret("wrong").parent(parent.address()).spawn());
    assert!(sentence.contains("secret"), "{sentence}");
}

/// Part I, Servers joining: the first connection "is refused", in either form.
#[test]
fn a_parent_that_refuses_is_a_reason_not_to_start() {
    for command in ["AUTHENTICATION_FAIL", "INVALID_MESSAGE"] {
        let parent = FakeParent::listen();
        let process = NodeBuilder::default().parent(parent.address()).spawn();
        let mut link = parent.accept_link();
        link.send(format!(r#"{{"command":"{command}","info":"for this reason"}}"#));
        drop(link);
        let sentence = sentence_of_failure(process);
        assert!(sentence.contains("for this reason"), "{sentence}");
    }
}

/// Part I, Servers joining: the first connection "is closed before the parent said anything": after it has read what the
/// node says, and before.
#[test]
fn a_parent_that_closes_without_a_word_is_a_reason_not_to_start() {
    let parent = FakeParent::listen();
    let process = NodeBuilder::default().parent(parent.address()).spawn();
    let mut link = parent.accept_link();
    link.expect_announcement();
    drop(link);
    sentence_of_failure(process);

    let process = NodeBuilder::default().parent(parent.address()).spawn();
    drop(parent.accept());
    sentence_of_failure(process);
}

/// Part I, Servers joining: the original announces itself only every interval, so that a parent's silence says nothing.
#[test]
fn a_parent_that_says_nothing_yet_is_no_reason_not_to_start() {
    let parent = FakeParent::listen();
    let builder = NodeBuilder::default().parent(parent.address());
    let process = builder.spawn();
    let mut link = parent.accept_link();
    let node = builder.listening(process);
    let mut client = Peer::anonymous(node.address());
    client.send(lines::anonymous_activity("{}"));
    client.expect_command("ACTIVITY_BROADCAST");
    link.expect_command("ACTIVITY_BROADCAST");
}

/// SIGTERM and SIGINT close everything cleanly: exit 0, and everybody sees the end of the stream and nothing before it.
#[test]
fn a_node_that_is_told_to_stop_closes_everything_and_exits_with_0() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut node = Node::start();
        let (mut session, mut link) = (Peer::anonymous(node.address()), Peer::link(node.address()));
        let mut unidentified = Peer::connect(node.address());
        unidentified.send(lines::register("aaron", "s"));
        unidentified.expect_command("REGISTER_SUCCESS");
        node.process.signal(signal);
        for peer in [&mut session, &mut link, &mut unidentified] {
            peer.expect_end();
        }
        let status = node.process.wait_exit(PATIENCE);
        assert_eq!(status.code(), Some(0), "{signal}: {status}");
    }
}

/// Nobody can keep a node from stopping by not reading, by talking on, or by saying nothing.
#[test]
fn a_node_that_is_told_to_stop_does_not_wait_for_the_unwilling() {
    let mut node = Node::start();
    let _never_reads = Peer::anonymous(node.address());
    let _says_nothing = Peer::connect(node.address());
    let mut refused = Peer::connect(node.address());
    refused.send("garbage");
    let mut sender = Peer::anonymous(node.address());
    let big = format!(r#"{{"text":"{}"}}"#, "x".repeat(500_000));
    for _ in 0..20 {
        sender.send(lines::anonymous_activity(&big));
        sender.expect_command("ACTIVITY_BROADCAST");
    }
    node.process.signal(Signal::SIGTERM);
    let status = node.process.wait_exit(PATIENCE);
    assert_eq!(status.code(), Some(0), "{status}");
}

/// A node below a parent stops as well, and its parent goes on.
#[test]
fn a_node_below_a_parent_stops_and_its_parent_goes_on() {
    let parent = Node::start();
    let mut client = Peer::anonymous(parent.address());
    let mut child = NodeBuilder::default().parent(parent.address()).start();
    child.process.signal(Signal::SIGTERM);
    assert_eq!(child.process.wait_exit(PATIENCE).code(), Some(0));
    client.send(lines::anonymous_activity("{}"));
    client.expect_command("ACTIVITY_BROADCAST");
}

/// `--max-connections`: those that are in stay in; one too many is closed; one that leaves makes room.
#[test]
fn connections_beyond_the_limit_are_closed_and_the_others_stay() {
    let node = NodeBuilder::default().flag("--max-connections", 2).start();
    let (mut first, second) = (Peer::anonymous(node.address()), Peer::anonymous(node.address()));
    Peer::connect(node.address()).expect_gone();
    first.send(lines::anonymous_activity("{}"));
    first.expect_command("ACTIVITY_BROADCAST");
    drop(second);
    wait::until(PATIENCE, || {
        let mut third = Peer::connect(node.address());
        // Closed before it is written, or before it is answered.
        let _ = third.try_send_bytes(format!("{}\n", lines::login_anonymously()).as_bytes());
        match third.arrival(Duration::from_secs(5)) {
            Arrival::Line(line) if line.command() == "LOGIN_SUCCESS" => Ok(()),
            other => Err(format!("no room yet: {other:?}")),
        }
    });
}
