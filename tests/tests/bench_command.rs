//! `arborcast bench` against real servers, which may die while it runs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::time::{Duration, Instant};

use arborcast_tests::node::{Node, NodeBuilder};
use arborcast_tests::process::{Process, Signal, client_binary};
use arborcast_tests::tree::wait_until_all_know_each_other;
use arborcast_tests::wait::{self, PATIENCE};
use serde_json::Value;

fn bench(nodes: &[&Node], line: &str) -> Process {
    let servers = nodes.iter().flat_map(|node| ["-rh".to_owned(), node.address().to_string()]);
    let options = ["bench", "--json"].into_iter().chain(line.split(' ')).map(str::to_owned);
    Process::start(client_binary(), options.chain(servers))
}

#[track_caller]
fn report(mut bench: Process, exit_code: i32) -> Value {
    let status = bench.wait_exit(PATIENCE);
    assert_eq!(status.code(), Some(exit_code), "{:?}", bench.stderr());
    serde_json::from_str(&bench.stdout().concat()).expect("the report is JSON")
}

#[track_caller]
fn expect(report: &Value, expected: &[(&str, u64)]) {
    for (field, expected) in expected {
        assert_eq!(report[*field], *expected, "{field} in {report}");
    }
}

/// How many lines have been printed that say that so many clients are connected.
fn progress_lines(bench: &Process, connected: &str) -> usize {
    bench.stderr().iter().filter(|line| line.contains(connected)).count()
}

#[track_caller]
fn wait_for_more_progress(bench: &Process, connected: &str) {
    let before = progress_lines(bench, connected);
    wait::until(PATIENCE, || match progress_lines(bench, connected) {
        now if now > before => Ok(()),
        _ => Err(format!("no more {connected:?} in {:?}", bench.stderr())),
    });
}

#[test]
fn everything_is_counted_once_in_plain_and_in_extended_sessions() {
    let (plain, extended) = (Node::start(), NodeBuilder::default().extended().start());
    for (node, line) in [
        (&plain, "--publishers 2 --subscribers 3 --count 3001"),
        (&plain, "--publishers 3 --subscribers 4 --rate 10000 --count 3001"),
        (&extended, "--publishers 2 --subscribers 3 --count 3001 --acknowledged"),
        (&plain, "--publishers 2 --subscribers 3 --count 3001 --size 20000 --window 10"),
    ] {
        let report = report(bench(&[node], line), 0);
        let subscribers = report["subscribers"].as_u64().unwrap();
        let deliveries = 3001 * subscribers;
        expect(&report, &[("published", 3001), ("acknowledged", 3001), ("deliveries", deliveries)]);
        expect(&report, &[("expected_deliveries", deliveries), ("lost", 0), ("doubled", 0), ("out_of_order", 0)]);
        expect(&report, &[("foreign", 0), ("lost_connections", 0), ("not_connected", 0)]);
        assert_eq!(report["interrupted"], false);
        let latency = |field: &str| report["latency_microseconds"][field].as_f64().unwrap();
        assert!(0.0 < latency("p50") && latency("p50") <= latency("p99") && latency("p99") <= latency("max"));
    }
}

#[test]
fn a_server_that_dies_shows_as_silence_and_the_clients_come_back() {
    let builder = NodeBuilder::default();
    let node = builder.start();
    let port = node.address().port();
    let bench = bench(&[&node], "--publishers 1 --subscribers 2 --rate 500 --duration 10m");
    wait_for_more_progress(&bench, "3 of 3 connected");
    let died = Instant::now();
    drop(node);
    wait_for_more_progress(&bench, "0 of 3 connected");
    let dead_for = died.elapsed();
    let _node = builder.port(port).start();
    wait_for_more_progress(&bench, "3 of 3 connected");
    wait_for_more_progress(&bench, "3 of 3 connected");
    let mut bench = bench;
    bench.signal(Signal::SIGINT);
    let report = report(bench, 130);
    expect(&report, &[("lost_connections", 3), ("not_connected", 0)]);
    assert_eq!(report["interrupted"], true);
    let silence = Duration::from_secs_f64(report["longest_silence"]["milliseconds"].as_f64().unwrap() / 1e3);
    assert!(silence >= dead_for, "{silence:?} of silence, and it was dead for {dead_for:?}");
    assert_eq!(report["longest_silence"]["server"], format!("127.0.0.1:{port}"));
}

#[test]
fn in_extended_sessions_nothing_is_lost_when_a_server_dies() {
    let builder = NodeBuilder::default().announce_every(Duration::from_millis(100)).extended();
    let root = builder.clone().start();
    let child = builder.clone().id("dies").parent(root.address()).start();
    wait_until_all_know_each_other(&[&root, &child]);
    let line = "--publishers 2 --subscribers 4 --rate 500 --duration 10m --acknowledged";
    let mut bench = bench(&[&root, &child], line);
    wait_for_more_progress(&bench, "6 of 6 connected");
    drop(child);
    wait_for_more_progress(&bench, "6 of 6 connected");
    wait_for_more_progress(&bench, "6 of 6 connected");
    bench.signal(Signal::SIGINT);
    let report = report(bench, 130);
    expect(&report, &[("lost", 0), ("doubled", 0), ("out_of_order", 0), ("gaps", 0), ("not_connected", 0)]);
    assert_eq!(report["acknowledged"], report["published"]);
    assert_eq!(report["deliveries"], report["expected_deliveries"]);
    assert!(report["lost_connections"].as_u64() > Some(0), "{report}");
}
