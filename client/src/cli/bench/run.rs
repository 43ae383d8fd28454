//! What all threads of a run share: what it is to be, how far it is, and when it is over.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use arborcast_client::{Address, Identity, Options};
use arborcast_proto::wire::message::ANONYMOUS;
use arborcast_proto::wire::{Message, Resume, Secret};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::args::Plan;
use super::connection::{EnterError, Server};

/// How far the run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Clients log in.
    LoggingIn,
    /// Publishers publish.
    Publishing,
    /// They have stopped, and what is on its way arrives.
    Ending,
}

/// Counters that grow while it runs. Each is exact; two of them need not be of the same moment.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Clients that are logged in now.
    pub(crate) connected: AtomicUsize,
    /// Logins, those after redirections and lost connections included.
    pub(crate) logins: AtomicU64,
    /// Connections that were lost after their login.
    pub(crate) lost_connections: AtomicU64,
    /// Publishers that have published all they had to.
    pub(crate) finished: AtomicUsize,
    pub(crate) deliveries: AtomicU64,
    pub(crate) bytes: AtomicU64,
    /// Activities that came back to their publisher, or were acknowledged.
    pub(crate) acknowledged: AtomicU64,
    /// When something was published last, in nanoseconds from the start.
    pub(crate) last_published: AtomicU64,
    /// The longest silence that has ended, in nanoseconds.
    pub(crate) longest_silence: AtomicU64,
}

#[derive(Debug)]
pub(crate) struct Run {
    /// A random number by which its activities are recognised.
    pub(crate) id: u64,
    pub(crate) plan: Plan,
    pub(crate) servers: Vec<Server>,
    /// Asked by each client where to go, if there are any.
    pub(crate) masters: Vec<Address>,
    pub(crate) options: Options,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) progress: Progress,
    /// Ends all threads.
    pub(crate) over: CancellationToken,
    /// It can't go on; the reason is there.
    pub(crate) failed: CancellationToken,
    published: Box<[AtomicU64]>,
    identity: Identity,
    start: OnceLock<Instant>,
    failure: Mutex<Option<EnterError>>,
}

impl Run {
    pub(crate) fn new(
        plan: Plan,
        servers: Vec<Server>,
        masters: Vec<Address>,
        identity: Identity,
        options: Options,
    ) -> Self {
        Self {
            id: rand::random(),
            published: (0..plan.publishers).map(|_| AtomicU64::new(0)).collect(),
            plan,
            servers,
            masters,
            options,
            phase: watch::Sender::new(Phase::LoggingIn),
            progress: Progress::default(),
            over: CancellationToken::new(),
            failed: CancellationToken::new(),
            identity,
            start: OnceLock::new(),
            failure: Mutex::new(None),
        }
    }

    /// Lets the publishers begin.
    pub(crate) fn start(&self) {
        self.start.get_or_init(Instant::now);
        self.phase.send_replace(Phase::Publishing);
    }

    /// When the run started; before that, now.
    pub(crate) fn started(&self) -> Instant {
        self.start.get().copied().unwrap_or_else(Instant::now)
    }

    /// Nanoseconds since the start; 0 before it.
    pub(crate) fn now(&self) -> u64 {
        self.start.get().map_or(0, |start| u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Notes how many one of the publishers has published.
    pub(crate) fn set_published(&self, publisher: usize, count: u64) {
        if let Some(published) = self.published.get(publisher) {
            published.store(count, Ordering::Relaxed);
        }
    }

    /// How many each publisher has published.
    pub(crate) fn published(&self) -> Vec<u64> {
        self.published.iter().map(|published| published.load(Ordering::Relaxed)).collect()
    }

    /// The run can't go on. The first reason counts.
    pub(crate) fn fail(&self, error: EnterError) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.failed.cancel();
    }

    /// Why it can't, if it can't.
    pub(crate) fn failure(&self) -> Option<EnterError> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The name and the secret that messages carry.
    pub(crate) fn name_and_secret(&self) -> (String, Option<Secret>) {
        match &self.identity {
            Identity::Anonymous => (ANONYMOUS.to_owned(), None),
            Identity::User(credentials) => (credentials.username.clone(), Some(credentials.secret.clone())),
        }
    }

    pub(crate) fn login(&self, resume: Option<Resume>) -> Message {
        let (username, secret) = self.name_and_secret();
        Message::Login { username, secret, resume, ticket: None }
    }
}
