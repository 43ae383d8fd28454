//! What Prometheus is told: what was counted since the start, and how things stand at the moment it asks.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::UNIX_EPOCH;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry as Metricset;

use crate::registry::Registry;
use crate::topology::State;
use crate::users;

/// What [`text`] is, for the `content-type` header.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of the durations of heals, in seconds: from what a lost connection takes on one machine to what a split
/// network takes.
const HEAL_SECONDS: [f64; 13] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// What is counted as it happens.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// How long nodes were without a parent.
    pub(crate) heals: Histogram,
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
            heals: Histogram::new(HEAL_SECONDS),
            page_streams_opened: Counter::default(),
            page_streams_refused: Counter::default(),
            page_streams_dropped: Counter::default(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeState {
    state: &'static str,
}

/// Everything, in OpenMetrics' text format.
///
/// # Errors
/// When it can't be written, which would be a bug.
pub(crate) fn text(
    registry: &Registry,
    counted: &Metrics,
    users: Option<&users::metrics::Metrics>,
    page_streams: usize,
) -> Result<String, fmt::Error> {
    let mut metrics = Metricset::with_prefix("arborcast_master");
    metrics.register(
        "build",
        "Which software this is",
        Info::new([("version", env!("CARGO_PKG_VERSION").to_owned()), ("master_id", registry.master_id().to_owned())]),
    );
    register_counted(counted, &mut metrics);
    register_standing(registry, page_streams, &mut metrics);
    if let Some(users) = users {
        users.register(&mut metrics);
    }
    let mut out = String::new();
    encode(&mut out, &metrics)?;
    Ok(out)
}

fn register_counted(counted: &Metrics, metrics: &mut Metricset) {
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

fn register_standing(registry: &Registry, page_streams: usize, metrics: &mut Metricset) {
    let picture = registry.picture();
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
    let gauge = |value: usize| {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        gauge
    };
    let fragments = trees.len();
    let depth = trees.iter().map(|tree| tree.depth).max().unwrap_or(0);
    metrics.register("fragments", "Trees that the nodes form; one is healthy", gauge(fragments));
    metrics.register("depth", "Largest distance of a node from its root", gauge(usize::try_from(depth).unwrap_or(0)));
    metrics.register("clients", "Clients logged in at all nodes", gauge(usize::try_from(load).unwrap_or(usize::MAX)));
    let activities = Gauge::<f64, AtomicU64>::default();
    activities.set(rate);
    metrics.register("activities_per_second", "Activities that the busiest node passes on in a second", activities);
    metrics.register("page_streams", "Event streams of live pages that are open", gauge(page_streams));
    metrics.register(
        "ready",
        "1 once the master knows everybody, 0 while it warms up",
        gauge(usize::from(!picture.warming)),
    );
    let start = Gauge::<f64, AtomicU64>::default();
    let now = picture.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    start.set(now.saturating_sub(picture.uptime).as_secs_f64());
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
