//! `arborcast listen` is a well-behaved source for a pipe.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

mod fake;

use fake::{Arborcast, FakeServer};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::time::timeout;

#[tokio::test]
async fn every_activity_is_a_line_of_its_own_and_there_at_once() {
    let server = FakeServer::start().await;
    let mut listening = Arborcast::start(&["listen", "--count", "3"], server.port());
    let mut peer = server.accept_login("anonymous").await;
    let text = r#"{"z":1.0, "a":12345678901234567890123,"s":"\u00e9","authenticated_user":"bert"}"#;
    let line = format!("{{\"command\":\"ACTIVITY_BROADCAST\",\"activity\":{text}}}\r\n");
    peer.send_raw(line.as_bytes()).await;
    assert_eq!(listening.stdout_line().await, format!("{text}\n"));
    peer.send_raw(line.repeat(3).as_bytes()).await;
    peer.expect_logout().await;
    let ended = listening.end().await;
    ended.expect_code(0);
    assert_eq!((ended.stdout, ended.stderr), (format!("{text}\n").repeat(2), String::new()));
}

#[tokio::test]
async fn a_reader_that_has_enough_ends_it_quietly() {
    let server = FakeServer::start().await;
    let mut listening = Arborcast::start(&["listen"], server.port());
    let mut peer = server.accept_login("anonymous").await;
    peer.broadcast(json!({ "n": 1 }), "bert").await;
    listening.stdout_line().await;
    listening.close_stdout();
    // A child that another test is just starting may hold our end of the pipe for a moment longer, so the first line may
    // still find a reader.
    let logout = fake::within(async {
        loop {
            peer.broadcast(json!({ "n": 2 }), "bert").await;
            if let Ok(message) = timeout(fake::QUIET, peer.receive()).await {
                return message;
            }
        }
    });
    assert_eq!(logout.await, json!({ "command": "LOGOUT" }));
    drop(peer);
    let ended = listening.end().await;
    ended.expect_code(0);
    assert_eq!(ended.stderr, "");
}

#[tokio::test]
async fn a_signal_ends_it_with_a_logout() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let server = FakeServer::start().await;
        let mut listening = Arborcast::start(&["listen"], server.port());
        let mut peer = server.accept_login("anonymous").await;
        // Once the first line is there, the signals are caught.
        peer.broadcast(json!({ "n": 1 }), "bert").await;
        listening.stdout_line().await;
        listening.signal(signal);
        peer.expect_logout().await;
        listening.end().await.expect_code(0);
    }
}

#[tokio::test]
async fn without_reconnecting_a_lost_connection_is_an_error_behind_what_came_before_it() {
    let server = FakeServer::start().await;
    let listening = Arborcast::start(&["listen", "--no-reconnect"], server.port());
    let mut peer = server.accept_login("anonymous").await;
    peer.broadcast(json!({ "n": 1 }), "bert").await;
    drop(peer);
    let ended = listening.end().await;
    ended.expect_code(1);
    assert_eq!(ended.stdout, "{\"authenticated_user\":\"bert\",\"n\":1}\n");
    assert!(ended.stderr.contains("lost the connection to 127.0.0.1:"), "{}", ended.stderr);
}

#[tokio::test]
async fn the_secret_comes_from_a_flag_a_file_or_the_environment() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "from file\nand more\n").unwrap();
    let path = file.path().to_str().unwrap();
    for (args, secret) in [
        (&["listen", "-u", "aaron", "-s", "from flag"][..], "from flag"),
        (&["listen", "-u", "aaron", "--secret-file", path], "from file"),
        (&["listen", "-u", "aaron"], "from environment"),
    ] {
        let server = FakeServer::start().await;
        let _listening =
            Arborcast::start_with(args, server.port(), |command| command.env("ARBORCAST_SECRET", "from environment"));
        let mut peer = server.accept().await;
        peer.expect_login(json!({ "command": "LOGIN", "username": "aaron", "secret": secret })).await;
    }
}
