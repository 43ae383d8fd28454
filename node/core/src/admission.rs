//! Clients that a master has sent here, with a ticket to show for it (protocol, Admission).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use arborcast_proto::ticket::{Ticket, TicketKey};
use arborcast_proto::wire::{Origin, Secret};

use crate::clock::WallClock;
use crate::config::Config;
use crate::error::Refusal;
use crate::ids::ConnectionId;
use crate::node::Node;

/// Most used tickets that are remembered, which is as many as can be taken in the time for which one is good (protocol,
/// B54).
pub(crate) const MAX_USED_TICKETS: usize = 100_000;

/// Most masters whose tickets are counted (protocol, B55); one that is started again is another one.
const MAX_ISSUERS: usize = 16;

/// The tickets of a node that speaks the extensions.
#[derive(Debug)]
pub(crate) struct Admission {
    key: TicketKey,
    /// This run of this node.
    run: Origin,
    is_required: bool,
    clock: WallClock,
    /// Until when each ticket has to be remembered, in seconds since 1970, and its number; and when that is, whatever the
    /// clock is set to meanwhile.
    used: BTreeMap<(u64, u128), Instant>,
    /// Who was admitted, by which master, and has neither logged in nor gone yet.
    admitted: BTreeMap<ConnectionId, Box<str>>,
    settled: BTreeMap<Box<str>, Settled>,
    last_settled: u64,
}

/// The tickets of one master.
#[derive(Debug, Default)]
struct Settled {
    count: u64,
    /// Larger is later.
    at: u64,
}

impl Admission {
    /// Nothing for a node that speaks no extensions.
    pub(crate) fn new(config: &Config, now: Instant) -> Option<Self> {
        let extensions = config.extensions.as_ref()?;
        Some(Self {
            key: TicketKey::derive(&config.secret),
            run: Origin { id: config.id.as_str().into(), incarnation: extensions.incarnation },
            is_required: extensions.requires_tickets,
            clock: WallClock::new(extensions.milliseconds_since_1970, now),
            used: BTreeMap::new(),
            admitted: BTreeMap::new(),
            settled: BTreeMap::new(),
            last_settled: 0,
        })
    }

    fn admit(&mut self, now: Instant, connection: ConnectionId, ticket: &Secret) -> Result<(), Refusal> {
        let milliseconds = self.clock.milliseconds(now);
        let ticket = Ticket::check(ticket, &self.key, &self.run, milliseconds)?;
        while self.used.first_key_value().is_some_and(|(_, forgotten_at)| *forgotten_at <= now) {
            self.used.pop_first();
        }
        let used = (ticket.forgotten_at(), ticket.number);
        if self.used.contains_key(&used) {
            return Err(Refusal::TicketReplayed);
        }
        if self.used.len() >= MAX_USED_TICKETS {
            return Err(Refusal::TooManyTickets);
        }
        let left = ticket.forgotten_at().saturating_sub(milliseconds / 1000);
        self.used.insert(used, now + Duration::from_secs(left));
        self.admitted.insert(connection, ticket.issuer);
        Ok(())
    }

    /// A client that was admitted has logged in, or gone: from here on its master need not count it any more. Says
    /// whether it was one.
    fn settle(&mut self, connection: ConnectionId) -> bool {
        let Some(issuer) = self.admitted.remove(&connection) else { return false };
        self.last_settled += 1;
        if self.settled.len() >= MAX_ISSUERS
            && !self.settled.contains_key(&issuer)
            && let Some(oldest) = self.settled.iter().min_by_key(|(_, settled)| settled.at).map(|(id, _)| id.clone())
        {
            self.settled.remove(&oldest);
        }
        let settled = self.settled.entry(issuer).or_default();
        settled.count = settled.count.saturating_add(1);
        settled.at = self.last_settled;
        true
    }

    /// How many tickets of each master have done what they were for.
    fn settled(&self) -> BTreeMap<Box<str>, u64> {
        self.settled.iter().map(|(issuer, settled)| (issuer.clone(), settled.count)).collect()
    }
}

impl Node {
    /// REGISTER or LOGIN: whether the client may ask for that here at all (protocol, V3 and V4). A connection that is
    /// admitted needs no other ticket.
    pub(crate) fn admit(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        ticket: Option<&Secret>,
    ) -> Result<(), Refusal> {
        let Some(admission) = self.admission.as_mut().filter(|it| !it.admitted.contains_key(&connection)) else {
            return Ok(());
        };
        match ticket {
            Some(ticket) => {
                admission.admit(now, connection, ticket)?;
                self.counters.tickets_taken += 1;
                Ok(())
            }
            None if admission.is_required => Err(Refusal::NoTicket),
            None => Ok(()),
        }
    }

    /// See [`Admission::settle`].
    pub(crate) fn settle_ticket(&mut self, connection: ConnectionId) -> bool {
        self.admission.as_mut().is_some_and(|admission| admission.settle(connection))
    }

    /// See [`Admission::settled`].
    pub(crate) fn settled_tickets(&self) -> BTreeMap<Box<str>, u64> {
        self.admission.as_ref().map(Admission::settled).unwrap_or_default()
    }

    pub(crate) fn on_clock_read(&mut self, now: Instant, milliseconds_since_1970: u64) {
        let clock = WallClock::new(milliseconds_since_1970, now);
        if let Some(admission) = &mut self.admission {
            admission.clock = clock;
        }
        self.directory.set_clock(clock);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use arborcast_proto::ticket::{LEEWAY, LIFETIME, TicketFault};

    use super::*;
    use crate::config::Extensions;

    use crate::testing::start;

    const NOW: u64 = 1_700_000_000;

    fn admission(now: Instant) -> Admission {
        let extensions = Extensions { milliseconds_since_1970: NOW * 1000, ..Extensions::new(5, 0) };
        let config = Config { extensions: Some(extensions), ..Config::new("me", "h", 1, "secret".into()) };
        Admission::new(&config, now).unwrap()
    }

    fn ticket(admission: &Admission, number: u128, expires_at: u64) -> Secret {
        let ticket = Ticket { issuer: "m".into(), audience: admission.run.clone(), expires_at, number };
        ticket.sign(&admission.key)
    }

    #[test]
    fn a_ticket_admits_once_for_as_long_as_it_could_be_shown_again() {
        let start = start();
        let mut admission = admission(start);
        let text = ticket(&admission, 7, NOW + LIFETIME);
        assert_eq!(admission.admit(start, ConnectionId(1), &text), Ok(()));
        let end = start + Duration::from_secs(LIFETIME + LEEWAY);
        assert_eq!(
            admission.admit(end - Duration::from_millis(1), ConnectionId(2), &text),
            Err(Refusal::TicketReplayed)
        );
        let expired = Err(Refusal::BadTicket(TicketFault::Expired));
        assert_eq!(admission.admit(end, ConnectionId(3), &text), expired);
        let next = ticket(&admission, 8, NOW + 2 * LIFETIME);
        assert_eq!(admission.admit(end, ConnectionId(4), &next), Ok(()));
        assert_eq!(admission.used.len(), 1, "what has expired is forgotten");
    }

    #[test]
    fn a_clock_that_is_set_ahead_and_back_makes_no_ticket_good_again() {
        let start = start();
        let mut admission = admission(start);
        let text = ticket(&admission, 7, NOW + LIFETIME);
        assert_eq!(admission.admit(start, ConnectionId(1), &text), Ok(()));
        admission.clock = WallClock::new((NOW + 3600) * 1000, start);
        let later = ticket(&admission, 8, NOW + 3600 + LIFETIME);
        assert_eq!(admission.admit(start, ConnectionId(2), &later), Ok(()));
        admission.clock = WallClock::new(NOW * 1000, start);
        assert_eq!(admission.admit(start, ConnectionId(3), &text), Err(Refusal::TicketReplayed));
    }

    #[test]
    fn beyond_the_bound_tickets_are_refused_until_others_have_expired() {
        let start = start();
        let mut admission = admission(start);
        let end = start + Duration::from_secs(LIFETIME + LEEWAY);
        admission.used =
            (0..MAX_USED_TICKETS as u128 - 1).map(|number| ((NOW + LIFETIME + LEEWAY, number), end)).collect();
        let mut number = u128::MAX;
        let mut admit = |now, expires_at| {
            number -= 1;
            let text = ticket(&admission, number, expires_at);
            admission.admit(now, ConnectionId(1), &text)
        };
        assert_eq!(admit(start, NOW + LIFETIME), Ok(()));
        assert_eq!(admit(start, NOW + LIFETIME), Err(Refusal::TooManyTickets));
        assert_eq!(admit(end, NOW + 2 * LIFETIME), Ok(()));
    }

    #[test]
    fn tickets_are_counted_for_a_bounded_number_of_masters() {
        let mut admission = admission(start());
        for connection in 0..100 {
            admission.admitted.insert(ConnectionId(connection), format!("m{}", connection / 2).into());
            assert!(admission.settle(ConnectionId(connection)));
            assert!(!admission.settle(ConnectionId(connection)), "once");
        }
        let settled = admission.settled();
        assert_eq!(settled.len(), MAX_ISSUERS);
        assert!(settled.values().all(|count| *count == 2) && settled.contains_key("m49"), "{settled:?}");
    }
}
