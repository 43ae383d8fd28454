//! The node: its state, the one entrance for events, and the life of a connection.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use arborcast_proto::wire::limits::quote;
use arborcast_proto::wire::message::{Applicant, Target, TreePosition};
use arborcast_proto::wire::{Message, ServerAnnounce, UserRecord};
use bytes::{BufMut as _, Bytes, BytesMut};
use tracing::{debug, info, trace};

use crate::admission::Admission;
use crate::announcing::Announcing;
use crate::config::{Config, Extensions};
use crate::directory::{Directory, UserCounters};
use crate::error::Refusal;
use crate::event::{Action, CloseReason, Event, GiveUp, ReceivedLine};
use crate::fragment::Fragment;
use crate::healing::Healing;
use crate::homing::Homing;
use crate::ids::{ConnectionId, ServerId, TaskId};
use crate::link::Link;
use crate::load::{OtherServer, Servers};
use crate::locks::{Allowances, Registration};
use crate::moving::{MoveAnswer, Moving};
use crate::relaying::{Exchange, Relay, RelayCounts};
use crate::session::Session;
use crate::status::Counters;
use crate::timer::{Timer, TimerTable};
use crate::users::Users;

/// One server of the tree, without its sockets.
///
/// # Contract
/// 1. [`handle`](Self::handle) takes one event and appends actions; carry out all of them, in order, before the next
///    event.
/// 2. `now` never goes backwards.
/// 3. When [`next_deadline`](Self::next_deadline) has come, handle [`Event::DeadlinePassed`].
/// 4. Ids of connections are never reused. An event with the id of a connection that the core has closed or was told is
///    closed is dropped: it was overtaken, which is no error.
/// 5. The same events at the same times give the same actions.
#[derive(Debug)]
pub struct Node {
    pub(crate) config: Config,
    pub(crate) connections: BTreeMap<ConnectionId, Connection>,
    /// The connections that can't become links.
    pub(crate) clients_only: BTreeSet<ConnectionId>,
    /// The connections that are server links.
    pub(crate) links: BTreeSet<ConnectionId>,
    /// How many connections are client sessions: the load.
    pub(crate) sessions: usize,
    pub(crate) servers: Servers,
    pub(crate) announcing: Announcing,
    pub(crate) users: Users,
    /// Registrations of our own clients that wait for other servers, by username.
    pub(crate) registrations: BTreeMap<String, Registration>,
    /// Who has agreed to the pairs that are pending here because of a LOCK_REQUEST, by username.
    pub(crate) windows: BTreeMap<String, Allowances>,
    /// The connections whose LOGIN is held until a username is settled.
    pub(crate) held_logins: BTreeMap<String, BTreeSet<ConnectionId>>,
    /// The tickets of clients, if this node speaks the extensions.
    pub(crate) admission: Option<Admission>,
    /// The users of an extended tree, which take the place of the four above.
    pub(crate) directory: Directory,
    pub(crate) timers: TimerTable,
    /// What is needed to speak the extensions, if this node does.
    pub(crate) extensions: Option<Extensions>,
    /// What is kept about activities, if this node speaks the extensions.
    pub(crate) relay: Option<Relay>,
    pub(crate) fragment: Fragment,
    pub(crate) healing: Healing,
    pub(crate) homing: Homing,
    pub(crate) moving: Moving,
    /// On the way to a stop without loss.
    pub(crate) draining: bool,
    /// The child that a draining root has named as the next root.
    pub(crate) successor: Option<ConnectionId>,
    /// Whether this node was named so by the parent that it is about to lose.
    pub(crate) is_successor: bool,
    pub(crate) closings: BTreeMap<CloseReason, u64>,
    pub(crate) counters: Counters,
    stopping: bool,
}

/// One connection as the core sees it.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) role: Role,
    /// What the connection waits for, if anything.
    pub(crate) hold: Option<Hold>,
    /// What it sent meanwhile, bounded in bytes.
    waiting: VecDeque<ReceivedLine>,
    waiting_bytes: usize,
}

/// Who a connection is (protocol, Who a connection is). It changes once at most. Nearly all are clients, so what others
/// have more of stands elsewhere.
#[derive(Debug)]
pub(crate) enum Role {
    Unidentified,
    Client(Session),
    Link(Box<Link>),
    /// Another extended node that wants to be our child, while its request climbs to the root.
    Applicant(Box<Applicant>),
    /// Our own connection to a candidate, until it accepts us.
    Applying,
    /// Our own connection to the preferred parent, to ask whether it would accept us.
    Probing,
    /// Our own connection to a server that a master proposes, to ask whether we may move there.
    AskingToMove,
}

/// Most bytes that are held back behind an activity whose predecessor has not come (protocol, B40), if four lines are
/// not more.
const MAX_HELD_BACK_BYTES: usize = 8 << 20;

/// Requests of one connection are answered in order; this one is not answered yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hold {
    /// A REGISTER of this username.
    Registration(String),
    /// A LOGIN with this username, whose pair is pending.
    Login(String),
    /// An activity whose predecessor in the session is still on its way.
    Predecessor {
        /// The session.
        session: Box<str>,
        /// The activity's number.
        number: u64,
    },
    /// A LOGIN whose secret is being verified, or whose user the masters are asked for.
    Verification(TaskId),
}

impl Connection {
    pub(crate) fn new(role: Role) -> Self {
        Self { role, hold: None, waiting: VecDeque::new(), waiting_bytes: 0 }
    }

    fn must_wait(&self, line: &ReceivedLine) -> bool {
        match &self.hold {
            None => false,
            Some(Hold::Login(_) | Hold::Predecessor { .. } | Hold::Verification(_)) => true,
            Some(Hold::Registration(_)) => {
                !self.waiting.is_empty() || matches!(line.message, Ok(Message::Login { .. }))
            }
        }
    }

    fn wait(&mut self, line: ReceivedLine, max_line: usize) -> Result<(), Refusal> {
        let limit = match self.hold {
            // What a client sends again at once, having lost its server.
            Some(Hold::Predecessor { .. }) => MAX_HELD_BACK_BYTES.max(4 * max_line),
            _ => 2 * max_line,
        };
        self.waiting_bytes += line.bytes.len();
        self.waiting.push_back(line);
        if self.waiting_bytes > limit { Err(Refusal::TooMuchAhead { limit }) } else { Ok(()) }
    }

    /// Puts a LOGIN that was found to be too early back in front of what waits.
    pub(crate) fn wait_again(&mut self, hold: Hold, line: ReceivedLine) {
        self.hold = Some(hold);
        self.waiting_bytes += line.bytes.len();
        self.waiting.push_front(line);
    }

    fn next_waiting(&mut self) -> Option<ReceivedLine> {
        if self.hold.is_some() {
            return None;
        }
        let line = self.waiting.pop_front()?;
        self.waiting_bytes -= line.bytes.len();
        Some(line)
    }
}

/// A picture of a node's state, for status, counters and tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Logged-in clients.
    pub load: usize,
    /// Server links.
    pub links: usize,
    /// Connections that have not shown yet who they are.
    pub unidentified: usize,
    /// The other servers, by id.
    pub servers: BTreeMap<ServerId, OtherServer>,
    /// Usernames, pending ones included.
    pub users: usize,
    /// Registrations of own clients, and pairs from elsewhere, that are not settled yet.
    pub unsettled: usize,
    /// What happened to activities, if the node speaks the extensions.
    pub relay: Option<RelayCounts>,
    /// What has happened to users in an extended tree.
    pub user_counters: UserCounters,
    /// How many connections ended, by reason.
    pub closings: BTreeMap<CloseReason, u64>,
}

/// Where an extended node stands in the tree, for reports to the masters and for tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeView {
    /// The fragment's key and the path from its root.
    pub position: TreePosition,
    /// The id of the parent, if there is one.
    pub parent: Option<ServerId>,
    /// The ids of the children that speak the extensions.
    pub children: BTreeSet<ServerId>,
    /// Logged-in clients.
    pub load: usize,
    /// Whether the node has lost its parent and is looking for another.
    pub is_orphan: bool,
    /// Whether the node is about to stop.
    pub is_draining: bool,
    /// How many tickets of each master, by its id, have led to a login or to nothing.
    pub settled_tickets: BTreeMap<Box<str>, u64>,
    /// What became of the last proposal to move.
    pub move_answer: Option<MoveAnswer>,
}

impl Node {
    /// A node without connections that announces itself first one interval after `now`.
    pub fn new(mut config: Config, now: Instant) -> Self {
        let directory = Directory::new(&mut config, now);
        let mut timers = TimerTable::default();
        timers.set(Timer::Announce, now + config.announce_interval);
        let extensions = config.extensions.clone();
        if extensions.is_some() {
            timers.set(Timer::Heartbeat, now);
            timers.set(Timer::Seek, now);
        }
        let announcing = Announcing::new(extensions.as_ref());
        if let Some(lapse) = announcing.first_lapse(now) {
            timers.set(Timer::Naming, lapse);
        }
        Self {
            announcing,
            fragment: Fragment::new(config.id.clone()),
            healing: Healing::new(extensions.as_ref()),
            relay: Relay::new(&config, now),
            homing: Homing::new(extensions.as_ref()),
            moving: Moving::default(),
            extensions,
            draining: false,
            successor: None,
            is_successor: false,
            servers: Servers::new(config.max_servers),
            users: Users::new(config.max_user_bytes),
            directory,
            admission: Admission::new(&config, now),
            config,
            connections: BTreeMap::new(),
            clients_only: BTreeSet::new(),
            links: BTreeSet::new(),
            sessions: 0,
            registrations: BTreeMap::new(),
            windows: BTreeMap::new(),
            held_logins: BTreeMap::new(),
            timers,
            closings: BTreeMap::new(),
            counters: Counters::default(),
            stopping: false,
        }
    }

    /// Takes one event in and appends what is to be done about it.
    pub fn handle(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Accepted { connection } => self.on_accepted(now, connection),
            Event::AcceptedAsClient { connection } => {
                self.clients_only.insert(connection);
                self.on_accepted(now, connection);
            }
            Event::Dialled { connection, attempt: None } => self.on_dialled(now, connection, out),
            Event::Dialled { connection, attempt: Some(attempt) } => {
                self.on_attempt_connected(now, connection, attempt, out);
            }
            Event::DialFailed { attempt } => self.on_dial_failed(now, attempt, out),
            Event::MastersAnswered { attempt, candidates } => {
                self.on_masters_answered(now, attempt, candidates, out);
            }
            Event::Advised { candidates } => self.on_advised(now, candidates, out),
            Event::ServersNamed { least_loaded, others } => self.on_servers_named(now, least_loaded, others, out),
            Event::MoveProposed(proposal) => self.on_move_proposed(now, proposal, out),
            Event::Drain => self.on_drain(now, out),
            Event::Received { connection, line } => self.on_received(now, connection, line, out),
            Event::Closed { connection, reason } => drop(self.forget(now, connection, reason, out)),
            Event::SecretHashed { task, hash } => self.on_secret_hashed(now, task, hash, out),
            Event::SecretVerified { task, verdict } => self.on_secret_verified(now, task, verdict, out),
            Event::UsersWritten { write, error } => self.on_users_written(now, write, error, out),
            Event::ClockRead { milliseconds_since_1970 } => self.on_clock_read(now, milliseconds_since_1970),
            Event::UserRegistered { record, outcome } => self.on_user_registered(now, record, outcome, out),
            Event::UserLookedUp { task, user } => self.on_user_looked_up(now, task, user, out),
            Event::UsersTold { users, told } => self.on_users_told(now, users, told, out),
            Event::MastersKeepUsers => self.on_masters_keep_users(now, out),
            Event::DeadlinePassed => self.on_deadline(now, out),
            Event::Stop => self.on_stop(now, out),
        }
        self.resume_awakened(now, out);
    }

    /// When [`Event::DeadlinePassed`] is due next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.timers.next_deadline()
    }

    /// The id of the parent, if an extended node has one.
    pub fn parent_id(&self) -> Option<&str> {
        self.fragment.parent().map(|parent| parent.target.id.as_str())
    }

    /// The servers to ask when no master answers, to be kept for the next run.
    pub fn remembered(&self) -> impl Iterator<Item = &Target> + Clone {
        self.healing.remembered()
    }

    /// The users of an extended tree, pending ones not among them: in an order that is the same for the same users.
    pub fn users(&self) -> impl Iterator<Item = &UserRecord> {
        self.directory.users()
    }

    /// A picture of the state. Costs time in proportion to the number of connections and servers.
    pub fn view(&self) -> View {
        View {
            load: self.sessions,
            links: self.links.len(),
            unidentified: self.connections.values().filter(|entry| matches!(entry.role, Role::Unidentified)).count(),
            servers: self.servers.iter().map(|(id, server)| (id.clone(), server.clone())).collect(),
            users: self.users.len() + self.directory.len(),
            unsettled: self.registrations.len() + self.windows.len() + self.directory.unsettled(),
            relay: self.relay.as_ref().map(|relay| relay.counts),
            user_counters: self.directory.counters(),
            closings: self.closings.clone(),
        }
    }

    /// Where the node stands in the tree. Costs time in proportion to the depth and the number of children.
    pub fn tree_view(&self) -> TreeView {
        TreeView {
            position: self.fragment.position(),
            parent: self.parent_id().map(str::to_owned),
            children: self.fragment.children().map(|(_, child)| child.request.id.clone()).collect(),
            load: self.sessions,
            is_orphan: self.is_orphan(),
            is_draining: self.draining,
            settled_tickets: self.settled_tickets(),
            move_answer: self.moving.answer().cloned(),
        }
    }

    fn on_accepted(&mut self, now: Instant, connection: ConnectionId) {
        self.counters.accepted += 1;
        self.connections.insert(connection, Connection::new(Role::Unidentified));
        self.restart_login_timeout(now, connection);
    }

    pub(crate) fn restart_login_timeout(&mut self, now: Instant, connection: ConnectionId) {
        self.timers.set(Timer::Identify(connection), now + self.config.login_timeout);
    }

    fn on_dialled(&mut self, now: Instant, connection: ConnectionId, out: &mut Vec<Action>) {
        self.counters.dialled += 1;
        self.connections.insert(connection, Connection::new(Role::Unidentified));
        let authenticate = Message::Authenticate { secret: self.config.secret.clone(), node: None };
        self.send(connection, &authenticate, out);
        self.become_link(now, connection, Link::to_plain_parent(now), out);
    }

    fn on_received(&mut self, now: Instant, connection: ConnectionId, line: ReceivedLine, out: &mut Vec<Action>) {
        let max_line = self.config.max_line;
        let Some(entry) = self.connections.get_mut(&connection) else {
            trace!(%connection, "line of a connection that is gone");
            return;
        };
        if !entry.must_wait(&line) {
            self.dispatch(now, connection, line, out);
        } else if let Err(refusal) = entry.wait(line, max_line) {
            self.refuse(now, connection, &refusal, out);
        }
    }

    fn dispatch(&mut self, now: Instant, connection: ConnectionId, line: ReceivedLine, out: &mut Vec<Action>) {
        let Some(entry) = self.connections.get(&connection) else { return };
        let ReceivedLine { bytes, message } = line;
        let outcome = match (message, &entry.role) {
            (Err(error), _) => Err(Refusal::Undecodable(error)),
            (Ok(Message::InvalidMessage { info }), Role::Applying) if self.may_reject_node_field(connection) => {
                debug!(%connection, info = self.quote_peer(&info), "refused by the configured parent");
                self.dial_without_node_field(now, out);
                self.close(now, connection, CloseReason::PeerRefused, out);
                Ok(())
            }
            (Ok(Message::InvalidMessage { info } | Message::AuthenticationFail { info }), _) => {
                self.on_refused_by_peer(now, connection, &info, out);
                Ok(())
            }
            (Ok(message), Role::Unidentified) => self.on_stranger_message(now, connection, message, out),
            (Ok(message), Role::Client(_)) => self.on_client_message(now, connection, message, out),
            (Ok(message), Role::Link(_)) => {
                self.on_link_heard(now, connection);
                self.on_link_message(now, connection, bytes, message, out)
            }
            // It has to wait for our answer before it says anything.
            (Ok(message), Role::Applicant(_)) => Err(Refusal::NotAServer { command: message.command() }),
            (Ok(message), Role::Applying) => self.on_applying_message(now, connection, bytes, message, out),
            (Ok(message), Role::Probing) => self.on_probing_message(now, connection, message, out),
            (Ok(message), Role::AskingToMove) => self.on_question_message(now, connection, message, out),
        };
        if let Err(refusal) = outcome {
            self.refuse(now, connection, &refusal, out);
        }
    }

    /// Goes on with what a connection sent while it waited.
    pub(crate) fn resume(&mut self, now: Instant, connection: ConnectionId, out: &mut Vec<Action>) {
        if let Some(entry) = self.connections.get_mut(&connection) {
            entry.hold = None;
        }
        while let Some(line) = self.connections.get_mut(&connection).and_then(Connection::next_waiting) {
            self.dispatch(now, connection, line, out);
        }
    }

    /// Answers what a peer did wrong or can't have, and closes.
    pub(crate) fn refuse(&mut self, now: Instant, connection: ConnectionId, refusal: &Refusal, out: &mut Vec<Action>) {
        let (answer, reason) = refusal.answer();
        *self.counters.refusals.entry(refusal.name()).or_default() += 1;
        if reason == CloseReason::RegisterFailed {
            *self.counters.registrations_failed.entry(refusal.name()).or_default() += 1;
        }
        if !matches!(refusal, Refusal::WrongClusterSecret(_)) {
            debug!(%connection, error = %refusal, "refused");
        }
        self.send(connection, &answer, out);
        self.close(now, connection, reason, out);
    }

    /// The peer refused us: that is logged and never answered.
    fn on_refused_by_peer(&mut self, now: Instant, connection: ConnectionId, info: &str, out: &mut Vec<Action>) {
        let info = self.quote_peer(info);
        let role = self.connections.get(&connection).map(|entry| &entry.role);
        if matches!(role, Some(Role::Applying | Role::AskingToMove | Role::Probing)) {
            // One of many attempts: it is a warning if they all fail.
            debug!(%connection, info, "refused by a candidate");
            self.note_obstacle(info.clone());
        } else {
            info!(%connection, info, "refused by the peer");
        }
        if self.is_unheard_parent(connection) {
            self.give_up(GiveUp::ParentRefused { info }, out);
        }
        self.close(now, connection, CloseReason::PeerRefused, out);
    }

    /// A peer's words for the log. Some servers quote the secret they were given.
    fn quote_peer(&self, info: &str) -> String {
        let secret = self.config.secret.expose();
        if secret.is_empty() { quote(info) } else { quote(&info.replace(secret, "***")) }
    }

    pub(crate) fn give_up(&mut self, why: GiveUp, out: &mut Vec<Action>) {
        self.stopping = true;
        out.push(Action::GiveUp(why));
    }

    pub(crate) fn close(&mut self, now: Instant, connection: ConnectionId, reason: CloseReason, out: &mut Vec<Action>) {
        if self.forget(now, connection, reason, out) {
            out.push(Action::Close { connection, reason });
        }
    }

    /// The one way out of the table of connections. `false` if it was not there any more.
    fn forget(&mut self, now: Instant, connection: ConnectionId, reason: CloseReason, out: &mut Vec<Action>) -> bool {
        let unheard_parent = self.is_unheard_parent(connection);
        let Some(entry) = self.connections.remove(&connection) else { return false };
        self.clients_only.remove(&connection);
        debug!(%connection, ?reason, "closed");
        *self.closings.entry(reason).or_default() += 1;
        self.timers.stop(&Timer::Identify(connection));
        self.release(connection, entry.hold, out);
        self.settle_ticket(connection);
        match entry.role {
            Role::Unidentified => {}
            Role::Client(session) => {
                self.sessions -= 1;
                self.on_reader_lost(session.is_subscribed && session.extended.is_none());
            }
            Role::Link(link) => {
                self.on_reader_lost(link.exchange().is_none());
                if link.exchange().is_some_and(Exchange::is_history) {
                    self.tell_newcomers_what_counts_as_received(out);
                }
                self.on_link_lost(now, connection, &link, reason, out);
            }
            Role::Applicant(_) => self.timers.stop(&Timer::Applicant(connection)),
            Role::Applying => self.on_applying_lost(now, connection, reason, out),
            Role::Probing => self.on_probing_lost(now, connection, reason),
            Role::AskingToMove => self.on_question_lost(now, connection, out),
        }
        self.finish_drain_if_empty(out);
        if unheard_parent && !self.stopping {
            self.give_up(GiveUp::ParentClosed, out);
        }
        true
    }

    fn on_reader_lost(&mut self, is_plain: bool) {
        if let Some(relay) = &mut self.relay {
            relay.plain_readers = relay.plain_readers.saturating_sub(usize::from(is_plain));
        }
    }

    /// A connection that is gone, or is a link now, no longer waits for an answer. A registration goes on without it
    /// (protocol, Registration, step 5).
    pub(crate) fn release(&mut self, connection: ConnectionId, hold: Option<Hold>, out: &mut Vec<Action>) {
        match hold {
            None => {}
            Some(Hold::Registration(username)) => {
                if let Some(registration) = self.registrations.get_mut(&username) {
                    registration.client = None;
                }
                self.forget_registering_client(&username);
            }
            Some(Hold::Login(username)) => {
                if let Some(held) = self.held_logins.get_mut(&username) {
                    held.remove(&connection);
                }
            }
            Some(Hold::Predecessor { session, .. }) => {
                self.timers.stop(&Timer::Predecessor(connection));
                if let Some(relay) = &mut self.relay
                    && let Some(held) = relay.held.get_mut(&session)
                {
                    held.remove(&connection);
                    if held.is_empty() {
                        relay.held.remove(&session);
                    }
                }
            }
            Some(Hold::Verification(task)) => self.forget_task(task, out),
        }
    }

    fn on_deadline(&mut self, now: Instant, out: &mut Vec<Action>) {
        while let Some((due, timer)) = self.timers.pop_expired(now) {
            match timer {
                Timer::Acks => self.on_acks_due(out),
                Timer::Predecessor(connection) => self.on_predecessor_timeout(now, connection, out),
                Timer::Apart => self.advance_registrations(now, out),
                Timer::Applicant(connection) => self.on_applicant_timeout(now, connection, out),
                Timer::Attempt => self.on_attempt_timeout(now, out),
                Timer::DrainGrace => self.on_drain_grace_over(out),
                Timer::Heartbeat => self.on_heartbeat_due(now, out),
                Timer::Homing => self.on_homing_due(now, out),
                Timer::LinkSilence(connection) => self.on_link_silence(now, due, connection, out),
                Timer::Move => self.on_question_failed(now, out),
                Timer::Naming => self.on_naming_lapsed(out),
                Timer::Seek => self.on_seek_due(now, out),
                Timer::Announce => self.on_announce_due(now, out),
                Timer::Identify(connection) => self.on_login_timeout(now, connection, out),
                Timer::Registration(username) if self.extensions.is_some() => {
                    self.on_registration_overdue(now, &username, out);
                }
                Timer::Registration(username) => self.on_registration_timeout(now, &username, out),
                Timer::Unconfirmed(username) => self.confirm_registration(now, &username, out),
                Timer::Revocable(username) => self.forget_revocable(&username),
                Timer::WriteAgain => self.on_write_again(out),
                Timer::ServerExpiry(id) => self.on_server_silent(now, &id, out),
                Timer::LoginWindow(username) if self.extensions.is_some() => self.on_plain_window_over(&username, out),
                Timer::LoginWindow(username) => self.settle(now, &username, out),
            }
        }
    }

    fn on_announce_due(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.timers.set(Timer::Announce, now + self.config.announce_interval);
        // Who drains has said that it leaves.
        if !self.draining {
            self.announce_where_wanted(out);
        }
    }

    fn on_login_timeout(&mut self, now: Instant, connection: ConnectionId, out: &mut Vec<Action>) {
        let is_waiting_for_us = self.connections.get(&connection).is_some_and(|entry| entry.hold.is_some());
        if is_waiting_for_us {
            self.restart_login_timeout(now, connection);
        } else {
            let seconds = self.config.login_timeout.as_secs();
            self.refuse(now, connection, &Refusal::NotIdentified { seconds }, out);
        }
    }

    fn on_stop(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.stopping = true;
        while let Some(connection) = self.connections.keys().next().copied() {
            self.close(now, connection, CloseReason::Stopping, out);
        }
    }

    pub(crate) fn heartbeat_timeout(&self) -> Duration {
        self.extensions.as_ref().map_or(Duration::ZERO, |extensions| extensions.heartbeat_timeout)
    }

    /// What this server says of itself at this moment.
    pub(crate) fn announcement(&self) -> Message {
        Message::ServerAnnounce(ServerAnnounce {
            id: self.config.id.clone(),
            load: self.load(),
            hostname: self.config.hostname.clone(),
            port: self.config.port.into(),
        })
    }

    pub(crate) fn load(&self) -> i64 {
        i64::try_from(self.sessions).unwrap_or(i64::MAX)
    }

    pub(crate) fn send(&self, connection: ConnectionId, message: &Message, out: &mut Vec<Action>) {
        trace!(%connection, command = message.command(), "send");
        out.push(Action::Send { connection, line: message.to_line() });
    }

    /// Sends a message of our own to every link.
    pub(crate) fn flood(&self, message: &Message, out: &mut Vec<Action>) {
        if !self.links.is_empty() {
            self.flood_line(&message.to_line(), None, out);
        }
    }

    /// Passes a received line on, unchanged, on every link but the one it came from.
    pub(crate) fn pass_on(&self, line: &Bytes, from: ConnectionId, out: &mut Vec<Action>) {
        let mut ended = BytesMut::with_capacity(line.len() + 1);
        ended.put_slice(line);
        ended.put_u8(b'\n');
        self.flood_line(&ended.freeze(), Some(from), out);
    }

    /// The same, on these links.
    pub(crate) fn pass_on_to(&self, line: &Bytes, links: impl Iterator<Item = ConnectionId>, out: &mut Vec<Action>) {
        let mut ended = BytesMut::with_capacity(line.len() + 1);
        ended.put_slice(line);
        ended.put_u8(b'\n');
        let line = ended.freeze();
        out.extend(links.map(|link| Action::Send { connection: link, line: line.clone() }));
    }

    fn flood_line(&self, line: &Bytes, except: Option<ConnectionId>, out: &mut Vec<Action>) {
        let links = self.links.iter().filter(|link| Some(**link) != except);
        out.extend(links.map(|link| Action::Send { connection: *link, line: line.clone() }));
    }
}
