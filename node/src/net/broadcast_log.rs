//! The core's broadcast logs, shared between the driver, which appends, and the fan-out, which reads.

use std::sync::{Arc, PoisonError, RwLock};

use arborcast_core::Form;
use arborcast_core::relay::cursor::FellOff;
use arborcast_core::relay::{Cursor, Log, Position, Source};
use bytes::{Bytes, BytesMut};

/// How many bytes a segment of the log is given at once.
const SEGMENT_BYTES: usize = 64 << 10;

/// One thing for each form that an activity has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct PerForm<T> {
    pub(super) plain: T,
    pub(super) extended: T,
}

impl<T> PerForm<T> {
    pub(super) fn of(&self, form: Form) -> &T {
        match form {
            Form::Plain => &self.plain,
            Form::Extended => &self.extended,
        }
    }
}

/// The logs of both forms. That of the extended one stays empty in a node that speaks the plain protocol only.
pub(super) type BroadcastLogs = PerForm<BroadcastLog>;

impl BroadcastLogs {
    /// Logs of that many bytes each. The core keeps count of what the extended one holds, line by line; a log forgets
    /// whole segments, so it is given room for one more.
    pub(super) fn new(max_bytes: u64, max_segment_bytes: u64) -> Self {
        Self {
            plain: BroadcastLog::new(max_bytes),
            extended: BroadcastLog::new(max_bytes.saturating_add(max_segment_bytes)),
        }
    }

    pub(super) fn ends(&self) -> PerForm<Position> {
        PerForm { plain: self.plain.end(), extended: self.extended.end() }
    }

    pub(super) fn starts(&self) -> PerForm<Position> {
        PerForm { plain: self.plain.start(), extended: self.extended.start() }
    }
}

/// For those who only look.
#[derive(Clone)]
pub(crate) struct Logs(pub(super) Arc<BroadcastLogs>);

impl Logs {
    /// How many bytes are kept, by form.
    pub(crate) fn retained_bytes(&self) -> [(&'static str, u64); 2] {
        let bytes = |log: &BroadcastLog| log.end().0.saturating_sub(log.start().0);
        [("plain", bytes(&self.0.plain)), ("extended", bytes(&self.0.extended))]
    }
}

/// The log behind a lock. A blocking one: it is held for a few appends or reads, and nothing is awaited meanwhile.
pub(super) struct BroadcastLog(RwLock<Log>);

impl BroadcastLog {
    pub(super) fn new(max_bytes: u64) -> Self {
        Self(RwLock::new(Log::new(max_bytes)))
    }

    pub(super) fn start(&self) -> Position {
        self.0.read().unwrap_or_else(PoisonError::into_inner).start()
    }

    pub(super) fn end(&self) -> Position {
        self.0.read().unwrap_or_else(PoisonError::into_inner).end()
    }

    pub(super) fn read(
        &self,
        cursor: &mut Cursor,
        until: Position,
        max_bytes: usize,
        max_pieces: usize,
        out: &mut Vec<Bytes>,
    ) -> Result<(), FellOff> {
        cursor.read(&self.0.read().unwrap_or_else(PoisonError::into_inner), until, max_bytes, max_pieces, out)
    }
}

/// What the driver has written but not published yet. Publishing once for many lines keeps the lock and the wake-ups
/// cheap.
pub(super) struct Draft {
    sealed: Vec<(Bytes, Source)>,
    open: BytesMut,
    open_source: Source,
    /// Where the log will end once this is published.
    end: Position,
    /// Where it ends now.
    published: Position,
}

impl Draft {
    pub(super) fn new() -> Self {
        Self {
            sealed: Vec::new(),
            open: BytesMut::new(),
            open_source: Source::default(),
            end: Position::default(),
            published: Position::default(),
        }
    }

    /// Where the next line will stand.
    pub(super) fn end(&self) -> Position {
        self.end
    }

    /// How many bytes the log does not have yet.
    pub(super) fn unpublished_bytes(&self) -> u64 {
        self.end.0 - self.published.0
    }

    /// Adds what `write` writes, which came from `source`. A segment of the log has one source.
    pub(super) fn write(&mut self, source: Source, write: impl FnOnce(&mut BytesMut)) {
        if self.open_source != source {
            self.seal();
            self.open_source = source;
        }
        if self.open.capacity() == self.open.len() {
            self.open.reserve(SEGMENT_BYTES);
        }
        let before = self.open.len();
        write(&mut self.open);
        self.end.0 += (self.open.len() - before) as u64;
    }

    fn seal(&mut self) {
        if !self.open.is_empty() {
            self.sealed.push((self.open.split().freeze(), self.open_source));
        }
    }

    /// Moves everything into the log.
    pub(super) fn publish(&mut self, log: &BroadcastLog) {
        self.seal();
        let mut log = log.0.write().unwrap_or_else(PoisonError::into_inner);
        for (bytes, source) in self.sealed.drain(..) {
            log.append(bytes, source);
        }
        self.published = self.end;
    }
}

#[cfg(test)]
mod tests {
    use arborcast_core::ConnectionId;

    use super::*;

    #[test]
    fn what_is_drafted_is_read_in_order_once_it_is_published() {
        let log = BroadcastLog::new(1000);
        let mut draft = Draft::new();
        let link = Some(ConnectionId(7));
        for (text, from) in [("a\n", None), ("b\n", None), ("c\n", link), ("d\n", None)] {
            draft.write(from.into(), |out| out.extend_from_slice(text.as_bytes()));
        }
        assert_eq!((draft.end(), log.end()), (Position(8), Position(0)));
        draft.publish(&log);
        assert_eq!(draft.unpublished_bytes(), 0);

        let mut out = Vec::new();
        let mut cursor = Cursor::new(Position(0), ConnectionId(1));
        log.read(&mut cursor, log.end(), 1000, 10, &mut out).unwrap();
        assert_eq!(out, ["a\nb\n", "c\n", "d\n"]);
    }
}
