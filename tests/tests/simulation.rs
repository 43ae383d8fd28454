//! Whole trees of cores in virtual time: named scenarios, and seeded random runs whose invariants are checked at every
//! line that crosses a wire. A failing run prints its seed; the same seed replays it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeMap;
use std::time::Duration;

use arborcast_proto::wire::{Credentials, Message};
use arborcast_tests::cluster::{ClientIndex, Cluster, ServerIndex};
use arborcast_tests::seeds::for_seeds;
use rand::RngExt as _;
use rand::seq::IndexedRandom as _;

const SEEDS: u64 = 300;

fn pair(username: &str, secret: &str) -> Credentials {
    Credentials { username: username.into(), secret: secret.into() }
}

fn login(username: &str, secret: &str) -> Message {
    Message::Login { username: username.into(), secret: Some(secret.into()), resume: None, ticket: None }
}

fn anonymous() -> Message {
    Message::Login { username: "anonymous".into(), secret: None, resume: None, ticket: None }
}

fn line(servers: usize) -> Vec<ServerIndex> {
    (0..servers - 1).collect()
}

fn binary_tree(servers: usize) -> Vec<ServerIndex> {
    (1..servers).map(|server| (server - 1) / 2).collect()
}

/// Logs clients in and waits until all have settled somewhere.
fn logged_in(cluster: &mut Cluster, servers: impl IntoIterator<Item = ServerIndex>) -> Vec<ClientIndex> {
    let clients: Vec<_> = servers.into_iter().map(|server| cluster.add_client(server)).collect();
    for client in &clients {
        cluster.send(*client, anonymous());
    }
    cluster.run_until("all are logged in, and no redirect is on its way", Duration::from_secs(30), |cluster| {
        let load: usize = (0..cluster.servers()).map(|server| cluster.view(server).load).sum();
        load == clients.len() && clients.iter().all(|client| cluster.client(*client).is_in())
    });
    clients
}

/// Tries a login at one server, and says how it ended.
fn can_log_in(cluster: &mut Cluster, server: ServerIndex, credentials: &Credentials) -> bool {
    let client = cluster.add_client(server);
    cluster.send(client, login(&credentials.username, credentials.secret.expose()));
    let is_answered = |cluster: &Cluster| !cluster.client(client).answers.is_empty();
    cluster.run_until("the login is answered", Duration::from_secs(4), is_answered);
    cluster.disconnect(client);
    matches!(cluster.client(client).answers[0], Message::LoginSuccess { .. })
}

/// Activities: no duplicates, one sender's order is kept everywhere, the sender is included.
#[test]
fn in_a_line_of_five_every_activity_reaches_every_client_once_and_in_order() {
    let mut cluster = Cluster::tree(1, &line(5));
    let clients = logged_in(&mut cluster, 0..5);
    for _ in 0..2000 {
        cluster.publish(clients[2]);
    }
    cluster.run_for(Duration::from_secs(60));
    let expected: Vec<_> = (0..2000).map(|number| (format!("c{}", clients[2]), number)).collect();
    for client in clients {
        assert_eq!(cluster.client(client).activities, expected);
    }
}

/// Registration, steps 3 and 4.
#[test]
fn a_name_registered_at_one_leaf_can_log_in_at_every_server_of_a_tree_of_fifteen() {
    let mut cluster = Cluster::tree(2, &binary_tree(15));
    let client = cluster.add_client(14);
    cluster.send(client, Message::Register { credentials: pair("aaron", "s"), ticket: None });
    cluster.run_for(Duration::from_secs(4));
    assert!(matches!(cluster.client(client).answers[..], [Message::RegisterSuccess { .. }]));
    for server in 0..15 {
        assert!(can_log_in(&mut cluster, server, &pair("aaron", "s")), "at server {server}");
        assert!(!can_log_in(&mut cluster, server, &pair("aaron", "t")), "at server {server}");
    }
}

/// Registration, "a server that receives LOCK_REQUEST".
#[test]
fn the_same_name_registered_at_two_leaves_at_once_never_succeeds_twice() {
    for_seeds(0..SEEDS, |seed| {
        let mut cluster = Cluster::tree(seed, &binary_tree(15));
        let apart = Duration::from_millis(cluster.rng.random_range(0..300));
        let (left, right) = (cluster.add_client(7), cluster.add_client(14));
        cluster.send(left, Message::Register { credentials: pair("aaron", "left"), ticket: None });
        cluster.run_for(apart);
        cluster.send(right, Message::Register { credentials: pair("aaron", "right"), ticket: None });
        cluster.run_for(Duration::from_secs(15));

        let has_won = |client| match cluster.client(client).answers[..] {
            [Message::RegisterSuccess { .. }] => true,
            [Message::RegisterFailed { .. }] => false,
            ref answers => panic!("one answer was expected: {answers:?}"),
        };
        let (left, right) = (has_won(left), has_won(right));
        assert!(!(left && right));
        for server in [0, 3, 7, 9, 14] {
            assert_eq!(can_log_in(&mut cluster, server, &pair("aaron", "left")), left);
            assert_eq!(can_log_in(&mut cluster, server, &pair("aaron", "right")), right);
        }
    });
}

/// Load and redirection: "count that client on the target's cached load", so that a surge spreads.
#[test]
fn a_surge_at_one_server_ends_spread_over_all() {
    let mut cluster = Cluster::tree(3, &binary_tree(7));
    logged_in(&mut cluster, std::iter::repeat_n(0, 70));
    let loads: Vec<_> = (0..7).map(|server| cluster.view(server).load).collect();
    // Not even: loads are announced every five seconds only, and clients that were sent on count where they no longer
    // are until then.
    assert!(loads.iter().all(|load| (5..=20).contains(load)), "{loads:?}");
}

/// Load and redirection: "expires after three intervals without an announcement, and at once when the link it was
/// learned over is lost". Servers joining: "each half goes on serving as its own tree".
#[test]
fn when_a_link_is_lost_each_half_goes_on_as_its_own_tree() {
    let mut cluster = Cluster::tree(4, &line(4));
    let clients = logged_in(&mut cluster, 0..4);
    cluster.cut_parent(2);
    assert_eq!((0..4).map(|server| cluster.view(server).servers.len()).collect::<Vec<_>>(), [3, 1, 1, 3]);
    cluster.run_for(Duration::from_secs(20));
    assert_eq!((0..4).map(|server| cluster.view(server).servers.len()).collect::<Vec<_>>(), [1, 1, 1, 1]);

    for (client, half) in [(clients[0], [0, 1]), (clients[3], [2, 3])] {
        cluster.publish(client);
        cluster.run_for(Duration::from_secs(2));
        for (other, listener) in clients.iter().enumerate() {
            let got = cluster.client(*listener).activities.contains(&(format!("c{client}"), 0));
            assert_eq!(got, half.contains(&other));
        }
    }
    let newcomer = cluster.add_client(3);
    cluster.send(newcomer, Message::Register { credentials: pair("aaron", "s"), ticket: None });
    cluster.run_for(Duration::from_secs(4));
    assert!(matches!(cluster.client(newcomer).answers[..], [Message::RegisterSuccess { .. }]));
    assert!(can_log_in(&mut cluster, 2, &pair("aaron", "s")));
    assert!(!can_log_in(&mut cluster, 0, &pair("aaron", "s")));
}

/// Registration, step 3: "a server whose link is lost is no longer waited for"; step 4: no full answer in 10 s.
#[test]
fn every_registration_is_answered_whatever_is_cut_meanwhile() {
    for_seeds(0..SEEDS, |seed| {
        let mut cluster = Cluster::tree(seed, &binary_tree(7));
        let clients: Vec<_> = (0..7).map(|server| cluster.add_client(server)).collect();
        for client in &clients {
            cluster.send(*client, Message::Register { credentials: pair(&format!("user{client}"), "s"), ticket: None });
        }
        let pause = Duration::from_millis(cluster.rng.random_range(0..1000));
        cluster.run_for(pause);
        let child = cluster.rng.random_range(1..7);
        cluster.cut_parent(child);
        cluster.run_for(Duration::from_secs(12));
        for client in clients {
            assert_eq!(cluster.client(client).answers.len(), 1);
        }
        assert!((0..7).all(|server| cluster.view(server).unsettled == 0));
    });
}

/// Random trees, random clients that come, register, log in, publish and go: the invariants hold at every line, and what
/// is published when all is quiet reaches everybody.
#[test]
fn random_runs_keep_every_invariant() {
    for_seeds(0..SEEDS, |seed| {
        let mut cluster = random_run(seed);
        let settled: Vec<_> = (0..cluster.clients()).filter(|client| cluster.client(*client).is_in()).collect();
        let before: BTreeMap<_, _> = settled.iter().map(|c| (*c, cluster.client(*c).activities.len())).collect();
        for client in &settled {
            cluster.publish(*client);
        }
        cluster.run_for(Duration::from_secs(5));
        for client in &settled {
            assert_eq!(cluster.client(*client).activities.len(), before[client] + settled.len());
        }
        for (username, secret) in cluster.invariants.winners().clone() {
            for server in 0..cluster.servers() {
                let credentials = Credentials { username: username.clone(), secret: secret.clone() };
                assert!(can_log_in(&mut cluster, server, &credentials), "{username} at server {server}");
            }
        }
        assert!(cluster.invariants.observations > 100);
    });
}

fn random_run(seed: u64) -> Cluster {
    let parents: Vec<_> = {
        let mut rng = Cluster::new(seed).rng;
        let servers = rng.random_range(1..10);
        (0..servers).map(|server| rng.random_range(0..=server)).collect()
    };
    let mut cluster = Cluster::tree(seed, &parents);
    let names = ["aaron", "berta", "clara"];
    for step in 0..120 {
        let server = cluster.rng.random_range(0..cluster.servers());
        let client = (cluster.clients() > 0).then(|| cluster.rng.random_range(0..cluster.clients()));
        match (cluster.rng.random_range(0..10), client) {
            (0..2, _) | (_, None) => {
                let client = cluster.add_client(server);
                cluster.send(client, anonymous());
            }
            (2, _) => {
                let client = cluster.add_client(server);
                let name = *names.choose(&mut cluster.rng).unwrap();
                cluster.send(
                    client,
                    Message::Register { credentials: pair(name, &format!("secret {step}")), ticket: None },
                );
                cluster.send(client, login(name, &format!("secret {step}")));
            }
            (3, Some(client)) => cluster.disconnect(client),
            (_, Some(client)) if cluster.client(client).is_in() => cluster.publish(client),
            _ => {}
        }
        let pause = Duration::from_millis(cluster.rng.random_range(0..400));
        cluster.run_for(pause);
    }
    cluster.run_for(Duration::from_secs(15));
    cluster
}

/// The same seed gives the same run, so that a failing one can be replayed.
#[test]
fn the_same_seed_gives_the_same_run() {
    let (one, other) = (random_run(7), random_run(7));
    assert_eq!(one.invariants.observations, other.invariants.observations);
    for client in 0..one.clients() {
        assert_eq!(one.client(client).answers, other.client(client).answers);
        assert_eq!(one.client(client).activities, other.client(client).activities);
    }
}

/// The invariants would notice.
#[test]
#[should_panic(expected = "registered twice")]
fn the_invariants_see_a_name_with_two_owners() {
    let mut cluster = Cluster::new(0);
    cluster.invariants.on_registered(&pair("aaron", "s"));
    cluster.invariants.on_registered(&pair("aaron", "t"));
}
