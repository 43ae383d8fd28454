//! What candidates may do to a server that looks for a parent, and what it does then (protocol, Looking for a parent;
//! Attachment; What a plain peer sees): whoever refuses, hangs, lies or breaks, it goes on elsewhere.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeSet;
use std::time::Duration;

use arborcast_core::{CloseReason, ConnectionId, Event};
use arborcast_proto::wire::message::{Applicant, AttachAnswer, RefusalReason, Target, TreePosition};
use arborcast_proto::wire::{Credentials, FragmentKey, Message, Reign};
use arborcast_tests::solo::{Solo, announce, applicant, attempt_of, authenticate, id_of, position, target};

fn refused(first: &Message, reason: RefusalReason, targets: Vec<Target>) -> Message {
    Message::LinkRefused { attempt: attempt_of(first), reason, info: "no".into(), targets }
}

/// A server that is below another one and has as many children as it takes.
fn full(children: &[u16]) -> Solo {
    let mut solo = Solo::new(|extensions| extensions.max_children = children.len());
    let parent = solo.attach(90);
    for child in children {
        take_in(&mut solo, parent, *child);
    }
    solo
}

/// An applicant comes, and the root confirms it.
fn take_in(solo: &mut Solo, parent: ConnectionId, port: u16) -> ConnectionId {
    let child = solo.accept(&authenticate(Some(applicant(port))));
    let request = solo.all_sent(parent).pop();
    let Some(Message::AttachRequest(request)) = request else { panic!("not sent up: {request:?}") };
    let answer = AttachAnswer { request: request.applicant.request, trail: request.trail, refused: None };
    solo.receive(parent, &Message::AttachAnswer(answer));
    assert!(matches!(solo.next_sent(child), Some(Message::LinkAccepted { .. })));
    child
}

#[test]
fn each_way_to_fail_leads_to_the_next_candidate() {
    let mut solo = Solo::new(|_| {});
    solo.advise(&[2, 3, 4, 5, 6, 7, 8, 9]);
    solo.fail_dial(2);

    let (refuses, first) = solo.connect(3);
    solo.receive(refuses, &refused(&first, RefusalReason::Unconfirmed, Vec::new()));
    assert_eq!(solo.closed(refuses), Some(CloseReason::LinkRefused));

    let (silent, _) = solo.connect(4);
    assert!(solo.next_dial().is_none(), "it is given some time");
    solo.pass(Duration::from_millis(1600));
    assert_eq!(solo.closed(silent), Some(CloseReason::Moved));

    let (garbage, _) = solo.connect(5);
    solo.receive_text(garbage, "HTTP/1.1 400 Bad Request");
    assert_eq!(solo.closed(garbage), Some(CloseReason::InvalidMessage));

    let (misplaced, first) = solo.connect(6);
    // X6e: this server did not only ask.
    let possible = Message::LinkPossible { attempt: attempt_of(&first), id: id_of(6), tree: position(&[6]) };
    solo.receive(misplaced, &possible);
    assert_eq!(solo.closed(misplaced), Some(CloseReason::InvalidMessage));

    let (wrong_secret, _) = solo.connect(7);
    solo.receive(wrong_secret, &Message::AuthenticationFail { info: "no".into() });

    // Masters name no plain servers, so one that speaks the plain protocol is none to stay with.
    let (plain, _) = solo.connect(8);
    solo.receive(plain, &announce(8));
    assert_eq!(solo.closed(plain), Some(CloseReason::InvalidMessage));

    let (closes, _) = solo.connect(9);
    solo.hang_up(closes);

    assert!(solo.next_dial().is_none(), "all were tried");
    solo.attach(10);
}

#[test]
fn who_accepts_wrongly_is_left() {
    let mut solo = Solo::new(|_| {});
    solo.advise(&[2, 3, 4]);
    let larger = TreePosition { key: FragmentKey { reign: Reign::Unsettled, root: "zzz".into() }, path: vec![] };
    let below = TreePosition { path: vec!["root".into(), "me".into(), id_of(3)], ..position(&[]) };
    for (port, tree, attempt) in [(2, larger, 0), (3, below, 0), (4, position(&[4]), 1)] {
        let (connection, first) = solo.connect(port);
        let attempt = attempt_of(&first) + attempt;
        solo.receive(connection, &Message::LinkAccepted { attempt, id: id_of(port), tree });
        assert_eq!(solo.closed(connection), Some(CloseReason::Moved), "{port}");
        assert_eq!(solo.core().parent_id(), None);
    }
}

/// The master advises the asker itself, over and over, and then it is tried again later.
#[test]
fn advice_to_ask_oneself_is_passed_over_and_ends_the_round() {
    let mut solo = Solo::new(|_| {});
    for _ in 0..5 {
        let me = Target { id: "me".into(), ..target(1) };
        solo.handle(Event::Advised { candidates: vec![me; 3] });
        assert!(solo.next_dial().is_none());
    }
    solo.attach(2);
}

/// Masters may name only servers that can't be reached from here, for ever.
#[test]
fn after_a_round_in_vain_the_servers_that_are_remembered_are_tried_as_well() {
    let mut solo = Solo::new(|extensions| extensions.remembered = vec![target(3)]);
    solo.advise(&[2]);
    solo.fail_dial(2);
    assert!(solo.next_dial().is_none());
    solo.advise(&[2]);
    solo.fail_dial(2);
    let (remembered, first) = solo.connect(3);
    solo.take_in(remembered, &first, 3);
}

/// Half of a large tree may be cut off. The masters know who is back, so they are asked again before all are tried.
#[test]
fn a_round_ends_before_all_who_are_remembered_have_kept_it_waiting() {
    let mut solo = Solo::new(|extensions| extensions.remembered = (100..200).map(target).collect());
    solo.advise(&[]);
    let mut tried = BTreeSet::new();
    while solo.next_question().is_none() {
        solo.pass(Duration::from_millis(100));
        tried.extend(std::iter::from_fn(|| solo.next_dial()).map(|(_, target)| target.port));
        assert!(tried.len() <= 4, "{tried:?}");
    }
    // Others have their turn in later rounds, whoever comes first.
    for _ in 0..40 {
        solo.pass(Duration::from_secs(5));
        tried.extend(std::iter::from_fn(|| solo.next_dial()).map(|(_, target)| target.port));
        if let Some(attempt) = solo.next_question() {
            solo.handle(Event::MastersAnswered { attempt, candidates: Vec::new() });
        }
    }
    assert!(tried.len() > 20, "{tried:?}");
}

/// A root hears its whole tree, and would be refused by each of it.
#[test]
fn those_below_are_not_asked() {
    let mut solo = Solo::new(|extensions| extensions.remembered = vec![target(9), target(10)]);
    let child = solo.accept(&authenticate(Some(applicant(9))));
    solo.receive(child, &announce(9));
    solo.advise(&[]);
    solo.fail_dial(10);
    assert!(solo.next_dial().is_none());
}

#[test]
fn whoever_refuses_can_name_others_who_are_tried_behind_those_that_are_there() {
    let mut solo = Solo::new(|_| {});
    solo.advise(&[2, 3]);
    let (full, first) = solo.connect(2);
    let me = Target { id: "me".into(), ..target(1) };
    solo.receive(full, &refused(&first, RefusalReason::Full, vec![me, target(3), target(2), target(4)]));
    solo.fail_dial(3);
    let (named, first) = solo.connect(4);
    solo.take_in(named, &first, 4);
}

/// Two that name each other, and one that always names new ones: a round ends all the same, in a pause.
#[test]
fn servers_that_name_others_for_ever_do_not_keep_a_round_going() {
    let mut solo = Solo::new(|_| {});
    solo.advise(&[2]);
    let mut tried = Vec::new();
    while let Some((attempt, asked)) = solo.next_dial() {
        tried.push(asked.port);
        assert!(tried.len() < 100, "no end: {tried:?}");
        let connection = ConnectionId(1000 + attempt.0);
        solo.handle(Event::Dialled { connection, attempt: Some(attempt) });
        let next = (0..20).map(|more| target(asked.port + more));
        let refusal = Message::LinkRefused {
            attempt: attempt.0,
            reason: RefusalReason::Full,
            info: String::new(),
            targets: next.collect(),
        };
        solo.receive(connection, &refusal);
    }
    let distinct: BTreeSet<_> = tried.iter().collect();
    assert_eq!(distinct.len(), tried.len(), "nobody twice: {tried:?}");
    assert!(tried.len() > 10, "{tried:?}");
    solo.attach(2);
}

#[test]
fn a_full_server_names_some_of_its_children() {
    let children: Vec<u16> = (10..22).collect();
    let mut solo = full(&children);
    let refused = solo.accept(&authenticate(Some(applicant(50))));
    let Some(Message::LinkRefused { reason: RefusalReason::Full, targets, .. }) = solo.next_sent(refused) else {
        panic!("not refused")
    };
    assert_eq!(targets.len(), 8);
    assert!(targets.iter().all(|named| children.contains(&named.port) && *named == target(named.port)), "{targets:?}");
}

#[test]
fn a_draining_server_names_its_parent_and_takes_nobody_in() {
    let mut solo = Solo::new(|_| {});
    let parent = solo.attach(90);
    let child = take_in(&mut solo, parent, 10);
    solo.handle(Event::Drain);
    assert!(solo.all_sent(child).contains(&Message::ServerQuit { target: Some(target(90)) }));

    let extended = solo.accept(&authenticate(Some(applicant(50))));
    let Some(Message::LinkRefused { reason, targets, .. }) = solo.next_sent(extended) else { panic!("not refused") };
    assert_eq!((reason, targets), (RefusalReason::Draining, vec![target(90)]));

    let plain = solo.accept(&authenticate(None));
    assert!(matches!(solo.next_sent(plain), Some(Message::InvalidMessage { .. })));
    assert_eq!(solo.closed(plain), Some(CloseReason::InvalidMessage));

    let credentials = Credentials { username: "aaron".into(), secret: "s3".into() };
    let user = solo.accept(&Message::Register { credentials, ticket: None });
    assert!(matches!(solo.next_sent(user), Some(Message::RegisterFailed { info }) if info.contains("about to stop")));
    assert_eq!(solo.closed(user), Some(CloseReason::RegisterFailed));
}

#[test]
fn a_server_of_another_version_is_refused_with_that_reason() {
    let mut solo = Solo::new(|_| {});
    let other = solo.accept(&authenticate(Some(Applicant { protocol: 2, ..applicant(50) })));
    let sent = solo.next_sent(other);
    assert!(matches!(sent, Some(Message::LinkRefused { reason: RefusalReason::Protocol, .. })), "{sent:?}");
    assert_eq!(solo.closed(other), Some(CloseReason::LinkRefused));
}

#[test]
fn who_is_refused_for_its_version_or_for_an_unknown_reason_goes_on() {
    let mut solo = Solo::new(|_| {});
    solo.advise(&[2, 3, 4]);
    let (other_version, first) = solo.connect(2);
    solo.receive(other_version, &refused(&first, RefusalReason::Protocol, Vec::new()));
    let (later_version, _) = solo.connect(3);
    solo.receive_text(later_version, r#"{"command":"LINK_REFUSED","attempt":9,"reason":"MOON_PHASE","info":""}"#);
    assert_eq!(solo.closed(later_version), Some(CloseReason::LinkRefused));
    let (right, first) = solo.connect(4);
    solo.take_in(right, &first, 4);
}

/// Somebody who accepts and is lost at once again and again would otherwise be asked without end.
#[test]
fn a_parent_that_is_lost_at_once_every_time_is_asked_at_a_slower_pace() {
    let mut solo = Solo::new(|_| {});
    for _ in 0..20 {
        let parent = solo.attach(2);
        solo.hang_up(parent);
    }
    let mut attached = 0;
    // 100 rounds of 100 ms; asked at once it would be hundreds, since nothing else takes time here.
    for _ in 0..100 {
        solo.pass(Duration::from_millis(100));
        while let Some(attempt) = solo.next_question() {
            solo.handle(Event::MastersAnswered { attempt, candidates: vec![target(2)] });
            let (connection, first) = solo.connect(2);
            solo.take_in(connection, &first, 2);
            solo.hang_up(connection);
            attached += 1;
        }
    }
    assert!((1..=5).contains(&attached), "{attached}");
}

/// The parent at port 2 is configured, and takes the field `node` for an error.
#[test]
fn a_configured_parent_that_rejects_the_field_is_dialled_again_without_it() {
    let mut solo = Solo::new(|extensions| extensions.parent = Some(("sim".into(), 2)));
    solo.pass(Duration::from_millis(1));
    let (rejects, first) = solo.connect(2);
    assert!(matches!(first, Message::Authenticate { node: Some(_), .. }));
    solo.receive(rejects, &Message::InvalidMessage { info: "unknown field".into() });
    assert_eq!(solo.closed(rejects), Some(CloseReason::PeerRefused));

    let (accepts, first) = solo.connect(2);
    assert_eq!(first, authenticate(None));
    solo.receive(accepts, &announce(2));
    assert!(solo.all_sent(accepts).iter().any(|message| matches!(message, Message::ServerAnnounce(_))));
    assert_eq!((solo.core().view().links, solo.core().parent_id()), (1, None));
    // It may have had another reason, and is asked once more.
    while !solo.has_dial() {
        solo.pass(Duration::from_millis(100));
    }
    let (question, _) = solo.connect(2);
    solo.receive(question, &Message::InvalidMessage { info: "unknown field".into() });
    solo.pass(Duration::from_secs(600));
    assert!(solo.next_dial().is_none(), "a plain parent is stayed with");
}

/// A close may have other reasons, so it takes two.
#[test]
fn one_that_closes_without_a_word_is_tried_twice_before_the_field_is_left_out() {
    let mut solo = Solo::new(|extensions| extensions.parent = Some(("sim".into(), 2)));
    solo.pass(Duration::from_millis(1));
    for _ in 0..2 {
        let (closes, first) = solo.connect(2);
        assert!(matches!(first, Message::Authenticate { node: Some(_), .. }));
        solo.hang_up(closes);
    }
    let (closes, first) = solo.connect(2);
    assert_eq!(first, authenticate(None));
    solo.hang_up(closes);
    assert!(solo.next_dial().is_none(), "now there is a pause");
}

/// A parent that closed connections while it was started again and again, and is dialled in the plain way for it.
fn below_one_that_closed() -> (Solo, ConnectionId) {
    let mut solo = Solo::new(|extensions| extensions.parent = Some(("sim".into(), 2)));
    solo.pass(Duration::from_millis(1));
    for _ in 0..2 {
        let (closes, _) = solo.connect(2);
        solo.hang_up(closes);
    }
    let (plain, _) = solo.connect(2);
    solo.receive(plain, &announce(2));
    assert_eq!(solo.core().view().links, 1);
    (solo, plain)
}

#[test]
fn one_that_only_seemed_to_be_plain_is_found_out_and_asked_again_as_an_extended_one() {
    let (mut solo, plain) = below_one_that_closed();
    while !solo.has_dial() {
        solo.pass(Duration::from_millis(100));
    }
    let (question, first) = solo.connect(2);
    assert!(matches!(&first, Message::Authenticate { node: Some(node), .. } if node.probe));
    assert_eq!(solo.closed(plain), None);
    let possible = Message::LinkPossible { attempt: attempt_of(&first), id: id_of(2), tree: position(&[2]) };
    solo.receive(question, &possible);
    assert_eq!(solo.closed(plain), Some(CloseReason::Moved));
    let (extended, first) = solo.connect(2);
    solo.take_in(extended, &first, 2);
}

#[test]
fn one_that_is_plain_is_asked_a_few_times_and_stayed_with() {
    let (mut solo, plain) = below_one_that_closed();
    let mut asked = 0;
    for _ in 0..600 {
        solo.pass(Duration::from_secs(1));
        if solo.has_dial() {
            let (question, _) = solo.connect(2);
            solo.hang_up(question);
            asked += 1;
        }
    }
    assert_eq!((asked, solo.closed(plain)), (5, None));
}

#[test]
fn the_field_is_never_left_out_for_the_secret_nor_where_the_extensions_are_spoken() {
    let mut solo = Solo::new(|extensions| extensions.parent = Some(("sim".into(), 2)));
    solo.pass(Duration::from_millis(1));
    let (wrong_secret, _) = solo.connect(2);
    solo.receive(wrong_secret, &Message::AuthenticationFail { info: "no".into() });
    solo.advise(&[]);
    assert!(solo.next_dial().is_none(), "it was tried in this round");

    solo.advise(&[]);
    let (extended, first) = solo.connect(2);
    solo.receive(extended, &refused(&first, RefusalReason::Draining, Vec::new()));
    solo.advise(&[]);
    let (extended, _) = solo.connect(2);
    solo.hang_up(extended);
    assert!(solo.next_dial().is_none());
}
