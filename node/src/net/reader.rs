//! One connection's receiving side: bytes to lines, lines to the driver.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use arborcast_core::{CloseReason, ConnectionId, ReceivedLine};
use arborcast_proto::wire::{LineDecoder, Message, WireError};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, sink};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;

use super::driver::Inbound;
use super::line_room::LineShare;
use super::pace::Gate;
use super::traffic::Traffic;
use super::transport::ReadHalf;
use super::writer::Ending;
use crate::settings::{LINGER_TIMEOUT, STOP_LINGER_TIMEOUT};

/// What a quiet connection keeps ready for the next bytes; the buffer grows with what comes.
const MIN_READ_BYTES: usize = 512;

/// Most that is read at once, so that one busy peer takes turns with the others.
const MAX_READ_BYTES: usize = 64 << 10;

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
            self.linger().await;
        }
        drop(self.slot);
    }

    /// Hands lines over until the stream ends. After an invalid line nothing more is read: nothing behind it may be
    /// obeyed.
    async fn deliver(&mut self) -> CloseReason {
        let mut decoder = LineDecoder::new(self.max_line);
        let mut read_bytes = MIN_READ_BYTES;
        loop {
            decoder.buffer_mut().reserve(read_bytes);
            let outcome = self.half.read_buf(decoder.buffer_mut()).await;
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
                if lines.iter().any(is_activity) {
                    // Not for long: behind the activities of a link come the signs that its other end lives.
                    let _ = tokio::time::timeout(MAX_PACE, self.gate.open()).await;
                }
                let inbound = Inbound::Lines { connection: self.connection, lines };
                if self.inbox.send(inbound).await.is_err() {
                    return CloseReason::Stopping;
                }
            }
            if !is_valid {
                std::future::pending::<()>().await;
            }
            if decoder.pending() == 0 {
                // A quiet connection must not keep the buffer of its last burst.
                *decoder.buffer_mut() = BytesMut::new();
            }
        }
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
