//! What the time is for people, as far as the core is told: it has no clock of its own.

use std::time::Instant;

/// The time that the clock showed at an instant; from then on the time that passes is added.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WallClock {
    milliseconds_since_1970: u64,
    at: Instant,
}

impl WallClock {
    pub(crate) fn new(milliseconds_since_1970: u64, at: Instant) -> Self {
        Self { milliseconds_since_1970, at }
    }

    /// Milliseconds since 1970.
    pub(crate) fn milliseconds(self, now: Instant) -> u64 {
        let since = u64::try_from(now.saturating_duration_since(self.at).as_millis()).unwrap_or(u64::MAX);
        self.milliseconds_since_1970.saturating_add(since)
    }
}
