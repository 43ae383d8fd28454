//! The only owner of the core: hands it what happens, and carries out what it says.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arborcast_core::relay::Position;
use arborcast_core::{
    Action, AttemptId, CloseReason, ConnectionId, Event, GiveUp, MoveProposal, NamedServer, Node, ReceivedLine, Status,
};
use arborcast_proto::wire::message::PLAIN_BROADCAST_HEAD;
use arborcast_proto::wire::message::Target;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::broadcast_log::{BroadcastLogs, Draft, PerForm};
use super::dialer::{Dialer, dial};
use super::fan_out::{Command, FanOutHandle};
use super::line_room::LineRoom;
use super::pace::Pace;
use super::reader::Reader;
use super::sleep_until;
use super::traffic::Traffic;
use super::transport::Connection;
use super::user_work::UserWork;
use super::writer::{Ending, Subscription, Writer};
use crate::registry::Registry;
use crate::settings::milliseconds_since_1970;
use crate::users::Users;

/// Batches of lines that may wait for the driver, of all connections together; readers wait for room, in turn.
pub(super) const INBOX_BATCHES: usize = 256;

/// Batches that are handled before their outcome is sent out.
const BATCHES_AT_ONCE: usize = 64;

/// Bytes that are published at once.
pub(super) const MAX_DRAFT_BYTES: u64 = 256 << 10;

/// As little as that, published to as few as these, is written by one thread before another one is awake.
const FEW_BYTES: u64 = 4 << 10;
const FEW_CONNECTIONS: usize = 64;
/// How often the core is told what the clock shows, if there is something for it to do.
const CLOCK_EVERY: Duration = Duration::from_secs(1);

/// What happens on the connections.
pub(crate) enum Inbound {
    /// Somebody connected.
    Accepted { connection: Connection, slot: OwnedSemaphorePermit, as_client: bool },
    /// We connected to somebody: to the configured parent of a plain node, or as the core asked.
    Dialled { connection: Connection, slot: OwnedSemaphorePermit, attempt: Option<AttemptId> },
    /// A connection the core asked for could not be made.
    DialFailed { attempt: AttemptId },
    /// The masters have answered a question of the core.
    MastersAnswered { attempt: AttemptId, candidates: Vec<Target> },
    /// A master knows of a fragment with a smaller key.
    Advised { candidates: Vec<Target> },
    /// A master names other servers.
    ServersNamed { least_loaded: Vec<NamedServer>, others: Vec<Target> },
    /// A master proposes another place in the tree.
    MoveProposed(MoveProposal),
    /// A master passes on an operator's wish to stop this node.
    Drain,
    /// Something that the core asked for and that takes a while is done.
    Answered(Event),
    /// Somebody asks how the node is.
    Inspected { answer: oneshot::Sender<Status> },
    /// Lines came.
    Lines {
        connection: ConnectionId,
        lines: Vec<ReceivedLine>,
        /// Of the few that the connection has here at one time.
        turn: Option<OwnedSemaphorePermit>,
    },
    /// A connection ended by itself.
    Ended { connection: ConnectionId, reason: CloseReason },
}

/// What the tasks of the connections share.
pub(super) struct Shared {
    pub(super) inbox: mpsc::Sender<Inbound>,
    pub(super) logs: Arc<BroadcastLogs>,
    pub(super) pace: Arc<Pace>,
    pub(super) line_room: LineRoom,
    pub(super) traffic: Arc<Traffic>,
    pub(super) dialer: Dialer,
    pub(super) readers: TaskTracker,
    /// Cancelled when the node ends.
    pub(super) ended: CancellationToken,
    pub(super) slots: Arc<Semaphore>,
    pub(super) max_line: usize,
}

/// The task that owns the core.
pub(super) struct Driver {
    core: Node,
    shared: Shared,
    fan_outs: Vec<FanOut>,
    endings: HashMap<ConnectionId, Arc<Ending>>,
    next_id: u64,
    drafts: PerForm<Draft>,
    actions: Vec<Action>,
    registry: Option<Registry>,
    /// Where names are registered, if not in the tree.
    users: Option<Users>,
    user_work: UserWork,
    /// When the core was told what the clock shows.
    clock_read: Instant,
    /// Something happened that the masters may have to know.
    is_report_due: bool,
    /// How many were passed on.
    activities: u64,
    drained: bool,
    given_up: Option<GiveUp>,
}

/// A fan-out task, and what it has to be told after the events at hand.
struct FanOut {
    handle: FanOutHandle,
    commands: Vec<(ConnectionId, Command)>,
}

impl Driver {
    pub(super) fn new(
        core: Node,
        shared: Shared,
        fan_outs: Vec<FanOutHandle>,
        registry: Option<Registry>,
        users: Option<Users>,
        user_work: UserWork,
    ) -> Self {
        let fan_outs = fan_outs.into_iter().map(|handle| FanOut { handle, commands: Vec::new() }).collect();
        Self {
            core,
            shared,
            fan_outs,
            endings: HashMap::new(),
            next_id: 0,
            drafts: PerForm { plain: Draft::new(), extended: Draft::new() },
            actions: Vec::new(),
            registry,
            users,
            user_work,
            clock_read: Instant::now(),
            is_report_due: true,
            activities: 0,
            drained: false,
            given_up: None,
        }
    }

    /// Runs until told to stop, which a node with extensions does without loss, or until the core gives up.
    pub(super) async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Inbound>,
        stop: CancellationToken,
        is_extended: bool,
    ) -> Result<(), GiveUp> {
        let mut is_draining = false;
        let mut batches = Vec::with_capacity(BATCHES_AT_ONCE);
        while self.given_up.is_none() && !self.drained {
            let deadline = self.core.next_deadline();
            tokio::select! {
                biased;
                () = stop.cancelled(), if !is_draining => {
                    if !is_extended {
                        break;
                    }
                    is_draining = true;
                    self.handle(Event::Drain);
                }
                // What came is looked at before what is due: who was heard of just now is not silent.
                _ = inbox.recv_many(&mut batches, BATCHES_AT_ONCE) => {}
                () = sleep_until(deadline) => {}
            }
            let is_busy = batches.len() > 1;
            for inbound in batches.drain(..) {
                self.on_inbound(inbound);
                if self.unpublished_bytes() > MAX_DRAFT_BYTES {
                    self.send_out().await;
                }
            }
            // A timer future may be late when much is going on; the clock is not. And what came may be a reason to do
            // something at once.
            if self.core.next_deadline().is_some_and(|deadline| deadline <= Instant::now()) {
                self.handle(Event::DeadlinePassed);
            }
            self.send_out().await;
            if is_busy {
                // There is always more, and the readers and listeners that wait for this thread would wait for long.
                tokio::task::yield_now().await;
            }
        }
        self.handle(Event::Stop);
        self.send_out().await;
        let view = self.core.view();
        info!(closed = ?view.closings, users = ?view.user_counters, "since the start");
        self.given_up.map_or(Ok(()), Err)
    }

    fn on_inbound(&mut self, inbound: Inbound) {
        match inbound {
            Inbound::Accepted { connection, slot, as_client } => {
                let connection = self.attach(connection, slot);
                self.handle(if as_client {
                    Event::AcceptedAsClient { connection }
                } else {
                    Event::Accepted { connection }
                });
            }
            Inbound::Dialled { connection, slot, attempt } => {
                let connection = self.attach(connection, slot);
                self.handle(Event::Dialled { connection, attempt });
            }
            Inbound::DialFailed { attempt } => self.handle(Event::DialFailed { attempt }),
            Inbound::MastersAnswered { attempt, candidates } => {
                self.handle(Event::MastersAnswered { attempt, candidates });
            }
            Inbound::Advised { candidates } => self.handle(Event::Advised { candidates }),
            Inbound::ServersNamed { least_loaded, others } => {
                self.handle(Event::ServersNamed { least_loaded, others });
            }
            Inbound::MoveProposed(proposal) => self.handle(Event::MoveProposed(proposal)),
            Inbound::Drain => self.handle(Event::Drain),
            // Whoever asked may have gone.
            Inbound::Inspected { answer } => drop(answer.send(self.core.status())),
            Inbound::Answered(event) => {
                self.user_work.answered(&event);
                self.handle(event);
            }
            Inbound::Lines { connection, lines, turn } => {
                // One look at the clock for all: handling them takes less than a millisecond.
                let now = Instant::now();
                if now.saturating_duration_since(self.clock_read) >= CLOCK_EVERY {
                    self.clock_read = now;
                    self.handle_at(now, Event::ClockRead { milliseconds_since_1970: milliseconds_since_1970() });
                }
                for line in lines {
                    self.handle_at(now, Event::Received { connection, line });
                }
                drop(turn);
            }
            Inbound::Ended { connection, reason } => {
                self.handle(Event::Closed { connection, reason });
                self.finish(connection);
            }
        }
    }

    /// Starts reading from and writing to a new connection.
    fn attach(&mut self, connection: Connection, slot: OwnedSemaphorePermit) -> ConnectionId {
        let id = ConnectionId(self.next_id);
        self.next_id += 1;
        debug!(connection = %id, peer = %connection.peer, "connected");
        let ending = Arc::new(Ending::new());
        let writer = Writer::new(id, connection.write, Arc::clone(&ending), Instant::now());
        self.command(id, Command::Attach(Box::new(writer)));
        self.endings.insert(id, Arc::clone(&ending));
        let reader = Reader {
            connection: id,
            half: connection.read,
            max_line: self.shared.max_line,
            inbox: self.shared.inbox.clone(),
            gate: self.shared.pace.gate(),
            line_share: self.shared.line_room.share(),
            traffic: Arc::clone(&self.shared.traffic),
            ending,
            ended: self.shared.ended.clone(),
            slot,
        };
        self.shared.readers.spawn(reader.run());
        id
    }

    fn handle(&mut self, event: Event) {
        self.handle_at(Instant::now(), event);
    }

    fn handle_at(&mut self, now: Instant, event: Event) {
        let mut actions = std::mem::take(&mut self.actions);
        self.core.handle(now, event, &mut actions);
        for action in actions.drain(..) {
            self.carry_out(action);
        }
        self.actions = actions;
    }

    fn carry_out(&mut self, action: Action) {
        let after = self.ends();
        let is_activity = matches!(action, Action::Publish { .. } | Action::Relay { .. });
        self.activities += u64::from(is_activity);
        self.is_report_due |= !is_activity;
        match action {
            Action::Send { connection, line } => self.command(connection, Command::Push { after, line }),
            Action::Subscribe { connection, form, is_link, takes_history } => {
                let subscription = Subscription { form, is_link, takes_history };
                self.command(connection, Command::Subscribe { from: after, subscription });
            }
            Action::Publish { publication, from } => {
                self.drafts.plain.write(from.into(), |out| publication.write_to(out));
            }
            Action::Relay { line, head, source } => {
                self.drafts.extended.write(source, |out| out.extend_from_slice(&line));
                if let Some(rest) = head.and_then(|head| line.get(head..)) {
                    self.drafts.plain.write(source, |out| {
                        out.extend_from_slice(PLAIN_BROADCAST_HEAD);
                        out.extend_from_slice(rest);
                    });
                }
            }
            Action::Replay { connection, pieces } => self.command(connection, Command::Replay { after, pieces }),
            Action::Close { connection, .. } => self.finish(connection),
            Action::AskMasters { attempt } => self.ask_masters(attempt),
            Action::Dial { attempt, target } => self.dial(attempt, target),
            Action::HashSecret { task, secret } => self.user_work.hash(task, secret),
            Action::VerifySecret { task, secret, hash } => self.user_work.verify(task, secret, hash),
            Action::Forget { task } => self.user_work.forget(task),
            Action::WriteUsers { write, changes } => self.user_work.write(write, changes),
            Action::RegisterUser { record } => {
                if let Some(users) = &self.users {
                    users.register(record);
                }
            }
            Action::LookUpUser { task, username } => {
                if let Some(users) = &self.users {
                    users.look_up(task, username);
                }
            }
            Action::Drained => self.drained = true,
            Action::GiveUp(why) => self.given_up = Some(why),
        }
    }

    /// Asks in a task of its own, which ends by itself within a bounded time.
    fn ask_masters(&self, attempt: AttemptId) {
        let Some(registry) = &self.registry else { return };
        let (question, inbox) = (registry.find_parent(&self.core.tree_view()), self.shared.inbox.clone());
        self.shared.readers.spawn(async move {
            let candidates = question.await;
            // The driver being gone means that the node has stopped.
            let _ = inbox.send(Inbound::MastersAnswered { attempt, candidates }).await;
        });
    }

    /// Dials in a task of its own, which ends by itself within a bounded time.
    fn dial(&self, attempt: AttemptId, target: Target) {
        let (slots, inbox) = (Arc::clone(&self.shared.slots), self.shared.inbox.clone());
        let (ended, dialer) = (self.shared.ended.clone(), self.shared.dialer.clone());
        let traffic = Arc::clone(&self.shared.traffic);
        self.shared.readers.spawn(ended.run_until_cancelled_owned(async move {
            let outcome = match (slots.try_acquire_owned(), dial(&target.hostname, target.port, &dialer).await) {
                (Ok(slot), Ok(connection)) => Inbound::Dialled { connection, slot, attempt: Some(attempt) },
                (_, Err(error)) if arborcast_tls::trouble_of(&error).is_some() => {
                    traffic.failed_dials.add(1);
                    // It is tried again and again, so not every time.
                    if traffic.failed_dials.get().is_power_of_two() {
                        warn!(parent = target.id, %error, "can't connect");
                    }
                    Inbound::DialFailed { attempt }
                }
                (_, outcome) => {
                    debug!(parent = target.id, error = outcome.err().map(|error| error.to_string()), "can't connect");
                    Inbound::DialFailed { attempt }
                }
            };
            // The driver being gone means that the node has stopped.
            let _ = inbox.send(outcome).await;
        }));
    }

    /// Where what is published next will stand.
    fn ends(&self) -> PerForm<Position> {
        PerForm { plain: self.drafts.plain.end(), extended: self.drafts.extended.end() }
    }

    fn unpublished_bytes(&self) -> u64 {
        self.drafts.plain.unpublished_bytes() + self.drafts.extended.unpublished_bytes()
    }

    /// Ends a connection behind everything that was sent and published to it so far.
    fn finish(&mut self, connection: ConnectionId) {
        if let Some(ending) = self.endings.remove(&connection) {
            ending.begin();
            self.command(connection, Command::Finish { after: self.ends() });
        }
    }

    fn command(&mut self, connection: ConnectionId, command: Command) {
        let index = usize::try_from(connection.0).unwrap_or(0) % self.fan_outs.len().max(1);
        if let Some(fan_out) = self.fan_outs.get_mut(index) {
            fan_out.commands.push((connection, command));
        }
    }

    /// Hands over what has gathered: first what is for single connections, then what is for everybody.
    async fn send_out(&mut self) {
        if let Some(registry) = &self.registry
            && std::mem::take(&mut self.is_report_due)
        {
            registry.report(&self.core.tree_view(), self.activities, self.core.remembered());
        }
        for fan_out in &mut self.fan_outs {
            if !fan_out.commands.is_empty() {
                // A fan-out task ends after the driver.
                let _ = fan_out.handle.commands.send(std::mem::take(&mut fan_out.commands)).await;
            }
        }
        let bytes = self.unpublished_bytes();
        if bytes > 0 {
            self.drafts.plain.publish(&self.shared.logs.plain);
            self.drafts.extended.publish(&self.shared.logs.extended);
            if bytes <= FEW_BYTES && self.endings.len() <= FEW_CONNECTIONS {
                self.fan_outs.first().inspect(|first| first.handle.wake_in_turn());
            } else {
                self.fan_outs.iter().for_each(|fan_out| fan_out.handle.wake());
            }
        }
    }
}
