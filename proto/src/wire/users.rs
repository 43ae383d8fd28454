//! What extended servers tell each other about users (protocol, Users in an extended tree).

use serde::{Deserialize, Serialize};

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
    /// A server on the way was lost, or did not answer in time. Trying again may help.
    Incomplete,
    /// A bound is reached somewhere.
    NoRoom,
    /// Somebody else registers the name at the same time, and began earlier.
    Pending,
    /// The name is registered.
    Taken,
}
