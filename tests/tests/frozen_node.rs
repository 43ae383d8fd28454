//! Part II, Liveness: a frozen process keeps its sockets open, and is dead all the same; when it thaws it is a ghost that
//! must find its way back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use arborcast_tests::forest::{Forest, Place, Shape};

#[track_caller]
fn freeze_and_thaw(choose: impl Fn(&Shape) -> Place) {
    let mut forest = Forest::grow(2, 5);
    let victim = choose(&forest.shape());
    forest.freeze(victim);
    forest.wait_until_one_tree();
    forest.thaw(victim);
    forest.wait_until_one_tree();
}

/// Its children give it up after the timeout, and so does its parent.
#[test]
fn an_inner_node_freezes_and_returns() {
    freeze_and_thaw(|shape| shape.inner()[0]);
}

/// A root that returns believes that it still is one.
#[test]
fn the_root_freezes_and_returns_without_being_a_second_root() {
    freeze_and_thaw(Shape::root);
}
