//! A whole tree in one thread: real cores, virtual time, and a network that delays, cuts and is driven by one seed.
//!
//! Every message is bytes on a wire and parsed where it arrives, so the cores meet exactly what sockets would bring them.
//! The same seed gives the same run. [`Invariants`] looks at every line that crosses a wire.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use arborcast_core::{Action, CloseReason, Config, ConnectionId, Event, GiveUp, Node, ReceivedLine, View};
use arborcast_proto::wire::{Activity, Credentials, Message};
use bytes::{Bytes, BytesMut};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::invariants::Invariants;

/// The cluster secret of every simulated tree.
pub const CLUSTER_SECRET: &str = "secret of the tree";

/// Longest time a line may take over a wire; each takes a random part of it, in order for each direction.
const MAX_DELAY: Duration = Duration::from_millis(200);

/// A simulated server, in the order of [`Cluster::add_server`].
pub type ServerIndex = usize;
/// A simulated client, in the order of [`Cluster::add_client`].
pub type ClientIndex = usize;
type WireIndex = usize;

/// Servers, clients and the wires between them.
pub struct Cluster {
    now: Instant,
    /// The one source of randomness of a run.
    pub rng: StdRng,
    servers: Vec<Server>,
    clients: Vec<Client>,
    wires: Vec<Wire>,
    in_flight: BTreeMap<(Instant, u64), Delivery>,
    next_delivery: u64,
    /// What must hold whatever happens.
    pub invariants: Invariants,
}

struct Server {
    core: Node,
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

struct Delivery {
    wire: WireIndex,
    to: Side,
    parcel: Parcel,
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
        Self {
            now: Instant::now(),
            rng: StdRng::seed_from_u64(seed),
            servers: Vec::new(),
            clients: Vec::new(),
            wires: Vec::new(),
            in_flight: BTreeMap::new(),
            next_delivery: 0,
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
        let config = Config::new(format!("s{index}"), "sim", index as u16 + 1, CLUSTER_SECRET.into());
        self.servers.push(Server {
            core: Node::new(config, self.now),
            wires: BTreeMap::new(),
            subscribers: BTreeSet::new(),
            given_up: None,
        });
        if let Some(parent) = parent {
            let wire = self.wires.len();
            let dialler = self.plug(index, wire, Side::Dialler);
            let acceptor = self.plug(parent, wire, Side::Acceptor);
            self.wire(Party::Server(index, dialler), Party::Server(parent, acceptor));
            self.handle(parent, Event::Accepted { connection: acceptor });
            self.handle(index, Event::Dialled { connection: dialler });
        }
        index
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
        self.send(client, Message::ActivityMessage { username: "anonymous".into(), secret: None, activity });
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
        self.servers.iter().filter_map(|server| server.core.next_deadline()).chain(arrival).min()
    }

    /// Goes to the next thing that happens, and lets it happen.
    fn step(&mut self) {
        let Some(next) = self.next_event() else { return };
        self.now = self.now.max(next);
        if let Some(entry) = self.in_flight.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let delivery = entry.remove();
            self.deliver(delivery);
        }
        for server in 0..self.servers.len() {
            if self.servers[server].core.next_deadline().is_some_and(|deadline| deadline <= self.now) {
                self.handle(server, Event::DeadlinePassed);
            }
        }
    }

    fn deliver(&mut self, delivery: Delivery) {
        let Delivery { wire, to, parcel } = delivery;
        if self.wires[wire].is_cut {
            return;
        }
        match (self.wires[wire].ends[&to], parcel) {
            (Party::Server(server, connection), Parcel::Line(line)) => {
                let line = ReceivedLine::read(line.slice(..line.len() - 1));
                self.handle(server, Event::Received { connection, line });
            }
            (Party::Server(server, connection), Parcel::End) => {
                self.unplug(server, connection);
                self.handle(server, Event::Closed { connection, reason: CloseReason::PeerClosed });
            }
            (Party::Client(client), parcel) if self.clients[client].wire == Some((wire, to)) => match parcel {
                Parcel::Line(line) => self.on_client_line(client, &line),
                Parcel::End => self.clients[client].wire = None,
            },
            (Party::Client(_), _) => {}
        }
    }

    fn on_client_line(&mut self, client: ClientIndex, line: &Bytes) {
        let message = Message::parse(&line.slice(..line.len() - 1)).expect("servers send valid messages");
        match &message {
            Message::ActivityBroadcast { activity } => {
                let (author, number) = author_and_number(activity);
                self.invariants.on_activity(client, &author, number);
                self.clients[client].activities.push((author, number));
                return;
            }
            Message::RegisterSuccess { .. } => {
                let credentials = self.clients[client].registering.take().expect("it registered");
                self.invariants.on_registered(&credentials);
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
        self.servers[server].core.handle(self.now, event, &mut actions);
        for action in actions {
            self.carry_out(server, action);
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
            Action::Subscribe { connection, .. } => drop(self.servers[server].subscribers.insert(connection)),
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
            Action::GiveUp(why) => self.servers[server].given_up = Some(why),
        }
    }

    fn transmit(&mut self, wire: WireIndex, from: Side, parcel: Parcel) {
        let to = from.other();
        if let (Parcel::Line(line), Party::Server(..), Party::Server(..)) =
            (&parcel, self.wires[wire].ends[&from], self.wires[wire].ends[&to])
        {
            self.invariants.on_link(wire, line);
        }
        let delay = MAX_DELAY.mul_f64(self.rng.random::<f64>());
        let arrival = (self.now + delay).max(self.wires[wire].busy[&to]);
        self.wires[wire].busy.insert(to, arrival);
        self.in_flight.insert((arrival, self.next_delivery), Delivery { wire, to, parcel });
        self.next_delivery += 1;
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

    fn unplug(&mut self, server: ServerIndex, connection: ConnectionId) {
        self.servers[server].wires.remove(&connection);
        self.servers[server].subscribers.remove(&connection);
    }
}

fn author_and_number(activity: &Activity) -> (String, u64) {
    let value: serde_json::Value = serde_json::from_slice(activity.as_bytes()).expect("activities are JSON");
    (value["author"].as_str().unwrap_or_default().to_owned(), value["number"].as_u64().unwrap_or_default())
}
