//! Trees for the tests of this module.

use std::time::{Duration, Instant};

use super::{FragmentKey, Incarnation, Limits, NodeId, Report, State, StreamId, Topology};

/// A topology, its time, and a stream for each node.
pub(super) struct World {
    pub(super) topology: Topology,
    pub(super) now: Instant,
    streams: u64,
}

impl Default for World {
    fn default() -> Self {
        Self { topology: Topology::new(Limits::default()), now: Instant::now(), streams: 0 }
    }
}

impl World {
    pub(super) fn with(reports: impl IntoIterator<Item = Report>) -> Self {
        let mut world = Self::default();
        for report in reports {
            world.report(report);
        }
        world
    }

    pub(super) fn report(&mut self, report: Report) {
        let stream = self.topology.entry(report.id.as_str()).map(|entry| entry.stream);
        self.streams += 1;
        self.topology.report(stream.unwrap_or(StreamId(self.streams)), report, self.now).unwrap();
    }

    /// Everybody but the named ones is heard of again after this time.
    pub(super) fn let_fall_silent(&mut self, silent: &[&str]) {
        self.now += Duration::from_secs(60);
        let all: Vec<Report> = self.topology.entries.values().map(|entry| (*entry.report).clone()).collect();
        for report in all {
            if !silent.contains(&report.id.as_str()) {
                self.report(report);
            }
        }
    }
}

pub(super) fn key(reign: u64, root: &str) -> FragmentKey {
    FragmentKey { unsettled: false, reign, root: root.into() }
}

pub(super) fn unsettled(root: &str) -> FragmentKey {
    FragmentKey { unsettled: true, reign: 0, root: root.into() }
}

/// A live root of its own tree.
pub(super) fn node(id: &str) -> Report {
    Report {
        id: id.into(),
        incarnation: Incarnation(1),
        hostname: "host".into(),
        port: 3780,
        version: "test".into(),
        key: key(0, id),
        parent: None,
        path: vec![id.into()],
        depth: 0,
        children: Vec::new(),
        max_children: 4,
        load: 0,
        state: State::Live,
        heartbeat_interval: Duration::from_secs(1),
        move_answer: None,
        activities: 0,
        settled_tickets: 0,
        masters: 0,
    }
}

/// A live node below the others, named from the root down. Its children are the word after it, if any.
pub(super) fn below(path: &[&str]) -> Report {
    let (id, root) = (path[path.len() - 1], path[0]);
    Report {
        key: key(0, root),
        parent: path.len().checked_sub(2).map(|at| NodeId::from(path[at])),
        path: path.iter().map(|&id| id.into()).collect(),
        depth: u32::try_from(path.len() - 1).unwrap(),
        ..node(id)
    }
}

impl Report {
    pub(super) fn over(self, children: &[&str]) -> Self {
        Self { children: children.iter().map(|&id| id.into()).collect(), ..self }
    }
}
