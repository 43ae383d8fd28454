//! `arborcast tui` on a terminal: README, The client on a full screen.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::net::SocketAddr;

use arborcast_tests::forest::Forest;
use arborcast_tests::lines;
use arborcast_tests::node::Node;
use arborcast_tests::peer::Peer;
use arborcast_tests::process::{Process, Signal, client_binary};
use arborcast_tests::terminal::Terminal;
use arborcast_tests::wait::{self, PATIENCE};

const CONTROL_C: &str = "\x03";

#[track_caller]
fn tui(server: SocketAddr, more: &[&str]) -> Terminal {
    let (host, port) = (server.ip().to_string(), server.port().to_string());
    let terminal = Terminal::start(client_binary(), [&["tui", "-rh", &host, "-rp", &port], more].concat());
    terminal.wait_for_row("● connected");
    assert!(terminal.is_taken());
    terminal
}

#[track_caller]
fn client(server: SocketAddr) -> Peer {
    let mut client = Peer::connect(server);
    client.send(lines::login_anonymously());
    client.expect_command("LOGIN_SUCCESS");
    client
}

/// Waits until this is shown as the whole of an activity, and not only in the line that is typed.
#[track_caller]
fn wait_for_activity(terminal: &Terminal, text: &str) {
    terminal.wait_for(text, |rows| rows.iter().rev().skip(2).find(|row| row.ends_with(&format!(" {text}"))).cloned());
}

#[test]
fn what_others_publish_is_seen_and_what_is_typed_is_published() {
    let node = Node::start();
    let mut terminal = tui(node.address(), &[]);
    let mut other = client(node.address());
    let header = terminal.rows().swap_remove(0);
    assert!(header.contains(&format!("anonymous at {}", node.address())), "{header}");
    other.send(lines::anonymous_activity(r#"{"object":"good morning"}"#));
    let row = terminal.wait_for_row("good morning");
    assert!(row.contains("anonymous "), "{row}");
    terminal.press("hello there\r");
    wait_for_activity(&terminal, "hello there");
    terminal.press("{\"verb\":\"post\",\"n\":1.00}\r");
    wait_for_activity(&terminal, "{\"verb\":\"post\",\"n\":1.00}");
    let published: Vec<_> = (0..3).map(|_| other.expect_command("ACTIVITY_BROADCAST")["activity"].clone()).collect();
    assert_eq!((&published[1]["object"], &published[2]["verb"]), (&"hello there".into(), &"post".into()));
    terminal.press("{\"verb\"\r");
    terminal.wait_for_row("not sent: it is not JSON");
    terminal.press(CONTROL_C);
    assert_eq!(terminal.wait_until_given_back().exit_code(), 0);
}

#[test]
fn the_stream_stands_still_while_one_looks_and_what_is_marked_is_copied() {
    let node = Node::start();
    let mut terminal = tui(node.address(), &[]);
    let mut other = client(node.address());
    let publish = |other: &mut Peer, number: u32| {
        other.send(lines::anonymous_activity(&format!(r#"{{"object":"number {number:03}"}}"#)));
    };
    (0..40).for_each(|number| publish(&mut other, number));
    terminal.wait_for_row("number 039");
    terminal.press("\x1b[5~");
    terminal.wait_for_row("paused");
    publish(&mut other, 40);
    terminal.wait_for_row("paused, 1 below");
    assert!(!terminal.rows().iter().any(|row| row.contains("number 040")));
    terminal.press("\x06number 01");
    terminal.press("\r");
    terminal.wait_for_row("number 019");
    terminal.press("\x1b");
    terminal.wait_for("the line for sending", |rows| rows[22].starts_with('>').then_some(()));
    terminal.press("\x19");
    terminal.wait_for_row("bytes copied");
    let copied =
        wait::until(PATIENCE, || terminal.asked().clipboard.first().cloned().ok_or_else(|| "nothing copied".into()));
    // {"object":"number 019","authenticated_user":"anonymous"}
    let expected = b"eyJvYmplY3QiOiJudW1iZXIgMDE5IiwiYXV0aGVudGljYXRlZF91c2VyIjoiYW5vbnltb3VzIn0=";
    assert_eq!(String::from_utf8_lossy(&copied), String::from_utf8_lossy(expected));
    terminal.press("\x10");
    terminal.wait_for_row("number 040");
    terminal.wait_for_row("following");
    terminal.press("\x04");
    assert_eq!(terminal.wait_until_given_back().exit_code(), 0);
}

#[test]
fn a_killed_server_is_told_and_so_is_the_next_one() {
    let mut forest = Forest::grow(1, 3);
    forest.dismiss_clients();
    let master = forest.master_addresses()[0].to_string();
    let mut terminal = Terminal::start(client_binary(), ["tui", "--master", &master]);
    let header = terminal.wait_for_row("● connected");
    let places = forest.awake();
    let at = |header: &str| {
        places.iter().copied().find(|place| header.contains(&format!("anonymous at {} ", forest.address(*place))))
    };
    let place = at(&header).expect("it is at one of the servers");
    let lost = forest.address(place);
    forest.kill(place);
    terminal.wait_for_row("lost the connection to");
    terminal.wait_for_row("back at ");
    let header = terminal.wait_for_row("● connected");
    assert!(!header.contains(&lost.to_string()), "{header}");
    forest.shape();
    terminal.press("still here\r");
    wait_for_activity(&terminal, "still here");
    terminal.press("\x11");
    assert_eq!(terminal.wait_until_given_back().exit_code(), 0);
}

#[test]
fn the_screen_fits_every_size() {
    let node = Node::start();
    let mut terminal = tui(node.address(), &[]);
    terminal.press("typed");
    for (columns, rows) in [(120, 40), (40, 10), (10, 3), (1, 1), (80, 24)] {
        terminal.resize(columns, rows);
        if rows > 2 {
            terminal.wait_for(&format!("line at {columns}x{rows}"), |seen| {
                (seen.len() == usize::from(rows) && seen[usize::from(rows) - 2] == "> typed").then_some(())
            });
        }
    }
    terminal.wait_for_row("● connected");
    terminal.press(CONTROL_C);
    assert_eq!(terminal.wait_until_given_back().exit_code(), 0);
}

#[test]
fn hostile_activities_are_shown_as_text() {
    let node = Node::start();
    let terminal = tui(node.address(), &[]);
    let mut other = client(node.address());
    for activity in [
        r#"{"object":"\u001b]0;owned\u0007\u001b[2J\u001b[?1049l gone"}"#.to_owned(),
        "{\"object\":\"\u{9b}31m \u{202e}turned \u{7f}\"}".to_owned(),
        format!(r#"{{"object":"long {}"}}"#, "x".repeat(1_000_000)),
        format!(r#"{{"object":"wide {}"}}"#, "日本".repeat(1000)),
    ] {
        other.send(lines::anonymous_activity(&activity));
    }
    terminal.wait_for_row("wide 日本");
    terminal.wait_for_row("long xxx");
    terminal.wait_for_row("␛]0;owned␇␛[2J␛[?1049l gone");
    assert!(terminal.is_taken());
    let asked = terminal.asked();
    assert!(asked.titles.is_empty() && asked.bells == 0, "{asked:?}");
    for raw in ["]0;owned\x07".as_bytes(), "\u{202e}".as_bytes(), "\u{9b}".as_bytes(), b"\x7f"] {
        assert!(!terminal.has_written(raw), "{raw:?}");
    }
}

#[test]
fn signals_give_the_terminal_back() {
    let node = Node::start();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut terminal = tui(node.address(), &[]);
        terminal.signal(signal);
        assert_eq!(terminal.wait_until_given_back().exit_code(), 0, "{signal}");
    }
}

#[test]
fn the_end_of_the_server_gives_the_terminal_back_and_says_why() {
    let node = Node::start();
    let mut terminal = tui(node.address(), &["--no-reconnect"]);
    drop(node);
    assert_eq!(terminal.wait_until_given_back().exit_code(), 1);
    terminal.wait_for_row("arborcast: lost the connection");
}

#[test]
fn what_could_not_be_sent_is_said_at_the_end() {
    let node = Node::start();
    let mut terminal = tui(node.address(), &[]);
    drop(node);
    terminal.wait_for_row("○ reconnecting");
    terminal.press("one\rtwo\r");
    terminal.wait_for_row("2 not acknowledged yet");
    terminal.press(CONTROL_C);
    assert_eq!(terminal.wait_until_given_back().exit_code(), 1);
    terminal.wait_for_row("0 of 2 activities were acknowledged");
}

#[test]
fn without_a_terminal_it_says_so() {
    let mut process = Process::start(client_binary(), ["tui"]);
    assert_eq!(process.wait_exit(PATIENCE).code(), Some(2));
    assert!(process.stderr()[0].contains("needs a terminal"), "{:?}", process.stderr());
}
