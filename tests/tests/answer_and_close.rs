//! Part I, Transport: what "answer and close" means.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::io::Write as _;
use std::thread;
use std::time::Duration;

use arborcast_tests::lines;
use arborcast_tests::node::Node;
use arborcast_tests::peer::Peer;
use arborcast_tests::stage::Stage;
use arborcast_tests::wait;

/// How long a refused peer may be kept at most before a test calls it unbounded.
const BOUNDED: Duration = Duration::from_secs(30);

const MEGABYTE: usize = 1 << 20;

/// Everything that is answered and closed, with the answer.
fn refused() -> Vec<(String, &'static str)> {
    vec![
        ("garbage".into(), "INVALID_MESSAGE"),
        (lines::logout(), "INVALID_MESSAGE"),
        (lines::authenticate("wrong"), "AUTHENTICATION_FAIL"),
        (lines::anonymous_activity("{}"), "AUTHENTICATION_FAIL"),
        (lines::login("nobody", "s"), "LOGIN_FAILED"),
        (lines::register("anonymous", "s"), "REGISTER_FAILED"),
    ]
}

/// Part I, Transport: "the peer can read the whole answer before it sees the end of the stream", also when it reads only
/// after it has written everything it had to say. "so drain what it sends": a few megabytes are taken, not reset.
#[test]
fn who_writes_megabytes_before_reading_still_reads_the_whole_answer() {
    let node = Node::start();
    let garbage = "more garbage\n".repeat(MEGABYTE / 13);
    for (line, answer) in refused() {
        let mut peer = Peer::connect(node.address());
        peer.send(&line);
        for _ in 0..4 {
            peer.send_bytes(garbage.as_bytes());
        }
        peer.expect_last(answer);
    }
}

/// Part I, Transport: "even if it goes on sending meanwhile": 20 MB of lines, and 20 MB of one line that never ends.
#[test]
fn who_keeps_sending_still_reads_the_whole_answer_and_then_the_end() {
    let node = Node::start();
    let mut witness = Peer::anonymous(node.address());
    for garbage in ["garbage\n".repeat(MEGABYTE / 8), "x".repeat(MEGABYTE)] {
        let mut peer = Peer::connect(node.address());
        let mut stream = peer.try_clone_stream();
        let writer = thread::spawn(move || {
            for _ in 0..20 {
                if stream.write_all(garbage.as_bytes()).is_err() {
                    break;
                }
            }
        });
        peer.expect_last("INVALID_MESSAGE");
        writer.join().unwrap();
    }
    witness.send(lines::anonymous_activity(r#"{"n":1}"#));
    witness.expect_command("ACTIVITY_BROADCAST");
}

/// Part I, Transport: "nothing behind an invalid line is obeyed", nor behind any other refusal.
#[test]
fn nothing_behind_a_refused_line_is_obeyed() {
    let node = Node::start();
    let mut witness = Peer::anonymous(node.address());
    for (line, answer) in refused() {
        let behind = [
            lines::register("sneaky", "s"),
            lines::login_anonymously(),
            lines::anonymous_activity(r#"{"behind":"unidentified"}"#),
        ];
        let mut peer = Peer::connect(node.address());
        peer.send(format!("{line}\n{}", behind.join("\n")));
        peer.expect_last(answer);
    }
    for line in ["garbage".to_owned(), lines::login_anonymously(), lines::activity("nobody", "s", "{}")] {
        let mut session = Peer::anonymous(node.address());
        session.send(format!("{line}\n{}", lines::anonymous_activity(r#"{"behind":"session"}"#)));
        let answer = session.next_line();
        assert!(matches!(answer.command(), "INVALID_MESSAGE" | "AUTHENTICATION_FAIL"), "{}", answer.text());
        session.expect_end();
    }
    let mut link = Peer::link(node.address());
    link.send(format!("garbage\n{}", lines::broadcast(r#"{"behind":"link"}"#)));
    link.expect_last("INVALID_MESSAGE");

    witness.send(lines::anonymous_activity(r#"{"n":1}"#));
    assert_eq!(witness.expect_command("ACTIVITY_BROADCAST")["activity"]["n"], 1);
    let mut client = Peer::connect(node.address());
    client.send(lines::register("sneaky", "s2"));
    client.expect_command("REGISTER_SUCCESS");
}

/// Part I, Transport: what came before an invalid line is obeyed and answered first.
#[test]
fn what_came_before_an_invalid_line_is_answered_first() {
    let node = Node::start();
    let mut peer = Peer::connect(node.address());
    peer.send(format!("{}\n{}\ngarbage", lines::register("aaron", "s"), lines::login("aaron", "s")));
    peer.expect_command("REGISTER_SUCCESS");
    peer.expect_command("LOGIN_SUCCESS");
    peer.expect_last("INVALID_MESSAGE");
}

/// Part I, Transport: "A refused peer that keeps its end open is let go of after a bounded time": one that says no more,
/// and one that never stops talking.
#[test]
fn a_refused_peer_that_keeps_its_end_open_is_let_go_of() {
    let node = Node::start();
    let open_before = node.process.open_files();
    let mut silent = Peer::connect(node.address());
    silent.send("garbage");
    silent.expect_last("INVALID_MESSAGE");
    let mut talking = Peer::connect(node.address());
    talking.send("garbage");
    talking.expect_last("INVALID_MESSAGE");
    wait::until(BOUNDED, || {
        let talks = talking.try_send_bytes(b"more garbage\n").is_ok();
        match node.process.open_files() {
            open if open <= open_before && !talks => Ok(()),
            open => Err(format!("{open} open files instead of {open_before}; may the peer talk on: {talks}")),
        }
    });
    // It never closed its end.
    silent.expect_end();
}

/// Part I, Transport: "Receiving INVALID_MESSAGE or AUTHENTICATION_FAIL, whatever its form: log it and close; never
/// answer it."
#[test]
fn a_received_refusal_is_never_answered_whatever_its_form() {
    for command in ["INVALID_MESSAGE", "AUTHENTICATION_FAIL"] {
        let forms = [
            format!(r#"{{"command":"{command}","info":"text"}}"#),
            format!(r#"{{"command":"{command}"}}"#),
            format!(r#"{{"command":"{command}","info":5}}"#),
            format!(r#"{{"info":null,"x":{{}},"command":"{command}"}}"#),
            format!(r#"{{"command":"{command}","info":"one","info":"two"}}"#),
            format!(r#"{{"command":"{command}","info":{}{}}}"#, "[".repeat(200), "]".repeat(200)),
        ];
        for form in forms {
            let (stage, mut parent) = Stage::below_a_parent();
            let address = stage.node.address();
            for mut peer in [Peer::connect(address), Peer::anonymous(address), Peer::link(address)] {
                peer.send(&form);
                peer.expect_end();
            }
            parent.send(&form);
            parent.expect_end();
            // Closing those is all that it does.
            let mut witness = Peer::anonymous(address);
            witness.send(lines::anonymous_activity(r#"{"n":1}"#));
            assert_eq!(witness.expect_command("ACTIVITY_BROADCAST")["activity"]["n"], 1);
        }
    }
}

/// Part I, Transport: the same holds for what a node dials: its refusal of the parent's garbage reaches the parent.
#[test]
fn a_parent_that_talks_garbage_reads_the_whole_answer() {
    let (stage, mut parent) = Stage::below_a_parent();
    parent.send("garbage");
    parent.send_bytes(&vec![b'x'; 4 * MEGABYTE]);
    parent.expect_last("INVALID_MESSAGE");
    Peer::anonymous(stage.node.address());
}

/// Part I, Transport: a peer that ends its own direction right behind its last line still reads its answers.
#[test]
fn who_ends_its_own_direction_still_reads_its_answer() {
    let node = Node::start();
    for (line, answer) in refused() {
        let mut peer = Peer::connect(node.address());
        peer.send(&line);
        peer.end_sending();
        peer.expect_last(answer);
    }
}
