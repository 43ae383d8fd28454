//! The payload: a JSON object that passes through the tree as its author wrote it.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::LazyLock;

use bytes::{BufMut as _, Bytes, BytesMut};
use memchr::memmem::Finder;
use serde::de::{Deserializer as _, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::error::WireError;
use super::limits::MAX_DEPTH;
use super::message::{ACTIVITY_KEY, PLAIN_BROADCAST_HEAD, put_string};

/// The key that a server sets on every activity it takes in from a client.
const AUTHENTICATED_USER: &str = "authenticated_user";

/// The text of one JSON object, kept byte for byte: numbers digit for digit, keys in their order.
#[derive(Clone, PartialEq, Eq)]
pub struct Activity(Bytes);

impl Activity {
    /// Takes the text of a JSON object, as someone typed it.
    ///
    /// # Errors
    /// When it is not one JSON object on one line, or nested too deep to travel inside a message.
    pub fn parse(text: &str) -> Result<Self, WireError> {
        let text = text.trim_ascii();
        if text.is_empty() {
            return Err(WireError::Empty);
        }
        let raw: &RawValue = serde_json::from_str(text).map_err(|error| WireError::NotJson(error.to_string()))?;
        if !raw.get().starts_with('{') || text.contains(['\n', '\r']) {
            return Err(WireError::NotAnObject);
        }
        if super::message::is_deeper_than(MAX_DEPTH - 1, text.as_bytes()) {
            return Err(WireError::TooDeep);
        }
        Self(Bytes::copy_from_slice(text.as_bytes())).check_keys()
    }

    /// Wraps a slice of a line that has already been checked to be a JSON object.
    pub(super) fn from_checked(text: Bytes) -> Self {
        Self(text)
    }

    /// The JSON text.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// A copy that does not keep alive the read buffer it was cut from.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self(Bytes::copy_from_slice(&self.0))
    }

    /// Appends the whole ACTIVITY_BROADCAST line for this activity, `\n` included, with `authenticated_user` set to
    /// `username`, whatever was there before (protocol, Activities). Nothing else changes.
    pub fn write_broadcast(&self, username: &str, out: &mut BytesMut) {
        out.reserve(self.0.len() + username.len() + 96);
        out.put_slice(PLAIN_BROADCAST_HEAD);
        self.write_authenticated_member(username, out);
    }

    /// Appends what follows the head of an ACTIVITY_BROADCAST ([`put_broadcast_head`](super::message::put_broadcast_head))
    /// for this activity, with `authenticated_user` set to `username`: all that is left of the line.
    pub fn write_authenticated_member(&self, username: &str, out: &mut BytesMut) {
        out.put_slice(ACTIVITY_KEY);
        self.write_authenticated(username, out);
        out.put_slice(b"}\n");
    }

    /// The same for an activity that is passed on as it is.
    pub fn write_member(&self, out: &mut BytesMut) {
        out.put_slice(ACTIVITY_KEY);
        out.put_slice(&self.0);
        out.put_slice(b"}\n");
    }

    /// Refuses an activity in which nobody can tell whether it names an author: one whose keys don't decode.
    pub(super) fn check_keys(self) -> Result<Self, WireError> {
        if self.may_name_its_author() {
            members(&self.0).map_err(|error| WireError::NotJson(error.to_string()))?;
        }
        Ok(self)
    }

    fn write_authenticated(&self, username: &str, out: &mut BytesMut) {
        if self.may_name_its_author()
            && let Ok(members) = members(&self.0)
            && members.iter().any(Member::is_author)
        {
            self.replace_author(&members, username, out);
        } else {
            self.append_author(username, out);
        }
    }

    /// A quick no for nearly all activities: without the word itself and without an escape that could spell it, the key
    /// can't be there.
    fn may_name_its_author(&self) -> bool {
        // Made once: that takes longer than looking through an activity of ordinary length.
        static FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(AUTHENTICATED_USER));
        memchr::memchr(b'\\', &self.0).is_some() || FINDER.find(&self.0).is_some()
    }

    /// Puts the author in the place of the first old one, and leaves further old ones out; every other byte stays.
    fn replace_author(&self, members: &[Member<'_>], username: &str, out: &mut BytesMut) {
        let text = |range| self.0.get::<Range<usize>>(range).unwrap_or_default();
        let (mut copied, mut previous_end, mut named) = (0, 0, false);
        for member in members {
            if member.is_author() {
                let kept_until = if named { previous_end } else { member.value.start };
                out.put_slice(text(copied..kept_until));
                copied = member.value.end;
                if !named {
                    put_string(username, out);
                }
                named = true;
            }
            previous_end = member.value.end;
        }
        out.put_slice(text(copied..self.0.len()));
    }

    /// Splices the author in as the last member; every other byte stays.
    fn append_author(&self, username: &str, out: &mut BytesMut) {
        let members = self.0.strip_suffix(b"}").unwrap_or(&self.0).trim_ascii_end();
        out.put_slice(members);
        if !members.ends_with(b"{") {
            out.put_u8(b',');
        }
        put_string(AUTHENTICATED_USER, out);
        out.put_u8(b':');
        put_string(username, out);
        out.put_u8(b'}');
    }
}

impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Activity({self})")
    }
}

/// One member of an object: its key, decoded, and where its value stands in the text.
struct Member<'a> {
    key: Cow<'a, str>,
    value: Range<usize>,
}

impl Member<'_> {
    fn is_author(&self) -> bool {
        self.key == AUTHENTICATED_USER
    }
}

/// The members of an object in their order, duplicates included.
fn members(object: &[u8]) -> Result<Vec<Member<'_>>, serde_json::Error> {
    struct Members {
        text_address: usize,
    }
    impl<'de> Visitor<'de> for Members {
        type Value = Vec<Member<'de>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut members = Vec::new();
            while let Some(Key(key)) = map.next_key()? {
                let value: &RawValue = map.next_value()?;
                // The value is borrowed from the text, so the difference of the addresses is its place there.
                let start = value.get().as_ptr() as usize - self.text_address;
                members.push(Member { key, value: start..start + value.get().len() });
            }
            Ok(members)
        }
    }
    let text = std::str::from_utf8(object).map_err(serde_json::Error::custom)?;
    let text_address = text.as_ptr() as usize;
    serde_json::Deserializer::from_str(text).deserialize_map(Members { text_address })
}

/// A key, borrowed where it holds no escape.
#[derive(serde::Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn broadcast(activity: &str, username: &str) -> String {
        let mut out = BytesMut::new();
        Activity::parse(activity).unwrap().write_broadcast(username, &mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    fn stamped(activity: &str, username: &str) -> String {
        let line = broadcast(activity, username);
        let inner = line.strip_prefix("{\"command\":\"ACTIVITY_BROADCAST\",\"activity\":").unwrap();
        inner.strip_suffix("}\n").unwrap().to_owned()
    }

    #[test]
    fn the_author_is_added_and_every_other_byte_stays() {
        assert_eq!(stamped("{}", "aaron"), r#"{"authenticated_user":"aaron"}"#);
        assert_eq!(stamped("{  }", "aaron"), r#"{"authenticated_user":"aaron"}"#);
        let kept =
            r#"{"z":1.0, "a":12345678901234567890123456789,"n":1e400,"z2":-0,"nested":{"b":[1, 2],"a":"\u00e9"}"#;
        assert_eq!(stamped(&format!("{kept}}}"), "aaron"), format!("{kept},\"authenticated_user\":\"aaron\"}}"));
    }

    #[test]
    fn a_forged_author_is_replaced_where_it_stood() {
        assert_eq!(
            stamped(r#"{"a":1,"authenticated_user":{"x":[]},"b":1.50}"#, "me"),
            r#"{"a":1,"authenticated_user":"me","b":1.50}"#
        );
    }

    #[test]
    fn a_forged_author_is_found_behind_escapes_and_repeats() {
        assert_eq!(
            stamped(r#"{"authenticated\u005fuser":"root","a":"\n","authenticated_user":"root"}"#, "me"),
            r#"{"authenticated\u005fuser":"me","a":"\n"}"#
        );
    }

    #[test]
    fn keys_that_do_not_decode_cannot_hide_a_forged_author() {
        assert!(matches!(Activity::parse(r#"{"\ud800":1,"authenticated_user":"root"}"#), Err(WireError::NotJson(_))));
    }

    #[test]
    fn white_space_and_escapes_of_other_keys_stay_as_they_were() {
        assert_eq!(
            stamped(
                r#"{ "\u00e9" : 1 , "authenticated_user" : null , "b":2, "authenticated_user":3 , "c" : 4 }"#,
                "me"
            ),
            r#"{ "\u00e9" : 1 , "authenticated_user" : "me" , "b":2 , "c" : 4 }"#
        );
    }

    #[test]
    fn the_same_key_deeper_down_is_nobodys_business() {
        assert_eq!(
            stamped(r#"{"actor":{"authenticated_user":"root"},"s":"authenticated_user"}"#, "me"),
            r#"{"actor":{"authenticated_user":"root"},"s":"authenticated_user","authenticated_user":"me"}"#
        );
    }

    #[test]
    fn a_hostile_username_stays_inside_its_string() {
        let name = "\"},\"command\":\"X\n\u{1}\\";
        let value: Value = serde_json::from_str(&broadcast("{}", name)).unwrap();
        assert_eq!(value["activity"]["authenticated_user"], name);
        assert_eq!(broadcast("{}", name).matches('\n').count(), 1);
    }

    #[test]
    fn only_one_object_on_one_line_is_an_activity() {
        for text in ["", " ", "[]", "1", "null", "{", "{}{}", "{} x", "{\"a\":\n1}", "{'a':1}"] {
            assert!(Activity::parse(text).is_err(), "{text:?}");
        }
        assert_eq!(Activity::parse(" {\"a\": 1} ").unwrap().as_bytes(), b"{\"a\": 1}");
    }

    proptest! {
        #[test]
        fn stamping_sets_one_key_and_keeps_the_others(
            keys in prop::collection::btree_map("[a-z\\\\\"é]{0,5}|authenticated_user", "[ -~]{0,8}", 0..6),
            name in "\\PC{0,8}",
        ) {
            let activity = Value::from_iter(keys.iter().map(|(key, value)| (key.clone(), value.clone())));
            let mut expected = activity.clone();
            expected["authenticated_user"] = name.clone().into();
            let found: Value = serde_json::from_str(&stamped(&activity.to_string(), &name)).unwrap();
            prop_assert_eq!(found, expected);
        }
    }
}
