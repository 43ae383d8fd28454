//! Trees that heal, in virtual time (protocol, Fragments and reigns; Liveness; SERVER_QUIT). Half of the advice in these
//! runs is wrong: it may cost time, and never a cycle. `cargo simulate` runs many more.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use arborcast_tests::cluster::Cluster;
use arborcast_tests::storm;

/// Runs one scenario for many seeds, and says which seed failed.
fn for_seeds(seeds: std::ops::Range<u64>, scenario: impl Fn(u64) + std::panic::RefUnwindSafe) {
    for seed in seeds {
        if let Err(panic) = std::panic::catch_unwind(|| scenario(seed)) {
            eprintln!("failed with seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
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
    for_seeds(0..100, |seed| assert!(storm::run(seed, 12) > 20));
}

/// Going back to a preferred parent is subject to the same rules. It ends, and happens where it can.
#[test]
fn after_a_storm_servers_are_where_they_prefer_to_be_and_stay_there() {
    for_seeds(0..60, |seed| assert!(storm::run_homing(seed, 12) > 20));
}

#[test]
fn larger_trees_heal_as_well() {
    for_seeds(0..3, |seed| assert!(storm::run(seed, 50) > 100));
}

/// The same seed gives the same run, so that a failing one can be replayed.
#[test]
fn the_same_seed_gives_the_same_storm() {
    assert_eq!(storm::run(7, 12), storm::run(7, 12));
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
