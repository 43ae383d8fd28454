//! The same names in a plain tree at the border of this one (protocol, U8).

use std::collections::BTreeMap;
use std::time::Instant;

use arborcast_proto::wire::limits::quote;
use arborcast_proto::wire::users::is_username;
use arborcast_proto::wire::{Credentials, Message, RegistrationId, Secret};
use bytes::Bytes;
use tracing::debug;

use super::Registrar;
use super::credentials::Task;
use super::pending::{Asker, Failure, Pending, Stage};
use crate::event::Action;
use crate::ids::{ConnectionId, ServerId};
use crate::locks::{Agreement, Allowances};
use crate::node::Node;

impl Node {
    /// Whether the plain servers at the border can be told of this pair.
    pub(super) fn fits_border(&self, username: &str, secret: &Secret) -> bool {
        let credentials = || Credentials { username: username.to_owned(), secret: secret.clone() };
        self.plain_links().is_empty() || self.locks_fit(&credentials())
    }

    /// Asks the plain servers, if there are plain links (U8a), and says whose answers are needed.
    pub(super) fn ask_plain_servers(&self, credentials: &Credentials, out: &mut Vec<Action>) -> Option<Agreement> {
        let links = self.plain_links();
        if links.is_empty() {
            return None;
        }
        self.send_to_plain(&Message::LockRequest(credentials.clone()), out);
        let servers = self.servers.iter().filter(|(_, server)| links.contains(&server.link));
        Some(Agreement::new(servers.map(|(id, server)| (id.clone(), server.link)).collect()))
    }

    fn send_to_plain(&self, message: &Message, out: &mut Vec<Action>) {
        let line = message.to_line();
        if line.len() - 1 <= self.config.max_line {
            out.extend(
                self.plain_links().into_iter().map(|link| Action::Send { connection: link, line: line.clone() }),
            );
        }
    }

    /// Every server on this side of the border allows the pair.
    pub(super) fn allow_on_plain_links(&self, username: &str, secret: &Secret, out: &mut Vec<Action>) {
        let links = self.plain_links();
        if links.is_empty() {
            return;
        }
        let ours = self.servers.iter().filter(|(_, server)| !links.contains(&server.link)).map(|(id, _)| id);
        for id in std::iter::once(&self.config.id).chain(ours) {
            let credentials = Credentials { username: username.to_owned(), secret: secret.clone() };
            self.send_to_plain(&Message::LockAllowed { credentials, server: Some(id.clone()) }, out);
        }
    }

    pub(super) fn deny_on_plain_links(&self, username: &str, secret: &Secret, out: &mut Vec<Action>) {
        let credentials = Credentials { username: username.to_owned(), secret: secret.clone() };
        self.send_to_plain(&Message::LockDenied(credentials), out);
    }

    /// LOCK_REQUEST, LOCK_ALLOWED or LOCK_DENIED. It goes on on the other plain links, and never on extended ones.
    pub(crate) fn on_lock_at_border(
        &mut self,
        now: Instant,
        link: ConnectionId,
        line: &Bytes,
        message: Message,
        out: &mut Vec<Action>,
    ) {
        if self.is_extended_link(link) {
            self.directory.drop_message();
            return;
        }
        self.pass_on_to(line, self.plain_links().into_iter().filter(|other| *other != link), out);
        match message {
            Message::LockAllowed { credentials, server } => {
                self.on_lock_allowed_at_border(now, link, &credentials, server, out);
            }
            Message::LockDenied(credentials) => self.on_lock_denied_at_border(now, &credentials, out),
            Message::LockRequest(credentials) => self.on_lock_request_at_border(now, credentials, out),
            _ => {}
        }
    }

    /// A server of the plain tree registers a name (U8b).
    fn on_lock_request_at_border(&mut self, now: Instant, credentials: Credentials, out: &mut Vec<Action>) {
        let Credentials { username, secret } = &credentials;
        if let Some(record) = self.directory.records.get(username) {
            match self.directory.is_right(username, secret) {
                Some(true) => self.allow_on_plain_links(username, secret, out),
                None if self.directory.tasks() < self.config.max_registrations + self.connections.len() => {
                    let (hash, registration) = (record.hash.clone(), record.registration.clone());
                    let secret = secret.clone();
                    let task = self.directory.begin_task(Task::Lock { credentials, registration });
                    out.push(Action::VerifySecret { task, secret, hash });
                }
                Some(false) | None => self.deny_on_plain_links(username, secret, out),
            }
            return;
        }
        if let Some(pending) = self.directory.pending.get_mut(username).filter(|pending| pending.secret == *secret) {
            // The same pair from two sides is one registration: its outcome tells both, also a plain side that has come
            // since it began.
            if !pending.is_known_to_plain() {
                pending.locks = Some(Agreement::new(BTreeMap::new()));
            }
            if matches!(pending.stage, Stage::Settling | Stage::Completing) {
                self.allow_on_plain_links(username, secret, out);
            }
            return;
        }
        // Only the masters can say that a name is free, and what they have given away can't be taken back (U16).
        let is_free = self.directory.registrar == Registrar::Tree
            && is_username(username)
            && !self.directory.pending.contains_key(username);
        let has_room = self.directory.has_room_for(username, secret.expose(), self.config.max_registrations);
        if !is_free || !has_room || !self.locks_fit(&credentials) {
            debug!(username = quote(username), "lock denied");
            self.deny_on_plain_links(username, secret, out);
            return;
        }
        let registration = self.next_registration(now);
        let pending = Pending::new(registration, credentials.secret, Asker::Plain(Allowances::default()));
        self.begin_registration(now, credentials.username, pending, None, out);
    }

    /// Whether somebody in the plain tree who registers a name that is registered here knows its secret (R6b).
    pub(super) fn on_lock_verified(
        &mut self,
        credentials: &Credentials,
        registration: &RegistrationId,
        is_right: bool,
        out: &mut Vec<Action>,
    ) {
        let Credentials { username, secret } = credentials;
        let proof = self.directory.proof_key.proof(username, registration, secret);
        if self.directory.take_in_verification(username, registration, proof, is_right) == Some(true) {
            self.allow_on_plain_links(username, secret, out);
        } else {
            self.deny_on_plain_links(username, secret, out);
        }
    }

    fn on_lock_allowed_at_border(
        &mut self,
        now: Instant,
        link: ConnectionId,
        credentials: &Credentials,
        server: Option<ServerId>,
        out: &mut Vec<Action>,
    ) {
        let Credentials { username, secret } = credentials;
        let is_known = server.as_ref().is_none_or(|id| self.servers.knows(id));
        let pending = self.directory.pending.get_mut(username).filter(|pending| pending.secret == *secret);
        let Some(pending) = pending else { return };
        if let Some(locks) = &mut pending.locks {
            locks.allow(link, server);
        } else if let Asker::Plain(allowances) = &mut pending.asker
            && is_known
        {
            allowances.allow(link, server);
        }
        self.advance_registration(now, username, out);
        self.complete_if_settled_by_plain(username, out);
    }

    fn on_lock_denied_at_border(&mut self, now: Instant, credentials: &Credentials, out: &mut Vec<Action>) {
        let Credentials { username, secret } = credentials;
        if let Some(pending) = self.directory.pending.get(username).filter(|pending| pending.secret == *secret) {
            let registration = pending.registration.clone();
            self.fail_registration_in_tree(now, username, &registration, Failure::DeniedByPlain, out);
            return;
        }
        // The plain tree takes back what it registered a moment ago (U8c).
        if self.directory.is_right(username, secret) == Some(true)
            && let Some(registration) = self.directory.revocable.remove(username)
            && self.remove_user_of(now, username, &registration, out)
        {
            let abort = Message::UserAbort { registration, username: username.clone(), committed: true };
            self.send_to_extended(&abort, None, out);
        }
    }

    /// A registration from the plain tree is complete once nobody there can object any more, as in W1a.
    pub(super) fn complete_if_settled_by_plain(&mut self, username: &str, out: &mut Vec<Action>) {
        let Some(pending) = self.directory.pending.get(username) else { return };
        let Asker::Plain(allowances) = &pending.asker else { return };
        let links = self.plain_links();
        let known: Vec<_> = self.servers.iter().filter(|(_, server)| links.contains(&server.link)).collect();
        let is_covered =
            !known.is_empty() && allowances.missing(known.iter().map(|(id, server)| (*id, server.link))) <= 1;
        if pending.stage == Stage::Settling && is_covered {
            self.complete_registration(username, out);
        }
    }

    /// Nobody in the plain tree has objected for long enough (W1b).
    pub(crate) fn on_plain_window_over(&mut self, username: &str, out: &mut Vec<Action>) {
        if self.directory.pending.get(username).is_some_and(|pending| pending.stage == Stage::Settling) {
            self.complete_registration(username, out);
        }
    }

    /// The plain tree can't take a registration back any more.
    pub(crate) fn forget_revocable(&mut self, username: &str) {
        self.directory.revocable.remove(username);
    }
}
