//! The tree at one moment, as somebody sees it who was asked: a master, or one of its nodes.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use arborcast_proto::registry::{self, NodeState, Topology};

/// What one source knows at one moment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Picture {
    /// Who said it, as people name it: `master 127.0.0.1:7100`.
    pub(crate) source: String,
    /// Which start of it.
    pub(crate) start: String,
    /// When, by its clock.
    pub(crate) at: SystemTime,
    /// It has only just started, and may not know everybody.
    pub(crate) is_warming: bool,
    pub(crate) nodes: BTreeMap<String, Node>,
    /// What is wrong, in sentences.
    pub(crate) faults: Vec<String>,
    /// What else it has to say of itself, by name.
    pub(crate) facts: Vec<(&'static str, String)>,
}

/// One server. What is absent the source does not know.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) parent: Option<String>,
    pub(crate) state: State,
    pub(crate) address: String,
    pub(crate) version: String,
    /// How many clients are logged in.
    pub(crate) clients: Option<u64>,
    /// Links between it and the root.
    pub(crate) depth: Option<u32>,
    /// Activities that it passes on in a second.
    pub(crate) rate: Option<f64>,
    /// How long ago it gave a sign of life.
    pub(crate) age: Option<Duration>,
    /// How long the source has known it.
    pub(crate) known_for: Option<Duration>,
}

/// What a server is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Joining,
    Live,
    Orphaned,
    Draining,
    /// The source does not know.
    Unknown,
}

impl State {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Live => "live",
            Self::Orphaned => "orphaned",
            Self::Draining => "draining",
            Self::Unknown => "",
        }
    }
}

impl From<NodeState> for State {
    fn from(state: NodeState) -> Self {
        match state {
            NodeState::Joining => Self::Joining,
            NodeState::Live => Self::Live,
            NodeState::Orphaned => Self::Orphaned,
            NodeState::Draining => Self::Draining,
            NodeState::Unspecified => Self::Unknown,
        }
    }
}

impl Node {
    /// A server of which nothing is known but that it is there.
    pub(crate) fn named(id: &str, parent: Option<&str>) -> Self {
        Self {
            id: id.to_owned(),
            parent: parent.map(str::to_owned),
            state: State::Unknown,
            address: String::new(),
            version: String::new(),
            clients: None,
            depth: None,
            rate: None,
            age: None,
            known_for: None,
        }
    }

    /// What a master says of a node, if it names it.
    pub(crate) fn read(node: registry::Node) -> Option<Self> {
        let report = node.report?;
        // An operator's wish is seen before the node has begun.
        let state = if node.drain_requested { State::Draining } else { report.state().into() };
        let is_ipv6 = report.hostname.contains(':');
        let (open, close) = if is_ipv6 { ("[", "]") } else { ("", "") };
        Some(Self {
            address: format!("{open}{}{close}:{}", report.hostname, report.port),
            id: report.node_id,
            parent: (!report.parent_id.is_empty()).then_some(report.parent_id),
            state,
            version: report.version,
            clients: Some(report.load),
            depth: Some(report.depth),
            rate: Some(node.activities_per_second),
            age: node.age.and_then(|age| age.try_into().ok()),
            known_for: node.registered_for.and_then(|known_for| known_for.try_into().ok()),
        })
    }
}

impl Picture {
    /// What a master says. Without its own time, the one that is given.
    pub(crate) fn read(source: String, topology: Topology, now: SystemTime) -> Self {
        let left_out = topology.faults_left_out;
        let more = (left_out > 0).then(|| format!("and {left_out} more"));
        Self {
            source,
            start: topology.master_id,
            at: topology.at.and_then(|at| at.try_into().ok()).unwrap_or(now),
            is_warming: topology.warming,
            nodes: topology.nodes.into_iter().filter_map(Node::read).map(|node| (node.id.clone(), node)).collect(),
            faults: topology.faults.into_iter().map(|fault| fault.detail).chain(more).collect(),
            facts: Vec::new(),
        }
    }

    /// How many nodes have nobody above them that is known.
    pub(crate) fn trees(&self) -> usize {
        self.nodes.values().filter(|node| node.parent.as_ref().is_none_or(|up| !self.nodes.contains_key(up))).count()
    }

    pub(crate) fn clients(&self) -> u64 {
        self.nodes.values().filter_map(|node| node.clients).fold(0, u64::saturating_add)
    }

    /// What the busiest node passes on in a second.
    pub(crate) fn rate(&self) -> f64 {
        self.nodes.values().filter_map(|node| node.rate).fold(0.0, f64::max)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use arborcast_proto::registry::{Fault, NodeReport};

    use super::*;

    /// A live node below another one, or a root.
    pub(crate) fn node(id: &str, parent: &str) -> Node {
        let parent = (!parent.is_empty()).then_some(parent);
        Node { state: State::Live, clients: Some(0), ..Node::named(id, parent) }
    }

    /// These nodes, each with its parent.
    pub(crate) fn picture(nodes: &[(&str, &str)]) -> Picture {
        let nodes = nodes.iter().map(|(id, parent)| ((*id).to_owned(), node(id, parent)));
        Picture {
            nodes: nodes.collect(),
            ..Picture::read("master m:1".into(), Topology::default(), SystemTime::UNIX_EPOCH)
        }
    }

    #[test]
    fn what_a_master_says_is_read_and_what_it_leaves_out_does_no_harm() {
        let report = NodeReport {
            node_id: "b".into(),
            hostname: "::1".into(),
            port: 7,
            parent_id: "a".into(),
            state: NodeState::Live.into(),
            load: u64::MAX,
            ..NodeReport::default()
        };
        let known = registry::Node { report: Some(report), activities_per_second: 2.5, ..registry::Node::default() };
        let asked = registry::Node { drain_requested: true, ..known.clone() };
        let unnamed = registry::Node::default();
        let fault = Fault { detail: "bad".into(), ..Fault::default() };
        let nodes = vec![known, unnamed];
        let topology = Topology { nodes, faults: vec![fault], faults_left_out: 2, ..Topology::default() };
        let picture = Picture::read("m".into(), topology, SystemTime::UNIX_EPOCH);
        let node = &picture.nodes["b"];
        assert_eq!((node.address.as_str(), node.parent.as_deref(), node.state), ("[::1]:7", Some("a"), State::Live));
        assert_eq!((picture.trees(), picture.clients(), picture.rate()), (1, u64::MAX, 2.5));
        assert_eq!(picture.faults, ["bad", "and 2 more"]);
        assert_eq!(Node::read(asked).unwrap().state, State::Draining);
    }
}
