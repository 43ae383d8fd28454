//! One simulated storm: servers that crash, start again, freeze, are cut off, lose connections and are drained, while
//! several masters lie, lag, disagree, die and come back empty. Whatever happens there is no cycle, no circle of relaying
//! links, and a reason for every root (checked by the cluster at each step). When the storm is over, all live servers that
//! can reach each other become one tree and stay one.

use std::time::Duration;

use arborcast_core::RootReason;
use rand::RngExt as _;
use rand::seq::IndexedRandom as _;

use crate::cluster::{Cluster, ServerIndex};
use crate::simulated_masters::Character;

/// How long healing may take once all faults are over. Servers that found nobody pause for up to five seconds, and much
/// of the advice they get is wrong.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long it may take until everybody is where it prefers to be. Pauses are up to a minute, and one may have to wait for
/// another to leave.
const HOMING_PATIENCE: Duration = Duration::from_secs(1200);

/// How long the tree must stay as it is.
const CALM: Duration = Duration::from_secs(30);

/// Without a move for so long a tree is balanced; longer than a server that would not move is left alone at first.
const BALANCED: Duration = Duration::from_secs(90);

/// After that whoever was told to drain has ended.
const DRAIN_GRACE: Duration = Duration::from_secs(6);

/// How long a network may take over a line at most; each storm has one of them.
const DELAYS: [Duration; 3] = [Duration::from_millis(10), Duration::from_millis(50), Duration::from_millis(200)];

/// How long the network of a line may take over a line of text.
const LINE_DELAY: Duration = Duration::from_millis(20);

/// Servers that start at the same time, each with room for one to four children.
pub fn forest(seed: u64, servers: usize) -> Cluster {
    grow(Cluster::new(seed), servers, |_| true)
}

/// The same, but in one run of four some of them have others announce themselves.
fn mixed_forest(seed: u64, servers: usize) -> Cluster {
    grow(Cluster::new(seed), servers, |server| !seed.is_multiple_of(4) || !server.is_multiple_of(3))
}

/// The same, where no master tells of other servers, so that they announce themselves.
pub fn forest_that_announces(seed: u64, servers: usize) -> Cluster {
    grow(Cluster::new(seed), servers, |_| false)
}

fn grow(mut cluster: Cluster, servers: usize, has_masters: impl Fn(ServerIndex) -> bool) -> Cluster {
    for server in 0..servers {
        cluster.have_masters = has_masters(server);
        let max_children = cluster.rng.random_range(1..5);
        cluster.add_extended_server(max_children);
    }
    cluster
}

/// The same, with one to four masters, each with vices of its own.
pub fn forest_with_masters(seed: u64, servers: usize) -> Cluster {
    with_masters(forest(seed, servers))
}

fn with_masters(mut cluster: Cluster) -> Cluster {
    let characters: Vec<_> = (0..cluster.rng.random_range(1..5)).map(|_| Character::random(&mut cluster.rng)).collect();
    cluster.set_masters(characters);
    cluster.max_delay = *DELAYS.choose(&mut cluster.rng).expect("there are some");
    cluster
}

/// Servers that start at the same time, where half of the servers prefer some other one as their parent.
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

/// Runs one storm, and returns how often something was checked.
///
/// # Panics
/// When something does not hold.
pub fn run(seed: u64, servers: usize) -> u64 {
    let mut cluster = with_masters(mixed_forest(seed, servers));
    rage(&mut cluster);
    if cluster.rng.random_bool(0.3) {
        stand_apart(&mut cluster, 2);
        settle(&mut cluster);
        cluster.heal_cuts();
    }
    settle(&mut cluster);
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
    cluster.run_until_trees(PATIENCE);
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

/// Servers in a line, each with room for so many children, and masters that are nearly always right.
///
/// # Panics
/// When they don't become a line.
pub fn line(seed: u64, servers: usize, max_children: usize, masters: usize) -> Cluster {
    let mut cluster = Cluster::new(seed);
    cluster.set_masters((0..masters).map(|_| Character::honest()));
    cluster.masters_alive = false;
    // A request climbs all of the line, and comes back, within the time that it is waited for.
    cluster.max_delay = LINE_DELAY;
    for server in 0..servers {
        let parent = server.checked_sub(1).map(|above| ("sim".to_owned(), above as u16 + 1));
        cluster.add_extended_server_below(max_children, parent);
        cluster.run_until("it is below the one before", PATIENCE, |cluster| {
            cluster.parent(server) == server.checked_sub(1)
        });
    }
    cluster.run_until_trees(PATIENCE);
    assert_eq!(cluster.depth(), servers - 1);
    cluster.masters_alive = true;
    cluster
}

/// Runs one storm while masters, of which some lie, propose moves as well. In the end the tree comes to rest. Returns how
/// often something was checked.
///
/// # Panics
/// When something does not hold.
pub fn run_balancing(seed: u64, servers: usize) -> u64 {
    let mut cluster = forest_with_masters(seed, servers);
    cluster.balance();
    rage(&mut cluster);
    settle_balanced(&mut cluster);
    cluster.invariants.observations
}

/// Lets the masters that are there give way to two honest ones, and waits until they have nothing to propose any more.
///
/// # Panics
/// When moves do not come to an end, or the servers don't stay one tree.
pub fn settle_balanced(cluster: &mut Cluster) {
    // Until they are one tree nobody proposes anything.
    cluster.set_masters([Character::honest(), Character::honest()]);
    settle(cluster);
    cluster.balance();
    let mut rounds = 0;
    loop {
        let before = (cluster.parent_changes(), cluster.proposals());
        cluster.run_for(BALANCED);
        if before == (cluster.parent_changes(), cluster.proposals()) {
            break;
        }
        rounds += 1;
        assert!(rounds < 20, "servers move for ever: {:?}", cluster.move_outcomes());
    }
    if let Some(complaint) = cluster.complaint() {
        panic!("it does not stay one tree: {complaint}");
    }
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
    end_faults(cluster);
}

/// Cuts the network into so many parts. Each server is in any of them, and so is each master.
pub fn partition(cluster: &mut Cluster, parts: usize) {
    let (servers, masters) = (cluster.servers(), cluster.masters());
    let mut side = |count: usize| (0..count).map(|_| cluster.rng.random_range(0..parts)).collect::<Vec<_>>();
    let (servers, masters) = (side(servers), side(masters));
    cluster.partition(|server| servers[server], |master| masters[master]);
}

/// Cuts the network into so many parts, each with a master at least, for new servers that have heard of nobody else.
pub fn stand_apart(cluster: &mut Cluster, parts: usize) {
    for _ in cluster.masters()..parts {
        let character = Character::random(&mut cluster.rng);
        cluster.add_master(character);
    }
    let sides: Vec<_> = (0..cluster.servers()).map(|_| cluster.rng.random_range(0..parts)).collect();
    cluster.partition(|server| sides[server], |master| master % parts);
}

/// Waits until all live servers that can reach each other are one tree, and looks whether they stay one.
///
/// # Panics
/// When they don't.
pub fn settle(cluster: &mut Cluster) {
    cluster.run_for(DRAIN_GRACE);
    cluster.run_until_trees(PATIENCE);
    cluster.run_for(CALM);
    if let Some(complaint) = cluster.complaint() {
        panic!("it does not stay one tree: {complaint}");
    }
    // One that is alone has no tree, whether it had one before or not. To ask everybody who is remembered takes a while.
    let is_content = |reason| matches!(reason, Some(RootReason::Content | RootReason::Unsettled));
    cluster.run_until("every root is content", PATIENCE, |cluster| {
        cluster.roots().into_iter().all(|root| is_content(cluster.root_reason(root)))
    });
}

fn end_faults(cluster: &mut Cluster) {
    for server in 0..cluster.servers() {
        cluster.thaw(server);
    }
    cluster.heal_cuts();
    for master in 0..cluster.masters() {
        cluster.restart_master(master);
    }
    cluster.masters_alive = true;
}

fn fault(cluster: &mut Cluster) {
    let server = cluster.rng.random_range(0..cluster.servers());
    let other = cluster.rng.random_range(0..cluster.servers());
    let master = cluster.rng.random_range(0..cluster.masters());
    match cluster.rng.random_range(0..100) {
        0..20 if cluster.is_alive(server) => cluster.crash(server),
        20..44 if !cluster.is_alive(server) => {
            let keeps_disk = cluster.rng.random();
            cluster.restart(server, keeps_disk);
        }
        44..52 if cluster.is_alive(server) => cluster.freeze(server),
        52..62 => cluster.thaw(server),
        62..69 => cluster.cut(server, other),
        69..74 => {
            cluster.cut(server, other);
            cluster.cut(other, server);
        }
        74..76 => partition(cluster, 2),
        76..81 => cluster.heal_cuts(),
        81..86 if cluster.is_alive(server) && !cluster.is_frozen(server) => cluster.reset_link(server),
        86..91 if cluster.is_alive(server) && !cluster.is_frozen(server) => cluster.drain(server),
        91..94 if cluster.is_master_alive(master) => cluster.crash_master(master),
        94..98 => cluster.restart_master(master),
        98.. => cluster.cut_from_master(server, master),
        _ => {}
    }
}
