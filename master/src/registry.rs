//! The topology and the streams that own it, shared by all calls.
//!
//! There is one lock for them and one for what is proposed to them. Neither is taken while the other is held, and nothing is
//! awaited and nothing is sent to a peer that could block meanwhile.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arborcast_proto::registry::{Advice, Drain, Welcome, advice};
use tokio::sync::Notify;
use tonic::Status;
use tracing::info;

use crate::admission::Assignments;
use crate::messages;
use crate::metrics::Metrics;
use crate::outbox::Outbox;
use crate::topology::assignment::Assigned;
use crate::topology::balance::{BalanceCounts, Balancer, Proposal, TreePlan};
use crate::topology::candidates::{Asker, Candidate};
use crate::topology::forest::Forest;
use crate::topology::{DrainRefusal, Entry, Incarnation, Limits, NodeId, Refusal, Report, StreamId, Topology};

/// What one master knows.
#[derive(Debug)]
pub(crate) struct Registry {
    /// How often clients were sent to nodes.
    pub(crate) assignments: Assignments,
    master_id: String,
    started: Instant,
    warm_up: Duration,
    balances: bool,
    state: Mutex<State>,
    balancer: Mutex<Balancer>,
    changed: Notify,
    page_changed: Notify,
    metrics: Metrics,
    keeps_users: bool,
}

#[derive(Debug)]
struct State {
    topology: Topology,
    streams: HashMap<StreamId, Outbox<Advice>>,
    last_stream: u64,
}

/// What was known at one moment.
#[derive(Debug)]
pub(crate) struct Picture {
    /// The nodes.
    pub(crate) topology: Topology,
    /// The moment.
    pub(crate) now: Instant,
    /// The same on the calendar.
    pub(crate) at: SystemTime,
    /// How long the master had been running.
    pub(crate) uptime: Duration,
    /// Whether it was warming.
    pub(crate) warming: bool,
}

impl Registry {
    /// Knows nobody, and starts to warm up.
    pub(crate) fn new(master_id: String, warm_up: Duration, balances: bool, keeps_users: bool, limits: Limits) -> Self {
        let state = State { topology: Topology::new(limits), streams: HashMap::new(), last_stream: 0 };
        Self {
            assignments: Assignments::default(),
            master_id,
            started: Instant::now(),
            warm_up,
            balances,
            state: Mutex::new(state),
            balancer: Mutex::default(),
            changed: Notify::new(),
            page_changed: Notify::new(),
            metrics: Metrics::default(),
            keeps_users,
        }
    }

    /// What the master calls itself.
    pub(crate) fn master_id(&self) -> &str {
        &self.master_id
    }

    /// What is counted here.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// How many report streams are open.
    pub(crate) fn streams(&self) -> usize {
        self.lock().streams.len()
    }

    /// Whether it has only just started and may not know everybody.
    pub(crate) fn is_warming(&self) -> bool {
        self.started.elapsed() < self.warm_up
    }

    /// Waits until something has changed since it was waited for last.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The same for the live page.
    pub(crate) async fn page_changed(&self) {
        self.page_changed.notified().await;
    }

    /// Somebody began to look at the live page.
    pub(crate) fn wake_page(&self) {
        self.page_changed.notify_one();
    }

    fn announce(&self) {
        self.changed.notify_one();
        self.page_changed.notify_one();
    }

    /// What is known now.
    pub(crate) fn picture(&self) -> Picture {
        let topology = self.lock().topology.clone();
        let now = Instant::now();
        let uptime = now.saturating_duration_since(self.started);
        Picture { topology, now, at: SystemTime::now(), uptime, warming: uptime < self.warm_up }
    }

    /// A new stream, later than all before it.
    pub(crate) fn open_stream(&self, outbox: Outbox<Advice>) -> StreamId {
        let mut state = self.lock();
        state.last_stream += 1;
        let stream = StreamId(state.last_stream);
        state.streams.insert(stream, outbox);
        stream
    }

    /// The stream has ended, and what it owned goes.
    pub(crate) fn close_stream(&self, stream: StreamId, id: Option<&NodeId>) {
        let mut state = self.lock();
        state.streams.remove(&stream);
        let was_owner = id.is_some_and(|id| state.topology.end_stream(stream, id));
        drop(state);
        if was_owner {
            self.announce();
        }
    }

    /// Takes a report. A stream that the node had before is ended.
    ///
    /// # Errors
    /// When it does not count.
    pub(crate) fn report(&self, stream: StreamId, report: Report) -> Result<(), Refusal> {
        let mut state = self.lock();
        let accepted = state.topology.report(stream, report, Instant::now())?;
        let replaced = accepted.replaced.and_then(|replaced| state.streams.get(&replaced).cloned());
        drop(state);
        if let Some(replaced) = replaced {
            replaced.end(Status::aborted("a later stream of this node replaced this one"));
        }
        if accepted.is_news {
            self.announce();
        }
        Ok(())
    }

    /// The first thing that a registered node hears.
    pub(crate) fn welcome(&self, outbox: &Outbox<Advice>) -> bool {
        let welcome =
            Welcome { master_id: self.master_id.clone(), warming: self.is_warming(), keeps_users: self.keeps_users };
        self.offer(outbox, Advice { kind: Some(advice::Kind::Welcome(welcome)) })
    }

    /// Tells the node that owns a stream. False if it has no room for more, or is gone.
    pub(crate) fn advise(&self, stream: StreamId, advice: Advice) -> bool {
        let outbox = self.lock().streams.get(&stream).cloned();
        outbox.is_some_and(|outbox| self.offer(&outbox, advice))
    }

    fn offer(&self, outbox: &Outbox<Advice>, advice: Advice) -> bool {
        let kind = advice.kind.as_ref().map_or("none", messages::advice_kind);
        let is_sent = outbox.offer(advice);
        self.metrics.advised(kind, is_sent);
        is_sent
    }

    /// Where a root could attach. In a large tree it takes some milliseconds to find that out, in which others go on: who
    /// asks in the same moment may be promised the same place.
    ///
    /// # Errors
    /// When a later start of the asker is registered.
    pub(crate) fn find_parent(&self, asker: &Asker) -> Result<Vec<Candidate>, Refusal> {
        let Picture { topology, now, .. } = self.picture();
        let candidates = topology.find_parent(asker, now)?;
        if let Some(best) = candidates.first() {
            self.lock().topology.promise(asker.id.clone(), best.id.clone(), now);
        }
        Ok(candidates)
    }

    /// A node for one client.
    pub(crate) fn assign(&self, leave_out: &BTreeSet<NodeId>) -> Option<Assigned> {
        self.lock().topology.assign(leave_out, Instant::now(), &mut rand::rng())
    }

    /// Whether moves are proposed without an operator's wish.
    pub(crate) fn balances(&self) -> bool {
        self.balances
    }

    /// Proposes what would make the trees shallower, and says when to look again if nothing changes before. A master that
    /// may not know everybody proposes nothing.
    pub(crate) fn balance(&self, picture: &Picture, forest: &Forest<'_>) -> Option<Instant> {
        if picture.warming {
            return Some(self.started + self.warm_up);
        }
        let mut balancer = self.balancer();
        let proposals = balancer.look(forest, self.balances, picture.now);
        let next_look = balancer.next_look(picture.now);
        drop(balancer);
        for proposal in proposals {
            self.propose(proposal);
        }
        next_look
    }

    fn propose(&self, proposal: Proposal) {
        let (stream, node) = (proposal.stream, proposal.node.clone());
        let (from, to) = (proposal.parent.clone(), proposal.target.id.clone());
        let advice = Advice { kind: Some(advice::Kind::Move(messages::proposal(proposal))) };
        if self.advise(stream, advice) {
            info!(%node, %from, %to, "proposed a move");
        } else {
            self.balancer().forget(&node, Instant::now());
        }
    }

    /// What would make the trees shallower.
    pub(crate) fn plan(&self, picture: &Picture) -> Vec<TreePlan> {
        let balancer = self.balancer().clone();
        balancer.plan(&picture.topology.forest(picture.now), picture.now)
    }

    /// An operator wants the trees to be made shallower now.
    pub(crate) fn rebalance(&self) {
        self.balancer().request(Instant::now());
        self.announce();
    }

    /// What has been proposed so far.
    pub(crate) fn balance_counts(&self) -> BalanceCounts {
        self.balancer().counts().clone()
    }

    /// Asks a node to drain. None if its stream does not take it.
    ///
    /// # Errors
    /// When it can't be asked.
    pub(crate) fn drain(
        &self,
        id: &NodeId,
        incarnation: Option<Incarnation>,
    ) -> Result<Option<Incarnation>, DrainRefusal> {
        let (stream, registered) = self.lock().topology.request_drain(id, incarnation, Instant::now())?;
        let is_told = self.advise(stream, Advice { kind: Some(advice::Kind::Drain(Drain {})) });
        if !is_told {
            self.lock().topology.forget_drain(id, stream);
        }
        self.announce();
        Ok(is_told.then_some(registered))
    }

    /// Asks a node to drain that was asked over an earlier stream, which may have been gone by then.
    pub(crate) fn repeat_drain(&self, stream: StreamId, id: &NodeId, outbox: &Outbox<Advice>) {
        let is_wanted = |entry: &Entry| entry.stream == stream && entry.drain_requested;
        if self.lock().topology.entry(id.as_str()).is_some_and(is_wanted) {
            self.offer(outbox, Advice { kind: Some(advice::Kind::Drain(Drain {})) });
        }
    }

    fn balancer(&self) -> MutexGuard<'_, Balancer> {
        self.balancer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Each change is one assignment or one map operation, so what a panicking thread leaves is still whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;
    use crate::outbox::outbox;
    use crate::topology::{FragmentKey, State};

    fn root(id: &str) -> Report {
        Report {
            id: id.into(),
            incarnation: Incarnation(1),
            hostname: "host".into(),
            port: 1,
            version: String::new(),
            key: FragmentKey { unsettled: false, reign: 0, root: id.into() },
            parent: None,
            path: vec![id.into()],
            depth: 0,
            children: Vec::new(),
            max_children: 1,
            load: 0,
            state: State::Live,
            heartbeat_interval: Duration::from_secs(60),
            move_answer: None,
            activities: 0,
            settled_tickets: 0,
            masters: 0,
        }
    }

    #[test]
    fn a_node_that_reads_nothing_is_not_taken_to_be_draining() {
        let registry = Registry::new("m".into(), Duration::ZERO, true, false, Limits::default());
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let (outbox, _unread) = outbox(1, permit);
        let stream = registry.open_stream(outbox.clone());
        registry.report(stream, root("a")).unwrap();
        assert!(registry.welcome(&outbox), "there is room for one");
        let id = NodeId::from("a");
        assert_eq!(registry.drain(&id, None), Ok(None));
        assert!(!registry.picture().topology.entry("a").unwrap().drain_requested);
        registry.close_stream(stream, Some(&id));
        assert_eq!(registry.drain(&id, None), Err(DrainRefusal::Unknown(id)));
    }
}
