//! The node's metrics, in the text format of Prometheus. The names are those of the table in the README.

use std::collections::BTreeMap;
use std::fmt;

use arborcast_core::status::HEAL_BOUNDS;
use arborcast_core::{NotReady, Status};
use arborcast_proto::wire::Reign;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

/// What there is to tell at one moment.
#[derive(Debug)]
pub(crate) struct Observation {
    /// What the node calls itself, and where others reach it.
    pub(crate) identity: Identity,
    /// What the core says.
    pub(crate) status: Status,
    /// Bytes in the broadcast log: in the plain form, and in the extended one.
    pub(crate) log_bytes: [(&'static str, u64); 2],
    /// The bound of each of the two.
    pub(crate) max_log_bytes: u64,
    /// Most connections at one time.
    pub(crate) max_connections: usize,
    /// Bytes that came over all connections.
    pub(crate) received_bytes: u64,
    /// Bytes that went out.
    pub(crate) sent_bytes: u64,
    /// Connections for which there was no place.
    pub(crate) turned_away: u64,
    /// TLS handshakes of those who connected, by how they ended.
    pub(crate) handshakes: BTreeMap<&'static str, u64>,
    /// TLS handshakes with others that failed.
    pub(crate) failed_dials: u64,
    /// The streams to the masters.
    pub(crate) masters: Vec<MasterObservation>,
    /// Whether a master tells of users, if they are kept there.
    pub(crate) users_told: Option<bool>,
}

/// Who the node is.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// Its id.
    pub(crate) id: String,
    /// The name and port that it tells others.
    pub(crate) address: String,
}

/// The stream to one master.
#[derive(Debug, Clone)]
pub(crate) struct MasterObservation {
    /// As it was given to the node.
    pub(crate) address: String,
    /// Whether the master has said welcome on a stream that still stands.
    pub(crate) is_connected: bool,
    /// How many streams that stood were lost.
    pub(crate) streams_lost: u64,
}

/// The type of what [`text`] returns.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics.
///
/// # Errors
/// None that could happen: writing to a string does not fail.
pub(crate) fn text(observation: Observation) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("arborcast_node");
    registry.register_collector(Box::new(observation));
    let mut text = String::with_capacity(16 << 10);
    prometheus_text::encode(&mut text, &registry)?;
    Ok(text)
}

/// Writes one metric after the other.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: usize) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        encoder.encode_counter::<NoLabelSet, _, f64>(&value, None)
    }

    fn gauges<'v>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'v str, u64)>,
    ) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (value, number) in values {
            encoder.encode_family(&[(label, value)])?.encode_gauge(&number)?;
        }
        Ok(())
    }

    fn counters<'v>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'v str, u64)>,
    ) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (value, number) in values {
            encoder.encode_family(&[(label, value)])?.encode_counter::<NoLabelSet, _, f64>(&number, None)?;
        }
        Ok(())
    }

    /// Facts that are no numbers, as the labels of a metric that is always 1.
    fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str)]) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_family(&labels)?.encode_gauge(&1_u64)
    }
}

impl Collector for Observation {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Families(encoder);
        self.encode_identity(&mut out)?;
        self.encode_connections(&mut out)?;
        self.encode_links(&mut out)?;
        self.encode_activities(&mut out)?;
        if self.status.is_extended {
            self.encode_tree(&mut out)?;
            self.encode_masters(&mut out)?;
        }
        self.encode_users(&mut out)
    }
}

impl Observation {
    fn encode_identity(&self, out: &mut Families<'_>) -> fmt::Result {
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        out.info("build_info", "What is running here", &version)?;
        let Identity { id, address } = &self.identity;
        out.info("info", "Who this node is", &[("id", id), ("address", address)])?;
        let is_ready = usize::from(self.status.readiness.is_ok());
        out.gauge("ready", "Whether /readyz says yes", is_ready)
    }

    fn encode_connections(&self, out: &mut Families<'_>) -> fmt::Result {
        let Status { connections, sessions, links, closings, counters, .. } = &self.status;
        let others = connections.saturating_sub(sessions + links);
        let by_kind = [("client", *sessions), ("server", *links), ("unidentified", others)];
        let by_kind = by_kind.map(|(kind, number)| (kind, number as u64));
        out.gauges("connections", "Connections by who is at the other end", "kind", by_kind)?;
        out.gauge("connections_limit", "Most connections at one time", self.max_connections)?;
        out.counter("connections_accepted", "Connections that others made", counters.accepted)?;
        out.counter("connections_dialled", "Connections that this node made", counters.dialled)?;
        out.counter("connections_turned_away", "Connections for which there was no place", self.turned_away)?;
        let closed = closings.iter().map(|(reason, number)| (reason.name(), *number));
        out.counters("connections_closed", "Connections that ended, by why", "reason", closed)?;
        let refusals = counters.refusals.iter().map(|(reason, number)| (*reason, *number));
        out.counters("refusals", "Connections that were refused something, by what was wrong", "reason", refusals)?;
        let handshakes = self.handshakes.iter().map(|(outcome, number)| (*outcome, *number));
        let help = "TLS handshakes of those who connected, by how they ended";
        out.counters("tls_handshakes", help, "outcome", handshakes)?;
        let help = "TLS handshakes with servers to which this node connected that failed";
        out.counter("tls_dials_failed", help, self.failed_dials)?;
        out.counter("logins", "Successful logins", counters.logins)?;
        out.counter("tickets", "Tickets of masters with which clients were admitted", counters.tickets_taken)?;
        out.counter("received_bytes", "Bytes that came over all connections", self.received_bytes)?;
        out.counter("sent_bytes", "Bytes that went out over all connections", self.sent_bytes)
    }

    fn encode_links(&self, out: &mut Families<'_>) -> fmt::Result {
        let messages = self.status.counters.link_messages.iter().map(|(command, number)| (*command, *number));
        let help = "Messages that came from other servers and are no activities, by command";
        out.counters("link_messages", help, "command", messages)
    }

    fn encode_activities(&self, out: &mut Families<'_>) -> fmt::Result {
        let Status { counters, relay, log_entries, .. } = &self.status;
        let received = [("client", counters.activities_from_clients), ("server", counters.activities_from_servers)];
        let help = "Activities that came, by who sent them";
        out.counters("activities_received", help, "from", received)?;
        // Without names every activity that comes goes out.
        let taken = relay.map_or_else(|| received.iter().map(|(_, number)| number).sum(), |relay| relay.taken);
        out.counter("activities_published", "Activities that were put into the log, for everyone", taken)?;
        let help = "Bytes that are kept for slow readers and those who come back, by the form of the log";
        out.gauges("log_bytes", help, "form", self.log_bytes)?;
        out.gauges("log_limit_bytes", "Most bytes of one log", "form", [("each", self.max_log_bytes)])?;
        let Some(relay) = relay else { return Ok(()) };
        out.gauge("log_entries", "Activities that are kept for those who come back", *log_entries)?;
        out.counter("duplicates_suppressed", "Activities dropped since they were there already", relay.repeated)?;
        let dropped = [("contradiction", relay.contradictions), ("impostor", relay.impostors)];
        let help = "Activities dropped since their name is another's";
        out.counters("activities_dropped", help, "reason", dropped)?;
        out.counter("activities_renamed", "Activities that entered the tree twice", relay.renamed)?;
        out.counter("relay_gaps", "Times that activities were given up as lost", relay.gaps)?;
        out.counter("relay_missed", "Activities that were given up as lost", relay.missed)?;
        out.counter("relay_resyncs", "Times that a neighbour was asked again for what is missing", relay.resyncs)?;
        out.counter("activities_held_back", "Activities that waited for their predecessor", relay.held_back)?;
        out.counter("activities_out_of_turn", "Activities whose predecessor did not come", relay.out_of_turn)
    }

    fn encode_tree(&self, out: &mut Families<'_>) -> fmt::Result {
        let Status { key, depth, parent, children, counters, readiness, .. } = &self.status;
        let reign = match key.reign {
            Reign::Settled(reign) => reign.to_string(),
            Reign::Unsettled => "unsettled".to_owned(),
        };
        out.info("fragment_info", "The key of the fragment of the tree", &[("reign", &reign), ("root", &key.root)])?;
        let above = parent.as_deref().unwrap_or_default();
        out.info("parent_info", "The parent; empty at a root", &[("parent", above)])?;
        out.gauge("root", "Whether this node has no parent", usize::from(parent.is_none()))?;
        let states = [
            ("draining", *readiness == Err(NotReady::Draining)),
            ("joining", *readiness == Err(NotReady::Joining)),
            ("live", readiness.is_ok()),
            ("orphaned", *readiness == Err(NotReady::Orphaned)),
        ];
        let states = states.map(|(state, is_it)| (state, u64::from(is_it)));
        out.gauges("state", "1 for the state that the node is in", "state", states)?;
        out.gauge("depth", "Links between the root and this node", *depth)?;
        out.gauge("children", "Child servers", children.len())?;
        let below = children.iter().map(|child| (child.as_str(), 1));
        out.gauges("child_info", "The child servers", "child", below)?;
        out.counter("parents_lost", "Times that the parent was lost or left", counters.parents_lost)?;
        let refused = counters.link_refusals.iter().map(|(reason, number)| (*reason, *number));
        let help = "Servers that wanted to be children and were refused, by why";
        out.counters("attachments_refused", help, "reason", refused)?;
        let moves = counters.moves.iter().map(|(outcome, number)| (*outcome, *number));
        out.counters("moves", "Proposals of masters to move, by what became of them", "outcome", moves)?;
        self.encode_heals(out)
    }

    fn encode_heals(&self, out: &mut Families<'_>) -> fmt::Result {
        let heals = &self.status.counters.heals;
        let buckets = HEAL_BOUNDS.iter().zip(heals.per_bound).map(|(bound, number)| (*bound as f64 / 1000.0, number));
        let buckets: Vec<_> = buckets.collect();
        let help = "From losing the parent to having one again";
        let mut encoder = out.0.encode_descriptor("heal_duration_seconds", help, None, MetricType::Histogram)?;
        encoder.encode_histogram::<NoLabelSet>(heals.sum.as_secs_f64(), heals.count, &buckets, None)
    }

    fn encode_masters(&self, out: &mut Families<'_>) -> fmt::Result {
        let up = self.masters.iter().map(|master| (master.address.as_str(), u64::from(master.is_connected)));
        out.gauges("master_up", "Whether the stream to this master stands", "master", up)?;
        let lost = self.masters.iter().map(|master| (master.address.as_str(), master.streams_lost));
        out.counters("master_streams_lost", "Streams to this master that stood and were lost", "master", lost)
    }

    fn encode_users(&self, out: &mut Families<'_>) -> fmt::Result {
        let Status { users, unsettled, user_counters, counters, servers, is_extended, .. } = &self.status;
        out.gauge("servers", "Other servers that are known, or named by masters to send clients to", *servers)?;
        out.gauge("users", "Usernames that are known, pending ones included", *users)?;
        out.gauge("registrations_pending", "Registrations that are not settled", *unsettled)?;
        let failed = counters.registrations_failed.iter().map(|(reason, number)| (*reason, *number));
        let outcomes = std::iter::once(("success", counters.registered)).chain(failed);
        let help = "Registrations of clients of this node, by how they ended";
        out.counters("registrations", help, "outcome", outcomes)?;
        if !is_extended {
            return Ok(());
        }
        if let (Some(is_told), Some(not_stored)) = (self.users_told, self.status.users_not_stored) {
            out.gauge("users_told", "Whether a master tells of users", usize::from(is_told))?;
            out.gauge("users_not_at_masters", "Users that are known here and that the masters don't have", not_stored)?;
            let help = "Users of the masters whose names are known here as others'";
            out.counter("users_conflicting", help, user_counters.conflicts)?;
        }
        out.counter("users_replaced", "Registrations that an earlier one has replaced", user_counters.replaced)?;
        out.counter("user_writes_failed", "Writes of users to disk that failed", user_counters.failed_writes)?;
        let dropped = [("message", user_counters.dropped_messages), ("record", user_counters.dropped_records)];
        out.counters("user_updates_dropped", "What came about users and was no use", "kind", dropped)
    }
}
