//! One connection's sending side: its cursor in the broadcast log, and the lines that are for it alone.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arborcast_core::relay::{Cursor, Piece, Position};
use arborcast_core::{CloseReason, ConnectionId, Form};
use bytes::{Buf as _, Bytes};
use tokio::io::AsyncWrite as _;
use tokio::sync::Notify;

use super::broadcast_log::{BroadcastLogs, PerForm};
use super::transport::WriteHalf;

/// Pieces in one write; well below the operating system's limit of 1,024.
const MAX_PIECES: usize = 64;

/// Bytes in one write.
const MAX_WRITE_BYTES: usize = 256 << 10;

/// Writes before another connection's turn.
const MAX_WRITES: usize = 2;

/// What a connection's reader, its writer and the driver tell each other: that it is to end, and who it is.
pub(super) struct Ending {
    has_begun: AtomicBool,
    /// For the reader, the only one that waits.
    begun: Notify,
    reason: OnceLock<CloseReason>,
    is_link: AtomicBool,
}

impl Ending {
    pub(super) fn new() -> Self {
        Self {
            has_begun: AtomicBool::new(false),
            begun: Notify::new(),
            reason: OnceLock::new(),
            is_link: AtomicBool::new(false),
        }
    }

    /// The connection is a link to another server.
    pub(super) fn become_link(&self) {
        self.is_link.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_link(&self) -> bool {
        self.is_link.load(Ordering::Relaxed)
    }

    /// The core has closed the connection.
    pub(super) fn begin(&self) {
        self.has_begun.store(true, Ordering::Release);
        self.begun.notify_one();
    }

    /// The writer can't go on, and the core does not know yet.
    pub(super) fn fail(&self, reason: CloseReason) {
        let _ = self.reason.set(reason);
        self.begin();
    }

    pub(super) async fn begun(&self) {
        while !self.has_begun.load(Ordering::Acquire) {
            self.begun.notified().await;
        }
    }

    /// What the core has to be told, if it was not the core that ended the connection.
    pub(super) fn reason(&self) -> Option<CloseReason> {
        self.reason.get().copied()
    }
}

/// What became of an attempt to write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Everything is written.
    CaughtUp,
    /// The socket takes no more; the waker of the context will be woken when it does.
    Blocked,
    /// There is more, but it is others' turn.
    Yielded,
    /// Everything is written, and the stream is ended.
    Finished,
}

/// What a connection gets from the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Subscription {
    pub(super) form: Form,
    pub(super) is_link: bool,
    pub(super) takes_history: bool,
}

/// The sending side of one connection.
///
/// What is for this connection alone carries the log position after which it is to be sent, so that the peer sees
/// everything in the order in which the core decided it.
pub(super) struct Writer {
    connection: ConnectionId,
    half: WriteHalf,
    ending: Arc<Ending>,
    form: Form,
    cursor: Option<Cursor>,
    own: VecDeque<(Position, Piece)>,
    /// How many bytes of lines that are not in the log are in `own`.
    own_bytes: usize,
    /// After which position the stream ends.
    finish_after: Option<Position>,
    /// When the socket last took something.
    moved: Instant,
}

impl Writer {
    pub(super) fn new(connection: ConnectionId, half: WriteHalf, ending: Arc<Ending>, now: Instant) -> Self {
        Self {
            connection,
            half,
            ending,
            form: Form::Plain,
            cursor: None,
            own: VecDeque::new(),
            own_bytes: 0,
            finish_after: None,
            moved: now,
        }
    }

    /// Queues a line for this connection alone, behind everything published before `after`.
    pub(super) fn push(&mut self, after: PerForm<Position>, line: Bytes) {
        self.own_bytes += line.len();
        self.own.push_back((*after.of(self.form), Piece::Line(line)));
    }

    /// Queues lines and parts of the log in the same way. What is in the log does not count as bytes of this connection.
    pub(super) fn replay(&mut self, after: PerForm<Position>, pieces: Vec<Piece>) {
        for piece in pieces {
            match piece {
                Piece::Line(line) => self.push(after, line),
                range @ Piece::Range { .. } => self.own.push_back((*after.of(self.form), range)),
            }
        }
    }

    /// How many bytes wait for this connection alone.
    pub(super) fn own_bytes(&self) -> usize {
        self.own_bytes
    }

    /// From `position` on the connection gets what is published.
    pub(super) fn subscribe(&mut self, position: PerForm<Position>, subscription: Subscription) {
        let Subscription { form, is_link, takes_history } = subscription;
        let cursor = Cursor::new(*position.of(form), self.connection);
        self.cursor = Some(if takes_history { cursor } else { cursor.without_history() });
        // What waits was to be sent before anything that is published.
        self.own.iter_mut().for_each(|(after, _)| *after = Position::default());
        self.form = form;
        if is_link {
            self.ending.become_link();
        }
    }

    /// Ends the stream behind everything published before `after`.
    pub(super) fn finish(&mut self, after: PerForm<Position>) {
        self.finish_after = Some(*after.of(self.form));
    }

    pub(super) fn fail(&self, reason: CloseReason) {
        self.ending.fail(reason);
    }

    /// For [`Tally::count`](super::pace::Tally::count): how far behind `end` a subscriber is, for how long it has not
    /// moved, and whether it is a link.
    pub(super) fn lag(&self, end: &PerForm<Position>, now: Instant) -> Option<(u64, Duration, bool)> {
        let cursor = self.cursor.as_ref().filter(|_| self.finish_after.is_none())?;
        Some((
            end.of(self.form).0.saturating_sub(cursor.position().0),
            now.saturating_duration_since(self.moved),
            self.ending.is_link(),
        ))
    }

    /// Whether the log, which starts at `start`, no longer holds what comes next.
    pub(super) fn has_fallen_off(&self, start: &PerForm<Position>) -> bool {
        let start = *start.of(self.form);
        let is_gone = |piece: &Piece| matches!(piece, Piece::Range { start: needed, .. } if *needed < start);
        self.cursor.as_ref().is_some_and(|cursor| cursor.position() < start)
            || self.own.front().is_some_and(|(_, piece)| is_gone(piece))
    }

    /// Writes what there is up to `until`, as far as the socket takes it, and adds how much that was to `bytes`.
    ///
    /// # Errors
    /// The reason to close the connection for: the socket failed, or the log has run away.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        logs: &BroadcastLogs,
        until: &PerForm<Position>,
        now: Instant,
        pieces: &mut Vec<Bytes>,
        bytes: &mut usize,
    ) -> Result<Progress, CloseReason> {
        let until = *until.of(self.form);
        for _ in 0..MAX_WRITES {
            pieces.clear();
            let are_own = self.gather(logs, until, pieces)?;
            if pieces.is_empty() {
                return self.poll_finish(cx, until);
            }
            let mut slices = [IoSlice::new(&[]); MAX_PIECES];
            for (slice, piece) in slices.iter_mut().zip(pieces.iter()) {
                *slice = IoSlice::new(piece);
            }
            let slices = slices.get(..pieces.len()).unwrap_or_default();
            let written = match Pin::new(&mut self.half).poll_write_vectored(cx, slices) {
                Poll::Pending => return Ok(Progress::Blocked),
                Poll::Ready(Ok(0) | Err(_)) => return Err(CloseReason::Failed),
                Poll::Ready(Ok(written)) => written,
            };
            self.moved = now;
            *bytes += written;
            if are_own {
                self.consume_own(written);
            } else if let Some(cursor) = &mut self.cursor {
                cursor.advance(written);
            }
        }
        Ok(Progress::Yielded)
    }

    /// Puts what has to be written next into `pieces`; returns whether it is for this connection alone.
    fn gather(&mut self, logs: &BroadcastLogs, until: Position, pieces: &mut Vec<Bytes>) -> Result<bool, CloseReason> {
        let until = self.finish_after.map_or(until, |finish| finish.min(until));
        if let Some(cursor) = &mut self.cursor {
            let next_own = self.own.front().map(|(after, _)| *after);
            let until_own = next_own.map_or(until, |after| after.min(until));
            let log = logs.of(self.form);
            let read = log.read(cursor, until_own, MAX_WRITE_BYTES, MAX_PIECES, pieces);
            read.map_err(|_fell_off| CloseReason::TooSlow)?;
            if !pieces.is_empty() {
                return Ok(false);
            }
        }
        self.gather_own(logs, until, pieces)?;
        Ok(true)
    }

    fn gather_own(&self, logs: &BroadcastLogs, until: Position, pieces: &mut Vec<Bytes>) -> Result<(), CloseReason> {
        let is_due = |(after, _): &&(Position, Piece)| self.cursor.is_none() || *after <= until;
        for (_, piece) in self.own.iter().take_while(is_due).take(MAX_PIECES) {
            match piece {
                Piece::Line(line) => pieces.push(line.clone()),
                Piece::Range { start, end } => {
                    // What stands before it is written first; how much of the log fits then is seen next time.
                    if pieces.is_empty() {
                        let mut cursor = Cursor::over_all(*start);
                        let read = logs.of(self.form).read(&mut cursor, *end, MAX_WRITE_BYTES, MAX_PIECES, pieces);
                        read.map_err(|_fell_off| CloseReason::TooSlow)?;
                    }
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn consume_own(&mut self, mut written: usize) {
        while let Some((_, piece)) = self.own.front_mut() {
            match piece {
                Piece::Line(line) if line.len() > written => {
                    self.own_bytes -= written;
                    line.advance(written);
                    return;
                }
                Piece::Line(line) => {
                    self.own_bytes -= line.len();
                    written -= line.len();
                }
                Piece::Range { start, end } => {
                    let length = end.0 - start.0;
                    if length > written as u64 {
                        start.0 += written as u64;
                        return;
                    }
                    written -= usize::try_from(length).unwrap_or(written);
                }
            }
            self.own.pop_front();
            if written == 0 {
                return;
            }
        }
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>, until: Position) -> Result<Progress, CloseReason> {
        if self.finish_after.is_none_or(|after| after > until) {
            // TLS may hold what it has taken.
            return match Pin::new(&mut self.half).poll_flush(cx) {
                Poll::Pending => Ok(Progress::Blocked),
                Poll::Ready(Ok(())) => Ok(Progress::CaughtUp),
                Poll::Ready(Err(_)) => Err(CloseReason::Failed),
            };
        }
        match Pin::new(&mut self.half).poll_shutdown(cx) {
            Poll::Pending => Ok(Progress::Blocked),
            Poll::Ready(Ok(())) => Ok(Progress::Finished),
            Poll::Ready(Err(_)) => Err(CloseReason::Failed),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;
    use std::task::Waker;

    use tokio::io::AsyncWrite;

    use super::super::broadcast_log::Draft;
    use super::*;

    const CLIENT: Subscription = Subscription { form: Form::Plain, is_link: false, takes_history: false };

    /// Takes a few bytes at a time, at most as many as it is allowed, and keeps them.
    #[derive(Clone, Default)]
    struct Socket(Arc<Mutex<SocketState>>);

    #[derive(Default)]
    struct SocketState {
        taken: Vec<u8>,
        room: usize,
        step: usize,
        ended: bool,
    }

    impl Socket {
        fn allow(&self, room: usize, step: usize) {
            let mut state = self.0.lock().unwrap();
            (state.room, state.step) = (room, step);
        }

        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().taken.clone()).unwrap()
        }
    }

    impl AsyncWrite for Socket {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let mut state = self.0.lock().unwrap();
            let takes = bytes.len().min(state.room).min(state.step);
            if takes == 0 {
                return Poll::Pending;
            }
            state.room -= takes;
            state.taken.extend_from_slice(&bytes[..takes]);
            Poll::Ready(Ok(takes))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.0.lock().unwrap().ended = true;
            Poll::Ready(Ok(()))
        }
    }

    struct Bench {
        logs: BroadcastLogs,
        draft: Draft,
        socket: Socket,
        writer: Writer,
    }

    impl Bench {
        fn new() -> Self {
            let socket = Socket::default();
            let half = Box::new(socket.clone());
            let writer = Writer::new(ConnectionId(1), half, Arc::new(Ending::new()), Instant::now());
            Self { logs: BroadcastLogs::new(1000, 0), draft: Draft::new(), socket, writer }
        }

        fn publish(&mut self, text: &str) {
            self.draft.write(None.into(), |out| out.extend_from_slice(text.as_bytes()));
            self.draft.publish(&self.logs.plain);
        }

        fn push(&mut self, text: &'static str) {
            self.writer.push(self.end(), Bytes::from_static(text.as_bytes()));
        }

        fn end(&self) -> PerForm<Position> {
            PerForm { plain: self.draft.end(), extended: Position::default() }
        }

        fn write(&mut self, room: usize, step: usize) -> Result<Progress, CloseReason> {
            self.socket.allow(room, step);
            let mut cx = Context::from_waker(Waker::noop());
            loop {
                let until = self.logs.ends();
                match self.writer.poll_write(&mut cx, &self.logs, &until, Instant::now(), &mut Vec::new(), &mut 0) {
                    Ok(Progress::Yielded) => {}
                    other => return other,
                }
            }
        }
    }

    #[test]
    fn own_lines_and_published_lines_come_in_the_order_of_the_core() {
        for step in [1, 3, 5, 1000] {
            let mut bench = Bench::new();
            bench.publish("before the subscription\n");
            bench.push("welcome\n");
            bench.writer.subscribe(bench.end(), CLIENT);
            bench.publish("one\n");
            bench.push("answer\n");
            bench.push("another\n");
            bench.publish("two\n");
            bench.writer.finish(bench.end());
            bench.publish("after the end\n");

            assert_eq!(bench.write(11, step), Ok(Progress::Blocked));
            assert_eq!(bench.write(1000, step), Ok(Progress::Finished));
            assert_eq!(bench.socket.text(), "welcome\none\nanswer\nanother\ntwo\n");
            assert!(bench.socket.0.lock().unwrap().ended);
            assert_eq!(bench.writer.own_bytes(), 0);
        }
    }

    #[test]
    fn what_is_replayed_comes_between_what_was_published_before_and_after() {
        for step in [1, 4, 1000] {
            let mut bench = Bench::new();
            bench.publish("a\nb\nc\n");
            bench.writer.subscribe(bench.end(), CLIENT);
            bench.publish("d\n");
            let range = |start, end| Piece::Range { start: Position(start), end: Position(end) };
            let gap = Piece::Line(Bytes::from_static(b"gap\n"));
            bench.writer.replay(bench.end(), vec![range(0, 2), gap, range(4, 6)]);
            bench.push("synced\n");
            bench.publish("e\n");
            assert_eq!(bench.write(5, step), Ok(Progress::Blocked));
            assert_eq!(bench.write(1000, step), Ok(Progress::CaughtUp));
            assert_eq!(bench.socket.text(), "d\na\ngap\nc\nsynced\ne\n");
            assert_eq!(bench.writer.own_bytes(), 0);
        }
    }

    #[test]
    fn a_connection_that_is_not_subscribed_gets_only_its_own_lines() {
        let mut bench = Bench::new();
        bench.publish("not for you\n");
        bench.push("no\n");
        bench.writer.finish(bench.end());
        assert_eq!(bench.write(1000, 2), Ok(Progress::Finished));
        assert_eq!(bench.socket.text(), "no\n");
    }

    #[test]
    fn a_writer_that_falls_off_the_log_is_too_slow() {
        let mut bench = Bench::new();
        bench.writer.subscribe(bench.end(), CLIENT);
        bench.publish("first\n");
        assert_eq!(bench.write(3, 3), Ok(Progress::Blocked));
        for _ in 0..200 {
            bench.publish("much more\n");
        }
        assert_eq!(bench.write(1000, 1000), Err(CloseReason::TooSlow));
    }
}
