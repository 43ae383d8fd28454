//! Which node a client should go to.
//!
//! What a node reports lags behind what it was sent, so a master counts for each node what it has just handed out and the
//! node has not settled yet, on top of the load that the node reports. The node says which tickets of this master are
//! settled in the report whose load counts them, so that no client counts twice, and none is forgotten in between.
//!
//! Masters know nothing of each other's hand-outs. Where clients choose among masters at random each of `n` masters hands
//! out about an `n`th of what is on its way, so what it has handed out itself counts `n` times. Without that all masters
//! together would fill a node that lacks a hundred clients with a hundred each. If the guess is wrong, the reports that
//! follow put it right.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rand::{Rng, RngExt as _};

use super::{Entry, Incarnation, NodeId, State, Topology};

/// Into how many parts the time is divided for which hand-outs are remembered.
const SLOTS: usize = 5;

/// How long one of them is.
const SLOT: Duration = Duration::from_secs(2);

/// More masters than this are not believed in.
const MAX_MASTERS: u32 = 8;

/// The tickets for one start of a node that were handed out here and are not settled. Those of which nothing was heard for
/// eight to ten seconds are forgotten: their clients have not come.
#[derive(Debug, Clone, Copy)]
pub struct HandedOut {
    /// How many the node has settled, as it says.
    settled: u64,
    /// Handed out within each slot of time, the newest first.
    slots: [u32; SLOTS],
    /// When the newest slot began.
    newest: Instant,
}

impl HandedOut {
    /// For a node whose first report says so many.
    pub(super) fn new(settled: u64, now: Instant) -> Self {
        Self { settled, slots: [0; SLOTS], newest: now }
    }

    /// After another report. Which tickets were settled it does not say: the oldest, most likely.
    #[must_use]
    pub(super) fn after(self, settled: u64, now: Instant) -> Self {
        let mut handed_out = self.at(now);
        let mut news = settled.saturating_sub(self.settled);
        for slot in handed_out.slots.iter_mut().rev() {
            let taken = u32::try_from(news).unwrap_or(u32::MAX).min(*slot);
            *slot -= taken;
            news -= u64::from(taken);
        }
        Self { settled, ..handed_out }
    }

    /// How many are on their way.
    pub fn on_their_way(&self, now: Instant) -> u64 {
        self.at(now).slots.iter().copied().map(u64::from).sum()
    }

    fn add(&mut self, now: Instant) {
        *self = self.at(now);
        if let Some(newest) = self.slots.first_mut() {
            *newest = newest.saturating_add(1);
        }
    }

    /// As of now: what was handed out too long ago falls off the end.
    fn at(mut self, now: Instant) -> Self {
        let elapsed = now.saturating_duration_since(self.newest).as_millis() / SLOT.as_millis();
        let passed = usize::try_from(elapsed).unwrap_or(usize::MAX).min(SLOTS);
        self.slots.copy_within(..SLOTS - passed, passed);
        self.slots.iter_mut().take(passed).for_each(|slot| *slot = 0);
        // Of a node that nobody was sent to for long the beginning does not matter.
        self.newest = if passed == SLOTS { now } else { self.newest + SLOT * u32::try_from(passed).unwrap_or(0) };
        self
    }
}

/// Where a client should go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// The node.
    pub id: NodeId,
    /// Which start of it.
    pub incarnation: Incarnation,
    /// Where it is reached.
    pub hostname: String,
    /// The port there.
    pub port: u16,
}

impl Topology {
    /// The node with the least load, what is on its way there included, for one client, which is counted there from here
    /// on; at random among equals, so that masters don't all choose the same. Nodes that look for a tree are named only
    /// where there is none in one; those that are silent or drain never.
    pub fn assign(
        &mut self,
        leave_out: &BTreeSet<NodeId>,
        now: Instant,
        random: &mut (impl Rng + ?Sized),
    ) -> Option<Assigned> {
        let mut best: Option<(bool, u64)> = None;
        let (mut chosen, mut equals) = (None, 0_u32);
        for entry in self.entries.values_mut().filter(|entry| takes_clients(entry, now)) {
            let rank = (entry.report.state != State::Live, expected_load(entry, now));
            if best.is_some_and(|best| rank > best) || leave_out.contains(&entry.report.id) {
                continue;
            }
            equals = if best == Some(rank) { equals + 1 } else { 1 };
            best = Some(rank);
            if equals == 1 || random.random_ratio(1, equals) {
                chosen = Some(entry);
            }
        }
        let entry = chosen?;
        entry.handed_out.add(now);
        Some(Assigned {
            id: entry.report.id.clone(),
            incarnation: entry.report.incarnation,
            hostname: entry.report.hostname.clone(),
            port: entry.report.port,
        })
    }
}

fn takes_clients(entry: &Entry, now: Instant) -> bool {
    entry.report.state != State::Draining && !entry.drain_requested && !entry.is_silent(now)
}

fn expected_load(entry: &Entry, now: Instant) -> u64 {
    let masters = entry.report.masters.clamp(1, MAX_MASTERS);
    entry.report.load.saturating_add(entry.handed_out.on_their_way(now).saturating_mul(masters.into()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::super::Report;
    use super::super::testing::{World, node};
    use super::*;

    fn loaded(id: &str, load: u64) -> Report {
        Report { load, ..node(id) }
    }

    fn assign(world: &mut World, random: &mut StdRng) -> Option<String> {
        world.topology.assign(&BTreeSet::new(), world.now, random).map(|assigned| assigned.id.to_string())
    }

    fn hand_out(world: &mut World, clients: usize) -> BTreeMap<String, u64> {
        let mut random = StdRng::seed_from_u64(1);
        let mut placed = BTreeMap::new();
        for _ in 0..clients {
            *placed.entry(assign(world, &mut random).unwrap()).or_insert(0) += 1;
        }
        placed
    }

    #[test]
    fn clients_go_where_the_load_is_least_until_all_are_equal() {
        let mut world = World::with([loaded("a", 30), loaded("b", 10), loaded("c", 0)]);
        assert_eq!(hand_out(&mut world, 50), [("b".into(), 20), ("c".into(), 30)].into());
        assert_eq!(hand_out(&mut world, 9), [("a".into(), 3), ("b".into(), 3), ("c".into(), 3)].into());
    }

    #[test]
    fn a_client_that_has_arrived_counts_once() {
        let mut world = World::with([loaded("a", 0), loaded("b", 20)]);
        assert_eq!(hand_out(&mut world, 10).get("a"), Some(&10));
        let on_their_way = |world: &World| world.topology.entry("a").unwrap().handed_out.on_their_way(world.now);
        for (load, settled_tickets, left) in [(4, 4, 6), (4, 5, 5), (3, 5, 5), (9, 10, 0), (9, 12, 0), (9, 1, 0)] {
            world.report(Report { settled_tickets, ..loaded("a", load) });
            assert_eq!(on_their_way(&world), left, "{settled_tickets} settled");
        }
        assert_eq!(hand_out(&mut world, 11).get("a"), Some(&11), "9 are there, and 11 are lacking");
    }

    #[test]
    fn who_was_sent_and_never_came_is_forgotten() {
        let mut world = World::with([Report { heartbeat_interval: Duration::from_secs(3600), ..node("a") }]);
        hand_out(&mut world, 5);
        let at = |after| {
            let entry = world.topology.entry("a").unwrap();
            entry.handed_out.on_their_way(world.now + Duration::from_millis(after))
        };
        assert_eq!((at(0), at(7_999), at(10_000), at(1_000_000)), (5, 5, 0, 0));
    }

    #[test]
    fn a_node_that_was_started_again_begins_with_nothing_on_its_way() {
        let mut world = World::with([node("a")]);
        hand_out(&mut world, 5);
        world.report(Report { incarnation: Incarnation(2), ..node("a") });
        assert_eq!(world.topology.entry("a").unwrap().handed_out.on_their_way(world.now), 0);
        let assigned = world.topology.assign(&BTreeSet::new(), world.now, &mut StdRng::seed_from_u64(1)).unwrap();
        assert_eq!(assigned.incarnation, Incarnation(2));
    }

    #[test]
    fn nobody_is_sent_to_who_is_silent_or_drains_and_to_who_looks_for_a_tree_only_if_there_is_no_other() {
        let mut random = StdRng::seed_from_u64(1);
        let joining = Report { state: State::Joining, ..node("j") };
        let draining = Report { state: State::Draining, ..node("d") };
        let mut world = World::with([joining, draining, node("s"), node("told"), loaded("live", 1_000)]);
        world.let_fall_silent(&["s"]);
        world.topology.request_drain(&"told".into(), None, world.now).unwrap();
        assert_eq!(assign(&mut world, &mut random).as_deref(), Some("live"));
        let without = |world: &mut World, ids: &[&str]| {
            let leave_out = ids.iter().map(|&id| id.into()).collect();
            world.topology.assign(&leave_out, world.now, &mut StdRng::seed_from_u64(1)).map(|it| it.id.to_string())
        };
        assert_eq!(without(&mut world, &["live"]).as_deref(), Some("j"));
        assert_eq!(without(&mut world, &["live", "j"]), None);
    }

    #[test]
    fn impossible_loads_and_counts_do_no_harm() {
        let mut world = World::with([
            Report { settled_tickets: u64::MAX, masters: u32::MAX, ..loaded("a", u64::MAX) },
            Report { settled_tickets: 1 << 63, masters: u32::MAX, ..loaded("b", 1 << 63) },
        ]);
        assert_eq!(hand_out(&mut world, 100), [("b".into(), 100)].into());
        world.report(Report { settled_tickets: u64::MAX, ..loaded("b", u64::MAX) });
        let placed = hand_out(&mut world, 100);
        assert_eq!(placed.values().sum::<u64>(), 100);
        world.report(loaded("c", 0));
        assert_eq!(hand_out(&mut world, 100), [("c".into(), 100)].into());
    }

    #[test]
    fn equals_are_chosen_at_random() {
        let firsts: BTreeSet<String> = (0..50)
            .map(|seed| {
                let mut world = World::with([node("a"), node("b"), node("c"), loaded("d", 1)]);
                assign(&mut world, &mut StdRng::seed_from_u64(seed)).unwrap()
            })
            .collect();
        assert_eq!(firsts, ["a".to_owned(), "b".into(), "c".into()].into());
    }

    /// A surge in virtual time: real loads, and masters that hear of them late and of each other never.
    struct Surge {
        /// The clients at each node before.
        before: Vec<u64>,
        /// The share of the clients that asks each master, and the time from a change to the report of it there.
        masters: Vec<(f64, Duration)>,
        clients: usize,
        /// Over which the clients come.
        within: Duration,
        /// From an answer to a login at most.
        login: Duration,
    }

    impl Surge {
        /// The largest distance of a node from what each should have, as a part of that.
        fn unbalance(&self, seed: u64) -> f64 {
            let mut random = StdRng::seed_from_u64(seed);
            let start = Instant::now();
            let names: Vec<String> = (0..self.before.len()).map(|at| format!("n{at:02}")).collect();
            let masters = u32::try_from(self.masters.len()).unwrap();
            let report = |at: usize, load: u64, settled_tickets: u64| Report {
                masters,
                settled_tickets,
                heartbeat_interval: Duration::from_secs(3600),
                ..loaded(&names[at], load)
            };
            let world = || World::with((0..names.len()).map(|at| report(at, self.before[at], 0)));
            let mut worlds: Vec<World> = self.masters.iter().map(|_| world()).collect();
            // Clients that come, those that log in, by time; and what is reported then.
            let mut due: BTreeMap<(Duration, usize), (usize, Option<usize>)> = BTreeMap::new();
            for client in 0..self.clients {
                let share = random.random_range(0.0..1.0);
                let sum = |until: usize| self.masters[..=until].iter().map(|(share, _)| share).sum::<f64>();
                let master = (0..self.masters.len()).find(|at| share < sum(*at)).unwrap_or(0);
                due.insert((self.within.mul_f64(random.random_range(0.0..1.0)), client), (master, None));
            }
            let mut loads = self.before.clone();
            let mut settled = vec![vec![0; names.len()]; worlds.len()];
            // By when they arrive: at which master, about which node, its load and its tickets of that master.
            let mut reports: BTreeMap<(Duration, u64), (usize, usize, u64, u64)> = BTreeMap::new();
            let mut sent = 0;
            while let Some(((time, client), (master, node))) = due.pop_first() {
                while let Some(first) = reports.first_entry().filter(|first| first.key().0 <= time) {
                    let ((arrived, _), (master, at, load, settled)) = first.remove_entry();
                    worlds[master].now = start + arrived;
                    worlds[master].report(report(at, load, settled));
                }
                let Some(node) = node else {
                    let assigned = worlds[master].topology.assign(&BTreeSet::new(), start + time, &mut random);
                    let id = assigned.unwrap().id.to_string();
                    let node = names.iter().position(|name| *name == id).unwrap();
                    let login = self.login.mul_f64(random.random_range(0.1..1.0));
                    due.insert((time + login, client), (master, Some(node)));
                    continue;
                };
                loads[node] += 1;
                settled[master][node] += 1;
                for (master, (_, lag)) in self.masters.iter().enumerate() {
                    sent += 1;
                    reports.insert((time + *lag, sent), (master, node, loads[node], settled[master][node]));
                }
            }
            let mean = loads.iter().sum::<u64>() as f64 / loads.len() as f64;
            loads.iter().map(|load| (*load as f64 - mean).abs() / mean).fold(0.0, f64::max)
        }

        #[track_caller]
        fn assert_balanced(&self, what: &str) {
            let worst = (0..20).map(|seed| self.unbalance(seed)).fold(0.0, f64::max);
            assert!(worst <= 0.1, "{what}: {worst:.3} off");
        }
    }

    #[test]
    fn a_surge_through_any_mix_of_masters_ends_balanced() {
        for shares in [vec![1.0], vec![0.5, 0.5], vec![0.9, 0.1], vec![1.0, 0.0], vec![0.4, 0.3, 0.3]] {
            for before in [vec![0; 5], vec![0, 200, 200, 200, 200], vec![0, 50, 100, 150], vec![0, 0, 0, 0, 150]] {
                for (within, login, lag) in [(1_000, 50, 30), (1_000, 200, 60), (3_000, 400, 100), (300, 20, 25)] {
                    let [within, login, lag] = [within, login, lag].map(Duration::from_millis);
                    let masters = shares.iter().map(|share| (*share, lag)).collect();
                    let what = format!("{shares:?} {before:?} {within:?} {login:?} {lag:?}");
                    Surge { before: before.clone(), masters, clients: 1_000, within, login }.assert_balanced(&what);
                }
            }
        }
    }

    #[test]
    fn a_surge_that_is_over_before_anything_is_reported_ends_balanced_where_masters_are_asked_at_random() {
        let (within, late) = (Duration::from_secs(1), Duration::from_secs(7));
        for (shares, before) in [
            (vec![1.0], vec![0, 200, 200, 200, 200]),
            (vec![0.5, 0.5], vec![0, 200, 200, 200, 200]),
            (vec![0.5, 0.5], vec![0; 5]),
            (vec![0.9, 0.1], vec![0; 5]),
            (vec![0.34, 0.33, 0.33], vec![0, 50, 100, 150]),
        ] {
            let masters = shares.iter().map(|share| (*share, late)).collect();
            let what = format!("{shares:?} {before:?}");
            Surge { before, masters, clients: 1_000, within, login: late }.assert_balanced(&what);
        }
    }

    #[test]
    fn a_surge_through_masters_that_disagree_since_one_hears_everything_late_ends_balanced() {
        let [within, login, soon, late] = [1_000, 100, 25, 700].map(Duration::from_millis);
        for before in [vec![0; 5], vec![0, 200, 200, 200, 200]] {
            let what = format!("{before:?}");
            let masters = vec![(0.5, soon), (0.5, late)];
            Surge { before, masters, clients: 1_000, within, login }.assert_balanced(&what);
        }
    }
}
