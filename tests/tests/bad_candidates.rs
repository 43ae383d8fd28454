//! Part II, S6 and K7: a candidate that hangs, refuses or talks nonsense costs one attempt, and the next one is asked. A
//! master played by the test names the bad one first.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use arborcast_tests::fake_master::{FakeMaster, Reports, candidate};
use arborcast_tests::lines;
use arborcast_tests::node::NodeBuilder;
use arborcast_tests::peer::{FakeParent, Peer};
use arborcast_tests::tree::wait_until_linked;

/// A node that is told of a bad candidate and of a good one behind it joins the good one, and logs what was wrong with
/// the bad one, which is left to `play` its part on each connection that it gets until then.
#[track_caller]
fn joins_behind(log: &str, play: impl Fn(Peer) -> Option<Peer> + Send + 'static) {
    let root = NodeBuilder::default().extended().start();
    let bad = FakeParent::listen();
    let (bad_port, good_port) = (bad.address().port().into(), root.address().port().into());
    let master = FakeMaster::start(move |_: &str, _: &Reports| {
        Some(vec![candidate("bad", "127.0.0.1", bad_port), candidate("good", "127.0.0.1", good_port)])
    });
    let node =
        NodeBuilder::default().log("arborcast_core=debug,arborcast_node=debug").flag("--master", master.address());
    let mut node = node.start();
    let kept = play(bad.accept());
    wait_until_linked(&root, &node);
    drop(kept);
    node.process.wait_for_stderr(log);
    assert_eq!(node.process.exit_status(), None);
}

/// What an applicant calls this attempt.
#[track_caller]
fn attempt_of(peer: &mut Peer) -> u64 {
    peer.expect_command("AUTHENTICATE")["node"]["attempt"].as_u64().unwrap()
}

#[test]
fn one_that_accepts_and_never_answers_is_given_up() {
    joins_behind("no answer in time", |mut bad| {
        attempt_of(&mut bad);
        Some(bad)
    });
}

#[test]
fn one_that_refuses_is_passed_over() {
    joins_behind("attachment refused", |mut bad| {
        let attempt = attempt_of(&mut bad);
        bad.send(lines::link_refused(attempt, "FULL"));
        None
    });
}

#[test]
fn one_that_accepts_another_attempt_is_left() {
    joins_behind("Moved", |mut bad| {
        let attempt = attempt_of(&mut bad);
        bad.send(lines::link_accepted(attempt + 1, "bad", &["bad"]));
        Some(bad)
    });
}

/// F6, K8: a parent whose key is not smaller would make a cycle possible.
#[test]
fn one_that_stands_below_the_applicant_is_left() {
    joins_behind("Moved", |mut bad| {
        let authenticate = bad.expect_command("AUTHENTICATE");
        let (attempt, id) =
            (authenticate["node"]["attempt"].as_u64().unwrap(), authenticate["node"]["id"].as_str().unwrap());
        bad.send(lines::link_accepted(attempt, "bad", &[id, "bad"]));
        Some(bad)
    });
}

#[test]
fn one_that_talks_nonsense_is_told_so_and_left() {
    joins_behind("refused", |mut bad| {
        attempt_of(&mut bad);
        bad.send_bytes(b"\x00\xff{{{ not a message\n");
        Some(bad)
    });
}

#[test]
fn one_that_sends_a_line_without_end_is_left() {
    joins_behind("refused", |mut bad| {
        attempt_of(&mut bad);
        let chunk = vec![b'x'; 1 << 16];
        // Until the node has had enough.
        for _ in 0..1000 {
            if bad.try_send_bytes(&chunk).is_err() {
                break;
            }
        }
        None
    });
}

#[test]
fn one_that_closes_at_once_is_passed_over() {
    joins_behind("closed", |bad| {
        drop(bad);
        None
    });
}

#[test]
fn one_that_speaks_the_plain_protocol_and_was_not_configured_is_left() {
    joins_behind("refused", |mut bad| {
        attempt_of(&mut bad);
        bad.send(lines::server_announce("plain", 0, 1));
        Some(bad)
    });
}
