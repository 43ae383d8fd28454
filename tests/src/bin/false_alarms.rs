//! `cargo false-alarms`: whether servers that live take each other for dead.
//!
//! Real servers and two masters with their default settings, all of whose connections run through a proxy that delays
//! what passes, while every processor is kept busy. Nothing fails, so no link may be given up, and nobody may move. What
//! is counted says `tests/benches/README.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a benchmark fails by panicking")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use arborcast_tests::master::Master;
use arborcast_tests::node::{Node, NodeBuilder};
use arborcast_tests::wait;
use bytes::BytesMut;
use clap::Parser;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

const MASTERS: usize = 2;

/// The servers' default, which the tests' default is not.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(5);

/// How long servers may take to become one tree.
const FORMING: Duration = Duration::from_secs(60);

/// How often the masters are asked what they see.
const LOOK: Duration = Duration::from_secs(1);

/// How often progress is shown.
const PROGRESS_EVERY: Duration = Duration::from_secs(30);

/// Chunks that are on their way in one direction of one connection.
const ON_THE_WAY: usize = 1024;

/// The proxy is reached at this address, and whoever is behind it at 127.0.0.1 and the same port.
const PROXY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// Looks whether servers that live take each other for dead, while messages are late and processors are busy.
///
/// Exit code 0 if none did, 1 otherwise.
#[derive(Parser)]
#[command(name = "cargo false-alarms")]
struct Cli {
    /// How long to look on
    #[arg(long, value_name = "N", default_value_t = 10)]
    minutes: u64,
    /// Servers
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u8).range(2..=50))]
    nodes: u8,
    /// Longest delay of a chunk of bytes, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 200)]
    delay: u64,
    /// Threads that do nothing but keep processors busy; as many as there are processors unless given
    #[arg(long, value_name = "N")]
    spinners: Option<usize>,
}

/// What there must be none of.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    /// Links given up since nothing came over them.
    silent: usize,
    /// How often a server was seen to have another parent than before.
    moves: usize,
    /// How often a master saw more than one root, or none.
    roots: usize,
    /// How often a master did not know all servers, or named one as silent.
    missed: usize,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    println!("Building the binaries, if that has not been done yet, and starting {} servers ...", cli.nodes);
    let runtime = Runtime::new().expect("a runtime can be made");
    let stop = stop_on_signal(&runtime);
    let world = World::start(&cli, &runtime);
    let shape = world.wait_until_one_tree();
    println!("one tree; looking on for {} minutes: every chunk late by up to {} ms", cli.minutes, cli.delay);
    let spinners =
        Spinners::start(cli.spinners.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from)));
    let (found, looked_on) = world.look_on(shape, Duration::from_secs(60 * cli.minutes), &stop);
    drop(spinners);
    println!("\n| minutes | links given up as silent | other parents | not one root | not all known |");
    println!("|---|---|---|---|---|");
    let minutes = looked_on.as_secs_f64() / 60.0;
    println!("| {minutes:.1} | {} | {} | {} | {} |", found.silent, found.moves, found.roots, found.missed);
    if found == Found::default() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether Ctrl-C or SIGTERM came.
fn stop_on_signal(runtime: &Runtime) -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    runtime.spawn(async move {
        let mut interrupt = signal(SignalKind::interrupt()).expect("signals can be waited for");
        let mut terminate = signal(SignalKind::terminate()).expect("signals can be waited for");
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        told.store(true, Ordering::Relaxed);
    });
    stop
}

/// The parent of each server, by id; empty for a root.
type Parents = BTreeMap<String, String>;

struct World {
    masters: Vec<Master>,
    nodes: Vec<Node>,
}

impl World {
    fn start(cli: &Cli, runtime: &Runtime) -> Self {
        let delay = Duration::from_millis(cli.delay);
        let masters: Vec<Master> = (0..MASTERS).map(|_| Master::start()).collect();
        let mut builder = NodeBuilder::default().announce_every(ANNOUNCE_INTERVAL).log("warn,arborcast_core=info");
        builder = builder.flag("--max-children", 2).hostname(&PROXY.to_string());
        for master in &masters {
            let proxy = runtime.block_on(TcpListener::bind((PROXY, 0))).expect("there are free ports");
            builder = builder.flag("--master", proxy.local_addr().expect("a listener has an address"));
            runtime.spawn(relay_all(proxy, master.address(), delay));
        }
        let start = |number: u8| {
            let proxy = runtime.block_on(TcpListener::bind((PROXY, 0))).expect("there are free ports");
            let port = proxy.local_addr().expect("a listener has an address").port();
            runtime.spawn(relay_all(proxy, SocketAddr::from((Ipv4Addr::LOCALHOST, port)), delay));
            builder.clone().id(&format!("node-{number}")).port(port).start()
        };
        let nodes = (0..cli.nodes).map(start).collect();
        Self { masters, nodes }
    }

    /// What a master sees, if that is one tree of all servers.
    fn parents(&self, master: &Master) -> Result<Parents, String> {
        let topology = master.topology()?;
        if topology.nodes.len() != self.nodes.len() || !topology.faults.is_empty() {
            return Err(format!("{} servers are known; {:?}", topology.nodes.len(), topology.faults));
        }
        let reports = topology.nodes.into_iter().filter_map(|node| node.report);
        Ok(reports.map(|report| (report.node_id, report.parent_id)).collect())
    }

    fn wait_until_one_tree(&self) -> Parents {
        wait::until(FORMING, || {
            let seen = self.masters.iter().map(|master| self.parents(master)).collect::<Result<Vec<_>, _>>()?;
            if seen.iter().all(|parents| *parents == seen[0]) && roots(&seen[0]) == 1 {
                Ok(seen[0].clone())
            } else {
                Err(format!("not one tree: {seen:?}"))
            }
        })
    }

    fn look_on(&self, mut shape: Parents, time: Duration, stop: &AtomicBool) -> (Found, Duration) {
        let (start, mut shown, mut found) = (Instant::now(), Instant::now(), Found::default());
        let silent_before = self.silent_links();
        while start.elapsed() < time && !stop.load(Ordering::Relaxed) {
            thread::sleep(LOOK);
            for master in &self.masters {
                match self.parents(master) {
                    Ok(parents) => {
                        found.roots += usize::from(roots(&parents) != 1);
                        found.moves += parents.iter().filter(|(id, parent)| shape.get(*id) != Some(*parent)).count();
                        shape = parents;
                    }
                    Err(why) => {
                        println!("{why}");
                        found.missed += 1;
                    }
                }
            }
            found.silent = self.silent_links() - silent_before;
            if shown.elapsed() >= PROGRESS_EVERY {
                shown = Instant::now();
                println!("{:.0} s: {found:?}", start.elapsed().as_secs_f64());
            }
        }
        (found, start.elapsed())
    }

    /// Links that servers say they have given up since nothing came over them.
    fn silent_links(&self) -> usize {
        let is_silent = |line: &String| line.contains("link lost") && line.contains("Silent");
        self.nodes.iter().map(|node| node.process.stderr().iter().filter(|line| is_silent(line)).count()).sum()
    }
}

fn roots(parents: &Parents) -> usize {
    parents.values().filter(|parent| parent.is_empty()).count()
}

/// Threads that keep processors busy until they are dropped.
struct Spinners {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Spinners {
    fn start(count: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let spin = |_| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let mut turns = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    turns = black_box(turns.wrapping_add(1));
                }
            })
        };
        let threads = (0..count).map(spin).collect();
        Self { stop, threads }
    }
}

impl Drop for Spinners {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A spinner has nothing that could fail.
            let _ = thread.join();
        }
    }
}

/// Relays every connection that is made to the proxy.
async fn relay_all(proxy: TcpListener, to: SocketAddr, delay: Duration) {
    while let Ok((dialler, _)) = proxy.accept().await {
        tokio::spawn(async move {
            // Who can't be reached looks like one who closes at once.
            let Ok(acceptor) = TcpStream::connect(to).await else { return };
            let _ = (dialler.set_nodelay(true), acceptor.set_nodelay(true));
            let ((from_dialler, to_dialler), (from_acceptor, to_acceptor)) =
                (dialler.into_split(), acceptor.into_split());
            tokio::join!(relay(from_dialler, to_acceptor, delay), relay(from_acceptor, to_dialler, delay));
        });
    }
}

/// Hands on what comes in one direction: each chunk late by a random time, in order, and many on their way at once.
async fn relay(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, delay: Duration) {
    let (sender, mut on_the_way) = mpsc::channel::<(tokio::time::Instant, BytesMut)>(ON_THE_WAY);
    let read = async move {
        let mut buffer = BytesMut::new();
        while let Ok(length) = from.read_buf(&mut buffer).await {
            let arrival = tokio::time::Instant::now() + delay.mul_f64(rand::random());
            // The end of the stream is an empty chunk.
            if sender.send((arrival, buffer.split())).await.is_err() || length == 0 {
                return;
            }
        }
    };
    let write = async move {
        while let Some((arrival, chunk)) = on_the_way.recv().await {
            tokio::time::sleep_until(arrival).await;
            if chunk.is_empty() || to.write_all(&chunk).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}
