//! `cargo relay-cost`: what names, acknowledgements and the relay log cost, beside the plain protocol.
//!
//! What is measured, and how, says `tests/benches/README.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a benchmark fails by panicking")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use arborcast_tests::lines;
use arborcast_tests::node::{Node, NodeBuilder};
use arborcast_tests::peer::{Arrival, Peer};
use arborcast_tests::tree::wait_until_all_know_each_other;
use clap::Parser;

/// Ticks in a second in what the operating system says of processor time.
const TICKS: f64 = 100.0;

/// Most activities that are on their way at once, as in the client library.
const WINDOW: u64 = 1024;

/// Measures the plain protocol, an extended tree with plain clients, and one with extended ones, in turns.
#[derive(Parser)]
#[command(name = "cargo relay-cost")]
struct Cli {
    /// Activities in each round
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    activities: u64,
    /// Subscribers at each of the two servers
    #[arg(long, value_name = "N", default_value_t = 20)]
    subscribers: usize,
    /// Rounds of each kind
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Plain,
    Extended,
    Acknowledged,
}

impl Mode {
    const ALL: [Self; 3] = [Self::Plain, Self::Extended, Self::Acknowledged];

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain servers, plain clients",
            Self::Extended => "extended servers, plain clients",
            Self::Acknowledged => "extended servers and clients, acknowledged",
        }
    }
}

/// One round.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    seconds: f64,
    processor_seconds: f64,
    mebibytes: f64,
}

fn main() {
    let cli = Cli::parse();
    println!("Building the binaries, if that has not been done yet ...");
    let mut outcomes: Vec<(Mode, Vec<Outcome>)> = Mode::ALL.iter().map(|mode| (*mode, Vec::new())).collect();
    for round in 0..cli.rounds {
        for (mode, outcomes) in &mut outcomes {
            let outcome = measure(*mode, &cli);
            println!("round {}: {}: {outcome:.2?}", round + 1, mode.name());
            outcomes.push(outcome);
        }
    }
    let deliveries = cli.activities as f64 * 2.0 * cli.subscribers as f64;
    let median = |outcomes: &[Outcome], of: fn(&Outcome) -> f64| {
        let mut values: Vec<f64> = outcomes.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let plain = outcomes[0].1.clone();
    println!("\n| | deliveries/s | against plain | server CPU a delivery | against plain | memory of both servers |");
    println!("|---|---|---|---|---|---|");
    for (mode, outcomes) in &outcomes {
        let (time, processor) = (median(outcomes, |it| it.seconds), median(outcomes, |it| it.processor_seconds));
        let (plain_time, plain_processor) =
            (median(&plain, |it| it.seconds), median(&plain, |it| it.processor_seconds));
        println!(
            "| {} | {:.0} | {:.2} | {:.3} µs | {:.2} | {:.0} MiB |",
            mode.name(),
            deliveries / time,
            plain_time / time,
            processor * 1e6 / deliveries,
            processor / plain_processor,
            median(outcomes, |it| it.mebibytes),
        );
    }
}

fn measure(mode: Mode, cli: &Cli) -> Outcome {
    let builder = || {
        let builder = NodeBuilder::default().announce_every(Duration::from_millis(10));
        if mode == Mode::Plain { builder } else { builder.extended() }
    };
    let root = builder().start();
    let child = builder().parent(root.address()).start();
    wait_until_all_know_each_other(&[&root, &child]);
    let nodes = [root, child];
    let places = (0..cli.subscribers).flat_map(|number| nodes.iter().map(move |node| (number, node.address())));
    let subscribers: Vec<TcpStream> =
        places.map(|(number, address)| log_in(mode, address, &format!("s{number}"))).collect();
    let publisher = log_in(mode, nodes[1].address(), "publisher");
    let before = processor_seconds(&nodes);
    let start = Instant::now();
    thread::scope(|scope| {
        for stream in &subscribers {
            scope.spawn(|| count_lines(stream, cli.activities, |_| {}));
        }
        scope.spawn(|| publish(mode, &publisher, cli.activities));
    });
    let outcome = Outcome {
        seconds: start.elapsed().as_secs_f64(),
        processor_seconds: processor_seconds(&nodes) - before,
        mebibytes: nodes.iter().map(mebibytes).sum(),
    };
    for stream in subscribers.iter().chain([&publisher]) {
        // It may be closed by the server by now.
        let _ = stream.shutdown(Shutdown::Both);
    }
    outcome
}

/// A client at that very server. It may be sent on as long as the other has not heard how many there are here.
fn log_in(mode: Mode, address: SocketAddr, session: &str) -> TcpStream {
    loop {
        let mut peer = try_log_in(mode, address, session);
        if matches!(peer.arrival(Duration::from_millis(20)), Arrival::Nothing) {
            return peer.try_clone_stream();
        }
    }
}

fn try_log_in(mode: Mode, address: SocketAddr, session: &str) -> Peer {
    let mut peer = Peer::connect(address);
    if mode == Mode::Acknowledged {
        peer.send(format!(r#"{{"command":"LOGIN","username":"anonymous","resume":{{"session":"{session}"}}}}"#));
    } else {
        peer.send(lines::login_anonymously());
    }
    peer.expect_command("LOGIN_SUCCESS");
    peer
}

/// As fast as the window allows: what was published comes back, as every activity does.
fn publish(mode: Mode, mut stream: &TcpStream, count: u64) {
    let (returned, returns) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            count_lines(stream, count, |lines| {
                // The publisher has sent everything, and waits no more.
                let _ = returned.send(lines);
            })
        });
        let (mut sent, mut back) = (0, 0);
        while sent < count {
            while sent - back >= WINDOW / 2 {
                back = returns.recv().expect("the server lives");
            }
            let mut batch = String::new();
            while sent < count && sent - back < WINDOW {
                sent += 1;
                let number = if mode == Mode::Acknowledged { format!(r#","number":{sent}"#) } else { String::new() };
                batch += &format!(
                    "{{\"command\":\"ACTIVITY_MESSAGE\",\"username\":\"anonymous\"{number},\"activity\":{{\"verb\":\"post\",\
                     \"object\":\"something of about one hundred and twenty-eight bytes, all in all\",\"n\":{sent}}}}}\n"
                );
            }
            stream.write_all(batch.as_bytes()).expect("the server takes it");
        }
    });
}

/// Reads until so many activities have come, and tells how many there are so far.
fn count_lines(mut stream: &TcpStream, count: u64, mut tell: impl FnMut(u64)) {
    let mut buffer = vec![0; 256 << 10];
    let (mut activities, mut line_start) = (0, Vec::new());
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout can be set");
    while activities < count {
        let read = stream.read(&mut buffer).expect("activities come");
        assert!(read > 0, "the server has closed the connection after {activities} activities");
        for byte in &buffer[..read] {
            // Other lines are acknowledgements.
            if *byte == b'\n' {
                activities += u64::from(line_start.starts_with(b"{\"command\":\"ACTIVITY_B"));
                line_start.clear();
            } else if line_start.len() < 24 {
                line_start.push(*byte);
            }
        }
        tell(activities);
    }
}

fn processor_seconds(nodes: &[Node]) -> f64 {
    let ticks = |node: &Node| {
        let stat = fs::read_to_string(format!("/proc/{}/stat", node.process.id())).expect("the server lives");
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        fields[11].parse::<f64>().expect("a number") + fields[12].parse::<f64>().expect("a number")
    };
    nodes.iter().map(ticks).sum::<f64>() / TICKS
}

fn mebibytes(node: &Node) -> f64 {
    let status = fs::read_to_string(format!("/proc/{}/status", node.process.id())).expect("the server lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it uses memory");
    line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
}
