//! A whole tree in one thread: real cores, virtual time, and a network that delays, cuts and is driven by one seed.
//!
//! Every message is bytes on a wire and parsed where it arrives, so the cores meet exactly what sockets would bring them.
//! The same seed gives the same run. [`Invariants`] looks at every line that crosses a wire.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use arborcast_core::{
    Action, AttemptId, CloseReason, Config, ConnectionId, Event, Extensions, GiveUp, Node, ReceivedLine, UserChange,
    View,
};
use arborcast_proto::wire::message::Target;
use arborcast_proto::wire::{Activity, Credentials, Message, Secret, UserRecord};
use bytes::{Bytes, BytesMut};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::invariants::Invariants;

/// The cluster secret of every simulated tree.
pub const CLUSTER_SECRET: &str = "secret of the tree";

/// Longest time a line may take over a wire; each takes a random part of it, in order for each direction.
const MAX_DELAY: Duration = Duration::from_millis(200);

/// What the clocks of the servers differ at most, in milliseconds.
const MAX_CLOCK_SKEW: u64 = 4_000;

/// A simulated server, in the order of [`Cluster::add_server`].
pub type ServerIndex = usize;
/// A simulated client, in the order of [`Cluster::add_client`].
pub type ClientIndex = usize;
type WireIndex = usize;

/// Servers, clients and the wires between them.
pub struct Cluster {
    now: Instant,
    began: Instant,
    /// The one source of randomness of a run.
    pub rng: StdRng,
    servers: Vec<Server>,
    clients: Vec<Client>,
    wires: Vec<Wire>,
    in_flight: BTreeMap<(Instant, u64), Delivery>,
    next_delivery: u64,
    deadlines: BTreeSet<(Instant, ServerIndex)>,
    /// Directions, from and to, in which nothing gets through at the moment.
    cuts: BTreeSet<(ServerIndex, ServerIndex)>,
    /// What is held up by a cut.
    held: Vec<Delivery>,
    /// Whether any master answers.
    pub masters_alive: bool,
    /// How often servers that speak the extensions announce themselves.
    pub announce_interval: Duration,
    /// What must hold whatever happens.
    pub invariants: Invariants,
}

struct Server {
    core: Node,
    /// What it starts with again.
    config: Config,
    /// Which run this is.
    incarnation: u64,
    is_alive: bool,
    is_frozen: bool,
    /// What its clock shows at the beginning, in milliseconds since 1970.
    clock: u64,
    /// The users on its disk, and whether there is room for another.
    disk: BTreeMap<String, UserRecord>,
    is_disk_full: bool,
    /// What came while it was frozen.
    frozen_inbox: Vec<Delivery>,
    /// When it has to be called next, as entered in `Cluster::deadlines`.
    deadline: Option<Instant>,
    wires: BTreeMap<ConnectionId, (WireIndex, Side)>,
    subscribers: BTreeSet<ConnectionId>,
    given_up: Option<GiveUp>,
}

/// A client that follows redirects and keeps what it got.
#[derive(Default)]
pub struct Client {
    wire: Option<(WireIndex, Side)>,
    /// What it last tried to log in with.
    login: Option<Message>,
    registering: Option<Credentials>,
    /// How many activities it has published.
    pub published: u64,
    /// Every message it got, but broadcasts.
    pub answers: Vec<Message>,
    /// Every activity it got, with its author and number.
    pub activities: Vec<(String, u64)>,
}

/// One end of a wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    Dialler,
    Acceptor,
}

#[derive(Debug, Clone, Copy)]
enum Party {
    Server(ServerIndex, ConnectionId),
    Client(ClientIndex),
}

struct Wire {
    ends: BTreeMap<Side, Party>,
    /// Until when each direction is busy, so that lines stay in order.
    busy: BTreeMap<Side, Instant>,
    is_cut: bool,
}

enum Delivery {
    /// Something sent over a wire.
    Wire { wire: WireIndex, to: Side, parcel: Parcel },
    /// Something else that a server learns, if it is still the same run.
    Server { server: ServerIndex, incarnation: u64, event: Event },
    /// A connection that a server asked for, to nobody if there is no such address.
    Dial { from: ServerIndex, incarnation: u64, attempt: AttemptId, to: Option<ServerIndex> },
}

enum Parcel {
    Line(Bytes),
    End,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Dialler => Self::Acceptor,
            Self::Acceptor => Self::Dialler,
        }
    }
}

impl Client {
    /// Whether it is logged in, and stayed where it is.
    pub fn is_in(&self) -> bool {
        self.wire.is_some() && matches!(self.answers.last(), Some(Message::LoginSuccess { .. }))
    }
}

impl Cluster {
    /// An empty cluster.
    pub fn new(seed: u64) -> Self {
        let now = Instant::now();
        Self {
            now,
            began: now,
            rng: StdRng::seed_from_u64(seed),
            servers: Vec::new(),
            clients: Vec::new(),
            wires: Vec::new(),
            in_flight: BTreeMap::new(),
            next_delivery: 0,
            deadlines: BTreeSet::new(),
            cuts: BTreeSet::new(),
            held: Vec::new(),
            masters_alive: true,
            // Seldom enough that long runs are short, and the announcements are not what is tested.
            announce_interval: Duration::from_secs(3600),
            invariants: Invariants::default(),
        }
    }

    /// A tree of `parents.len() + 1` servers, server `n + 1` below `parents[n]`, that all know each other.
    pub fn tree(seed: u64, parents: &[ServerIndex]) -> Self {
        let mut cluster = Self::new(seed);
        cluster.add_server(None);
        for parent in parents {
            cluster.add_server(Some(*parent));
        }
        let others = parents.len();
        cluster.run_until("all servers know each other", Duration::from_secs(30), |cluster| {
            cluster.servers.iter().all(|server| server.core.view().servers.len() == others)
        });
        cluster
    }

    /// Starts a server, below `parent` if there is one. Its port is its index plus one.
    pub fn add_server(&mut self, parent: Option<ServerIndex>) -> ServerIndex {
        let index = self.servers.len();
        self.start(Config::new(format!("s{index}"), "sim", index as u16 + 1, CLUSTER_SECRET.into()));
        if let Some(parent) = parent {
            let wire = self.wires.len();
            let dialler = self.plug(index, wire, Side::Dialler);
            let acceptor = self.plug(parent, wire, Side::Acceptor);
            self.wire(Party::Server(index, dialler), Party::Server(parent, acceptor));
            self.handle(parent, Event::Accepted { connection: acceptor });
            self.handle(index, Event::Dialled { connection: dialler, attempt: None });
        }
        index
    }

    /// Starts a server that speaks the extensions and finds its place by itself.
    pub fn add_extended_server(&mut self, max_children: usize) -> ServerIndex {
        let index = self.servers.len();
        // Seldom enough that long runs are short.
        let extensions = Extensions {
            heartbeat_interval: Duration::from_secs(1),
            heartbeat_timeout: Duration::from_secs(3),
            max_children,
            keeps_users: true,
            ..Extensions::new(1, self.rng.random())
        };
        let config = Config::new(format!("s{index}"), "sim", index as u16 + 1, CLUSTER_SECRET.into());
        let announce_interval = self.announce_interval;
        self.start(Config { extensions: Some(extensions), announce_interval, ..config });
        index
    }

    fn start(&mut self, mut config: Config) {
        let clock = 1_800_000_000_000 + self.rng.random_range(0..MAX_CLOCK_SKEW);
        if let Some(extensions) = &mut config.extensions {
            extensions.milliseconds_since_1970 = self.clock_at(clock);
        }
        let core = Node::new(config.clone(), self.now);
        let deadline = core.next_deadline();
        self.deadlines.extend(deadline.map(|deadline| (deadline, self.servers.len())));
        self.servers.push(Server {
            core,
            config,
            incarnation: 1,
            is_alive: true,
            is_frozen: false,
            clock,
            disk: BTreeMap::new(),
            is_disk_full: false,
            frozen_inbox: Vec::new(),
            deadline,
            wires: BTreeMap::new(),
            subscribers: BTreeSet::new(),
            given_up: None,
        });
    }

    /// What a clock shows that showed this at the beginning.
    fn clock_at(&self, beginning: u64) -> u64 {
        beginning + u64::try_from((self.now - self.began).as_millis()).expect("runs are shorter than that")
    }

    /// Kills a server: its peers see their connections reset, if they can.
    pub fn crash(&mut self, server: ServerIndex) {
        self.servers[server].is_alive = false;
        self.servers[server].is_frozen = false;
        self.servers[server].frozen_inbox.clear();
        self.schedule(server, None);
        for (wire, side) in std::mem::take(&mut self.servers[server].wires).into_values() {
            self.transmit(wire, side, Parcel::End);
        }
        self.servers[server].subscribers.clear();
        self.check_tree();
    }

    /// Starts a dead server again at its address, with what it remembers or with an empty disk.
    pub fn restart(&mut self, server: ServerIndex, keeps_disk: bool) {
        let incarnation = self.servers[server].incarnation + 1;
        let remembered =
            if keeps_disk { self.servers[server].core.remembered().cloned().collect() } else { Vec::new() };
        let seed = self.rng.random();
        let clock = self.clock_at(self.servers[server].clock);
        let entry = &mut self.servers[server];
        if !keeps_disk {
            entry.disk.clear();
        }
        let users = entry.disk.values().cloned().collect();
        if let Some(extensions) = &mut entry.config.extensions {
            *extensions = Extensions {
                incarnation,
                remembered,
                seed,
                users,
                milliseconds_since_1970: clock,
                ..extensions.clone()
            };
        }
        entry.core = Node::new(entry.config.clone(), self.now);
        entry.incarnation = incarnation;
        entry.is_alive = true;
        let deadline = entry.core.next_deadline();
        self.schedule(server, deadline);
    }

    /// Stops a server's processor. Its connections stay open, and what is sent to it waits.
    pub fn freeze(&mut self, server: ServerIndex) {
        self.servers[server].is_frozen = true;
        self.schedule(server, None);
    }

    /// Lets a frozen server go on.
    pub fn thaw(&mut self, server: ServerIndex) {
        if !std::mem::take(&mut self.servers[server].is_frozen) {
            return;
        }
        let deadline = self.servers[server].core.next_deadline();
        self.schedule(server, deadline);
        for delivery in std::mem::take(&mut self.servers[server].frozen_inbox) {
            self.deliver(delivery);
        }
    }

    /// From now on nothing gets from one server to another; what is sent waits, as TCP does.
    pub fn cut(&mut self, from: ServerIndex, to: ServerIndex) {
        self.cuts.insert((from, to));
    }

    /// Everything gets through again.
    pub fn heal_cuts(&mut self) {
        self.cuts.clear();
        for delivery in std::mem::take(&mut self.held) {
            self.arrive_later(delivery);
        }
    }

    /// Tells a server to stop without loss.
    pub fn drain(&mut self, server: ServerIndex) {
        self.handle(server, Event::Drain);
    }

    /// Fills a server's disk, or makes room again.
    pub fn fill_disk(&mut self, server: ServerIndex, is_full: bool) {
        self.servers[server].is_disk_full = is_full;
    }

    /// The names on a server's disk.
    pub fn names_on_disk(&self, server: ServerIndex) -> Vec<String> {
        self.servers[server].disk.keys().cloned().collect()
    }

    /// The users that a server knows, in an order that is the same for the same users.
    pub fn users(&self, server: ServerIndex) -> Vec<UserRecord> {
        self.servers[server].core.users().cloned().collect()
    }

    /// Whether a server runs, frozen or not.
    pub fn is_alive(&self, server: ServerIndex) -> bool {
        self.servers[server].is_alive
    }

    /// Whether a server is frozen.
    pub fn is_frozen(&self, server: ServerIndex) -> bool {
        self.servers[server].is_frozen
    }

    /// The parent of a server, if it has one that it is right about: alive, and the same run.
    pub fn parent(&self, server: ServerIndex) -> Option<ServerIndex> {
        self.servers[server].core.parent_id().and_then(index_of)
    }

    /// The live servers that have no parent.
    pub fn roots(&self) -> Vec<ServerIndex> {
        let is_root = |server: &ServerIndex| self.is_alive(*server) && self.servers[*server].core.parent_id().is_none();
        (0..self.servers.len()).filter(is_root).collect()
    }

    /// Whether all live servers are one tree in which parents and children agree.
    pub fn is_one_tree(&self) -> bool {
        let live = || (0..self.servers.len()).filter(|server| self.is_alive(*server));
        let mut below: BTreeMap<ServerIndex, BTreeSet<String>> =
            live().map(|server| (server, BTreeSet::new())).collect();
        for (child, parent) in live().filter_map(|server| Some((server, self.parent(server)?))) {
            below.entry(parent).or_default().insert(self.servers[child].config.id.clone());
        }
        let agree = live().all(|server| self.servers[server].core.tree_view().children == below[&server]);
        let keys: BTreeSet<_> = live().map(|server| self.servers[server].core.tree_view().position.key.root).collect();
        agree && self.roots().len() <= 1 && keys.len() <= 1
    }

    /// Whatever happens, following parents never leads back. Panics otherwise.
    fn check_tree(&mut self) {
        self.invariants.observations += 1;
        for start in 0..self.servers.len() {
            let (mut at, mut steps) = (start, 0);
            while self.is_alive(at)
                && let Some(parent) = self.parent(at)
            {
                at = parent;
                steps += 1;
                assert!(steps <= self.servers.len(), "a cycle above server {start}");
            }
        }
    }

    /// The links over which both ends relay never form a circle, in which an activity would go round for ever. Panics
    /// otherwise.
    fn check_relay(&mut self) {
        self.invariants.observations += 1;
        let mut group: Vec<ServerIndex> = (0..self.servers.len()).collect();
        let relays = |party: Party| match party {
            Party::Server(server, connection) if self.servers[server].subscribers.contains(&connection) => Some(server),
            _ => None,
        };
        let wires: BTreeSet<WireIndex> =
            self.servers.iter().flat_map(|server| server.wires.values()).map(|(wire, _)| *wire).collect();
        for wire in wires {
            let ends = &self.wires[wire].ends;
            let (Some(one), Some(other)) = (relays(ends[&Side::Dialler]), relays(ends[&Side::Acceptor])) else {
                continue;
            };
            let (from, to) = (group[one], group[other]);
            assert_ne!(from, to, "activities go round over the link between servers {one} and {other}");
            group.iter_mut().filter(|member| **member == from).for_each(|member| *member = to);
        }
    }

    fn schedule(&mut self, server: ServerIndex, deadline: Option<Instant>) {
        if let Some(before) = std::mem::replace(&mut self.servers[server].deadline, deadline) {
            self.deadlines.remove(&(before, server));
        }
        self.deadlines.extend(deadline.map(|deadline| (deadline, server)));
    }

    /// Connects a client to a server.
    pub fn add_client(&mut self, server: ServerIndex) -> ClientIndex {
        self.clients.push(Client::default());
        let client = self.clients.len() - 1;
        self.connect(client, server);
        client
    }

    /// Connects a client, anew if it was connected before.
    pub fn connect(&mut self, client: ClientIndex, server: ServerIndex) {
        let wire = self.wires.len();
        let connection = self.plug(server, wire, Side::Acceptor);
        self.wire(Party::Client(client), Party::Server(server, connection));
        self.clients[client].wire = Some((wire, Side::Dialler));
        self.handle(server, Event::Accepted { connection });
    }

    /// Sends a message from a client, if it is still connected.
    pub fn send(&mut self, client: ClientIndex, message: Message) {
        let Some((wire, side)) = self.clients[client].wire else { return };
        let line = message.to_line();
        match message {
            Message::Login { .. } => self.clients[client].login = Some(message),
            Message::Register(credentials) => self.clients[client].registering = Some(credentials),
            _ => {}
        }
        self.transmit(wire, side, Parcel::Line(line));
    }

    /// Publishes the client's next numbered activity, anonymously.
    pub fn publish(&mut self, client: ClientIndex) {
        let number = self.clients[client].published;
        self.clients[client].published += 1;
        let activity = Activity::parse(&format!(r#"{{"author":"c{client}","number":{number}}}"#)).unwrap();
        self.send(
            client,
            Message::ActivityMessage { username: "anonymous".into(), secret: None, number: None, activity },
        );
    }

    /// Ends a client's connection without a word.
    pub fn disconnect(&mut self, client: ClientIndex) {
        if let Some((wire, side)) = self.clients[client].wire.take() {
            self.transmit(wire, side, Parcel::End);
        }
    }

    /// Cuts the link between a server and its parent, at a time when both notice.
    pub fn cut_parent(&mut self, child: ServerIndex) {
        let is_to_parent = |(_, side): &&(WireIndex, Side)| *side == Side::Dialler;
        let Some((wire, _)) = self.servers[child].wires.values().find(is_to_parent).copied() else { return };
        self.wires[wire].is_cut = true;
        for end in self.wires[wire].ends.clone().into_values() {
            if let Party::Server(server, connection) = end {
                self.unplug(server, connection);
                self.handle(server, Event::Closed { connection, reason: CloseReason::Failed });
            }
        }
    }

    /// A client, to look at.
    pub fn client(&self, client: ClientIndex) -> &Client {
        &self.clients[client]
    }

    /// How many clients there are.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// How many servers there are.
    pub fn servers(&self) -> usize {
        self.servers.len()
    }

    /// A server's state.
    pub fn view(&self, server: ServerIndex) -> View {
        self.servers[server].core.view()
    }

    /// Why a server gave up, if it did.
    pub fn given_up(&self, server: ServerIndex) -> Option<&GiveUp> {
        self.servers[server].given_up.as_ref()
    }

    /// Lets virtual time pass.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.next_event().is_some_and(|next| next <= end) {
            self.step();
        }
        self.now = end;
    }

    /// Runs until something is true.
    ///
    /// # Panics
    /// When it is not within `limit` of virtual time.
    pub fn run_until(&mut self, what: &str, limit: Duration, mut is_true: impl FnMut(&Self) -> bool) {
        let end = self.now + limit;
        while !is_true(self) {
            assert!(self.next_event().is_some_and(|next| next <= end), "not within {limit:?}: {what}");
            self.step();
        }
    }

    fn next_event(&self) -> Option<Instant> {
        let arrival = self.in_flight.keys().next().map(|(at, _)| *at);
        self.deadlines.first().map(|(deadline, _)| *deadline).into_iter().chain(arrival).min()
    }

    /// Goes to the next thing that happens, and lets it happen.
    fn step(&mut self) {
        let Some(next) = self.next_event() else { return };
        self.now = self.now.max(next);
        if let Some(entry) = self.in_flight.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let delivery = entry.remove();
            self.deliver(delivery);
        } else if let Some((_, server)) = self.deadlines.first().copied() {
            self.handle(server, Event::DeadlinePassed);
        }
    }

    fn deliver(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Wire { wire, to, parcel } => self.deliver_parcel(wire, to, parcel),
            Delivery::Server { server, incarnation, event } => {
                let entry = &mut self.servers[server];
                if entry.is_frozen {
                    entry.frozen_inbox.push(Delivery::Server { server, incarnation, event });
                } else if entry.is_alive && entry.incarnation == incarnation {
                    self.handle(server, event);
                }
            }
            Delivery::Dial { from, incarnation, attempt, to } => self.deliver_dial(from, incarnation, attempt, to),
        }
    }

    fn deliver_parcel(&mut self, wire: WireIndex, to: Side, parcel: Parcel) {
        if self.wires[wire].is_cut {
            return;
        }
        match (self.wires[wire].ends[&to], parcel) {
            (Party::Server(server, connection), parcel) => {
                if self.servers[server].wires.get(&connection) != Some(&(wire, to)) {
                    return;
                }
                if self.servers[server].is_frozen {
                    self.servers[server].frozen_inbox.push(Delivery::Wire { wire, to, parcel });
                    return;
                }
                match parcel {
                    Parcel::Line(line) => {
                        let line = ReceivedLine::read(line.slice(..line.len() - 1));
                        self.handle(server, Event::Received { connection, line });
                    }
                    Parcel::End => {
                        self.unplug(server, connection);
                        self.handle(server, Event::Closed { connection, reason: CloseReason::PeerClosed });
                    }
                }
            }
            (Party::Client(client), parcel) if self.clients[client].wire == Some((wire, to)) => match parcel {
                Parcel::Line(line) => self.on_client_line(client, &line),
                Parcel::End => self.clients[client].wire = None,
            },
            (Party::Client(_), _) => {}
        }
    }

    /// A connection is made, refused, or never answered. A frozen server's operating system accepts all the same.
    fn deliver_dial(&mut self, from: ServerIndex, incarnation: u64, attempt: AttemptId, to: Option<ServerIndex>) {
        let dialler = &self.servers[from];
        if !dialler.is_alive || dialler.incarnation != incarnation {
            return;
        }
        let Some(to) = to.filter(|to| *to < self.servers.len() && self.is_alive(*to)) else {
            return self.deliver(Delivery::Server { server: from, incarnation, event: Event::DialFailed { attempt } });
        };
        if self.cuts.contains(&(from, to)) || self.cuts.contains(&(to, from)) {
            return;
        }
        let wire = self.wires.len();
        let dialler = self.plug(from, wire, Side::Dialler);
        let acceptor = self.plug(to, wire, Side::Acceptor);
        self.wire(Party::Server(from, dialler), Party::Server(to, acceptor));
        let accepted = Event::Accepted { connection: acceptor };
        self.deliver(Delivery::Server { server: to, incarnation: self.servers[to].incarnation, event: accepted });
        let dialled = Event::Dialled { connection: dialler, attempt: Some(attempt) };
        self.deliver(Delivery::Server { server: from, incarnation, event: dialled });
    }

    fn on_client_line(&mut self, client: ClientIndex, line: &Bytes) {
        let message = Message::parse(&line.slice(..line.len() - 1)).expect("servers send valid messages");
        match &message {
            Message::ActivityBroadcast { activity, .. } => {
                let (author, number) = author_and_number(activity);
                self.invariants.on_activity(client, &author, number);
                self.clients[client].activities.push((author, number));
                return;
            }
            Message::RegisterSuccess { .. } => {
                let credentials = self.clients[client].registering.take().expect("it registered");
                self.invariants.on_registered(&credentials);
            }
            Message::LoginSuccess { .. } => {
                if let Some(Message::Login { username, secret: Some(secret), .. }) = &self.clients[client].login {
                    self.invariants.on_login(username, secret);
                }
            }
            Message::Redirect { port, .. } => {
                let (server, login) = (usize::from(*port) - 1, self.clients[client].login.clone());
                self.disconnect(client);
                self.connect(client, server);
                self.send(client, login.expect("it logged in"));
            }
            _ => {}
        }
        self.clients[client].answers.push(message);
    }

    fn handle(&mut self, server: ServerIndex, event: Event) {
        let mut actions = Vec::new();
        let parent = self.servers[server].core.parent_id().map(str::to_owned);
        self.servers[server].core.handle(self.now, event, &mut actions);
        let deadline = self.servers[server].core.next_deadline();
        self.schedule(server, deadline);
        for action in actions {
            self.carry_out(server, action);
        }
        if parent.as_deref() != self.servers[server].core.parent_id() {
            self.check_tree();
        }
    }

    fn carry_out(&mut self, server: ServerIndex, action: Action) {
        let wire_of = |cluster: &Self, connection| cluster.servers[server].wires.get(&connection).copied();
        match action {
            Action::Send { connection, line } => {
                if let Some((wire, side)) = wire_of(self, connection) {
                    self.transmit(wire, side, Parcel::Line(line));
                }
            }
            Action::Subscribe { connection, .. } => {
                self.servers[server].subscribers.insert(connection);
                self.check_relay();
            }
            Action::Publish { publication, from } => {
                let mut line = BytesMut::new();
                publication.write_to(&mut line);
                let line = line.freeze();
                let receivers = self.servers[server].subscribers.iter().filter(|receiver| Some(**receiver) != from);
                for receiver in receivers.copied().collect::<Vec<_>>() {
                    if let Some((wire, side)) = wire_of(self, receiver) {
                        self.transmit(wire, side, Parcel::Line(line.clone()));
                    }
                }
            }
            Action::Close { connection, .. } => {
                if let Some((wire, side)) = wire_of(self, connection) {
                    self.transmit(wire, side, Parcel::End);
                }
                self.unplug(server, connection);
            }
            Action::AskMasters { attempt } => self.ask_masters(server, attempt),
            Action::Dial { attempt, target } => {
                let incarnation = self.servers[server].incarnation;
                let to = usize::from(target.port).checked_sub(1);
                self.arrive_later(Delivery::Dial { from: server, incarnation, attempt, to });
            }
            Action::HashSecret { task, secret } => {
                self.answer(server, Event::SecretHashed { task, hash: Some(fake_hash(&secret)) });
            }
            Action::VerifySecret { task, secret, hash } => {
                self.answer(server, Event::SecretVerified { task, is_right: fake_hash(&secret) == hash });
            }
            Action::WriteUsers { write, changes } => {
                let error = self.servers[server].is_disk_full.then(|| "no space left".to_owned());
                if error.is_none() {
                    self.write_to_disk(server, changes);
                }
                self.answer(server, Event::UsersWritten { write, error });
            }
            Action::Drained => self.crash(server),
            Action::GiveUp(why) => self.servers[server].given_up = Some(why),
        }
    }

    /// Something that a server asked for is done, after a while.
    fn answer(&mut self, server: ServerIndex, event: Event) {
        let incarnation = self.servers[server].incarnation;
        self.arrive_later(Delivery::Server { server, incarnation, event });
    }

    fn write_to_disk(&mut self, server: ServerIndex, changes: Vec<UserChange>) {
        let disk = &mut self.servers[server].disk;
        for change in changes {
            match change {
                UserChange::Put(record) => drop(disk.insert(record.username.clone(), record)),
                UserChange::Remove(username) => drop(disk.remove(&username)),
            }
        }
    }

    /// The masters' answer. Half of the time it is mostly wrong, dead servers and the asker's own subtree among it: advice
    /// must never do harm. The other half it is right, so that runs get on.
    fn ask_masters(&mut self, server: ServerIndex, attempt: AttemptId) {
        if !self.masters_alive {
            return;
        }
        let target =
            |index: ServerIndex| Target { id: format!("s{index}"), hostname: "sim".into(), port: index as u16 + 1 };
        let candidates = if self.rng.random() {
            (0..3).map(|_| target(self.rng.random_range(0..self.servers.len()))).collect()
        } else {
            self.candidates(server).into_iter().map(target).collect()
        };
        let incarnation = self.servers[server].incarnation;
        let event = Event::MastersAnswered { attempt, candidates };
        self.arrive_later(Delivery::Server { server, incarnation, event });
    }

    /// Live servers with a smaller key and room for another child, the highest in the tree first.
    fn candidates(&self, asker: ServerIndex) -> Vec<ServerIndex> {
        let key = self.servers[asker].core.tree_view().position.key;
        let has_room = |server: &ServerIndex| {
            let entry = &self.servers[*server];
            let max_children = entry.config.extensions.as_ref().map_or(0, |extensions| extensions.max_children);
            let view = entry.core.tree_view();
            entry.is_alive && view.position.key < key && view.children.len() < max_children
        };
        let mut found: Vec<_> = (0..self.servers.len()).filter(has_room).collect();
        found.sort_by_key(|server| self.servers[*server].core.tree_view().position.path.len());
        found.truncate(8);
        found
    }

    fn arrive_later(&mut self, delivery: Delivery) {
        let delay = MAX_DELAY.mul_f64(self.rng.random::<f64>());
        let mut arrival = self.now + delay;
        if let Delivery::Wire { wire, to, .. } = &delivery {
            // Lines of one direction stay in order.
            arrival = arrival.max(self.wires[*wire].busy[to]);
            self.wires[*wire].busy.insert(*to, arrival);
        }
        self.in_flight.insert((arrival, self.next_delivery), delivery);
        self.next_delivery += 1;
    }

    fn transmit(&mut self, wire: WireIndex, from: Side, parcel: Parcel) {
        let to = from.other();
        if let (Parcel::Line(line), Party::Server(..), Party::Server(..)) =
            (&parcel, self.wires[wire].ends[&from], self.wires[wire].ends[&to])
        {
            self.invariants.on_link(wire, line);
        }
        let delivery = Delivery::Wire { wire, to, parcel };
        if let (Party::Server(one, _), Party::Server(other, _)) =
            (self.wires[wire].ends[&from], self.wires[wire].ends[&to])
            && self.cuts.contains(&(one, other))
        {
            self.held.push(delivery);
        } else {
            self.arrive_later(delivery);
        }
    }

    fn wire(&mut self, dialler: Party, acceptor: Party) {
        self.wires.push(Wire {
            ends: BTreeMap::from([(Side::Dialler, dialler), (Side::Acceptor, acceptor)]),
            busy: BTreeMap::from([(Side::Dialler, self.now), (Side::Acceptor, self.now)]),
            is_cut: false,
        });
    }

    fn plug(&mut self, server: ServerIndex, wire: WireIndex, side: Side) -> ConnectionId {
        let connection = ConnectionId(wire as u64);
        self.servers[server].wires.insert(connection, (wire, side));
        connection
    }

    /// Takes a connection off a server. The other end still has it.
    fn unplug(&mut self, server: ServerIndex, connection: ConnectionId) {
        self.servers[server].wires.remove(&connection);
        self.servers[server].subscribers.remove(&connection);
    }
}

/// What hashing a secret makes of it here: nothing that costs anything, in the form of a real hash.
pub fn fake_hash(secret: &Secret) -> String {
    let digits: String = secret.expose().bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$A{digits}")
}

fn index_of(id: &str) -> Option<ServerIndex> {
    id.strip_prefix('s')?.parse().ok()
}

fn author_and_number(activity: &Activity) -> (String, u64) {
    let value: serde_json::Value = serde_json::from_slice(activity.as_bytes()).expect("activities are JSON");
    (value["author"].as_str().unwrap_or_default().to_owned(), value["number"].as_u64().unwrap_or_default())
}
