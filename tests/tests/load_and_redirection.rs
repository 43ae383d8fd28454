//! Part I, Load and redirection.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use arborcast_tests::lines;
use arborcast_tests::node::{Node, NodeBuilder, SECRET};
use arborcast_tests::peer::Peer;
use arborcast_tests::stage::{BUSY, Stage};
use arborcast_tests::tree::Tree;
use arborcast_tests::wait::{self, PATIENCE};

/// A load that stays far below any other, however many clients are counted on it.
const FREE: i64 = -1_000_000;

/// Where a login ends.
enum Placed {
    /// Here.
    Here(Peer),
    /// Sent to this port.
    Redirected(u64),
}

/// Logs in and finds out whether a REDIRECT follows: it would come before the client's own activity comes back.
#[track_caller]
fn place(address: SocketAddr) -> Placed {
    let mut client = Peer::connect(address);
    client.send(lines::login_anonymously());
    client.expect_command("LOGIN_SUCCESS");
    // The server may have closed already: then the REDIRECT is there to be read.
    let _ = client.try_send_bytes(format!("{}\n", lines::anonymous_activity("{}")).as_bytes());
    let line = client.next_line();
    match line.command() {
        "ACTIVITY_BROADCAST" => Placed::Here(client),
        "REDIRECT" => {
            client.expect_end();
            Placed::Redirected(line["port"].as_u64().expect("a port is a number"))
        }
        other => panic!("met {other} after LOGIN_SUCCESS"),
    }
}

/// The load a server announces to a link that has just come up.
#[track_caller]
fn announced_load(node: &Node) -> i64 {
    let mut link = Peer::connect(node.address());
    link.send(lines::authenticate(SECRET));
    link.expect_command("SERVER_ANNOUNCE")["load"].as_i64().expect("a load is an integer")
}

#[track_caller]
fn wait_for_load(node: &Node, expected: i64) {
    wait::until(PATIENCE, || match announced_load(node) {
        load if load == expected => Ok(()),
        load => Err(format!("the load is {load}, not {expected}")),
    });
}

/// Part I, Load: "`load` is the number of logged-in clients. One user may have several sessions."
#[test]
fn the_load_is_the_number_of_logged_in_clients() {
    let node = Node::start();
    let mut first = Peer::registered(node.address(), "aaron", "s");
    let _second = Peer::logged_in(node.address(), "aaron", "s");
    let third = Peer::anonymous(node.address());
    // Connections that are not logged in don't count.
    let _unidentified = Peer::connect(node.address());
    let mut registered = Peer::connect(node.address());
    registered.send(lines::register("berta", "s"));
    registered.expect_command("REGISTER_SUCCESS");
    let _link = Peer::link(node.address());
    assert_eq!(announced_load(&node), 3);

    first.send(lines::logout());
    first.expect_end();
    wait_for_load(&node, 2);
    drop(third);
    wait_for_load(&node, 1);
}

/// Part I, Load: "counting the new client, if some other live server has a load at least 2 lower, answer REDIRECT ...
/// and close".
#[test]
fn a_client_is_redirected_when_another_server_has_two_clients_less() {
    let mut stage = Stage::new();
    let mut link = Peer::link(stage.node.address());
    stage.announce_line(
        &mut link,
        r#"{"command":"SERVER_ANNOUNCE","id":"other","load":0,"hostname":"other.example","port":4321}"#,
    );
    // With this client the difference is 1.
    let Placed::Here(_first) = place(stage.node.address()) else { panic!("redirected for a difference of 1") };
    let mut second = Peer::connect(stage.node.address());
    second.send(lines::login_anonymously());
    second.expect_command("LOGIN_SUCCESS");
    second.expect_message(r#"{"command":"REDIRECT","hostname":"other.example","port":4321}"#);
    second.expect_end();
    // It is not counted any more.
    wait_for_load(&stage.node, 1);
}

/// Part I, Load: a redirected client was never in: what it sends behind its LOGIN is not broadcast.
#[test]
fn what_a_redirected_client_sent_ahead_is_not_obeyed() {
    let mut stage = Stage::new();
    let mut link = Peer::link(stage.node.address());
    stage.announce(&mut link, "other", 0);
    let Placed::Here(mut first) = place(stage.node.address()) else { panic!("redirected for a difference of 1") };
    let mut second = Peer::connect(stage.node.address());
    let ahead = lines::anonymous_activity(r#"{"sent":"ahead"}"#);
    second.send_bytes(format!("{}\n{ahead}\n", lines::login_anonymously()).as_bytes());
    second.expect_command("LOGIN_SUCCESS");
    second.expect_last("REDIRECT");
    first.send(lines::anonymous_activity(r#"{"sent":"later"}"#));
    assert_eq!(first.expect_command("ACTIVITY_BROADCAST")["activity"]["sent"], "later");
}

/// Part I, Load: "to the least loaded of them".
#[test]
fn the_least_loaded_server_is_chosen() {
    let mut stage = Stage::new();
    let mut link = Peer::link(stage.node.address());
    for (id, load, port) in [("a", -2, 1), ("b", -5, 2), ("c", 0, 3), ("d", -4, 4)] {
        stage.announce_line(&mut link, &lines::server_announce(id, load, port));
    }
    let Placed::Redirected(port) = place(stage.node.address()) else { panic!("not redirected") };
    assert_eq!(port, 2);
}

/// Part I, Load: "An announcement with the server's own id (an echo) is neither another server nor a redirect target."
#[test]
fn an_echo_of_the_own_announcement_is_no_other_server() {
    let mut stage = Stage::new();
    let mut link = Peer::link(stage.node.address());
    link.send(lines::server_announce(stage.node.id(), -1_000, 1));
    // Whether an echo is passed on is nobody's business; another announcement behind it shows that it was read.
    stage.announce(&mut link, "other", BUSY);
    let Placed::Here(_) = place(stage.node.address()) else { panic!("redirected to itself") };
    stage.observer.expect_command("ACTIVITY_BROADCAST");
    let mut client = stage.registering("aaron", "s");
    link.expect("LOCK_REQUEST", |line| (line.command() == "LOCK_REQUEST").then_some(()));
    link.send(lines::lock_allowed("aaron", "s", "other"));
    client.expect_command("REGISTER_SUCCESS");
}

/// Part I, Load: "What was learned of another server expires after three intervals without an announcement", not before.
#[test]
fn a_server_is_forgotten_after_three_intervals_of_silence() {
    const INTERVAL: Duration = Duration::from_millis(200);
    let mut stage = Stage::with(&NodeBuilder::default().announce_every(INTERVAL));
    let mut link = Peer::link(stage.node.address());
    let announced = Instant::now();
    stage.announce(&mut link, "other", FREE);
    wait::until(PATIENCE, || match place(stage.node.address()) {
        Placed::Here(_) => Ok(()),
        Placed::Redirected(_) => Err("still redirected to a silent server".to_owned()),
    });
    assert!(announced.elapsed() >= 3 * INTERVAL, "forgotten after {:?}", announced.elapsed());
}

/// Part I, Load: "and at once when the link it was learned over is lost".
#[test]
fn a_server_is_forgotten_with_the_link_it_was_learned_over() {
    let mut stage = Stage::new();
    let (mut lost, mut kept) = (Peer::link(stage.node.address()), Peer::link(stage.node.address()));
    stage.announce_line(&mut lost, &lines::server_announce("a", 3 * FREE, 1));
    stage.announce_line(&mut lost, &lines::server_announce("b", 2 * FREE, 2));
    stage.announce_line(&mut kept, &lines::server_announce("c", FREE, 3));
    drop(lost);
    wait::until(PATIENCE, || match place(stage.node.address()) {
        Placed::Redirected(3) => Ok(()),
        Placed::Redirected(port) => Err(format!("still redirected to {port}")),
        Placed::Here(_) => Err("forgotten too much".to_owned()),
    });
}

/// Part I, Load: "Count that client on the target's cached load until its next announcement, so that a surge spreads."
#[test]
fn a_surge_of_clients_spreads_over_all_servers() {
    let mut stage = Stage::new();
    let mut link = Peer::link(stage.node.address());
    stage.announce_line(&mut link, &lines::server_announce("a", 0, 1));
    stage.announce_line(&mut link, &lines::server_announce("b", 0, 2));
    let mut here = Vec::new();
    let mut elsewhere = BTreeMap::new();
    for _ in 0..9 {
        match place(stage.node.address()) {
            Placed::Here(client) => here.push(client),
            Placed::Redirected(port) => *elsewhere.entry(port).or_insert(0) += 1,
        }
    }
    assert_eq!((here.len(), elsewhere), (3, BTreeMap::from([(1, 3), (2, 3)])));

    // The next announcement counts, not what was added to the last.
    stage.announce_line(&mut link, &lines::server_announce("b", 0, 2));
    let Placed::Redirected(port) = place(stage.node.address()) else { panic!("not redirected") };
    assert_eq!(port, 2);
}

/// Part I, Load: "A redirected client opens a new connection there and starts with LOGIN", which works for a name that
/// was registered where it came from.
#[test]
fn following_redirects_spreads_clients_over_real_servers() {
    let tree = Tree::star(3);
    let mut registering = Peer::connect(tree.address(0));
    registering.send(lines::register("aaron", "s"));
    registering.expect_command("REGISTER_SUCCESS");
    let mut clients = Vec::new();
    for _ in 0..12 {
        let mut address = tree.address(0);
        loop {
            let mut client = Peer::connect(address);
            client.send(lines::login("aaron", "s"));
            client.expect_command("LOGIN_SUCCESS");
            let _ = client.try_send_bytes(format!("{}\n", lines::anonymous_activity("{}")).as_bytes());
            // Only its own activity or a REDIRECT can show whether it may stay; others' activities come in between.
            let line = client.next_line();
            if line.command() != "REDIRECT" {
                clients.push(client);
                break;
            }
            address.set_port(u16::try_from(line["port"].as_u64().unwrap()).unwrap());
        }
    }
    let loads: Vec<i64> = tree.nodes.iter().map(announced_load).collect();
    assert_eq!(loads.iter().sum::<i64>(), 12);
    assert!(loads.iter().all(|load| (2..=6).contains(load)), "{loads:?}");
}
