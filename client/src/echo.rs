//! Whether an activity that arrived is one that was published.

use std::borrow::Cow;

use arborcast_proto::wire::{Activity, Message};
use bytes::BytesMut;
use serde::Deserialize;
use serde_json::Value;

/// Whether `arrived` is what became of the activity that servers are expected to send as `expected`.
///
/// The plain protocol has no acknowledgement, but a sender gets its own broadcast, and order per sender is kept. So only
/// the oldest is looked for, and whatever else arrives in between is somebody else's. Two sessions of one user that
/// publish equal activities cannot tell whose came back.
pub(crate) fn is_echo(expected: &Activity, arrived: &Activity, username: &str) -> bool {
    expected == arrived || (is_by(username, arrived) && is_rewritten(expected, arrived))
}

/// The activity as the server that takes it in passes it on.
pub(crate) fn stamped(activity: &Activity, username: &str) -> Activity {
    let mut line = BytesMut::new();
    activity.write_broadcast(username, &mut line);
    line.truncate(line.len().saturating_sub(1));
    match Message::parse(&line.freeze()) {
        Ok(Message::ActivityBroadcast { activity, .. }) => activity,
        // Not reached, since an `Activity` always makes a broadcast. It would be an echo that is never recognised.
        _ => activity.clone(),
    }
}

/// A cheap look at the author, since most of what arrives is by others.
fn is_by(username: &str, activity: &Activity) -> bool {
    #[derive(Deserialize)]
    struct Author<'a> {
        #[serde(borrow)]
        authenticated_user: Cow<'a, str>,
    }
    serde_json::from_slice(activity.as_bytes()).is_ok_and(|author: Author<'_>| author.authenticated_user == username)
}

/// Whether both mean the same JSON: other people's servers parse activities and write them anew.
fn is_rewritten(one: &Activity, other: &Activity) -> bool {
    let value = |activity: &Activity| serde_json::from_slice::<Value>(activity.as_bytes());
    matches!((value(one), value(other)), (Ok(one), Ok(other)) if is_same(&one, &other))
}

/// Equality that takes `1`, `1.0` and `1e0` for the same number, as most JSON writers do.
fn is_same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| is_same(one, other))
        }
        (Value::Number(one), Value::Number(other)) => one == other || one.as_f64() == other.as_f64(),
        (Value::Object(one), Value::Object(other)) => {
            let has_same = |(key, value)| other.get(key).is_some_and(|other| is_same(value, other));
            one.len() == other.len() && one.iter().all(has_same)
        }
        _ => one == other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn activity(text: &str) -> Activity {
        Activity::parse(text).unwrap()
    }

    fn is_echo_of(sent: &str, arrived: &str) -> bool {
        is_echo(&stamped(&activity(sent), "aaron"), &activity(arrived), "aaron")
    }

    #[test]
    fn an_echo_is_recognised_as_it_was_sent_and_as_it_may_be_rewritten() {
        let sent = r#"{"z":1.0,"a":[1,{"b":null}],"é":"\u00e9"}"#;
        assert!(is_echo_of(sent, r#"{"z":1.0,"a":[1,{"b":null}],"é":"\u00e9","authenticated_user":"aaron"}"#));
        assert!(is_echo_of(sent, r#"{"authenticated_user":"aaron", "a":[1.0,{"b":null}],"\u00e9":"é","z":1}"#));
        assert!(is_echo_of(
            r#"{"n":12345678901234567890123}"#,
            r#"{"n":1.2345678901234568e22,"authenticated_user":"aaron"}"#
        ));
    }

    #[test]
    fn a_number_no_parser_takes_still_comes_back_byte_for_byte() {
        assert!(is_echo_of(r#"{"n":1e400}"#, r#"{"n":1e400,"authenticated_user":"aaron"}"#));
        assert!(!is_echo_of(r#"{"n":1e400}"#, r#"{"n":1e401,"authenticated_user":"aaron"}"#));
    }

    #[test]
    fn others_activities_are_no_echo() {
        for arrived in [
            r#"{"a":1,"authenticated_user":"bert"}"#,
            r#"{"a":1}"#,
            r#"{"a":2,"authenticated_user":"aaron"}"#,
            r#"{"a":[1],"authenticated_user":"aaron"}"#,
            r#"{"a":1,"b":1,"authenticated_user":"aaron"}"#,
            r#"{"a":1,"authenticated_user":["aaron"]}"#,
        ] {
            assert!(!is_echo_of(r#"{"a":1}"#, arrived), "{arrived}");
        }
    }
}
