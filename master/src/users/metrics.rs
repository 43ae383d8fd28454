//! What is counted about users. Only masters that keep users have these metrics.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// What a registration can come to.
pub(crate) const OUTCOMES: [&str; 5] = ["registered", "taken", "invalid", "refused", "unavailable"];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// Counters, and how things stand.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    registrations: Family<Outcome, Counter>,
    lookups: Family<Outcome, Counter>,
    skipped: Family<Reason, Counter>,
    deleted: Counter,
    whole: Counter,
    watchers: AtomicUsize,
    is_up: AtomicBool,
}

impl Metrics {
    pub(crate) fn registration(&self, outcome: &'static str) {
        self.registrations.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn lookup(&self, outcome: &'static str) {
        self.lookups.get_or_create(&Outcome { outcome }).inc();
    }

    /// Counts what is no user, and says how many there were.
    pub(crate) fn skipped(&self, reason: &'static str) -> u64 {
        self.skipped.get_or_create(&Reason { reason }).inc() + 1
    }

    /// Counts what was deleted, and says how often that was.
    pub(crate) fn deleted(&self) -> u64 {
        self.deleted.inc() + 1
    }

    pub(crate) fn told_whole(&self) {
        self.whole.inc();
    }

    pub(crate) fn watcher_came(&self) {
        self.watchers.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn watcher_left(&self) {
        self.watchers.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether etcd answers; returns what it was before.
    pub(crate) fn set_up(&self, is_up: bool) -> bool {
        self.is_up.swap(is_up, Ordering::Relaxed)
    }

    /// Adds all of them.
    pub(crate) fn register(&self, metrics: &mut Registry) {
        for outcome in OUTCOMES {
            drop(self.registrations.get_or_create(&Outcome { outcome }));
        }
        metrics.register(
            "user_registrations",
            "Registrations that nodes asked for, by what came of it",
            self.registrations.clone(),
        );
        metrics.register("user_lookups", "Users that nodes asked for, by what came of it", self.lookups.clone());
        metrics.register(
            "users_skipped",
            "Keys and values in etcd that are no users, each time they are met",
            self.skipped.clone(),
        );
        metrics.register("users_deleted", "Users that somebody deleted from etcd, by each watch", self.deleted.clone());
        metrics.register("users_told_whole", "Times that a node was told of all users", self.whole.clone());
        let watchers = Gauge::<i64>::default();
        watchers.set(i64::try_from(self.watchers.load(Ordering::Relaxed)).unwrap_or(i64::MAX));
        metrics.register("user_watchers", "Nodes that are told of users", watchers);
        let is_up = Gauge::<i64>::default();
        is_up.set(i64::from(self.is_up.load(Ordering::Relaxed)));
        metrics.register("users_store_up", "1 while etcd answers, with a quorum", is_up);
    }
}
