//! Trees that heal, in virtual time (protocol, Fragments and reigns; Liveness; SERVER_QUIT). Much of the advice in these
//! runs is wrong: it may cost time, and never a cycle. `cargo simulate` runs many more.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use arborcast_core::RootReason;
use arborcast_tests::calm::{self, FalseAlarms};
use arborcast_tests::cluster::Cluster;
use arborcast_tests::seeds::for_seeds;
use arborcast_tests::simulated_masters::Character;
use arborcast_tests::storm;

/// A forest that has become one tree.
fn tree(seed: u64, servers: usize) -> Cluster {
    let mut cluster = storm::forest_with_masters(seed, servers);
    cluster.run_until_trees(Duration::from_secs(300));
    cluster
}

#[test]
fn servers_that_start_at_once_become_one_tree() {
    for_seeds(0..100, |seed| {
        let mut cluster = storm::forest(seed, 12);
        cluster.run_until("all are one tree", Duration::from_secs(120), Cluster::is_one_tree);
    });
}

#[test]
fn after_a_storm_there_is_one_tree_and_there_was_never_a_cycle() {
    for_seeds(0..200, |seed| assert!(storm::run(seed, 12) > 20));
}

/// Going back to a preferred parent is subject to the same rules. It ends, and happens where it can.
#[test]
fn after_a_storm_servers_are_where_they_prefer_to_be_and_stay_there() {
    for_seeds(0..60, |seed| assert!(storm::run_homing(seed, 12) > 20));
}

#[test]
fn larger_trees_heal_as_well() {
    for_seeds(0..5, |seed| assert!(storm::run(seed, 50) > 100));
}

/// The same seed gives the same run, so that a failing one can be replayed.
#[test]
fn the_same_seed_gives_the_same_storm() {
    for seed in 0..5 {
        assert_eq!(storm::run(seed, 12), storm::run(seed, 12));
    }
}

/// Nobody is alone for long, though no master answers: what was remembered leads back together.
#[test]
fn without_any_master_orphans_find_the_servers_they_remember() {
    for_seeds(0..50, |seed| {
        let mut cluster = storm::forest(seed, 12);
        cluster.run_until("all are one tree", Duration::from_secs(120), Cluster::is_one_tree);
        cluster.run_for(Duration::from_secs(5));
        cluster.masters_alive = false;
        let root = cluster.roots()[0];
        cluster.crash(root);
        cluster.run_for(Duration::from_secs(1));
        cluster.run_until("the others are one tree", Duration::from_secs(120), Cluster::is_one_tree);
    });
}

/// A drained server ends only when its children are elsewhere, and is gone from the tree.
#[test]
fn a_drained_server_hands_its_children_on() {
    for_seeds(0..50, |seed| {
        let mut cluster = storm::forest(seed, 12);
        cluster.run_until("all are one tree", Duration::from_secs(120), Cluster::is_one_tree);
        let drained = if seed % 2 == 0 { cluster.roots()[0] } else { seed as usize % 12 };
        cluster.drain(drained);
        cluster.run_until("it has ended", Duration::from_secs(10), |cluster| !cluster.is_alive(drained));
        cluster.run_until("the others are one tree", Duration::from_secs(120), Cluster::is_one_tree);
    });
}

/// F1: two parts of the network that don't reach each other are one tree each for as long as that lasts, and one tree
/// afterwards.
#[test]
fn two_parts_cut_from_each_other_are_two_trees_and_then_one() {
    for_seeds(0..50, |seed| {
        let mut cluster = tree(seed, 12);
        storm::stand_apart(&mut cluster, 2);
        storm::settle(&mut cluster);
        assert_eq!(cluster.roots().len(), 2, "one tree in each part");
        cluster.heal_cuts();
        storm::settle(&mut cluster);
        assert!(cluster.is_one_tree());
    });
}

/// The same while all masters are dead: it is the servers' memory that brings the parts together again.
#[test]
fn two_parts_come_together_without_any_master() {
    for_seeds(0..30, |seed| {
        let mut cluster = Cluster::new(seed);
        // As often as servers do it unless told otherwise, so that each has heard of each other.
        cluster.announce_interval = Duration::from_secs(5);
        for _ in 0..12 {
            cluster.add_extended_server(3);
        }
        storm::settle(&mut cluster);
        cluster.masters_alive = false;
        cluster.partition(|server| server % 2, |_| 0);
        storm::settle(&mut cluster);
        assert_eq!(cluster.roots().len(), 2);
        cluster.heal_cuts();
        storm::settle(&mut cluster);
        assert_eq!(cluster.roots().len(), 1);
    });
}

/// F10: whoever can dial others and can't be dialled, as behind an address translation, comes below those who can,
/// whatever the keys.
#[test]
fn servers_that_nobody_can_dial_are_part_of_the_tree() {
    for_seeds(0..60, |seed| {
        let mut cluster = Cluster::new(seed);
        for server in 0..8 {
            cluster.add_extended_server(8);
            if server < 4 {
                cluster.hide(server);
            }
        }
        cluster.run_until_trees(Duration::from_secs(120));
        for _ in 0..3 {
            let root = cluster.roots()[0];
            cluster.crash(root);
            cluster.restart(root, false);
            cluster.run_until_trees(Duration::from_secs(120));
        }
    });
}

/// H3: a connection that is lost while both ends live is one more reason to look for a parent, and no more than that.
#[test]
fn a_lost_connection_between_two_that_live_heals() {
    for_seeds(0..50, |seed| {
        let mut cluster = tree(seed, 12);
        for server in 0..12 {
            cluster.reset_link(server);
        }
        cluster.run_for(Duration::from_secs(1));
        cluster.run_until_trees(Duration::from_secs(300));
    });
}

/// H2, Q3: nothing gets through in one direction, and everything in the other. The one that hears nothing gives up first.
#[test]
fn a_one_way_cut_to_a_parent_sends_the_child_elsewhere() {
    for_seeds(0..50, |seed| {
        let mut cluster = tree(seed, 12);
        let child = (0..12).find(|server| cluster.parent(*server).is_some()).unwrap();
        let parent = cluster.parent(child).unwrap();
        if seed % 2 == 0 {
            cluster.cut(parent, child);
        } else {
            cluster.cut(child, parent);
        }
        cluster
            .run_until("the link is given up", Duration::from_secs(8), |cluster| cluster.parent(child) != Some(parent));
        cluster.run_for(Duration::from_secs(60));
        // Of two roots that can't reach each other the one with the smaller key may be alone: then nobody else can ask.
        assert!(cluster.roots().len() <= 2);
        cluster.heal_cuts();
        cluster.run_until_trees(Duration::from_secs(300));
    });
}

/// S1, S2: a root always has a reason, and looks until it is alone or at the top.
#[test]
fn a_server_that_is_alone_is_a_root_for_a_reason() {
    let mut cluster = Cluster::new(1);
    cluster.set_masters([Character::honest()]);
    let server = cluster.add_extended_server(2);
    cluster.run_for(Duration::from_secs(10));
    assert_eq!(cluster.root_reason(server), Some(RootReason::Unsettled));
    let child = cluster.add_extended_server(2);
    cluster.run_until_trees(Duration::from_secs(60));
    cluster.run_for(Duration::from_secs(10));
    let (root, below) = if cluster.parent(server).is_none() { (server, child) } else { (child, server) };
    assert_eq!((cluster.root_reason(root), cluster.root_reason(below)), (Some(RootReason::Content), None));
    cluster.crash(root);
    cluster.run_until("the orphan looks", Duration::from_secs(1), |cluster| {
        cluster.root_reason(below) == Some(RootReason::Orphan)
    });
    cluster.run_for(Duration::from_secs(30));
    assert_eq!(cluster.root_reason(below), Some(RootReason::Content));
    cluster.drain(below);
    assert!(!cluster.is_alive(below), "nobody needs it");
}

/// H2, B23, B24: delays of up to 200 ms of every single message are no reason to take anybody for dead.
/// (`cargo simulate -- --calm` looks on for longer.)
#[test]
fn late_messages_are_no_false_alarm() {
    for_seeds(0..3, |seed| {
        let found = calm::run(seed, 50, Duration::from_secs(60), calm::JITTER);
        assert_eq!(found, FalseAlarms::NONE);
    });
}

/// That the run above would find false alarms: delays beyond the timeout make many.
#[test]
fn messages_later_than_the_timeout_are_taken_for_silence() {
    let found = calm::run(1, 20, Duration::from_secs(60), Duration::from_secs(4));
    assert!(found.silent_links > 0 && found.moves > 0, "{found:?}");
}
