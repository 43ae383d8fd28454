//! One simulated storm: servers that crash, start again, freeze, are cut off and drained, while the masters lie, fall
//! silent and come back. Whatever happens there is no cycle (checked by the cluster whenever a parent changes), and when
//! the storm is over all live servers become one tree and stay one.

use std::time::Duration;

use rand::RngExt as _;

use crate::cluster::Cluster;

/// How long healing may take once all faults are over. Servers that found nobody pause for up to five seconds, and half
/// of the advice they get is wrong.
const PATIENCE: Duration = Duration::from_secs(300);

/// How long it may take until everybody is where it prefers to be. Pauses are up to a minute, and one may have to wait for
/// another to leave.
const HOMING_PATIENCE: Duration = Duration::from_secs(1200);

/// How long the tree must stay as it is.
const CALM: Duration = Duration::from_secs(30);

/// Servers that start at the same time, each with room for one to four children.
pub fn forest(seed: u64, servers: usize) -> Cluster {
    let mut cluster = Cluster::new(seed);
    for _ in 0..servers {
        let max_children = cluster.rng.random_range(1..5);
        cluster.add_extended_server(max_children);
    }
    cluster
}

/// The same, where half of the servers prefer some other one as their parent.
pub fn homing_forest(seed: u64, servers: usize) -> Cluster {
    let mut cluster = Cluster::new(seed);
    for server in 0..servers {
        let max_children = cluster.rng.random_range(1..5);
        let preferred = cluster.rng.random_range(0..servers);
        if preferred == server || cluster.rng.random() {
            cluster.add_extended_server(max_children);
        } else {
            cluster.add_homing_server(max_children, preferred);
        }
    }
    cluster
}

/// Runs one storm, and returns how often the tree was checked.
///
/// # Panics
/// When something does not hold.
pub fn run(seed: u64, servers: usize) -> u64 {
    let mut cluster = forest(seed, servers);
    rage(&mut cluster);
    cluster.run_for(CALM);
    assert!(cluster.is_one_tree(), "it does not stay one tree");
    cluster.invariants.observations
}

/// Runs one storm over servers that go back to a preferred parent, each of which is there in the end unless that one is
/// dead, full or below it. Returns how often the tree was checked.
///
/// # Panics
/// When something does not hold.
pub fn run_homing(seed: u64, servers: usize) -> u64 {
    let mut cluster = homing_forest(seed, servers);
    rage(&mut cluster);
    // Some have just lost a parent and don't know it yet.
    cluster.run_for(CALM);
    let is_settled = |cluster: &Cluster| {
        cluster.is_one_tree() && (0..servers).all(|server| cluster.is_home(server) || !cluster.could_go_home(server))
    };
    cluster.run_until("all are where they prefer to be", HOMING_PATIENCE, is_settled);
    let places = |cluster: &Cluster| (0..servers).map(|server| cluster.parent(server)).collect::<Vec<_>>();
    let before = places(&cluster);
    cluster.run_for(HOMING_PATIENCE);
    assert!(cluster.is_one_tree(), "it does not stay one tree");
    assert_eq!(places(&cluster), before, "somebody moves though nothing has happened");
    cluster.invariants.observations
}

/// Faults of all kinds, and then one tree.
fn rage(cluster: &mut Cluster) {
    let servers = cluster.servers();
    for _ in 0..15 {
        // Now and then several at once, the next while the last is still being healed.
        let pause = Duration::from_millis(cluster.rng.random_range(0..6000));
        cluster.run_for(pause);
        for _ in 0..cluster.rng.random_range(1..6) * servers.div_ceil(12) {
            fault(cluster);
            let pause = Duration::from_millis(cluster.rng.random_range(0..300));
            cluster.run_for(pause);
        }
    }
    for server in 0..cluster.servers() {
        cluster.thaw(server);
    }
    cluster.heal_cuts();
    cluster.masters_alive = true;
    cluster.run_until("all are one tree", PATIENCE, Cluster::is_one_tree);
}

fn fault(cluster: &mut Cluster) {
    let server = cluster.rng.random_range(0..cluster.servers());
    let other = cluster.rng.random_range(0..cluster.servers());
    match cluster.rng.random_range(0..100) {
        0..25 if cluster.is_alive(server) => cluster.crash(server),
        25..50 if !cluster.is_alive(server) => {
            let keeps_disk = cluster.rng.random();
            cluster.restart(server, keeps_disk);
        }
        50..60 if cluster.is_alive(server) => cluster.freeze(server),
        60..70 => cluster.thaw(server),
        70..80 => cluster.cut(server, other),
        80..85 => {
            cluster.cut(server, other);
            cluster.cut(other, server);
        }
        85..90 => cluster.heal_cuts(),
        90..95 if cluster.is_alive(server) && !cluster.is_frozen(server) => cluster.drain(server),
        95.. => cluster.masters_alive = !cluster.masters_alive,
        _ => {}
    }
}
