//! What the subscribers of one thread have got.

use std::rc::Rc;

use arborcast_client::Address;
use arborcast_proto::wire::{Have, Origin};
use memchr::memchr_iter;

use super::payload::{Decoder, TimeDigits, time};
use super::statistics::{Arrival, Received, Silence, Tally};

/// Most origins that are remembered for one subscriber (protocol, B39).
const MAX_ORIGINS: usize = 4096;

/// What came in one read.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Batch {
    /// For the first time.
    pub(crate) deliveries: u64,
    pub(crate) bytes: u64,
    /// The longest silence of this subscriber that has ended.
    pub(crate) longest_silence: u64,
}

/// A line that is no activity of the run, and what is behind it.
pub(crate) type OtherLine<'a> = (&'a [u8], &'a [u8]);

/// The counters of some subscribers, and what each of them has got.
#[derive(Debug)]
pub(crate) struct Desk {
    decoder: Decoder,
    tally: Tally,
    subscribers: Vec<Subscriber>,
}

/// One subscriber.
#[derive(Debug)]
pub(crate) struct Subscriber {
    /// Which of all subscribers of the run it is.
    pub(crate) number: usize,
    pub(crate) received: Vec<Received>,
    pub(crate) silence: Silence,
    /// Where it was when its longest silence began.
    pub(crate) silent_at: Option<Rc<Address>>,
    /// Where it is.
    server: Option<Rc<Address>>,
    /// Where it was when something came last.
    last_heard_at: Option<Rc<Address>>,
    /// What it has got of each origin, as origins stand in lines; only in extended sessions.
    have: Vec<(Box<[u8]>, u64)>,
    is_extended: bool,
}

impl Desk {
    /// For subscribers with these numbers.
    pub(crate) fn new(decoder: Decoder, tally: Tally, numbers: impl Iterator<Item = usize>, publishers: usize) -> Self {
        let subscriber = |number| Subscriber {
            number,
            received: vec![Received::default(); publishers],
            silence: Silence::default(),
            silent_at: None,
            server: None,
            last_heard_at: None,
            have: Vec::new(),
            is_extended: false,
        };
        Self { decoder, tally, subscribers: numbers.map(subscriber).collect() }
    }

    /// How to read lines.
    pub(crate) fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// What was counted, and what each subscriber has got.
    pub(crate) fn into_parts(self) -> (Tally, Vec<Subscriber>) {
        (self.tally, self.subscribers)
    }

    /// The subscriber in this place has logged in.
    pub(crate) fn entered(&mut self, place: usize, server: Rc<Address>, have: Option<Have>) {
        let Some(subscriber) = self.subscribers.get_mut(place) else { return };
        subscriber.server = Some(server);
        subscriber.is_extended = have.is_some();
        subscriber.learn(have.unwrap_or_default());
    }

    /// The server tells that this counts as received.
    pub(crate) fn learn(&mut self, place: usize, have: Have) {
        if let Some(subscriber) = self.subscribers.get_mut(place) {
            subscriber.learn(have);
        }
    }

    /// The server no longer has what is missing of an origin up to this.
    pub(crate) fn skip(&mut self, place: usize, origin: Origin, through: u64) {
        self.tally.gaps += 1;
        self.learn(place, Have::from([(origin, through)]));
    }

    /// What the subscriber in this place has got, for the next server; `None` if it was never in an extended session.
    pub(crate) fn have(&self, place: usize) -> Option<Have> {
        let subscriber = self.subscribers.get(place).filter(|subscriber| subscriber.is_extended)?;
        Some(subscriber.have.iter().filter_map(|(origin, seq)| Some((parse_origin(origin)?, *seq))).collect())
    }

    /// Counts an activity that is not of this run.
    pub(crate) fn count_foreign(&mut self) {
        self.tally.foreign += 1;
    }

    /// Takes whole lines that came to the subscriber in this place, up to the first that is no activity of this run.
    /// Returns that line, and what is behind it.
    pub(crate) fn take<'a>(&mut self, place: usize, lines: &'a [u8], now: u64) -> (Batch, Option<OtherLine<'a>>) {
        let mut batch = Batch::default();
        let Some(subscriber) = self.subscribers.get_mut(place) else { return (batch, None) };
        let deliveries_before = self.tally.deliveries;
        let mut together = Together::default();
        let (mut start, mut other) = (0, None);
        for end in memchr_iter(b'\n', lines) {
            let line = lines.get(start..end).unwrap_or_default();
            start = end + 1;
            let delivery = self.decoder.read(line);
            let received = delivery.as_ref().and_then(|delivery| subscriber.received.get_mut(delivery.publisher));
            let (Some(delivery), Some(received)) = (delivery, received) else {
                other = Some((line, lines.get(start..).unwrap_or_default()));
                break;
            };
            batch.bytes += line.len() as u64 + 1;
            let arrival = received.take(delivery.sequence);
            self.tally.count(arrival, subscriber.is_extended);
            if arrival != Arrival::Again {
                together.add(delivery.time, now, &mut self.tally);
            }
            if let Some((origin, seq)) = delivery.name {
                subscriber.note(origin, seq);
            }
        }
        together.record(now, &mut self.tally);
        self.tally.bytes += batch.bytes;
        batch.deliveries = self.tally.deliveries - deliveries_before;
        if batch.deliveries > 0 {
            subscriber.hear(now);
        }
        batch.longest_silence = subscriber.silence.longest().0;
        (batch, other)
    }
}

impl Subscriber {
    fn hear(&mut self, now: u64) {
        let before = self.silence.longest();
        self.silence.end(now);
        if self.silence.longest() != before {
            self.silent_at = self.last_heard_at.clone().or_else(|| self.server.clone());
        }
        self.last_heard_at.clone_from(&self.server);
    }

    /// The run is over.
    pub(crate) fn end(&mut self, now: u64) {
        self.hear(now);
    }

    fn learn(&mut self, have: Have) {
        for (origin, seq) in have {
            self.note(origin.to_string().as_bytes(), seq);
        }
    }

    fn note(&mut self, origin: &[u8], seq: u64) {
        if let Some((_, known)) = self.have.iter_mut().find(|(known, _)| **known == *origin) {
            *known = seq.max(*known);
        } else if self.have.len() < MAX_ORIGINS {
            self.have.push((origin.into(), seq));
        }
    }
}

fn parse_origin(text: &[u8]) -> Option<Origin> {
    let (incarnation, id) = std::str::from_utf8(text).ok()?.split_once('/')?;
    Some(Origin { id: id.into(), incarnation: incarnation.parse().ok()? })
}

/// Activities that were published together and arrive together have one latency.
#[derive(Debug, Default)]
struct Together {
    time: TimeDigits,
    count: u64,
}

impl Together {
    fn add(&mut self, time: &TimeDigits, now: u64, tally: &mut Tally) {
        if self.time != *time {
            self.record(now, tally);
            self.time = *time;
        }
        self.count += 1;
    }

    fn record(&mut self, now: u64, tally: &mut Tally) {
        if self.count > 0
            && let Some(published) = time(&self.time)
        {
            tally.latencies.saturating_record_n(now.saturating_sub(published), self.count);
        }
        self.count = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::payload::Template;

    const RUN: u64 = 77;

    fn desk() -> Desk {
        Desk::new(Decoder::new(RUN), Tally::new().unwrap(), 0..2, 2)
    }

    /// As a server of an extended tree sends it.
    fn line(publisher: usize, sequence: u64, time: u64, seq: u64) -> String {
        let mut message = Vec::new();
        let template = Template::new(RUN, publisher, 128, ("anonymous".into(), None)).unwrap();
        template.put(sequence, time, None, &mut message);
        let text = String::from_utf8(message).unwrap();
        let activity = &text[text.find(r#","activity""#).unwrap()..];
        format!(r#"{{"command":"ACTIVITY_BROADCAST","origin":"1/n","seq":{seq}{activity}"#)
    }

    #[test]
    fn what_arrives_is_counted_for_its_subscriber_and_publisher() {
        let mut desk = desk();
        let lines = [line(0, 0, 1_000, 1), line(1, 0, 1_000, 2), line(0, 1, 51_000, 3)].concat();
        let (batch, other) = desk.take(0, lines.as_bytes(), 101_000);
        assert_eq!((batch.deliveries, batch.bytes, other), (3, lines.len() as u64, None));
        assert_eq!(batch.longest_silence, 101_000);
        let (tally, subscribers) = desk.into_parts();
        assert_eq!(tally.latencies.len(), 3);
        assert!((49_900..50_100).contains(&tally.latencies.min()) && tally.latencies.max() >= 100_000);
        let missing = |place: usize, publisher: usize| subscribers[place].received[publisher].missing(2);
        assert_eq!([missing(0, 0), missing(0, 1), missing(1, 0)], [0, 1, 2]);
    }

    #[test]
    fn other_lines_are_given_back_with_what_follows_them() {
        let mut desk = desk();
        let (own, other) = (line(0, 0, 0, 1), "{\"command\":\"REDIRECT\"}");
        let lines = format!("{own}{other}\n{own}");
        let (batch, found) = desk.take(0, lines.as_bytes(), 5);
        assert_eq!((batch.deliveries, found), (1, Some((other.as_bytes(), own.as_bytes()))));
        // A publisher that this run does not have.
        assert!(desk.take(0, line(2, 0, 0, 1).as_bytes(), 5).1.is_some());
    }

    #[test]
    fn an_extended_session_is_resumed_with_what_it_has() {
        let mut desk = desk();
        let origin = |id: &str| Origin { id: id.into(), incarnation: 1 };
        assert_eq!(desk.have(0), None);
        desk.entered(0, Rc::new("a:1".parse().unwrap()), Some(Have::from([(origin("n"), 3), (origin("m/x"), 1)])));
        desk.take(0, [line(0, 0, 0, 4), line(0, 1, 0, 5)].concat().as_bytes(), 5);
        desk.skip(0, origin("m/x"), 9);
        assert_eq!(desk.have(0), Some(Have::from([(origin("n"), 5), (origin("m/x"), 9)])));
        // What comes again is dropped, and says so.
        desk.take(0, line(0, 1, 0, 5).as_bytes(), 6);
        let (tally, _) = desk.into_parts();
        assert_eq!((tally.deliveries, tally.repeated, tally.doubled, tally.gaps), (2, 1, 0, 1));
    }

    #[test]
    fn the_longest_silence_knows_where_it_began() {
        let mut desk = desk();
        let server = |text: &str| Rc::new(text.parse().unwrap());
        desk.entered(0, server("a:1"), None);
        desk.take(0, line(0, 0, 0, 1).as_bytes(), 10);
        desk.entered(0, server("b:1"), None);
        desk.take(0, line(0, 1, 0, 2).as_bytes(), 100);
        desk.take(0, line(0, 2, 0, 3).as_bytes(), 110);
        let (_, subscribers) = desk.into_parts();
        assert_eq!(subscribers[0].silence.longest(), (90, 10));
        assert_eq!(subscribers[0].silent_at, Some(server("a:1")));
    }
}
