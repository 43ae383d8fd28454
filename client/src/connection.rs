//! One socket to one server, speaking lines.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arborcast_proto::wire::{LineDecoder, Message, WireError};
use arborcast_tls::{Either, Protocol, ReadHalf, Stream, WriteHalf};
use bytes::{BufMut as _, BytesMut};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tracing::debug;

use crate::address::Address;
use crate::error::Error;
use crate::options::Options;

/// The most that is read in one go, and so what one batch of activities is made of.
const READ_SIZE: usize = 64 << 10;

/// When less room than this is left, a new read buffer is begun.
const MIN_READ_SIZE: usize = 4 << 10;

/// How long an idle connection is quiet before the system asks whether the other end still exists: someone who only
/// listens would not notice a server that lost its power.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10));

/// How long a server that broke the protocol gets to read why it is hung up on.
const FAREWELL: Duration = Duration::from_secs(1);

/// A connection whose two directions can be used at the same time.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) server: Address,
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
}

impl Connection {
    pub(crate) async fn open(server: &Address, options: &Options) -> Result<Self, Error> {
        let after = options.connect_timeout;
        let stream = timeout(after, connect(server, options)).await;
        let stream = stream.map_err(|_| Error::ConnectTimeout { server: server.clone(), after })??;
        debug!(%server, "connected");
        let (reader, writer) = arborcast_tls::split(stream);
        Ok(Self {
            server: server.clone(),
            reader: Reader { half: reader, decoder: LineDecoder::new(options.max_line.saturating_mul(2)) },
            writer: Writer { half: writer, unsent: BytesMut::new(), is_flushed: true, is_broken: false },
        })
    }

    /// Sends a request and waits for the next message, which is its answer.
    pub(crate) async fn ask(&mut self, request: &Message, options: &Options) -> Result<Message, Error> {
        self.writer.queue(request);
        let answer = async {
            self.writer.flush().await;
            loop {
                if let Some(answer) = self.next_message()? {
                    return Ok(answer);
                }
                self.reader.read().await.map_err(|cause| self.lost(cause))?;
            }
        };
        let after = options.answer_timeout;
        let answer = timeout(after, answer).await;
        answer
            .unwrap_or_else(|_| Err(Error::NoAnswer { server: self.server.clone(), request: request.command(), after }))
    }

    /// The next message among what has been read.
    pub(crate) fn next_message(&mut self) -> Result<Option<Message>, Error> {
        self.reader.next_message().map_err(|cause| Error::Undecodable { server: self.server.clone(), cause })
    }

    pub(crate) fn lost(&self, cause: io::Error) -> Error {
        Error::Lost { server: self.server.clone(), cause: Arc::new(cause) }
    }

    /// What it means that the server sent this and not what was hoped for.
    pub(crate) fn refused(&self, message: Message) -> Error {
        let server = self.server.clone();
        match message {
            Message::AuthenticationFail { info } => Error::AuthenticationFail { server, info },
            Message::InvalidMessage { info } => Error::InvalidMessage { server, info },
            Message::LoginFailed { info } => Error::LoginFailed { server, info },
            Message::RegisterFailed { info } => Error::RegisterFailed { server, info },
            other => Error::Unexpected { server, command: other.command() },
        }
    }

    /// Ends the connection on an answer that was not hoped for.
    pub(crate) async fn fail(&mut self, answer: Result<Message, Error>) -> Error {
        let error = answer.map_or_else(|error| error, |message| self.refused(message));
        self.close(&error).await;
        error
    }

    /// Ends the connection after an error. A server that broke the protocol is told so, and can read it before it sees
    /// the end of the stream; nothing it goes on sending is obeyed.
    pub(crate) async fn close(&mut self, error: &Error) {
        let Some(info) = error.complaint() else { return };
        self.writer.queue(&Message::InvalidMessage { info });
        let farewell = async {
            self.writer.flush().await;
            self.writer.half.shutdown().await?;
            loop {
                self.reader.decoder.buffer_mut().clear();
                self.reader.read().await?;
            }
        };
        // However it ends, it has had its chance.
        let _: Result<io::Result<()>, _> = timeout(FAREWELL, farewell).await;
    }
}

async fn connect(server: &Address, options: &Options) -> Result<Stream, Error> {
    let unknown = |cause| Error::UnknownHost { server: server.clone(), cause: Arc::new(cause) };
    let refused = |cause| Error::Connect { server: server.clone(), cause: Arc::new(cause) };
    let no_tls = |cause| Error::Tls { server: server.clone(), cause: Arc::new(cause) };
    let addresses: Vec<SocketAddr> = lookup_host((server.host(), server.port())).await.map_err(unknown)?.collect();
    let stream = TcpStream::connect(addresses.as_slice()).await.map_err(refused)?;
    stream.set_nodelay(true).map_err(refused)?;
    SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE).map_err(refused)?;
    match &options.tls {
        None => Ok(Either::Left(stream)),
        Some(tls) => tls.connect(server.host(), stream, Protocol::Lines).await.map_err(no_tls),
    }
}

/// The incoming direction.
#[derive(Debug)]
pub(crate) struct Reader {
    half: ReadHalf,
    decoder: LineDecoder,
}

impl Reader {
    /// Waits for more bytes. The end of the stream is an error. Nothing is lost when dropped while waiting.
    pub(crate) async fn read(&mut self) -> io::Result<()> {
        let buffer = self.decoder.buffer_mut();
        if buffer.capacity() - buffer.len() < MIN_READ_SIZE {
            buffer.reserve(READ_SIZE);
        }
        match self.half.read_buf(&mut buffer.limit(READ_SIZE)).await? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it was closed at the other end")),
            _ => Ok(()),
        }
    }

    fn next_message(&mut self) -> Result<Option<Message>, WireError> {
        self.decoder.next_line()?.map(|line| Message::parse(&line)).transpose()
    }
}

/// The outgoing direction. It has no errors: a connection on which nothing can be written any more may still hold the
/// server's reason, so what is left is dropped, and the reader finds out how the connection ended.
#[derive(Debug)]
pub(crate) struct Writer {
    half: WriteHalf,
    unsent: BytesMut,
    /// TLS may hold what it has taken.
    is_flushed: bool,
    is_broken: bool,
}

impl Writer {
    pub(crate) fn queue(&mut self, message: &Message) {
        if !self.is_broken {
            self.unsent.extend_from_slice(&message.to_line());
        }
    }

    /// How many bytes are queued.
    pub(crate) fn pending(&self) -> usize {
        self.unsent.len() + usize::from(!self.is_flushed)
    }

    /// Writes some of what is queued. Nothing is lost when dropped while waiting.
    pub(crate) async fn write(&mut self) {
        let outcome = if self.unsent.is_empty() {
            self.half.flush().await.map(|()| self.is_flushed = true)
        } else {
            self.half.write_buf(&mut self.unsent).await.map(|_| self.is_flushed = matches!(self.half, Either::Left(_)))
        };
        if let Err(error) = outcome {
            debug!(%error, "cannot write any more");
            (self.is_broken, self.is_flushed) = (true, true);
            self.unsent.clear();
        }
    }

    async fn flush(&mut self) {
        while self.pending() > 0 {
            self.write().await;
        }
    }
}
