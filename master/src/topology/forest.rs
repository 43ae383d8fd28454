//! Who is below whom, and which trees the nodes form.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::traffic::Traffic;
use super::{Entry, FragmentKey, NodeId, Report, Topology};

/// Where a node is in the forest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// Where the climb from parent to parent ends.
    pub top: &'a NodeId,
    /// How many steps that takes.
    pub distance: u32,
}

/// The nodes that are not silent, and how they hang together by the parents that they report.
#[derive(Debug)]
pub struct Forest<'a> {
    nodes: BTreeMap<&'a str, &'a Entry>,
    places: BTreeMap<&'a str, Place<'a>>,
    now: Instant,
}

/// One node for whoever asks.
#[derive(Debug, Clone)]
pub struct NodeView {
    /// What it said last.
    pub report: Arc<Report>,
    /// How long ago.
    pub age: Duration,
    /// How long it has been registered.
    pub registered_for: Duration,
    /// An operator asked it to drain.
    pub drain_requested: bool,
    /// The top of its tree. None if it reports, or is below, a circle.
    pub tree_root: Option<NodeId>,
    /// How many activities it passes on.
    pub traffic: Traffic,
}

/// One tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// The node at the top.
    pub root: NodeId,
    /// The key that it reports.
    pub key: FragmentKey,
    /// How many nodes.
    pub nodes: usize,
    /// The largest distance from the top.
    pub depth: u32,
    /// Logged-in clients of all nodes.
    pub load: u64,
    /// The parent that the top reports, but nobody knows.
    pub missing_parent: Option<NodeId>,
}

impl Topology {
    /// The nodes that are not silent, with their places.
    pub fn forest(&self, now: Instant) -> Forest<'_> {
        let live = self.entries.iter().filter(|(_, entry)| !entry.is_silent(now));
        let nodes = live.map(|(id, entry)| (id.as_str(), entry)).collect();
        let mut forest = Forest { nodes, places: BTreeMap::new(), now };
        forest.climb_all();
        forest
    }
}

impl<'a> Forest<'a> {
    /// The nodes in the order of their ids.
    pub fn nodes(&self) -> impl Iterator<Item = (&'a NodeId, &'a Entry)> {
        self.nodes.values().map(|&entry| (&entry.report.id, entry))
    }

    /// One node.
    pub fn node(&self, id: &str) -> Option<&'a Entry> {
        self.nodes.get(id).copied()
    }

    /// Where it is; nowhere if its parents form a circle.
    pub fn place(&self, id: &str) -> Option<Place<'a>> {
        self.places.get(id).copied()
    }

    /// The node's parent, if it is known and not silent.
    pub fn parent(&self, entry: &Entry) -> Option<&'a Entry> {
        self.node(entry.report.parent.as_ref()?.as_str())
    }

    /// One node for whoever asks.
    pub fn view(&self, entry: &Entry) -> NodeView {
        NodeView {
            report: Arc::clone(&entry.report),
            age: self.now.saturating_duration_since(entry.heard),
            registered_for: self.now.saturating_duration_since(entry.registered),
            drain_requested: entry.drain_requested,
            tree_root: self.place(entry.report.id.as_str()).map(|place| place.top.clone()),
            traffic: entry.traffic,
        }
    }

    /// The trees, smallest key first.
    pub fn trees(&self) -> Vec<Tree> {
        let mut trees: BTreeMap<&NodeId, Tree> = BTreeMap::new();
        for (id, place) in &self.places {
            let (Some(entry), Some(top)) = (self.node(id), self.node(place.top.as_str())) else { continue };
            let tree = trees.entry(place.top).or_insert_with(|| Tree {
                root: place.top.clone(),
                key: top.report.key.clone(),
                nodes: 0,
                depth: 0,
                load: 0,
                missing_parent: top.report.parent.clone(),
            });
            tree.nodes += 1;
            tree.depth = tree.depth.max(place.distance);
            tree.load = tree.load.saturating_add(entry.report.load);
        }
        let mut trees: Vec<Tree> = trees.into_values().collect();
        trees.sort_by(|one, other| (&one.key, &one.root).cmp(&(&other.key, &other.root)));
        trees
    }

    /// The nodes of each reported circle, each once, starting with the smallest id.
    pub fn circles(&self) -> Vec<Vec<&'a NodeId>> {
        let mut seen = BTreeSet::new();
        let mut circles = Vec::new();
        for (id, entry) in self.nodes().filter(|(id, _)| self.place(id.as_str()).is_none()) {
            let mut way = vec![id];
            let mut at = entry;
            while seen.insert(&at.report.id) {
                let Some(parent) = self.parent(at) else { break };
                at = parent;
                way.push(&at.report.id);
            }
            // The climb ended where it had been before. If that was on this very way, from there on it is a circle.
            way.pop();
            if let Some(start) = way.iter().position(|&id| *id == at.report.id) {
                let mut circle = way.split_off(start);
                let smallest = circle.iter().enumerate().min_by_key(|&(_, &id)| id).map_or(0, |(at, _)| at);
                circle.rotate_left(smallest);
                circles.push(circle);
            }
        }
        circles
    }

    /// Climbs from every node, and stops where somebody has climbed before, so that each step is taken once.
    fn climb_all(&mut self) {
        let mut climbed: BTreeSet<&'a NodeId> = BTreeSet::new();
        let starts: Vec<(&'a NodeId, &'a Entry)> = self.nodes().collect();
        let mut way: Vec<&'a NodeId> = Vec::new();
        for (id, entry) in starts {
            way.clear();
            let (mut at_id, mut at) = (id, entry);
            let end = loop {
                if !climbed.insert(at_id) {
                    // Nothing there: it is on this way, or leads into a circle.
                    break self.place(at_id.as_str());
                }
                way.push(at_id);
                match self.parent(at) {
                    Some(parent) => (at_id, at) = (&parent.report.id, parent),
                    None => {
                        way.pop();
                        let top = Place { top: at_id, distance: 0 };
                        self.places.insert(at_id.as_str(), top);
                        break Some(top);
                    }
                }
            };
            let Some(mut place) = end else { continue };
            for id in way.drain(..).rev() {
                place.distance += 1;
                self.places.insert(id.as_str(), place);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{World, below, key, node};
    use super::*;

    fn tree(root: &str, nodes: usize, depth: u32) -> Tree {
        Tree { root: root.into(), key: key(0, root), nodes, depth, load: 0, missing_parent: None }
    }

    #[test]
    fn a_tree_has_one_top_and_its_depth() {
        let world = World::with([below(&["a"]), below(&["a", "b"]), below(&["a", "b", "c"]), below(&["a", "d"])]);
        let forest = world.topology.forest(world.now);
        assert_eq!(forest.trees(), [tree("a", 4, 2)]);
        assert_eq!(forest.place("c"), Some(Place { top: &"a".into(), distance: 2 }));
        assert_eq!(forest.circles(), Vec::<Vec<&NodeId>>::new());
    }

    #[test]
    fn trees_come_smallest_key_first() {
        let world = World::with([Report { key: key(2, "a"), ..node("a") }, Report { key: key(1, "b"), ..node("b") }]);
        let roots: Vec<NodeId> = world.topology.forest(world.now).trees().into_iter().map(|tree| tree.root).collect();
        assert_eq!(roots, ["b".into(), "a".into()]);
    }

    #[test]
    fn below_a_missing_or_a_silent_node_a_tree_begins() {
        let mut world = World::with([below(&["a"]), below(&["a", "b"]), below(&["a", "b", "c"])]);
        let cut = Tree { key: key(0, "a"), missing_parent: Some("b".into()), ..tree("c", 1, 0) };
        world.let_fall_silent(&["b"]);
        assert_eq!(world.topology.forest(world.now).trees(), [tree("a", 1, 0), cut.clone()]);
        let stream = world.topology.entry("b").unwrap().stream;
        world.topology.end_stream(stream, &"b".into());
        assert_eq!(world.topology.forest(world.now).trees(), [tree("a", 1, 0), cut]);
    }

    #[test]
    fn circles_are_found_once_and_who_is_below_one_is_nowhere() {
        let world = World::with([
            below(&["y", "x"]),
            below(&["z", "y"]),
            below(&["x", "z"]),
            below(&["x", "under"]),
            below(&["self", "self"]),
            below(&["a"]),
        ]);
        let forest = world.topology.forest(world.now);
        let circles: Vec<Vec<&str>> =
            forest.circles().into_iter().map(|ids| ids.into_iter().map(NodeId::as_str).collect()).collect();
        assert_eq!(circles, [vec!["self"], vec!["x", "y", "z"]]);
        assert_eq!(forest.place("under"), None);
        assert_eq!(forest.trees(), [tree("a", 1, 0)]);
    }

    #[test]
    fn a_very_deep_tree_is_climbed_without_recursion() {
        let ids: Vec<String> = (0..9_999).map(|at| format!("{at:05}")).collect();
        let chain = ids.windows(2).map(|pair| below(&[&pair[0], &pair[1]]));
        let world = World::with(chain.chain([node("00000")]));
        assert_eq!(world.topology.forest(world.now).trees(), [tree("00000", 9_999, 9_998)]);
    }
}
