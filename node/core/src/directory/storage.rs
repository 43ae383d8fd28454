//! Which users are on disk, and which are on their way there: one write at a time, each with everything that waits.

use std::collections::{BTreeSet, VecDeque};

use arborcast_proto::wire::UserRecord;

use super::records::Records;
use crate::ids::WriteId;

/// Most changes of one write; what is left goes with the next.
const MAX_CHANGES: usize = 4096;

/// A change of the users on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserChange {
    /// This user is stored, in place of one of the same name.
    Put(UserRecord),
    /// This name is removed.
    Remove(String),
}

/// The state of the disk as far as the core knows it.
#[derive(Debug)]
pub(crate) struct Storage {
    /// Whether users are kept on disk at all.
    pub(crate) is_kept: bool,
    /// Registrations of this server that are complete when their record is on disk. At most as many as registrations.
    waiting: VecDeque<UserRecord>,
    /// Names whose state in memory is not on disk. At most as many as users were ever in memory at once.
    unwritten: BTreeSet<String>,
    in_flight: Option<Write>,
    next_write: u64,
    /// Writes that failed since the last one that did not.
    failures: u64,
}

#[derive(Debug)]
struct Write {
    id: WriteId,
    registrations: Vec<UserRecord>,
    names: BTreeSet<String>,
}

impl Storage {
    pub(crate) fn new(is_kept: bool) -> Self {
        Self {
            is_kept,
            waiting: VecDeque::new(),
            unwritten: BTreeSet::new(),
            in_flight: None,
            next_write: 0,
            failures: 0,
        }
    }

    /// A registration waits for its record to be on disk.
    pub(crate) fn wait_for(&mut self, record: UserRecord) {
        self.waiting.push_back(record);
    }

    /// What is known of a name has changed in memory.
    pub(crate) fn changed(&mut self, username: &str) {
        if self.is_kept {
            self.unwritten.insert(username.to_owned());
        }
    }

    /// Whether a registration waits.
    pub(crate) fn is_urgent(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// How many writes in a row have failed.
    pub(crate) fn failed(&self) -> u64 {
        self.failures
    }

    pub(crate) fn has_unwritten(&self) -> bool {
        !self.unwritten.is_empty()
    }

    /// Begins the next write, if there is something to write and no write is under way.
    pub(crate) fn next_write(&mut self, records: &Records) -> Option<(WriteId, Vec<UserChange>)> {
        if self.in_flight.is_some() || (self.waiting.is_empty() && self.unwritten.is_empty()) {
            return None;
        }
        let names: BTreeSet<String> = (0..MAX_CHANGES).map_while(|_| self.unwritten.pop_first()).collect();
        let registrations: Vec<_> = self.waiting.drain(..self.waiting.len().min(MAX_CHANGES)).collect();
        let state = |name: &String| match records.get(name) {
            Some(record) => UserChange::Put(record.clone()),
            None => UserChange::Remove(name.clone()),
        };
        let changes = names.iter().map(state).chain(registrations.iter().cloned().map(UserChange::Put)).collect();
        let id = WriteId(self.next_write);
        self.next_write += 1;
        self.in_flight = Some(Write { id, registrations, names });
        Some((id, changes))
    }

    /// A write has ended: returns the registrations that waited for it. What was not written is written later.
    pub(crate) fn ended(&mut self, id: WriteId, is_written: bool) -> Vec<UserRecord> {
        let Some(write) = self.in_flight.take_if(|write| write.id == id) else { return Vec::new() };
        if is_written {
            self.failures = 0;
        } else {
            self.failures += 1;
            self.unwritten.extend(write.names);
        }
        write.registrations
    }
}
