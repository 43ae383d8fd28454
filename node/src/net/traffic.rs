//! Counters that tasks of many connections share. Each is added to once for a whole batch, and nobody waits for anybody.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arborcast_tls::Handshakes;

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What all connections of a node have carried.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// Bytes that came.
    pub(crate) received_bytes: Count,
    /// Bytes that the operating system took.
    pub(crate) sent_bytes: Count,
    /// Connections that were closed at once, since there were too many.
    pub(crate) turned_away: Count,
    /// TLS handshakes of those who connected, by how they ended.
    pub(crate) handshakes: Arc<Handshakes>,
    /// TLS handshakes with others that failed.
    pub(crate) failed_dials: Count,
}
