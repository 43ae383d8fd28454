//! Part II, SERVER_QUIT: a node that is told to stop hands over its children and clients, and ends by itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeSet;

use arborcast_proto::registry::NodeState;
use arborcast_tests::forest::{Forest, Place, Shape};
use arborcast_tests::lines;
use arborcast_tests::node::{Node, NodeBuilder, SECRET};
use arborcast_tests::peer::Peer;
use arborcast_tests::process::Signal;
use arborcast_tests::wait::{self, PATIENCE};

/// Tells a server of a tree of seven to stop while a leaf elsewhere publishes: it ends by itself, and the others are one
/// tree.
#[track_caller]
fn terminate_under_traffic(choose: impl Fn(&Shape) -> Place) {
    let mut forest = Forest::grow(2, 7);
    let shape = forest.shape();
    let victim = choose(&shape);
    let publisher = shape.leaves().into_iter().rfind(|leaf| *leaf != victim).unwrap();
    let traffic = forest.publish_from(publisher);
    traffic.wait_for_more(100);
    forest.terminate(victim);
    let status = forest.wait_exit(victim);
    traffic.wait_for_more(100);
    let published = traffic.end();
    assert_eq!(status.code(), Some(0), "{status}");
    forest.wait_until_one_tree();
    // How many are lost and doubled meanwhile is shown, and measured by `cargo failover`; links don't repeat them yet.
    for place in forest.awake() {
        let numbers = forest.numbers(place);
        let distinct: BTreeSet<u64> = numbers.iter().copied().collect();
        let (lost, doubled) = (published - distinct.len() as u64, numbers.len() - distinct.len());
        println!("{}: {lost} of {published} lost, {doubled} doubled", forest.id(place));
    }
}

/// Nobody has to move.
#[test]
fn a_leaf_ends_when_told_to() {
    terminate_under_traffic(|shape| shape.leaves()[0]);
}

/// Its children go to its parent.
#[test]
fn an_inner_node_ends_when_told_to() {
    terminate_under_traffic(|shape| shape.inner()[0]);
}

/// One of its children is the new root.
#[test]
fn the_root_ends_when_told_to() {
    terminate_under_traffic(Shape::root);
}

/// An operator can do the same through a master.
#[test]
fn a_master_tells_a_node_to_end() {
    let mut forest = Forest::grow(2, 5);
    let victim = forest.shape().inner()[0];
    forest.master().drain(forest.id(victim)).unwrap();
    let status = forest.wait_exit(victim);
    assert_eq!(status.code(), Some(0), "{status}");
    forest.wait_until_one_tree();
}

/// A child that does not leave holds a drain up, and who can't wait says so with a second signal.
#[test]
fn a_second_signal_ends_a_node_that_waits_for_a_child() {
    // So patient with frozen neighbours that only the drain's own grace time would end the wait.
    let builder = NodeBuilder::default().flag("--heartbeat-timeout", "60s");
    let mut forest = Forest::grow_with(1, 5, &builder);
    let shape = forest.shape();
    let victim = shape.inner()[0];
    forest.freeze(shape.children_of(victim)[0]);
    forest.terminate(victim);
    wait::until(PATIENCE, || {
        let topology = forest.master().topology()?;
        let mut reports = topology.nodes.iter().filter_map(|node| node.report.as_ref());
        let drains = reports.any(|report| report.node_id == forest.id(victim) && report.state() == NodeState::Draining);
        if drains { Ok(()) } else { Err("the node does not drain".to_owned()) }
    });
    forest.terminate(victim);
    // A drain that ends by itself, if only after its grace time, ends with 0.
    let status = forest.wait_exit(victim);
    assert_eq!(status.code(), Some(1), "{status}");
}

/// A child played by the test, which never leaves by itself and sends no heartbeats.
#[track_caller]
fn child(node: &Node, id: &str) -> Peer {
    let mut child = Peer::connect(node.address());
    child.send(format!(
        r#"{{"command":"AUTHENTICATE","secret":"{SECRET}","node":{{"protocol":1,"id":"{id}","incarnation":1,"attempt":1,"hostname":"127.0.0.1","port":1,"key":{{"root":"{id}"}}}}}}"#
    ));
    child.expect_command("LINK_ACCEPTED");
    child
}

/// Who comes while a server drains is told clearly that this is no place to stay.
#[test]
fn a_draining_server_takes_no_new_links_and_no_new_users() {
    let patient = NodeBuilder::default().id("a").flag("--master", "127.0.0.1:1").flag("--heartbeat-timeout", "60s");
    let mut draining = patient.start();
    let (mut successor, mut waited_for) = (child(&draining, "b"), child(&draining, "c"));
    draining.process.signal(Signal::SIGTERM);
    for child in [&mut successor, &mut waited_for] {
        child.expect("the word that it leaves", |line| (line.command() == "SERVER_LEFT").then_some(()));
        child.expect("the word that it stops", |line| (line.command() == "SERVER_QUIT").then_some(()));
    }
    let mut plain = Peer::connect(draining.address());
    plain.send(lines::authenticate(SECRET));
    assert!(plain.expect_last("INVALID_MESSAGE").info().contains("about to stop"));
    let mut user = Peer::connect(draining.address());
    user.send(lines::register("aaron", "s3"));
    assert!(user.expect_last("REGISTER_FAILED").info().contains("about to stop"));
    drop(waited_for);
    assert_eq!(draining.process.wait_exit(PATIENCE).code(), Some(0));
}
