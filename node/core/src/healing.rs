//! Looking for a parent (protocol, Liveness): whom to ask, in which order, and when again.
//!
//! Only a root looks, and it never stops: at once when it has lost its parent or has had no tree yet, seldom when it may
//! well be the root of everything. It asks all masters together; when none names anybody it goes through the servers that
//! it remembers, its former ancestors first. Meanwhile it serves its own fragment.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use arborcast_proto::wire::limits::quote;
use arborcast_proto::wire::message::{Applicant, RefusalReason, Request, Sender, Target, TreePosition};
use arborcast_proto::wire::{Message, Reign};
use bytes::Bytes;
use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::{Rng as _, SeedableRng as _};
use tracing::{debug, info, warn};

use crate::config::Extensions;
use crate::error::Refusal;
use crate::event::{Action, CloseReason};
use crate::fragment::Parent;
use crate::ids::{AttemptId, ConnectionId, ServerId};
use crate::link::Link;
use crate::load::Servers;
use crate::node::{Connection, Node, Role};
use crate::timer::Timer;

/// The version of the extensions that this node speaks.
pub(crate) const PROTOCOL: u32 = 1;

/// How long the masters' answer is waited for.
const MASTERS_TIMEOUT: Duration = Duration::from_millis(500);

/// The first pause after everybody was tried in vain; each following one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause, and how often a root that is content looks whether there is a better fragment.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// After so long in one round no further remembered server is asked: what the masters know may be newer.
const LONGEST_SEARCH: Duration = Duration::from_secs(5);

/// Most servers that are remembered, and most candidates that are taken from one answer.
const MAX_REMEMBERED: usize = 1000;

/// Most servers that are remembered because a master named them; and how often one gives way to another when there are
/// so many, here and above.
const MAX_NAMED_REMEMBERED: usize = 128;
const GIVE_WAY: Duration = Duration::from_secs(10);

/// Most remembered servers that are asked in one round while this node does not hear everybody: most of them are below it.
const MAX_GUESSES: usize = 4;

/// Most servers that one LINK_REFUSED names, and most of them that are taken from one.
pub(crate) const MAX_TARGETS: usize = 8;

/// Most servers that are tried in one round because others named them when they refused.
const MAX_REFERRALS: usize = 32;

/// After so many rounds in which somebody refused because of its key a root takes a larger one.
const ROUNDS_BEFORE_YIELDING: u32 = 3;

/// Of a row of rounds in vain the first and every so many are logged as a warning, where somebody has to act.
const WARN_EVERY: u32 = 30;

/// How often a node of another version is worth a warning.
const PROTOCOL_WARN_INTERVAL: Duration = Duration::from_secs(60);

/// What a node does about finding a parent.
#[derive(Debug)]
pub(crate) struct Healing {
    next_attempt: u64,
    pursuit: Pursuit,
    /// Whom to try next.
    candidates: VecDeque<Target>,
    /// The remembered servers to try in this round when there is no candidate left, and until when.
    fallbacks: VecDeque<Target>,
    search_ends: Option<Instant>,
    /// Rounds without success.
    failures: u32,
    /// Servers that could be asked when no master answers.
    remembered: BTreeMap<ServerId, Target>,
    /// Others that masters have named for then, the first one first, and when one of them gave way to another.
    named: VecDeque<Target>,
    gave_way_at: Option<Instant>,
    /// When a remembered one gave way to another.
    made_room_at: Option<Instant>,
    /// The parent that was configured, whose id is not known and is empty here.
    configured: Option<Target>,
    /// Whether the configured parent has shown that it speaks the extensions.
    configured_is_extended: bool,
    /// Whether the masters were asked in this round.
    has_asked_masters: bool,
    /// Who was tried in this round.
    tried: BTreeSet<ServerId>,
    /// How many candidates of this round others have named when they refused.
    referrals: usize,
    /// Whether somebody refused in this round whose root should come below this one instead, and how many such rounds
    /// there were since this node became a root.
    is_refused_by_key: bool,
    rounds_refused_by_key: u32,
    /// The smaller root that asked here last, and was asked in turn.
    turned_to: Option<ServerId>,
    /// Why somebody refused in this round, if an operator should know.
    obstacle: Option<String>,
    /// When this node attached to its parent.
    attached_at: Option<Instant>,
    /// When the parent was lost, if there is none since.
    lost_at: Option<Instant>,
    /// How many parents in a row were lost as soon as they were found.
    short_stays: u32,
    /// When a node of another version was last warned of.
    warned_of_protocol: Option<Instant>,
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
    Attaching { attempt: AttemptId, target: Target, connection: Option<ConnectionId>, manner: Manner },
}

/// How a candidate is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// With the field `node`.
    Extended,
    /// The same once more: the configured parent has closed the connection without a word. A server that can't bear the
    /// field does so again, one that was about to end does not.
    ExtendedAgain,
    /// Without it: the configured parent can't bear it.
    Plain,
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
            fallbacks: VecDeque::new(),
            search_ends: None,
            configured,
            configured_is_extended: false,
            has_asked_masters: false,
            tried: BTreeSet::new(),
            referrals: 0,
            is_refused_by_key: false,
            rounds_refused_by_key: 0,
            turned_to: None,
            obstacle: None,
            attached_at: None,
            lost_at: None,
            short_stays: 0,
            warned_of_protocol: None,
            failures: 0,
            remembered: remembered.map(|target| (target.id.clone(), target.clone())).collect(),
            named: VecDeque::new(),
            gave_way_at: None,
            made_room_at: None,
            ancestors: Vec::new(),
            rng: Pcg64Mcg::seed_from_u64(extensions.map_or(0, |extensions| extensions.seed)),
        }
    }

    /// Where so many are remembered as may be, one makes room, seldom enough that no flood takes the place of all: what is
    /// dead is announced no more, so in the end the living are remembered.
    pub(crate) fn remember(&mut self, now: Instant, target: Target) {
        if self.lacks_room_for(&target.id) {
            if self.made_room_at.is_some_and(|at| now < at + GIVE_WAY) {
                return;
            }
            self.made_room_at = Some(now);
        }
        self.remember_for_sure(target);
    }

    /// As the own parent is: there always is room.
    fn remember_for_sure(&mut self, target: Target) {
        if self.lacks_room_for(&target.id) {
            let any = self.rng.next_u32() as usize % self.remembered.len().max(1);
            if let Some(id) = self.remembered.keys().nth(any).cloned() {
                self.remembered.remove(&id);
            }
        }
        self.remembered.insert(target.id.clone(), target);
    }

    fn lacks_room_for(&self, id: &ServerId) -> bool {
        self.remembered.len() >= MAX_REMEMBERED && !self.remembered.contains_key(id)
    }

    /// A master names a server for the time when none answers. What masters make up must not take the place of what was
    /// heard, nor all the place for what they name rightly; and what is remembered is written to disk when it changes.
    pub(crate) fn remember_named(&mut self, now: Instant, target: Target) {
        if self.remembered.get(&target.id) == Some(&target) || self.named.contains(&target) {
            return;
        }
        if self.named.len() >= MAX_NAMED_REMEMBERED {
            if self.gave_way_at.is_some_and(|at| now < at + GIVE_WAY) {
                return;
            }
            self.gave_way_at = Some(now);
            self.named.pop_front();
        }
        self.named.push_back(target);
    }

    /// The servers to ask when no master answers, for this run and the next.
    pub(crate) fn remembered(&self) -> impl Iterator<Item = &Target> + Clone {
        self.named.iter().chain(self.remembered.values())
    }

    pub(crate) fn new_attempt(&mut self) -> AttemptId {
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

    /// The remembered servers in random order; in the first round the configured parent and the former ancestors before
    /// them, nearest first. Not so later: where those can't be reached, a round is over before it comes to others. Those
    /// that are heard over the links of this root are below it and would refuse. While not everybody below is heard, that is
    /// while masters say who is there, a few are enough, and go on to be, since masters may be wrong.
    fn fall_back_to_remembered(&mut self, own_id: &str, below: &Servers, hears_everybody: bool) {
        let is_elsewhere = |target: &&Target| target.id != own_id && !below.knows(&target.id);
        let mut others =
            self.configured.iter().chain(self.remembered()).filter(is_elsewhere).cloned().collect::<Vec<_>>();
        for last in (1..others.len()).rev() {
            let other = (self.rng.next_u64() % (last as u64 + 1)) as usize;
            others.swap(last, other);
        }
        if !hears_everybody {
            others.truncate(MAX_GUESSES);
        }
        let remembered =
            |id: &ServerId| self.remembered.get(id).or_else(|| self.named.iter().find(|target| target.id == *id));
        let above = self.ancestors.iter().filter_map(remembered).filter(is_elsewhere);
        let likely = self.configured.iter().chain(above).filter(|_| self.failures == 0).cloned();
        self.fallbacks = likely.chain(others).collect();
    }

    /// Whom to try now: whoever was named, then a remembered server, nobody of those twice in a round.
    fn next_candidate(&mut self, now: Instant) -> Option<Target> {
        self.candidates.pop_front().or_else(|| {
            let search_ends = *self.search_ends.get_or_insert(now + LONGEST_SEARCH);
            let Self { fallbacks, tried, .. } = self;
            let untried = std::iter::from_fn(|| fallbacks.pop_front()).find(|target| !tried.contains(&target.id));
            untried.filter(|_| now < search_ends)
        })
    }

    /// A random number below `bound`; 0 if that is 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.rng.next_u64() % bound.max(1)
    }

    /// Between half of the pause and the whole of it, so that those who lost the same parent don't move in step.
    fn pause(&mut self, failures: u32) -> Duration {
        let whole = FIRST_PAUSE.saturating_mul(1 << failures.min(16)).min(LONGEST_PAUSE);
        self.jitter(whole)
    }

    /// Between half of a time and the whole of it.
    pub(crate) fn jitter(&mut self, whole: Duration) -> Duration {
        let half = u64::try_from(whole.as_micros()).unwrap_or(u64::MAX) / 2;
        Duration::from_micros(half + self.below(half))
    }

    /// All were tried, or a parent is found.
    fn end_round(&mut self) {
        self.has_asked_masters = false;
        self.is_refused_by_key = false;
        self.fallbacks.clear();
        self.search_ends = None;
        self.tried.clear();
        self.referrals = 0;
        self.obstacle = None;
    }

    /// Candidates that somebody named who refused: behind those that are there, and nobody who was tried in this round.
    /// Whoever names whom, a round has an end.
    fn add_referred(&mut self, targets: Vec<Target>, own_id: &str) {
        let before = self.candidates.len();
        let room = MAX_REFERRALS.saturating_sub(self.referrals).min(MAX_TARGETS);
        let untried = targets.into_iter().take(room).filter(|target| !self.tried.contains(&target.id));
        let untried = untried.collect::<Vec<_>>();
        self.add_candidates(untried, own_id);
        self.referrals += self.candidates.len() - before;
    }

    /// Whether a node of another version is worth a warning now: once in a while.
    pub(crate) fn may_warn_of_protocol(&mut self, now: Instant) -> bool {
        let is_due = self.warned_of_protocol.is_none_or(|last| now - last >= PROTOCOL_WARN_INTERVAL);
        if is_due {
            self.warned_of_protocol = Some(now);
        }
        is_due
    }
}

impl Node {
    /// Starts a round: asks the masters, and whoever is to be asked first anyway.
    pub(crate) fn seek(&mut self, now: Instant, out: &mut Vec<Action>) {
        if !self.may_attach() || self.healing.is_attaching() {
            return;
        }
        self.try_next(now, out);
    }

    fn ask_masters(&mut self, now: Instant, out: &mut Vec<Action>) {
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
        self.healing.has_asked_masters = true;
        let hears_everybody = self.hears_everybody();
        let Self { healing, config, servers, .. } = self;
        // Masters may name only those that this node can't reach, and go on doing so.
        let is_enough = !candidates.is_empty() && healing.failures == 0;
        healing.add_candidates(candidates, &config.id);
        if !is_enough {
            healing.fall_back_to_remembered(&config.id, servers, hears_everybody);
        }
        self.try_next(now, out);
    }

    pub(crate) fn on_advised(&mut self, now: Instant, candidates: Vec<Target>, out: &mut Vec<Action>) {
        if self.may_attach() && !self.healing.is_attaching() {
            self.healing.add_candidates(candidates, &self.config.id);
            self.try_named(now, out);
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
            self.try_named(now, out);
        }
    }

    /// Whom to try before anybody else.
    pub(crate) fn prefer_candidates(&mut self, targets: impl IntoIterator<Item = Target>) {
        self.healing.candidates = targets.into_iter().collect();
    }

    /// Tries those who were named out of turn. After a first round only those: who names somebody often must not make this
    /// node ask everybody each time.
    fn try_named(&mut self, now: Instant, out: &mut Vec<Action>) {
        if !self.healing.candidates.is_empty() {
            self.healing.has_asked_masters |= self.healing.failures > 0;
            self.try_next(now, out);
        }
    }

    fn try_next(&mut self, now: Instant, out: &mut Vec<Action>) {
        if !self.may_attach() {
            return;
        }
        match self.healing.next_candidate(now) {
            Some(target) => self.try_candidate(now, target, Manner::Extended, out),
            None if !self.healing.has_asked_masters => self.ask_masters(now, out),
            None => self.rest(now, out),
        }
    }

    fn try_candidate(&mut self, now: Instant, target: Target, manner: Manner, out: &mut Vec<Action>) {
        let attempt = self.healing.new_attempt();
        debug!(parent = target.id, hostname = target.hostname, port = target.port, ?manner, "asking to attach");
        // A configured parent may speak the plain protocol only, and then it may say nothing before its next announcement.
        let may_be_plain = self.healing.configured.as_ref() == Some(&target) && !self.healing.configured_is_extended;
        let patience = if may_be_plain { 2 * self.config.announce_interval } else { Duration::ZERO };
        if self.healing.tried.len() < 2 * MAX_REMEMBERED {
            self.healing.tried.insert(target.id.clone());
        }
        self.healing.pursuit = Pursuit::Attaching { attempt, target: target.clone(), connection: None, manner };
        self.timers.set(Timer::Attempt, now + patience.max(self.heartbeat_timeout()));
        self.timers.stop(&Timer::Seek);
        out.push(Action::Dial { attempt, target });
    }

    /// Everybody was tried in vain.
    fn rest(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.healing.pursuit = Pursuit::Resting;
        self.healing.rounds_refused_by_key += u32::from(self.healing.is_refused_by_key);
        if self.healing.rounds_refused_by_key >= ROUNDS_BEFORE_YIELDING {
            self.yield_rule(now, out);
        }
        let failures = self.healing.failures;
        let pause = self.healing.pause(failures);
        if let Some(why) = self.healing.obstacle.as_ref().filter(|_| failures.is_multiple_of(WARN_EVERY)) {
            warn!(why, failures, "no parent found yet");
        }
        self.healing.end_round();
        if self.has_lost_parent() && failures == 0 {
            info!("nobody to attach to: this node is a root now, and goes on looking now and then");
        } else {
            debug!(failures, "nobody to attach to");
        }
        if failures == 0 && !self.timers.is_set(&Timer::Apart) {
            self.timers.set(Timer::Apart, now);
        }
        self.healing.failures = failures.saturating_add(1);
        self.timers.set(Timer::Seek, now + pause);
        self.schedule_acks(now);
    }

    /// Those who refuse this root because their key is the larger one should have come below it by now: they can't reach
    /// it. So it goes below them (protocol, F10).
    fn yield_rule(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.healing.rounds_refused_by_key = 0;
        self.fragment.become_root();
        info!(reign = ?self.fragment.key().reign, "others can't reach this root to come below it: it goes below them");
        self.tell_children(out);
        self.ask_again_for_applicants(now, out);
    }

    /// The connection for an attempt stands: say who asks.
    pub(crate) fn on_attempt_connected(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        dialled: AttemptId,
        out: &mut Vec<Action>,
    ) {
        self.counters.dialled += 1;
        if self.homing.is_probe(dialled) {
            return self.on_probe_connected(connection, dialled, out);
        }
        if self.moving.is_question(dialled) {
            return self.on_question_connected(connection, dialled, out);
        }
        self.connections.insert(connection, Connection::new(Role::Applying));
        match &mut self.healing.pursuit {
            Pursuit::Attaching { attempt, connection: used, manner, .. } if *attempt == dialled && used.is_none() => {
                *used = Some(connection);
                let is_extended = *manner != Manner::Plain;
                let node = is_extended.then(|| self.applicant(dialled));
                let authenticate = Message::Authenticate { secret: self.config.secret.clone(), node };
                self.send(connection, &authenticate, out);
            }
            _ => self.close(now, connection, CloseReason::Moved, out),
        }
    }

    /// What this node says of itself when it asks to attach.
    pub(crate) fn applicant(&self, attempt: AttemptId) -> Applicant {
        let incarnation = self.extensions.as_ref().map_or(0, |extensions| extensions.incarnation);
        Applicant {
            protocol: PROTOCOL,
            request: Request { id: self.config.id.clone(), incarnation, attempt: attempt.0 },
            hostname: self.config.hostname.clone(),
            port: self.config.port,
            key: self.fragment.key().clone(),
            probe: false,
            moves: false,
        }
    }

    pub(crate) fn on_dial_failed(&mut self, now: Instant, failed: AttemptId, out: &mut Vec<Action>) {
        if self.homing.is_probe(failed) {
            self.on_probe_failed(now, "can't be reached");
        } else if self.moving.is_question(failed) {
            self.on_question_failed(now, out);
        } else if let Pursuit::Attaching { attempt, target, .. } = &self.healing.pursuit
            && *attempt == failed
        {
            debug!(parent = target.id, hostname = target.hostname, port = target.port, "can't be reached");
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
    pub(crate) fn on_applying_lost(
        &mut self,
        now: Instant,
        lost: ConnectionId,
        reason: CloseReason,
        out: &mut Vec<Action>,
    ) {
        if reason == CloseReason::PeerClosed && self.may_reject_node_field(lost) {
            return self.dial_configured_again(now, out);
        }
        if let Pursuit::Attaching { target, connection, .. } = &self.healing.pursuit
            && *connection == Some(lost)
        {
            debug!(parent = target.id, hostname = target.hostname, port = target.port, ?reason, "not taken in");
            self.healing.pursuit = Pursuit::Resting;
            self.try_next(now, out);
        }
    }

    /// Whether this is an attempt at the configured parent, of which nothing shows yet that it speaks the extensions.
    pub(crate) fn may_reject_node_field(&self, over: ConnectionId) -> bool {
        let is_with_field = !matches!(self.healing.pursuit, Pursuit::Attaching { manner: Manner::Plain, .. });
        is_with_field && !self.healing.configured_is_extended && self.is_attaching_to_configured(over)
    }

    /// The configured parent has closed the connection without a word.
    fn dial_configured_again(&mut self, now: Instant, out: &mut Vec<Action>) {
        match &self.healing.pursuit {
            Pursuit::Attaching { manner: Manner::Extended, target, .. } => {
                let target = target.clone();
                self.try_candidate(now, target, Manner::ExtendedAgain, out);
            }
            _ => self.dial_without_node_field(now, out),
        }
    }

    /// The configured parent takes a field that it does not know for an error, against T3: it is asked at once again in
    /// the way of the plain protocol.
    pub(crate) fn dial_without_node_field(&mut self, now: Instant, out: &mut Vec<Action>) {
        if let Some(target) = self.healing.configured.clone() {
            debug!(hostname = target.hostname, port = target.port, "the parent may not know the extensions: once more");
            self.homing.doubt_plain_parent();
            self.try_candidate(now, target, Manner::Plain, out);
        }
    }

    /// A request of our own that is under way is given up: a late acceptance finds its connection closed.
    pub(crate) fn cancel_attempt(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.timers.stop(&Timer::Attempt);
        if let Pursuit::Attaching { connection, .. } = std::mem::replace(&mut self.healing.pursuit, Pursuit::Resting) {
            let pause = self.healing.pause(self.healing.failures);
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
            Message::LinkRefused { reason, info, targets, .. } => {
                debug!(%connection, ?reason, info = quote(&info), "attachment refused");
                self.on_link_refused(now, connection, reason, targets);
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

    /// What a refusal tells beyond the no.
    fn on_link_refused(&mut self, now: Instant, over: ConnectionId, reason: RefusalReason, targets: Vec<Target>) {
        if !matches!(self.healing.pursuit, Pursuit::Attaching { connection, .. } if connection == Some(over)) {
            return;
        }
        self.healing.configured_is_extended |= self.is_attaching_to_configured(over);
        self.healing.add_referred(targets, &self.config.id);
        match reason {
            RefusalReason::Protocol => {
                if self.healing.may_warn_of_protocol(now) {
                    warn!(connection = %over, own = PROTOCOL, "refused by a node with another version");
                }
                self.note_obstacle("another version of the extensions is spoken there".to_owned());
            }
            RefusalReason::Full => self.note_obstacle("servers are full; see --max-children".to_owned()),
            RefusalReason::KeyNotSmaller => self.healing.is_refused_by_key = true,
            RefusalReason::Draining
            | RefusalReason::IdInUse
            | RefusalReason::Moving
            | RefusalReason::Other
            | RefusalReason::OwnSubtree
            | RefusalReason::Unconfirmed => {}
        }
    }

    /// Something that an operator should hear of if this round ends in vain.
    pub(crate) fn note_obstacle(&mut self, why: String) {
        self.healing.obstacle = Some(why);
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
        self.healing.end_round();
        self.become_link(now, connection, Link::to_found_plain_parent(now), out);
        self.ask_doubted_later(now);
        self.advance_registrations(now, out);
    }

    /// A parent that was taken for a plain one has shown that it speaks the extensions: it's asked again as such.
    pub(crate) fn leave_plain_parent(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.healing.configured_is_extended = true;
        self.prefer_candidates(self.healing.configured.clone());
        self.leave_plain_parents(now, out);
    }

    pub(crate) fn configured_parent(&self) -> Option<&Target> {
        self.healing.configured.as_ref()
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
            Pursuit::Attaching { attempt, target, connection: Some(used), .. }
                if *attempt == accepted && *used == connection =>
            {
                Target { id: id.to_owned(), ..target.clone() }
            }
            _ => {
                debug!(%connection, parent = id, "accepted for an attempt that is over");
                return self.close(now, connection, CloseReason::Moved, out);
            }
        };
        self.healing.configured_is_extended |= self.is_attaching_to_configured(connection);
        let lowers_the_key = tree.key < *self.fragment.key() && !tree.path.contains(&self.config.id);
        if !self.may_attach() || !lowers_the_key {
            debug!(%connection, parent = id, "accepted where this node may not attach");
            return self.close(now, connection, CloseReason::Moved, out);
        }
        info!(parent = id, root = tree.key.root, reign = ?tree.key.reign, "attached to a parent");
        self.timers.stop(&Timer::Attempt);
        self.timers.stop(&Timer::Seek);
        self.healing.pursuit = Pursuit::Resting;
        self.healing.candidates.clear();
        self.healing.end_round();
        self.healing.failures = 0;
        self.healing.rounds_refused_by_key = 0;
        self.healing.turned_to = None;
        self.healing.attached_at = Some(now);
        if let Some(lost) = self.healing.lost_at.take() {
            self.counters.heals.add(now - lost);
        }
        self.healing.remember_for_sure(target.clone());
        self.healing.ancestors = tree.path.iter().rev().cloned().collect();
        let is_new_here = self.relay.as_ref().is_some_and(|relay| relay.is_new);
        self.fragment.become_child(Parent { link: connection, target }, tree);
        self.leave_former_parents(now, out);
        self.become_link(now, connection, Link::to_extended_parent(now, id.to_owned(), is_new_here), out);
        self.tell_children(out);
        self.ask_again_for_applicants(now, out);
        self.on_attached(now, out);
        self.on_move_ended(now);
    }

    /// The link to the parent is lost. Where that happens again and again right after this node was taken in, something is
    /// wrong that looking at once would only repeat.
    pub(crate) fn on_parent_lost(&mut self, now: Instant, out: &mut Vec<Action>) {
        let stay = self.healing.attached_at.map(|since| now - since);
        let is_short = stay.is_some_and(|stay| stay < self.heartbeat_timeout());
        self.healing.short_stays = if is_short { self.healing.short_stays.saturating_add(1) } else { 0 };
        let again = self.healing.short_stays.saturating_sub(1);
        if again == 0 {
            return self.become_orphan(now, out);
        }
        self.become_orphan_and_wait(now, out);
        let pause = self.healing.pause(again);
        if again.is_multiple_of(WARN_EVERY) || again == 1 {
            warn!(again, "parents are lost as soon as they are found");
        }
        self.timers.set(Timer::Seek, now + pause);
    }

    /// The parent is lost, or is to be left: another is looked for at once.
    pub(crate) fn become_orphan(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.become_orphan_and_wait(now, out);
        self.seek(now, out);
    }

    fn become_orphan_and_wait(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.stop_homing(now, out);
        self.stop_moving(now, out);
        self.moving.on_place_changed(now);
        self.healing.end_round();
        // Who moves because a master proposes it has lost nothing that has to heal.
        if !self.moving.is_on_the_way() {
            self.counters.parents_lost += 1;
            self.healing.lost_at = Some(now);
        }
        self.healing.ancestors = self.fragment.position().path.into_iter().rev().skip(1).collect();
        self.fragment.become_root();
        self.be_apart(now);
        self.healing.failures = 0;
        self.healing.rounds_refused_by_key = 0;
        self.tell_children(out);
        self.ask_again_for_applicants(now, out);
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

    /// A link is lost through which this root was part of a larger tree: for some time that one may still be there, and
    /// find it again (protocol, U2).
    pub(crate) fn be_apart(&mut self, now: Instant) {
        self.timers.set(Timer::Apart, now + 2 * self.heartbeat_timeout());
    }

    /// Whether what this root agrees to may not be what all the others agree to: it has not found them yet.
    pub(crate) fn may_be_apart(&self) -> bool {
        let is_apart = self.fragment.is_root() && self.timers.is_set(&Timer::Apart) && !self.has_plain_parent();
        is_apart || self.is_in_its_first_round()
    }

    /// Somebody asks to attach here though the own key is the larger one: as a root, we ask there instead.
    pub(crate) fn turn_request_around(
        &mut self,
        now: Instant,
        applicant: &Applicant,
        reason: RefusalReason,
        out: &mut Vec<Action>,
    ) {
        if reason != RefusalReason::KeyNotSmaller || applicant.key >= *self.fragment.key() {
            return;
        }
        let is_again = self.healing.turned_to.as_ref() == Some(&applicant.request.id);
        if is_again && !self.healing.is_attaching() && self.fragment.settle() {
            info!(
                node = applicant.request.id,
                "a new node can't be reached to come below it: it may come below this one"
            );
            return;
        }
        self.healing.turned_to = Some(applicant.request.id.clone());
        self.seek_at(now, applicant.target(), out);
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
