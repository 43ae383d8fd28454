//! Tells watchers and roots what has changed, and nodes where they would be better placed.
//!
//! One task compares the registry with what it was before, at most every [`PACE`], so that a flood of reports becomes a
//! trickle of changes. It never waits for a watcher or a node: who has no room left for a change is ended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arborcast_proto::registry::{Advice, OtherFragment, advice};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::{debug, info, trace};

use crate::messages;
use crate::outbox::Outbox;
use crate::registry::{Picture, Registry};
use crate::topology::NodeId;
use crate::topology::changes::{Change, Departure, Tracker};
use crate::topology::forest::Forest;

/// Least time between two looks.
const PACE: Duration = Duration::from_millis(10);

/// How much longer than a look the rest after it is at least, so that in a very large and restless cluster, too, looking
/// takes no more than a fifth of one core.
const REST: u32 = 4;

/// How often to look while some root should be somewhere else.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How often such a root is told the same.
const REPEAT_ADVICE: Duration = Duration::from_secs(1);

/// How many roots are advised at one look, so that ten thousand roots of a cluster that starts don't hold up the
/// watchers. Those that were told longest ago come first.
const MAX_ADVISED: usize = 16;

/// How long to wait at most when nothing happens.
const IDLE: Duration = Duration::from_secs(60);

/// What a watcher is told. Shared by all of them.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// Everything, first.
    Picture(Arc<Picture>),
    /// What changed when.
    Change(SystemTime, Arc<Change>),
}

/// The task.
#[derive(Debug)]
pub(crate) struct Announcer {
    registry: Arc<Registry>,
    newcomers: mpsc::Receiver<Outbox<Event>>,
    watchers: Vec<Outbox<Event>>,
    tracker: Tracker,
    advised: BTreeMap<NodeId, Advised>,
}

/// What a root was told last.
#[derive(Debug)]
struct Advised {
    at: Instant,
    candidates: BTreeSet<NodeId>,
}

impl Announcer {
    /// Has nobody to tell yet; watchers come in through `newcomers`.
    pub(crate) fn new(registry: Arc<Registry>, newcomers: mpsc::Receiver<Outbox<Event>>) -> Self {
        Self { registry, newcomers, watchers: Vec::new(), tracker: Tracker::default(), advised: BTreeMap::new() }
    }

    /// Runs until stopped, and then ends the watchers.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut wake = Instant::now() + IDLE;
        loop {
            let newcomer = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = self.registry.changed() => None,
                () = tokio::time::sleep_until(wake.into()) => None,
                Some(newcomer) = self.newcomers.recv() => Some(newcomer),
            };
            let begin = Instant::now();
            wake = self.look(newcomer);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = tokio::time::sleep(PACE.max(REST * begin.elapsed())) => {}
            }
        }
        self.newcomers.close();
        while let Some(watcher) = self.newcomers.recv().await {
            self.watchers.push(watcher);
        }
        for watcher in self.watchers {
            watcher.end(Status::unavailable("this master is stopping"));
        }
    }

    /// Compares, tells, and says when to look again if nothing happens before.
    fn look(&mut self, newcomer: Option<Outbox<Event>>) -> Instant {
        let picture = Arc::new(self.registry.picture());
        let forest = picture.topology.forest(picture.now);
        for change in self.tracker.changes(&picture.topology, &forest, picture.now) {
            log(&change);
            let change = Event::Change(picture.at, Arc::new(change));
            self.watchers.retain(|watcher| keeps_up(&self.registry, watcher, &change));
        }
        self.watchers.retain(|watcher| !watcher.has_ended());
        let newcomers = newcomer.into_iter().chain(std::iter::from_fn(|| self.newcomers.try_recv().ok()));
        let first = Event::Picture(Arc::clone(&picture));
        self.watchers.extend(newcomers.filter(|watcher| keeps_up(&self.registry, watcher, &first)));
        let has_advice = self.advise(&picture, &forest);
        let silence = picture.topology.next_silence(picture.now).unwrap_or(picture.now + IDLE);
        let wake = silence.min(self.registry.balance(&picture, &forest).unwrap_or(silence));
        if has_advice { wake.min(picture.now + LOOK_AGAIN) } else { wake }
    }

    /// Tells roots of fragments with smaller keys. Says whether there is anybody to tell.
    fn advise(&mut self, picture: &Picture, forest: &Forest<'_>) -> bool {
        let mut roots = picture.topology.roots_to_advise(forest);
        let is_root: BTreeSet<&NodeId> = roots.iter().map(|asker| &asker.id).collect();
        self.advised.retain(|id, _| is_root.contains(id));
        let has_advice = !roots.is_empty();
        let told_at = |id: &NodeId| self.advised.get(id).map(|advised| advised.at);
        roots.retain(|asker| told_at(&asker.id).is_none_or(|at| picture.now >= at + LOOK_AGAIN));
        roots.sort_by_cached_key(|asker| told_at(&asker.id));
        for asker in roots.into_iter().take(MAX_ADVISED) {
            let candidates = picture.topology.candidates(forest, &asker, picture.now);
            let names: BTreeSet<NodeId> = candidates.iter().map(|candidate| candidate.id.clone()).collect();
            let is_same = |told: &Advised| told.candidates == names && picture.now < told.at + REPEAT_ADVICE;
            if names.is_empty() || self.advised.get(&asker.id).is_some_and(is_same) {
                continue;
            }
            let Some(entry) = forest.node(asker.id.as_str()) else { continue };
            let fragment = OtherFragment { candidates: messages::candidates(candidates) };
            let advice = Advice { kind: Some(advice::Kind::Fragment(fragment)) };
            let is_told = self.registry.advise(entry.stream, advice);
            trace!(root = %asker.id, candidates = ?names, is_told, "told of another fragment");
            self.advised.insert(asker.id, Advised { at: picture.now, candidates: names });
        }
        has_advice
    }
}

fn keeps_up(registry: &Registry, watcher: &Outbox<Event>, event: &Event) -> bool {
    if watcher.offer(event.clone()) {
        return true;
    }
    if !watcher.has_ended() {
        registry.metrics().watchers_dropped.inc();
        debug!("ended a watcher that does not keep up");
        watcher.end(Status::resource_exhausted("this watcher does not keep up with the changes: watch again"));
    }
    false
}

fn log(change: &Change) {
    match change {
        Change::Joined(node) => {
            let report = &node.report;
            info!(node = %report.id, hostname = report.hostname, port = report.port, parent = ?report.parent, "node joined");
        }
        Change::Lost { id, how: Departure::Ended } => info!(node = %id, "node left"),
        Change::Lost { id, how: Departure::Drained } => info!(node = %id, "node has drained and left"),
        Change::Lost { id, how: Departure::Silent } => info!(node = %id, "node fell silent"),
        Change::Reparented { node, old_parent } => {
            debug!(node = %node.report.id, parent = ?node.report.parent, ?old_parent, "node has another parent");
        }
        Change::Changed(node) => trace!(node = %node.report.id, "node changed"),
    }
}
