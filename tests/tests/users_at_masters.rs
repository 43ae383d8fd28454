//! Users that masters keep (protocol, U10 to U16), in virtual time: what one core does, and whole trees through storms.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use arborcast_core::{AtMasters, CloseReason, ConnectionId, Event, Told};
use arborcast_proto::wire::{Credentials, Denial, Message, RegistrationId, UserRecord};
use arborcast_tests::cluster::fake_hash;
use arborcast_tests::rivals::{self, login, register};
use arborcast_tests::seeds::for_seeds;
use arborcast_tests::solo::{Solo, announce, applicant, authenticate};

fn at_masters() -> Solo {
    Solo::new(|extensions| extensions.users_at_masters = true)
}

fn user(username: &str, secret: &str, at: u64) -> UserRecord {
    let registration = RegistrationId { at, server: "n9".into(), number: 1 };
    UserRecord { username: username.into(), hash: fake_hash(&secret.into()), registration }
}

fn tell(core: &mut Solo, users: Vec<UserRecord>) {
    core.handle(Event::UsersTold { users, told: Told::Whole { is_first: true, is_last: true } });
}

#[track_caller]
fn can_log_in(core: &mut Solo, username: &str, secret: &str) -> bool {
    let client = core.accept(&login(username, secret));
    let answer = core.next_sent(client).expect("LOGIN is answered at once");
    core.hang_up(client);
    matches!(answer, Message::LoginSuccess { .. })
}

#[track_caller]
fn failed_with(core: &mut Solo, client: ConnectionId, words: &str) {
    let answer = core.next_sent(client);
    assert!(matches!(&answer, Some(Message::RegisterFailed { info }) if info.contains(words)), "{answer:?}");
    assert_eq!(core.closed(client), Some(CloseReason::RegisterFailed));
}

/// U11.
#[test]
fn a_name_is_the_clients_when_the_masters_say_so_and_not_before() {
    let mut core = at_masters();
    let client = core.accept(&register("aaron", "s"));
    let asked = core.next_registration().unwrap();
    assert_eq!((asked.username.as_str(), &asked.hash), ("aaron", &fake_hash(&"s".into())));
    assert_eq!(core.next_sent(client), None);
    let rival = core.accept(&register("aaron", "t"));
    failed_with(&mut core, rival, "already registered");

    core.handle(Event::UserRegistered { record: asked.clone(), outcome: AtMasters::Registered });
    assert!(matches!(core.next_sent(client), Some(Message::RegisterSuccess { .. })));
    assert!(can_log_in(&mut core, "aaron", "s"));
    assert!(!can_log_in(&mut core, "aaron", "t"));
    assert_eq!(core.core().status().users_not_stored, Some(0));
    // Said twice: nothing happens.
    core.handle(Event::UserRegistered { record: asked, outcome: AtMasters::Registered });
    assert_eq!(core.next_sent(client), None);
}

/// U11.
#[test]
fn who_is_too_late_is_told_and_the_owner_can_log_in() {
    let mut core = at_masters();
    let client = core.accept(&register("aaron", "s"));
    let asked = core.next_registration().unwrap();
    let owner = Some(user("aaron", "t", 5));
    core.handle(Event::UserRegistered { record: asked, outcome: AtMasters::Taken(owner) });
    failed_with(&mut core, client, "already registered");
    assert!(can_log_in(&mut core, "aaron", "t"));
    assert!(!can_log_in(&mut core, "aaron", "s"));
}

/// U11: the stream of users may be faster than the answer.
#[test]
fn a_registration_that_the_stream_tells_of_first_is_answered_once() {
    let mut core = at_masters();
    let client = core.accept(&register("aaron", "s"));
    let asked = core.next_registration().unwrap();
    core.handle(Event::UsersTold { users: vec![asked.clone()], told: Told::Added });
    assert!(matches!(core.next_sent(client), Some(Message::RegisterSuccess { .. })));
    core.handle(Event::UserRegistered { record: asked, outcome: AtMasters::Registered });
    assert_eq!(core.next_sent(client), None);
    assert_eq!(core.core().status().counters.registered, 1);
}

/// U11: a neighbour may have no master to tell it.
#[test]
fn a_registration_that_the_stream_tells_of_first_goes_to_neighbours_too() {
    let mut core = at_masters();
    core.pass(Duration::from_secs(5));
    let link = core.accept(&authenticate(Some(applicant(2))));
    core.all_sent(link);
    core.accept(&register("aaron", "s"));
    let asked = core.next_registration().unwrap();
    core.handle(Event::UsersTold { users: vec![asked.clone()], told: Told::Added });
    core.handle(Event::UserRegistered { record: asked.clone(), outcome: AtMasters::Registered });
    let commits = core.all_sent(link).into_iter().filter(|message| matches!(message, Message::UserCommit { .. }));
    assert_eq!(commits.collect::<Vec<_>>(), [Message::UserCommit { user: asked, confirm: false }]);
}

/// U11.
#[test]
fn without_a_quorum_nobody_registers_and_known_users_log_in() {
    let mut core = at_masters();
    tell(&mut core, vec![user("aaron", "s", 5)]);
    let client = core.accept(&register("berta", "s"));
    let asked = core.next_registration().unwrap();
    core.handle(Event::UserRegistered { record: asked, outcome: AtMasters::Unknown("etcd has no quorum".into()) });
    failed_with(&mut core, client, "berta could not be registered: etcd has no quorum");
    assert!(can_log_in(&mut core, "aaron", "s"));
    // The next attempt is a new one.
    core.accept(&register("berta", "s"));
    assert!(core.next_registration().is_some());
}

/// U12.
#[test]
fn a_user_that_is_not_known_yet_is_asked_for_once() {
    let mut core = at_masters();
    let client = core.accept(&login("aaron", "s"));
    let (task, username) = core.next_lookup().unwrap();
    assert_eq!((username.as_str(), core.next_sent(client)), ("aaron", None));
    core.handle(Event::UserLookedUp { task, user: Some(user("aaron", "s", 5)) });
    assert!(matches!(core.next_sent(client), Some(Message::LoginSuccess { .. })));
    assert!(can_log_in(&mut core, "aaron", "s"), "from now on the name is known");

    let stranger = core.accept(&login("berta", "s"));
    let (task, _) = core.next_lookup().unwrap();
    core.handle(Event::UserLookedUp { task, user: None });
    assert!(matches!(core.next_sent(stranger), Some(Message::LoginFailed { .. })));
    assert_eq!(core.next_lookup(), None);

    let gone = core.accept(&login("clara", "s"));
    let (task, _) = core.next_lookup().unwrap();
    core.hang_up(gone);
    core.handle(Event::UserLookedUp { task, user: Some(user("clara", "s", 5)) });
    assert_eq!(core.next_sent(gone), None);
}

/// U12, B51.
#[test]
fn a_flood_of_unknown_names_asks_for_so_many_at_one_time_and_no_more() {
    let mut core = at_masters();
    let clients: Vec<_> = (0..1001).map(|name| core.accept(&login(&format!("user{name}"), "s"))).collect();
    assert_eq!(core.next_sent(clients[999]), None);
    assert!(matches!(core.next_sent(clients[1000]), Some(Message::LoginFailed { .. })));
    let (task, _) = core.next_lookup().unwrap();
    core.handle(Event::UserLookedUp { task, user: None });
    let next = core.accept(&login("next", "s"));
    assert_eq!(core.next_sent(next), None);
}

/// U13: the masters' store was emptied, and somebody else has got the name there.
#[test]
fn who_has_a_name_keeps_it_where_the_masters_have_lost_it() {
    let mut core = at_masters();
    tell(&mut core, vec![user("aaron", "s", 5), user("berta", "s", 5)]);
    assert_eq!(core.core().status().users_not_stored, Some(0));
    tell(&mut core, vec![user("berta", "t", 9), user("clara", "s", 9)]);
    let status = core.core().status();
    assert_eq!((status.users_not_stored, status.user_counters.conflicts), (Some(2), 1));
    assert!(can_log_in(&mut core, "aaron", "s"));
    assert!(can_log_in(&mut core, "berta", "s"));
    assert!(!can_log_in(&mut core, "berta", "t"));
    let client = core.accept(&register("aaron", "t"));
    failed_with(&mut core, client, "already registered");
    // They are brought back.
    core.handle(Event::UsersTold { users: vec![user("aaron", "s", 5)], told: Told::Added });
    assert_eq!(core.core().status().users_not_stored, Some(1));
}

/// U10, U14.
#[test]
fn neighbours_that_ask_the_tree_are_denied_and_told_why() {
    let mut core = at_masters();
    core.pass(Duration::from_secs(5));
    let child = core.accept(&authenticate(Some(applicant(2))));
    core.all_sent(child);
    let registration = RegistrationId { at: 0, server: "s2".into(), number: 1 };
    let credentials = Credentials { username: "aaron".into(), secret: "s".into() };
    core.receive(child, &Message::UserPrepare { registration, credentials });
    let votes = core.all_sent(child).into_iter().filter_map(|message| match message {
        Message::UserVote { denied, .. } => Some(denied),
        _ => None,
    });
    assert_eq!(votes.collect::<Vec<_>>(), [Some(Denial::AtMasters)]);
}

/// U16.
#[test]
fn a_plain_tree_at_the_border_registers_nothing_new() {
    let mut core = at_masters();
    tell(&mut core, vec![user("aaron", "s", 5)]);
    let plain = core.accept(&authenticate(None));
    core.receive(plain, &announce(2));
    core.all_sent(plain);
    let pair = |name: &str, secret: &str| Credentials { username: name.into(), secret: secret.into() };
    for (asked, is_allowed) in [(pair("aaron", "s"), true), (pair("aaron", "t"), false), (pair("berta", "s"), false)] {
        core.receive(plain, &Message::LockRequest(asked.clone()));
        let answers = core.all_sent(plain);
        let was_allowed = answers.iter().any(|answer| matches!(answer, Message::LockAllowed { .. }));
        let was_denied = answers.iter().any(|answer| matches!(answer, Message::LockDenied(_)));
        assert_eq!((was_allowed, was_denied), (is_allowed, !is_allowed), "{asked:?}");
    }
    assert_eq!(core.next_registration(), None);
    // For a client of this server the plain servers are asked first.
    let client = core.accept(&register("clara", "s"));
    assert_eq!(core.next_registration(), None);
    core.receive(plain, &Message::LockAllowed { credentials: pair("clara", "s"), server: Some("s2".into()) });
    let asked = core.next_registration().unwrap();
    core.handle(Event::UserRegistered { record: asked, outcome: AtMasters::Registered });
    assert!(matches!(core.next_sent(client), Some(Message::RegisterSuccess { .. })));
}

/// U10.
#[test]
fn a_server_that_was_not_told_registers_nothing_once_a_master_says_so() {
    let mut core = Solo::new(|_| {});
    core.pass(Duration::from_secs(5));
    let client = core.accept(&register("aaron", "s"));
    assert!(matches!(core.next_sent(client), Some(Message::RegisterSuccess { .. })));
    core.handle(Event::MastersKeepUsers);
    let client = core.accept(&register("berta", "s"));
    failed_with(&mut core, client, "--users masters");
    assert!(can_log_in(&mut core, "aaron", "s"));
    assert_eq!((core.next_registration(), core.next_lookup()), (None, None));
}

/// U10: what was begun before ends as well, and nothing is committed in the tree any more.
#[test]
fn what_a_server_that_was_not_told_has_begun_ends_once_a_master_says_so() {
    let mut core = Solo::new(|_| {});
    // It may be apart from others: it holds what all that it knows have agreed to.
    let client = core.accept(&register("aaron", "s"));
    assert_eq!(core.next_sent(client), None);
    core.handle(Event::MastersKeepUsers);
    failed_with(&mut core, client, "--users masters");
    core.pass(Duration::from_secs(60));
    assert!(!can_log_in(&mut core, "aaron", "s"));
}

/// U10 to U14: a name never has two owners, whoever is cut off from whom; but for that it is the storm of the tree's own
/// registrations.
#[test]
fn through_crashes_and_partitions_no_name_ever_has_two_owners() {
    for_seeds(0..100, |seed| assert!(rivals::storm_at_masters(seed, 8) > 100));
}
