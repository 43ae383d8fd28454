//! Which publications of which sessions were received, so that one that entered the tree twice is given out once.

use std::collections::HashMap;
use std::mem;

use arborcast_proto::wire::PublicationId;

/// How many sessions are remembered (protocol, Y8); those that were heard of longest ago are forgotten.
const MAX_SESSIONS: usize = 10_000;

/// How many ranges of numbers are kept of one session. Numbers come in order, so there is one, and seldom a second.
const MAX_RANGES: usize = 8;

/// The numbers seen of every session.
///
/// Two generations, so that forgetting the idle costs nothing for each activity: what is heard of moves to the younger
/// one, and when that is full the older one is forgotten.
#[derive(Debug)]
pub(crate) struct Publications {
    young: HashMap<Box<str>, Numbers>,
    old: HashMap<Box<str>, Numbers>,
    max_young: usize,
}

impl Default for Publications {
    fn default() -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), max_young: MAX_SESSIONS / 2 }
    }
}

impl Publications {
    /// Remembers a publication, and says whether it is new.
    pub(crate) fn insert(&mut self, publication: &PublicationId) -> bool {
        if let Some(numbers) = self.young.get_mut(&publication.session) {
            return numbers.insert(publication.number);
        }
        let mut numbers = self.old.remove(&publication.session).unwrap_or_default();
        let is_new = numbers.insert(publication.number);
        if self.young.len() >= self.max_young {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(publication.session.clone(), numbers);
        is_new
    }
}

/// A set of numbers as ranges, both ends included, lowest first.
#[derive(Debug, Default)]
struct Numbers(Vec<(u64, u64)>);

impl Numbers {
    fn insert(&mut self, number: u64) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < number);
        if self.0.get(at).is_some_and(|(first, _)| *first <= number) {
            return false;
        }
        let joins_next = self.0.get(at).is_some_and(|(first, _)| number.checked_add(1) == Some(*first));
        let before = at.checked_sub(1).and_then(|before| self.0.get_mut(before));
        match before.filter(|(_, last)| last.checked_add(1) == Some(number)) {
            Some(range) => range.1 = number,
            None => self.0.insert(at, (number, number)),
        }
        if joins_next {
            // The next range, and before it the one that the number is in: its place is that of the last one that begins
            // at or below the number.
            let next = self.0.partition_point(|(first, _)| *first <= number);
            self.join(next);
        }
        if self.0.len() > MAX_RANGES {
            // The lowest hole is given up: what lies in it counts as seen.
            self.join(1);
        }
        true
    }

    /// Joins the range at this place with the one before it.
    fn join(&mut self, place: usize) {
        if place == 0 || place >= self.0.len() {
            return;
        }
        let (_, last) = self.0.remove(place);
        if let Some(range) = self.0.get_mut(place - 1) {
            range.1 = last;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn publication(session: &str, number: u64) -> PublicationId {
        PublicationId { session: session.into(), number }
    }

    #[test]
    fn a_number_is_new_once_in_each_session() {
        let mut seen = Publications::default();
        for (session, number, is_new) in
            [("a", 1, true), ("a", 1, false), ("b", 1, true), ("a", 2, true), ("a", 1, false), ("a", u64::MAX, true)]
        {
            assert_eq!(seen.insert(&publication(session, number)), is_new, "{session} {number}");
        }
    }

    #[test]
    fn a_number_that_was_overtaken_is_still_new() {
        let mut seen = Publications::default();
        assert!([500, 502, 501, 499].into_iter().all(|number| seen.insert(&publication("a", number))));
        assert!([499, 500, 501, 502].into_iter().all(|number| !seen.insert(&publication("a", number))));
    }

    #[test]
    fn the_sessions_heard_of_longest_ago_are_forgotten() {
        let mut seen = Publications { max_young: 2, ..Publications::default() };
        for (session, number) in [("a", 1), ("b", 1), ("c", 1), ("a", 2), ("d", 1), ("a", 3), ("e", 1), ("f", 1)] {
            assert!(seen.insert(&publication(session, number)), "{session} {number}");
        }
        assert!(!seen.insert(&publication("a", 1)), "it was heard of all the time");
        assert!(seen.insert(&publication("b", 1)), "it was not");
        assert!(seen.young.len() + seen.old.len() <= 4);
    }

    #[test]
    fn the_memory_for_one_session_is_bounded() {
        let mut numbers = Numbers::default();
        assert!((1..=1000).all(|number| numbers.insert(2 * number)));
        assert_eq!(numbers.0.len(), MAX_RANGES);
        assert!(!numbers.insert(3), "given up");
        assert!(numbers.insert(1999), "still a hole");
    }

    proptest! {
        #[test]
        fn ranges_are_a_set_as_long_as_they_are_few(inserted in prop::collection::vec(1_u64..16, 0..60)) {
            // Of fifteen numbers no set has more than eight ranges.
            let (mut numbers, mut set) = (Numbers::default(), BTreeSet::new());
            for number in inserted {
                prop_assert_eq!(numbers.insert(number), set.insert(number));
                prop_assert!(numbers.0.iter().all(|(first, last)| first <= last));
                prop_assert!(numbers.0.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0));
            }
        }
    }
}
