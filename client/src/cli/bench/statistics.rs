//! What has arrived, and what has not.

use hdrhistogram::{CreationError, Histogram};

/// How many gaps of one publisher are remembered at one subscriber. What lies in older ones counts as lost even if it
/// comes after all.
const MAX_GAPS: usize = 256;

/// Latencies are told apart up to an hour, with three digits.
const LEAST_LATENCY: u64 = 1;
const MOST_LATENCY: u64 = 3_600_000_000_000;
const DIGITS: u8 = 3;

/// What one activity was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// After all that came before it, though not necessarily the next.
    InOrder,
    /// Something that was published later came before it.
    OutOfOrder,
    /// It had come before.
    Again,
}

/// What one subscriber has got of one publisher.
#[derive(Debug, Default, Clone)]
pub(crate) struct Received {
    /// One more than the highest number.
    next: u64,
    /// What is missing below it: first and last, both included, lowest first.
    gaps: Vec<(u64, u64)>,
    /// What was missing in gaps that are not remembered.
    forgotten: u64,
}

impl Received {
    /// Takes the activity with this number; they count from 0.
    pub(crate) fn take(&mut self, sequence: u64) -> Arrival {
        if sequence >= self.next {
            if sequence > self.next {
                self.gaps.push((self.next, sequence - 1));
                self.forget();
            }
            self.next = sequence.saturating_add(1);
            return Arrival::InOrder;
        }
        let at = self.gaps.partition_point(|(_, last)| *last < sequence);
        match self.gaps.get_mut(at) {
            Some((first, last)) if *first <= sequence => {
                let (before, behind) = ((*first, sequence.wrapping_sub(1)), (sequence + 1, *last));
                let (is_first, is_last) = (*first == sequence, *last == sequence);
                match (is_first, is_last) {
                    (true, true) => drop(self.gaps.remove(at)),
                    (true, false) => *first = behind.0,
                    (false, true) => *last = before.1,
                    (false, false) => {
                        *last = before.1;
                        self.gaps.insert(at + 1, behind);
                        self.forget();
                    }
                }
                Arrival::OutOfOrder
            }
            _ => Arrival::Again,
        }
    }

    /// How many of the first `published` have not come.
    pub(crate) fn missing(&self, published: u64) -> u64 {
        let within: u64 = self.gaps.iter().map(|(first, last)| last - first + 1).sum();
        published.saturating_sub(self.next) + within + self.forgotten
    }

    fn forget(&mut self) {
        if self.gaps.len() > MAX_GAPS {
            let (first, last) = self.gaps.remove(0);
            self.forgotten += last - first + 1;
        }
    }
}

/// How long one subscriber got nothing. Times in nanoseconds from the start of the run.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Silence {
    last: u64,
    longest: u64,
    longest_from: u64,
}

impl Silence {
    /// Something came.
    pub(crate) fn end(&mut self, now: u64) {
        let silence = now.saturating_sub(self.last);
        if silence > self.longest {
            (self.longest, self.longest_from) = (silence, self.last);
        }
        self.last = self.last.max(now);
    }

    /// The longest until now, and when it began.
    pub(crate) fn longest(&self) -> (u64, u64) {
        (self.longest, self.longest_from)
    }

    /// When something came last.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }
}

/// Counters of many subscribers.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) latencies: Histogram<u64>,
    /// What came for the first time.
    pub(crate) deliveries: u64,
    /// The length of everything that came of this run, in bytes.
    pub(crate) bytes: u64,
    pub(crate) out_of_order: u64,
    /// Came twice to a program.
    pub(crate) doubled: u64,
    /// Came twice to an extended session, which drops the second one (protocol, E3).
    pub(crate) repeated: u64,
    /// What extended servers say they no longer have (RELAY_GAP).
    pub(crate) gaps: u64,
    /// Activities that are not of this run.
    pub(crate) foreign: u64,
}

impl Tally {
    /// Nothing yet.
    ///
    /// # Errors
    /// None; the histogram's bounds are fixed.
    pub(crate) fn new() -> Result<Self, CreationError> {
        Ok(Self {
            latencies: Histogram::new_with_bounds(LEAST_LATENCY, MOST_LATENCY, DIGITS)?,
            deliveries: 0,
            bytes: 0,
            out_of_order: 0,
            doubled: 0,
            repeated: 0,
            gaps: 0,
            foreign: 0,
        })
    }

    /// Counts what came.
    pub(crate) fn count(&mut self, arrival: Arrival, is_extended: bool) {
        match arrival {
            Arrival::InOrder => self.deliveries += 1,
            Arrival::OutOfOrder => {
                self.deliveries += 1;
                self.out_of_order += 1;
            }
            Arrival::Again if is_extended => self.repeated += 1,
            Arrival::Again => self.doubled += 1,
        }
    }

    /// Adds another one's.
    pub(crate) fn add(&mut self, other: &Self) {
        // Fails only for histograms with other bounds.
        let _ = self.latencies.add(&other.latencies);
        self.deliveries += other.deliveries;
        self.bytes += other.bytes;
        self.out_of_order += other.out_of_order;
        self.doubled += other.doubled;
        self.repeated += other.repeated;
        self.gaps += other.gaps;
        self.foreign += other.foreign;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn arrivals(sequences: &[u64]) -> (Received, Vec<Arrival>) {
        let mut received = Received::default();
        let arrivals = sequences.iter().map(|sequence| received.take(*sequence)).collect();
        (received, arrivals)
    }

    #[test]
    fn what_comes_in_order_is_neither_lost_nor_doubled() {
        let (received, seen) = arrivals(&[0, 1, 2, 3]);
        assert!(seen.iter().all(|arrival| *arrival == Arrival::InOrder));
        assert_eq!(received.missing(4), 0);
        assert_eq!(received.missing(6), 2, "the last ones");
    }

    #[test]
    fn what_is_left_out_is_lost_until_it_comes_after_all() {
        let (mut received, seen) = arrivals(&[1, 2, 7]);
        assert!(seen.iter().all(|arrival| *arrival == Arrival::InOrder));
        assert_eq!(received.missing(8), 5);
        for (sequence, missing) in [(5, 4), (3, 3), (0, 2), (6, 1), (4, 0)] {
            assert_eq!(received.take(sequence), Arrival::OutOfOrder, "{sequence}");
            assert_eq!(received.missing(8), missing);
        }
        assert!((0..8).all(|sequence| received.take(sequence) == Arrival::Again));
    }

    #[test]
    fn what_comes_twice_is_doubled() {
        let (received, seen) = arrivals(&[0, 1, 1, 0, 2]);
        assert_eq!(seen[2..4], [Arrival::Again, Arrival::Again]);
        assert_eq!(received.missing(3), 0);
    }

    #[test]
    fn the_memory_for_gaps_is_bounded_and_nothing_is_forgotten_as_a_loss() {
        let gaps = 2 * MAX_GAPS as u64;
        let mut received = Received::default();
        for sequence in 1..=gaps {
            received.take(2 * sequence - 1);
        }
        assert_eq!(received.gaps.len(), MAX_GAPS);
        assert_eq!(received.missing(2 * gaps), gaps);
    }

    proptest! {
        #[test]
        fn it_counts_as_a_set_would(sequences in prop::collection::vec(0_u64..60, 0..120)) {
            let (mut received, mut set, mut highest) = (Received::default(), BTreeSet::new(), None);
            for sequence in sequences {
                let expected = match set.insert(sequence) {
                    false => Arrival::Again,
                    true if Some(sequence) < highest => Arrival::OutOfOrder,
                    true => Arrival::InOrder,
                };
                highest = highest.max(Some(sequence));
                prop_assert_eq!(received.take(sequence), expected);
                prop_assert_eq!(received.missing(60), 60 - set.len() as u64);
            }
        }
    }

    #[test]
    fn the_longest_silence_is_between_two_arrivals_or_at_either_end() {
        let mut silence = Silence::default();
        for now in [5, 6, 20, 21] {
            silence.end(now);
        }
        assert_eq!(silence.longest(), (14, 6));
        silence.end(60);
        assert_eq!(silence.longest(), (39, 21));
        let mut late = Silence::default();
        late.end(9);
        assert_eq!(late.longest(), (9, 0), "before the first");
    }

    #[test]
    fn tallies_add_up_and_only_plain_sessions_show_doubles() {
        let (mut one, mut other) = (Tally::new().unwrap(), Tally::new().unwrap());
        one.count(Arrival::InOrder, false);
        one.count(Arrival::Again, false);
        other.count(Arrival::OutOfOrder, true);
        other.count(Arrival::Again, true);
        one.latencies.saturating_record_n(5_000, 3);
        other.latencies.saturating_record_n(1 << 60, 1);
        one.add(&other);
        assert_eq!((one.deliveries, one.out_of_order, one.doubled, one.repeated), (2, 1, 1, 1));
        assert_eq!(one.latencies.len(), 4);
    }
}
