//! What the live page is told: the nodes, their rates, and what happened, as JSON in server-sent events.
//!
//! A page gets the tree when it has changed, what happened once, and the rates every second.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::metrics::state_name;
use crate::registry::{Picture, Registry};
use crate::topology::changes::Tracker;
use crate::topology::history::{Happening, History, Kind, MAX_EVENTS};
use crate::topology::{Entry, NodeId};

/// How often the page is told of rates and ages while nothing else changes. The page takes a stream that says nothing for
/// five of these for dead.
const TICK: Duration = Duration::from_secs(1);

/// Time between two frames at least.
const FRAME: Duration = Duration::from_millis(100);

/// Time between two looks at least: how exactly heals are timed.
const PACE: Duration = Duration::from_millis(10);

/// How much longer than a look the rest after it is at least, as the announcer's.
const REST: u32 = 4;

/// All that a page may be told at one moment.
#[derive(Debug, Default)]
pub(super) struct Frame {
    /// Goes up with every other tree.
    number: u64,
    tree: String,
    /// Of the nodes in the order of the tree.
    rates: String,
    /// With their numbers, oldest first.
    happenings: VecDeque<(u64, Arc<str>)>,
}

/// What one page has been told already.
#[derive(Debug, Default)]
pub(super) struct Told {
    tree: u64,
    happening: u64,
}

impl Frame {
    /// What is new for a page.
    pub(super) fn news(&self, told: &mut Told) -> Bytes {
        let mut text = String::new();
        let mut say = |event: &str, data: &str| {
            // Writing to a string does not fail.
            let _ = write!(text, "event: {event}\ndata: {data}\n\n");
        };
        if told.tree != self.number {
            told.tree = self.number;
            say("tree", &self.tree);
        }
        let new = self.happenings.iter().filter(|(number, _)| *number > told.happening);
        let new: Vec<&str> = new.map(|(_, happening)| happening.as_ref()).collect();
        if !new.is_empty() {
            say("happened", &format!("[{}]", new.join(",")));
            told.happening = self.happenings.back().map_or(told.happening, |(number, _)| *number);
        }
        say("rates", &self.rates);
        text.into()
    }
}

/// Follows the registry for as long as it is polled.
pub(super) async fn follow(registry: Arc<Registry>, frames: watch::Sender<Arc<Frame>>, peers: Vec<String>) {
    let mut tracker = Tracker::default();
    let mut history = History::new(SystemTime::now());
    history.happenings().for_each(|happening| registry.metrics().happened(happening));
    let mut happenings: VecDeque<_> = history.happenings().map(numbered).collect();
    let (mut number, mut tree) = (0, String::new());
    let mut next_frame = Instant::now();
    loop {
        let begin = Instant::now();
        let picture = registry.picture();
        let forest = picture.topology.forest(picture.now);
        for change in tracker.changes(&picture.topology, &forest, picture.now) {
            for happening in history.take(&change, picture.now, picture.at, picture.warming) {
                registry.metrics().happened(&happening);
                happenings.push_back(numbered(&happening));
            }
        }
        drop(forest);
        happenings.drain(..happenings.len().saturating_sub(MAX_EVENTS));
        let is_due = picture.now >= next_frame;
        if is_due && frames.receiver_count() > 0 {
            next_frame = picture.now + FRAME;
            let now = tree_text(&registry, &picture, &peers);
            if tree != now {
                (number, tree) = (number + 1, now);
            }
            let happenings = happenings.clone();
            frames.send_replace(Arc::new(Frame { number, tree: tree.clone(), rates: rates(&picture), happenings }));
        }
        let silence = picture.topology.next_silence(picture.now).unwrap_or(picture.now + TICK);
        let wake = if is_due { silence.min(picture.now + TICK) } else { silence.min(next_frame) };
        sleep(PACE.max(REST * begin.elapsed())).await;
        let _ = timeout(wake.saturating_duration_since(Instant::now()), registry.page_changed()).await;
    }
}

fn tree_text(registry: &Registry, picture: &Picture, peers: &[String]) -> String {
    let nodes: Vec<Value> = picture.topology.entries().map(|entry| node(entry, picture)).collect();
    json!({ "master": registry.master_id(), "warming": picture.warming, "peers": peers, "nodes": nodes }).to_string()
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
        "depth": report.depth,
        "state": state,
    })
}

/// Load, activities a second, and milliseconds since the node was heard of.
fn rates(picture: &Picture) -> String {
    let entries = picture.topology.entries();
    let rates = entries.map(|entry| {
        let age = millis(picture.now.saturating_duration_since(entry.heard));
        json!([entry.report.load, entry.traffic.per_second(), age])
    });
    rates.collect::<Value>().to_string()
}

fn numbered(happening: &Happening) -> (u64, Arc<str>) {
    let (kind, node, text) = happening.what.words();
    let kind = match kind {
        Kind::MasterStarted => "master",
        Kind::Joined => "joined",
        Kind::Lost => "lost",
        Kind::Reattached => "re-attached",
        Kind::Drained => "drained",
    };
    let at = millis(happening.at.duration_since(UNIX_EPOCH).unwrap_or_default());
    let node = node.map(NodeId::as_str);
    let happened = json!({ "number": happening.number, "at": at, "kind": kind, "node": node, "text": text });
    (happening.number, happened.to_string().into())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(number: u64, happenings: &[u64]) -> Frame {
        let happenings = happenings.iter().map(|number| (*number, Arc::from(number.to_string()))).collect();
        Frame { number, tree: "T".into(), rates: "R".into(), happenings }
    }

    #[test]
    fn a_page_is_told_of_each_thing_once_and_of_rates_always() {
        let mut told = Told::default();
        let mut news = |frame: Frame| frame.news(&mut told);
        let rates = "event: rates\ndata: R\n\n";
        let all = format!("event: tree\ndata: T\n\nevent: happened\ndata: [1,2]\n\n{rates}");
        assert_eq!(news(frame(1, &[1, 2])), all);
        assert_eq!(news(frame(1, &[1, 2])), rates);
        assert_eq!(news(frame(1, &[2, 3, 4])), format!("event: happened\ndata: [3,4]\n\n{rates}"));
        assert_eq!(news(frame(5, &[4])), format!("event: tree\ndata: T\n\n{rates}"));
    }
}
