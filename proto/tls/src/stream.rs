//! A connection, plain or TLS.

use std::io;

use tokio::io::{self as tokio_io};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_rustls::TlsStream;
use tokio_util::either::Either;

/// The first byte of every TLS connection: a record of its handshake.
const HANDSHAKE: u8 = 22;

/// Whether the peer begins TLS. Waits for its first byte, which stays to be read; cancel safe.
///
/// # Errors
/// The socket's.
pub async fn begins_with_tls(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    Ok(stream.peek(&mut first).await? > 0 && first == [HANDSHAKE])
}

type Secured = Box<TlsStream<TcpStream>>;

/// A connection: plain on the left, TLS on the right. What it costs a plain one is a look at which it is.
pub type Stream = Either<TcpStream, Secured>;

/// The receiving direction of a [`Stream`]. The two directions of TLS take turns.
pub type ReadHalf = Either<OwnedReadHalf, tokio_io::ReadHalf<Secured>>;

/// The sending direction of a [`Stream`]. Dropping it, or shutting it down, ends a plain stream for the peer. What TLS has
/// taken to write is on its way only when it is flushed.
pub type WriteHalf = Either<OwnedWriteHalf, tokio_io::WriteHalf<Secured>>;

/// The two directions.
pub fn split(stream: Stream) -> (ReadHalf, WriteHalf) {
    match stream {
        Either::Left(plain) => {
            let (read, write) = plain.into_split();
            (Either::Left(read), Either::Left(write))
        }
        Either::Right(tls) => {
            let (read, write) = tokio_io::split(tls);
            (Either::Right(read), Either::Right(write))
        }
    }
}

/// The socket below.
pub fn socket(stream: &Stream) -> &TcpStream {
    match stream {
        Either::Left(plain) => plain,
        Either::Right(tls) => tls.get_ref().0,
    }
}

/// Whether the peer has shown a certificate that is right.
pub fn peer_is_certified(stream: &Stream) -> bool {
    match stream {
        Either::Left(_plain) => false,
        Either::Right(tls) => tls.get_ref().1.peer_certificates().is_some(),
    }
}
