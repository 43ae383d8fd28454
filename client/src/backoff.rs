//! How long to wait before the next attempt.

use std::time::Duration;

use rand::{Rng, RngExt as _};

use crate::options::Reconnect;

/// Grows with every round of attempts: at first up to the shortest pause, so that the clients of a lost server don't all
/// come at once, then between half and all of twice the one before.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    rounds: u32,
}

impl Backoff {
    pub(crate) fn reset(&mut self) {
        self.rounds = 0;
    }

    pub(crate) fn next_pause(&mut self, policy: &Reconnect, random: &mut impl Rng) -> Duration {
        let Some(doublings) = self.rounds.checked_sub(1) else {
            self.rounds = 1;
            return policy.min_pause.mul_f64(random.random_range(0.0..1.0));
        };
        self.rounds = self.rounds.saturating_add(1);
        let longest = policy.min_pause.saturating_mul(2_u32.saturating_pow(doublings)).min(policy.max_pause);
        longest.mul_f64(random.random_range(0.5..1.0))
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn pauses_grow_up_to_the_longest_and_no_two_clients_keep_step() {
        let policy = Reconnect::default();
        let pauses = |seed| {
            let (mut backoff, mut random) = (Backoff::default(), StdRng::seed_from_u64(seed));
            (0..100).map(|_| backoff.next_pause(&policy, &mut random)).collect::<Vec<_>>()
        };
        let (one, other) = (pauses(1), pauses(2));
        assert!(one[0] <= policy.min_pause);
        assert!(one[1] >= policy.min_pause / 2);
        assert!(one[20..].iter().all(|pause| *pause >= policy.max_pause / 2 && *pause <= policy.max_pause));
        assert_ne!(one, other);
    }

    #[test]
    fn a_reset_begins_anew() {
        let (policy, mut random) = (Reconnect::default(), StdRng::seed_from_u64(1));
        let mut backoff = Backoff::default();
        for _ in 0..50 {
            backoff.next_pause(&policy, &mut random);
        }
        backoff.reset();
        assert!(backoff.next_pause(&policy, &mut random) <= policy.min_pause);
    }
}
