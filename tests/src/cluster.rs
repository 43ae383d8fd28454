//! A whole tree in one thread: real cores, virtual time, and a network that delays, cuts and is driven by one seed.
//!
//! Every message is bytes on a wire and parsed from them, so the cores meet exactly what sockets would bring them. The
//! same seed gives the same run. [`Invariants`] looks at every line that crosses a wire; every change of the tree is
//! looked at as well: no cycle, no circle of relaying links, and a reason for every root.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use arborcast_core::relay::{Piece, Source};
use arborcast_core::{
    Action, AtMasters, AttemptId, CloseReason, Config, ConnectionId, Event, Extensions, Form, GiveUp, Node,
    ReceivedLine, RootReason, Told, UserChange, View,
};
use arborcast_master::topology::balance::Balancer;
use arborcast_proto::wire::message::{PLAIN_BROADCAST_HEAD, Target};
use arborcast_proto::wire::{Activity, Credentials, Message, Secret, UserRecord};
use bytes::{Bytes, BytesMut};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::invariants::Invariants;
use crate::resuming::Resuming;
use crate::simulated_masters::{Character, REPORT_INTERVAL, Report, Sighting, SimulatedMaster};

/// The cluster secret of every simulated tree.
pub const CLUSTER_SECRET: &str = "secret of the tree";

/// Longest time a line may take over a wire, unless a run says otherwise; each takes a random part of it, in order for
/// each direction.
const MAX_DELAY: Duration = Duration::from_millis(200);

/// How long a server waits for all masters together, as the shell does.
const MASTERS_PATIENCE: Duration = Duration::from_millis(400);

/// Servers with an index this far beyond the last one don't even refuse a connection.
const NO_ROUTE: ServerIndex = 2;

/// How long a client waits to be logged in before it goes elsewhere.
const CLIENT_PATIENCE: Duration = Duration::from_secs(3);
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
    /// Those that nobody can dial, while they can dial others, as behind an address translation.
    unreachable: BTreeSet<ServerIndex>,
    /// The side of a partition that each server is on. Nothing gets from one side to another.
    sides: Vec<usize>,
    /// What is held up by a cut.
    held: Vec<Delivery>,
    /// Whether any master answers.
    pub masters_alive: bool,
    /// Longest time a line may take over a wire.
    pub max_delay: Duration,
    /// How often the extended servers that are started from now on announce themselves: hardly ever, unless a run says
    /// otherwise.
    pub announce_interval: Duration,
    masters: Vec<SimulatedMaster>,
    /// Whether the extended servers that are started from now on let masters tell them of the others.
    pub have_masters: bool,
    /// The users that masters keep, where servers are told so, and whether they can be asked.
    pub kept_users: BTreeMap<String, UserRecord>,
    /// Whether the masters can be asked for users.
    pub keepers_alive: bool,
    /// Whether servers have begun to report to masters.
    is_reporting: bool,
    parent_changes: u64,
    /// How many moves masters have proposed.
    proposals: u64,
    /// How many servers were on their way to a proposed parent at the same time.
    most_moving: usize,
    /// The last line that was sent, read: a flood sends the same one over many wires.
    last_line: Option<(Bytes, Rc<ReceivedLine>)>,
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
    /// The parent that it had when it was last looked at.
    parent: Option<ServerIndex>,
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
    subscribers: BTreeMap<ConnectionId, (Form, bool)>,
    /// The broadcast log of the extended form, by where each line begins; nothing is ever forgotten here.
    log: BTreeMap<u64, Bytes>,
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
    /// What it keeps if it is one of extended sessions.
    resuming: Option<Resuming>,
    /// Since when it has been waiting to be logged in.
    waits_since: Option<Instant>,
}

/// One end of a wire; also the index of what belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Dialler = 0,
    Acceptor = 1,
}

#[derive(Debug, Clone, Copy)]
enum Party {
    Server(ServerIndex, ConnectionId),
    Client(ClientIndex),
}

struct Wire {
    ends: [Party; 2],
    /// Until when the direction to each side is busy, so that lines stay in order.
    busy: [Instant; 2],
    /// Whether it is lost, with all that was on its way.
    is_cut: bool,
}

enum Delivery {
    /// Something sent over a wire.
    Wire { wire: WireIndex, to: Side, parcel: Parcel },
    /// Something else that a server learns, if it is still the same run.
    Server { server: ServerIndex, incarnation: u64, event: Event },
    /// A connection that a server asked for, to nobody if there is no such address.
    Dial { from: ServerIndex, incarnation: u64, attempt: AttemptId, to: Option<ServerIndex> },
    /// All servers report to the masters.
    Reports,
}

enum Parcel {
    Line(Rc<ReceivedLine>),
    End,
    /// The wire is lost, and this end notices.
    Reset,
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
        self.wire.is_some()
            && self.waits_since.is_none()
            && matches!(self.answers.last(), Some(Message::LoginSuccess { .. }))
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
            unreachable: BTreeSet::new(),
            sides: Vec::new(),
            held: Vec::new(),
            masters_alive: true,
            max_delay: MAX_DELAY,
            announce_interval: Duration::from_secs(3600),
            // Half of its advice is wrong: that must never do harm.
            kept_users: BTreeMap::new(),
            keepers_alive: true,
            masters: vec![SimulatedMaster::new(Character { lies: 0.5, ..Character::honest() })],
            have_masters: true,
            is_reporting: false,
            parent_changes: 0,
            proposals: 0,
            most_moving: 0,
            last_line: None,
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
        let extensions = self.extensions(max_children);
        self.add_extended_server_with(extensions)
    }

    /// The same, and it asks the server at this address first, if one is given.
    pub fn add_extended_server_below(&mut self, max_children: usize, parent: Option<(String, u16)>) -> ServerIndex {
        let extensions = Extensions { parent, ..self.extensions(max_children) };
        self.start_extended(extensions, Duration::from_secs(20))
    }

    /// The same, and it registers names at the masters.
    pub fn add_extended_server_at_masters(&mut self, max_children: usize) -> ServerIndex {
        let extensions = Extensions { users_at_masters: true, ..self.extensions(max_children) };
        self.start_extended(extensions, Duration::from_secs(20))
    }

    /// The same, and it goes back below the server at the place `preferred` whenever that would take it in.
    pub fn add_homing_server(&mut self, max_children: usize, preferred: ServerIndex) -> ServerIndex {
        let parent = Some(("sim".to_owned(), preferred as u16 + 1));
        let extensions = Extensions { parent, prefer_parent: true, ..self.extensions(max_children) };
        // A configured parent that does not answer is given two intervals.
        self.start_extended(extensions, Duration::from_secs(20))
    }

    /// The same, with these settings.
    pub fn add_extended_server_with(&mut self, extensions: Extensions) -> ServerIndex {
        self.start_extended(extensions, self.announce_interval)
    }

    fn extensions(&mut self, max_children: usize) -> Extensions {
        // Seldom enough that long runs are short.
        Extensions {
            heartbeat_interval: Duration::from_secs(1),
            heartbeat_timeout: Duration::from_secs(3),
            max_children,
            keeps_users: true,
            ..Extensions::new(1, self.rng.random())
        }
    }

    fn start_extended(&mut self, extensions: Extensions, announce_interval: Duration) -> ServerIndex {
        let index = self.servers.len();
        let extensions = Extensions { has_masters: self.have_masters, ..extensions };
        let config = Config::new(format!("s{index}"), "sim", index as u16 + 1, CLUSTER_SECRET.into());
        self.start(Config { extensions: Some(extensions), announce_interval, ..config });
        if !std::mem::replace(&mut self.is_reporting, true) {
            self.arrive_at(self.now, Delivery::Reports);
        }
        index
    }

    /// Takes these masters instead of those that are there.
    pub fn set_masters(&mut self, characters: impl IntoIterator<Item = Character>) {
        self.masters = characters.into_iter().map(SimulatedMaster::new).collect();
    }

    /// Adds a master.
    pub fn add_master(&mut self, character: Character) {
        self.masters.push(SimulatedMaster::new(character));
    }

    /// From now on the masters propose moves that make trees shallower, as real ones do. One that lies makes some up.
    pub fn balance(&mut self) {
        for master in &mut self.masters {
            master.balancer = Some(Balancer::default());
        }
    }

    /// How many moves masters have proposed.
    pub fn proposals(&self) -> u64 {
        self.proposals
    }

    /// How many servers were on their way to a proposed parent at the same time, at most.
    pub fn most_moving(&self) -> usize {
        self.most_moving
    }

    /// What became of proposals at all servers, by name.
    pub fn move_outcomes(&self) -> BTreeMap<&'static str, u64> {
        let mut outcomes = BTreeMap::new();
        for (outcome, number) in self.servers.iter().flat_map(|server| server.core.status().counters.moves) {
            *outcomes.entry(outcome).or_default() += number;
        }
        outcomes
    }

    /// The largest distance of a live server from its root.
    pub fn depth(&self) -> usize {
        let above = |server: ServerIndex| std::iter::successors(self.parent(server), |at| self.parent(*at)).count();
        (0..self.servers.len()).filter(|server| self.is_alive(*server)).map(above).max().unwrap_or(0)
    }

    /// How many masters there are, dead ones included.
    pub fn masters(&self) -> usize {
        self.masters.len()
    }

    /// Whether a master runs.
    pub fn is_master_alive(&self, master: usize) -> bool {
        self.masters[master].is_alive
    }

    /// Kills a master.
    pub fn crash_master(&mut self, master: usize) {
        self.masters[master].crash();
    }

    /// Starts a dead master again. It knows nothing.
    pub fn restart_master(&mut self, master: usize) {
        self.masters[master].is_alive = true;
    }

    /// From now on a server and a master don't reach each other.
    pub fn cut_from_master(&mut self, server: ServerIndex, master: usize) {
        self.masters[master].cut_off.insert(server);
    }

    fn start(&mut self, mut config: Config) {
        let clock = 1_800_000_000_000 + self.rng.random_range(0..MAX_CLOCK_SKEW);
        if let Some(extensions) = &mut config.extensions {
            extensions.milliseconds_since_1970 = self.clock_at(clock);
        }
        let core = Node::new(config.clone(), self.now);
        let deadline = core.next_deadline();
        self.deadlines.extend(deadline.map(|deadline| (deadline, self.servers.len())));
        self.sides.push(0);
        self.servers.push(Server {
            core,
            config,
            incarnation: 1,
            is_alive: true,
            is_frozen: false,
            parent: None,
            clock,
            disk: BTreeMap::new(),
            is_disk_full: false,
            frozen_inbox: Vec::new(),
            deadline,
            wires: BTreeMap::new(),
            subscribers: BTreeMap::new(),
            log: BTreeMap::new(),
            given_up: None,
        });
    }

    /// What a clock shows that showed this at the beginning.
    fn clock_at(&self, beginning: u64) -> u64 {
        beginning + u64::try_from((self.now - self.began).as_millis()).expect("runs are shorter than that")
    }

    /// Kills a server: its peers see their connections reset, if they can. What it has sent last may not have left it.
    pub fn crash(&mut self, server: ServerIndex) {
        let wires: Vec<_> = self.servers[server].wires.values().copied().collect();
        for (wire, side) in wires {
            let is_sent = |delivery: &Delivery| matches!(delivery, Delivery::Wire { wire: on, to, .. } if *on == wire && *to == side.other());
            let sent: Vec<_> = self.in_flight.iter().filter(|(_, it)| is_sent(it)).map(|(at, _)| *at).collect();
            for at in sent.into_iter().skip(self.rng.random_range(0..10)) {
                self.in_flight.remove(&at);
            }
        }
        self.end(server);
    }

    /// A server is gone, and its peers see the end of their connections.
    fn end(&mut self, server: ServerIndex) {
        self.servers[server].is_alive = false;
        self.servers[server].is_frozen = false;
        self.servers[server].frozen_inbox.clear();
        self.schedule(server, None);
        for (wire, side) in std::mem::take(&mut self.servers[server].wires).into_values() {
            self.transmit(wire, side, Parcel::End);
        }
        self.servers[server].subscribers.clear();
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
        entry.log.clear();
        entry.incarnation = incarnation;
        entry.is_alive = true;
        entry.parent = None;
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

    /// From now on nobody can dial this server; it can dial others.
    pub fn hide(&mut self, server: ServerIndex) {
        self.unreachable.insert(server);
    }

    /// From now on nothing gets from one side to another, until the cuts heal. Masters are on a side as well.
    pub fn partition(
        &mut self,
        side_of_server: impl FnMut(ServerIndex) -> usize,
        side_of_master: impl FnMut(usize) -> usize,
    ) {
        self.sides = (0..self.servers.len()).map(side_of_server).collect();
        for (side, master) in (0..self.masters.len()).map(side_of_master).zip(&mut self.masters) {
            master.side = side;
        }
    }

    /// Everything gets through again.
    pub fn heal_cuts(&mut self) {
        self.cuts.clear();
        self.sides.fill(0);
        for master in &mut self.masters {
            master.side = 0;
            master.cut_off.clear();
        }
        for delivery in std::mem::take(&mut self.held) {
            self.arrive_later(delivery);
        }
    }

    fn is_cut(&self, from: ServerIndex, to: ServerIndex) -> bool {
        self.sides[from] != self.sides[to] || self.cuts.contains(&(from, to))
    }

    /// Some connection of a server to another one is lost while both live, with all that is on its way. Both notice.
    pub fn reset_link(&mut self, server: ServerIndex) {
        let is_link = |wire: WireIndex| self.wires[wire].ends.iter().all(|end| matches!(end, Party::Server(..)));
        let links: Vec<WireIndex> =
            self.servers[server].wires.values().map(|(wire, _)| *wire).filter(|wire| is_link(*wire)).collect();
        if links.is_empty() {
            return;
        }
        let wire = links[self.rng.random_range(0..links.len())];
        self.wires[wire].is_cut = true;
        for to in [Side::Dialler, Side::Acceptor] {
            self.arrive_later(Delivery::Wire { wire, to, parcel: Parcel::Reset });
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

    /// The parent of a server, as far as it knows.
    pub fn parent(&self, server: ServerIndex) -> Option<ServerIndex> {
        self.servers[server].parent
    }

    /// How often a server has got another parent, or lost it.
    pub fn parent_changes(&self) -> u64 {
        self.parent_changes
    }

    /// The live servers that have no parent.
    pub fn roots(&self) -> Vec<ServerIndex> {
        let is_root = |server: &ServerIndex| self.is_alive(*server) && self.parent(*server).is_none();
        (0..self.servers.len()).filter(is_root).collect()
    }

    /// The server that another one prefers as its parent.
    fn preferred(&self, server: ServerIndex) -> Option<ServerIndex> {
        let extensions = self.servers[server].config.extensions.as_ref().filter(|own| own.prefer_parent)?;
        let (_, port) = extensions.parent.as_ref()?;
        usize::from(*port).checked_sub(1)
    }

    /// Whether a server is below the one that it prefers.
    pub fn is_home(&self, server: ServerIndex) -> bool {
        self.is_alive(server) && self.parent(server).is_some() && self.parent(server) == self.preferred(server)
    }

    /// Whether a server prefers one that lives, has room, and is not below it.
    pub fn could_go_home(&self, server: ServerIndex) -> bool {
        let Some(preferred) = self.preferred(server).filter(|_| self.is_alive(server)) else { return false };
        let (children, max_children) = self.children(preferred);
        self.is_alive(preferred) && children < max_children && !self.is_below(preferred, server)
    }

    /// Whether a server is below another one, however far.
    pub fn is_below(&self, server: ServerIndex, above: ServerIndex) -> bool {
        std::iter::successors(self.parent(server), |at| self.parent(*at)).any(|at| at == above)
    }

    /// How many children a server has, and how many it takes.
    pub fn children(&self, server: ServerIndex) -> (usize, usize) {
        let entry = &self.servers[server];
        let max_children = entry.config.extensions.as_ref().map_or(0, |extensions| extensions.max_children);
        (entry.core.tree_view().children.len(), max_children)
    }

    /// Whether all live servers are one tree in which parents and children agree.
    pub fn is_one_tree(&self) -> bool {
        let live: Vec<_> = (0..self.servers.len()).filter(|server| self.is_alive(*server)).collect();
        self.complaint_about(&live).is_none()
    }

    /// What keeps the live servers of each side of the network from being one tree, if anything.
    pub fn complaint(&self) -> Option<String> {
        let mut groups: BTreeMap<usize, Vec<ServerIndex>> = BTreeMap::new();
        for server in (0..self.servers.len()).filter(|server| self.is_alive(*server)) {
            groups.entry(self.sides[server]).or_default().push(server);
        }
        groups.values().find_map(|group| self.complaint_about(group))
    }

    /// What keeps a group of live servers from being one tree in which parents and children agree, if anything.
    fn complaint_about(&self, group: &[ServerIndex]) -> Option<String> {
        let roots: Vec<_> = group.iter().copied().filter(|server| self.parent(*server).is_none()).collect();
        let [root] = roots[..] else {
            let reasons = roots.iter().map(|root| format!("{root} ({:?})", self.root_reason(*root)));
            return (!group.is_empty()).then(|| format!("the roots are {}", reasons.collect::<Vec<_>>().join(", ")));
        };
        let top = self.servers[root].core.tree_view().position;
        let mut below: BTreeMap<ServerIndex, BTreeSet<String>> =
            group.iter().map(|server| (*server, BTreeSet::new())).collect();
        for (child, parent) in group.iter().filter_map(|child| Some((*child, self.parent(*child)?))) {
            match below.get_mut(&parent) {
                Some(children) => drop(children.insert(self.servers[child].config.id.clone())),
                None => return Some(format!("server {child} is below {parent}, which is dead or cut off")),
            }
        }
        group.iter().find_map(|server| {
            let view = self.servers[*server].core.tree_view();
            let above = self.parent(*server).map(|parent| self.servers[parent].core.tree_view().position.path);
            if view.children != below[server] {
                Some(format!(
                    "server {server} has the children {:?}, and is the parent of {:?}",
                    view.children, below[server]
                ))
            } else if view.position.key != top.key {
                Some(format!("server {server} has the key {:?}, the root {:?}", view.position.key, top.key))
            } else if view.position.path.split_last().map(|(_, path)| path) != Some(&above.unwrap_or_default()[..]) {
                Some(format!("server {server} has the path {:?}", view.position.path))
            } else {
                None
            }
        })
    }

    /// Why a server that speaks the extensions is a root, if it is one.
    pub fn root_reason(&self, server: ServerIndex) -> Option<RootReason> {
        self.servers[server].core.root_reason()
    }

    /// Whatever happens, following parents never leads back. Only a server whose parent has changed can have closed a
    /// cycle. Panics when it has.
    fn check_cycle(&mut self, start: ServerIndex) {
        self.invariants.observations += 1;
        let mut at = start;
        while let Some(parent) = self.parent(at).filter(|_| self.is_alive(at)) {
            at = parent;
            assert!(at != start, "a cycle above server {start}");
        }
    }

    /// Every server has a parent, or a reason to have none. Panics otherwise.
    fn check_place(&mut self, server: ServerIndex) {
        let core = &self.servers[server].core;
        let has_parent = core.parent_id().is_some();
        assert!(has_parent != core.root_reason().is_some(), "server {server} has no parent and does not look for one");
    }

    /// The links over which both ends relay never form a circle, in which an activity would go round for ever. Only a
    /// link that has come up can have closed one. Panics when it has.
    fn check_relay(&mut self, server: ServerIndex, connection: ConnectionId) {
        self.invariants.observations += 1;
        let Some((new, _)) = self.servers[server].wires.get(&connection).copied() else { return };
        let Some(end) = self.relay_neighbour(server, connection) else { return };
        let (mut reached, mut open) = (BTreeSet::from([server]), vec![server]);
        while let Some(at) = open.pop() {
            for next in self.servers[at].subscribers.keys() {
                let is_new = self.servers[at].wires.get(next).is_some_and(|(wire, _)| *wire == new);
                if !is_new && let Some(neighbour) = self.relay_neighbour(at, *next) {
                    assert!(neighbour != end, "activities go round over the link between servers {server} and {end}");
                    if reached.insert(neighbour) {
                        open.push(neighbour);
                    }
                }
            }
        }
    }

    /// The server at the other end of a connection, if both ends relay over it.
    fn relay_neighbour(&self, server: ServerIndex, connection: ConnectionId) -> Option<ServerIndex> {
        let (wire, side) = *self.servers[server].wires.get(&connection)?;
        match self.wires[wire].ends[side.other() as usize] {
            Party::Server(other, there) if self.servers[other].subscribers.contains_key(&there) => Some(other),
            _ => None,
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
        let line = self.read(&message.to_line());
        match message {
            Message::Login { .. } => self.clients[client].login = Some(message),
            Message::Register { credentials, .. } => self.clients[client].registering = Some(credentials),
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

    /// Connects a client that asks for an extended session, and comes back when it loses its server.
    pub fn add_resuming_client(&mut self, server: ServerIndex) -> ClientIndex {
        let resuming = Some(Resuming::new(&format!("session {}", self.clients.len())));
        self.clients.push(Client { resuming, ..Client::default() });
        let client = self.clients.len() - 1;
        self.log_in_resuming(client, server);
        client
    }

    fn log_in_resuming(&mut self, client: ClientIndex, server: ServerIndex) {
        if !self.is_alive(server) {
            return;
        }
        self.connect(client, server);
        self.clients[client].waits_since = Some(self.now);
        if let Some(login) = self.clients[client].resuming.as_ref().map(Resuming::login) {
            self.send(client, login);
        }
    }

    /// Publishes the client's next numbered activity, to be sent again until it is acknowledged.
    pub fn publish_numbered(&mut self, client: ClientIndex) {
        let is_in = self.clients[client].is_in();
        let entry = &mut self.clients[client];
        let activity = Activity::parse(&format!(r#"{{"author":"c{client}","number":{}}}"#, entry.published)).unwrap();
        entry.published += 1;
        let message = entry.resuming.as_mut().expect("a client of extended sessions").publish(activity);
        if is_in {
            self.send(client, message);
        }
    }

    /// Clients that have lost their server, or wait for one that is frozen, go to another.
    pub fn tend_resuming_clients(&mut self) {
        for client in 0..self.clients.len() {
            if self.clients[client].resuming.is_none() {
                continue;
            }
            let has_waited = self.clients[client].waits_since.is_some_and(|since| self.now - since > CLIENT_PATIENCE);
            let is_at_frozen = self.server_of(client).is_some_and(|server| self.is_frozen(server));
            if has_waited || (is_at_frozen && self.rng.random_bool(0.1)) {
                self.disconnect(client);
            }
            if self.clients[client].wire.is_none() {
                let server = self.rng.random_range(0..self.servers.len());
                self.log_in_resuming(client, server);
            }
        }
    }

    fn server_of(&self, client: ClientIndex) -> Option<ServerIndex> {
        let (wire, side) = self.clients[client].wire?;
        match self.wires[wire].ends[side.other() as usize] {
            Party::Server(server, _) => Some(server),
            Party::Client(_) => None,
        }
    }

    /// The clients of extended sessions.
    pub fn resuming_clients(&self) -> Vec<ClientIndex> {
        (0..self.clients.len()).filter(|client| self.clients[*client].resuming.is_some()).collect()
    }

    /// Whether every client of extended sessions is logged in.
    pub fn are_all_resuming_in(&self) -> bool {
        self.clients.iter().filter(|client| client.resuming.is_some()).all(Client::is_in)
    }

    /// Whether everything that such clients have published is acknowledged.
    pub fn is_all_acknowledged(&self) -> bool {
        self.clients.iter().filter_map(|client| client.resuming.as_ref()).all(Resuming::is_all_acknowledged)
    }

    /// How many activities such a client was told are gone.
    pub fn missed_by(&self, client: ClientIndex) -> u64 {
        self.clients[client].resuming.as_ref().map_or(0, |resuming| resuming.missed)
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
        for end in self.wires[wire].ends {
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

    /// How much virtual time has passed.
    pub fn elapsed(&self) -> Duration {
        self.now - self.began
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

    /// Runs until the live servers of each side are one tree, looking every now and then.
    ///
    /// # Panics
    /// When they are not within `limit` of virtual time.
    pub fn run_until_trees(&mut self, limit: Duration) {
        let end = self.now + limit;
        while let Some(complaint) = self.complaint() {
            assert!(self.now < end, "not within {limit:?} one tree in each connected part: {complaint}");
            self.run_for(Duration::from_millis(100));
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
            Delivery::Reports => self.report_to_masters(),
        }
    }

    fn deliver_parcel(&mut self, wire: WireIndex, to: Side, parcel: Parcel) {
        if self.wires[wire].is_cut && !matches!(parcel, Parcel::Reset) {
            return;
        }
        match (self.wires[wire].ends[to as usize], parcel) {
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
                        let line = Rc::unwrap_or_clone(line);
                        self.handle(server, Event::Received { connection, line });
                    }
                    Parcel::End | Parcel::Reset => {
                        let is_reset = matches!(parcel, Parcel::Reset);
                        let reason = if is_reset { CloseReason::Failed } else { CloseReason::PeerClosed };
                        self.unplug(server, connection);
                        self.handle(server, Event::Closed { connection, reason });
                    }
                }
            }
            (Party::Client(client), parcel) if self.clients[client].wire == Some((wire, to)) => match parcel {
                Parcel::Line(line) => self.on_client_line(client, Rc::unwrap_or_clone(line)),
                Parcel::End | Parcel::Reset => self.clients[client].wire = None,
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
        if to.is_some_and(|to| to >= self.servers.len() + NO_ROUTE) {
            return;
        }
        let Some(to) = to.filter(|to| *to < self.servers.len() && self.is_alive(*to)) else {
            return self.deliver(Delivery::Server { server: from, incarnation, event: Event::DialFailed { attempt } });
        };
        if self.is_cut(from, to) || self.is_cut(to, from) || self.unreachable.contains(&to) {
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

    fn on_client_line(&mut self, client: ClientIndex, line: ReceivedLine) {
        let message = line.message.expect("servers send valid messages");
        match &message {
            Message::ActivityBroadcast { relay, activity } => {
                if let Some(resuming) = &mut self.clients[client].resuming
                    && !resuming.is_new(relay.as_ref().expect("activities of extended sessions have names"))
                {
                    return;
                }
                let (author, number) = author_and_number(activity);
                self.invariants.on_activity(client, &author, number);
                self.clients[client].activities.push((author, number));
                return;
            }
            Message::RegisterSuccess { .. } => {
                let credentials = self.clients[client].registering.take().expect("it registered");
                self.invariants.on_registered(&credentials);
            }
            Message::Redirect { port, .. } if self.clients[client].resuming.is_some() => {
                self.disconnect(client);
                self.log_in_resuming(client, usize::from(*port) - 1);
                return;
            }
            Message::Redirect { .. } if !self.clients[client].activities.is_empty() => {
                // What it has got already might come again elsewhere: it asks for nothing but the plain protocol.
                return self.disconnect(client);
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
        if let Some(resuming) = &mut self.clients[client].resuming {
            resuming.handle(&message);
            if !matches!(message, Message::LoginSuccess { .. }) {
                return;
            }
            let again = resuming.again();
            self.clients[client].waits_since = None;
            for message in again {
                self.send(client, message);
            }
        }
        self.clients[client].answers.push(message);
    }

    fn handle(&mut self, server: ServerIndex, event: Event) {
        let mut actions = Vec::new();
        self.servers[server].core.handle(self.now, event, &mut actions);
        let deadline = self.servers[server].core.next_deadline();
        self.schedule(server, deadline);
        for action in actions {
            self.carry_out(server, action);
        }
        let entry = &mut self.servers[server];
        if entry.config.extensions.is_some() && entry.is_alive {
            let parent = entry.core.parent_id().and_then(index_of);
            if std::mem::replace(&mut entry.parent, parent) != parent {
                self.parent_changes += 1;
                self.check_cycle(server);
                let is_moving = |server: &&Server| server.is_alive && server.core.is_moving();
                self.most_moving = self.most_moving.max(self.servers.iter().filter(is_moving).count());
            }
            self.check_place(server);
        }
    }

    fn carry_out(&mut self, server: ServerIndex, action: Action) {
        let wire_of = |cluster: &Self, connection| cluster.servers[server].wires.get(&connection).copied();
        match action {
            Action::Send { connection, line } => {
                if let Some((wire, side)) = wire_of(self, connection) {
                    let line = self.read(&line);
                    self.transmit(wire, side, Parcel::Line(line));
                }
            }
            Action::Subscribe { connection, form, takes_history, .. } => {
                self.servers[server].subscribers.insert(connection, (form, takes_history));
                self.check_relay(server, connection);
            }
            Action::Publish { publication, from } => {
                let mut line = BytesMut::new();
                publication.write_to(&mut line);
                self.publish_line(server, Form::Plain, from.into(), &line.freeze());
            }
            Action::Relay { line, head, source } => {
                let end = self.servers[server].log.last_key_value().map_or(0, |(at, line)| at + line.len() as u64);
                self.servers[server].log.insert(end, line.clone());
                self.publish_line(server, Form::Extended, source, &line);
                if let Some(head) = head {
                    let plain = [PLAIN_BROADCAST_HEAD, &line[head..]].concat().into();
                    self.publish_line(server, Form::Plain, source, &plain);
                }
            }
            Action::Replay { connection, pieces } => {
                let Some((wire, side)) = wire_of(self, connection) else { return };
                for piece in pieces {
                    let lines: Vec<Bytes> = match piece {
                        Piece::Line(line) => vec![line],
                        Piece::Range { start, end } => {
                            let log = &self.servers[server].log;
                            assert!(log.contains_key(&start.0), "a range of the log begins where a line does");
                            log.range(start.0..end.0).map(|(_, line)| line.clone()).collect()
                        }
                    };
                    for line in lines {
                        let line = self.read(&line);
                        self.transmit(wire, side, Parcel::Line(line));
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
                self.answer(server, Event::SecretVerified { task, verdict: Some(fake_hash(&secret) == hash) });
            }
            Action::WriteUsers { write, changes } => {
                let error = self.servers[server].is_disk_full.then(|| "no space left".to_owned());
                if error.is_none() {
                    self.write_to_disk(server, changes);
                }
                self.answer(server, Event::UsersWritten { write, error });
            }
            Action::RegisterUser { record } => {
                let outcome = self.register_at_masters(&record);
                self.answer(server, Event::UserRegistered { record, outcome });
            }
            Action::LookUpUser { task, username } => {
                let user = self.kept_users.get(&username).filter(|_| self.keepers_alive).cloned();
                self.answer(server, Event::UserLookedUp { task, user });
            }
            Action::Drained => self.end(server),
            // Answers are given at once here.
            Action::Forget { .. } => {}
            Action::GiveUp(why) => {
                let entry = &mut self.servers[server];
                assert!(entry.config.extensions.is_none(), "server {server} gives up: {why:?}");
                entry.given_up = Some(why);
            }
        }
    }

    /// Everybody who is subscribed to this form gets the line, but whoever it came from.
    fn publish_line(&mut self, server: ServerIndex, form: Form, source: Source, line: &Bytes) {
        let gets = |(receiver, (of, takes_history)): &(&ConnectionId, &(Form, bool))| {
            *of == form && Some(**receiver) != source.link && (*takes_history || !source.is_history)
        };
        let receivers: Vec<ConnectionId> =
            self.servers[server].subscribers.iter().filter(gets).map(|(receiver, _)| *receiver).collect();
        let line = self.read(line);
        for receiver in receivers {
            if let Some((wire, side)) = self.servers[server].wires.get(&receiver).copied() {
                self.transmit(wire, side, Parcel::Line(line.clone()));
            }
        }
    }

    /// The masters tell every server that runs of all users that they keep, if they keep any and can be asked.
    pub fn tell_of_kept_users(&mut self) {
        if self.keepers_alive && !self.kept_users.is_empty() {
            for server in (0..self.servers.len()).filter(|server| self.is_alive(*server)).collect::<Vec<_>>() {
                let users = self.kept_users.values().cloned().collect();
                self.answer(server, Event::UsersTold { users, told: Told::Whole { is_first: true, is_last: true } });
            }
        }
    }

    /// One moment in the store that masters keep users in. What is added there every server is told of, after a while.
    fn register_at_masters(&mut self, record: &UserRecord) -> AtMasters {
        if !self.keepers_alive {
            return AtMasters::Unknown("no quorum".to_owned());
        }
        if !self.kept_users.contains_key(&record.username) {
            self.kept_users.insert(record.username.clone(), record.clone());
            for server in (0..self.servers.len()).filter(|server| self.is_alive(*server)).collect::<Vec<_>>() {
                self.answer(server, Event::UsersTold { users: vec![record.clone()], told: Told::Added });
            }
        }
        let owner = &self.kept_users[&record.username];
        if owner == record { AtMasters::Registered } else { AtMasters::Taken(Some(owner.clone())) }
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

    /// Asks all masters at once, as the shell does: the first that names somebody counts.
    fn ask_masters(&mut self, server: ServerIndex, attempt: AttemptId) {
        let key = self.servers[server].core.tree_view().position.key;
        let (mut first, mut last, mut all_answered) = (None::<(Duration, Vec<ServerIndex>)>, Duration::ZERO, true);
        for master in self.masters.iter().filter(|_| self.masters_alive) {
            if !self.reaches(server, master) {
                // Refused at once, or nothing comes back.
                all_answered &= self.rng.random::<bool>();
                continue;
            }
            let after = master.character.slowest_answer.mul_f64(self.rng.random());
            let candidates = master.answer(self.now, &mut self.rng, self.servers.len(), server, &key);
            all_answered &= after <= MASTERS_PATIENCE;
            last = last.max(after);
            if !candidates.is_empty() && first.as_ref().is_none_or(|(before, _)| after < *before) {
                first = Some((after, candidates));
            }
        }
        let first = first.filter(|(after, _)| *after <= MASTERS_PATIENCE);
        let (after, candidates) = first.unwrap_or((if all_answered { last } else { MASTERS_PATIENCE }, Vec::new()));
        let event = Event::MastersAnswered { attempt, candidates: candidates.into_iter().map(target).collect() };
        let incarnation = self.servers[server].incarnation;
        self.arrive_at(self.now + after, Delivery::Server { server, incarnation, event });
    }

    fn reaches(&self, server: ServerIndex, master: &SimulatedMaster) -> bool {
        master.is_alive && master.side == self.sides[server] && !master.cut_off.contains(&server)
    }

    /// Every living master gets a report of every server that it can hear of, and tells somebody what it makes of that.
    fn report_to_masters(&mut self) {
        let mut masters = std::mem::take(&mut self.masters);
        let reports: Vec<Sighting> = self.servers.iter().map(Server::sighting).collect();
        for master in masters.iter_mut().filter(|master| master.is_alive) {
            if !self.masters_alive {
                master.forget();
                continue;
            }
            let sighting = |server: ServerIndex| {
                if self.reaches(server, master) { reports[server].clone() } else { Sighting::Silent }
            };
            let sightings: Vec<_> = (0..self.servers.len()).map(sighting).collect();
            master.observe(self.now, sightings.into_iter());
            if let Some((server, candidates)) = master.advice(self.now, &mut self.rng, self.servers.len())
                && self.reaches(server, master)
            {
                let event = Event::Advised { candidates: candidates.into_iter().map(target).collect() };
                let incarnation = self.servers[server].incarnation;
                self.arrive_later(Delivery::Server { server, incarnation, event });
            }
            for (server, least_loaded, others) in master.name(self.now, &mut self.rng, self.servers.len()) {
                if self.reaches(server, master) {
                    let others = others.into_iter().map(target).collect();
                    let incarnation = self.servers[server].incarnation;
                    let event = Event::ServersNamed { least_loaded, others };
                    self.arrive_later(Delivery::Server { server, incarnation, event });
                }
            }
            for (server, proposal) in master.propose(self.now, &mut self.rng, self.servers.len()) {
                if self.reaches(server, master) {
                    let (incarnation, event) = (self.servers[server].incarnation, Event::MoveProposed(proposal));
                    self.proposals += 1;
                    self.arrive_later(Delivery::Server { server, incarnation, event });
                }
            }
        }
        self.masters = masters;
        self.arrive_at(self.now + REPORT_INTERVAL, Delivery::Reports);
    }

    /// A line as it is read at the other end. It is read once for all who get the same one.
    fn read(&mut self, line: &Bytes) -> Rc<ReceivedLine> {
        match &self.last_line {
            Some((bytes, read)) if bytes == line => Rc::clone(read),
            _ => {
                let read = Rc::new(ReceivedLine::read(line.slice(..line.len() - 1)));
                self.last_line = Some((line.clone(), Rc::clone(&read)));
                read
            }
        }
    }

    fn arrive_later(&mut self, delivery: Delivery) {
        let delay = self.max_delay.mul_f64(self.rng.random::<f64>());
        let mut arrival = self.now + delay;
        if let Delivery::Wire { wire, to, .. } = &delivery {
            // Lines of one direction stay in order.
            let busy = &mut self.wires[*wire].busy[*to as usize];
            arrival = arrival.max(*busy);
            *busy = arrival;
        }
        self.arrive_at(arrival, delivery);
    }

    fn arrive_at(&mut self, arrival: Instant, delivery: Delivery) {
        self.in_flight.insert((arrival, self.next_delivery), delivery);
        self.next_delivery += 1;
    }

    fn transmit(&mut self, wire: WireIndex, from: Side, parcel: Parcel) {
        let to = from.other();
        let ends = [self.wires[wire].ends[from as usize], self.wires[wire].ends[to as usize]];
        let [Party::Server(one, _), Party::Server(other, _)] = ends else {
            return self.arrive_later(Delivery::Wire { wire, to, parcel });
        };
        if let Parcel::Line(line) = &parcel {
            self.invariants.on_link(wire, line);
        }
        let delivery = Delivery::Wire { wire, to, parcel };
        if self.is_cut(one, other) {
            self.held.push(delivery);
        } else {
            self.arrive_later(delivery);
        }
    }

    fn wire(&mut self, dialler: Party, acceptor: Party) {
        self.wires.push(Wire { ends: [dialler, acceptor], busy: [self.now; 2], is_cut: false });
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

impl Server {
    /// What a master that it reaches learns of it.
    fn sighting(&self) -> Sighting {
        match &self.config.extensions {
            Some(_) if self.is_alive && self.is_frozen => Sighting::Silent,
            Some(Extensions { max_children, .. }) if self.is_alive => {
                let (view, incarnation) = (self.core.tree_view(), self.incarnation);
                Sighting::Report(Rc::new(Report { view, incarnation, max_children: *max_children }))
            }
            _ => Sighting::Gone,
        }
    }
}

/// Where a server is reached, or would be.
fn target(server: ServerIndex) -> Target {
    Target { id: format!("s{server}"), hostname: "sim".into(), port: server as u16 + 1 }
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
