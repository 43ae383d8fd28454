//! The upper bound: the bytes that our node would send, written in large chunks to as many sockets by one process that
//! does nothing else.

use std::io::{self, ErrorKind, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use mio::{Events, Interest, Poll, Token};

use super::protocol::Protocol;

/// As much as the node hands to a socket at once.
const CHUNK_BYTES: usize = 256 << 10;

/// Waits for that many connections, and writes to all of them until they are closed.
///
/// # Errors
/// When there are no sockets.
pub fn write_to(sockets: usize) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    println!("listening on {}", listener.local_addr()?);
    let mut poll = Poll::new()?;
    let mut streams = Vec::with_capacity(sockets);
    for place in 0..sockets {
        let (stream, _) = listener.accept()?;
        stream.set_nonblocking(true)?;
        let mut stream = mio::net::TcpStream::from_std(stream);
        poll.registry().register(&mut stream, Token(place), Interest::WRITABLE)?;
        streams.push(Some(stream));
    }
    let delivery = Protocol::Raw.delivery(0);
    let chunk = delivery.repeat(CHUNK_BYTES / delivery.len());
    let mut ready: Vec<usize> = Vec::new();
    let mut events = Events::with_capacity(1024);
    while streams.iter().any(Option::is_some) {
        let patience = if ready.is_empty() { Duration::from_secs(1) } else { Duration::ZERO };
        poll.poll(&mut events, Some(patience))?;
        ready.extend(events.iter().map(|event| event.token().0));
        ready.sort_unstable();
        ready.dedup();
        ready.retain(|place| {
            let Some(stream) = &mut streams[*place] else { return false };
            match stream.write(&chunk) {
                Ok(written) => written == chunk.len(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => false,
                Err(_) => {
                    streams[*place] = None;
                    false
                }
            }
        });
    }
    Ok(())
}
