//! Everything a master is told when it starts.

use std::time::Duration;

use arborcast_proto::wire::Secret;
use rand::distr::{Alphanumeric, SampleString as _};

use crate::topology::Limits;

/// What one master needs to run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What it calls itself in answers: another one after each start, so that it shows that it was started again.
    pub master_id: String,
    /// The cluster's secret: for nodes' calls, and for asking a node to drain.
    pub secret: Secret,
    /// For how long after the start the master says that it may not know everybody. Should be the heartbeat interval of
    /// the nodes, in which each of them repeats its state. Default 2 s. Shorter: orphans that ask a master that has just
    /// started may take an answer for the whole truth. Longer: they wait or ask elsewhere without need.
    pub warm_up: Duration,
    /// Whether it proposes moves that make trees shallower. Default: yes. Without it only an operator's wish does.
    pub balances: bool,
    /// Where users are kept, if this is done here. Default: nowhere; the nodes keep them by themselves.
    pub users: Option<crate::users::Settings>,
    /// What it holds at most.
    pub bounds: Bounds,
}

impl Settings {
    /// The defaults, with a new id.
    pub fn new(secret: Secret) -> Self {
        let master_id = Alphanumeric.sample_string(&mut rand::rng(), 20);
        Self {
            master_id,
            secret,
            warm_up: Duration::from_secs(2),
            balances: true,
            users: None,
            bounds: Bounds::default(),
        }
    }
}

/// What a master holds at most. [`Bounds::default`] is the only place where a default is written.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Nodes, and what they list.
    pub topology: Limits,
    /// Connections at one time. Default 16,384; more wait in the operating system's queue until one is closed. Must be
    /// larger than the number of nodes, each of which keeps one.
    pub connections: usize,
    /// Report streams at one time. Default 11,000: every node, and some that are reconnecting. More are refused.
    pub report_streams: usize,
    /// Watchers of the topology at one time. Default 256; more are refused.
    pub watchers: usize,
    /// Changes that may wait for one watcher. Default 4,096; a watcher that falls further behind is ended. They are
    /// shared by all watchers.
    pub watcher_queue: usize,
    /// How long a new connection may take to begin HTTP/2. Default 5 s.
    pub handshake_timeout: Duration,
    /// How long a node may take from opening its stream to its first report. Default 5 s.
    pub first_report_timeout: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            topology: Limits::default(),
            connections: 16_384,
            report_streams: 11_000,
            watchers: 256,
            watcher_queue: 4_096,
            handshake_timeout: Duration::from_secs(5),
            first_report_timeout: Duration::from_secs(5),
        }
    }
}

/// How long a call that is no stream may take.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// After how long without traffic a peer is asked whether it is still there, and how long it has to answer.
pub const KEEPALIVE: Duration = Duration::from_secs(5);

/// Longest message that is read, in bytes. The longest valid report is about 200 kB.
pub const MAX_MESSAGE: usize = 256 << 10;

/// How long stopping may take before connections are cut.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(2);
