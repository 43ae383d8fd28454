//! One core whose clients come with tickets (protocol, Admission).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeMap;
use std::time::Duration;

use arborcast_core::{CloseReason, ConnectionId, Event};
use arborcast_proto::ticket::{LIFETIME, Ticket, TicketKey};
use arborcast_proto::wire::{Credentials, Message, Origin, Secret};
use arborcast_tests::cluster::CLUSTER_SECRET;
use arborcast_tests::solo::{Solo, announce};

const NOW: u64 = 1_700_000_000;

fn solo(requires_tickets: bool) -> Solo {
    Solo::new(|extensions| {
        extensions.milliseconds_since_1970 = NOW * 1000;
        extensions.requires_tickets = requires_tickets;
    })
}

fn ticket_at(issuer: &str, number: u128, seconds: u64) -> Secret {
    let audience = Origin { id: "me".into(), incarnation: 1 };
    let ticket = Ticket { issuer: issuer.into(), audience, expires_at: seconds + LIFETIME, number };
    ticket.sign(&TicketKey::derive(&CLUSTER_SECRET.into()))
}

fn ticket(issuer: &str, number: u128) -> Secret {
    ticket_at(issuer, number, NOW)
}

fn login(ticket: Option<Secret>) -> Message {
    Message::Login { username: "anonymous".into(), secret: None, resume: None, ticket }
}

fn commands(solo: &mut Solo, connection: ConnectionId) -> Vec<&'static str> {
    solo.all_sent(connection).iter().map(Message::command).collect()
}

fn settled(solo: &Solo) -> BTreeMap<Box<str>, u64> {
    solo.core().tree_view().settled_tickets
}

/// V5: the master has looked at the loads already.
#[test]
fn who_comes_with_a_ticket_is_not_redirected_by_load() {
    let mut solo = solo(false);
    let parent = solo.attach(1);
    solo.receive(parent, &announce(1));
    for number in 0..4 {
        let client = solo.accept(&login(Some(ticket("m", number))));
        assert_eq!(commands(&mut solo, client), ["LOGIN_SUCCESS"]);
    }
    let other = solo.accept(&login(None));
    assert_eq!(commands(&mut solo, other), ["LOGIN_SUCCESS", "REDIRECT"]);
    assert_eq!(solo.closed(other), Some(CloseReason::Redirected));
}

/// V5: a server that drains sends away whoever comes.
#[test]
fn a_server_that_drains_redirects_with_a_ticket_as_well() {
    let mut solo = solo(true);
    let child = solo.attach(1);
    solo.receive(child, &announce(1));
    let early = solo.accept(&login(Some(ticket("m", 1))));
    solo.handle(Event::Drain);
    assert_eq!(commands(&mut solo, early), ["LOGIN_SUCCESS", "REDIRECT"]);
    let late = solo.accept(&login(Some(ticket("m", 2))));
    assert_eq!(commands(&mut solo, late), ["LOGIN_SUCCESS", "REDIRECT"]);
}

/// V6: with the report that counts the client, and not before.
#[test]
fn a_ticket_is_settled_when_its_client_is_part_of_the_load_or_gone() {
    let mut solo = solo(true);
    let credentials = Credentials { username: "aaron".into(), secret: "s".into() };
    let user = solo.accept(&Message::Register { credentials: credentials.clone(), ticket: Some(ticket("m", 1)) });
    solo.pass(Duration::from_secs(5));
    assert_eq!(commands(&mut solo, user), ["REGISTER_SUCCESS"]);
    assert_eq!((settled(&solo), solo.core().tree_view().load), (BTreeMap::new(), 0));
    let Credentials { username, secret } = credentials;
    solo.receive(user, &Message::Login { username, secret: Some(secret), resume: None, ticket: None });
    assert_eq!(commands(&mut solo, user), ["LOGIN_SUCCESS"]);
    assert_eq!((settled(&solo), solo.core().tree_view().load), (BTreeMap::from([("m".into(), 1)]), 1));
    let second = Credentials { username: "barbara".into(), secret: "s".into() };
    let gone = solo.accept(&Message::Register { credentials: second, ticket: Some(ticket("n", 2)) });
    solo.hang_up(gone);
    solo.hang_up(user);
    assert_eq!(settled(&solo), BTreeMap::from([("m".into(), 1), ("n".into(), 1)]), "each once");
}

/// V4: by the clock that is told, and the time since.
#[test]
fn a_ticket_expires_by_the_clock_as_it_is_set_now() {
    let mut solo = solo(true);
    solo.pass(Duration::from_secs(100));
    let early = solo.accept(&login(Some(ticket("m", 1))));
    assert_eq!(solo.closed(early), Some(CloseReason::InvalidMessage));
    let right = solo.accept(&login(Some(ticket_at("m", 2, NOW + 100))));
    assert_eq!(solo.closed(right), None);
    // Somebody has set the clock back.
    solo.handle(Event::ClockRead { milliseconds_since_1970: NOW * 1000 });
    let again = solo.accept(&login(Some(ticket("m", 3))));
    assert_eq!(solo.closed(again), None);
    let replayed = solo.accept(&login(Some(ticket("m", 3))));
    assert_eq!(solo.closed(replayed), Some(CloseReason::InvalidMessage));
}
