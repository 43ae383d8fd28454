//! A name is registered: prepare, vote, commit and abort along the tree (protocol, U2 to U6).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use arborcast_proto::wire::limits::quote;
use arborcast_proto::wire::users::{is_hash, is_username};
use arborcast_proto::wire::{Credentials, Denial, Message, RegistrationId, UserRecord};
use tracing::{debug, info, warn};

use super::credentials::Task;
use super::pending::{Asker, Failure, Pending, Stage, Unconfirmed};
use super::records::Merged;
use super::{Directory, Registrar};
use crate::config::{LOGIN_WINDOW, REGISTRATION_TIMEOUT};
use crate::error::Refusal;
use crate::event::Action;
use crate::ids::ConnectionId;
use crate::node::{Hold, Node};
use crate::timer::Timer;

/// How long a name stays pending for an asker that stands and says no more (protocol, B44).
const OUTCOME_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes of a record's line besides its name and its server's id, with a hash of the greatest length, both escaped.
const LINE_OVERHEAD: usize = 512;

impl Node {
    /// REGISTER from a client, in an extended tree.
    pub(crate) fn on_register_in_tree(
        &mut self,
        now: Instant,
        client: ConnectionId,
        credentials: Credentials,
        out: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        self.check_name(&credentials.username)?;
        if self.directory.registrar == Registrar::Nobody {
            return Err(Refusal::AtMasters { username: credentials.username });
        }
        let Credentials { username, secret } = credentials;
        let registration = self.next_registration(now);
        let prepare = Message::UserPrepare {
            registration: registration.clone(),
            credentials: Credentials { username: username.clone(), secret: secret.clone() },
        };
        let longest = prepare.to_line().len().max(6 * username.len() + self.config.id.len() + LINE_OVERHEAD);
        if longest > self.config.max_line || !self.fits_border(&username, &secret) {
            return Err(Refusal::CredentialsTooLong);
        }
        if !self.directory.has_room_for(&username, secret.expose(), self.config.max_registrations) {
            return Err(Refusal::NoRoom);
        }
        if let Some(entry) = self.connections.get_mut(&client) {
            entry.hold = Some(Hold::Registration(username.clone()));
        }
        let pending = Pending::new(registration, secret, Asker::Client(Some(client)));
        self.begin_registration(now, username, pending, None, out);
        Ok(())
    }

    /// A name for a registration that was asked for here.
    pub(super) fn next_registration(&mut self, now: Instant) -> RegistrationId {
        self.directory.registrations += 1;
        RegistrationId {
            at: self.directory.clock.milliseconds(now),
            server: self.config.id.clone(),
            number: self.directory.registrations,
        }
    }

    /// The name is pending from here on; everybody who may object is asked.
    pub(super) fn begin_registration(
        &mut self,
        now: Instant,
        username: String,
        mut pending: Pending,
        except: Option<ConnectionId>,
        out: &mut Vec<Action>,
    ) {
        let credentials = Credentials { username: username.clone(), secret: pending.secret.clone() };
        if self.directory.registrar == Registrar::Tree {
            pending.asked = self.extended_links().into_iter().filter(|link| Some(*link) != except).collect();
        }
        pending.unanswered.clone_from(&pending.asked);
        if !pending.is_known_to_plain() {
            pending.locks = self.ask_plain_servers(&credentials, out);
        }
        let prepare = Message::UserPrepare { registration: pending.registration.clone(), credentials };
        for link in &pending.asked {
            self.send(*link, &prepare, out);
        }
        self.timers.set(Timer::Registration(username.clone()), now + REGISTRATION_TIMEOUT);
        self.directory.insert(username.clone(), pending);
        self.advance_registration(now, &username, out);
    }

    pub(super) fn on_user_prepare(
        &mut self,
        now: Instant,
        link: ConnectionId,
        registration: RegistrationId,
        credentials: Credentials,
        out: &mut Vec<Action>,
    ) {
        let username = credentials.username.clone();
        match self.judge_prepare(now, link, &registration, &credentials, out) {
            Verdict::Begin => {
                let asker = Asker::Links(BTreeSet::from([link]));
                let pending = Pending::new(registration, credentials.secret, asker);
                self.begin_registration(now, username, pending, Some(link), out);
            }
            Verdict::Later => {}
            Verdict::Vote(denied) => self.send(link, &Message::UserVote { registration, username, denied }, out),
        }
    }

    fn judge_prepare(
        &mut self,
        now: Instant,
        link: ConnectionId,
        registration: &RegistrationId,
        credentials: &Credentials,
        out: &mut Vec<Action>,
    ) -> Verdict {
        let Credentials { username, secret } = credentials;
        if !self.directory.is_possible_time(now, registration) {
            self.directory.drop_message();
            if Directory::is_worth_a_warning(self.directory.counters.dropped_messages) {
                let server = quote(&registration.server);
                warn!(server, "a registration is dated more than a day ahead: check the clocks");
            }
            return Verdict::Vote(Some(Denial::Incomplete));
        }
        if let Some(record) = self.directory.records.get(username) {
            return Verdict::Vote((record.registration != *registration).then_some(Denial::Taken));
        }
        if !is_username(username) {
            return Verdict::Vote(Some(Denial::Taken));
        }
        if self.directory.registrar != Registrar::Tree {
            return Verdict::Vote(Some(Denial::AtMasters));
        }
        if let Some(pending) = self.directory.pending.get_mut(username) {
            if pending.registration == *registration {
                return match &mut pending.asker {
                    Asker::Links(links) if pending.stage == Stage::Asking => {
                        links.insert(link);
                        Verdict::Later
                    }
                    // It is back where it began, or was agreed to already: nobody here objects.
                    _ => Verdict::Vote(None),
                };
            }
            if !pending.gives_way_to(registration, link) {
                return Verdict::Vote(Some(Denial::Pending));
            }
            if let Asker::Links(links) = &mut pending.asker {
                links.remove(&link);
            }
            let displaced = pending.registration.clone();
            self.fail_registration_in_tree(now, username, &displaced, Failure::Denied(Denial::Pending), out);
        }
        let has_room = self.directory.has_room_for(username, secret.expose(), self.config.max_registrations);
        if has_room && self.fits_border(username, secret) {
            Verdict::Begin
        } else {
            Verdict::Vote(Some(Denial::NoRoom))
        }
    }

    pub(super) fn on_user_vote(
        &mut self,
        now: Instant,
        link: ConnectionId,
        registration: &RegistrationId,
        username: &str,
        denied: Option<Denial>,
        out: &mut Vec<Action>,
    ) {
        let pending = self.directory.pending.get_mut(username);
        let Some(pending) = pending.filter(|pending| pending.registration == *registration) else {
            self.directory.drop_message();
            return;
        };
        if !pending.unanswered.remove(&link) {
            self.directory.drop_message();
        } else if let Some(denial) = denied {
            self.fail_registration_in_tree(now, username, registration, Failure::Denied(denial), out);
        } else {
            self.advance_registration(now, username, out);
        }
    }

    /// Goes on with a registration whose last answer may have come.
    pub(super) fn advance_registration(&mut self, now: Instant, username: &str, out: &mut Vec<Action>) {
        // The masters know who has a name, whoever else is there.
        let may_be_apart = self.directory.registrar != Registrar::Masters && self.may_be_apart();
        let Some(pending) = self.directory.pending.get_mut(username) else { return };
        if pending.stage != Stage::Asking || !pending.is_agreed() || may_be_apart {
            return;
        }
        match &pending.asker {
            Asker::Links(links) => {
                pending.stage = Stage::Voted;
                if !links.is_empty() {
                    self.timers.set(Timer::Registration(username.to_owned()), now + OUTCOME_TIMEOUT);
                }
                let (registration, username) = (pending.registration.clone(), username.to_owned());
                let vote = Message::UserVote { registration, username, denied: None };
                for link in links.clone() {
                    self.send(link, &vote, out);
                }
            }
            Asker::Client(_) => self.complete_registration(username, out),
            Asker::Plain(_) => {
                pending.stage = Stage::Settling;
                let secret = pending.secret.clone();
                self.timers.stop(&Timer::Registration(username.to_owned()));
                self.timers.set(Timer::LoginWindow(username.to_owned()), now + LOGIN_WINDOW);
                self.allow_on_plain_links(username, &secret, out);
                self.complete_if_settled_by_plain(username, out);
            }
        }
    }

    /// Goes on with those that had to wait until this server knows whether it is part of a larger tree.
    pub(crate) fn advance_registrations(&mut self, now: Instant, out: &mut Vec<Action>) {
        for username in self.directory.pending.keys().cloned().collect::<Vec<_>>() {
            self.advance_registration(now, &username, out);
        }
    }

    /// A link has come up: whoever is behind it may object as well to what is not agreed to yet.
    pub(crate) fn ask_about_pending(&mut self, link: ConnectionId, out: &mut Vec<Action>) {
        if self.directory.registrar != Registrar::Tree {
            return;
        }
        let mut prepares = Vec::new();
        for (username, pending) in &mut self.directory.pending {
            if pending.stage == Stage::Asking && pending.asked.insert(link) {
                pending.unanswered.insert(link);
                let credentials = Credentials { username: username.clone(), secret: pending.secret.clone() };
                prepares.push(Message::UserPrepare { registration: pending.registration.clone(), credentials });
            }
        }
        for prepare in prepares {
            self.send(link, &prepare, out);
        }
    }

    /// All have agreed: the record is made.
    pub(super) fn complete_registration(&mut self, username: &str, out: &mut Vec<Action>) {
        let Some(pending) = self.directory.pending.get_mut(username) else { return };
        pending.stage = Stage::Completing;
        let (registration, secret) = (pending.registration.clone(), pending.secret.clone());
        self.timers.stop(&Timer::Registration(username.to_owned()));
        self.timers.stop(&Timer::LoginWindow(username.to_owned()));
        let task = self.directory.begin_task(Task::Hash { username: username.to_owned(), registration });
        out.push(Action::HashSecret { task, secret });
    }

    /// The hash of a new user's secret, or none if it could not be made.
    pub(super) fn on_registration_hashed(
        &mut self,
        now: Instant,
        username: String,
        registration: RegistrationId,
        hash: Option<String>,
        out: &mut Vec<Action>,
    ) {
        let is_awaited = |pending: &Pending| pending.registration == registration;
        if !self.directory.pending.get(&username).is_some_and(is_awaited) {
            return;
        }
        if self.directory.records.get(&username).is_some() {
            self.fail_registration_in_tree(now, &username, &registration, Failure::Denied(Denial::Taken), out);
            return;
        }
        let Some(hash) = hash.filter(|hash| is_hash(hash)) else {
            self.fail_registration_in_tree(now, &username, &registration, Failure::Denied(Denial::NoRoom), out);
            return;
        };
        let record = UserRecord { username, hash, registration };
        if self.directory.registrar == Registrar::Masters {
            out.push(Action::RegisterUser { record });
        } else if self.directory.storage.is_kept {
            self.directory.storage.wait_for(record);
            self.write_users(out);
        } else {
            self.commit_registration(now, record, out);
        }
    }

    /// The record is where it has to be: the name is the client's, and everybody is told (protocol, U5).
    pub(super) fn commit_registration(&mut self, now: Instant, record: UserRecord, out: &mut Vec<Action>) {
        let UserRecord { username, registration, .. } = record.clone();
        let pending = self.directory.pending.get(&username).filter(|pending| pending.registration == registration);
        let Some(pending) = pending else {
            // It failed after all while it was written.
            self.directory.storage.changed(&username);
            return;
        };
        let proof = self.directory.proof_key.proof(&username, &registration, &pending.secret);
        let others = self.directory.pending_bytes;
        let failure = match self.directory.records.merge(record.clone(), Some(proof), others) {
            Merged::New => None,
            Merged::Replaced => {
                self.on_registration_replaced(&username, out);
                None
            }
            Merged::Known => Some(Denial::Taken),
            Merged::Full => Some(Denial::NoRoom),
        };
        if let Some(denial) = failure {
            self.directory.storage.changed(&username);
            self.fail_registration_in_tree(now, &username, &registration, Failure::Denied(denial), out);
            return;
        }
        let Some(pending) = self.directory.take_pending(&username, &registration) else { return };
        debug!(username = quote(&username), "registered");
        let client = match pending.asker {
            Asker::Client(client) => client,
            Asker::Links(_) | Asker::Plain(_) => None,
        };
        let is_safe = self.directory.registrar == Registrar::Masters;
        let confirm = client.is_some() && !is_safe && !self.extended_links().is_empty();
        self.send_to_extended(&Message::UserCommit { user: record, confirm }, None, out);
        if pending.locks.is_some() {
            self.allow_on_plain_links(&username, &pending.secret, out);
        }
        match pending.asker {
            Asker::Client(_) if confirm => {
                self.timers.set(Timer::Unconfirmed(username.clone()), now + 2 * self.heartbeat_timeout());
                self.directory.unconfirmed.insert(username.clone(), Unconfirmed { registration, client });
            }
            Asker::Client(Some(client)) => {
                self.confirm(now, client, &username, out);
                self.resume(now, client, out);
            }
            Asker::Client(None) | Asker::Links(_) => {}
            Asker::Plain(_) => {
                self.timers.set(Timer::Revocable(username.clone()), now + REGISTRATION_TIMEOUT);
                self.directory.revocable.insert(username.clone(), registration);
            }
        }
        self.resume_logins(now, &username, out);
    }

    pub(super) fn on_user_commit(
        &mut self,
        now: Instant,
        link: ConnectionId,
        user: UserRecord,
        confirm: bool,
        out: &mut Vec<Action>,
    ) {
        let UserRecord { username, registration, .. } = user.clone();
        if self.take_record(now, user.clone(), out) {
            self.send_to_extended(&Message::UserCommit { user, confirm: false }, Some(link), out);
            self.write_users(out);
        }
        if confirm && self.directory.records.get(&username).is_some_and(|record| record.registration == registration) {
            self.send(link, &Message::UserCommitted { registration, username }, out);
        }
    }

    /// A neighbour knows of it as well: no single server can lose it any more.
    pub(super) fn on_user_committed(
        &mut self,
        now: Instant,
        registration: &RegistrationId,
        username: &str,
        out: &mut Vec<Action>,
    ) {
        let unconfirmed = self.directory.unconfirmed.get(username);
        if unconfirmed.is_some_and(|unconfirmed| unconfirmed.registration == *registration) {
            self.confirm_registration(now, username, out);
        }
    }

    /// A neighbour knows of it, or none has said so for long enough: the neighbours that are to know are gone, or can't take
    /// it, and others are told when they come.
    pub(crate) fn confirm_registration(&mut self, now: Instant, username: &str, out: &mut Vec<Action>) {
        let Some(Unconfirmed { client, registration }) = self.directory.unconfirmed.remove(username) else { return };
        self.timers.stop(&Timer::Unconfirmed(username.to_owned()));
        let Some(client) = client else { return };
        if self.directory.records.get(username).is_some_and(|record| record.registration == registration) {
            self.confirm(now, client, username, out);
            self.resume(now, client, out);
        } else {
            // An earlier one has come meanwhile.
            self.refuse(now, client, &Refusal::NameTaken { username: username.to_owned() }, out);
        }
    }

    /// A record from elsewhere, and what it means for what is pending. `true` if it was new.
    pub(super) fn take_record(&mut self, now: Instant, record: UserRecord, out: &mut Vec<Action>) -> bool {
        if !self.directory.is_possible(now, &record) {
            debug!(username = quote(&record.username), "dropped a record that can't be one");
            self.directory.counters.dropped_records += 1;
            return false;
        }
        let UserRecord { username, registration, .. } = record.clone();
        let own = self.directory.pending.get(&username).filter(|pending| pending.registration == registration);
        let proof = own.map(|pending| self.directory.proof_key.proof(&username, &registration, &pending.secret));
        match self.directory.records.merge(record.clone(), proof, 0) {
            Merged::New => {}
            Merged::Replaced => self.on_registration_replaced(&username, out),
            Merged::Known => return false,
            Merged::Full => {
                self.directory.counters.dropped_records += 1;
                if Directory::is_worth_a_warning(self.directory.counters.dropped_records) {
                    warn!(username = quote(&username), "no room for another user: it can't log in here");
                }
                return false;
            }
        }
        self.directory.storage.changed(&username);
        if let Some(pending) = self.directory.take_pending(&username, &registration) {
            self.timers.stop(&Timer::Registration(username.clone()));
            if pending.locks.is_some() {
                self.allow_on_plain_links(&username, &pending.secret, out);
            }
            // The masters tell everybody before they answer us; a neighbour may have none to tell it.
            if let Asker::Client(client) = pending.asker {
                self.send_to_extended(&Message::UserCommit { user: record, confirm: false }, None, out);
                if let Some(client) = client {
                    self.confirm(now, client, &username, out);
                    self.resume(now, client, out);
                }
            }
            self.resume_logins(now, &username, out);
        } else if let Some(other) =
            self.directory.pending.get(&username).filter(|other| other.stage != Stage::Completing)
        {
            // One that is being completed is compared when it is.
            let other = other.registration.clone();
            self.fail_registration_in_tree(now, &username, &other, Failure::Denied(Denial::Taken), out);
        }
        true
    }

    fn on_registration_replaced(&mut self, username: &str, out: &mut Vec<Action>) {
        self.directory.counters.replaced += 1;
        self.directory.storage.changed(username);
        self.verify_sessions_of(username, out);
    }

    pub(super) fn on_user_abort(
        &mut self,
        now: Instant,
        link: ConnectionId,
        registration: RegistrationId,
        username: String,
        committed: bool,
        out: &mut Vec<Action>,
    ) {
        let pending = self.directory.pending.get_mut(&username);
        if let Some(pending) = pending.filter(|pending| pending.registration == registration)
            && let Asker::Links(links) = &mut pending.asker
        {
            if links.remove(&link) && links.is_empty() {
                self.fail_registration_in_tree(now, &username, &registration, Failure::Denied(Denial::Incomplete), out);
            }
        } else if committed && self.remove_user_of(now, &username, &registration, out) {
            self.send_to_extended(&Message::UserAbort { registration, username, committed }, Some(link), out);
        }
    }

    /// Removes a record, if it is that of this registration.
    pub(super) fn remove_user_of(
        &mut self,
        now: Instant,
        username: &str,
        registration: &RegistrationId,
        out: &mut Vec<Action>,
    ) -> bool {
        if self.directory.records.get(username).is_none_or(|record| record.registration != *registration) {
            return false;
        }
        self.directory.records.remove(username);
        self.directory.storage.changed(username);
        self.end_sessions_of(now, username, out);
        self.write_users(out);
        true
    }

    /// A registration ends without success: nobody keeps what is pending for it, and who asked is told.
    pub(super) fn fail_registration_in_tree(
        &mut self,
        now: Instant,
        username: &str,
        registration: &RegistrationId,
        failure: Failure,
        out: &mut Vec<Action>,
    ) {
        let Some(pending) = self.directory.take_pending(username, registration) else { return };
        debug!(username = quote(username), ?failure, "registration failed");
        self.timers.stop(&Timer::Registration(username.to_owned()));
        self.timers.stop(&Timer::LoginWindow(username.to_owned()));
        let (registration_id, name) = (registration.clone(), username.to_owned());
        let abort = Message::UserAbort { registration: registration_id, username: name, committed: false };
        for link in &pending.asked {
            self.send(*link, &abort, out);
        }
        if pending.is_known_to_plain() && failure != Failure::DeniedByPlain {
            self.deny_on_plain_links(username, &pending.secret, out);
        }
        match pending.asker {
            Asker::Client(Some(client)) => self.refuse(now, client, &failure.refusal(username), out),
            Asker::Links(links) => {
                let (registration, username) = (registration.clone(), username.to_owned());
                let vote = Message::UserVote { registration, username, denied: Some(failure.denial()) };
                for link in links {
                    self.send(link, &vote, out);
                }
            }
            Asker::Client(None) | Asker::Plain(_) => {}
        }
        self.resume_logins(now, username, out);
    }

    /// Votes, or the outcome, did not come in time.
    pub(crate) fn on_registration_overdue(&mut self, now: Instant, username: &str, out: &mut Vec<Action>) {
        let Some(pending) = self.directory.pending.get(username) else { return };
        info!(username = quote(username), stage = ?pending.stage, "a registration takes too long");
        let registration = pending.registration.clone();
        self.fail_registration_in_tree(now, username, &registration, Failure::Denied(Denial::Incomplete), out);
    }

    /// The client that asked for it is gone, or is a link now.
    pub(crate) fn forget_registering_client(&mut self, username: &str) {
        if let Some(unconfirmed) = self.directory.unconfirmed.get_mut(username) {
            unconfirmed.client = None;
        }
        if let Some(Asker::Client(client)) = self.directory.pending.get_mut(username).map(|pending| &mut pending.asker)
        {
            *client = None;
        }
    }

    /// A link is gone, and with it votes that were waited for, and those who waited (protocol, U6).
    pub(crate) fn on_directory_link_lost(&mut self, now: Instant, link: ConnectionId, out: &mut Vec<Action>) {
        self.directory.exchanges.remove(&link);
        for username in self.directory.pending.keys().cloned().collect::<Vec<_>>() {
            let Some(pending) = self.directory.pending.get_mut(&username) else { continue };
            pending.asked.remove(&link);
            if let Some(locks) = &mut pending.locks {
                locks.forget_link(link);
            }
            match &mut pending.asker {
                Asker::Links(links) => {
                    if links.remove(&link) && links.is_empty() {
                        // A commit may come another way.
                        self.timers.set(Timer::Registration(username.clone()), now + REGISTRATION_TIMEOUT);
                    }
                }
                Asker::Plain(allowances) => allowances.forget_link(link),
                Asker::Client(_) => {}
            }
            if pending.unanswered.remove(&link) {
                let registration = pending.registration.clone();
                let failure = Failure::Denied(Denial::Incomplete);
                self.fail_registration_in_tree(now, &username, &registration, failure, out);
            } else {
                self.advance_registration(now, &username, out);
                self.complete_if_settled_by_plain(&username, out);
            }
        }
    }
}

/// What to do about USER_PREPARE.
enum Verdict {
    /// Ask the others, and answer then.
    Begin,
    /// The others have been asked already.
    Later,
    /// Answer at once.
    Vote(Option<Denial>),
}
