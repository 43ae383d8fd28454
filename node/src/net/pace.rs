//! When publishers have to wait.
//!
//! One publisher can write faster than a node can hand its lines to hundreds of readers. Without a brake the log would
//! run away from everybody and all would be closed as too slow, though none of them is. So whoever publishes waits while
//! even the quickest reader is late. Slower readers have no say: one that can't keep up with the quickest is closed when
//! it falls off the log, and slows nobody. A link has a say of its own while it moves: behind it is a whole subtree, and
//! its waiting is how the subtree's readers slow down a publisher up here.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// A reader is late when it is further behind than this, or than a quarter of the log where that is less. More would
/// mean longer queues and colder caches, less would make publishers wait for readers that are about to catch up.
const MAX_LAG_BYTES: u64 = 4 << 20;

/// A late reader that has not taken a byte for this long is stuck, and nobody waits for it.
const STUCK_AFTER: Duration = Duration::from_secs(1);

/// What one fan-out task sees of its readers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Some reader is not late.
    some_timely: bool,
    /// Some reader is late and not stuck.
    some_late: bool,
    /// Some link is late and not stuck.
    some_link_late: bool,
}

impl Tally {
    /// Counts one reader that is `lag` bytes behind and has not taken anything for `still`.
    pub(super) fn count(&mut self, max_lag: u64, lag: u64, still: Duration, is_link: bool) {
        if lag <= max_lag {
            self.some_timely = true;
        } else if still < STUCK_AFTER {
            self.some_late = true;
            self.some_link_late |= is_link;
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            some_timely: self.some_timely || other.some_timely,
            some_late: self.some_late || other.some_late,
            some_link_late: self.some_link_late || other.some_link_late,
        }
    }

    fn must_wait(self) -> bool {
        self.some_link_late || (self.some_late && !self.some_timely)
    }

    /// Whether this alone is a reason to look again soon.
    pub(super) fn has_late_readers(self) -> bool {
        self.some_late
    }
}

/// What all fan-out tasks together see, and whether publishers may go on.
pub(super) struct Pace {
    max_lag: u64,
    tallies: Mutex<Vec<Tally>>,
    open: watch::Sender<bool>,
}

impl Pace {
    pub(super) fn new(fan_outs: usize, log_bytes: u64) -> Self {
        let max_lag = MAX_LAG_BYTES.min(log_bytes / 4);
        Self { max_lag, tallies: Mutex::new(vec![Tally::default(); fan_outs]), open: watch::Sender::new(true) }
    }

    /// How many bytes a reader may be behind before it is late.
    pub(super) fn max_lag(&self) -> u64 {
        self.max_lag
    }

    pub(super) fn report(&self, fan_out: usize, tally: Tally) {
        let mut tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(last) = tallies.get_mut(fan_out).filter(|last| **last != tally) else { return };
        *last = tally;
        let open = !tallies.iter().copied().fold(Tally::default(), Tally::and).must_wait();
        self.open.send_if_modified(|was_open| std::mem::replace(was_open, open) != open);
    }

    pub(super) fn gate(&self) -> Gate {
        Gate(self.open.subscribe())
    }
}

/// Where a publisher waits.
pub(super) struct Gate(watch::Receiver<bool>);

impl Gate {
    /// Whether publishers may go on at this moment.
    pub(super) fn is_open(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until publishers may go on. The fan-out looks again all the time while they may not.
    pub(super) async fn open(&mut self) {
        // An error means that the node is gone, and then nothing matters here.
        let _ = self.0.wait_for(|open| *open).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_LAG: u64 = 100;
    const MOVING: Duration = Duration::ZERO;

    fn tally(readers: &[(u64, Duration, bool)]) -> Tally {
        let mut tally = Tally::default();
        for (lag, still, is_link) in readers {
            tally.count(MAX_LAG, *lag, *still, *is_link);
        }
        tally
    }

    #[test]
    fn publishers_wait_only_when_even_the_quickest_reader_is_late() {
        assert!(!tally(&[]).must_wait());
        assert!(tally(&[(101, MOVING, false), (500, MOVING, false)]).must_wait());
        assert!(!tally(&[(100, MOVING, false), (500, MOVING, false), (600, MOVING, false)]).must_wait());
    }

    #[test]
    fn nobody_waits_for_a_stuck_reader() {
        assert!(!tally(&[(500, STUCK_AFTER, false), (500, STUCK_AFTER, true)]).must_wait());
    }

    #[test]
    fn a_late_link_that_moves_is_waited_for() {
        assert!(tally(&[(0, MOVING, false), (101, MOVING, true)]).must_wait());
        assert!(!tally(&[(0, MOVING, false), (99, MOVING, true)]).must_wait());
    }

    #[test]
    fn the_gate_follows_what_all_fan_outs_report() {
        let pace = Pace::new(2, 400);
        assert_eq!(pace.max_lag(), 100);
        let is_open = |pace: &Pace| *pace.gate().0.borrow();
        pace.report(0, tally(&[(101, MOVING, false)]));
        assert!(!is_open(&pace));
        pace.report(1, tally(&[(5, MOVING, false)]));
        assert!(is_open(&pace));
        pace.report(1, tally(&[]));
        assert!(!is_open(&pace));
        pace.report(0, tally(&[]));
        assert!(is_open(&pace));
    }
}
