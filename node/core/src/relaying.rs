//! Activities between extended servers (protocol, Relay): whatever happens to the tree, each is taken once, in order, and
//! passed on; and it is known when another server has it as well.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hasher as _};
use std::time::{Duration, Instant};

use arborcast_proto::wire::message::{ACTIVITY_KEY, put_broadcast_head};
use arborcast_proto::wire::relay::MAX_ORIGINS;
use arborcast_proto::wire::{Activity, Have, Message, Origin, PublicationId, RelayTag};
use bytes::BytesMut;
use tracing::{debug, warn};

use crate::config::Config;
use crate::event::{Action, Form};
use crate::ids::ConnectionId;
use crate::node::{Connection, Node, Role};
use crate::relay::Source;
use crate::relay::ledger::{Judgement, Ledger, OriginIndex};
use crate::relay::publications::Publications;
use crate::timer::Timer;

/// For how long acknowledgements gather before they are sent (protocol, B37).
const ACK_DELAY: Duration = Duration::from_millis(5);

/// What the composer is given at once.
const COMPOSER_BYTES: usize = 64 << 10;

/// What of a line is left for the field names around a [`Have`].
const HAVE_OVERHEAD: usize = 128;

/// What an extended node keeps about activities.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) ledger: Ledger,
    pub(crate) publications: Publications,
    /// Connections whose next activity is held back until its predecessor is seen, by session.
    pub(crate) held: BTreeMap<Box<str>, BTreeSet<ConnectionId>>,
    /// Connections that are held back no longer, to be gone on with once the event at hand is dealt with.
    pub(crate) awakened: Vec<ConnectionId>,
    /// Client sessions with activities that are not acknowledged.
    pub(crate) unacknowledged: BTreeSet<ConnectionId>,
    /// How many connections get the plain form.
    pub(crate) plain_readers: usize,
    pub(crate) counts: RelayCounts,
    /// The node has not been in a tree yet (protocol, Y10).
    pub(crate) is_new: bool,
    acks_at: Option<Instant>,
    composer: BytesMut,
}

/// What happened to activities since the start, for counters and tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RelayCounts {
    /// Taken and passed on.
    pub taken: u64,
    /// Dropped, since they were there already.
    pub repeated: u64,
    /// Published twice under different names, by clients that changed servers.
    pub renamed: u64,
    /// Times that some were given up, since nobody that was asked has them any more.
    pub gaps: u64,
    /// How many were given up.
    pub missed: u64,
    /// Syncs that had to be asked for because of a gap.
    pub resyncs: u64,
    /// Dropped, since they carried this node's own origin and a number that it has not given.
    pub impostors: u64,
    /// Dropped, since they had the name of another activity.
    pub contradictions: u64,
    /// Held back until their predecessor came.
    pub held_back: u64,
    /// Taken though their predecessor did not come.
    pub out_of_turn: u64,
}

/// How far the two ends of an extended link are with each other.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    /// What the other end has, as far as this node has it itself.
    peer_has: BTreeMap<OriginIndex, u64>,
    /// The first parts of a RELAY_HAVE of which more is to come.
    incoming: Have,
    /// It has said what it has, and gets activities.
    is_subscribed: bool,
    /// It was asked for what is missing here, and has not sent all of it yet.
    is_syncing: bool,
    /// Gaps that it was asked about, with what there was before them.
    asked_about: BTreeMap<Origin, u64>,
    /// Of which origins it has to be told how far this node is.
    ack_due: BTreeSet<OriginIndex>,
    /// What it sends until it is synced happened before this node was in the tree.
    is_history: bool,
}

impl Exchange {
    pub(crate) fn new(is_history: bool) -> Self {
        Self { is_syncing: true, is_history, ..Self::default() }
    }

    /// Whether what comes now happened before this node was in the tree.
    pub(crate) fn is_history(&self) -> bool {
        self.is_history
    }

    fn note(&mut self, index: OriginIndex, seq: u64) {
        let has = self.peer_has.entry(index).or_default();
        *has = seq.max(*has);
    }

    fn has(&self, index: OriginIndex, seq: u64) -> bool {
        self.peer_has.get(&index).is_some_and(|has| *has >= seq)
    }
}

/// What is taken.
pub(crate) enum Payload<'a> {
    /// From a client of this node, to be stamped with the author's name.
    Authored { activity: &'a Activity, username: &'a str },
    /// From another server, to be passed on as it is.
    Forwarded(&'a Activity),
}

impl Relay {
    /// For a node that speaks the extensions.
    pub(crate) fn new(config: &Config, now: Instant) -> Option<Self> {
        let extensions = config.extensions.as_ref()?;
        let own = Origin { id: config.id.as_str().into(), incarnation: extensions.incarnation };
        Some(Self {
            ledger: Ledger::new(own, extensions.log_bytes, extensions.retention, now),
            publications: Publications::new(extensions.retention, now),
            held: BTreeMap::new(),
            awakened: Vec::new(),
            unacknowledged: BTreeSet::new(),
            plain_readers: 0,
            counts: RelayCounts::default(),
            is_new: true,
            acks_at: None,
            composer: BytesMut::new(),
        })
    }

    /// The name for the next activity that enters the tree here.
    fn own_name(&self, publication: Option<PublicationId>) -> Option<RelayTag> {
        let own = self.ledger.own();
        let origin = self.ledger.origin(own)?.clone();
        Some(RelayTag { origin, seq: self.ledger.have_of(own) + 1, publication })
    }

    /// Whether this carries our own origin, and a number that we have not given.
    fn is_impostor(&self, origin: &Origin, seq: u64) -> bool {
        self.ledger.index_of(origin) == Some(self.ledger.own()) && seq > self.ledger.have_of(self.ledger.own())
    }

    /// Takes an activity, under a name that is the next one of its origin, and passes it on.
    fn take(
        &mut self,
        now: Instant,
        source: Source,
        tag: RelayTag,
        payload: &Payload<'_>,
        out: &mut Vec<Action>,
    ) -> OriginIndex {
        if self.composer.capacity() < COMPOSER_BYTES / 16 {
            self.composer.reserve(COMPOSER_BYTES);
        }
        let head = put_broadcast_head(&mut self.composer, &tag);
        match payload {
            Payload::Authored { activity, username } => {
                activity.write_authenticated_member(username, &mut self.composer);
            }
            Payload::Forwarded(activity) => activity.write_member(&mut self.composer),
        }
        let line = self.composer.split().freeze();
        let RelayTag { origin, seq, publication } = tag;
        let index = self.ledger.take(&origin, seq, line.len(), digest(content(&line, head)), now);
        self.counts.taken += 1;
        let is_renamed =
            publication.as_ref().is_some_and(|publication| self.publications.see(publication, (index, seq), now));
        self.counts.renamed += u64::from(is_renamed);
        let is_for_plain = self.plain_readers > 0 && !is_renamed && !source.is_history;
        out.push(Action::Relay { line, head: is_for_plain.then_some(head), source });
        if let Some(publication) = publication
            && let Some(waiting) = self.held.remove(&publication.session)
        {
            self.awakened.extend(waiting);
        }
        index
    }

    /// Takes note that something is missing for good, and passes that on. Returns how much, if anything.
    fn skip(
        &mut self,
        now: Instant,
        source: Source,
        origin: Origin,
        through: u64,
        out: &mut Vec<Action>,
    ) -> Option<u64> {
        let missed = self.ledger.skip(&origin, through, now)?;
        self.counts.gaps += 1;
        self.counts.missed = self.counts.missed.saturating_add(missed);
        let line = Message::RelayGap { origin, through }.to_line();
        self.ledger.pass(line.len());
        out.push(Action::Relay { line, head: None, source });
        Some(missed)
    }

    /// How long the line for this activity would be, line ending not counted.
    pub(crate) fn broadcast_length(
        &mut self,
        activity: &Activity,
        username: &str,
        publication: Option<PublicationId>,
    ) -> usize {
        let Some(tag) = self.own_name(publication) else { return usize::MAX };
        put_broadcast_head(&mut self.composer, &tag);
        activity.write_authenticated_member(username, &mut self.composer);
        let length = self.composer.len() - 1;
        self.composer.clear();
        length
    }
}

/// The activity in a line that was composed here.
fn content(line: &[u8], head: usize) -> &[u8] {
    line.get(head + ACTIVITY_KEY.len()..line.len().saturating_sub(2)).unwrap_or_default()
}

fn digest(content: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(content);
    hasher.finish()
}

/// Cuts into parts that fit a line; always at least one.
pub(crate) fn parts_of(have: Have, max_line: usize) -> Vec<Have> {
    let mut parts = vec![Have::new()];
    let mut bytes = 0;
    for (origin, seq) in have {
        // An escape makes six bytes of one; two numbers and what is around them are less than 50.
        bytes += 6 * origin.id.len() + 50;
        if bytes > max_line.saturating_sub(HAVE_OVERHEAD) {
            parts.push(Have::new());
            bytes = 6 * origin.id.len() + 50;
        }
        if let Some(part) = parts.last_mut() {
            part.insert(origin, seq);
        }
    }
    parts
}

fn exchange_of(connections: &mut BTreeMap<ConnectionId, Connection>, link: ConnectionId) -> Option<&mut Exchange> {
    match &mut connections.get_mut(&link)?.role {
        Role::Link(link) => link.exchange_mut(),
        _ => None,
    }
}

impl Node {
    fn exchanges(&self) -> impl Iterator<Item = &Exchange> {
        self.links.iter().filter_map(|link| match &self.connections.get(link)?.role {
            Role::Link(link) => link.exchange(),
            _ => None,
        })
    }

    /// Says what this node has, which asks for what it lacks.
    pub(crate) fn send_have(&self, link: ConnectionId, out: &mut Vec<Action>) {
        let Some(relay) = &self.relay else { return };
        let mut parts = parts_of(relay.ledger.have(), self.config.max_line).into_iter().peekable();
        while let Some(have) = parts.next() {
            let more = parts.peek().is_some();
            self.send(link, &Message::RelayHave { have, more }, out);
        }
    }

    /// An activity with a name, over an extended link (protocol, Y2).
    pub(crate) fn on_relayed(
        &mut self,
        now: Instant,
        link: ConnectionId,
        tag: RelayTag,
        activity: &Activity,
        out: &mut Vec<Action>,
    ) {
        let Some(relay) = &mut self.relay else { return };
        let Some(exchange) = exchange_of(&mut self.connections, link) else { return };
        if relay.is_impostor(&tag.origin, tag.seq) {
            relay.counts.impostors += 1;
            return complain(
                link,
                "an activity that this node is said to have named was dropped",
                relay.counts.impostors,
            );
        }
        let source = Source { link: Some(link), is_history: exchange.is_history };
        let seq = tag.seq;
        let index = match relay.ledger.judge(&tag.origin, seq) {
            Judgement::Seen(index) => {
                relay.counts.repeated += 1;
                if relay.ledger.contradicts(index, seq, digest(activity.as_bytes())) {
                    relay.counts.contradictions += 1;
                    complain(link, "an activity with the name of another was dropped", relay.counts.contradictions);
                }
                index
            }
            Judgement::Next => relay.take(now, source, tag, &Payload::Forwarded(activity), out),
            Judgement::Gap { .. } if exchange.is_syncing => return,
            Judgement::Gap { have } if exchange.asked_about.get(&tag.origin) == Some(&have) => {
                // It was asked, and comes with the same again: nothing but a gap will do.
                exchange.asked_about.remove(&tag.origin);
                relay.skip(now, source, tag.origin.clone(), seq - 1, out);
                complain(link, "activities are missing for good", relay.counts.gaps);
                relay.take(now, source, tag, &Payload::Forwarded(activity), out)
            }
            Judgement::Gap { have } => {
                relay.counts.resyncs += 1;
                debug!(connection = %link, origin = %tag.origin, have, seq, "a gap: asking for what is missing");
                exchange.is_syncing = true;
                if exchange.asked_about.len() >= MAX_ORIGINS {
                    exchange.asked_about.clear();
                }
                exchange.asked_about.insert(tag.origin, have);
                return self.send_have(link, out);
            }
        };
        exchange.note(index, seq);
        exchange.ack_due.insert(index);
        self.schedule_acks(now + ACK_DELAY);
    }

    /// An activity that enters the extended tree here. Returns its name.
    pub(crate) fn take_in(
        &mut self,
        now: Instant,
        from: Option<ConnectionId>,
        publication: Option<PublicationId>,
        payload: &Payload<'_>,
        out: &mut Vec<Action>,
    ) -> Option<(OriginIndex, u64)> {
        let relay = self.relay.as_mut()?;
        let tag = relay.own_name(publication)?;
        let seq = tag.seq;
        Some((relay.take(now, from.into(), tag, payload, out), seq))
    }

    pub(crate) fn on_relay_have(
        &mut self,
        now: Instant,
        link: ConnectionId,
        have: Have,
        more: bool,
        out: &mut Vec<Action>,
    ) {
        let Some(relay) = &mut self.relay else { return };
        let Some(exchange) = exchange_of(&mut self.connections, link) else { return };
        let room = MAX_ORIGINS.saturating_sub(exchange.incoming.len());
        exchange.incoming.extend(have.into_iter().take(room));
        if more {
            return;
        }
        let have = std::mem::take(&mut exchange.incoming);
        // Of what this node does not have itself nothing can be concluded.
        for (origin, seq) in &have {
            if let Some(index) = relay.ledger.index_of(origin) {
                exchange.note(index, (*seq).min(relay.ledger.have_of(index)));
            }
        }
        let pieces = relay.ledger.missing(&have, now);
        if !std::mem::replace(&mut exchange.is_subscribed, true) {
            out.push(Action::Subscribe { connection: link, form: Form::Extended, is_link: true, takes_history: true });
        }
        if !pieces.is_empty() {
            out.push(Action::Replay { connection: link, pieces });
        }
        self.send(link, &Message::RelaySynced, out);
        self.schedule_acks(now);
    }

    /// The other end has sent all that was missing here.
    pub(crate) fn on_relay_synced(&mut self, link: ConnectionId, out: &mut Vec<Action>) {
        let Some(exchange) = exchange_of(&mut self.connections, link) else { return };
        exchange.is_syncing = false;
        if std::mem::take(&mut exchange.is_history) {
            if let Some(relay) = &mut self.relay {
                relay.is_new = false;
            }
            self.tell_newcomers_what_counts_as_received(out);
        }
    }

    pub(crate) fn on_relay_ack(&mut self, now: Instant, link: ConnectionId, have: &Have, out: &mut Vec<Action>) {
        let Some(relay) = &self.relay else { return };
        let Some(exchange) = exchange_of(&mut self.connections, link) else { return };
        for (origin, seq) in have.iter().take(MAX_ORIGINS) {
            if let Some(index) = relay.ledger.index_of(origin) {
                exchange.note(index, (*seq).min(relay.ledger.have_of(index)));
            }
        }
        self.schedule_acks(now);
        if self.is_draining() {
            self.finish_drain_if_empty(out);
        }
    }

    /// What is missing is gone (protocol, Y6).
    pub(crate) fn on_relay_gap(
        &mut self,
        now: Instant,
        link: ConnectionId,
        origin: Origin,
        through: u64,
        out: &mut Vec<Action>,
    ) {
        let Some(relay) = &mut self.relay else { return };
        let Some(exchange) = exchange_of(&mut self.connections, link) else { return };
        if relay.is_impostor(&origin, through) {
            relay.counts.impostors += 1;
            return complain(link, "a gap in what this node has named was dropped", relay.counts.impostors);
        }
        let source = Source { link: Some(link), is_history: exchange.is_history };
        // Of an origin that is not known here, nothing can be missed here.
        let is_known = relay.ledger.index_of(&origin).is_some();
        let missed = relay.skip(now, source, origin.clone(), through, out);
        if let Some(index) = relay.ledger.index_of(&origin) {
            exchange.note(index, through.min(relay.ledger.have_of(index)));
            exchange.ack_due.insert(index);
        }
        if missed.is_some() && is_known {
            complain(link, "activities are missing for good", relay.counts.gaps);
        }
        self.schedule_acks(now + ACK_DELAY);
    }

    /// Acknowledgements are to go out by then.
    pub(crate) fn schedule_acks(&mut self, at: Instant) {
        let Some(relay) = &mut self.relay else { return };
        if relay.acks_at.is_none_or(|before| at < before) {
            relay.acks_at = Some(at);
            self.timers.set(Timer::Acks, at);
        }
    }

    /// Tells neighbours how far this node is, and publishers what is safe.
    pub(crate) fn on_acks_due(&mut self, out: &mut Vec<Action>) {
        let max_line = self.config.max_line;
        let Some(relay) = &mut self.relay else { return };
        relay.acks_at = None;
        for link in &self.links {
            let Some(exchange) = exchange_of(&mut self.connections, *link) else { continue };
            let due = std::mem::take(&mut exchange.ack_due);
            if due.is_empty() {
                continue;
            }
            let ledger = &relay.ledger;
            let have = due.iter().filter_map(|index| Some((ledger.origin(*index)?.clone(), ledger.have_of(*index))));
            for have in parts_of(have.collect(), max_line) {
                out.push(Action::Send { connection: *link, line: Message::RelayAck { have }.to_line() });
            }
        }
        self.acknowledge_what_is_safe(out);
    }

    /// Whether another server has that activity as well, or there is none (protocol, Y7).
    pub(crate) fn is_safe(&self, (index, seq): (OriginIndex, u64)) -> bool {
        let mut neighbours = self.exchanges().peekable();
        if neighbours.peek().is_none() {
            return !self.is_in_its_first_round();
        }
        neighbours.any(|exchange| exchange.has(index, seq))
    }

    /// Whether whatever this node has is safe, so that it can end.
    pub(crate) fn is_passed_on(&self) -> bool {
        let Some(relay) = &self.relay else { return true };
        self.exchanges().next().is_none() || relay.ledger.progress().all(|name| self.is_safe(name))
    }
}

/// Says once in a while what a neighbour does wrong, or what is lost: a neighbour must not fill the log.
fn complain(link: ConnectionId, what: &'static str, count: u64) {
    if count.is_power_of_two() {
        warn!(connection = %link, count, "{what}");
    } else {
        debug!(connection = %link, count, "{what}");
    }
}
