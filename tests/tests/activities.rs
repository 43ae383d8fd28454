//! Part I, Activities.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use arborcast_tests::lines;
use arborcast_tests::node::{Node, NodeBuilder};
use arborcast_tests::peer::{Arrival, Line, Peer};
use arborcast_tests::stage::Stage;
use arborcast_tests::tree::Tree;
use arborcast_tests::wait::PATIENCE;

/// The members of activities that are easily changed by whoever parses and prints them again.
const DELICATE: [&str; 8] = [
    r#""z":1,"a":2,"m":{"z":[],"a":{}}"#,
    r#""n":1.0,"n2":-0,"n3":-0.0,"n4":1E+2,"n5":1e2,"n6":100,"n7":0.10"#,
    r#""big":123456789012345678901234567890,"huge":1e400,"tiny":1e-400,"precise":0.1000000000000000055511151231257827"#,
    r#""i64":-9223372036854775808,"u64":18446744073709551615,"f":9007199254740993"#,
    r#""text":"\u00e9\/\b\u0000\ud83d\ude00é😀","\u006bey":"","":null"#,
    r#""nested":{"authenticated_user":"root","deeper":[{"authenticated_user":1}]},"word":"authenticated_user""#,
    r#""same":1,"same":2"#,
    r#""command":"LOGOUT","username":"x","secret":"y","activity":{"info":1}"#,
];

/// The text of the activity in an ACTIVITY_BROADCAST.
#[track_caller]
fn activity_text(line: &Line) -> &str {
    let inner = line.text().strip_prefix(r#"{"command":"ACTIVITY_BROADCAST","activity":"#);
    inner.and_then(|inner| inner.strip_suffix('}')).unwrap_or_else(|| panic!("no broadcast: {}", line.text()))
}

/// Part I, Activities: "ACTIVITY_BROADCAST to every client of this server, the sender included, and on every server
/// link"; and to nobody who is neither.
#[test]
fn an_activity_reaches_all_clients_the_sender_and_all_links() {
    let (mut stage, mut parent) = Stage::below_a_parent();
    let address = stage.node.address();
    let mut child = Peer::link(address);
    let mut unidentified = Peer::connect(address);
    let (mut sender, mut other) = (Peer::anonymous(address), Peer::anonymous(address));
    sender.send(lines::anonymous_activity(r#"{"verb":"posts"}"#));
    let expected = lines::broadcast(r#"{"verb":"posts","authenticated_user":"anonymous"}"#);
    for receiver in [&mut sender, &mut other, &mut child, &mut parent, &mut stage.observer] {
        receiver.expect_message(&expected);
    }
    unidentified.send(lines::login_anonymously());
    unidentified.expect_command("LOGIN_SUCCESS");
    unidentified.expect_silence();
}

/// Part I, Activities: "Set the activity's `authenticated_user` to the message's username; everything else in the
/// object goes through unchanged, numbers digit for digit and keys in their order."
#[test]
fn everything_else_in_an_activity_goes_through_unchanged() {
    let mut stage = Stage::new();
    let mut sender = Peer::registered(stage.node.address(), "aaron", "s");
    for members in DELICATE {
        sender.send(lines::activity("aaron", "s", &format!("{{{members}}}")));
        let broadcast = sender.expect_command("ACTIVITY_BROADCAST");
        let text = activity_text(&broadcast);
        let rest = text.replacen(r#""authenticated_user":"aaron""#, "", 1);
        assert_ne!(rest, text, "no author in {text}");
        assert_eq!(rest.replace("{,", "{").replace(",}", "}"), format!("{{{members}}}"));
        stage.observer.expect_text(broadcast.text());
    }
    sender.send(lines::activity("aaron", "s", "{}"));
    assert_eq!(activity_text(&sender.expect_command("ACTIVITY_BROADCAST")), r#"{"authenticated_user":"aaron"}"#);
}

/// Part I, Activities: "replacing whatever was there": a forged author, of whatever type, however it is spelt.
#[test]
fn a_forged_author_is_replaced() {
    let node = Node::start();
    let mut sender = Peer::anonymous(node.address());
    for forged in [
        r#"{"authenticated_user":"root"}"#,
        r#"{"a":1,"authenticated_user":{"name":"root"},"b":2}"#,
        r#"{"authenticated_user":null,"b":2}"#,
        r#"{"authenticated\u005fuser":"root","b":2}"#,
        r#"{"authenticated_user":"root","b":2,"authenticated_user":"root"}"#,
        r#"{"b":2,"\u0061uthenticated_user":["root"],"authenticated_user":"anonymous"}"#,
    ] {
        sender.send(lines::anonymous_activity(forged));
        let broadcast = sender.expect_command("ACTIVITY_BROADCAST");
        assert_eq!(broadcast["activity"]["authenticated_user"], "anonymous", "{}", broadcast.text());
        assert!(!broadcast.text().contains("root"), "{}", broadcast.text());
    }
}

/// Part I, Activities: a username that means something to JSON is still only a username.
#[test]
fn a_username_of_any_characters_becomes_the_author() {
    let node = Node::start();
    for username in ["\"},{\"", "back\\slash", "new\nline", "\u{0}", "ångström 😀", " ", ""] {
        let mut session = Peer::registered(node.address(), username, "s");
        session.send(lines::activity(username, "s", r#"{"a":1}"#));
        assert_eq!(session.expect_command("ACTIVITY_BROADCAST")["activity"]["authenticated_user"], username);
    }
}

/// Part I, Activities: "AUTHENTICATION_FAIL and close unless the username is `anonymous`, or username and secret are
/// those the session logged in with."
#[test]
fn a_session_publishes_under_its_own_name_or_anonymously_only() {
    let node = Node::start();
    let mut witness = Peer::anonymous(node.address());
    Peer::registered(node.address(), "berta", "b");
    let mut session = Peer::registered(node.address(), "aaron", "a");
    session.send(lines::activity("aaron", "a", "{}"));
    session.send(lines::anonymous_activity("{}"));
    for author in ["aaron", "anonymous"] {
        assert_eq!(session.expect_command("ACTIVITY_BROADCAST")["activity"]["authenticated_user"], author);
        witness.expect_command("ACTIVITY_BROADCAST");
    }
    for (username, secret) in
        [("aaron", "b"), ("aaron", ""), ("berta", "b"), ("berta", "a"), ("nobody", "a"), ("Aaron", "a")]
    {
        let mut session = Peer::logged_in(node.address(), "aaron", "a");
        session.send(lines::activity(username, secret, "{}"));
        session.expect_last("AUTHENTICATION_FAIL");
        let mut anonymous = Peer::anonymous(node.address());
        anonymous.send(lines::activity(username, secret, "{}"));
        anonymous.expect_last("AUTHENTICATION_FAIL");
    }
    // Nothing of that was broadcast.
    witness.send(lines::anonymous_activity(r#"{"n":1}"#));
    assert_eq!(witness.expect_command("ACTIVITY_BROADCAST")["activity"]["n"], 1);
}

/// Part I, Activities: "A server that receives it on a link gives it to all its clients and all other links, as it is
/// (even without an `authenticated_user`)", and Messages, "Flooded": unknown fields included, not back where it came from.
#[test]
fn a_broadcast_is_passed_on_byte_for_byte_but_not_back() {
    let (mut stage, mut parent) = Stage::below_a_parent();
    let mut child = Peer::link(stage.node.address());
    let mut client = Peer::anonymous(stage.node.address());
    let as_they_are = [
        r#"{"command":"ACTIVITY_BROADCAST","activity":{}}"#.to_owned(),
        r#"{"origin":"far","seq":1.0,"activity":{"authenticated_user":{"not":"a string"}},"command":"ACTIVITY_BROADCAST"}"#.to_owned(),
        r#" { "command" : "ACTIVITY_BROADCAST" ,	"activity" : { "a" : [ 1 , 2 ] } } "#.to_owned(),
        r#"{"command":"ACTIVITY\u005fBROADCAST","activity":{"x":"\u00e9\/"}}"#.to_owned(),
    ];
    let delicate = DELICATE.map(|members| lines::broadcast(&format!("{{{members}}}")));
    for line in as_they_are.iter().chain(&delicate) {
        child.send(line);
        for receiver in [&mut parent, &mut stage.observer, &mut client] {
            receiver.expect_text(line);
        }
        parent.send(line);
        for receiver in [&mut child, &mut stage.observer, &mut client] {
            receiver.expect_text(line);
        }
    }
    stage.expect_nothing_more([&mut parent, &mut child]);
}

/// Part I, Transport with Activities: the line ending is not part of the message, and what is passed on ends in `\n`.
#[test]
fn a_broadcast_that_ended_in_crlf_is_passed_on_with_lf() {
    let mut stage = Stage::new();
    let mut link = Peer::link(stage.node.address());
    let line = lines::broadcast(r#"{"a":1}"#);
    link.send_bytes(format!("{line}\r\n").as_bytes());
    stage.observer.expect_text(&line);
}

/// Part I, Activities: "A message just under the line limit may grow over it when it becomes a broadcast: refuse it or
/// deliver it, never lose a link over it."
#[test]
fn an_activity_near_the_line_limit_is_refused_or_delivered_and_costs_no_link() {
    const LIMIT: usize = 4096;
    let small = || NodeBuilder::default().flag("--max-line", LIMIT);
    let upper = small().start();
    let lower = small().parent(upper.address()).start();
    let mut link = Peer::link(lower.address());
    let mut witness = Peer::anonymous(upper.address());
    let empty = lines::anonymous_activity(r#"{"text":""}"#).len();
    for length in LIMIT - 60..=LIMIT {
        let mut sender = Peer::anonymous(lower.address());
        let activity =
            format!(r#"{{"length":{length},"text":"{}"}}"#, "x".repeat(length - empty - r#""length":1234,"#.len()));
        let message = lines::anonymous_activity(&activity);
        assert_eq!(message.len(), length);
        sender.send(message);
        match sender.arrival(PATIENCE) {
            Arrival::Line(line) if line.command() == "ACTIVITY_BROADCAST" => {
                for receiver in [&mut link, &mut witness] {
                    receiver.expect_text(line.text());
                }
                // Gone before the next one comes: two at a time would be redirected.
                sender.send(lines::logout());
                sender.expect_end();
            }
            Arrival::Line(line) if line.command() == "INVALID_MESSAGE" => {
                sender.expect_end();
            }
            other => panic!("neither refused nor delivered: {other:?}"),
        }
    }
    // The links still stand, in both directions.
    witness.send(lines::anonymous_activity(r#"{"still":"here"}"#));
    let broadcast = witness.expect_command("ACTIVITY_BROADCAST");
    link.expect_text(broadcast.text());
    link.send(lines::broadcast(r#"{"n":1}"#));
    witness.expect_text(&lines::broadcast(r#"{"n":1}"#));
}

/// Part I, Activities: "No duplicates; the order of one sender's activities is kept everywhere", here with two senders
/// at once through two servers, and clients that do both.
#[test]
fn the_order_of_each_sender_is_kept_and_nothing_is_doubled() {
    const COUNT: usize = 1_000;
    let tree = Tree::line(2);
    let mut clients = [Peer::anonymous(tree.address(0)), Peer::anonymous(tree.address(1))];
    let mut writers = Vec::new();
    for (sender, client) in clients.iter().enumerate() {
        let mut stream = Peer::over(client.try_clone_stream());
        writers.push(std::thread::spawn(move || {
            for n in 0..COUNT {
                stream.send(lines::anonymous_activity(&format!(r#"{{"sender":{sender},"n":{n}}}"#)));
            }
        }));
    }
    for client in &mut clients {
        let mut next = [0, 0];
        for _ in 0..2 * COUNT {
            let line = client.expect_command("ACTIVITY_BROADCAST");
            let sender = usize::try_from(line["activity"]["sender"].as_u64().unwrap()).unwrap();
            assert_eq!(line["activity"]["n"], next[sender], "from sender {sender}");
            next[sender] += 1;
        }
        assert_eq!(next, [COUNT, COUNT]);
    }
    for writer in writers {
        writer.join().unwrap();
    }
    for client in &mut clients {
        client.expect_silence();
    }
}

/// Part I, Who a connection is: LOGOUT closes silently; what was sent before it is still broadcast.
#[test]
fn what_was_sent_before_a_logout_is_broadcast() {
    let node = Node::start();
    let mut witness = Peer::anonymous(node.address());
    let mut leaving = Peer::anonymous(node.address());
    leaving.send(lines::anonymous_activity(r#"{"n":1}"#));
    leaving.send(lines::logout());
    leaving.send(lines::anonymous_activity(r#"{"n":2}"#));
    assert_eq!(witness.expect_command("ACTIVITY_BROADCAST")["activity"]["n"], 1);
    assert!(leaving.expect_gone().iter().all(|line| line.command() == "ACTIVITY_BROADCAST"));
    witness.send(lines::anonymous_activity(r#"{"n":3}"#));
    assert_eq!(witness.expect_command("ACTIVITY_BROADCAST")["activity"]["n"], 3);
}
