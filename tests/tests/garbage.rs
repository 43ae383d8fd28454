//! Floods of nonsense, and peers that waste a server's time: the others notice nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use arborcast_tests::lines;
use arborcast_tests::node::{Node, NodeBuilder};
use arborcast_tests::peer::{Arrival, Peer};
use arborcast_tests::wait::{self, PATIENCE};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// Two clients and a link that go on with their business while something else happens.
struct Bystanders {
    clients: [Peer; 2],
    link: Peer,
    sent: usize,
}

impl Bystanders {
    #[track_caller]
    fn of(node: &Node) -> Self {
        let clients = [Peer::anonymous(node.address()), Peer::anonymous(node.address())];
        Self { clients, link: Peer::link(node.address()), sent: 0 }
    }

    /// One sends, all receive.
    #[track_caller]
    fn exchange(&mut self) {
        self.sent += 1;
        let n = self.sent;
        self.clients[n % 2].send(lines::anonymous_activity(&format!(r#"{{"business":{n}}}"#)));
        let [first, second] = &mut self.clients;
        for receiver in [first, second, &mut self.link] {
            assert_eq!(receiver.expect_command("ACTIVITY_BROADCAST")["activity"]["business"], n);
        }
    }

    /// Exchanges activities for as long as `work` goes on beside it, and a few times after.
    #[track_caller]
    fn go_on_during(&mut self, work: impl FnOnce() + Send) {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                work();
                done.store(true, Ordering::Relaxed);
            });
            while !done.load(Ordering::Relaxed) {
                self.exchange();
            }
        });
        for _ in 0..10 {
            self.exchange();
        }
    }
}

/// Waits until the node has let go of all connections but those it had.
#[track_caller]
fn wait_for_open_files(node: &Node, expected: usize) {
    wait::until(PATIENCE, || match node.process.open_files() {
        open if open <= expected => Ok(()),
        open => Err(format!("{open} open files instead of {expected}")),
    });
}

/// Bytes of one of many kinds; none of them is an activity or a broadcast that bystanders would see.
fn garbage(random: &mut StdRng) -> Vec<u8> {
    let length = random.random_range(0..20_000);
    match random.random_range(0..7) {
        0 => (0..length).map(|_| random.random()).collect(),
        1 => (0..length).map(|_| random.random_range(b' '..=b'~')).collect(),
        2 => "[{\"a\":".repeat(length).into_bytes(),
        3 => "\n".repeat(length).into_bytes(),
        4 => format!("\"{}", "\\u0000".repeat(length)).into_bytes(),
        5 => vec![0; length],
        _ => {
            // A right message with one wrong byte, several times.
            let right = [
                lines::login_anonymously(),
                lines::login("aaron", "s"),
                lines::register("aaron", "s"),
                lines::authenticate("guess"),
                lines::lock_request("aaron", "s"),
            ];
            let mut bytes = format!("{}\n", right[random.random_range(0..right.len())]).repeat(3).into_bytes();
            let place = random.random_range(0..bytes.len());
            bytes[place] = random.random();
            bytes
        }
    }
}

/// Sends something over a connection of its own and reads whatever comes until the server lets go of it.
#[track_caller]
fn send_and_leave(address: SocketAddr, bytes: &[u8]) {
    let mut peer = Peer::connect(address);
    // The server may close at any time, and then need not take the rest.
    let _ = peer.try_send_bytes(bytes);
    peer.end_sending();
    peer.expect_gone();
}

/// Part I, Transport: "Nothing else in the server is affected", whatever comes and however much.
#[test]
fn floods_of_garbage_disturb_nobody() {
    const SEED: u64 = 20_160_918;
    const FLOODS: u64 = 3;
    const CONNECTIONS: usize = 200;
    println!("seed {SEED}");
    let node = Node::start();
    let mut bystanders = Bystanders::of(&node);
    let open_before = node.process.open_files();
    let address = node.address();
    bystanders.go_on_during(|| {
        thread::scope(|scope| {
            for flood in 0..FLOODS {
                scope.spawn(move || {
                    let mut random = StdRng::seed_from_u64(SEED + flood);
                    for _ in 0..CONNECTIONS {
                        send_and_leave(address, &garbage(&mut random));
                    }
                });
            }
        });
    });
    wait_for_open_files(&node, open_before);
}

/// Thousands of connections that are opened and dropped: without a word, within a word, and with unread answers.
#[test]
fn thousands_of_connections_opened_and_dropped_disturb_nobody() {
    const CONNECTIONS: usize = 3_000;
    let node = Node::start();
    let mut bystanders = Bystanders::of(&node);
    let open_before = node.process.open_files();
    let address = node.address();
    bystanders.go_on_during(|| {
        let words = [
            String::new(),
            r#"{"command":"LOG"#.to_owned(),
            format!("{}\n", lines::login_anonymously()),
            "\n".to_owned(),
        ];
        for n in 0..CONNECTIONS {
            let mut peer = Peer::connect(address);
            peer.send_bytes(words[n % words.len()].as_bytes());
        }
    });
    wait_for_open_files(&node, open_before);
}

/// Many connections at once, each of them silent; beyond a thousand the node still serves others.
#[test]
fn a_thousand_silent_connections_disturb_nobody() {
    let node = Node::start();
    let mut bystanders = Bystanders::of(&node);
    let silent: Vec<TcpStream> = (0..1_000).map(|_| TcpStream::connect(node.address()).unwrap()).collect();
    for _ in 0..20 {
        bystanders.exchange();
    }
    Peer::anonymous(node.address());
    drop(silent);
}

/// `--login-timeout`: connections that say nothing, or never come to the point, are closed when it has passed and not
/// before; sessions and links may be silent as long as they like.
#[test]
fn connections_that_never_say_who_they_are_are_closed() {
    const TIMEOUT: Duration = Duration::from_millis(300);
    let node = NodeBuilder::default().flag("--login-timeout", "300ms").start();
    let mut bystanders = Bystanders::of(&node);
    let begin = Instant::now();
    let mut silent = Peer::connect(node.address());
    let mut trickling = Peer::connect(node.address());
    silent.expect_gone();
    assert!(begin.elapsed() >= TIMEOUT, "closed after {:?}", begin.elapsed());
    // A byte now and then does not make it a client.
    wait::until(PATIENCE, || {
        let may_talk = trickling.try_send_bytes(b" ").is_ok();
        match trickling.arrival(Duration::from_millis(20)) {
            Arrival::End | Arrival::Broken(_) => Ok(()),
            other => Err(format!("still open ({other:?}), and may talk: {may_talk}")),
        }
    });
    bystanders.exchange();
}

/// Part I, Transport: messages may come a byte at a time, from many at once.
#[test]
fn many_who_send_a_byte_at_a_time_are_all_served() {
    let node = Node::start();
    let mut bystanders = Bystanders::of(&node);
    let mut slow: Vec<Peer> = (0..50).map(|_| Peer::connect(node.address())).collect();
    for byte in format!("{}\n", lines::login_anonymously()).bytes() {
        for peer in &mut slow {
            peer.send_bytes(&[byte]);
        }
    }
    for peer in &mut slow {
        peer.expect_command("LOGIN_SUCCESS");
    }
    bystanders.exchange();
}
