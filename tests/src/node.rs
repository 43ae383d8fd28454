//! One running server.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::process::{Process, node_binary};

/// The cluster secret of all nodes, unless a test says otherwise.
pub const SECRET: &str = "cluster-secret";

/// How a node is to be started. Unless told otherwise it is the first of its tree, on a free port, with an id of its own,
/// and announces itself so rarely that nothing of it is seen beyond the announcement that greets a link.
#[derive(Debug, Clone)]
pub struct NodeBuilder {
    id: Option<String>,
    hostname: String,
    port: u16,
    secret: Option<String>,
    parent: Option<SocketAddr>,
    announce_interval: Duration,
    more: Vec<String>,
    log: Option<String>,
}

impl Default for NodeBuilder {
    fn default() -> Self {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        Self {
            id: Some(format!("node-{}", STARTED.fetch_add(1, Ordering::Relaxed))),
            hostname: Ipv4Addr::LOCALHOST.to_string(),
            port: 0,
            secret: Some(SECRET.to_owned()),
            parent: None,
            announce_interval: Duration::from_secs(60),
            more: Vec::new(),
            log: None,
        }
    }
}

impl NodeBuilder {
    /// Calls itself this.
    #[must_use]
    pub fn id(self, id: &str) -> Self {
        Self { id: Some(id.to_owned()), ..self }
    }

    /// Leaves the id to the node.
    #[must_use]
    pub fn without_id(self) -> Self {
        Self { id: None, ..self }
    }

    /// Tells the others that it is reached at this host, where somebody else must listen and pass on what comes.
    #[must_use]
    pub fn hostname(self, hostname: &str) -> Self {
        Self { hostname: hostname.to_owned(), ..self }
    }

    /// Listens on this port.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// Uses this cluster secret.
    #[must_use]
    pub fn secret(self, secret: &str) -> Self {
        Self { secret: Some(secret.to_owned()), ..self }
    }

    /// Gives no cluster secret.
    #[must_use]
    pub fn without_secret(self) -> Self {
        Self { secret: None, ..self }
    }

    /// Joins the tree at this server.
    #[must_use]
    pub fn parent(self, address: SocketAddr) -> Self {
        Self { parent: Some(address), ..self }
    }

    /// Announces itself this often.
    #[must_use]
    pub fn announce_every(self, interval: Duration) -> Self {
        Self { announce_interval: interval, ..self }
    }

    /// Adds a flag and its value, as they stand on the command line.
    #[must_use]
    pub fn flag(mut self, name: &str, value: impl ToString) -> Self {
        self.more.extend([name.to_owned(), value.to_string()]);
        self
    }

    /// Speaks the extensions, also without masters.
    #[must_use]
    pub fn extended(mut self) -> Self {
        self.more.push("--extended".to_owned());
        self
    }

    /// Logs this much, as RUST_LOG says it.
    #[must_use]
    pub fn log(self, level: &str) -> Self {
        Self { log: Some(level.to_owned()), ..self }
    }

    /// Adds a flag that has no value.
    #[must_use]
    pub fn switch(mut self, name: &str) -> Self {
        self.more.push(name.to_owned());
        self
    }

    /// Starts the process and does not wait for anything.
    pub fn spawn(&self) -> Process {
        let mut arguments = vec!["--bind".to_owned(), Ipv4Addr::LOCALHOST.to_string()];
        let mut flag = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        flag("-lh", self.hostname.clone());
        flag("-lp", self.port.to_string());
        flag("-a", self.announce_interval.as_millis().to_string());
        if let Some(id) = &self.id {
            flag("--id", id.clone());
        }
        if let Some(secret) = &self.secret {
            flag("-s", secret.clone());
        }
        if let Some(parent) = &self.parent {
            flag("-rh", parent.ip().to_string());
            flag("-rp", parent.port().to_string());
        }
        arguments.extend_from_slice(&self.more);
        match &self.log {
            Some(level) => Process::start_logging(node_binary(), arguments, level),
            None => Process::start(node_binary(), arguments),
        }
    }

    /// Starts the node and waits until it accepts connections.
    #[track_caller]
    pub fn start(&self) -> Node {
        self.listening(self.spawn())
    }

    /// Waits until a process that was spawned this way accepts connections.
    #[track_caller]
    pub fn listening(&self, process: Process) -> Node {
        let port = listening_port(&process);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Node { process, address, id: self.id.clone().unwrap_or_default() }
    }
}

/// Waits for the line in which a node says where it listens.
#[track_caller]
pub fn listening_port(process: &Process) -> u16 {
    process.stdout_line_matching("`listening on`", |line| {
        line.strip_prefix("listening on ")?.rsplit(':').next()?.parse().ok()
    })
}

/// A server that accepts connections. Killed when dropped.
#[derive(Debug)]
pub struct Node {
    /// Its process.
    pub process: Process,
    address: SocketAddr,
    id: String,
}

impl Node {
    /// A node that is the first of its tree.
    #[track_caller]
    pub fn start() -> Self {
        NodeBuilder::default().start()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it calls itself; empty if that was left to the node.
    pub fn id(&self) -> &str {
        &self.id
    }
}
