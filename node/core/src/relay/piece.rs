//! What one reader is sent out of turn.

use bytes::Bytes;

use super::log::Position;

/// A part of what somebody lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// A line of its own, `\n` included.
    Line(Bytes),
    /// Whole lines of the log.
    Range {
        /// Where the first of them begins.
        start: Position,
        /// Where the last of them ends.
        end: Position,
    },
}
