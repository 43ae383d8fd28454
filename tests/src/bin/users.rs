//! `cargo users`: what many users cost: starting with them, logging them in, and registering them, with etcd as well.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a benchmark fails by panicking, like the harness it uses"
)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use arborcast_tests::forest::Forest;
use arborcast_tests::keepers::{self, Keepers};
use arborcast_tests::node::{Node, NodeBuilder, SECRET};
use arborcast_tests::peer::Peer;
use arborcast_tests::process::node_binary;
use arborcast_tests::{etcd, lines};
use clap::Parser;
use serde_json::{Value, json};

/// How often a start is timed.
const STARTS: usize = 5;

/// Registrations that are timed one after the other.
const ALONE: usize = 51;

/// Users of one line.
const USERS_A_LINE: usize = 200;

/// Measures a node with many users. Prints Markdown; no result is judged.
#[derive(Parser)]
#[command(name = "cargo users")]
struct Cli {
    /// Users on disk
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    users: usize,
    /// Logins that are timed, of as many users
    #[arg(long, value_name = "N", default_value_t = 1000)]
    logins: usize,
    /// Connections that log in at a time
    #[arg(long, value_name = "N", default_value_t = 64)]
    at_a_time: usize,
}

fn main() {
    let cli = Cli::parse();
    let directory = tempfile::tempdir().expect("a directory can be made");
    let empty = tempfile::tempdir().expect("a directory can be made");
    // Built here, if that has not been done, and not in the first start.
    node_binary();
    println!("| what | result |\n|---|---|");
    println!("| start with no users | {} |", starts(empty.path()));
    let node = start(directory.path());
    let learned = teach(&node, cli.users, directory.path());
    println!(
        "| learning {} users from a neighbour, until they are on disk | {:.1} s |",
        cli.users,
        learned.as_secs_f64()
    );
    println!("| memory in use then | {} MiB |", node.process.resident_bytes() >> 20);
    drop(node);
    println!("| start with {} users | {} |", cli.users, starts(directory.path()));

    let node = start(directory.path());
    let cold = log_in(node.address(), &cli, &BTreeMap::new());
    println!("| first logins, {} at a time | {:.0} a second |", cli.at_a_time, cold.a_second);
    let warm = log_in(node.address(), &cli, &BTreeMap::new());
    println!("| further logins, {} at a time | {:.0} a second |", cli.at_a_time, warm.a_second);
    drop(node);
    let node = start(directory.path());
    let elsewhere = log_in(node.address(), &cli, &warm.proofs);
    println!(
        "| logins of those who were in elsewhere, at a node that has just started | {:.0} a second |",
        elsewhere.a_second
    );
    let forest = Forest::grow_with(2, 3, &NodeBuilder::default());
    registrations("in a tree of three nodes", forest.address(0), &cli);
    drop(forest);
    if etcd::is_installed() {
        for members in [1, 3] {
            let keepers = Keepers::start(members, 2, 3);
            let name = format!("with etcd of {members} on the same disk, and three nodes");
            registrations(&name, keepers.at(0), &cli);
        }
    }
}

/// New users, one after the other and many at a time.
fn registrations(name: &str, at: SocketAddr, cli: &Cli) {
    let mut times: Vec<Duration> = (0..ALONE)
        .map(|user| {
            let began = Instant::now();
            keepers::registers(at, &format!("alone{user}"), "sesame");
            began.elapsed()
        })
        .collect();
    times.sort();
    let (next, began) = (AtomicUsize::new(0), Instant::now());
    thread::scope(|scope| {
        for _ in 0..cli.at_a_time {
            scope.spawn(|| {
                while let user = next.fetch_add(1, Ordering::Relaxed)
                    && user < cli.logins
                {
                    keepers::registers(at, &format!("many{user}"), "sesame");
                }
            });
        }
    });
    println!(
        "| registering {name} | median {} ms alone; {:.0} a second, {} at a time |",
        times[ALONE / 2].as_millis(),
        cli.logins as f64 / began.elapsed().as_secs_f64(),
        cli.at_a_time
    );
}

fn start(directory: &Path) -> Node {
    NodeBuilder::default().id("tree").flag("--master", "127.0.0.1:1").flag("--data-dir", directory.display()).start()
}

/// From the start of the process to its `listening on`; the shortest and the longest of some.
fn starts(directory: &Path) -> String {
    let mut times: Vec<Duration> = (0..STARTS)
        .map(|_| {
            let began = Instant::now();
            let _node = start(directory);
            began.elapsed()
        })
        .collect();
    times.sort();
    let milliseconds = |index: usize| times.get(index).map_or(0, Duration::as_millis);
    format!("{} to {} ms", milliseconds(0), milliseconds(STARTS - 1))
}

/// Plays a neighbour that knows many users. All have the same secret.
fn teach(node: &Node, users: usize, directory: &Path) -> Duration {
    let mut link = Peer::connect(node.address());
    let applicant = json!({"protocol": 1, "id": "u", "incarnation": 1, "attempt": 1, "hostname": "localhost", "port": 1, "key": {"root": "u"}});
    link.send(json!({"command": "AUTHENTICATE", "secret": SECRET, "node": applicant}).to_string());
    link.expect("LINK_ACCEPTED", |line| (line.command() == "LINK_ACCEPTED").then_some(()));
    let mut client = Peer::connect(node.address());
    client.send(lines::register("first", "sesame"));
    let registration =
        link.expect("USER_PREPARE", |line| (line.command() == "USER_PREPARE").then(|| line["registration"].clone()));
    link.send(json!({"command": "USER_VOTE", "registration": registration, "username": "first"}).to_string());
    let first: Value =
        link.expect("USER_COMMIT", |line| (line.command() == "USER_COMMIT").then(|| line["user"].clone()));

    let began = Instant::now();
    let names: Vec<usize> = (0..users).collect();
    for names in names.chunks(USERS_A_LINE) {
        let record = |name: &usize| {
            let mut record = first.clone();
            record["username"] = format!("user{name}").into();
            record
        };
        let records: Vec<Value> = names.iter().map(record).collect();
        link.send(json!({"command": "USER_RECORDS", "users": records}).to_string());
        link.send(r#"{"command":"HEARTBEAT"}"#);
    }
    // Written when the file is left alone for a while.
    let file = directory.join("users.redb");
    let changed = || std::fs::metadata(&file).and_then(|metadata| metadata.modified()).expect("the file is there");
    let mut last = (changed(), Instant::now());
    while last.1.elapsed() < Duration::from_secs(1) {
        link.send(r#"{"command":"HEARTBEAT"}"#);
        thread::sleep(Duration::from_millis(20));
        let now = changed();
        if now != last.0 {
            last = (now, Instant::now());
        }
    }
    last.1.duration_since(began)
}

/// How logging in went.
struct Logins {
    a_second: f64,
    /// What each user was given for its next login.
    proofs: BTreeMap<usize, Value>,
}

/// Logs users in, each on a connection of its own, and with what it was given before.
fn log_in(at: SocketAddr, cli: &Cli, shown: &BTreeMap<usize, Value>) -> Logins {
    let (next, proofs) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..cli.at_a_time {
            scope.spawn(|| {
                while let user = next.fetch_add(1, Ordering::Relaxed)
                    && user < cli.logins
                {
                    let mut resume = json!({"session": user.to_string()});
                    if let Some(proof) = shown.get(&user) {
                        resume["proof"] = proof.clone();
                    }
                    let mut client = Peer::connect(at);
                    let name = format!("user{user}");
                    client.send(
                        json!({"command": "LOGIN", "username": name, "secret": "sesame", "resume": resume}).to_string(),
                    );
                    let proof = client.expect("LOGIN_SUCCESS", |line| {
                        (line.command() == "LOGIN_SUCCESS").then(|| line["proof"].clone())
                    });
                    proofs.lock().unwrap_or_else(PoisonError::into_inner).insert(user, proof);
                }
            });
        }
    });
    let a_second = cli.logins as f64 / began.elapsed().as_secs_f64();
    Logins { a_second, proofs: proofs.into_inner().unwrap_or_else(PoisonError::into_inner) }
}
