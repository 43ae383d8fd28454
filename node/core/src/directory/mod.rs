//! The users of an extended tree (protocol, Users in an extended tree). A node that speaks no extensions has an empty
//! directory and keeps its users as `registration` says.
//!
//! - `records`: who has registered, with digests. - `pending`: one registration under way.
//! - `registrations`: prepare, vote, commit and abort along the tree. - `sync`: what neighbours tell each other when a
//!   link comes up. - `border`: the same names in a plain tree. - `credentials`: secrets that are hashed and verified
//!   outside, and what is remembered of them. - `storage`: what is on disk. - `masters`: where masters keep users.

mod border;
mod credentials;
mod masters;
mod pending;
mod records;
mod registrations;
mod storage;
mod sync;

use std::collections::BTreeMap;
use std::time::Instant;

use arborcast_proto::wire::message::ANONYMOUS;
use arborcast_proto::wire::users::{is_hash, is_username};
use arborcast_proto::wire::{Message, RegistrationId, UserRecord};

use crate::clock::WallClock;
use crate::config::Config;
use crate::error::Refusal;
use crate::event::Action;
use crate::ids::{ConnectionId, TaskId};
use crate::node::Node;

use credentials::Task;
pub(crate) use masters::Registrar;
pub use masters::{AtMasters, Told};
use pending::{Pending, Unconfirmed};
use records::{ProofKey, Records, cost};
use storage::Storage;
pub use storage::UserChange;
use sync::Exchange;

/// How far ahead of the own clock the time of a registration may be, in milliseconds (protocol, U7c).
const MAX_AHEAD: u64 = 24 * 60 * 60 * 1000;

/// What has happened to the users of an extended tree that an operator may want to know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UserCounters {
    /// Registrations that no longer count, since an earlier one of the name was found.
    pub replaced: u64,
    /// Records that could not be one, or for which there was no room.
    pub dropped_records: u64,
    /// Messages about users that had no meaning where they came: overtaken, or made up.
    pub dropped_messages: u64,
    /// Users of the masters whose names are known here as others'.
    pub conflicts: u64,
    /// Writes that failed.
    pub failed_writes: u64,
}

/// All that a node knows about users.
#[derive(Debug)]
pub(crate) struct Directory {
    records: Records,
    pending: BTreeMap<String, Pending>,
    /// Names that are registered, whose clients are told when a neighbour knows as well, within twice the heartbeat
    /// timeout. There are no more than clients that register in that time.
    unconfirmed: BTreeMap<String, Unconfirmed>,
    pending_bytes: usize,
    tasks: BTreeMap<TaskId, Task>,
    next_task: u64,
    /// Whether the secret of the LOGIN that is handled next was found right. Empty between two events.
    verdicts: BTreeMap<ConnectionId, bool>,
    storage: Storage,
    /// Who can say that a name is free.
    registrar: Registrar,
    /// How many users the masters are being asked for, and the connection that has just got an answer.
    lookups: usize,
    looked_up: Option<ConnectionId>,
    exchanges: BTreeMap<ConnectionId, Exchange>,
    /// Registrations from a plain tree that it may yet take back.
    revocable: BTreeMap<String, RegistrationId>,
    proof_key: ProofKey,
    clock: WallClock,
    registrations: u64,
    counters: UserCounters,
}

impl Directory {
    /// Takes the users of the run before out of the extensions.
    pub(crate) fn new(config: &mut Config, now: Instant) -> Self {
        let proof_key = ProofKey::new(&config.secret);
        let mut records = Records::new(config.max_user_bytes);
        let (mut is_kept, mut milliseconds) = (false, 0);
        let mut registrar = Registrar::Tree;
        let mut counters = UserCounters::default();
        if let Some(extensions) = &mut config.extensions {
            is_kept = extensions.keeps_users;
            if extensions.users_at_masters {
                registrar = Registrar::Masters;
            }
            milliseconds = extensions.milliseconds_since_1970;
            for record in std::mem::take(&mut extensions.users) {
                if records.merge(record, None, 0) != records::Merged::New {
                    counters.dropped_records += 1;
                }
            }
        }
        Self {
            records,
            pending: BTreeMap::new(),
            unconfirmed: BTreeMap::new(),
            pending_bytes: 0,
            tasks: BTreeMap::new(),
            next_task: 0,
            verdicts: BTreeMap::new(),
            storage: Storage::new(is_kept),
            registrar,
            lookups: 0,
            looked_up: None,
            exchanges: BTreeMap::new(),
            revocable: BTreeMap::new(),
            proof_key,
            clock: WallClock::new(milliseconds, now),
            registrations: 0,
            counters,
        }
    }

    /// Usernames, pending ones included.
    pub(crate) fn len(&self) -> usize {
        self.records.len() + self.pending.len()
    }

    /// Registrations that have not ended.
    pub(crate) fn unsettled(&self) -> usize {
        self.pending.len()
    }

    pub(crate) fn counters(&self) -> UserCounters {
        self.counters
    }

    /// How many users the masters don't have, where they should.
    pub(crate) fn not_stored(&self) -> Option<usize> {
        (self.registrar == Registrar::Masters).then(|| self.records.not_stored())
    }

    pub(crate) fn users(&self) -> impl Iterator<Item = &UserRecord> {
        self.records.iter()
    }

    /// What the clock shows, which may have been set.
    pub(crate) fn set_clock(&mut self, clock: WallClock) {
        self.clock = clock;
    }

    fn is_possible_time(&self, now: Instant, registration: &RegistrationId) -> bool {
        registration.at <= self.clock.milliseconds(now).saturating_add(MAX_AHEAD)
    }

    fn is_possible(&self, now: Instant, record: &UserRecord) -> bool {
        is_username(&record.username) && is_hash(&record.hash) && self.is_possible_time(now, &record.registration)
    }

    fn has_room_for(&self, username: &str, secret: &str, max_registrations: usize) -> bool {
        let bytes = self.records.bytes() + self.pending_bytes + cost(username, secret);
        self.pending.len() < max_registrations && bytes <= self.records.max_bytes()
    }

    fn insert(&mut self, username: String, pending: Pending) {
        self.pending_bytes += cost(&username, pending.secret.expose());
        self.pending.insert(username, pending);
    }

    fn take_pending(&mut self, username: &str, registration: &RegistrationId) -> Option<Pending> {
        self.pending.get(username).filter(|pending| pending.registration == *registration)?;
        let pending = self.pending.remove(username)?;
        self.pending_bytes -= cost(username, pending.secret.expose());
        Some(pending)
    }

    /// Whether a fault that peers can cause again and again is said aloud this time: the first, and some of the others.
    fn is_worth_a_warning(count: u64) -> bool {
        count == 1 || count.is_multiple_of(1000)
    }

    /// A message that means nothing here and now.
    fn drop_message(&mut self) {
        self.counters.dropped_messages += 1;
    }
}

impl Node {
    /// A message about users over an extended link.
    pub(crate) fn on_user_message(
        &mut self,
        now: Instant,
        link: ConnectionId,
        message: Message,
        out: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        match message {
            Message::UserPrepare { registration, credentials } => {
                self.on_user_prepare(now, link, registration, credentials, out);
            }
            Message::UserVote { registration, username, denied } => {
                self.on_user_vote(now, link, &registration, &username, denied, out);
            }
            Message::UserCommit { user, confirm } => self.on_user_commit(now, link, user, confirm, out),
            Message::UserCommitted { registration, username } => {
                self.on_user_committed(now, &registration, &username, out);
            }
            Message::UserAbort { registration, username, committed } => {
                self.on_user_abort(now, link, registration, username, committed, out);
            }
            Message::UserDigest { digest } => self.on_user_digest(link, &digest, out),
            Message::UserRecords { users, more } => self.on_user_records(now, link, users, more, out),
            other => return Err(Refusal::out_of_place_on_a_link(&other)),
        }
        Ok(())
    }

    /// The sessions of a name that was taken back end.
    fn end_sessions_of(&mut self, now: Instant, username: &str, out: &mut Vec<Action>) {
        for (session, _) in self.sessions_of(username) {
            self.refuse(now, session, &Refusal::RegistrationReplaced { username: username.to_owned() }, out);
        }
    }

    /// Whether a client may ask for this name at all.
    fn check_name(&self, username: &str) -> Result<(), Refusal> {
        let is_taken = username == ANONYMOUS
            || self.directory.records.get(username).is_some()
            || self.directory.pending.contains_key(username);
        if is_taken {
            Err(Refusal::NameTaken { username: username.to_owned() })
        } else if !is_username(username) {
            Err(Refusal::CredentialsTooLong)
        } else {
            Ok(())
        }
    }

    pub(crate) fn extended_links(&self) -> Vec<ConnectionId> {
        self.links.iter().copied().filter(|link| self.is_extended_link(*link)).collect()
    }

    fn plain_links(&self) -> Vec<ConnectionId> {
        self.links.iter().copied().filter(|link| !self.is_extended_link(*link)).collect()
    }

    fn send_to_extended(&self, message: &Message, except: Option<ConnectionId>, out: &mut Vec<Action>) {
        let mut line = None;
        for link in self.extended_links().into_iter().filter(|link| Some(*link) != except) {
            let line = line.get_or_insert_with(|| message.to_line()).clone();
            out.push(Action::Send { connection: link, line });
        }
    }
}
