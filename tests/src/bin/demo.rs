//! `cargo demo`: a real tree of servers on this machine, with masters and clients, to look at, to join and to break.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use arborcast_client::{Activity, Address, Event, Identity, Options, Servers, Session};
use arborcast_proto::registry::registry_client::RegistryClient;
use arborcast_proto::registry::{GetTopologyRequest, NodeReport, Topology};
use arborcast_tests::master::Master;
use arborcast_tests::node::{Node, NodeBuilder};
use arborcast_tests::process::{Signal, client_binary};
use arborcast_tests::scrape::http_address;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const SERVERS: usize = 7;
const CLIENTS: usize = 12;

/// After how long a server is killed.
const PEACE: Duration = Duration::from_secs(8);

/// How long anything that the demo waits for may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often the masters are asked for the tree.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Activities whose arrivals are still counted; all are given up when there are more.
const MAX_COUNTED: usize = 1000;

/// Starts two masters, seven servers in a tree and a dozen clients, posts activities and shows where they arrive, kills a
/// server and shows the tree healing, and goes on until Ctrl-C.
#[derive(Parser)]
#[command(name = "cargo demo")]
struct Cli {
    /// End after this many seconds instead of waiting for Ctrl-C
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    println!("Building the binaries, if that has not been done yet ...");
    let client = client_binary().display().to_string();
    println!("Starting two masters and {SERVERS} servers ...");
    let masters = masters();
    let builders = builders(&masters);
    let mut nodes: Vec<Node> = builders.iter().map(NodeBuilder::start).collect();
    let runtime = tokio::runtime::Runtime::new().context("can't start the runtime")?;
    runtime.block_on(async {
        let end = async {
            match cli.seconds {
                Some(seconds) => sleep(Duration::from_secs(seconds)).await,
                None => std::future::pending().await,
            }
        };
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            outcome = show(&masters, &builders, &mut nodes, &client) => outcome,
            interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
            _ = terminate.recv() => Ok(()),
            () = end => Ok(()),
        }
    })?;
    // The clients end with the runtime; then the servers, and the masters last.
    drop(runtime);
    drop(nodes);
    drop(masters);
    println!("\nStopped. Nothing is left running.");
    Ok(())
}

/// Two masters with live pages; the second one's links to the first.
fn masters() -> [Master; 2] {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let first = Master::start_with(any, &["--http", "127.0.0.1:0"]);
    let second = Master::start_with(any, &["--http", "127.0.0.1:0", "--peer-page", &page(&first)]);
    [first, second]
}

fn page(master: &Master) -> String {
    format!("http://{}/", http_address(&master.process))
}

/// How the servers are started; with two children at most, so that the tree is one to look at.
fn builders(masters: &[Master]) -> Vec<NodeBuilder> {
    let builder = NodeBuilder::default().announce_every(Duration::from_millis(500)).flag("--max-children", 2);
    let builder = masters.iter().fold(builder, |builder, master| builder.flag("--master", master.address()));
    (0..SERVERS).map(|number| builder.clone().id(&format!("node-{number}"))).collect()
}

/// Shows the tree at work. Returns only if something goes wrong.
async fn show(masters: &[Master], builders: &[NodeBuilder], nodes: &mut [Node], client_binary: &str) -> Result<()> {
    let mut tasks = JoinSet::new();
    let mut trees = observe(masters.first().context("there are masters")?.address(), &mut tasks);
    until(&mut trees, "one tree of all servers", |tree| tree.is_one_of(SERVERS)).await?;

    let addresses: Vec<SocketAddr> = nodes.iter().map(Node::address).collect();
    println!("{CLIENTS} clients log in, all at the same server, and are sent where there is room ...");
    let (arrived, mut arrivals) = mpsc::channel(1024);
    let (activities, activity) = watch::channel(None);
    for number in 0..CLIENTS {
        tasks.spawn(client(number, addresses.clone(), arrived.clone(), activity.clone()));
    }
    until(&mut trees, "all clients logged in", |tree| tree.load() == CLIENTS as u64).await?;
    println!("\n{}", trees.borrow_and_update().picture());

    println!("Clients post, wherever they are:\n");
    let mut counts = Counts::default();
    for number in [0, 5, 10] {
        post(number, "hello", &activities, &mut counts, &mut arrivals).await?;
    }
    let entrance = *addresses.last().context("there are servers")?;
    println!("\n{}\n", invitation(entrance, masters, client_binary));

    let calm = tokio::time::Instant::now() + PEACE;
    while let Ok(arrival) = tokio::time::timeout_at(calm, arrivals.recv()).await {
        counts.take(arrival.context("all clients are gone")?);
    }
    let victim = trees.borrow().an_inner_node().context("a tree of seven has an inner node")?;
    kill_and_restart(&victim, builders, nodes, &mut trees).await?;
    post(3, "still here", &activities, &mut counts, &mut arrivals).await?;
    println!("\nGoing on until Ctrl-C; kill more of them, if you like: `pkill -9 -n arborcast-node`.");

    loop {
        tokio::select! {
            arrival = arrivals.recv() => drop(counts.take(arrival.context("all clients are gone")?)),
            changed = trees.changed() => {
                changed.context("the masters are gone")?;
                println!("\n{}", trees.borrow_and_update().picture());
            }
        }
    }
}

/// Kills a server without a warning, shows how the others come together again, and starts it anew.
async fn kill_and_restart(
    victim: &str,
    builders: &[NodeBuilder],
    nodes: &mut [Node],
    trees: &mut watch::Receiver<Tree>,
) -> Result<()> {
    let mut both = nodes.iter_mut().zip(builders);
    let (node, builder) = both.find(|(node, _)| node.id() == victim).context("the victim is one of ours")?;
    println!("Killing {victim} (kill -9) ...\n");
    let killed = Instant::now();
    node.process.signal(Signal::SIGKILL);
    until(trees, "one tree of the others", |tree| tree.is_one_of(SERVERS - 1)).await?;
    let healed = killed.elapsed().as_millis();
    until(trees, "all clients logged in again", |tree| tree.load() == CLIENTS as u64).await?;
    println!("\nThe others were one tree again after {healed} ms, as the masters saw it:\n");
    println!("{}", trees.borrow_and_update().picture());

    println!("Starting {victim} again ...");
    let builder = builder.clone().port(node.address().port());
    *node = tokio::task::block_in_place(|| builder.start());
    until(trees, "one tree of all servers", |tree| tree.is_one_of(SERVERS)).await?;
    println!("\n{}", trees.borrow_and_update().picture());
    Ok(())
}

/// One client posts, and everybody gets it.
async fn post(
    number: usize,
    word: &str,
    activities: &watch::Sender<Option<(usize, Activity)>>,
    counts: &mut Counts,
    arrivals: &mut mpsc::Receiver<Arrival>,
) -> Result<()> {
    let text = format!(r#"{{"verb":"post","object":"{word} from client {number}"}}"#);
    activities.send(Some((number, Activity::parse(&text)?)))?;
    let all_arrive = async {
        while !counts.take(arrivals.recv().await.context("all clients are gone")?) {}
        Ok(())
    };
    timeout(PATIENCE, all_arrive).await.context("an activity did not arrive everywhere")?
}

/// A client that posts what it is told to, and passes on what it gets. When its server dies it goes on at another one by
/// itself.
async fn client(
    number: usize,
    servers: Vec<SocketAddr>,
    arrived: mpsc::Sender<Arrival>,
    mut activity: watch::Receiver<Option<(usize, Activity)>>,
) -> Result<()> {
    let address = |server: &SocketAddr| Address::new(server.ip().to_string(), server.port());
    let addresses = servers.iter().rev().map(address).collect::<Result<_, _>>()?;
    let servers = Servers { addresses, masters: Vec::new() };
    let (publisher, mut subscriber) = Session::login(servers, &Identity::Anonymous, &Options::default()).await?.split();
    loop {
        tokio::select! {
            event = subscriber.next_event() => match event.context("the session has ended")?? {
                Event::Activities(batch) => {
                    for activity in batch {
                        arrived.send(Arrival { activity, at: Instant::now() }).await?;
                    }
                }
                Event::Lost { error, .. } => println!("  client {number}: {error}"),
                Event::Reconnected { server, after, .. } => {
                    println!("  client {number}: back at {server} after {} ms", after.as_millis());
                }
                Event::Gap { origin, missing } => println!("  client {number}: {missing} of {origin} are missing"),
            },
            changed = activity.changed() => {
                changed.context("the demo has ended")?;
                let mine = activity.borrow_and_update().clone().filter(|(author, _)| *author == number);
                if let Some((_, activity)) = mine {
                    publisher.publish(&activity).await?;
                }
            }
        }
    }
}

/// Watches the tree through a master.
fn observe(master: SocketAddr, tasks: &mut JoinSet<Result<()>>) -> watch::Receiver<Tree> {
    let (seen, trees) = watch::channel(Tree::default());
    tasks.spawn(async move {
        let mut registry = RegistryClient::connect(format!("http://{master}")).await?;
        loop {
            let topology = registry.get_topology(GetTopologyRequest {}).await?.into_inner();
            let tree = Tree::from(topology);
            seen.send_if_modified(|last| std::mem::replace(last, tree.clone()) != tree);
            sleep(LOOK_EVERY).await;
        }
    });
    trees
}

async fn until(trees: &mut watch::Receiver<Tree>, what: &str, is_so: impl FnMut(&Tree) -> bool) -> Result<()> {
    let waited = timeout(PATIENCE, trees.wait_for(is_so)).await;
    waited.with_context(|| format!("not within {PATIENCE:?}: {what}"))?.context("the master is gone")?;
    Ok(())
}

/// The tree as a master shows it: each server's address, load and parent.
#[derive(Debug, Clone, Default, PartialEq)]
struct Tree {
    servers: BTreeMap<String, Server>,
    fragments: usize,
}

#[derive(Debug, Clone, PartialEq)]
struct Server {
    address: String,
    load: u64,
    parent: String,
}

impl From<Topology> for Tree {
    fn from(topology: Topology) -> Self {
        let server = |report: NodeReport| {
            let address = format!("{}:{}", report.hostname, report.port);
            (report.node_id, Server { address, load: report.load, parent: report.parent_id })
        };
        let servers = topology.nodes.into_iter().filter_map(|node| node.report).map(server).collect();
        Self { servers, fragments: topology.fragments.len() }
    }
}

impl Tree {
    fn is_one_of(&self, servers: usize) -> bool {
        self.fragments == 1 && self.servers.len() == servers
    }

    fn load(&self) -> u64 {
        self.servers.values().map(|server| server.load).sum()
    }

    fn children<'a>(&'a self, parent: &'a str) -> Vec<&'a str> {
        let is_child = |(_, server): &(&String, &Server)| server.parent == parent;
        self.servers.iter().filter(is_child).map(|(id, _)| id.as_str()).collect()
    }

    fn an_inner_node(&self) -> Option<String> {
        let is_inner = |id: &&String| {
            self.servers.get(*id).is_some_and(|server| !server.parent.is_empty()) && !self.children(id).is_empty()
        };
        self.servers.keys().find(is_inner).cloned()
    }

    fn picture(&self) -> String {
        let mut text = String::new();
        for root in self.children("") {
            self.draw(root, "", "", &mut text);
        }
        text
    }

    fn draw(&self, id: &str, branch: &str, indent: &str, text: &mut String) {
        let Some(server) = self.servers.get(id) else { return };
        let label = format!("  {branch}{id}");
        let plural = if server.load == 1 { "" } else { "s" };
        text.push_str(&format!("{label:<24}{}  {} client{plural}\n", server.address, server.load));
        let children = self.children(id);
        for (number, child) in children.iter().enumerate() {
            let is_last = number + 1 == children.len();
            let (branch, more) = if is_last { ("└── ", "    ") } else { ("├── ", "│   ") };
            self.draw(child, &format!("{indent}{branch}"), &format!("{indent}{more}"), text);
        }
    }
}

/// One client got one activity.
struct Arrival {
    activity: Activity,
    at: Instant,
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

fn invitation(entrance: SocketAddr, masters: &[Master], client_binary: &str) -> String {
    let (host, port) = (entrance.ip(), entrance.port());
    let master = masters.first().map(|master| master.address().to_string()).unwrap_or_default();
    let page = masters.last().map(page).unwrap_or_default();
    format!(
        r#"Join in, from other terminals:

  {client_binary} -rh {host} -rp {port} listen
  {client_binary} -rh {host} -rp {port} send '{{"verb":"wave"}}'

or by hand (whoever is sent a REDIRECT connects to the port it names and starts again):

  nc {host} {port}
  {{"command":"LOGIN","username":"anonymous"}}
  {{"command":"ACTIVITY_MESSAGE","username":"anonymous","activity":{{"verb":"wave"}}}}

or watch the tree in a browser:

  {page}

or ask a master for it:

  grpcurl -plaintext {master} arborcast.registry.v1.Registry/GetTopology

In {} seconds one of the servers is killed. Ctrl-C ends everything."#,
        PEACE.as_secs()
    )
}
