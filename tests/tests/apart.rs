//! A root that may find a larger tree in a moment promises no name by itself (protocol, U2).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use arborcast_core::ConnectionId;
use arborcast_proto::wire::message::AttachAnswer;
use arborcast_proto::wire::{Credentials, Message, RegistrationId};
use arborcast_tests::solo::{Solo, applicant, attempt_of, authenticate, id_of, position};

/// Twice B24 by default.
const APART: Duration = Duration::from_secs(3);

fn credentials() -> Credentials {
    Credentials { username: "aaron".into(), secret: "s3".into() }
}

fn register(solo: &mut Solo) -> ConnectionId {
    solo.accept(&Message::Register { credentials: credentials(), ticket: None })
}

fn has_succeeded(solo: &mut Solo, client: ConnectionId) -> bool {
    solo.all_sent(client).iter().any(|message| matches!(message, Message::RegisterSuccess { .. }))
}

/// The registration that is asked about over this link, if one is.
fn asked_over(solo: &mut Solo, link: ConnectionId) -> Option<RegistrationId> {
    solo.all_sent(link).into_iter().find_map(|message| match message {
        Message::UserPrepare { registration, .. } => Some(registration),
        _ => None,
    })
}

fn vote(solo: &mut Solo, link: ConnectionId, registration: &RegistrationId) {
    let (registration, username) = (registration.clone(), credentials().username);
    solo.receive(link, &Message::UserVote { registration, username, denied: None });
}

fn is_committed_over(solo: &mut Solo, link: ConnectionId) -> bool {
    solo.all_sent(link).iter().any(|message| matches!(message, Message::UserCommit { .. }))
}

/// A core below a server at port 2.
fn below_a_parent() -> (Solo, ConnectionId) {
    let mut solo = Solo::new(|_| {});
    let parent = solo.attach(2);
    (solo, parent)
}

/// A child at this port, below a core that is a root.
fn take_in(solo: &mut Solo, port: u16) -> ConnectionId {
    let child = solo.accept(&authenticate(Some(applicant(port))));
    assert!(matches!(solo.next_sent(child), Some(Message::LinkAccepted { .. })), "not taken in");
    solo.all_sent(child);
    child
}

#[test]
fn who_has_just_started_looks_for_others_first() {
    let mut solo = Solo::new(|_| {});
    let client = register(&mut solo);
    assert!(!has_succeeded(&mut solo, client), "others may know the name");
    solo.advise(&[]);
    solo.pass(Duration::from_millis(1));
    assert!(has_succeeded(&mut solo, client));
}

#[test]
fn an_orphan_asks_the_tree_that_takes_it_in() {
    let (mut solo, parent) = below_a_parent();
    solo.hang_up(parent);
    let client = register(&mut solo);
    solo.advise(&[3]);
    let (parent, first) = solo.connect(3);
    let accepted = Message::LinkAccepted { attempt: attempt_of(&first), id: id_of(3), tree: position(&[3]) };
    solo.receive(parent, &accepted);
    assert!(!has_succeeded(&mut solo, client));
    let registration = asked_over(&mut solo, parent).expect("the new parent is asked");
    vote(&mut solo, parent, &registration);
    assert!(is_committed_over(&mut solo, parent));
}

#[test]
fn an_orphan_that_finds_nobody_goes_on_by_itself_after_a_while() {
    let (mut solo, parent) = below_a_parent();
    solo.hang_up(parent);
    let client = register(&mut solo);
    solo.advise(&[]);
    solo.fail_dial(2);
    solo.pass(APART / 2);
    assert!(!has_succeeded(&mut solo, client));
    solo.pass(APART);
    assert!(has_succeeded(&mut solo, client));
}

#[test]
fn an_orphan_does_not_vote_for_those_below_it() {
    let (mut solo, parent) = below_a_parent();
    let child = solo.accept(&authenticate(Some(applicant(9))));
    let Some(Message::AttachRequest(request)) = solo.all_sent(parent).pop() else { panic!("not sent up") };
    let confirmed = AttachAnswer { request: request.applicant.request, trail: request.trail, refused: None };
    solo.receive(parent, &Message::AttachAnswer(confirmed));
    solo.hang_up(parent);
    let registration = RegistrationId { at: 1, server: "s9".into(), number: 1 };
    solo.receive(child, &Message::UserPrepare { registration: registration.clone(), credentials: credentials() });
    solo.advise(&[]);
    solo.fail_dial(2);
    let has_voted = |solo: &mut Solo| {
        solo.all_sent(child).iter().any(|message| matches!(message, Message::UserVote { denied: None, .. }))
    };
    assert!(!has_voted(&mut solo));
    // Heartbeats keep the child.
    for _ in 0..4 {
        solo.pass(Duration::from_secs(1));
        solo.receive(child, &Message::Heartbeat { tree: None, announcements: true });
    }
    assert!(has_voted(&mut solo));
}

#[test]
fn a_root_that_loses_its_last_child_waits_as_well() {
    let mut solo = Solo::new(|_| {});
    solo.advise(&[]);
    solo.pass(Duration::from_millis(1));
    let children = [9, 10].map(|port| take_in(&mut solo, port));
    solo.hang_up(children[0]);
    solo.hang_up(children[1]);
    let client = register(&mut solo);
    assert!(!has_succeeded(&mut solo, client), "the others may have become a tree of their own");
    solo.pass(APART);
    assert!(has_succeeded(&mut solo, client));
}

#[test]
fn who_is_taken_in_meanwhile_is_asked_as_well() {
    let mut solo = Solo::new(|_| {});
    solo.advise(&[]);
    solo.pass(Duration::from_millis(1));
    let first = take_in(&mut solo, 9);
    let client = register(&mut solo);
    let registration = asked_over(&mut solo, first).expect("it is asked");
    let second = solo.accept(&authenticate(Some(applicant(10))));
    assert_eq!(asked_over(&mut solo, second), Some(registration.clone()));
    vote(&mut solo, first, &registration);
    assert!(!is_committed_over(&mut solo, first));
    vote(&mut solo, second, &registration);
    assert!(is_committed_over(&mut solo, first) && is_committed_over(&mut solo, second));
    assert!(!has_succeeded(&mut solo, client), "no neighbour has it yet (U5)");
}
