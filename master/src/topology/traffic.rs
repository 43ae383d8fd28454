//! How many activities pass through a node, from a count that only grows.

use std::time::{Duration, Instant};

/// Over how long a rate is measured at least: shorter, and a heartbeat more or less would show.
const WINDOW: Duration = Duration::from_secs(1);

/// The activities of one start of a node.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Traffic {
    total: u64,
    per_second: f64,
    /// The count at the beginning of the window that is measured now.
    since: (u64, Instant),
}

impl Traffic {
    /// Of a node whose first report says so many.
    pub fn new(total: u64, now: Instant) -> Self {
        Self { total, per_second: 0.0, since: (total, now) }
    }

    /// After another report. A node that counts backwards starts anew.
    #[must_use]
    pub fn after(self, total: u64, now: Instant) -> Self {
        if total < self.total {
            return Self::new(total, now);
        }
        let (before, begin) = self.since;
        let elapsed = now.saturating_duration_since(begin);
        if elapsed < WINDOW {
            return Self { total, ..self };
        }
        let per_second = (total - before) as f64 / elapsed.as_secs_f64();
        Self { total, per_second, since: (total, now) }
    }

    /// How many since the node started, as it says.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// How many in a second, over its reports of about the last one.
    pub fn per_second(&self) -> f64 {
        self.per_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_measured_over_a_second_or_more() {
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let mut traffic = Traffic::new(100, begin);
        for (millis, total, per_second) in
            [(500, 150, 0.0), (1000, 200, 100.0), (1500, 900, 100.0), (3000, 1000, 400.0), (9000, 1000, 0.0)]
        {
            traffic = traffic.after(total, at(millis));
            assert_eq!((traffic.total(), traffic.per_second()), (total, per_second), "at {millis} ms");
        }
        assert_eq!(traffic.after(5, at(9100)), Traffic::new(5, at(9100)), "counted backwards");
    }
}
