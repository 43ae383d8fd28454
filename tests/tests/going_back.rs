//! Servers that go back below the parent that they prefer (protocol, Going back). Many simulated ones are in
//! `healing_simulation.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use arborcast_core::{CloseReason, ConnectionId, Event};
use arborcast_proto::wire::message::{Applicant, RefusalReason, TreePosition};
use arborcast_proto::wire::{FragmentKey, Message, Reign};
use arborcast_tests::forest::Forest;
use arborcast_tests::node::NodeBuilder;
use arborcast_tests::solo::{Solo, announce, applicant, attempt_of, authenticate, id_of, position};

/// The port of the preferred parent.
const HOME: u16 = 50;

/// Longer than the longest pause.
const LONG: Duration = Duration::from_secs(61);

/// A server that prefers the one at port 50 and is below the one at port 90, and its link there.
fn elsewhere() -> (Solo, ConnectionId) {
    let mut solo = Solo::new(|extensions| {
        extensions.parent = Some(("sim".into(), HOME));
        extensions.prefer_parent = true;
        // This parent sends no heartbeats.
        extensions.heartbeat_timeout = Duration::from_secs(100_000);
    });
    solo.pass(Duration::from_millis(1));
    solo.fail_dial(HOME);
    let parent = solo.attach(90);
    (solo, parent)
}

/// Waits for the question to the preferred parent.
#[track_caller]
fn question(solo: &mut Solo) -> (ConnectionId, Message) {
    solo.pass(LONG);
    let (connection, first) = solo.connect(HOME);
    assert!(matches!(&first, Message::Authenticate { node: Some(node), .. } if node.probe), "{first:?}");
    (connection, first)
}

#[track_caller]
fn answer(solo: &mut Solo, tree: TreePosition) {
    let (connection, first) = question(solo);
    solo.receive(connection, &Message::LinkPossible { attempt: attempt_of(&first), id: id_of(HOME), tree });
    assert!(solo.closed(connection).is_some());
}

#[test]
fn after_two_times_yes_it_moves_and_keeps_the_link_to_its_parent_until_it_is_there() {
    let (mut solo, former) = elsewhere();
    answer(&mut solo, position(&[HOME]));
    assert!(solo.next_dial().is_none() && solo.core().parent_id().is_some(), "once is not enough");
    answer(&mut solo, position(&[HOME]));
    assert_eq!(solo.core().parent_id(), None);
    assert_eq!(solo.core().tree_view().position.key.reign, Reign::Settled(1));
    let (home, first) = solo.connect(HOME);
    assert!(matches!(&first, Message::Authenticate { node: Some(node), .. } if !node.probe));
    assert_eq!((solo.closed(former), solo.core().view().links), (None, 1));
    solo.take_in(home, &first, HOME);
    assert_eq!(solo.closed(former), Some(CloseReason::Moved));
    solo.pass(10 * LONG);
    assert!(solo.next_dial().is_none(), "it is where it wants to be");
}

#[test]
fn if_it_is_not_taken_in_after_all_it_goes_back_to_the_parent_that_it_left() {
    let (mut solo, former) = elsewhere();
    answer(&mut solo, position(&[HOME]));
    answer(&mut solo, position(&[HOME]));
    let (refuses, first) = solo.connect(HOME);
    let (attempt, reason) = (attempt_of(&first), RefusalReason::Full);
    solo.receive(refuses, &Message::LinkRefused { attempt, reason, info: String::new(), targets: vec![] });
    let (again, first) = solo.connect(90);
    assert_eq!(solo.closed(former), None);
    solo.take_in(again, &first, 90);
    assert_eq!(solo.closed(former), Some(CloseReason::Moved));
}

/// Whoever confirms leaves a former parent first, which may be in the fragment that comes below (Q4). A successor does not,
/// and this one was a successor once.
#[test]
fn who_confirms_a_request_on_the_way_leaves_the_parent_that_it_had() {
    let (mut solo, named_it) = elsewhere();
    solo.receive(named_it, &Message::ServerQuit { target: None });
    let parent = solo.attach(91);
    answer(&mut solo, position(&[HOME]));
    answer(&mut solo, position(&[HOME]));
    let (on_the_way, _) = solo.connect(HOME);
    assert_eq!(solo.closed(parent), None);
    let child = solo.accept(&authenticate(Some(applicant(10))));
    assert!(matches!(solo.next_sent(child), Some(Message::LinkAccepted { .. })));
    assert_eq!((solo.closed(parent), solo.closed(on_the_way)), (Some(CloseReason::Moved), Some(CloseReason::Moved)));
    solo.pass(Duration::from_secs(1));
    let (back, first) = solo.connect(91);
    solo.take_in(back, &first, 91);
}

#[test]
fn it_stays_for_a_server_below_it_in_another_fragment_or_of_the_plain_protocol() {
    let (mut solo, _) = elsewhere();
    let below = TreePosition { path: vec!["root".into(), "me".into(), id_of(HOME)], ..position(&[]) };
    let other = TreePosition { key: FragmentKey { reign: Reign::Settled(0), root: "a".into() }, ..position(&[HOME]) };
    for tree in [below, other] {
        for _ in 0..3 {
            answer(&mut solo, tree.clone());
            assert_eq!(solo.core().parent_id(), Some(id_of(90).as_str()));
        }
    }
    let (plain, _) = question(&mut solo);
    solo.receive(plain, &announce(HOME));
    assert!(solo.closed(plain).is_some());
    solo.pass(10 * LONG);
    assert!(solo.next_dial().is_none(), "a plain server would take the question for a link each time");
    assert_eq!(solo.core().parent_id(), Some(id_of(90).as_str()));
}

/// Yes and no in turn, silence, a lost connection: nothing of it moves anybody, and the questions become rare.
#[test]
fn it_does_not_move_for_a_server_that_comes_and_goes() {
    let (mut solo, _) = elsewhere();
    for _ in 0..5 {
        answer(&mut solo, position(&[HOME]));
        solo.pass(LONG);
        solo.fail_dial(HOME);
    }
    let mut asked = 0;
    for _ in 0..600 {
        solo.pass(Duration::from_secs(1));
        if let Some((attempt, _)) = solo.next_dial() {
            solo.handle(Event::DialFailed { attempt });
            asked += 1;
        }
    }
    assert!((9..=21).contains(&asked), "{asked} questions in ten minutes");
    assert_eq!(solo.core().parent_id(), Some(id_of(90).as_str()));
}

#[test]
fn a_server_that_is_known_to_be_the_parent_under_another_name_is_not_asked_again() {
    let (mut solo, _) = elsewhere();
    let (connection, first) = question(&mut solo);
    let (attempt, id) = (attempt_of(&first), id_of(90));
    solo.receive(connection, &Message::LinkPossible { attempt, id, tree: position(&[90]) });
    solo.pass(10 * LONG);
    assert!(solo.next_dial().is_none());
}

/// The question changes nothing where it is asked, and is answered at once.
#[test]
fn who_is_asked_says_where_it_stands_or_why_not_and_changes_nothing() {
    let mut solo = Solo::new(|extensions| extensions.max_children = 1);
    let parent = solo.attach(90);
    let before = solo.core().tree_view();
    let ask = |solo: &mut Solo, id: u16| {
        let asking = solo.accept(&authenticate(Some(Applicant { probe: true, ..applicant(id) })));
        (solo.next_sent(asking), solo.closed(asking))
    };
    let tree = before.position.clone();
    let yes = Message::LinkPossible { attempt: 1, id: "me".into(), tree };
    assert_eq!(ask(&mut solo, 10), (Some(yes), Some(CloseReason::Probed)));
    let (no, closed) = ask(&mut solo, 90);
    assert!(matches!(no, Some(Message::LinkRefused { reason: RefusalReason::OwnSubtree, .. })), "{no:?}");
    assert_eq!(closed, Some(CloseReason::LinkRefused));
    assert_eq!(solo.core().tree_view(), before);
    assert!(solo.all_sent(parent).is_empty(), "the root is not asked");
    solo.handle(Event::Drain);
    let (no, _) = ask(&mut solo, 10);
    assert!(matches!(no, Some(Message::LinkRefused { reason: RefusalReason::Draining, .. })), "{no:?}");
}

/// With real processes: the preferred parent is killed, and comes back.
#[test]
fn a_server_goes_back_when_its_preferred_parent_does() {
    let mut forest = Forest::grow(1, 4);
    let preferred = forest.shape().leaves()[0];
    let homing = forest.join(&NodeBuilder::default().parent(forest.address(preferred)).switch("--prefer-parent"));
    forest.wait_until_one_tree();
    assert!(forest.shape().children_of(preferred).contains(&homing));
    forest.kill(preferred);
    forest.wait_until_one_tree();
    assert!(!forest.shape().children_of(preferred).contains(&homing));
    forest.start(preferred);
    forest.wait_until_one_tree();
    forest.wait_until_below(homing, preferred);
    forest.wait_until_one_tree();
}
