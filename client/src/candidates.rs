//! Which servers could be tried, and in which order.

use std::collections::VecDeque;

use rand::Rng;
use rand::seq::SliceRandom as _;

use crate::address::Address;

/// How many servers are remembered of those that were heard of.
const MAX_HEARD_OF: usize = 32;

/// How many servers one round tries of those that somebody named; a master may know thousands.
pub(crate) const MAX_NAMED: usize = 16;

/// How much more load than the least a server may have to be as good: servers redirect only from two on (protocol, L5).
const SAME_LOAD: u64 = 1;

/// A server that a master knows and that takes clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) address: Address,
    /// How many clients are logged in there.
    pub(crate) load: u64,
    /// Whether it is part of a tree, and not looking for one.
    pub(crate) is_live: bool,
}

/// The order in which to try the servers that masters know: those of a tree first, then by their load, and at random
/// among the best.
pub(crate) fn rank(mut listed: Vec<Listed>, random: &mut impl Rng) -> Vec<Address> {
    listed.shuffle(random);
    let is_any_live = listed.iter().any(|server| server.is_live);
    let best = listed.iter().filter(|server| server.is_live == is_any_live).map(|server| server.load).min();
    let enough = best.unwrap_or(0).saturating_add(SAME_LOAD);
    listed.sort_by_key(|server| (!server.is_live, server.load.max(enough)));
    listed.into_iter().map(|server| server.address).take(MAX_NAMED).collect()
}

/// The servers that were heard of since the session began, by redirections and by what servers say of each other.
#[derive(Debug, Default)]
pub(crate) struct HeardOf(VecDeque<Address>);

impl HeardOf {
    /// Remembers a server; of too many the one that was heard of longest ago is forgotten.
    pub(crate) fn insert(&mut self, address: Address) {
        self.0.retain(|known| *known != address);
        self.0.push_front(address);
        self.0.truncate(MAX_HEARD_OF);
    }

    /// All of them at random: the clients of a lost server must not all go to the same one.
    pub(crate) fn shuffled(&self, random: &mut impl Rng) -> Vec<Address> {
        let mut addresses: Vec<_> = self.0.iter().cloned().collect();
        addresses.shuffle(random);
        addresses
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    fn address(number: u16) -> Address {
        Address::new("h", number + 1).unwrap()
    }

    fn listed(number: u16, load: u64, is_live: bool) -> Listed {
        Listed { address: address(number), load, is_live }
    }

    #[test]
    fn the_least_loaded_come_first_at_random_and_those_without_a_tree_last() {
        let servers = vec![listed(0, 9, true), listed(1, 4, true), listed(2, 3, true), listed(3, 0, false)];
        let mut firsts = BTreeSet::new();
        for seed in 0..50 {
            let order = rank(servers.clone(), &mut StdRng::seed_from_u64(seed));
            assert_eq!(order[2..], [address(0), address(3)]);
            firsts.insert(order[0].port());
        }
        assert_eq!(firsts, BTreeSet::from([address(1).port(), address(2).port()]));
    }

    #[test]
    fn of_many_servers_only_the_best_are_tried() {
        let mut random = StdRng::seed_from_u64(1);
        let order = rank((0..1000).map(|number| listed(number, number.into(), true)).collect(), &mut random);
        assert_eq!(order.len(), MAX_NAMED);
        assert!(order.iter().all(|address| usize::from(address.port()) <= MAX_NAMED));
        assert!(rank(Vec::new(), &mut random).is_empty());
        assert_eq!(rank(vec![listed(1, u64::MAX, false)], &mut random), [address(1)]);
    }

    #[test]
    fn what_was_heard_of_is_remembered_once_and_not_without_bound() {
        let mut heard_of = HeardOf::default();
        for number in (0..1000).chain(990..1000) {
            heard_of.insert(address(number));
        }
        let mut all: Vec<_> = heard_of.shuffled(&mut StdRng::seed_from_u64(1)).iter().map(Address::port).collect();
        all.sort_unstable();
        assert_eq!(all, (969..=1000).collect::<Vec<_>>());
    }
}
