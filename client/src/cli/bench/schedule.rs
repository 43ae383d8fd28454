//! When which activity is due.

use std::time::Duration;

const SECOND: u128 = Duration::from_secs(1).as_nanos();

/// One publisher's part of the run. Publishers take turns, so that at no moment all publish at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    publisher: u64,
    publishers: u64,
    /// Activities a second of all publishers; `None`: as many as possible.
    rate: Option<u64>,
    /// How many this publisher publishes at most.
    count: u64,
}

impl Schedule {
    /// The part of one of so many publishers, all of which publish `rate` activities a second and `count` in all.
    pub(crate) fn new(publisher: usize, publishers: usize, rate: Option<u64>, count: Option<u64>) -> Self {
        let (publisher, publishers) = (publisher as u64, (publishers as u64).max(1));
        let share = |count: u64| count / publishers + u64::from(publisher < count % publishers);
        Self { publisher, publishers, rate: rate.filter(|rate| *rate > 0), count: count.map_or(u64::MAX, share) }
    }

    /// When the activity is due, in nanoseconds from the start of the run; `None`: never, since all are published.
    pub(crate) fn due(&self, sequence: u64) -> Option<u64> {
        if sequence >= self.count {
            return None;
        }
        let Some(rate) = self.rate else { return Some(0) };
        let turn = u128::from(sequence) * u128::from(self.publishers) + u128::from(self.publisher);
        Some(u64::try_from(turn * SECOND / u128::from(rate)).unwrap_or(u64::MAX))
    }

    /// The time that an activity is stamped with which is published `now`, by a publisher that could publish nothing
    /// until `free_since`. What was due before that is late because of the server, and that counts.
    pub(crate) fn stamp(&self, due: u64, now: u64, free_since: u64) -> u64 {
        if self.rate.is_some() && due < free_since { due } else { now }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishers_take_turns_and_keep_the_rate_together() {
        let rate = 1000;
        let mut due: Vec<u64> = (0..3)
            .flat_map(|publisher| {
                (0..).map_while(move |sequence| Schedule::new(publisher, 3, Some(rate), Some(100)).due(sequence))
            })
            .collect();
        due.sort_unstable();
        let expected: Vec<u64> = (0..100).map(|turn| turn * 1_000_000).collect();
        assert_eq!(due, expected);
    }

    #[test]
    fn without_a_rate_everything_is_due_at_once_and_the_count_is_kept() {
        let counts: Vec<usize> = (0..3)
            .map(|publisher| {
                let schedule = Schedule::new(publisher, 3, None, Some(8));
                (0..).map_while(|sequence| schedule.due(sequence)).filter(|due| *due == 0).count()
            })
            .collect();
        assert_eq!(counts, [3, 3, 2]);
        assert_eq!(Schedule::new(0, 1, None, None).due(u64::MAX - 1), Some(0));
    }

    #[test]
    fn what_was_late_because_of_the_server_is_stamped_with_the_time_it_was_due() {
        let schedule = Schedule::new(0, 1, Some(1000), None);
        assert_eq!(schedule.stamp(5, 9, 0), 9, "late because of our own clock");
        assert_eq!(schedule.stamp(5, 9, 8), 5, "late because of the server");
        assert_eq!(Schedule::new(0, 1, None, None).stamp(0, 9, 8), 9, "as fast as possible");
    }
}
