//! The two messages of which there are by far the most, read in the form in which nearly everybody writes them: no white
//! space around the envelope, fields in their usual order, no escapes in it.
//!
//! Whatever looks different in any way is left to [`Message::parse`], so nothing here decides what is valid, but for one
//! thing: the activity must be one JSON value.

use bytes::Bytes;
use serde_json::value::RawValue;

use super::activity::Activity;
use super::message::{ANONYMOUS, Message};
use super::relay::{Origin, PublicationId, RelayTag, is_session_id};

const MESSAGE: &str = r#"{"command":"ACTIVITY_MESSAGE","username":""#;
const BROADCAST: &str = r#"{"command":"ACTIVITY_BROADCAST""#;
const ACTIVITY: &str = r#","activity":"#;

/// Digits of a number that surely fits in 64 bits.
const MAX_DIGITS: usize = 19;

/// Reads an activity of the usual form; `None` if it is not one. `text` is `line` as text.
pub(super) fn parse(text: &str, line: &Bytes) -> Option<Message> {
    if let Some(rest) = text.strip_prefix(MESSAGE) {
        let (username, rest) = string(rest)?;
        let (secret, rest) = optional(rest, r#","secret":""#, string)?;
        let (number, rest) = optional(rest, r#","number":"#, number)?;
        if secret.is_none() && username != ANONYMOUS {
            return None;
        }
        let activity = activity(rest, line)?.check_keys().ok()?;
        return Some(Message::ActivityMessage {
            username: username.to_owned(),
            secret: secret.map(Into::into),
            number,
            activity,
        });
    }
    let rest = text.strip_prefix(BROADCAST)?;
    let (relay, rest) = optional(rest, r#","origin":""#, relay)?;
    Some(Message::ActivityBroadcast { relay, activity: activity(rest, line)? })
}

/// The rest of the line: the activity, which is an object, and the end of the envelope.
fn activity(rest: &str, line: &Bytes) -> Option<Activity> {
    let value = rest.strip_prefix(ACTIVITY)?.strip_suffix('}')?;
    if !value.starts_with('{') {
        return None;
    }
    let raw: &RawValue = serde_json::from_str(value).ok()?;
    Some(Activity::from_checked(line.slice_ref(raw.get().as_bytes())))
}

/// What stands behind `"origin":"`.
fn relay(rest: &str) -> Option<(RelayTag, &str)> {
    let (origin, rest) = string(rest)?;
    let (seq, rest) = number(rest.strip_prefix(r#","seq":"#)?)?;
    let (publication, rest) = optional(rest, r#","session":""#, |rest| {
        let (session, rest) = string(rest)?;
        let (number, rest) = number(rest.strip_prefix(r#","number":"#)?)?;
        is_session_id(session).then(|| (PublicationId { session: session.into(), number }, rest))
    })?;
    let origin = Origin::from_text(origin)?;
    (seq > 0).then_some((RelayTag { origin, seq, publication }, rest))
}

/// What `read` makes of what stands behind `prefix`, if that is there, and the rest.
fn optional<'a, T>(
    text: &'a str,
    prefix: &str,
    read: impl FnOnce(&'a str) -> Option<(T, &'a str)>,
) -> Option<(Option<T>, &'a str)> {
    match text.strip_prefix(prefix) {
        None => Some((None, text)),
        Some(rest) => read(rest).map(|(value, rest)| (Some(value), rest)),
    }
}

/// The rest of a string without escapes, and what stands behind its end.
fn string(text: &str) -> Option<(&str, &str)> {
    let end = text.bytes().position(|byte| byte == b'"' || byte == b'\\' || byte < b' ')?;
    let (string, rest) = text.split_at(end);
    Some((string, rest.strip_prefix('"')?))
}

fn number(text: &str) -> Option<(u64, &str)> {
    let end = text.bytes().position(|byte| !byte.is_ascii_digit())?;
    let (digits, rest) = text.split_at(end);
    let is_usual = digits.len() <= MAX_DIGITS && (digits == "0" || !digits.starts_with('0'));
    // What follows must end a number: a fraction or an exponent does not.
    if !is_usual || !rest.starts_with([',', '}']) {
        return None;
    }
    Some((digits.parse().ok()?, rest))
}
