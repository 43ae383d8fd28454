//! The upper bound: the bytes that our node would send, written in large chunks to as many sockets by one process that
//! does nothing else, on all processors.

use std::io::{self, ErrorKind, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::num::NonZero;
use std::thread;
use std::time::Duration;

use mio::{Events, Interest, Poll, Token};
use socket2::SockRef;

use super::protocol::Protocol;

/// Bytes in one write, and what a socket holds back at most. Larger ones were slower: the data is cold when it is read.
const CHUNK_BYTES: usize = 64 << 10;

/// Waits for that many connections, and writes to all of them until they are closed.
///
/// # Errors
/// When there are no sockets.
pub fn write_to(sockets: usize) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    println!("listening on {}", listener.local_addr()?);
    let accept = || listener.accept().map(|(stream, _)| stream);
    let streams: Vec<TcpStream> = (0..sockets).map(|_| accept()).collect::<io::Result<_>>()?;
    let delivery = Protocol::Raw.delivery(0);
    let chunk = delivery.repeat(CHUNK_BYTES / delivery.len());
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        let mut parts: Vec<Vec<TcpStream>> = (0..threads).map(|_| Vec::new()).collect();
        for (place, stream) in streams.into_iter().enumerate() {
            SockRef::from(&stream).set_send_buffer_size(CHUNK_BYTES)?;
            parts[place % threads].push(stream);
        }
        let writers: Vec<_> = parts.into_iter().map(|part| scope.spawn(|| write_all(part, &chunk))).collect();
        writers.into_iter().try_for_each(|writer| writer.join().expect("a writer does not fail"))
    })
}

fn write_all(streams: Vec<TcpStream>, chunk: &[u8]) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut sockets = Vec::with_capacity(streams.len());
    for (place, stream) in streams.into_iter().enumerate() {
        stream.set_nonblocking(true)?;
        let mut socket = mio::net::TcpStream::from_std(stream);
        poll.registry().register(&mut socket, Token(place), Interest::WRITABLE)?;
        sockets.push(Some(socket));
    }
    let mut ready: Vec<usize> = Vec::new();
    let mut events = Events::with_capacity(1024);
    while sockets.iter().any(Option::is_some) {
        let patience = if ready.is_empty() { Duration::from_secs(1) } else { Duration::ZERO };
        poll.poll(&mut events, Some(patience))?;
        ready.extend(events.iter().map(|event| event.token().0));
        ready.sort_unstable();
        ready.dedup();
        ready.retain(|place| {
            let Some(socket) = &mut sockets[*place] else { return false };
            match socket.write(chunk) {
                Ok(written) => written == chunk.len(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => false,
                Err(_) => {
                    sockets[*place] = None;
                    false
                }
            }
        });
    }
    Ok(())
}
