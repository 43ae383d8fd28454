//! What extended servers tell each other about users (protocol, Users in an extended tree).

use serde::{Deserialize, Serialize};

use super::message::ANONYMOUS;

/// Longest username in an extended tree, in bytes (protocol, B43).
pub const MAX_USERNAME: usize = 1024;

/// Longest hash, in bytes (protocol, B43).
const MAX_HASH: usize = 256;

/// What somebody who can choose the parameters of a hash may make others spend on a login: KiB, passes, lanes.
const MAX_COST: [u32; 3] = [256 << 10, 16, 16];

/// One registration: who asked first, as far as clocks can tell. Of two registrations of a name the smaller wins,
/// wherever they meet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RegistrationId {
    /// When it began, in milliseconds since 1970, by the clock of the server that was asked.
    pub at: u64,
    /// The id of the server that was asked.
    pub server: String,
    /// Which of that server's registrations.
    pub number: u64,
}

/// A registered user. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRecord {
    /// The user's name.
    pub username: String,
    /// The argon2id hash of the secret, in PHC string format.
    pub hash: String,
    /// The registration that made it.
    pub registration: RegistrationId,
}

/// Why a registration can't go ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Denial {
    /// Users are registered at the masters, and the server that asks does not know.
    AtMasters,
    /// A server on the way was lost, or did not answer in time. Trying again may help.
    Incomplete,
    /// A bound is reached somewhere.
    NoRoom,
    /// Somebody else registers the name at the same time, and began earlier.
    Pending,
    /// The name is registered.
    Taken,
}

/// Whether a name can be one of an extended tree.
pub fn is_username(username: &str) -> bool {
    username != ANONYMOUS && username.len() <= MAX_USERNAME
}

/// Whether a text has the form of an argon2id hash (PHC string format) that may be verified here.
pub fn is_hash(hash: &str) -> bool {
    let mut parts = hash.split('$');
    let has_form = parts.next() == Some("") && parts.next() == Some("argon2id") && parts.next() == Some("v=19");
    let is_affordable = parts.next().is_some_and(|parameters| {
        let mut parameters = parameters.split(',');
        let all = ["m=", "t=", "p="].iter().zip(MAX_COST).all(|(name, max)| {
            let value = parameters.next().and_then(|parameter| parameter.strip_prefix(name)?.parse::<u32>().ok());
            value.is_some_and(|value| (1..=max).contains(&value))
        });
        all && parameters.next().is_none()
    });
    let is_base64 = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/')
    };
    let rest = parts.next().is_some_and(is_base64) && parts.next().is_some_and(is_base64) && parts.next().is_none();
    hash.len() <= MAX_HASH && has_form && is_affordable && rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaA";

    #[test]
    fn only_hashes_that_can_be_verified_at_a_bearable_price_are_hashes() {
        assert!(is_hash(HASH));
        for wrong in [
            "",
            "secret",
            "$argon2id$x",
            "$argon2i$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaA",
            "$argon2id$v=19$m=4194304,t=2,p=1$c2FsdHNhbHQ$aGFzaA",
            "$argon2id$v=19$m=19456,t=2000,p=1$c2FsdHNhbHQ$aGFzaA",
            "$argon2id$v=19$m=19456,t=2$c2FsdHNhbHQ$aGFzaA",
            "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$",
            "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGF zaA",
            "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaA$more",
        ] {
            assert!(!is_hash(wrong), "{wrong}");
        }
        assert!(!is_hash(&format!("{HASH}{}", "A".repeat(300))));
    }
}
