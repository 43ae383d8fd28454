//! What activities carry between extended servers, and what servers and clients say of what they have (protocol, Relay).

use std::collections::BTreeMap;
use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::secret::Secret;

/// Longest id of an origin, in bytes.
pub const MAX_ORIGIN_ID: usize = 128;

/// Longest session id, in bytes.
pub const MAX_SESSION_ID: usize = 64;

/// Most origins in one [`Have`] that are looked at.
pub const MAX_ORIGINS: usize = 4096;

/// One run of one server, as the place where activities enter the tree. On the wire `INCARNATION/ID`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// The server's id; at most [`MAX_ORIGIN_ID`] bytes.
    pub id: Box<str>,
    /// Which run of it.
    pub incarnation: u64,
}

impl Origin {
    /// Reads what [`Display`](fmt::Display) writes.
    pub(super) fn from_text(text: &str) -> Option<Self> {
        let (incarnation, id) = text.split_once('/').filter(|(_, id)| (1..=MAX_ORIGIN_ID).contains(&id.len()))?;
        Some(Self { id: id.into(), incarnation: incarnation.parse().ok()? })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.incarnation, self.id)
    }
}

impl Serialize for Origin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Origin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::from_text(&text).ok_or_else(|| D::Error::custom("an origin is INCARNATION/ID"))
    }
}

/// Of each origin the highest number up to which nothing is missing.
pub type Have = BTreeMap<Origin, u64>;

/// Which activity of which client session. A client that is not told that an activity is acknowledged publishes it again
/// under the same pair, wherever it lands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublicationId {
    /// The session's id; 1 to [`MAX_SESSION_ID`] bytes.
    pub session: Box<str>,
    /// Counts from 1.
    pub number: u64,
}

/// What names an activity everywhere in an extended tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayTag {
    /// Where it entered the tree.
    pub origin: Origin,
    /// Which of that origin's it is; counts from 1.
    pub seq: u64,
    /// How its publisher calls it, if it numbers what it publishes.
    pub publication: Option<PublicationId>,
}

/// A LOGIN's wish for a session that is acknowledged and resumed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// The session's id, chosen at random by the client, and the same wherever it logs in again.
    #[serde(deserialize_with = "session_id")]
    pub session: Box<str>,
    /// What the client has received so far; absent at the first login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub have: Option<Have>,
    /// What a server answered to an earlier login with this name and secret.
    #[serde(default, deserialize_with = "proof", skip_serializing_if = "Option::is_none")]
    pub proof: Option<Secret>,
}

fn proof<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Secret>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(Secret::from))
}

/// Reads a session id of a length that is allowed.
pub(super) fn session_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Box<str>, D::Error> {
    let text = Box::<str>::deserialize(deserializer)?;
    if is_session_id(&text) { Ok(text) } else { Err(D::Error::custom("a session id has 1 to 64 bytes")) }
}

/// Whether a session id has a length that is allowed.
pub(super) fn is_session_id(text: &str) -> bool {
    (1..=MAX_SESSION_ID).contains(&text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_read_as_it_is_written_whatever_its_id() {
        for id in ["n1", "a/b", "ü"] {
            let origin = Origin { id: id.into(), incarnation: 7 };
            let text = serde_json::to_string(&origin).unwrap();
            assert_eq!(text, format!("\"7/{id}\""));
            assert_eq!(serde_json::from_str::<Origin>(&text).unwrap(), origin);
        }
        for text in [r#""7""#, r#""x/n""#, r#""7/""#, "7", r#""-1/n""#] {
            assert!(serde_json::from_str::<Origin>(text).is_err(), "{text}");
        }
        assert!(serde_json::from_str::<Origin>(&format!("\"1/{}\"", "x".repeat(129))).is_err());
    }

    #[test]
    fn a_session_id_has_a_bounded_length() {
        assert!(serde_json::from_str::<Resume>(r#"{"session":"s"}"#).is_ok());
        assert!(serde_json::from_str::<Resume>(r#"{"session":""}"#).is_err());
        assert!(serde_json::from_str::<Resume>(&format!(r#"{{"session":"{}"}}"#, "x".repeat(65))).is_err());
    }
}
