//! `arborcast register`, and `arborcast` without a command: the original client.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

mod fake;

use fake::{Arborcast, FakeServer};
use nix::sys::signal::Signal;
use serde_json::json;

#[tokio::test]
async fn a_registration_prints_the_secret_it_made_alone_and_the_servers_words_apart() {
    let server = FakeServer::start().await;
    let registering = Arborcast::start(&["register", "-u", "aaron"], server.port());
    let mut peer = server.accept().await;
    let request = peer.receive().await;
    assert_eq!((&request["command"], &request["username"]), (&json!("REGISTER"), &json!("aaron")));
    peer.send(&json!({ "command": "REGISTER_SUCCESS", "info": "register success for aaron" })).await;
    let ended = registering.end().await;
    ended.expect_code(0);
    assert_eq!(json!(ended.stdout.trim_end()), request["secret"]);
    assert!(ended.stdout.len() > 32);
    assert_eq!(ended.stderr, "arborcast: register success for aaron\n");
}

#[tokio::test]
async fn a_refused_registration_says_the_servers_reason() {
    let server = FakeServer::start().await;
    let registering = Arborcast::start(&["register", "-u", "aaron", "-s", "s3cret"], server.port());
    let mut peer = server.accept().await;
    peer.expect(json!({ "command": "REGISTER", "username": "aaron", "secret": "s3cret" })).await;
    let info = "aaron is already registered with the system";
    peer.send(&json!({ "command": "REGISTER_FAILED", "info": info })).await;
    let ended = registering.end().await;
    ended.expect_code(1);
    assert!(ended.stderr.contains(info) && ended.stdout.is_empty(), "{ended:?}");
}

#[tokio::test]
async fn a_name_without_a_secret_registers_and_logs_in_on_one_connection() {
    let server = FakeServer::start().await;
    let mut joined = Arborcast::start(&["-u", "aaron"], server.port());
    let mut peer = server.accept().await;
    let request = peer.receive().await;
    assert_eq!(joined.stderr_line().await, format!("secret: {}\n", request["secret"].as_str().unwrap()));
    peer.send(&json!({ "command": "REGISTER_SUCCESS", "info": "register success for aaron" })).await;
    peer.expect_login(json!({ "command": "LOGIN", "username": "aaron", "secret": request["secret"] })).await;
    peer.send(&json!({ "command": "LOGIN_SUCCESS", "info": "logged in as user aaron" })).await;
    joined.end_input();
    peer.expect_logout().await;
    joined.end().await.expect_code(0);
}

#[tokio::test]
async fn what_is_typed_is_sent_what_arrives_is_printed_and_the_end_waits_for_all() {
    let server = FakeServer::start().await;
    let mut joined = Arborcast::start(&[], server.port());
    let mut peer = server.accept_login("anonymous").await;
    peer.broadcast(json!({ "n": 0 }), "bert").await;
    assert_eq!(joined.stdout_line().await, "{\"authenticated_user\":\"bert\",\"n\":0}\n");
    joined.type_in("hello\n{\"n\":1}\n").await;
    assert_eq!(
        joined.stderr_line().await,
        "arborcast: line 1 was not sent: it is not JSON (expected value at column 1)\n"
    );
    let activity = peer.receive_activity().await;
    joined.end_input();
    peer.expect_nothing().await;
    peer.broadcast(activity, "anonymous").await;
    peer.expect_logout().await;
    let ended = joined.end().await;
    ended.expect_code(0);
    assert_eq!(ended.stdout, "{\"authenticated_user\":\"anonymous\",\"n\":1}\n");
}

#[tokio::test]
async fn ctrl_c_leaves_though_a_line_is_being_waited_for() {
    let server = FakeServer::start().await;
    let mut joined = Arborcast::start(&[], server.port());
    let mut peer = server.accept_login("anonymous").await;
    peer.broadcast(json!({ "n": 0 }), "bert").await;
    joined.stdout_line().await;
    joined.signal(Signal::SIGINT);
    peer.expect_logout().await;
    joined.end().await.expect_code(0);
}

#[tokio::test]
async fn without_reconnecting_a_lost_connection_ends_it_though_a_line_is_being_waited_for() {
    let server = FakeServer::start().await;
    let joined = Arborcast::start(&["--no-reconnect"], server.port());
    drop(server.accept_login("anonymous").await);
    let ended = joined.end().await;
    ended.expect_code(1);
    assert_eq!(ended.stderr.matches("lost the connection").count(), 1, "{}", ended.stderr);
}

#[tokio::test]
async fn a_reader_that_has_enough_ends_it_once_what_was_typed_is_taken() {
    let server = FakeServer::start().await;
    let mut joined = Arborcast::start(&[], server.port());
    let mut peer = server.accept_login("anonymous").await;
    joined.type_in("{\"n\":1}\n").await;
    let activity = peer.receive_activity().await;
    joined.close_stdout();
    peer.broadcast(json!({ "n": 0 }), "bert").await;
    peer.expect_nothing().await;
    peer.broadcast(activity, "anonymous").await;
    peer.expect_logout().await;
    let ended = joined.end().await;
    ended.expect_code(0);
    assert_eq!(ended.stderr, "");
}
