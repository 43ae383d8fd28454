//! Moving to another place in the same tree because a master proposes it (protocol, Balance).
//!
//! The node asks the proposed server first, and that one the root, which allows one move at a time. The question
//! changes nothing in the tree. Only then does the node move, in the way of a child whose parent is about to stop: it
//! becomes a root, keeps the link to its parent until it is taken in elsewhere, and asks the proposed server first and
//! the parent that it has second. So the ordinary rules keep cycles away, whatever masters propose.

use std::time::{Duration, Instant};

use arborcast_proto::wire::message::{Applicant, RefusalReason, Sender, Target, TreePosition};
use arborcast_proto::wire::{FragmentKey, Message};
use tracing::{debug, info};

use crate::error::Refusal;
use crate::event::{Action, CloseReason};
use crate::ids::{AttemptId, ConnectionId, ServerId};
use crate::node::{Connection, Node, Role};
use crate::timer::Timer;

/// How long a node's place must have been the same before it moves, and how long a root waits after a move before it
/// allows the next one.
const SETTLE: Duration = Duration::from_millis(500);

/// For how many heartbeat timeouts a root waits for a server that it has allowed to move: two attempts, and the way
/// there.
const MOVE_TIMEOUTS: u32 = 3;

/// Least time between two moves to a place that is no nearer to the root.
const BETWEEN_DEEPER: Duration = Duration::from_secs(60);

/// What a master proposes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MoveProposal {
    /// The server to move below.
    pub target: Target,
    /// The key of the fragment, as far as the master knows.
    pub key: FragmentKey,
    /// The parent that the node has, as far as the master knows.
    pub parent: ServerId,
    /// Whether the parent has more children than it takes, so that the new place may be further from the root.
    pub relieves_parent: bool,
}

/// What became of a proposal. The names are those of the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MoveOutcome {
    /// The node is below the proposed server.
    Moved,
    /// Another move of this node is under way.
    Busy,
    /// The node is about to stop.
    Draining,
    /// The proposed server allowed it, and did not take the node in after all.
    Failed,
    /// The place is no nearer to the root.
    NoGain,
    /// The node has no parent that speaks the extensions.
    NotAttached,
    /// The node's parent or its fragment is another one than the master thinks.
    OutOfDate,
    /// The proposed server is the node itself, or below it.
    OwnSubtree,
    /// The node is below the parent that its operator prefers.
    PreferredParent,
    /// The proposed server would not take the node in.
    Refused,
    /// The root does not allow it, since another server is moving.
    TreeBusy,
    /// The proposed server can't be reached, or does not answer in time.
    Unreachable,
    /// The node, or one above it, has only just come to its place.
    Unsettled,
}

impl MoveOutcome {
    /// A name for the counters.
    pub fn name(self) -> &'static str {
        match self {
            Self::Moved => "moved",
            Self::Busy => "busy",
            Self::Draining => "draining",
            Self::Failed => "failed",
            Self::NoGain => "no_gain",
            Self::NotAttached => "not_attached",
            Self::OutOfDate => "out_of_date",
            Self::OwnSubtree => "own_subtree",
            Self::PreferredParent => "preferred_parent",
            Self::Refused => "refused",
            Self::TreeBusy => "tree_busy",
            Self::Unreachable => "unreachable",
            Self::Unsettled => "unsettled",
        }
    }
}

/// What masters are told of the last proposal that was dealt with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MoveAnswer {
    /// How many this node has dealt with so far.
    pub number: u64,
    /// The proposed server.
    pub target: ServerId,
    /// The parent that the proposal named.
    pub parent: ServerId,
    /// What became of it.
    pub outcome: MoveOutcome,
}

/// What a node does about moving.
#[derive(Debug, Default)]
pub(crate) struct Moving {
    /// The proposal whose server is being asked.
    question: Option<Question>,
    /// The proposal because of which this node has become a root, until it is attached again.
    on_the_way: Option<MoveProposal>,
    /// When the place of this node changed last.
    changed_at: Option<Instant>,
    /// When it moved last to a place that is no nearer to the root.
    deeper_at: Option<Instant>,
    /// The answer to the last proposal.
    answer: Option<MoveAnswer>,
    /// Who may move, as the root of this fragment has said, and until when nobody else may.
    allowed: Option<(ServerId, Instant)>,
}

#[derive(Debug)]
struct Question {
    proposal: MoveProposal,
    attempt: AttemptId,
    connection: Option<ConnectionId>,
}

impl Moving {
    /// Whether an attempt is the question that is under way.
    pub(crate) fn is_question(&self, attempt: AttemptId) -> bool {
        self.question.as_ref().is_some_and(|question| question.attempt == attempt)
    }

    /// This node, or one above it, has another place.
    pub(crate) fn on_place_changed(&mut self, now: Instant) {
        self.changed_at = Some(now);
    }

    pub(crate) fn answer(&self) -> Option<&MoveAnswer> {
        self.answer.as_ref()
    }

    /// Whether this node has left its place for a proposed one.
    pub(crate) fn is_on_the_way(&self) -> bool {
        self.on_the_way.is_some()
    }

    fn is_asked_over(&self, connection: ConnectionId) -> bool {
        self.question.as_ref().is_some_and(|question| question.connection == Some(connection))
    }

    /// The same proposal of another master.
    fn is_asked_about(&self, proposal: &MoveProposal) -> bool {
        let is_same = |own: &MoveProposal| own.target.id == proposal.target.id && own.parent == proposal.parent;
        self.question.iter().map(|question| &question.proposal).chain(&self.on_the_way).any(is_same)
    }

    fn is_settled(&self, now: Instant) -> bool {
        self.changed_at.is_none_or(|at| now >= at + SETTLE)
    }

    fn may_go_deeper(&self, now: Instant) -> bool {
        self.deeper_at.is_none_or(|at| now >= at + BETWEEN_DEEPER)
    }

    /// The root's decision: one at a time.
    fn allow(&mut self, now: Instant, id: &str, until: Instant) -> bool {
        let is_free = self.allowed.as_ref().is_none_or(|(allowed, until)| allowed == id || now >= *until);
        if is_free {
            self.allowed = Some((id.to_owned(), until));
        }
        is_free
    }

    /// The root has confirmed a request. If it is that of the server that may move, the next one may in a moment.
    pub(crate) fn on_confirmed(&mut self, now: Instant, id: &str) {
        if let Some((_, until)) = self.allowed.as_mut().filter(|(allowed, _)| allowed == id) {
            *until = now + SETTLE;
        }
    }
}

impl Node {
    /// A master proposes another place.
    pub(crate) fn on_move_proposed(&mut self, now: Instant, proposal: MoveProposal, out: &mut Vec<Action>) {
        if self.moving.is_asked_about(&proposal) {
            // All masters hear what becomes of it.
            return;
        }
        if let Err(outcome) = self.judge_proposal(now, &proposal) {
            return self.answer_proposal(&proposal, outcome);
        }
        let attempt = self.healing.new_attempt();
        let target = proposal.target.clone();
        debug!(target = target.id, parent = proposal.parent, "a master proposes to move");
        self.moving.question = Some(Question { proposal, attempt, connection: None });
        // The proposed server waits for its root's answer for one timeout.
        self.timers.set(Timer::Move, now + 2 * self.heartbeat_timeout());
        out.push(Action::Dial { attempt, target });
    }

    /// What this node can say without asking anybody.
    fn judge_proposal(&self, now: Instant, proposal: &MoveProposal) -> Result<(), MoveOutcome> {
        if self.is_draining() {
            return Err(MoveOutcome::Draining);
        }
        if self.moving.question.is_some() || self.moving.is_on_the_way() {
            return Err(MoveOutcome::Busy);
        }
        self.judge_place(proposal)?;
        let target = &proposal.target.id;
        if *target == self.config.id || self.fragment.child_with_id(target).is_some() {
            return Err(MoveOutcome::OwnSubtree);
        }
        if *target == proposal.parent {
            return Err(MoveOutcome::NoGain);
        }
        if self.homing.is_home() {
            return Err(MoveOutcome::PreferredParent);
        }
        if self.moving.is_settled(now) { Ok(()) } else { Err(MoveOutcome::Unsettled) }
    }

    /// Whether this node is still where the master thinks.
    fn judge_place(&self, proposal: &MoveProposal) -> Result<(), MoveOutcome> {
        match self.fragment.parent() {
            None => Err(MoveOutcome::NotAttached),
            Some(parent) if parent.target.id != proposal.parent => Err(MoveOutcome::OutOfDate),
            Some(_) if proposal.key != *self.fragment.key() => Err(MoveOutcome::OutOfDate),
            Some(_) => Ok(()),
        }
    }

    fn answer_proposal(&mut self, proposal: &MoveProposal, outcome: MoveOutcome) {
        debug!(
            target = proposal.target.id,
            parent = proposal.parent,
            outcome = outcome.name(),
            "a proposal is dealt with"
        );
        *self.counters.moves.entry(outcome.name()).or_default() += 1;
        let number = self.moving.answer.as_ref().map_or(0, |answer| answer.number) + 1;
        let (target, parent) = (proposal.target.id.clone(), proposal.parent.clone());
        self.moving.answer = Some(MoveAnswer { number, target, parent, outcome });
    }

    /// The connection to the proposed server stands: ask.
    pub(crate) fn on_question_connected(
        &mut self,
        connection: ConnectionId,
        attempt: AttemptId,
        out: &mut Vec<Action>,
    ) {
        self.connections.insert(connection, Connection::new(Role::AskingToMove));
        if let Some(question) = &mut self.moving.question {
            question.connection = Some(connection);
        }
        let node = Some(Applicant { probe: true, moves: true, ..self.applicant(attempt) });
        self.send(connection, &Message::Authenticate { secret: self.config.secret.clone(), node }, out);
    }

    /// The question is over.
    fn end_question(&mut self, now: Instant, outcome: MoveOutcome, out: &mut Vec<Action>) {
        self.timers.stop(&Timer::Move);
        let Some(Question { proposal, connection, .. }) = self.moving.question.take() else { return };
        self.answer_proposal(&proposal, outcome);
        if let Some(connection) = connection {
            self.close(now, connection, CloseReason::Moved, out);
        }
    }

    /// The proposed server can't be reached, closes, or has not answered in time.
    pub(crate) fn on_question_failed(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.end_question(now, MoveOutcome::Unreachable, out);
    }

    /// The connection to the proposed server is gone.
    pub(crate) fn on_question_lost(&mut self, now: Instant, connection: ConnectionId, out: &mut Vec<Action>) {
        if self.moving.is_asked_over(connection) {
            self.on_question_failed(now, out);
        }
    }

    /// This node has no parent any more, or is about to stop: there is nothing to ask for.
    pub(crate) fn stop_moving(&mut self, now: Instant, out: &mut Vec<Action>) {
        let outcome = if self.is_draining() { MoveOutcome::Draining } else { MoveOutcome::NotAttached };
        self.end_question(now, outcome, out);
        if self.is_draining()
            && let Some(proposal) = self.moving.on_the_way.take()
        {
            self.answer_proposal(&proposal, outcome);
        }
    }

    /// What the proposed server answers.
    pub(crate) fn on_question_message(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        message: Message,
        out: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        match message {
            Message::LinkPossible { id, tree, .. } => self.on_move_possible(now, &id, &tree, out),
            Message::LinkRefused { reason, .. } => {
                debug!(%connection, ?reason, "the proposed server does not take this node in");
                let outcome = match reason {
                    RefusalReason::Moving => MoveOutcome::TreeBusy,
                    RefusalReason::OwnSubtree => MoveOutcome::OwnSubtree,
                    RefusalReason::KeyNotSmaller => MoveOutcome::OutOfDate,
                    _ => MoveOutcome::Refused,
                };
                self.end_question(now, outcome, out);
            }
            // It speaks the plain protocol only.
            message if message.sender() == Sender::Server => self.end_question(now, MoveOutcome::Refused, out),
            other => return Err(Refusal::out_of_place_on_a_link(&other)),
        }
        Ok(())
    }

    /// The proposed server would take this node in, and the root has nothing against it.
    fn on_move_possible(&mut self, now: Instant, id: &str, tree: &TreePosition, out: &mut Vec<Action>) {
        let Some(question) = &self.moving.question else { return };
        let proposal = question.proposal.clone();
        if let Err(outcome) = self.judge_possible(now, &proposal, id, tree) {
            return self.end_question(now, outcome, out);
        }
        let Some(parent) = self.fragment.parent().map(|parent| parent.target.clone()) else { return };
        self.timers.stop(&Timer::Move);
        if let Some(connection) = self.moving.question.take().and_then(|question| question.connection) {
            self.close(now, connection, CloseReason::Moved, out);
        }
        info!(parent = id, from = parent.id, "moving to another parent, as a master proposes");
        if tree.path.len() >= self.fragment.depth() {
            self.moving.deeper_at = Some(now);
        }
        let target = Target { id: id.to_owned(), ..proposal.target.clone() };
        self.moving.on_the_way = Some(proposal);
        self.is_successor = false;
        self.prefer_candidates([target, parent]);
        self.become_orphan(now, out);
    }

    /// All may have changed since the proposal came.
    fn judge_possible(
        &self,
        now: Instant,
        proposal: &MoveProposal,
        id: &str,
        tree: &TreePosition,
    ) -> Result<(), MoveOutcome> {
        self.judge_place(proposal)?;
        if tree.key != *self.fragment.key() {
            return Err(MoveOutcome::OutOfDate);
        }
        if tree.path.contains(&self.config.id) {
            return Err(MoveOutcome::OwnSubtree);
        }
        // The ids of the path are as many as the steps from the root to a child of that server.
        let is_nearer = tree.path.len() < self.fragment.depth();
        let may_be_deeper = proposal.relieves_parent && id != proposal.parent && self.moving.may_go_deeper(now);
        if is_nearer || may_be_deeper { Ok(()) } else { Err(MoveOutcome::NoGain) }
    }

    /// A parent has taken this node in.
    pub(crate) fn on_move_ended(&mut self, now: Instant) {
        self.moving.on_place_changed(now);
        if let Some(proposal) = self.moving.on_the_way.take() {
            let is_there = self.parent_id() == Some(proposal.target.id.as_str());
            let outcome = if is_there { MoveOutcome::Moved } else { MoveOutcome::Failed };
            self.answer_proposal(&proposal, outcome);
        }
    }

    /// The root's decision about a server that would like to move within this fragment.
    pub(crate) fn decide_move(&mut self, now: Instant, applicant: &Applicant) -> Option<RefusalReason> {
        if self.is_draining() {
            return Some(RefusalReason::Draining);
        }
        if applicant.key != *self.fragment.key() {
            return Some(RefusalReason::KeyNotSmaller);
        }
        let until = now + MOVE_TIMEOUTS * self.heartbeat_timeout();
        let is_allowed = self.moving.allow(now, &applicant.request.id, until);
        (!is_allowed).then_some(RefusalReason::Moving)
    }

    /// Whether this node has left its place for one that a master proposed, and has not come to it yet.
    pub fn is_moving(&self) -> bool {
        self.moving.is_on_the_way()
    }
}
