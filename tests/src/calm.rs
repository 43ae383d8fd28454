//! A calm sea in virtual time: nothing fails, but every message is late. Nobody may take anybody else for dead.

use std::time::Duration;

use arborcast_core::{CloseReason, Extensions};

use crate::cluster::Cluster;

/// How long servers that start at once may take to become one tree.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a calm run has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FalseAlarms {
    /// Links that were closed since nothing came over them.
    pub silent_links: u64,
    /// How often a server got another parent, or lost it, once all were one tree.
    pub moves: u64,
}

impl FalseAlarms {
    /// None at all.
    pub const NONE: Self = Self { silent_links: 0, moves: 0 };
}

/// The longest delay of a message in a run that must not see any false alarm.
pub const JITTER: Duration = Duration::from_millis(200);

/// Starts servers with default settings, waits until they are one tree, and looks on for so long, while each message is
/// late by up to `jitter`.
///
/// # Panics
/// When they don't become one tree.
pub fn run(seed: u64, servers: usize, time: Duration, jitter: Duration) -> FalseAlarms {
    let mut cluster = Cluster::new(seed);
    for server in 0..servers {
        cluster.add_extended_server_with(Extensions::new(1, seed.wrapping_add(server as u64)));
    }
    cluster.run_until_trees(PATIENCE);
    let before = cluster.parent_changes();
    cluster.max_delay = jitter;
    cluster.run_for(time);
    let silent = |server| cluster.view(server).closings.get(&CloseReason::Silent).copied().unwrap_or_default();
    FalseAlarms { silent_links: (0..cluster.servers()).map(silent).sum(), moves: cluster.parent_changes() - before }
}
