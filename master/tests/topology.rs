//! Seeded random runs of the topology: whatever nodes report, the answers keep the rules and every computation ends.
//!
//! A failing run names its seed; `ARBORCAST_SEED=N cargo test -p arborcast-master --test topology` runs that one only.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use arborcast_master::topology::candidates::{Asker, MAX_CANDIDATES};
use arborcast_master::topology::changes::{Change, Tracker};
use arborcast_master::topology::{
    FragmentKey, Incarnation, Limits, NodeId, Refusal, Report, State, StreamId, Topology,
};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

const SEEDS: u64 = 300;

fn each_seed(run: impl Fn(&mut StdRng)) {
    let only = std::env::var("ARBORCAST_SEED").ok().map(|seed| seed.parse::<u64>().unwrap());
    for seed in only.map_or(0..SEEDS, |seed| seed..seed + 1) {
        let mut random = StdRng::seed_from_u64(seed);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(&mut random))) {
            eprintln!("failed with ARBORCAST_SEED={seed}");
            resume_unwind(panic);
        }
    }
}

/// Liars: any node says anything, from a universe so small that what they say has consequences.
struct Liars {
    topology: Topology,
    now: Instant,
    tracker: Tracker,
    /// What the changes so far make of it.
    told: BTreeMap<NodeId, Report>,
    /// The stream and the start of each node, so that reports count mostly.
    streams: BTreeMap<NodeId, StreamId>,
    last_stream: u64,
    answers: usize,
}

fn any_id(random: &mut StdRng) -> NodeId {
    format!("n{:02}", random.random_range(0..14)).into()
}

fn any_ids(random: &mut StdRng, most: usize) -> Vec<NodeId> {
    (0..random.random_range(0..=most)).map(|_| any_id(random)).collect()
}

fn any_key(random: &mut StdRng) -> FragmentKey {
    let unsettled = random.random_bool(0.2);
    let reign = if unsettled { 0 } else { random.random_range(0..4) };
    FragmentKey { unsettled, reign, root: any_id(random) }
}

fn any_report(random: &mut StdRng) -> Report {
    let states = [State::Live, State::Live, State::Live, State::Joining, State::Orphaned, State::Draining];
    Report {
        id: any_id(random),
        incarnation: Incarnation(random.random_range(1..3)),
        hostname: if random.random_bool(0.95) { "here".into() } else { "elsewhere".into() },
        port: 1,
        version: String::new(),
        key: any_key(random),
        parent: random.random_bool(0.7).then(|| any_id(random)),
        path: any_ids(random, 5),
        depth: random.random_range(0..6),
        children: any_ids(random, 4),
        max_children: random.random_range(0..6),
        load: random.random_range(0..3),
        state: *states.choose(random).unwrap(),
        heartbeat_interval: Duration::from_millis(random.random_range(1..3000)),
        move_answer: None,
        activities: 0,
        settled_tickets: 0,
        masters: 0,
    }
}

impl Liars {
    fn new() -> Self {
        let limits = Limits { nodes: 12, listed_ids: 80 };
        Self {
            topology: Topology::new(limits),
            now: Instant::now(),
            tracker: Tracker::default(),
            told: BTreeMap::new(),
            streams: BTreeMap::new(),
            last_stream: 0,
            answers: 0,
        }
    }

    fn step(&mut self, random: &mut StdRng) {
        match random.random_range(0..100) {
            0..60 => self.report(any_report(random), random.random_bool(0.1)),
            60..70 => self.now += Duration::from_millis(random.random_range(0..1500)),
            70..80 => self.end_stream(&any_id(random)),
            80..83 => _ = self.topology.request_drain(&any_id(random), None, self.now),
            _ => self.ask(random),
        }
        self.check_answers_for_people();
    }

    fn report(&mut self, report: Report, on_new_stream: bool) {
        let id = report.id.clone();
        let old = self.streams.get(&id).copied();
        self.last_stream += 1;
        let stream = old.filter(|_| !on_new_stream).unwrap_or(StreamId(self.last_stream));
        let before = self.topology.entry(id.as_str()).map(|entry| entry.report.clone());
        match self.topology.report(stream, report.clone(), self.now) {
            Ok(accepted) => {
                assert_eq!(*self.topology.entry(id.as_str()).unwrap().report, report);
                assert_eq!(accepted.replaced, old.filter(|&old| old != stream));
                self.streams.insert(id, stream);
            }
            Err(refusal) => {
                let after = self.topology.entry(id.as_str()).map(|entry| entry.report.clone());
                assert_eq!(before, after, "what is refused changes nothing: {refusal:?}");
            }
        }
    }

    fn end_stream(&mut self, id: &NodeId) {
        if let Some(stream) = self.streams.remove(id) {
            assert!(self.topology.end_stream(stream, id));
            assert!(self.topology.entry(id.as_str()).is_none());
            assert!(!self.topology.end_stream(stream, id));
        }
    }

    fn live(&self) -> BTreeMap<NodeId, Report> {
        let entries = self.streams.keys().map(|id| self.topology.entry(id.as_str()).unwrap());
        let live = entries.filter(|entry| !entry.is_silent(self.now));
        live.map(|entry| (entry.report.id.clone(), (*entry.report).clone())).collect()
    }

    fn ask(&mut self, random: &mut StdRng) {
        let asker = Asker {
            id: any_id(random),
            incarnation: Incarnation(random.random_range(1..3)),
            key: any_key(random),
            leave_out: any_ids(random, 2).into_iter().collect(),
        };
        let before = self.topology.clone();
        let found = match self.topology.find_parent(&asker, self.now) {
            Ok(found) => found,
            Err(refusal) => {
                assert_eq!(refusal, Refusal::LaterStart { id: asker.id.clone() });
                let registered = self.topology.entry(asker.id.as_str()).unwrap();
                return assert!(registered.report.incarnation > asker.incarnation);
            }
        };
        self.answers += found.len();
        assert!(found.len() <= MAX_CANDIDATES);
        let live = self.live();
        let below = self.below(&asker.id);
        let ids: BTreeSet<&NodeId> = found.iter().map(|candidate| &candidate.id).collect();
        assert_eq!(ids.len(), found.len(), "nobody twice");
        for candidate in &found {
            let report = &live[&candidate.id];
            assert_ne!(candidate.id, asker.id);
            assert!(!below.contains(&candidate.id), "{candidate:?} is below {asker:?}");
            assert!(!asker.leave_out.contains(&candidate.id));
            assert!(candidate.key < asker.key && report.key <= candidate.key, "{candidate:?} for {asker:?}");
            assert!(candidate.free_slots > 0);
            assert_ne!(report.state, State::Draining);
            assert!(report.state == State::Live || report.parent.is_none(), "{report:?}");
            assert!(!self.topology.entry(candidate.id.as_str()).unwrap().drain_requested);
        }
        let unsettled: BTreeSet<&NodeId> =
            found.iter().filter(|candidate| candidate.key.unsettled).map(|candidate| &candidate.key.root).collect();
        let settled = found.iter().filter(|candidate| !candidate.key.unsettled).count();
        assert!(unsettled.is_empty() || (unsettled.len() == 1 && settled == 0), "{found:?}");
        assert_eq!(before.clone().find_parent(&asker, self.now).unwrap(), found, "the same again");
    }

    /// Everybody below the node by anybody's word, computed the slow way: until nothing is added.
    fn below(&self, top: &NodeId) -> BTreeSet<NodeId> {
        let entries: Vec<_> = self.streams.keys().map(|id| self.topology.entry(id.as_str()).unwrap()).collect();
        let mut below = BTreeSet::from([top.clone()]);
        loop {
            let before = below.len();
            for entry in &entries {
                let report = &entry.report;
                if report.path.contains(top) || report.parent.as_ref().is_some_and(|parent| below.contains(parent)) {
                    below.insert(report.id.clone());
                }
            }
            if below.len() == before {
                return below;
            }
        }
    }

    fn check_answers_for_people(&mut self) {
        let live = self.live();
        let forest = self.topology.forest(self.now);
        assert_eq!(
            forest.nodes().map(|(id, _)| id.clone()).collect::<Vec<_>>(),
            live.keys().cloned().collect::<Vec<_>>()
        );
        let in_trees: usize = forest.trees().iter().map(|tree| tree.nodes).sum();
        let nowhere = live.keys().filter(|id| forest.place(id.as_str()).is_none()).count();
        assert_eq!(in_trees + nowhere, live.len(), "everybody is in one tree, or in or below a circle");
        for circle in forest.circles() {
            for (at, id) in circle.iter().enumerate() {
                let next = circle[(at + 1) % circle.len()];
                assert_eq!(live[*id].parent.as_ref(), Some(next));
            }
        }
        assert_eq!(forest.circles().is_empty(), nowhere == 0);
        self.topology.faults(&forest, &forest.trees(), self.now);
        for asker in self.topology.roots_to_advise(&forest) {
            assert_eq!(live[&asker.id].parent, None);
            self.topology.candidates(&forest, &asker, self.now);
        }
        for change in self.tracker.changes(&self.topology, &forest, self.now) {
            match change {
                Change::Joined(node) => {
                    let id = node.report.id.clone();
                    assert!(self.told.insert(id, (*node.report).clone()).is_none());
                }
                Change::Changed(node) => {
                    let old = self.told.insert(node.report.id.clone(), (*node.report).clone()).unwrap();
                    assert_eq!(old.parent, node.report.parent);
                }
                Change::Reparented { node, old_parent } => {
                    let old = self.told.insert(node.report.id.clone(), (*node.report).clone()).unwrap();
                    assert_eq!(old.parent, old_parent);
                    assert_ne!(old.parent, node.report.parent);
                }
                Change::Lost { id, .. } => assert!(self.told.remove(&id).is_some()),
            }
        }
        assert_eq!(self.told, live, "who adds up the changes has the picture");
        if let Some(silence) = self.topology.next_silence(self.now) {
            assert!(self.now < silence && silence <= self.now + Duration::from_secs(5));
        }
    }
}

#[test]
fn whatever_nodes_report_the_rules_hold() {
    each_seed(|random| {
        let mut liars = Liars::new();
        for _ in 0..400 {
            liars.step(random);
        }
        assert!(liars.answers > 0, "it looked at something");
    });
}

/// Honest nodes that believe every advice. Reports reach the master at once, so there is nothing that could be stale.
struct Honest {
    topology: Topology,
    now: Instant,
    nodes: BTreeMap<NodeId, Report>,
}

impl Honest {
    /// Follows parents, which are in no circle.
    fn path(&self, id: &NodeId) -> Vec<NodeId> {
        let mut path = vec![id.clone()];
        while let Some(parent) = self.nodes[path.last().unwrap()].parent.clone() {
            assert!(!path.contains(&parent), "a circle: {path:?} and {parent}");
            path.push(parent);
        }
        path.reverse();
        path
    }

    fn roots(&self) -> Vec<NodeId> {
        self.nodes.values().filter(|node| node.parent.is_none()).map(|node| node.id.clone()).collect()
    }

    /// What a node reports of its place follows from the parents.
    fn report_all(&mut self) {
        let ids: Vec<NodeId> = self.nodes.keys().cloned().collect();
        for id in &ids {
            let path = self.path(id);
            let key = self.nodes[&path[0]].key.clone();
            let is_child = |node: &&Report| node.parent.as_ref() == Some(id);
            let children = self.nodes.values().filter(is_child).map(|node| node.id.clone()).collect();
            let node = self.nodes.get_mut(id).unwrap();
            (node.depth, node.path, node.key, node.children) =
                (u32::try_from(path.len() - 1).unwrap(), path, key, children);
            if node.parent.is_some() {
                node.state = State::Live;
            }
            self.topology.report(StreamId(u64::from(node.port)), node.clone(), self.now).unwrap();
        }
    }

    fn gather(&mut self, random: &mut StdRng) {
        for _ in 0..10 * self.nodes.len() * self.nodes.len() {
            let roots = self.roots();
            let Some(id) = roots.choose(random).cloned().filter(|_| roots.len() > 1) else { return };
            let node = &self.nodes[&id];
            let asker = Asker {
                id: id.clone(),
                incarnation: node.incarnation,
                key: node.key.clone(),
                leave_out: BTreeSet::new(),
            };
            let found = self.topology.find_parent(&asker, self.now).unwrap();
            if let Some(best) = found.first() {
                let root = self.path(&best.id)[0].clone();
                let root = self.nodes.get_mut(&root).unwrap();
                if root.key.unsettled {
                    (root.key.unsettled, root.state) = (false, State::Live);
                }
                self.nodes.get_mut(&id).unwrap().parent = Some(best.id.clone());
            }
            self.report_all();
        }
        assert_eq!(self.roots().len(), 1, "{:?}", self.nodes);
    }

    fn kill(&mut self, id: &NodeId) {
        let dead = self.nodes.remove(id).unwrap();
        assert!(self.topology.end_stream(StreamId(u64::from(dead.port)), id));
        for node in self.nodes.values_mut().filter(|node| node.parent.as_ref() == Some(id)) {
            node.parent = None;
            node.state = State::Orphaned;
            node.key = FragmentKey { unsettled: false, reign: node.key.reign + 1, root: node.id.clone() };
        }
        self.report_all();
    }
}

#[test]
fn honest_nodes_become_one_tree_and_stay_one_whoever_dies() {
    each_seed(|random| {
        let mut honest =
            Honest { topology: Topology::new(Limits::default()), now: Instant::now(), nodes: BTreeMap::new() };
        for port in 1..=random.random_range(2..10) {
            let id = NodeId::from(format!("n{:04}", random.random_range(0..10_000)));
            let key = FragmentKey { unsettled: true, reign: 0, root: id.clone() };
            let report = Report {
                incarnation: Incarnation(1),
                hostname: "here".into(),
                port,
                version: String::new(),
                key,
                parent: None,
                path: vec![id.clone()],
                depth: 0,
                children: Vec::new(),
                max_children: random.random_range(1..4),
                load: 0,
                state: State::Joining,
                heartbeat_interval: Duration::from_secs(1),
                move_answer: None,
                activities: 0,
                settled_tickets: 0,
                masters: 0,
                id: id.clone(),
            };
            honest.nodes.insert(id, report);
        }
        honest.report_all();
        honest.gather(random);
        while honest.nodes.len() > 1 {
            let ids: Vec<NodeId> = honest.nodes.keys().cloned().collect();
            honest.kill(ids.choose(random).unwrap());
            honest.gather(random);
        }
    });
}
