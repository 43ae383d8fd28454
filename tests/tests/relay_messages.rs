//! One core among neighbours and clients played by the test: what it does with activities that are repeated, missing,
//! made up or too early (protocol, Relay; Extended sessions).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use arborcast_core::{ConnectionId, RelayCounts};
use arborcast_proto::wire::{Activity, Have, Message, Origin, PublicationId, RelayTag, Resume};
use arborcast_tests::solo::{Relayed, Solo, applicant, authenticate};

/// A core with a child, to which it is synced.
fn core_with_child() -> (Solo, ConnectionId) {
    core_with_child_and(|_| {})
}

fn core_with_child_and(configure: impl FnOnce(&mut arborcast_core::Extensions)) -> (Solo, ConnectionId) {
    let mut solo = Solo::new(configure);
    let child = solo.accept(&authenticate(Some(applicant(2))));
    assert!(solo.all_sent(child).iter().any(|message| matches!(message, Message::RelayHave { .. })));
    solo.receive(child, &Message::RelayHave { have: Have::new(), more: false });
    solo.receive(child, &Message::RelaySynced);
    solo.all_sent(child);
    (solo, child)
}

fn origin(id: &str) -> Origin {
    Origin { id: id.into(), incarnation: 1 }
}

fn broadcast(id: &str, seq: u64, text: &str) -> Message {
    let relay = Some(RelayTag { origin: origin(id), seq, publication: None });
    Message::ActivityBroadcast { relay, activity: Activity::parse(text).unwrap() }
}

fn published(id: &str, seq: u64, session: &str, number: u64) -> Message {
    let publication = Some(PublicationId { session: session.into(), number });
    let relay = Some(RelayTag { origin: origin(id), seq, publication });
    Message::ActivityBroadcast { relay, activity: Activity::parse(&format!(r#"{{"n":{number}}}"#)).unwrap() }
}

fn log_in(solo: &mut Solo, session: &str, have: Option<Have>) -> ConnectionId {
    let resume = Some(Resume { session: session.into(), have, proof: None });
    let client = solo.accept(&Message::Login { username: "anonymous".into(), secret: None, resume, ticket: None });
    assert!(matches!(solo.next_sent(client), Some(Message::LoginSuccess { have: Some(_), .. })));
    client
}

fn publish(solo: &mut Solo, client: ConnectionId, number: u64) {
    let activity = Activity::parse(&format!(r#"{{"n":{number}}}"#)).unwrap();
    let message =
        Message::ActivityMessage { username: "anonymous".into(), secret: None, number: Some(number), activity };
    solo.receive(client, &message);
}

/// The names of what was published since the last look.
fn relayed(solo: &mut Solo) -> Vec<String> {
    let mut names = Vec::new();
    while let Some((message, _)) = solo.next_relayed() {
        names.push(match message {
            Message::ActivityBroadcast { relay: Some(RelayTag { origin, seq, publication }), .. } => {
                let number = publication.map_or_else(String::new, |publication| format!(" n{}", publication.number));
                format!("{origin} {seq}{number}")
            }
            Message::RelayGap { origin, through } => format!("gap {origin} {through}"),
            other => panic!("{other:?}"),
        });
    }
    names
}

fn counts(solo: &Solo) -> RelayCounts {
    solo.core().view().relay.unwrap()
}

/// The highest number that a client was told is acknowledged.
fn acknowledged(solo: &mut Solo, client: ConnectionId) -> Option<u64> {
    solo.pass(Duration::from_millis(10));
    let acks = solo.all_sent(client).into_iter().filter_map(|message| match message {
        Message::ActivityAck { number } => Some(number),
        _ => None,
    });
    acks.max()
}

/// Y2a, Y2b.
#[test]
fn what_is_there_is_not_taken_again() {
    let (mut solo, child) = core_with_child();
    for (seq, text) in [(1, "{}"), (1, "{}"), (2, "{}"), (1, "{}")] {
        solo.receive(child, &broadcast("x", seq, text));
    }
    assert_eq!(relayed(&mut solo), ["1/x 1", "1/x 2"]);
    assert_eq!((counts(&solo).taken, counts(&solo).repeated), (2, 2));
    solo.pass(Duration::from_millis(10));
    let is_heartbeat = |message: &Message| matches!(message, Message::Heartbeat { .. });
    let sent: Vec<_> = solo.all_sent(child).into_iter().filter(|message| !is_heartbeat(message)).collect();
    assert_eq!(sent, [Message::RelayAck { have: Have::from([(origin("x"), 2)]) }]);
}

/// Y2c, Y6: it asks once; what comes with the same hole again is taken, and the hole is announced.
#[test]
fn a_hole_is_asked_about_once_and_then_announced() {
    let (mut solo, child) = core_with_child();
    solo.receive(child, &broadcast("x", 1, "{}"));
    solo.receive(child, &broadcast("x", 5, "{}"));
    solo.receive(child, &broadcast("x", 6, "{}"));
    assert_eq!(relayed(&mut solo), ["1/x 1"]);
    let have = Have::from([(origin("x"), 1)]);
    assert_eq!(solo.all_sent(child), [Message::RelayHave { have, more: false }]);
    solo.receive(child, &Message::RelaySynced);
    solo.receive(child, &broadcast("x", 7, "{}"));
    assert_eq!(relayed(&mut solo), ["gap 1/x 6", "1/x 7"]);
    assert_eq!((counts(&solo).missed, counts(&solo).resyncs), (5, 1));
    solo.receive(child, &broadcast("x", u64::MAX, "{}"));
    solo.receive(child, &Message::RelaySynced);
    solo.receive(child, &broadcast("x", u64::MAX, "{}"));
    assert_eq!(relayed(&mut solo), [format!("gap 1/x {}", u64::MAX - 1), format!("1/x {}", u64::MAX)]);
}

/// Y2c: what comes in answer to the question fills the hole.
#[test]
fn a_hole_that_can_be_filled_is_none() {
    let (mut solo, child) = core_with_child();
    solo.receive(child, &broadcast("x", 2, "{}"));
    solo.receive(child, &broadcast("x", 1, "{}"));
    solo.receive(child, &broadcast("x", 2, "{}"));
    solo.receive(child, &Message::RelaySynced);
    assert_eq!(relayed(&mut solo), ["1/x 1", "1/x 2"]);
    assert_eq!(counts(&solo).missed, 0);
}

/// Y9.
#[test]
fn nobody_speaks_in_the_name_of_this_server() {
    let (mut solo, child) = core_with_child();
    solo.receive(child, &broadcast("me", 1, "{}"));
    solo.receive(child, &Message::RelayGap { origin: origin("me"), through: 9 });
    assert_eq!(relayed(&mut solo), [""; 0]);
    assert_eq!(counts(&solo).impostors, 2);
    let client = log_in(&mut solo, "s", None);
    publish(&mut solo, client, 1);
    assert_eq!(relayed(&mut solo), ["1/me 1 n1"]);
}

/// Y9.
#[test]
fn another_activity_of_the_same_name_is_counted_and_dropped() {
    let (mut solo, child) = core_with_child();
    solo.receive(child, &broadcast("x", 1, r#"{"a":1}"#));
    solo.receive(child, &broadcast("x", 1, r#"{"a":2}"#));
    assert_eq!(relayed(&mut solo), ["1/x 1"]);
    assert_eq!(counts(&solo).contradictions, 1);
}

/// Y1.
#[test]
fn an_activity_without_a_name_ends_an_extended_link() {
    let (mut solo, child) = core_with_child();
    solo.receive_text(child, r#"{"command":"ACTIVITY_BROADCAST","activity":{}}"#);
    assert!(matches!(solo.all_sent(child)[..], [Message::InvalidMessage { .. }]));
    assert!(solo.closed(child).is_some());
}

/// Y7, Y9: a neighbour that has more than there is has nothing more than the others.
#[test]
fn an_acknowledgement_of_the_future_is_not_believed() {
    let (mut solo, child) = core_with_child();
    let client = log_in(&mut solo, "s", None);
    publish(&mut solo, client, 1);
    assert_eq!(acknowledged(&mut solo, client), None, "only this server has it");
    solo.receive(child, &Message::RelayAck { have: Have::from([(origin("me"), u64::MAX), (origin("never"), 7)]) });
    assert_eq!(acknowledged(&mut solo, client), Some(1));
    publish(&mut solo, client, 2);
    assert_eq!(acknowledged(&mut solo, client), None, "of this one nothing was known then");
    solo.receive(child, &Message::RelayAck { have: Have::from([(origin("me"), 2)]) });
    assert_eq!(acknowledged(&mut solo, client), Some(2));
}

/// Y7: a server without a neighbour is all there is, once it has looked for others.
#[test]
fn alone_everything_is_safe_once_others_were_looked_for() {
    let mut solo = Solo::new(|_| {});
    let client = log_in(&mut solo, "s", None);
    publish(&mut solo, client, 1);
    assert_eq!(acknowledged(&mut solo, client), None);
    solo.advise(&[]);
    assert_eq!(acknowledged(&mut solo, client), Some(1));
}

/// E6c: the client was faster than what it published elsewhere.
#[test]
fn an_activity_that_overtakes_its_predecessor_waits_for_it() {
    let (mut solo, child) = core_with_child();
    let client = log_in(&mut solo, "s", Some(Have::new()));
    publish(&mut solo, client, 3);
    publish(&mut solo, client, 4);
    assert_eq!(relayed(&mut solo), [""; 0]);
    solo.receive(child, &published("x", 1, "s", 1));
    solo.receive(child, &published("x", 2, "s", 2));
    assert_eq!(relayed(&mut solo), ["1/x 1 n1", "1/x 2 n2", "1/me 1 n3", "1/me 2 n4"]);
    assert_eq!(counts(&solo).out_of_turn, 0);
}

/// E6c, B40.
#[test]
fn a_predecessor_that_never_comes_is_not_waited_for_for_ever() {
    let (mut solo, _child) = core_with_child();
    let client = log_in(&mut solo, "s", Some(Have::new()));
    publish(&mut solo, client, 3);
    publish(&mut solo, client, 4);
    // The child says nothing meanwhile, and is given up.
    solo.pass(Duration::from_secs(4));
    assert_eq!(relayed(&mut solo), ["1/me 1 n3", "1/me 2 n4"]);
    assert_eq!(counts(&solo).out_of_turn, 1);
}

/// E6a: it came back with the same, which had arrived after all.
#[test]
fn what_was_seen_is_not_published_again_and_is_acknowledged() {
    let (mut solo, child) = core_with_child();
    solo.receive(child, &published("x", 1, "s", 1));
    relayed(&mut solo);
    let client = log_in(&mut solo, "s", Some(Have::new()));
    solo.all_sent(client);
    publish(&mut solo, client, 1);
    assert_eq!(relayed(&mut solo), [""; 0]);
    assert_eq!(acknowledged(&mut solo, client), Some(1), "the child has it");
}

/// Y8: the second one is passed on, so that its origin has no hole, and plain clients don't get it.
#[test]
fn one_activity_under_two_names_reaches_plain_clients_once() {
    let (mut solo, child) = core_with_child();
    let plain = solo.accept(&Message::Login { username: "anonymous".into(), secret: None, resume: None, ticket: None });
    assert_eq!(solo.all_sent(plain).len(), 1);
    solo.receive(child, &published("x", 1, "s", 1));
    solo.receive(child, &published("y", 1, "s", 1));
    let how: Vec<Relayed> = std::iter::from_fn(|| solo.next_relayed()).map(|(_, how)| how).collect();
    assert_eq!(how.iter().map(|how| how.is_plain).collect::<Vec<_>>(), [true, false]);
    assert_eq!(counts(&solo).renamed, 1);
}

/// E3, Y6: what the log no longer holds is announced to who comes back, before the rest.
#[test]
fn who_comes_back_gets_what_is_left_and_is_told_what_is_not() {
    let (mut solo, child) = core_with_child_and(|extensions| extensions.log_bytes = 150);
    for seq in 1..=5 {
        solo.receive(child, &broadcast("x", seq, "{}"));
    }
    let client = log_in(&mut solo, "s", Some(Have::from([(origin("x"), 1)])));
    let sent = solo.all_sent(client);
    let Message::RelayGap { origin: of, through } = &sent[0] else { panic!("{sent:?}") };
    assert_eq!(of, &origin("x"));
    assert!((2..5).contains(through), "{sent:?}");
    let rest: Vec<Message> = (through + 1..=5).map(|seq| broadcast("x", seq, "{}")).collect();
    assert_eq!(sent[1..], rest);
}

/// Y4: a neighbour is told what it lacks, and when that is all.
#[test]
fn a_neighbour_is_sent_what_it_lacks_and_no_more() {
    let (mut solo, child) = core_with_child();
    for seq in 1..=3 {
        solo.receive(child, &broadcast("x", seq, "{}"));
    }
    let other = solo.accept(&authenticate(Some(applicant(3))));
    solo.all_sent(other);
    solo.receive(other, &Message::RelayHave { have: Have::from([(origin("x"), 1)]), more: true });
    assert_eq!(solo.all_sent(other), [], "there is more to come");
    solo.receive(other, &Message::RelayHave { have: Have::from([(origin("from the future"), 9)]), more: false });
    assert_eq!(solo.all_sent(other), [broadcast("x", 2, "{}"), broadcast("x", 3, "{}"), Message::RelaySynced]);
}

/// Y10, E2: a newcomer's own clients don't get what happened before, and are told what they are taken to have.
#[test]
fn history_is_for_those_who_resume() {
    let mut solo = Solo::new(|_| {});
    let (newcomer, resuming) = (log_in(&mut solo, "a", None), log_in(&mut solo, "b", Some(Have::new())));
    let parent = solo.attach(2);
    solo.receive(parent, &broadcast("x", 1, "{}"));
    solo.receive(parent, &Message::RelaySynced);
    solo.receive(parent, &broadcast("x", 2, "{}"));
    let how: Vec<bool> = std::iter::from_fn(|| solo.next_relayed()).map(|(_, how)| how.is_history).collect();
    assert_eq!(how, [true, false]);
    assert_eq!(solo.all_sent(newcomer), [Message::RelayHave { have: Have::from([(origin("x"), 1)]), more: false }]);
    assert_eq!(solo.all_sent(resuming), []);
}
