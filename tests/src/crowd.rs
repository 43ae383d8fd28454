//! A large tree in virtual time: how it forms, what it costs while nothing happens, and how it heals.
//!
//! Clients are counted, not simulated: each goes to a live server with the fewest, as masters would send it. (Each
//! server would have to know the loads of all others to place a hundred thousand sessions one by one, and the messages
//! that are counted here are those between servers.)

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use arborcast_core::Extensions;
use rand::RngExt as _;

use crate::cluster::{Cluster, ServerIndex};
use crate::simulated_masters::Character;

/// How many servers are started at the same time, and how long after each other.
const BATCH: usize = 20;
const BETWEEN_BATCHES: Duration = Duration::from_millis(100);

/// How long all may take to become one tree.
const PATIENCE: Duration = Duration::from_secs(300);

/// How often it is looked whether the tree is healed.
const LOOK: Duration = Duration::from_millis(10);

/// For how long messages are counted while nothing happens.
const IDLE: Duration = Duration::from_secs(20);

/// After a fault nothing else happens for so long.
const CALM: Duration = Duration::from_secs(5);

/// What is to be run.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Chooses delays and victims.
    pub seed: u64,
    /// How many servers.
    pub servers: usize,
    /// How many clients.
    pub clients: usize,
    /// How many servers are killed, one after the other. The root is the last one.
    pub faults: usize,
    /// How often servers announce themselves to each other.
    pub announce_interval: Duration,
    /// The longest time a line takes over a wire: what is called a round.
    pub delay: Duration,
}

/// One server was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heal {
    /// Whether it was the root.
    pub was_root: bool,
    /// How many children lost their parent.
    pub orphans: usize,
    /// How long it took until all were one tree.
    pub took: Duration,
    /// How many announcements crossed links meanwhile and in the calm after it.
    pub announcements: u64,
    /// How many other messages, over those of a time in which nothing happens.
    pub messages: u64,
    /// How many clients went to other servers.
    pub clients: usize,
}

/// What was seen.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// How long it took from the first start until all were one tree.
    pub formed: Duration,
    /// How many messages that took, heartbeats included.
    pub messages_to_form: u64,
    /// Messages a second over all links while nothing happens, by command.
    pub idle: BTreeMap<&'static str, f64>,
    /// Depth after forming, after the last fault, and at the end.
    pub depth: [usize; 3],
    /// How long masters proposed moves after the last fault, and how many servers moved.
    pub balanced: (Duration, u64),
    /// Most children of one server, at the end.
    pub fan_out: usize,
    /// What happened to servers.
    pub heals: Vec<Heal>,
    /// Fewest, and most, clients of one live server at the end.
    pub loads: (usize, usize),
}

/// Live servers by how many clients they have.
struct Crowd {
    by_load: BTreeSet<(usize, ServerIndex)>,
    loads: BTreeMap<ServerIndex, usize>,
}

impl Crowd {
    fn new(servers: usize) -> Self {
        let all = 0..servers;
        Self {
            by_load: all.clone().map(|server| (0, server)).collect(),
            loads: all.map(|server| (server, 0)).collect(),
        }
    }

    fn add(&mut self, clients: usize) {
        for _ in 0..clients {
            let (load, server) = self.by_load.pop_first().expect("somebody lives");
            self.by_load.insert((load + 1, server));
            self.loads.insert(server, load + 1);
        }
    }

    /// Its clients go elsewhere.
    fn kill(&mut self, server: ServerIndex) -> usize {
        let load = self.loads.remove(&server).unwrap_or_default();
        self.by_load.remove(&(load, server));
        self.add(load);
        load
    }
}

/// Runs it.
///
/// # Panics
/// When the servers don't become one tree in time.
pub fn run(plan: &Plan, mut say: impl FnMut(&str)) -> Seen {
    let mut cluster = Cluster::new(plan.seed);
    cluster.max_delay = plan.delay;
    cluster.announce_interval = plan.announce_interval;
    cluster.set_masters([Character::honest(), Character::honest()]);
    cluster.balance();
    for server in 0..plan.servers {
        cluster.add_extended_server_with(Extensions::new(1, plan.seed.wrapping_add(server as u64)));
        if (server + 1) % BATCH == 0 {
            cluster.run_for(BETWEEN_BATCHES);
        }
    }
    wait_until_one_tree(&mut cluster);
    let (announcements, others) = messages(&cluster);
    let (formed, messages_to_form) = (cluster.elapsed(), announcements + others);
    say(&format!("one tree after {:.1} s, {messages_to_form} messages", formed.as_secs_f64()));
    balance(&mut cluster);
    let mut crowd = Crowd::new(plan.servers);
    crowd.add(plan.clients);
    let idle = idle(&mut cluster);
    say("counted what it costs while nothing happens");
    let formed_depth = cluster.depth();
    let others = idle.iter().filter(|(command, _)| **command != "SERVER_ANNOUNCE");
    let per_second: f64 = others.map(|(_, rate)| rate).sum();
    let mut heals = Vec::new();
    for fault in 1..=plan.faults {
        let heal = kill(&mut cluster, &mut crowd, fault == plan.faults, per_second);
        say(&format!("{heal:?}"));
        heals.push(heal);
    }
    let (damaged, began, before) = (cluster.depth(), cluster.elapsed(), moved(&cluster));
    let balanced = (balance(&mut cluster).saturating_sub(began), moved(&cluster) - before);
    let live = || (0..cluster.servers()).filter(|server| cluster.is_alive(*server));
    Seen {
        formed,
        messages_to_form,
        idle,
        depth: [formed_depth, damaged, cluster.depth()],
        balanced,
        fan_out: live().map(|server| cluster.children(server).0).max().unwrap_or(0),
        heals,
        loads: (crowd.by_load.first().map_or(0, |(load, _)| *load), crowd.by_load.last().map_or(0, |(load, _)| *load)),
    }
}

fn wait_until_one_tree(cluster: &mut Cluster) {
    let end = cluster.elapsed() + PATIENCE;
    while let Some(complaint) = cluster.complaint() {
        assert!(cluster.elapsed() < end, "not one tree: {complaint}");
        cluster.run_for(LOOK);
    }
}

/// Waits until nobody has moved for a while, and says when somebody did last.
fn balance(cluster: &mut Cluster) -> Duration {
    let mut last = cluster.elapsed();
    let mut before = cluster.parent_changes();
    while cluster.elapsed() < last + CALM {
        cluster.run_for(LOOK);
        if std::mem::replace(&mut before, cluster.parent_changes()) != cluster.parent_changes() {
            last = cluster.elapsed();
        }
    }
    last
}

fn moved(cluster: &Cluster) -> u64 {
    cluster.move_outcomes().get("moved").copied().unwrap_or_default()
}

/// Announcements, and other messages.
fn messages(cluster: &Cluster) -> (u64, u64) {
    let counts = &cluster.invariants.control_messages;
    let announcements = counts.get("SERVER_ANNOUNCE").map_or(0, |(count, _)| *count);
    (announcements, counts.values().map(|(count, _)| count).sum::<u64>() - announcements)
}

fn idle(cluster: &mut Cluster) -> BTreeMap<&'static str, f64> {
    cluster.invariants.control_messages.clear();
    cluster.run_for(IDLE);
    let counts = cluster.invariants.control_messages.iter();
    counts.map(|(command, (count, _))| (*command, *count as f64 / IDLE.as_secs_f64())).collect()
}

/// Kills the root, or some server that has children, and waits until all others are one tree.
fn kill(cluster: &mut Cluster, crowd: &mut Crowd, the_root: bool, idle_per_second: f64) -> Heal {
    let root = cluster.roots()[0];
    let victim = if the_root {
        root
    } else {
        loop {
            let server = cluster.rng.random_range(0..cluster.servers());
            if server != root && cluster.is_alive(server) && cluster.children(server).0 > 0 {
                break server;
            }
        }
    };
    let orphans = cluster.children(victim).0;
    let (began, before) = (cluster.elapsed(), messages(cluster));
    cluster.crash(victim);
    let clients = crowd.kill(victim);
    wait_until_one_tree(cluster);
    let took = cluster.elapsed() - began;
    cluster.run_for(CALM);
    let expected = (idle_per_second * (cluster.elapsed() - began).as_secs_f64()) as u64;
    let (announcements, others) = messages(cluster);
    let messages = (others - before.1).saturating_sub(expected);
    Heal { was_root: the_root, orphans, took, announcements: announcements - before.0, messages, clients }
}
