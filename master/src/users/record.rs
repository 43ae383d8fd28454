//! How users stand in etcd: what their keys are called, what is in them, and who has a name. Pure.
//!
//! ```text
//! PREFIX store        a random number, made with the store: which one this is
//! PREFIX users/NAME   one user
//! ```

use arborcast_proto::wire::users::{is_hash, is_username};
use arborcast_proto::wire::{RegistrationId, UserRecord};
use serde::{Deserialize, Serialize};

/// Longest value that can be a user's, in bytes.
const MAX_VALUE: usize = 16 << 10;

/// Longest id of the server that made a registration, in bytes.
const MAX_SERVER: usize = 1024;

/// How values are laid out. Another number is somebody else's, or of a later version.
const FORMAT: u32 = 1;

/// What the keys begin with.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    prefix: String,
}

/// A key or value that is no user's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// Nobody can have such a name.
    Name,
    /// It is longer than any user.
    TooLong,
    /// It is something else.
    Foreign,
}

impl Unusable {
    /// A name for the counters.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::TooLong => "too_long",
            Self::Foreign => "foreign",
        }
    }
}

/// Who has a name, after a registration of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Who asked, since now or since an earlier call.
    Asker,
    /// Somebody else.
    Other(UserRecord),
    /// Nobody, and nobody can have it: what is in its place is no user.
    Nobody,
}

#[derive(Serialize, Deserialize)]
struct Value {
    format: u32,
    hash: String,
    registration: RegistrationId,
}

impl Keys {
    pub(crate) fn new(prefix: String) -> Self {
        Self { prefix }
    }

    /// The key of what says which store this is.
    pub(crate) fn store(&self) -> Vec<u8> {
        format!("{}store", self.prefix).into_bytes()
    }

    /// The key of a user.
    pub(crate) fn user(&self, username: &str) -> Vec<u8> {
        format!("{}users/{username}", self.prefix).into_bytes()
    }

    /// The keys of all users: the first one, and the one behind the last.
    pub(crate) fn users(&self) -> (Vec<u8>, Vec<u8>) {
        // `0` follows `/`.
        (self.user(""), format!("{}users0", self.prefix).into_bytes())
    }

    /// The user of a key and its value.
    pub(crate) fn read(&self, key: &[u8], value: &[u8]) -> Result<UserRecord, Unusable> {
        let username = key.strip_prefix(self.user("").as_slice()).and_then(|name| std::str::from_utf8(name).ok());
        let username = username.filter(|username| is_username(username)).ok_or(Unusable::Name)?;
        if value.len() > MAX_VALUE {
            return Err(Unusable::TooLong);
        }
        let value: Value = serde_json::from_slice(value).map_err(|_| Unusable::Foreign)?;
        let record = UserRecord { username: username.to_owned(), hash: value.hash, registration: value.registration };
        if value.format == FORMAT && check(&record).is_ok() { Ok(record) } else { Err(Unusable::Foreign) }
    }
}

/// What is kept of a user, beside the name.
pub(crate) fn value(record: &UserRecord) -> Vec<u8> {
    let value = Value { format: FORMAT, hash: record.hash.clone(), registration: record.registration.clone() };
    // Strings and numbers always are JSON.
    serde_json::to_vec(&value).unwrap_or_default()
}

/// Whether there can be such a user; otherwise what is wrong.
pub(crate) fn check(record: &UserRecord) -> Result<(), &'static str> {
    if !is_username(&record.username) {
        Err("nobody can have this username")
    } else if !is_hash(&record.hash) {
        Err("the hash is none of argon2id, or would cost too much to verify")
    } else if record.registration.server.len() > MAX_SERVER {
        Err("the id of the server is too long")
    } else {
        Ok(())
    }
}

/// Who has a name that was there already. The same registration is found again by whoever repeats it: its hash has a salt
/// of its own, so no other registration is equal to it.
pub(crate) fn owner(asker: &UserRecord, found: Result<UserRecord, Unusable>) -> Owner {
    match found {
        Ok(found) if found == *asker => Owner::Asker,
        Ok(found) => Owner::Other(found),
        Err(_) => Owner::Nobody,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaA";

    fn record(username: &str, at: u64) -> UserRecord {
        let registration = RegistrationId { at, server: "n1".into(), number: 1 };
        UserRecord { username: username.into(), hash: HASH.into(), registration }
    }

    #[test]
    fn a_user_is_read_as_it_was_written_whatever_the_name() {
        let keys = Keys::new("/arborcast/".into());
        for name in ["aaron", "", "a/b", "grün", "a\0b", "~", &"x".repeat(1024)] {
            let record = record(name, 5);
            assert_eq!(keys.read(&keys.user(name), &value(&record)), Ok(record));
            let (first, behind) = keys.users();
            assert!(first <= keys.user(name) && keys.user(name) < behind, "{name}");
        }
        let (first, behind) = keys.users();
        assert!(!(first..behind).contains(&keys.store()));
    }

    #[test]
    fn what_is_no_user_is_not_taken_for_one() {
        let keys = Keys::new("/arborcast/".into());
        let right = value(&record("aaron", 5));
        let read = |key: &[u8], value: &[u8]| keys.read(key, value).unwrap_err();
        assert_eq!(read(b"/arborcast/users/anonymous", &right), Unusable::Name);
        assert_eq!(read(b"/arborcast/users/\xff", &right), Unusable::Name);
        assert_eq!(read(b"/elsewhere/aaron", &right), Unusable::Name);
        assert_eq!(read(&keys.user(&"x".repeat(1025)), &right), Unusable::Name);
        assert_eq!(read(&keys.user("aaron"), &[b' '; MAX_VALUE + 1]), Unusable::TooLong);
        let other_format = String::from_utf8(right.clone()).unwrap().replace("\"format\":1", "\"format\":2");
        let other_hash = String::from_utf8(right.clone()).unwrap().replace("argon2id", "argon2i");
        for foreign in [&b""[..], b"{}", b"\xff", b"null", other_format.as_bytes(), other_hash.as_bytes()] {
            assert_eq!(read(&keys.user("aaron"), foreign), Unusable::Foreign);
        }
    }

    #[test]
    fn only_the_same_registration_finds_itself() {
        let asker = record("aaron", 5);
        assert_eq!(owner(&asker, Ok(asker.clone())), Owner::Asker);
        for other in [record("aaron", 4), UserRecord { hash: HASH.replace("aGFzaA", "b3RoZXI"), ..asker.clone() }] {
            assert_eq!(owner(&asker, Ok(other.clone())), Owner::Other(other));
        }
        assert_eq!(owner(&asker, Err(Unusable::Foreign)), Owner::Nobody);
    }

    #[test]
    fn nobody_registers_what_could_not_be_read_again() {
        let longest = UserRecord {
            username: "\u{1}".repeat(1024),
            hash: format!("{HASH}{}", "A".repeat(256 - HASH.len())),
            registration: RegistrationId { at: u64::MAX, server: "\u{1}".repeat(MAX_SERVER), number: u64::MAX },
        };
        assert_eq!(check(&longest), Ok(()));
        let keys = Keys::new("/".into());
        assert_eq!(keys.read(&keys.user(&longest.username), &value(&longest)), Ok(longest.clone()));
        let too_long = RegistrationId { server: "x".repeat(MAX_SERVER + 1), ..longest.registration.clone() };
        assert!(check(&UserRecord { registration: too_long, ..longest.clone() }).is_err());
        assert!(check(&UserRecord { username: "anonymous".into(), ..longest.clone() }).is_err());
        assert!(check(&UserRecord { hash: "sesame".into(), ..longest }).is_err());
    }
}
