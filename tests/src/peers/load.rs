//! Publishers and subscribers, the same for every server, and as cheap as they can be: they share the machine with it.
//!
//! Two threads read all subscribers, with large buffers, and count bytes; one publishes. Publishers are held back when the
//! average subscriber is too far behind, the same for all servers, since some of them throw away what they can't send.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};

use super::protocol::{Protocol, activity};
use super::servers::Servers;
use crate::wait::PATIENCE;

/// Bytes that a subscriber takes at once.
const READ_BYTES: usize = 256 << 10;

/// Activities that a publisher sends at once.
const BATCH: u64 = 64;

/// How often a publisher that has to wait looks again.
const LOOK_AGAIN: Duration = Duration::from_micros(200);

/// Before this nothing counts.
const WARM_UP: Duration = Duration::from_secs(1);

/// What comes between deliveries without having been asked for.
const NATS_PING: &[u8] = b"PING\r\n";

/// What is the same for all.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How long is measured.
    pub duration: Duration,
    /// How many activities the average subscriber may be behind the publishers.
    pub window: u64,
    /// Threads that read.
    pub readers: usize,
    /// How long a reading thread rests after it has read everything there was. Zero for latencies.
    pub rest: Duration,
}

/// Clients that are logged in.
#[derive(Debug)]
pub struct Clients {
    protocol: Protocol,
    publishers: Vec<Publisher>,
    subscribers: Vec<TcpStream>,
}

#[derive(Debug)]
struct Publisher {
    stream: TcpStream,
    sent: u64,
    /// Activities, of which the socket has taken the first `offset` bytes.
    batch: Vec<u8>,
    offset: usize,
    /// `batch` is one that can be sent again.
    repeats: bool,
}

/// What was measured under full load.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// Activities that reached a subscriber, a second.
    pub deliveries: f64,
    /// Processor time of the servers for each of them, in microseconds.
    pub processor_microseconds: f64,
    /// Subscribers that the server has closed.
    pub closed: u64,
}

impl Clients {
    /// Logs in as many publishers and subscribers, spread evenly over the servers.
    pub fn log_in(protocol: Protocol, servers: &Servers, publishers: usize, subscribers: usize) -> Self {
        let is_tree = servers.addresses().len() > 1;
        let address = |number: usize| servers.addresses()[number % servers.addresses().len()];
        let subscribe = |number: usize| {
            let deadline = Instant::now() + PATIENCE;
            loop {
                let stream = protocol.subscribe(address(number), &format!("s{number}"), is_tree).expect("let in");
                match stream {
                    Some(stream) => return stream,
                    None if Instant::now() > deadline => panic!("sent elsewhere again and again"),
                    None => {}
                }
            }
        };
        let streams: Vec<TcpStream> = (0..subscribers).map(subscribe).collect();
        let publisher = |number: usize| {
            let stream = match streams.get(number).filter(|_| protocol.publishers_subscribe()) {
                Some(stream) => stream.try_clone().expect("there are files left"),
                None => protocol.log_in(address(number), &format!("p{number}")).expect("let in"),
            };
            Publisher { stream, sent: 0, batch: Vec::new(), offset: 0, repeats: false }
        };
        let publishers: Vec<_> = (0..publishers).map(publisher).collect();
        for stream in streams.iter().chain(publishers.iter().map(|publisher| &publisher.stream)) {
            stream.set_nonblocking(true).expect("a socket has this option");
        }
        Self { protocol, publishers, subscribers: streams }
    }

    /// Publishes one by one until what any publisher sends reaches every subscriber, and all has arrived.
    pub fn settle(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        for place in 0..self.publishers.len() {
            let mut lacking: Vec<usize> = (0..self.subscribers.len()).collect();
            while !lacking.is_empty() {
                assert!(Instant::now() < deadline, "{} subscribers get nothing", lacking.len());
                self.publishers[place].prepare(self.protocol, 1, 0);
                self.publishers[place].write();
                thread::sleep(Duration::from_millis(50));
                lacking.retain(|subscriber| drain(&self.subscribers[*subscriber]) == 0);
            }
            while self.subscribers.iter().map(drain).sum::<usize>() > 0 {
                thread::sleep(Duration::from_millis(100));
            }
        }
    }

    /// As fast as it goes.
    pub fn full_load(&mut self, servers: &Servers, settings: Settings) -> Rates {
        self.full_load_while(servers, settings, || thread::sleep(settings.duration))
    }

    /// The same for as long as `meanwhile` takes.
    pub fn full_load_while(&mut self, servers: &Servers, settings: Settings, meanwhile: impl FnOnce()) -> Rates {
        let (protocol, subscribers) = (self.protocol, self.subscribers.len() as f64);
        let length = if protocol.counts_activities() { 0 } else { protocol.delivery(0).len() };
        let (stop, closed) = (AtomicBool::new(false), AtomicU64::new(0));
        let counts: Vec<AtomicU64> = (0..settings.readers).map(|_| AtomicU64::new(0)).collect();
        let delivered = || counts.iter().map(|count| count.load(Ordering::Relaxed)).sum::<u64>() as f64;
        let mut rates = None;
        thread::scope(|scope| {
            for (number, count) in counts.iter().enumerate() {
                let streams: Vec<&TcpStream> = self.subscribers.iter().skip(number).step_by(settings.readers).collect();
                let (stop, closed) = (&stop, &closed);
                scope.spawn(move || {
                    let mut tally = Tally::new(length);
                    let read = |place: usize, bytes: &[u8]| count.store(tally.add(place, bytes), Ordering::Relaxed);
                    closed.fetch_add(read_all(&streams, settings.rest, stop, read), Ordering::Relaxed);
                });
            }
            let (publishers, stop_flag, delivered_now) = (&mut self.publishers, &stop, &delivered);
            scope.spawn(move || {
                let before: u64 = publishers.iter().map(|publisher| publisher.sent).sum();
                while !stop_flag.load(Ordering::Relaxed) {
                    let mut sent = publishers.iter().map(|publisher| publisher.sent).sum::<u64>() - before;
                    let seen = (delivered_now() / subscribers) as u64;
                    let mut progress = false;
                    for publisher in publishers.iter_mut() {
                        if publisher.is_done() && sent.saturating_sub(seen) + BATCH <= settings.window {
                            publisher.prepare(protocol, BATCH, 0);
                            sent += BATCH;
                        }
                        progress |= publisher.write();
                    }
                    if !progress {
                        thread::sleep(LOOK_AGAIN);
                    }
                }
            });
            thread::sleep(WARM_UP);
            let before = (Instant::now(), delivered(), servers.processor_seconds());
            meanwhile();
            let after = (Instant::now(), delivered(), servers.processor_seconds());
            stop.store(true, Ordering::Relaxed);
            let deliveries = after.1 - before.1;
            rates = Some(Rates {
                deliveries: deliveries / (after.0 - before.0).as_secs_f64(),
                processor_microseconds: (after.2 - before.2) * 1e6 / deliveries,
                closed: 0,
            });
        });
        let rates = rates.expect("it was measured");
        Rates { closed: closed.into_inner(), ..rates }
    }

    /// Publishes at a steady rate, and returns how long each activity took to each subscriber, in nanoseconds, sorted.
    pub fn latencies(&mut self, settings: Settings, per_second: u64) -> Vec<u64> {
        let protocol = self.protocol;
        let (length, range) = (protocol.delivery(0).len(), protocol.stamp_range());
        let (stop, start) = (AtomicBool::new(false), Instant::now());
        let mut latencies = thread::scope(|scope| {
            let readers: Vec<_> = (0..settings.readers)
                .map(|number| {
                    let streams: Vec<&TcpStream> =
                        self.subscribers.iter().skip(number).step_by(settings.readers).collect();
                    let (stop, range) = (&stop, range.clone());
                    scope.spawn(move || {
                        let mut found = Vec::new();
                        let mut halves = vec![Vec::new(); streams.len()];
                        read_all(&streams, Duration::ZERO, stop, |place, bytes| {
                            let now = start.elapsed();
                            let half: &mut Vec<u8> = &mut halves[place];
                            half.extend_from_slice(bytes);
                            let mut whole = 0;
                            loop {
                                // nats-server asks for a sign of life soon after the login.
                                whole += if half[whole..].starts_with(NATS_PING) { NATS_PING.len() } else { 0 };
                                let Some(delivery) = half.get(whole..whole + length) else { break };
                                whole += length;
                                let digits = std::str::from_utf8(&delivery[range.clone()]).expect("digits");
                                let sent = Duration::from_nanos(digits.parse().expect("deliveries are whole"));
                                if sent > WARM_UP {
                                    found.push(now.saturating_sub(sent).as_nanos() as u64);
                                }
                            }
                            half.drain(..whole);
                        });
                        found
                    })
                })
                .collect();
            let mut number = 0;
            while start.elapsed() < WARM_UP + settings.duration {
                let due = Duration::from_nanos(number * 1_000_000_000 / per_second);
                thread::sleep(due.saturating_sub(start.elapsed()));
                let place = number as usize % self.publishers.len();
                let publisher = &mut self.publishers[place];
                publisher.prepare(protocol, 1, start.elapsed().as_nanos() as u64);
                publisher.write();
                number += 1;
            }
            thread::sleep(Duration::from_millis(100));
            stop.store(true, Ordering::Relaxed);
            readers.into_iter().flat_map(|reader| reader.join().expect("a reader does not fail")).collect::<Vec<_>>()
        });
        latencies.sort_unstable();
        latencies
    }
}

/// How many deliveries a thread has read, by their bytes: counting line ends would take more of the machine than reading
/// them does. Where their lengths differ, the first subscriber's lines are counted: all get the same ones.
struct Tally {
    bytes: u64,
    sample_bytes: u64,
    sample_lines: u64,
    counts_lines: bool,
}

impl Tally {
    /// Of deliveries of that length; 0 where they differ.
    fn new(length: usize) -> Self {
        let counts_lines = length == 0;
        Self { bytes: 0, sample_bytes: length as u64, sample_lines: u64::from(!counts_lines), counts_lines }
    }

    /// Adds what was read by one of the subscribers, and returns how many deliveries that makes.
    fn add(&mut self, place: usize, bytes: &[u8]) -> u64 {
        self.bytes += bytes.len() as u64;
        if self.counts_lines && place == 0 {
            self.sample_bytes += bytes.len() as u64;
            self.sample_lines += memchr::memchr_iter(b'\n', bytes).count() as u64;
        }
        (self.bytes as u128 * u128::from(self.sample_lines) / u128::from(self.sample_bytes.max(1))) as u64
    }
}

impl Publisher {
    /// Whether everything is written.
    fn is_done(&self) -> bool {
        self.offset == self.batch.len()
    }

    /// Composes activities to be written.
    fn prepare(&mut self, protocol: Protocol, count: u64, stamp: u64) {
        // The same again need not be composed again.
        let is_same = self.repeats && count == BATCH && !protocol.counts_activities();
        if !is_same {
            self.batch.clear();
            let activity = activity(stamp);
            for number in 1..=count {
                protocol.put_publication(self.sent + number, &activity, &mut self.batch);
            }
            self.repeats = count == BATCH;
        }
        self.offset = 0;
        self.sent += count;
    }

    /// Writes what the socket takes. Whether it took anything.
    fn write(&mut self) -> bool {
        let before = self.offset;
        while !self.is_done() {
            match self.stream.write(&self.batch[self.offset..]) {
                Ok(written) => self.offset += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("the server does not take what is published: {error}"),
            }
        }
        self.offset > before
    }
}

/// Reads what there is; how many bytes that was.
fn drain(mut stream: &TcpStream) -> usize {
    let (mut buffer, mut bytes) = (vec![0; 64 << 10], 0);
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        bytes += read;
    }
    bytes
}

/// Reads all these until told to stop, and returns how many of them were closed.
fn read_all(streams: &[&TcpStream], rest: Duration, stop: &AtomicBool, mut tell: impl FnMut(usize, &[u8])) -> u64 {
    let mut poll = Poll::new().expect("there are files left");
    let mut sockets: Vec<mio::net::TcpStream> = streams
        .iter()
        .map(|stream| mio::net::TcpStream::from_std(stream.try_clone().expect("there are files left")))
        .collect();
    for (place, socket) in sockets.iter_mut().enumerate() {
        poll.registry().register(socket, Token(place), Interest::READABLE).expect("there is room in the table");
    }
    let (mut buffer, mut closed) = (vec![0; READ_BYTES], 0);
    let mut events = Events::with_capacity(1024);
    while !stop.load(Ordering::Relaxed) {
        poll.poll(&mut events, Some(Duration::from_millis(50))).expect("polling does not fail");
        for event in &events {
            let place = event.token().0;
            loop {
                match sockets[place].read(&mut buffer) {
                    Ok(0) => {
                        closed += 1;
                        break;
                    }
                    Ok(read) => {
                        tell(place, &buffer[..read]);
                        // Then there is no more at this moment, and the poll says when that changes.
                        if read < buffer.len() {
                            break;
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(_) => {
                        closed += 1;
                        break;
                    }
                }
            }
        }
        if !rest.is_zero() {
            thread::sleep(rest);
        }
    }
    closed
}
