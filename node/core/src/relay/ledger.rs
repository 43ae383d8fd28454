//! What a node has taken, of each origin, and where it stands in the log (protocol, Relay, Y2, Y3, Y6, Y11).

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use arborcast_proto::wire::relay::MAX_ORIGINS;
use arborcast_proto::wire::{Have, Message, Origin};

use super::log::Position;
use super::piece::Piece;

/// An origin as this node calls it while it runs. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OriginIndex(u64);

/// What is to be done with an activity that came over a link.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// It is there already.
    Seen(OriginIndex),
    /// It is the next one.
    Next,
    /// Something between the last one and this one is missing.
    Gap {
        /// The highest number up to which nothing is missing.
        have: u64,
    },
}

/// The activities that were taken.
///
/// # Invariants
/// - Entries stand in the order of the log, each directly or with a gap behind the one before it.
/// - The entries of one origin stand in the order of their numbers, none of them higher than what the node has.
/// - What the ledger still holds the log still holds; the log may hold more.
#[derive(Debug)]
pub(crate) struct Ledger {
    own: OriginIndex,
    indexes: BTreeMap<Origin, OriginIndex>,
    origins: BTreeMap<OriginIndex, OriginState>,
    next_index: u64,
    entries: VecDeque<Entry>,
    /// The number of the first entry that is still there; entries are numbered from 0 on.
    first_entry: u64,
    /// Where the log ends.
    end: Position,
    max_bytes: u64,
    retention: Duration,
}

#[derive(Debug)]
struct OriginState {
    origin: Origin,
    have: u64,
    last_taken: Instant,
    /// What is still in the log: the numbers, each with that of its entry.
    kept: VecDeque<(u64, u64)>,
}

#[derive(Debug)]
struct Entry {
    origin: OriginIndex,
    seq: u64,
    start: Position,
    end: Position,
    taken: Instant,
    /// Of the content, to tell a repetition from a lie.
    digest: u64,
}

/// For how long an origin of which nothing comes is remembered, if the retention is not longer. A server that was quiet
/// for less must not look as if something were missing.
const ORIGIN_MEMORY: Duration = Duration::from_secs(24 * 3600);

impl Ledger {
    pub(crate) fn new(own: Origin, max_bytes: u64, retention: Duration, now: Instant) -> Self {
        let index = OriginIndex(0);
        let state = OriginState { origin: own.clone(), have: 0, last_taken: now, kept: VecDeque::new() };
        Self {
            own: index,
            indexes: BTreeMap::from([(own, index)]),
            origins: BTreeMap::from([(index, state)]),
            next_index: 1,
            entries: VecDeque::new(),
            first_entry: 0,
            end: Position::default(),
            max_bytes,
            retention,
        }
    }

    /// How many activities are kept.
    pub(crate) fn entries(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn own(&self) -> OriginIndex {
        self.own
    }

    pub(crate) fn index_of(&self, origin: &Origin) -> Option<OriginIndex> {
        self.indexes.get(origin).copied()
    }

    pub(crate) fn origin(&self, index: OriginIndex) -> Option<&Origin> {
        self.origins.get(&index).map(|state| &state.origin)
    }

    /// The highest number of an origin up to which nothing is missing.
    pub(crate) fn have_of(&self, index: OriginIndex) -> u64 {
        self.origins.get(&index).map_or(0, |state| state.have)
    }

    /// All of it.
    pub(crate) fn have(&self) -> Have {
        let states = self.origins.values().filter(|state| state.have > 0);
        states.map(|state| (state.origin.clone(), state.have)).collect()
    }

    /// The same, by index.
    pub(crate) fn progress(&self) -> impl Iterator<Item = (OriginIndex, u64)> {
        self.origins.iter().filter(|(_, state)| state.have > 0).map(|(index, state)| (*index, state.have))
    }

    pub(crate) fn judge(&self, origin: &Origin, seq: u64) -> Judgement {
        let known = self.index_of(origin).map(|index| (index, self.have_of(index)));
        match known {
            Some((index, have)) if seq <= have => Judgement::Seen(index),
            _ => {
                let have = known.map_or(0, |(_, have)| have);
                if seq - have == 1 { Judgement::Next } else { Judgement::Gap { have } }
            }
        }
    }

    /// Whether an activity that was taken under this name is still in the log, with other content.
    pub(crate) fn contradicts(&self, index: OriginIndex, seq: u64, digest: u64) -> bool {
        let Some(state) = self.origins.get(&index) else { return false };
        let kept = state.kept.binary_search_by_key(&seq, |(seq, _)| *seq).ok().and_then(|at| state.kept.get(at));
        kept.and_then(|(_, entry)| self.entry(*entry)).is_some_and(|entry| entry.digest != digest)
    }

    /// Takes an activity that makes a line of that length at the end of the log.
    pub(crate) fn take(&mut self, origin: &Origin, seq: u64, length: usize, digest: u64, now: Instant) -> OriginIndex {
        let index = self.index_or_new(origin, now);
        let entry = self.first_entry + self.entries.len() as u64;
        if let Some(state) = self.origins.get_mut(&index) {
            state.have = seq;
            state.last_taken = now;
            state.kept.push_back((seq, entry));
        }
        let start = self.end;
        self.pass(length);
        self.entries.push_back(Entry { origin: index, seq, start, end: self.end, taken: now, digest });
        self.forget_old(now);
        index
    }

    /// A line of that length that is no activity stands at the end of the log.
    pub(crate) fn pass(&mut self, length: usize) {
        self.end.0 += length as u64;
    }

    /// What is missing of an origin up to there is gone. Returns how much that is, if it is anything.
    pub(crate) fn skip(&mut self, origin: &Origin, through: u64, now: Instant) -> Option<u64> {
        let have = self.index_of(origin).map_or(0, |index| self.have_of(index));
        let missed = through.checked_sub(have).filter(|missed| *missed > 0)?;
        let index = self.index_or_new(origin, now);
        if let Some(state) = self.origins.get_mut(&index) {
            state.have = through;
            state.last_taken = now;
        }
        Some(missed)
    }

    /// What somebody who has that much lacks, in the order of the log, gaps announced (protocol, Y4, Y6).
    pub(crate) fn missing(&mut self, have: &Have, now: Instant) -> Vec<Piece> {
        self.forget_old(now);
        let has = |state: &OriginState| have.get(&state.origin).copied().unwrap_or(0);
        let mut told: BTreeMap<OriginIndex, u64> =
            self.origins.iter().map(|(index, state)| (*index, has(state))).collect();
        // Mostly little is missing, and it stands at the end.
        let first_missing = |state: &OriginState| {
            let at = state.kept.partition_point(|(seq, _)| *seq <= has(state));
            state.kept.get(at).map(|(_, entry)| *entry)
        };
        let first = self.origins.values().filter_map(first_missing).min();
        let skipped = first.map_or(self.entries.len(), |first| to_usize(first.saturating_sub(self.first_entry)));
        let mut pieces = Vec::new();
        for entry in self.entries.range(skipped.min(self.entries.len())..) {
            let Some(told) = told.get_mut(&entry.origin).filter(|told| entry.seq > **told) else { continue };
            if entry.seq - *told > 1 {
                pieces.extend(self.gap(entry.origin, entry.seq - 1));
            }
            *told = entry.seq;
            match pieces.last_mut() {
                Some(Piece::Range { end, .. }) if *end == entry.start => *end = entry.end,
                _ => pieces.push(Piece::Range { start: entry.start, end: entry.end }),
            }
        }
        for (index, told) in told {
            let have = self.have_of(index);
            if have > told {
                pieces.extend(self.gap(index, have));
            }
        }
        pieces
    }

    fn gap(&self, index: OriginIndex, through: u64) -> Option<Piece> {
        let origin = self.origin(index)?.clone();
        Some(Piece::Line(Message::RelayGap { origin, through }.to_line()))
    }

    fn entry(&self, number: u64) -> Option<&Entry> {
        self.entries.get(to_usize(number.checked_sub(self.first_entry)?))
    }

    fn index_or_new(&mut self, origin: &Origin, now: Instant) -> OriginIndex {
        if let Some(index) = self.index_of(origin) {
            return index;
        }
        if self.origins.len() >= MAX_ORIGINS {
            self.forget_origins(now);
        }
        let index = OriginIndex(self.next_index);
        self.next_index += 1;
        self.indexes.insert(origin.clone(), index);
        let state = OriginState { origin: origin.clone(), have: 0, last_taken: now, kept: VecDeque::new() };
        self.origins.insert(index, state);
        index
    }

    /// Those of which nothing came for long, and if there is none, the one that was heard of longest ago.
    fn forget_origins(&mut self, now: Instant) {
        let memory = self.retention.max(ORIGIN_MEMORY);
        let own = self.own;
        let is_old = |state: &OriginState| state.kept.is_empty() && now - state.last_taken > memory;
        let mut gone: Vec<OriginIndex> =
            self.origins.iter().filter(|(index, state)| **index != own && is_old(state)).map(|(at, _)| *at).collect();
        if gone.is_empty() {
            let others = self.origins.iter().filter(|(index, _)| **index != own);
            gone.extend(others.min_by_key(|(_, state)| state.last_taken).map(|(index, _)| *index));
        }
        for index in gone {
            if let Some(state) = self.origins.remove(&index) {
                self.indexes.remove(&state.origin);
            }
        }
    }

    /// What is too old, or does not fit any more.
    fn forget_old(&mut self, now: Instant) {
        while let Some(entry) = self.entries.front()
            && (self.end.0 - entry.start.0 > self.max_bytes || now - entry.taken > self.retention)
        {
            let number = self.first_entry;
            if let Some(state) = self.origins.get_mut(&entry.origin) {
                state.kept.pop_front_if(|(_, entry)| *entry == number);
            }
            self.entries.pop_front();
            self.first_entry += 1;
        }
    }
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(id: &str) -> Origin {
        Origin { id: id.into(), incarnation: 1 }
    }

    fn ledger(max_bytes: u64) -> (Ledger, Instant) {
        let now = crate::testing::start();
        (Ledger::new(origin("me"), max_bytes, Duration::from_secs(60), now), now)
    }

    /// Takes lines of ten bytes.
    fn take(ledger: &mut Ledger, now: Instant, names: &[(&str, u64)]) {
        for (id, seq) in names {
            ledger.take(&origin(id), *seq, 10, *seq, now);
        }
    }

    fn missing(ledger: &mut Ledger, now: Instant, has: &[(&str, u64)]) -> String {
        let have = has.iter().map(|(id, seq)| (origin(id), *seq)).collect();
        let text = |piece: Piece| match piece {
            Piece::Range { start, end } => format!("{}-{}", start.0, end.0),
            Piece::Line(line) => match Message::parse(&line.slice(..line.len() - 1)) {
                Ok(Message::RelayGap { origin, through }) => format!("gap {origin} {through}"),
                other => panic!("{other:?}"),
            },
        };
        ledger.missing(&have, now).into_iter().map(text).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn the_next_one_is_taken_and_nothing_twice() {
        let (mut ledger, now) = ledger(1000);
        assert_eq!(ledger.judge(&origin("a"), 1), Judgement::Next);
        assert_eq!(ledger.judge(&origin("a"), 2), Judgement::Gap { have: 0 });
        take(&mut ledger, now, &[("a", 1), ("a", 2)]);
        let index = ledger.index_of(&origin("a")).unwrap();
        assert_eq!(ledger.judge(&origin("a"), 2), Judgement::Seen(index));
        assert_eq!(ledger.judge(&origin("a"), 3), Judgement::Next);
        assert_eq!(ledger.judge(&origin("a"), u64::MAX), Judgement::Gap { have: 2 });
        assert!(!ledger.contradicts(index, 2, 2) && ledger.contradicts(index, 2, 7));
        assert_eq!(ledger.have(), Have::from([(origin("a"), 2)]));
    }

    #[test]
    fn what_is_missing_comes_in_the_order_of_the_log() {
        let (mut ledger, now) = ledger(1000);
        take(&mut ledger, now, &[("a", 1), ("b", 1), ("a", 2), ("a", 3), ("b", 2)]);
        assert_eq!(missing(&mut ledger, now, &[]), "0-50");
        assert_eq!(missing(&mut ledger, now, &[("a", 1)]), "10-50");
        assert_eq!(missing(&mut ledger, now, &[("b", 1)]), "0-10, 20-50");
        assert_eq!(missing(&mut ledger, now, &[("a", 3), ("b", 1)]), "40-50");
        assert_eq!(missing(&mut ledger, now, &[("a", 3), ("b", 2)]), "");
        assert_eq!(missing(&mut ledger, now, &[("a", 900), ("b", 2)]), "", "more than we have is none of ours");
    }

    #[test]
    fn what_is_gone_is_announced_before_what_follows() {
        let (mut ledger, now) = ledger(25);
        take(&mut ledger, now, &[("a", 1), ("b", 1), ("a", 2), ("a", 3)]);
        assert_eq!(missing(&mut ledger, now, &[]), "gap 1/a 1, 20-40, gap 1/b 1");
        assert_eq!(missing(&mut ledger, now, &[("b", 1), ("a", 2)]), "30-40");
    }

    #[test]
    fn what_was_skipped_is_a_gap_for_others_as_well() {
        let (mut ledger, now) = ledger(1000);
        take(&mut ledger, now, &[("a", 1)]);
        assert_eq!(ledger.skip(&origin("a"), 4, now), Some(3));
        assert_eq!(ledger.skip(&origin("a"), 4, now), None);
        assert_eq!(ledger.judge(&origin("a"), 5), Judgement::Next);
        take(&mut ledger, now, &[("a", 5)]);
        assert_eq!(missing(&mut ledger, now, &[]), "0-10, gap 1/a 4, 10-20");
        assert_eq!(missing(&mut ledger, now, &[("a", 4)]), "10-20");
    }

    #[test]
    fn old_activities_are_not_kept() {
        let (mut ledger, now) = ledger(1000);
        take(&mut ledger, now, &[("a", 1), ("a", 2)]);
        let later = now + Duration::from_secs(61);
        take(&mut ledger, later, &[("a", 3)]);
        assert_eq!(missing(&mut ledger, later, &[]), "gap 1/a 2, 20-30");
        assert_eq!(missing(&mut ledger, later + Duration::from_secs(61), &[]), "gap 1/a 3");
    }

    #[test]
    fn the_number_of_origins_is_bounded() {
        let (mut ledger, now) = ledger(1000);
        for number in 0..MAX_ORIGINS as u64 + 10 {
            ledger.take(&origin(&number.to_string()), 1, 10, 0, now + Duration::from_millis(number));
        }
        assert_eq!(ledger.origins.len(), MAX_ORIGINS);
        assert!(ledger.index_of(&origin("0")).is_none() && ledger.index_of(&origin("me")).is_some());
        assert!(missing(&mut ledger, now, &[]).starts_with("40060-41060, gap"));
    }
}
