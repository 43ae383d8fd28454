//! Part II, Announcements: servers with masters announce themselves only where somebody needs it (Z1 to Z5).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use arborcast_core::{ConnectionId, Event, NamedServer};
use arborcast_proto::wire::Message;
use arborcast_proto::wire::message::{AttachAnswer, RefusalReason, Target};
use arborcast_tests::cluster::Cluster;
use arborcast_tests::control::{self, Manner};
use arborcast_tests::forest::Forest;
use arborcast_tests::lines;
use arborcast_tests::master::Master;
use arborcast_tests::node::{NodeBuilder, SECRET};
use arborcast_tests::peer::{Arrival, Peer};
use arborcast_tests::solo::{Solo, announce, applicant, authenticate, id_of, target};
use arborcast_tests::wait::{self, PATIENCE};
use serde_json::json;

/// Longer than two announcement intervals, and than a node waits for masters.
const LONG: Duration = Duration::from_secs(12);

fn heartbeat(announcements: bool) -> Message {
    Message::Heartbeat { tree: None, announcements }
}

/// A core with masters, a parent at port 90 and children at 10 and 11, none of whom want announcements.
struct Middle {
    solo: Solo,
    parent: ConnectionId,
    children: [ConnectionId; 2],
}

impl Middle {
    fn new() -> Self {
        let mut solo = Solo::new(|extensions| {
            extensions.has_masters = true;
            // These neighbours send no heartbeats of their own.
            extensions.heartbeat_timeout = Duration::from_secs(1000);
        });
        let parent = solo.attach(90);
        let children = [10, 11].map(|port| {
            let child = solo.accept(&authenticate(Some(applicant(port))));
            let Some(Message::AttachRequest(request)) = solo.all_sent(parent).pop() else { panic!("not sent up") };
            let request = AttachAnswer { request: request.applicant.request, trail: request.trail, refused: None };
            solo.receive(parent, &Message::AttachAnswer(request));
            child
        });
        let mut middle = Self { solo, parent, children };
        for link in middle.links() {
            middle.solo.receive(link, &heartbeat(false));
        }
        middle.pass(Duration::from_secs(1));
        middle.forget_what_was_sent();
        middle
    }

    fn links(&self) -> [ConnectionId; 3] {
        [self.parent, self.children[0], self.children[1]]
    }

    fn forget_what_was_sent(&mut self) {
        for link in self.links() {
            self.solo.all_sent(link);
        }
    }

    /// Time passes, and masters name servers meanwhile.
    fn pass(&mut self, time: Duration) {
        for _ in 0..time.as_secs() {
            self.solo.handle(Event::ServersNamed { least_loaded: Vec::new(), others: Vec::new() });
            self.solo.pass(Duration::from_secs(1));
        }
    }

    /// Whom the servers at these ports were announced to, over each link.
    fn announced(&mut self) -> [BTreeSet<String>; 3] {
        self.links().map(|link| announced_over(&mut self.solo, link))
    }

    /// What the last heartbeat over each link says.
    fn wants(&mut self) -> [Option<bool>; 3] {
        let said = |message: Message| match message {
            Message::Heartbeat { announcements, .. } => Some(announcements),
            _ => None,
        };
        self.links().map(|link| self.solo.all_sent(link).into_iter().filter_map(said).next_back())
    }
}

fn announced_over(solo: &mut Solo, link: ConnectionId) -> BTreeSet<String> {
    let id = |message: Message| match message {
        Message::ServerAnnounce(announce) => Some(announce.id),
        _ => None,
    };
    solo.all_sent(link).into_iter().filter_map(id).collect()
}

fn ids<const N: usize>(ids: [&str; N]) -> BTreeSet<String> {
    ids.map(str::to_owned).into()
}

#[test]
fn where_all_have_masters_nobody_announces() {
    let mut middle = Middle::new();
    middle.pass(LONG);
    assert_eq!(middle.announced(), [ids([]), ids([]), ids([])]);
    middle.pass(Duration::from_secs(1));
    assert_eq!(middle.wants(), [Some(false); 3]);
}

#[test]
fn announcements_go_to_those_who_want_them_and_nowhere_else() {
    let mut middle = Middle::new();
    let [first, second] = middle.children;
    middle.solo.receive(first, &heartbeat(true));
    assert_eq!(announced_over(&mut middle.solo, first), ids(["me"]), "at once");
    assert_eq!(middle.wants(), [Some(true), None, Some(true)], "for the first child");
    middle.solo.receive(middle.parent, &announce(90));
    middle.solo.receive(second, &announce(50));
    middle.solo.receive(first, &announce(51));
    assert_eq!(middle.announced(), [ids([]), ids(["s90", "s50"]), ids([])]);
    middle.pass(LONG);
    assert_eq!(middle.announced(), [ids([]), ids(["me"]), ids([])]);
    middle.solo.receive(second, &heartbeat(true));
    assert_eq!(announced_over(&mut middle.solo, second), ids(["me", "s90"]), "what it may not know, at once");
    middle.forget_what_was_sent();
    middle.solo.receive(first, &heartbeat(false));
    assert_eq!(middle.wants(), [None, None, Some(false)]);
    middle.solo.hang_up(second);
    assert_eq!(middle.wants()[0], Some(false));
}

/// P1: it hears of all, at once and then at the interval.
#[test]
fn a_plain_child_hears_everybody() {
    let mut middle = Middle::new();
    let plain = middle.solo.accept(&authenticate(None));
    assert_eq!(announced_over(&mut middle.solo, plain), ids(["me"]));
    assert_eq!(middle.wants(), [Some(true); 3]);
    for (link, port) in middle.links().into_iter().zip([90, 10, 11]) {
        middle.solo.receive(link, &announce(port));
    }
    assert_eq!(announced_over(&mut middle.solo, plain), ids(["s90", "s10", "s11"]));
    middle.solo.receive(plain, &announce(5));
    middle.pass(LONG);
    assert_eq!(middle.announced(), [ids([]), ids([]), ids([])]);
    assert_eq!(announced_over(&mut middle.solo, plain), ids(["me"]));
    middle.solo.hang_up(plain);
    assert_eq!(middle.wants(), [Some(false); 3]);
    assert!(middle.solo.core().view().servers.is_empty(), "what was heard for it is out of date soon");
}

#[test]
fn a_neighbour_that_does_not_know_of_this_wants_them() {
    let mut middle = Middle::new();
    middle.solo.receive_text(middle.parent, r#"{"command":"HEARTBEAT"}"#);
    middle.pass(LONG);
    assert_eq!(middle.announced(), [ids(["me"]), ids([]), ids([])]);
}

#[test]
fn who_hears_of_no_master_wants_them_and_goes_back_when_masters_are_steady() {
    let mut middle = Middle::new();
    middle.solo.pass(Duration::from_secs(5));
    assert_eq!(middle.wants(), [Some(true); 3]);
    middle.pass(Duration::from_secs(3));
    assert_eq!(middle.wants(), [Some(true); 3], "they may be gone again in a moment");
    middle.solo.pass(Duration::from_secs(5));
    middle.pass(Duration::from_secs(3));
    assert_eq!(middle.wants(), [Some(true); 3]);
    middle.pass(Duration::from_secs(3));
    assert_eq!(middle.wants(), [Some(false); 3]);
}

#[test]
fn without_masters_all_is_announced_as_ever() {
    let mut solo = Solo::new(|extensions| extensions.heartbeat_timeout = Duration::from_secs(1000));
    let parent = solo.attach(90);
    solo.receive(parent, &heartbeat(true));
    solo.pass(LONG);
    let sent = solo.all_sent(parent);
    assert!(sent.iter().any(|message| matches!(message, Message::ServerAnnounce(_))));
    assert!(!sent.contains(&heartbeat(false)));
}

fn named(port: u16, load: u64) -> NamedServer {
    NamedServer { target: target(port), load }
}

fn log_in(solo: &mut Solo) -> Option<u16> {
    let login = Message::Login { username: "anonymous".into(), secret: None, ticket: None, resume: None };
    let client = solo.accept(&login);
    let redirect = |message: Message| match message {
        Message::Redirect { port, .. } => Some(port),
        _ => None,
    };
    solo.all_sent(client).into_iter().find_map(redirect)
}

#[test]
fn clients_are_sent_to_the_servers_that_masters_name() {
    let mut solo = Middle::new().solo;
    assert_eq!(log_in(&mut solo), None);
    let least_loaded = vec![named(1, 0), named(7, 0), named(8, 1 << 63), named(9, u64::MAX), named(0, 0)];
    let least_loaded = least_loaded.into_iter().map(|server| match server.target.port {
        1 => NamedServer { target: Target { id: "me".into(), ..server.target }, ..server },
        _ => server,
    });
    solo.handle(Event::ServersNamed { least_loaded: least_loaded.collect(), others: Vec::new() });
    assert_eq!(log_in(&mut solo), Some(7));
    assert_eq!(log_in(&mut solo), None, "the one that was sent there counts");
    solo.pass(Duration::from_secs(5));
    for _ in 0..3 {
        assert_eq!(log_in(&mut solo), None, "no master has said so for a while");
    }
}

#[test]
fn loads_beyond_all_bounds_are_just_large() {
    let mut solo = Middle::new().solo;
    for load in [u64::MAX, 1 << 63, (1 << 63) - 1] {
        solo.handle(Event::ServersNamed { least_loaded: vec![named(7, load)], others: Vec::new() });
        assert_eq!(log_in(&mut solo), None);
    }
    solo.handle(Event::Drain);
    assert_eq!(solo.core().view().load, 0);
}

/// K1, as far as masters name the owner.
#[test]
fn the_id_of_a_server_that_masters_name_is_in_use() {
    let mut solo = Middle::new().solo;
    let named = vec![NamedServer { target: Target { port: 13, ..target(12) }, load: 0 }];
    solo.handle(Event::ServersNamed { least_loaded: named, others: Vec::new() });
    let impostor = solo.accept(&authenticate(Some(applicant(12))));
    assert!(matches!(solo.all_sent(impostor)[..], [Message::LinkRefused { reason: RefusalReason::IdInUse, .. }]));
}

#[test]
fn servers_that_masters_name_are_remembered_up_to_a_bound() {
    let mut solo = Middle::new().solo;
    for first in (100..2000).step_by(8) {
        let others = (first..first + 100).map(target).collect();
        solo.handle(Event::ServersNamed { least_loaded: vec![named(7, 0)], others });
    }
    let remembered: BTreeSet<_> = solo.core().remembered().map(|target| target.id.clone()).collect();
    assert!(remembered.contains(&id_of(110)) && !remembered.contains(&id_of(1999)));
    assert!(remembered.len() <= 130, "{}", remembered.len());
}

/// Messages over each link in a second, of a tree in which nothing happens.
fn idle_messages(servers: usize, manner: Manner) -> f64 {
    control::simulated(servers, manner).idle / (servers - 1) as f64
}

fn idle(servers: usize) -> Cluster {
    control::idle_cluster(servers, Manner::WithMasters)
}

#[test]
fn control_messages_grow_with_the_number_of_servers_and_not_faster() {
    let at = [10, 50, 200].map(|servers| idle_messages(servers, Manner::WithMasters));
    assert!(at[1] < at[0] + 1.0 && at[2] < at[0] + 1.0, "for each link and second: {at:?}");
    let before = idle_messages(50, Manner::Extended);
    assert!(before > at[1] + 5.0, "otherwise nothing is gained: {before} and {at:?}");
}

#[test]
fn what_one_plain_server_needs_travels_only_towards_it() {
    let mut cluster = idle(30);
    let border = 17;
    let plain = cluster.add_server(Some(border));
    cluster.run_for(Duration::from_secs(2));
    let all: BTreeSet<String> = (0..30).map(|server| format!("s{server}")).collect();
    assert_eq!(cluster.view(plain).servers.into_keys().collect::<BTreeSet<_>>(), all, "within a moment");
    let way_up = |server| -> Vec<usize> { std::iter::successors(Some(server), |at| cluster.parent(*at)).collect() };
    let to_border = way_up(border);
    let distance = |server| {
        let way = way_up(server);
        let common = way.iter().rev().zip(to_border.iter().rev()).take_while(|(one, other)| one == other).count();
        way.len() + to_border.len() - 2 * common
    };
    // Once from each server to the border, and over the plain link; and once from the plain server.
    let expected: usize = (0..30).map(|server| distance(server) + 1).sum::<usize>() + 1;
    cluster.invariants.control_messages.clear();
    cluster.run_for(Duration::from_secs(20));
    let (announced, _) = cluster.invariants.control_messages["SERVER_ANNOUNCE"];
    // Some of the interval before, or of the next one, may be on their way.
    let in_four_intervals = 4 * expected as u64;
    assert!(announced.abs_diff(in_four_intervals) <= in_four_intervals / 10, "{announced} and not {in_four_intervals}");
}

#[test]
fn announcements_resume_in_the_whole_tree_when_masters_are_gone_and_end_when_they_are_back() {
    let mut cluster = idle(20);
    let announced = |cluster: &mut Cluster, time| {
        cluster.invariants.control_messages.clear();
        cluster.run_for(Duration::from_secs(time));
        cluster.invariants.control_messages.get("SERVER_ANNOUNCE").map_or(0, |(messages, _)| *messages)
    };
    assert_eq!(announced(&mut cluster, 20), 0);
    cluster.masters_alive = false;
    cluster.run_for(Duration::from_secs(8));
    assert!((0..20).all(|server| cluster.view(server).servers.len() == 19), "all know each other");
    assert_eq!(announced(&mut cluster, 20), 4 * 20 * 19);
    cluster.masters_alive = true;
    cluster.run_for(Duration::from_secs(15));
    assert_eq!(announced(&mut cluster, 20), 0);
}

/// A child of a real node, played by the test.
struct Child {
    peer: Peer,
    /// What was announced, by id.
    announced: BTreeSet<String>,
}

impl Child {
    /// One that says whether it wants announcements.
    fn attach(address: SocketAddr, wants: bool) -> Self {
        let mut peer = Peer::connect(address);
        let applicant = json!({"protocol": 1, "id": "zz", "incarnation": 1, "attempt": 1, "hostname": "localhost", "port": 1, "key": {"root": "zz"}});
        peer.send(json!({"command": "AUTHENTICATE", "secret": SECRET, "node": applicant}).to_string());
        peer.expect("LINK_ACCEPTED", |line| (line.command() == "LINK_ACCEPTED").then_some(()));
        let mut child = Self { peer, announced: BTreeSet::new() };
        child.beat(wants);
        child
    }

    fn beat(&mut self, wants: bool) {
        self.peer.send(json!({"command": "HEARTBEAT", "announcements": wants}).to_string());
    }

    /// Goes on until a heartbeat says this, so many times.
    fn wait_for(&mut self, wants: bool, announcements: bool, times: usize) {
        let mut seen = 0;
        wait::until(PATIENCE, || {
            self.beat(wants);
            while let Arrival::Line(line) = self.peer.arrival(Duration::from_millis(50)) {
                match line.command() {
                    "SERVER_ANNOUNCE" => drop(self.announced.insert(line["id"].as_str().unwrap().to_owned())),
                    "HEARTBEAT" => seen += usize::from((line["announcements"] != false) == announcements),
                    _ => {}
                }
            }
            if seen >= times { Ok(()) } else { Err(format!("only {seen} such heartbeats")) }
        });
    }
}

/// With real processes, by what comes over an extended link.
#[test]
fn a_real_tree_announces_nothing_until_its_masters_are_gone() {
    let builder = NodeBuilder::default().announce_every(Duration::from_millis(200));
    let mut forest = Forest::grow_with(1, 4, &builder);
    let leaf = forest.shape().leaves()[0];
    let mut child = Child::attach(forest.address(leaf), false);
    child.wait_for(false, false, 5);
    assert_eq!(child.announced, ids([]));
    forest.kill_masters();
    child.wait_for(false, true, 5);
    assert_eq!(child.announced, ids([]), "it has said that it wants none");
    child.wait_for(true, true, 10);
    assert_eq!(child.announced, ids(["tree-0", "tree-1", "tree-2", "tree-3"]));
    forest.restart_masters();
    child.wait_for(false, false, 1);
    child.announced.clear();
    child.wait_for(false, false, 5);
    assert_eq!(child.announced, ids([]));
}

/// With real processes: announcements, of which one comes in an hour, can't be what is gone by.
#[test]
fn a_real_node_sends_clients_where_its_master_says() {
    let master = Master::start();
    let builder = NodeBuilder::default().announce_every(Duration::from_secs(3600)).flag("--master", master.address());
    let nodes = [builder.clone().id("a").start(), builder.clone().id("b").start()];
    let mut clients = Vec::new();
    wait::until(PATIENCE, || {
        let mut client = Peer::connect(nodes[0].address());
        client.send(lines::login_anonymously());
        client.expect_command("LOGIN_SUCCESS");
        match client.arrival(Duration::from_millis(200)) {
            Arrival::Line(line) if line.command() == "REDIRECT" => {
                assert_eq!(line["port"], nodes[1].address().port());
                Ok(())
            }
            other => {
                clients.push(client);
                Err(format!("{other:?}"))
            }
        }
    });
}
