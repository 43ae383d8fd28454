//! One connection's receiving side: bytes to lines, lines to the driver.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use arborcast_core::{CloseReason, ConnectionId, ReceivedLine};
use arborcast_proto::wire::{LineDecoder, Message, WireError};
use bytes::{Bytes, BytesMut};
use tokio::io::sink;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::io::poll_read_buf;
use tokio_util::sync::CancellationToken;

use super::driver::Inbound;
use super::line_room::LineShare;
use super::pace::Gate;
use super::traffic::Traffic;
use super::transport::ReadHalf;
use super::writer::Ending;
use crate::settings::{LINGER_TIMEOUT, STOP_LINGER_TIMEOUT};

/// What is ready for the first bytes after a silence; the buffer grows with what comes.
const MIN_READ_BYTES: usize = 512;

/// Most that is read at once, so that one busy peer takes turns with the others.
const MAX_READ_BYTES: usize = 64 << 10;

/// Batches of one connection that may wait for the driver. With one more it is never idle; with many, whoever comes
/// would have to wait behind all that one busy publisher has sent already.
const MAX_WAITING_BATCHES: usize = 2;

/// The longest that one batch of activities is held back so that readers can keep up.
const MAX_PACE: Duration = Duration::from_millis(200);

/// Reads one connection until it ends, hands its lines to the driver in batches, and tells the driver about the end if
/// it was not the driver that ended it.
pub(super) struct Reader {
    pub(super) connection: ConnectionId,
    pub(super) half: ReadHalf,
    pub(super) max_line: usize,
    pub(super) inbox: mpsc::Sender<Inbound>,
    pub(super) gate: Gate,
    pub(super) line_share: LineShare,
    pub(super) traffic: Arc<Traffic>,
    pub(super) ending: Arc<Ending>,
    /// Cancelled when the whole node ends.
    pub(super) ended: CancellationToken,
    /// The place among the connections that is free again when this ends.
    pub(super) slot: OwnedSemaphorePermit,
}

impl Reader {
    pub(super) async fn run(mut self) {
        let ending = Arc::clone(&self.ending);
        let ended = tokio::select! {
            biased;
            () = ending.begun() => ending.reason(),
            reason = self.deliver() => Some(reason),
        };
        if let Some(reason) = ended {
            // The driver being gone means that the node has stopped.
            let _ = self.inbox.send(Inbound::Ended { connection: self.connection, reason }).await;
        }
        if !matches!(ended, Some(CloseReason::PeerClosed | CloseReason::Failed)) {
            // Apart, since all connections would have to make room for it from the beginning.
            Box::pin(self.linger()).await;
        }
        drop(self.slot);
    }

    /// Hands lines over until the stream ends. After an invalid line nothing more is read: nothing behind it may be
    /// obeyed.
    async fn deliver(&mut self) -> CloseReason {
        let mut decoder = LineDecoder::new(self.max_line);
        let mut read_bytes = MIN_READ_BYTES;
        let mut turns = None;
        loop {
            let outcome = self.read(&mut decoder, read_bytes).await;
            self.traffic.received_bytes.add(outcome.as_ref().map_or(0, |read| *read as u64));
            match outcome {
                Ok(0) => return CloseReason::PeerClosed,
                Ok(read) if read >= read_bytes => read_bytes = (read_bytes * 2).min(MAX_READ_BYTES),
                Ok(read) => read_bytes = read.next_power_of_two().max(MIN_READ_BYTES),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return CloseReason::Failed,
            }
            let mut lines = take_lines(&mut decoder);
            if !self.line_share.hold(decoder.pending()) && !self.ending.is_link() {
                lines.push(ReceivedLine { bytes: Bytes::new(), message: Err(WireError::NoRoom) });
            }
            let is_valid = lines.last().is_none_or(|line| line.message.is_ok());
            if !lines.is_empty() {
                let mut turn = None;
                if lines.iter().any(is_activity) {
                    if !self.gate.is_open() {
                        // Not for long: behind the activities of a link come the signs that its other end lives.
                        let _ = Box::pin(tokio::time::timeout(MAX_PACE, self.gate.open())).await;
                    }
                    let turns = turns.get_or_insert_with(|| Arc::new(Semaphore::new(MAX_WAITING_BATCHES)));
                    // It is never closed.
                    turn = Arc::clone(turns).acquire_owned().await.ok();
                }
                let Ok(room) = self.inbox.reserve().await else { return CloseReason::Stopping };
                room.send(Inbound::Lines { connection: self.connection, lines, turn });
            }
            if !is_valid {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Reads once. While nothing comes a connection that is not within a line keeps no buffer, neither a new one nor that
    /// of its last burst.
    async fn read(&mut self, decoder: &mut LineDecoder, read_bytes: usize) -> io::Result<usize> {
        poll_fn(|cx| {
            decoder.buffer_mut().reserve(read_bytes);
            let read = poll_read_buf(Pin::new(&mut self.half), cx, decoder.buffer_mut());
            if read.is_pending() && decoder.pending() == 0 {
                *decoder.buffer_mut() = BytesMut::new();
            }
            read
        })
        .await
    }

    /// Reads and throws away what the peer still sends, so that our last words arrive; bounded in time.
    async fn linger(&mut self) {
        let discard = async {
            // How it ends makes no difference.
            let _ = tokio::io::copy(&mut self.half, &mut sink()).await;
        };
        let stopped = async {
            self.ended.cancelled().await;
            tokio::time::sleep(STOP_LINGER_TIMEOUT).await;
        };
        tokio::select! {
            () = discard => {}
            () = stopped => {}
            () = tokio::time::sleep(LINGER_TIMEOUT) => {}
        }
    }
}

/// The complete lines that have been read, up to the first invalid one.
fn take_lines(decoder: &mut LineDecoder) -> Vec<ReceivedLine> {
    let mut lines = Vec::new();
    loop {
        let line = match decoder.next_line() {
            Ok(None) => return lines,
            Ok(Some(bytes)) => ReceivedLine::read(bytes),
            Err(error) => ReceivedLine { bytes: Bytes::new(), message: Err(error) },
        };
        let is_valid = line.message.is_ok();
        lines.push(line);
        if !is_valid {
            return lines;
        }
    }
}

fn is_activity(line: &ReceivedLine) -> bool {
    matches!(line.message, Ok(Message::ActivityMessage { .. } | Message::ActivityBroadcast { .. }))
}
