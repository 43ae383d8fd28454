//! What a connection is to the rest of the node: two halves and a name. TCP here; whatever else reads and writes bytes
//! (TLS, a simulated network) fits as well.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use arborcast_tls::{Either, Stream};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tracing::debug;

/// The receiving side of a connection.
pub type ReadHalf = Box<dyn AsyncRead + Send + Unpin>;
/// The sending side of a connection. Shutting it down, or dropping it, ends the stream for the peer.
pub type WriteHalf = Box<dyn AsyncWrite + Send + Unpin>;

/// One connection, whoever opened it.
pub struct Connection {
    /// What the peer sends.
    pub read: ReadHalf,
    /// What the peer gets.
    pub write: WriteHalf,
    /// The peer's address, for logs.
    pub peer: SocketAddr,
}

/// A source of incoming connections.
pub trait Accept: Send + 'static {
    /// The next connection. Cancel safe.
    fn accept(&mut self) -> impl Future<Output = io::Result<(TcpStream, SocketAddr)>> + Send;
}

impl Accept for TcpListener {
    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        Self::accept(self).await
    }
}

/// After how long without traffic the operating system asks whether the peer is still there.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);

pub(super) fn connection(stream: Stream, peer: SocketAddr) -> Connection {
    let socket = arborcast_tls::socket(&stream);
    // Without these two the connection is slower, or found dead later; it works all the same.
    if let Err(error) = socket.set_nodelay(true) {
        debug!(%peer, %error, "can't switch off delaying of small segments");
    }
    if let Err(error) = SockRef::from(socket).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_AFTER)) {
        debug!(%peer, %error, "can't switch on keep-alive");
    }
    // A plain one is used as it is.
    let (read, write): (ReadHalf, WriteHalf) = match arborcast_tls::split(stream) {
        (Either::Left(read), Either::Left(write)) => (Box::new(read), Box::new(write)),
        (read, write) => (Box::new(read), Box::new(write)),
    };
    Connection { read, write, peer }
}
