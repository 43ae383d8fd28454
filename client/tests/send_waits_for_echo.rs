//! `arborcast send` succeeds when everything was taken, and says how much was when not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

mod fake;

use fake::{Arborcast, FakeServer};
use nix::sys::signal::Signal;
use serde_json::json;

#[tokio::test]
async fn it_ends_when_the_activity_came_back_and_not_before() {
    let server = FakeServer::start().await;
    let mut sending = Arborcast::start(&["send", r#"{"verb":"waves"}"#, "-u", "aaron", "-s", "s3cret"], server.port());
    let mut peer = server.accept_login("aaron").await;
    let activity = json!({ "verb": "waves" });
    let message =
        json!({ "command": "ACTIVITY_MESSAGE", "username": "aaron", "secret": "s3cret", "activity": activity });
    peer.expect(message).await;
    peer.expect_nothing().await;
    assert!(sending.is_running());
    peer.broadcast(activity, "aaron").await;
    peer.expect_logout().await;
    let ended = sending.end().await;
    ended.expect_code(0);
    assert_eq!((ended.stdout, ended.stderr), (String::new(), String::new()));
}

#[tokio::test]
async fn every_line_of_the_input_is_sent_in_order_blank_ones_skipped() {
    let server = FakeServer::start().await;
    let mut sending = Arborcast::start(&["send"], server.port());
    let mut peer = server.accept_login("anonymous").await;
    sending.type_in("{\"n\":0}\n\n{\"n\":1}\r\n").await;
    for n in 0..3 {
        let activity = peer.receive_activity().await;
        assert_eq!(activity, json!({ "n": n }));
        peer.broadcast(activity, "anonymous").await;
        if n == 1 {
            sending.type_in("{\"n\":2}").await;
            sending.end_input();
        }
    }
    peer.expect_logout().await;
    sending.end().await.expect_code(0);
}

#[tokio::test]
async fn a_bad_line_ends_it_and_what_came_before_is_taken() {
    let server = FakeServer::start().await;
    let mut sending = Arborcast::start(&["send"], server.port());
    let mut peer = server.accept_login("anonymous").await;
    sending.type_in("{\"n\":0}\n[1]\n{\"n\":2}\n").await;
    let activity = peer.receive_activity().await;
    peer.broadcast(activity, "anonymous").await;
    peer.expect_logout().await;
    let ended = sending.end().await;
    ended.expect_code(1);
    assert_eq!(
        ended.stderr,
        "arborcast: line 2 is not a JSON object on one line; what stands before it was acknowledged (1), nothing from it on was \
         sent\n"
    );
}

#[tokio::test]
async fn a_bad_argument_is_told_without_asking_a_server() {
    let ended = Arborcast::start(&["send", "hello"], 1).end().await;
    ended.expect_code(2);
    assert_eq!(ended.stderr, "arborcast: the activity is not JSON (expected value at column 1)\n");
}

#[tokio::test]
async fn without_reconnecting_a_lost_connection_is_a_failure_that_counts_what_was_taken() {
    let server = FakeServer::start().await;
    let mut sending = Arborcast::start(&["send", "--no-reconnect"], server.port());
    let mut peer = server.accept_login("anonymous").await;
    sending.type_in("{\"n\":0}\n{\"n\":1}\n").await;
    sending.end_input();
    let activity = peer.receive_activity().await;
    peer.broadcast(activity, "anonymous").await;
    peer.receive_activity().await;
    drop(peer);
    let ended = sending.end().await;
    ended.expect_code(1);
    assert!(ended.stderr.contains("lost the connection"), "{}", ended.stderr);
    assert!(ended.stderr.ends_with("1 of 2 activities were acknowledged\n"), "{}", ended.stderr);
}

#[tokio::test]
async fn ctrl_c_says_how_many_were_taken() {
    let server = FakeServer::start().await;
    let mut sending = Arborcast::start(&["send"], server.port());
    let mut peer = server.accept_login("anonymous").await;
    sending.type_in("{\"n\":0}\n{\"n\":1}\n").await;
    peer.receive_activity().await;
    peer.receive_activity().await;
    sending.signal(Signal::SIGINT);
    peer.expect_logout().await;
    let ended = sending.end().await;
    ended.expect_code(130);
    assert_eq!(ended.stderr, "arborcast: interrupted; 0 of 2 activities were acknowledged\n");
}
