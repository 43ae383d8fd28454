//! Part II, Masters: they keep nothing, so one that starts again says that it may not know everybody, and knows the tree
//! again as soon as the nodes have found it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use arborcast_tests::forest::Forest;
use arborcast_tests::wait::{self, PATIENCE};

#[test]
fn one_that_starts_again_says_so_and_then_knows_the_tree() {
    let mut forest = Forest::grow(1, 5);
    let shape = forest.shape();
    forest.kill_masters();
    forest.restart_masters();
    let first = forest.master().topology().unwrap();
    assert!(first.warming, "it can't know yet: {first:?}");
    assert_eq!(forest.shape(), shape);
    wait::until(PATIENCE, || match forest.master().topology()?.warming {
        true => Err("it still says that it may not know everybody".to_owned()),
        false => Ok(()),
    });
    assert_eq!(forest.shape(), shape);
}

/// Who died while no master was there, who dies while one warms up, and who dies later: none of them is named for long.
#[test]
fn the_dead_are_not_in_its_answers() {
    let mut forest = Forest::grow(1, 6);
    let leaves = forest.shape().leaves();
    forest.kill_masters();
    forest.kill(leaves[0]);
    forest.restart_masters();
    forest.kill(leaves[1]);
    let dead = [forest.id(leaves[0]).to_owned(), forest.id(leaves[1]).to_owned()];
    wait::until(PATIENCE, || {
        let topology = forest.master().topology()?;
        let mut known = topology.nodes.iter().filter_map(|node| node.report.as_ref());
        match known.find(|report| dead.contains(&report.node_id)) {
            Some(report) => Err(format!("a dead node is known: {report:?}")),
            None if topology.nodes.len() < 4 => Err(format!("only {} are known", topology.nodes.len())),
            None => Ok(()),
        }
    });
    forest.wait_until_one_tree();
}

/// One whose stream stays open and who says nothing any more is as good as dead.
#[test]
fn a_frozen_node_is_not_in_its_answers() {
    let mut forest = Forest::grow(1, 4);
    let leaf = forest.shape().leaves()[0];
    forest.freeze(leaf);
    let id = forest.id(leaf).to_owned();
    wait::until(PATIENCE, || {
        let topology = forest.master().topology()?;
        let mut known = topology.nodes.iter().filter_map(|node| node.report.as_ref());
        if known.any(|report| report.node_id == id) { Err("it is still named".to_owned()) } else { Ok(()) }
    });
    forest.thaw(leaf);
    wait::until(Duration::from_secs(30), || match forest.master().topology()?.nodes.len() {
        4 => Ok(()),
        known => Err(format!("{known} are known")),
    });
}
