//! Who does not read harms nobody but himself: nothing a peer leaves undone makes others wait or memory grow.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use arborcast_tests::lines;
use arborcast_tests::node::{NodeBuilder, SECRET};
use arborcast_tests::peer::{Arrival, Peer};
use arborcast_tests::wait::{self, PATIENCE};

/// How much of what was broadcast the nodes of these tests keep.
const LOG_BYTES: usize = 1 << 20;

/// Activities are sent in rounds much smaller than the log, and a round only when all who read have read the last one:
/// so that nobody who reads is ever far behind.
const ROUND: usize = 16;

const ACTIVITY_BYTES: usize = 8 << 10;

/// More than nodes with such a log may grow by, and less than what is broadcast in these tests.
const MUCH_MEMORY: u64 = 12 << 20;

/// Publishes this many rounds of numbered activities; all readers get all of them in order.
#[track_caller]
fn publish(rounds: usize, readers: &mut [Peer]) {
    let text = "x".repeat(ACTIVITY_BYTES);
    for round in 0..rounds {
        let numbers = round * ROUND..(round + 1) * ROUND;
        for n in numbers.clone() {
            readers[0].send(lines::anonymous_activity(&format!(r#"{{"n":{n},"text":"{text}"}}"#)));
        }
        for reader in &mut *readers {
            for n in numbers.clone() {
                assert_eq!(reader.expect_command("ACTIVITY_BROADCAST")["activity"]["n"], n);
            }
        }
    }
}

/// Reads what is left for somebody who did not read for long: activities in order from the first one on, without a gap.
/// Returns how many, and whether the stream ended behind them.
#[track_caller]
fn catch_up(late: &mut Peer, expected: usize) -> (usize, bool) {
    for n in 0..expected {
        match late.arrival(PATIENCE) {
            Arrival::Line(line) => assert_eq!(line["activity"]["n"], n, "a gap"),
            Arrival::End | Arrival::HalfLine(_) | Arrival::Broken(_) => return (n, true),
            Arrival::Nothing => panic!("neither served nor closed after {n} activities"),
        }
    }
    (expected, false)
}

/// Two hundred clients and a link that never read, and a few clients that do.
#[test]
fn clients_that_never_read_cost_neither_the_others_nor_much_memory() {
    const NEVER_READ: usize = 200;
    const ROUNDS: usize = 160;
    let node = NodeBuilder::default().flag("--log-bytes", LOG_BYTES).start();
    let mut readers: Vec<Peer> = (0..4).map(|_| Peer::anonymous(node.address())).collect();
    let open_before = node.process.open_files();
    let mut never_read: Vec<Peer> = (0..NEVER_READ).map(|_| Peer::connect_narrow(node.address())).collect();
    for peer in &mut never_read {
        peer.send(lines::login_anonymously());
        peer.expect_command("LOGIN_SUCCESS");
    }
    let mut link = Peer::connect_narrow(node.address());
    link.send(lines::authenticate(SECRET));
    link.expect_command("SERVER_ANNOUNCE");
    never_read.push(link);

    let before = node.process.resident_bytes();
    publish(ROUNDS, &mut readers);
    let grown = node.process.resident_bytes().saturating_sub(before);
    assert!(grown < MUCH_MEMORY, "the node has grown by {grown} bytes");

    // Whoever fell too far behind was closed, and until then nothing was left out. (A few are looked at, and the link.)
    wait::until(PATIENCE, || match node.process.open_files() {
        open if open <= open_before => Ok(()),
        open => Err(format!("{open} open files instead of {open_before}: somebody is 20 MB behind and still served")),
    });
    for late in never_read.iter_mut().rev().step_by(40) {
        let (received, closed) = catch_up(late, ROUNDS * ROUND);
        assert!(closed, "not closed after {received} activities");
    }
    publish(1, &mut readers);
}

/// Who pauses for less than the log holds misses nothing.
#[test]
fn a_client_that_pauses_misses_nothing() {
    const ROUNDS: usize = 4;
    let node = NodeBuilder::default().flag("--log-bytes", LOG_BYTES).start();
    let mut pausing = Peer::connect_narrow(node.address());
    pausing.send(lines::login_anonymously());
    pausing.expect_command("LOGIN_SUCCESS");
    let mut readers = [Peer::anonymous(node.address())];
    publish(ROUNDS, &mut readers);
    assert_eq!(catch_up(&mut pausing, ROUNDS * ROUND), (ROUNDS * ROUND, false));
}

/// Who sends activities and never reads his own is no better than others who never read.
#[test]
fn a_sender_that_never_reads_does_not_grow_the_node() {
    let node = NodeBuilder::default().flag("--log-bytes", LOG_BYTES).start();
    let mut sender = Peer::connect_narrow(node.address());
    sender.send(lines::login_anonymously());
    sender.expect_command("LOGIN_SUCCESS");
    let before = node.process.resident_bytes();
    let message =
        format!("{}\n", lines::anonymous_activity(&format!(r#"{{"text":"{}"}}"#, "x".repeat(ACTIVITY_BYTES))));
    for _ in 0..(40 << 20) / ACTIVITY_BYTES {
        // It may be closed for it at any time.
        if sender.try_send_bytes(message.as_bytes()).is_err() {
            break;
        }
    }
    let grown = node.process.resident_bytes().saturating_sub(before);
    assert!(grown < MUCH_MEMORY, "the node has grown by {grown} bytes");
    let mut other = Peer::anonymous(node.address());
    other.send(lines::anonymous_activity(r#"{"mine":1}"#));
    other.expect("its own activity", |line| (line["activity"]["mine"] == 1).then_some(()));
}
