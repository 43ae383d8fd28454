//! Where a root could attach.
//!
//! Masters advise and nodes decide, so a wrong answer costs the asker an attempt and nothing else. What is worth the
//! trouble is that the first answer is mostly right, also when many ask at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::forest::Forest;
use super::{Entry, FragmentKey, Incarnation, NodeId, Refusal, Report, State, Topology};

/// How many candidates are answered.
pub const MAX_CANDIDATES: usize = 16;

/// How many of them are of other fragments than the best, if there are such: the best may be out of the asker's reach,
/// and the asker should not have to find that out sixteen times.
const FROM_OTHERS: usize = 4;

/// How long a free slot is kept for who was sent there first. About as long as an attempt takes.
const PROMISE: Duration = Duration::from_millis(500);

/// Who asks.
#[derive(Debug, Clone)]
pub struct Asker {
    /// Its id.
    pub id: NodeId,
    /// Which start of it.
    pub incarnation: Incarnation,
    /// The key of its fragment.
    pub key: FragmentKey,
    /// Whom it does not want to hear of.
    pub leave_out: BTreeSet<NodeId>,
}

/// A server that may take a child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its id.
    pub id: NodeId,
    /// Where it is reached.
    pub hostname: String,
    /// The port there.
    pub port: u16,
    /// The key of its fragment: its own or that of the root above it, whichever is larger.
    pub key: FragmentKey,
    /// Its distance from the root.
    pub depth: u32,
    /// Its logged-in clients.
    pub load: u64,
    /// How many more children it takes.
    pub free_slots: u32,
}

/// A slot that somebody was sent to.
#[derive(Debug, Clone)]
pub(super) struct Promise {
    candidate: NodeId,
    until: Instant,
}

/// The order in which to try: smaller is better.
///
/// First those whose tree is known up to its root. Then the smallest key, since that is where all will end: a fragment
/// that joins another orphan's would move again with it, and make it put off its own search. Then a slot that nobody
/// else has just been sent to, shallow, idle, and the id so that there is an order.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank<'a> {
    is_cut_off: bool,
    key: &'a FragmentKey,
    is_promised: bool,
    depth: u32,
    load: u64,
    id: &'a NodeId,
}

impl Topology {
    /// Where the asker could attach, best first; at most [`MAX_CANDIDATES`]. The first is to be [promised](Self::promise) to
    /// it.
    ///
    /// Never the asker, nor whoever is below it by any report; only fragments with a smaller key; only nodes with a free
    /// slot that are neither silent nor draining, and in no reported circle.
    ///
    /// # Errors
    /// [`Refusal::LaterStart`] if the asker is not the latest start of its node.
    pub fn find_parent(&self, asker: &Asker, now: Instant) -> Result<Vec<Candidate>, Refusal> {
        if self.entry(asker.id.as_str()).is_some_and(|entry| entry.report.incarnation > asker.incarnation) {
            return Err(Refusal::LaterStart { id: asker.id.clone() });
        }
        Ok(self.candidates(&self.forest(now), asker, now))
    }

    /// Promises a place to who has asked for one, for a moment, so that others who ask meanwhile are sent elsewhere.
    pub fn promise(&mut self, asker: NodeId, candidate: NodeId, now: Instant) {
        self.promises.retain(|_, promise| now < promise.until);
        if self.promises.len() < self.limits.nodes || self.promises.contains_key(&asker) {
            self.promises.insert(asker, Promise { candidate, until: now + PROMISE });
        }
    }

    /// The roots that may have to hear of a fragment with a smaller key: all but those of the smallest, and those that
    /// drain.
    pub fn roots_to_advise(&self, forest: &Forest<'_>) -> Vec<Asker> {
        let smallest = forest.nodes().map(|(_, entry)| &entry.report.key).min();
        forest
            .nodes()
            .filter(|(_, entry)| entry.report.parent.is_none() && takes_children(entry))
            .filter(|(_, entry)| Some(&entry.report.key) != smallest)
            .map(|(id, entry)| Asker {
                id: id.clone(),
                incarnation: entry.report.incarnation,
                key: entry.report.key.clone(),
                leave_out: BTreeSet::new(),
            })
            .collect()
    }

    /// As [`find_parent`](Self::find_parent), but nothing is promised.
    pub fn candidates(&self, forest: &Forest<'_>, asker: &Asker, now: Instant) -> Vec<Candidate> {
        let below = self.below(&asker.id);
        let promised = self.promised_to_others(&asker.id, now);
        let mut ranked: Vec<(Rank<'_>, &Entry)> = forest
            .nodes()
            .filter(|(id, entry)| may_take(entry) && !below.contains(id) && !asker.leave_out.contains(*id))
            .filter_map(|(_, entry)| Some((rank(forest, entry, &promised)?, entry)))
            .filter(|(rank, _)| *rank.key < asker.key && rank.key.root != asker.id)
            .collect();
        ranked.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        keep_one_unsettled(&mut ranked);
        choose(ranked).into_iter().map(|(rank, entry)| candidate(&rank, &entry.report)).collect()
    }

    /// The node and everybody below it by anybody's word: a parent, a parent's parent, or a path that leads through it.
    /// Silent nodes count too, since what they said may still be so.
    fn below(&self, top: &NodeId) -> BTreeSet<&NodeId> {
        let mut children: BTreeMap<&NodeId, Vec<&NodeId>> = BTreeMap::new();
        let mut found = BTreeSet::new();
        for (id, entry) in &self.entries {
            if let Some(parent) = &entry.report.parent {
                children.entry(parent).or_default().push(id);
            }
            if id == top || entry.report.parent.as_ref() == Some(top) || entry.report.path.contains(top) {
                found.insert(id);
            }
        }
        let mut open: Vec<&NodeId> = found.iter().copied().collect();
        while let Some(id) = open.pop() {
            for &child in children.get(id).into_iter().flatten() {
                if found.insert(child) {
                    open.push(child);
                }
            }
        }
        found
    }

    /// How many slots of each node are promised and not taken yet.
    fn promised_to_others(&self, asker: &NodeId, now: Instant) -> BTreeMap<&NodeId, u32> {
        let mut promised = BTreeMap::new();
        for (other, promise) in &self.promises {
            let has_come = || {
                let entry = self.entry(promise.candidate.as_str());
                entry.is_some_and(|entry| entry.report.children.contains(other))
            };
            if other != asker && now < promise.until && !has_come() {
                *promised.entry(&promise.candidate).or_insert(0) += 1;
            }
        }
        promised
    }
}

fn takes_children(entry: &Entry) -> bool {
    entry.report.state != State::Draining && !entry.drain_requested
}

/// Part of a tree, or the root of one: a root that has just started or lost its parent serves its own fragment, and if
/// such roots were never named to each other, two children of a dead root would wait for ever.
fn may_take(entry: &Entry) -> bool {
    let is_part = match entry.report.state {
        State::Live => true,
        State::Joining | State::Orphaned => entry.report.parent.is_none(),
        State::Draining => false,
    };
    is_part && takes_children(entry) && entry.report.free_slots() > 0
}

/// Nothing for who reports to be in a circle.
fn rank<'a>(forest: &Forest<'a>, entry: &'a Entry, promised: &BTreeMap<&NodeId, u32>) -> Option<Rank<'a>> {
    let report = &*entry.report;
    let place = forest.place(report.id.as_str())?;
    let top = forest.node(place.top.as_str())?;
    let is_cut_off = top.report.parent.is_some();
    // Of a node and its root one may not have reported the latest yet.
    let key = if is_cut_off { &report.key } else { (&report.key).max(&top.report.key) };
    Some(Rank {
        is_cut_off,
        key,
        is_promised: promised.get(&report.id).is_some_and(|&taken| taken >= report.free_slots()),
        depth: if is_cut_off { report.depth.max(place.distance) } else { place.distance },
        load: report.load,
        id: &report.id,
    })
}

/// Of nodes that have no tree yet only the smallest is named, so that a fresh cluster gathers around one of them; and
/// none if there is a tree to join.
fn keep_one_unsettled(ranked: &mut Vec<(Rank<'_>, &Entry)>) {
    let has_settled = ranked.iter().any(|(rank, _)| !rank.key.unsettled);
    let smallest = ranked.iter().map(|(rank, _)| rank.key).min().cloned();
    ranked.retain(|(rank, _)| !rank.key.unsettled || (!has_settled && Some(rank.key) == smallest.as_ref()));
}

/// The best of those in order, with some of other fragments than the best.
fn choose<'a>(ranked: Vec<(Rank<'a>, &'a Entry)>) -> Vec<(Rank<'a>, &'a Entry)> {
    let Some(best_key) = ranked.first().map(|(rank, _)| rank.key.clone()) else { return Vec::new() };
    let (mut chosen, others): (Vec<_>, Vec<_>) = ranked.into_iter().partition(|(rank, _)| *rank.key == best_key);
    chosen.truncate(MAX_CANDIDATES - others.len().min(FROM_OTHERS));
    chosen.extend(others);
    chosen.truncate(MAX_CANDIDATES);
    chosen
}

fn candidate(rank: &Rank<'_>, report: &Report) -> Candidate {
    Candidate {
        id: report.id.clone(),
        hostname: report.hostname.clone(),
        port: report.port,
        key: rank.key.clone(),
        depth: rank.depth,
        load: report.load,
        free_slots: report.free_slots(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{World, below, key, node, unsettled};
    use super::*;

    fn asker(id: &str, key: FragmentKey) -> Asker {
        Asker { id: id.into(), incarnation: Incarnation(1), key, leave_out: BTreeSet::new() }
    }

    fn find(world: &mut World, asker: &Asker) -> Vec<Candidate> {
        let found = world.topology.find_parent(asker, world.now).unwrap();
        if let Some(best) = found.first() {
            world.topology.promise(asker.id.clone(), best.id.clone(), world.now);
        }
        found
    }

    fn ids(world: &mut World, asker: &Asker) -> Vec<String> {
        find(world, asker).into_iter().map(|candidate| candidate.id.to_string()).collect()
    }

    fn orphan(id: &str) -> Report {
        Report { key: key(1, id), state: State::Orphaned, ..node(id) }
    }

    #[test]
    fn shallow_then_idle_then_by_id() {
        let mut world = World::with([
            below(&["a"]).over(&["b", "c", "d"]),
            Report { load: 1, ..below(&["a", "b"]) }.over(&["e"]),
            below(&["a", "d"]),
            below(&["a", "c"]),
            below(&["a", "b", "e"]),
        ]);
        assert_eq!(ids(&mut world, &asker("x", key(1, "x"))), ["a", "c", "d", "b", "e"]);
    }

    #[test]
    fn a_full_a_draining_and_a_silent_node_are_not_named() {
        let mut world = World::with([
            Report { max_children: 1, ..below(&["a"]) }.over(&["b"]),
            Report { state: State::Draining, ..below(&["a", "b"]) },
            below(&["a", "c"]),
            below(&["a", "d"]),
            Report { state: State::Joining, ..below(&["a", "e"]) },
            below(&["a", "f"]),
            Report { max_children: 0, ..below(&["a", "g"]) },
        ]);
        world.topology.request_drain(&"d".into(), None, world.now).unwrap();
        world.let_fall_silent(&["c"]);
        assert_eq!(ids(&mut world, &asker("x", key(1, "x"))), ["f"]);
    }

    #[test]
    fn who_was_tried_is_left_out() {
        let mut world = World::with([below(&["a"]).over(&["b"]), below(&["a", "b"])]);
        let asker = Asker { leave_out: ["a".into()].into(), ..asker("x", key(1, "x")) };
        assert_eq!(ids(&mut world, &asker), ["b"]);
    }

    #[test]
    fn only_fragments_with_a_smaller_key_are_named() {
        let mut world = World::with([orphan("b"), orphan("c"), orphan("d")]);
        assert_eq!(ids(&mut world, &asker("c", key(1, "c"))), ["b"]);
        assert_eq!(ids(&mut world, &asker("b", key(1, "b"))), <[&str; 0]>::default());
        assert_eq!(ids(&mut world, &asker("x", key(1, "x"))).len(), 3);
        assert_eq!(ids(&mut world, &asker("x", key(0, "x"))).len(), 0);
    }

    #[test]
    fn nobody_below_the_asker_is_named_whichever_report_shows_it() {
        // c is below x by its path only, d by its parent, e by its parent's parent, f by its parent's path, and g has
        // not heard yet that its root is x no more.
        let by_path = Report { path: vec!["x".into(), "c".into()], ..below(&["a", "c"]) };
        let mut world = World::with([
            below(&["a"]),
            by_path,
            Report { parent: Some("x".into()), ..below(&["a", "d"]) },
            Report { parent: Some("d".into()), ..below(&["a", "e"]) },
            Report { parent: Some("c".into()), ..below(&["a", "f"]) },
            Report { key: key(0, "x"), ..below(&["a", "g"]) },
        ]);
        assert_eq!(ids(&mut world, &asker("x", key(9, "x"))), ["a"]);
        world.report(orphan("x"));
        assert_eq!(ids(&mut world, &asker("x", key(9, "x"))), ["a"]);
        world.let_fall_silent(&["d"]);
        assert_eq!(ids(&mut world, &asker("x", key(9, "x"))), ["a"], "what a silent node said may still be so");
    }

    #[test]
    fn a_node_that_has_not_heard_of_its_roots_new_key_counts_by_that_key() {
        let mut world = World::with([orphan("c"), below(&["a", "c", "d"])]);
        assert_eq!(ids(&mut world, &asker("b", key(1, "b"))), <[&str; 0]>::default());
        let found = find(&mut world, &asker("x", key(1, "x")));
        assert!(found.iter().all(|candidate| candidate.key == key(1, "c")), "{found:?}");
    }

    #[test]
    fn nodes_under_an_unknown_root_are_named_last() {
        let mut world = World::with([below(&["a", "b"]), Report { key: key(1, "c"), ..node("c") }]);
        assert_eq!(ids(&mut world, &asker("x", key(2, "x"))), ["c", "b"]);
    }

    #[test]
    fn a_reported_circle_is_not_named() {
        let mut world = World::with([below(&["p", "q"]), below(&["q", "p"]), below(&["p", "r"]), below(&["a"])]);
        assert_eq!(ids(&mut world, &asker("x", key(1, "x"))), ["a"]);
    }

    #[test]
    fn a_fresh_cluster_gathers_around_the_smallest_id() {
        let fresh = |id: &str| Report { key: unsettled(id), state: State::Joining, ..node(id) };
        let mut world = World::with([fresh("a"), fresh("b"), fresh("c")]);
        assert_eq!(ids(&mut world, &asker("c", unsettled("c"))), ["a"]);
        assert_eq!(ids(&mut world, &asker("b", unsettled("b"))), ["a"]);
        assert_eq!(ids(&mut world, &asker("a", unsettled("a"))), <[&str; 0]>::default());
        let without_a = Asker { leave_out: ["a".into()].into(), ..asker("c", unsettled("c")) };
        assert_eq!(ids(&mut world, &without_a), ["b"], "if a can't be reached, the next");
        world.report(Report { key: key(0, "z"), ..node("z") });
        assert_eq!(ids(&mut world, &asker("a", unsettled("a"))), ["z"], "a tree is better than none");
    }

    #[test]
    fn an_orphan_goes_to_where_all_will_end_before_it_goes_to_another_orphan() {
        let mut world = World::with([
            Report { max_children: 1, ..below(&["a"]) }.over(&["b"]),
            below(&["a", "b"]),
            orphan("c"),
            orphan("d"),
        ]);
        assert_eq!(ids(&mut world, &asker("d", key(1, "d"))), ["b", "c"]);
    }

    #[test]
    fn some_of_other_fragments_are_named_for_who_cant_reach_the_best() {
        let big = (0..20).map(|at| below(&["a", &format!("a{at:02}")]));
        let mut world = World::with(big.chain([Report { max_children: 0, ..node("a") }]));
        assert_eq!(ids(&mut world, &asker("x", key(2, "x"))).len(), MAX_CANDIDATES);
        world.report(orphan("c"));
        world.report(orphan("d"));
        let found = ids(&mut world, &asker("x", key(2, "x")));
        assert_eq!(found.len(), MAX_CANDIDATES);
        assert_eq!(found[14..], ["c", "d"]);
    }

    #[test]
    fn orphans_that_ask_at_once_are_sent_to_different_slots() {
        let mut world = World::with([
            Report { max_children: 3, ..below(&["a"]) }.over(&["b", "c"]),
            Report { max_children: 1, ..below(&["a", "b"]) },
            below(&["a", "c"]),
        ]);
        let orphans: Vec<Asker> = ["x", "y", "z"].into_iter().map(|id| asker(id, key(1, id))).collect();
        let first: Vec<String> = orphans.iter().map(|asker| ids(&mut world, asker).swap_remove(0)).collect();
        assert_eq!(first, ["a", "b", "c"]);
        assert_eq!(ids(&mut world, &orphans[0])[0], "a", "who asks again keeps its slot");
        world.now += PROMISE;
        assert_eq!(ids(&mut world, &orphans[1])[0], "a", "who does not come loses it");
    }

    #[test]
    fn an_earlier_start_of_the_asker_is_refused() {
        let world = World::with([Report { incarnation: Incarnation(2), ..node("x") }]);
        let refused = world.topology.find_parent(&asker("x", key(1, "x")), world.now);
        assert_eq!(refused, Err(Refusal::LaterStart { id: "x".into() }));
    }

    #[test]
    fn roots_hear_of_smaller_fragments_and_the_smallest_does_not() {
        let draining = Report { state: State::Draining, ..orphan("d") };
        let world = World::with([below(&["a"]), below(&["a", "b"]), orphan("c"), draining]);
        let forest = world.topology.forest(world.now);
        let roots: Vec<NodeId> = world.topology.roots_to_advise(&forest).into_iter().map(|asker| asker.id).collect();
        assert_eq!(roots, ["c".into()]);
    }
}
