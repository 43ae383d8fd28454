//! One simulated run of publishers and subscribers through the faults of a tree: what was acknowledged reaches everybody
//! who stays or comes back, exactly once and in order (protocol, Relay; Extended sessions).

use std::collections::BTreeSet;
use std::time::Duration;

use arborcast_proto::wire::Message;
use rand::RngExt as _;
use rand::seq::IndexedRandom as _;

use crate::cluster::{ClientIndex, Cluster, ServerIndex};
use crate::simulated_masters::Character;
use crate::storm;

/// How often clients look whether they are still served.
const TICK: Duration = Duration::from_millis(50);

/// How long a tree and its clients may take to come to rest.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a run has seen.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Faults that struck.
    pub faults: u64,
    /// Activities published, all of which were acknowledged in the end.
    pub published: u64,
    /// Activities that reached a client, all clients together.
    pub delivered: u64,
    /// Moves that masters proposed and servers made, as far as those remember.
    pub moves: u64,
}

/// Servers that are one tree, with a client at each that is logged in.
pub fn tree_with_clients(seed: u64, servers: usize) -> Cluster {
    let mut cluster = storm::forest_with_masters(seed, servers);
    cluster.run_until_trees(PATIENCE);
    add_clients(&mut cluster);
    cluster
}

/// A client of extended sessions and a plain one at each server.
fn add_clients(cluster: &mut Cluster) {
    for server in 0..cluster.servers() {
        cluster.add_resuming_client(server);
        // It stays where it is, and does not come back.
        let plain = cluster.add_client(server);
        cluster.send(plain, Message::Login { username: "anonymous".into(), secret: None, resume: None, ticket: None });
    }
    // Who is in may still be sent on, several times: all are told of the same loads.
    for _ in 0..5 {
        cluster.run_until("all clients are in", PATIENCE, |cluster| {
            (0..cluster.clients()).all(|client| cluster.client(client).is_in())
        });
        cluster.run_for(Duration::from_secs(1));
    }
    // From here on a client that is sent elsewhere is known to have been there.
    cluster.publish_numbered(0);
    come_to_rest(cluster);
}

/// One server after the other is hurt while everybody publishes. The next fault strikes when all that was published is
/// acknowledged and the tree is one again: the promise is for any one server.
///
/// # Panics
/// When it is not kept.
pub fn run(seed: u64, servers: usize, faults: usize) -> Seen {
    let mut cluster = tree_with_clients(seed, servers);
    let mut seen = Seen::default();
    for _ in 0..faults {
        let calm = cluster.rng.random_range(0..20);
        publish_for(&mut cluster, calm);
        trouble(&mut cluster, servers, &mut seen);
    }
    check(&cluster, &mut seen);
    seen
}

/// One server is hurt, and everybody goes on publishing until some time after that; then it is repaired.
fn trouble(cluster: &mut Cluster, servers: usize, seen: &mut Seen) {
    let victim = cluster.rng.random_range(0..servers);
    hurt(cluster, victim);
    seen.faults += 1;
    let trouble = cluster.rng.random_range(10..150);
    publish_for(cluster, trouble);
    repair(cluster, victim);
    come_to_rest(cluster);
}

/// A line of servers becomes a shallow tree while everybody publishes, one server after the other is hurt, and a master makes
/// up proposals. Nothing is lost, doubled or out of order, whoever moves.
///
/// # Panics
/// When something is.
pub fn run_balancing(seed: u64, servers: usize, faults: usize) -> Seen {
    let mut cluster = storm::line(seed, servers, 2, 2);
    add_clients(&mut cluster);
    cluster.set_masters([Character::honest(), Character { lies: 0.7, ..Character::honest() }]);
    cluster.balance();
    let mut seen = Seen::default();
    for _ in 0..faults {
        publish_for(&mut cluster, 100);
        trouble(&mut cluster, servers, &mut seen);
    }
    check(&cluster, &mut seen);
    seen.moves = cluster.move_outcomes().get("moved").copied().unwrap_or_default();
    seen
}

/// Half of the servers are killed at once, a second after everything that was published until then was acknowledged.
///
/// # Panics
/// When the survivors do not become one tree, or do not have everything.
pub fn half_is_killed(seed: u64, servers: usize) -> Seen {
    let mut cluster = tree_with_clients(seed, servers);
    let mut seen = Seen::default();
    publish_for(&mut cluster, 10);
    cluster.run_until("all is acknowledged", PATIENCE, Cluster::is_all_acknowledged);
    cluster.run_for(Duration::from_secs(1));
    let mut victims: Vec<ServerIndex> = (0..servers).collect();
    for _ in 0..servers / 2 {
        let at = cluster.rng.random_range(0..victims.len());
        cluster.crash(victims.swap_remove(at));
        seen.faults += 1;
    }
    publish_for(&mut cluster, 10);
    come_to_rest(&mut cluster);
    check(&cluster, &mut seen);
    seen
}

fn publish_for(cluster: &mut Cluster, ticks: u32) {
    for _ in 0..ticks {
        for _ in 0..cluster.rng.random_range(0..3) {
            let clients = cluster.resuming_clients();
            let client = *clients.choose(&mut cluster.rng).expect("there are clients");
            cluster.publish_numbered(client);
        }
        cluster.run_for(TICK);
        cluster.tend_resuming_clients();
    }
}

fn hurt(cluster: &mut Cluster, victim: ServerIndex) {
    match cluster.rng.random_range(0..6) {
        0 | 1 => cluster.crash(victim),
        2 => cluster.freeze(victim),
        3 => cluster.drain(victim),
        4 => cluster.reset_link(victim),
        _ => {
            for other in (0..cluster.servers()).filter(|other| *other != victim) {
                cluster.cut(victim, other);
                cluster.cut(other, victim);
            }
        }
    }
}

fn repair(cluster: &mut Cluster, victim: ServerIndex) {
    cluster.thaw(victim);
    cluster.heal_cuts();
    if !cluster.is_alive(victim) {
        let keeps_disk = *[true, false].choose(&mut cluster.rng).expect("there are two");
        cluster.restart(victim, keeps_disk);
    }
}

/// Waits until the tree is one, and everything that was published is acknowledged and has come everywhere.
fn come_to_rest(cluster: &mut Cluster) {
    let mut ticks = 0;
    while !(cluster.complaint().is_none()
        && cluster.are_all_resuming_in()
        && cluster.is_all_acknowledged()
        && is_complete(cluster))
    {
        assert!(TICK * ticks < PATIENCE, "not at rest: {:?}", what_is_missing(cluster));
        cluster.run_for(TICK);
        cluster.tend_resuming_clients();
        ticks += 1;
    }
}

fn everything(cluster: &Cluster) -> BTreeSet<(String, u64)> {
    let published = |client| (0..cluster.client(client).published).map(move |n| (format!("c{client}"), n));
    cluster.resuming_clients().into_iter().flat_map(published).collect()
}

/// Those who stayed or came back have everything. The order, and that nothing comes twice, is looked at with every
/// activity that arrives.
fn is_complete(cluster: &Cluster) -> bool {
    let all = published(cluster);
    waiting(cluster).into_iter().all(|client| cluster.client(client).activities.len() as u64 == all)
}

fn published(cluster: &Cluster) -> u64 {
    cluster.resuming_clients().into_iter().map(|client| cluster.client(client).published).sum()
}

/// Clients of extended sessions, and plain ones that have never lost their server.
fn waiting(cluster: &Cluster) -> Vec<ClientIndex> {
    let resuming = cluster.resuming_clients();
    (0..cluster.clients()).filter(|client| resuming.contains(client) || cluster.client(*client).is_in()).collect()
}

fn what_is_missing(cluster: &Cluster) -> String {
    let all = everything(cluster);
    let mut text = format!("tree: {:?}, acknowledged: {}", cluster.complaint(), cluster.is_all_acknowledged());
    for client in waiting(cluster) {
        let got: BTreeSet<_> = cluster.client(client).activities.iter().cloned().collect();
        let missing: Vec<_> = all.difference(&got).take(5).collect();
        if !missing.is_empty() || !cluster.client(client).is_in() {
            let is_in = cluster.client(client).is_in();
            text += &format!("; client {client} (in: {is_in}) lacks {missing:?}");
        }
    }
    text
}

fn check(cluster: &Cluster, seen: &mut Seen) {
    assert!(is_complete(cluster), "{}", what_is_missing(cluster));
    seen.published = published(cluster);
    for client in cluster.resuming_clients() {
        assert_eq!(cluster.missed_by(client), 0, "client {client} was told of a gap");
        seen.delivered += cluster.client(client).activities.len() as u64;
    }
}
