//! Where one reader of the log stands.

use bytes::Bytes;

use super::log::{Log, Position, Source};
use crate::ids::ConnectionId;

/// The place of one connection in the log: everything before it has been handed to the socket.
///
/// A link's cursor passes over what came over that link; a client's, over history unless the client resumes.
#[derive(Debug)]
pub struct Cursor {
    position: Position,
    passes_over: Option<ConnectionId>,
    takes_history: bool,
}

/// The log no longer holds what the cursor has to read next.
#[derive(Debug, PartialEq, Eq)]
pub struct FellOff;

impl Cursor {
    /// A cursor for `connection` that begins at `position`, a line's start.
    pub fn new(position: Position, connection: ConnectionId) -> Self {
        Self { position, passes_over: Some(connection), takes_history: true }
    }

    /// The same, for a connection that does not get what happened before this node was in the tree.
    #[must_use]
    pub fn without_history(self) -> Self {
        Self { takes_history: false, ..self }
    }

    /// A cursor that passes over nothing.
    pub fn over_all(position: Position) -> Self {
        Self { position, passes_over: None, takes_history: true }
    }

    fn skips(&self, source: Source) -> bool {
        (source.link.is_some() && source.link == self.passes_over) || (source.is_history && !self.takes_history)
    }

    /// Where it stands.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Appends to `out` the next contiguous bytes up to `until`: at most about `max_bytes` in at most `max_pieces`.
    /// Nothing appended means that the cursor has caught up with `until`. Call [`advance`](Self::advance) with what
    /// was written of it, then read again.
    ///
    /// # Errors
    /// [`FellOff`] when the next bytes are gone; the reader can't be served any more.
    pub fn read(
        &mut self,
        log: &Log,
        until: Position,
        max_bytes: usize,
        max_pieces: usize,
        out: &mut Vec<Bytes>,
    ) -> Result<(), FellOff> {
        if self.position < log.start() {
            return Err(FellOff);
        }
        let (mut at, mut bytes, already) = (self.position, 0, out.len());
        for segment in log.segments_from(at) {
            if at >= until || bytes >= max_bytes || out.len() - already >= max_pieces {
                break;
            }
            if self.skips(segment.source) {
                if bytes > 0 {
                    break;
                }
                at = segment.end();
                self.position = at;
                continue;
            }
            let offset = (at.0 - segment.start.0) as usize;
            let wanted = usize::try_from(until.0 - at.0).unwrap_or(usize::MAX).min(max_bytes - bytes);
            let end = segment.bytes.len().min(offset.saturating_add(wanted));
            bytes += end - offset;
            at = Position(segment.start.0 + end as u64);
            out.push(segment.bytes.slice(offset..end));
        }
        Ok(())
    }

    /// Moves on over bytes that were read and have been written.
    pub fn advance(&mut self, written: usize) {
        self.position.0 += written as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READER: ConnectionId = ConnectionId(1);
    const OTHER: Option<ConnectionId> = Some(ConnectionId(2));

    fn log(pieces: &[(&'static str, Option<ConnectionId>)]) -> Log {
        let mut log = Log::new(1000);
        for (text, from) in pieces {
            log.append(Bytes::from_static(text.as_bytes()), (*from).into());
        }
        log
    }

    /// Reads to the end, writing at most `step` bytes at a time.
    fn read_all(cursor: &mut Cursor, log: &Log, step: usize) -> String {
        let mut text = Vec::new();
        loop {
            let mut out = Vec::new();
            cursor.read(log, log.end(), 7, 2, &mut out).unwrap();
            let bytes = out.concat();
            if bytes.is_empty() {
                return String::from_utf8(text).unwrap();
            }
            assert!(bytes.len() <= 7 && out.len() <= 2);
            let written = bytes.len().min(step);
            text.extend_from_slice(&bytes[..written]);
            cursor.advance(written);
        }
    }

    #[test]
    fn a_cursor_reads_every_byte_once_whatever_the_socket_takes() {
        let log = log(&[("one\n", None), ("two\n", OTHER), ("three\nfour\n", None), ("five\n", OTHER)]);
        for step in 1..9 {
            let mut cursor = Cursor::new(Position(0), READER);
            assert_eq!(read_all(&mut cursor, &log, step), "one\ntwo\nthree\nfour\nfive\n");
            assert_eq!(cursor.position(), log.end());
        }
    }

    #[test]
    fn a_link_does_not_get_back_what_came_over_it() {
        let own = Some(READER);
        let log = log(&[("a\n", own), ("b\n", None), ("c\n", own), ("d\n", own), ("e\n", OTHER), ("f\n", own)]);
        for step in 1..4 {
            let mut cursor = Cursor::new(Position(0), READER);
            assert_eq!(read_all(&mut cursor, &log, step), "b\ne\n");
            assert_eq!(cursor.position(), log.end());
        }
    }

    #[test]
    fn history_is_passed_over_by_those_who_were_not_there() {
        let mut log = log(&[("a\n", None)]);
        log.append(Bytes::from_static(b"old\n"), Source { link: OTHER, is_history: true });
        log.append(Bytes::from_static(b"b\n"), Source::default());
        assert_eq!(read_all(&mut Cursor::new(Position(0), READER), &log, 9), "a\nold\nb\n");
        assert_eq!(read_all(&mut Cursor::new(Position(0), READER).without_history(), &log, 9), "a\nb\n");
    }

    #[test]
    fn a_cursor_stops_where_it_is_told_to() {
        let log = log(&[("one\n", None), ("two\n", None)]);
        let mut cursor = Cursor::new(Position(0), READER);
        let mut out = Vec::new();
        cursor.read(&log, Position(4), 100, 10, &mut out).unwrap();
        assert_eq!(out.concat(), b"one\n");
        cursor.advance(4);
        out.clear();
        cursor.read(&log, Position(4), 100, 10, &mut out).unwrap();
        assert!(out.is_empty());
    }

    #[test]
    fn a_cursor_that_falls_off_the_log_is_told_so() {
        let mut log = Log::new(8);
        let mut slow = Cursor::new(log.end(), READER);
        let mut quick = Cursor::new(log.end(), READER);
        for _ in 0..3 {
            log.append(Bytes::from_static(b"abc\n"), Source::default());
            if quick.position() < Position(8) {
                quick.advance(4);
            }
        }
        let end = log.end();
        assert_eq!(slow.read(&log, end, 100, 10, &mut Vec::new()), Err(FellOff));
        assert_eq!(quick.read(&log, end, 100, 10, &mut Vec::new()), Ok(()));
    }
}
