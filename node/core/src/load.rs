//! The other servers, as their announcements show them: which link leads there, and how loaded they are. Where masters
//! tell of others instead, the least loaded ones as they name them.

use std::collections::BTreeMap;

use arborcast_proto::wire::ServerAnnounce;
use arborcast_proto::wire::message::Target;

use crate::ids::{ConnectionId, ServerId};

/// Longest id plus hostname that is remembered, in bytes; nothing real is near it.
const MAX_NAME_BYTES: usize = 4096;

/// A redirect only makes sense to a server with at least this much less load (protocol, Load and redirection).
const REDIRECT_DIFFERENCE: i64 = 2;

/// Another server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherServer {
    /// The link over which it was last heard.
    pub link: ConnectionId,
    /// Its logged-in clients: what it announced last, plus those that were redirected to it since.
    pub load: i64,
    /// Where clients reach it.
    pub hostname: String,
    /// The port there; what is not a port is never redirected to.
    pub port: i64,
}

/// Another server, as a master names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedServer {
    /// Where clients reach it.
    pub target: Target,
    /// Its logged-in clients.
    pub load: u64,
}

/// Most servers that are taken from what one master names at a time.
pub(crate) const MAX_NAMED: usize = 16;

/// All other servers that are known at this moment.
#[derive(Debug)]
pub(crate) struct Servers {
    known: BTreeMap<ServerId, OtherServer>,
    /// Those that a master named last, as far as they are not known.
    named: BTreeMap<ServerId, NamedServer>,
    max: usize,
}

impl Servers {
    pub(crate) fn new(max: usize) -> Self {
        Self { known: BTreeMap::new(), named: BTreeMap::new(), max }
    }

    /// Takes in an announcement that came over `link`; `false` if there is no room for another server.
    pub(crate) fn announced(&mut self, link: ConnectionId, announce: ServerAnnounce) -> bool {
        let ServerAnnounce { id, load, hostname, port } = announce;
        let is_new = !self.known.contains_key(&id);
        if (is_new && self.known.len() >= self.max) || id.len() + hostname.len() > MAX_NAME_BYTES {
            return false;
        }
        self.named.remove(&id);
        self.known.insert(id, OtherServer { link, load, hostname, port });
        true
    }

    /// Takes in what a master names, in the place of what was named before. What a server says of itself counts more.
    pub(crate) fn name(&mut self, named: impl IntoIterator<Item = NamedServer>) {
        let Self { known, .. } = self;
        let is_usable = |server: &NamedServer| {
            let Target { id, hostname, port } = &server.target;
            *port > 0 && id.len() + hostname.len() <= MAX_NAME_BYTES && !known.contains_key(id)
        };
        let usable = named.into_iter().take(MAX_NAMED).filter(is_usable);
        self.named = usable.map(|server| (server.target.id.clone(), server)).collect();
    }

    /// Where a master says that a server is.
    pub(crate) fn named(&self, id: &str) -> Option<&Target> {
        self.named.get(id).map(|server| &server.target)
    }

    pub(crate) fn forget_named(&mut self, id: &str) {
        self.named.remove(id);
    }

    /// How many are known or named.
    pub(crate) fn count(&self) -> usize {
        self.known.len() + self.named.len()
    }

    /// Where clients reach those that are known or named.
    pub(crate) fn targets(&self) -> impl Iterator<Item = Target> {
        let known = self.known.iter().filter_map(|(id, server)| {
            let port = u16::try_from(server.port).ok().filter(|port| *port > 0)?;
            Some(Target { id: id.clone(), hostname: server.hostname.clone(), port })
        });
        known.chain(self.named.values().map(|server| server.target.clone()))
    }

    pub(crate) fn forget(&mut self, id: &str) -> Option<OtherServer> {
        self.known.remove(id)
    }

    /// Forgets what was learned over a link, and returns who that was.
    pub(crate) fn forget_link(&mut self, link: ConnectionId) -> Vec<ServerId> {
        self.known.extract_if(.., |_, server| server.link == link).map(|(id, _)| id).collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ServerId, &OtherServer)> {
        self.known.iter()
    }

    pub(crate) fn get(&self, id: &str) -> Option<&OtherServer> {
        self.known.get(id)
    }

    pub(crate) fn knows(&self, id: &str) -> bool {
        self.known.contains_key(id)
    }

    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    /// Where a client that has just logged in should go instead, if anywhere; `own_load` counts that client.
    pub(crate) fn redirect(&mut self, own_load: i64) -> Option<(String, u16)> {
        self.send_to_least_loaded(|load| load <= own_load - REDIRECT_DIFFERENCE)
    }

    /// Where a client should go that can't stay.
    pub(crate) fn least_loaded(&mut self) -> Option<(String, u16)> {
        self.send_to_least_loaded(|_| true)
    }

    /// The least loaded server that can be reached, if its load is right. The client is counted there until that
    /// server's next announcement, or until a master names it again, so that a surge spreads.
    fn send_to_least_loaded(&mut self, is_right: impl Fn(i64) -> bool) -> Option<(String, u16)> {
        let heard = least(self.known.values_mut().filter_map(|server| {
            let port = u16::try_from(server.port).ok().filter(|port| *port != 0)?;
            Some((server.load, Counted::Heard(&mut server.load), &server.hostname, port))
        }));
        let named = least(self.named.values_mut().map(|NamedServer { target, load }| {
            let of_heard = i64::try_from(*load).unwrap_or(i64::MAX);
            (of_heard, Counted::Named(load), &target.hostname, target.port)
        }));
        let (load, counted, hostname, port) = least(heard.into_iter().chain(named))?;
        if !is_right(load) {
            return None;
        }
        match counted {
            Counted::Heard(load) => *load = load.saturating_add(1),
            Counted::Named(load) => *load = load.saturating_add(1),
        }
        Some((hostname.clone(), port))
    }
}

/// Where a client that is sent somewhere is counted.
enum Counted<'a> {
    Heard(&'a mut i64),
    Named(&'a mut u64),
}

type Choice<'a> = (i64, Counted<'a>, &'a String, u16);

fn least<'a>(choices: impl Iterator<Item = Choice<'a>>) -> Option<Choice<'a>> {
    choices.min_by_key(|(load, ..)| *load)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: ConnectionId = ConnectionId(1);

    fn announce(id: &str, load: i64, port: i64) -> ServerAnnounce {
        ServerAnnounce { id: id.into(), load, hostname: format!("host-{id}"), port }
    }

    fn servers(loads: &[(&str, i64, i64)]) -> Servers {
        let mut servers = Servers::new(10);
        for (id, load, port) in loads {
            assert!(servers.announced(LINK, announce(id, *load, *port)));
        }
        servers
    }

    #[test]
    fn a_client_goes_to_the_least_loaded_server_that_has_two_less() {
        let mut servers = servers(&[("a", 3, 1), ("b", 2, 2)]);
        assert_eq!(servers.redirect(3), None);
        assert_eq!(servers.redirect(4), Some(("host-b".into(), 2)));
    }

    #[test]
    fn a_surge_spreads_over_servers_that_have_not_announced_again() {
        let mut servers = servers(&[("a", 0, 1), ("b", 0, 2)]);
        let mut own_load = 0;
        let mut placed = BTreeMap::new();
        for _ in 0..9 {
            match servers.redirect(own_load + 1) {
                Some((host, _)) => *placed.entry(host).or_insert(0) += 1,
                None => own_load += 1,
            }
        }
        assert_eq!((own_load, placed["host-a"], placed["host-b"]), (3, 3, 3));
        assert!(servers.announced(LINK, announce("a", 0, 1)));
        assert_eq!(servers.redirect(4), Some(("host-a".into(), 1)));
    }

    #[test]
    fn extreme_loads_and_ports_that_are_none_do_no_harm() {
        let mut servers = servers(&[("a", i64::MAX, 1), ("b", i64::MIN, 0), ("c", 0, 65536), ("d", -5, -1)]);
        assert_eq!(servers.redirect(1_000_000), None);
        assert!(servers.announced(LINK, announce("b", i64::MIN, 5)));
        assert_eq!(servers.redirect(1), Some(("host-b".into(), 5)));
    }

    #[test]
    fn what_came_over_a_link_goes_with_it_and_the_table_is_bounded() {
        let mut servers = Servers::new(2);
        assert!(servers.announced(LINK, announce("a", 0, 1)));
        assert!(servers.announced(LINK, announce("b", 0, 1)));
        assert!(!servers.announced(LINK, announce("c", 0, 1)));
        assert!(servers.announced(ConnectionId(2), announce("b", 0, 1)));
        assert!(
            !servers.announced(LINK, ServerAnnounce { hostname: "x".repeat(MAX_NAME_BYTES), ..announce("a", 0, 1) })
        );
        assert_eq!(servers.forget_link(LINK), ["a"]);
        assert!(servers.knows("b") && servers.len() == 1);
    }
}
