//! Which published activities have not been acknowledged yet.

use std::collections::VecDeque;

use arborcast_proto::wire::Activity;

use crate::echo::{is_echo, stamped};
use crate::options::Options;

/// The activities of one publisher that are on their way, oldest first.
///
/// In an extended session each has a number, and is acknowledged by it (protocol, E4 and E5). In a plain session it has
/// none, and is acknowledged by coming back. Numbers are given when an activity is first sent in an extended session, so
/// that they have no hole for what a plain server has taken.
#[derive(Debug)]
pub(crate) struct Window {
    username: String,
    max_messages: usize,
    max_bytes: usize,
    entries: VecDeque<Entry>,
    bytes: usize,
    /// How many of the entries have been sent over the connection that stands.
    sent: usize,
    last_number: u64,
    /// The oldest as a server will send it, made when first needed.
    expected: Option<Activity>,
}

#[derive(Debug)]
struct Entry {
    activity: Activity,
    number: Option<u64>,
}

impl Window {
    pub(crate) fn new(username: &str, options: &Options) -> Self {
        Self {
            username: username.to_owned(),
            max_messages: options.window_messages,
            max_bytes: options.window_bytes,
            entries: VecDeque::new(),
            bytes: 0,
            sent: 0,
            last_number: 0,
            expected: None,
        }
    }

    pub(crate) fn push(&mut self, activity: Activity) {
        self.bytes += activity.as_bytes().len();
        self.entries.push_back(Entry { activity, number: None });
    }

    /// Whether another one may be taken in.
    pub(crate) fn has_room(&self) -> bool {
        self.is_empty() || (self.entries.len() < self.max_messages && self.bytes < self.max_bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether nothing is left to be sent over the connection that stands.
    pub(crate) fn is_sent(&self) -> bool {
        self.sent == self.entries.len()
    }

    /// The next one to send over the connection that stands; with its number, if the session is an extended one.
    pub(crate) fn next_to_send(&mut self, is_extended: bool) -> Option<(Option<u64>, &Activity)> {
        let entry = self.entries.get_mut(self.sent)?;
        self.sent += 1;
        if is_extended && entry.number.is_none() {
            self.last_number += 1;
            entry.number = Some(self.last_number);
        }
        Some((entry.number.filter(|_| is_extended), &entry.activity))
    }

    /// Everything has to be sent again, over another connection.
    pub(crate) fn rewind(&mut self) {
        self.sent = 0;
    }

    /// Takes an activity that arrived in a plain session, and says whether it was the oldest coming back.
    pub(crate) fn handle_arrival(&mut self, arrived: &Activity) -> bool {
        let Some(oldest) = self.entries.front().filter(|_| self.sent > 0) else { return false };
        let expected = self.expected.get_or_insert_with(|| stamped(&oldest.activity, &self.username));
        let is_ours = is_echo(expected, arrived, &self.username);
        if is_ours {
            self.pop();
        }
        is_ours
    }

    /// Takes an acknowledgement of all up to this number, and says how many those were.
    pub(crate) fn handle_ack(&mut self, number: u64) -> u64 {
        let is_acknowledged = |entry: &Entry| entry.number.is_some_and(|own| own <= number);
        let mut acknowledged = 0;
        while self.entries.front().is_some_and(is_acknowledged) {
            self.pop();
            acknowledged += 1;
        }
        acknowledged
    }

    fn pop(&mut self) {
        let Some(oldest) = self.entries.pop_front() else { return };
        self.bytes -= oldest.activity.as_bytes().len();
        self.sent = self.sent.saturating_sub(1);
        self.expected = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn activity(text: &str) -> Activity {
        Activity::parse(text).unwrap()
    }

    /// A window from which everything has been sent in a plain session.
    fn sent(activities: &[&str]) -> Window {
        let mut window = Window::new("aaron", &Options::default());
        activities.iter().for_each(|text| window.push(activity(text)));
        assert!(send(&mut window, false).iter().all(|(number, _)| number.is_none()));
        window
    }

    fn send(window: &mut Window, is_extended: bool) -> Vec<(Option<u64>, String)> {
        let next = || window.next_to_send(is_extended).map(|(number, activity)| (number, activity.to_string()));
        std::iter::from_fn(next).collect()
    }

    fn numbers(window: &mut Window) -> Vec<u64> {
        send(window, true).into_iter().map(|(number, _)| number.unwrap()).collect()
    }

    #[test]
    fn another_session_of_the_same_user_in_between_does_not_get_in_the_way() {
        let mut window = sent(&[r#"{"n":1}"#, r#"{"n":2}"#]);
        for (n, is_ours) in [(7, false), (2, false), (1, true), (1, false), (2, true), (2, false)] {
            let arrived = activity(&format!(r#"{{"n":{n},"authenticated_user":"aaron"}}"#));
            assert_eq!(window.handle_arrival(&arrived), is_ours, "{n}");
        }
        assert!(window.is_empty());
    }

    #[test]
    fn the_window_is_bounded_in_messages_and_in_bytes() {
        let options = Options { window_messages: 2, window_bytes: 20, ..Options::default() };
        let mut window = Window::new("aaron", &options);
        window.push(activity(r#"{"n":1}"#));
        assert!(window.has_room());
        window.push(activity(r#"{"n":2}"#));
        assert!(!window.has_room());
        assert_eq!(numbers(&mut window), [1, 2]);
        assert_eq!(window.handle_ack(1), 1);
        assert!(window.has_room());
        window.push(activity(r#"{"long":"0123456789"}"#));
        assert_eq!(window.handle_ack(2), 1);
        assert!(!window.has_room());
    }

    #[test]
    fn a_window_of_nothing_still_lets_one_through() {
        let options = Options { window_messages: 0, window_bytes: 0, ..Options::default() };
        assert!(Window::new("aaron", &options).has_room());
    }

    #[test]
    fn acknowledgements_are_cumulative_and_what_lacks_one_is_sent_again_under_its_number() {
        let mut window = Window::new("aaron", &Options::default());
        (1..=4).for_each(|n| window.push(activity(&format!(r#"{{"n":{n}}}"#))));
        assert_eq!(numbers(&mut window), [1, 2, 3, 4]);
        assert_eq!(window.handle_ack(2), 2);
        assert_eq!(window.handle_ack(2), 0);
        window.rewind();
        window.push(activity(r#"{"n":5}"#));
        let again = send(&mut window, true);
        assert_eq!(again, [3, 4, 5].map(|n| (Some(n), format!(r#"{{"n":{n}}}"#))));
        assert_eq!(window.handle_ack(u64::MAX), 3);
        assert!(window.is_empty() && window.is_sent());
    }

    #[test]
    fn an_acknowledgement_of_what_was_never_sent_counts_for_nothing() {
        let mut window = Window::new("aaron", &Options::default());
        window.push(activity("{}"));
        assert_eq!(window.handle_ack(9), 0);
        assert_eq!(numbers(&mut window), [1]);
    }

    #[test]
    fn what_a_plain_server_took_leaves_no_hole_in_the_numbers() {
        let mut window = Window::new("aaron", &Options::default());
        (1..=2).for_each(|n| window.push(activity(&format!(r#"{{"n":{n}}}"#))));
        assert_eq!(numbers(&mut window), [1, 2]);
        assert_eq!(window.handle_ack(1), 1);
        window.rewind();
        window.push(activity(r#"{"n":3}"#));
        assert_eq!(send(&mut window, false), [2, 3].map(|n| (None, format!(r#"{{"n":{n}}}"#))));
        assert_eq!(window.handle_ack(1), 0);
        for n in [2, 3] {
            assert!(window.handle_arrival(&activity(&format!(r#"{{"n":{n},"authenticated_user":"aaron"}}"#))));
        }
        window.rewind();
        window.push(activity(r#"{"n":4}"#));
        assert_eq!(numbers(&mut window), [3]);
    }

    #[test]
    fn nothing_comes_back_before_it_was_sent() {
        let mut window = sent(&["{}"]);
        window.rewind();
        let arrived = activity(r#"{"authenticated_user":"aaron"}"#);
        assert!(!window.handle_arrival(&arrived));
        send(&mut window, false);
        assert!(window.handle_arrival(&arrived));
    }

    proptest! {
        #[test]
        fn a_rewritten_stream_among_others_is_matched_one_by_one(
            texts in prop::collection::vec("\\PC{0,8}", 0..20), forged in any::<bool>(),
        ) {
            let mut window = sent(&[]);
            let forgery = if forged { r#","authenticated_user":"root""# } else { "" };
            for text in &texts {
                window.push(activity(&format!(r#"{{"z":{},"a":1.50{forgery}}}"#, Value::from(text.as_str()))));
            }
            send(&mut window, false);
            for text in &texts {
                let mut echo = serde_json::json!({ "a": 1.5, "authenticated_user": "bert", "z": text });
                prop_assert!(!window.handle_arrival(&activity(&echo.to_string())));
                echo["authenticated_user"] = "aaron".into();
                prop_assert!(window.handle_arrival(&activity(&echo.to_string())));
            }
            prop_assert!(window.is_empty() && window.bytes == 0);
        }

        /// Whatever happens: numbers are sent in order and without a hole, each stands for one activity, and what is
        /// neither sent again nor acknowledged doesn't exist.
        #[test]
        fn every_activity_is_acknowledged_or_still_there(steps in prop::collection::vec((0_u8..4, 0_u64..30), 0..200)) {
            let mut window = Window::new("aaron", &Options::default());
            let (mut pushed, mut acknowledged, mut sent_at_all) = (0, 0, 0);
            for (step, value) in steps {
                match step {
                    0 => {
                        pushed += 1;
                        window.push(activity(&format!(r#"{{"n":{pushed}}}"#)));
                    }
                    1 => {
                        if let Some((number, activity)) = window.next_to_send(true) {
                            let number = number.unwrap();
                            prop_assert_eq!(activity.to_string(), format!(r#"{{"n":{number}}}"#));
                            prop_assert!(number > acknowledged && number <= sent_at_all + 1);
                            sent_at_all = sent_at_all.max(number);
                        }
                    }
                    2 => window.rewind(),
                    _ => acknowledged += window.handle_ack(value),
                }
                prop_assert_eq!(window.entries.len() as u64 + acknowledged, pushed);
                prop_assert!(acknowledged <= sent_at_all);
            }
        }
    }
}
