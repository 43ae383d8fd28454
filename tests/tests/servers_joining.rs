//! Part I, Servers joining.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::time::{Duration, Instant};

use arborcast_tests::lines;
use arborcast_tests::node::{Node, NodeBuilder, SECRET};
use arborcast_tests::peer::{FakeParent, Peer};
use arborcast_tests::stage::{BUSY, Stage};
use arborcast_tests::tree::Tree;
use arborcast_tests::wait::{self, PATIENCE};

/// Part I, Servers joining: "A right secret gets no answer."
#[test]
fn a_right_secret_gets_no_answer() {
    let mut stage = Stage::new();
    let mut link = Peer::connect(stage.node.address());
    link.send(lines::authenticate(SECRET));
    // The announcement that a new link brings is not an answer; and nothing else comes.
    link.expect_command("SERVER_ANNOUNCE");
    stage.expect_nothing_more([&mut link]);
}

/// Part I, Servers joining: "a wrong one AUTHENTICATION_FAIL and a close".
#[test]
fn a_wrong_secret_gets_authentication_fail() {
    let node = Node::start();
    for wrong in ["xyz", "", "CLUSTER-SECRET", "cluster-secret ", "cluster-secre"] {
        let mut peer = Peer::connect(node.address());
        peer.send(lines::authenticate(wrong));
        let refusal = peer.expect_last("AUTHENTICATION_FAIL");
        assert_eq!(refusal.info(), format!("the supplied secret is incorrect: {wrong}"));
    }
}

/// Part I, Servers joining: "The dialler sends AUTHENTICATE first", and both ends announce at once.
#[test]
fn the_dialler_authenticates_first_and_announces_itself_at_once() {
    let parent = FakeParent::listen();
    let builder = NodeBuilder::default().parent(parent.address());
    let process = builder.spawn();
    let mut link = parent.accept();
    link.expect_message(&lines::authenticate(SECRET));
    let announcement = link.expect_command("SERVER_ANNOUNCE");
    link.send(lines::server_announce("parent", BUSY, 1));
    let node = builder.listening(process);
    assert_eq!(announcement["id"], node.id());
    assert_eq!(announcement["load"], 0);
    assert_eq!(announcement["hostname"], "127.0.0.1");
    assert_eq!(announcement["port"], node.address().port());
}

/// Part I, Servers joining: the acceptor announces itself at once as well. (No interval passes within this test.)
#[test]
fn the_acceptor_announces_itself_at_once() {
    let node = Node::start();
    let mut link = Peer::connect(node.address());
    link.send(lines::authenticate(SECRET));
    let announcement = link.expect_command("SERVER_ANNOUNCE");
    assert_eq!(announcement["id"], node.id());
    assert_eq!(announcement["load"], 0);
    assert_eq!(announcement["hostname"], "127.0.0.1");
    assert_eq!(announcement["port"], node.address().port());
}

/// Part I, Servers joining: "and then every interval", and not more often.
#[test]
fn a_server_announces_itself_every_interval() {
    const INTERVAL: Duration = Duration::from_millis(100);
    let before = Instant::now();
    let node = NodeBuilder::default().announce_every(INTERVAL).start();
    let mut link = Peer::link(node.address());
    for _ in 0..4 {
        assert_eq!(link.expect_announcement()["id"], node.id());
    }
    assert!(before.elapsed() >= 4 * INTERVAL, "four announcements in {:?}", before.elapsed());
}

/// Part I, Messages: SERVER_ANNOUNCE is flooded, unchanged, to all links but the one it came from.
#[test]
fn an_announcement_is_passed_on_unchanged_to_all_links_but_its_own() {
    let (mut stage, mut parent) = Stage::below_a_parent();
    let mut child = Peer::link(stage.node.address());
    let line = r#"{"x":{"unknown":[1.0,1e3]},"port":9,"hostname":"h\u0065re","command":"SERVER_ANNOUNCE","load":1000,"id":"far"}"#;
    stage.announce_line(&mut child, line);
    assert_eq!(parent.expect_announcement().text(), line);
    // What comes next on its own link is something else.
    let next = lines::server_announce("near", BUSY, 1);
    parent.send(&next);
    assert_eq!(child.expect_announcement().text(), next);
}

/// Part I, Who a connection is: a server that never named itself with `--id` still has an id of its own.
#[test]
fn servers_without_a_given_id_have_different_ones() {
    let id_of = |node: &Node| {
        let mut link = Peer::connect(node.address());
        link.send(lines::authenticate(SECRET));
        link.expect_command("SERVER_ANNOUNCE")["id"].as_str().expect("an id is a string").to_owned()
    };
    let (first, second) = (NodeBuilder::default().without_id().start(), NodeBuilder::default().without_id().start());
    assert!(!id_of(&first).is_empty());
    assert_ne!(id_of(&first), id_of(&second));
    assert_eq!(id_of(&first), id_of(&first));
}

/// Part I, Servers joining: "When a link is lost in plain mode, each half goes on serving as its own tree." The lower
/// half, whose link to its parent is lost.
#[test]
fn a_node_that_loses_its_parent_goes_on_serving() {
    let (mut stage, parent) = Stage::below_a_parent();
    let mut before = Peer::anonymous(stage.node.address());
    drop(parent);
    // The parent is forgotten with its link, so that registering needs nobody's consent any more.
    wait::until(PATIENCE, || {
        let mut client = Peer::connect(stage.node.address());
        client.send(lines::register("aaron", "s"));
        let answer = client.next_line();
        if answer.command() == "REGISTER_SUCCESS" { Ok(()) } else { Err(answer.text().to_owned()) }
    });
    let mut after = Peer::logged_in(stage.node.address(), "aaron", "s");
    after.send(lines::activity("aaron", "s", r#"{"n":1}"#));
    let broadcast = after.expect_command("ACTIVITY_BROADCAST");
    before.expect_text(broadcast.text());
    stage.observer.expect("the activity", |line| (line.text() == broadcast.text()).then_some(()));
    let exit = stage.node.process.exit_status();
    assert!(exit.is_none(), "{exit:?}");
}

/// Part I, Servers joining: the same with real servers. The middle one of three dies; both ends go on.
#[test]
fn both_halves_go_on_serving_when_the_server_between_them_dies() {
    let mut tree = Tree::line(3);
    let (mut top, mut bottom) = (Peer::anonymous(tree.address(0)), Peer::anonymous(tree.address(2)));
    drop(tree.nodes.remove(1));
    for (client, half) in [(&mut top, "top"), (&mut bottom, "bottom")] {
        client.send(lines::anonymous_activity(&format!(r#"{{"half":"{half}"}}"#)));
        assert_eq!(client.expect_command("ACTIVITY_BROADCAST")["activity"]["half"], half);
    }
    // Each half is alone now, so that the same name is free in both.
    for node in &tree.nodes {
        Peer::registered(node.address(), "aaron", node.id());
    }
    top.expect_silence();
    bottom.expect_silence();
}

/// Part I, Servers joining: "A node can be started again on its port at once", with connections of its last run still
/// in the kernel.
#[test]
fn a_node_can_be_started_again_on_its_port_at_once() {
    let node = Node::start();
    let port = node.address().port();
    let mut client = Peer::anonymous(node.address());
    let mut link = Peer::link(node.address());
    drop(node);
    let again = NodeBuilder::default().port(port).start();
    assert_eq!(again.address().port(), port);
    client.expect_gone();
    link.expect_gone();
    Peer::anonymous(again.address());
}
