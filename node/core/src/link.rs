//! Links to other servers: what they may send, and what goes with them when they are lost.

use std::time::Instant;

use arborcast_proto::wire::message::{Target, TreePosition};
use arborcast_proto::wire::{Message, ServerAnnounce};
use bytes::Bytes;
use tracing::{debug, error, info, trace, warn};

use crate::config::EXPIRES_AFTER_INTERVALS;
use crate::error::Refusal;
use crate::event::{Action, CloseReason, Form, Publication};
use crate::ids::{ConnectionId, ServerId};
use crate::node::{Node, Role};
use crate::relaying::{Exchange, Payload};
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
    /// How far both ends are with activities, if both speak the extensions.
    exchange: Option<Exchange>,
    /// What the other end calls itself; empty unless both speak the extensions.
    peer: ServerId,
    /// Whether the other end wants announcements.
    pub(crate) wants_announcements: bool,
    /// Whether the other end was told that this one wants them, as it believes when it was told nothing.
    pub(crate) are_announcements_wanted: bool,
    /// Whether a valid message came over it.
    heard: bool,
    /// When the last line came over it.
    last_heard: Instant,
}

impl Link {
    pub(crate) fn to_plain_parent(now: Instant) -> Self {
        let peer = ServerId::new();
        Self {
            is_to_parent: true,
            is_extended: false,
            exchange: None,
            peer,
            wants_announcements: true,
            are_announcements_wanted: true,
            heard: false,
            last_heard: now,
        }
    }

    /// A plain parent that has said something already.
    pub(crate) fn to_found_plain_parent(now: Instant) -> Self {
        Self { heard: true, ..Self::to_plain_parent(now) }
    }

    pub(crate) fn from_plain_child(now: Instant) -> Self {
        Self { is_to_parent: false, ..Self::to_plain_parent(now) }
    }

    /// What the parent sends at first may be history.
    pub(crate) fn to_extended_parent(now: Instant, peer: ServerId, begins_with_history: bool) -> Self {
        let exchange = Some(Exchange::new(begins_with_history));
        Self { is_extended: true, exchange, peer, heard: true, ..Self::to_plain_parent(now) }
    }

    pub(crate) fn from_extended_child(now: Instant, peer: ServerId) -> Self {
        Self { is_to_parent: false, ..Self::to_extended_parent(now, peer, false) }
    }

    pub(crate) fn exchange(&self) -> Option<&Exchange> {
        self.exchange.as_ref()
    }

    pub(crate) fn exchange_mut(&mut self) -> Option<&mut Exchange> {
        self.exchange.as_mut()
    }
}

impl Node {
    /// A link came up: from here on the other server gets every activity, and learns at once who we are (protocol,
    /// Servers joining). Over an extended link it learns at once of everybody else as well.
    pub(crate) fn become_link(&mut self, now: Instant, connection: ConnectionId, link: Link, out: &mut Vec<Action>) {
        let Some(entry) = self.connections.get_mut(&connection) else { return };
        info!(%connection, to_parent = link.is_to_parent, extended = link.is_extended, "link up");
        let is_extended = link.is_extended;
        entry.role = Role::Link(Box::new(link));
        let hold = entry.hold.take();
        self.release(connection, hold, out);
        self.timers.stop(&Timer::Identify(connection));
        self.links.insert(connection);
        if is_extended {
            self.send_have(connection, out);
        } else {
            out.push(Action::Subscribe { connection, form: Form::Plain, is_link: true, takes_history: false });
            if let Some(relay) = &mut self.relay {
                relay.plain_readers += 1;
            }
        }
        self.begin_announcing(connection, out);
        if is_extended {
            self.begin_user_sync(connection, out);
            self.ask_about_pending(connection, out);
            self.timers.set(Timer::LinkSilence(connection), now + self.heartbeat_timeout());
        }
    }

    pub(crate) fn link(&self, connection: ConnectionId) -> Option<&Link> {
        match self.connections.get(&connection).map(|entry| &entry.role) {
            Some(Role::Link(link)) => Some(link),
            _ => None,
        }
    }

    /// Whether this is the link to our configured plain parent, and the parent has not said anything of use yet.
    pub(crate) fn is_unheard_parent(&self, connection: ConnectionId) -> bool {
        self.link(connection).is_some_and(|link| link.is_to_parent && !link.heard)
    }

    pub(crate) fn link_mut(&mut self, connection: ConnectionId) -> Option<&mut Link> {
        match self.connections.get_mut(&connection).map(|entry| &mut entry.role) {
            Some(Role::Link(link)) => Some(link),
            _ => None,
        }
    }

    pub(crate) fn has_plain_parent(&self) -> bool {
        self.links.iter().filter_map(|link| self.link(*link)).any(|link| link.is_to_parent && !link.is_extended)
    }

    pub(crate) fn is_extended_link(&self, connection: ConnectionId) -> bool {
        self.link(connection).is_some_and(|link| link.is_extended)
    }

    /// Something came over a link, so the other end lives.
    pub(crate) fn on_link_heard(&mut self, now: Instant, connection: ConnectionId) {
        if let Some(link) = self.link_mut(connection) {
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
    pub(crate) fn heartbeat_for(&self, link: ConnectionId) -> Message {
        let tree = self.fragment.child(link).map(|_| self.fragment.position());
        let announcements = self.link(link).is_none_or(|link| link.are_announcements_wanted);
        Message::Heartbeat { tree, announcements }
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
                self.moving.on_place_changed(now);
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

    /// Closes the links to plain parents.
    pub(crate) fn leave_plain_parents(&mut self, now: Instant, out: &mut Vec<Action>) {
        let is_plain_parent =
            |link: &ConnectionId| self.link(*link).is_some_and(|link| link.is_to_parent && !link.is_extended);
        for link in self.links.iter().copied().filter(is_plain_parent).collect::<Vec<_>>() {
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
        if matches!(message, Message::ActivityBroadcast { .. }) {
            self.counters.activities_from_servers += 1;
        } else {
            *self.counters.link_messages.entry(message.command()).or_default() += 1;
        }
        match message {
            Message::ActivityBroadcast { relay, activity } if self.is_extended_link(connection) => {
                let tag = relay.ok_or(Refusal::Unnamed)?;
                self.on_relayed(now, connection, tag, &activity, out);
            }
            Message::ActivityBroadcast { activity, .. } if self.relay.is_some() => {
                self.take_in(now, Some(connection), None, &Payload::Forwarded(&activity), out);
            }
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
                self.pass_announcement_on(&line, connection, out);
                self.on_server_announce(now, connection, announce);
            }
            Message::AttachAnswer(answer) if self.is_extended_link(connection) => {
                self.on_attach_answer(now, connection, answer, out);
            }
            Message::AttachRequest(request) if self.is_extended_link(connection) => {
                self.on_attach_request(now, connection, request, out);
            }
            Message::Heartbeat { tree, announcements } if self.is_extended_link(connection) => {
                self.on_announcements_wanted(connection, announcements, out);
                self.on_heartbeat(now, connection, tree, out);
            }
            Message::RelayAck { have } if self.is_extended_link(connection) => {
                self.on_relay_ack(now, connection, &have, out);
            }
            Message::RelayGap { origin, through } if self.is_extended_link(connection) => {
                self.on_relay_gap(now, connection, origin, through, out);
            }
            Message::RelayHave { have, more } if self.is_extended_link(connection) => {
                self.on_relay_have(now, connection, have, more, out);
            }
            Message::RelaySynced if self.is_extended_link(connection) => self.on_relay_synced(connection, out),
            Message::ServerLeft { id } if self.is_extended_link(connection) => {
                self.on_server_left(connection, &id, out);
            }
            Message::ServerQuit { target } if self.is_extended_link(connection) => {
                self.on_server_quit(now, connection, target, out);
            }
            about_users @ (Message::UserAbort { .. }
            | Message::UserCommit { .. }
            | Message::UserCommitted { .. }
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
        if let Some(link) = self.link_mut(connection) {
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
            && port > 0
            && self.extensions.is_some()
        {
            let target = Target { id: id.clone(), hostname: announce.hostname.clone(), port };
            self.healing.remember(now, target);
        }
        if !self.is_announcing_wanted(link) {
            // It was on its way when the other end was told.
            return;
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

    /// Tells all neighbours that speak the extensions that a server is gone, but the one that said so itself.
    pub(crate) fn tell_server_left(&self, id: &str, except: Option<ConnectionId>, out: &mut Vec<Action>) {
        let links = self.links.iter().filter(|link| Some(**link) != except && self.is_extended_link(**link));
        for link in links {
            self.send(*link, &Message::ServerLeft { id: id.to_owned() }, out);
        }
    }

    /// SERVER_LEFT. It counts only over the link by which that server was last heard of: where a newer announcement came
    /// over another one, it has been overtaken. It is passed on only where it changed something, so it can't go round.
    fn on_server_left(&mut self, link: ConnectionId, id: &str, out: &mut Vec<Action>) {
        if self.servers.get(id).is_none_or(|server| server.link != link) {
            trace!(connection = %link, server = id, "not known from there");
            self.servers.forget_named(id);
            return;
        }
        info!(server = id, "server left");
        self.tell_server_left(id, Some(link), out);
        self.servers.forget(id);
        self.timers.stop(&Timer::ServerExpiry(id.to_owned()));
    }

    /// A link is gone, and with it everything that was learned over it.
    pub(crate) fn on_link_lost(
        &mut self,
        now: Instant,
        link: ConnectionId,
        lost_link: &Link,
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
        // Whom we leave lives on, and children that leave because we asked them to as well.
        let is_unknown_now = lost_link.is_extended && lost.contains(&lost_link.peer);
        if is_unknown_now && reason != CloseReason::Moved && !self.is_draining() {
            self.tell_server_left(&lost_link.peer, None, out);
        }
        for id in lost {
            self.timers.stop(&Timer::ServerExpiry(id));
        }
        self.tell_what_is_wanted(out);
        self.on_allowances_lost(now, link, out);
        // Without a neighbour there is nobody whose acknowledgement could be waited for.
        self.schedule_acks(now);
        self.on_directory_link_lost(now, link, out);
        if was_parent {
            self.on_parent_lost(now, out);
        } else if lost_link.is_extended && self.extended_links().is_empty() && self.fragment.is_root() {
            self.be_apart(now);
        } else if lost_link.is_to_parent && !lost_link.is_extended {
            // A plain parent kept this node from looking for another.
            self.seek(now, out);
        }
    }
}
