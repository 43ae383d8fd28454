//! Everything a node is told when it starts, checked before any socket is opened.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use arborcast_core::Config;
use clap::ValueEnum;

/// What one node needs to run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What the decisions depend on. Its `port` is filled in once the listener is bound.
    pub core: Config,
    /// Where to listen. Port 0 takes any free port.
    pub bind: SocketAddr,
    /// The parent server to dial, if any: host and port.
    pub parent: Option<(String, u16)>,
    /// Bounds of the shell.
    pub bounds: Bounds,
    /// Where to answer over HTTP, if anywhere: host and port.
    pub http: Option<(String, u16)>,
    /// TLS, if it is offered or used.
    pub tls: Option<arborcast_tls::Settings>,
    /// For whom TLS is required.
    pub require_tls: Option<Require>,
    /// The one server that is dialled without TLS, whatever the others get: host and port.
    pub plain_server: Option<(String, u16)>,
    /// The masters, and where to keep what is remembered; `None` for a node that speaks the plain protocol only.
    pub masters: Option<Masters>,
}

/// For whom TLS is required.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Require {
    /// For other servers.
    Links,
    /// For everybody.
    All,
}

/// Where a node that speaks the extensions finds help.
#[derive(Debug, Clone, Default)]
pub struct Masters {
    /// The masters' addresses, each `HOST:PORT`.
    pub addresses: Vec<String>,
    /// The file in which servers are remembered for the next run.
    pub memory: Option<PathBuf>,
    /// The file in which users are kept; without it they are in memory only.
    pub users: Option<PathBuf>,
}

/// What the shell holds at most. [`Bounds::default`] is the only place where a default is written.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Bytes of the broadcast log, shared by all connections. A client or link that falls this far behind is closed.
    /// Default 64 MiB. Smaller: slow readers are closed sooner. Larger: more memory, once.
    pub log_bytes: u64,
    /// Connections at one time, those that are being closed included. Default 65,536; more are closed unanswered.
    pub max_connections: usize,
    /// Bytes of half lines that all clients and strangers together may hold. Default 256 MiB; who needs more than is left
    /// is refused. Lines of less than 16 KiB and those of other servers don't count.
    pub max_half_line_bytes: usize,
    /// Bytes of answers and control messages that may wait for one connection. Default 8 MiB; beyond it the connection
    /// is closed as too slow.
    pub max_waiting_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            log_bytes: 64 << 20,
            max_connections: 65_536,
            max_half_line_bytes: 256 << 20,
            max_waiting_bytes: 8 << 20,
        }
    }
}

/// What the clock shows.
pub(crate) fn milliseconds_since_1970() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// How long dialling the parent may take.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection that is being closed may take to accept what was sent to it before.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long what a closed peer still sends is read and thrown away, so that it can read our answer in peace: closing a
/// socket with unread bytes in it resets the connection and may destroy what the peer has not read yet.
pub const LINGER_TIMEOUT: Duration = Duration::from_secs(5);

/// The same when the whole node stops.
pub const STOP_LINGER_TIMEOUT: Duration = Duration::from_secs(1);

/// How long stopping may take in all before connections are cut.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(3);
