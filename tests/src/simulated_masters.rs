//! Masters as a simulated server meets them: each with a view of its own, late by as much as it likes, and with lies in
//! it; each dies, starts again knowing nothing, and may be cut off from some servers, all on its own.

use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use arborcast_core::{MoveAnswer, MoveOutcome, MoveProposal, NamedServer, TreeView};
use arborcast_master::topology::balance::{Balancer, Proposal};
use arborcast_master::topology::naming::Naming;
use arborcast_master::topology::{self, Incarnation, Limits, NodeId, State, StreamId, Topology};
use arborcast_proto::wire::message::Target;
use arborcast_proto::wire::{FragmentKey, Reign};
use rand::RngExt as _;
use rand::rngs::StdRng;

use crate::cluster::ServerIndex;

/// How often servers report to masters; the shell does it with every heartbeat.
pub(crate) const REPORT_INTERVAL: Duration = Duration::from_millis(500);

/// A server of which nothing is heard for so long is no longer named.
const SILENCE: Duration = Duration::from_secs(3);

/// Most candidates in an honest answer.
const MAX_CANDIDATES: usize = 8;

/// How a master behaves.
#[derive(Debug, Clone, Copy)]
pub struct Character {
    /// How old its view is.
    pub lag: Duration,
    /// Which part of its answers is made up: dead servers, the asker, its subtree, addresses where nobody is.
    pub lies: f64,
    /// The longest time it takes to answer. Beyond 400 ms nobody waits for it.
    pub slowest_answer: Duration,
}

impl Character {
    /// Some master: honest and quick, or old-fashioned, or a liar.
    pub fn random(rng: &mut StdRng) -> Self {
        Self {
            lag: Duration::from_secs_f64(rng.random_range(0.0..6.0)),
            lies: rng.random_range(0.0..0.8),
            slowest_answer: Duration::from_millis(rng.random_range(10..800)),
        }
    }

    /// One that is nearly always right.
    pub fn honest() -> Self {
        Self { lag: Duration::ZERO, lies: 0.0, slowest_answer: Duration::from_millis(100) }
    }
}

/// What a master can learn of a server at one moment.
#[derive(Debug, Clone)]
pub(crate) enum Sighting {
    /// Frozen, or on the other side of a cut: the last report stands for a while.
    Silent,
    /// Its connection is closed.
    Gone,
    /// It reports.
    Report(Rc<Report>),
}

/// What a server says of itself.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) view: TreeView,
    pub(crate) incarnation: u64,
    pub(crate) max_children: usize,
}

/// A report, and when it came.
type Entry = Option<(Instant, Rc<Report>)>;

#[derive(Debug)]
pub(crate) struct SimulatedMaster {
    pub(crate) character: Character,
    pub(crate) is_alive: bool,
    /// On which side of a partition it is.
    pub(crate) side: usize,
    /// The servers that can't reach it.
    pub(crate) cut_off: BTreeSet<ServerIndex>,
    /// What it proposes to make trees shallower: the real thing, if it balances.
    pub(crate) balancer: Option<Balancer>,
    /// Which other servers it tells servers of: the real thing.
    naming: Naming,
    /// What it has learned, oldest first, back to what it goes by at the moment.
    boards: VecDeque<(Instant, Vec<Entry>)>,
}

impl SimulatedMaster {
    pub(crate) fn new(character: Character) -> Self {
        Self {
            character,
            is_alive: true,
            side: 0,
            cut_off: BTreeSet::new(),
            balancer: None,
            naming: Naming::default(),
            boards: VecDeque::new(),
        }
    }

    /// It stops, and whatever it knew is gone.
    pub(crate) fn crash(&mut self) {
        self.is_alive = false;
        self.forget();
    }

    /// Whatever it knew is gone.
    pub(crate) fn forget(&mut self) {
        self.boards.clear();
        self.naming = Naming::default();
        if let Some(balancer) = &mut self.balancer {
            *balancer = Balancer::default();
        }
    }

    /// Takes in what it can learn of each server at this moment.
    pub(crate) fn observe(&mut self, now: Instant, sightings: impl Iterator<Item = Sighting>) {
        let before = self.boards.back().map_or(&[][..], |(_, board)| board);
        let board = sightings.enumerate().map(|(server, sighting)| match sighting {
            Sighting::Report(report) => Some((now, report)),
            Sighting::Gone => None,
            Sighting::Silent => before.get(server).cloned().flatten().filter(|(heard, _)| now < *heard + SILENCE),
        });
        let board = board.collect();
        self.boards.push_back((now, board));
        while self.boards.get(1).is_some_and(|(next, _)| *next + self.character.lag <= now) {
            self.boards.pop_front();
        }
    }

    /// The view it goes by; empty while it has none that is old enough.
    fn reports(&self, now: Instant) -> impl Iterator<Item = (ServerIndex, &Report)> {
        let board = self.boards.front().filter(|(taken, _)| *taken + self.character.lag <= now);
        let entries = board.map_or(&[][..], |(_, board)| board).iter().enumerate();
        entries.filter_map(|(server, entry)| Some((server, &**entry.as_ref().map(|(_, report)| report)?)))
    }

    /// Whom it names to somebody who asks with this key: the best first, by their indices.
    pub(crate) fn answer(
        &self,
        now: Instant,
        rng: &mut StdRng,
        servers: usize,
        asker: ServerIndex,
        key: &FragmentKey,
    ) -> Vec<ServerIndex> {
        if rng.random_bool(self.character.lies) {
            // A few beyond the last server: nobody is there.
            return (0..3).map(|_| rng.random_range(0..servers + 4)).collect();
        }
        let asker_id = format!("s{asker}");
        let may_take = |report: &Report| {
            let view = &report.view;
            view.position.key < *key
                && !view.is_draining
                && view.children.len() < report.max_children
                && !view.position.path.contains(&asker_id)
        };
        let mut found: Vec<_> = self.reports(now).filter(|(_, report)| may_take(report)).collect();
        found.sort_by_key(|(_, report)| (&report.view.position.key, report.view.position.path.len()));
        found.iter().take(MAX_CANDIDATES).map(|(server, _)| *server).collect()
    }

    /// The moves that it proposes, and to whom, if it balances.
    pub(crate) fn propose(
        &mut self,
        now: Instant,
        rng: &mut StdRng,
        servers: usize,
    ) -> Vec<(ServerIndex, MoveProposal)> {
        let topology = if self.balancer.is_some() { self.topology(now) } else { Topology::new(Limits::default()) };
        let Some(balancer) = &mut self.balancer else { return Vec::new() };
        let proposals = balancer.look(&topology.forest(now), true, now);
        let mut sent: Vec<_> = proposals.into_iter().filter_map(proposal).collect();
        if rng.random_bool(self.character.lies) {
            let reports: Vec<_> = self.reports(now).collect();
            sent.extend(reports.get(rng.random_range(0..reports.len().max(1))).and_then(|(server, report)| {
                let target = rng.random_range(0..servers + 2);
                Some((*server, made_up(&report.view, target, rng.random())?))
            }));
        }
        sent
    }

    /// Of which other servers it tells whom: those to which clients can be sent, and those to remember. One that lies makes
    /// the latter up.
    pub(crate) fn name(
        &mut self,
        now: Instant,
        rng: &mut StdRng,
        servers: usize,
    ) -> Vec<(ServerIndex, Vec<NamedServer>, Vec<ServerIndex>)> {
        let topology = self.topology(now);
        let named = self.naming.look(&topology.forest(now), now).into_iter().filter_map(|named| {
            let least_loaded = named.least_loaded.iter().map(|server| {
                let target = Target { id: server.id.to_string(), hostname: server.hostname.clone(), port: server.port };
                NamedServer { target, load: server.load }
            });
            let others = if rng.random_bool(self.character.lies) {
                (0..8).map(|_| rng.random_range(0..servers + 4)).collect()
            } else {
                named.others.iter().filter_map(|server| index(&server.id)).collect()
            };
            Some((index(&named.node)?, least_loaded.collect(), others))
        });
        named.collect()
    }

    /// The view it goes by, as a real master keeps it.
    fn topology(&self, now: Instant) -> Topology {
        let mut topology = Topology::new(Limits::default());
        let board = self.boards.front().filter(|(taken, _)| *taken + self.character.lag <= now);
        let Some((taken, entries)) = board else { return topology };
        for (server, entry) in entries.iter().enumerate() {
            if let Some((heard, report)) = entry {
                let is_taken =
                    topology.report(StreamId(server as u64), reported(server, report), *heard + (now - *taken));
                is_taken.expect("there is one report of each server");
            }
        }
        topology
    }

    /// A root whose key is not the smallest one known, and what to tell it.
    pub(crate) fn advice(
        &self,
        now: Instant,
        rng: &mut StdRng,
        servers: usize,
    ) -> Option<(ServerIndex, Vec<ServerIndex>)> {
        let smallest = self.reports(now).map(|(_, report)| &report.view.position.key).min()?;
        let roots = self.reports(now).filter(|(_, report)| report.view.parent.is_none());
        let roots: Vec<_> = roots.filter(|(_, report)| report.view.position.key != *smallest).collect();
        let (root, report) = roots.get(rng.random_range(0..roots.len().max(1)))?;
        let candidates = self.answer(now, rng, servers, *root, &report.view.position.key);
        Some((*root, candidates)).filter(|(_, candidates)| !candidates.is_empty())
    }
}

/// A report as a real master keeps it.
fn reported(server: ServerIndex, report: &Report) -> topology::Report {
    let view = &report.view;
    let key = &view.position.key;
    let (reign, unsettled) = match key.reign {
        Reign::Settled(reign) => (reign, false),
        Reign::Unsettled => (0, true),
    };
    topology::Report {
        masters: 0,
        settled_tickets: 0,
        id: NodeId::from(format!("s{server}")),
        incarnation: Incarnation(report.incarnation),
        hostname: "sim".into(),
        port: server as u16 + 1,
        version: String::new(),
        key: topology::FragmentKey { unsettled, reign, root: key.root.as_str().into() },
        parent: view.parent.as_deref().map(NodeId::from),
        path: view.position.path.iter().map(|id| id.as_str().into()).collect(),
        depth: view.position.path.len() as u32 - 1,
        children: view.children.iter().map(|id| id.as_str().into()).collect(),
        max_children: report.max_children as u32,
        load: view.load as u64,
        state: match (view.is_draining, view.is_orphan, unsettled) {
            (true, _, _) => State::Draining,
            (false, true, _) => State::Orphaned,
            (false, false, true) => State::Joining,
            (false, false, false) => State::Live,
        },
        heartbeat_interval: Duration::from_secs(1),
        move_answer: view.move_answer.as_ref().map(move_answer),
        activities: 0,
    }
}

fn move_answer(answer: &MoveAnswer) -> topology::MoveAnswer {
    let outcome = match answer.outcome {
        MoveOutcome::Moved => topology::MoveOutcome::Moved,
        MoveOutcome::Busy
        | MoveOutcome::NotAttached
        | MoveOutcome::OutOfDate
        | MoveOutcome::TreeBusy
        | MoveOutcome::Unsettled => topology::MoveOutcome::NotNow,
        MoveOutcome::Draining | MoveOutcome::NoGain | MoveOutcome::OwnSubtree | MoveOutcome::PreferredParent => {
            topology::MoveOutcome::NodeWontMove
        }
        MoveOutcome::Failed | MoveOutcome::Refused | MoveOutcome::Unreachable => topology::MoveOutcome::TargetWontTake,
    };
    topology::MoveAnswer {
        number: answer.number,
        target: answer.target.as_str().into(),
        parent: answer.parent.as_str().into(),
        outcome,
        name: answer.outcome.name(),
    }
}

fn proposal(proposal: Proposal) -> Option<(ServerIndex, MoveProposal)> {
    let Proposal { node, target, parent, relieves_parent, .. } = proposal;
    let reign = if target.key.unsettled { Reign::Unsettled } else { Reign::Settled(target.key.reign) };
    let proposal = MoveProposal {
        target: Target { id: target.id.to_string(), hostname: target.hostname, port: target.port },
        key: FragmentKey { reign, root: target.key.root.to_string() },
        parent: parent.to_string(),
        relieves_parent,
    };
    Some((index(&node)?, proposal))
}

fn index(id: &NodeId) -> Option<ServerIndex> {
    id.as_str().strip_prefix('s')?.parse().ok()
}

/// A server somewhere, near or far, above or below or nowhere.
fn made_up(view: &TreeView, target: ServerIndex, relieves_parent: bool) -> Option<MoveProposal> {
    Some(MoveProposal {
        target: Target { id: format!("s{target}"), hostname: "sim".into(), port: target as u16 + 1 },
        key: view.position.key.clone(),
        parent: view.parent.clone()?,
        relieves_parent,
    })
}
