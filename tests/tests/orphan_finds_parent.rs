//! Part II, promise 1: any node dies, and the others are one tree again without an operator.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use arborcast_tests::forest::{Forest, Place, Shape};

/// Kills some servers of a tree of seven; the others are one tree again, and also when the victims are back at their
/// addresses.
#[track_caller]
fn kill_and_restart(choose: impl Fn(&Shape) -> Vec<Place>) {
    let mut forest = Forest::grow(2, 7);
    let victims = choose(&forest.shape());
    forest.kill_all(&victims);
    forest.wait_until_one_tree();
    for victim in victims {
        forest.start(victim);
    }
    forest.wait_until_one_tree();
}

/// Nobody is orphaned.
#[test]
fn a_leaf_is_killed() {
    kill_and_restart(|shape| vec![shape.leaves()[0]]);
}

/// Its children find a new parent.
#[test]
fn an_inner_node_is_killed() {
    kill_and_restart(|shape| vec![shape.inner()[0]]);
}

/// Its children have equal rights, and only one of them becomes the root.
#[test]
fn the_root_is_killed() {
    kill_and_restart(|shape| vec![shape.root()]);
}

/// Two that have nothing to do with each other.
#[test]
fn two_nodes_are_killed_at_once() {
    kill_and_restart(|shape| {
        let inner = shape.inner()[0];
        let is_apart = |leaf: &Place| !shape.children_of(inner).contains(leaf);
        vec![inner, shape.leaves().into_iter().find(is_apart).unwrap()]
    });
}

/// The root, and the child that would have taken over or led its siblings elsewhere.
#[test]
fn a_parent_and_its_child_are_killed_at_once() {
    kill_and_restart(|shape| vec![shape.root(), shape.inner()[0]]);
}
