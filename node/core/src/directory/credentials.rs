//! Secrets: hashed and verified outside, since that takes time by design; what was found right is remembered.

use std::time::{Duration, Instant};

use arborcast_proto::wire::limits::quote;
use arborcast_proto::wire::message::ANONYMOUS;
use arborcast_proto::wire::{Credentials, RegistrationId, Secret};
use tracing::{debug, trace, warn};

use super::Directory;
use super::pending::Failure;
use super::records::Proof;
use crate::error::Refusal;
use crate::event::Action;
use crate::ids::{ConnectionId, TaskId, WriteId};
use crate::node::{Hold, Node};
use crate::timer::Timer;
use crate::users::Standing;

/// After a write that failed, and with nothing urgent to write.
const WRITE_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// What an answer from outside is for.
#[derive(Debug)]
pub(super) enum Task {
    /// The secret of a new user is hashed.
    Hash { username: String, registration: RegistrationId },
    /// The secret of a LOGIN is verified.
    Login { connection: ConnectionId, username: String, registration: RegistrationId, proof: Proof },
    /// The secret of a session is compared with the record that has replaced the one it logged in with.
    Session { connection: ConnectionId, username: String, registration: RegistrationId, proof: Proof },
    /// The user of a LOGIN is not known here, and the masters are asked.
    LookUp { connection: ConnectionId },
    /// The secret of a LOCK_REQUEST for a registered name is verified.
    Lock { credentials: Credentials, registration: RegistrationId },
}

impl Directory {
    pub(super) fn begin_task(&mut self, task: Task) -> TaskId {
        let id = TaskId(self.next_task);
        self.next_task += 1;
        self.tasks.insert(id, task);
        id
    }

    pub(super) fn tasks(&self) -> usize {
        self.tasks.len()
    }

    /// Who waits for what the masters say of a user.
    pub(super) fn take_lookup(&mut self, task: TaskId) -> Option<ConnectionId> {
        match self.tasks.remove(&task) {
            Some(Task::LookUp { connection }) => Some(connection),
            _ => None,
        }
    }

    /// Whether this is the secret of a registered name, if that has been verified since the start.
    pub(super) fn is_right(&self, username: &str, secret: &Secret) -> Option<bool> {
        self.records.is_right(username, &self.proof(username, secret)?)
    }

    /// What shows any server of the cluster that this pair was verified (protocol, U9).
    fn proof(&self, username: &str, secret: &Secret) -> Option<Proof> {
        let registration = &self.records.get(username)?.registration;
        Some(self.proof_key.proof(username, registration, secret))
    }

    /// Takes in what came of a verification, unless the name has another registration by now.
    pub(super) fn take_in_verification(
        &mut self,
        username: &str,
        registration: &RegistrationId,
        proof: Proof,
        is_right: bool,
    ) -> Option<bool> {
        self.records.get(username).filter(|record| record.registration == *registration)?;
        if is_right {
            self.records.prove(username, proof);
        }
        Some(is_right)
    }
}

impl Node {
    /// What is known of a pair that somebody logs in with.
    pub(crate) fn standing_in_directory(
        &mut self,
        connection: ConnectionId,
        username: &str,
        secret: Option<&Secret>,
    ) -> Standing {
        if username == ANONYMOUS {
            return Standing::Registered;
        }
        let Some(secret) = secret else { return Standing::OtherSecret };
        let directory = &mut self.directory;
        if directory.records.get(username).is_some() {
            let verdict = directory.verdicts.remove(&connection);
            return match verdict.or_else(|| directory.is_right(username, secret)) {
                Some(true) => Standing::Registered,
                Some(false) => Standing::OtherSecret,
                None => Standing::Unverified,
            };
        }
        match directory.pending.get(username) {
            None => Standing::Free,
            Some(pending) if pending.secret == *secret => Standing::Pending,
            Some(_) => Standing::OtherSecret,
        }
    }

    /// A client shows that some server has verified this pair before.
    pub(crate) fn take_in_proof(&mut self, username: &str, secret: &Secret, shown: &Secret) {
        if let Some(proof) = self.directory.proof(username, secret).filter(|proof| proof.is(shown)) {
            self.directory.records.prove(username, proof);
        }
    }

    /// What a client that is in may show elsewhere.
    pub(crate) fn proof_for(&self, username: &str, secret: Option<&Secret>) -> Option<Secret> {
        self.directory.proof(username, secret?).map(|proof| proof.to_text())
    }

    /// Has the secret of a LOGIN verified; the connection waits for it.
    pub(crate) fn begin_verification(
        &mut self,
        connection: ConnectionId,
        username: &str,
        secret: &Secret,
        out: &mut Vec<Action>,
    ) -> Option<Hold> {
        let record = self.directory.records.get(username)?;
        let (hash, registration) = (record.hash.clone(), record.registration.clone());
        let proof = self.directory.proof_key.proof(username, &registration, secret);
        let username = username.to_owned();
        let task = self.directory.begin_task(Task::Login { connection, username, registration, proof });
        out.push(Action::VerifySecret { task, secret: secret.clone(), hash });
        Some(Hold::Verification(task))
    }

    /// The sessions of a registration that was replaced end, unless their secret is that of the new one as well: whoever
    /// knows the secret is the user (protocol, U7b).
    pub(super) fn verify_sessions_of(&mut self, username: &str, out: &mut Vec<Action>) {
        let Some(record) = self.directory.records.get(username) else { return };
        let (hash, registration) = (record.hash.clone(), record.registration.clone());
        let sessions = self.sessions_of(username);
        let quoted = quote(username);
        warn!(
            username = quoted,
            sessions = sessions.len(),
            "an earlier registration takes the place of one known here"
        );
        for (connection, secret) in sessions {
            let proof = self.directory.proof_key.proof(username, &registration, &secret);
            let (username, registration) = (username.to_owned(), registration.clone());
            let task = self.directory.begin_task(Task::Session { connection, username, registration, proof });
            out.push(Action::VerifySecret { task, secret, hash: hash.clone() });
        }
    }

    /// Nobody waits for the answer any more.
    pub(crate) fn forget_task(&mut self, task: TaskId, out: &mut Vec<Action>) {
        self.directory.tasks.remove(&task);
        out.push(Action::Forget { task });
    }

    pub(crate) fn on_secret_hashed(&mut self, now: Instant, task: TaskId, hash: Option<String>, out: &mut Vec<Action>) {
        match self.directory.tasks.remove(&task) {
            Some(Task::Hash { username, registration }) => {
                self.on_registration_hashed(now, username, registration, hash, out);
            }
            Some(Task::Login { .. } | Task::Session { .. } | Task::Lock { .. } | Task::LookUp { .. }) | None => {
                trace!(?task, "answer that nobody waits for");
            }
        }
    }

    /// What came of a verification; none where too many wait. Then nobody is taken for who they are not, and nobody's secret
    /// is said to be wrong.
    pub(crate) fn on_secret_verified(
        &mut self,
        now: Instant,
        task: TaskId,
        verdict: Option<bool>,
        out: &mut Vec<Action>,
    ) {
        let task = self.directory.tasks.remove(&task);
        let Some(is_right) = verdict else {
            if let Some(Task::Login { connection, .. }) = task {
                self.refuse(now, connection, &Refusal::TooManyLogins, out);
            }
            return;
        };
        match task {
            Some(Task::Login { connection, username, registration, proof }) => {
                let verdict = self.directory.take_in_verification(&username, &registration, proof, is_right);
                self.directory.verdicts.extend(verdict.map(|verdict| (connection, verdict)));
                self.resume(now, connection, out);
                self.directory.verdicts.remove(&connection);
            }
            Some(Task::Session { connection, username, registration, proof }) => {
                let verdict = self.directory.take_in_verification(&username, &registration, proof, is_right);
                if verdict == Some(false) {
                    self.refuse(now, connection, &Refusal::RegistrationReplaced { username }, out);
                }
            }
            Some(Task::Lock { credentials, registration }) => {
                self.on_lock_verified(&credentials, &registration, is_right, out);
            }
            Some(Task::Hash { .. } | Task::LookUp { .. }) | None => trace!("answer that nobody waits for"),
        }
    }

    /// Writes what has to be written, if nothing is being written and the disk was not full a moment ago.
    pub(super) fn write_users(&mut self, out: &mut Vec<Action>) {
        let storage = &mut self.directory.storage;
        if !storage.is_urgent() && self.timers.is_set(&Timer::WriteAgain) {
            return;
        }
        if let Some((write, changes)) = storage.next_write(&self.directory.records) {
            out.push(Action::WriteUsers { write, changes });
        }
    }

    pub(crate) fn on_users_written(
        &mut self,
        now: Instant,
        write: WriteId,
        error: Option<String>,
        out: &mut Vec<Action>,
    ) {
        let registrations = self.directory.storage.ended(write, error.is_none());
        match error {
            None => {
                self.timers.stop(&Timer::WriteAgain);
                for record in registrations {
                    self.commit_registration(now, record, out);
                }
            }
            Some(why) => {
                self.directory.counters.failed_writes += 1;
                if Directory::is_worth_a_warning(self.directory.storage.failed()) {
                    warn!(error = why, "can't write users to disk: registrations are refused");
                } else {
                    debug!(error = why, registrations = registrations.len(), "can't write users to disk");
                }
                if self.directory.storage.has_unwritten() {
                    self.timers.set(Timer::WriteAgain, now + WRITE_AGAIN_AFTER);
                }
                for record in registrations {
                    let failure = Failure::NotWritten(why.clone());
                    self.fail_registration_in_tree(now, &record.username, &record.registration, failure, out);
                }
            }
        }
        self.write_users(out);
    }

    pub(crate) fn on_write_again(&mut self, out: &mut Vec<Action>) {
        self.write_users(out);
    }
}
