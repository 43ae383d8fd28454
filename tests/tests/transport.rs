//! Part I, Transport: what a message is, what is none, and what it looks like on the wire.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use arborcast_tests::lines;
use arborcast_tests::node::{Node, NodeBuilder};
use arborcast_tests::peer::Peer;

/// The smallest limit a node can be started with.
const SMALL_LIMIT: usize = 4096;

/// Sends bytes over a connection of their own, which must be told INVALID_MESSAGE and closed. Returns the info.
#[track_caller]
fn info_on_invalid(node: &Node, bytes: &[u8]) -> String {
    let mut peer = Peer::connect(node.address());
    peer.send_bytes(bytes);
    let info = peer.expect_last("INVALID_MESSAGE").info().to_owned();
    assert!(!info.is_empty(), "an info says what was wrong");
    info
}

/// A LOGIN that is exactly so many bytes long, line ending not counted.
fn login_of_length(length: usize) -> String {
    let shortest = r#"{"command":"LOGIN","username":"anonymous","padding":""}"#;
    shortest.replace(r#""""#, &format!("\"{}\"", "x".repeat(length - shortest.len())))
}

/// A LOGIN with this many levels of nesting, the message itself included.
fn login_nested(levels: usize) -> String {
    let (open, close) = ("[".repeat(levels - 1), "]".repeat(levels - 1));
    format!(r#"{{"command":"LOGIN","username":"anonymous","nested":{open}{close}}}"#)
}

/// Part I, Transport: "one JSON object on one line, UTF-8, ended by `\n` (a `\r\n` is accepted too)".
#[test]
fn both_line_endings_end_a_line() {
    let node = Node::start();
    for ending in ["\n", "\r\n"] {
        let mut peer = Peer::connect(node.address());
        peer.send_bytes(format!("{}{ending}", lines::login_anonymously()).as_bytes());
        peer.expect_command("LOGIN_SUCCESS");
    }
}

/// Part I, Transport: a message is a line, however TCP cuts it.
#[test]
fn the_cut_of_the_stream_into_segments_means_nothing() {
    let node = Node::start();
    let mut at_once = Peer::connect(node.address());
    let conversation =
        [lines::register("ängström", "s"), lines::login("ängström", "s"), lines::anonymous_activity("{}")];
    at_once.send_bytes(format!("{}\n", conversation.join("\n")).as_bytes());
    for command in ["REGISTER_SUCCESS", "LOGIN_SUCCESS", "ACTIVITY_BROADCAST"] {
        at_once.expect_command(command);
    }
    let mut byte_by_byte = Peer::connect(node.address());
    for byte in format!("{}\r\n", lines::login("ängström", "s")).bytes() {
        byte_by_byte.send_bytes(&[byte]);
    }
    byte_by_byte.expect_command("LOGIN_SUCCESS");
}

/// Part I, Transport: "Unknown extra fields are ignored. Field order means nothing."
#[test]
fn unknown_fields_and_field_order_mean_nothing() {
    let node = Node::start();
    Peer::registered(node.address(), "aaron", "s3");
    for login in [
        r#"{"secret":"s3","username":"aaron","command":"LOGIN"}"#,
        r#"{"x":{"command":"LOGOUT"},"command":"LOGIN","y":[1,null],"username":"aaron","z":"","secret":"s3"}"#,
        r#" { "command" : "LOGIN" , "username" : "aaron" ,	"secret" : "s3" } "#,
        r#"{"command":"LOGIN","username":"a\u0061ron","secret":"s3"}"#,
        // Fields that other commands have are unknown to this one.
        r#"{"command":"LOGIN","username":"aaron","secret":"s3","port":"none","load":{},"activity":7}"#,
    ] {
        let mut peer = Peer::connect(node.address());
        peer.send(login);
        peer.expect_command("LOGIN_SUCCESS");
    }
}

/// Part I, Transport: the list of invalid messages; each is answered with INVALID_MESSAGE and closed.
#[test]
fn whatever_is_no_message_is_answered_with_invalid_message_and_closed() {
    let node = Node::start();
    for line in [
        // Not JSON.
        "hello",
        "{",
        r#"{"command":"LOGIN""#,
        r#"{'command':'LOGIN','username':'anonymous'}"#,
        r#"{"command":"LOGIN","username":"anonymous",}"#,
        r#"{"command":"LOGIN","username":"anonymous"} {}"#,
        r#"{"command":"LOGIN","username":"anonymous","x":nul}"#,
        "GET / HTTP/1.1",
        // Not an object.
        "[]",
        "5",
        "null",
        r#""LOGIN""#,
        r#"[{"command":"LOGIN","username":"anonymous"}]"#,
        // An empty line, in whatever form.
        "",
        "\r",
        "   ",
        // No command, or none that exists.
        "{}",
        r#"{"username":"anonymous"}"#,
        r#"{"command":"HELLO"}"#,
        r#"{"command":""}"#,
        // A command of the wrong type.
        r#"{"command":null}"#,
        r#"{"command":["LOGIN"],"username":"anonymous"}"#,
        // A missing required field.
        r#"{"command":"AUTHENTICATE"}"#,
        r#"{"command":"LOGIN"}"#,
        r#"{"command":"LOGIN","secret":"s"}"#,
        r#"{"command":"REGISTER","username":"aaron"}"#,
        r#"{"command":"REGISTER","secret":"s"}"#,
        r#"{"command":"ACTIVITY_MESSAGE","username":"anonymous"}"#,
        r#"{"command":"ACTIVITY_MESSAGE","activity":{}}"#,
        // A field of the wrong type.
        r#"{"command":"AUTHENTICATE","secret":5}"#,
        r#"{"command":"LOGIN","username":5,"secret":"s"}"#,
        r#"{"command":"REGISTER","username":"aaron","secret":{}}"#,
        r#"{"command":"REGISTER","username":null,"secret":"s"}"#,
        r#"{"command":"ACTIVITY_MESSAGE","username":"anonymous","activity":"{}"}"#,
        r#"{"command":"ACTIVITY_MESSAGE","username":"anonymous","activity":[]}"#,
        // A known field twice: it is not for the server to choose.
        r#"{"command":"LOGIN","username":"anonymous","username":"aaron"}"#,
        r#"{"command":"LOGIN","command":"LOGIN","username":"anonymous"}"#,
    ] {
        info_on_invalid(&node, format!("{line}\n").as_bytes());
    }
}

/// Part I, Messages: every field of the messages between servers is required and has its type.
#[test]
fn messages_between_servers_need_all_their_fields_in_the_right_type() {
    let node = Node::start();
    for line in [
        r#"{"command":"ACTIVITY_BROADCAST"}"#,
        r#"{"command":"ACTIVITY_BROADCAST","activity":[]}"#,
        r#"{"command":"SERVER_ANNOUNCE","load":0,"hostname":"h","port":1}"#,
        r#"{"command":"SERVER_ANNOUNCE","id":"x","hostname":"h","port":1}"#,
        r#"{"command":"SERVER_ANNOUNCE","id":"x","load":0,"port":1}"#,
        r#"{"command":"SERVER_ANNOUNCE","id":"x","load":0,"hostname":"h"}"#,
        r#"{"command":"SERVER_ANNOUNCE","id":1,"load":0,"hostname":"h","port":1}"#,
        r#"{"command":"SERVER_ANNOUNCE","id":"x","load":"0","hostname":"h","port":1}"#,
        r#"{"command":"SERVER_ANNOUNCE","id":"x","load":0.5,"hostname":"h","port":1}"#,
        r#"{"command":"SERVER_ANNOUNCE","id":"x","load":0,"hostname":null,"port":1}"#,
        r#"{"command":"SERVER_ANNOUNCE","id":"x","load":0,"hostname":"h","port":"1"}"#,
        r#"{"command":"LOCK_REQUEST","username":"u"}"#,
        r#"{"command":"LOCK_REQUEST","secret":"s"}"#,
        r#"{"command":"LOCK_DENIED","username":"u"}"#,
        r#"{"command":"LOCK_DENIED","username":"u","secret":5}"#,
        r#"{"command":"LOCK_ALLOWED","secret":"s","server":"x"}"#,
        r#"{"command":"LOCK_ALLOWED","username":"u","server":"x"}"#,
        r#"{"command":"LOCK_ALLOWED","username":"u","secret":"s","server":5}"#,
    ] {
        let mut link = Peer::link(node.address());
        link.send(line);
        link.expect_last("INVALID_MESSAGE");
    }
}

/// Part I, Transport: "Command names and field names are case-sensitive."
#[test]
fn command_and_field_names_are_case_sensitive() {
    let node = Node::start();
    for line in [
        r#"{"command":"login","username":"anonymous"}"#,
        r#"{"command":"Login","username":"anonymous"}"#,
        r#"{"Command":"LOGIN","username":"anonymous"}"#,
        r#"{"COMMAND":"LOGIN","username":"anonymous"}"#,
        r#"{"command":"LOGIN","Username":"anonymous"}"#,
        r#"{"command":"AUTHENTICATE","Secret":"cluster-secret"}"#,
    ] {
        info_on_invalid(&node, format!("{line}\n").as_bytes());
    }
    let mut peer = Peer::connect(node.address());
    peer.send(r#"{"command":"LOGIN","username":"anonymous","Username":"aaron","SECRET":5}"#);
    peer.expect_command("LOGIN_SUCCESS");
}

/// Part I, Transport: "An optional field of the wrong type is as invalid as a required one."
#[test]
fn an_optional_field_of_the_wrong_type_is_invalid() {
    let node = Node::start();
    for secret in ["5", "null", "{}", "[]", "true"] {
        info_on_invalid(
            &node,
            format!("{{\"command\":\"LOGIN\",\"username\":\"anonymous\",\"secret\":{secret}}}\n").as_bytes(),
        );
        let mut session = Peer::anonymous(node.address());
        session.send(format!(
            r#"{{"command":"ACTIVITY_MESSAGE","username":"anonymous","secret":{secret},"activity":{{}}}}"#
        ));
        session.expect_last("INVALID_MESSAGE");
    }
}

/// Part I, Messages: LOGIN and ACTIVITY_MESSAGE need a secret, except for `anonymous`.
#[test]
fn only_anonymous_needs_no_secret() {
    let node = Node::start();
    let mut session = Peer::registered(node.address(), "aaron", "s");
    info_on_invalid(&node, b"{\"command\":\"LOGIN\",\"username\":\"aaron\"}\n");
    session.send(r#"{"command":"ACTIVITY_MESSAGE","username":"aaron","activity":{}}"#);
    session.expect_last("INVALID_MESSAGE");

    let mut anonymous = Peer::connect(node.address());
    anonymous.send(lines::login("anonymous", "a secret that nobody needs"));
    anonymous.expect_command("LOGIN_SUCCESS");
    anonymous.send(lines::activity("anonymous", "another one", "{}"));
    anonymous.expect_command("ACTIVITY_BROADCAST");
}

/// Part I, Transport: "bytes that are not UTF-8" are invalid, wherever they stand.
#[test]
fn bytes_that_are_not_utf8_are_invalid() {
    let node = Node::start();
    info_on_invalid(&node, b"\xff\xfe\n");
    info_on_invalid(&node, b"{\"command\":\"LOGIN\",\"username\":\"anonymous\",\"x\":\"\xc3\x28\"}\n");
    info_on_invalid(&node, b"{\"command\":\"LOGIN\",\"username\":\"anonymous\",\"\xe2\x82\":1}\n");
    // A surrogate, which UTF-8 has no form for.
    info_on_invalid(&node, b"{\"command\":\"LOGIN\",\"username\":\"anonymous\",\"x\":\"\xed\xa0\x80\"}\n");
}

/// Part I, Transport: "nesting too deep" is invalid; 127 levels are not too deep.
#[test]
fn nesting_is_bounded() {
    let node = Node::start();
    let mut peer = Peer::connect(node.address());
    peer.send(login_nested(127));
    peer.expect_command("LOGIN_SUCCESS");
    for levels in [128, 10_000, 500_000] {
        info_on_invalid(&node, format!("{}\n", login_nested(levels)).as_bytes());
    }
    // A hundred thousand brackets that never close.
    info_on_invalid(&node, format!("{}\n", r#"{"a":["#.repeat(100_000)).as_bytes());
}

/// Part I, Transport: "a line longer than the limit (1 MiB unless configured)"; its ending is not part of it.
#[test]
fn a_line_may_be_exactly_as_long_as_the_limit() {
    let default = (Node::start(), 1 << 20);
    let configured = (NodeBuilder::default().flag("--max-line", SMALL_LIMIT).start(), SMALL_LIMIT);
    for (node, limit) in [default, configured] {
        for ending in ["\n", "\r\n"] {
            let mut peer = Peer::connect(node.address());
            peer.send_bytes(format!("{}{ending}", login_of_length(limit)).as_bytes());
            peer.expect_command("LOGIN_SUCCESS");
            info_on_invalid(&node, format!("{}{ending}", login_of_length(limit + 1)).as_bytes());
        }
    }
}

/// Part I, Transport: a line over the limit is refused when that is clear, not when it ends: it may never end.
#[test]
fn a_line_over_the_limit_is_refused_before_its_end() {
    let node = NodeBuilder::default().flag("--max-line", SMALL_LIMIT).start();
    info_on_invalid(&node, "x".repeat(SMALL_LIMIT + 2).as_bytes());
    let node = Node::start();
    info_on_invalid(&node, &vec![b' '; (1 << 20) + 2]);
}

/// Part I, Transport: "A line without its `\n` at the end of the stream is not a message."
#[test]
fn a_line_without_its_ending_at_the_end_of_the_stream_is_not_a_message() {
    let node = Node::start();
    let mut witness = Peer::anonymous(node.address());
    for cut_off in [lines::login_anonymously(), "garbage".into(), "{".into()] {
        let mut peer = Peer::connect(node.address());
        peer.send_bytes(cut_off.as_bytes());
        peer.end_sending();
        peer.expect_end();
    }
    let mut session = Peer::anonymous(node.address());
    session.send_bytes(lines::anonymous_activity(r#"{"cut":"off"}"#).as_bytes());
    session.end_sending();
    session.expect_end();
    witness.send(lines::anonymous_activity(r#"{"whole":1}"#));
    assert_eq!(witness.expect_command("ACTIVITY_BROADCAST")["activity"]["whole"], 1);
}

/// Part I, Transport: what came before the end of the stream as whole lines is obeyed.
#[test]
fn whole_lines_before_the_end_of_the_stream_are_obeyed() {
    let node = Node::start();
    let mut witness = Peer::anonymous(node.address());
    let mut hasty = Peer::connect(node.address());
    hasty.send(lines::login_anonymously());
    hasty.send(lines::anonymous_activity(r#"{"last":"words"}"#));
    hasty.end_sending();
    assert_eq!(witness.expect_command("ACTIVITY_BROADCAST")["activity"]["last"], "words");
}

/// Part I, Transport: the `info` "says what was wrong"; one text is kept from the original.
#[test]
fn the_info_says_what_was_wrong() {
    let node = Node::start();
    assert_eq!(info_on_invalid(&node, b"{}\n"), "the received message did not contain a command");
    assert!(info_on_invalid(&node, b"{\"command\":\"HELLO\"}\n").contains("HELLO"));
    assert!(info_on_invalid(&node, b"{\"command\":\"LOGIN\"}\n").contains("username"));
    let with_secret = b"{\"command\":\"REGISTER\",\"username\":5,\"secret\":\"hunter2\"}\n";
    assert!(!info_on_invalid(&node, with_secret).contains("hunter2"), "a secret is not repeated");
}

/// Part I, Transport: "Nothing else in the server is affected."
#[test]
fn an_invalid_message_affects_nobody_else() {
    let node = Node::start();
    let mut link = Peer::link(node.address());
    let mut session = Peer::anonymous(node.address());
    for bytes in [&b"garbage\n"[..], b"\n", b"\xff\n", b"{\"command\":\"LOGOUT\"}\n"] {
        info_on_invalid(&node, bytes);
        let mut other_session = Peer::anonymous(node.address());
        other_session.send_bytes(bytes);
        other_session.expect_gone();
        let mut other_link = Peer::link(node.address());
        other_link.send_bytes(bytes);
        other_link.expect_last("INVALID_MESSAGE");
    }
    session.send(lines::anonymous_activity(r#"{"still":"here"}"#));
    let broadcast = session.expect_command("ACTIVITY_BROADCAST");
    link.expect_text(broadcast.text());
}
