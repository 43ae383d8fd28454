//! Reading many sockets through one buffer.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, ready};

use arborcast_client::tls::ReadHalf;
use arborcast_client::{Address, Error};
use arborcast_proto::wire::Message;
use bytes::Bytes;
use memchr::memrchr;
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::task::yield_now;

use super::connection::{Ending, refused};

/// The most that is read in one go.
const READ_SIZE: usize = 256 << 10;

/// The buffer of all connections of one thread: ten thousand with one each would be gigabytes.
#[derive(Debug)]
pub(crate) struct Scratch(RefCell<Vec<u8>>);

impl Scratch {
    /// For lines of at most this length.
    pub(crate) fn new(max_line: usize) -> Self {
        Self(RefCell::new(vec![0; READ_SIZE.max(2 * max_line)]))
    }
}

/// The incoming direction of one connection.
#[derive(Debug)]
pub(crate) struct Incoming<'a> {
    half: ReadHalf,
    server: &'a Address,
    /// The beginning of a line whose end has not come yet.
    carry: Vec<u8>,
}

impl<'a> Incoming<'a> {
    /// `carry` is what was read of it before.
    pub(crate) fn new(half: ReadHalf, server: &'a Address, carry: Vec<u8>) -> Self {
        Self { half, server, carry }
    }

    /// Hands everything that arrives to `take`, in whole lines, until the connection or `take` ends it.
    pub(crate) async fn read(mut self, scratch: &Scratch, mut take: impl FnMut(&[u8]) -> Option<Ending>) -> Ending {
        // Lines that came with the answer to the login.
        let early = memrchr(b'\n', &self.carry).map_or(0, |end| end + 1);
        let rest = self.carry.split_off(early);
        let early = std::mem::replace(&mut self.carry, rest);
        let mut ending = if early.is_empty() { None } else { take(&early) };
        loop {
            match ending {
                Some(ending) => return ending,
                None => ending = self.read_once(scratch, &mut take).await,
            }
        }
    }

    async fn read_once(&mut self, scratch: &Scratch, take: &mut impl FnMut(&[u8]) -> Option<Ending>) -> Option<Ending> {
        let (half, carry) = (&mut self.half, &mut self.carry);
        // The buffer is borrowed only while nothing is awaited.
        let read = poll_fn(|context| {
            let mut scratch = scratch.0.borrow_mut();
            let Some((kept, free)) = scratch.split_at_mut_checked(carry.len()).filter(|(_, free)| !free.is_empty())
            else {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long")));
            };
            let mut buffer = ReadBuf::new(free);
            ready!(Pin::new(&mut *half).poll_read(context, &mut buffer))?;
            let (length, is_full) = (kept.len() + buffer.filled().len(), buffer.remaining() == 0);
            if length == kept.len() {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "it was closed at the other end",
                )));
            }
            kept.copy_from_slice(carry);
            let all = scratch.get(..length).unwrap_or_default();
            let (lines, rest) = all.split_at(memrchr(b'\n', all).map_or(0, |end| end + 1));
            carry.clear();
            carry.extend_from_slice(rest);
            Poll::Ready(Ok((take(lines), is_full)))
        });
        match read.await {
            Err(cause) => Some(Ending::Lost(Error::Lost { server: self.server.clone(), cause: Arc::new(cause) })),
            Ok((ending, is_full)) => {
                if is_full {
                    // There is more, but the others' turn comes first.
                    yield_now().await;
                }
                ending
            }
        }
    }
}

/// What a line is that is no activity of the run.
#[derive(Debug)]
pub(crate) enum Other {
    /// Somebody else's activity, or nothing that concerns us.
    Foreign,
    /// The session ends.
    Ending(Ending),
    /// Anything else that a server may say.
    Message(Message),
}

/// Reads such a line in full: there are few of them.
pub(crate) fn read_other(server: &Address, line: &[u8]) -> Other {
    match Message::parse(&Bytes::copy_from_slice(line)) {
        Ok(Message::Redirect { hostname, port }) => Other::Ending(match Address::new(hostname, port) {
            Ok(address) => Ending::Moved(address),
            Err(cause) => Ending::Lost(Error::BadRedirect { server: server.clone(), cause }),
        }),
        Ok(
            message @ (Message::AuthenticationFail { .. }
            | Message::InvalidMessage { .. }
            | Message::LoginFailed { .. }),
        ) => Other::Ending(Ending::Lost(refused(server, message))),
        Ok(Message::ActivityBroadcast { .. }) => Other::Foreign,
        Ok(message) => Other::Message(message),
        Err(cause) => Other::Ending(Ending::Lost(Error::Undecodable { server: server.clone(), cause })),
    }
}
