//! Talking to the masters: one task and one stream for each, so that one that hangs holds up nobody. Masters advise; what
//! they say is handed to the core, which decides.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arborcast_core::{Config, Event, MoveAnswer, MoveOutcome, MoveProposal, NamedServer, TreeView};
use arborcast_proto::registry::advice::Kind;
use arborcast_proto::registry::registry_client::RegistryClient;
use arborcast_proto::registry::{
    self as pb, Candidate, FindParentRequest, FragmentKey as ReportedKey, NodeReport, NodeState, SettledTickets,
};
use arborcast_proto::users::users_client::UsersClient;
use arborcast_proto::wire::message::Target;
use arborcast_proto::wire::{FragmentKey, Reign};
use arborcast_tls::{Tls, connector};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tracing::{debug, info, warn};

use crate::memory::Memory;
use crate::net::Inbound;
use crate::settings::Masters;

/// How long connecting to a master may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the masters together may take to answer; less than the core waits.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(400);

/// Between two pieces of advice of one master that are listened to. What a flood of them says waits at the master.
const ADVICE_PAUSE: Duration = Duration::from_millis(100);

/// How long the other masters are waited for once one has named somebody.
const OTHERS_TIMEOUT: Duration = Duration::from_millis(50);

/// Most candidates, and most other servers, that are taken from one master at a time; masters name no more.
const MAX_CANDIDATES: usize = 16;

/// How often a quiet connection to a master is asked whether it still stands.
const KEEPALIVE: Duration = Duration::from_secs(2);

/// The pause before a lost master is tried again, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// How long changes of what is remembered may wait to be written.
const SAVE_AFTER: Duration = Duration::from_secs(1);

/// Of a row of failures the first and every so many are logged as a warning.
const WARN_EVERY: u32 = 30;

type Secret = MetadataValue<Ascii>;

/// The masters as the driver sees them.
pub(crate) struct Registry {
    clients: Vec<Client>,
    template: NodeReport,
    reports: watch::Sender<NodeReport>,
    remembered: watch::Sender<Vec<Target>>,
}

/// The state of the stream to each master, by the master's address.
pub(crate) type MasterStates = Vec<(String, Arc<MasterState>)>;

/// The state of the stream to one master.
#[derive(Debug, Default)]
pub(crate) struct MasterState {
    is_connected: AtomicBool,
    streams_lost: AtomicU64,
}

impl MasterState {
    pub(crate) fn is_connected(&self) -> bool {
        self.is_connected.load(Ordering::Relaxed)
    }

    pub(crate) fn streams_lost(&self) -> u64 {
        self.streams_lost.load(Ordering::Relaxed)
    }

    fn on_welcome(&self) {
        self.is_connected.store(true, Ordering::Relaxed);
    }

    fn on_stream_ended(&self) {
        if self.is_connected.swap(false, Ordering::Relaxed) {
            self.streams_lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// One master.
#[derive(Clone)]
pub(crate) struct Client {
    address: String,
    state: Arc<MasterState>,
    channel: Channel,
    secret: Secret,
}

impl Registry {
    /// Starts a task for each master, and one that keeps what is remembered, all of which end with `ended`.
    pub(crate) fn start(
        masters: &Masters,
        config: &Config,
        tls: Option<&Arc<Tls>>,
        inbox: &mpsc::Sender<Inbound>,
        ended: &CancellationToken,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let template =
            NodeReport { masters: u32::try_from(masters.addresses.len()).unwrap_or(u32::MAX), ..template(config) };
        let (reports, remembered) = (watch::Sender::new(template.clone()), watch::Sender::new(Vec::new()));
        let clients: Vec<Client> =
            masters.addresses.iter().filter_map(|address| Client::new(address, config, tls)).collect();
        for client in clients.clone() {
            let task = client.keep_reporting(reports.subscribe(), inbox.clone());
            tasks.spawn(until(ended.clone(), task));
        }
        if let Some(path) = masters.memory.clone() {
            let (id, incarnation) = (template.node_id.clone(), template.incarnation);
            let memory = Memory { id, incarnation, servers: Vec::new() };
            tasks.spawn(until(ended.clone(), keep(memory, path, remembered.subscribe())));
        }
        Self { clients, template, reports, remembered }
    }

    /// The state of the stream to each master.
    pub(crate) fn states(&self) -> MasterStates {
        self.clients.iter().map(|client| (client.address.clone(), Arc::clone(&client.state))).collect()
    }

    /// The masters, to be asked for something else.
    pub(crate) fn clients(&self) -> Vec<Client> {
        self.clients.clone()
    }

    /// Tells the masters where the node stands, if that has changed. How many activities it has passed on so far they hear
    /// with the next heartbeat.
    pub(crate) fn report<'a>(
        &self,
        view: &TreeView,
        activities: u64,
        remembered: impl Iterator<Item = &'a Target> + Clone,
    ) {
        let report = NodeReport { activities, ..report(&self.template, view) };
        self.reports.send_if_modified(|last| {
            last.activities = activities;
            let is_new = *last != report;
            *last = report;
            is_new
        });
        // Asked for with every heartbeat and changed seldom: copied only then.
        self.remembered.send_if_modified(|last| {
            let is_new = !remembered.clone().eq(last.iter());
            if is_new {
                *last = remembered.cloned().collect();
            }
            is_new
        });
    }

    /// Asks all masters at once. Once one has named somebody the others get a moment to do so as well, and what they name
    /// is taken in turns: one that lies, at whatever length, can't keep the others from being heard.
    pub(crate) fn find_parent(&self, view: &TreeView) -> impl Future<Output = Vec<Target>> + Send + use<> {
        let request = FindParentRequest {
            node_id: self.template.node_id.clone(),
            incarnation: self.template.incarnation,
            key: Some(reported_key(&view.position.key)),
            leave_out: Vec::new(),
        };
        let mut questions: FuturesUnordered<_> =
            self.clients.iter().cloned().map(|client| client.find_parent(request.clone())).collect();
        async move {
            let mut answers: Vec<Vec<Target>> = Vec::new();
            let mut deadline = Instant::now() + ANSWER_TIMEOUT;
            while let Ok(Some(candidates)) = timeout_at(deadline, questions.next()).await {
                if !candidates.is_empty() {
                    deadline = deadline.min(Instant::now() + OTHERS_TIMEOUT);
                    answers.push(candidates);
                }
            }
            in_turns(answers)
        }
    }
}

/// The first of each, then the second of each, and so on.
fn in_turns(answers: Vec<Vec<Target>>) -> Vec<Target> {
    let mut ranked: Vec<(usize, Target)> =
        answers.into_iter().flat_map(|answer| answer.into_iter().take(MAX_CANDIDATES).enumerate()).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, target)| target).collect()
}

impl Client {
    pub(crate) fn new(address: &str, config: &Config, tls: Option<&Arc<Tls>>) -> Option<Self> {
        let secret = format!("Bearer {}", config.secret.expose()).parse();
        let endpoint = Endpoint::from_shared(format!("http://{address}"));
        let (Ok(mut secret), Ok(endpoint)) = (secret, endpoint) else {
            // The command line has checked both.
            warn!(master = address, "can't be used as a master");
            return None;
        };
        Secret::set_sensitive(&mut secret, true);
        let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).http2_keep_alive_interval(KEEPALIVE);
        let endpoint = endpoint.keep_alive_timeout(KEEPALIVE);
        let channel = match tls.filter(|tls| tls.is_used()) {
            Some(tls) => endpoint.connect_with_connector_lazy(connector(Arc::clone(tls))),
            None => endpoint.connect_lazy(),
        };
        Some(Self { address: address.to_owned(), state: Arc::default(), channel, secret })
    }

    /// As it was given to the node.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Whether it has said welcome on a stream that still stands.
    pub(crate) fn is_connected(&self) -> bool {
        self.state.is_connected()
    }

    /// The master as a keeper of users.
    pub(crate) fn users(&self) -> UsersClient<Channel> {
        UsersClient::new(self.channel.clone())
    }

    /// A request that says who we are.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.secret.clone());
        request
    }

    async fn find_parent(self, request: FindParentRequest) -> Vec<Target> {
        let request = self.request(request);
        match RegistryClient::new(self.channel.clone()).find_parent(request).await {
            Ok(answer) => targets(answer.into_inner().candidates),
            Err(status) => {
                debug!(master = self.address, %status, "a master can't tell a parent");
                Vec::new()
            }
        }
    }

    /// One stream after the other, for ever.
    async fn keep_reporting(self, reports: watch::Receiver<NodeReport>, inbox: mpsc::Sender<Inbound>) {
        let mut failures = 0_u32;
        loop {
            let status = self.report(reports.clone(), &inbox, &mut failures).await;
            self.state.on_stream_ended();
            if failures.is_multiple_of(WARN_EVERY) {
                warn!(master = self.address, %status, failures, "no contact with this master");
            } else {
                debug!(master = self.address, %status, failures, "no contact with this master");
            }
            let pause = PAUSE.0.saturating_mul(1 << failures.min(8)).min(PAUSE.1);
            failures = failures.saturating_add(1);
            sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        }
    }

    /// One stream, until it breaks.
    async fn report(
        &self,
        reports: watch::Receiver<NodeReport>,
        inbox: &mpsc::Sender<Inbound>,
        failures: &mut u32,
    ) -> Status {
        let mut advice = match RegistryClient::new(self.channel.clone()).report(self.request(stream(reports))).await {
            Ok(advice) => advice.into_inner(),
            Err(status) => return status,
        };
        loop {
            let kind = match advice.message().await {
                Ok(Some(advice)) => advice.kind,
                Ok(None) => return Status::new(Code::Unavailable, "the master ended the stream"),
                Err(status) => return status,
            };
            let inbound = match kind {
                Some(Kind::Welcome(welcome)) => {
                    *failures = 0;
                    self.state.on_welcome();
                    info!(master = self.address, id = welcome.master_id, warming = welcome.warming, "master found");
                    if !welcome.keeps_users {
                        continue;
                    }
                    Inbound::Answered(Event::MastersKeepUsers)
                }
                Some(Kind::Fragment(other)) => {
                    Inbound::Advised { candidates: in_turns(vec![targets(other.candidates)]) }
                }
                Some(Kind::Move(message)) => match proposal(message) {
                    Some(proposal) => Inbound::MoveProposed(proposal),
                    None => continue,
                },
                Some(Kind::Servers(servers)) => Inbound::ServersNamed {
                    least_loaded: servers.least_loaded.into_iter().take(MAX_CANDIDATES).filter_map(named).collect(),
                    others: servers
                        .others
                        .into_iter()
                        .take(MAX_CANDIDATES)
                        .filter_map(named)
                        .map(|server| server.target)
                        .collect(),
                },
                Some(Kind::Drain(_)) => {
                    info!(master = self.address, "asked to drain");
                    Inbound::Drain
                }
                None => continue,
            };
            if inbox.send(inbound).await.is_err() {
                return Status::cancelled("the node has stopped");
            }
            sleep(ADVICE_PAUSE).await;
        }
    }
}

/// The reports as a stream: the state at once, then at every change and with every heartbeat.
fn stream(reports: watch::Receiver<NodeReport>) -> impl futures_util::Stream<Item = NodeReport> + Send + 'static {
    futures_util::stream::unfold((reports, true), |(mut reports, is_first)| async move {
        let heartbeat = Duration::from_millis(reports.borrow().heartbeat_interval_ms.into());
        if is_first {
            // Nothing has been said before the core has started.
            let started = reports.wait_for(|report| report.state() != NodeState::Unspecified).await;
            drop(started.ok()?);
        } else if let Ok(Err(_closed)) = timeout(heartbeat, reports.changed()).await {
            return None;
        }
        let report = reports.borrow_and_update().clone();
        Some((report, (reports, false)))
    })
}

/// Writes what is remembered whenever it has changed, not too often.
async fn keep(mut memory: Memory, path: PathBuf, mut remembered: watch::Receiver<Vec<Target>>) {
    while remembered.changed().await.is_ok() {
        sleep(SAVE_AFTER).await;
        memory.servers.clone_from(&remembered.borrow_and_update());
        let (written, to) = (memory.clone(), path.clone());
        match tokio::task::spawn_blocking(move || written.save(&to)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(path = %path.display(), %error, "can't remember the other servers"),
            Err(_panicked_or_cancelled) => return,
        }
    }
}

async fn until(ended: CancellationToken, task: impl Future<Output = ()>) {
    let _ = ended.run_until_cancelled(task).await;
}

/// What is the same in all reports of this run.
fn template(config: &Config) -> NodeReport {
    let extensions = config.extensions.as_ref();
    let interval = extensions.map_or(Duration::from_secs(1), |extensions| extensions.heartbeat_interval);
    NodeReport {
        node_id: config.id.clone(),
        incarnation: extensions.map_or(0, |extensions| extensions.incarnation),
        hostname: config.hostname.clone(),
        port: config.port.into(),
        version: concat!("arborcast-node ", env!("CARGO_PKG_VERSION")).to_owned(),
        max_children: extensions.map_or(0, |extensions| u32::try_from(extensions.max_children).unwrap_or(u32::MAX)),
        heartbeat_interval_ms: u32::try_from(interval.as_millis()).unwrap_or(u32::MAX),
        ..NodeReport::default()
    }
}

fn report(template: &NodeReport, view: &TreeView) -> NodeReport {
    let is_unsettled = view.position.key.reign == Reign::Unsettled;
    let state = match (view.is_draining, view.is_orphan, is_unsettled) {
        (true, _, _) => NodeState::Draining,
        (false, true, _) => NodeState::Orphaned,
        (false, false, true) => NodeState::Joining,
        (false, false, false) => NodeState::Live,
    };
    NodeReport {
        key: Some(reported_key(&view.position.key)),
        parent_id: view.parent.clone().unwrap_or_default(),
        depth: u32::try_from(view.position.path.len().saturating_sub(1)).unwrap_or(u32::MAX),
        path: view.position.path.iter().rev().take(MAX_PATH).rev().cloned().collect(),
        children: view.children.iter().take(MAX_CHILDREN).cloned().collect(),
        load: view.load as u64,
        settled_tickets: settled_tickets(view),
        state: state.into(),
        move_answer: view.move_answer.as_ref().map(move_answer),
        ..template.clone()
    }
}

fn settled_tickets(view: &TreeView) -> Vec<SettledTickets> {
    let settled = view.settled_tickets.iter();
    settled.map(|(master, count)| SettledTickets { master_id: master.to_string(), count: *count }).collect()
}

/// The longest path, and the most children, that a report may hold.
const MAX_PATH: usize = 512;
const MAX_CHILDREN: usize = 1024;

fn reported_key(key: &FragmentKey) -> ReportedKey {
    let (reign, unsettled) = match key.reign {
        Reign::Settled(reign) => (reign, false),
        Reign::Unsettled => (0, true),
    };
    ReportedKey { reign, root_id: key.root.clone(), unsettled }
}

fn targets(candidates: Vec<Candidate>) -> Vec<Target> {
    candidates.into_iter().filter_map(target).collect()
}

fn target(candidate: Candidate) -> Option<Target> {
    let port = u16::try_from(candidate.port).ok()?;
    Some(Target { id: candidate.node_id, hostname: candidate.hostname, port })
}

fn named(server: pb::OtherServer) -> Option<NamedServer> {
    let port = u16::try_from(server.port).ok()?;
    Some(NamedServer { target: Target { id: server.node_id, hostname: server.hostname, port }, load: server.load })
}

fn key(reported: ReportedKey) -> FragmentKey {
    let reign = if reported.unsettled { Reign::Unsettled } else { reported.reign.into() };
    FragmentKey { reign, root: reported.root_id }
}

/// What a master proposes, if it is whole.
fn proposal(message: pb::MoveProposal) -> Option<MoveProposal> {
    let mut candidate = message.target?;
    let key = key(candidate.key.take()?);
    let (parent, relieves_parent) = (message.parent_id, message.relieves_parent);
    Some(MoveProposal { target: target(candidate)?, key, parent, relieves_parent })
}

fn move_answer(answer: &MoveAnswer) -> pb::MoveAnswer {
    let outcome = match answer.outcome {
        MoveOutcome::Moved => pb::MoveOutcome::Moved,
        MoveOutcome::Busy => pb::MoveOutcome::Busy,
        MoveOutcome::Draining => pb::MoveOutcome::Draining,
        MoveOutcome::Failed => pb::MoveOutcome::Failed,
        MoveOutcome::NoGain => pb::MoveOutcome::NoGain,
        MoveOutcome::NotAttached => pb::MoveOutcome::NotAttached,
        MoveOutcome::OutOfDate => pb::MoveOutcome::OutOfDate,
        MoveOutcome::OwnSubtree => pb::MoveOutcome::OwnSubtree,
        MoveOutcome::PreferredParent => pb::MoveOutcome::PreferredParent,
        MoveOutcome::Refused => pb::MoveOutcome::Refused,
        MoveOutcome::TreeBusy => pb::MoveOutcome::TreeBusy,
        MoveOutcome::Unreachable => pb::MoveOutcome::Unreachable,
        MoveOutcome::Unsettled => pb::MoveOutcome::Unsettled,
    };
    pb::MoveAnswer {
        number: answer.number,
        target_id: answer.target.clone(),
        parent_id: answer.parent.clone(),
        outcome: outcome.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(id: &str) -> Target {
        Target { id: id.into(), hostname: "h".into(), port: 1 }
    }

    #[test]
    fn a_master_that_names_thousands_does_not_bury_what_another_names() {
        let lies: Vec<_> = (0..10_000).map(|lie| target(&format!("lie-{lie}"))).collect();
        let candidates = in_turns(vec![lies, vec![target("right"), target("too")], Vec::new()]);
        assert_eq!(candidates.len(), MAX_CANDIDATES + 2);
        assert_eq!((candidates[1].id.as_str(), candidates[3].id.as_str()), ("right", "too"));
    }
}
