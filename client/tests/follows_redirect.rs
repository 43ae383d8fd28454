//! A redirection is followed whenever it comes, and nothing published is lost by it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

mod fake;

use arborcast_client::{Error, Options, Session};
use fake::{FakeServer, aarons_identity, activity, value, within};
use serde_json::json;

#[tokio::test]
async fn a_redirect_in_the_same_segment_as_the_login_success_is_followed() {
    let (first, second) = (FakeServer::start().await, FakeServer::start().await);
    let servers = async {
        let mut peer = first.accept().await;
        peer.expect_login(json!({ "command": "LOGIN", "username": "aaron", "secret": "s3cret" })).await;
        let success = json!({ "command": "LOGIN_SUCCESS", "info": "logged in as user aaron" });
        peer.send_raw(format!("{success}\n{}\n", second.redirect()).as_bytes()).await;
        let mut moved = second.accept_login("aaron").await;
        moved.broadcast(json!({ "n": 1 }), "bert").await;
        (peer, moved)
    };
    let client = async {
        let mut session = Session::login(&first.address(), &aarons_identity(), &Options::default()).await.unwrap();
        let received = within(session.next()).await.unwrap().unwrap();
        assert_eq!(value(&received), json!({ "n": 1, "authenticated_user": "bert" }));
        let (publisher, _) = session.split();
        assert_eq!(publisher.server(), second.address());
    };
    tokio::join!(servers, client);
}

#[tokio::test]
async fn a_late_redirect_is_followed_and_what_did_not_come_back_is_sent_again_in_order() {
    let (first, second) = (FakeServer::start().await, FakeServer::start().await);
    let servers = async {
        let mut peer = first.accept_login("aaron").await;
        for n in 1..=3 {
            assert_eq!(peer.receive_activity().await, json!({ "n": n }));
        }
        peer.broadcast(json!({ "n": 1 }), "aaron").await;
        peer.send(&second.redirect()).await;
        let mut moved = second.accept_login("aaron").await;
        for n in 2..=4 {
            let activity = moved.receive_activity().await;
            assert_eq!(activity, json!({ "n": n }));
            moved.broadcast(activity, "aaron").await;
        }
        moved.expect_logout().await;
    };
    let client = async {
        let session = Session::login(&first.address(), &aarons_identity(), &Options::default()).await.unwrap();
        let (publisher, mut subscriber) = session.split();
        for n in 1..=3 {
            publisher.publish(&activity(&json!({ "n": n }))).await.unwrap();
        }
        let first_echo = within(subscriber.next()).await.unwrap().unwrap();
        assert_eq!(value(&first_echo)["n"], 1);
        publisher.publish(&activity(&json!({ "n": 4 }))).await.unwrap();
        within(publisher.flush()).await.unwrap();
        assert_eq!((publisher.taken(), publisher.published()), (4, 4));
        within(publisher.logout()).await.unwrap();
        for n in 2..=4 {
            assert_eq!(value(&within(subscriber.next()).await.unwrap().unwrap())["n"], n);
        }
        assert!(within(subscriber.next()).await.is_none());
    };
    tokio::join!(servers, client);
}

#[tokio::test]
async fn redirections_without_end_are_an_error() {
    let server = FakeServer::start().await;
    let options = Options { max_redirects: 3, reconnect: None, ..Options::default() };
    let circling = async {
        for _ in 0..4 {
            server.accept_login("anonymous").await.send(&server.redirect()).await;
        }
    };
    let client = async {
        let identity = arborcast_client::Identity::Anonymous;
        let mut session = Session::login(&server.address(), &identity, &options).await.unwrap();
        let error = within(session.next()).await.unwrap().unwrap_err();
        assert!(matches!(error, Error::TooManyRedirects { limit: 3, .. }), "{error}");
        assert!(within(session.next()).await.is_none());
    };
    tokio::join!(circling, client);
}

#[tokio::test]
async fn a_redirect_to_nowhere_names_the_place() {
    let server = FakeServer::start().await;
    let options = Options { reconnect: None, ..Options::default() };
    for (hostname, expected) in [("127.0.0.1", "cannot connect to 127.0.0.1:1:"), ("\u{1b}[2J", "redirects to a place")]
    {
        let serving = async {
            let mut peer = server.accept_login("aaron").await;
            peer.send(&json!({ "command": "REDIRECT", "hostname": hostname, "port": 1 })).await;
        };
        let client = async {
            let session = Session::login(&server.address(), &aarons_identity(), &options).await.unwrap();
            let (publisher, mut subscriber) = session.split();
            let error = within(subscriber.next()).await.unwrap().unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            let error = publisher.publish(&activity(&json!({}))).await.unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        };
        tokio::join!(serving, client);
    }
}
