//! `cargo demo`: a real tree of servers on this machine, with clients, to look at and to join.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use arborcast_client::{Activity, Address, Identity, Options, Session};
use arborcast_proto::wire::{LineDecoder, Message};
use arborcast_tests::node::SECRET;
use arborcast_tests::process::client_binary;
use arborcast_tests::tree::Tree;
use clap::Parser;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

const SERVERS: usize = 7;
const CLIENTS: usize = 12;

/// Activities whose arrivals are still counted; the oldest is given up when there are more.
const MAX_COUNTED: usize = 1000;

/// Starts seven servers in a tree and a dozen clients, posts activities and shows where they arrive, until Ctrl-C.
#[derive(Parser)]
#[command(name = "cargo demo")]
struct Cli {
    /// End after this many seconds instead of waiting for Ctrl-C
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
}

/// What is known of the servers from their announcements: load by id.
type Loads = BTreeMap<String, i64>;

/// One client got one activity.
struct Arrival {
    activity: Activity,
    at: Instant,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    println!("Building arborcast-node and arborcast, if that has not been done yet ...");
    let client = client_binary().display().to_string();
    println!("Starting {SERVERS} servers ...");
    let tree = Tree::binary(SERVERS);
    let runtime = tokio::runtime::Runtime::new().context("can't start the runtime")?;
    runtime.block_on(async {
        let end = async {
            match cli.seconds {
                Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
                None => std::future::pending().await,
            }
        };
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            outcome = show(&tree, &client) => outcome,
            interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
            _ = terminate.recv() => Ok(()),
            () = end => Ok(()),
        }
    })?;
    // The servers end with the tree, the clients with the runtime.
    drop(runtime);
    drop(tree);
    println!("\nStopped. Nothing is left running.");
    Ok(())
}

/// Shows the tree at work. Returns only if something goes wrong.
async fn show(tree: &Tree, client_binary: &str) -> Result<()> {
    let mut tasks = JoinSet::new();
    let mut loads = observe(tree.address(0), &mut tasks).await?;

    let entrance = tree.nodes.last().context("the tree has servers")?;
    println!("{CLIENTS} clients log in, all at {}, and are sent where there is room ...", entrance.id());
    let entrance = entrance.address();
    let (arrived, mut arrivals) = mpsc::channel(1024);
    let mut publishers = Vec::new();
    for _ in 0..CLIENTS {
        let (publisher, mut subscriber) = log_in(entrance).await?.split();
        publishers.push(publisher);
        let arrived = arrived.clone();
        tasks.spawn(async move {
            while let Some(activity) = subscriber.next().await {
                let arrival = Arrival { activity: activity?, at: Instant::now() };
                arrived.send(arrival).await.context("the demo has ended")?;
            }
            Ok(())
        });
    }
    loads.wait_for(|loads| loads.values().sum::<i64>() == CLIENTS as i64).await?;
    println!("\n{}", picture(tree, &loads.borrow_and_update()));

    println!("Each client posts one activity, wherever it is:\n");
    let mut counts = Counts::default();
    for (number, publisher) in publishers.iter().enumerate() {
        let text = format!(r#"{{"verb":"post","object":"hello from client {number}","at":"{}"}}"#, publisher.server());
        publisher.publish(&Activity::parse(&text)?).await?;
        while !counts.take(arrivals.recv().await.context("all clients are gone")?) {}
    }
    println!("\n{}", invitation(entrance, client_binary));

    loop {
        tokio::select! {
            arrival = arrivals.recv() => drop(counts.take(arrival.context("all clients are gone")?)),
            changed = loads.changed() => {
                changed.context("the root is gone")?;
                println!("\n{}", picture(tree, &loads.borrow_and_update()));
            }
            Some(ended) = tasks.join_next() => match ended? {
                Ok(()) => {}
                Err(error) => println!("{error}"),
            },
        }
    }
}

/// Logs in anonymously, and follows the redirection if there is one.
async fn log_in(address: SocketAddr) -> Result<Session> {
    let server = Address::new(address.ip().to_string(), address.port())?;
    Ok(Session::login(&server, &Identity::Anonymous, &Options::default()).await?)
}

/// Watches the loads as another server would see them: over a link to the root that announces nothing itself.
async fn observe(root: SocketAddr, tasks: &mut JoinSet<Result<()>>) -> Result<watch::Receiver<Loads>> {
    let mut stream = TcpStream::connect(root).await.context("can't connect to the root")?;
    stream.write_all(&Message::Authenticate { secret: SECRET.into(), node: None }.to_line()).await?;
    let (seen, loads) = watch::channel(Loads::new());
    tasks.spawn(async move {
        let mut decoder = LineDecoder::new(1 << 20);
        while stream.read_buf(decoder.buffer_mut()).await? > 0 {
            while let Some(line) = decoder.next_line()? {
                if let Message::ServerAnnounce(announce) = Message::parse(&line)? {
                    let (id, load) = (announce.id, announce.load);
                    seen.send_if_modified(|loads| loads.insert(id, load) != Some(load));
                }
            }
        }
        anyhow::bail!("the root has closed the connection of the demo's observer")
    });
    Ok(loads)
}

/// How often each activity has arrived.
#[derive(Default)]
struct Counts {
    arrived: BTreeMap<String, (Instant, usize)>,
}

impl Counts {
    /// Counts an arrival; says so, and returns true, when it was the last one.
    fn take(&mut self, arrival: Arrival) -> bool {
        let text = arrival.activity.to_string();
        let (first, count) = self.arrived.entry(text.clone()).or_insert((arrival.at, 0));
        *count += 1;
        if *count < CLIENTS {
            if self.arrived.len() > MAX_COUNTED {
                self.arrived.clear();
            }
            return false;
        }
        let spread = arrival.at.duration_since(*first).as_secs_f64() * 1000.0;
        println!("  {text}\n    at all {CLIENTS} clients, the last {spread:.1} ms after the first");
        self.arrived.remove(&text);
        true
    }
}

/// The tree with the load of each server.
fn picture(tree: &Tree, loads: &Loads) -> String {
    let mut text = String::new();
    draw(tree, loads, 0, "", "", &mut text);
    text
}

fn draw(tree: &Tree, loads: &Loads, node: usize, branch: &str, indent: &str, text: &mut String) {
    let Some(server) = tree.nodes.get(node) else { return };
    let load = loads.get(server.id()).copied().unwrap_or_default();
    let label = format!("  {branch}{}", server.id());
    let plural = if load == 1 { "" } else { "s" };
    text.push_str(&format!("{label:<20}{}  {load} client{plural}\n", server.address()));
    for child in [2 * node + 1, 2 * node + 2] {
        if child < tree.nodes.len() {
            let is_last = child == 2 * node + 2;
            let (branch, more) = if is_last { ("└── ", "    ") } else { ("├── ", "│   ") };
            draw(tree, loads, child, &format!("{indent}{branch}"), &format!("{indent}{more}"), text);
        }
    }
}

fn invitation(entrance: SocketAddr, client_binary: &str) -> String {
    let (host, port) = (entrance.ip(), entrance.port());
    format!(
        r#"Join in, from other terminals:

  {client_binary} -rh {host} -rp {port} listen
  {client_binary} -rh {host} -rp {port} send '{{"verb":"wave"}}'

or by hand (whoever is sent a REDIRECT connects to the port it names and starts again):

  nc {host} {port}
  {{"command":"LOGIN","username":"anonymous"}}
  {{"command":"ACTIVITY_MESSAGE","username":"anonymous","activity":{{"verb":"wave"}}}}

Ctrl-C ends everything."#
    )
}
