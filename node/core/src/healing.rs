//! Looking for a parent (protocol, Liveness): whom to ask, in which order, and when again.
//!
//! Only a root looks, and it never stops: at once when it has lost its parent or has had no tree yet, seldom when it may
//! well be the root of everything. It asks all masters together; when none names anybody it goes through the servers that
//! it remembers, its former ancestors first. Meanwhile it serves its own fragment.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use arborcast_proto::wire::message::{Applicant, RefusalReason, Request, Sender, Target, TreePosition};
use arborcast_proto::wire::{Message, Reign};
use bytes::Bytes;
use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::{Rng as _, SeedableRng as _};
use tracing::{debug, info};

use crate::config::Extensions;
use crate::error::Refusal;
use crate::event::{Action, CloseReason};
use crate::fragment::Parent;
use crate::ids::{AttemptId, ConnectionId, ServerId};
use crate::link::Link;
use crate::node::{Connection, Node, Role};
use crate::timer::Timer;

/// The version of the extensions that this node speaks.
const PROTOCOL: u32 = 1;

/// How long the masters' answer is waited for.
const MASTERS_TIMEOUT: Duration = Duration::from_millis(500);

/// The first pause after everybody was tried in vain; each following one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause, and how often a root that is content looks whether there is a better fragment.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Most servers that are remembered, and most candidates that are taken from one answer.
const MAX_REMEMBERED: usize = 1000;

/// What a node does about finding a parent.
#[derive(Debug)]
pub(crate) struct Healing {
    next_attempt: u64,
    pursuit: Pursuit,
    /// Whom to try next.
    candidates: VecDeque<Target>,
    /// Rounds without success.
    failures: u32,
    /// Servers that could be asked when no master answers.
    remembered: BTreeMap<ServerId, Target>,
    /// The parent that was configured, whose id is not known and is empty here.
    configured: Option<Target>,
    /// The former ancestors, nearest first.
    ancestors: Vec<ServerId>,
    rng: Pcg64Mcg,
}

/// What is under way at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Pursuit {
    /// Nothing; a timer may start the next round.
    Resting,
    /// The masters are being asked.
    Asking(AttemptId),
    /// A connection is being made, or an acceptance waited for.
    Attaching { attempt: AttemptId, target: Target, connection: Option<ConnectionId> },
}

impl Healing {
    pub(crate) fn new(extensions: Option<&Extensions>) -> Self {
        let parent = extensions.and_then(|extensions| extensions.parent.clone());
        let configured = parent.map(|(hostname, port)| Target { id: String::new(), hostname, port });
        let remembered = extensions.map_or(&[][..], |extensions| &extensions.remembered).iter().take(MAX_REMEMBERED);
        Self {
            next_attempt: 1,
            pursuit: Pursuit::Resting,
            candidates: configured.clone().into_iter().collect(),
            configured,
            failures: 0,
            remembered: remembered.map(|target| (target.id.clone(), target.clone())).collect(),
            ancestors: Vec::new(),
            rng: Pcg64Mcg::seed_from_u64(extensions.map_or(0, |extensions| extensions.seed)),
        }
    }

    pub(crate) fn remember(&mut self, target: Target) {
        if self.remembered.len() < MAX_REMEMBERED || self.remembered.contains_key(&target.id) {
            self.remembered.insert(target.id.clone(), target);
        }
    }

    /// The servers to ask when no master answers, for this run and the next.
    pub(crate) fn remembered(&self) -> impl Iterator<Item = &Target> + Clone {
        self.remembered.values()
    }

    fn new_attempt(&mut self) -> AttemptId {
        let attempt = AttemptId(self.next_attempt);
        self.next_attempt += 1;
        attempt
    }

    fn is_attaching(&self) -> bool {
        matches!(self.pursuit, Pursuit::Attaching { .. })
    }

    /// Puts candidates behind those that are there already, nobody twice.
    fn add_candidates(&mut self, candidates: impl IntoIterator<Item = Target>, own_id: &str) {
        let mut known: BTreeSet<_> = self.candidates.iter().map(|target| target.id.clone()).collect();
        for target in candidates.into_iter().take(MAX_REMEMBERED) {
            if target.id != own_id && known.insert(target.id.clone()) {
                self.candidates.push_back(target);
            }
        }
    }

    /// The configured parent, former ancestors, nearest first, then the others in random order.
    fn add_remembered(&mut self, own_id: &str) {
        let above = self.ancestors.iter().filter_map(|id| self.remembered.get(id)).cloned().collect::<Vec<_>>();
        let mut others = self.remembered.values().cloned().collect::<Vec<_>>();
        for last in (1..others.len()).rev() {
            let other = self.below(last as u64 + 1) as usize;
            others.swap(last, other);
        }
        let first = self.configured.clone();
        self.add_candidates(first.into_iter().chain(above).chain(others), own_id);
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.rng.next_u64() % bound.max(1)
    }

    /// Between half of the pause and the whole of it, so that those who lost the same parent don't move in step.
    fn pause(&mut self) -> Duration {
        let whole = FIRST_PAUSE.saturating_mul(1 << self.failures.min(16)).min(LONGEST_PAUSE);
        let half = u64::try_from(whole.as_micros()).unwrap_or(u64::MAX) / 2;
        Duration::from_micros(half + self.below(half))
    }
}

impl Node {
    /// Starts a round: asks the masters, and whoever is to be asked first anyway.
    pub(crate) fn seek(&mut self, now: Instant, out: &mut Vec<Action>) {
        if !self.may_attach() || self.healing.is_attaching() {
            return;
        }
        if !self.healing.candidates.is_empty() {
            self.try_next(now, out);
            return;
        }
        let attempt = self.healing.new_attempt();
        self.healing.pursuit = Pursuit::Asking(attempt);
        self.timers.set(Timer::Seek, now + MASTERS_TIMEOUT);
        out.push(Action::AskMasters { attempt });
    }

    /// Only a root attaches, one that is not about to stop, and one that has no plain parent: what is behind that one
    /// can't be known.
    fn may_attach(&self) -> bool {
        self.extensions.is_some() && self.fragment.is_root() && !self.is_draining() && !self.has_plain_parent()
    }

    pub(crate) fn on_masters_answered(
        &mut self,
        now: Instant,
        attempt: AttemptId,
        candidates: Vec<Target>,
        out: &mut Vec<Action>,
    ) {
        if self.healing.pursuit != Pursuit::Asking(attempt) {
            return;
        }
        self.healing.pursuit = Pursuit::Resting;
        let Self { healing, config, .. } = self;
        // Those that are remembered come behind those that the masters name, which may be wrong or made up.
        healing.add_candidates(candidates, &config.id);
        healing.add_remembered(&config.id);
        self.try_next(now, out);
    }

    pub(crate) fn on_advised(&mut self, now: Instant, candidates: Vec<Target>, out: &mut Vec<Action>) {
        if self.may_attach() && !self.healing.is_attaching() {
            self.healing.add_candidates(candidates, &self.config.id);
            self.try_next(now, out);
        }
    }

    /// The masters did not answer in time, or a pause is over.
    pub(crate) fn on_seek_due(&mut self, now: Instant, out: &mut Vec<Action>) {
        match self.healing.pursuit {
            Pursuit::Asking(attempt) => self.on_masters_answered(now, attempt, Vec::new(), out),
            Pursuit::Resting => self.seek(now, out),
            Pursuit::Attaching { .. } => {}
        }
    }

    fn seek_at(&mut self, now: Instant, target: Target, out: &mut Vec<Action>) {
        if self.may_attach() && !self.healing.is_attaching() {
            self.healing.candidates.push_front(target);
            self.try_next(now, out);
        }
    }

    /// Whom to try before anybody else.
    pub(crate) fn prefer_candidates(&mut self, targets: impl IntoIterator<Item = Target>) {
        self.healing.candidates = targets.into_iter().collect();
    }

    fn try_next(&mut self, now: Instant, out: &mut Vec<Action>) {
        if !self.may_attach() {
            return;
        }
        let Some(target) = self.healing.candidates.pop_front() else { return self.rest(now) };
        let attempt = self.healing.new_attempt();
        debug!(parent = target.id, hostname = target.hostname, port = target.port, "asking to attach");
        // A configured parent may speak the plain protocol only, and then it may say nothing before its next announcement.
        let is_configured = self.healing.configured.as_ref() == Some(&target);
        let patience = if is_configured { 2 * self.config.announce_interval } else { Duration::ZERO };
        self.healing.pursuit = Pursuit::Attaching { attempt, target: target.clone(), connection: None };
        self.timers.set(Timer::Attempt, now + patience.max(self.heartbeat_timeout()));
        self.timers.stop(&Timer::Seek);
        out.push(Action::Dial { attempt, target });
    }

    /// Everybody was tried in vain.
    fn rest(&mut self, now: Instant) {
        self.healing.pursuit = Pursuit::Resting;
        let pause = self.healing.pause();
        let failures = self.healing.failures;
        if self.has_lost_parent() && failures == 0 {
            info!("nobody to attach to: this node is a root now, and goes on looking now and then");
        } else {
            debug!(failures, "nobody to attach to");
        }
        self.healing.failures = failures.saturating_add(1);
        self.timers.set(Timer::Seek, now + pause);
        self.schedule_acks(now);
    }

    /// The connection for an attempt stands: say who asks.
    pub(crate) fn on_attempt_connected(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        dialled: AttemptId,
        out: &mut Vec<Action>,
    ) {
        self.connections.insert(connection, Connection::new(Role::Applying));
        match &mut self.healing.pursuit {
            Pursuit::Attaching { attempt, connection: used, .. } if *attempt == dialled && used.is_none() => {
                *used = Some(connection);
                let node = Some(self.applicant(dialled));
                let authenticate = Message::Authenticate { secret: self.config.secret.clone(), node };
                self.send(connection, &authenticate, out);
            }
            _ => self.close(now, connection, CloseReason::Moved, out),
        }
    }

    /// What this node says of itself when it asks to attach.
    fn applicant(&self, attempt: AttemptId) -> Applicant {
        let incarnation = self.extensions.as_ref().map_or(0, |extensions| extensions.incarnation);
        Applicant {
            protocol: PROTOCOL,
            request: Request { id: self.config.id.clone(), incarnation, attempt: attempt.0 },
            hostname: self.config.hostname.clone(),
            port: self.config.port,
            key: self.fragment.key().clone(),
        }
    }

    pub(crate) fn on_dial_failed(&mut self, now: Instant, failed: AttemptId, out: &mut Vec<Action>) {
        if matches!(self.healing.pursuit, Pursuit::Attaching { attempt, .. } if attempt == failed) {
            self.healing.pursuit = Pursuit::Resting;
            self.try_next(now, out);
        }
    }

    /// A candidate that accepts connections and never answers.
    pub(crate) fn on_attempt_timeout(&mut self, now: Instant, out: &mut Vec<Action>) {
        if let Pursuit::Attaching { target, .. } = &self.healing.pursuit {
            debug!(parent = target.id, hostname = target.hostname, port = target.port, "no answer in time");
        }
        self.cancel_attempt(now, out);
        self.try_next(now, out);
    }

    /// The connection of an attempt is gone.
    pub(crate) fn on_applying_lost(&mut self, now: Instant, lost: ConnectionId, out: &mut Vec<Action>) {
        if matches!(self.healing.pursuit, Pursuit::Attaching { connection, .. } if connection == Some(lost)) {
            self.healing.pursuit = Pursuit::Resting;
            self.try_next(now, out);
        }
    }

    /// A request of our own that is under way is given up: a late acceptance finds its connection closed.
    pub(crate) fn cancel_attempt(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.timers.stop(&Timer::Attempt);
        if let Pursuit::Attaching { connection, .. } = std::mem::replace(&mut self.healing.pursuit, Pursuit::Resting) {
            let pause = self.healing.pause();
            self.timers.set(Timer::Seek, now + pause);
            if let Some(connection) = connection {
                self.close(now, connection, CloseReason::Moved, out);
            }
        }
    }

    /// What comes over a connection of ours before we are accepted.
    pub(crate) fn on_applying_message(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        line: Bytes,
        message: Message,
        out: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        match message {
            Message::LinkAccepted { attempt, id, tree } => {
                self.on_link_accepted(now, connection, AttemptId(attempt), &id, tree, out);
                Ok(())
            }
            Message::LinkRefused { reason, info, .. } => {
                debug!(%connection, ?reason, info, "attachment refused");
                self.close(now, connection, CloseReason::LinkRefused, out);
                Ok(())
            }
            // No LINK_ACCEPTED first: the other end speaks the plain protocol only. That is fine for the parent that was
            // configured; the masters and the memory name only nodes that speak the extensions.
            message if message.sender() == Sender::Server && self.is_attaching_to_configured(connection) => {
                self.become_plain_child(now, connection, out);
                self.on_link_message(now, connection, line, message, out)
            }
            other => Err(Refusal::out_of_place_on_a_link(&other)),
        }
    }

    fn is_attaching_to_configured(&self, over: ConnectionId) -> bool {
        matches!(&self.healing.pursuit, Pursuit::Attaching { target, connection, .. }
            if *connection == Some(over) && self.healing.configured.as_ref() == Some(target))
    }

    /// The configured parent speaks the plain protocol. What is behind it can't be known, so this node stays there as
    /// long as the link stands, and is the root of the extended nodes below it.
    fn become_plain_child(&mut self, now: Instant, connection: ConnectionId, out: &mut Vec<Action>) {
        self.timers.stop(&Timer::Attempt);
        self.timers.stop(&Timer::Seek);
        self.healing.pursuit = Pursuit::Resting;
        self.healing.candidates.clear();
        self.become_link(now, connection, Link::to_found_plain_parent(now), out);
    }

    fn on_link_accepted(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        accepted: AttemptId,
        id: &str,
        tree: TreePosition,
        out: &mut Vec<Action>,
    ) {
        let target = match &self.healing.pursuit {
            Pursuit::Attaching { attempt, target, connection: Some(used) }
                if *attempt == accepted && *used == connection =>
            {
                Target { id: id.to_owned(), ..target.clone() }
            }
            _ => return self.close(now, connection, CloseReason::Moved, out),
        };
        let lowers_the_key = tree.key < *self.fragment.key() && !tree.path.contains(&self.config.id);
        if !self.may_attach() || !lowers_the_key {
            return self.close(now, connection, CloseReason::Moved, out);
        }
        info!(parent = id, root = tree.key.root, reign = ?tree.key.reign, "attached to a parent");
        self.timers.stop(&Timer::Attempt);
        self.timers.stop(&Timer::Seek);
        self.healing.pursuit = Pursuit::Resting;
        self.healing.candidates.clear();
        self.healing.failures = 0;
        self.healing.remember(target.clone());
        self.healing.ancestors = tree.path.iter().rev().cloned().collect();
        let is_new_here = self.relay.as_ref().is_some_and(|relay| relay.is_new);
        self.fragment.become_child(Parent { link: connection, target }, tree);
        self.leave_former_parents(now, out);
        self.become_link(now, connection, Link::to_extended_parent(now, is_new_here), out);
        self.tell_children(out);
        self.ask_again_for_applicants(now, out);
    }

    /// The parent is lost, or about to leave.
    pub(crate) fn become_orphan(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.healing.ancestors = self.fragment.position().path.into_iter().rev().skip(1).collect();
        self.fragment.become_root();
        self.healing.failures = 0;
        self.tell_children(out);
        self.ask_again_for_applicants(now, out);
        self.seek(now, out);
    }

    /// Whether this node has been in a tree and is not any more.
    fn has_lost_parent(&self) -> bool {
        self.fragment.is_root() && !self.healing.ancestors.is_empty()
    }

    /// Whether this node has lost its parent and has not asked everybody for another yet. After that it is a root like
    /// any other.
    pub(crate) fn is_orphan(&self) -> bool {
        self.has_lost_parent() && self.healing.failures == 0
    }

    /// Whether this node has not asked everybody yet, since its start or since it lost its parent: there may be others.
    pub(crate) fn is_in_its_first_round(&self) -> bool {
        let may_find_somebody = self.extensions.is_some() && self.fragment.is_root() && !self.has_plain_parent();
        may_find_somebody && self.healing.failures == 0
    }

    /// Somebody asks to attach here though the own key is the larger one: as a root, we ask there instead.
    pub(crate) fn turn_request_around(
        &mut self,
        now: Instant,
        applicant: &Applicant,
        reason: RefusalReason,
        out: &mut Vec<Action>,
    ) {
        if reason == RefusalReason::KeyNotSmaller && applicant.key < *self.fragment.key() {
            let target =
                Target { id: applicant.request.id.clone(), hostname: applicant.hostname.clone(), port: applicant.port };
            self.seek_at(now, target, out);
        }
    }

    /// Why this node has no parent. `None` for one that has a parent, and for one that does not speak the extensions; and
    /// never else: a root that neither looks for a parent nor has a reason not to would stay one for ever (protocol, S1).
    pub fn root_reason(&self) -> Option<RootReason> {
        let looks = match &self.healing.pursuit {
            Pursuit::Resting | Pursuit::Asking(_) => self.timers.is_set(&Timer::Seek),
            Pursuit::Attaching { .. } => self.timers.is_set(&Timer::Attempt),
        };
        if self.extensions.is_none() || !self.fragment.is_root() {
            None
        } else if self.is_draining() {
            Some(RootReason::Draining)
        } else if self.has_plain_parent() {
            Some(RootReason::PlainParent)
        } else if !looks {
            None
        } else if self.fragment.key().reign == Reign::Unsettled {
            Some(RootReason::Unsettled)
        } else if self.is_orphan() {
            Some(RootReason::Orphan)
        } else {
            Some(RootReason::Content)
        }
    }
}

/// Why a node that speaks the extensions has no parent at the moment. All but the draining one and the one below a plain
/// parent go on looking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootReason {
    /// It is about to stop.
    Draining,
    /// It is below a server that speaks the plain protocol.
    PlainParent,
    /// It has not been in a tree yet.
    Unsettled,
    /// It has lost its parent, and has not asked everybody for another yet.
    Orphan,
    /// It serves as the root of its tree; everybody was asked for a better place in vain.
    Content,
}
