//! Plain connections and TLS at one port.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arborcast_tls::{Stream, Tls, begins_with_tls};
use futures_util::stream::{self, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::transport::server::Connected;
use tracing::debug;

/// Handshakes at one time; others wait.
const HANDSHAKES: usize = 256;

/// A connection, plain or TLS.
#[derive(Debug)]
pub struct Secured(Stream);

/// Begins TLS with those who begin it with us. Whoever takes longer than `patience` for it, or does not come over TLS
/// though that is required, is closed. Order is kept by nobody: a slow one holds up nobody else.
pub fn secured(
    connections: impl stream::Stream<Item = TcpStream> + Send,
    tls: Arc<Tls>,
    is_required: bool,
    patience: Duration,
) -> impl stream::Stream<Item = Secured> + Send {
    let shaken = connections.map(move |stream| {
        let tls = Arc::clone(&tls);
        async move {
            let outcome = timeout(patience, shake_hands(stream, &tls, is_required)).await;
            match outcome.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => Some(Secured(stream)),
                Err(error) => {
                    debug!(%error, "closed before it was taken");
                    None
                }
            }
        }
    });
    shaken.buffer_unordered(HANDSHAKES).filter_map(std::future::ready)
}

async fn shake_hands(stream: TcpStream, tls: &Tls, is_required: bool) -> io::Result<Stream> {
    if begins_with_tls(&stream).await? {
        tls.accept(stream).await
    } else if is_required {
        Err(io::Error::other("plain where TLS is required"))
    } else {
        Ok(Stream::Plain(stream))
    }
}

impl Connected for Secured {
    type ConnectInfo = <TcpStream as Connected>::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.0.socket().connect_info()
    }
}

impl AsyncRead for Secured {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
