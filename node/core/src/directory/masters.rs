//! Users that masters keep: a name is registered there and nowhere else, and what is known here is a copy for logins
//! (protocol, U10 to U16).

use std::time::Instant;

use arborcast_proto::wire::Denial;
use arborcast_proto::wire::UserRecord;
use arborcast_proto::wire::limits::quote;
use arborcast_proto::wire::users::is_username;
use tracing::{error, info, warn};

use super::Directory;
use super::credentials::Task;
use super::pending::{Failure, Stage};
use crate::event::Action;
use crate::ids::{ConnectionId, TaskId};
use crate::node::{Hold, Node};

/// Most users that the masters are asked for at one time (protocol, B51).
const MAX_LOOKUPS: usize = 1000;

/// Who can say that a name is free. Set at the start, and but for one step never changed: servers that asked now the tree and
/// now the masters would give a name to two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Registrar {
    /// The servers of the tree together.
    Tree,
    /// The masters.
    Masters,
    /// Nobody that this server may ask: it was told that the masters keep users, and started to ask the tree.
    Nobody,
}

/// What came of asking the masters for a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AtMasters {
    /// It is this user's.
    Registered,
    /// It is another's: whose, if that can be said.
    Taken(Option<UserRecord>),
    /// Nobody could say, for this reason. It may be this user's nevertheless.
    Unknown(String),
}

/// What the users are that masters tell of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// A part of all users.
    Whole {
        /// The first one.
        is_first: bool,
        /// The last one.
        is_last: bool,
    },
    /// Some that were added.
    Added,
}

impl Node {
    /// What came of a registration.
    pub(crate) fn on_user_registered(
        &mut self,
        now: Instant,
        record: UserRecord,
        outcome: AtMasters,
        out: &mut Vec<Action>,
    ) {
        let (username, registration) = (record.username.clone(), record.registration.clone());
        match outcome {
            AtMasters::Registered => {
                let is_awaited =
                    self.directory.pending.get(&username).is_some_and(|own| own.registration == registration);
                if is_awaited {
                    self.directory.storage.changed(&username);
                    self.commit_registration(now, record.clone(), out);
                    self.note_stored(&record);
                } else {
                    self.take_stored(now, record, out);
                }
            }
            AtMasters::Taken(owner) => {
                if let Some(owner) = owner.filter(|owner| owner.username == username) {
                    self.take_stored(now, owner, out);
                }
                let failure = Failure::Denied(Denial::Taken);
                self.fail_registration_in_tree(now, &username, &registration, failure, out);
            }
            AtMasters::Unknown(why) => {
                self.fail_registration_in_tree(now, &username, &registration, Failure::NoMaster(why), out);
            }
        }
        self.write_users(out);
    }

    /// Users that the masters have.
    pub(crate) fn on_users_told(&mut self, now: Instant, users: Vec<UserRecord>, told: Told, out: &mut Vec<Action>) {
        if matches!(told, Told::Whole { is_first: true, .. }) {
            self.directory.records.forget_stored();
        }
        for user in users {
            self.take_stored(now, user, out);
        }
        if matches!(told, Told::Whole { is_last: true, .. }) {
            let (users, not_stored) = (self.directory.records.len(), self.directory.records.not_stored());
            info!(users, "the masters have told of all users");
            if not_stored > 0 {
                warn!(
                    users = not_stored,
                    "the masters don't have all users that are known here: these can log in, and nobody else gets their \
                     names from this server; `arborcast-node import-users` brings them to the masters"
                );
            }
        }
        self.write_users(out);
    }

    /// A user that the masters have. Of two registrations of a name the earlier one counts here as well (U7a), so who has a
    /// name keeps it where the masters have lost it and given it to another.
    fn take_stored(&mut self, now: Instant, record: UserRecord, out: &mut Vec<Action>) {
        self.take_record(now, record.clone(), out);
        self.note_stored(&record);
    }

    fn note_stored(&mut self, record: &UserRecord) {
        let is_known = self.directory.records.get(&record.username).is_some();
        if !self.directory.records.mark_stored(record) && is_known {
            self.directory.counters.conflicts += 1;
            if Directory::is_worth_a_warning(self.directory.counters.conflicts) {
                let username = quote(&record.username);
                warn!(
                    username,
                    "the masters have another registration of a name that is known here; the earlier one counts"
                );
            }
        }
    }

    /// Asks the masters for a user that logs in and is not known here; the connection waits for it. `None` where that can't
    /// help.
    pub(crate) fn begin_lookup(
        &mut self,
        connection: ConnectionId,
        username: &str,
        out: &mut Vec<Action>,
    ) -> Option<Hold> {
        let directory = &mut self.directory;
        let can_help = directory.registrar == Registrar::Masters
            && directory.looked_up != Some(connection)
            && directory.lookups < MAX_LOOKUPS
            && is_username(username);
        if !can_help {
            return None;
        }
        directory.lookups += 1;
        let task = directory.begin_task(Task::LookUp { connection });
        out.push(Action::LookUpUser { task, username: username.to_owned() });
        Some(Hold::Verification(task))
    }

    /// What the masters say of a user; none if nobody has the name, or they can't be asked.
    pub(crate) fn on_user_looked_up(
        &mut self,
        now: Instant,
        task: TaskId,
        user: Option<UserRecord>,
        out: &mut Vec<Action>,
    ) {
        self.directory.lookups = self.directory.lookups.saturating_sub(1);
        if let Some(user) = user {
            self.take_stored(now, user, out);
            self.write_users(out);
        }
        if let Some(connection) = self.directory.take_lookup(task) {
            self.directory.looked_up = Some(connection);
            self.resume(now, connection, out);
            self.directory.looked_up = None;
        }
    }

    /// A master says that users are registered there. A server that was not started so registers nothing any more, since
    /// names would get two owners.
    pub(crate) fn on_masters_keep_users(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.directory.registrar != Registrar::Tree {
            return;
        }
        error!(
            "the masters keep the users of this tree: this node registers nobody until it is started with --users masters"
        );
        self.directory.registrar = Registrar::Nobody;
        // What a server has voted for is its asker's to end.
        let begun = self.directory.pending.iter().filter(|(_, pending)| pending.stage != Stage::Voted);
        let begun: Vec<_> = begun.map(|(username, pending)| (username.clone(), pending.registration.clone())).collect();
        for (username, registration) in begun {
            self.fail_registration_in_tree(now, &username, &registration, Failure::Denied(Denial::AtMasters), out);
        }
    }
}
