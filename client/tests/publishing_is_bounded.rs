//! Publishing waits for the server, receiving waits for the program, and neither blocks the other for good.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

mod fake;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arborcast_client::{Error, Options, Session};
use fake::{FakeServer, QUIET, aarons_identity, activity, value, within};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

#[tokio::test]
async fn no_more_than_the_window_is_on_its_way() {
    let server = FakeServer::start().await;
    let options = Options { window_messages: 3, ..Options::default() };
    let serving = async {
        let mut peer = server.accept_login("aaron").await;
        for n in 0..3 {
            assert_eq!(peer.receive_activity().await, json!({ "n": n }));
        }
        peer.expect_nothing().await;
        for n in 0..100 {
            peer.broadcast(json!({ "n": n }), "aaron").await;
            if n + 3 < 100 {
                assert_eq!(peer.receive_activity().await, json!({ "n": n + 3 }));
            }
        }
        peer.expect_end().await;
    };
    let client = async {
        let session = Session::login(&server.address(), &aarons_identity(), &options).await.unwrap();
        let (publisher, subscriber) = session.split();
        drop(subscriber);
        for n in 0..100 {
            within(publisher.publish(&activity(&json!({ "n": n })))).await.unwrap();
        }
        within(publisher.flush()).await.unwrap();
    };
    tokio::join!(serving, client);
}

#[tokio::test]
async fn a_publisher_without_a_subscriber_gets_through_a_flood_of_others() {
    let server = FakeServer::start().await;
    let serving = async {
        let mut peer = server.accept_login("aaron").await;
        let flood = json!({ "command": "ACTIVITY_BROADCAST", "activity": { "x": "y".repeat(1000) } });
        let flood = format!("{flood}\n").repeat(1000);
        for _ in 0..20 {
            let activity = peer.receive_activity().await;
            peer.send_raw(flood.as_bytes()).await;
            peer.broadcast(activity, "aaron").await;
        }
        peer.expect_end().await;
    };
    let client = async {
        let session = Session::login(&server.address(), &aarons_identity(), &Options::default()).await.unwrap();
        let (publisher, _) = session.split();
        for n in 0..20 {
            publisher.publish(&activity(&json!({ "n": n }))).await.unwrap();
        }
        within(publisher.flush()).await.unwrap();
    };
    tokio::join!(serving, client);
}

#[tokio::test]
async fn a_program_that_takes_nothing_is_not_buffered_for() {
    const LINES: usize = 64_000;
    let server = FakeServer::start().await;
    let options = Options { reconnect: None, ..Options::default() };
    let written = AtomicUsize::new(0);
    let serving = async {
        let mut stream = server.accept_login("aaron").await.into_inner();
        let line = format!("{}\n", json!({ "command": "ACTIVITY_BROADCAST", "activity": { "x": "y".repeat(1000) } }));
        for _ in 0..LINES {
            within(stream.write_all(line.as_bytes())).await.unwrap();
            written.fetch_add(1, Ordering::Relaxed);
        }
        // Closed without a LOGOUT: a loss, but behind everything that was sent.
    };
    let client = async {
        let mut session = Session::login(&server.address(), &aarons_identity(), &options).await.unwrap();
        let mut before = 0;
        while let now = written.load(Ordering::Relaxed)
            && (now == 0 || now != before)
        {
            before = now;
            tokio::time::sleep(QUIET).await;
        }
        assert!(before < LINES, "all was taken in");
        for _ in 0..LINES {
            within(session.next()).await.unwrap().unwrap();
        }
        let error = within(session.next()).await.unwrap().unwrap_err();
        assert!(matches!(error, Error::Lost { .. }), "{error}");
        assert!(within(session.next()).await.is_none());
    };
    tokio::join!(serving, client);
}

#[tokio::test]
async fn other_sessions_and_rewriting_servers_do_not_confuse_the_count() {
    let server = FakeServer::start().await;
    let serving = async {
        let mut peer = server.accept_login("aaron").await;
        peer.receive_activity().await;
        peer.receive_activity().await;
        peer.broadcast(json!({ "other": "session" }), "aaron").await;
        peer.broadcast(json!({ "a": 1.0, "b": [1] }), "bert").await;
        let rewritten =
            r#"{"activity": {"authenticated_user":"aaron", "b": [1.0], "a": 1 }, "command":"ACTIVITY_BROADCAST"}"#;
        peer.send_raw(format!("{rewritten}\n").as_bytes()).await;
        peer.receive_activity().await;
        peer
    };
    let client = async {
        let session = Session::login(&server.address(), &aarons_identity(), &Options::default()).await.unwrap();
        let (publisher, mut subscriber) = session.split();
        publisher.publish(&activity(&json!({ "a": 1.0, "b": [1] }))).await.unwrap();
        publisher.publish(&activity(&json!({ "second": true }))).await.unwrap();
        for _ in 0..3 {
            within(subscriber.next()).await.unwrap().unwrap();
        }
        assert_eq!((publisher.taken(), publisher.published()), (1, 2));
        publisher.publish(&activity(&json!({ "third": true }))).await.unwrap();
        (publisher, subscriber)
    };
    tokio::join!(serving, client);
}

#[tokio::test]
async fn an_activity_that_is_too_long_is_refused_and_the_session_goes_on() {
    let server = FakeServer::start().await;
    let options = Options { max_line: 200, ..Options::default() };
    let serving = async {
        let mut peer = server.accept_login("aaron").await;
        let longest = peer.receive().await;
        assert_eq!(longest.to_string().len(), 200 - r#","number":18446744073709551615"#.len());
        peer.broadcast(longest["activity"].clone(), "aaron").await;
        peer.expect_end().await;
    };
    let client = async {
        let mut session = Session::login(&server.address(), &aarons_identity(), &options).await.unwrap();
        let envelope =
            r#"{"command":"ACTIVITY_MESSAGE","username":"aaron","secret":"s3cret","activity":{"x":""}}"#.len();
        // A number may come with it in an extended session.
        let envelope = envelope + r#","number":18446744073709551615"#.len();
        let longest = activity(&json!({ "x": "y".repeat(200 - envelope) }));
        let too_long = activity(&json!({ "x": "y".repeat(201 - envelope) }));
        let error = session.publish(&too_long).await.unwrap_err();
        assert!(matches!(error, Error::TooLong { length: 201, limit: 200 }), "{error}");
        session.publish(&longest).await.unwrap();
        within(session.next()).await.unwrap().unwrap();
    };
    tokio::join!(serving, client);
}

#[tokio::test]
async fn a_server_that_does_not_give_it_back_is_noticed_in_the_flood_of_others() {
    let server = FakeServer::start().await;
    let options = Options { echo_timeout: Duration::from_millis(100), ..Options::default() };
    let serving = async {
        let mut peer = server.accept_login("aaron").await;
        assert_eq!(peer.receive_activity().await, json!({ "n": 1 }));
        let others = json!({ "command": "ACTIVITY_BROADCAST", "activity": { "authenticated_user": "bert", "n": 1 } });
        let (others, mut stream) = (format!("{others}\n").repeat(100), peer.into_inner());
        while within(stream.write_all(others.as_bytes())).await.is_ok() {}
    };
    let client = async {
        let session = Session::login(&server.address(), &aarons_identity(), &options).await.unwrap();
        let (publisher, mut subscriber) = session.split();
        publisher.publish(&activity(&json!({ "n": 1 }))).await.unwrap();
        let error = loop {
            match within(subscriber.next()).await.unwrap() {
                Ok(arrived) => assert_eq!(value(&arrived)["authenticated_user"], "bert"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::NoEcho { .. }), "{error}");
        assert!(matches!(publisher.flush().await, Err(Error::NoEcho { .. })));
    };
    within(async { tokio::join!(serving, client) }).await;
}

#[tokio::test]
async fn a_dropped_session_is_gone_whatever_it_was_doing() {
    let server = FakeServer::start().await;
    let serving = async {
        let mut peer = server.accept_login("aaron").await;
        peer.receive_activity().await;
        peer.expect_end().await;
    };
    let client = async {
        let session = Session::login(&server.address(), &aarons_identity(), &Options::default()).await.unwrap();
        let (publisher, subscriber) = session.split();
        publisher.publish(&activity(&json!({ "n": 1 }))).await.unwrap();
        assert!(timeout(QUIET, publisher.flush()).await.is_err());
        drop(publisher);
        drop(subscriber);
    };
    tokio::join!(serving, client);
}

#[tokio::test]
async fn a_logout_that_the_server_ignores_ends_nevertheless() {
    let server = FakeServer::start().await;
    let options = Options { logout_timeout: Duration::from_millis(100), ..Options::default() };
    let serving = async {
        let mut peer = server.accept_login("aaron").await;
        peer.expect(json!({ "command": "LOGOUT" })).await;
        peer.expect_end().await;
    };
    let client = async {
        let session = Session::login(&server.address(), &aarons_identity(), &options).await.unwrap();
        let error = within(session.logout()).await.unwrap_err();
        assert!(matches!(error, Error::NoAnswer { request: "LOGOUT", .. }), "{error}");
    };
    tokio::join!(serving, client);
}
