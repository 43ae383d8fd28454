//! The broadcast log: every line that is published, stored once, in order, bounded in bytes.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::ids::ConnectionId;

/// A place between two bytes of everything a node has ever published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(pub u64);

/// Where lines came from, and so who does not get them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Source {
    /// The link they came over, which does not get them back; `None` for those from clients of this node.
    pub link: Option<ConnectionId>,
    /// They happened before this node was in the tree (protocol, Relay, Y10).
    pub is_history: bool,
}

impl From<Option<ConnectionId>> for Source {
    fn from(link: Option<ConnectionId>) -> Self {
        Self { link, is_history: false }
    }
}

/// The published lines, in memory.
///
/// # Invariants
/// - Segments are contiguous: each starts where the one before it ends.
/// - A segment holds whole lines that came from one source.
/// - It holds at most `max_bytes`, except that the newest segment is always whole. What falls out, falls out at the
///   start.
#[derive(Debug)]
pub struct Log {
    segments: VecDeque<Segment>,
    end: Position,
    max_bytes: u64,
}

/// Lines that were appended together.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) start: Position,
    pub(super) bytes: Bytes,
    pub(super) source: Source,
}

impl Segment {
    pub(super) fn end(&self) -> Position {
        Position(self.start.0 + self.bytes.len() as u64)
    }
}

impl Log {
    /// An empty log that will keep the last `max_bytes`.
    pub fn new(max_bytes: u64) -> Self {
        Self { segments: VecDeque::new(), end: Position(0), max_bytes }
    }

    /// Appends whole lines that came from one source.
    pub fn append(&mut self, bytes: Bytes, source: Source) {
        if bytes.is_empty() {
            return;
        }
        let segment = Segment { start: self.end, bytes, source };
        self.end = segment.end();
        self.segments.push_back(segment);
        while self.segments.len() > 1 && self.retained_bytes() > self.max_bytes {
            self.segments.pop_front();
        }
    }

    /// Where the oldest byte that is still there stands.
    pub fn start(&self) -> Position {
        self.segments.front().map_or(self.end, |segment| segment.start)
    }

    /// Where the next byte will stand.
    pub fn end(&self) -> Position {
        self.end
    }

    /// How many bytes are kept at the moment.
    pub fn retained_bytes(&self) -> u64 {
        self.end.0 - self.start().0
    }

    /// The segments from the one that holds `position` on.
    pub(super) fn segments_from(&self, position: Position) -> impl Iterator<Item = &Segment> {
        let first = self.segments.partition_point(|segment| segment.end() <= position);
        self.segments.range(first..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_keeps_the_newest_bytes_within_its_bound() {
        let mut log = Log::new(10);
        log.append(Bytes::new(), Source::default());
        assert_eq!((log.start(), log.end()), (Position(0), Position(0)));
        for _ in 0..4 {
            log.append(Bytes::from_static(b"abc\n"), Source::default());
        }
        assert_eq!((log.start(), log.end(), log.retained_bytes()), (Position(8), Position(16), 8));
        log.append(Bytes::from_static(b"longer than the bound\n"), Source::default());
        assert_eq!((log.start(), log.end()), (Position(16), Position(38)));
    }

    #[test]
    fn a_position_is_found_in_the_segment_that_holds_it() {
        let mut log = Log::new(100);
        for _ in 0..3 {
            log.append(Bytes::from_static(b"ab\n"), Source::default());
        }
        let starts =
            |position| log.segments_from(Position(position)).map(|segment| segment.start.0).collect::<Vec<_>>();
        assert_eq!(starts(0), [0, 3, 6]);
        assert_eq!(starts(2), [0, 3, 6]);
        assert_eq!(starts(3), [3, 6]);
        assert_eq!(starts(9), [0_u64; 0]);
    }
}
