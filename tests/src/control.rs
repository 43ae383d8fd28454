//! Counts what servers say to each other when nothing happens, and for one registration: simulated, and by real processes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use arborcast_core::Extensions;
use arborcast_proto::wire::{Credentials, Message};

use crate::cluster::Cluster;
use crate::lines;
use crate::master::Master;
use crate::node::{Node, NodeBuilder};
use crate::peer::Peer;
use crate::scrape;
use crate::wait;

/// Most children of one server in all these trees: the default.
const MAX_CHILDREN: usize = 8;

/// How long a simulated tree is watched.
const WATCHED: Duration = Duration::from_secs(60);

/// For how long a tree has been one before it is watched. Longer than masters take to be trusted again, and than it takes
/// to find that there is nothing left to find.
const SETTLED: Duration = Duration::from_secs(30);

/// How long real processes may take to become one tree.
const PATIENCE: Duration = Duration::from_secs(120);

/// How servers find each other, and what they have to say for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// The plain protocol.
    Plain,
    /// The extensions, and no master.
    Extended,
    /// The extensions, and masters.
    WithMasters,
}

impl Manner {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Plain, Self::Extended, Self::WithMasters];

    /// For a table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Extended => "extended, no masters",
            Self::WithMasters => "with masters",
        }
    }
}

/// What was counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Counts {
    /// Control messages over all links in a second in which nothing happens.
    pub idle: f64,
    /// Of these, SERVER_ANNOUNCE.
    pub announcements: f64,
    /// Messages over all links because of one registration.
    pub registration: f64,
}

/// Counts in virtual time, with the default intervals.
pub fn simulated(servers: usize, manner: Manner) -> Counts {
    let mut cluster = idle_cluster(servers, manner);
    cluster.invariants.control_messages.clear();
    cluster.run_for(WATCHED);
    let idle: u64 = cluster.invariants.control_messages.values().map(|(messages, _)| messages).sum();
    let announcements = cluster.invariants.control_messages.get("SERVER_ANNOUNCE").map_or(0, |(messages, _)| *messages);
    cluster.invariants.control_messages.clear();
    let client = cluster.add_client(servers / 2);
    let credentials = Credentials { username: "aaron".into(), secret: "s3".into() };
    cluster.send(client, Message::Register { credentials, ticket: None });
    cluster.run_for(Duration::from_secs(30));
    assert!(matches!(cluster.client(client).answers[..], [Message::RegisterSuccess { .. }]));
    let registration = cluster.invariants.control_messages.iter().filter(|(command, _)| is_about_users(command));
    let registration: u64 = registration.map(|(_, (messages, _))| messages).sum();
    let per_second = |messages: u64| messages as f64 / WATCHED.as_secs_f64();
    Counts { idle: per_second(idle), announcements: per_second(announcements), registration: registration as f64 }
}

/// A simulated tree in which nothing has happened for a while.
pub fn idle_cluster(servers: usize, manner: Manner) -> Cluster {
    if manner == Manner::Plain {
        let parents: Vec<usize> = (1..servers).map(parent_of).collect();
        return Cluster::tree(servers as u64, &parents);
    }
    let mut cluster = Cluster::new(servers as u64);
    cluster.have_masters = manner == Manner::WithMasters;
    cluster.announce_interval = Duration::from_secs(5);
    for server in 0..servers {
        cluster.add_extended_server_with(Extensions::new(1, server as u64));
    }
    cluster.run_until_trees(Duration::from_secs(300));
    cluster.run_for(SETTLED);
    cluster
}

fn is_about_users(command: &str) -> bool {
    command.starts_with("LOCK_") || command.starts_with("USER_")
}

fn parent_of(server: usize) -> usize {
    (server - 1) / MAX_CHILDREN
}

/// The same of real processes, by what they say at /metrics.
///
/// # Panics
/// When they do not become one tree.
pub fn measured(servers: usize, manner: Manner) -> Counts {
    const REGISTRATIONS: usize = 10;
    let masters: Vec<Master> = (0..2).filter(|_| manner == Manner::WithMasters).map(|_| Master::start()).collect();
    let builder = masters.iter().fold(NodeBuilder::default(), |it, master| it.flag("--master", master.address()));
    let builder = builder.announce_every(Duration::from_secs(5)).flag("--http", "127.0.0.1:0");
    let builder = if manner == Manner::Extended { builder.extended() } else { builder };
    let mut nodes: Vec<Node> = Vec::new();
    for server in 0..servers {
        let builder = builder.clone().id(&format!("n{server:03}"));
        let parent = (manner != Manner::WithMasters && server > 0).then(|| nodes[parent_of(server)].address());
        nodes.push(parent.map_or_else(|| builder.clone(), |parent| builder.clone().parent(parent)).start());
    }
    let pages: Vec<SocketAddr> = nodes.iter().map(|node| scrape::http_address(&node.process)).collect();
    wait::until(PATIENCE, || {
        let links: f64 = total(&pages, r#"arborcast_node_connections{kind="server"}"#);
        if links == 2.0 * (servers - 1) as f64 { Ok(()) } else { Err(format!("{links} ends of links")) }
    });
    // What is counted is a rate in time, so time has to pass.
    std::thread::sleep(SETTLED);
    let (began, before) = (Instant::now(), link_messages(&pages));
    std::thread::sleep(WATCHED / 2);
    let (took, after) = (began.elapsed().as_secs_f64(), link_messages(&pages));
    for registration in 0..REGISTRATIONS {
        let mut client = Peer::connect(nodes[registration * servers / REGISTRATIONS].address());
        client.send(lines::register(&format!("user-{registration}"), "s3"));
        client.expect_command("REGISTER_SUCCESS");
    }
    // The last may be on their way.
    std::thread::sleep(Duration::from_secs(1));
    let registered = link_messages(&pages);
    Counts {
        idle: (after.all - before.all) / took,
        announcements: (after.announcements - before.announcements) / took,
        registration: (registered.about_users - after.about_users) / REGISTRATIONS as f64,
    }
}

#[derive(Default)]
struct LinkMessages {
    all: f64,
    announcements: f64,
    about_users: f64,
}

fn link_messages(pages: &[SocketAddr]) -> LinkMessages {
    let mut found = LinkMessages::default();
    for page in pages {
        for line in scrape::metrics(*page).lines() {
            let Some((command, count)) = line
                .strip_prefix(r#"arborcast_node_link_messages_total{command=""#)
                .and_then(|rest| rest.split_once("\"} "))
            else {
                continue;
            };
            let count: f64 = count.parse().expect("a metric is a number");
            found.all += count;
            found.announcements += if command == "SERVER_ANNOUNCE" { count } else { 0.0 };
            found.about_users += if is_about_users(command) { count } else { 0.0 };
        }
    }
    found
}

fn total(pages: &[SocketAddr], name: &str) -> f64 {
    pages.iter().filter_map(|page| scrape::value(&scrape::metrics(*page), name)).sum()
}
