//! What is measured, and of whom.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;

use super::load::{Clients, Settings};
use super::protocol::Protocol;
use super::servers::{Contender, Servers};
use crate::lines;
use crate::node::SECRET;

/// Clients that log in and then do nothing, to see what they cost.
const IDLE_CLIENTS: usize = 2000;

/// Connections that log in as fast as they can.
const LOGINS: usize = 5000;

/// How many of them at a time.
const LOGINS_AT_A_TIME: usize = 16;

/// Activities a second where latencies are measured, and how many get them.
const STEADY_RATE: u64 = 2000;
const STEADY_SUBSCRIBERS: usize = 50;

/// One thing that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Case {
    /// 1 publisher as fast as it can, 100 subscribers, one server
    OneTo100,
    /// 10 publishers, 100 subscribers, one server
    TenTo100,
    /// 1 publisher, 1,000 subscribers, one server
    OneTo1000,
    /// 3 publishers, 99 subscribers, three servers
    Tree,
    /// Latency at 2,000 activities a second to 50 subscribers, one server
    Latency,
    /// The same in a tree of three servers
    LatencyTree,
    /// Memory of a server, and of a client that does nothing
    Memory,
    /// 5,000 connections that log in
    Logins,
    /// Acknowledgements and the relay log against the plain protocol: 1 publisher, 100 subscribers, one server
    Acks,
    /// The same with 3 publishers and 99 subscribers at three servers
    AcksTree,
    /// Logins and heartbeats while one publishes as fast as it can to 100 subscribers
    Fairness,
}

/// One figure of one round.
pub type Figure = (&'static str, f64);

impl Case {
    /// For the table.
    pub fn title(self) -> String {
        let help = self.to_possible_value().and_then(|value| value.get_help().map(ToString::to_string));
        help.unwrap_or_default()
    }

    /// Of whom it is measured. Ours comes first.
    pub fn contenders(self) -> &'static [Contender] {
        use Contender::{Arborcast, ArborcastAcknowledged, Mosquitto, Nats, NatsCluster, Ngircd, Raw};
        match self {
            Self::OneTo100 | Self::OneTo1000 => &[Arborcast, Nats, Mosquitto, Raw],
            Self::TenTo100 | Self::Memory | Self::Logins => &[Arborcast, Nats, Mosquitto],
            Self::Tree => &[Arborcast, Nats, NatsCluster, Mosquitto],
            Self::Latency => &[Arborcast, Nats, Mosquitto, Ngircd],
            Self::LatencyTree => &[Arborcast, Nats, NatsCluster, Mosquitto, Ngircd],
            Self::Acks | Self::AcksTree => &[ArborcastAcknowledged, Arborcast],
            Self::Fairness => &[ArborcastAcknowledged, Nats, Mosquitto],
        }
    }

    /// One round of one of them, with servers and clients of its own.
    pub fn measure(self, contender: Contender, settings: Settings) -> Vec<Figure> {
        match self {
            Self::OneTo100 | Self::Acks => full_load(contender, 1, 1, 100, settings),
            Self::TenTo100 => full_load(contender, 1, 10, 100, settings),
            Self::OneTo1000 => full_load(contender, 1, 1, 1000, settings),
            Self::Tree | Self::AcksTree => full_load(contender, 3, 3, 99, settings),
            Self::Latency => latency(contender, 1, settings),
            Self::LatencyTree => latency(contender, 3, settings),
            Self::Memory => memory(contender),
            Self::Logins => logins(contender),
            Self::Fairness => fairness(contender, settings),
        }
    }
}

fn full_load(
    contender: Contender,
    count: usize,
    publishers: usize,
    subscribers: usize,
    settings: Settings,
) -> Vec<Figure> {
    let servers = Servers::start(contender, count, subscribers);
    let publishers = if contender == Contender::Raw { 0 } else { publishers };
    let mut clients = Clients::log_in(contender.protocol(), &servers, publishers, subscribers);
    clients.settle();
    let rates = clients.full_load(&servers, settings);
    let mut figures = vec![("deliveries/s", rates.deliveries), ("CPU µs", rates.processor_microseconds)];
    if rates.closed > 0 {
        figures.push(("closed", rates.closed as f64));
    }
    figures
}

fn latency(contender: Contender, count: usize, settings: Settings) -> Vec<Figure> {
    let servers = Servers::start(contender, count, 0);
    let mut clients = Clients::log_in(contender.protocol(), &servers, 1, STEADY_SUBSCRIBERS);
    clients.settle();
    let latencies = clients.latencies(settings, STEADY_RATE);
    vec![("p50 µs", percentile(&latencies, 50)), ("p99 µs", percentile(&latencies, 99))]
}

/// Of sorted nanoseconds, in microseconds.
fn percentile(sorted: &[u64], percent: usize) -> f64 {
    let place = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(place).map_or(f64::NAN, |nanoseconds| *nanoseconds as f64 / 1000.0)
}

fn memory(contender: Contender) -> Vec<Figure> {
    let servers = Servers::start(contender, 1, 0);
    // Whoever comes first finds things made that all others use.
    let _first = Clients::log_in(contender.protocol(), &servers, 0, 10);
    let before = settled_bytes(&servers);
    let _clients = Clients::log_in(contender.protocol(), &servers, 0, IDLE_CLIENTS);
    let after = settled_bytes(&servers);
    vec![
        ("idle server MiB", before as f64 / f64::from(1 << 20)),
        ("KiB a client", after.saturating_sub(before) as f64 / 1024.0 / IDLE_CLIENTS as f64),
    ]
}

fn settled_bytes(servers: &Servers) -> u64 {
    thread::sleep(Duration::from_millis(500));
    servers.resident_bytes()
}

fn logins(contender: Contender) -> Vec<Figure> {
    let servers = Servers::start(contender, 1, 0);
    let (address, next, start) = (servers.addresses()[0], AtomicUsize::new(0), Instant::now());
    let before = servers.processor_seconds();
    // Nobody leaves before all are there.
    let clients: Vec<TcpStream> = thread::scope(|scope| {
        let log_in = || {
            let mut clients = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= LOGINS {
                    return clients;
                }
                clients.push(contender.protocol().log_in(address, &format!("s{number}")).expect("let in"));
            }
        };
        let threads: Vec<_> = (0..LOGINS_AT_A_TIME).map(|_| scope.spawn(log_in)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("clients do not fail")).collect()
    });
    let seconds = start.elapsed().as_secs_f64();
    assert_eq!(clients.len(), LOGINS);
    vec![
        ("logins/s", LOGINS as f64 / seconds),
        ("CPU µs", (servers.processor_seconds() - before) * 1e6 / LOGINS as f64),
    ]
}

/// What others notice of one that publishes as fast as it can.
fn fairness(contender: Contender, settings: Settings) -> Vec<Figure> {
    let servers = Servers::start(contender, 1, 100);
    let (protocol, address) = (contender.protocol(), servers.addresses()[0]);
    let mut clients = Clients::log_in(protocol, &servers, 1, 100);
    clients.settle();
    let (mut logins, mut gaps) = (Vec::new(), Vec::new());
    clients.full_load_while(&servers, settings, || {
        let end = Instant::now() + settings.duration;
        let heartbeats = (contender == Contender::ArborcastAcknowledged)
            .then(|| thread::spawn(move || heartbeat_gaps(address, end)));
        while Instant::now() < end {
            let start = Instant::now();
            drop(protocol.log_in(address, &format!("late{}", logins.len())).expect("let in"));
            logins.push(start.elapsed().as_nanos() as u64);
            thread::sleep(Duration::from_millis(10));
        }
        gaps = heartbeats.map(|thread| thread.join().expect("the link stands")).unwrap_or_default();
    });
    logins.sort_unstable();
    gaps.sort_unstable();
    let mut figures = vec![("login p50 µs", percentile(&logins, 50)), ("login p99 µs", percentile(&logins, 99))];
    if let (Some(shortest), Some(longest)) = (gaps.first(), gaps.last()) {
        figures.push(("shortest heartbeat gap µs", *shortest as f64 / 1000.0));
        figures.push(("longest heartbeat gap µs", *longest as f64 / 1000.0));
    }
    figures
}

/// Becomes the child of an extended server, one that never says what it has and so gets no activities, and looks when the
/// signs of life come.
fn heartbeat_gaps(address: std::net::SocketAddr, end: Instant) -> Vec<u64> {
    let mut stream = TcpStream::connect(address).expect("the server accepts connections");
    stream.set_nodelay(true).expect("a socket has this option");
    stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket has this option");
    let apply = format!("{}\n", lines::apply(SECRET, "zz-observer", 1, 1));
    stream.write_all(apply.as_bytes()).expect("the server takes it");
    let (mut buffer, mut gaps, mut last) = (vec![0; 64 << 10], Vec::new(), None);
    while Instant::now() < end {
        if let Ok(read) = stream.read(&mut buffer) {
            assert!(read > 0, "the link is closed");
            if buffer[..read].windows(11).any(|window| window == b"\"HEARTBEAT\"") {
                let now = Instant::now();
                gaps.extend(last.replace(now).map(|last: Instant| (now - last).as_nanos() as u64));
            }
        }
        stream.write_all(b"{\"command\":\"HEARTBEAT\"}\n").expect("the link stands");
    }
    gaps
}

/// The versions of the others, as they say them.
pub fn versions() -> Vec<String> {
    [Contender::Nats, Contender::Mosquitto, Contender::Ngircd].into_iter().filter_map(Contender::version).collect()
}

/// For who looks at the length of what is sent.
pub fn delivery_lengths() -> Vec<(&'static str, usize)> {
    [Contender::Arborcast, Contender::Nats, Contender::Mosquitto, Contender::Ngircd]
        .map(|contender| (contender.name(), Protocol::delivery(contender.protocol(), 0).len()))
        .into()
}
