//! What is wrong with a tree, as far as reports show it.

use std::collections::BTreeSet;
use std::time::Instant;

use super::forest::{Forest, Tree};
use super::{NodeId, Topology};

/// How many faults are named; the others are counted.
pub const MAX_FAULTS: usize = 1000;

/// How many nodes of one fault are named.
const MAX_NAMED: usize = 64;

/// What can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// Two servers use one id.
    DuplicateId,
    /// Parent and child do not name each other.
    Disagreement,
    /// Parents in a circle.
    Cycle,
    /// A stream is open and nothing comes over it.
    Silent,
    /// More than one tree.
    SeveralFragments,
    /// A parent that nobody knows.
    MissingParent,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub kind: FaultKind,
    /// With whom.
    pub nodes: Vec<NodeId>,
    /// One sentence for people.
    pub detail: String,
}

impl Fault {
    fn new(kind: FaultKind, nodes: impl IntoIterator<Item = NodeId>, detail: String) -> Self {
        Self { kind, nodes: nodes.into_iter().take(MAX_NAMED).collect(), detail }
    }
}

/// The faults of a moment.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// At most [`MAX_FAULTS`].
    pub named: Vec<Fault>,
    /// How many more there are.
    pub left_out: usize,
}

impl Faults {
    fn push(&mut self, make: impl FnOnce() -> Fault) {
        if self.named.len() < MAX_FAULTS {
            self.named.push(make());
        } else {
            self.left_out += 1;
        }
    }
}

impl Topology {
    /// What is wrong now: the rare and grave first, so that they are among those that are named.
    pub fn faults(&self, forest: &Forest<'_>, trees: &[Tree], now: Instant) -> Faults {
        let mut faults = Faults::default();
        self.find_duplicates(&mut faults, now);
        find_circles(forest, &mut faults);
        find_several_trees(trees, &mut faults);
        self.find_silent(&mut faults, now);
        find_missing_parents(forest, &mut faults);
        find_disagreements(forest, &mut faults);
        faults
    }

    fn find_duplicates(&self, faults: &mut Faults, now: Instant) {
        for conflict in self.conflicts(now) {
            faults.push(|| {
                let (id, hostname, port, times) = (&conflict.id, &conflict.hostname, conflict.port, conflict.times);
                let detail = format!("{hostname}:{port} uses the id {id} too and was refused {times} times");
                Fault::new(FaultKind::DuplicateId, [id.clone()], detail)
            });
        }
    }

    fn find_silent(&self, faults: &mut Faults, now: Instant) {
        for (id, entry) in self.entries.iter().filter(|(_, entry)| entry.is_silent(now)) {
            faults.push(|| {
                let age = now.saturating_duration_since(entry.heard).as_secs_f64();
                let detail = format!("{id} keeps its stream open and has said nothing for {age:.1} s");
                Fault::new(FaultKind::Silent, [id.clone()], detail)
            });
        }
    }
}

fn find_circles(forest: &Forest<'_>, faults: &mut Faults) {
    for circle in forest.circles() {
        faults.push(|| {
            let detail = format!("{} nodes report each other as parents in a circle", circle.len());
            Fault::new(FaultKind::Cycle, circle.into_iter().cloned(), detail)
        });
    }
}

fn find_several_trees(trees: &[Tree], faults: &mut Faults) {
    if trees.len() > 1 {
        faults.push(|| {
            let roots = trees.iter().map(|tree| tree.root.clone());
            Fault::new(FaultKind::SeveralFragments, roots, format!("there are {} trees", trees.len()))
        });
    }
}

fn find_missing_parents(forest: &Forest<'_>, faults: &mut Faults) {
    for (id, entry) in forest.nodes() {
        if let Some(parent) = &entry.report.parent
            && forest.node(parent.as_str()).is_none()
        {
            faults.push(|| {
                let detail = format!("{id} reports the parent {parent}, which is not here");
                Fault::new(FaultKind::MissingParent, [parent.clone(), id.clone()], detail)
            });
        }
    }
}

fn find_disagreements(forest: &Forest<'_>, faults: &mut Faults) {
    for (id, entry) in forest.nodes() {
        if let Some(parent) = forest.parent(entry)
            && !parent.report.children.contains(id)
        {
            faults.push(|| {
                let parent = &parent.report.id;
                let detail = format!("{id} reports the parent {parent}, which does not name it as a child");
                Fault::new(FaultKind::Disagreement, [parent.clone(), id.clone()], detail)
            });
        }
        let children: BTreeSet<&NodeId> = entry.report.children.iter().collect();
        for child in children {
            let Some(other) = forest.node(child.as_str()) else { continue };
            if other.report.parent.as_ref() != Some(id) {
                faults.push(|| {
                    let detail = format!("{id} names the child {child}, which does not report it as its parent");
                    Fault::new(FaultKind::Disagreement, [id.clone(), child.clone()], detail)
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{World, below, node};
    use super::super::{Report, StreamId};
    use super::*;

    fn faults(world: &World) -> Vec<(FaultKind, String)> {
        let forest = world.topology.forest(world.now);
        let found = world.topology.faults(&forest, &forest.trees(), world.now);
        let names = |fault: &Fault| fault.nodes.iter().map(NodeId::as_str).collect::<Vec<_>>().join(" ");
        found.named.iter().map(|fault| (fault.kind, names(fault))).collect()
    }

    #[test]
    fn a_healthy_tree_has_none() {
        let world = World::with([below(&["a"]).over(&["b"]), below(&["a", "b"]).over(&["c"]), below(&["a", "b", "c"])]);
        assert_eq!(faults(&world), []);
        assert_eq!(faults(&World::default()), []);
    }

    #[test]
    fn each_kind_is_found_and_names_whom_it_is_about() {
        use FaultKind::*;
        let mut world = World::with([
            below(&["a"]).over(&["b", "gone", "d"]),
            below(&["a", "b"]),
            below(&["a", "c"]),
            below(&["e", "d"]),
            below(&["p", "q"]).over(&["p"]),
            below(&["q", "p"]).over(&["q"]),
            node("frozen"),
        ]);
        world.let_fall_silent(&["frozen"]);
        let twin = Report { hostname: "elsewhere".into(), ..node("a") };
        world.topology.report(StreamId(u64::MAX), twin, world.now).unwrap_err();
        let expected = [
            (DuplicateId, "a"),
            (Cycle, "p q"),
            (SeveralFragments, "a d"),
            (Silent, "frozen"),
            (MissingParent, "e d"),
            (Disagreement, "a d"),
            (Disagreement, "a c"),
        ];
        assert_eq!(faults(&world), expected.map(|(kind, names)| (kind, names.to_owned())));
    }

    #[test]
    fn many_faults_are_counted_and_not_all_named() {
        let world = World::with((0..1500).map(|at| below(&["gone", &format!("{at:04}")])));
        let forest = world.topology.forest(world.now);
        let faults = world.topology.faults(&forest, &forest.trees(), world.now);
        assert_eq!((faults.named.len(), faults.left_out), (MAX_FAULTS, 501));
        assert!(faults.named.iter().all(|fault| fault.nodes.len() <= MAX_NAMED));
    }
}
