//! The way to a parent.

use std::io;
use std::net::SocketAddr;

use arborcast_tls::{Protocol, Stream, Tls};
use tokio::net::TcpStream;

use super::transport::{self, Connection};
use crate::error::NodeError;
use crate::settings::DIAL_TIMEOUT;

/// Connects to the configured parent.
///
/// # Errors
/// [`NodeError::ParentUnreachable`] when that fails or takes longer than [`DIAL_TIMEOUT`];
/// [`NodeError::ParentIsSelf`] when it is our own listener, at `own`, that answered.
pub async fn dial_parent(host: &str, port: u16, own: SocketAddr, tls: Option<&Tls>) -> Result<Connection, NodeError> {
    let unreachable = |source| NodeError::ParentUnreachable { host: host.to_owned(), port, source };
    let stream = connect(host, port).await.map_err(unreachable)?;
    let peer = stream.peer_addr().map_err(unreachable)?;
    let local = stream.local_addr().map_err(unreachable)?;
    if peer.port() == own.port() && peer.ip() == local.ip() && (own.ip().is_unspecified() || own.ip() == peer.ip()) {
        return Err(NodeError::ParentIsSelf { host: host.to_owned(), port });
    }
    let stream = begin_tls(host, stream, tls).await.map_err(unreachable)?;
    Ok(transport::connection(stream, peer))
}

/// Connects to a candidate.
///
/// # Errors
/// The operating system's; and when it takes longer than [`DIAL_TIMEOUT`].
pub async fn dial(host: &str, port: u16, tls: Option<&Tls>) -> io::Result<Connection> {
    let stream = connect(host, port).await?;
    let peer = stream.peer_addr()?;
    let stream = begin_tls(host, stream, tls).await?;
    Ok(transport::connection(stream, peer))
}

async fn begin_tls(host: &str, stream: TcpStream, tls: Option<&Tls>) -> io::Result<Stream> {
    let Some(tls) = tls else { return Ok(Stream::Plain(stream)) };
    let begun = tokio::time::timeout(DIAL_TIMEOUT, tls.connect(host, stream, Protocol::Lines)).await;
    begun.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let connected = tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect((host, port))).await;
    connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
