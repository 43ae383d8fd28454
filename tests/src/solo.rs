//! One core and nothing else, driven by hand: what it is sent, what it answers, whom it dials and asks.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use arborcast_core::relay::Piece;
use arborcast_core::{
    Action, AttemptId, CloseReason, Config, ConnectionId, Event, Extensions, Node, ReceivedLine, ServerId, TaskId,
};
use arborcast_proto::wire::message::{Applicant, FragmentKey, Reign, Request, Target, TreePosition};
use arborcast_proto::wire::{Message, ServerAnnounce, UserRecord};
use bytes::Bytes;

use crate::cluster::{CLUSTER_SECRET, fake_hash};

/// A core in virtual time. Its id is `me`, and it speaks the extensions.
pub struct Solo {
    now: Instant,
    core: Node,
    next_connection: u64,
    sent: BTreeMap<ConnectionId, VecDeque<Message>>,
    closed: BTreeMap<ConnectionId, CloseReason>,
    dials: VecDeque<(AttemptId, Target)>,
    questions: VecDeque<AttemptId>,
    registrations: VecDeque<UserRecord>,
    lookups: VecDeque<(TaskId, String)>,
    /// What was published in the extended form, by where it stands in the log.
    log: BTreeMap<u64, Bytes>,
    relayed: VecDeque<(Message, Relayed)>,
}

/// How an activity was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relayed {
    /// Whether it goes out in the plain form as well.
    pub is_plain: bool,
    /// Whether it happened before the core was in the tree.
    pub is_history: bool,
}

impl Solo {
    /// A core that nobody is connected to.
    pub fn new(configure: impl FnOnce(&mut Extensions)) -> Self {
        let mut extensions = Extensions::new(1, 0);
        configure(&mut extensions);
        let config = Config::new("me", "sim", 1, CLUSTER_SECRET.into());
        let now = Instant::now();
        Self {
            now,
            core: Node::new(Config { extensions: Some(extensions), ..config }, now),
            next_connection: 1,
            sent: BTreeMap::new(),
            closed: BTreeMap::new(),
            dials: VecDeque::new(),
            questions: VecDeque::new(),
            registrations: VecDeque::new(),
            lookups: VecDeque::new(),
            log: BTreeMap::new(),
            relayed: VecDeque::new(),
        }
    }

    /// The core, to look at.
    pub fn core(&self) -> &Node {
        &self.core
    }

    /// One event.
    pub fn handle(&mut self, event: Event) {
        let mut actions = Vec::new();
        self.core.handle(self.now, event, &mut actions);
        for action in actions {
            match action {
                Action::Send { connection, line } => {
                    self.sent.entry(connection).or_default().push_back(read(&line));
                }
                Action::Close { connection, reason } => drop(self.closed.insert(connection, reason)),
                Action::Dial { attempt, target } => self.dials.push_back((attempt, target)),
                Action::HashSecret { task, secret } => {
                    self.handle(Event::SecretHashed { task, hash: Some(fake_hash(&secret)) });
                }
                Action::VerifySecret { task, secret, hash } => {
                    self.handle(Event::SecretVerified { task, verdict: Some(fake_hash(&secret) == hash) });
                }
                Action::RegisterUser { record } => self.registrations.push_back(record),
                Action::LookUpUser { task, username } => self.lookups.push_back((task, username)),
                Action::AskMasters { attempt } => self.questions.push_back(attempt),
                Action::Relay { line, head, source } => {
                    let end = self.log.last_key_value().map_or(0, |(at, line)| at + line.len() as u64);
                    let how = Relayed { is_plain: head.is_some(), is_history: source.is_history };
                    self.relayed.push_back((read(&line), how));
                    self.log.insert(end, line);
                }
                Action::Replay { connection, pieces } => {
                    let lines = pieces.into_iter().flat_map(|piece| match piece {
                        Piece::Line(line) => vec![line],
                        Piece::Range { start, end } => {
                            self.log.range(start.0..end.0).map(|(_, line)| line.clone()).collect()
                        }
                    });
                    self.sent.entry(connection).or_default().extend(lines.map(|line| read(&line)));
                }
                _ => {}
            }
        }
    }

    /// Lets time pass; what is due happens when it is due.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.core.next_deadline().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.handle(Event::DeadlinePassed);
        }
        self.now = end;
    }

    /// Somebody connects, and sends something.
    pub fn accept(&mut self, first: &Message) -> ConnectionId {
        let connection = self.new_connection();
        self.handle(Event::Accepted { connection });
        self.receive(connection, first);
        connection
    }

    fn new_connection(&mut self) -> ConnectionId {
        self.next_connection += 1;
        ConnectionId(self.next_connection)
    }

    /// A message comes.
    pub fn receive(&mut self, connection: ConnectionId, message: &Message) {
        let line = message.to_line();
        self.receive_text(connection, std::str::from_utf8(&line[..line.len() - 1]).expect("JSON is text"));
    }

    /// A line comes.
    pub fn receive_text(&mut self, connection: ConnectionId, line: &str) {
        let line = ReceivedLine::read(line.to_owned().into());
        self.handle(Event::Received { connection, line });
    }

    /// The other end closes.
    pub fn hang_up(&mut self, connection: ConnectionId) {
        self.handle(Event::Closed { connection, reason: CloseReason::PeerClosed });
    }

    /// The next message that the core has sent there, if there is one.
    pub fn next_sent(&mut self, connection: ConnectionId) -> Option<Message> {
        self.sent.get_mut(&connection)?.pop_front()
    }

    /// Everything that the core has sent there and was not looked at.
    pub fn all_sent(&mut self, connection: ConnectionId) -> Vec<Message> {
        self.sent.remove(&connection).unwrap_or_default().into()
    }

    /// The next activity or gap that the core has published.
    pub fn next_relayed(&mut self) -> Option<(Message, Relayed)> {
        self.relayed.pop_front()
    }

    /// Why the core has closed a connection, if it has.
    pub fn closed(&self, connection: ConnectionId) -> Option<CloseReason> {
        self.closed.get(&connection).copied()
    }

    /// Whether the core wants to be connected to somebody.
    pub fn has_dial(&self) -> bool {
        !self.dials.is_empty()
    }

    /// Whom the core wants to be connected to, if anybody.
    pub fn next_dial(&mut self) -> Option<(AttemptId, Target)> {
        self.dials.pop_front()
    }

    /// The connection that the core asks for comes to be, and what it says first is returned with it. Panics if it asks for
    /// none, or for one to another server.
    #[track_caller]
    pub fn connect(&mut self, port: u16) -> (ConnectionId, Message) {
        let (attempt, target) = self.next_dial().expect("somebody is dialled");
        assert_eq!(target.port, port, "another one is dialled: {target:?}");
        let connection = self.new_connection();
        self.handle(Event::Dialled { connection, attempt: Some(attempt) });
        (connection, self.next_sent(connection).expect("the dialler says who it is"))
    }

    /// The connection that the core asks for can't be made.
    #[track_caller]
    pub fn fail_dial(&mut self, port: u16) {
        let (attempt, target) = self.next_dial().expect("somebody is dialled");
        assert_eq!(target.port, port, "another one is dialled: {target:?}");
        self.handle(Event::DialFailed { attempt });
    }

    /// A question to the masters that is not answered yet.
    pub fn next_question(&mut self) -> Option<AttemptId> {
        self.questions.pop_front()
    }

    /// The next user that the core wants to be registered at the masters.
    pub fn next_registration(&mut self) -> Option<UserRecord> {
        self.registrations.pop_front()
    }

    /// The next user that the core asks the masters for.
    pub fn next_lookup(&mut self) -> Option<(TaskId, String)> {
        self.lookups.pop_front()
    }

    /// Lets time pass until the core asks the masters, and answers with the servers at these ports.
    #[track_caller]
    pub fn advise(&mut self, ports: &[u16]) {
        for _ in 0..100 {
            if let Some(attempt) = self.questions.pop_front() {
                let candidates = ports.iter().map(|port| target(*port)).collect();
                return self.handle(Event::MastersAnswered { attempt, candidates });
            }
            self.pass(Duration::from_millis(100));
        }
        panic!("the masters are not asked");
    }

    /// The core finds the server at this port to be its parent, one of the fragment of `root`.
    #[track_caller]
    pub fn attach(&mut self, port: u16) -> ConnectionId {
        self.advise(&[port]);
        let (connection, first) = self.connect(port);
        self.take_in(connection, &first, port);
        connection
    }

    /// The server at this port takes the core in.
    #[track_caller]
    pub fn take_in(&mut self, connection: ConnectionId, first: &Message, port: u16) {
        let accepted = Message::LinkAccepted { attempt: attempt_of(first), id: id_of(port), tree: position(&[port]) };
        self.receive(connection, &accepted);
        assert_eq!(self.core.parent_id(), Some(id_of(port).as_str()));
        self.sent.remove(&connection);
    }
}

fn read(line: &Bytes) -> Message {
    Message::parse(&line.slice(..line.len() - 1)).expect("it sends valid messages")
}

/// The attempt in an AUTHENTICATE.
#[track_caller]
pub fn attempt_of(authenticate: &Message) -> u64 {
    let Message::Authenticate { node: Some(node), .. } = authenticate else { panic!("no node in {authenticate:?}") };
    node.request.attempt
}

/// What the server at a port calls itself.
pub fn id_of(port: u16) -> ServerId {
    format!("s{port}")
}

/// The server at a port.
pub fn target(port: u16) -> Target {
    Target { id: id_of(port), hostname: "sim".into(), port }
}

/// Below these servers, the last of which says so, in the settled fragment of the server `root`.
pub fn position(below: &[u16]) -> TreePosition {
    let key = FragmentKey { reign: Reign::Settled(0), root: "root".into() };
    let path = std::iter::once("root".to_owned()).chain(below.iter().map(|port| id_of(*port))).collect();
    TreePosition { key, path }
}

/// The server at a port, an unsettled root, asks to be taken in.
pub fn applicant(port: u16) -> Applicant {
    Applicant {
        protocol: 1,
        request: Request { id: id_of(port), incarnation: 1, attempt: 1 },
        hostname: "sim".into(),
        port,
        key: FragmentKey { reign: Reign::Unsettled, root: id_of(port) },
        probe: false,
        moves: false,
    }
}

/// AUTHENTICATE with the secret of the tree.
pub fn authenticate(node: Option<Applicant>) -> Message {
    Message::Authenticate { secret: CLUSTER_SECRET.into(), node }
}

/// SERVER_ANNOUNCE of the server at a port.
pub fn announce(port: u16) -> Message {
    Message::ServerAnnounce(ServerAnnounce { id: id_of(port), load: 0, hostname: "sim".into(), port: port.into() })
}
