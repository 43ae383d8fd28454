//! A server that is gone is no redirect target any more, however far away it was (protocol, Load and redirection of the
//! extensions).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeSet;
use std::time::Duration;

use arborcast_core::{CloseReason, ConnectionId, Event};
use arborcast_proto::wire::Message;
use arborcast_proto::wire::message::{Applicant, AttachAnswer};
use arborcast_tests::cluster::Cluster;
use arborcast_tests::forest::Forest;
use arborcast_tests::lines;
use arborcast_tests::node::NodeBuilder;
use arborcast_tests::peer::{Arrival, Peer};
use arborcast_tests::solo::{Solo, announce, applicant, authenticate, id_of};
use arborcast_tests::storm;
use arborcast_tests::wait::{self, PATIENCE};

fn left(port: u16) -> Message {
    Message::ServerLeft { id: id_of(port) }
}

/// A server in the middle: a parent at port 90, and children at 10 and 11, which have announced themselves.
struct Middle {
    solo: Solo,
    parent: ConnectionId,
    children: [ConnectionId; 2],
}

impl Middle {
    fn new() -> Self {
        // These neighbours send no heartbeats.
        let mut solo = Solo::new(|extensions| extensions.heartbeat_timeout = Duration::from_secs(100));
        let parent = solo.attach(90);
        solo.receive(parent, &announce(90));
        let children = [10, 11].map(|port| take_in(&mut solo, parent, applicant(port)));
        let mut middle = Self { solo, parent, children };
        middle.forget_what_was_sent();
        middle
    }

    fn forget_what_was_sent(&mut self) {
        for link in [self.parent, self.children[0], self.children[1]] {
            self.solo.all_sent(link);
        }
    }

    /// Who has been told that the server at this port is gone.
    fn told(&mut self, port: u16) -> Vec<ConnectionId> {
        let links = [self.parent, self.children[0], self.children[1]];
        links.into_iter().filter(|link| self.solo.all_sent(*link).contains(&left(port))).collect()
    }

    fn knows(&self, port: u16) -> bool {
        self.solo.core().view().servers.contains_key(&id_of(port))
    }
}

fn take_in(solo: &mut Solo, parent: ConnectionId, child: Applicant) -> ConnectionId {
    let port = child.port;
    let child = solo.accept(&authenticate(Some(child)));
    let Some(Message::AttachRequest(request)) = solo.all_sent(parent).pop() else { panic!("not sent up") };
    let request = AttachAnswer { request: request.applicant.request, trail: request.trail, refused: None };
    solo.receive(parent, &Message::AttachAnswer(request));
    solo.receive(child, &announce(port));
    child
}

#[test]
fn who_loses_a_neighbour_tells_the_others() {
    let mut middle = Middle::new();
    let [first, second] = middle.children;
    middle.solo.hang_up(first);
    assert_eq!(middle.told(10), [middle.parent, second]);
    middle.solo.hang_up(middle.parent);
    assert_eq!(middle.told(90), [second]);
}

#[test]
fn it_is_obeyed_and_passed_on_where_the_server_was_known_from_there_and_once() {
    let mut middle = Middle::new();
    middle.solo.receive(middle.parent, &announce(50));
    assert!(middle.knows(50));
    middle.forget_what_was_sent();
    middle.solo.receive(middle.children[0], &left(50));
    assert!(middle.knows(50) && middle.told(50).is_empty(), "it was heard of from elsewhere since");
    middle.solo.receive(middle.parent, &left(50));
    assert!(!middle.knows(50));
    assert_eq!(middle.told(50), middle.children);
    middle.solo.receive(middle.parent, &left(50));
    assert!(middle.told(50).is_empty(), "it changes nothing any more");
}

#[test]
fn a_neighbour_that_lives_is_not_forgotten_for_what_others_say() {
    let mut middle = Middle::new();
    middle.solo.receive(middle.parent, &left(10));
    middle.solo.receive(middle.parent, &Message::ServerLeft { id: "me".into() });
    assert!(middle.knows(10) && middle.told(10).is_empty());
}

#[test]
fn plain_neighbours_are_not_told() {
    let mut middle = Middle::new();
    let plain = middle.solo.accept(&authenticate(None));
    middle.solo.all_sent(plain);
    middle.solo.hang_up(middle.children[0]);
    assert!(middle.solo.all_sent(plain).is_empty());
}

/// X6: only over extended links.
#[test]
fn strangers_and_plain_servers_may_not_say_it() {
    let mut middle = Middle::new();
    let plain = middle.solo.accept(&authenticate(None));
    middle.solo.receive(plain, &left(10));
    let stranger = middle.solo.accept(&left(10));
    for connection in [plain, stranger] {
        assert!(matches!(middle.solo.all_sent(connection).pop(), Some(Message::InvalidMessage { .. })));
        assert_eq!(middle.solo.closed(connection), Some(CloseReason::InvalidMessage));
    }
    assert!(middle.knows(10));
}

#[test]
fn a_draining_server_says_so_of_itself_and_announces_itself_no_more() {
    let mut middle = Middle::new();
    middle.solo.handle(Event::Drain);
    let me = Message::ServerLeft { id: "me".into() };
    for link in [middle.parent, middle.children[0], middle.children[1]] {
        assert!(middle.solo.all_sent(link).contains(&me));
    }
    middle.solo.hang_up(middle.children[0]);
    assert!(middle.told(10).is_empty(), "it was asked to leave, and lives");
    let is_announcement = |message: &Message| matches!(message, Message::ServerAnnounce(_));
    // Longer than an announcement interval.
    middle.solo.pass(Duration::from_secs(6));
    assert!(!middle.solo.all_sent(middle.parent).iter().any(is_announcement));
}

/// Announcements are an hour apart in these runs, so nothing expires.
#[test]
fn nobody_in_a_tree_knows_a_server_that_has_crashed_or_drained() {
    for seed in 0..60 {
        let mut cluster = storm::forest_that_announces(seed, 12);
        cluster.run_until("all are one tree", Duration::from_secs(120), Cluster::is_one_tree);
        cluster.run_for(Duration::from_secs(2));
        let gone = seed as usize % 12;
        if seed % 2 == 0 {
            cluster.crash(gone)
        } else {
            cluster.drain(gone)
        }
        cluster.run_for(Duration::from_secs(10));
        cluster.run_until("the others are one tree", Duration::from_secs(120), Cluster::is_one_tree);
        cluster.run_for(Duration::from_secs(2));
        let others: BTreeSet<String> =
            (0..12).filter(|server| *server != gone).map(|server| format!("s{server}")).collect();
        for server in (0..12).filter(|server| *server != gone) {
            let known: BTreeSet<String> = cluster.view(server).servers.into_keys().collect();
            let expected = others.iter().filter(|id| **id != format!("s{server}")).cloned().collect();
            assert_eq!(known, expected, "seed {seed}: what s{server} knows after s{gone} is gone");
        }
    }
}

/// With real processes: a registration waits for every known server, and ten seconds for one that is dead.
#[test]
fn a_registration_succeeds_as_soon_as_a_distant_dead_server_is_forgotten() {
    // So seldom that within this test nobody is forgotten for being silent.
    let builder = NodeBuilder::default().announce_every(PATIENCE / 2);
    let mut forest = Forest::grow_with(1, 7, &builder);
    forest.wait_until_all_know_each_other();
    let shape = forest.shape();
    let victim = shape.leaves()[0];
    let elsewhere = shape.leaves().into_iter().rfind(|leaf| *leaf != victim).unwrap();
    forest.dismiss_clients();
    forest.kill(victim);
    let address = forest.address(elsewhere);
    let mut tries = 0;
    // One that begins before the word has come may have to wait for ten seconds; a later one has nobody to wait for.
    wait::until(PATIENCE, || {
        tries += 1;
        let mut client = Peer::connect(address);
        client.send(lines::register(&format!("user-{tries}"), "s3"));
        match client.arrival(Duration::from_secs(1)) {
            Arrival::Line(line) if line.command() == "REGISTER_SUCCESS" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}
