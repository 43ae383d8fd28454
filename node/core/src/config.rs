//! What a node is told when it starts.

use std::time::Duration;

use arborcast_proto::wire::{Secret, limits};

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
        }
    }
}
