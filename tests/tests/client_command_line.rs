//! Part I, Command line of the original: the client, against a server played by the test and against real ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::net::SocketAddr;

use arborcast_tests::lines;
use arborcast_tests::node::{Node, SECRET};
use arborcast_tests::peer::{FakeParent, Peer};
use arborcast_tests::process::{Process, client_binary};
use arborcast_tests::stage::Stage;
use arborcast_tests::wait::{self, PATIENCE};

/// Starts the client with these arguments and the original's names for the server's address.
fn client(server: SocketAddr, arguments: &[&str]) -> Process {
    let port = server.port().to_string();
    Process::start(client_binary(), ["-rh", "127.0.0.1", "-rp", &port].iter().chain(arguments))
}

#[track_caller]
fn expect_success(mut client: Process) {
    let status = client.wait_exit(PATIENCE);
    assert_eq!(status.code(), Some(0), "{:?}", client.stderr());
}

fn answer(command: &str) -> String {
    format!(r#"{{"command":"{command}","info":"text"}}"#)
}

/// Part I, Command line: "No `-u`: log in as anonymous."
#[test]
fn without_a_name_the_client_logs_in_as_anonymous() {
    let server = FakeParent::listen();
    let client = client(server.address(), &[]);
    let mut session = server.accept();
    let login = session.expect_command("LOGIN");
    assert_eq!(login["username"], "anonymous");
    session.send(answer("LOGIN_SUCCESS"));
    // Nothing is typed, so that it leaves again.
    session.expect_command("LOGOUT");
    drop(session);
    expect_success(client);
}

/// Part I, Command line: "`-u` without `-s`: make a random secret, print it, REGISTER, then LOGIN."
#[test]
fn with_a_name_only_the_client_makes_a_secret_registers_and_logs_in() {
    let server = FakeParent::listen();
    let client = client(server.address(), &["-u", "aaron"]);
    let mut session = server.accept();
    let register = session.expect_command("REGISTER");
    assert_eq!(register["username"], "aaron");
    let secret = register["secret"].as_str().expect("a secret is a string");
    assert!(secret.len() >= 16, "a secret of {} characters", secret.len());
    session.send(answer("REGISTER_SUCCESS"));
    session.expect_login("aaron", secret);
    session.send(answer("LOGIN_SUCCESS"));
    session.expect_command("LOGOUT");
    drop(session);
    wait::until(PATIENCE, || {
        let printed = [client.stdout(), client.stderr()].concat();
        if printed.iter().any(|line| line.contains(secret)) { Ok(()) } else { Err(format!("no secret in {printed:?}")) }
    });
    expect_success(client);
}

/// Part I, Command line: "Both: LOGIN."
#[test]
fn with_a_name_and_a_secret_the_client_logs_in() {
    for names in [["-u", "-s"], ["--username", "--secret"]] {
        let server = FakeParent::listen();
        let client = client(server.address(), &[names[0], "aaron", names[1], "s3"]);
        let mut session = server.accept();
        session.expect_login("aaron", "s3");
        session.send(answer("LOGIN_SUCCESS"));
        session.expect_command("LOGOUT");
        drop(session);
        expect_success(client);
    }
}

/// Part I, Load: "A redirected client opens a new connection there and starts with LOGIN."
#[test]
fn the_client_follows_a_redirect() {
    let (first, second) = (FakeParent::listen(), FakeParent::listen());
    // One that stays until something arrives: another might be content and gone before the REDIRECT comes.
    let client = client(first.address(), &["listen", "--count", "1", "-u", "aaron", "-s", "s3"]);
    let mut session = first.accept();
    session.expect_login("aaron", "s3");
    session.send(answer("LOGIN_SUCCESS"));
    let port = second.address().port();
    session.send(format!(r#"{{"command":"REDIRECT","hostname":"127.0.0.1","port":{port}}}"#));
    drop(session);
    let mut session = second.accept();
    session.expect_login("aaron", "s3");
    session.send(answer("LOGIN_SUCCESS"));
    session.send(lines::broadcast("{}"));
    session.expect_command("LOGOUT");
    drop(session);
    expect_success(client);
}

/// A refusal ends the client with one sentence, which has the server's reason, and a code that is not 0.
#[test]
fn a_refused_client_says_why_in_one_sentence() {
    let node = Node::start();
    Peer::registered(node.address(), "aaron", "right");
    let mut client = client(node.address(), &["-u", "aaron", "-s", "wrong"]);
    let status = client.wait_exit(PATIENCE);
    assert!(status.code().is_some_and(|code| code != 0), "{status}");
    let sentences = client.stderr();
    assert!(sentences.iter().any(|line| line.contains("attempt to login with wrong secret")), "{sentences:?}");
    assert!(!sentences.iter().any(|line| line.contains("panicked")), "{sentences:?}");
}

/// What one client sends another prints, through a real server; names are registered on the way.
#[test]
fn what_one_client_sends_another_prints() {
    let mut stage = Stage::new();
    let address = stage.node.address();
    expect_success(client(address, &["register", "-u", "aaron", "-s", "s3"]));
    let mut listener = client(address, &["listen", "--count", "1"]);
    // The listener is in when the node counts it.
    wait::until(PATIENCE, || {
        let mut link = Peer::connect(address);
        link.send(lines::authenticate(SECRET));
        match link.expect_command("SERVER_ANNOUNCE")["load"].as_i64() {
            Some(1) => Ok(()),
            load => Err(format!("the load is {load:?}")),
        }
    });
    expect_success(client(address, &["send", "-u", "aaron", "-s", "s3", r#"{"verb":"waves","n":1.0}"#]));
    let expected = r#"{"verb":"waves","n":1.0,"authenticated_user":"aaron"}"#;
    stage.observer.expect_message(&lines::broadcast(expected));
    assert_eq!(listener.wait_exit(PATIENCE).code(), Some(0));
    assert_eq!(listener.stdout(), [expected]);
}
