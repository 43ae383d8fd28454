//! Links to other servers: what they may send, and what goes with them when they are lost.

use std::time::Instant;

use arborcast_proto::wire::message::{Target, TreePosition};
use arborcast_proto::wire::{Message, ServerAnnounce};
use bytes::Bytes;
use tracing::{debug, error, info, warn};

use crate::config::EXPIRES_AFTER_INTERVALS;
use crate::error::Refusal;
use crate::event::{Action, CloseReason, Publication};
use crate::ids::ConnectionId;
use crate::node::{Node, Role};
use crate::timer::Timer;

/// Who handles a silence later than this part of the timeout has slept itself.
const LATE_FRACTION: u32 = 4;

/// A connection to another server.
#[derive(Debug)]
pub(crate) struct Link {
    /// Whether we dialled it, so that the other end is our parent.
    is_to_parent: bool,
    /// Whether both ends speak the extensions.
    is_extended: bool,
    /// Whether a valid message came over it.
    heard: bool,
    /// When the last line came over it.
    last_heard: Instant,
}

impl Link {
    pub(crate) fn to_plain_parent(now: Instant) -> Self {
        Self { is_to_parent: true, is_extended: false, heard: false, last_heard: now }
    }

    /// A plain parent that has said something already.
    pub(crate) fn to_found_plain_parent(now: Instant) -> Self {
        Self { is_to_parent: true, is_extended: false, heard: true, last_heard: now }
    }

    pub(crate) fn from_plain_child(now: Instant) -> Self {
        Self { is_to_parent: false, is_extended: false, heard: false, last_heard: now }
    }

    pub(crate) fn to_extended_parent(now: Instant) -> Self {
        Self { is_to_parent: true, is_extended: true, heard: true, last_heard: now }
    }

    pub(crate) fn from_extended_child(now: Instant) -> Self {
        Self { is_to_parent: false, is_extended: true, heard: true, last_heard: now }
    }
}

impl Node {
    /// A link came up: from here on the other server gets every activity, and learns at once who we are (protocol,
    /// Servers joining). Over an extended link it learns at once of everybody else as well.
    pub(crate) fn become_link(&mut self, now: Instant, connection: ConnectionId, link: Link, out: &mut Vec<Action>) {
        let Some(entry) = self.connections.get_mut(&connection) else { return };
        info!(%connection, to_parent = link.is_to_parent, extended = link.is_extended, "link up");
        let is_extended = link.is_extended;
        entry.role = Role::Link(link);
        let hold = entry.hold.take();
        self.release(connection, hold);
        self.timers.stop(&Timer::Identify(connection));
        self.links.insert(connection);
        out.push(Action::Subscribe { connection, is_link: true });
        self.send(connection, &self.announcement(), out);
        if is_extended {
            self.begin_user_sync(connection, out);
            self.timers.set(Timer::LinkSilence(connection), now + self.heartbeat_timeout());
            for (id, server) in self.servers.iter().filter(|(_, server)| server.link != connection) {
                let (id, hostname) = (id.clone(), server.hostname.clone());
                let announce = ServerAnnounce { id, load: server.load, hostname, port: server.port };
                self.send(connection, &Message::ServerAnnounce(announce), out);
            }
        }
    }

    fn link(&self, connection: ConnectionId) -> Option<&Link> {
        match self.connections.get(&connection).map(|entry| &entry.role) {
            Some(Role::Link(link)) => Some(link),
            _ => None,
        }
    }

    /// Whether this is the link to our configured plain parent, and the parent has not said anything of use yet.
    pub(crate) fn is_unheard_parent(&self, connection: ConnectionId) -> bool {
        self.link(connection).is_some_and(|link| link.is_to_parent && !link.heard)
    }

    pub(crate) fn has_plain_parent(&self) -> bool {
        self.links.iter().filter_map(|link| self.link(*link)).any(|link| link.is_to_parent && !link.is_extended)
    }

    pub(crate) fn is_extended_link(&self, connection: ConnectionId) -> bool {
        self.link(connection).is_some_and(|link| link.is_extended)
    }

    /// Something came over a link, so the other end lives.
    pub(crate) fn on_link_heard(&mut self, now: Instant, connection: ConnectionId) {
        if let Some(Role::Link(link)) = self.connections.get_mut(&connection).map(|entry| &mut entry.role) {
            link.last_heard = now;
        }
    }

    pub(crate) fn on_heartbeat_due(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(extensions) = &self.extensions else { return };
        self.timers.set(Timer::Heartbeat, now + extensions.heartbeat_interval);
        for link in self.links.iter().filter(|link| self.is_extended_link(**link)) {
            self.send(*link, &self.heartbeat_for(*link), out);
        }
    }

    /// A child is told where it is in the tree; a parent only that we live.
    fn heartbeat_for(&self, link: ConnectionId) -> Message {
        Message::Heartbeat { tree: self.fragment.child(link).map(|_| self.fragment.position()) }
    }

    /// The fragment's key or the path has changed.
    pub(crate) fn tell_children(&self, out: &mut Vec<Action>) {
        for (child, _) in self.fragment.children() {
            self.send(child, &self.heartbeat_for(child), out);
        }
    }

    fn on_heartbeat(&mut self, now: Instant, link: ConnectionId, tree: Option<TreePosition>, out: &mut Vec<Action>) {
        let Some(tree) = tree.filter(|_| self.fragment.is_parent(link)) else { return };
        match self.fragment.follow_parent(tree) {
            Ok(false) => {}
            Ok(true) => {
                self.tell_children(out);
                self.ask_again_for_applicants(now, out);
            }
            Err(_) => {
                error!(connection = %link, "the parent stands below this node: leaving it");
                self.close(now, link, CloseReason::Moved, out);
            }
        }
    }

    /// The time for a link to be silent is over; it may have been heard meanwhile. Where we ourselves were late, stopped
    /// or starved, what came meanwhile is still to be read, and the link is given some time more.
    pub(crate) fn on_link_silence(
        &mut self,
        now: Instant,
        due: Instant,
        connection: ConnectionId,
        out: &mut Vec<Action>,
    ) {
        let Some(link) = self.link(connection) else { return };
        let timeout = self.heartbeat_timeout();
        let until = link.last_heard + timeout;
        if now < until {
            self.timers.set(Timer::LinkSilence(connection), until);
        } else if now.saturating_duration_since(due) > timeout / LATE_FRACTION {
            self.timers.set(Timer::LinkSilence(connection), now + timeout / 2);
        } else {
            self.close(now, connection, CloseReason::Silent, out);
        }
    }

    /// Closes the extended links to parents we had before.
    pub(crate) fn leave_former_parents(&mut self, now: Instant, out: &mut Vec<Action>) {
        let is_former = |link: &ConnectionId| {
            !self.fragment.is_parent(*link)
                && self.link(*link).is_some_and(|link| link.is_to_parent && link.is_extended)
        };
        for link in self.links.iter().copied().filter(is_former).collect::<Vec<_>>() {
            self.close(now, link, CloseReason::Moved, out);
        }
    }

    pub(crate) fn on_link_message(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        line: Bytes,
        message: Message,
        out: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        match message {
            Message::ActivityBroadcast { .. } => {
                out.push(Action::Publish { publication: Publication::Forwarded(line), from: Some(connection) });
            }
            lock @ (Message::LockAllowed { .. } | Message::LockDenied(_) | Message::LockRequest(_))
                if self.extensions.is_some() =>
            {
                self.on_lock_at_border(now, connection, &line, lock, out);
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
            Message::AttachAnswer(answer) if self.is_extended_link(connection) => {
                self.on_attach_answer(now, connection, answer, out);
            }
            Message::AttachRequest(request) if self.is_extended_link(connection) => {
                self.on_attach_request(now, connection, request, out);
            }
            Message::Heartbeat { tree } if self.is_extended_link(connection) => {
                self.on_heartbeat(now, connection, tree, out);
            }
            Message::ServerQuit { target } if self.is_extended_link(connection) => {
                self.on_server_quit(now, connection, target, out);
            }
            about_users @ (Message::UserAbort { .. }
            | Message::UserCommit { .. }
            | Message::UserDigest { .. }
            | Message::UserPrepare { .. }
            | Message::UserRecords { .. }
            | Message::UserVote { .. })
                if self.is_extended_link(connection) =>
            {
                self.on_user_message(now, connection, about_users, out)?;
            }
            other => return Err(Refusal::out_of_place_on_a_link(&other)),
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
        if let Ok(port) = u16::try_from(announce.port)
            && self.extensions.is_some()
        {
            self.healing.remember(Target { id: id.clone(), hostname: announce.hostname.clone(), port });
        }
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
        self.timers.stop(&Timer::LinkSilence(link));
        let was_parent = self.fragment.is_parent(link);
        self.fragment.remove_child(link);
        let lost = self.servers.forget_link(link);
        if reason == CloseReason::Stopping {
            return;
        }
        if self.extensions.is_none() {
            warn!(connection = %link, ?reason, servers = ?lost, "link lost: each half goes on as its own tree");
        } else {
            info!(connection = %link, ?reason, was_parent, "link lost");
        }
        for id in lost {
            self.timers.stop(&Timer::ServerExpiry(id));
        }
        self.on_allowances_lost(now, link, out);
        self.on_directory_link_lost(now, link, out);
        if was_parent {
            self.become_orphan(now, out);
        } else {
            // It may have been a plain parent, which kept this node from looking for another.
            self.seek(now, out);
        }
    }
}
