//! Whatever goes wrong is told in one sentence that names the server, the cause and a way out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

mod fake;

use std::time::Duration;

use arborcast_client::{Error, Identity, Options, Session, register};
use fake::{Arborcast, FakeServer, aaron, aarons_identity, activity, within};
use serde_json::json;

/// Logs in at a server that answers with these bytes and hangs up.
async fn login_answered(answer: &str) -> Error {
    let server = FakeServer::start().await;
    let serving = async {
        let mut peer = server.accept().await;
        peer.receive().await;
        peer.send_raw(answer.as_bytes()).await;
    };
    let address = server.address();
    let identity = aarons_identity();
    let options = Options::default();
    let (_, session) = tokio::join!(serving, within(Session::login(&address, &identity, &options)));
    let error = session.unwrap_err();
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    error
}

#[tokio::test]
async fn every_bad_answer_to_a_login_is_told_apart() {
    let error =
        login_answered("{\"command\":\"LOGIN_FAILED\",\"info\":\"attempt to login with wrong secret\"}\n").await;
    assert!(matches!(&error, Error::LoginFailed { info, .. } if info == "attempt to login with wrong secret"));
    assert!(error.to_string().contains("wrong secret"));
    let error = login_answered("{\"command\":\"INVALID_MESSAGE\"}\n").await;
    assert!(matches!(error, Error::InvalidMessage { .. }), "{error}");
    let error = login_answered("{\"command\":\"AUTHENTICATION_FAIL\",\"info\":\"no\"}\n").await;
    assert!(matches!(error, Error::AuthenticationFail { .. }), "{error}");
    let error = login_answered("").await;
    assert!(matches!(error, Error::Lost { .. }), "{error}");
    let error = login_answered("{\"command\":\"LOGIN_SUCC").await;
    assert!(matches!(error, Error::Lost { .. }), "{error}");
    let error = login_answered("HTTP/1.1 400 Bad Request\r\n").await;
    assert!(matches!(error, Error::Undecodable { .. }), "{error}");
    let error = login_answered("{\"command\":\"REGISTER_SUCCESS\",\"info\":\"\"}\n").await;
    assert!(matches!(error, Error::Unexpected { command: "REGISTER_SUCCESS", .. }), "{error}");
}

#[tokio::test]
async fn a_server_that_breaks_the_protocol_is_told_what_was_wrong() {
    let server = FakeServer::start().await;
    for nonsense in ["hello\n", "{\"command\":\"LOGIN_SUCCESS\",\"info\":\"\"}\n", "{\"command\":\"SERVER_QUIT\"}\n"] {
        let serving = async {
            let mut peer = server.accept_login("aaron").await;
            peer.broadcast(json!({ "n": 1 }), "bert").await;
            peer.send_raw(nonsense.as_bytes()).await;
            assert_eq!(peer.receive().await["command"], "INVALID_MESSAGE");
            peer.expect_end().await;
        };
        let client = async {
            let mut session = Session::login(&server.address(), &aarons_identity(), &Options::default()).await.unwrap();
            within(session.next()).await.unwrap().unwrap();
            let error = within(session.next()).await.unwrap().unwrap_err();
            assert!(matches!(error, Error::Undecodable { .. } | Error::Unexpected { .. }), "{error}");
        };
        tokio::join!(serving, client);
    }
}

#[tokio::test]
async fn the_reason_is_read_even_when_nothing_can_be_written_any_more() {
    let server = FakeServer::start().await;
    let serving = async {
        let mut peer = server.accept_login("aaron").await;
        peer.receive_activity().await;
        peer.send(&json!({ "command": "AUTHENTICATION_FAIL", "info": "go away" })).await;
    };
    let client = async {
        let session = Session::login(&server.address(), &aarons_identity(), &Options::default()).await.unwrap();
        let (publisher, _) = session.split();
        let error = loop {
            if let Err(error) = within(publisher.publish(&activity(&json!({ "n": 1 })))).await {
                break error;
            }
        };
        assert!(matches!(&error, Error::AuthenticationFail { info, .. } if info == "go away"), "{error}");
    };
    tokio::join!(serving, client);
}

#[tokio::test]
async fn a_line_without_end_is_refused_at_its_limit() {
    let server = FakeServer::start().await;
    let options = Options { max_line: 10_000, ..Options::default() };
    let serving = async {
        let mut peer = server.accept_login("aaron").await;
        peer.send_raw(&vec![b' '; 30_000]).await;
        assert_eq!(peer.receive().await["command"], "INVALID_MESSAGE");
    };
    let client = async {
        let mut session = Session::login(&server.address(), &Identity::User(aaron()), &options).await.unwrap();
        let error = within(session.next()).await.unwrap().unwrap_err();
        assert!(matches!(error, Error::Undecodable { .. }), "{error}");
    };
    tokio::join!(serving, client);
}

#[tokio::test]
async fn a_silent_server_is_not_waited_for_without_end() {
    let server = FakeServer::start().await;
    let options = Options { answer_timeout: Duration::from_millis(50), ..Options::default() };
    let (address, credentials) = (server.address(), aaron());
    let (_peer, answer) = tokio::join!(server.accept(), within(register(&address, &credentials, &options)));
    assert!(matches!(answer, Err(Error::NoAnswer { request: "REGISTER", .. })), "{answer:?}");
}

#[tokio::test]
async fn a_refused_connection_says_how_to_start_a_node() {
    // A port that no machine serves, and that is never given out.
    let port = 1;
    let ended = Arborcast::start(&["listen"], port).end().await;
    ended.expect_code(1);
    assert_eq!(
        ended.stderr,
        format!(
            "arborcast: cannot connect to 127.0.0.1:{port}: connection refused; is a node running there? \
             start one with `arborcast-node`\n"
        )
    );
}

#[tokio::test]
async fn wrong_usage_has_its_own_exit_code_and_names_the_way_out() {
    for (args, expected) in [
        (&["listen", "-u", "aaron"][..], "arborcast register -u aaron"),
        (&["send", "{}", "-u", "aaron"], "--secret-file"),
        (&["-s", "x"], "-u NAME"),
        (&["register"], "-u NAME"),
        (&["listen", "-u", "a", "-s", "x", "--secret-file", "y"], "cannot be used with"),
        (&["--nonsense"], "--help"),
    ] {
        let ended = Arborcast::start(args, 1).end().await;
        ended.expect_code(2);
        assert!(ended.stderr.contains(expected), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn the_servers_reason_for_refusing_a_login_is_said() {
    let server = FakeServer::start().await;
    let listening = Arborcast::start(&["listen", "-u", "aaron", "-s", "guess"], server.port());
    let mut peer = server.accept().await;
    peer.expect_login(json!({ "command": "LOGIN", "username": "aaron", "secret": "guess" })).await;
    peer.send(&json!({ "command": "LOGIN_FAILED", "info": "attempt to login with wrong secret" })).await;
    let ended = listening.end().await;
    ended.expect_code(1);
    assert!(ended.stderr.contains("attempt to login with wrong secret"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("guess"), "{}", ended.stderr);
}

#[tokio::test]
async fn nothing_that_is_logged_shows_the_secret() {
    let server = FakeServer::start().await;
    let listening =
        Arborcast::start_with(&["listen", "-v", "-u", "aaron", "-s", "hunter2"], server.port(), |command| {
            command.env("RUST_LOG", "trace")
        });
    server.accept_login("aaron").await.send(&json!({ "command": "AUTHENTICATION_FAIL", "info": "x" })).await;
    let ended = listening.end().await;
    assert!(ended.stderr.contains("logged in") && !ended.stderr.contains("hunter2"), "{}", ended.stderr);
}
