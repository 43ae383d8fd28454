//! What is published: activities that say at a fixed place who published them, which they are, and when.
//!
//! Nothing here reads whole JSON: a load generator that did would be slower than what it measures.

use std::sync::Arc;

use arborcast_proto::wire::message::{ACTIVITY_KEY, PLAIN_BROADCAST_HEAD};
use arborcast_proto::wire::{Activity, Message, Secret, WireError};
use memchr::memmem::Finder;

/// What an activity begins with. Behind it, in one string: the run, the publisher, the number, the time, and padding.
const HEAD: &[u8] = b"{\"bench\":\"";
/// What it ends with.
const TAIL: &[u8] = b"\"}";

/// What a broadcast begins with that has a name (protocol, Y1).
const NAMED_HEAD: &[u8] = b"{\"command\":\"ACTIVITY_BROADCAST\",\"origin\":\"";
const SEQ_KEY: &[u8] = b",\"seq\":";

/// Hexadecimal digits of each part.
const RUN_DIGITS: usize = 16;
const PUBLISHER_DIGITS: usize = 4;
const SEQUENCE_DIGITS: usize = 12;
const TIME_DIGITS: usize = 14;

/// Most publishers that can be told apart.
pub(crate) const MAX_PUBLISHERS: usize = 1 << (4 * PUBLISHER_DIGITS);

/// The shortest activity, in bytes.
pub(crate) const MIN_SIZE: usize =
    HEAD.len() + RUN_DIGITS + PUBLISHER_DIGITS + SEQUENCE_DIGITS + TIME_DIGITS + TAIL.len();

/// When an activity was published, as it stands in it. Those published together have the same, and comparing is cheaper
/// than reading.
pub(crate) type TimeDigits = [u8; TIME_DIGITS];

/// One publisher's messages, all but the parts that change.
#[derive(Debug)]
pub(crate) struct Template {
    /// Up to where the number of an acknowledged activity may stand.
    head: Vec<u8>,
    /// From there to the activity's number.
    middle: Vec<u8>,
    /// From behind the time.
    tail: Vec<u8>,
}

impl Template {
    /// The messages of this publisher, with activities of `size` bytes.
    ///
    /// # Errors
    /// Only when `size` is below [`MIN_SIZE`]: then there is no room for the parts.
    pub(crate) fn new(
        run: u64,
        publisher: usize,
        size: usize,
        (username, secret): (String, Option<Secret>),
    ) -> Result<Self, WireError> {
        let empty = Activity::parse("{}")?;
        let mut head = Message::ActivityMessage { username, secret, number: None, activity: empty }.to_line().to_vec();
        head.truncate(head.len().saturating_sub(ACTIVITY_KEY.len() + "{}}\n".len()));
        let mut middle = [ACTIVITY_KEY, HEAD].concat();
        put_digits::<RUN_DIGITS>(run, &mut middle);
        put_digits::<PUBLISHER_DIGITS>(publisher as u64, &mut middle);
        let padding = size.checked_sub(MIN_SIZE).ok_or(WireError::Empty)?;
        let mut tail = vec![b'x'; padding];
        tail.extend_from_slice(TAIL);
        tail.extend_from_slice(b"}\n");
        Ok(Self { head, middle, tail })
    }

    /// Appends the message with this activity. `number` is what it is acknowledged by, `time` in nanoseconds.
    pub(crate) fn put(&self, sequence: u64, time: u64, number: Option<u64>, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head);
        if let Some(number) = number {
            out.extend_from_slice(b",\"number\":");
            out.extend_from_slice(number.to_string().as_bytes());
        }
        out.extend_from_slice(&self.middle);
        put_digits::<SEQUENCE_DIGITS>(sequence, out);
        put_digits::<TIME_DIGITS>(time, out);
        out.extend_from_slice(&self.tail);
    }

    /// The length of the longest message, in bytes without the line ending.
    pub(crate) fn max_length(&self) -> usize {
        let number = ",\"number\":".len() + u64::MAX.to_string().len();
        self.head.len() + number + self.middle.len() + SEQUENCE_DIGITS + TIME_DIGITS + self.tail.len() - 1
    }
}

/// Finds this run's activities among what arrives.
#[derive(Debug, Clone)]
pub(crate) struct Decoder {
    plain_head: Vec<u8>,
    /// What stands before the parts, wherever and however a server puts it.
    mark: Arc<Finder<'static>>,
}

/// One activity of this run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Delivery<'a> {
    pub(crate) publisher: usize,
    /// Counts from 0.
    pub(crate) sequence: u64,
    pub(crate) time: &'a TimeDigits,
    /// What the tree calls it.
    pub(crate) name: Option<Name<'a>>,
}

/// An origin, as it stands in the line, and the number of one of its activities.
pub(crate) type Name<'a> = (&'a [u8], u64);

impl Decoder {
    pub(crate) fn new(run: u64) -> Self {
        let mut mark = vec![b'"'];
        put_digits::<RUN_DIGITS>(run, &mut mark);
        let opening = HEAD.strip_suffix(b"\"").unwrap_or(HEAD);
        let plain_head = [PLAIN_BROADCAST_HEAD, ACTIVITY_KEY, opening, &mark].concat();
        Self { plain_head, mark: Arc::new(Finder::new(&mark).into_owned()) }
    }

    /// The activity that this line brings. `None` if it is not one of this run, or no activity at all.
    pub(crate) fn read<'a>(&self, line: &'a [u8]) -> Option<Delivery<'a>> {
        if let Some(parts) = line.strip_prefix(self.plain_head.as_slice()) {
            return delivery(parts, None);
        }
        let (name, rest) = match line.strip_prefix(NAMED_HEAD).and_then(read_name) {
            Some((name, rest)) => (Some(name), rest),
            None => (None, line),
        };
        let parts = rest.get(self.mark.find(rest)? + self.mark.needle().len()..)?;
        delivery(parts, name)
    }
}

/// The time in nanoseconds.
pub(crate) fn time(digits: &TimeDigits) -> Option<u64> {
    number(digits)
}

fn delivery<'a>(parts: &'a [u8], name: Option<Name<'a>>) -> Option<Delivery<'a>> {
    let (publisher, rest) = parts.split_first_chunk::<PUBLISHER_DIGITS>()?;
    let (sequence, rest) = rest.split_first_chunk::<SEQUENCE_DIGITS>()?;
    let (time, _) = rest.split_first_chunk::<TIME_DIGITS>()?;
    Some(Delivery { publisher: usize::try_from(number(publisher)?).ok()?, sequence: number(sequence)?, time, name })
}

/// The name of an activity, from behind the quotation mark of its origin on, and what follows it. An origin with an escape
/// is none that we can compare.
fn read_name(line: &[u8]) -> Option<(Name<'_>, &[u8])> {
    let (origin, rest) = line.split_at_checked(memchr::memchr2(b'"', b'\\', line)?)?;
    let rest = rest.strip_prefix(b"\"")?.strip_prefix(SEQ_KEY)?;
    let length = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = rest.split_at_checked(length)?;
    let seq = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(((origin, seq), rest))
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

fn number<const COUNT: usize>(digits: &[u8; COUNT]) -> Option<u64> {
    digits.iter().try_fold(0, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u64::from(value))
    })
}

/// Appends the lowest digits of a number.
fn put_digits<const COUNT: usize>(number: u64, out: &mut Vec<u8>) {
    let digit = |place: usize| DIGITS.get((number >> (4 * place) & 0xf) as usize).copied().unwrap_or(b'0');
    out.extend((0..COUNT).rev().map(digit));
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};

    use super::*;

    const RUN: u64 = 0xfeed_0000_0000_0001;

    fn template(size: usize) -> Template {
        Template::new(RUN, 258, size, ("anonymous".into(), None)).unwrap()
    }

    /// The message as a server reads it.
    fn message(size: usize, sequence: u64, time: u64, number: Option<u64>) -> Message {
        let mut out = Vec::new();
        template(size).put(sequence, time, number, &mut out);
        assert_eq!(out.pop(), Some(b'\n'));
        assert!(out.len() <= template(size).max_length());
        Message::parse(&Bytes::from(out)).unwrap()
    }

    #[test]
    fn a_message_is_valid_and_its_activity_has_the_size_that_was_asked_for() {
        for (size, number) in [(MIN_SIZE, None), (MIN_SIZE + 1, Some(1)), (128, Some(u64::MAX)), (100_000, None)] {
            let read = message(size, 7, 9, number);
            let Message::ActivityMessage { username, number: read_number, activity, .. } = read else {
                panic!("{read:?}")
            };
            assert_eq!((&*username, read_number, activity.as_bytes().len()), ("anonymous", number, size));
        }
        assert!(Template::new(RUN, 1, MIN_SIZE - 1, ("anonymous".into(), None)).is_err());
    }

    #[test]
    fn what_a_server_makes_of_it_is_read_in_every_form() {
        let (sequence, at) = (0xabc_def0_1234, 0x12_3456_789a_bcde);
        let Message::ActivityMessage { activity, .. } = message(128, sequence, at, None) else { panic!() };
        let mut plain = BytesMut::new();
        activity.write_broadcast("anonymous", &mut plain);
        let text = std::str::from_utf8(activity.as_bytes()).unwrap();
        let named = format!(
            r#"{{"command":"ACTIVITY_BROADCAST","origin":"7/n1","seq":42,"session":"s","number":3,"activity":{text}}}"#
        );
        let spaced = format!(r#"{{ "activity" : {}, "command": "ACTIVITY_BROADCAST" }}"#, text.replace(':', " : "));
        for (line, name) in
            [(&plain[..], None), (named.as_bytes(), Some((&b"7/n1"[..], 42))), (spaced.as_bytes(), None)]
        {
            let delivery = Decoder::new(RUN).read(line).unwrap();
            assert_eq!((delivery.publisher, delivery.sequence, delivery.name), (258, sequence, name));
            assert_eq!(time(delivery.time), Some(at));
        }
    }

    #[test]
    fn what_is_not_of_this_run_is_nothing() {
        let Message::ActivityMessage { activity, .. } = message(128, 1, 2, None) else { panic!() };
        let mut line = BytesMut::new();
        activity.write_broadcast("anonymous", &mut line);
        let decoder = Decoder::new(RUN);
        assert!(decoder.read(&line).is_some());
        assert_eq!(Decoder::new(RUN + 1).read(&line), None);
        for other in ["", "{}", r#"{"command":"ACTIVITY_BROADCAST","activity":{"verb":"posts"}}"#] {
            assert_eq!(decoder.read(other.as_bytes()), None, "{other}");
        }
        // Cut short anywhere it is none, or still all there.
        for length in 0..line.len() {
            let cut = decoder.read(&line[..length]);
            assert!(cut.is_none_or(|delivery| delivery.sequence == 1 && time(delivery.time) == Some(2)));
        }
        let mut wrong = line.to_vec();
        let digits = decoder.plain_head.len();
        wrong[digits] = b'G';
        assert_eq!(decoder.read(&wrong), None);
    }
}
