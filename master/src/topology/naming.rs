//! Which other servers a node is told of: the least loaded, to which it can send clients, and some to remember for the time
//! when no master answers.
//!
//! Each node is told of so many whatever the number of nodes, so all together are told in proportion to it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::forest::Forest;
use super::{Entry, NodeId, State, StreamId};

/// Least time between two words to one node.
pub const PACE: Duration = Duration::from_millis(300);

/// How often a node is told when nothing has changed. A node that is told nothing for some of these takes masters to be
/// gone.
const REPEAT: Duration = Duration::from_secs(1);

/// Most servers in each of the two lists.
const MAX_NAMED: usize = 8;

/// How many of those above a node's parent are named, the nearest first.
const MAX_ANCESTORS: usize = 4;

/// What one node is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The node.
    pub node: NodeId,
    /// Its stream.
    pub stream: StreamId,
    /// The least loaded servers of its tree, the least loaded first; never itself.
    pub least_loaded: Vec<NamedServer>,
    /// Whom to ask for a parent when no master answers: those above its parent, and some others.
    pub others: Vec<NamedServer>,
}

/// A server that is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedServer {
    /// Its id.
    pub id: NodeId,
    /// Where it is.
    pub hostname: String,
    /// The port there.
    pub port: u16,
    /// Its logged-in clients.
    pub load: u64,
}

impl From<&Entry> for NamedServer {
    fn from(entry: &Entry) -> Self {
        let report = &entry.report;
        Self { id: report.id.clone(), hostname: report.hostname.clone(), port: report.port, load: report.load }
    }
}

/// What nodes were told last.
#[derive(Debug, Default)]
pub struct Naming {
    told: BTreeMap<NodeId, Told>,
}

#[derive(Debug)]
struct Told {
    at: Instant,
    stream: StreamId,
    least_loaded: Vec<(NodeId, u64)>,
    /// How often the node was told, so that it is told of others each time.
    times: usize,
}

impl Naming {
    /// Whom to tell what at this moment: every node about every second; one that would send clients elsewhere, as far as
    /// its load goes, as soon as what it was told is out of date.
    pub fn look(&mut self, forest: &Forest<'_>, now: Instant) -> Vec<Named> {
        self.told.retain(|id, _| forest.node(id.as_str()).is_some());
        let all: Vec<&Entry> = forest.nodes().map(|(_, entry)| entry).filter(|entry| may_be_named(entry)).collect();
        let trees = Trees::new(forest, &all);
        let nodes = forest.nodes().enumerate();
        nodes.filter_map(|(index, (_, entry))| self.look_at(forest, &all, &trees, index, entry, now)).collect()
    }

    fn look_at(
        &mut self,
        forest: &Forest<'_>,
        all: &[&Entry],
        trees: &Trees<'_>,
        index: usize,
        entry: &Entry,
        now: Instant,
    ) -> Option<Named> {
        let id = &entry.report.id;
        let told = self.told.get(id).filter(|told| told.stream == entry.stream);
        if told.is_some_and(|told| now < told.at + PACE) {
            return None;
        }
        let least_loaded = trees.least_loaded(forest, index, entry);
        let loads: Vec<_> = least_loaded.iter().map(|other| (other.report.id.clone(), other.report.load)).collect();
        // One more would make it send that one there.
        let may_redirect = loads.first().is_some_and(|(_, load)| *load < entry.report.load);
        let is_due = told.is_none_or(|told| now >= told.at + REPEAT || (may_redirect && loads != told.least_loaded));
        if !is_due {
            return None;
        }
        let times = told.map_or(0, |told| told.times.wrapping_add(1));
        let others = others(forest, all, index.wrapping_add(times.wrapping_mul(MAX_NAMED - MAX_ANCESTORS)), entry);
        self.told.insert(id.clone(), Told { at: now, stream: entry.stream, least_loaded: loads, times });
        let named = |servers: Vec<&Entry>| servers.into_iter().map(NamedServer::from).collect();
        Some(Named { node: id.clone(), stream: entry.stream, least_loaded: named(least_loaded), others: named(others) })
    }
}

/// The servers of each tree, the least loaded first.
struct Trees<'a>(BTreeMap<&'a NodeId, Vec<&'a Entry>>);

impl<'a> Trees<'a> {
    fn new(forest: &Forest<'a>, all: &[&'a Entry]) -> Self {
        let mut trees: BTreeMap<&NodeId, Vec<&Entry>> = BTreeMap::new();
        for entry in all {
            if let Some(place) = forest.place(entry.report.id.as_str()) {
                trees.entry(place.top).or_default().push(entry);
            }
        }
        for servers in trees.values_mut() {
            servers.sort_by_key(|entry| entry.report.load);
        }
        Self(trees)
    }

    /// The least loaded of a node's tree. If more than are named have the least load, each node gets others of them: what
    /// all send clients to at once would soon have most.
    fn least_loaded(&self, forest: &Forest<'_>, index: usize, node: &Entry) -> Vec<&'a Entry> {
        let place = forest.place(node.report.id.as_str());
        let servers = place.and_then(|place| self.0.get(place.top)).map_or(&[][..], Vec::as_slice);
        let least = servers.first().map_or(0, |entry| entry.report.load);
        let (equal, more) = servers.split_at(servers.partition_point(|entry| entry.report.load <= least));
        let (before, after) = equal.split_at(index.wrapping_mul(MAX_NAMED) % equal.len().max(1));
        let in_turn = after.iter().chain(before).chain(more).copied();
        in_turn.filter(|entry| entry.report.id != node.report.id).take(MAX_NAMED).collect()
    }
}

/// Those above the parent, nearest first, and then some of all, from `start` on.
fn others<'a>(forest: &Forest<'a>, all: &[&'a Entry], start: usize, node: &Entry) -> Vec<&'a Entry> {
    let parent = forest.parent(node);
    let above = std::iter::successors(parent.and_then(|parent| forest.parent(parent)), |at| forest.parent(at));
    let mut others: Vec<&Entry> = above.take(MAX_ANCESTORS).filter(|entry| may_be_named(entry)).collect();
    let (before, after) = all.split_at(start % all.len().max(1));
    let is_new = |entry: &&&Entry, others: &[&Entry]| {
        let id = &entry.report.id;
        *id != node.report.id && !others.iter().any(|other| other.report.id == *id)
    };
    for entry in after.iter().chain(before).take(2 * MAX_NAMED) {
        if others.len() < MAX_NAMED && is_new(&entry, &others) {
            others.push(entry);
        }
    }
    others
}

fn may_be_named(entry: &Entry) -> bool {
    entry.report.state != State::Draining && !entry.drain_requested
}

#[cfg(test)]
mod tests {
    use super::super::Report;
    use super::super::testing::{World, below, node};
    use super::*;

    fn with_load(load: u64, report: Report) -> Report {
        Report { load, ..report }
    }

    fn look(naming: &mut Naming, world: &World) -> BTreeMap<String, Named> {
        let named = naming.look(&world.topology.forest(world.now), world.now);
        named.into_iter().map(|named| (named.node.to_string(), named)).collect()
    }

    fn ids(servers: &[NamedServer]) -> Vec<&str> {
        servers.iter().map(|server| server.id.as_str()).collect()
    }

    fn line(size: usize) -> World {
        let names: Vec<String> = (0..size).map(|at| format!("n{at:02}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        World::with((1..=size).map(|length| below(&names[..length])))
    }

    #[test]
    fn the_least_loaded_of_the_own_tree_come_first_and_never_the_node_itself() {
        let world = World::with([
            with_load(3, node("a")),
            with_load(0, below(&["a", "b"])),
            with_load(u64::MAX, below(&["a", "c"])),
            with_load(0, node("other")),
        ]);
        let named = look(&mut Naming::default(), &world);
        assert_eq!(ids(&named["a"].least_loaded), ["b", "c"]);
        assert_eq!(ids(&named["b"].least_loaded), ["a", "c"]);
        assert_eq!(ids(&named["c"].least_loaded), ["b", "a"]);
        assert!(named["other"].least_loaded.is_empty());
        assert!(ids(&named["a"].others).contains(&"other"), "to be remembered it is good");
    }

    #[test]
    fn who_drains_or_is_silent_is_not_named() {
        let mut world = World::with([node("a"), below(&["a", "b"]), below(&["a", "c"])]);
        world.let_fall_silent(&["b"]);
        world.report(Report { state: State::Draining, ..below(&["a", "c"]) });
        let named = look(&mut Naming::default(), &world);
        assert!(named["a"].least_loaded.is_empty() && named["a"].others.is_empty());
        assert_eq!(ids(&named["c"].least_loaded), ["a"]);
    }

    #[test]
    fn lists_are_short_and_different_nodes_are_told_of_different_ones() {
        let named = look(&mut Naming::default(), &line(40));
        assert!(named.values().all(|named| named.least_loaded.len() == MAX_NAMED && named.others.len() == MAX_NAMED));
        let first: std::collections::BTreeSet<_> = named.values().map(|named| &named.least_loaded[0].id).collect();
        assert!(first.len() >= 5, "clients are sent to {first:?}");
    }

    #[test]
    fn ancestors_are_named_nearest_first_and_in_time_everybody() {
        let (mut world, mut naming) = (line(40), Naming::default());
        let mut heard = std::collections::BTreeSet::new();
        for _ in 0..12 {
            let named = look(&mut naming, &world);
            assert_eq!(ids(&named["n10"].others)[..4], ["n08", "n07", "n06", "n05"]);
            heard.extend(named["n10"].others.iter().map(|server| server.id.clone()));
            world.let_fall_silent(&[]);
        }
        assert_eq!(heard.len(), 39);
    }

    #[test]
    fn a_node_is_told_every_second_and_sooner_only_if_it_would_send_clients_elsewhere() {
        let mut world = World::with([with_load(5, node("a")), with_load(5, below(&["a", "b"]))]);
        let mut naming = Naming::default();
        let told = |naming: &mut Naming, world: &World| look(naming, world).into_keys().collect::<Vec<_>>();
        assert_eq!(told(&mut naming, &world), ["a", "b"]);
        world.report(with_load(0, below(&["a", "b"])));
        assert!(told(&mut naming, &world).is_empty(), "not so often");
        world.now += PACE;
        assert_eq!(told(&mut naming, &world), ["a"], "b has less than anybody");
        world.now += PACE;
        assert!(told(&mut naming, &world).is_empty(), "it knows that");
        world.now += REPEAT - 2 * PACE;
        assert_eq!(told(&mut naming, &world), ["b"]);
        world.now += 2 * PACE;
        assert_eq!(told(&mut naming, &world), ["a"]);
    }

    #[test]
    fn a_new_stream_is_told_at_once() {
        let world = World::with([node("a")]);
        let mut naming = Naming::default();
        assert_eq!(look(&mut naming, &world).len(), 1);
        let again = World::with([node("x"), node("a")]);
        assert!(look(&mut naming, &again).contains_key("a"));
    }
}
