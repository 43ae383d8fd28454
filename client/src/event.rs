//! What happens to a session, in the order in which it happens.

use std::time::Duration;

use arborcast_proto::wire::Activity;

use crate::address::Address;
use crate::error::Error;

/// What a [`Subscriber`](crate::Subscriber) is told.
#[derive(Debug, Clone)]
pub enum Event {
    /// Activities that arrived together, at least one, in their order.
    Activities(Vec<Activity>),
    /// The connection is lost, and the session is looking for another server. Nothing has to be done.
    Lost {
        /// Where the session was.
        server: Address,
        /// Why it is no longer there.
        error: Error,
    },
    /// The session goes on.
    Reconnected {
        /// Where.
        server: Address,
        /// How long after the loss.
        after: Duration,
        /// Whether what was published meanwhile follows, as far as the server still has it; what it has no longer is told
        /// by [`Gap`](Self::Gap). Otherwise some may be missing, and nobody can say how much: a plain server, now or before.
        is_resumed: bool,
    },
    /// Activities will never arrive: the tree no longer has them.
    Gap {
        /// Where they entered the tree: the server's id, behind the number of its run and a slash.
        origin: String,
        /// How many there are at least; of an origin that was not heard of before, all it ever had.
        missing: u64,
    },
}
