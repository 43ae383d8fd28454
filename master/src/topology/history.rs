//! What happened to the tree, in the words that people think in: who joined, who was lost, who went where and how long it
//! took.
//!
//! Made of changes, and so of what a master can see: how long a node was without a parent is measured from when the master
//! learned that the parent was lost, by its end or by the node's own report, whichever came first.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant, SystemTime};

use super::changes::{Change, Departure};
use super::forest::NodeView;
use super::{NodeId, State};

/// How many things that happened are remembered.
pub const MAX_EVENTS: usize = 500;

/// How long a lost node is remembered, so that it is known since when its children lacked a parent.
const LOSS_MEMORY: Duration = Duration::from_secs(60);

/// How many lost nodes are.
const MAX_LOSSES: usize = 10_000;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happening {
    /// Counts up from 1.
    pub number: u64,
    /// When the master noticed.
    pub at: SystemTime,
    /// What.
    pub what: What,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// This master started, and knows nobody yet.
    MasterStarted,
    /// A node that this master had not known reported.
    Joined {
        /// Which.
        node: NodeId,
        /// It was part of a tree already: not the node is new but this master, or the contact between the two.
        was_there: bool,
        /// Its parent, if it has one.
        parent: Option<NodeId>,
    },
    /// A node went below its first parent.
    Attached {
        /// Which.
        node: NodeId,
        /// Below whom.
        to: NodeId,
    },
    /// A node lost its parent and looks for another one.
    Orphaned {
        /// Which.
        node: NodeId,
        /// Whom it had.
        from: Option<NodeId>,
    },
    /// A node that had lost its parent has another one.
    Reattached {
        /// Which.
        node: NodeId,
        /// Whom it had.
        from: Option<NodeId>,
        /// Whom it has.
        to: NodeId,
        /// For how long it had none.
        after: Duration,
    },
    /// A node has another parent, and never lacked one.
    Moved {
        /// Which.
        node: NodeId,
        /// Whom it had.
        from: NodeId,
        /// Whom it has.
        to: NodeId,
    },
    /// A node that had lost its parent is the root now.
    BecameRoot {
        /// Which.
        node: NodeId,
        /// After how long without a parent.
        after: Duration,
    },
    /// A node began to hand over, to stop.
    Draining {
        /// Which.
        node: NodeId,
        /// It was asked at this master.
        is_requested: bool,
    },
    /// A node that had handed over is gone.
    Drained {
        /// Which.
        node: NodeId,
    },
    /// A node is gone.
    Lost {
        /// Which.
        node: NodeId,
        /// It has only fallen silent.
        is_silent: bool,
    },
}

/// Of which kind it is, to tell what is worrying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The master started.
    MasterStarted,
    /// A node came, or has its first parent.
    Joined,
    /// A node is gone, or has lost its parent.
    Lost,
    /// A node has another place.
    Reattached,
    /// A node hands over, or has.
    Drained,
}

impl What {
    /// Of which kind it is, to which node it happened, and what, for people.
    pub fn words(&self) -> (Kind, Option<&NodeId>, String) {
        let named =
            |id: &Option<NodeId>| id.as_ref().map_or_else(|| "an unknown parent".to_owned(), ToString::to_string);
        let (kind, node, text) = match self {
            Self::MasterStarted => return (Kind::MasterStarted, None, "this master started".into()),
            Self::Joined { node, was_there: true, .. } => (Kind::Joined, node, format!("{node} was there")),
            Self::Joined { node, .. } => (Kind::Joined, node, format!("{node} joined")),
            Self::Attached { node, to } => (Kind::Joined, node, format!("{node} attached to {to}")),
            Self::Orphaned { node, from } => (Kind::Lost, node, format!("{node} lost its parent {}", named(from))),
            Self::Reattached { node, from, to, after } => {
                let after = after.as_millis();
                (Kind::Reattached, node, format!("{node} re-attached from {} to {to} in {after} ms", named(from)))
            }
            Self::Moved { node, from, to } => (Kind::Reattached, node, format!("{node} moved from {from} to {to}")),
            Self::BecameRoot { node, after } => {
                (Kind::Reattached, node, format!("{node} became the root in {} ms", after.as_millis()))
            }
            Self::Draining { node, .. } => (Kind::Drained, node, format!("{node} drains")),
            Self::Drained { node } => (Kind::Drained, node, format!("{node} drained")),
            Self::Lost { node, is_silent: true } => (Kind::Lost, node, format!("{node} fell silent")),
            Self::Lost { node, .. } => (Kind::Lost, node, format!("{node} lost")),
        };
        (kind, Some(node), text)
    }

    /// How long a tree took to be whole again at this place.
    pub fn healed_after(&self) -> Option<Duration> {
        match self {
            Self::Reattached { after, .. } | Self::BecameRoot { after, .. } => Some(*after),
            Self::MasterStarted
            | Self::Joined { .. }
            | Self::Attached { .. }
            | Self::Orphaned { .. }
            | Self::Moved { .. }
            | Self::Draining { .. }
            | Self::Drained { .. }
            | Self::Lost { .. } => None,
        }
    }
}

/// What happened lately, and what is needed to understand the next change.
#[derive(Debug)]
pub struct History {
    happenings: VecDeque<Happening>,
    last_number: u64,
    known: BTreeMap<NodeId, Known>,
    losses: BTreeMap<NodeId, Instant>,
}

#[derive(Debug, Clone)]
struct Known {
    parent: Option<NodeId>,
    is_draining: bool,
    drain_requested: bool,
    orphaned: Option<Orphaned>,
}

#[derive(Debug, Clone)]
struct Orphaned {
    from: Option<NodeId>,
    since: Instant,
}

impl History {
    /// Begins with the start of the master.
    pub fn new(at: SystemTime) -> Self {
        let mut history =
            Self { happenings: VecDeque::new(), last_number: 0, known: BTreeMap::new(), losses: BTreeMap::new() };
        history.push(at, What::MasterStarted);
        history
    }

    /// What happened, oldest first.
    pub fn happenings(&self) -> impl Iterator<Item = &Happening> {
        self.happenings.iter()
    }

    /// Takes a change, and says what happened by it: nothing that people would want to read of, often.
    pub fn take(&mut self, change: &Change, now: Instant, at: SystemTime, is_warming: bool) -> Vec<Happening> {
        let whats = match change {
            Change::Joined(view) => self.joined(view, now, is_warming),
            Change::Changed(view) | Change::Reparented { node: view, .. } => self.changed(view, now),
            Change::Lost { id, how } => self.lost(id, *how, now),
        };
        whats.into_iter().map(|what| self.push(at, what)).collect()
    }

    fn joined(&mut self, view: &NodeView, now: Instant, is_warming: bool) -> Vec<What> {
        let report = &view.report;
        self.losses.remove(&report.id);
        let orphaned = (report.state == State::Orphaned).then_some(Orphaned { from: None, since: now });
        let known = Known { parent: report.parent.clone(), is_draining: false, drain_requested: false, orphaned };
        self.known.insert(report.id.clone(), known);
        let was_there = is_warming && report.state != State::Joining;
        let joined = What::Joined { node: report.id.clone(), was_there, parent: report.parent.clone() };
        let draining = self.draining(view);
        std::iter::once(joined).chain(draining).collect()
    }

    fn changed(&mut self, view: &NodeView, now: Instant) -> Vec<What> {
        let moved = self.moved(view, now);
        let draining = self.draining(view);
        moved.into_iter().chain(draining).collect()
    }

    /// What the parents before and after, and the state, add up to.
    fn moved(&mut self, view: &NodeView, now: Instant) -> Option<What> {
        let report = &view.report;
        let node = report.id.clone();
        let known = self.known.get_mut(&report.id)?;
        let before = std::mem::replace(&mut known.parent, report.parent.clone());
        match (before, &report.parent) {
            (Some(from), None) => {
                let since = self.losses.get(&from).copied().unwrap_or(now);
                known.orphaned = Some(Orphaned { from: Some(from.clone()), since });
                if report.state == State::Live {
                    return Self::settled(known, node, now);
                }
                Some(What::Orphaned { node, from: Some(from) })
            }
            (None, None) => {
                let was_orphan = known.orphaned.is_some();
                match report.state {
                    State::Live => Self::settled(known, node, now),
                    State::Orphaned if !was_orphan => {
                        known.orphaned = Some(Orphaned { from: None, since: now });
                        Some(What::Orphaned { node, from: None })
                    }
                    State::Orphaned | State::Joining | State::Draining => None,
                }
            }
            (None, Some(to)) => Some(match known.orphaned.take() {
                Some(Orphaned { from, since }) => {
                    What::Reattached { node, from, to: to.clone(), after: now.saturating_duration_since(since) }
                }
                None => What::Attached { node, to: to.clone() },
            }),
            (Some(from), Some(to)) if from != *to => {
                known.orphaned = None;
                Some(match self.losses.get(&from) {
                    Some(&since) => What::Reattached {
                        node,
                        from: Some(from),
                        to: to.clone(),
                        after: now.saturating_duration_since(since),
                    },
                    None => What::Moved { node, from, to: to.clone() },
                })
            }
            (Some(_), Some(_)) => None,
        }
    }

    fn settled(known: &mut Known, node: NodeId, now: Instant) -> Option<What> {
        let orphaned = known.orphaned.take()?;
        Some(What::BecameRoot { node, after: now.saturating_duration_since(orphaned.since) })
    }

    /// A node that was asked begins a moment later, which is not told of again.
    fn draining(&mut self, view: &NodeView) -> Option<What> {
        let known = self.known.get_mut(&view.report.id)?;
        let was = known.is_draining || known.drain_requested;
        known.is_draining = view.report.state == State::Draining;
        known.drain_requested = view.drain_requested;
        let is = known.is_draining || known.drain_requested;
        let draining = What::Draining { node: view.report.id.clone(), is_requested: view.drain_requested };
        (is && !was).then_some(draining)
    }

    fn lost(&mut self, id: &NodeId, how: Departure, now: Instant) -> Vec<What> {
        self.losses.retain(|_, since| now.saturating_duration_since(*since) < LOSS_MEMORY);
        if self.losses.len() < MAX_LOSSES {
            self.losses.insert(id.clone(), now);
        }
        self.known.remove(id);
        let node = id.clone();
        vec![match how {
            Departure::Drained => What::Drained { node },
            Departure::Ended | Departure::Silent => What::Lost { node, is_silent: how == Departure::Silent },
        }]
    }

    fn push(&mut self, at: SystemTime, what: What) -> Happening {
        self.last_number += 1;
        let happening = Happening { number: self.last_number, at, what };
        if self.happenings.len() >= MAX_EVENTS {
            self.happenings.pop_front();
        }
        self.happenings.push_back(happening.clone());
        happening
    }
}

#[cfg(test)]
mod tests {
    use super::super::changes::Tracker;
    use super::super::testing::{World, below, node};
    use super::super::{Incarnation, Report};
    use super::*;

    /// A world, and its history as text.
    struct Told {
        world: World,
        tracker: Tracker,
        history: History,
        is_warming: bool,
    }

    impl Told {
        fn new() -> Self {
            let history = History::new(SystemTime::UNIX_EPOCH);
            Self { world: World::default(), tracker: Tracker::default(), history, is_warming: false }
        }

        fn report(&mut self, report: Report) -> Vec<String> {
            self.world.report(report);
            self.news()
        }

        fn end(&mut self, id: &str) -> Vec<String> {
            let stream = self.world.topology.entry(id).unwrap().stream;
            assert!(self.world.topology.end_stream(stream, &id.into()));
            self.news()
        }

        fn pass(&mut self, millis: u64) {
            self.world.now += Duration::from_millis(millis);
        }

        fn news(&mut self) -> Vec<String> {
            let (world, now) = (&self.world, self.world.now);
            let changes = self.tracker.changes(&world.topology, &world.topology.forest(now), now);
            let happenings = changes
                .iter()
                .flat_map(|change| self.history.take(change, now, SystemTime::UNIX_EPOCH, self.is_warming));
            happenings.map(|happening| text(&happening.what)).collect()
        }
    }

    fn text(what: &What) -> String {
        match what {
            What::MasterStarted => "started".into(),
            What::Joined { node, was_there: false, .. } => format!("{node} joined"),
            What::Joined { node, was_there: true, .. } => format!("{node} was there"),
            What::Attached { node, to } => format!("{node} attached to {to}"),
            What::Orphaned { node, from } => format!("{node} lost {from:?}"),
            What::Reattached { node, from, to, after } => format!("{node} from {from:?} to {to} in {after:?}"),
            What::Moved { node, from, to } => format!("{node} moved from {from} to {to}"),
            What::BecameRoot { node, after } => format!("{node} became root after {after:?}"),
            What::Draining { node, is_requested } => format!("{node} drains, asked: {is_requested}"),
            What::Drained { node } => format!("{node} drained"),
            What::Lost { node, is_silent } => format!("{node} lost, silent: {is_silent}"),
        }
    }

    fn orphan(id: &str) -> Report {
        Report { state: State::Orphaned, ..node(id) }
    }

    #[test]
    fn a_node_that_starts_joins_and_attaches() {
        let mut told = Told::new();
        told.report(node("a"));
        assert_eq!(told.report(Report { state: State::Joining, ..node("b") }), ["b joined"]);
        assert_eq!(told.report(below(&["a", "b"])), ["b attached to a"]);
        assert_eq!(told.report(Report { load: 3, ..below(&["a", "b"]) }), <[&str; 0]>::default());
    }

    #[test]
    fn a_master_that_starts_finds_who_is_there() {
        let mut told = Told::new();
        told.is_warming = true;
        assert_eq!(told.report(below(&["a", "b"])), ["b was there"]);
        assert_eq!(told.report(Report { state: State::Joining, ..node("c") }), ["c joined"]);
    }

    #[test]
    fn an_orphan_that_was_seen_alone_is_timed_from_the_loss_of_its_parent() {
        let mut told = Told::new();
        told.report(node("a"));
        told.report(below(&["a", "b"]));
        told.report(below(&["a", "b", "c"]));
        assert_eq!(told.end("b"), ["b lost, silent: false"]);
        told.pass(5);
        assert_eq!(told.report(orphan("c")), ["c lost Some(b)"]);
        told.pass(40);
        assert_eq!(told.report(below(&["a", "c"])), ["c from Some(b) to a in 45ms"]);
    }

    #[test]
    fn an_orphan_that_was_never_seen_alone_is_timed_as_well() {
        let mut told = Told::new();
        told.report(node("a"));
        told.report(below(&["a", "b"]));
        told.report(below(&["a", "b", "c"]));
        told.end("b");
        told.pass(7);
        assert_eq!(told.report(below(&["a", "c"])), ["c from Some(b) to a in 7ms"]);
    }

    #[test]
    fn who_changes_its_parent_without_need_moves() {
        let mut told = Told::new();
        told.report(node("a"));
        told.report(below(&["a", "b"]));
        told.report(below(&["a", "c"]));
        assert_eq!(told.report(below(&["a", "b", "c"])), ["c moved from a to b"]);
    }

    #[test]
    fn an_orphan_that_goes_on_as_the_root_says_so_once() {
        let mut told = Told::new();
        told.report(node("a"));
        told.report(below(&["a", "b"]));
        told.end("a");
        told.pass(10);
        assert_eq!(told.report(orphan("b")), ["b lost Some(a)"]);
        told.pass(10);
        assert_eq!(told.report(node("b")), ["b became root after 20ms"]);
        assert_eq!(told.report(Report { load: 1, ..node("b") }), <[&str; 0]>::default());
    }

    #[test]
    fn a_node_that_is_asked_to_drain_drains_once_and_is_not_lost() {
        let mut told = Told::new();
        told.report(node("a"));
        told.world.topology.request_drain(&"a".into(), None, told.world.now).unwrap();
        assert_eq!(told.news(), ["a drains, asked: true"]);
        assert_eq!(told.report(Report { state: State::Draining, ..node("a") }), <[&str; 0]>::default());
        assert_eq!(told.end("a"), ["a drained"]);
        told.report(node("b"));
        assert_eq!(told.report(Report { state: State::Draining, ..node("b") }), ["b drains, asked: false"]);
    }

    #[test]
    fn a_node_that_drains_too_fast_to_be_seen_is_not_lost() {
        let mut told = Told::new();
        told.report(node("a"));
        told.world.report(Report { state: State::Draining, ..node("a") });
        assert_eq!(told.end("a"), ["a drained"]);
        told.report(Report { incarnation: Incarnation(2), ..node("a") });
        assert_eq!(told.end("a"), ["a lost, silent: false"]);
    }

    #[test]
    fn a_restart_is_a_loss_and_a_new_start() {
        let mut told = Told::new();
        told.report(node("a"));
        let again = told.report(Report { incarnation: Incarnation(2), ..node("a") });
        assert_eq!(again, ["a lost, silent: false", "a joined"]);
    }

    #[test]
    fn it_remembers_so_much_and_no_more() {
        let mut told = Told::new();
        for number in 0..2 * MAX_EVENTS {
            told.report(node(&format!("n{number}")));
        }
        let numbers: Vec<u64> = told.history.happenings().map(|happening| happening.number).collect();
        let last = 2 * MAX_EVENTS as u64 + 1;
        assert_eq!((numbers.len(), numbers.first(), numbers.last()), (MAX_EVENTS, Some(&(last - 499)), Some(&last)));
        for number in 0..2 * MAX_EVENTS {
            told.end(&format!("n{number}"));
        }
        assert!(told.history.known.is_empty());
        told.pass(60_000);
        told.report(node("x"));
        told.end("x");
        assert_eq!(told.history.losses.len(), 1, "forgotten after a while");
    }
}
