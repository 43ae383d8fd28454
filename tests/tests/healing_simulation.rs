//! Trees that heal, in virtual time (protocol, Fragments and reigns; Liveness; SERVER_QUIT). Advice in these runs is mostly
//! wrong: it may cost time, and never a cycle.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use arborcast_tests::cluster::Cluster;
use rand::RngExt as _;

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let first = number("SEED", 0);
    first..first + number("SEEDS", 100)
}

fn for_seeds(scenario: impl Fn(u64) + std::panic::RefUnwindSafe) {
    for seed in seeds() {
        if let Err(panic) = std::panic::catch_unwind(|| scenario(seed)) {
            eprintln!("failed with seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

fn forest(seed: u64, servers: usize) -> Cluster {
    let mut cluster = Cluster::new(seed);
    for _ in 0..servers {
        let max_children = cluster.rng.random_range(1..5);
        cluster.add_extended_server(max_children);
    }
    cluster
}

#[track_caller]
fn heals(cluster: &mut Cluster) {
    cluster.run_until("all are one tree", Duration::from_secs(120), Cluster::is_one_tree);
}

#[test]
fn servers_that_start_at_once_become_one_tree() {
    for_seeds(|seed| heals(&mut forest(seed, 12)));
}

#[test]
fn whatever_crashes_freezes_is_cut_or_drained_there_is_no_cycle_and_in_the_end_one_tree() {
    for_seeds(|seed| {
        let mut cluster = forest(seed, 12);
        for _ in 0..15 {
            // Now and then several at once, the next while the last is still being healed.
            let pause = Duration::from_millis(cluster.rng.random_range(0..6000));
            cluster.run_for(pause);
            for _ in 0..cluster.rng.random_range(1..6) {
                fault(&mut cluster);
                let pause = Duration::from_millis(cluster.rng.random_range(0..300));
                cluster.run_for(pause);
            }
        }
        for server in 0..cluster.servers() {
            cluster.thaw(server);
        }
        cluster.heal_cuts();
        cluster.masters_alive = true;
        heals(&mut cluster);
        cluster.run_for(Duration::from_secs(30));
        assert!(cluster.is_one_tree(), "it stays one tree");
        assert!(cluster.invariants.observations > 20);
    });
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
