//! An extended node below a plain parent, as if that were somebody else's server (protocol, P2).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use arborcast_tests::lines;
use arborcast_tests::node::NodeBuilder;
use arborcast_tests::peer::{FakeParent, Peer};
use arborcast_tests::tree::wait_until_all_know_each_other;

/// An activity from the one client reaches the other.
#[track_caller]
fn reaches(author: &mut Peer, reader: &mut Peer, tag: u32) {
    author.send(lines::anonymous_activity(&format!(r#"{{"tag":{tag}}}"#)));
    reader.expect("the activity", |line| (line["activity"]["tag"] == tag).then_some(()));
}

#[test]
fn it_joins_there_and_comes_back_when_the_parent_does() {
    let plain = NodeBuilder::default().announce_every(Duration::from_millis(300));
    let mut parent = plain.start();
    // No master ever answers; naming one makes the node speak the extensions.
    let child = plain.clone().id("extended").parent(parent.address()).flag("--master", "127.0.0.1:1").start();
    wait_until_all_know_each_other(&[&parent, &child]);
    // One client at each, for the whole test: more, or some that have just left, might be redirected.
    let (mut at_parent, mut at_child) = (Peer::anonymous(parent.address()), Peer::anonymous(child.address()));
    reaches(&mut at_parent, &mut at_child, 1);
    reaches(&mut at_child, &mut at_parent, 2);

    let port = parent.address().port();
    drop(parent);
    parent = plain.port(port).start();
    wait_until_all_know_each_other(&[&parent, &child]);
    at_parent = Peer::anonymous(parent.address());
    reaches(&mut at_parent, &mut at_child, 3);
    reaches(&mut at_child, &mut at_parent, 4);
}

/// A parent that takes the field `node` for an error, and one that closes the connection for it.
#[test]
fn a_parent_that_can_not_bear_the_field_is_joined_without_it() {
    for says_so in [true, false] {
        let fake = FakeParent::listen();
        let process = NodeBuilder::default().parent(fake.address()).flag("--master", "127.0.0.1:1").spawn();
        // A close may have other reasons than the field: it takes two.
        for _ in 0..if says_so { 1 } else { 2 } {
            let mut rejecting = fake.accept();
            let first = rejecting.expect_command("AUTHENTICATE");
            assert!(first["node"].is_object(), "{}", first.text());
            if says_so {
                rejecting.send(r#"{"command":"INVALID_MESSAGE","info":"there must be no node"}"#);
            }
        }
        let mut link = fake.accept_link();
        link.send(lines::server_announce("parent", 0, 1));
        link.expect_announcement();
        let child = NodeBuilder::default().listening(process);
        let mut client = Peer::anonymous(child.address());
        client.send(lines::anonymous_activity(r#"{"tag":1}"#));
        link.expect("the activity", |line| (line["activity"]["tag"] == 1).then_some(()));
        link.send(lines::broadcast(r#"{"tag":2}"#));
        client.expect("the activity", |line| (line["activity"]["tag"] == 2).then_some(()));
    }
}
