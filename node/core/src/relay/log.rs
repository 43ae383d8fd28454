//! The broadcast log: every line that is published, stored once, in order, bounded in bytes.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::ids::ConnectionId;

/// A place between two bytes of everything a node has ever published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(pub u64);

/// The published lines, in memory.
///
/// # Invariants
/// - Pieces are contiguous: each starts where the one before it ends.
/// - A piece holds whole lines that came from one source.
/// - It holds at most `max_bytes`, except that the newest piece is always whole. What falls out, falls out at the
///   start.
#[derive(Debug)]
pub struct Log {
    pieces: VecDeque<Piece>,
    end: Position,
    max_bytes: u64,
}

/// Lines that were appended together.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) start: Position,
    pub(super) bytes: Bytes,
    pub(super) from: Option<ConnectionId>,
}

impl Piece {
    pub(super) fn end(&self) -> Position {
        Position(self.start.0 + self.bytes.len() as u64)
    }
}

impl Log {
    /// An empty log that will keep the last `max_bytes`.
    pub fn new(max_bytes: u64) -> Self {
        Self { pieces: VecDeque::new(), end: Position(0), max_bytes }
    }

    /// Appends whole lines that came over the link `from`, or from clients of this node.
    pub fn append(&mut self, bytes: Bytes, from: Option<ConnectionId>) {
        if bytes.is_empty() {
            return;
        }
        let piece = Piece { start: self.end, bytes, from };
        self.end = piece.end();
        self.pieces.push_back(piece);
        while self.pieces.len() > 1 && self.retained_bytes() > self.max_bytes {
            self.pieces.pop_front();
        }
    }

    /// Where the oldest byte that is still there stands.
    pub fn start(&self) -> Position {
        self.pieces.front().map_or(self.end, |piece| piece.start)
    }

    /// Where the next byte will stand.
    pub fn end(&self) -> Position {
        self.end
    }

    /// How many bytes are kept at the moment.
    pub fn retained_bytes(&self) -> u64 {
        self.end.0 - self.start().0
    }

    /// The pieces from the one that holds `position` on.
    pub(super) fn pieces_from(&self, position: Position) -> impl Iterator<Item = &Piece> {
        let first = self.pieces.partition_point(|piece| piece.end() <= position);
        self.pieces.range(first..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_keeps_the_newest_bytes_within_its_bound() {
        let mut log = Log::new(10);
        log.append(Bytes::new(), None);
        assert_eq!((log.start(), log.end()), (Position(0), Position(0)));
        for _ in 0..4 {
            log.append(Bytes::from_static(b"abc\n"), None);
        }
        assert_eq!((log.start(), log.end(), log.retained_bytes()), (Position(8), Position(16), 8));
        log.append(Bytes::from_static(b"longer than the bound\n"), None);
        assert_eq!((log.start(), log.end()), (Position(16), Position(38)));
    }

    #[test]
    fn a_position_is_found_in_the_piece_that_holds_it() {
        let mut log = Log::new(100);
        for _ in 0..3 {
            log.append(Bytes::from_static(b"ab\n"), None);
        }
        let starts = |position| log.pieces_from(Position(position)).map(|piece| piece.start.0).collect::<Vec<_>>();
        assert_eq!(starts(0), [0, 3, 6]);
        assert_eq!(starts(2), [0, 3, 6]);
        assert_eq!(starts(3), [3, 6]);
        assert_eq!(starts(9), [0_u64; 0]);
    }
}
