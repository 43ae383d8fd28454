//! What a node tells those who look after it: a picture that costs next to nothing, and plain counters.

use std::collections::BTreeMap;
use std::time::Duration;

use arborcast_proto::wire::FragmentKey;

use crate::directory::UserCounters;
use crate::event::CloseReason;
use crate::ids::ServerId;
use crate::node::Node;
use crate::relaying::RelayCounts;

/// The upper bounds of the classes into which heals are counted, in milliseconds. What is longer is in one more class.
pub const HEAL_BOUNDS: [u64; 12] = [50, 100, 250, 500, 1_000, 2_000, 3_000, 5_000, 10_000, 30_000, 60_000, 300_000];

/// How long it took to have a parent again after one was lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Heals {
    /// How many took at most as long as the bound with the same index and longer than the one before it.
    pub per_bound: [u64; HEAL_BOUNDS.len()],
    /// All of them.
    pub count: u64,
    /// How long all together took.
    pub sum: Duration,
}

impl Heals {
    pub(crate) fn add(&mut self, took: Duration) {
        let is_within = |bound: &u64| took <= Duration::from_millis(*bound);
        if let Some(class) = HEAL_BOUNDS.iter().position(is_within).and_then(|index| self.per_bound.get_mut(index)) {
            *class += 1;
        }
        self.count += 1;
        self.sum = self.sum.saturating_add(took);
    }
}

/// What has happened since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections that others made.
    pub accepted: u64,
    /// Connections that this node made.
    pub dialled: u64,
    /// Successful logins.
    pub logins: u64,
    /// Tickets of masters with which clients were admitted.
    pub tickets_taken: u64,
    /// Activities that clients of this node published, those held back or sent again included.
    pub activities_from_clients: u64,
    /// Activities that came over links, repeated ones included.
    pub activities_from_servers: u64,
    /// Messages that came over links and are no activities, by command.
    pub link_messages: BTreeMap<&'static str, u64>,
    /// Names that were registered for clients of this node.
    pub registered: u64,
    /// Registrations of clients of this node that failed, by the name of the reason.
    pub registrations_failed: BTreeMap<&'static str, u64>,
    /// Connections that were refused something and closed, by the name of the reason.
    pub refusals: BTreeMap<&'static str, u64>,
    /// Servers that wanted to be children and were refused, by the name of the reason.
    pub link_refusals: BTreeMap<&'static str, u64>,
    /// Proposals of masters to move, by the name of what became of them.
    pub moves: BTreeMap<&'static str, u64>,
    /// How often the parent was lost or left.
    pub parents_lost: u64,
    /// How long it took to have one again.
    pub heals: Heals,
}

/// Why a node should not be sent clients at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotReady {
    /// It is about to stop.
    Draining,
    /// It was started and has not asked everybody for a parent yet.
    Joining,
    /// It has lost its parent and has not asked everybody for another one yet.
    Orphaned,
}

/// The state of a node at one moment, and its counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Why the node should not be sent clients, if there is a reason.
    pub readiness: Result<(), NotReady>,
    /// All connections that the core knows.
    pub connections: usize,
    /// Logged-in clients.
    pub sessions: usize,
    /// Server links.
    pub links: usize,
    /// Whether the node speaks the extensions. Without them there is no fragment to tell of.
    pub is_extended: bool,
    /// The key of the fragment.
    pub key: FragmentKey,
    /// How many servers are between the root of the fragment and this one, this one included and the root not.
    pub depth: usize,
    /// The id of the parent, if an extended node has one.
    pub parent: Option<ServerId>,
    /// The ids of the children that speak the extensions, in their order.
    pub children: Vec<ServerId>,
    /// The other servers that are known, by what they announce or by what masters say.
    pub servers: usize,
    /// Usernames, pending ones included.
    pub users: usize,
    /// Users that the masters don't have, where they keep users.
    pub users_not_stored: Option<usize>,
    /// Registrations that are not settled yet.
    pub unsettled: usize,
    /// Activities that are kept for those who come back.
    pub log_entries: usize,
    /// What happened to activities, if the node speaks the extensions.
    pub relay: Option<RelayCounts>,
    /// What has happened to users in an extended tree.
    pub user_counters: UserCounters,
    /// How many connections ended, by reason.
    pub closings: BTreeMap<CloseReason, u64>,
    /// What else has happened.
    pub counters: Counters,
}

impl Node {
    /// The state at this moment. Costs time in proportion to the depth and the children, never to the number of connections
    /// or users.
    pub fn status(&self) -> Status {
        Status {
            readiness: self.readiness(),
            connections: self.connections.len(),
            sessions: self.sessions,
            links: self.links.len(),
            is_extended: self.extensions.is_some(),
            key: self.fragment.key().clone(),
            depth: self.fragment.depth(),
            parent: self.parent_id().map(str::to_owned),
            children: self.child_ids(),
            servers: self.servers.count(),
            users: self.users.len() + self.directory.len(),
            users_not_stored: self.directory.not_stored(),
            unsettled: self.registrations.len() + self.windows.len() + self.directory.unsettled(),
            log_entries: self.relay.as_ref().map_or(0, |relay| relay.ledger.entries()),
            relay: self.relay.as_ref().map(|relay| relay.counts),
            user_counters: self.directory.counters(),
            closings: self.closings.clone(),
            counters: self.counters.clone(),
        }
    }

    fn child_ids(&self) -> Vec<ServerId> {
        let mut ids: Vec<ServerId> = self.fragment.children().map(|(_, child)| child.request.id.clone()).collect();
        ids.sort_unstable();
        ids
    }

    fn readiness(&self) -> Result<(), NotReady> {
        if self.draining {
            Err(NotReady::Draining)
        } else if self.is_orphan() {
            Err(NotReady::Orphaned)
        } else if self.is_in_its_first_round() {
            Err(NotReady::Joining)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heal_is_counted_in_the_first_class_that_holds_it() {
        let mut heals = Heals::default();
        for milliseconds in [0, 50, 51, 300_000, 300_001] {
            heals.add(Duration::from_millis(milliseconds));
        }
        assert_eq!((heals.per_bound[0], heals.per_bound[1], heals.per_bound[11]), (2, 1, 1));
        assert_eq!((heals.count, heals.sum), (5, Duration::from_millis(600_102)));
    }
}
