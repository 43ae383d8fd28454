//! How one tree could be made shallower by single moves.
//!
//! A move takes a node with everything below it to a free slot elsewhere in the same tree. There are two reasons for
//! one: a node with more children than it takes, and a tree that is deeper by two or more than it has to be. What is
//! deeper by one stays as it is, so that a tree does not move whenever somebody joins.
//!
//! It comes to an end: a move of the first kind leaves fewer children too many, one of the second kind no more of
//! those and a smaller sum of all depths. How many clients a node has does not matter.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::forest::Forest;
use super::{Entry, NodeId};

/// How much deeper than it has to be a tree may be.
const TOLERANCE: u32 = 1;

/// One move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// Who moves, with everything below it.
    pub node: NodeId,
    /// The parent that it has.
    pub from: NodeId,
    /// The parent that it gets.
    pub to: NodeId,
    /// Its distance from the root before.
    pub depth_before: u32,
    /// And after.
    pub depth_after: u32,
    /// How many nodes move, itself included.
    pub nodes: u32,
    /// Whether the old parent has more children than it takes.
    pub relieves_parent: bool,
}

/// A tree to be thought about: its moves are made here, and nowhere else.
#[derive(Debug, Clone)]
pub struct Shape<'a> {
    root: usize,
    nodes: Vec<Member<'a>>,
}

#[derive(Debug, Clone)]
struct Member<'a> {
    id: &'a NodeId,
    parent: Option<usize>,
    children: Vec<usize>,
    /// How many children it takes.
    capacity: usize,
    /// How many it has, as far as it or they say.
    taken: usize,
    depth: u32,
    /// How many nodes are here and below.
    size: u32,
    /// The depth of the deepest of them.
    deepest: u32,
    may_move: bool,
    may_take: bool,
}

impl<'a> Shape<'a> {
    /// The tree of these nodes below this one of them. `None` if there are none.
    pub fn new(forest: &Forest<'a>, root: &NodeId, members: &[&'a Entry]) -> Option<Self> {
        let places: BTreeMap<&str, usize> =
            members.iter().enumerate().map(|(at, entry)| (entry.report.id.as_str(), at)).collect();
        let root = *places.get(root.as_str())?;
        let mut nodes: Vec<Member<'a>> = members
            .iter()
            .map(|entry| Member {
                id: &entry.report.id,
                parent: forest.parent(entry).and_then(|parent| places.get(parent.report.id.as_str()).copied()),
                children: Vec::new(),
                capacity: usize::try_from(entry.report.max_children).unwrap_or(usize::MAX),
                taken: entry.report.children.len(),
                depth: 0,
                size: 1,
                deepest: 0,
                may_move: true,
                may_take: true,
            })
            .collect();
        for at in 0..nodes.len() {
            if let Some(parent) = nodes.get(at).and_then(|node| node.parent).filter(|_| at != root)
                && let Some(parent) = nodes.get_mut(parent)
            {
                parent.children.push(at);
            }
        }
        for node in &mut nodes {
            node.taken = node.taken.max(node.children.len());
        }
        let mut shape = Self { root, nodes };
        shape.measure();
        Some(shape)
    }

    /// Leaves out nodes that are not to be moved, and nodes that nobody is to be moved to.
    pub fn leave_out(&mut self, may_move: impl Fn(&NodeId) -> bool, may_take: impl Fn(&NodeId) -> bool) {
        for node in &mut self.nodes {
            node.may_move = may_move(node.id);
            node.may_take = may_take(node.id);
        }
    }

    /// The largest distance from the root.
    pub fn depth(&self) -> u32 {
        self.nodes.get(self.root).map_or(0, |root| root.deepest)
    }

    /// The least depth that these nodes could have below this root: those that take most are nearest to it.
    pub fn least_depth(&self) -> u32 {
        let capacity_of = |at: usize| self.nodes.get(at).map_or(0, |node| node.capacity);
        let others = (0..self.nodes.len()).filter(|at| *at != self.root);
        let mut capacities: Vec<usize> = others.map(capacity_of).collect();
        capacities.sort_unstable_by_key(|capacity| Reverse(*capacity));
        let mut rest = &capacities[..];
        let (mut depth, mut slots) = (0, capacity_of(self.root));
        while !rest.is_empty() {
            // With no slot left the tree is one that its nodes would not take; then each may as well be below another.
            let (level, below) = rest.split_at(slots.clamp(1, rest.len()));
            slots = level.iter().fold(0, |sum, capacity| sum.saturating_add(*capacity));
            rest = below;
            depth += 1;
        }
        depth
    }

    /// The next move, if there is a reason for one.
    pub fn next_move(&self) -> Option<Move> {
        self.relief().or_else(|| self.lift())
    }

    /// Makes a move. One that does not fit here changes nothing.
    pub fn make(&mut self, made: &Move) {
        let find = |id: &NodeId| self.nodes.iter().position(|node| node.id == id);
        let (Some(node), Some(from), Some(to)) = (find(&made.node), find(&made.from), find(&made.to)) else { return };
        if let Some(node) = self.nodes.get_mut(node) {
            node.parent = Some(to);
        }
        if let Some(from) = self.nodes.get_mut(from) {
            from.children.retain(|child| *child != node);
            from.taken = from.taken.saturating_sub(1);
        }
        if let Some(to) = self.nodes.get_mut(to) {
            to.children.push(node);
            to.taken += 1;
        }
        self.measure();
    }

    /// All moves one after the other, at most so many. Afterwards the tree is what they make of it.
    pub fn make_all(&mut self, most: usize) -> Vec<Move> {
        let mut moves = Vec::new();
        while let Some(next) = self.next_move().filter(|_| moves.len() < most) {
            self.make(&next);
            moves.push(next);
        }
        moves
    }

    /// A child of a node that has too many goes to the nearest free slot that is not below itself: the one with the
    /// fewest nodes below it.
    fn relief(&self) -> Option<Move> {
        let crowded = self.nodes.iter().filter(|node| node.taken > node.capacity);
        let mut children: Vec<usize> =
            crowded.flat_map(|node| &node.children).copied().filter(|at| self.may_move(*at)).collect();
        if children.is_empty() {
            return None;
        }
        children.sort_by_key(|at| self.nodes.get(*at).map(|node| (node.size, node.id)));
        let mut slots = self.slots();
        slots.sort_by_key(|at| self.nodes.get(*at).map(|node| (node.depth, node.id)));
        children.into_iter().find_map(|child| {
            let slot = slots.iter().copied().find(|slot| !self.is_below(*slot, child))?;
            self.describe(child, slot, true)
        })
    }

    /// Of those that have somebody too deep below them, or are too deep themselves, the one whose move to the slot
    /// nearest to the root makes the sum of all depths smallest.
    fn lift(&self) -> Option<Move> {
        let bound = self.least_depth() + TOLERANCE;
        if self.depth() <= bound {
            return None;
        }
        let slot = self.slots().into_iter().min_by_key(|at| self.nodes.get(*at).map(|node| (node.depth, node.id)))?;
        let reached = self.nodes.get(slot)?.depth + 1;
        // Whoever is deeper than the slot does not have it below itself.
        let gain = |at: &usize| {
            let node = self.nodes.get(*at)?;
            let rise = node.depth.checked_sub(reached).filter(|rise| *rise > 0)?;
            Some((u64::from(rise) * u64::from(node.size), Reverse((node.depth, node.id))))
        };
        let too_deep = |at: &usize| self.nodes.get(*at).is_some_and(|node| node.deepest > bound);
        let candidates = (0..self.nodes.len()).filter(|at| self.may_move(*at) && too_deep(at) && gain(at).is_some());
        self.describe(candidates.max_by_key(gain)?, slot, false)
    }

    fn may_move(&self, at: usize) -> bool {
        at != self.root && self.nodes.get(at).is_some_and(|node| node.may_move)
    }

    /// Those that take another child.
    fn slots(&self) -> Vec<usize> {
        let has_room = |node: &Member<'_>| node.may_take && node.taken < node.capacity;
        self.nodes.iter().enumerate().filter(|(_, node)| has_room(node)).map(|(at, _)| at).collect()
    }

    /// Whether a node is another one, or below it.
    fn is_below(&self, at: usize, top: usize) -> bool {
        let parent = |at: &usize| self.nodes.get(*at).and_then(|node| node.parent);
        // No further than all nodes, should they report a circle.
        std::iter::successors(Some(at), parent).take(self.nodes.len()).any(|above| above == top)
    }

    fn describe(&self, node: usize, to: usize, relieves_parent: bool) -> Option<Move> {
        let (node, to) = (self.nodes.get(node)?, self.nodes.get(to)?);
        let from = self.nodes.get(node.parent?)?;
        Some(Move {
            node: node.id.clone(),
            from: from.id.clone(),
            to: to.id.clone(),
            depth_before: node.depth,
            depth_after: to.depth + 1,
            nodes: node.size,
            relieves_parent,
        })
    }

    /// Depths from the top down, sizes from the bottom up.
    fn measure(&mut self) {
        let mut order = vec![(self.root, 0)];
        let mut next = 0;
        while let Some((at, depth)) = order.get(next).copied() {
            next += 1;
            if let Some(node) = self.nodes.get_mut(at) {
                (node.depth, node.deepest, node.size) = (depth, depth, 1);
                order.extend(node.children.iter().map(|child| (*child, depth + 1)));
            }
        }
        for (at, _) in order.into_iter().rev() {
            let Some(Member { parent: Some(parent), size, deepest, .. }) = self.nodes.get(at) else { continue };
            let (parent, size, deepest) = (*parent, *size, *deepest);
            if let Some(parent) = self.nodes.get_mut(parent).filter(|_| at != self.root) {
                parent.size = parent.size.saturating_add(size);
                parent.deepest = parent.deepest.max(deepest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{World, below, node};
    use super::super::{Report, Topology};
    use super::*;

    /// Reports of a tree, from each node's parent; node n is `n000` and so on, the root first.
    fn tree(parents: &[usize], max_children: u32) -> Vec<Report> {
        let name = |at: usize| format!("n{at:03}");
        let path = |at: usize| {
            let above = |at: &usize| at.checked_sub(1).and_then(|before| parents.get(before).copied());
            let mut path: Vec<String> = std::iter::successors(Some(at), above).map(name).collect();
            path.reverse();
            path
        };
        let children = |at: usize| (1..=parents.len()).filter(move |child| parents[child - 1] == at).map(name);
        let report = |at: usize| {
            let (path, children): (Vec<String>, Vec<String>) = (path(at), children(at).collect());
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            let children: Vec<&str> = children.iter().map(String::as_str).collect();
            Report { max_children, ..below(&path).over(&children) }
        };
        (0..=parents.len()).map(report).collect()
    }

    fn line(nodes: usize, max_children: u32) -> Vec<Report> {
        tree(&(0..nodes - 1).collect::<Vec<_>>(), max_children)
    }

    fn with_shape<T>(topology: &Topology, now: std::time::Instant, of: impl FnOnce(&mut Shape<'_>) -> T) -> T {
        let forest = topology.forest(now);
        let members: Vec<&Entry> = forest.nodes().map(|(_, entry)| entry).collect();
        of(&mut Shape::new(&forest, &forest.trees()[0].root, &members).unwrap())
    }

    fn moves(reports: Vec<Report>) -> (Vec<Move>, u32) {
        let world = World::with(reports);
        with_shape(&world.topology, world.now, |shape| (shape.make_all(1000), shape.depth()))
    }

    fn ceil_log(nodes: usize, base: usize) -> u32 {
        (0..).find(|depth| base.pow(*depth) >= nodes).unwrap()
    }

    #[test]
    fn a_line_of_50_becomes_shallow_in_few_moves_each_of_which_gains() {
        for (max_children, most) in [(2, 15), (3, 16), (8, 24)] {
            let (moves, depth) = moves(line(50, max_children));
            assert!(depth <= ceil_log(50, max_children as usize) + 1, "{depth} with {max_children}");
            assert!(moves.len() <= most, "{} moves with {max_children}, {depth} deep", moves.len());
            assert!(moves.iter().all(|it| it.depth_after < it.depth_before && !it.relieves_parent));
        }
    }

    #[test]
    fn the_first_move_of_a_line_takes_half_of_it_to_the_top() {
        let world = World::with(line(50, 2));
        let first = with_shape(&world.topology, world.now, |shape| shape.next_move()).unwrap();
        assert_eq!((first.node.as_str(), first.from.as_str(), first.to.as_str()), ("n025", "n024", "n000"));
        assert_eq!((first.depth_before, first.depth_after, first.nodes), (25, 1, 25));
    }

    #[test]
    fn a_star_and_whatever_is_deeper_by_one_only_stay_as_they_are() {
        assert_eq!(moves(tree(&[0; 8], 8)), (Vec::new(), 1));
        assert_eq!(moves(line(4, 2)).0, [], "depth 3, and 2 would do");
        assert_eq!(moves(line(3, 8)).0, [], "depth 2, and 1 would do");
        assert_eq!(moves(vec![node("n000")]).0, []);
        assert_eq!(moves(line(40, 1)).0, [], "a line is all that such nodes can be");
    }

    #[test]
    fn a_lopsided_tree_is_levelled_whatever_hangs_where() {
        // A full binary tree of seven, and below its last leaf a line.
        let mut parents = vec![0, 0, 1, 1, 2, 2];
        parents.extend(6..14);
        let (moves, depth) = moves(tree(&parents, 2));
        assert!(depth <= 4, "{depth}");
        assert!(moves.len() <= 4, "{moves:?}");
    }

    #[test]
    fn every_random_tree_comes_to_rest_and_no_node_takes_too_many() {
        let mut state = 1_u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        for round in 0..200 {
            let (nodes, max_children) = (2 + random(60), 2 + random(7));
            let mut taken = vec![0; nodes];
            let parents: Vec<usize> = (1..nodes)
                .map(|at| {
                    loop {
                        let parent = at - 1 - random(at.min(3));
                        if taken[parent] < max_children {
                            taken[parent] += 1;
                            break parent;
                        }
                    }
                })
                .collect();
            let world = World::with(tree(&parents, max_children as u32));
            with_shape(&world.topology, world.now, |shape| {
                let least = shape.least_depth();
                assert!(shape.make_all(1000).len() < 1000, "round {round}");
                assert!(shape.depth() <= least + TOLERANCE, "round {round}: {} of {least}", shape.depth());
                assert!(least <= ceil_log(nodes, max_children), "round {round}");
                assert!(
                    shape.nodes.iter().all(|node| node.taken <= node.capacity && node.taken == node.children.len())
                );
            });
        }
    }

    #[test]
    fn a_node_with_too_many_children_is_relieved_of_the_lightest() {
        let mut reports = tree(&[0, 0, 0, 1, 2], 2);
        for report in &mut reports {
            report.max_children = 2;
        }
        let (moves, depth) = moves(reports);
        assert_eq!(moves.len(), 1);
        assert_eq!((moves[0].node.as_str(), moves[0].to.as_str()), ("n003", "n001"));
        assert!(moves[0].relieves_parent);
        assert_eq!(depth, 2);
    }

    #[test]
    fn who_is_left_out_neither_moves_nor_is_moved_to() {
        let world = World::with(line(50, 2));
        with_shape(&world.topology, world.now, |shape| {
            shape.leave_out(|id| id.as_str() != "n025", |id| id.as_str() != "n000");
            let first = shape.next_move().unwrap();
            assert_eq!((first.node.as_str(), first.to.as_str()), ("n026", "n001"));
            shape.leave_out(|_| false, |_| true);
            assert_eq!(shape.next_move(), None);
        });
    }

    #[test]
    fn the_largest_possible_loads_and_numbers_of_children_change_nothing() {
        let plain = line(50, 2);
        let boastful = plain.iter().cloned().map(|report| Report { load: 1 << 63, ..report }).collect::<Vec<_>>();
        assert_eq!(moves(plain.clone()), moves(boastful));
        let greedy = plain.into_iter().map(|report| Report { max_children: u32::MAX, load: u64::MAX, ..report });
        assert_eq!(moves(greedy.collect()).1, 2, "one below the root, and the others below it");
    }

    #[test]
    fn nodes_that_take_more_come_first_in_the_least_depth() {
        let mut reports = line(10, 0);
        reports[9].max_children = 8;
        reports[0].max_children = 1;
        let world = World::with(reports);
        with_shape(&world.topology, world.now, |shape| assert_eq!(shape.least_depth(), 2));
    }
}
