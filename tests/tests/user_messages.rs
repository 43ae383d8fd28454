//! One core among neighbours played by the test: what it answers to messages about users that are wrong, late or made up
//! (protocol, Users in an extended tree), and how it translates at the border of a plain tree (U8).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::time::{Duration, Instant};

use arborcast_core::{Action, Config, ConnectionId, Event, Extensions, Node, ReceivedLine, RootReason};
use arborcast_tests::cluster::fake_hash;
use arborcast_tests::lines;
use bytes::Bytes;
use serde_json::{Value, json};

const NOW: u64 = 1_800_000_000_000;
const DAY: u64 = 24 * 60 * 60 * 1000;

/// A core. Secrets are hashed at once; users are in memory only.
struct Core {
    node: Node,
    now: Instant,
    connections: u64,
    /// What was sent and not looked at.
    sent: Vec<(ConnectionId, Value)>,
    /// How many secrets were compared with a hash.
    verified: u64,
    /// No secret can be verified.
    is_busy: bool,
}

impl Core {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Config)) -> Self {
        let extensions = Extensions { milliseconds_since_1970: NOW - 1000, ..Extensions::new(1, 1) };
        let mut config = Config::new("n1", "here", 1, "secret".into());
        config.extensions = Some(extensions);
        change(&mut config);
        let now = Instant::now();
        let node = Node::new(config, now);
        let mut core = Self { node, now, connections: 0, sent: Vec::new(), verified: 0, is_busy: false };
        core.look_in_vain();
        core
    }

    /// No master answers, and nobody is remembered: from here on it decides by itself. It is `NOW` then.
    fn look_in_vain(&mut self) {
        self.pass(Duration::from_secs(1));
        assert_eq!(self.node.root_reason(), Some(RootReason::Unsettled));
    }

    fn handle(&mut self, event: Event) {
        let mut actions = Vec::new();
        self.node.handle(self.now, event, &mut actions);
        for action in actions {
            match action {
                Action::Send { connection, line } => {
                    self.sent.push((connection, serde_json::from_slice(&line).unwrap()));
                }
                Action::HashSecret { task, secret } => {
                    self.handle(Event::SecretHashed { task, hash: Some(fake_hash(&secret)) });
                }
                Action::VerifySecret { task, secret, hash } => {
                    self.verified += 1;
                    let verdict = (!self.is_busy).then(|| fake_hash(&secret) == hash);
                    self.handle(Event::SecretVerified { task, verdict });
                }
                _ => {}
            }
        }
    }

    fn connect(&mut self) -> ConnectionId {
        self.connections += 1;
        let connection = ConnectionId(self.connections);
        self.handle(Event::Accepted { connection });
        connection
    }

    /// A child that speaks the extensions.
    fn extended(&mut self, id: &str) -> ConnectionId {
        let link = self.connect();
        let key = json!({"root": id});
        let node =
            json!({"protocol": 1, "id": id, "incarnation": 1, "attempt": 1, "hostname": "h", "port": 2, "key": key});
        self.receive(link, &json!({"command": "AUTHENTICATE", "secret": "secret", "node": node}));
        let answers = self.take(link);
        assert_eq!(answers[0]["command"], "LINK_ACCEPTED", "{answers:?}");
        assert!(answers.iter().any(|answer| answer["command"] == "USER_DIGEST"), "{answers:?}");
        link
    }

    /// A child that does not, known under its id.
    fn plain(&mut self, id: &str) -> ConnectionId {
        let link = self.connect();
        self.receive(link, &json!({"command": "AUTHENTICATE", "secret": "secret"}));
        self.receive_line(link, &lines::server_announce(id, 0, 1));
        self.sent.clear();
        link
    }

    fn receive(&mut self, connection: ConnectionId, message: &Value) {
        self.receive_line(connection, &message.to_string());
    }

    fn receive_line(&mut self, connection: ConnectionId, line: &str) {
        let line = ReceivedLine::read(Bytes::copy_from_slice(line.as_bytes()));
        self.handle(Event::Received { connection, line });
    }

    /// Lets time pass.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(deadline) = self.node.next_deadline().filter(|deadline| *deadline <= end) {
            self.now = self.now.max(deadline);
            self.handle(Event::DeadlinePassed);
        }
        self.now = end;
    }

    /// What was sent over a connection, heartbeats and announcements left out.
    fn take(&mut self, connection: ConnectionId) -> Vec<Value> {
        let is_noise = |message: &Value| matches!(message["command"].as_str(), Some("HEARTBEAT" | "SERVER_ANNOUNCE"));
        let (taken, left) = std::mem::take(&mut self.sent).into_iter().partition(|(to, _)| *to == connection);
        self.sent = left;
        let taken: Vec<(ConnectionId, Value)> = taken;
        taken.into_iter().map(|(_, message)| message).filter(|message| !is_noise(message)).collect()
    }

    /// The one thing that was sent over a connection.
    #[track_caller]
    fn only(&mut self, connection: ConnectionId) -> Value {
        let mut taken = self.take(connection);
        assert_eq!(taken.len(), 1, "{taken:?}");
        taken.remove(0)
    }

    #[track_caller]
    fn nothing(&mut self, connection: ConnectionId) {
        assert_eq!(self.take(connection), Vec::<Value>::new());
    }

    fn names(&self) -> Vec<String> {
        self.node.users().map(|user| user.username.clone()).collect()
    }

    #[track_caller]
    fn can_log_in(&mut self, username: &str, secret: &str) -> bool {
        let client = self.connect();
        self.receive_line(client, &lines::login(username, secret));
        let answer = self.only(client);
        self.handle(Event::Closed { connection: client, reason: arborcast_core::CloseReason::PeerClosed });
        answer["command"] == "LOGIN_SUCCESS"
    }
}

fn registration(at: u64, server: &str) -> Value {
    json!({"at": at, "server": server, "number": 1})
}

fn prepare(username: &str, secret: &str, registration: &Value) -> Value {
    json!({"command": "USER_PREPARE", "registration": registration, "username": username, "secret": secret})
}

fn vote(username: &str, registration: &Value) -> Value {
    json!({"command": "USER_VOTE", "registration": registration, "username": username})
}

fn denied(username: &str, registration: &Value, why: &str) -> Value {
    json!({"command": "USER_VOTE", "registration": registration, "username": username, "denied": why})
}

fn abort(username: &str, registration: &Value) -> Value {
    json!({"command": "USER_ABORT", "registration": registration, "username": username})
}

fn taken_back(username: &str, registration: &Value) -> Value {
    json!({"command": "USER_ABORT", "registration": registration, "username": username, "committed": true})
}

fn user(username: &str, secret: &str, registration: &Value) -> Value {
    json!({"username": username, "hash": fake_hash(&secret.into()), "registration": registration})
}

fn commit(user: &Value) -> Value {
    json!({"command": "USER_COMMIT", "user": user})
}

/// U3, U5: along a line of servers.
#[test]
fn a_prepare_is_asked_on_voted_up_and_committed_down() {
    let mut core = Core::new();
    let (above, below) = (core.extended("n2"), core.extended("n3"));
    core.sent.clear();
    let asked = registration(NOW, "n2");
    core.receive(above, &prepare("aaron", "s", &asked));
    assert_eq!(core.only(below), prepare("aaron", "s", &asked));
    core.nothing(above);
    assert!(!core.can_log_in("aaron", "t"), "another secret is refused at once");
    let held = core.connect();
    core.receive_line(held, &lines::login("aaron", "s"));
    core.nothing(held);
    core.receive(below, &vote("aaron", &asked));
    assert_eq!(core.only(above), vote("aaron", &asked));
    core.nothing(held);
    let committed = commit(&user("aaron", "s", &asked));
    core.receive(above, &committed);
    assert_eq!(core.only(below), committed);
    assert_eq!(core.only(held)["command"], "LOGIN_SUCCESS");
    core.receive(above, &committed);
    core.nothing(below);
    core.receive(above, &prepare("aaron", "t", &registration(NOW + 1, "n2")));
    assert_eq!(core.only(above), denied("aaron", &registration(NOW + 1, "n2"), "TAKEN"));
}

/// U4: the rule for two at once, as each server along the way applies it.
#[test]
fn of_two_prepares_that_meet_the_earlier_one_goes_on() {
    let mut core = Core::new();
    let (left, right) = (core.extended("n2"), core.extended("n3"));
    let client = core.connect();
    core.sent.clear();
    let (late, early) = (registration(NOW + 9, "n2"), registration(NOW - 9, "n3"));

    core.receive_line(client, &lines::register("aaron", "own"));
    let own = core.only(left)["registration"].clone();
    core.only(right);
    core.receive(left, &prepare("aaron", "late", &late));
    assert_eq!(core.only(left), denied("aaron", &late, "PENDING"));
    core.receive(right, &prepare("aaron", "early", &early));
    let told = core.only(client);
    assert_eq!(told["command"], "REGISTER_FAILED");
    assert!(told["info"].as_str().unwrap().contains("somebody else"), "{told}");
    assert_eq!(core.take(left), [abort("aaron", &own), prepare("aaron", "early", &early)]);
    core.only(right);
    core.receive(left, &vote("aaron", &own));
    core.nothing(right);
    core.receive(left, &vote("aaron", &early));
    assert_eq!(core.only(right), vote("aaron", &early));

    // Having voted it does not change its mind, but for the one that asked.
    let earliest = registration(1, "n9");
    core.receive(left, &prepare("aaron", "earliest", &earliest));
    assert_eq!(core.only(left), denied("aaron", &earliest, "PENDING"));
    core.receive(right, &prepare("aaron", "late", &late));
    assert_eq!(core.take(left), [abort("aaron", &early), prepare("aaron", "late", &late)]);
    core.nothing(right);
}

/// U6.
#[test]
fn a_lost_link_and_a_missing_vote_leave_a_registration_incomplete() {
    let mut core = Core::new();
    let (above, below) = (core.extended("n2"), core.extended("n3"));
    core.sent.clear();
    let first = registration(NOW, "n2");
    core.receive(above, &prepare("aaron", "s", &first));
    core.handle(Event::Closed { connection: below, reason: arborcast_core::CloseReason::Failed });
    assert_eq!(core.only(above), denied("aaron", &first, "INCOMPLETE"));
    assert_eq!(core.node.view().unsettled, 0);

    // The asker is gone: the name is free again after a while, unless a commit comes another way.
    core.receive(above, &prepare("aaron", "s", &first));
    core.receive(above, &prepare("berta", "s", &first));
    core.handle(Event::Closed { connection: above, reason: arborcast_core::CloseReason::Failed });
    let elsewhere = core.extended("n4");
    core.receive(elsewhere, &commit(&user("berta", "s", &first)));
    assert_eq!(core.node.view().unsettled, 1);
    core.pass(Duration::from_secs(11));
    assert_eq!(core.node.view().unsettled, 0);
    assert_eq!(core.names(), ["berta"]);
}

/// A client is told when a neighbour that answers everything else never votes.
#[test]
fn a_vote_that_never_comes_ends_in_a_refusal() {
    let mut core = Core::with(|config| {
        config.extensions.as_mut().unwrap().heartbeat_timeout = Duration::from_secs(600);
    });
    let neighbour = core.extended("n2");
    let client = core.connect();
    core.sent.clear();
    core.receive_line(client, &lines::register("aaron", "s"));
    let asked = core.only(neighbour)["registration"].clone();
    core.pass(Duration::from_secs(9));
    core.nothing(client);
    core.pass(Duration::from_secs(2));
    assert_eq!(core.only(client)["command"], "REGISTER_FAILED");
    assert_eq!(core.only(neighbour), abort("aaron", &asked));
    // Too late.
    core.receive(neighbour, &vote("aaron", &asked));
    assert_eq!(core.names(), Vec::<String>::new());
}

/// Nothing that a neighbour makes up is taken in, and none of it costs the link.
#[test]
fn what_makes_no_sense_is_dropped_and_counted() {
    let mut core = Core::new();
    let (link, other) = (core.extended("n2"), core.extended("n3"));
    core.sent.clear();
    let real = registration(NOW, "n2");
    let hash = fake_hash(&"s".into());
    let record = |username: &str, hash: &str, at: u64| json!({"username": username, "hash": hash, "registration": registration(at, "n2")});
    let expensive = "$argon2id$v=19$m=4194304,t=1,p=1$c2FsdHNhbHQ$aGFzaA";
    for wrong in [
        record("aaron", &hash, NOW + 2 * DAY),
        record("aaron", "secret", NOW),
        record("aaron", "", NOW),
        record("aaron", expensive, NOW),
        record("anonymous", &hash, NOW),
        record(&"x".repeat(1025), &hash, NOW),
    ] {
        core.receive(link, &commit(&wrong));
        core.receive(link, &json!({"command": "USER_RECORDS", "users": [wrong]}));
    }
    assert_eq!(core.node.view().user_counters.dropped_records, 12);
    core.receive(link, &vote("nobody", &real));
    core.receive(link, &denied("nobody", &real, "TAKEN"));
    core.receive(link, &abort("nobody", &real));
    core.receive(link, &json!({"command": "USER_DIGEST", "digest": "zz"}));
    // One digest a link is enough.
    for _ in 0..2 {
        core.receive(link, &json!({"command": "USER_DIGEST", "digest": "f".repeat(2048)}));
    }
    assert_eq!(core.node.view().user_counters.dropped_messages, 4);
    core.receive_line(link, &lines::lock_request("aaron", "s"));
    assert_eq!(core.node.view().user_counters.dropped_messages, 5);
    core.nothing(link);
    core.nothing(other);
    assert_eq!(core.names(), Vec::<String>::new());

    let ahead = registration(NOW + 2 * DAY, "n2");
    core.receive(link, &prepare("aaron", "s", &ahead));
    assert_eq!(core.only(link), denied("aaron", &ahead, "INCOMPLETE"));
    core.receive(link, &prepare("anonymous", "s", &real));
    assert_eq!(core.only(link), denied("anonymous", &real, "TAKEN"));
    assert_eq!(core.node.view().links, 2, "the links stand");
    core.nothing(other);

    // A commit that nobody prepared is a record like any other.
    core.receive(link, &commit(&user("aaron", "s", &real)));
    assert_eq!(core.only(other), commit(&user("aaron", "s", &real)));
    assert!(core.can_log_in("aaron", "s") && !core.can_log_in("aaron", "t"));
}

/// U7b: whoever knows the secret of the record that counts is the user.
#[test]
fn a_session_outlives_its_registration_only_with_the_right_secret() {
    let mut core = Core::new();
    let link = core.extended("n2");
    for name in ["aaron", "berta"] {
        core.receive(link, &commit(&user(name, "late", &registration(NOW, "n2"))));
    }
    let mut session = |name| {
        let client = core.connect();
        core.receive_line(client, &lines::login(name, "late"));
        assert_eq!(core.only(client)["command"], "LOGIN_SUCCESS");
        client
    };
    let (same, other) = (session("aaron"), session("berta"));
    core.receive(link, &commit(&user("aaron", "late", &registration(NOW - 5, "n3"))));
    core.receive(link, &commit(&user("berta", "early", &registration(NOW - 5, "n3"))));
    core.nothing(same);
    assert_eq!(core.only(other)["command"], "AUTHENTICATION_FAIL");
    core.receive_line(same, &lines::activity("aaron", "late", "{}"));
    core.nothing(same);
    assert!(core.can_log_in("aaron", "late") && core.can_log_in("berta", "early"));
    assert_eq!(core.node.view().user_counters.replaced, 2);
}

/// The messages are only for extended links.
#[test]
fn messages_about_users_are_refused_everywhere_else() {
    let mut core = Core::new();
    let plain = core.plain("p1");
    let stranger = core.connect();
    for connection in [plain, stranger] {
        core.receive(connection, &commit(&user("aaron", "s", &registration(NOW, "p1"))));
        assert_eq!(core.only(connection)["command"], "INVALID_MESSAGE");
    }
    assert_eq!(core.names(), Vec::<String>::new());
}

#[test]
fn a_flood_of_prepares_is_bounded_in_number_and_in_bytes() {
    let mut core = Core::with(|config| config.max_registrations = 10);
    let link = core.extended("n2");
    core.sent.clear();
    let asked = registration(NOW, "n2");
    for user in 0..30 {
        core.receive(link, &prepare(&format!("user{user}"), "s", &asked));
    }
    let votes = core.take(link);
    assert!(votes[..10].iter().all(|vote| vote["denied"].is_null()));
    assert!(votes[10..].iter().all(|vote| vote["denied"] == "NO_ROOM"));
    assert_eq!(core.node.view().unsettled, 10);
    core.pass(Duration::from_secs(90));
    assert_eq!(core.node.view().unsettled, 0, "an asker that never says more can't keep names for ever");

    let mut core = Core::with(|config| config.max_user_bytes = 100_000);
    let link = core.extended("n2");
    core.sent.clear();
    for user in 0..10 {
        core.receive(link, &prepare(&format!("user{user}"), &"s".repeat(30_000), &asked));
    }
    let granted = core.take(link).iter().filter(|vote| vote["denied"].is_null()).count();
    assert_eq!(granted, 3);
}

/// U7: records go out in portions, each when the last was taken in, and end by themselves.
#[test]
fn a_digest_that_never_matches_costs_one_exchange() {
    let mut core = Core::new();
    let source = core.extended("n2");
    let asked = registration(NOW, "n2");
    let names: Vec<String> = (0..4000).map(|user| format!("user{user}-{}", "x".repeat(400))).collect();
    for name in &names {
        core.receive(source, &commit(&user(name, "s", &asked)));
    }
    let reader = core.extended("n3");
    core.sent.clear();
    let (mut got, mut rounds) = (0, 0);
    loop {
        core.receive(reader, &json!({"command": "USER_DIGEST", "digest": "0".repeat(2048)}));
        let lines = core.take(reader);
        let mut more = false;
        let mut bytes = 0;
        for line in &lines {
            let length = line.to_string().len();
            assert!(length <= 64 << 10, "{length}");
            bytes += length;
            got += line["users"].as_array().unwrap().len();
            more = line["more"] == true;
        }
        assert!(bytes < 2 << 20, "{bytes} bytes at once");
        rounds += 1;
        if !more {
            break;
        }
    }
    assert_eq!(got, names.len());
    assert!(rounds > 1, "it is more than one portion");
    core.receive(reader, &json!({"command": "USER_DIGEST", "digest": "0".repeat(2048)}));
    core.nothing(reader);
}

/// A name is bounded, and what is too long is refused where it enters.
#[test]
fn names_that_are_too_long_are_refused() {
    let mut core = Core::new();
    for (username, secret) in [("x".repeat(1025), "s".to_owned()), ("aaron".to_owned(), "s".repeat(2 << 20))] {
        let client = core.connect();
        core.receive_line(client, &lines::register(&username, &secret));
        assert_eq!(core.only(client)["command"], "REGISTER_FAILED");
    }
    let client = core.connect();
    core.receive_line(client, &lines::register(&"x".repeat(1024), "s"));
    assert_eq!(core.only(client)["command"], "REGISTER_SUCCESS");
}

/// U8a: a registration in the extended tree asks the plain one, and tells it how it ended.
#[test]
fn a_plain_neighbour_is_asked_and_told() {
    let mut core = Core::new();
    let (inside, plain) = (core.extended("n2"), core.plain("p1"));
    core.receive_line(inside, &lines::server_announce("n2", 0, 1));
    core.sent.clear();
    let first = registration(NOW, "n2");
    core.receive(inside, &prepare("aaron", "s", &first));
    assert_eq!(core.only(plain)["command"], "LOCK_REQUEST");
    core.nothing(inside);
    core.receive_line(plain, &lines::lock_allowed("aaron", "s", "p1"));
    assert_eq!(core.only(inside), vote("aaron", &first));
    core.nothing(plain);
    core.receive(inside, &commit(&user("aaron", "s", &first)));
    let allowed: Vec<_> = core.take(plain).iter().map(|line| line["server"].as_str().unwrap().to_owned()).collect();
    assert_eq!(allowed, ["n1", "n2"]);
    core.nothing(inside);

    core.receive(inside, &prepare("berta", "s", &first));
    core.only(plain);
    core.receive_line(plain, &lines::lock_denied("berta", "s"));
    assert_eq!(core.only(inside), denied("berta", &first, "TAKEN"));
    core.nothing(plain);

    core.receive(inside, &prepare("clara", "s", &first));
    core.only(plain);
    core.receive(inside, &abort("clara", &first));
    assert_eq!(core.take(plain).last().unwrap()["command"], "LOCK_DENIED");
}

/// U8b, U8c: a registration in the plain tree is one in the extended tree, and can be taken back for a while.
#[test]
fn a_registration_of_a_plain_neighbour_goes_through_the_tree() {
    let mut core = Core::new();
    let (inside, plain, also) = (core.extended("n2"), core.plain("p1"), core.plain("p2"));
    core.receive_line(inside, &lines::server_announce("n2", 0, 1));
    core.sent.clear();
    let request = lines::lock_request("aaron", "s");
    core.receive_line(plain, &request);
    assert_eq!(core.only(also).to_string(), serde_json::from_str::<Value>(&request).unwrap().to_string());
    let asked = core.only(inside)["registration"].clone();
    core.nothing(plain);
    core.receive(inside, &vote("aaron", &asked));
    for link in [plain, also] {
        let allowed: Vec<_> = core.take(link).iter().map(|line| line["server"].as_str().unwrap().to_owned()).collect();
        assert_eq!(allowed, ["n1", "n2"]);
    }
    core.nothing(inside);
    core.receive_line(also, &lines::lock_allowed("aaron", "s", "p2"));
    assert_eq!(core.only(plain)["command"], "LOCK_ALLOWED", "passed on");
    assert_eq!(core.only(inside)["command"], "USER_COMMIT", "all but the originator have allowed");
    assert!(core.can_log_in("aaron", "s"));
    core.sent.clear();

    // The same pair is allowed, another secret is not.
    core.receive_line(also, &lines::lock_request("aaron", "s"));
    assert!(core.take(also).iter().all(|line| line["command"] == "LOCK_ALLOWED"));
    core.receive_line(also, &lines::lock_request("aaron", "t"));
    assert_eq!(core.only(also)["command"], "LOCK_DENIED");
    core.sent.clear();

    core.receive_line(plain, &lines::lock_denied("aaron", "s"));
    assert_eq!(core.only(inside), taken_back("aaron", &asked));
    assert_eq!(core.names(), Vec::<String>::new());

    // Silence for long enough is agreement; after that it can't be taken back.
    core.receive_line(plain, &lines::lock_request("berta", "s"));
    let asked = core.only(inside)["registration"].clone();
    core.receive(inside, &vote("berta", &asked));
    core.sent.clear();
    core.pass(Duration::from_millis(2100));
    core.handle(Event::DeadlinePassed);
    assert_eq!(core.names(), ["berta"]);
    core.pass(Duration::from_secs(11));
    core.sent.clear();
    core.receive_line(plain, &lines::lock_denied("berta", "s"));
    assert_eq!(core.names(), ["berta"]);
}

/// U6, U8c: an asker that gave up, and an abort of it that has crossed a commit that came another way, take no name from
/// anybody; only a plain tree takes back what was committed.
#[test]
fn an_abort_that_comes_late_removes_nobody() {
    let mut core = Core::new();
    let (left, right) = (core.extended("n2"), core.extended("n3"));
    let theirs = registration(NOW, "n9");
    core.receive(left, &json!({"command": "USER_COMMIT", "user": user("aaron", "s", &theirs)}));
    core.sent.clear();
    core.receive(left, &abort("aaron", &theirs));
    core.nothing(right);
    assert!(core.can_log_in("aaron", "s"));
    core.receive(left, &taken_back("aaron", &theirs));
    assert_eq!(core.only(right), taken_back("aaron", &theirs));
    assert_eq!(core.names(), Vec::<String>::new());
}

/// Where too many secrets wait to be verified, nobody is told that theirs is wrong, and nobody's session ends.
#[test]
fn a_secret_that_can_not_be_verified_is_not_called_wrong() {
    let mut core = Core::new();
    let (inside, plain) = (core.extended("n2"), core.plain("p1"));
    let late = registration(NOW, "n9");
    core.receive(inside, &json!({"command": "USER_COMMIT", "user": user("aaron", "s", &late)}));
    core.sent.clear();
    core.is_busy = true;
    let client = core.connect();
    core.receive_line(client, &lines::login("aaron", "s"));
    let answer = core.only(client);
    assert_eq!(answer["command"], "LOGIN_FAILED");
    assert!(answer["info"].as_str().unwrap().contains("too many logins"), "{answer}");

    // A session whose name has another registration now, and somebody who registers it in the plain tree.
    core.is_busy = false;
    let session = core.connect();
    core.receive_line(session, &lines::login("aaron", "s"));
    core.sent.clear();
    core.is_busy = true;
    let early = registration(NOW - 1, "n8");
    core.receive(inside, &json!({"command": "USER_COMMIT", "user": user("aaron", "u", &early)}));
    core.nothing(session);
    core.sent.clear();
    core.receive_line(plain, &lines::lock_request("aaron", "s"));
    core.nothing(plain);
}

/// U1: when a name was registered is told by what the clock shows then.
#[test]
fn a_clock_that_is_set_counts_from_then_on() {
    let mut core = Core::new();
    let link = core.extended("n2");
    core.handle(Event::ClockRead { milliseconds_since_1970: NOW + 86_400_000 * 3 });
    let client = core.connect();
    core.receive_line(client, &lines::register("aaron", "s"));
    let at = core.only(link)["registration"]["at"].as_u64().unwrap();
    assert_eq!(at, NOW + 86_400_000 * 3);
}

/// An id that was given once is never given again, and an answer that nobody waits for changes nothing.
#[test]
fn late_answers_are_dropped() {
    let mut core = Core::new();
    let client = core.connect();
    core.receive_line(client, &lines::register("aaron", "s"));
    assert_eq!(core.only(client)["command"], "REGISTER_SUCCESS");
    for task in 0..5 {
        let task = arborcast_core::TaskId(task);
        core.handle(Event::SecretVerified { task, verdict: Some(true) });
        core.handle(Event::SecretHashed { task, hash: None });
    }
    core.handle(Event::UsersWritten { write: arborcast_core::WriteId(3), error: None });
    assert_eq!(core.names(), ["aaron"]);
}

/// U9: a client that was in somewhere shows that wherever it logs in again, and no server hashes its secret once more.
#[test]
fn a_secret_that_another_server_has_verified_is_not_verified_again() {
    let log_in = |core: &mut Core, secret: &str, proof: Option<&Value>| {
        let mut resume = json!({"session": "c0ffee"});
        if let Some(proof) = proof {
            resume["proof"] = proof.clone();
        }
        let client = core.connect();
        let login = json!({"command": "LOGIN", "username": "aaron", "secret": secret, "resume": resume});
        core.receive(client, &login);
        core.take(client).remove(0)
    };
    let asked = registration(NOW, "n2");
    let knowing = |registration: &Value, change: fn(&mut Config)| {
        let mut core = Core::with(change);
        let above = core.extended("n2");
        core.receive(above, &commit(&user("aaron", "s", registration)));
        core
    };
    let mut first = knowing(&asked, |_| {});
    let proof = log_in(&mut first, "s", None)["proof"].clone();
    assert_eq!((first.verified, proof.as_str().unwrap().len()), (1, 64));

    let mut second = knowing(&asked, |config| config.id = "n0".into());
    assert_eq!(log_in(&mut second, "s", Some(&proof))["command"], "LOGIN_SUCCESS");
    assert_eq!(second.verified, 0);

    // It is worth nothing with another secret, for another registration, in another form, or in another cluster.
    let mut third = knowing(&asked, |_| {});
    assert_eq!(log_in(&mut third, "t", Some(&proof))["command"], "LOGIN_FAILED");
    assert_eq!(third.verified, 1);
    for (registration, proof) in [(registration(NOW + 1, "n2"), &proof), (asked, &json!(7))] {
        let mut other = knowing(&registration, |_| {});
        assert_eq!(log_in(&mut other, "s", Some(proof))["command"], "LOGIN_SUCCESS");
        assert_eq!(other.verified, 1);
    }
}
