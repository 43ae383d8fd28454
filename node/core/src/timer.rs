//! What has to happen later, and when. Timers are a table, not tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::ids::{ConnectionId, ServerId};

/// Everything a node waits for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// Acknowledgements are due.
    Acks,
    /// The next SERVER_ANNOUNCE is due.
    Announce,
    /// A root that may be part of another tree in a moment has waited long enough: it registers names by itself.
    Apart,
    /// A connection that was asked for, or its acceptance, has taken too long.
    Attempt,
    /// An applicant's request was not answered by the root in time.
    Applicant(ConnectionId),
    /// A drain has taken as long as it may.
    DrainGrace,
    /// Heartbeats are due on all extended links.
    Heartbeat,
    /// Time to ask the preferred parent, or its answer has taken too long.
    Homing,
    /// A link may have been silent for too long.
    LinkSilence(ConnectionId),
    /// The server that a master proposes has not answered in time.
    Move,
    /// Time to look for a parent, or to go on without the masters' answer.
    Seek,
    /// A connection has taken too long to become a link or a session.
    Identify(ConnectionId),
    /// No master has named other servers for too long.
    Naming,
    /// The predecessor of an activity of this connection has not come in time.
    Predecessor(ConnectionId),
    /// A registration of one of our clients was not agreed to in time; by username.
    Registration(String),
    /// Another server has not announced itself for too long.
    ServerExpiry(ServerId),
    /// A registration from a plain tree can't be taken back any more; by username.
    Revocable(String),
    /// No neighbour has confirmed a registration; by username.
    Unconfirmed(String),
    /// Users that could not be written to disk are due again.
    WriteAgain,
    /// Nobody has objected to a pending pair for long enough; by username.
    LoginWindow(String),
}

/// When which timer fires. Setting a timer again moves it.
#[derive(Debug, Default)]
pub(crate) struct TimerTable {
    deadlines: BTreeMap<Timer, Instant>,
    queue: BTreeSet<(Instant, Timer)>,
}

impl TimerTable {
    pub(crate) fn set(&mut self, timer: Timer, deadline: Instant) {
        self.stop(&timer);
        self.queue.insert((deadline, timer.clone()));
        self.deadlines.insert(timer, deadline);
    }

    pub(crate) fn stop(&mut self, timer: &Timer) {
        if let Some((timer, deadline)) = self.deadlines.remove_entry(timer) {
            self.queue.remove(&(deadline, timer));
        }
    }

    pub(crate) fn is_set(&self, timer: &Timer) -> bool {
        self.deadlines.contains_key(timer)
    }

    /// Takes out the earliest timer that is due at `now`, with the time when it was due. A timer fires once.
    pub(crate) fn pop_expired(&mut self, now: Instant) -> Option<(Instant, Timer)> {
        if self.next_deadline()? > now {
            return None;
        }
        let (due, timer) = self.queue.pop_first()?;
        self.deadlines.remove(&timer);
        Some((due, timer))
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.queue.first().map(|(deadline, _)| *deadline)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn timers_fire_once_in_order_and_only_when_due() {
        let start = crate::testing::start();
        let at = |seconds| start + Duration::from_secs(seconds);
        let identify = |id| Timer::Identify(ConnectionId(id));
        let mut table = TimerTable::default();
        table.set(identify(2), at(2));
        table.set(Timer::Announce, at(1));
        table.set(identify(3), at(3));
        table.set(identify(2), at(4));
        table.stop(&identify(3));
        table.stop(&identify(9));

        assert_eq!(table.next_deadline(), Some(at(1)));
        assert_eq!(table.pop_expired(at(0)), None);
        assert_eq!(table.pop_expired(at(4)), Some((at(1), Timer::Announce)));
        assert_eq!(table.pop_expired(at(4)), Some((at(4), identify(2))));
        assert_eq!(table.pop_expired(at(9)), None);
        assert_eq!(table.next_deadline(), None);
    }
}
