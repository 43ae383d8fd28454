//! What is different from before.
//!
//! Changes are found by comparison and not noted as they happen, so a flood of reports makes few of them, and silence,
//! which is not an event, is one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::forest::{Forest, NodeView};
use super::{Entry, NodeId, Report, Topology};

/// Something that happened to a node.
#[derive(Debug, Clone)]
pub enum Change {
    /// It was not there before.
    Joined(NodeView),
    /// It has another parent, or none any more.
    Reparented {
        /// The node now.
        node: NodeView,
        /// The parent it had.
        old_parent: Option<NodeId>,
    },
    /// It reports something else that is new.
    Changed(NodeView),
    /// It is gone.
    Lost {
        /// Which.
        id: NodeId,
        /// How it went.
        how: Departure,
    },
}

/// How a node went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Departure {
    /// Its stream ended.
    Ended,
    /// Its stream ended while it drained, of which nothing else may have been seen: draining can take milliseconds.
    Drained,
    /// It has only fallen silent.
    Silent,
}

/// Remembers what was there when it was asked last.
#[derive(Debug, Default)]
pub struct Tracker {
    known: BTreeMap<NodeId, Known>,
}

#[derive(Debug)]
struct Known {
    report: Arc<Report>,
    drain_requested: bool,
}

impl Known {
    fn is(&self, entry: &Entry) -> bool {
        // A report that says the same as before is kept and not replaced.
        self.drain_requested == entry.drain_requested && Arc::ptr_eq(&self.report, &entry.report)
    }
}

impl Tracker {
    /// What is different from the last time: first who is gone, then the others by id.
    pub fn changes(&mut self, topology: &Topology, forest: &Forest<'_>, now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        self.known.retain(|id, known| {
            let start = forest.node(id.as_str()).map(|entry| entry.report.incarnation);
            let stays = start == Some(known.report.incarnation);
            if !stays {
                let how = match topology.entry(id.as_str()) {
                    Some(entry) if entry.is_silent(now) => Departure::Silent,
                    _ if topology.has_drained(id) => Departure::Drained,
                    _ => Departure::Ended,
                };
                changes.push(Change::Lost { id: id.clone(), how });
            }
            stays
        });
        for (id, entry) in forest.nodes() {
            let known = self.known.get(id);
            if known.is_some_and(|known| known.is(entry)) {
                continue;
            }
            let node = forest.view(entry);
            changes.push(match known {
                None => Change::Joined(node),
                Some(known) if known.report.parent != entry.report.parent => {
                    Change::Reparented { node, old_parent: known.report.parent.clone() }
                }
                Some(_) => Change::Changed(node),
            });
            let known = Known { report: Arc::clone(&entry.report), drain_requested: entry.drain_requested };
            self.known.insert(id.clone(), known);
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{World, below, node};
    use super::super::{Incarnation, Report};
    use super::*;

    fn changes(tracker: &mut Tracker, world: &World) -> Vec<String> {
        let found = tracker.changes(&world.topology, &world.topology.forest(world.now), world.now);
        let text = |change| match change {
            Change::Joined(node) => format!("joined {}", node.report.id),
            Change::Reparented { node, old_parent } => {
                format!("{} from {old_parent:?} to {:?}", node.report.id, node.report.parent)
            }
            Change::Changed(node) => format!("changed {}", node.report.id),
            Change::Lost { id, how } => format!("{how:?} {id}"),
        };
        found.into_iter().map(text).collect()
    }

    #[test]
    fn each_change_is_told_once() {
        let mut tracker = Tracker::default();
        let mut world = World::with([below(&["a"]), below(&["a", "b"])]);
        assert_eq!(changes(&mut tracker, &world), ["joined a", "joined b"]);
        world.report(node("b"));
        assert_eq!(changes(&mut tracker, &world), ["b from Some(a) to None"]);
        world.report(Report { load: 1, ..below(&["a"]) });
        assert_eq!(changes(&mut tracker, &world), ["changed a"]);
        world.topology.request_drain(&"a".into(), None, world.now).unwrap();
        assert_eq!(changes(&mut tracker, &world), ["changed a"]);
        world.report(Report { incarnation: Incarnation(2), ..node("b") });
        assert_eq!(changes(&mut tracker, &world), ["Ended b", "joined b"]);
        world.let_fall_silent(&["b"]);
        assert_eq!(changes(&mut tracker, &world), ["Silent b"]);
        world.report(Report { incarnation: Incarnation(2), ..node("b") });
        let end = |world: &mut World, id: &str| {
            let stream = world.topology.entry(id).unwrap().stream;
            assert!(world.topology.end_stream(stream, &id.into()));
        };
        end(&mut world, "a");
        assert_eq!(changes(&mut tracker, &world), ["Drained a", "joined b"]);
        end(&mut world, "b");
        assert_eq!(changes(&mut tracker, &world), ["Ended b"]);
        assert_eq!(changes(&mut tracker, &world), <[&str; 0]>::default());
    }
}
