//! What clients publish, and extended sessions: acknowledged, resumed, in order (protocol, Activities; Extended sessions).

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use arborcast_proto::wire::message::Target;
use arborcast_proto::wire::{Activity, Have, Message, PublicationId, Secret};
use bytes::BytesMut;
use tracing::debug;

use crate::error::Refusal;
use crate::event::{Action, Form, Publication, ReceivedLine};
use crate::ids::ConnectionId;
use crate::node::{Hold, Node, Role};
use crate::relay::ledger::OriginIndex;
use crate::relaying::{Payload, parts_of};
use crate::timer::Timer;

/// Most activities of one session that may wait for their acknowledgement.
const MAX_UNACKNOWLEDGED: usize = 100_000;

/// Most other servers that a client is told of.
const MAX_SERVERS_TOLD: usize = 16;

/// What an extended session has beyond a plain one.
#[derive(Debug)]
pub(crate) struct ExtendedSession {
    id: Box<str>,
    /// The client said what it has.
    has_resumed: bool,
    /// Its activities that are not acknowledged, with their names.
    unacknowledged: VecDeque<(u64, (OriginIndex, u64))>,
    acknowledged: u64,
    /// The number that is taken though its predecessor was not seen.
    out_of_turn: Option<u64>,
}

impl ExtendedSession {
    pub(crate) fn new(id: Box<str>, has_resumed: bool) -> Self {
        Self { id, has_resumed, unacknowledged: VecDeque::new(), acknowledged: 0, out_of_turn: None }
    }
}

/// An ACTIVITY_MESSAGE.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) username: String,
    pub(crate) secret: Option<Secret>,
    pub(crate) number: Option<u64>,
    pub(crate) activity: Activity,
}

/// What is to be done with a numbered activity (protocol, E6).
enum Turn {
    Seen((OriginIndex, u64)),
    Next,
    Early,
}

impl Node {
    /// ACTIVITY_MESSAGE in a session.
    pub(crate) fn on_activity(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        submission: Submission,
        out: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        let Some(Role::Client(author)) = self.connections.get(&connection).map(|entry| &entry.role) else {
            return Err(Refusal::ActivityBeforeLogin);
        };
        if !author.may_publish_as(&submission.username, submission.secret.as_ref()) {
            return Err(Refusal::OtherAuthor);
        }
        self.counters.activities_from_clients += 1;
        let session = author.extended.as_ref().map(|extended| extended.id.clone());
        let number = submission.number.filter(|number| *number > 0);
        let publication = session.zip(number).map(|(session, number)| PublicationId { session, number });
        let Submission { username, activity, .. } = &submission;
        if !self.broadcast_fits(activity, username, publication.as_ref()) {
            return Err(Refusal::BroadcastTooLong { max_line: self.config.max_line });
        }
        if self.relay.is_none() {
            let Submission { username, activity, .. } = submission;
            out.push(Action::Publish { publication: Publication::Authored { activity, username }, from: None });
            return Ok(());
        }
        let turn =
            publication.as_ref().map(|publication| (publication.number, self.turn_of(connection, publication.number)));
        let payload = Payload::Authored { activity, username };
        match turn {
            None => drop(self.take_in(now, None, None, &payload, out)),
            Some((number, Turn::Early)) => self.hold_back(now, connection, number, submission),
            Some((number, Turn::Next)) => {
                let name = self.take_in(now, None, publication, &payload, out);
                self.await_acknowledgement(now, connection, number, name)?;
            }
            Some((number, Turn::Seen(name))) => self.await_acknowledgement(now, connection, number, Some(name))?,
        }
        Ok(())
    }

    fn turn_of(&self, connection: ConnectionId, number: u64) -> Turn {
        let (Some(relay), Some(session)) = (&self.relay, self.extended_session(connection)) else { return Turn::Next };
        let has_seen = |number| relay.publications.has_seen(&session.id, number);
        if has_seen(number) {
            relay.publications.last_name(&session.id).map_or(Turn::Next, Turn::Seen)
        } else if number == 1 || has_seen(number - 1) || session.out_of_turn == Some(number) {
            Turn::Next
        } else {
            Turn::Early
        }
    }

    fn extended_session(&self, connection: ConnectionId) -> Option<&ExtendedSession> {
        match &self.connections.get(&connection)?.role {
            Role::Client(session) => session.extended.as_deref(),
            _ => None,
        }
    }

    fn extended_session_mut(&mut self, connection: ConnectionId) -> Option<&mut ExtendedSession> {
        match &mut self.connections.get_mut(&connection)?.role {
            Role::Client(session) => session.extended.as_deref_mut(),
            _ => None,
        }
    }

    fn await_acknowledgement(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        number: u64,
        name: Option<(OriginIndex, u64)>,
    ) -> Result<(), Refusal> {
        let (Some(session), Some(name)) = (self.extended_session_mut(connection), name) else { return Ok(()) };
        if session.unacknowledged.len() >= MAX_UNACKNOWLEDGED {
            return Err(Refusal::TooManyUnacknowledged { limit: MAX_UNACKNOWLEDGED });
        }
        session.unacknowledged.push_back((number, name));
        if let Some(relay) = &mut self.relay {
            relay.unacknowledged.insert(connection);
        }
        self.schedule_acks(now);
        Ok(())
    }

    /// Tells publishers what is safe (protocol, E5).
    pub(crate) fn acknowledge_what_is_safe(&mut self, out: &mut Vec<Action>) {
        let waiting = self.relay.as_mut().map(|relay| std::mem::take(&mut relay.unacknowledged)).unwrap_or_default();
        let mut still_waiting = BTreeSet::new();
        for connection in waiting {
            let Some(session) = self.extended_session(connection) else { continue };
            let safe = session.unacknowledged.iter().take_while(|(_, name)| self.is_safe(*name)).count();
            let Some(session) = self.extended_session_mut(connection) else { continue };
            let highest = session.unacknowledged.drain(..safe).map(|(number, _)| number).max();
            if !session.unacknowledged.is_empty() {
                still_waiting.insert(connection);
            }
            if let Some(number) = highest {
                session.acknowledged = number.max(session.acknowledged);
                let number = session.acknowledged;
                self.send(connection, &Message::ActivityAck { number }, out);
            }
        }
        if let Some(relay) = &mut self.relay {
            relay.unacknowledged = still_waiting;
        }
    }

    /// The client has come here faster than what it published before; that is on its way.
    fn hold_back(&mut self, now: Instant, connection: ConnectionId, number: u64, submission: Submission) {
        let Some(session) = self.extended_session(connection).map(|session| session.id.clone()) else { return };
        debug!(%connection, number, "held back until its predecessor comes");
        let Some(entry) = self.connections.get_mut(&connection) else { return };
        let Submission { username, secret, number: of_session, activity } = submission;
        let message = Message::ActivityMessage { username, secret, number: of_session, activity };
        let line = ReceivedLine { bytes: message.to_line(), message: Ok(message) };
        entry.wait_again(Hold::Predecessor { session: session.clone(), number }, line);
        if let Some(relay) = &mut self.relay {
            relay.counts.held_back += 1;
            relay.held.entry(session).or_default().insert(connection);
        }
        self.timers.set(Timer::Predecessor(connection), now + 2 * self.heartbeat_timeout());
    }

    /// What was waited for does not come.
    pub(crate) fn on_predecessor_timeout(&mut self, now: Instant, connection: ConnectionId, out: &mut Vec<Action>) {
        let hold = self.connections.get(&connection).and_then(|entry| entry.hold.clone());
        let Some(Hold::Predecessor { number, .. }) = hold else { return };
        debug!(%connection, number, "taken though its predecessor did not come");
        self.release(connection, hold, out);
        if let Some(session) = self.extended_session_mut(connection) {
            session.out_of_turn = Some(number);
        }
        if let Some(relay) = &mut self.relay {
            relay.counts.out_of_turn += 1;
        }
        self.resume(now, connection, out);
    }

    /// Goes on with connections whose predecessors have come.
    pub(crate) fn resume_awakened(&mut self, now: Instant, out: &mut Vec<Action>) {
        while let Some(connection) = self.relay.as_mut().and_then(|relay| relay.awakened.pop()) {
            self.timers.stop(&Timer::Predecessor(connection));
            self.resume(now, connection, out);
        }
    }

    /// What a client is told at its login: what counts as received, the rest of that where it is long, what to show at the
    /// next one, and other servers (protocol, E2, U9).
    pub(crate) fn welcome(
        &self,
        connection: ConnectionId,
        info: String,
        proof: Option<Secret>,
    ) -> (Message, Vec<Message>) {
        let (Some(relay), Some(session)) = (&self.relay, self.extended_session(connection)) else {
            return (Message::LoginSuccess { info, have: None, proof: None, servers: Vec::new() }, Vec::new());
        };
        let have = if session.has_resumed { Have::new() } else { relay.ledger.have() };
        // The servers and the info are well below a quarter of the shortest line.
        let mut parts = parts_of(have, self.config.max_line / 2).into_iter();
        let first = parts.next().unwrap_or_default();
        let rest = parts.map(|have| Message::RelayHave { have, more: false }).collect();
        let is_short = |target: &Target| target.id.len() + target.hostname.len() < self.config.max_line / 128;
        let servers = self.servers.targets().filter(is_short).take(MAX_SERVERS_TOLD).collect();
        (Message::LoginSuccess { info, have: Some(first), proof, servers }, rest)
    }

    /// From here on the session gets activities, and at first what it lacks.
    pub(crate) fn subscribe_session(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        resumed: Option<Have>,
        out: &mut Vec<Action>,
    ) {
        if let Some(Role::Client(session)) = self.connections.get_mut(&connection).map(|entry| &mut entry.role) {
            session.is_subscribed = true;
        }
        let is_extended = self.extended_session(connection).is_some();
        let form = if is_extended { Form::Extended } else { Form::Plain };
        let takes_history = resumed.is_some();
        out.push(Action::Subscribe { connection, form, is_link: false, takes_history });
        let Some(relay) = &mut self.relay else { return };
        if !is_extended {
            relay.plain_readers += 1;
        } else if let Some(have) = resumed {
            let pieces = relay.ledger.missing(&have, now);
            if !pieces.is_empty() {
                out.push(Action::Replay { connection, pieces });
            }
        }
    }

    /// History has come that those who gave no `have` were not sent (protocol, E2).
    pub(crate) fn tell_newcomers_what_counts_as_received(&self, out: &mut Vec<Action>) {
        let Some(relay) = &self.relay else { return };
        let parts = parts_of(relay.ledger.have(), self.config.max_line);
        let lines: Vec<_> = parts.into_iter().map(|have| Message::RelayHave { have, more: false }.to_line()).collect();
        for connection in self.connections.keys() {
            if self.extended_session(*connection).is_some_and(|session| !session.has_resumed) {
                out.extend(lines.iter().map(|line| Action::Send { connection: *connection, line: line.clone() }));
            }
        }
    }

    /// A message just under the line limit may grow over it when it becomes a broadcast; it must not cost a link.
    fn broadcast_fits(&mut self, activity: &Activity, username: &str, publication: Option<&PublicationId>) -> bool {
        // Six bytes are the longest escape of one byte; the rest is more than all that is around the two, an origin's and
        // a session's ids included.
        if activity.as_bytes().len() + 6 * username.len() + 2048 <= self.config.max_line {
            return true;
        }
        if let Some(relay) = &mut self.relay {
            return relay.broadcast_length(activity, username, publication.cloned()) <= self.config.max_line;
        }
        let mut line = BytesMut::new();
        activity.write_broadcast(username, &mut line);
        line.len() - 1 <= self.config.max_line
    }
}
