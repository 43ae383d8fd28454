//! `cargo scale`: many clients, many servers, and what they cost.
//!
//! What is measured, and how, says `tests/benches/README.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a benchmark fails by panicking")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::iter;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use arborcast_proto::registry::{FindParentRequest, FragmentKey};
use arborcast_tests::control::{self, Counts, Manner};
use arborcast_tests::lines;
use arborcast_tests::master::{Master, with_secret};
use arborcast_tests::node::{Node, NodeBuilder, SECRET};
use arborcast_tests::peer::Peer;
use arborcast_tests::process::{Process, client_binary};
use arborcast_tests::reporters::{Reporters, live};
use arborcast_tests::tree::{Tree, wait_until_all_know_each_other};
use arborcast_tests::wait;
use clap::{Parser, ValueEnum};
use memchr::memchr;
use prost::Message as _;
use serde_json::{Value, json};

/// How long one case may take beyond what it is meant to.
const PATIENCE: Duration = Duration::from_secs(180);

/// What [`processor_seconds`] is counted in.
const TICKS: f64 = 100.0;

/// For how long a master is watched.
const WATCHED: Duration = Duration::from_secs(10);

/// Most children of a server, by default.
const FAN_OUT: usize = 8;

/// The servers' default heartbeat interval.
const HEARTBEAT: Duration = Duration::from_millis(300);

/// Measures many clients and many servers. Prints Markdown; no result is judged.
#[derive(Parser)]
#[command(name = "cargo scale")]
struct Cli {
    /// Only these; all of them if none is given
    #[arg(value_enum)]
    cases: Vec<Case>,
    /// Multiplies the numbers of clients: 0.1 is a quick look
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    scale: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Case {
    /// The memory of a server without clients
    IdleNode,
    /// The memory of 10,000 clients that do nothing
    IdleClients,
    /// 10,000 clients get a message a second
    MessageASecond,
    /// A burst of 20,000 activities to 1,000 subscribers
    Burst,
    /// A line of ten servers: latency of each hop
    Line,
    /// A server with 5,000 clients dies, and they all come to the other one
    ReconnectStorm,
    /// The messages of 10, 50 and 200 simulated servers that have nothing to do, and for a registration
    Control,
    /// The same of 50 processes
    ControlProcesses,
    /// A master of 1,000 and of 10,000 servers
    Master,
    /// Anonymous logins of 5,000 connections
    Logins,
    /// Logins and heartbeats beside a publisher at full speed
    Fairness,
}

impl Case {
    fn run(self, cli: &Cli) {
        let clients = |count: usize| ((count as f64 * cli.scale) as usize).max(10);
        match self {
            Self::IdleNode => idle_node(),
            Self::IdleClients => idle_clients(clients(10_000)),
            Self::MessageASecond => message_a_second(clients(10_000)),
            Self::Burst => burst(clients(1_000)),
            Self::Line => line(),
            Self::ReconnectStorm => reconnect_storm(clients(5_000)),
            Self::Control => control(control::simulated, "simulated", &[10, 50, 200]),
            Self::ControlProcesses => control(control::measured, "processes", &[50]),
            Self::Master => [1_000, 10_000].into_iter().for_each(|servers| master(clients(servers))),
            Self::Logins => logins(clients(5_000)),
            Self::Fairness => fairness(),
        }
    }
}

fn main() {
    let cli = Cli::parse();
    // Inherited by the servers and clients that are started.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    client_binary();
    println!("| what | result |\n|---|---|");
    let cases = if cli.cases.is_empty() { Case::value_variants() } else { &cli.cases };
    for case in cases {
        case.run(&cli);
    }
}

fn idle_node() {
    for (name, builder) in [
        ("plain", NodeBuilder::default()),
        ("extended", NodeBuilder::default().extended()),
        ("extended, with --data-dir", NodeBuilder::default().extended()),
    ] {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let builder =
            if name.contains("data-dir") { builder.flag("--data-dir", directory.path().display()) } else { builder };
        let node = builder.start();
        println!("| memory of an idle node, {name} | {:.1} MiB |", mebibytes(node.process.resident_bytes()));
    }
}

fn idle_clients(count: usize) {
    for (name, more) in [("plain", ""), ("extended", "--acknowledged")] {
        let node = if more.is_empty() { Node::start() } else { NodeBuilder::default().extended().start() };
        let before = node.process.resident_bytes();
        let options = format!("--publishers 0 --subscribers {count} --duration 2s {more}");
        let bench = Bench::start(&[node.address()], &options);
        bench.wait_for(&format!("{count} of {count} connected"));
        let grown = node.process.resident_bytes().saturating_sub(before);
        println!(
            "| memory of each of {count} idle clients in {name} sessions | {:.2} KiB |",
            grown as f64 / 1024.0 / count as f64
        );
        bench.report();
    }
}

fn message_a_second(count: usize) {
    let node = Node::start();
    let bench = Bench::start(&[node.address()], &format!("--subscribers {count} --rate 1 --duration 20s"));
    let report = bench.report();
    println!(
        "| one activity a second to {count} clients, from publishing to reading | {} |\n\
         | server CPU for each of its deliveries, the logins included | {:.2} µs |",
        latency(&report),
        processor_seconds(&node.process) * 1e6 / report["deliveries"].as_f64().unwrap(),
    );
}

fn burst(count: usize) {
    let node = Node::start();
    let before = processor_seconds(&node.process);
    let bench = Bench::start(&[node.address()], &format!("--subscribers {count} --count 20000"));
    let report = bench.report();
    println!(
        "| 20000 activities at once to {count} subscribers | {:.0} deliveries a second, {:.2} s in all; {}; {} lost |\n\
         | server CPU for each of its deliveries | {:.3} µs |",
        report["deliveries_per_second"].as_f64().unwrap(),
        report["delivering_seconds"].as_f64().unwrap(),
        latency(&report),
        report["lost"],
        (processor_seconds(&node.process) - before) * 1e6 / report["deliveries"].as_f64().unwrap(),
    );
}

fn line() {
    const NODES: usize = 10;
    let tree = Tree::line(NODES);
    let mut medians = Vec::new();
    for hops in [0, 1, 3, 6, NODES - 1] {
        let options = "--publishers 1 --subscribers 1 --rate 1000 --duration 5s";
        let report = Bench::start(&[tree.address(0), tree.address(hops)], options).report();
        println!("| a line of {NODES} servers, 1000 activities a second, {hops} hops | {} |", latency(&report));
        medians.push(report["latency_microseconds"]["p50"].as_f64().unwrap());
    }
    let each = (medians.last().unwrap() - medians.first().unwrap()) / (NODES - 1) as f64;
    println!("| each hop, of the medians | {each:.0} µs |");
}

fn reconnect_storm(count: usize) {
    let builder = NodeBuilder::default().announce_every(Duration::from_millis(200));
    let root = builder.start();
    let child = builder.clone().id("child").parent(root.address()).start();
    wait_until_all_know_each_other(&[&root, &child]);
    // Clients take turns, so that half of them are at each.
    let all = 2 * count;
    let options = format!("--publishers 1 --subscribers {} --rate 10 --duration 15s", all - 1);
    let bench = Bench::start(&[root.address(), child.address()], &options);
    bench.wait_for(&format!("{all} of {all} connected"));
    drop(child);
    let report = bench.report();
    println!(
        "| a server with about {count} clients dies, another one with as many takes them | {:.0} ms without anything for the last \
         of them, at 10 activities a second; {} connections lost, {} clients without a server |",
        report["longest_silence"]["milliseconds"].as_f64().unwrap(),
        report["lost_connections"],
        report["not_connected"],
    );
}

/// Default settings: announcements every 5 s, heartbeats every 300 ms, at most eight children.
fn control(count: impl Fn(usize, Manner) -> Counts, how: &str, sizes: &[usize]) {
    for servers in sizes {
        for manner in Manner::ALL {
            let Counts { idle, announcements, registration } = count(*servers, manner);
            println!(
                "| {servers} servers, {}, {how} | {idle:.0} control messages a second when idle ({:.1} for each link, {announcements:.0} \
                 of them announcements); {registration:.0} for one registration |",
                manner.name(),
                idle / (servers - 1) as f64,
            );
        }
    }
}

/// Servers played by the benchmark, which report what a tree of them would, with each heartbeat.
fn master(count: usize) {
    let master = Master::start();
    let mut reporters = Reporters::new(master.address());
    let began = Instant::now();
    for place in 0..count {
        let above = |place: &usize| place.checked_sub(1).map(|below_the_root| below_the_root / FAN_OUT);
        let mut path: Vec<String> = iter::successors(Some(place), above).map(|place| format!("tree-{place}")).collect();
        path.reverse();
        reporters.report(live(&path.iter().map(String::as_str).collect::<Vec<_>>()));
    }
    let came = began.elapsed();
    // Reports of other servers, and what is told of them, come with a steady pace from now on.
    thread::sleep(HEARTBEAT * 10);
    let (processor, advised, since) = (processor_seconds(&master.process), reporters.advised(), Instant::now());
    thread::sleep(WATCHED);
    let watched = since.elapsed().as_secs_f64();
    let busy = (processor_seconds(&master.process) - processor) / watched;
    let advised = (reporters.advised() - advised) as f64 / watched;
    let asker = FindParentRequest {
        node_id: "newcomer".into(),
        incarnation: 1,
        key: Some(FragmentKey { reign: u64::MAX, root_id: "newcomer".into(), unsettled: false }),
        leave_out: Vec::new(),
    };
    let mut answers: Vec<Duration> = (0..21)
        .map(|_| {
            let asked = Instant::now();
            let found = master.ask(async |mut registry| registry.find_parent(with_secret(asker.clone())).await);
            assert!(!found.expect("the master answers").candidates.is_empty());
            asked.elapsed()
        })
        .collect();
    answers.sort();
    let asked = Instant::now();
    let topology = master.topology().expect("the master answers");
    let answered = asked.elapsed();
    println!(
        "| a master of {count} servers, all of which came within {:.1} s | {:.0} reports and {advised:.0} pieces of advice a second: \
         {:.0} % of a processor; {:.1} MiB |\n\
         | where an orphan could go, asked over a new connection each time | median of 21: {:.1} ms |\n\
         | its whole topology, asked for in the same way | {} servers in {:.0} ms, {:.1} MiB |",
        came.as_secs_f64(),
        count as f64 / HEARTBEAT.as_secs_f64(),
        100.0 * busy,
        mebibytes(master.process.resident_bytes()),
        answers[10].as_secs_f64() * 1e3,
        topology.nodes.len(),
        answered.as_secs_f64() * 1e3,
        mebibytes(topology.encoded_len() as u64),
    );
}

fn logins(count: usize) {
    let mut rates: Vec<f64> = (0..3)
        .map(|_| {
            let node = Node::start();
            let options = format!("--publishers 0 --subscribers {count} --duration 1s");
            Bench::start(&[node.address()], &options).report()["logins_per_second"].as_f64().unwrap()
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    println!("| anonymous logins from {count} connections, median of three | {:.0} a second |", rates[1]);
}

fn fairness() {
    let node = NodeBuilder::default().extended().start();
    let is_over = AtomicBool::new(false);
    for (name, subscribers) in [("without load", 0), ("beside a publisher at full speed to 100 subscribers", 100)] {
        let bench = (subscribers > 0).then(|| {
            let options = format!("--subscribers {subscribers} --duration 12s");
            let bench = Bench::start(&[node.address()], &options);
            bench.wait_for("connected");
            bench
        });
        is_over.store(false, Ordering::Relaxed);
        let (logins, heartbeats) = thread::scope(|scope| {
            let heartbeats = scope.spawn(|| heartbeat_intervals(node.address(), &is_over));
            let deadline = Instant::now() + Duration::from_secs(8);
            let mut logins = Vec::new();
            while Instant::now() < deadline {
                logins.push(login_time(node.address()));
                thread::sleep(Duration::from_millis(10));
            }
            is_over.store(true, Ordering::Relaxed);
            (logins, heartbeats.join().expect("the neighbour does not panic"))
        });
        println!("| a login {name} | {} |", spread(logins));
        let jitter = heartbeats.iter().map(|interval| interval.abs_diff(HEARTBEAT)).collect();
        println!("| how far heartbeats are from every 300 ms {name} | {} |", spread(jitter));
        if let Some(bench) = bench {
            let rate = bench.report()["deliveries_per_second"].as_f64().unwrap();
            println!("| deliveries meanwhile | {rate:.0} a second |");
        }
    }
}

/// From connecting to LOGIN_SUCCESS.
fn login_time(address: SocketAddr) -> Duration {
    let began = Instant::now();
    let mut stream = TcpStream::connect(address).expect("the server accepts connections");
    stream.set_nodelay(true).expect("a TCP socket has this option");
    stream.write_all(format!("{}\n", lines::login_anonymously()).as_bytes()).expect("the server takes a login");
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer).expect("the server answers");
    assert!(answer.contains("LOGIN_SUCCESS"), "{answer}");
    began.elapsed()
}

/// Plays a child, and returns the times between the heartbeats that it gets.
fn heartbeat_intervals(address: SocketAddr, is_over: &AtomicBool) -> Vec<Duration> {
    let mut link = Peer::connect(address);
    let applicant = json!({"protocol": 1, "id": "neighbour", "incarnation": 1, "attempt": 1, "hostname": "localhost", "port": 1, "key": {"root": "zz"}});
    link.send(json!({"command": "AUTHENTICATE", "secret": SECRET, "node": applicant}).to_string());
    link.expect("LINK_ACCEPTED", |line| (line.command() == "LINK_ACCEPTED").then_some(()));
    let (mut stream, mut sender) = (link.try_clone_stream(), link.try_clone_stream());
    stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout can be set");
    let (mut buffer, mut line) = (vec![0; 256 << 10], Vec::new());
    let (mut intervals, mut last, mut said) = (Vec::new(), None, Instant::now());
    while !is_over.load(Ordering::Relaxed) {
        if said.elapsed() >= HEARTBEAT {
            said = Instant::now();
            sender.write_all(b"{\"command\":\"HEARTBEAT\"}\n").expect("the link stands");
        }
        let read = match stream.read(&mut buffer) {
            Ok(0) => panic!("the server has closed the link"),
            Ok(read) => read,
            Err(_nothing_came) => continue,
        };
        let now = Instant::now();
        let mut rest = &buffer[..read];
        while let Some(end) = memchr(b'\n', rest) {
            line.extend_from_slice(&rest[..end]);
            if line.starts_with(b"{\"command\":\"HEARTBEAT\"") {
                intervals.extend(last.map(|last| now.duration_since(last)));
                last = Some(now);
            }
            line.clear();
            rest = &rest[end + 1..];
        }
        line.extend_from_slice(rest);
    }
    intervals
}

/// `arborcast bench`, running.
struct Bench(Process);

impl Bench {
    fn start(servers: &[SocketAddr], options: &str) -> Self {
        let servers = servers.iter().flat_map(|server| ["-rh".to_owned(), server.to_string()]);
        let options = ["bench", "--json"].into_iter().chain(options.split_whitespace()).map(str::to_owned);
        Self(Process::start(client_binary(), options.chain(servers)))
    }

    fn wait_for(&self, text: &str) {
        self.0.wait_for_stderr(text);
    }

    /// Waits for its end. That something was lost is for the reader to judge.
    fn report(mut self) -> Value {
        let status = wait::until(PATIENCE, || self.0.exit_status().ok_or_else(|| "the benchmark runs".to_owned()));
        self.0.wait_exit(PATIENCE);
        assert!(matches!(status.code(), Some(0 | 3)), "{:?}", self.0.stderr());
        serde_json::from_str(&self.0.stdout().concat()).expect("the report is JSON")
    }
}

fn latency(report: &Value) -> String {
    let milliseconds = |field: &str| report["latency_microseconds"][field].as_f64().unwrap() / 1e3;
    format!("p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms", milliseconds("p50"), milliseconds("p99"), milliseconds("max"))
}

fn spread(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |quantile: f64| {
        let place = (times.len() as f64 * quantile) as usize;
        times.get(place.min(times.len() - 1)).map_or(0.0, Duration::as_secs_f64) * 1e3
    };
    format!("p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms ({} times)", at(0.5), at(0.99), at(1.0), times.len())
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn processor_seconds(process: &Process) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.id())).expect("the server lives");
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    (fields[11].parse::<f64>().expect("a number") + fields[12].parse::<f64>().expect("a number")) / TICKS
}
