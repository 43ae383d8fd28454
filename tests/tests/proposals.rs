//! What one server makes of a proposal to move (protocol, Balance), and what a root makes of the question. Whole trees
//! are in `balance.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use arborcast_core::{CloseReason, ConnectionId, Event, MoveOutcome, MoveProposal};
use arborcast_proto::wire::message::{Applicant, AttachAnswer, AttachRequest, RefusalReason, TreePosition};
use arborcast_proto::wire::{FragmentKey, Message, Reign};
use arborcast_tests::solo::{Solo, announce, applicant, attempt_of, authenticate, id_of, position, target};

/// The port of the proposed server.
const BETTER: u16 = 50;

/// Longer than a position has to be the same.
const SETTLED: Duration = Duration::from_millis(600);

/// A server at depth 3: below the one at port 90, which is below that at 80, which is below the root.
fn deep() -> (Solo, ConnectionId) {
    let mut solo = Solo::new(|extensions| extensions.heartbeat_timeout = Duration::from_secs(100_000));
    let parent = solo.attach(90);
    solo.receive(parent, &Message::Heartbeat { tree: Some(position(&[80, 90])), announcements: true });
    solo.pass(SETTLED);
    (solo, parent)
}

fn proposal() -> MoveProposal {
    let FragmentKey { reign, root } = position(&[]).key;
    MoveProposal { target: target(BETTER), key: FragmentKey { reign, root }, parent: id_of(90), relieves_parent: false }
}

fn propose(solo: &mut Solo, proposal: MoveProposal) -> Option<MoveOutcome> {
    let number = |solo: &Solo| solo.core().tree_view().move_answer.map_or(0, |answer| answer.number);
    let before = number(solo);
    solo.handle(Event::MoveProposed(proposal));
    outcome(solo).filter(|_| number(solo) > before)
}

fn outcome(solo: &Solo) -> Option<MoveOutcome> {
    solo.core().tree_view().move_answer.map(|answer| answer.outcome)
}

#[track_caller]
fn ask(solo: &mut Solo) -> (ConnectionId, Message) {
    assert_eq!(propose(solo, proposal()), None);
    let (connection, first) = solo.connect(BETTER);
    assert!(matches!(&first, Message::Authenticate { node: Some(node), .. } if node.probe && node.moves), "{first:?}");
    (connection, first)
}

fn possible(first: &Message, tree: TreePosition) -> Message {
    Message::LinkPossible { attempt: attempt_of(first), id: id_of(BETTER), tree }
}

#[test]
fn it_asks_first_and_keeps_the_link_to_its_parent_until_it_is_there() {
    let (mut solo, former) = deep();
    let (question, first) = ask(&mut solo);
    assert!(solo.core().parent_id().is_some() && !solo.core().is_moving(), "a question changes nothing");
    solo.receive(question, &possible(&first, position(&[BETTER])));
    assert!(solo.closed(question).is_some());
    assert!(solo.core().is_moving() && solo.core().parent_id().is_none());
    let (better, first) = solo.connect(BETTER);
    assert!(matches!(&first, Message::Authenticate { node: Some(node), .. } if !node.probe && !node.moves));
    assert_eq!(solo.closed(former), None);
    solo.take_in(better, &first, BETTER);
    assert_eq!(solo.closed(former), Some(CloseReason::Moved));
    assert_eq!((outcome(&solo), solo.core().is_moving()), (Some(MoveOutcome::Moved), false));
    let counters = solo.core().status().counters;
    assert_eq!((counters.moves["moved"], counters.parents_lost, counters.heals.count), (1, 0, 0));
}

#[test]
fn if_it_is_not_taken_in_after_all_it_goes_back_to_its_parent() {
    let (mut solo, former) = deep();
    let (question, first) = ask(&mut solo);
    solo.receive(question, &possible(&first, position(&[BETTER])));
    solo.fail_dial(BETTER);
    let (again, first) = solo.connect(90);
    assert_eq!(solo.closed(former), None);
    solo.take_in(again, &first, 90);
    assert_eq!(outcome(&solo), Some(MoveOutcome::Failed));
    solo.pass(SETTLED);
    assert_eq!(propose(&mut solo, proposal()), None, "it may be asked again");
}

#[test]
fn it_refuses_at_once_what_it_can_judge_alone() {
    let (mut solo, _) = deep();
    let other_key = FragmentKey { reign: Reign::Settled(7), root: "root".into() };
    for (wrong, expected) in [
        (MoveProposal { parent: id_of(91), ..proposal() }, MoveOutcome::OutOfDate),
        (MoveProposal { key: other_key, ..proposal() }, MoveOutcome::OutOfDate),
        (MoveProposal { target: target(90), ..proposal() }, MoveOutcome::NoGain),
        (
            MoveProposal {
                target: arborcast_proto::wire::message::Target { id: "me".into(), ..target(1) },
                ..proposal()
            },
            MoveOutcome::OwnSubtree,
        ),
    ] {
        assert_eq!(propose(&mut solo, wrong), Some(expected));
    }
    assert!(!solo.has_dial());
    solo.handle(Event::Drain);
    assert_eq!(propose(&mut solo, proposal()), Some(MoveOutcome::Draining));
}

#[test]
fn who_has_no_parent_or_only_just_another_place_does_not_move() {
    let mut joining = Solo::new(|_| ());
    assert_eq!(propose(&mut joining, proposal()), Some(MoveOutcome::NotAttached));
    let (mut solo, parent) = deep();
    solo.receive(parent, &Message::Heartbeat { tree: Some(position(&[81, 90])), announcements: true });
    assert_eq!(propose(&mut solo, proposal()), Some(MoveOutcome::Unsettled));
    solo.pass(SETTLED);
    assert_eq!(propose(&mut solo, proposal()), None);
    solo.hang_up(parent);
    assert_eq!(outcome(&solo), Some(MoveOutcome::NotAttached), "an orphan asks for something else");
    assert_eq!(propose(&mut solo, proposal()), Some(MoveOutcome::NotAttached));
}

#[test]
fn two_masters_that_propose_the_same_are_one_and_another_proposal_has_to_wait() {
    let (mut solo, _) = deep();
    let (question, first) = ask(&mut solo);
    assert_eq!(propose(&mut solo, proposal()), None);
    assert!(!solo.has_dial(), "it has asked already");
    let other = MoveProposal { target: target(51), ..proposal() };
    assert_eq!(propose(&mut solo, other.clone()), Some(MoveOutcome::Busy));
    solo.receive(question, &possible(&first, position(&[BETTER])));
    let (better, first) = solo.connect(BETTER);
    assert_eq!(propose(&mut solo, other), Some(MoveOutcome::Busy));
    solo.take_in(better, &first, BETTER);
    assert_eq!(outcome(&solo), Some(MoveOutcome::Moved));
}

#[test]
fn an_answer_that_is_no_gain_or_out_of_date_or_a_no_moves_nobody() {
    let other = TreePosition { key: FragmentKey { reign: Reign::Settled(0), root: "a".into() }, ..position(&[BETTER]) };
    let below = TreePosition { path: vec!["root".into(), "me".into(), id_of(BETTER)], ..position(&[]) };
    for (tree, expected) in [
        (position(&[80, BETTER]), MoveOutcome::NoGain),
        (other, MoveOutcome::OutOfDate),
        (below, MoveOutcome::OwnSubtree),
    ] {
        let (mut solo, _) = deep();
        let (question, first) = ask(&mut solo);
        solo.receive(question, &possible(&first, tree));
        assert_eq!((outcome(&solo), solo.core().parent_id()), (Some(expected), Some(id_of(90).as_str())));
    }
    for (reason, expected) in [
        (RefusalReason::Moving, MoveOutcome::TreeBusy),
        (RefusalReason::Full, MoveOutcome::Refused),
        (RefusalReason::OwnSubtree, MoveOutcome::OwnSubtree),
    ] {
        let (mut solo, _) = deep();
        let (question, first) = ask(&mut solo);
        let (attempt, info) = (attempt_of(&first), String::new());
        solo.receive(question, &Message::LinkRefused { attempt, reason, info, targets: vec![] });
        assert_eq!((outcome(&solo), solo.core().parent_id()), (Some(expected), Some(id_of(90).as_str())));
    }
    let (mut solo, _) = deep();
    let (question, _) = ask(&mut solo);
    solo.receive(question, &announce(BETTER));
    assert_eq!((outcome(&solo), solo.closed(question).is_some()), (Some(MoveOutcome::Refused), true), "a plain server");
    let (mut solo, _) = deep();
    let (question, _) = ask(&mut solo);
    solo.hang_up(question);
    assert_eq!(outcome(&solo), Some(MoveOutcome::Unreachable));
}

#[test]
fn a_parent_that_has_too_many_may_be_left_for_a_deeper_place_once_in_a_while() {
    let (mut solo, _) = deep();
    for expected in [MoveOutcome::Moved, MoveOutcome::NoGain] {
        let parent = solo.core().parent_id().unwrap().to_owned();
        let port = if parent == id_of(90) { BETTER } else { 90 };
        let deeper = MoveProposal { target: target(port), parent, relieves_parent: true, ..proposal() };
        assert_eq!(propose(&mut solo, deeper), None);
        let (question, first) = solo.connect(port);
        let (attempt, tree) = (attempt_of(&first), position(&[80, 81, port]));
        solo.receive(question, &Message::LinkPossible { attempt, id: id_of(port), tree });
        if expected == MoveOutcome::Moved {
            let (there, first) = solo.connect(port);
            solo.take_in(there, &first, port);
        }
        assert_eq!(outcome(&solo), Some(expected));
        solo.pass(SETTLED);
    }
}

/// A settled root with a child at port 60, through which requests come.
fn root() -> (Solo, ConnectionId) {
    let mut solo = Solo::new(|_| ());
    let child = solo.accept(&authenticate(Some(applicant(60))));
    while solo.next_sent(child).is_some() {}
    (solo, child)
}

fn climbs(solo: &mut Solo, child: ConnectionId, id: u16, probe: bool) -> Option<RefusalReason> {
    let key = match probe {
        true => solo.core().tree_view().position.key,
        false => FragmentKey { reign: Reign::Settled(1), root: id_of(id) },
    };
    let applicant = Applicant { probe, moves: probe, key, ..applicant(id) };
    solo.receive(child, &Message::AttachRequest(AttachRequest { applicant, trail: vec![id_of(60)] }));
    let answers = solo.all_sent(child);
    let answer = answers.iter().find_map(|sent| match sent {
        Message::AttachAnswer(AttachAnswer { refused, .. }) => Some(*refused),
        _ => None,
    });
    answer.expect("the root answers")
}

#[test]
fn the_root_allows_one_move_at_a_time() {
    let (mut solo, child) = root();
    assert_eq!(climbs(&mut solo, child, 70, true), None);
    assert_eq!(climbs(&mut solo, child, 71, true), Some(RefusalReason::Moving));
    assert_eq!(climbs(&mut solo, child, 70, true), None, "the same one asks again");
    assert_eq!(climbs(&mut solo, child, 70, false), None, "it is confirmed");
    assert_eq!(climbs(&mut solo, child, 71, true), Some(RefusalReason::Moving), "it may still be on its way");
    solo.pass(SETTLED);
    assert_eq!(climbs(&mut solo, child, 71, true), None);
    assert_eq!(climbs(&mut solo, child, 72, true), Some(RefusalReason::Moving));
    // Three heartbeat timeouts; the child says nothing and is given up after one, so it comes again.
    solo.pass(Duration::from_millis(4600));
    let child = solo.accept(&authenticate(Some(applicant(60))));
    while solo.next_sent(child).is_some() {}
    assert_eq!(climbs(&mut solo, child, 72, true), None, "who is allowed and never comes is given up");
}

#[test]
fn the_root_allows_nothing_to_other_fragments_and_while_it_drains() {
    let (mut solo, child) = root();
    let foreign = Applicant {
        probe: true,
        moves: true,
        key: FragmentKey { reign: Reign::Settled(9), root: "other".into() },
        ..applicant(70)
    };
    let asking = solo.accept(&authenticate(Some(foreign)));
    let reason = |sent: Option<Message>| match sent {
        Some(Message::LinkRefused { reason, .. }) => Some(reason),
        _ => None,
    };
    assert_eq!(reason(solo.next_sent(asking)), Some(RefusalReason::KeyNotSmaller));
    let key = solo.core().tree_view().position.key;
    let own = Applicant { probe: true, moves: true, key, ..applicant(71) };
    let asking = solo.accept(&authenticate(Some(own)));
    assert!(matches!(solo.next_sent(asking), Some(Message::LinkPossible { .. })));
    assert_eq!(solo.closed(asking), Some(CloseReason::Probed));
    solo.handle(Event::Drain);
    assert_eq!(climbs(&mut solo, child, 71, true), Some(RefusalReason::Draining));
}
