//! Simulated rivals: clients that want the same names at the same time, at different servers of an extended tree, while
//! all is well or through crashes, partitions and merges.

use std::collections::BTreeMap;
use std::time::Duration;

use arborcast_proto::wire::{Credentials, Message};
use rand::RngExt as _;
use rand::seq::SliceRandom as _;

use crate::cluster::{ClientIndex, Cluster, ServerIndex, fake_hash};
use crate::storm;

/// How long healing, and what follows from it for users, may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// REGISTER of a name.
pub fn register(username: &str, secret: &str) -> Message {
    Message::Register { credentials: Credentials { username: username.into(), secret: secret.into() }, ticket: None }
}

/// LOGIN with a name.
pub fn login(username: &str, secret: &str) -> Message {
    Message::Login { username: username.into(), secret: Some(secret.into()), resume: None, ticket: None }
}

/// Servers of an extended tree that is one.
pub fn grown(seed: u64, servers: usize) -> Cluster {
    let mut cluster = storm::forest(seed, servers);
    cluster.run_until("all are one tree", PATIENCE, Cluster::is_one_tree);
    cluster.run_for(Duration::from_secs(2));
    cluster
}

/// The same, where names are registered at the masters.
pub fn grown_at_masters(seed: u64, servers: usize) -> Cluster {
    let mut cluster = Cluster::new(seed);
    for _ in 0..servers {
        let max_children = cluster.rng.random_range(1..5);
        cluster.add_extended_server_at_masters(max_children);
    }
    cluster.run_until("all are one tree", PATIENCE, Cluster::is_one_tree);
    cluster
}

/// Whether all live servers know the same users.
pub fn agree(cluster: &Cluster) -> bool {
    let mut live = (0..cluster.servers()).filter(|server| cluster.is_alive(*server));
    let first = live.next().map(|server| cluster.users(server)).unwrap_or_default();
    live.all(|server| cluster.users(server) == first)
}

/// Lets two to four clients, each at another server, register each name at nearly the same time, and others try to log in
/// meanwhile. Exactly one gets each name, all others are told, and nobody is ever in without having won.
///
/// # Panics
/// When that does not hold.
pub fn race(seed: u64, servers: usize, names: usize) -> u64 {
    let mut cluster = grown(seed, servers);
    let mut rivals: BTreeMap<String, Vec<ClientIndex>> = BTreeMap::new();
    // In microseconds: with more names more at a time.
    let longest_pause = 120_000.min(40_000_000 / names.max(1) as u64);
    for name in 0..names {
        let name = format!("user{name}");
        let mut places: Vec<ServerIndex> = (0..servers).collect();
        places.shuffle(&mut cluster.rng);
        let count = cluster.rng.random_range(2..=4.min(servers));
        for place in places.iter().take(count) {
            let client = cluster.add_client(*place);
            cluster.send(client, register(&name, &format!("secret of {client}")));
            rivals.entry(name.clone()).or_default().push(client);
            let spy = cluster.rng.random_range(0..servers);
            let spy = cluster.add_client(spy);
            cluster.send(spy, login(&name, &format!("secret of {client}")));
            let pause = Duration::from_micros(cluster.rng.random_range(0..longest_pause));
            cluster.run_for(pause);
        }
    }
    cluster.run_for(Duration::from_secs(30));
    for (name, clients) in &rivals {
        let winners = clients.iter().filter(|client| match cluster.client(**client).answers[..] {
            // In a long run who does not log in behind it is let go of in the end.
            [Message::RegisterSuccess { .. }] | [Message::RegisterSuccess { .. }, Message::InvalidMessage { .. }] => {
                true
            }
            [Message::RegisterFailed { .. }] => false,
            ref answers => panic!("one answer was expected for {name}: {answers:?}"),
        });
        assert_eq!(winners.count(), 1, "{name}");
    }
    assert!(agree(&cluster), "servers know different users");
    assert_eq!(cluster.users(0).len(), names);
    assert!((0..servers).all(|server| cluster.view(server).unsettled == 0), "something is still pending");
    cluster.invariants.check_logins();
    cluster.invariants.observations
}

/// The same through crashes, freezes, partitions and merges. Names may be had twice while servers are apart; when all are
/// one tree again all know the same users, everything that was promised is kept, and nobody is in whose registration
/// does not count.
///
/// # Panics
/// When that does not hold.
pub fn storm(seed: u64, servers: usize) -> u64 {
    let mut cluster = grown(seed, servers);
    cluster.invariants.may_be_split = true;
    blow(cluster)
}

/// The same where names are registered at the masters, which can't be asked now and then. No name ever has two owners.
///
/// # Panics
/// When that does not hold.
pub fn storm_at_masters(seed: u64, servers: usize) -> u64 {
    let cluster = grown_at_masters(seed, servers);
    blow(cluster)
}

fn blow(mut cluster: Cluster) -> u64 {
    let servers = cluster.servers();
    let mut promised: BTreeMap<ClientIndex, String> = BTreeMap::new();
    for step in 0..60 {
        for _ in 0..cluster.rng.random_range(0..3) {
            let server = cluster.rng.random_range(0..servers);
            if cluster.is_alive(server) {
                let name = format!("user{}", cluster.rng.random_range(0..20));
                let client = cluster.add_client(server);
                let secret = format!("secret of {client}");
                cluster.send(client, register(&name, &secret));
                cluster.send(client, login(&name, &secret));
                promised.insert(client, name);
            }
        }
        if step % 3 == 0 {
            fault(&mut cluster);
            cluster.tell_of_kept_users();
        }
        let pause = Duration::from_millis(cluster.rng.random_range(0..1500));
        cluster.run_for(pause);
    }
    cluster.keepers_alive = true;
    for server in 0..servers {
        cluster.thaw(server);
        cluster.fill_disk(server, false);
        if !cluster.is_alive(server) {
            cluster.restart(server, true);
        }
    }
    cluster.heal_cuts();
    cluster.tell_of_kept_users();
    cluster.run_until("all are one tree", PATIENCE, Cluster::is_one_tree);
    cluster.run_until("all know the same users", PATIENCE, agree);
    cluster.run_for(Duration::from_secs(90));
    assert!(cluster.is_one_tree() && agree(&cluster), "it does not stay so");
    assert!((0..servers).all(|server| cluster.view(server).unsettled == 0), "something is still pending");

    let names: BTreeMap<_, _> = cluster.users(0).into_iter().map(|user| (user.username.clone(), user)).collect();
    for (client, name) in promised {
        let was_told =
            cluster.client(client).answers.iter().any(|answer| matches!(answer, Message::RegisterSuccess { .. }));
        assert!(!was_told || names.contains_key(&name), "{name} was promised and is free");
        if cluster.client(client).is_in() {
            let is_owner = names[&name].hash == fake_hash(&format!("secret of {client}").into());
            assert!(is_owner, "client {client} is in as {name}, which belongs to somebody else");
        }
    }
    for server in 0..servers {
        let known: Vec<String> = names.keys().cloned().collect();
        assert_eq!(cluster.names_on_disk(server), known, "on the disk of server {server}");
    }
    cluster.invariants.observations
}

fn fault(cluster: &mut Cluster) {
    cluster.keepers_alive = cluster.kept_users.is_empty() || cluster.rng.random_bool(0.7);
    let server = cluster.rng.random_range(0..cluster.servers());
    let other = cluster.rng.random_range(0..cluster.servers());
    match cluster.rng.random_range(0..100) {
        0..25 if cluster.is_alive(server) => cluster.crash(server),
        25..50 if !cluster.is_alive(server) => cluster.restart(server, true),
        50..55 if cluster.is_alive(server) => cluster.freeze(server),
        55..65 => cluster.thaw(server),
        65..80 => {
            cluster.cut(server, other);
            cluster.cut(other, server);
        }
        80..90 => cluster.heal_cuts(),
        90..95 => cluster.fill_disk(server, true),
        95.. => cluster.fill_disk(server, false),
        _ => {}
    }
}

/// Registers one name in a quiet tree, and returns how many messages about users crossed a link, by command.
pub fn messages_for_one_registration(seed: u64, servers: usize) -> BTreeMap<&'static str, u64> {
    let mut cluster = grown(seed, servers);
    cluster.invariants.user_messages.clear();
    let server = cluster.rng.random_range(0..servers);
    let client = cluster.add_client(server);
    cluster.send(client, register("aaron", "s"));
    cluster.run_for(Duration::from_secs(30));
    assert!(matches!(cluster.client(client).answers[..], [Message::RegisterSuccess { .. }]));
    cluster.invariants.user_messages.clone()
}
