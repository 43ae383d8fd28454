//! Part II: masters advise and nodes decide; without them the tree heals as well, only later.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use arborcast_tests::forest::Forest;

/// Any number of masters, which never talk to each other: one is enough.
#[test]
fn with_one_master_dead_orphans_ask_the_other() {
    let mut forest = Forest::grow(2, 5);
    let victim = forest.shape().inner()[0];
    forest.kill_master(0);
    forest.kill(victim);
    forest.wait_until_one_tree();
}

/// Orphans try the servers that they remember; masters that come back empty know everybody again.
#[test]
fn with_all_masters_dead_orphans_find_each_other_and_restarted_masters_know_them() {
    let mut forest = Forest::grow(2, 7);
    forest.wait_until_all_know_each_other();
    let shape = forest.shape();
    forest.kill_masters();
    forest.wait_until_one_tree();
    forest.kill(shape.inner()[0]);
    forest.wait_until_one_tree();
    forest.kill(shape.root());
    forest.wait_until_one_tree();
    forest.restart_masters();
    forest.wait_until_one_tree();
    forest.start(shape.root());
    forest.wait_until_one_tree();
}
