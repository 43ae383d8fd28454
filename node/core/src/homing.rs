//! Going back to the parent that an operator prefers (protocol, Going back).
//!
//! A node that is elsewhere asks its preferred parent now and then whether it would take it in. The question changes nothing
//! on either side. Only when the answer was yes twice in a row does the node move, in the way of a child whose parent is
//! about to stop: it becomes a root, keeps the link to its parent until it is taken in elsewhere, and asks the preferred
//! server first and the parent that it has second. So the ordinary rules hold, and nothing here is needed for them.
//!
//! The same question tells whether a parent is plain that was taken for it since it closed or refused connections (protocol,
//! What a plain peer sees).

use std::time::{Duration, Instant};

use arborcast_proto::wire::Message;
use arborcast_proto::wire::message::{Applicant, Sender, Target, TreePosition};
use tracing::{debug, info, warn};

use crate::config::Extensions;
use crate::error::Refusal;
use crate::event::{Action, CloseReason};
use crate::ids::{AttemptId, ConnectionId, ServerId};
use crate::node::{Connection, Node, Role};
use crate::timer::Timer;

/// How long a node that is elsewhere waits at least before it asks, and between two questions that are answered with yes.
const FIRST_PAUSE: Duration = Duration::from_secs(5);

/// The longest pause. Each no, and each move, makes the next pause twice as long, up to this. A stay with the preferred
/// parent that is longer begins it anew.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How often a parent that may only have been taken for a plain one is asked whether it speaks the extensions.
const MAX_DOUBTS: u32 = 5;

/// What a node does about going back.
#[derive(Debug)]
pub(crate) struct Homing {
    /// The preferred parent, if there is one that could be gone back to.
    preferred: Option<Preferred>,
    /// The question that is under way.
    probe: Option<Probe>,
    /// Whether the last answer was yes.
    is_welcome: bool,
    /// How often the answer was no, or this node moved, since it last stayed with the preferred parent.
    setbacks: u32,
    /// Since when it has been with the preferred parent.
    home_since: Option<Instant>,
    /// How often the plain parent is still to be asked whether it is one.
    doubts: u32,
}

#[derive(Debug)]
struct Preferred {
    hostname: String,
    port: u16,
    /// What it calls itself, once that is known.
    id: Option<ServerId>,
}

#[derive(Debug)]
struct Probe {
    attempt: AttemptId,
    connection: Option<ConnectionId>,
}

impl Homing {
    pub(crate) fn new(extensions: Option<&Extensions>) -> Self {
        let parent = extensions.filter(|extensions| extensions.prefer_parent).and_then(|own| own.parent.clone());
        let preferred = parent.map(|(hostname, port)| Preferred { hostname, port, id: None });
        Self { preferred, probe: None, is_welcome: false, setbacks: 0, home_since: None, doubts: 0 }
    }

    /// The configured parent is dialled in the plain way since it closed or refused connections, for which there may have
    /// been another reason than that it is a plain one.
    pub(crate) fn doubt_plain_parent(&mut self) {
        self.doubts = MAX_DOUBTS;
    }

    /// Whether an attempt is the question that is under way.
    pub(crate) fn is_probe(&self, attempt: AttemptId) -> bool {
        self.probe.as_ref().is_some_and(|probe| probe.attempt == attempt)
    }

    fn is_probed_over(&self, connection: ConnectionId) -> bool {
        self.probe.as_ref().is_some_and(|probe| probe.connection == Some(connection))
    }

    /// Whether this node is below the parent that its operator prefers.
    pub(crate) fn is_home(&self) -> bool {
        self.home_since.is_some()
    }

    fn is_preferred(&self, parent: &Target) -> bool {
        self.preferred.as_ref().is_some_and(|preferred| {
            preferred.id.as_ref() == Some(&parent.id)
                || (preferred.hostname == parent.hostname && preferred.port == parent.port)
        })
    }
}

impl Node {
    /// A parent took this node in: the preferred one, or the time begins until that is asked.
    pub(crate) fn on_attached(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.stop_homing(now, out);
        let Some(parent) = self.fragment.parent().map(|parent| parent.target.clone()) else { return };
        if self.homing.is_preferred(&parent) {
            self.come_home(now, parent.id);
        } else {
            self.ask_preferred_later(now);
        }
    }

    /// The present parent is the preferred one.
    fn come_home(&mut self, now: Instant, id: ServerId) {
        self.homing.home_since = Some(now);
        if let Some(preferred) = &mut self.homing.preferred {
            preferred.id = Some(id);
        }
    }

    /// This node has no parent any more, or another one, or is about to stop.
    pub(crate) fn stop_homing(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.timers.stop(&Timer::Homing);
        self.homing.is_welcome = false;
        if self.homing.home_since.take().is_some_and(|since| now - since > LONGEST_PAUSE) {
            self.homing.setbacks = 0;
        }
        self.end_probe(now, out);
    }

    fn end_probe(&mut self, now: Instant, out: &mut Vec<Action>) {
        if let Some(connection) = self.homing.probe.take().and_then(|probe| probe.connection) {
            self.close(now, connection, CloseReason::Moved, out);
        }
    }

    fn ask_preferred_later(&mut self, now: Instant) {
        if self.homing.preferred.is_none() {
            return;
        }
        // The second question of a row is not put off: the first was answered with yes.
        let setbacks = if self.homing.is_welcome { 0 } else { self.homing.setbacks.min(16) };
        let whole = FIRST_PAUSE.saturating_mul(1 << setbacks).min(LONGEST_PAUSE);
        let pause = self.healing.jitter(whole);
        self.timers.set(Timer::Homing, now + pause);
    }

    /// Time to ask, or the answer has taken too long.
    pub(crate) fn on_homing_due(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.homing.probe.is_some() {
            self.end_probe(now, out);
            return self.on_probe_failed(now, "no answer in time");
        }
        let Some(target) = self.whom_to_ask().filter(|_| !self.is_draining()) else { return };
        let attempt = self.healing.new_attempt();
        debug!(hostname = target.hostname, port = target.port, "asking the preferred parent");
        self.homing.probe = Some(Probe { attempt, connection: None });
        self.timers.set(Timer::Homing, now + self.heartbeat_timeout());
        out.push(Action::Dial { attempt, target });
    }

    /// The preferred parent, if this node has another one; the plain parent, if it may not be plain.
    fn whom_to_ask(&self) -> Option<Target> {
        if self.has_plain_parent() {
            return self.configured_parent().filter(|_| self.homing.doubts > 0).cloned();
        }
        let preferred = self.homing.preferred.as_ref().filter(|_| !self.fragment.is_root())?;
        let (id, hostname) = (preferred.id.clone().unwrap_or_default(), preferred.hostname.clone());
        Some(Target { id, hostname, port: preferred.port })
    }

    /// This node has a plain parent now, which it may have to ask whether it is one.
    pub(crate) fn ask_doubted_later(&mut self, now: Instant) {
        if self.homing.doubts > 0 {
            let whole = FIRST_PAUSE.saturating_mul(1 << (MAX_DOUBTS - self.homing.doubts).min(16)).min(LONGEST_PAUSE);
            let pause = self.healing.jitter(whole);
            self.timers.set(Timer::Homing, now + pause);
        }
    }

    /// The connection to the preferred parent stands: ask.
    pub(crate) fn on_probe_connected(&mut self, connection: ConnectionId, attempt: AttemptId, out: &mut Vec<Action>) {
        self.connections.insert(connection, Connection::new(Role::Probing));
        self.homing.probe = Some(Probe { attempt, connection: Some(connection) });
        let node = Some(Applicant { probe: true, ..self.applicant(attempt) });
        self.send(connection, &Message::Authenticate { secret: self.config.secret.clone(), node }, out);
    }

    /// No, or no answer: it is asked again later, and later still after each time.
    pub(crate) fn on_probe_failed(&mut self, now: Instant, why: &str) {
        self.homing.probe = None;
        if self.has_plain_parent() {
            debug!(why, "the parent seems to be a plain one");
            self.homing.doubts = self.homing.doubts.saturating_sub(1);
            return self.ask_doubted_later(now);
        }
        debug!(why, setbacks = self.homing.setbacks, "not going back to the preferred parent");
        self.homing.is_welcome = false;
        self.homing.setbacks = self.homing.setbacks.saturating_add(1);
        self.ask_preferred_later(now);
    }

    /// The connection to the preferred parent is gone.
    pub(crate) fn on_probing_lost(&mut self, now: Instant, connection: ConnectionId, reason: CloseReason) {
        if self.homing.is_probed_over(connection) {
            if reason == CloseReason::PeerRefused {
                // Twice the same, with time between: it is a plain one.
                self.homing.doubts = 0;
            }
            self.on_probe_failed(now, "the connection was lost");
        }
    }

    /// What the preferred parent answers.
    pub(crate) fn on_probing_message(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        message: Message,
        out: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        match message {
            Message::LinkPossible { .. } | Message::LinkRefused { .. } if self.has_plain_parent() => {
                info!(%connection, "the parent speaks the extensions after all");
                self.homing.doubts = 0;
                self.end_probe(now, out);
                self.leave_plain_parent(now, out);
            }
            message if message.sender() == Sender::Server && self.has_plain_parent() => {
                self.homing.doubts = 0;
                self.close(now, connection, CloseReason::Moved, out);
            }
            Message::LinkPossible { id, tree, .. } => {
                self.end_probe(now, out);
                self.on_welcome(now, id, &tree, out);
            }
            // It counts as a no when the connection is gone.
            Message::LinkRefused { reason, .. } => {
                debug!(%connection, ?reason, "the preferred parent would not take this node in");
                self.close(now, connection, CloseReason::LinkRefused, out);
            }
            message if message.sender() == Sender::Server => {
                warn!(%connection, "the preferred parent speaks the plain protocol only: not going back to it");
                self.homing.preferred = None;
                self.close(now, connection, CloseReason::Moved, out);
            }
            other => return Err(Refusal::out_of_place_on_a_link(&other)),
        }
        Ok(())
    }

    /// The preferred parent would take this node in. It goes there only within one fragment, as two will become one without
    /// it, and never to a server below itself.
    fn on_welcome(&mut self, now: Instant, id: ServerId, tree: &TreePosition, out: &mut Vec<Action>) {
        let Some(parent) = self.fragment.parent().map(|parent| parent.target.clone()) else { return };
        if parent.id == id {
            self.timers.stop(&Timer::Homing);
            return self.come_home(now, id);
        }
        if tree.key != *self.fragment.key() || tree.path.contains(&self.config.id) {
            return self.on_probe_failed(now, "it is in another fragment, or below this node");
        }
        let was_welcome = std::mem::replace(&mut self.homing.is_welcome, true);
        if !was_welcome {
            return self.ask_preferred_later(now);
        }
        info!(parent = id, from = parent.id, "going back to the preferred parent");
        self.homing.setbacks = self.homing.setbacks.saturating_add(1);
        let target = self.homing.preferred.as_ref().map(|preferred| Target {
            id,
            hostname: preferred.hostname.clone(),
            port: preferred.port,
        });
        self.is_successor = false;
        self.prefer_candidates(target.into_iter().chain([parent]));
        self.become_orphan(now, out);
    }
}
