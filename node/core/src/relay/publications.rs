//! Which activities of which client sessions a node has seen, whatever name they came under (protocol, Relay, Y8; Extended
//! sessions, E6).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use arborcast_proto::wire::PublicationId;

use super::ledger::OriginIndex;

/// Most sessions in each of the two generations.
const MAX_SESSIONS: usize = 50_000;

/// Most separate ranges of one session; there is more than one only where something was given up.
const MAX_RANGES: usize = 8;

/// The sessions that were heard of lately.
///
/// There are two generations. One that is old enough, or full, is forgotten as a whole; so remembering costs nothing for
/// each activity.
#[derive(Debug)]
pub(crate) struct Publications {
    young: BTreeMap<Box<str>, Seen>,
    old: BTreeMap<Box<str>, Seen>,
    began: Instant,
    retention: Duration,
}

#[derive(Debug, Clone)]
struct Seen {
    /// The numbers, in order.
    ranges: Vec<(u64, u64)>,
    /// Under which name the last one came.
    last: (OriginIndex, u64),
}

impl Publications {
    pub(crate) fn new(retention: Duration, now: Instant) -> Self {
        Self { young: BTreeMap::new(), old: BTreeMap::new(), began: now, retention }
    }

    /// Takes note of an activity and the name under which it came. Returns whether it was seen before.
    pub(crate) fn see(&mut self, publication: &PublicationId, name: (OriginIndex, u64), now: Instant) -> bool {
        let PublicationId { session, number } = publication;
        if now - self.began > self.retention || self.young.len() >= MAX_SESSIONS {
            self.old = std::mem::take(&mut self.young);
            self.began = now;
        }
        if !self.young.contains_key(session) {
            let seen = self.old.remove(session).unwrap_or_else(|| Seen { ranges: Vec::new(), last: name });
            self.young.insert(session.clone(), seen);
        }
        let Some(seen) = self.young.get_mut(session).filter(|seen| !covers(&seen.ranges, *number)) else { return true };
        seen.last = name;
        insert(&mut seen.ranges, *number);
        false
    }

    pub(crate) fn has_seen(&self, session: &str, number: u64) -> bool {
        self.seen(session).is_some_and(|seen| covers(&seen.ranges, number))
    }

    /// The name of the last activity of a session. Whoever has that has all before it (protocol, Y5).
    pub(crate) fn last_name(&self, session: &str) -> Option<(OriginIndex, u64)> {
        self.seen(session).map(|seen| seen.last)
    }

    fn seen(&self, session: &str) -> Option<&Seen> {
        self.young.get(session).or_else(|| self.old.get(session))
    }
}

fn covers(ranges: &[(u64, u64)], number: u64) -> bool {
    ranges.iter().any(|(first, last)| (*first..=*last).contains(&number))
}

fn insert(ranges: &mut Vec<(u64, u64)>, number: u64) {
    // Nearly always it is the next one.
    if let Some((_, last)) = ranges.last_mut()
        && last.checked_add(1) == Some(number)
    {
        *last = number;
        return;
    }
    let at = ranges.partition_point(|(first, _)| *first < number);
    ranges.insert(at, (number, number));
    let mut joined: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges.drain(..) {
        match joined.last_mut() {
            Some((_, before)) if before.saturating_add(1) >= first => *before = last.max(*before),
            _ => joined.push((first, last)),
        }
    }
    if joined.len() > MAX_RANGES {
        // What is still missing so far back is not going to come.
        let (first, _) = joined.remove(0);
        if let Some(second) = joined.first_mut() {
            second.0 = first;
        }
    }
    *ranges = joined;
}

#[cfg(test)]
mod tests {
    use arborcast_proto::wire::Origin;

    use super::super::ledger::Ledger;
    use super::*;

    fn some_origin(now: Instant) -> OriginIndex {
        Ledger::new(Origin { id: "me".into(), incarnation: 1 }, 1, Duration::ZERO, now).own()
    }

    fn publication(session: &str, number: u64) -> PublicationId {
        PublicationId { session: session.into(), number }
    }

    #[test]
    fn each_number_of_a_session_is_new_once() {
        let now = crate::testing::start();
        let own = some_origin(now);
        let mut publications = Publications::new(Duration::from_secs(60), now);
        for number in [1, 2, 3, 7, 5, 6] {
            assert!(!publications.see(&publication("s", number), (own, number), now), "{number}");
            assert!(publications.see(&publication("s", number), (own, 99), now), "{number}");
        }
        assert!(publications.has_seen("s", 7) && !publications.has_seen("s", 4) && !publications.has_seen("t", 1));
        assert_eq!(publications.last_name("s"), Some((own, 6)));
        assert_eq!(publications.young["s"].ranges, [(1, 3), (5, 7)]);
    }

    #[test]
    fn a_session_is_remembered_for_the_retention_at_least_and_for_twice_that_at_most() {
        let now = crate::testing::start();
        let own = some_origin(now);
        let mut publications = Publications::new(Duration::from_secs(60), now);
        let mut see = |session: &str, seconds| {
            publications.see(&publication(session, 1), (own, 1), now + Duration::from_secs(seconds))
        };
        assert!(!see("s", 50));
        assert!(!see("other", 61));
        assert!(see("s", 109));
        assert!(!see("other 2", 122));
        assert!(!see("other 3", 183));
        assert!(!see("s", 184));
    }

    #[test]
    fn ranges_are_bounded_and_what_is_far_back_counts_as_seen() {
        let mut ranges = Vec::new();
        for number in (2..100).step_by(2) {
            insert(&mut ranges, number);
        }
        assert_eq!(ranges.len(), MAX_RANGES);
        assert!(covers(&ranges, 3) && covers(&ranges, 98) && !covers(&ranges, 97) && !covers(&ranges, 1));
    }
}
