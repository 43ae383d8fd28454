//! `arborcast bench` finds out what a server does wrong, and says clearly what is wrong with its own arguments.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

mod fake;

use fake::{Arborcast, FakeServer, Peer};
use serde_json::{Value, json};

/// A publisher and a subscriber at this server, told apart by who publishes first, and what that is.
async fn accept_both(server: &FakeServer) -> (Peer, Peer, Value) {
    let (mut one, mut other) = (server.accept_login("anonymous").await, server.accept_login("anonymous").await);
    tokio::select! {
        activity = one.receive_activity() => (one, other, activity),
        activity = other.receive_activity() => (other, one, activity),
    }
}

#[tokio::test]
async fn what_is_lost_doubled_or_out_of_order_is_counted_and_the_exit_code_says_so() {
    let server = FakeServer::start().await;
    let args = ["bench", "--publishers", "1", "--subscribers", "1", "--count", "5", "--json"];
    let bench = Arborcast::start(&args, server.port());
    let (mut publisher, mut subscriber, first) = accept_both(&server).await;
    let mut activities = vec![first];
    for _ in 1..5 {
        activities.push(publisher.receive_activity().await);
    }
    for activity in &activities {
        publisher.broadcast(activity.clone(), "anonymous").await;
    }
    // The fourth never comes, the second one twice, and late.
    for place in [0, 2, 1, 1, 4] {
        subscriber.broadcast(activities[place].clone(), "anonymous").await;
    }
    subscriber.broadcast(json!({ "verb": "waves" }), "somebody else").await;
    let ended = bench.end().await;
    ended.expect_code(3);
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    for (field, expected) in [
        ("published", 5),
        ("acknowledged", 5),
        ("deliveries", 4),
        ("expected_deliveries", 5),
        ("lost", 1),
        ("most_lost_by_one_subscriber", 1),
        ("doubled", 1),
        ("out_of_order", 1),
        ("foreign", 1),
        ("lost_connections", 0),
    ] {
        assert_eq!(report[field], expected, "{field} in {report}");
    }
    assert!(ended.stderr.contains("1 deliveries were lost, 1 doubled and 1 out of order"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_publisher_does_not_outrun_its_window() {
    let server = FakeServer::start().await;
    let args = ["bench", "--subscribers", "0", "--count", "4", "--window", "2"];
    let bench = Arborcast::start(&args, server.port());
    let mut publisher = server.accept_login("anonymous").await;
    for _ in 0..2 {
        let (one, other) = (publisher.receive_activity().await, publisher.receive_activity().await);
        publisher.expect_nothing().await;
        publisher.broadcast(one, "anonymous").await;
        publisher.broadcast(other, "anonymous").await;
    }
    bench.end().await.expect_code(0);
}

#[tokio::test]
async fn a_redirection_is_followed_before_anything_is_published() {
    let (first, second) = (FakeServer::start().await, FakeServer::start().await);
    let bench = Arborcast::start(&["bench", "--subscribers", "0", "--count", "1"], first.port());
    first.accept_login("anonymous").await.send(&second.redirect()).await;
    let mut publisher = second.accept_login("anonymous").await;
    let activity = publisher.receive_activity().await;
    publisher.broadcast(activity, "anonymous").await;
    bench.end().await.expect_code(0);
}

#[tokio::test]
async fn a_user_logs_in_and_publishes_under_their_name() {
    let server = FakeServer::start().await;
    let args = ["bench", "-u", "aaron", "-s", "s3", "--subscribers", "0", "--count", "1", "--size", "200"];
    let bench = Arborcast::start(&args, server.port());
    let mut publisher = server.accept_login("aaron").await;
    let message = publisher.receive().await;
    assert_eq!((&message["username"], &message["secret"]), (&json!("aaron"), &json!("s3")));
    assert_eq!(message["activity"].to_string().len(), 200);
    publisher.broadcast(message["activity"].clone(), "aaron").await;
    bench.end().await.expect_code(0);
}

#[tokio::test]
async fn wrong_arguments_are_said_clearly() {
    let server = FakeServer::start().await;
    for (line, expected) in [
        ("--size 10", "an activity needs at least"),
        ("--size 2000000", "servers take at most 1048576"),
        ("--size x", "it is not a number of bytes"),
        ("--duration 0s", "it must be longer than nothing"),
        ("--duration soon", "--duration"),
        ("--rate 0", "--rate"),
        ("--count 0", "--count"),
        ("--window 0", "--window"),
        ("--threads 0", "--threads"),
        ("--publishers 0 --subscribers 0", "there is nothing to do"),
        ("--publishers 0 --count 1", "--count needs publishers"),
        ("--publishers 65537", "--publishers can be 65536 at most"),
        ("--subscribers 1000000000", "open files"),
        ("-u aaron", "there is no secret for aaron"),
    ] {
        let args: Vec<&str> = ["bench"].into_iter().chain(line.split(' ')).collect();
        let ended = Arborcast::start(&args, server.port()).end().await;
        ended.expect_code(2);
        assert!(ended.stderr.contains(expected), "{line}: {}", ended.stderr);
        assert_eq!(ended.stdout, "");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_refuses_or_acknowledges_nothing_ends_it() {
    let server = FakeServer::start().await;
    let bench = Arborcast::start(&["bench", "--subscribers", "0", "--acknowledged"], server.port());
    let _session = server.accept_login("anonymous").await;
    let ended = bench.end().await;
    ended.expect_code(1);
    assert!(ended.stderr.contains("acknowledges nothing"), "{}", ended.stderr);

    let bench = Arborcast::start(&["bench", "--subscribers", "0", "-u", "aaron", "-s", "wrong"], server.port());
    let mut peer = server.accept().await;
    peer.receive().await;
    peer.send(&json!({ "command": "LOGIN_FAILED", "info": "attempt to login with wrong secret" })).await;
    let ended = bench.end().await;
    ended.expect_code(1);
    assert!(ended.stderr.contains("attempt to login with wrong secret"), "{}", ended.stderr);

    let port = server.port();
    drop(server);
    let ended = Arborcast::start(&["bench"], port).end().await;
    ended.expect_code(1);
    assert!(ended.stderr.contains("cannot connect to"), "{}", ended.stderr);
}
