//! Links to other servers: what they may send, and what goes with them when they are lost.

use std::time::Instant;

use arborcast_proto::wire::{Message, ServerAnnounce};
use bytes::Bytes;
use tracing::{debug, info, warn};

use crate::config::EXPIRES_AFTER_INTERVALS;
use crate::error::Refusal;
use crate::event::{Action, CloseReason, Publication};
use crate::ids::ConnectionId;
use crate::node::{Node, Role};
use crate::timer::Timer;

/// A connection to another server.
#[derive(Debug)]
pub(crate) struct Link {
    /// Whether we dialled it, so that the other end is our parent.
    is_to_parent: bool,
    /// Whether a valid message came over it.
    heard: bool,
}

impl Link {
    pub(crate) fn to_parent() -> Self {
        Self { is_to_parent: true, heard: false }
    }

    pub(crate) fn from_child() -> Self {
        Self { is_to_parent: false, heard: false }
    }
}

impl Node {
    /// A link came up: from here on the other server gets every activity, and learns at once who we are (protocol,
    /// Servers joining).
    pub(crate) fn become_link(&mut self, connection: ConnectionId, link: Link, out: &mut Vec<Action>) {
        let Some(entry) = self.connections.get_mut(&connection) else { return };
        info!(%connection, to_parent = link.is_to_parent, "link up");
        entry.role = Role::Link(link);
        let hold = entry.hold.take();
        self.release(connection, hold);
        self.timers.stop(&Timer::Identify(connection));
        self.links.insert(connection);
        out.push(Action::Subscribe { connection, is_link: true });
        self.send(connection, &self.announcement(), out);
    }

    /// Whether this is the link to our parent, and the parent has not said anything of use yet.
    pub(crate) fn is_unheard_parent(&self, connection: ConnectionId) -> bool {
        let role = self.connections.get(&connection).map(|entry| &entry.role);
        matches!(role, Some(Role::Link(Link { is_to_parent: true, heard: false })))
    }

    pub(crate) fn on_link_message(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        line: Bytes,
        message: Message,
        out: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        let command = message.command();
        match message {
            Message::ActivityBroadcast { .. } => {
                out.push(Action::Publish { publication: Publication::Forwarded(line), from: Some(connection) });
            }
            Message::LockAllowed { credentials, server } => {
                self.pass_on(&line, connection, out);
                self.on_lock_allowed(now, connection, &credentials, server, out);
            }
            Message::LockDenied(credentials) => {
                self.pass_on(&line, connection, out);
                self.on_lock_denied(now, &credentials, out);
            }
            Message::LockRequest(credentials) => {
                self.pass_on(&line, connection, out);
                self.on_lock_request(now, credentials, out);
            }
            Message::ServerAnnounce(announce) => {
                self.pass_on(&line, connection, out);
                self.on_server_announce(now, connection, announce);
            }
            Message::Authenticate { .. } => return Err(Refusal::AlreadyAuthenticated),
            Message::ActivityMessage { .. } | Message::Login { .. } | Message::Logout | Message::Register(_) => {
                return Err(Refusal::NotAClient { command });
            }
            Message::AuthenticationFail { .. }
            | Message::InvalidMessage { .. }
            | Message::LoginFailed { .. }
            | Message::LoginSuccess { .. }
            | Message::Redirect { .. }
            | Message::RegisterFailed { .. }
            | Message::RegisterSuccess { .. } => return Err(Refusal::AnswerToAServer { command }),
        }
        if let Some(Role::Link(link)) = self.connections.get_mut(&connection).map(|entry| &mut entry.role) {
            link.heard = true;
        }
        Ok(())
    }

    fn on_server_announce(&mut self, now: Instant, link: ConnectionId, announce: ServerAnnounce) {
        if announce.id == self.config.id {
            // An echo of our own: neither another server nor a redirect target.
            return;
        }
        let id = announce.id.clone();
        if !self.servers.knows(&id) {
            info!(server = id, hostname = announce.hostname, port = announce.port, "server joined");
        }
        if self.servers.announced(link, announce) {
            self.timers.set(Timer::ServerExpiry(id), now + self.config.announce_interval * EXPIRES_AFTER_INTERVALS);
        } else {
            debug!(server = id, "no room to remember another server");
        }
    }

    pub(crate) fn on_server_silent(&mut self, now: Instant, id: &str, out: &mut Vec<Action>) {
        if self.servers.forget(id).is_some() {
            info!(server = id, "server has not announced itself for too long");
            self.settle_covered_windows(now, out);
        }
    }

    /// A link is gone, and with it everything that was learned over it.
    pub(crate) fn on_link_lost(
        &mut self,
        now: Instant,
        link: ConnectionId,
        reason: CloseReason,
        out: &mut Vec<Action>,
    ) {
        self.links.remove(&link);
        let lost = self.servers.forget_link(link);
        if reason == CloseReason::Stopping {
            return;
        }
        warn!(connection = %link, ?reason, servers = ?lost, "link lost: each half goes on as its own tree");
        for id in lost {
            self.timers.stop(&Timer::ServerExpiry(id));
        }
        self.on_allowances_lost(now, link, out);
    }
}
