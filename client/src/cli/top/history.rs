//! What happened to the tree, in the words that people think in: who joined, who was lost, who went where and how long it
//! took, by the clock of the master.
//!
//! How long a node was without a parent is measured from when the master learned that the parent was lost, by its end or by
//! the node's own report, whichever came first. What happened while nobody was watching has no duration.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, SystemTime};

use arborcast_proto::registry::LostReason;

use super::picture::{Node, Picture, State};

/// How many things that happened are remembered.
const MAX_ENTRIES: usize = 1000;

/// How many lost nodes are remembered, so that it is known since when their children lacked a parent.
const MAX_LOSSES: usize = 1000;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Counts up from 1.
    pub(crate) number: u64,
    pub(crate) at: SystemTime,
    pub(crate) what: What,
}

/// What can happen. Where a duration is absent nobody was watching.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    /// The tree is seen from here from now on.
    Watching {
        source: String,
        nodes: usize,
        trees: usize,
    },
    /// Nothing can be seen from there any more.
    SourceLost {
        source: String,
        reason: String,
    },
    /// It is there again, and has forgotten everything.
    SourceRestarted {
        source: String,
    },
    Joined {
        node: String,
        parent: Option<String>,
        away_for: Option<Duration>,
    },
    /// It has its first parent.
    Attached {
        node: String,
        to: String,
    },
    /// It has lost its parent and looks for another one.
    Orphaned {
        node: String,
        from: Option<String>,
    },
    Reattached {
        node: String,
        from: Option<String>,
        to: String,
        after: Option<Duration>,
    },
    /// It has another parent and never lacked one.
    Moved {
        node: String,
        from: String,
        to: String,
    },
    BecameRoot {
        node: String,
        after: Option<Duration>,
    },
    Draining {
        node: String,
    },
    /// It had handed over, and is gone.
    Drained {
        node: String,
    },
    Lost {
        node: String,
        is_silent: bool,
        parent: Option<String>,
        children: usize,
        clients: u64,
    },
    /// All children of a lost node have a place again.
    Healed {
        lost: String,
        children: usize,
        after: Duration,
    },
    ChildCame {
        node: String,
        child: String,
    },
    ChildLeft {
        node: String,
        child: String,
    },
    MasterLost {
        node: String,
        master: String,
    },
    MasterBack {
        node: String,
        master: String,
    },
    Restarted {
        node: String,
    },
    /// What a master remembers from before anybody was watching here, in its words.
    Remembered {
        text: String,
        tone: Tone,
    },
}

/// How it is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Good,
    Worrying,
    Bad,
}

impl What {
    pub(crate) fn tone(&self) -> Tone {
        match self {
            Self::Lost { .. } | Self::SourceLost { .. } | Self::MasterLost { .. } => Tone::Bad,
            Self::Orphaned { .. } | Self::Draining { .. } | Self::ChildLeft { .. } | Self::Restarted { .. } => {
                Tone::Worrying
            }
            Self::Reattached { .. } | Self::BecameRoot { .. } | Self::Healed { .. } | Self::MasterBack { .. } => {
                Tone::Good
            }
            Self::Remembered { tone, .. } => *tone,
            Self::Watching { .. }
            | Self::SourceRestarted { .. }
            | Self::Joined { .. }
            | Self::Attached { .. }
            | Self::Moved { .. }
            | Self::Drained { .. }
            | Self::ChildCame { .. } => Tone::Plain,
        }
    }
}

/// Something that a master says of one node.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Change {
    /// How it is now.
    Seen(Node),
    /// It is gone.
    Lost { id: String, reason: LostReason },
}

/// A node that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Loss {
    pub(crate) at: SystemTime,
    pub(crate) is_silent: bool,
    /// It had handed over.
    pub(crate) is_drained: bool,
    pub(crate) parent: Option<String>,
}

/// What happened, and what is needed to understand the next change.
#[derive(Debug, Default)]
pub(crate) struct History {
    entries: VecDeque<Entry>,
    last: u64,
    start: Option<String>,
    known: BTreeMap<String, Known>,
    /// Who is below whom. Nobody has an empty set.
    children: BTreeMap<String, BTreeSet<String>>,
    losses: BTreeMap<String, Loss>,
    heals: BTreeMap<String, Heal>,
    /// Known from before a master started, and not seen by it yet.
    unconfirmed: BTreeSet<String>,
    /// The master may not know everybody yet: whom it comes to know was there before, unless it joins.
    is_warming: bool,
}

#[derive(Debug)]
struct Known {
    parent: Option<String>,
    state: State,
    clients: u64,
    /// Whom it had, and since when it lacks a parent.
    orphaned: Option<(Option<String>, SystemTime)>,
}

/// The children of a lost node, on their way.
#[derive(Debug)]
struct Heal {
    since: SystemTime,
    pending: BTreeSet<String>,
    children: usize,
}

impl History {
    /// What happened, oldest first.
    pub(crate) fn entries(&self) -> impl DoubleEndedIterator<Item = &Entry> + ExactSizeIterator {
        self.entries.iter()
    }

    /// The number of the newest entry, 0 without any.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// Who is gone.
    pub(crate) fn losses(&self) -> impl Iterator<Item = (&String, &Loss)> {
        self.losses.iter()
    }

    /// Forgets who was lost so long ago.
    pub(crate) fn forget_losses(&mut self, before: SystemTime) {
        self.losses.retain(|id, loss| loss.at >= before || self.heals.contains_key(id));
    }

    pub(crate) fn push(&mut self, at: SystemTime, what: What) {
        self.last += 1;
        if self.entries.len() >= MAX_ENTRIES {
            self.entries.pop_front();
        }
        self.entries.push_back(Entry { number: self.last, at, what });
    }

    /// The tree is seen from here: for the first time, or after nobody was watching.
    pub(crate) fn begin(&mut self, picture: &Picture) {
        let at = picture.at;
        let source = picture.source.clone();
        let is_first = self.start.is_none();
        self.is_warming = picture.is_warming;
        if self.start.replace(picture.start.clone()).is_some_and(|start| start != picture.start) && picture.is_warming {
            self.push(at, What::SourceRestarted { source: source.clone() });
        }
        self.push(at, What::Watching { source, nodes: picture.nodes.len(), trees: picture.trees() });
        if is_first {
            for node in picture.nodes.values() {
                self.learn(node, at);
            }
            return;
        }
        self.heals.clear();
        let missing = self.known.keys().filter(|id| !picture.nodes.contains_key(*id)).cloned().collect::<BTreeSet<_>>();
        self.unconfirmed.clear();
        if picture.is_warming {
            self.unconfirmed = missing;
        } else {
            missing.iter().for_each(|id| self.lose(id, LostReason::StreamEnded, at));
        }
        // Nobody knows when what is different became so.
        self.heals.clear();
        for node in picture.nodes.values() {
            self.see(node, at, false);
        }
    }

    /// A later picture of the same source: whom it does not know once it must know everybody is gone.
    pub(crate) fn settle(&mut self, picture: &Picture) {
        if picture.is_warming || !std::mem::take(&mut self.is_warming) {
            return;
        }
        for id in std::mem::take(&mut self.unconfirmed) {
            if !picture.nodes.contains_key(&id) {
                self.lose(&id, LostReason::StreamEnded, picture.at);
                self.heals.remove(&id);
            }
        }
        let (nodes, trees) = (picture.nodes.len(), picture.trees());
        self.push(picture.at, What::Watching { source: picture.source.clone(), nodes, trees });
    }

    /// Takes what a master says.
    pub(crate) fn take(&mut self, change: &Change, at: SystemTime) {
        match change {
            Change::Seen(node) => {
                let is_watched = !self.unconfirmed.remove(&node.id);
                self.see(node, at, is_watched);
            }
            Change::Lost { id, reason } => self.lose(id, *reason, at),
        }
    }

    fn learn(&mut self, node: &Node, at: SystemTime) {
        if let Some(parent) = &node.parent {
            self.children.entry(parent.clone()).or_default().insert(node.id.clone());
        }
        let orphaned = (node.state == State::Orphaned).then_some((None, at));
        let clients = node.clients.unwrap_or_default();
        let known = Known { parent: node.parent.clone(), state: node.state, clients, orphaned };
        self.known.insert(node.id.clone(), known);
    }

    fn see(&mut self, node: &Node, at: SystemTime, is_watched: bool) {
        let Some(known) = self.known.get_mut(&node.id) else {
            let away_for = self.losses.remove(&node.id).and_then(|loss| at.duration_since(loss.at).ok());
            self.learn(node, at);
            if self.is_warming && away_for.is_none() && node.state != State::Joining {
                return;
            }
            return self.push(at, What::Joined { node: node.id.clone(), parent: node.parent.clone(), away_for });
        };
        known.clients = node.clients.unwrap_or_default();
        let began_to_drain = node.state == State::Draining && known.state != State::Draining;
        known.state = node.state;
        let moved = Self::moved(known, node, at, is_watched, &self.losses);
        let before = std::mem::replace(&mut known.parent, node.parent.clone());
        if before != node.parent {
            self.unlink(before.as_deref(), &node.id);
            if let Some(parent) = &node.parent {
                self.children.entry(parent.clone()).or_default().insert(node.id.clone());
            }
        }
        if let Some(what) = moved {
            let has_place = !matches!(what, What::Orphaned { .. });
            self.push(at, what);
            if has_place {
                self.placed(&node.id, at);
            }
        }
        if began_to_drain {
            self.push(at, What::Draining { node: node.id.clone() });
        }
    }

    /// What the parents before and after, and the state, add up to.
    fn moved(
        known: &mut Known,
        now: &Node,
        at: SystemTime,
        is_watched: bool,
        losses: &BTreeMap<String, Loss>,
    ) -> Option<What> {
        let node = now.id.clone();
        let since = |since: SystemTime| at.duration_since(since).ok().filter(|_| is_watched);
        match (known.parent.clone(), now.parent.clone()) {
            (Some(from), Some(to)) if from == to => None,
            (Some(from), Some(to)) => {
                known.orphaned = None;
                Some(match losses.get(&from) {
                    Some(loss) => What::Reattached { node, from: Some(from), to, after: since(loss.at) },
                    None => What::Moved { node, from, to },
                })
            }
            (None, Some(to)) => Some(match known.orphaned.take() {
                Some((from, lost_at)) => What::Reattached { node, from, to, after: since(lost_at) },
                None => What::Attached { node, to },
            }),
            (from, None) => {
                if from.is_some() || (now.state == State::Orphaned && known.orphaned.is_none()) {
                    let lost_at = from.as_ref().and_then(|from| losses.get(from)).map_or(at, |loss| loss.at);
                    known.orphaned = Some((from.clone(), lost_at));
                    if now.state != State::Live {
                        return Some(What::Orphaned { node, from });
                    }
                }
                let (_, lost_at) = known.orphaned.take_if(|_| now.state == State::Live)?;
                Some(What::BecameRoot { node, after: since(lost_at) })
            }
        }
    }

    /// A node has a place: perhaps it was the last that a lost one had left behind.
    fn placed(&mut self, id: &str, at: SystemTime) {
        let mut healed = Vec::new();
        self.heals.retain(|lost, heal| {
            heal.pending.remove(id);
            if heal.pending.is_empty() {
                let after = at.duration_since(heal.since).unwrap_or_default();
                healed.push(What::Healed { lost: lost.clone(), children: heal.children, after });
            }
            !heal.pending.is_empty()
        });
        healed.into_iter().for_each(|what| self.push(at, what));
    }

    fn lose(&mut self, id: &str, reason: LostReason, at: SystemTime) {
        self.unconfirmed.remove(id);
        let Some(known) = self.known.remove(id) else { return };
        self.unlink(known.parent.as_deref(), id);
        let mut children = self.children.get(id).cloned().unwrap_or_default();
        let is_orphan_of = |known: &Known| {
            known.orphaned.as_ref().is_some_and(|(from, _)| from.as_deref() == Some(id)) && known.parent.is_none()
        };
        children.extend(self.known.iter().filter(|(_, known)| is_orphan_of(known)).map(|(child, _)| child.clone()));
        let is_silent = reason == LostReason::Silent;
        // A picture of the whole says nothing of those who are not in it.
        let is_drained = reason == LostReason::Drained || (known.state == State::Draining && !is_silent);
        if self.losses.len() < MAX_LOSSES {
            let loss = Loss { at, is_silent, is_drained, parent: known.parent.clone() };
            self.losses.insert(id.to_owned(), loss);
        }
        let node = id.to_owned();
        let count = children.len();
        self.push(
            at,
            match is_drained {
                true => What::Drained { node },
                false => What::Lost { node, is_silent, parent: known.parent, children: count, clients: known.clients },
            },
        );
        self.placed(id, at);
        if count > 0 && self.heals.len() < MAX_LOSSES {
            self.heals.insert(id.to_owned(), Heal { since: at, pending: children, children: count });
        }
    }

    fn unlink(&mut self, parent: Option<&str>, child: &str) {
        let Some(parent) = parent else { return };
        if let Some(children) = self.children.get_mut(parent) {
            children.remove(child);
            if children.is_empty() {
                self.children.remove(parent);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::picture::tests::{node, picture};
    use super::*;

    struct Told {
        history: History,
        at: SystemTime,
        read: u64,
    }

    impl Told {
        /// A chain of three below a root, and one beside it.
        fn new() -> Self {
            let mut history = History::default();
            history.begin(&picture(&[("a", ""), ("b", "a"), ("c", "b"), ("d", "b"), ("e", "a")]));
            let read = history.last();
            Self { history, at: SystemTime::UNIX_EPOCH, read }
        }

        fn pass(&mut self, millis: u64) {
            self.at += Duration::from_millis(millis);
        }

        fn news(&mut self) -> Vec<What> {
            let read = std::mem::replace(&mut self.read, self.history.last());
            self.history.entries().filter(|entry| entry.number > read).map(|entry| entry.what.clone()).collect()
        }

        fn see(&mut self, id: &str, parent: &str) -> Vec<What> {
            self.see_as(id, parent, State::Live)
        }

        fn see_as(&mut self, id: &str, parent: &str, state: State) -> Vec<What> {
            self.history.take(&Change::Seen(Node { state, ..node(id, parent) }), self.at);
            self.news()
        }

        fn lose(&mut self, id: &str) -> Vec<What> {
            self.history.take(&Change::Lost { id: id.into(), reason: LostReason::StreamEnded }, self.at);
            self.news()
        }
    }

    fn millis(millis: u64) -> Option<Duration> {
        Some(Duration::from_millis(millis))
    }

    fn lost(node: &str, parent: &str, children: usize) -> What {
        let parent = (!parent.is_empty()).then(|| parent.to_owned());
        What::Lost { node: node.into(), is_silent: false, parent, children, clients: 0 }
    }

    fn reattached(node: &str, from: &str, to: &str, after: Option<Duration>) -> What {
        What::Reattached { node: node.into(), from: Some(from.into()), to: to.into(), after }
    }

    #[test]
    fn the_children_of_a_lost_node_are_timed_from_its_loss() {
        let mut told = Told::new();
        assert_eq!(told.lose("b"), [lost("b", "a", 2)]);
        told.pass(5);
        let orphaned = What::Orphaned { node: "c".into(), from: Some("b".into()) };
        assert_eq!(told.see_as("c", "", State::Orphaned), [orphaned]);
        told.pass(40);
        assert_eq!(told.see("c", "a"), [reattached("c", "b", "a", millis(45))]);
        told.pass(5);
        let healed = What::Healed { lost: "b".into(), children: 2, after: Duration::from_millis(50) };
        assert_eq!(told.see("d", "e"), [reattached("d", "b", "e", millis(50)), healed]);
        assert!(told.history.children.values().all(|children| !children.is_empty()));
    }

    #[test]
    fn children_that_notice_before_the_master_count_as_well() {
        let mut told = Told::new();
        told.see_as("c", "", State::Orphaned);
        told.pass(10);
        assert_eq!(told.lose("b"), [lost("b", "a", 2)]);
        told.pass(10);
        assert_eq!(told.see("c", "a"), [reattached("c", "b", "a", millis(20))]);
        assert_eq!(told.lose("d").len(), 2, "who was waited for is gone too");
    }

    #[test]
    fn the_next_root_says_so_once() {
        let mut told = Told::new();
        told.lose("a");
        told.pass(10);
        told.see_as("b", "", State::Orphaned);
        told.pass(10);
        assert_eq!(told.see("b", ""), [What::BecameRoot { node: "b".into(), after: millis(20) }]);
        assert_eq!(told.see("b", ""), []);
        assert_eq!(told.see("e", "b").len(), 2, "re-attached, and healed");
    }

    #[test]
    fn who_joins_moves_drains_and_comes_back_is_told_as_such() {
        let mut told = Told::new();
        let joined = |parent: Option<&str>, away_for| What::Joined {
            node: "f".into(),
            parent: parent.map(str::to_owned),
            away_for,
        };
        assert_eq!(told.see_as("f", "", State::Joining), [joined(None, None)]);
        assert_eq!(told.see("f", "a"), [What::Attached { node: "f".into(), to: "a".into() }]);
        assert_eq!(told.see("f", "e"), [What::Moved { node: "f".into(), from: "a".into(), to: "e".into() }]);
        assert_eq!(told.see_as("f", "e", State::Draining), [What::Draining { node: "f".into() }]);
        assert_eq!(told.see_as("f", "e", State::Draining), []);
        assert_eq!(told.lose("f"), [What::Drained { node: "f".into() }]);
        told.pass(1500);
        assert_eq!(told.see("f", "a"), [joined(Some("a"), millis(1500))]);
        // So quick that no change told of it.
        told.history.take(&Change::Lost { id: "f".into(), reason: LostReason::Drained }, told.at);
        assert_eq!(told.news(), [What::Drained { node: "f".into() }]);
    }

    #[test]
    fn a_master_that_starts_again_has_lost_nobody_until_it_must_know_everybody() {
        let mut told = Told::new();
        let mut again = picture(&[("a", ""), ("b", "a")]);
        (again.is_warming, again.start) = (true, "another".into());
        told.history.begin(&again);
        let news = told.news();
        assert!(matches!(news[..], [What::SourceRestarted { .. }, What::Watching { .. }]), "{news:?}");
        assert_eq!(told.see("e", "a"), []);
        assert_eq!(told.see("f", "a"), [], "it was there before, somewhere");
        told.lose("f");
        assert_eq!(told.see("c", "e"), [What::Moved { node: "c".into(), from: "b".into(), to: "e".into() }]);
        told.history.settle(&again);
        assert_eq!(told.news(), []);
        told.history.settle(&picture(&[("a", ""), ("b", "a"), ("c", "e"), ("e", "a")]));
        let news = told.news();
        assert_eq!(news[0], lost("d", "b", 0));
        assert!(matches!(news[1..], [What::Watching { nodes: 4, .. }]), "{news:?}");
    }

    #[test]
    fn what_nobody_watched_has_no_duration() {
        let mut told = Told::new();
        told.history.begin(&picture(&[("a", ""), ("c", "a"), ("d", "c"), ("e", "a")]));
        let news = told.news();
        assert_eq!(news[1..], [lost("b", "a", 2), reattached("c", "b", "a", None), reattached("d", "b", "c", None)]);
    }

    #[test]
    fn it_remembers_so_much_and_no_more() {
        let mut told = Told::new();
        for number in 0..2 * MAX_ENTRIES {
            told.see(&format!("n{number}"), "a");
        }
        assert_eq!(told.history.entries().len(), MAX_ENTRIES);
        for number in 0..2 * MAX_ENTRIES {
            told.lose(&format!("n{number}"));
        }
        assert_eq!((told.history.known.len(), told.history.losses.len()), (5, MAX_LOSSES));
        told.history.forget_losses(told.at + Duration::from_secs(1));
        assert_eq!(told.history.losses.len(), 0);
    }
}
