//! Which published activities have not come back yet.

use std::borrow::Cow;
use std::collections::VecDeque;

use arborcast_proto::wire::{Activity, Message};
use bytes::BytesMut;
use serde::Deserialize;
use serde_json::Value;

use crate::options::Options;

/// The activities of one publisher that are on their way, oldest first.
///
/// The plain protocol has no acknowledgement, but a sender gets its own broadcast, and order per sender is kept. So only
/// the oldest is looked for, and whatever else arrives in between is somebody else's. Two sessions of one user that
/// publish equal activities cannot tell whose came back.
#[derive(Debug)]
pub(crate) struct Unechoed {
    username: String,
    max_messages: usize,
    max_bytes: usize,
    activities: VecDeque<Activity>,
    bytes: usize,
    /// The oldest as a server will send it, made when first needed.
    expected: Option<Activity>,
}

impl Unechoed {
    pub(crate) fn new(username: &str, options: &Options) -> Self {
        Self {
            username: username.to_owned(),
            max_messages: options.window_messages,
            max_bytes: options.window_bytes,
            activities: VecDeque::new(),
            bytes: 0,
            expected: None,
        }
    }

    pub(crate) fn push(&mut self, activity: Activity) {
        self.bytes += activity.as_bytes().len();
        self.activities.push_back(activity);
    }

    /// Takes an activity that arrived, and says whether it was the oldest coming back.
    pub(crate) fn handle_arrival(&mut self, arrived: &Activity) -> bool {
        let Some(oldest) = self.activities.front() else { return false };
        let expected = self.expected.get_or_insert_with(|| stamped(oldest, &self.username));
        if expected != arrived && !(is_by(&self.username, arrived) && is_rewritten(expected, arrived)) {
            return false;
        }
        self.bytes -= oldest.as_bytes().len();
        self.activities.pop_front();
        self.expected = None;
        true
    }

    /// Whether another one may be sent.
    pub(crate) fn has_room(&self) -> bool {
        self.is_empty() || (self.activities.len() < self.max_messages && self.bytes < self.max_bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.activities.is_empty()
    }

    /// What to send again at another server.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Activity> {
        self.activities.iter()
    }
}

/// The activity as the server that takes it in passes it on.
fn stamped(activity: &Activity, username: &str) -> Activity {
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
    use proptest::prelude::*;

    use super::*;

    fn activity(text: &str) -> Activity {
        Activity::parse(text).unwrap()
    }

    fn unechoed(activities: &[&str]) -> Unechoed {
        let mut unechoed = Unechoed::new("aaron", &Options::default());
        activities.iter().for_each(|text| unechoed.push(activity(text)));
        unechoed
    }

    fn is_echo(sent: &str, arrived: &str) -> bool {
        unechoed(&[sent]).handle_arrival(&activity(arrived))
    }

    #[test]
    fn an_echo_is_recognised_as_it_was_sent_and_as_it_may_be_rewritten() {
        let sent = r#"{"z":1.0,"a":[1,{"b":null}],"é":"\u00e9"}"#;
        assert!(is_echo(sent, r#"{"z":1.0,"a":[1,{"b":null}],"é":"\u00e9","authenticated_user":"aaron"}"#));
        assert!(is_echo(sent, r#"{"authenticated_user":"aaron", "a":[1.0,{"b":null}],"\u00e9":"é","z":1}"#));
        assert!(is_echo(
            r#"{"n":12345678901234567890123}"#,
            r#"{"n":1.2345678901234568e22,"authenticated_user":"aaron"}"#
        ));
    }

    #[test]
    fn a_number_no_parser_takes_still_comes_back_byte_for_byte() {
        assert!(is_echo(r#"{"n":1e400}"#, r#"{"n":1e400,"authenticated_user":"aaron"}"#));
        assert!(!is_echo(r#"{"n":1e400}"#, r#"{"n":1e401,"authenticated_user":"aaron"}"#));
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
            assert!(!is_echo(r#"{"a":1}"#, arrived), "{arrived}");
        }
    }

    #[test]
    fn another_session_of_the_same_user_in_between_does_not_get_in_the_way() {
        let mut unechoed = unechoed(&[r#"{"n":1}"#, r#"{"n":2}"#]);
        for (n, is_ours) in [(7, false), (2, false), (1, true), (1, false), (2, true), (2, false)] {
            let arrived = activity(&format!(r#"{{"n":{n},"authenticated_user":"aaron"}}"#));
            assert_eq!(unechoed.handle_arrival(&arrived), is_ours, "{n}");
        }
        assert!(unechoed.is_empty());
    }

    #[test]
    fn the_window_is_bounded_in_messages_and_in_bytes() {
        let options = Options { window_messages: 2, window_bytes: 20, ..Options::default() };
        let mut unechoed = Unechoed::new("aaron", &options);
        unechoed.push(activity(r#"{"n":1}"#));
        assert!(unechoed.has_room());
        unechoed.push(activity(r#"{"n":2}"#));
        assert!(!unechoed.has_room());
        assert!(unechoed.handle_arrival(&activity(r#"{"n":1,"authenticated_user":"aaron"}"#)));
        assert!(unechoed.has_room());
        unechoed.push(activity(r#"{"long":"0123456789"}"#));
        assert!(unechoed.handle_arrival(&activity(r#"{"n":2,"authenticated_user":"aaron"}"#)));
        assert!(!unechoed.has_room());
    }

    #[test]
    fn a_window_of_nothing_still_lets_one_through() {
        let options = Options { window_messages: 0, window_bytes: 0, ..Options::default() };
        assert!(Unechoed::new("aaron", &options).has_room());
    }

    proptest! {
        #[test]
        fn a_rewritten_stream_among_others_is_matched_one_by_one(
            texts in prop::collection::vec("\\PC{0,8}", 0..20), forged in any::<bool>(),
        ) {
            let mut unechoed = unechoed(&[]);
            let forgery = if forged { r#","authenticated_user":"root""# } else { "" };
            for text in &texts {
                unechoed.push(activity(&format!(r#"{{"z":{},"a":1.50{forgery}}}"#, Value::from(text.as_str()))));
            }
            for text in &texts {
                let mut echo = serde_json::json!({ "a": 1.5, "authenticated_user": "bert", "z": text });
                prop_assert!(!unechoed.handle_arrival(&activity(&echo.to_string())));
                echo["authenticated_user"] = "aaron".into();
                prop_assert!(unechoed.handle_arrival(&activity(&echo.to_string())));
            }
            prop_assert!(unechoed.is_empty() && unechoed.bytes == 0);
        }
    }
}
