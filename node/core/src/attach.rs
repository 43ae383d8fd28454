//! Taking children in: the request climbs to the root, which confirms it (protocol, Fragments and reigns).

use std::time::Instant;

use arborcast_proto::wire::Message;
use arborcast_proto::wire::message::{Applicant, AttachAnswer, AttachRequest, RefusalReason, Request, Target};
use tracing::{debug, info, warn};

use crate::error::Refusal;
use crate::event::{Action, CloseReason};
use crate::healing::{MAX_TARGETS, PROTOCOL};
use crate::ids::{ConnectionId, ServerId};
use crate::link::Link;
use crate::node::{Node, Role};
use crate::timer::Timer;

/// Deepest tree in which a request can climb; a longer trail is somebody's mistake.
const MAX_TRAIL: usize = 1000;

impl Node {
    /// AUTHENTICATE, with the right secret, from somebody who speaks the extensions.
    pub(crate) fn on_applicant(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        applicant: Applicant,
        out: &mut Vec<Action>,
    ) {
        let refused = self.refusal_at_the_door(&applicant);
        if refused == Some(RefusalReason::Protocol) {
            let (node, protocol) = (&applicant.request.id, applicant.protocol);
            if self.healing.may_warn_of_protocol(now) {
                warn!(%connection, node, protocol, own = PROTOCOL, "a node with another version can't be taken in");
            }
        }
        if let Some(entry) = self.connections.get_mut(&connection) {
            entry.role = Role::Applicant(Box::new(applicant.clone()));
            let hold = entry.hold.take();
            self.release(connection, hold, out);
        }
        self.timers.stop(&Timer::Identify(connection));
        if let Some(reason) = refused {
            return self.refuse_applicant(now, connection, &applicant.request, reason, out);
        }
        if applicant.probe && !applicant.moves {
            return self.say_possible(now, connection, &applicant.request, out);
        }
        self.timers.set(Timer::Applicant(connection), now + self.heartbeat_timeout());
        self.climb(now, applicant, Vec::new(), out);
    }

    /// To one that only asks: yes.
    fn say_possible(&mut self, now: Instant, connection: ConnectionId, request: &Request, out: &mut Vec<Action>) {
        let (attempt, id) = (request.attempt, self.config.id.clone());
        self.send(connection, &Message::LinkPossible { attempt, id, tree: self.fragment.position() }, out);
        self.close(now, connection, CloseReason::Probed, out);
    }

    /// What this node can say without asking anybody.
    fn refusal_at_the_door(&self, applicant: &Applicant) -> Option<RefusalReason> {
        let request = &applicant.request;
        if applicant.protocol != PROTOCOL {
            return Some(RefusalReason::Protocol);
        }
        if self.is_draining() {
            return Some(RefusalReason::Draining);
        }
        if request.id == self.config.id {
            return Some(RefusalReason::IdInUse);
        }
        if self.fragment.is_below(&request.id) {
            return Some(RefusalReason::OwnSubtree);
        }
        match self.fragment.child_with_id(&request.id) {
            // A child that comes again, from where it was, has lost its link before we did.
            Some((_, child)) if child.request < *request && is_at(&child.hostname, child.port.into(), applicant) => {
                None
            }
            Some(_) => Some(RefusalReason::IdInUse),
            None if self.is_elsewhere(applicant) => Some(RefusalReason::IdInUse),
            None if self.is_full() => Some(RefusalReason::Full),
            None => None,
        }
    }

    /// Whether another server is known under the applicant's id, or named by a master now, at another address.
    fn is_elsewhere(&self, applicant: &Applicant) -> bool {
        let id = &applicant.request.id;
        let known = self.servers.get(id).map(|server| (&server.hostname, server.port));
        let named = self.servers.named(id).map(|target| (&target.hostname, target.port.into()));
        known.or(named).is_some_and(|(hostname, port)| !is_at(hostname, port, applicant))
    }

    fn is_full(&self) -> bool {
        let max_children = self.extensions.as_ref().map_or(0, |extensions| extensions.max_children);
        self.fragment.children().count() >= max_children
    }

    /// One step up, or the root's decision.
    fn climb(&mut self, now: Instant, applicant: Applicant, mut trail: Vec<ServerId>, out: &mut Vec<Action>) {
        if applicant.request.id == self.config.id {
            return self.pass_answer_down(now, applicant.request, trail, Some(RefusalReason::OwnSubtree), out);
        }
        if let Some(parent) = self.fragment.parent() {
            let link = parent.link;
            trail.push(self.config.id.clone());
            self.send(link, &Message::AttachRequest(AttachRequest { applicant, trail }), out);
            return;
        }
        let refused =
            if applicant.probe { self.decide_move(now, &applicant) } else { self.decide(now, &applicant, out) };
        self.pass_answer_down(now, applicant.request, trail, refused, out);
    }

    /// The root's decision. Confirming somebody's request cancels a request of our own.
    fn decide(&mut self, now: Instant, applicant: &Applicant, out: &mut Vec<Action>) -> Option<RefusalReason> {
        if self.is_draining() {
            return Some(RefusalReason::Draining);
        }
        match self.fragment.judge(applicant) {
            Ok(()) => {
                self.moving.on_confirmed(now, &applicant.request.id);
                self.cancel_attempt(now, out);
                self.leave_former_parents_that_may_come_below(now, out);
                None
            }
            Err(reason) => {
                self.turn_request_around(now, applicant, reason, out);
                Some(reason)
            }
        }
    }

    /// A parent that is about to stop goes on relaying until we are attached elsewhere. It may itself be in the fragment
    /// that comes below us now, and then that link would close a circle. Not so where it was a root that named us its
    /// successor: such a parent has nobody above, and those below leave it when they come here.
    fn leave_former_parents_that_may_come_below(&mut self, now: Instant, out: &mut Vec<Action>) {
        if !self.is_successor {
            self.leave_former_parents(now, out);
        }
    }

    /// ATTACH_REQUEST from a child. One that does not come from where it says is dropped.
    pub(crate) fn on_attach_request(
        &mut self,
        now: Instant,
        link: ConnectionId,
        request: AttachRequest,
        out: &mut Vec<Action>,
    ) {
        let is_from_child =
            self.fragment.child(link).is_some_and(|child| request.trail.last() == Some(&child.request.id));
        if is_from_child && request.trail.len() < MAX_TRAIL {
            self.climb(now, request.applicant, request.trail, out);
        } else {
            debug!(connection = %link, "a request to attach from the wrong side was dropped");
        }
    }

    /// ATTACH_ANSWER from the parent.
    pub(crate) fn on_attach_answer(
        &mut self,
        now: Instant,
        link: ConnectionId,
        answer: AttachAnswer,
        out: &mut Vec<Action>,
    ) {
        let AttachAnswer { request, mut trail, refused } = answer;
        if !self.fragment.is_parent(link) || trail.pop().as_ref() != Some(&self.config.id) {
            debug!(connection = %link, "an answer from the wrong side was dropped");
            return;
        }
        self.pass_answer_down(now, request, trail, refused, out);
    }

    fn pass_answer_down(
        &mut self,
        now: Instant,
        request: Request,
        trail: Vec<ServerId>,
        refused: Option<RefusalReason>,
        out: &mut Vec<Action>,
    ) {
        let Some(next) = trail.last() else { return self.finish_attachment(now, &request, refused, out) };
        if let Some((link, _)) = self.fragment.child_with_id(next) {
            self.send(link, &Message::AttachAnswer(AttachAnswer { request, trail, refused }), out);
        }
    }

    /// The answer has come back to the acceptor, which looks once more: it may have moved meanwhile.
    fn finish_attachment(
        &mut self,
        now: Instant,
        request: &Request,
        refused: Option<RefusalReason>,
        out: &mut Vec<Action>,
    ) {
        let waiting = self.connections.iter().find_map(|(connection, entry)| match &entry.role {
            Role::Applicant(applicant) if applicant.request == *request => Some((*connection, (**applicant).clone())),
            _ => None,
        });
        let Some((connection, applicant)) = waiting else { return };
        let refused = refused.or_else(|| self.refusal_at_the_door(&applicant));
        let refused = refused.or_else(|| {
            let judged =
                if applicant.probe { self.fragment.judge_move(&applicant) } else { self.fragment.judge(&applicant) };
            judged.err()
        });
        match refused {
            Some(reason) => self.refuse_applicant(now, connection, request, reason, out),
            None if applicant.probe => self.say_possible(now, connection, request, out),
            None => self.adopt(now, connection, applicant, out),
        }
    }

    fn adopt(&mut self, now: Instant, connection: ConnectionId, applicant: Applicant, out: &mut Vec<Action>) {
        if self.fragment.is_root() {
            // We may have become a root after the request went up; the same rule, then.
            self.cancel_attempt(now, out);
            self.leave_former_parents_that_may_come_below(now, out);
        }
        if let Some((former, _)) = self.fragment.child_with_id(&applicant.request.id) {
            self.close(now, former, CloseReason::Moved, out);
        }
        info!(child = applicant.request.id, %connection, "took a child in");
        self.timers.stop(&Timer::Applicant(connection));
        let (attempt, child) = (applicant.request.attempt, applicant.request.id.clone());
        let has_settled = self.fragment.adopt(connection, applicant);
        let accepted = Message::LinkAccepted { attempt, id: self.config.id.clone(), tree: self.fragment.position() };
        self.send(connection, &accepted, out);
        self.become_link(now, connection, Link::from_extended_child(now, child), out);
        if let Some(relay) = &mut self.relay {
            relay.is_new = false;
        }
        if has_settled {
            self.tell_children(out);
        }
    }

    /// The way to the root is another one now, and a request that was on the old way may be lost: ask again. An answer that
    /// comes twice finds nobody waiting.
    pub(crate) fn ask_again_for_applicants(&mut self, now: Instant, out: &mut Vec<Action>) {
        let waiting = self.connections.values().filter_map(|entry| match &entry.role {
            Role::Applicant(applicant) => Some((**applicant).clone()),
            _ => None,
        });
        for applicant in waiting.collect::<Vec<_>>() {
            self.climb(now, applicant, Vec::new(), out);
        }
    }

    pub(crate) fn refuse_applicant(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        request: &Request,
        reason: RefusalReason,
        out: &mut Vec<Action>,
    ) {
        debug!(%connection, node = request.id, ?reason, "attachment refused");
        *self.counters.link_refusals.entry(Refusal::attachment_name(reason)).or_default() += 1;
        let info = Refusal::attachment_info(reason).to_owned();
        let targets = self.where_else(reason, &request.id);
        self.send(connection, &Message::LinkRefused { attempt: request.attempt, reason, info, targets }, out);
        self.close(now, connection, CloseReason::LinkRefused, out);
    }

    /// Where a refused applicant could try: below one of our children, or where our own children go when we stop.
    fn where_else(&mut self, reason: RefusalReason, applicant: &str) -> Vec<Target> {
        let mut targets: Vec<Target> = match reason {
            RefusalReason::Full => self.fragment.children().map(|(_, child)| child.target()).collect(),
            RefusalReason::Draining if self.is_draining() => {
                let successor = self.successor.and_then(|link| self.fragment.child(link)).map(Applicant::target);
                self.fragment.parent().map(|parent| parent.target.clone()).or(successor).into_iter().collect()
            }
            _ => Vec::new(),
        };
        targets.retain(|target| target.id != applicant);
        // Not all to the same one.
        let count = targets.len();
        let first = self.healing.below(count as u64) as usize;
        targets.rotate_left(first.min(count));
        targets.truncate(MAX_TARGETS);
        targets
    }

    /// The way to the root is broken, or it is slow.
    pub(crate) fn on_applicant_timeout(&mut self, now: Instant, connection: ConnectionId, out: &mut Vec<Action>) {
        if let Some(Role::Applicant(applicant)) = self.connections.get(&connection).map(|entry| &entry.role) {
            let request = applicant.request.clone();
            self.refuse_applicant(now, connection, &request, RefusalReason::Unconfirmed, out);
        }
    }
}

/// Whether an applicant says that it is reached there.
fn is_at(hostname: &str, port: i64, applicant: &Applicant) -> bool {
    hostname == applicant.hostname && port == i64::from(applicant.port)
}
