//! Over which links servers have to be announced (protocol, Announcements): everywhere, or where somebody is who has no
//! masters to tell of them.
//!
//! On each extended link each end says whether announcements are wanted on its side: because it needs them itself, or since
//! somebody beyond it does. So they flow towards those who need them, and nowhere else.

use std::time::{Duration, Instant};

use arborcast_proto::wire::message::Target;
use arborcast_proto::wire::{Message, ServerAnnounce};
use bytes::Bytes;
use tracing::info;

use crate::config::Extensions;
use crate::event::Action;
use crate::ids::ConnectionId;
use crate::load::{MAX_NAMED, NamedServer};
use crate::node::Node;
use crate::timer::Timer;

/// After so long without a word of any master about other servers a node needs announcements. Masters name some about
/// every second.
const LAPSE: Duration = Duration::from_secs(4);

/// For how long masters must have named servers again, without such a pause, until it needs them no more.
const STEADY: Duration = Duration::from_secs(4);

/// What a node knows of who needs announcements, but for what its neighbours say.
#[derive(Debug)]
pub(crate) struct Announcing {
    has_masters: bool,
    /// Whether this node needs them, other than for plain neighbours.
    is_needed: bool,
    /// Since when masters have named servers without a pause that was too long.
    named_since: Option<Instant>,
}

impl Announcing {
    /// A node with masters gives them time to be found.
    pub(crate) fn new(extensions: Option<&Extensions>) -> Self {
        let has_masters = extensions.is_some_and(|extensions| extensions.has_masters);
        Self { has_masters, is_needed: !has_masters, named_since: None }
    }

    /// When a node that starts needs announcements if no master names anybody until then.
    pub(crate) fn first_lapse(&self, now: Instant) -> Option<Instant> {
        self.has_masters.then(|| now + LAPSE)
    }
}

impl Node {
    /// A master names other servers. The last word counts: masters that disagree are in turns wrong.
    pub(crate) fn on_servers_named(
        &mut self,
        now: Instant,
        least_loaded: Vec<NamedServer>,
        others: Vec<Target>,
        out: &mut Vec<Action>,
    ) {
        if !self.announcing.has_masters {
            return;
        }
        self.timers.set(Timer::Naming, now + LAPSE);
        let since = *self.announcing.named_since.get_or_insert(now);
        let is_other = |target: &Target| target.id != self.config.id && target.port > 0;
        let least_loaded: Vec<_> = least_loaded.into_iter().filter(|server| is_other(&server.target)).collect();
        let others = others.into_iter().take(MAX_NAMED).filter(is_other);
        for target in others.chain(least_loaded.iter().take(MAX_NAMED).map(|server| server.target.clone())) {
            self.healing.remember_named(now, target);
        }
        self.servers.name(least_loaded);
        if self.announcing.is_needed && now >= since + STEADY {
            info!("masters name other servers again: they need not announce themselves here");
            self.announcing.is_needed = false;
            self.tell_what_is_wanted(out);
        }
    }

    /// No master has named anybody for too long.
    pub(crate) fn on_naming_lapsed(&mut self, out: &mut Vec<Action>) {
        self.announcing.named_since = None;
        self.servers.name([]);
        if !self.announcing.is_needed {
            info!("no master names other servers: they have to announce themselves here");
            self.announcing.is_needed = true;
            self.tell_what_is_wanted(out);
        }
    }

    /// Whether all servers that this one can reach over links announce themselves here.
    pub(crate) fn hears_everybody(&self) -> bool {
        self.announcing.is_needed || self.links.iter().any(|link| !self.is_extended_link(*link))
    }

    /// Whether what is announced over a link has been asked for; over a plain one always.
    pub(crate) fn is_announcing_wanted(&self, link: ConnectionId) -> bool {
        self.link(link).is_some_and(|link| link.are_announcements_wanted)
    }

    /// A link came up. A node without masters announces at once, one with masters says what it wants and waits for the
    /// same word from the other end.
    pub(crate) fn begin_announcing(&mut self, connection: ConnectionId, out: &mut Vec<Action>) {
        if !self.is_extended_link(connection) {
            self.send(connection, &self.announcement(), out);
            self.tell_what_is_wanted(out);
        } else if !self.announcing.has_masters {
            self.announce_everybody(connection, out);
        } else {
            let is_wanted = self.is_wanted_beyond(connection);
            if let Some(link) = self.link_mut(connection) {
                link.wants_announcements = false;
                link.are_announcements_wanted = is_wanted;
            }
            self.send(connection, &self.heartbeat_for(connection), out);
        }
    }

    /// Announces this server, and all that it knows and the other end may not.
    fn announce_everybody(&self, connection: ConnectionId, out: &mut Vec<Action>) {
        if !self.is_draining() {
            self.send(connection, &self.announcement(), out);
        }
        for (id, server) in self.servers.iter().filter(|(_, server)| server.link != connection) {
            let (id, hostname) = (id.clone(), server.hostname.clone());
            let announce = ServerAnnounce { id, load: server.load, hostname, port: server.port };
            self.send(connection, &Message::ServerAnnounce(announce), out);
        }
    }

    /// The other end of an extended link says whether it wants announcements.
    pub(crate) fn on_announcements_wanted(&mut self, connection: ConnectionId, is_wanted: bool, out: &mut Vec<Action>) {
        let Some(link) = self.link_mut(connection) else { return };
        if std::mem::replace(&mut link.wants_announcements, is_wanted) == is_wanted {
            return;
        }
        self.tell_what_is_wanted(out);
        if is_wanted {
            self.announce_everybody(connection, out);
        }
    }

    /// Whether somebody needs announcements that come over this link: this node, a plain neighbour, or somebody beyond
    /// another link.
    fn is_wanted_beyond(&self, connection: ConnectionId) -> bool {
        let mut others = self.links.iter().filter(|other| **other != connection);
        self.announcing.is_needed || others.any(|other| self.is_announced_over(*other))
    }

    /// Something has changed on this side: those for whom that makes a difference are told.
    pub(crate) fn tell_what_is_wanted(&mut self, out: &mut Vec<Action>) {
        let wanting = self.links.iter().filter(|link| self.is_announced_over(**link)).count();
        for connection in self.extended_links() {
            let is_wanted = self.announcing.is_needed || wanting > usize::from(self.is_announced_over(connection));
            let Some(link) = self.link_mut(connection) else { continue };
            if std::mem::replace(&mut link.are_announcements_wanted, is_wanted) == is_wanted {
                continue;
            }
            self.send(connection, &self.heartbeat_for(connection), out);
            if !is_wanted {
                // Its loads would soon be wrong.
                for id in self.servers.forget_link(connection) {
                    self.timers.stop(&Timer::ServerExpiry(id));
                }
            }
        }
    }

    /// Announces this server once more.
    pub(crate) fn announce_where_wanted(&self, out: &mut Vec<Action>) {
        let line = self.announcement().to_line();
        let links = self.links.iter().copied().filter(|link| self.is_announced_over(*link));
        out.extend(links.map(|link| Action::Send { connection: link, line: line.clone() }));
    }

    /// SERVER_ANNOUNCE goes on, unchanged, to those who want it.
    pub(crate) fn pass_announcement_on(&self, line: &Bytes, from: ConnectionId, out: &mut Vec<Action>) {
        let links = self.links.iter().copied().filter(|link| *link != from && self.is_announced_over(*link));
        self.pass_on_to(line, links, out);
    }

    fn is_announced_over(&self, link: ConnectionId) -> bool {
        self.link(link).is_some_and(|link| link.wants_announcements)
    }
}
