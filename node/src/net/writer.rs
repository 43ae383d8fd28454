//! One connection's sending side: its cursor in the broadcast log, and the lines that are for it alone.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arborcast_core::relay::{Cursor, Position};
use arborcast_core::{CloseReason, ConnectionId};
use bytes::{Buf as _, Bytes};
use tokio::io::AsyncWrite as _;
use tokio_util::sync::CancellationToken;

use super::broadcast_log::BroadcastLog;
use super::transport::WriteHalf;

/// Pieces in one write; well below the operating system's limit of 1,024.
const MAX_PIECES: usize = 64;

/// Bytes in one write.
const MAX_WRITE_BYTES: usize = 256 << 10;

/// Writes before another connection's turn.
const MAX_WRITES: usize = 8;

/// What a connection's reader, its writer and the driver tell each other: that it is to end, and who it is.
pub(super) struct Ending {
    token: CancellationToken,
    reason: OnceLock<CloseReason>,
    is_link: AtomicBool,
}

impl Ending {
    pub(super) fn new() -> Self {
        Self { token: CancellationToken::new(), reason: OnceLock::new(), is_link: AtomicBool::new(false) }
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
        self.token.cancel();
    }

    /// The writer can't go on, and the core does not know yet.
    pub(super) fn fail(&self, reason: CloseReason) {
        let _ = self.reason.set(reason);
        self.token.cancel();
    }

    pub(super) async fn begun(&self) {
        self.token.cancelled().await;
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

/// The sending side of one connection.
///
/// Lines for this connection alone carry the log position after which they are to be sent, so that the peer sees
/// everything in the order in which the core decided it.
pub(super) struct Writer {
    connection: ConnectionId,
    half: WriteHalf,
    ending: Arc<Ending>,
    cursor: Option<Cursor>,
    own_lines: VecDeque<(Position, Bytes)>,
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
            cursor: None,
            own_lines: VecDeque::new(),
            own_bytes: 0,
            finish_after: None,
            moved: now,
        }
    }

    /// Queues a line for this connection alone, behind everything published before `after`.
    pub(super) fn push(&mut self, after: Position, line: Bytes) {
        self.own_bytes += line.len();
        self.own_lines.push_back((after, line));
    }

    /// How many bytes wait for this connection alone.
    pub(super) fn own_bytes(&self) -> usize {
        self.own_bytes
    }

    /// From `position` on the connection gets what is published.
    pub(super) fn subscribe(&mut self, position: Position, is_link: bool) {
        self.cursor = Some(Cursor::new(position, self.connection));
        if is_link {
            self.ending.become_link();
        }
    }

    /// Ends the stream behind everything published before `after`.
    pub(super) fn finish(&mut self, after: Position) {
        self.finish_after = Some(after);
    }

    pub(super) fn fail(&self, reason: CloseReason) {
        self.ending.fail(reason);
    }

    /// For [`Tally::count`](super::pace::Tally::count): how far behind `end` a subscriber is, for how long it has not
    /// moved, and whether it is a link.
    pub(super) fn lag(&self, end: Position, now: Instant) -> Option<(u64, Duration, bool)> {
        let cursor = self.cursor.as_ref().filter(|_| self.finish_after.is_none())?;
        Some((
            end.0.saturating_sub(cursor.position().0),
            now.saturating_duration_since(self.moved),
            self.ending.is_link(),
        ))
    }

    /// Whether the log, which starts at `start`, no longer holds what comes next.
    pub(super) fn has_fallen_off(&self, start: Position) -> bool {
        self.cursor.as_ref().is_some_and(|cursor| cursor.position() < start)
    }

    /// Writes what there is up to `until`, as far as the socket takes it.
    ///
    /// # Errors
    /// The reason to close the connection for: the socket failed, or the log has run away.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        log: &BroadcastLog,
        until: Position,
        now: Instant,
        pieces: &mut Vec<Bytes>,
    ) -> Result<Progress, CloseReason> {
        for _ in 0..MAX_WRITES {
            pieces.clear();
            let are_own = self.gather(log, until, pieces)?;
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
            if are_own {
                self.consume_own(written);
            } else if let Some(cursor) = &mut self.cursor {
                cursor.advance(written);
            }
        }
        Ok(Progress::Yielded)
    }

    /// Puts what has to be written next into `pieces`; returns whether it is for this connection alone.
    fn gather(&mut self, log: &BroadcastLog, until: Position, pieces: &mut Vec<Bytes>) -> Result<bool, CloseReason> {
        let until = self.finish_after.map_or(until, |finish| finish.min(until));
        let Some(cursor) = &mut self.cursor else {
            pieces.extend(self.own_lines.iter().take(MAX_PIECES).map(|(_, line)| line.clone()));
            return Ok(true);
        };
        let next_own = self.own_lines.front().map(|(after, _)| *after);
        let until_own = next_own.map_or(until, |after| after.min(until));
        let read = log.read(cursor, until_own, MAX_WRITE_BYTES, MAX_PIECES, pieces);
        read.map_err(|_fell_off| CloseReason::TooSlow)?;
        if !pieces.is_empty() {
            return Ok(false);
        }
        let due = self.own_lines.iter().take_while(|(after, _)| *after <= until_own).take(MAX_PIECES);
        pieces.extend(due.map(|(_, line)| line.clone()));
        Ok(true)
    }

    fn consume_own(&mut self, mut written: usize) {
        self.own_bytes -= written;
        while let Some((_, line)) = self.own_lines.front_mut() {
            if line.len() > written {
                line.advance(written);
                return;
            }
            written -= line.len();
            self.own_lines.pop_front();
        }
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>, until: Position) -> Result<Progress, CloseReason> {
        if self.finish_after.is_none_or(|after| after > until) {
            return Ok(Progress::CaughtUp);
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
        log: BroadcastLog,
        draft: Draft,
        socket: Socket,
        writer: Writer,
    }

    impl Bench {
        fn new() -> Self {
            let socket = Socket::default();
            let half = Box::new(socket.clone());
            let writer = Writer::new(ConnectionId(1), half, Arc::new(Ending::new()), Instant::now());
            Self { log: BroadcastLog::new(1000), draft: Draft::new(), socket, writer }
        }

        fn publish(&mut self, text: &str) {
            self.draft.write(None, |out| out.extend_from_slice(text.as_bytes()));
            self.draft.publish(&self.log);
        }

        fn push(&mut self, text: &'static str) {
            self.writer.push(self.draft.end(), Bytes::from_static(text.as_bytes()));
        }

        fn write(&mut self, room: usize, step: usize) -> Result<Progress, CloseReason> {
            self.socket.allow(room, step);
            let mut cx = Context::from_waker(Waker::noop());
            loop {
                let until = self.log.end();
                match self.writer.poll_write(&mut cx, &self.log, until, Instant::now(), &mut Vec::new()) {
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
            bench.writer.subscribe(bench.draft.end(), false);
            bench.publish("one\n");
            bench.push("answer\n");
            bench.push("another\n");
            bench.publish("two\n");
            bench.writer.finish(bench.draft.end());
            bench.publish("after the end\n");

            assert_eq!(bench.write(11, step), Ok(Progress::Blocked));
            assert_eq!(bench.write(1000, step), Ok(Progress::Finished));
            assert_eq!(bench.socket.text(), "welcome\none\nanswer\nanother\ntwo\n");
            assert!(bench.socket.0.lock().unwrap().ended);
            assert_eq!(bench.writer.own_bytes(), 0);
        }
    }

    #[test]
    fn a_connection_that_is_not_subscribed_gets_only_its_own_lines() {
        let mut bench = Bench::new();
        bench.publish("not for you\n");
        bench.push("no\n");
        bench.writer.finish(bench.draft.end());
        assert_eq!(bench.write(1000, 2), Ok(Progress::Finished));
        assert_eq!(bench.socket.text(), "no\n");
    }

    #[test]
    fn a_writer_that_falls_off_the_log_is_too_slow() {
        let mut bench = Bench::new();
        bench.writer.subscribe(bench.draft.end(), false);
        bench.publish("first\n");
        assert_eq!(bench.write(3, 3), Ok(Progress::Blocked));
        for _ in 0..200 {
            bench.publish("much more\n");
        }
        assert_eq!(bench.write(1000, 1000), Err(CloseReason::TooSlow));
    }
}
