//! Which move is proposed, and when.
//!
//! One at a time in each tree, and only when the tree has been at rest for a while and the last move has been reported
//! or given up. Other masters do the same from the same reports, and mostly propose the same; where they don't, the
//! root of the tree allows one move at a time. What nodes answer, to whichever master, is heeded by all.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::{Duration, Instant};

use super::candidates::Candidate;
use super::forest::{Forest, Tree};
use super::plan::{Move, Shape};
use super::{Entry, Incarnation, MoveAnswer, MoveOutcome, NodeId, State, StreamId};

/// For how long nothing must have changed in a tree.
const REST: Duration = Duration::from_secs(1);

/// How long a node may take over a proposal. It gives its own servers less.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// When a node that could not move at that moment is asked again.
const NOT_NOW: Duration = Duration::from_secs(2);

/// For how long a node that would not move is left alone, and one that did not take another; twice as long each time,
/// up to the longest.
const SETBACK: Duration = Duration::from_secs(30);
const LONGEST_SETBACK: Duration = Duration::from_secs(600);

/// For how long a plan that an operator asked for is carried out.
const ON_REQUEST: Duration = Duration::from_secs(600);

/// Most moves of a plan that is shown.
pub const MAX_PLANNED: usize = 1000;

/// What a node is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// Which node.
    pub node: NodeId,
    /// Over which stream.
    pub stream: StreamId,
    /// Where it is to go.
    pub target: Candidate,
    /// From where.
    pub parent: NodeId,
    /// Whether the parent has more children than it takes.
    pub relieves_parent: bool,
}

/// Why no move is proposed in a tree at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// The node at the top has a parent that is not known here.
    MissingParent(NodeId),
    /// A node is starting, looking for a parent, or about to stop.
    NotLive(NodeId),
    /// A node has not heard of its present place yet.
    NotPlaced(NodeId),
    /// Something has just changed.
    Restless,
    /// A node has not said yet what it makes of its proposal.
    Proposed(NodeId),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingParent(id) => write!(f, "the parent of {id} is not known here"),
            Self::NotLive(id) => write!(f, "{id} is starting, looking for a parent, or about to stop"),
            Self::NotPlaced(id) => write!(f, "{id} has not heard yet where it is in the tree"),
            Self::Restless => write!(f, "the tree has only just changed"),
            Self::Proposed(id) => write!(f, "{id} has not said yet whether it moves"),
        }
    }
}

/// How one tree could be made shallower.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreePlan {
    /// The tree.
    pub tree: Tree,
    /// The least depth that its nodes could have.
    pub least_depth: u32,
    /// The depth after all moves.
    pub depth_after: u32,
    /// In this order, at most [`MAX_PLANNED`].
    pub moves: Vec<Move>,
    /// Why nothing is proposed at the moment.
    pub waits_for: Option<Obstacle>,
}

/// What has been proposed so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BalanceCounts {
    /// How often something was proposed.
    pub proposed: u64,
    /// What became of that, by its name.
    pub outcomes: BTreeMap<&'static str, u64>,
}

/// Remembers since when trees are at rest, what is proposed, and who would not.
#[derive(Debug, Clone, Default)]
pub struct Balancer {
    /// By the id of the root.
    rests: BTreeMap<NodeId, Rest>,
    /// By the id of the node that is to move.
    proposed: BTreeMap<NodeId, Proposed>,
    /// Nodes that are not asked for a while.
    setbacks: BTreeMap<NodeId, Setback>,
    /// Nodes that nobody is sent to for a while.
    shunned: BTreeMap<NodeId, Setback>,
    /// How many answers of each node are known.
    heard: BTreeMap<NodeId, (Incarnation, u64)>,
    requested_until: Option<Instant>,
    counts: BalanceCounts,
}

#[derive(Debug, Clone)]
struct Rest {
    fingerprint: u64,
    since: Instant,
    /// Nothing is to be done as long as this tree stays the same.
    is_good: bool,
}

#[derive(Debug, Clone)]
struct Proposed {
    root: NodeId,
    target: NodeId,
    parent: NodeId,
    until: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Setback {
    times: u32,
    until: Instant,
}

impl Balancer {
    /// What to propose now: at most one move in each tree. `is_on` says whether to propose anything without an
    /// operator's wish.
    pub fn look(&mut self, forest: &Forest<'_>, is_on: bool, now: Instant) -> Vec<Proposal> {
        self.hear(forest, now);
        let trees = members_by_root(forest);
        self.rests.retain(|root, _| trees.contains_key(root));
        let is_requested = self.requested_until.is_some_and(|until| now < until);
        let mut proposals = Vec::new();
        let mut is_done = true;
        for (root, members) in trees {
            self.watch(root, &members, now);
            if self.is_good(root) || !(is_on || is_requested) {
                continue;
            }
            if self.obstacle(forest, root, &members, now).is_some() {
                is_done = false;
                continue;
            }
            let next = self.next_move(forest, root, &members, now);
            // Where nobody may be asked for the moment there still is something to do.
            is_done &= next.is_none() && self.is_good(root);
            let Some(next) = next else { continue };
            proposals.extend(self.propose(forest, root, &next, now));
        }
        if is_done {
            self.requested_until = None;
        }
        proposals
    }

    /// When to look again if nothing changes before.
    pub fn next_look(&self, now: Instant) -> Option<Instant> {
        let rests = self.rests.values().filter(|rest| !rest.is_good).map(|rest| rest.since + REST);
        let proposed = self.proposed.values().map(|proposed| proposed.until);
        let setbacks = self.setbacks.values().chain(self.shunned.values()).map(|setback| setback.until);
        rests.chain(proposed).chain(setbacks).filter(|at| *at > now).min()
    }

    /// An operator wants the plan to be carried out.
    pub fn request(&mut self, now: Instant) {
        self.requested_until = Some(now + ON_REQUEST);
    }

    /// A proposal did not reach its node, which is left alone for a while.
    pub fn forget(&mut self, node: &NodeId, now: Instant) {
        self.proposed.remove(node);
        set_back(&mut self.setbacks, node, now);
        self.counts.proposed = self.counts.proposed.saturating_sub(1);
    }

    /// What has been proposed so far.
    pub fn counts(&self) -> &BalanceCounts {
        &self.counts
    }

    /// How the trees could be made shallower, smallest key first, whoever would not move for the moment.
    pub fn plan(&self, forest: &Forest<'_>, now: Instant) -> Vec<TreePlan> {
        let members = members_by_root(forest);
        let plan_of = |tree: Tree| {
            let members = members.get(&tree.root)?;
            let mut shape = Shape::new(forest, &tree.root, members)?;
            let least_depth = shape.least_depth();
            let moves = shape.make_all(MAX_PLANNED);
            let waits_for = self.obstacle(forest, &tree.root, members, now);
            Some(TreePlan { least_depth, depth_after: shape.depth(), moves, waits_for, tree })
        };
        forest.trees().into_iter().filter_map(plan_of).collect()
    }

    /// Takes in what nodes have answered, and gives up what takes too long.
    fn hear(&mut self, forest: &Forest<'_>, now: Instant) {
        self.heard.retain(|id, _| forest.node(id.as_str()).is_some());
        for (id, entry) in forest.nodes() {
            let answer = entry.report.move_answer.as_ref();
            let latest = (entry.report.incarnation, answer.map_or(0, |answer| answer.number));
            let before = self.heard.insert(id.clone(), latest);
            if let (Some(before), Some(answer)) = (before, answer)
                && before.0 == latest.0
                && before.1 != latest.1
            {
                self.on_answer(id, answer, now);
            }
        }
        let is_over = |id: &NodeId, proposed: &Proposed| now >= proposed.until || forest.node(id.as_str()).is_none();
        let over: Vec<NodeId> =
            self.proposed.iter().filter(|(id, it)| is_over(id, it)).map(|(id, _)| id.clone()).collect();
        for id in over {
            let Some(proposed) = self.proposed.remove(&id) else { continue };
            *self.counts.outcomes.entry("unanswered").or_default() += 1;
            set_back(&mut self.setbacks, &id, now);
            set_back(&mut self.shunned, &proposed.target, now);
        }
        let is_remembered = |_: &NodeId, setback: &mut Setback| now < setback.until + LONGEST_SETBACK;
        self.setbacks.retain(is_remembered);
        self.shunned.retain(is_remembered);
    }

    fn on_answer(&mut self, id: &NodeId, answer: &MoveAnswer, now: Instant) {
        let is_ours = |it: &Proposed| it.target == answer.target && it.parent == answer.parent;
        if self.proposed.get(id).is_some_and(is_ours) {
            self.proposed.remove(id);
            *self.counts.outcomes.entry(answer.name).or_default() += 1;
        }
        match answer.outcome {
            MoveOutcome::Moved => drop(self.setbacks.remove(id)),
            MoveOutcome::NotNow => {
                let times = self.setbacks.get(id).map_or(0, |setback| setback.times);
                self.setbacks.insert(id.clone(), Setback { times, until: now + NOT_NOW });
            }
            MoveOutcome::NodeWontMove => set_back(&mut self.setbacks, id, now),
            MoveOutcome::TargetWontTake => {
                set_back(&mut self.setbacks, id, now);
                set_back(&mut self.shunned, &answer.target, now);
            }
        }
    }

    /// Notes whether a tree is the same as before.
    fn watch(&mut self, root: &NodeId, members: &[&Entry], now: Instant) {
        let fingerprint = fingerprint(members);
        if self.rests.get(root).is_none_or(|rest| rest.fingerprint != fingerprint) {
            self.rests.insert(root.clone(), Rest { fingerprint, since: now, is_good: false });
        }
    }

    fn is_good(&self, root: &NodeId) -> bool {
        self.rests.get(root).is_some_and(|rest| rest.is_good)
    }

    /// What stands against a move in this tree at the moment.
    fn obstacle(&self, forest: &Forest<'_>, root: &NodeId, members: &[&Entry], now: Instant) -> Option<Obstacle> {
        let top = forest.node(root.as_str())?;
        if top.report.parent.is_some() {
            return Some(Obstacle::MissingParent(root.clone()));
        }
        let not_live = members.iter().find(|entry| entry.report.state != State::Live || entry.drain_requested);
        if let Some(entry) = not_live {
            return Some(Obstacle::NotLive(entry.report.id.clone()));
        }
        let is_placed = |entry: &Entry| {
            let place = forest.place(entry.report.id.as_str());
            entry.report.key == top.report.key && place.is_some_and(|place| place.distance == entry.report.depth)
        };
        if let Some(entry) = members.iter().find(|entry| !is_placed(entry)) {
            return Some(Obstacle::NotPlaced(entry.report.id.clone()));
        }
        let is_here = |id: &NodeId| forest.place(id.as_str()).is_some_and(|place| place.top == root);
        if let Some((id, _)) = self.proposed.iter().find(|(id, it)| it.root == *root || is_here(id)) {
            return Some(Obstacle::Proposed(id.clone()));
        }
        let is_restless = self.rests.get(root).is_none_or(|rest| now < rest.since + REST);
        is_restless.then_some(Obstacle::Restless)
    }

    /// The next move among those who may be asked.
    fn next_move(&mut self, forest: &Forest<'_>, root: &NodeId, members: &[&Entry], now: Instant) -> Option<Move> {
        let mut shape = Shape::new(forest, root, members)?;
        if shape.next_move().is_none() {
            if let Some(rest) = self.rests.get_mut(root) {
                rest.is_good = true;
            }
            return None;
        }
        let is_free = |of: &BTreeMap<NodeId, Setback>, id: &NodeId| of.get(id).is_none_or(|it| now >= it.until);
        shape.leave_out(|id| is_free(&self.setbacks, id), |id| is_free(&self.shunned, id));
        shape.next_move()
    }

    fn propose(&mut self, forest: &Forest<'_>, root: &NodeId, next: &Move, now: Instant) -> Option<Proposal> {
        let (node, target) = (forest.node(next.node.as_str())?, &forest.node(next.to.as_str())?.report);
        let proposed = Proposed {
            root: root.clone(),
            target: next.to.clone(),
            parent: next.from.clone(),
            until: now + ANSWER_TIMEOUT,
        };
        self.proposed.insert(next.node.clone(), proposed);
        self.counts.proposed += 1;
        Some(Proposal {
            node: next.node.clone(),
            stream: node.stream,
            target: Candidate {
                id: target.id.clone(),
                hostname: target.hostname.clone(),
                port: target.port,
                key: target.key.clone(),
                depth: target.depth,
                load: target.load,
                free_slots: target.free_slots(),
            },
            parent: next.from.clone(),
            relieves_parent: next.relieves_parent,
        })
    }
}

fn set_back(of: &mut BTreeMap<NodeId, Setback>, id: &NodeId, now: Instant) {
    let setback = of.entry(id.clone()).or_insert(Setback { times: 0, until: now });
    let pause = SETBACK.saturating_mul(1 << setback.times.min(16)).min(LONGEST_SETBACK);
    *setback = Setback { times: setback.times.saturating_add(1), until: now + pause };
}

/// The nodes of each tree, in the order of their ids.
fn members_by_root<'a>(forest: &Forest<'a>) -> BTreeMap<&'a NodeId, Vec<&'a Entry>> {
    let mut trees: BTreeMap<&NodeId, Vec<&Entry>> = BTreeMap::new();
    for (id, entry) in forest.nodes() {
        if let Some(place) = forest.place(id.as_str()) {
            trees.entry(place.top).or_default().push(entry);
        }
    }
    trees
}

/// What a tree looks like, as far as moves depend on it. Loads don't count.
fn fingerprint(members: &[&Entry]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for entry in members {
        let report = &entry.report;
        (&report.id, report.incarnation.0, &report.parent, &report.children, report.max_children).hash(&mut hasher);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::super::Report;
    use super::super::testing::{World, below, key};
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    struct Masters {
        world: World,
        balancers: Vec<Balancer>,
    }

    impl Masters {
        /// A line of so many nodes that take two children each, and so many masters.
        fn over_line(nodes: usize, masters: usize) -> Self {
            let names: Vec<String> = (0..nodes).map(|at| format!("n{at:02}")).collect();
            let report = |at: usize| {
                let path: Vec<&str> = names[..=at].iter().map(String::as_str).collect();
                let children: Vec<&str> = names.get(at + 1).map(String::as_str).into_iter().collect();
                Report { max_children: 2, ..below(&path).over(&children) }
            };
            let world = World::with((0..nodes).map(report));
            let mut masters = Self { world, balancers: vec![Balancer::default(); masters] };
            masters.look();
            masters
        }

        /// What all masters propose now.
        fn look(&mut self) -> Vec<Proposal> {
            let forest = self.world.topology.forest(self.world.now);
            let now = self.world.now;
            self.balancers.iter_mut().flat_map(|balancer| balancer.look(&forest, true, now)).collect()
        }

        fn look_after(&mut self, time: Duration) -> Vec<Proposal> {
            let rounds = time.as_millis() / 500;
            for _ in 0..rounds {
                self.world.now += time / rounds as u32;
                self.repeat_reports();
            }
            self.look()
        }

        fn repeat_reports(&mut self) {
            let all: Vec<Report> = self.world.topology.entries().map(|entry| (*entry.report).clone()).collect();
            for report in all {
                self.world.report(report);
            }
        }

        /// A node answers, and moves if it says so.
        fn answer(&mut self, proposal: &Proposal, outcome: MoveOutcome) {
            let report = (*self.world.topology.entry(proposal.node.as_str()).unwrap().report).clone();
            let number = report.move_answer.as_ref().map_or(0, |answer| answer.number) + 1;
            let (target, parent) = (proposal.target.id.clone(), proposal.parent.clone());
            let answer = MoveAnswer { number, target, parent, outcome, name: "answered" };
            self.world.report(Report { move_answer: Some(answer), ..report });
            if outcome == MoveOutcome::Moved {
                self.carry_out(&proposal.node, &proposal.parent, &proposal.target.id);
            }
        }

        fn carry_out(&mut self, node: &NodeId, from: &NodeId, to: &NodeId) {
            let mut all: Vec<Report> = self.world.topology.entries().map(|entry| (*entry.report).clone()).collect();
            let parent = |all: &[Report], id: &NodeId| all.iter().find(|it| it.id == *id).unwrap().parent.clone();
            for report in &mut all {
                if report.id == *node {
                    report.parent = Some(to.clone());
                } else if report.id == *from {
                    report.children.retain(|child| child != node);
                } else if report.id == *to {
                    report.children.push(node.clone());
                }
            }
            for at in 0..all.len() {
                let mut path = vec![all[at].id.clone()];
                while let Some(above) = parent(&all, path.last().unwrap()) {
                    path.push(above);
                }
                path.reverse();
                all[at].depth = u32::try_from(path.len() - 1).unwrap();
                all[at].path = path;
            }
            for report in all {
                self.world.report(report);
            }
        }

        fn depth(&self) -> u32 {
            self.world.topology.forest(self.world.now).trees()[0].depth
        }
    }

    #[test]
    fn a_line_becomes_shallow_one_move_at_a_time_and_then_nothing_is_proposed() {
        for count in [1, 2] {
            let mut masters = Masters::over_line(50, count);
            let mut moves = 0;
            for _ in 0..100 {
                let proposals = masters.look_after(SECOND);
                assert!(proposals.windows(2).all(|two| two[0].node == two[1].node && two[0].target == two[1].target));
                if let Some(proposal) = proposals.first() {
                    assert!(masters.look_after(SECOND).is_empty(), "one at a time");
                    masters.answer(proposal, MoveOutcome::Moved);
                    moves += 1;
                }
            }
            assert!(masters.depth() <= 7 && moves <= 15, "{} after {moves} moves", masters.depth());
            for load in 0..100 {
                let report = (*masters.world.topology.entry("n00").unwrap().report).clone();
                masters.world.report(Report { load: load << 57, ..report });
                assert!(masters.look_after(SECOND).is_empty());
            }
            assert!(masters.balancers.iter().all(|balancer| balancer.next_look(masters.world.now).is_none()));
        }
    }

    #[test]
    fn nothing_is_proposed_before_the_tree_is_at_rest() {
        let mut masters = Masters::over_line(10, 1);
        assert!(masters.look_after(SECOND / 2).is_empty());
        masters.world.report(Report { max_children: 2, ..below(&["n00", "new"]) });
        assert!(masters.look_after(SECOND / 2).is_empty());
        assert!(masters.look_after(SECOND / 2).is_empty(), "somebody has just joined");
        assert_eq!(masters.look_after(SECOND / 2).len(), 1);
    }

    #[test]
    fn nobody_moves_in_a_tree_where_somebody_is_orphaned_drains_or_has_not_heard_of_its_place() {
        let change = |of: fn(&mut Report)| {
            let mut masters = Masters::over_line(10, 1);
            let mut report = (*masters.world.topology.entry("n09").unwrap().report).clone();
            of(&mut report);
            masters.world.report(report);
            masters.look();
            masters.look_after(2 * SECOND)
        };
        assert_eq!(change(|_| ()).len(), 1);
        assert!(change(|report| report.state = State::Draining).is_empty());
        assert!(change(|report| report.state = State::Joining).is_empty());
        assert!(change(|report| report.key = key(1, "n05")).is_empty());
        assert!(change(|report| report.depth = 3).is_empty());
        let mut masters = Masters::over_line(10, 1);
        masters.world.topology.request_drain(&"n05".into(), None, masters.world.now).unwrap();
        assert!(masters.look_after(2 * SECOND).is_empty());
    }

    #[test]
    fn a_node_that_will_not_move_is_left_alone_ever_longer_and_another_is_asked() {
        let mut masters = Masters::over_line(50, 2);
        let first = masters.look_after(SECOND).swap_remove(0);
        masters.answer(&first, MoveOutcome::NodeWontMove);
        let second = masters.look_after(SECOND).swap_remove(0);
        assert_ne!(second.node, first.node);
        masters.answer(&second, MoveOutcome::NodeWontMove);
        let mut asked = 0;
        for _ in 0..600 {
            for proposal in masters.look_after(SECOND) {
                asked += u32::from(proposal.node == first.node);
                masters.answer(&proposal, MoveOutcome::NodeWontMove);
            }
        }
        // By two masters, after 30, 60, 120 and 240 s.
        assert!((2..=10).contains(&asked), "{asked}");
    }

    #[test]
    fn a_target_that_takes_nobody_is_not_proposed_again_soon() {
        let mut masters = Masters::over_line(50, 1);
        let first = masters.look_after(SECOND).swap_remove(0);
        masters.answer(&first, MoveOutcome::TargetWontTake);
        let second = masters.look_after(SECOND).swap_remove(0);
        assert_ne!(second.target.id, first.target.id);
        assert_ne!(second.node, first.node);
    }

    #[test]
    fn a_node_that_says_nothing_holds_the_tree_up_for_a_while_only() {
        let mut masters = Masters::over_line(50, 1);
        let first = masters.look_after(SECOND).swap_remove(0);
        assert!(masters.look_after(ANSWER_TIMEOUT - SECOND).is_empty());
        let second = masters.look_after(SECOND).swap_remove(0);
        assert_ne!(second.node, first.node);
        assert_eq!(masters.balancers[0].counts().proposed, 2);
        assert_eq!(masters.balancers[0].counts().outcomes, [("unanswered", 1)].into());
    }

    #[test]
    fn without_balancing_only_an_operators_wish_is_carried_out_and_until_it_is() {
        let mut masters = Masters::over_line(12, 1);
        let look = |masters: &mut Masters| {
            masters.world.now += SECOND;
            masters.repeat_reports();
            let forest = masters.world.topology.forest(masters.world.now);
            masters.balancers[0].look(&forest, false, masters.world.now)
        };
        assert!(look(&mut masters).is_empty() && look(&mut masters).is_empty());
        masters.balancers[0].request(masters.world.now);
        let mut moves = 0;
        for _ in 0..20 {
            for proposal in look(&mut masters) {
                masters.answer(&proposal, MoveOutcome::Moved);
                moves += 1;
            }
        }
        assert!(moves > 0 && masters.depth() <= 4);
        assert_eq!(masters.balancers[0].requested_until, None);
    }

    #[test]
    fn an_operators_wish_outlasts_those_who_would_not_move_just_now() {
        let mut masters = Masters::over_line(5, 1);
        let look = |masters: &mut Masters| {
            masters.world.now += SECOND;
            masters.repeat_reports();
            let forest = masters.world.topology.forest(masters.world.now);
            masters.balancers[0].look(&forest, false, masters.world.now)
        };
        masters.balancers[0].request(masters.world.now);
        let mut moved = false;
        for second in 0..300 {
            for proposal in look(&mut masters) {
                let outcome = if second < 10 { MoveOutcome::NodeWontMove } else { MoveOutcome::Moved };
                masters.answer(&proposal, outcome);
                moved |= outcome == MoveOutcome::Moved;
            }
        }
        assert!(moved, "it is asked again");
    }

    #[test]
    fn the_plan_shows_all_moves_and_what_is_waited_for() {
        let mut masters = Masters::over_line(50, 1);
        let plan = |masters: &Masters| {
            masters.balancers[0]
                .plan(&masters.world.topology.forest(masters.world.now), masters.world.now)
                .swap_remove(0)
        };
        let before = plan(&masters);
        assert_eq!((before.tree.depth, before.least_depth), (49, 5));
        assert_eq!(before.waits_for, Some(Obstacle::Restless));
        assert!(before.depth_after <= 6 && !before.moves.is_empty());
        masters.look_after(SECOND / 2);
        masters.world.now += SECOND / 2;
        assert_eq!(plan(&masters), TreePlan { waits_for: None, ..before });
    }
}
