//! What a node says about itself.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// What a node calls itself. Ordered byte by byte, as keys are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for NodeId {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<String> for NodeId {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl Borrow<str> for NodeId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which start of a node: larger is later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Incarnation(pub u64);

/// One report stream. Never reused; a later stream has a larger one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// What a fragment is called. The derived order is the one that decides who joins whom, so the order of the fields is
/// part of the protocol: the smaller key wins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FragmentKey {
    /// The largest possible reign: a node that has no tree yet. Two such keys differ only by their roots.
    pub unsettled: bool,
    /// How often the line of roots has been orphaned. 0 if unsettled.
    pub reign: u64,
    /// The root.
    pub root: NodeId,
}

/// What a node is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Started, and not part of a tree yet.
    Joining,
    /// Part of a tree.
    Live,
    /// Root of its own fragment since it lost its parent.
    Orphaned,
    /// Was told to stop.
    Draining,
}

/// What a node made of a proposal to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MoveOutcome {
    /// It is where it was to go.
    Moved,
    /// Not at that moment.
    NotNow,
    /// It does not want to.
    NodeWontMove,
    /// The other node does not take it, or can't be reached.
    TargetWontTake,
}

/// What a node says about the last proposal that it has dealt with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MoveAnswer {
    /// How many it has dealt with.
    pub number: u64,
    /// Where it was to go.
    pub target: NodeId,
    /// From where.
    pub parent: NodeId,
    /// What it made of it.
    pub outcome: MoveOutcome,
    /// The same in a word, for the counters.
    pub name: &'static str,
}

/// The full state of one node, as it says. Any of it may be stale or a lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What it calls itself.
    pub id: NodeId,
    /// Which start of it.
    pub incarnation: Incarnation,
    /// Where it is reached.
    pub hostname: String,
    /// The port there.
    pub port: u16,
    /// Its software.
    pub version: String,
    /// The key of its fragment.
    pub key: FragmentKey,
    /// Its parent; none if it is a root.
    pub parent: Option<NodeId>,
    /// From the root to the node, both included.
    pub path: Vec<NodeId>,
    /// Its distance from the root.
    pub depth: u32,
    /// Its children.
    pub children: Vec<NodeId>,
    /// How many it takes.
    pub max_children: u32,
    /// Logged-in clients.
    pub load: u64,
    /// What it is doing.
    pub state: State,
    /// Time between two reports when nothing changes.
    pub heartbeat_interval: Duration,
    /// What became of the last proposal to move that it has dealt with.
    pub move_answer: Option<MoveAnswer>,
    /// How many activities it has passed on. The topology keeps it apart from the rest, and 0 here.
    pub activities: u64,
    /// How many tickets of this master are settled there. The topology keeps it apart from the rest, and 0 here.
    pub settled_tickets: u64,
    /// To how many masters it reports; 0 if it does not say.
    pub masters: u32,
}

/// A node that reports less often than it says for this long is silent, however short its interval.
pub const MIN_SILENCE: Duration = Duration::from_millis(500);

/// A node that says nothing for this long is silent, however long its interval: a dead node is gone from all answers
/// within five seconds.
pub const MAX_SILENCE: Duration = Duration::from_millis(4500);

/// How many missed heartbeats are silence.
const MISSED_HEARTBEATS: u32 = 3;

impl Report {
    /// How long after this report the node is silent.
    pub fn silence(&self) -> Duration {
        self.heartbeat_interval.saturating_mul(MISSED_HEARTBEATS).clamp(MIN_SILENCE, MAX_SILENCE)
    }

    /// How many more children it takes.
    pub fn free_slots(&self) -> u32 {
        self.max_children.saturating_sub(u32::try_from(self.children.len()).unwrap_or(u32::MAX))
    }

    /// Whether it is reached where the other one is.
    pub fn is_same_address(&self, other: &Self) -> bool {
        self.port == other.port && self.hostname == other.hostname
    }

    /// How many ids it lists: what its size is measured by.
    pub(super) fn listed_ids(&self) -> usize {
        self.path.len() + self.children.len()
    }
}
