//! What an arborcast node decides, as a pure state machine.
//!
//! Events and the time go into a [`Node`], actions come out. There are no sockets, no tasks, no clock and no thread
//! randomness in this crate, so that a whole tree of nodes runs in one test in virtual time, and everything that can go
//! wrong between servers is a sequence of events. The shell around it is the `arborcast-node` crate. The rules it keeps
//! are those of `proto/README.md`; the modules name the section they implement.
//!
//! - [`node`]: the state, the one entrance for events, the life of a connection.
//! - `session`: strangers and clients: login. `publishing`: what they publish, and sessions that resume.
//! - `admission`: clients that a master has sent, with a ticket.
//! - `link`: other servers: what they may send, and what goes with a lost link. `relaying`: activities between extended
//!   servers.
//! - `registration`: names, agreed on by all servers; `locks` keeps who has agreed, `users` who has registered.
//! - `fragment`: where a node is in its fragment of the tree; `attach`: taking children in; `healing`: finding a parent;
//!   `homing`: going back to the preferred one; [`moving`]: to a place that a master proposes; `drain`: stopping without
//!   loss. (The extensions.)
//! - `directory`: the users of an extended tree: names agreed on along the tree, synced when links come up.
//! - [`load`]: the other servers as announced, or as masters name them, and redirection. `announcing`: over which links
//!   they have to be announced.
//! - `timer`: what happens later. `error`: what peers do wrong, and how that is answered.
//! - [`status`]: what an operator is told: a picture of the state, and counters.
//! - [`relay`]: the broadcast log and the cursors that read it.
//!
//! # Invariants
//! 1. An activity is published once, whoever sent it, and never back over the link it came by.
//! 2. Every message gets the answer the protocol names, or a close with a reason that is counted.
//! 3. Nothing a peer sends can panic here or grow memory without bound.

mod admission;
mod announcing;
mod attach;
mod clock;
pub mod config;
mod directory;
mod drain;
mod error;
pub mod event;
mod fragment;
mod healing;
mod homing;
pub mod ids;
mod link;
pub mod load;
mod locks;
pub mod moving;
pub mod node;
mod publishing;
mod registration;
pub mod relay;
mod relaying;
mod session;
pub mod status;
mod timer;
mod users;

pub use config::{Config, Extensions};
pub use directory::{AtMasters, Told, UserChange, UserCounters};
pub use event::{Action, CloseReason, Event, Form, GiveUp, Publication, ReceivedLine};
pub use healing::RootReason;
pub use ids::{AttemptId, ConnectionId, ServerId, TaskId, WriteId};
pub use load::NamedServer;
pub use moving::{MoveAnswer, MoveOutcome, MoveProposal};
pub use node::{Node, TreeView, View};
pub use relaying::RelayCounts;
pub use status::{Counters, Heals, NotReady, Status};

#[cfg(test)]
mod testing {
    use std::time::Instant;

    /// Some point in time; the tests only look at differences.
    #[expect(clippy::disallowed_methods, reason = "the virtual time of a test has to start somewhere")]
    pub(crate) fn start() -> Instant {
        Instant::now()
    }
}
