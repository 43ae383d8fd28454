//! Extended sessions (protocol, E): what is published is acknowledged, and what was missed is received after all.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

mod fake;

use std::time::Duration;

use arborcast_client::{Event, Options, Publisher, Reconnect, Session, Subscriber};
use fake::{Arborcast, FakeServer, QUIET, aarons_identity, activity, value, within};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::time::timeout;

fn options() -> Options {
    let reconnect =
        Reconnect { min_pause: Duration::from_millis(1), max_pause: Duration::from_millis(5), ..Reconnect::default() };
    Options { reconnect: Some(reconnect), ..Options::default() }
}

async fn log_in(server: &FakeServer, options: &Options) -> (Publisher, Subscriber) {
    within(Session::login(&server.address(), &aarons_identity(), options)).await.unwrap().split()
}

async fn publish(publisher: &Publisher, numbers: std::ops::RangeInclusive<u64>) {
    for n in numbers {
        within(publisher.publish(&activity(&json!({ "n": n })))).await.unwrap();
    }
}

async fn next_event(subscriber: &mut Subscriber) -> Event {
    within(subscriber.next_event()).await.unwrap().unwrap()
}

async fn expect_activities(subscriber: &mut Subscriber, numbers: impl IntoIterator<Item = u64>) {
    for n in numbers {
        assert_eq!(value(&within(subscriber.next()).await.unwrap().unwrap())["n"], n);
    }
}

async fn expect_reconnected(subscriber: &mut Subscriber, resumed: bool) {
    assert!(matches!(next_event(subscriber).await, Event::Lost { .. }));
    match next_event(subscriber).await {
        Event::Reconnected { is_resumed, .. } => assert_eq!(is_resumed, resumed),
        other => panic!("{other:?}"),
    }
}

/// E1, E4, E5.
#[tokio::test]
async fn a_flush_waits_for_the_acknowledgement_and_not_for_the_echo() {
    let server = FakeServer::start().await;
    let serving = async {
        let (mut peer, resume) = server.accept_extended(json!({})).await;
        assert_eq!(resume["session"].as_str().unwrap().len(), 32);
        assert_eq!(resume.get("have"), None);
        for n in 1..=3 {
            assert_eq!(peer.receive_numbered().await, (n, 10 + n));
            let session = resume["session"].clone();
            let echo = json!({ "n": 10 + n, "authenticated_user": "aaron" });
            peer.send(&json!({ "command": "ACTIVITY_BROADCAST", "origin": "1/n1", "seq": n, "session": session, "number": n, "activity": echo })).await;
        }
        peer.acknowledge(2).await;
        peer.expect_nothing().await;
        peer.acknowledge(3).await;
        peer.expect_logout().await;
    };
    let client = async {
        let (publisher, mut subscriber) = log_in(&server, &options()).await;
        publish(&publisher, 11..=13).await;
        expect_activities(&mut subscriber, 11..=13).await;
        assert!(timeout(QUIET / 2, publisher.flush()).await.is_err());
        within(publisher.flush()).await.unwrap();
        assert_eq!(publisher.taken(), 3);
        within(publisher.logout()).await.unwrap();
    };
    tokio::join!(serving, client);
}

/// E1, E3, E5, U9.
#[tokio::test]
async fn after_a_loss_the_session_goes_on_elsewhere_and_nothing_is_lost_or_doubled() {
    let (first, second) = (FakeServer::start().await, FakeServer::start().await);
    let address = first.address();
    let serving = async {
        let (mut peer, before) = first.accept_extended_knowing(json!({ "7/n1": 5 }), &[&second]).await;
        peer.broadcast_named("7/n1", 6, 106).await;
        for n in 1..=3 {
            assert_eq!(peer.receive_numbered().await, (n, n));
        }
        peer.acknowledge(1).await;
        peer.broadcast_named("1/n9", 1, 201).await;
        drop(peer);
        drop(first);
        let (mut peer, resume) = second.accept_extended(json!({})).await;
        assert_eq!(resume["session"], before["session"]);
        assert_eq!((before.get("proof"), &resume["proof"]), (None, &json!("c0de")));
        assert_eq!(resume["have"], json!({ "7/n1": 6, "1/n9": 1 }));
        // More than was asked for; what is there already is dropped.
        for (origin, seq, n) in [("7/n1", 6, 106), ("1/n9", 1, 201), ("1/n9", 2, 202), ("7/n1", 7, 107)] {
            peer.broadcast_named(origin, seq, n).await;
        }
        for n in 2..=4 {
            assert_eq!(peer.receive_numbered().await, (n, n));
        }
        peer.acknowledge(4).await;
        peer
    };
    let client = async {
        let session = within(Session::login(&address, &aarons_identity(), &options())).await.unwrap();
        let (publisher, mut subscriber) = session.split();
        publish(&publisher, 1..=3).await;
        expect_activities(&mut subscriber, [106, 201]).await;
        expect_reconnected(&mut subscriber, true).await;
        expect_activities(&mut subscriber, [202, 107]).await;
        publish(&publisher, 4..=4).await;
        within(publisher.flush()).await.unwrap();
        assert_eq!((publisher.taken(), publisher.server()), (4, second.address()));
    };
    tokio::join!(serving, client);
}

/// E2, E3, Y6, Y8.
#[tokio::test]
async fn gaps_are_told_where_they_are_and_what_counts_as_received_is_not() {
    let server = FakeServer::start().await;
    let gap = |origin: &str, through: u64| json!({ "command": "RELAY_GAP", "origin": origin, "through": through });
    let published = |origin: &str, seq: u64| {
        let activity = json!({ "n": 3, "authenticated_user": "bert" });
        json!({ "command": "ACTIVITY_BROADCAST", "origin": origin, "seq": seq, "session": "s", "number": 9, "activity": activity })
    };
    let serving = async {
        let (mut peer, _) = server.accept_extended(json!({ "7/n1": 5 })).await;
        peer.send(&json!({ "command": "RELAY_HAVE", "have": { "7/n2": 40, "7/n1": 2 } })).await;
        peer.send(&gap("7/n2", 40)).await;
        peer.broadcast_named("7/n1", 6, 1).await;
        peer.send(&gap("7/n1", 16)).await;
        peer.send(&gap("7/n1", 16)).await;
        peer.broadcast_named("7/n1", 17, 2).await;
        peer.send(&published("7/n1", 18)).await;
        // The same under another name.
        peer.send(&published("7/n2", 41)).await;
        peer.broadcast_named("7/n2", 42, 4).await;
        peer
    };
    let client = async {
        let (publisher, mut subscriber) = log_in(&server, &options()).await;
        let mut seen = Vec::new();
        while seen.last() != Some(&"4".to_owned()) {
            match next_event(&mut subscriber).await {
                Event::Activities(batch) => seen.extend(batch.iter().map(|each| value(each)["n"].to_string())),
                Event::Gap { origin, missing } => seen.push(format!("{missing} of {origin}")),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(seen, ["1", "10 of 7/n1", "2", "3", "4"]);
        publisher
    };
    tokio::join!(serving, client);
}

/// E7.
#[tokio::test]
async fn a_session_moves_to_a_plain_server_and_back() {
    let server = FakeServer::start().await;
    let serving = async {
        let (mut peer, before) = server.accept_extended(json!({ "7/n1": 5 })).await;
        for n in 1..=2 {
            assert_eq!(peer.receive_numbered().await, (n, n));
        }
        peer.acknowledge(1).await;
        peer.broadcast_named("7/n1", 6, 100).await;
        drop(peer);

        let mut peer = server.accept_login("aaron").await;
        assert_eq!(
            peer.receive().await,
            json!({ "command": "ACTIVITY_MESSAGE", "username": "aaron", "secret": "s3cret", "activity": { "n": 2 } })
        );
        peer.broadcast(json!({ "n": 2 }), "aaron").await;
        assert_eq!(peer.receive_activity().await, json!({ "n": 3 }));
        peer.broadcast(json!({ "n": 3 }), "aaron").await;
        assert_eq!(peer.receive_activity().await, json!({ "n": 4 }));
        drop(peer);

        let (mut peer, resume) = server.accept_extended(json!({ "7/n1": 9 })).await;
        assert_eq!(resume, json!({ "session": before["session"], "proof": "c0de" }));
        // 3 has come back and never had a number, so there is no hole.
        assert_eq!(peer.receive_numbered().await, (3, 4));
        peer.acknowledge(3).await;
        peer.broadcast_named("7/n1", 9, 101).await;
        peer.broadcast_named("7/n1", 10, 102).await;
        peer
    };
    let client = async {
        let (publisher, mut subscriber) = log_in(&server, &options()).await;
        publish(&publisher, 1..=2).await;
        expect_activities(&mut subscriber, [100]).await;
        expect_reconnected(&mut subscriber, false).await;
        publish(&publisher, 3..=4).await;
        expect_activities(&mut subscriber, [2, 3]).await;
        expect_reconnected(&mut subscriber, false).await;
        within(publisher.flush()).await.unwrap();
        assert_eq!(publisher.taken(), 4);
        expect_activities(&mut subscriber, [102]).await;
    };
    tokio::join!(serving, client);
}

/// Nothing acknowledges but an acknowledgement, so that what a dying server gave back is not counted.
#[tokio::test]
async fn what_a_lost_server_gave_back_without_acknowledging_it_is_not_taken() {
    let server = FakeServer::start().await;
    let mut options = options();
    options.reconnect = None;
    let serving = async {
        let (mut peer, _) = server.accept_extended(json!({})).await;
        peer.receive_numbered().await;
        let echo = json!({ "n": 1, "authenticated_user": "aaron" });
        peer.send(&json!({ "command": "ACTIVITY_BROADCAST", "origin": "1/n1", "seq": 1, "activity": echo })).await;
    };
    let client = async {
        let (publisher, mut subscriber) = log_in(&server, &options).await;
        publish(&publisher, 1..=1).await;
        expect_activities(&mut subscriber, [1]).await;
        assert!(within(publisher.flush()).await.is_err());
        assert_eq!((publisher.taken(), publisher.published()), (0, 1));
    };
    tokio::join!(serving, client);
}

/// Plays servers that break off at random, while activities, acknowledgements and broadcasts are on their way. They remember
/// together what they took, as a tree does.
async fn serve_with_breaks(server: &FakeServer, count: u64, random: &mut StdRng) -> Vec<u64> {
    let (mut taken, mut breaks) = (Vec::new(), 0);
    loop {
        let (mut peer, resume) = server.accept_extended(json!({})).await;
        let mut told = resume["have"]["1/n1"].as_u64().unwrap_or(0);
        let (mut acknowledged, mut left) = (None, random.random_range(1..100));
        loop {
            for n in taken.iter().skip(usize::try_from(told).unwrap()) {
                told += 1;
                peer.broadcast_named("1/n1", told, *n).await;
            }
            if left == 0 && breaks < 50 {
                breaks += 1;
                break;
            }
            left = left.max(1) - 1;
            let message = peer.receive().await;
            if message["command"] == "LOGOUT" {
                assert_eq!(breaks, 50, "too few to mean anything");
                return taken;
            }
            let number = message["number"].as_u64().unwrap();
            assert!(number <= taken.len() as u64 + 1, "{number} behind {}", taken.len());
            if number == taken.len() as u64 + 1 {
                taken.push(message["activity"]["n"].as_u64().unwrap());
            }
            // Seldom enough that some are always lost; often enough that the window is never full for ever.
            let before = *acknowledged.get_or_insert(number - 1);
            if number >= before + 8 || number == count || random.random_bool(0.1) {
                acknowledged = Some(number);
                peer.acknowledge(number).await;
            }
        }
    }
}

/// E3, E5: exactly once and in order, to the servers and from them.
#[tokio::test]
async fn whichever_connections_break_everything_is_taken_and_received_once_in_order() {
    const COUNT: u64 = 5000;
    let options = Options { window_messages: 16, ..options() };
    for seed in 0..3 {
        let server = FakeServer::start().await;
        let mut random = StdRng::seed_from_u64(seed);
        let client = async {
            let (publisher, mut subscriber) = log_in(&server, &options).await;
            let publishing = async {
                publish(&publisher, 1..=COUNT).await;
                within(publisher.flush()).await.unwrap();
                assert_eq!((publisher.taken(), publisher.published()), (COUNT, COUNT));
            };
            tokio::join!(publishing, expect_activities(&mut subscriber, 1..=COUNT));
            within(publisher.logout()).await.unwrap();
        };
        let (taken, ()) = tokio::join!(serve_with_breaks(&server, COUNT, &mut random), client);
        assert!(taken.into_iter().eq(1..=COUNT), "seed {seed}");
    }
}

/// E1: the longest idle are left out.
#[tokio::test]
async fn a_login_that_resumes_fits_the_line_limit() {
    let server = FakeServer::start().await;
    let options = Options { max_line: 4096, ..options() };
    let serving = async {
        let (mut peer, _) = server.accept_extended(json!({})).await;
        for number in 0..500 {
            peer.broadcast_named(&format!("7/{number:050}"), 1, number).await;
        }
        peer.broadcast_named("7/last", 1, 500).await;
        drop(peer);
        let mut peer = server.accept().await;
        let login = peer.receive().await;
        assert!(login.to_string().len() <= 4096 && login.to_string().len() > 2500, "{login}");
        let have = login["resume"]["have"].as_object().unwrap();
        assert!(have.contains_key("7/last") && !have.contains_key(&format!("7/{:050}", 0)), "{login}");
    };
    let client = async {
        let (_publisher, mut subscriber) = log_in(&server, &options).await;
        while within(subscriber.next()).await.is_some() {}
    };
    tokio::select! {
        () = within(serving) => {}
        () = client => panic!("the session ended"),
    }
}

#[tokio::test]
async fn extended_sessions_can_be_turned_off() {
    let server = FakeServer::start().await;
    let options = Options { extended: false, ..Options::default() };
    let serving = async {
        let mut peer = server.accept().await;
        peer.expect(json!({ "command": "LOGIN", "username": "aaron", "secret": "s3cret" })).await;
        peer.send(&json!({ "command": "LOGIN_SUCCESS", "info": "logged in" })).await;
        peer
    };
    tokio::join!(serving, log_in(&server, &options));
}

#[tokio::test]
async fn send_ends_well_only_when_all_is_acknowledged_whatever_dies_meanwhile() {
    let (first, second) = (FakeServer::start().await, FakeServer::start().await);
    let mut sending = Arborcast::start(&["send"], first.port());
    let (mut peer, _) = first.accept_extended_knowing(json!({}), &[&second]).await;
    sending.type_in("{\"n\":1}\n{\"n\":2}\n{\"n\":3}\n").await;
    sending.end_input();
    for n in 1..=3 {
        assert_eq!(peer.receive_numbered().await, (n, n));
    }
    peer.acknowledge(1).await;
    drop((first, peer));
    let (mut peer, _) = second.accept_extended(json!({})).await;
    for n in 2..=3 {
        assert_eq!(peer.receive_numbered().await, (n, n));
    }
    peer.acknowledge(2).await;
    peer.expect_nothing().await;
    assert!(sending.is_running());
    peer.acknowledge(3).await;
    peer.expect_logout().await;
    let ended = sending.end().await;
    ended.expect_code(0);
    assert_eq!(ended.stderr.lines().count(), 2, "{}", ended.stderr);
}

#[tokio::test]
async fn listen_tells_of_a_gap_beside_its_output() {
    let server = FakeServer::start().await;
    let listening = Arborcast::start(&["listen", "--count", "2"], server.port());
    let (mut peer, _) = server.accept_extended(json!({ "7/n1": 5 })).await;
    peer.broadcast_named("7/n1", 6, 1).await;
    peer.send(&json!({ "command": "RELAY_GAP", "origin": "7/n1", "through": 16 })).await;
    peer.broadcast_named("7/n1", 17, 2).await;
    peer.expect_logout().await;
    let ended = listening.end().await;
    ended.expect_code(0);
    let numbers: Vec<Value> =
        ended.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["n"].clone()).collect();
    assert_eq!(numbers, [1, 2]);
    assert_eq!(ended.stderr, "arborcast: a gap: at least 10 activities that entered the tree at 7/n1 are lost\n");
}
