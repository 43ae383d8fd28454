//! The way to a parent.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use arborcast_tls::{Either, Protocol, Stream, Tls};
use tokio::net::TcpStream;

use super::transport::{self, Connection};
use crate::error::NodeError;
use crate::settings::DIAL_TIMEOUT;

/// How a node connects to other servers.
#[derive(Debug, Clone, Default)]
pub struct Dialer {
    /// With it, over TLS.
    pub tls: Option<Arc<Tls>>,
    /// But to this server, host and port, without.
    pub plain: Option<(String, u16)>,
}

/// Connects to the configured parent.
///
/// # Errors
/// [`NodeError::ParentUnreachable`] when that fails or takes longer than [`DIAL_TIMEOUT`];
/// [`NodeError::ParentIsSelf`] when it is our own listener, at `own`, that answered.
pub async fn dial_parent(host: &str, port: u16, own: SocketAddr, dialer: &Dialer) -> Result<Connection, NodeError> {
    let unreachable = |source| NodeError::ParentUnreachable { host: host.to_owned(), port, source };
    let stream = connect(host, port).await.map_err(unreachable)?;
    let peer = stream.peer_addr().map_err(unreachable)?;
    let local = stream.local_addr().map_err(unreachable)?;
    if peer.port() == own.port() && peer.ip() == local.ip() && (own.ip().is_unspecified() || own.ip() == peer.ip()) {
        return Err(NodeError::ParentIsSelf { host: host.to_owned(), port });
    }
    let stream = dialer.begin_tls(host, port, stream).await.map_err(unreachable)?;
    Ok(transport::connection(stream, peer))
}

/// Connects to a candidate.
///
/// # Errors
/// The operating system's; and when it takes longer than [`DIAL_TIMEOUT`].
pub async fn dial(host: &str, port: u16, dialer: &Dialer) -> io::Result<Connection> {
    let stream = connect(host, port).await?;
    let peer = stream.peer_addr()?;
    let stream = dialer.begin_tls(host, port, stream).await?;
    Ok(transport::connection(stream, peer))
}

impl Dialer {
    async fn begin_tls(&self, host: &str, port: u16, stream: TcpStream) -> io::Result<Stream> {
        let is_plain = self.plain.as_ref().is_some_and(|plain| *plain == (host.to_owned(), port));
        let Some(tls) = self.tls.as_ref().filter(|_| !is_plain) else { return Ok(Either::Left(stream)) };
        let begun = tokio::time::timeout(DIAL_TIMEOUT, tls.connect(host, stream, Protocol::Lines)).await;
        begun.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer to TLS")))
    }
}

async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let connected = tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect((host, port))).await;
    connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
