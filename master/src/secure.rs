//! Plain connections and TLS at one port.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use arborcast_tls::{Acceptor, Either, Stream, peer_is_certified};
use futures_util::stream::{self, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tonic::transport::server::Connected;
use tracing::debug;

/// Connections that have not said yet whether they are TLS, or are in the handshake, at one time; others wait. Many, since
/// each that says nothing stays for some seconds.
const HANDSHAKES: usize = 4096;

/// A connection, plain or TLS.
#[derive(Debug)]
pub struct Secured {
    stream: Stream,
    guest: Guest,
}

/// What a call knows of the connection that it came over.
#[derive(Debug, Clone, Copy)]
pub struct Guest {
    /// It is TLS, and its peer could have shown a certificate of our authority, and has not.
    pub(crate) lacks_certificate: bool,
}

/// Begins TLS with those who begin it with us. Who is closed is counted by the acceptor. Order is kept by nobody: a slow one
/// holds up nobody else.
pub fn secured(
    connections: impl stream::Stream<Item = TcpStream> + Send,
    acceptor: Acceptor,
) -> impl stream::Stream<Item = Secured> + Send {
    let accepted = connections.map(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let stream = acceptor.accept(stream).await;
            let stream = stream.inspect_err(|error| debug!(%error, "closed before it was taken")).ok()?;
            let could_show = matches!(stream, Either::Right(_)) && acceptor.tls.knows_peers();
            let guest = Guest { lacks_certificate: could_show && !peer_is_certified(&stream) };
            Some(Secured { stream, guest })
        }
    });
    accepted.buffer_unordered(HANDSHAKES).filter_map(std::future::ready)
}

impl Connected for Secured {
    type ConnectInfo = Guest;

    fn connect_info(&self) -> Guest {
        self.guest
    }
}

impl AsyncRead for Secured {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
