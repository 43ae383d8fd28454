//! What Prometheus is told: what was counted since the start, and how things stand at the moment it asks. The names are
//! those of the table in the README.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::UNIX_EPOCH;

use axum::extract::{Request, State as Shared};
use axum::middleware::Next;
use axum::response::Response;
use prometheus_client::encoding::{EncodeLabelSet, prometheus_text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry as Metricset;
use tonic::Code;

use crate::chronicle::Chronicle;
use crate::registry::{Picture, Registry};
use crate::topology::State;
use crate::topology::history::{Happening, What};
use crate::users;

/// What [`text`] is, for the `content-type` header.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds of the durations of heals, in seconds: from what a lost connection takes on one machine to what a split
/// network takes.
const HEAL_SECONDS: [f64; 13] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Of how many nodes at most it is told one by one where they are.
const MAX_PLACES: usize = 1000;

/// What is counted as it happens.
#[derive(Debug)]
pub(crate) struct Metrics {
    calls: Family<Call, Counter>,
    /// Report streams that began.
    pub(crate) report_streams_opened: Counter,
    report_streams_closed: Family<Reason, Counter>,
    /// Nodes that were refused for want of room.
    pub(crate) had_no_room: Counter,
    advice: Family<Advice, Counter>,
    watchers: Gauge,
    /// Watchers that were ended since they fell behind.
    pub(crate) watchers_dropped: Counter,
    happenings: Family<Kind, Counter>,
    heals: Histogram,
    chronicle: Chronicle,
    /// Event streams of pages that were opened.
    pub(crate) page_streams_opened: Counter,
    /// Event streams that were refused, since there were too many.
    pub(crate) page_streams_refused: Counter,
    /// Event streams that were closed, since nobody read them.
    pub(crate) page_streams_dropped: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            calls: Family::default(),
            report_streams_opened: Counter::default(),
            report_streams_closed: Family::default(),
            had_no_room: Counter::default(),
            advice: Family::default(),
            watchers: Gauge::default(),
            watchers_dropped: Counter::default(),
            happenings: Family::default(),
            heals: Histogram::new(HEAL_SECONDS),
            chronicle: Chronicle::default(),
            page_streams_opened: Counter::default(),
            page_streams_refused: Counter::default(),
            page_streams_dropped: Counter::default(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    method: String,
    code: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Advice {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeState {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Place {
    node: String,
    parent: String,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Gone {
    node: String,
    how: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Heal {
    node: String,
    from: String,
    to: String,
}

impl Metrics {
    /// A report stream has ended.
    pub(crate) fn report_stream_closed(&self, reason: &'static str) {
        self.report_streams_closed.get_or_create(&Reason { reason }).inc();
    }

    /// A node was advised, or its outbox was full.
    pub(crate) fn advised(&self, kind: &'static str, is_sent: bool) {
        let outcome = if is_sent { "sent" } else { "dropped" };
        self.advice.get_or_create(&Advice { kind, outcome }).inc();
    }

    /// Somebody watches the topology, until what is returned is dropped.
    pub(crate) fn watcher(&self) -> Watching {
        self.watchers.inc();
        Watching(self.watchers.clone())
    }

    /// Something happened to the tree.
    pub(crate) fn happened(&self, happening: &Happening) {
        self.happenings.get_or_create(&Kind { kind: kind(&happening.what) }).inc();
        if let Some(after) = happening.what.healed_after() {
            self.heals.observe(after.as_secs_f64());
        }
        self.chronicle.take(happening);
    }

    /// What happened lately.
    pub(crate) fn chronicle(&self) -> &Chronicle {
        &self.chronicle
    }
}

/// One watcher.
#[derive(Debug)]
pub(crate) struct Watching(Gauge);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A call that is being answered. Counted when it ends, however it does: who asked may be gone before there is an answer.
struct Answering<'a> {
    calls: &'a Family<Call, Counter>,
    method: String,
    code: Code,
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        let (method, code) = (std::mem::take(&mut self.method), format!("{:?}", self.code));
        self.calls.get_or_create(&Call { method, code }).inc();
    }
}

/// Counts the calls of all services. Of a stream its beginning counts.
pub(crate) async fn count(Shared(registry): Shared<Arc<Registry>>, request: Request, next: Next) -> Response {
    let method = request.uri().path().trim_start_matches('/').to_owned();
    let mut answering = Answering { calls: &registry.metrics().calls, method, code: Code::Cancelled };
    let response = next.run(request).await;
    // Where there is a status already, no message follows.
    let status = response.headers().get("grpc-status");
    answering.code = status.map_or(Code::Ok, |status| Code::from_bytes(status.as_bytes()));
    if answering.code == Code::Unimplemented {
        // Whatever a stranger asks for is one line here.
        "other".clone_into(&mut answering.method);
    }
    drop(answering);
    response
}

fn kind(what: &What) -> &'static str {
    match what {
        What::MasterStarted => "master_started",
        What::Joined { .. } => "joined",
        What::Attached { .. } => "attached",
        What::Orphaned { .. } => "orphaned",
        What::Reattached { .. } => "reattached",
        What::Moved { .. } => "moved",
        What::BecameRoot { .. } => "became_root",
        What::Draining { .. } => "draining",
        What::Drained { .. } => "drained",
        What::Lost { is_silent: true, .. } => "silent",
        What::Lost { .. } => "lost",
    }
}

/// What is open at one moment.
#[derive(Debug)]
pub(crate) struct Open<'a> {
    /// Event streams of pages.
    pub(crate) page_streams: usize,
    /// How TLS handshakes ended; none where TLS is not taken.
    pub(crate) handshakes: Option<BTreeMap<&'static str, u64>>,
    /// What is counted of users, where they are kept.
    pub(crate) users: Option<&'a users::metrics::Metrics>,
}

/// Everything, in the text format of Prometheus.
///
/// # Errors
/// When it can't be written, which would be a bug.
pub(crate) fn text(registry: &Registry, open: Open<'_>) -> Result<String, fmt::Error> {
    let mut metrics = Metricset::with_prefix("arborcast_master");
    metrics.register(
        "build",
        "Which software this is",
        Info::new([("version", env!("CARGO_PKG_VERSION").to_owned()), ("master_id", registry.master_id().to_owned())]),
    );
    let picture = registry.picture();
    register_counted(registry.metrics(), &mut metrics);
    registry.assignments.register(&mut metrics);
    register_balance(registry, &mut metrics);
    register_open(registry, open, &mut metrics);
    register_nodes(&picture, &mut metrics);
    register_places(&picture, registry.metrics(), &mut metrics);
    register_master(&picture, &mut metrics);
    let mut out = String::new();
    prometheus_text::encode(&mut out, &metrics)?;
    Ok(out)
}

fn gauge(value: usize) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    gauge
}

fn float(value: f64) -> Gauge<f64, AtomicU64> {
    let gauge = Gauge::default();
    gauge.set(value);
    gauge
}

fn register_counted(counted: &Metrics, metrics: &mut Metricset) {
    metrics.register("grpc_calls", "Calls by method and how they were answered", counted.calls.clone());
    metrics.register("report_streams_opened", "Report streams that began", counted.report_streams_opened.clone());
    metrics.register(
        "report_streams_closed",
        "Report streams that ended, by why",
        counted.report_streams_closed.clone(),
    );
    metrics.register("no_room", "Nodes that were refused for want of room", counted.had_no_room.clone());
    metrics.register(
        "advice",
        "What nodes were told by themselves, and whether they had room for it",
        counted.advice.clone(),
    );
    metrics.register(
        "watchers_dropped",
        "Watchers of the topology that were ended, since they did not keep up",
        counted.watchers_dropped.clone(),
    );
    metrics.register("tree_events", "What happened to the tree, as this master saw it", counted.happenings.clone());
    metrics.register(
        "heal_seconds",
        "For how long nodes that lost their parent had none, as this master saw it",
        counted.heals.clone(),
    );
    metrics.register(
        "page_streams_opened",
        "Event streams of live pages that began",
        counted.page_streams_opened.clone(),
    );
    metrics.register(
        "page_streams_refused",
        "Event streams of live pages that were refused, since there were too many",
        counted.page_streams_refused.clone(),
    );
    metrics.register(
        "page_streams_dropped",
        "Event streams of live pages that were closed, since the browser did not read",
        counted.page_streams_dropped.clone(),
    );
}

fn register_open(registry: &Registry, open: Open<'_>, metrics: &mut Metricset) {
    let Open { page_streams, handshakes, users } = open;
    if let Some(users) = users {
        users.register(metrics);
    }
    metrics.register("page_streams", "Event streams of live pages that are open", gauge(page_streams));
    metrics.register("report_streams", "Report streams that are open", gauge(registry.streams()));
    metrics.register("watchers", "Watchers of the topology", registry.metrics().watchers.clone());
    let Some(handshakes) = handshakes else { return };
    let counted = Family::<Outcome, Counter>::default();
    for (outcome, times) in handshakes {
        counted.get_or_create(&Outcome { outcome }).inc_by(times);
    }
    metrics.register("tls_handshakes", "TLS handshakes of those who connected, by how they ended", counted);
}

fn register_balance(registry: &Registry, metrics: &mut Metricset) {
    let counts = registry.balance_counts();
    let proposed = Counter::<u64>::default();
    proposed.inc_by(counts.proposed);
    metrics.register("moves_proposed", "Moves that this master proposed to make a tree shallower", proposed);
    let outcomes = Family::<Outcome, Counter>::default();
    for (outcome, number) in counts.outcomes {
        outcomes.get_or_create(&Outcome { outcome }).inc_by(number);
    }
    metrics.register("move_outcomes", "What became of the moves that this master proposed", outcomes);
}

fn register_nodes(picture: &Picture, metrics: &mut Metricset) {
    let trees = picture.topology.forest(picture.now).trees();
    let nodes = Family::<NodeState, Gauge>::default();
    for state in ["joining", "live", "orphaned", "draining", "silent"] {
        nodes.get_or_create(&NodeState { state }).set(0);
    }
    let (mut load, mut rate) = (0_u64, 0.0_f64);
    for entry in picture.topology.entries() {
        let is_silent = entry.is_silent(picture.now);
        let state = if is_silent { "silent" } else { state_name(entry.report.state) };
        nodes.get_or_create(&NodeState { state }).inc();
        if !is_silent {
            load = load.saturating_add(entry.report.load);
            rate = rate.max(entry.traffic.per_second());
        }
    }
    metrics.register("nodes", "Registered nodes by what they are doing", nodes);
    let fragments = trees.len();
    let depth = trees.iter().map(|tree| tree.depth).max().unwrap_or(0);
    metrics.register("fragments", "Trees that the nodes form; one is healthy", gauge(fragments));
    metrics.register("depth", "Largest distance of a node from its root", gauge(usize::try_from(depth).unwrap_or(0)));
    metrics.register("clients", "Clients logged in at all nodes", gauge(usize::try_from(load).unwrap_or(usize::MAX)));
    metrics.register("activities_per_second", "Activities that the busiest node passes on in a second", float(rate));
}

/// Which node is where, which are gone, and what moved, one by one.
fn register_places(picture: &Picture, counted: &Metrics, metrics: &mut Metricset) {
    let places = Family::<Place, Gauge>::default();
    for entry in picture.topology.entries().take(MAX_PLACES) {
        let report = &entry.report;
        let state = if entry.is_silent(picture.now) { "silent" } else { state_name(report.state) };
        let parent = report.parent.as_ref().map(ToString::to_string).unwrap_or_default();
        places.get_or_create(&Place { node: report.id.to_string(), parent, state }).set(1);
    }
    metrics.register("node_info", "Where a node is; always 1. Of a thousand nodes at most", places);
    let (gone, moved) = counted.chronicle.read();
    let gone_at = Family::<Gone, Gauge<f64, AtomicU64>>::default();
    for (node, gone) in gone {
        let at = gone.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        gone_at.get_or_create(&Gone { node: node.to_string(), how: gone.how }).set(at.as_secs_f64());
    }
    metrics.register(
        "node_gone_time_seconds",
        "When a node went that has not come back, in seconds since 1970",
        gone_at,
    );
    let took = Family::<Heal, Gauge<f64, AtomicU64>>::default();
    let healed_at = Family::<Heal, Gauge<f64, AtomicU64>>::default();
    for (node, heal) in moved {
        let name = |id: Option<&crate::topology::NodeId>| id.map(ToString::to_string).unwrap_or_default();
        let labels = Heal { node: node.to_string(), from: name(heal.from.as_ref()), to: name(heal.to.as_ref()) };
        took.get_or_create(&labels).set(heal.took.as_secs_f64());
        let at = heal.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        healed_at.get_or_create(&labels).set(at.as_secs_f64());
    }
    metrics.register("node_last_heal_seconds", "How long a node lacked a parent when it lost one last", took);
    metrics.register("node_last_heal_time_seconds", "When that was over, in seconds since 1970", healed_at);
}

fn register_master(picture: &Picture, metrics: &mut Metricset) {
    metrics.register(
        "ready",
        "1 once the master knows everybody, 0 while it warms up",
        gauge(usize::from(!picture.warming)),
    );
    let now = picture.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let start = float(now.saturating_sub(picture.uptime).as_secs_f64());
    metrics.register("start_time_seconds", "When the master started, in seconds since 1970", start);
}

/// What a state is called in metrics and on the page.
pub(crate) fn state_name(state: State) -> &'static str {
    match state {
        State::Joining => "joining",
        State::Live => "live",
        State::Orphaned => "orphaned",
        State::Draining => "draining",
    }
}
