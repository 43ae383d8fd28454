//! What has arrived, the latest of it.

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::fmt;
use std::time::SystemTime;

use arborcast_client::Activity;
use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::super::terminal::text;

/// How many entries are kept at most.
pub(crate) const MAX_ENTRIES: usize = 10_000;

/// How many bytes of activities are kept at most; one may be longer.
pub(crate) const MAX_BYTES: usize = 16 << 20;

/// What of an entry is shown on one row at most: no terminal is wider.
const MAX_CELLS: usize = 1000;

/// The key that servers set on every activity.
const AUTHENTICATED_USER: &str = "authenticated_user";

/// Counts what has arrived, from 0 on. No two entries have the same.
pub(crate) type Id = u64;

/// One row of the stream.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) at: SystemTime,
    pub(crate) content: Content,
    /// Made when it is first shown: most of a flood never is.
    row: OnceCell<Row>,
}

/// What an entry is.
#[derive(Debug)]
pub(crate) enum Content {
    Activity(Activity),
    /// Something that happened to the session, in words.
    Notice(String),
}

/// What is shown of an activity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    /// Who published it, as its server says.
    pub(crate) user: String,
    /// What it is: the words of one that is nothing but words, the JSON of any other.
    pub(crate) text: String,
    pub(crate) is_words: bool,
}

impl Entry {
    pub(crate) fn row(&self) -> &Row {
        self.row.get_or_init(|| match &self.content {
            Content::Activity(activity) => Row::of(activity.as_bytes()),
            Content::Notice(words) => Row { user: String::new(), text: text::shown(words, MAX_CELLS), is_words: true },
        })
    }

    /// All of it.
    pub(crate) fn text(&self) -> &[u8] {
        match &self.content {
            Content::Activity(activity) => activity.as_bytes(),
            Content::Notice(words) => words.as_bytes(),
        }
    }

    /// Whether the text stands in it, the case of ASCII letters aside. Nothing stands nowhere.
    pub(crate) fn contains(&self, wanted: &str) -> bool {
        !wanted.is_empty()
            && self.text().windows(wanted.len()).any(|window| window.eq_ignore_ascii_case(wanted.as_bytes()))
    }
}

/// The latest entries.
#[derive(Debug, Default)]
pub(crate) struct Scrollback {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// The id of the oldest entry that is kept.
    first: Id,
}

impl Scrollback {
    pub(crate) fn push(&mut self, at: SystemTime, content: Content) {
        let entry = Entry { at, content, row: OnceCell::new() };
        self.bytes += entry.text().len();
        self.entries.push_back(entry);
        while (self.entries.len() > MAX_ENTRIES || self.bytes > MAX_BYTES)
            && self.entries.len() > 1
            && let Some(oldest) = self.entries.pop_front()
        {
            self.bytes -= oldest.text().len();
            self.first += 1;
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn first(&self) -> Id {
        self.first
    }

    /// The newest; absent when there is none at all.
    pub(crate) fn last(&self) -> Option<Id> {
        (self.first + self.entries.len() as u64).checked_sub(1).filter(|_| !self.entries.is_empty())
    }

    pub(crate) fn get(&self, id: Id) -> Option<&Entry> {
        self.entries.get(usize::try_from(id.checked_sub(self.first)?).ok()?)
    }

    /// The newest entry before that one in which the text stands.
    pub(crate) fn find_before(&self, id: Id, wanted: &str) -> Option<Id> {
        (self.first..id).rev().find(|id| self.get(*id).is_some_and(|entry| entry.contains(wanted)))
    }

    /// The oldest entry behind that one in which the text stands.
    pub(crate) fn find_behind(&self, id: Id, wanted: &str) -> Option<Id> {
        (id + 1..=self.last()?).find(|id| self.get(*id).is_some_and(|entry| entry.contains(wanted)))
    }
}

impl Row {
    fn of(activity: &[u8]) -> Self {
        let whole = || String::from_utf8_lossy(activity);
        let Some(members) = members(activity) else {
            return Self { user: String::new(), text: text::shown(&whole(), MAX_CELLS), is_words: false };
        };
        let string = |raw: &RawValue| serde_json::from_str::<String>(raw.get()).ok();
        let user = members.iter().find(|(key, _)| key == AUTHENTICATED_USER).and_then(|(_, raw)| string(raw));
        let others: Vec<_> = members.iter().filter(|(key, _)| key != AUTHENTICATED_USER).collect();
        let words = match others.as_slice() {
            [(key, raw)] if key == "object" => string(raw),
            _ => None,
        };
        let is_words = words.is_some();
        let text = words.unwrap_or_else(|| {
            let members = others.iter().map(|(key, raw)| format!("{}:{}", quoted(key), raw.get()));
            format!("{{{}}}", members.collect::<Vec<_>>().join(","))
        });
        let user = text::shown(&user.unwrap_or_default(), MAX_CELLS);
        Self { user, text: text::shown(&text, MAX_CELLS), is_words }
    }
}

fn quoted(key: &str) -> String {
    serde_json::to_string(key).unwrap_or_else(|_| format!("{key:?}"))
}

/// The members of a JSON object, in their order.
fn members(object: &[u8]) -> Option<Vec<(String, &RawValue)>> {
    struct InOrder;

    impl<'a> Visitor<'a> for InOrder {
        type Value = Vec<(String, &'a RawValue)>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("an object")
        }

        fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut members = Vec::new();
            while let Some(member) = map.next_entry()? {
                members.push(member);
            }
            Ok(members)
        }
    }

    serde_json::Deserializer::from_slice(object).deserialize_map(InOrder).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn activity(text: &str) -> Content {
        Content::Activity(Activity::parse(text).unwrap())
    }

    fn row(text: &str) -> (String, String, bool) {
        let row = Row::of(text.as_bytes());
        (row.user, row.text, row.is_words)
    }

    #[test]
    fn words_are_shown_as_words_and_everything_else_as_it_was_written() {
        assert_eq!(
            row(r#"{"object":"good \"morning\"","authenticated_user":"aaron"}"#),
            ("aaron".into(), r#"good "morning""#.into(), true)
        );
        assert_eq!(
            row(r#"{"z":1.00,"authenticated_user":"aaron","a":{"object":"x"}}"#),
            ("aaron".into(), r#"{"z":1.00,"a":{"object":"x"}}"#.into(), false)
        );
        assert_eq!(row(r#"{"object":7}"#), (String::new(), r#"{"object":7}"#.into(), false));
    }

    #[test]
    fn what_an_activity_decodes_to_is_no_instruction_to_the_terminal() {
        let (user, text, _) = row(r#"{"object":"\u001b]0;owned\u0007\u009b2J","authenticated_user":"\u001b[31mroot"}"#);
        assert_eq!((user.as_str(), text.as_str()), ("␛[31mroot", "␛]0;owned␇\u{fffd}2J"));
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many_or_too_much() {
        let mut kept = Scrollback::default();
        for number in 0..MAX_ENTRIES + 5 {
            kept.push(SystemTime::UNIX_EPOCH, activity(&format!(r#"{{"n":{number}}}"#)));
        }
        assert_eq!((kept.len(), kept.first(), kept.last()), (MAX_ENTRIES, 5, Some(MAX_ENTRIES as u64 + 4)));
        assert!(kept.get(4).is_none() && kept.get(5).is_some_and(|entry| entry.text() == br#"{"n":5}"#));
        let long = format!(r#"{{"x":"{}"}}"#, "x".repeat(MAX_BYTES));
        kept.push(SystemTime::UNIX_EPOCH, activity(&long));
        assert_eq!((kept.len(), kept.last()), (1, Some(MAX_ENTRIES as u64 + 5)));
    }

    #[test]
    fn searching_goes_both_ways_and_ignores_case() {
        let mut kept = Scrollback::default();
        for verb in ["Post", "wave", "post", "leave"] {
            kept.push(SystemTime::UNIX_EPOCH, activity(&format!(r#"{{"verb":"{verb}"}}"#)));
        }
        assert_eq!(
            (kept.find_before(3, "POST"), kept.find_before(2, "POST"), kept.find_before(0, "x")),
            (Some(2), Some(0), None)
        );
        assert_eq!(
            (kept.find_behind(0, "ave"), kept.find_behind(1, "ave"), kept.find_behind(3, "ave")),
            (Some(1), Some(3), None)
        );
        assert_eq!(kept.find_before(3, ""), None);
    }
}
