//! Masters, and servers that find their places by themselves: to be killed, frozen, drained and started again, until
//! they are one tree once more.
//!
//! What one tree is, two witnesses say. A client at every server: an activity from each of them reaches each of them, and
//! none twice. And every master that is alive: one fragment with all servers, about which it has nothing to complain.
//! The clients keep their connections throughout, so a server that drops one because another server died is found out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use arborcast_proto::registry::{FaultKind, NodeState, Topology};

use crate::lines;
use crate::master::Master;
use crate::node::{Node, NodeBuilder};
use crate::peer::{Arrival, Line, Peer};
use crate::process::Signal;
use crate::tree;
use crate::wait::{self, PATIENCE};

/// How long the first wave of activities may take before the tree is taken for incomplete; each next one may take twice
/// as long, up to the longest.
const FIRST_WAVE: Duration = Duration::from_millis(100);
const LONGEST_WAVE: Duration = Duration::from_secs(2);

/// How many servers a master names at a time to which clients can be sent.
const MAX_NAMED: usize = 8;

/// Between two activities of the traffic.
const TRAFFIC_PAUSE: Duration = Duration::from_millis(1);

/// A server, in the order in which they were started first.
pub type Place = usize;

/// Masters and servers. Killed when dropped.
#[derive(Debug)]
pub struct Forest {
    masters: Vec<Option<Master>>,
    master_addresses: Vec<SocketAddr>,
    members: Vec<Member>,
    waves: u64,
}

#[derive(Debug)]
struct Member {
    builder: NodeBuilder,
    id: String,
    /// Absent while it is dead.
    node: Option<Node>,
    is_frozen: bool,
    client: Option<Peer>,
    /// What its client has got of the [`Traffic`].
    numbers: Vec<u64>,
}

/// Numbered activities that a client publishes in the background.
#[derive(Debug)]
pub struct Traffic {
    published: Arc<AtomicU64>,
    ends: Arc<AtomicBool>,
    publisher: JoinHandle<()>,
}

impl Traffic {
    /// Waits until so many more have been published.
    #[track_caller]
    pub fn wait_for_more(&self, count: u64) {
        let before = self.published.load(Ordering::Relaxed);
        wait::until(PATIENCE, || match self.published.load(Ordering::Relaxed) {
            now if now >= before + count => Ok(()),
            now => Err(format!("only {now} were published, and {before} before")),
        });
    }

    /// Ends it, and says how many were published: from 0 on.
    pub fn end(self) -> u64 {
        self.ends.store(true, Ordering::Relaxed);
        self.publisher.join().expect("the publisher does not panic");
        self.published.load(Ordering::Relaxed)
    }
}

/// Who is below whom, in a tree that is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    parents: BTreeMap<Place, Option<Place>>,
}

impl Shape {
    /// The one at the top.
    pub fn root(&self) -> Place {
        self.parents.iter().find(|(_, parent)| parent.is_none()).map(|(place, _)| *place).expect("a tree has a root")
    }

    /// Those without children.
    pub fn leaves(&self) -> Vec<Place> {
        self.parents.keys().copied().filter(|place| self.children_of(*place).is_empty()).collect()
    }

    /// Those with a parent and with children, the shallow ones first.
    pub fn inner(&self) -> Vec<Place> {
        let is_inner = |place: &Place| self.parents[place].is_some() && !self.children_of(*place).is_empty();
        let mut inner: Vec<Place> = self.parents.keys().copied().filter(is_inner).collect();
        inner.sort_by_key(|place| self.depth_of(*place));
        inner
    }

    /// The children of one.
    pub fn children_of(&self, place: Place) -> Vec<Place> {
        self.parents.iter().filter(|(_, parent)| **parent == Some(place)).map(|(child, _)| *child).collect()
    }

    fn depth_of(&self, place: Place) -> usize {
        std::iter::successors(self.parents[&place], |above| self.parents[above]).count()
    }
}

impl Forest {
    /// So many masters, and so many servers with at most two children each, which are one tree when this returns.
    #[track_caller]
    pub fn grow(masters: usize, servers: usize) -> Self {
        // Often enough that servers remember each other soon.
        Self::grow_with(masters, servers, &NodeBuilder::default().announce_every(Duration::from_millis(500)))
    }

    /// The same, with servers started in a special way; ids, masters and the number of children are filled in.
    #[track_caller]
    pub fn grow_with(masters: usize, servers: usize, builder: &NodeBuilder) -> Self {
        let mut forest = Self::plant(masters, servers, builder);
        forest.wait_until_one_tree();
        forest
    }

    /// The same, and nobody waits until they are one tree.
    #[track_caller]
    fn plant(masters: usize, servers: usize, builder: &NodeBuilder) -> Self {
        let masters: Vec<Master> = (0..masters).map(|_| Master::start()).collect();
        let master_addresses: Vec<SocketAddr> = masters.iter().map(Master::address).collect();
        let builder = master_addresses.iter().fold(builder.clone(), |builder, master| builder.flag("--master", master));
        let builder = builder.flag("--max-children", 2);
        let member = |place: Place| {
            let id = format!("tree-{place}");
            Member {
                builder: builder.clone().id(&id),
                id,
                node: None,
                is_frozen: false,
                client: None,
                numbers: Vec::new(),
            }
        };
        let members = (0..servers).map(member).collect();
        let masters = masters.into_iter().map(Some).collect();
        let mut forest = Self { masters, master_addresses, members, waves: 0 };
        for place in 0..servers {
            forest.start(place);
        }
        forest
    }

    /// So many servers in a line, each with room for two children, and masters that are dead.
    #[track_caller]
    pub fn line(masters: usize, servers: usize) -> Self {
        let mut forest = Self::plant(masters, 1, &NodeBuilder::default());
        forest.kill_masters();
        for place in 1..servers {
            let above = forest.address(place - 1);
            forest.join(&NodeBuilder::default().parent(above));
            forest.wait_until_one_tree();
        }
        forest
    }

    /// The depth of the tree as a master sees it; more than that of any tree while it sees several, or not all servers.
    ///
    /// # Errors
    /// When no master answers, in a sentence.
    pub fn depth(&self) -> Result<u32, String> {
        let topology = self.master().topology()?;
        match &topology.fragments[..] {
            [tree] if tree.nodes as usize == self.awake().len() => Ok(tree.depth),
            _ => Ok(u32::MAX),
        }
    }

    /// One more server, started in a special way; its id, the masters and the number of children are filled in.
    #[track_caller]
    pub fn join(&mut self, builder: &NodeBuilder) -> Place {
        let place = self.members.len();
        let id = format!("tree-{place}");
        let masters = self.master_addresses.iter();
        let builder = masters.fold(builder.clone().id(&id), |builder, master| builder.flag("--master", master));
        self.members.push(Member {
            builder: builder.announce_every(Duration::from_millis(500)).flag("--max-children", 2),
            id,
            node: None,
            is_frozen: false,
            client: None,
            numbers: Vec::new(),
        });
        self.start(place);
        place
    }

    /// Waits until a master sees a server below that one, which it may prefer and go back to after some pauses.
    #[track_caller]
    pub fn wait_until_below(&self, place: Place, parent: Place) {
        wait::until(3 * PATIENCE, || {
            let topology = self.master().topology()?;
            let mut reports = topology.nodes.iter().filter_map(|node| node.report.as_ref());
            match reports.find(|report| report.node_id == self.id(place)) {
                Some(report) if report.parent_id == self.id(parent) => Ok(()),
                other => Err(format!("not below {}: {other:?}", self.id(parent))),
            }
        });
    }

    /// Starts a server: for the first time, or again at its old address and under its old id.
    #[track_caller]
    pub fn start(&mut self, place: Place) {
        let member = &mut self.members[place];
        assert!(member.node.is_none(), "{} runs", member.id);
        let node = member.builder.start();
        member.builder = member.builder.clone().port(node.address().port());
        member.node = Some(node);
    }

    /// A running server.
    #[track_caller]
    pub fn node(&mut self, place: Place) -> &mut Node {
        self.members[place].node.as_mut().expect("the server runs")
    }

    /// How many servers there are, dead ones included.
    #[expect(clippy::len_without_is_empty, reason = "a forest without a server is none")]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// The places of the servers that run and are not frozen.
    pub fn awake(&self) -> Vec<Place> {
        let is_awake = |place: &Place| self.members[*place].node.is_some() && !self.members[*place].is_frozen;
        (0..self.members.len()).filter(is_awake).collect()
    }

    /// Kills a server without giving it a chance.
    pub fn kill(&mut self, place: Place) {
        self.kill_all(&[place]);
    }

    /// Kills several servers before any of them is seen to be dead.
    pub fn kill_all(&mut self, places: &[Place]) {
        for place in places {
            self.node(*place).process.signal(Signal::SIGKILL);
        }
        for place in places {
            drop(self.leave(*place));
        }
    }

    /// Stops a server's processor; its connections stay open.
    pub fn freeze(&mut self, place: Place) {
        self.node(place).process.signal(Signal::SIGSTOP);
        self.members[place].is_frozen = true;
    }

    /// Lets a frozen server go on.
    pub fn thaw(&mut self, place: Place) {
        self.members[place].is_frozen = false;
        self.node(place).process.signal(Signal::SIGCONT);
    }

    /// Tells a server to stop, as an operator would by SIGTERM.
    pub fn terminate(&mut self, place: Place) {
        self.node(place).process.signal(Signal::SIGTERM);
    }

    /// Waits until a server that was told to stop has ended.
    #[track_caller]
    pub fn wait_exit(&mut self, place: Place) -> ExitStatus {
        let mut node = self.leave(place);
        node.process.wait_exit(PATIENCE)
    }

    fn leave(&mut self, place: Place) -> Node {
        let member = &mut self.members[place];
        member.client = None;
        member.is_frozen = false;
        member.node.take().expect("the server runs")
    }

    /// What a server calls itself.
    pub fn id(&self, place: Place) -> &str {
        &self.members[place].id
    }

    /// Where a server listens, or did.
    #[track_caller]
    pub fn address(&self, place: Place) -> SocketAddr {
        self.members[place].node.as_ref().expect("the server runs").address()
    }

    /// A master that is alive.
    #[track_caller]
    pub fn master(&self) -> &Master {
        self.masters.iter().flatten().next().expect("a master is alive")
    }

    /// Where all masters listen, or did.
    pub fn master_addresses(&self) -> &[SocketAddr] {
        &self.master_addresses
    }

    /// Kills one master.
    pub fn kill_master(&mut self, master: usize) {
        self.masters[master] = None;
    }

    /// Kills all masters that are alive.
    pub fn kill_masters(&mut self) {
        self.masters.fill_with(|| None);
    }

    /// Starts all masters that are dead again, at their old addresses. They know nothing.
    #[track_caller]
    pub fn restart_masters(&mut self) {
        self.restart_masters_with(&[]);
    }

    /// The same, with these flags.
    #[track_caller]
    pub fn restart_masters_with(&mut self, flags: &[&str]) {
        for (master, address) in self.masters.iter_mut().zip(&self.master_addresses) {
            master.get_or_insert_with(|| Master::start_with(*address, flags));
        }
    }

    /// Waits until each server knows each other, or as many as a master names at a time, which is what it needs when no
    /// master answers.
    #[track_caller]
    pub fn wait_until_all_know_each_other(&self) {
        let nodes: Vec<_> = self.members.iter().filter_map(|member| member.node.as_ref()).collect();
        tree::wait_until_each_knows(&nodes, (nodes.len() - 1).min(MAX_NAMED));
    }

    /// Ends the connections of the clients that judge, for a caller who brings clients of its own.
    pub fn dismiss_clients(&mut self) {
        for member in &mut self.members {
            member.client = None;
        }
    }

    /// Waits until the servers that are awake are one tree, as their clients and all living masters see it.
    #[track_caller]
    pub fn wait_until_one_tree(&mut self) {
        self.wait_until_activities_reach_everybody();
        if self.masters.iter().any(Option::is_some) {
            self.shape();
        }
    }

    /// Waits until all living masters agree that the servers that are awake are one tree without a fault, and says
    /// which.
    #[track_caller]
    pub fn shape(&self) -> Shape {
        self.shape_besides(|_| ())
    }

    /// The same, with something taken out of what the masters say.
    #[track_caller]
    pub fn shape_besides(&self, take_out: impl Fn(&mut Topology)) -> Shape {
        wait::until(PATIENCE, || {
            let mut shapes = self.masters.iter().flatten().map(|master| {
                let mut topology = master.topology()?;
                take_out(&mut topology);
                self.shape_in(&topology)
            });
            let first = shapes.next().expect("a master is alive")?;
            match shapes.find(|shape| shape.as_ref() != Ok(&first)) {
                Some(Err(why)) => Err(why),
                Some(Ok(other)) => Err(format!("two masters see different trees: {first:?} and {other:?}")),
                None => Ok(first),
            }
        })
    }

    fn shape_in(&self, topology: &Topology) -> Result<Shape, String> {
        let places: BTreeMap<&str, Place> =
            self.awake().into_iter().map(|place| (self.members[place].id.as_str(), place)).collect();
        let frozen: BTreeSet<&String> =
            self.members.iter().filter(|member| member.is_frozen).map(|member| &member.id).collect();
        let of_frozen = |ids: &[String]| ids.iter().all(|id| frozen.contains(id));
        let faults = topology.faults.iter();
        let mut faults = faults.filter(|fault| fault.kind() != FaultKind::Silent || !of_frozen(&fault.node_ids));
        if let Some(fault) = faults.next() {
            return Err(format!("a master sees a fault: {fault:?}"));
        }
        if topology.fragments.len() != 1 {
            return Err(format!("a master sees other than one tree: {:?}", topology.fragments));
        }
        let mut parents = BTreeMap::new();
        for report in topology.nodes.iter().filter_map(|node| node.report.as_ref()) {
            let place = *places.get(report.node_id.as_str()).ok_or_else(|| format!("not awake: {report:?}"))?;
            if report.state() != NodeState::Live {
                return Err(format!("not settled: {report:?}"));
            }
            let parent = match report.parent_id.as_str() {
                "" => None,
                id => Some(*places.get(id).ok_or_else(|| format!("below one that is not awake: {report:?}"))?),
            };
            parents.insert(place, parent);
        }
        if parents.len() == places.len() {
            Ok(Shape { parents })
        } else {
            Err(format!("a master knows only {:?}", parents.keys()))
        }
    }

    /// Lets the client at a server publish a numbered activity about every millisecond.
    #[track_caller]
    pub fn publish_from(&mut self, place: Place) -> Traffic {
        let client = self.members[place].client.as_ref().expect("a client at every server since they were one tree");
        let mut stream = Peer::over(client.try_clone_stream());
        let (published, ends) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, is_over) = (Arc::clone(&published), Arc::clone(&ends));
        let publisher = thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                let number = counter.load(Ordering::Relaxed);
                stream.send(lines::anonymous_activity(&format!(r#"{{"number":{number}}}"#)));
                counter.store(number + 1, Ordering::Relaxed);
                thread::sleep(TRAFFIC_PAUSE);
            }
        });
        Traffic { published, ends, publisher }
    }

    /// What the client at a server has got of the traffic, in order. All of it, if there was one tree after its end.
    pub fn numbers(&self, place: Place) -> &[u64] {
        &self.members[place].numbers
    }

    /// Waits until an activity from the client at each server that is awake reaches the client at each of them, twice in
    /// a row, and none comes twice.
    #[track_caller]
    pub fn wait_until_activities_reach_everybody(&mut self) {
        let mut patience = FIRST_WAVE;
        wait::until(PATIENCE, || {
            self.connect_clients()?;
            let first = self.waves;
            self.waves += 2;
            let mut seen = BTreeSet::new();
            for wave in first..self.waves {
                let outcome = self.send_wave(wave, Instant::now() + patience, &mut seen);
                patience = (2 * patience).min(LONGEST_WAVE);
                outcome?;
            }
            Ok(())
        });
    }

    #[track_caller]
    fn connect_clients(&mut self) -> Result<(), String> {
        for place in self.awake() {
            let member = &mut self.members[place];
            let Some(node) = member.node.as_ref().filter(|_| member.client.is_none()) else { continue };
            let mut client = Peer::connect(node.address());
            client.send(lines::login_anonymously());
            client.expect_command("LOGIN_SUCCESS");
            member.client = Some(client);
        }
        Ok(())
    }

    /// The client at each server sends one activity, and reads until it has got one of everybody.
    #[track_caller]
    fn send_wave(
        &mut self,
        wave: u64,
        deadline: Instant,
        seen: &mut BTreeSet<(Place, u64, u64)>,
    ) -> Result<(), String> {
        let awake = self.awake();
        let clients = || awake.iter().copied();
        for place in clients() {
            let activity = lines::anonymous_activity(&format!(r#"{{"wave":{wave},"from":{place}}}"#));
            self.members[place].client.as_mut().expect("just connected").send(activity);
        }
        for place in clients() {
            let id = self.members[place].id.clone();
            let Member { client, numbers, .. } = &mut self.members[place];
            let connected = client.as_mut().expect("just connected");
            let mut missing: BTreeSet<u64> = clients().map(|from| from as u64).collect();
            while !missing.is_empty() {
                match connected.arrival(deadline.saturating_duration_since(Instant::now())) {
                    Arrival::Line(line) if line.command() == "REDIRECT" => {
                        *client = None;
                        return Err(format!("the client at {id} was redirected"));
                    }
                    Arrival::Line(line) => {
                        numbers.extend(line["activity"]["number"].as_u64());
                        let Some((of_wave, from)) = origin(&line) else { continue };
                        if !seen.insert((place, of_wave, from)) {
                            return Err(format!("the client at {id} got an activity twice: {}", line.text()));
                        }
                        if of_wave == wave {
                            missing.remove(&from);
                        }
                    }
                    Arrival::Nothing => return Err(format!("no activity of {missing:?} has reached {id}")),
                    other => panic!("{id} has dropped its client: {other:?}"),
                }
            }
        }
        Ok(())
    }
}

/// The wave and the place that an activity comes from.
fn origin(line: &Line) -> Option<(u64, u64)> {
    Some((line["activity"]["wave"].as_u64()?, line["activity"]["from"].as_u64()?))
}
