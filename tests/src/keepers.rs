//! Masters that keep users in etcd, and nodes that register there.

use std::net::SocketAddr;

use crate::etcd::Etcd;
use crate::lines;
use crate::master::Master;
use crate::node::{Node, NodeBuilder};
use crate::peer::Peer;
use crate::scrape;
use crate::wait::{self, PATIENCE};

/// etcd, masters and nodes. Killed when dropped.
#[derive(Debug)]
pub struct Keepers {
    /// Where the users are.
    pub etcd: Etcd,
    masters: Vec<Option<Master>>,
    addresses: Vec<SocketAddr>,
    nodes: Vec<Option<Node>>,
    builders: Vec<NodeBuilder>,
}

impl Keepers {
    /// So many members of etcd, masters and nodes. All of them serve when this returns.
    #[track_caller]
    pub fn start(members: usize, masters: usize, nodes: usize) -> Self {
        Self::start_with(Etcd::start(members), masters, nodes, &NodeBuilder::default())
    }

    /// The same, with an etcd that runs, and nodes that are started in a special way.
    #[track_caller]
    pub fn start_with(etcd: Etcd, masters: usize, nodes: usize, builder: &NodeBuilder) -> Self {
        let url = etcd.url();
        let start = |_| Some(start_master(SocketAddr::from(([127, 0, 0, 1], 0)), &url));
        let masters: Vec<Option<Master>> = (0..masters).map(start).collect();
        let addresses: Vec<SocketAddr> = masters.iter().flatten().map(Master::address).collect();
        let builder = addresses.iter().fold(builder.clone(), |builder, master| builder.flag("--master", master));
        let builder = builder.flag("--users", "masters").flag("--http", "127.0.0.1:0");
        let builders = (0..nodes).map(|node| builder.clone().id(&format!("keeper-{node}"))).collect();
        let mut keepers = Self { etcd, masters, addresses, nodes: (0..nodes).map(|_| None).collect(), builders };
        for node in 0..nodes {
            keepers.start_node(node);
        }
        keepers.wait_until_told();
        keepers
    }

    /// Starts a node: for the first time, or again at its old address.
    #[track_caller]
    pub fn start_node(&mut self, node: usize) {
        let started = self.builders[node].start();
        self.builders[node] = self.builders[node].clone().port(started.address().port());
        self.nodes[node] = Some(started);
    }

    /// Kills a node.
    pub fn kill_node(&mut self, node: usize) {
        self.nodes[node] = None;
    }

    /// Where a node listens.
    #[track_caller]
    pub fn at(&self, node: usize) -> SocketAddr {
        self.node(node).address()
    }

    /// A node that runs.
    #[track_caller]
    pub fn node(&self, node: usize) -> &Node {
        self.nodes[node].as_ref().expect("the node runs")
    }

    /// A metric of a node, without its prefix.
    #[track_caller]
    pub fn node_metric(&self, node: usize, name: &str) -> Option<f64> {
        let metrics = scrape::metrics(scrape::http_address(&self.node(node).process));
        scrape::value(&metrics, &format!("arborcast_node_{name}"))
    }

    /// Waits until some master tells each node that runs of users.
    #[track_caller]
    pub fn wait_until_told(&self) {
        for node in (0..self.nodes.len()).filter(|node| self.nodes[*node].is_some()) {
            let address = scrape::http_address(&self.node(node).process);
            scrape::wait_for(address, "arborcast_node_users_told", 1.0);
        }
    }

    /// Waits until a node knows so many users.
    #[track_caller]
    pub fn wait_for_users(&self, node: usize, users: usize) {
        scrape::wait_for(scrape::http_address(&self.node(node).process), "arborcast_node_users", users as f64);
    }

    /// A master that runs.
    #[track_caller]
    pub fn master(&mut self, master: usize) -> &mut Master {
        self.masters[master].as_mut().expect("the master runs")
    }

    /// Where all masters listen, or did.
    pub fn master_addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// A metric of a master, without its prefix.
    #[track_caller]
    pub fn master_metric(&mut self, master: usize, name: &str) -> Option<f64> {
        let metrics = scrape::metrics(scrape::http_address(&self.master(master).process));
        scrape::value(&metrics, &format!("arborcast_master_{name}"))
    }

    /// Kills a master.
    pub fn kill_master(&mut self, master: usize) {
        self.masters[master] = None;
    }

    /// Starts a master again at its old address.
    #[track_caller]
    pub fn start_master(&mut self, master: usize) {
        self.masters[master] = Some(start_master(self.addresses[master], &self.etcd.url()));
    }
}

#[track_caller]
fn start_master(address: SocketAddr, url: &str) -> Master {
    Master::start_with(address, &["--users", url, "--http", "127.0.0.1:0"])
}

/// REGISTER, and the answer: its command and its words.
#[track_caller]
pub fn register(at: SocketAddr, username: &str, secret: &str) -> (String, String) {
    let mut client = Peer::connect(at);
    client.send(lines::register(username, secret));
    let answer = client.next_line();
    (answer.command().to_owned(), answer.info().to_owned())
}

/// REGISTER, which must succeed.
#[track_caller]
pub fn registers(at: SocketAddr, username: &str, secret: &str) {
    let (command, info) = register(at, username, secret);
    assert_eq!(command, "REGISTER_SUCCESS", "{info}");
}

/// REGISTER, which must fail with these words.
#[track_caller]
pub fn is_refused(at: SocketAddr, username: &str, secret: &str, words: &str) {
    let (command, info) = register(at, username, secret);
    assert!(command == "REGISTER_FAILED" && info.contains(words), "{command}: {info}");
}

/// Whether LOGIN succeeds.
#[track_caller]
pub fn can_log_in(at: SocketAddr, username: &str, secret: &str) -> bool {
    let mut client = Peer::connect(at);
    client.send(lines::login(username, secret));
    match client.next_line().command() {
        "LOGIN_SUCCESS" => true,
        "LOGIN_FAILED" => false,
        other => panic!("LOGIN was answered by {other}"),
    }
}

/// Registers again and again, until it succeeds or the name is another's.
#[track_caller]
pub fn registers_at_last(at: SocketAddr, username: &str, secret: &str) {
    wait::until(3 * PATIENCE, || {
        let (command, info) = register(at, username, secret);
        if command == "REGISTER_SUCCESS" { Ok(()) } else { Err(info) }
    });
}
