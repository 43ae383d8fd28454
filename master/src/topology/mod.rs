//! The tree as the nodes report it: reports and the time go in; the tree, its faults and candidate parents come out.
//!
//! Pure: no sockets, no tasks, no clock. `now` never goes backwards. Nothing here trusts a report: parents may be
//! missing, paths stale, circles reported; the answers are then poorer, and every computation ends.
//!
//! - [`report`]: what a node says. [`traffic`]: how many activities pass through it.
//! - [`forest`]: who is below whom.
//! - [`assignment`]: where a client should go. [`candidates`]: where a root could attach.
//! - [`naming`]: which other servers a node is told of.
//! - [`plan`]: how a tree could be made shallower. [`balance`]: which move is proposed, and when.
//! - [`faults`]: what is wrong.
//! - [`changes`]: what is different from before.
//! - [`history`]: what happened, in words that people think in.
//!
//! # Invariants
//! 1. An entry belongs to exactly one stream, the latest of its latest start, and goes when that stream ends.
//! 2. There are never more than [`Limits::nodes`] entries, and they never list more than [`Limits::listed_ids`] ids.
//! 3. A silent node is in no answer but a fault.

pub mod assignment;
pub mod balance;
pub mod candidates;
pub mod changes;
pub mod faults;
pub mod forest;
pub mod history;
pub mod naming;
pub mod plan;
pub mod report;
pub mod traffic;

#[cfg(test)]
mod testing;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;

use assignment::HandedOut;
use candidates::Promise;
pub use report::{FragmentKey, Incarnation, MoveAnswer, MoveOutcome, NodeId, Report, State, StreamId};
use traffic::Traffic;

/// How long a conflict is told of after it was last seen.
const CONFLICT_MEMORY: Duration = Duration::from_secs(30);

/// How many conflicts are remembered.
const MAX_CONFLICTS: usize = 64;

/// How many nodes that left as they should are remembered.
const MAX_DRAINED: usize = 256;

/// What a topology holds at most.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Registered nodes. Default 10,000; more are refused.
    pub nodes: usize,
    /// Ids in the paths and lists of children of all nodes together, which is what memory goes into. Default 1,000,000:
    /// about 100 for each of 10,000 nodes, and at worst some 150 MB.
    pub listed_ids: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { nodes: 10_000, listed_ids: 1_000_000 }
    }
}

/// One registered node.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What it said last.
    pub report: Arc<Report>,
    /// The stream that owns the entry.
    pub stream: StreamId,
    /// Since when this start of it is registered.
    pub registered: Instant,
    /// When it was last heard of.
    pub heard: Instant,
    /// An operator asked it to drain.
    pub drain_requested: bool,
    /// How many activities it passes on.
    pub traffic: Traffic,
    /// The clients that were sent there and are not part of its load yet.
    pub handed_out: HandedOut,
}

impl Entry {
    /// Whether it should have been heard of since.
    pub fn is_silent(&self, now: Instant) -> bool {
        now >= self.silent_from()
    }

    /// When it becomes silent unless it is heard of before.
    pub fn silent_from(&self) -> Instant {
        self.heard + self.report.silence()
    }
}

/// A second server that used an id in use.
#[derive(Debug, Clone)]
pub struct Conflict {
    /// The id.
    pub id: NodeId,
    /// Where the refused one is.
    pub hostname: String,
    /// The port there.
    pub port: u16,
    /// How often it was refused.
    pub times: u64,
    /// When it was refused last.
    pub last: Instant,
}

/// What a report that was taken did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// The stream that this one took the node over from: it should end.
    pub replaced: Option<StreamId>,
    /// Whether anything is different now, other than the time.
    pub is_news: bool,
}

/// Why a report was not taken. The state has not changed, except that a conflict is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The node has been started again since, and the later start is registered. Normal for a frozen node that thaws.
    #[error("a later start of node {id} is registered")]
    LaterStart {
        /// The node.
        id: NodeId,
    },
    /// Another server has this id and is alive. An operator has to give one of them another id.
    #[error("the id {id} is in use by another server, {hostname}:{port}, which is alive: give this one another id")]
    Conflict {
        /// The id.
        id: NodeId,
        /// Where the registered one is.
        hostname: String,
        /// The port there.
        port: u16,
        /// How often this server has been refused.
        times: u64,
    },
    /// A later stream of the same node owns it now. Normal after a reconnect.
    #[error("a later stream of node {id} replaced this one")]
    Superseded {
        /// The node.
        id: NodeId,
    },
    /// There are too many nodes.
    #[error("this master takes {limit} nodes, and they are all there")]
    TooManyNodes {
        /// How many it takes.
        limit: usize,
    },
    /// The nodes list too many ids.
    #[error("the nodes of this master list more than {limit} ids in their paths and children")]
    TooManyIds {
        /// How many it takes.
        limit: usize,
    },
}

/// Why a node can't be asked to drain. The state has not changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DrainRefusal {
    /// Nobody has this id.
    #[error("node {0} is not registered at this master")]
    Unknown(NodeId),
    /// It is frozen or cut off.
    #[error("node {0} is silent: it would not hear of it")]
    Silent(NodeId),
    /// It was not the start that was meant.
    #[error("node {id} was started again: it is incarnation {} now", incarnation.0)]
    OtherStart {
        /// The node.
        id: NodeId,
        /// Which start is registered.
        incarnation: Incarnation,
    },
    /// It drains already.
    #[error("node {0} is draining already")]
    Draining(NodeId),
}

/// The tree as one master knows it. A clone is a picture of a moment; it shares the reports.
#[derive(Debug, Clone)]
pub struct Topology {
    limits: Limits,
    entries: BTreeMap<NodeId, Entry>,
    listed_ids: usize,
    conflicts: VecDeque<Conflict>,
    promises: BTreeMap<NodeId, Promise>,
    drained: VecDeque<NodeId>,
}

impl Topology {
    /// Knows nobody.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            entries: BTreeMap::new(),
            listed_ids: 0,
            conflicts: VecDeque::new(),
            promises: BTreeMap::new(),
            drained: VecDeque::new(),
        }
    }

    /// Takes a report that came over a stream.
    ///
    /// Who wins when the node is registered by another stream already (later means larger `StreamId`):
    ///
    /// | | same address | other address |
    /// |---|---|---|
    /// | registered one is alive | later start, else later stream | the registered one: a conflict |
    /// | registered one is silent | later start, else later stream | later start, else later stream |
    ///
    /// # Errors
    /// When the report does not count; see [`Refusal`].
    pub fn report(&mut self, stream: StreamId, mut report: Report, now: Instant) -> Result<Accepted, Refusal> {
        let takeover = self.entries.get(&report.id).filter(|old| old.stream != stream);
        if let Some(Err(refusal)) = takeover.map(|old| check_takeover(old, stream, &report, now)) {
            return Err(self.remember(refusal, &report, now));
        }
        let old = self.entries.get(&report.id);
        if old.is_none() && self.entries.len() >= self.limits.nodes {
            return Err(Refusal::TooManyNodes { limit: self.limits.nodes });
        }
        let freed = old.map_or(0, |old| old.report.listed_ids());
        let listed_ids = self.listed_ids - freed + report.listed_ids();
        if listed_ids > self.limits.listed_ids && report.listed_ids() > freed {
            return Err(Refusal::TooManyIds { limit: self.limits.listed_ids });
        }
        // Counted apart: else every report of a busy node would be news.
        let activities = std::mem::take(&mut report.activities);
        let settled_tickets = std::mem::take(&mut report.settled_tickets);
        let same_start = old.filter(|old| old.report.incarnation == report.incarnation);
        let is_same = old.is_some_and(|old| *old.report == report);
        let accepted = Accepted {
            replaced: old.map(|old| old.stream).filter(|&old| old != stream),
            is_news: !is_same || old.is_some_and(|old| old.is_silent(now)),
        };
        let entry = Entry {
            stream,
            registered: same_start.map_or(now, |old| old.registered),
            heard: now,
            drain_requested: same_start.is_some_and(|old| old.drain_requested),
            traffic: same_start.map_or_else(|| Traffic::new(activities, now), |old| old.traffic.after(activities, now)),
            handed_out: same_start
                .map_or_else(|| HandedOut::new(settled_tickets, now), |old| old.handed_out.after(settled_tickets, now)),
            report: old.filter(|_| is_same).map_or_else(|| Arc::new(report), |old| Arc::clone(&old.report)),
        };
        self.listed_ids = listed_ids;
        self.entries.insert(entry.report.id.clone(), entry);
        Ok(accepted)
    }

    /// The stream ended: what it owns goes. Says whether that was anything.
    pub fn end_stream(&mut self, stream: StreamId, id: &NodeId) -> bool {
        let owned = self.entries.get(id).is_some_and(|entry| entry.stream == stream);
        if owned && let Some(entry) = self.entries.remove(id) {
            self.listed_ids -= entry.report.listed_ids();
            self.drained.retain(|drained| drained != id);
            if entry.drain_requested || entry.report.state == State::Draining {
                if self.drained.len() >= MAX_DRAINED {
                    self.drained.pop_front();
                }
                self.drained.push_back(id.clone());
            }
        }
        owned
    }

    /// Whether a node that is gone was draining when it was heard of last. Only the latest are known.
    pub fn has_drained(&self, id: &NodeId) -> bool {
        self.drained.contains(id)
    }

    /// Marks a node as told to drain, so that nobody is sent there any more. Says which stream to tell, and which start
    /// of the node it is.
    ///
    /// # Errors
    /// When it can't be; see [`DrainRefusal`].
    pub fn request_drain(
        &mut self,
        id: &NodeId,
        incarnation: Option<Incarnation>,
        now: Instant,
    ) -> Result<(StreamId, Incarnation), DrainRefusal> {
        let entry = self.entries.get_mut(id).ok_or_else(|| DrainRefusal::Unknown(id.clone()))?;
        let registered = entry.report.incarnation;
        if incarnation.is_some_and(|wanted| wanted != registered) {
            return Err(DrainRefusal::OtherStart { id: id.clone(), incarnation: registered });
        }
        if entry.is_silent(now) {
            return Err(DrainRefusal::Silent(id.clone()));
        }
        if entry.report.state == State::Draining {
            return Err(DrainRefusal::Draining(id.clone()));
        }
        entry.drain_requested = true;
        Ok((entry.stream, registered))
    }

    /// Takes a request to drain back, since it did not reach the stream it was meant for.
    pub fn forget_drain(&mut self, id: &NodeId, stream: StreamId) {
        if let Some(entry) = self.entries.get_mut(id).filter(|entry| entry.stream == stream) {
            entry.drain_requested = false;
        }
    }

    /// A node that is registered, silent or not.
    pub fn entry(&self, id: &str) -> Option<&Entry> {
        self.entries.get(id)
    }

    /// All that are registered, silent or not, in the order of their ids.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// When the next node becomes silent unless it is heard of.
    pub fn next_silence(&self, now: Instant) -> Option<Instant> {
        self.entries.values().filter(|entry| !entry.is_silent(now)).map(Entry::silent_from).min()
    }

    /// Second servers that were refused lately.
    fn conflicts(&self, now: Instant) -> impl Iterator<Item = &Conflict> {
        self.conflicts.iter().filter(move |conflict| now < conflict.last + CONFLICT_MEMORY)
    }

    fn remember(&mut self, mut refusal: Refusal, report: &Report, now: Instant) -> Refusal {
        let Refusal::Conflict { times, .. } = &mut refusal else { return refusal };
        let is_same =
            |known: &Conflict| known.id == report.id && known.hostname == report.hostname && known.port == report.port;
        let known = self.conflicts.iter().position(is_same).and_then(|at| self.conflicts.remove(at));
        if known.is_none() && self.conflicts.len() >= MAX_CONFLICTS {
            self.conflicts.pop_front();
        }
        *times = known.filter(|known| now < known.last + CONFLICT_MEMORY).map_or(0, |known| known.times) + 1;
        self.conflicts.push_back(Conflict {
            id: report.id.clone(),
            hostname: report.hostname.clone(),
            port: report.port,
            times: *times,
            last: now,
        });
        refusal
    }
}

fn check_takeover(old: &Entry, stream: StreamId, report: &Report, now: Instant) -> Result<(), Refusal> {
    let id = || report.id.clone();
    if !report.is_same_address(&old.report) && !old.is_silent(now) {
        let (hostname, port) = (old.report.hostname.clone(), old.report.port);
        return Err(Refusal::Conflict { id: id(), hostname, port, times: 0 });
    }
    if report.incarnation < old.report.incarnation {
        return Err(Refusal::LaterStart { id: id() });
    }
    if report.incarnation == old.report.incarnation && stream < old.stream {
        return Err(Refusal::Superseded { id: id() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::testing::{World, node};
    use super::*;

    const OLD: StreamId = StreamId(100);
    const NEW: StreamId = StreamId(101);

    fn world_with_x() -> World {
        let mut world = World::default();
        world.topology.report(OLD, node("x"), world.now).unwrap();
        world
    }

    #[test]
    fn the_stream_owns_the_registration() {
        let mut world = world_with_x();
        assert!(!world.topology.end_stream(NEW, &"x".into()));
        assert!(world.topology.entry("x").is_some());
        assert!(world.topology.end_stream(OLD, &"x".into()));
        assert!(world.topology.entry("x").is_none());
    }

    #[test]
    fn a_later_stream_of_the_same_node_replaces_the_earlier() {
        let mut world = world_with_x();
        let accepted = world.topology.report(NEW, node("x"), world.now).unwrap();
        assert_eq!(accepted, Accepted { replaced: Some(OLD), is_news: false });
        assert!(!world.topology.end_stream(OLD, &"x".into()), "the old stream's end takes nothing away");
        let late = world.topology.report(OLD, node("x"), world.now);
        assert_eq!(late, Err(Refusal::Superseded { id: "x".into() }));
    }

    #[test]
    fn a_later_start_wins_and_an_earlier_is_refused_whatever_the_stream() {
        let mut world = world_with_x();
        let restarted = Report { incarnation: Incarnation(2), ..node("x") };
        assert_eq!(world.topology.report(StreamId(1), restarted, world.now).unwrap().replaced, Some(OLD));
        let ghost = world.topology.report(NEW, node("x"), world.now);
        assert_eq!(ghost, Err(Refusal::LaterStart { id: "x".into() }));
    }

    #[test]
    fn a_second_server_with_the_id_is_a_conflict_while_the_first_is_alive() {
        let mut world = world_with_x();
        let second = || Report { port: 1, incarnation: Incarnation(9), ..node("x") };
        for times in 1..=2 {
            let refused = world.topology.report(NEW, second(), world.now).unwrap_err();
            assert!(matches!(refused, Refusal::Conflict { times: now, .. } if now == times), "{refused:?}");
        }
        assert_eq!(world.topology.conflicts(world.now).count(), 1);
        world.now += MAX_SILENCE_OF_X;
        assert_eq!(world.topology.report(NEW, second(), world.now).unwrap().replaced, Some(OLD));
        world.now += CONFLICT_MEMORY;
        assert_eq!(world.topology.conflicts(world.now).count(), 0, "forgotten after a while");
    }

    const MAX_SILENCE_OF_X: Duration = report::MAX_SILENCE;

    #[test]
    fn silence_is_three_heartbeats_within_bounds() {
        for (interval, silence) in [(1, 500), (400, 1200), (1500, 4500), (60_000, 4500), (u64::MAX, 4500)] {
            let report = Report { heartbeat_interval: Duration::from_millis(interval), ..node("x") };
            assert_eq!(report.silence(), Duration::from_millis(silence));
        }
    }

    #[test]
    fn a_repeated_report_is_no_news_unless_the_node_was_silent() {
        let mut world = world_with_x();
        assert!(!world.topology.report(OLD, node("x"), world.now).unwrap().is_news);
        assert!(world.topology.report(OLD, Report { load: 1, ..node("x") }, world.now).unwrap().is_news);
        world.now += MAX_SILENCE_OF_X;
        assert!(world.topology.report(OLD, Report { load: 1, ..node("x") }, world.now).unwrap().is_news);
    }

    #[test]
    fn nodes_and_ids_are_bounded_and_who_is_in_may_go_on_and_shrink() {
        let mut topology = Topology::new(Limits { nodes: 2, listed_ids: 4 });
        let now = Instant::now();
        let with = |id: &str, children: usize| Report { children: vec!["c".into(); children], ..node(id) };
        topology.report(StreamId(1), with("a", 1), now).unwrap();
        topology.report(StreamId(2), with("b", 1), now).unwrap();
        assert_eq!(topology.report(StreamId(3), with("c", 0), now), Err(Refusal::TooManyNodes { limit: 2 }));
        assert_eq!(topology.report(StreamId(1), with("a", 2), now), Err(Refusal::TooManyIds { limit: 4 }));
        topology.report(StreamId(1), with("a", 0), now).unwrap();
        topology.report(StreamId(2), with("b", 2), now).unwrap();
        assert!(topology.end_stream(StreamId(1), &"a".into()));
        topology.report(StreamId(3), with("c", 0), now).unwrap();
    }

    #[test]
    fn many_conflicts_are_not_all_remembered() {
        let mut world = world_with_x();
        for port in 1..=1000 {
            world.topology.report(NEW, Report { port, ..node("x") }, world.now).unwrap_err();
        }
        assert_eq!(world.topology.conflicts(world.now).count(), MAX_CONFLICTS);
    }

    #[test]
    fn a_drain_goes_to_the_live_stream_of_the_start_that_was_meant() {
        let mut world = world_with_x();
        let id = NodeId::from("x");
        let ask = |world: &mut World, start| world.topology.request_drain(&id, start, world.now);
        assert_eq!(ask(&mut world, None), Ok((OLD, Incarnation(1))));
        assert_eq!(ask(&mut world, Some(Incarnation(1))), Ok((OLD, Incarnation(1))));
        let other = DrainRefusal::OtherStart { id: id.clone(), incarnation: Incarnation(1) };
        assert_eq!(ask(&mut world, Some(Incarnation(2))), Err(other));
        world.topology.report(OLD, Report { state: State::Draining, ..node("x") }, world.now).unwrap();
        assert_eq!(ask(&mut world, None), Err(DrainRefusal::Draining(id.clone())));
        world.now += MAX_SILENCE_OF_X;
        assert_eq!(ask(&mut world, None), Err(DrainRefusal::Silent(id.clone())));
        world.topology.end_stream(OLD, &id);
        assert_eq!(ask(&mut world, None), Err(DrainRefusal::Unknown(id.clone())));
    }
}
