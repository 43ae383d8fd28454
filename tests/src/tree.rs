//! Several servers, in a shape, that know each other.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use crate::lines;
use crate::node::{Node, NodeBuilder};
use crate::peer::{Arrival, Peer};
use crate::wait::{self, PATIENCE};

/// Short enough that a tree knows itself soon, long enough that three of them pass only on a machine that stands still.
const ANNOUNCE_INTERVAL: Duration = Duration::from_millis(500);

/// Servers joined to a tree. The first is its root.
#[derive(Debug)]
pub struct Tree {
    /// The servers; a parent stands before its children.
    pub nodes: Vec<Node>,
}

impl Tree {
    /// Each server is the child of the one before it.
    #[track_caller]
    pub fn line(size: usize) -> Self {
        Self::grow(size, |child| child - 1)
    }

    /// All servers are children of the first.
    #[track_caller]
    pub fn star(size: usize) -> Self {
        Self::grow(size, |_| 0)
    }

    /// Every server has up to two children, level by level.
    #[track_caller]
    pub fn binary(size: usize) -> Self {
        Self::grow(size, |child| (child - 1) / 2)
    }

    #[track_caller]
    fn grow(size: usize, parent_of: impl Fn(usize) -> usize) -> Self {
        let builder = || NodeBuilder::default().announce_every(ANNOUNCE_INTERVAL);
        let mut nodes = vec![builder().start()];
        for child in 1..size {
            let parent = nodes[parent_of(child)].address();
            nodes.push(builder().parent(parent).start());
        }
        let tree = Self { nodes };
        wait_until_all_know_each_other(&tree.nodes.iter().collect::<Vec<_>>());
        tree
    }

    /// Where a server listens.
    pub fn address(&self, node: usize) -> SocketAddr {
        self.nodes[node].address()
    }

    /// The places of the servers without children, in a tree from [`binary`](Self::binary).
    pub fn leaves_of_binary(&self) -> std::ops::Range<usize> {
        self.nodes.len() / 2..self.nodes.len()
    }
}

/// What a server passes on to a link that only listens, it has learned; so it knows all others when all of their
/// announcements were seen there.
#[track_caller]
pub fn wait_until_all_know_each_other(nodes: &[&Node]) {
    let mut observers: Vec<Peer> = nodes.iter().map(|node| Peer::link(node.address())).collect();
    for (observer, own) in observers.iter_mut().zip(nodes) {
        let others = nodes.iter().map(|node| node.id()).filter(|id| *id != own.id());
        let mut missing: BTreeSet<String> = others.map(str::to_owned).collect();
        while !missing.is_empty() {
            let announcement = observer.expect_announcement();
            missing.remove(announcement["id"].as_str().unwrap_or_default());
        }
    }
}

/// Waits until each extended node knows so many others, by announcements or from masters. What it knows it tells to
/// whoever logs in for an extended session.
#[track_caller]
pub fn wait_until_each_knows(nodes: &[&Node], others: usize) {
    for node in nodes {
        wait::until(PATIENCE, || {
            let mut client = Peer::connect(node.address());
            client.send(r#"{"command":"LOGIN","username":"anonymous","resume":{"session":"curious"}}"#);
            let known = client.expect_command("LOGIN_SUCCESS")["servers"].as_array().map_or(0, Vec::len);
            if known >= others { Ok(()) } else { Err(format!("it knows only {known}")) }
        });
    }
}

/// Waits until an activity published at one node reaches a client of the other.
#[track_caller]
pub fn wait_until_linked(one: &Node, other: &Node) {
    let (mut publisher, mut reader) = (Peer::anonymous(one.address()), Peer::anonymous(other.address()));
    wait::until(PATIENCE, || {
        publisher.send(lines::anonymous_activity(r#"{"verb":"reach"}"#));
        match reader.arrival(Duration::from_millis(100)) {
            Arrival::Line(_) => Ok(()),
            other => Err(format!("nothing has reached the other node: {other:?}")),
        }
    });
}
