//! What goes with sending clients to nodes: the tickets they carry, and how often it was done.

use std::time::{Duration, SystemTime};

use arborcast_proto::ticket::{LIFETIME, Ticket, TicketKey};
use arborcast_proto::wire::{Origin, Secret};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry as Metricset;

use crate::topology::assignment::Assigned;

/// For how long a ticket is good.
pub(crate) const EXPIRES_IN: Duration = Duration::from_secs(LIFETIME);

/// Makes the tickets of one master.
#[derive(Debug)]
pub(crate) struct TicketOffice {
    key: TicketKey,
    issuer: String,
}

impl TicketOffice {
    /// For the master with this id, in the cluster with this secret.
    pub(crate) fn new(cluster: &Secret, issuer: String) -> Self {
        Self { key: TicketKey::derive(cluster), issuer }
    }

    /// A ticket that admits one client there, from now on.
    pub(crate) fn ticket(&self, assigned: &Assigned) -> Secret {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let ticket = Ticket {
            issuer: self.issuer.as_str().into(),
            audience: Origin { id: assigned.id.as_str().into(), incarnation: assigned.incarnation.0 },
            expires_at: now.as_secs().saturating_add(LIFETIME),
            number: rand::random(),
        };
        ticket.sign(&self.key)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// Questions of clients for a node, by what came of them.
#[derive(Debug, Default)]
pub(crate) struct Assignments(Family<Outcome, Counter>);

impl Assignments {
    /// A client was named a node.
    pub(crate) fn count_assigned(&self) {
        self.count("assigned");
    }

    /// The question broke its bounds.
    pub(crate) fn count_invalid(&self) {
        self.count("invalid");
    }

    /// There was no node to name.
    pub(crate) fn count_no_node(&self) {
        self.count("no_node");
    }

    /// The master was not to name a node while it warms up.
    pub(crate) fn count_warming(&self) {
        self.count("warming");
    }

    fn count(&self, outcome: &'static str) {
        self.0.get_or_create(&Outcome { outcome }).inc();
    }

    /// For Prometheus.
    pub(crate) fn register(&self, metrics: &mut Metricset) {
        for outcome in ["assigned", "invalid", "no_node", "warming"] {
            drop(self.0.get_or_create(&Outcome { outcome }));
        }
        metrics.register("assignments", "Questions of clients for a node, by what came of them", self.0.clone());
    }
}
