//! Part I, Who a connection is: the whole table of commands and kinds of connections, cell by cell.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use arborcast_tests::lines;
use arborcast_tests::node::{Node, SECRET};
use arborcast_tests::peer::{Arrival, Peer};
use arborcast_tests::stage::Stage;
use arborcast_tests::wait::PATIENCE;

/// What a cell of the table says.
#[derive(Debug, Clone, Copy)]
enum Cell {
    /// Accepted, and what comes of it is this command: an answer, or what a second server link sees.
    Accept(&'static str),
    /// Refused with this command, and closed.
    Refuse(&'static str),
    /// Closed without a word.
    CloseSilently,
}

use Cell::{Accept, CloseSilently, Refuse};

const INVALID: Cell = Refuse("INVALID_MESSAGE");
const UNAUTHENTICATED: Cell = Refuse("AUTHENTICATION_FAIL");

/// A line, and what becomes of it on an unidentified connection, a client session and a server link.
struct Row {
    line: String,
    unidentified: Cell,
    session: Cell,
    link: Cell,
}

fn table() -> Vec<Row> {
    let row = |line: String, unidentified, session, link| Row { line, unidentified, session, link };
    let info = |command: &str| format!(r#"{{"command":"{command}","info":"text"}}"#);
    let redirect = r#"{"command":"REDIRECT","hostname":"h","port":1}"#.to_owned();
    vec![
        row(lines::authenticate(SECRET), Accept("SERVER_ANNOUNCE"), INVALID, INVALID),
        row(lines::authenticate("wrong"), UNAUTHENTICATED, INVALID, INVALID),
        row(lines::register("newcomer", "s"), Accept("REGISTER_SUCCESS"), INVALID, INVALID),
        row(lines::login_anonymously(), Accept("LOGIN_SUCCESS"), INVALID, INVALID),
        row(lines::login("aaron", "s"), Accept("LOGIN_SUCCESS"), INVALID, INVALID),
        row(lines::logout(), INVALID, CloseSilently, INVALID),
        row(lines::activity("aaron", "s", "{}"), UNAUTHENTICATED, Accept("ACTIVITY_BROADCAST"), INVALID),
        row(lines::anonymous_activity("{}"), UNAUTHENTICATED, Accept("ACTIVITY_BROADCAST"), INVALID),
        row(lines::server_announce("x", 1_000, 1), INVALID, INVALID, Accept("SERVER_ANNOUNCE")),
        row(lines::broadcast("{}"), INVALID, INVALID, Accept("ACTIVITY_BROADCAST")),
        row(lines::lock_request("u", "s"), INVALID, INVALID, Accept("LOCK_REQUEST")),
        row(lines::lock_denied("u", "s"), INVALID, INVALID, Accept("LOCK_DENIED")),
        row(lines::lock_allowed("u", "s", "x"), INVALID, INVALID, Accept("LOCK_ALLOWED")),
        row(lines::nameless_lock_allowed("u", "s"), INVALID, INVALID, Accept("LOCK_ALLOWED")),
        row(info("REGISTER_SUCCESS"), INVALID, INVALID, INVALID),
        row(info("REGISTER_FAILED"), INVALID, INVALID, INVALID),
        row(info("LOGIN_SUCCESS"), INVALID, INVALID, INVALID),
        row(info("LOGIN_FAILED"), INVALID, INVALID, INVALID),
        row(redirect, INVALID, INVALID, INVALID),
        // Not in the table, but in Transport: closed, never answered.
        row(info("INVALID_MESSAGE"), CloseSilently, CloseSilently, CloseSilently),
        row(info("AUTHENTICATION_FAIL"), CloseSilently, CloseSilently, CloseSilently),
        // Form is checked first: malformed, each is an INVALID_MESSAGE before it is anything else.
        row(r#"{"command":"ACTIVITY_MESSAGE","username":"anonymous"}"#.into(), INVALID, INVALID, INVALID),
        row(r#"{"command":"ACTIVITY_MESSAGE","username":"aaron","activity":{}}"#.into(), INVALID, INVALID, INVALID),
        row(r#"{"command":"AUTHENTICATE"}"#.into(), INVALID, INVALID, INVALID),
    ]
}

/// A node that knows the user `aaron`, who is not logged in.
fn node_with_aaron() -> Node {
    let node = Node::start();
    let mut registering = Peer::connect(node.address());
    registering.send(lines::register("aaron", "s"));
    registering.expect_command("REGISTER_SUCCESS");
    node
}

/// Sends the line over a fresh connection and compares what happens there with the cell. An accepted message must
/// show its effect on the connection itself.
fn check(row: &Row, cell: Cell, mut peer: Peer) -> Result<(), String> {
    peer.send(&row.line);
    let met = peer.arrival(PATIENCE);
    let as_expected = match (cell, &met) {
        (CloseSilently, Arrival::End) => true,
        (Accept(command), Arrival::Line(line)) => line.command() == command,
        (Refuse(command), Arrival::Line(line)) => {
            line.command() == command && line["info"].is_string() && matches!(peer.arrival(PATIENCE), Arrival::End)
        }
        _ => false,
    };
    if as_expected { Ok(()) } else { Err(format!("{cell:?} expected, met {met:?}, for {}", row.line)) }
}

/// Checks a whole column and reports all its wrong cells at once.
#[track_caller]
fn check_column(cell: impl Fn(&Row) -> Cell, open: impl Fn() -> Peer) {
    let wrong: Vec<String> = table().iter().filter_map(|row| check(row, cell(row), open()).err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Part I, Who a connection is, column "unidentified".
#[test]
fn an_unidentified_connection_may_send_what_the_table_says() {
    let node = node_with_aaron();
    check_column(|row| row.unidentified, || Peer::connect(node.address()));
}

/// Part I, Who a connection is, column "client session".
#[test]
fn a_client_session_may_send_what_the_table_says() {
    let node = node_with_aaron();
    check_column(|row| row.session, || Peer::logged_in(node.address(), "aaron", "s"));
}

/// Sends every row's line over a server link of its own. What is accepted must be flooded to the observer.
#[track_caller]
fn check_link_column(open: impl Fn() -> (Stage, Peer)) {
    for row in table() {
        let (mut stage, mut link) = open();
        match row.link {
            Accept("SERVER_ANNOUNCE") => stage.announce_line(&mut link, &row.line),
            Accept(_) => {
                link.send(&row.line);
                stage.observer.expect_text(&row.line);
            }
            refusal => check(&row, refusal, link).unwrap(),
        }
    }
}

/// Part I, Who a connection is, column "server link", on a link that the other server dialled.
#[test]
fn a_server_link_may_send_what_the_table_says() {
    check_link_column(|| {
        let stage = Stage::new();
        let link = Peer::link(stage.node.address());
        (stage, link)
    });
}

/// Part I, Who a connection is, column "server link", on the link to the parent: who dialled makes no difference.
#[test]
fn the_parent_may_send_what_the_table_says() {
    check_link_column(Stage::below_a_parent);
}

/// Part I, Who a connection is: "It never changes afterwards."
#[test]
fn a_second_login_does_not_change_who_a_session_is() {
    let node = node_with_aaron();
    let mut witness = Peer::anonymous(node.address());
    let mut session = Peer::logged_in(node.address(), "aaron", "s");
    session.send(lines::login_anonymously());
    session.send(lines::activity("aaron", "s", r#"{"after":"the refusal"}"#));
    session.expect_last("INVALID_MESSAGE");
    witness.send(lines::anonymous_activity(r#"{"n":1}"#));
    assert_eq!(witness.expect_command("ACTIVITY_BROADCAST")["activity"]["n"], 1);
}
