//! A session that has lost its server goes on at another one by itself, and says so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

mod fake;

use std::time::Duration;

use arborcast_client::{Error, Event, Identity, Options, Publisher, Reconnect, Servers, Session, Subscriber};
use fake::{Arborcast, FakeServer, QUIET, aarons_identity, activity, value, within};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::time::timeout;

fn both(first: &FakeServer, second: &FakeServer) -> Servers {
    Servers { addresses: vec![first.address(), second.address()], masters: Vec::new() }
}

/// With short pauses, so that the tests are quick.
fn options() -> Options {
    let reconnect =
        Reconnect { min_pause: Duration::from_millis(5), max_pause: Duration::from_millis(50), ..Reconnect::default() };
    Options { reconnect: Some(reconnect), ..Options::default() }
}

async fn log_in(servers: impl Into<Servers>, options: &Options) -> (Publisher, Subscriber) {
    within(Session::login(servers, &aarons_identity(), options)).await.unwrap().split()
}

async fn next_event(subscriber: &mut Subscriber) -> Event {
    within(subscriber.next_event()).await.unwrap().unwrap()
}

async fn expect_lost(subscriber: &mut Subscriber) -> Error {
    match next_event(subscriber).await {
        Event::Lost { error, .. } => error,
        other => panic!("{other:?}"),
    }
}

async fn expect_back_at(subscriber: &mut Subscriber, server: &FakeServer) {
    match next_event(subscriber).await {
        Event::Reconnected { server: at, is_resumed: false, .. } => assert_eq!(at, server.address()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_did_not_come_back_is_sent_again_in_order_at_the_next_server() {
    let (first, second) = (FakeServer::start().await, FakeServer::start().await);
    let servers = async {
        let mut peer = first.accept_login("aaron").await;
        for n in 1..=3 {
            assert_eq!(peer.receive_activity().await, json!({ "n": n }));
        }
        peer.broadcast(json!({ "n": 1 }), "aaron").await;
        drop(peer);
        let mut peer = second.accept_login("aaron").await;
        for n in 2..=4 {
            let activity = peer.receive_activity().await;
            assert_eq!(activity, json!({ "n": n }));
            peer.broadcast(activity, "aaron").await;
        }
        peer.expect_logout().await;
    };
    let client = async {
        let (publisher, mut subscriber) = log_in(both(&first, &second), &options()).await;
        for n in 1..=3 {
            publisher.publish(&activity(&json!({ "n": n }))).await.unwrap();
        }
        assert!(matches!(next_event(&mut subscriber).await, Event::Activities(batch) if value(&batch[0])["n"] == 1));
        assert!(matches!(expect_lost(&mut subscriber).await, Error::Lost { .. }));
        publisher.publish(&activity(&json!({ "n": 4 }))).await.unwrap();
        expect_back_at(&mut subscriber, &second).await;
        within(publisher.flush()).await.unwrap();
        assert_eq!((publisher.taken(), publisher.published(), publisher.server()), (4, 4, second.address()));
        within(publisher.logout()).await.unwrap();
        for n in 2..=4 {
            assert_eq!(value(&within(subscriber.next()).await.unwrap().unwrap())["n"], n);
        }
        assert!(within(subscriber.next()).await.is_none());
    };
    tokio::join!(servers, client);
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_passed_over_at_the_first_login_too() {
    let (silent, second) = (FakeServer::start().await, FakeServer::start().await);
    let options = Options { answer_timeout: Duration::from_millis(50), ..options() };
    let (_silent, _peer, (publisher, _subscriber)) =
        tokio::join!(silent.accept(), second.accept_login("aaron"), log_in(both(&silent, &second), &options));
    assert_eq!(publisher.server(), second.address());
}

async fn refuse_login(server: &FakeServer) {
    let mut peer = server.accept().await;
    peer.receive().await;
    peer.send(&json!({ "command": "LOGIN_FAILED", "info": "attempt to login with wrong secret" })).await;
}

/// One that has just started may not know the user yet.
#[tokio::test]
async fn a_first_login_is_refused_when_every_server_refuses_it_and_then_at_once() {
    let (first, second) = (FakeServer::start().await, FakeServer::start().await);
    let (servers, identity, options) = (both(&first, &second), aarons_identity(), options());
    let login = async || within(Session::login(&servers, &identity, &options)).await;
    let ((), (), outcome) = tokio::join!(refuse_login(&first), refuse_login(&second), login());
    assert!(matches!(outcome, Err(Error::LoginFailed { .. })), "{outcome:?}");
    let ((), _peer, outcome) = tokio::join!(refuse_login(&first), second.accept_login("aaron"), login());
    outcome.unwrap();
}

#[tokio::test]
async fn a_redirect_to_a_dead_server_is_a_loss_and_the_session_goes_on() {
    let server = FakeServer::start().await;
    let serving = async {
        let mut peer = server.accept_login("aaron").await;
        // A port that no machine serves.
        peer.send(&json!({ "command": "REDIRECT", "hostname": "127.0.0.1", "port": 1 })).await;
        drop(peer);
        server.accept_login("aaron").await
    };
    let client = async {
        let (publisher, mut subscriber) = log_in(&server.address(), &options()).await;
        assert!(matches!(expect_lost(&mut subscriber).await, Error::Connect { .. }));
        expect_back_at(&mut subscriber, &server).await;
        (publisher, subscriber)
    };
    tokio::join!(serving, client);
}

#[tokio::test]
async fn a_refusal_after_a_loss_is_believed_only_when_it_is_repeated() {
    let server = FakeServer::start().await;
    let mut options = options();
    options.reconnect.as_mut().unwrap().max_refusals = 3;
    let serving = async {
        drop(server.accept_login("aaron").await);
        refuse_login(&server).await;
        refuse_login(&server).await;
        drop(server.accept_login("aaron").await);
        for _ in 0..3 {
            refuse_login(&server).await;
        }
    };
    let client = async {
        let (_publisher, mut subscriber) = log_in(&server.address(), &options).await;
        expect_lost(&mut subscriber).await;
        expect_back_at(&mut subscriber, &server).await;
        expect_lost(&mut subscriber).await;
        let error = within(subscriber.next_event()).await.unwrap().unwrap_err();
        assert!(matches!(error, Error::LoginFailed { .. }), "{error}");
        assert!(within(subscriber.next_event()).await.is_none());
    };
    tokio::join!(serving, client);
}

/// The least loaded server is often the one that has just started.
#[tokio::test]
async fn a_refusal_behind_a_redirect_is_one_of_those() {
    let (server, target) = (FakeServer::start().await, FakeServer::start().await);
    let mut options = options();
    options.reconnect.as_mut().unwrap().max_refusals = 3;
    let redirecting = async {
        loop {
            server.accept_login("aaron").await.send(&target.redirect()).await;
        }
    };
    let refusing = async {
        for _ in 0..3 {
            refuse_login(&target).await;
        }
    };
    let client = async {
        let (_publisher, mut subscriber) = log_in(&server.address(), &options).await;
        let error = loop {
            match within(subscriber.next_event()).await.unwrap() {
                Ok(Event::Lost { .. } | Event::Reconnected { .. }) => {}
                Ok(other) => panic!("{other:?}"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::LoginFailed { .. }), "{error}");
    };
    tokio::select! {
        ((), ()) = async { tokio::join!(refusing, client) } => {}
        () = redirecting => {}
    }
}

#[tokio::test]
async fn a_search_that_has_a_limit_ends_with_what_went_wrong_last() {
    let server = FakeServer::start().await;
    let mut options = options();
    options.reconnect.as_mut().unwrap().give_up_after = Some(Duration::from_millis(200));
    let address = server.address();
    let serving = async {
        let peer = server.accept_login("aaron").await;
        // Nobody listens any more before the connection ends.
        drop(server);
        drop(peer);
    };
    let client = async {
        let (publisher, mut subscriber) = log_in(&address, &options).await;
        publisher.publish(&activity(&json!({ "n": 1 }))).await.unwrap();
        let error = within(subscriber.next()).await.unwrap().unwrap_err();
        assert!(matches!(error, Error::Connect { .. }), "{error}");
        assert!(matches!(within(publisher.flush()).await, Err(Error::Connect { .. })));
        assert_eq!((publisher.taken(), publisher.published()), (0, 1));
    };
    tokio::join!(serving, client);
}

#[tokio::test]
async fn a_logout_during_the_search_ends_it_at_once_also_with_a_full_window() {
    let server = FakeServer::start().await;
    let options = Options { window_messages: 1, logout_timeout: fake::DEADLINE, ..options() };
    let address = server.address();
    let serving = async {
        let peer = server.accept_login("aaron").await;
        drop(server);
        drop(peer);
    };
    let client = async {
        let (publisher, mut subscriber) = log_in(&address, &options).await;
        expect_lost(&mut subscriber).await;
        publisher.publish(&activity(&json!({ "n": 1 }))).await.unwrap();
        // As many as fit in front of the window; then publishing waits.
        while timeout(QUIET, publisher.publish(&activity(&json!({ "n": 2 })))).await.is_ok() {}
        assert!(timeout(QUIET, publisher.flush()).await.is_err());
        within(publisher.logout()).await.unwrap();
        assert!(within(subscriber.next_event()).await.is_none());
        assert_eq!(publisher.taken(), 0);
    };
    tokio::join!(serving, client);
}

#[tokio::test]
async fn a_silent_server_is_given_up_once_and_one_that_gives_back_others_at_once() {
    let server = FakeServer::start().await;
    let options = Options { echo_timeout: Duration::from_millis(100), ..options() };
    let serving = async {
        let mut silent = server.accept_login("aaron").await;
        silent.receive_activity().await;
        let mut peer = server.accept_login("aaron").await;
        peer.receive_activity().await;
        (silent, peer)
    };
    let client = async {
        let (publisher, mut subscriber) = log_in(&server.address(), &options).await;
        publisher.publish(&activity(&json!({ "n": 1 }))).await.unwrap();
        assert!(matches!(expect_lost(&mut subscriber).await, Error::NoEcho { .. }));
        expect_back_at(&mut subscriber, &server).await;
        let error = within(subscriber.next_event()).await.unwrap().unwrap_err();
        assert!(matches!(error, Error::NoEcho { .. }), "{error}");
    };
    tokio::join!(serving, client);
}

#[tokio::test]
async fn a_server_that_lets_in_and_closes_again_is_not_stormed() {
    let server = FakeServer::start().await;
    let mut options = options();
    options.reconnect.as_mut().unwrap().max_pause = Duration::from_secs(60);
    let client = async {
        let identity = Identity::Anonymous;
        let session = Session::login(&server.address(), &identity, &options).await.unwrap();
        std::future::pending::<()>().await;
        drop(session);
    };
    let serving = async {
        let mut logins = 0;
        // The pauses grow, so that one day nobody comes for a while.
        while let Ok(peer) = timeout(QUIET, server.accept_login("anonymous")).await {
            drop(peer);
            logins += 1;
        }
        assert!(logins > 1, "{logins}");
    };
    within(async {
        tokio::select! {
            () = client => {}
            () = serving => {}
        }
    })
    .await;
}

#[tokio::test]
async fn a_registration_is_made_at_the_first_server_that_takes_a_connection_and_at_no_other() {
    let (first, second) = (FakeServer::start().await, FakeServer::start().await);
    let dead = arborcast_client::Address::new("127.0.0.1", 1).unwrap();
    let servers = Servers { addresses: vec![dead, first.address(), second.address()], masters: Vec::new() };
    let serving = async {
        first.accept().await.expect(json!({ "command": "REGISTER", "username": "aaron", "secret": "s3cret" })).await
    };
    let (credentials, options) = (fake::aaron(), options());
    let registering = within(arborcast_client::register(servers, &credentials, &options));
    let (_, outcome) = tokio::join!(serving, registering);
    assert!(matches!(&outcome, Err(Error::Lost { server, .. }) if *server == first.address()), "{outcome:?}");
    assert!(timeout(QUIET, second.accept()).await.is_err());
}

#[tokio::test]
async fn listen_says_where_it_goes_on_and_ends_cleanly_while_it_looks() {
    let (first, second) = (FakeServer::start().await, FakeServer::start().await);
    let more = format!("127.0.0.1:{}", second.port());
    let mut listening = Arborcast::start(&["listen", "-rh", &format!("127.0.0.1:{}", first.port())], second.port());
    drop(first.accept_login("anonymous").await);
    let lost = listening.stderr_line().await;
    let expected = format!("arborcast: lost the connection to 127.0.0.1:{}: ", first.port());
    assert!(lost.starts_with(&expected) && lost.ends_with("; looking for another server\n"), "{lost}");
    let mut peer = second.accept_login("anonymous").await;
    let back = listening.stderr_line().await;
    assert!(back.starts_with(&format!("arborcast: back at {more} after ")), "{back}");
    assert!(back.ends_with(" s; what others published meanwhile may be missing\n"), "{back}");
    peer.broadcast(json!({ "n": 1 }), "bert").await;
    assert_eq!(listening.stdout_line().await, "{\"authenticated_user\":\"bert\",\"n\":1}\n");
    drop((first, second, peer));
    assert!(listening.stderr_line().await.contains("looking for another server"));
    listening.signal(Signal::SIGINT);
    listening.end().await.expect_code(0);
}

#[tokio::test]
async fn ctrl_c_while_send_looks_for_a_server_says_how_many_were_acknowledged() {
    let server = FakeServer::start().await;
    let mut sending = Arborcast::start(&["send"], server.port());
    let mut peer = server.accept_login("anonymous").await;
    sending.type_in("{\"n\":0}\n{\"n\":1}\n").await;
    let activity = peer.receive_activity().await;
    peer.receive_activity().await;
    peer.broadcast(activity, "anonymous").await;
    drop((server, peer));
    assert!(sending.stderr_line().await.contains("looking for another server"));
    sending.signal(Signal::SIGINT);
    let ended = sending.end().await;
    ended.expect_code(130);
    assert_eq!(ended.stderr, "arborcast: interrupted; 1 of 2 activities were acknowledged\n");
}
