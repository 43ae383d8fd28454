//! What a node is told when it starts.

use std::time::Duration;

use arborcast_proto::wire::message::Target;
use arborcast_proto::wire::{Secret, UserRecord, limits};

use crate::ids::ServerId;

/// The settings the decisions depend on. [`Config::new`] is the only place where a default is written.
#[derive(Debug, Clone)]
pub struct Config {
    /// What this server calls itself. Must differ from every other server's in the tree.
    pub id: ServerId,
    /// What SERVER_ANNOUNCE and REDIRECT say: where others reach this server.
    pub hostname: String,
    /// The port that goes with `hostname`.
    pub port: u16,
    /// The cluster secret that a server must give to become a link.
    pub secret: Secret,
    /// Time between two SERVER_ANNOUNCE. Default 5 s. Shorter: fresher loads and more traffic (every announcement goes
    /// to every server). Another server is forgotten after three intervals of *this* node without an announcement, so
    /// keep it at least a third of the longest interval in the tree.
    pub announce_interval: Duration,
    /// Longest line in bytes, in and out, line ending not counted. Default 1 MiB.
    pub max_line: usize,
    /// How long a connection may take to become a link or a session. Default 60 s. Too short: people who type by hand
    /// are cut off. Too long: idle strangers hold connections.
    pub login_timeout: Duration,
    /// Most bytes of names and secrets kept for users. Default 256 MiB; beyond it registrations are refused.
    pub max_user_bytes: usize,
    /// Most registrations that may wait for other servers at once. Default 10,000; beyond it they are refused.
    pub max_registrations: usize,
    /// Most other servers remembered. Default 10,000; announcements of more are passed on and forgotten.
    pub max_servers: usize,
    /// Whether, and how, to speak the extensions. Default: no.
    pub extensions: Option<Extensions>,
}

/// How long a registration waits for all others to agree (protocol, Registration, step 4).
pub const REGISTRATION_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a pair from a LOCK_REQUEST stays pending when nobody objects (protocol, the login window).
pub const LOGIN_WINDOW: Duration = Duration::from_secs(2);

/// After how many announcement intervals of silence another server is forgotten (protocol, Load and redirection).
pub const EXPIRES_AFTER_INTERVALS: u32 = 3;

impl Config {
    /// The defaults, for a server of this name, address and cluster secret.
    pub fn new(id: impl Into<ServerId>, hostname: impl Into<String>, port: u16, secret: Secret) -> Self {
        Self {
            id: id.into(),
            hostname: hostname.into(),
            port,
            secret,
            announce_interval: Duration::from_secs(5),
            max_line: limits::DEFAULT_MAX_LINE,
            login_timeout: Duration::from_secs(60),
            max_user_bytes: 256 << 20,
            max_registrations: 10_000,
            max_servers: 10_000,
            extensions: None,
        }
    }
}

/// What a node needs to speak the extensions (protocol, Capability). [`Extensions::new`] is the only place where a
/// default is written.
#[derive(Debug, Clone)]
pub struct Extensions {
    /// Which run of this node this is: larger than that of any run before it.
    pub incarnation: u64,
    /// Time between two heartbeats on each extended link. Default 300 ms.
    pub heartbeat_interval: Duration,
    /// How long a link may be silent before it is given up. Default 1.5 s, and at least three intervals: lower finds a
    /// frozen neighbour sooner, and takes a busy one for frozen.
    pub heartbeat_timeout: Duration,
    /// Most children. Default 8; with fewer the tree is deeper, with more a node has more to write.
    pub max_children: usize,
    /// The parent to begin with, if one is configured: host and port.
    pub parent: Option<(String, u16)>,
    /// Whether to go back below that parent whenever it would take this node in. Default: no.
    pub prefer_parent: bool,
    /// Whether there are masters, which tell this node of other servers, so that those need not announce themselves here.
    /// Default: no.
    pub has_masters: bool,
    /// Servers remembered from the last run, to ask when no master answers.
    pub remembered: Vec<Target>,
    /// Bytes of activities that are kept for those who come back. Default 64 MiB.
    pub log_bytes: u64,
    /// How long activities are kept for those who come back. Default 10 min. Shorter: less memory, and who was away for
    /// longer is told of a gap.
    pub retention: Duration,
    /// For jitter.
    pub seed: u64,
    /// Users from the last run. The node takes them out.
    pub users: Vec<UserRecord>,
    /// Whether the shell keeps users on disk, so that a registration is complete only when it is there. Default: no.
    pub keeps_users: bool,
    /// Whether clients need a ticket of a master. Default: no.
    pub requires_tickets: bool,
    /// Whether users are registered at the masters, and not in the tree. The same for all nodes of a tree. Default: no.
    pub users_at_masters: bool,
    /// The time, in milliseconds since 1970, at the `now` that [`Node::new`](crate::Node::new) is given. Default 0.
    pub milliseconds_since_1970: u64,
}

impl Extensions {
    /// The defaults for this run of a node.
    pub fn new(incarnation: u64, seed: u64) -> Self {
        Self {
            incarnation,
            heartbeat_interval: Duration::from_millis(300),
            heartbeat_timeout: Duration::from_millis(1500),
            max_children: 8,
            parent: None,
            prefer_parent: false,
            has_masters: false,
            remembered: Vec::new(),
            log_bytes: 64 << 20,
            retention: Duration::from_secs(600),
            seed,
            users: Vec::new(),
            keeps_users: false,
            requires_tickets: false,
            users_at_masters: false,
            milliseconds_since_1970: 0,
        }
    }
}
