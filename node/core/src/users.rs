//! Who has registered.

use std::collections::BTreeMap;

use arborcast_proto::wire::{Credentials, Secret};

/// What is known of a username.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nobody has the name.
    Free,
    /// Registered with this secret.
    Registered,
    /// Being registered with this secret by some other server's client; may yet be denied.
    Pending,
    /// Registered, or being registered, with another secret.
    OtherSecret,
    /// Registered in an extended tree; whether with this secret has to be found out.
    Unverified,
}

/// The usernames of the tree with their secrets, bounded in bytes.
#[derive(Debug)]
pub(crate) struct Users {
    records: BTreeMap<String, Record>,
    bytes: usize,
    max_bytes: usize,
}

#[derive(Debug)]
struct Record {
    secret: Secret,
    settled: bool,
}

/// The store is at its bound.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// What a record costs besides its two strings.
const RECORD_OVERHEAD: usize = 96;

impl Users {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self { records: BTreeMap::new(), bytes: 0, max_bytes }
    }

    /// Stores a pair as pending unless the name is there already.
    pub(crate) fn store_pending(&mut self, credentials: &Credentials) -> Result<(), Full> {
        self.store(credentials, false)
    }

    /// Stores a pair for good, or settles it where it is pending.
    pub(crate) fn store_registered(&mut self, credentials: &Credentials) -> Result<(), Full> {
        self.store(credentials, true)
    }

    fn store(&mut self, credentials: &Credentials, settled: bool) -> Result<(), Full> {
        if let Some(record) = self.records.get_mut(&credentials.username) {
            record.settled |= settled;
            return Ok(());
        }
        let cost = cost(credentials);
        if self.bytes + cost > self.max_bytes {
            return Err(Full);
        }
        self.bytes += cost;
        self.records.insert(credentials.username.clone(), Record { secret: credentials.secret.clone(), settled });
        Ok(())
    }

    /// A pending name becomes a registered one.
    pub(crate) fn settle(&mut self, username: &str) {
        if let Some(record) = self.records.get_mut(username) {
            record.settled = true;
        }
    }

    /// Removes the name if it is stored with exactly this secret.
    pub(crate) fn remove(&mut self, credentials: &Credentials) -> bool {
        let stored = self.records.get(&credentials.username);
        if stored.is_none_or(|record| record.secret != credentials.secret) {
            return false;
        }
        self.bytes -= cost(credentials);
        self.records.remove(&credentials.username).is_some()
    }

    pub(crate) fn knows(&self, username: &str) -> bool {
        self.records.contains_key(username)
    }

    pub(crate) fn standing(&self, username: &str, secret: &Secret) -> Standing {
        match self.records.get(username) {
            None => Standing::Free,
            Some(record) if record.secret != *secret => Standing::OtherSecret,
            Some(record) if record.settled => Standing::Registered,
            Some(_) => Standing::Pending,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }
}

fn cost(credentials: &Credentials) -> usize {
    2 * credentials.username.len() + credentials.secret.expose().len() + RECORD_OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(username: &str, secret: &str) -> Credentials {
        Credentials { username: username.into(), secret: secret.into() }
    }

    #[test]
    fn a_name_has_one_secret_and_only_that_one_removes_it() {
        let mut users = Users::new(1 << 20);
        users.store_pending(&pair("aaron", "a")).unwrap();
        assert_eq!(users.standing("aaron", &"a".into()), Standing::Pending);
        assert_eq!(users.standing("aaron", &"b".into()), Standing::OtherSecret);
        assert_eq!(users.standing("berta", &"a".into()), Standing::Free);
        assert!(!users.remove(&pair("aaron", "b")));
        users.settle("aaron");
        users.store_pending(&pair("aaron", "a")).unwrap();
        assert_eq!(users.standing("aaron", &"a".into()), Standing::Registered);
        assert!(users.remove(&pair("aaron", "a")));
        assert!(!users.knows("aaron"));
        assert_eq!(users.bytes, 0);
    }

    #[test]
    fn the_store_is_bounded_in_bytes_and_room_comes_back() {
        let mut users = Users::new(3 * RECORD_OVERHEAD);
        users.store_registered(&pair("aaron", "a")).unwrap();
        users.store_registered(&pair("berta", "b")).unwrap();
        assert_eq!(users.store_registered(&pair("clara", "c")), Err(Full));
        assert!(users.remove(&pair("aaron", "a")));
        users.store_pending(&pair("clara", "c")).unwrap();
        assert_eq!(users.len(), 2);
    }
}
