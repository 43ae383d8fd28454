//! What the live page is told: the nodes and what happened, as JSON.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::metrics::state_name;
use crate::registry::{Picture, Registry};
use crate::topology::Entry;
use crate::topology::changes::Tracker;
use crate::topology::history::{Happening, History, What};

/// How often the page is told of loads, rates and ages while nothing else changes.
const TICK: Duration = Duration::from_secs(1);

/// Time between two states at least.
const PAUSE: Duration = Duration::from_millis(50);

/// Least time between two looks at the tree, which is how exactly it is known for how long a node had no parent.
const LOOK: Duration = Duration::from_millis(10);

/// How much longer than a look the rest after it is at least, so that looking at a very large and restless tree takes no
/// more than a fifth of one core.
const REST: u32 = 4;

/// Follows the registry for as long as it is polled.
pub(super) async fn follow(registry: Arc<Registry>, states: watch::Sender<Bytes>, peers: Vec<String>) {
    let mut tracker = Tracker::default();
    let mut history = History::new(SystemTime::now());
    let mut next_state = Instant::now();
    loop {
        let begin = Instant::now();
        let picture = registry.picture();
        let forest = picture.topology.forest(picture.now);
        for change in tracker.changes(&picture.topology, &forest, picture.now) {
            for happening in history.take(&change, picture.now, picture.at, picture.warming) {
                registry.metrics().happened(&happening);
            }
        }
        drop(forest);
        let is_due = begin >= next_state;
        if states.receiver_count() > 0 && is_due {
            let state = state(&registry, &picture, &history, &peers);
            states.send_replace(Bytes::from(format!("data: {state}\n\n")));
            next_state = begin + PAUSE;
        }
        sleep(LOOK.max(REST * begin.elapsed())).await;
        // Who was not told of the last change is told of it soon, whether there is another one or not.
        let patience = if is_due { TICK } else { next_state.saturating_duration_since(Instant::now()) };
        let _ = timeout(patience, registry.page_changed()).await;
    }
}

fn state(registry: &Registry, picture: &Picture, history: &History, peers: &[String]) -> Value {
    let nodes: Vec<Value> = picture.topology.entries().map(|entry| node(entry, picture)).collect();
    let events: Vec<Value> = history.happenings().map(happening).collect();
    json!({
        "master": registry.master_id(), "warming": picture.warming, "peers": peers, "nodes": nodes, "events": events,
    })
}

fn node(entry: &Entry, picture: &Picture) -> Value {
    let report = &entry.report;
    let state = if entry.is_silent(picture.now) {
        "silent"
    } else if entry.drain_requested {
        "draining"
    } else {
        state_name(report.state)
    };
    json!({
        "id": report.id.as_str(),
        "parent": report.parent.as_ref().map(|parent| parent.as_str()),
        "address": format!("{}:{}", report.hostname, report.port),
        "version": report.version,
        "load": report.load,
        "depth": report.depth,
        "rate": entry.traffic.per_second(),
        "age_ms": millis(picture.now.saturating_duration_since(entry.heard)),
        "state": state,
    })
}

fn happening(happening: &Happening) -> Value {
    let (kind, text) = words(&happening.what);
    let at = millis(happening.at.duration_since(UNIX_EPOCH).unwrap_or_default());
    json!({ "number": happening.number, "at": at, "kind": kind, "text": text })
}

fn words(what: &What) -> (&'static str, String) {
    let named = |id: &Option<crate::topology::NodeId>| id.as_ref().map_or_else(|| "?".to_owned(), ToString::to_string);
    match what {
        What::MasterStarted => ("master", "this master started".into()),
        What::Joined { node, was_there: true, .. } => ("joined", format!("{node} reported to this master")),
        What::Joined { node, .. } => ("joined", format!("{node} joined")),
        What::Attached { node, to } => ("attached", format!("{node} attached to {to}")),
        What::Orphaned { node, from } => ("orphaned", format!("{node} lost its parent {}", named(from))),
        What::Reattached { node, from, to, after } => {
            ("re-attached", format!("{node} re-attached from {} to {to} in {} ms", named(from), after.as_millis()))
        }
        What::Moved { node, from, to } => ("moved", format!("{node} moved from {from} to {to}")),
        What::BecameRoot { node, after } => ("root", format!("{node} became the root in {} ms", after.as_millis())),
        What::Draining { node, .. } => ("draining", format!("{node} drains")),
        What::Drained { node } => ("drained", format!("{node} drained")),
        What::Lost { node, is_silent: true } => ("lost", format!("{node} fell silent")),
        What::Lost { node, .. } => ("lost", format!("{node} lost")),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
