//! Who has agreed to a registration, and who is still to agree.

use std::collections::{BTreeMap, BTreeSet};

use arborcast_proto::wire::Secret;

use crate::ids::{ConnectionId, ServerId};

/// The LOCK_ALLOWEDs seen for one pair of name and secret: by id where the answer carries one, else counted by link
/// (protocol, Registration, step 3: one tree may mix both dialects).
#[derive(Debug, Default)]
pub(crate) struct Allowances {
    named: BTreeSet<ServerId>,
    nameless: BTreeMap<ConnectionId, usize>,
}

impl Allowances {
    /// Somebody agreed. `server` must be one that is known, so that the set stays bounded.
    pub(crate) fn allow(&mut self, link: ConnectionId, server: Option<ServerId>) {
        match server {
            Some(id) => drop(self.named.insert(id)),
            None => *self.nameless.entry(link).or_default() += 1,
        }
    }

    /// Nameless answers that came over a lost link no longer count.
    pub(crate) fn forget_link(&mut self, link: ConnectionId) {
        self.nameless.remove(&link);
    }

    /// How many of `servers`, each behind a link, have not agreed.
    pub(crate) fn missing<'a>(&self, servers: impl Iterator<Item = (&'a ServerId, ConnectionId)>) -> usize {
        let mut silent: BTreeMap<ConnectionId, usize> = BTreeMap::new();
        for (_, link) in servers.filter(|(id, _)| !self.named.contains(*id)) {
            *silent.entry(link).or_default() += 1;
        }
        let nameless = |link| self.nameless.get(link).copied().unwrap_or_default();
        silent.iter().map(|(link, silent)| silent.saturating_sub(nameless(link))).sum()
    }
}

/// A registration of one of our own clients that waits for the other servers.
#[derive(Debug)]
pub(crate) struct Registration {
    /// The secret the client wants to register with.
    pub(crate) secret: Secret,
    /// Whom to answer, as long as it is there.
    pub(crate) client: Option<ConnectionId>,
    pub(crate) agreement: Agreement,
}

/// The servers that have to agree, and those that have.
#[derive(Debug)]
pub(crate) struct Agreement {
    /// The servers that were known when it began, as far as their links still stand.
    waiting_for: BTreeMap<ServerId, ConnectionId>,
    allowances: Allowances,
}

impl Registration {
    pub(crate) fn new(secret: Secret, client: ConnectionId, waiting_for: BTreeMap<ServerId, ConnectionId>) -> Self {
        Self { secret, client: Some(client), agreement: Agreement::new(waiting_for) }
    }
}

impl Agreement {
    pub(crate) fn new(waiting_for: BTreeMap<ServerId, ConnectionId>) -> Self {
        Self { waiting_for, allowances: Allowances::default() }
    }

    pub(crate) fn allow(&mut self, link: ConnectionId, server: Option<ServerId>) {
        if server.as_ref().is_none_or(|id| self.waiting_for.contains_key(id)) {
            self.allowances.allow(link, server);
        }
    }

    /// A server whose link is lost is no longer waited for.
    pub(crate) fn forget_link(&mut self, lost: ConnectionId) {
        self.waiting_for.retain(|_, link| *link != lost);
        self.allowances.forget_link(lost);
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.allowances.missing(self.waiting_for.iter().map(|(id, link)| (id, *link))) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEFT: ConnectionId = ConnectionId(1);
    const RIGHT: ConnectionId = ConnectionId(2);

    fn agreement(servers: &[(&str, ConnectionId)]) -> Agreement {
        Agreement::new(servers.iter().map(|(id, link)| ((*id).to_owned(), *link)).collect())
    }

    fn id(id: &str) -> Option<ServerId> {
        Some(id.to_owned())
    }

    #[test]
    fn named_answers_are_ticked_off_once_each() {
        let mut agreement = agreement(&[("a", LEFT), ("b", LEFT)]);
        agreement.allow(LEFT, id("a"));
        agreement.allow(LEFT, id("a"));
        agreement.allow(LEFT, id("stranger"));
        assert!(!agreement.is_complete());
        agreement.allow(LEFT, id("b"));
        assert!(agreement.is_complete());
    }

    #[test]
    fn nameless_answers_count_for_their_link_only() {
        let mut agreement = agreement(&[("a", LEFT), ("b", RIGHT), ("c", RIGHT)]);
        for _ in 0..5 {
            agreement.allow(LEFT, None);
        }
        assert!(!agreement.is_complete());
        agreement.allow(RIGHT, None);
        agreement.allow(RIGHT, id("b"));
        assert!(agreement.is_complete(), "one named and one nameless answer cover the two behind the right link");
    }

    #[test]
    fn a_lost_link_takes_its_servers_and_its_nameless_answers_along() {
        let mut agreement = agreement(&[("a", LEFT), ("b", RIGHT)]);
        agreement.allow(RIGHT, None);
        agreement.forget_link(LEFT);
        assert!(agreement.is_complete());

        let mut allowances = Allowances::default();
        allowances.allow(LEFT, None);
        allowances.forget_link(LEFT);
        assert_eq!(allowances.missing([(&"a".to_owned(), LEFT)].into_iter()), 1);
    }
}
