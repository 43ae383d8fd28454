//! Where nodes and people connect to: a bounded source of connections.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use crate::error::MasterError;

/// How long to wait after accepting failed, which is mostly for want of file descriptors.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Of failures to accept, the first and every so many are logged.
const LOG_EVERY: u64 = 1000;

/// Opens the port, also right after another process has left it.
///
/// # Errors
/// [`MasterError::Listen`] when the name is unknown, or the address is in use or not ours.
pub async fn listen(host: &str, port: u16) -> Result<TcpListener, MasterError> {
    TcpListener::bind((host, port)).await.map_err(|source| MasterError::Listen { host: host.to_owned(), port, source })
}

/// The connections that a listener accepts. It never ends, and waits where it can't accept.
pub fn connections(listener: TcpListener) -> impl Stream<Item = TcpStream> + Send {
    stream::unfold((listener, 0_u64), |(listener, mut failures)| async move {
        loop {
            match listener.accept().await {
                Ok((connection, peer)) => {
                    if let Err(error) = connection.set_nodelay(true) {
                        debug!(%peer, %error, "can't switch off delaying of small segments");
                    }
                    return Some((connection, (listener, failures)));
                }
                Err(error) => {
                    if failures.is_multiple_of(LOG_EVERY) {
                        warn!(%error, failures, "can't accept a connection");
                    }
                    failures += 1;
                    tokio::time::sleep(RETRY_AFTER).await;
                }
            }
        }
    })
}

/// Takes no more connections than these at a time: the next one waits until another is closed. One that does not begin
/// HTTP/2 in time is given up, so that nobody can hold a place by saying nothing.
pub(crate) fn bounded<IO: Send>(
    connections: impl Stream<Item = IO> + Send,
    most: usize,
    handshake_timeout: Duration,
) -> impl Stream<Item = io::Result<Bounded<IO>>> + Send {
    let slots = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
    connections.then(move |io| {
        let slots = Arc::clone(&slots);
        async move {
            let permit = slots.acquire_owned().await.map_err(io::Error::other)?;
            let handshake = Handshake { missing: PREFACE, deadline: Box::pin(tokio::time::sleep(handshake_timeout)) };
            Ok(Bounded { io, handshake: Some(handshake), _permit: permit })
        }
    })
}

/// A connection that counts until it is dropped.
#[derive(Debug)]
pub(crate) struct Bounded<IO> {
    io: IO,
    handshake: Option<Handshake>,
    _permit: OwnedSemaphorePermit,
}

/// Every HTTP/2 connection begins with so many bytes. From then on pings find out whether the peer is there.
const PREFACE: usize = 24;

#[derive(Debug)]
struct Handshake {
    missing: usize,
    deadline: Pin<Box<Sleep>>,
}

impl<IO: Connected> Connected for Bounded<IO> {
    type ConnectInfo = IO::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.io.connect_info()
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Bounded<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.io).poll_read(cx, buffer);
        if let Some(handshake) = &mut self.handshake {
            let read = buffer.filled().len() - before;
            handshake.missing = handshake.missing.saturating_sub(read);
            if handshake.missing == 0 {
                self.handshake = None;
            } else if outcome.is_pending() && handshake.deadline.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        outcome
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Bounded<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }
}
