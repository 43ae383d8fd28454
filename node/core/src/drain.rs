//! Stopping without loss (protocol, SERVER_QUIT): children and clients are sent elsewhere, and only then the node ends.

use std::time::{Duration, Instant};

use arborcast_proto::wire::Message;
use arborcast_proto::wire::message::Target;
use tracing::info;

use crate::event::{Action, CloseReason};
use crate::ids::ConnectionId;
use crate::node::{Connection, Node, Role};
use crate::timer::Timer;

/// How long children may take to attach elsewhere.
const GRACE: Duration = Duration::from_secs(5);

impl Node {
    pub(crate) fn is_draining(&self) -> bool {
        self.draining
    }

    /// The operator asks to stop. A node that speaks the plain protocol only just closes.
    pub(crate) fn on_drain(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.draining {
            return;
        }
        info!(load = self.sessions, children = self.fragment.children().count(), "draining");
        self.draining = true;
        self.cancel_attempt(now, out);
        self.stop_homing(now, out);
        self.stop_moving(now, out);
        self.timers.stop(&Timer::Seek);
        self.timers.set(Timer::DrainGrace, now + GRACE);
        // Before anybody is sent elsewhere: nobody should be sent here in turn.
        self.tell_server_left(&self.config.id, None, out);
        self.send_children_elsewhere(out);
        self.send_clients_elsewhere(now, out);
        self.finish_drain_if_empty(out);
    }

    /// Children go to our parent; a root names one of them as its successor, to which the others go. It is the one with
    /// the smallest id, whose fragment has the smallest key once each has a fragment of its own.
    fn send_children_elsewhere(&mut self, out: &mut Vec<Action>) {
        let target = match self.fragment.parent() {
            Some(parent) => parent.target.clone(),
            None => {
                let successor = self.fragment.children().min_by_key(|(_, child)| &child.request.id);
                let Some((link, child)) = successor else { return };
                self.successor = Some(link);
                self.send(link, &Message::ServerQuit { target: None }, out);
                child.target()
            }
        };
        for (child, _) in self.fragment.children().filter(|(link, _)| Some(*link) != self.successor) {
            self.send(child, &Message::ServerQuit { target: Some(target.clone()) }, out);
        }
    }

    fn send_clients_elsewhere(&mut self, now: Instant, out: &mut Vec<Action>) {
        let is_client = |entry: &Connection| matches!(entry.role, Role::Client(_));
        let clients = self.connections.iter().filter(|(_, entry)| is_client(entry));
        for client in clients.map(|(connection, _)| *connection).collect::<Vec<_>>() {
            if let Some((hostname, port)) = self.servers.least_loaded() {
                self.send(client, &Message::Redirect { hostname, port }, out);
            }
            self.close(now, client, CloseReason::Redirected, out);
        }
    }

    /// SERVER_QUIT from the parent: attach elsewhere before the link to it is left. Until then it goes on relaying, but
    /// this node is the root of a fragment of its own, so that the ordinary rule keeps cycles away.
    pub(crate) fn on_server_quit(
        &mut self,
        now: Instant,
        link: ConnectionId,
        target: Option<Target>,
        out: &mut Vec<Action>,
    ) {
        if !self.fragment.is_parent(link) {
            return;
        }
        info!(target = target.as_ref().map(|target| target.id.as_str()), "the parent is about to stop");
        // Without a target we are the successor: the others come here.
        self.is_successor = target.is_none();
        self.prefer_candidates(target);
        self.become_orphan(now, out);
    }

    pub(crate) fn finish_drain_if_empty(&mut self, out: &mut Vec<Action>) {
        // The successor stays linked until the end: what the others still send has to get there.
        let mut waited_for = self.fragment.children().filter(|(link, _)| Some(*link) != self.successor);
        if self.draining && self.sessions == 0 && waited_for.next().is_none() && self.is_passed_on() {
            self.timers.stop(&Timer::DrainGrace);
            out.push(Action::Drained);
        }
    }

    pub(crate) fn on_drain_grace_over(&mut self, out: &mut Vec<Action>) {
        info!(children = self.fragment.children().count(), "some did not leave in time");
        out.push(Action::Drained);
    }
}
