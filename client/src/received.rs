//! What an extended session has received: of each origin, and under whichever name.

use std::collections::BTreeMap;

use arborcast_proto::wire::relay::MAX_ORIGINS;
use arborcast_proto::wire::{Have, Origin, RelayTag};

use crate::publications::Publications;

/// What an origin costs in a line beside its name: quotes, colon, comma and the longest number.
const ENTRY_OVERHEAD: usize = 24;

/// The client's have (protocol, Y2 and E3). Of at most [`MAX_ORIGINS`]; the one that was heard of longest ago is forgotten.
#[derive(Debug, Default)]
pub(crate) struct Received {
    origins: BTreeMap<Origin, Progress>,
    publications: Publications,
    /// Counts what was heard of.
    clock: u64,
}

#[derive(Debug, Clone, Copy)]
struct Progress {
    through: u64,
    heard_at: u64,
}

/// What an activity is to the one who receives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It was there already.
    Duplicate,
    /// It is new, and this many of its origin that should have come before it did not.
    New { missing: u64 },
}

impl Received {
    /// Takes an activity that arrived.
    pub(crate) fn take(&mut self, tag: &RelayTag) -> Arrival {
        let known = self.through(&tag.origin);
        if known.is_some_and(|through| tag.seq <= through) {
            return Arrival::Duplicate;
        }
        self.advance(&tag.origin, tag.seq);
        if tag.publication.as_ref().is_some_and(|publication| !self.publications.insert(publication)) {
            return Arrival::Duplicate;
        }
        // Nothing is known to be missing of an origin that was not heard of before.
        Arrival::New { missing: known.map_or(0, |through| tag.seq - through - 1) }
    }

    /// Takes the news that activities are gone, and says how many of them are missing.
    pub(crate) fn skip(&mut self, origin: &Origin, through: u64) -> u64 {
        let missing = through.saturating_sub(self.through(origin).unwrap_or(0));
        if missing > 0 {
            self.advance(origin, through);
        }
        missing
    }

    /// Counts what a server says as received; as much of it as is kept at all.
    pub(crate) fn merge(&mut self, have: Have) {
        for (origin, through) in have.into_iter().take(MAX_ORIGINS) {
            if self.through(&origin).is_none_or(|known| known < through) {
                self.advance(&origin, through);
            }
        }
    }

    /// Begins anew with what is received from here on. Publications stay known.
    pub(crate) fn forget_origins(&mut self) {
        self.origins.clear();
    }

    /// What to tell the next server, in at most so many bytes of JSON. The longest idle origins are left out first: of
    /// those a server has the least to send.
    pub(crate) fn have(&self, max_bytes: usize) -> Have {
        let mut by_idleness: Vec<_> = self.origins.iter().collect();
        by_idleness.sort_unstable_by_key(|(_, progress)| std::cmp::Reverse(progress.heard_at));
        let mut left = max_bytes;
        let entries = by_idleness.into_iter().map_while(|(origin, progress)| {
            let length = serde_json::to_string(origin).map_or(usize::MAX, |name| name.len() + ENTRY_OVERHEAD);
            left = left.checked_sub(length)?;
            Some((origin.clone(), progress.through))
        });
        entries.collect()
    }

    fn through(&self, origin: &Origin) -> Option<u64> {
        self.origins.get(origin).map(|progress| progress.through)
    }

    fn advance(&mut self, origin: &Origin, through: u64) {
        self.clock += 1;
        let progress = Progress { through, heard_at: self.clock };
        if let Some(known) = self.origins.get_mut(origin) {
            *known = progress;
            return;
        }
        if self.origins.len() >= MAX_ORIGINS
            && let Some(idle) = self.origins.iter().min_by_key(|(_, progress)| progress.heard_at)
        {
            let idle = idle.0.clone();
            self.origins.remove(&idle);
        }
        self.origins.insert(origin.clone(), progress);
    }
}

#[cfg(test)]
mod tests {
    use arborcast_proto::wire::{Message, PublicationId, Resume};
    use proptest::prelude::*;

    use super::*;

    fn origin(id: &str) -> Origin {
        Origin { id: id.into(), incarnation: 7 }
    }

    fn tag(id: &str, seq: u64) -> RelayTag {
        RelayTag { origin: origin(id), seq, publication: None }
    }

    fn published(id: &str, seq: u64, session: &str, number: u64) -> RelayTag {
        let publication = Some(PublicationId { session: session.into(), number });
        RelayTag { publication, ..tag(id, seq) }
    }

    const NEW: Arrival = Arrival::New { missing: 0 };

    #[test]
    fn what_is_not_above_have_is_a_duplicate() {
        let mut received = Received::default();
        received.merge(Have::from([(origin("n1"), 5)]));
        for (seq, arrival) in [(5, Arrival::Duplicate), (6, NEW), (6, Arrival::Duplicate), (7, NEW)] {
            assert_eq!(received.take(&tag("n1", seq)), arrival, "{seq}");
        }
        assert_eq!(received.have(1000), Have::from([(origin("n1"), 7)]));
    }

    #[test]
    fn one_publication_under_two_names_is_new_once_and_both_names_count() {
        let mut received = Received::default();
        assert_eq!(received.take(&published("n1", 1, "s", 1)), NEW);
        assert_eq!(received.take(&published("n2", 1, "s", 1)), Arrival::Duplicate);
        assert_eq!(received.take(&published("n2", 2, "s", 2)), NEW);
        assert_eq!(received.have(1000), Have::from([(origin("n1"), 1), (origin("n2"), 2)]));
    }

    #[test]
    fn a_gap_is_counted_once_whoever_tells_of_it() {
        let mut received = Received::default();
        received.merge(Have::from([(origin("n1"), 5)]));
        assert_eq!(received.skip(&origin("n1"), 8), 3);
        assert_eq!(received.skip(&origin("n1"), 8), 0);
        assert_eq!(received.take(&tag("n1", 8)), Arrival::Duplicate);
        assert_eq!(received.take(&tag("n1", 9)), NEW);
        // A server that does not announce it.
        assert_eq!(received.take(&tag("n1", 12)), Arrival::New { missing: 2 });
        // Never heard of: what was before that is not known to be missing, unless a server says so.
        assert_eq!(received.take(&tag("n2", 40)), NEW);
        assert_eq!(received.skip(&origin("n3"), 4), 4);
    }

    #[test]
    fn what_counts_as_received_never_goes_back() {
        let mut received = Received::default();
        received.merge(Have::from([(origin("n1"), 5)]));
        received.merge(Have::from([(origin("n1"), 3), (origin("n2"), 1)]));
        assert_eq!(received.have(1000), Have::from([(origin("n1"), 5), (origin("n2"), 1)]));
        received.forget_origins();
        assert_eq!(received.have(1000), Have::new());
    }

    #[test]
    fn the_longest_idle_origins_are_left_out_first_and_forgotten_first() {
        let mut received = Received::default();
        for number in 0..=MAX_ORIGINS {
            received.take(&tag(&format!("n{number}"), 1));
        }
        received.take(&tag("n1", 2));
        let have = received.have(usize::MAX);
        assert_eq!(have.len(), MAX_ORIGINS);
        assert!(!have.contains_key(&origin("n0")));
        let have = received.have(100);
        assert!((1..4).contains(&have.len()), "{have:?}");
        assert!(have.contains_key(&origin("n1")) && have.contains_key(&origin(&format!("n{MAX_ORIGINS}"))));
    }

    proptest! {
        #[test]
        fn every_have_fits_the_bytes_it_was_made_for(
            ids in prop::collection::vec("\\PC{1,12}", 0..40), seq in any::<u64>(), max_bytes in 0_usize..2000,
        ) {
            let mut received = Received::default();
            for id in &ids {
                received.take(&tag(id, seq));
            }
            let login = |have| Message::Login {
                username: "x".into(), secret: None, resume: Some(Resume { session: "s".into(), have: Some(have), proof: None }),
                ticket: None,
            };
            let length = |have| login(have).to_line().len();
            prop_assert!(length(received.have(max_bytes)) - length(Have::new()) <= max_bytes);
        }

        #[test]
        fn whatever_comes_twice_is_taken_once(arrivals in prop::collection::vec((0_u8..3, 1_u64..20), 0..200)) {
            let mut received = Received::default();
            let mut taken = std::collections::BTreeSet::new();
            for (id, seq) in arrivals {
                if let Arrival::New { .. } = received.take(&tag(&id.to_string(), seq)) {
                    prop_assert!(taken.insert((id, seq)));
                }
            }
        }
    }
}
