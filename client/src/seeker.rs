//! From servers that may be there to a connection that is logged in.

use std::collections::VecDeque;
use std::time::Duration;

use arborcast_proto::wire::{Have, Message, Secret};
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use crate::address::Address;
use crate::backoff::Backoff;
use crate::candidates::{HeardOf, MAX_NAMED};
use crate::connection::Connection;
use crate::error::Error;
use crate::masters::{Advice, Masters};
use crate::options::{Options, Reconnect};
use crate::servers::Servers;

/// Where a session can be, and how it gets there.
#[derive(Debug)]
pub(crate) struct Seeker {
    servers: Servers,
    options: Options,
    heard_of: HeardOf,
    backoff: Backoff,
    redirects: u32,
    /// How many servers in a row have refused the login.
    refusals: u32,
    settled_at: Instant,
    /// It was let in with a ticket.
    pub(crate) is_ticketed: bool,
}

/// A connection that is logged in.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) connection: Connection,
    /// What counts as received, if the session is an extended one.
    pub(crate) have: Option<Have>,
    /// What the next login is to show, wherever that is.
    pub(crate) proof: Option<Secret>,
}

/// How many servers may refuse a first login before that is believed. One that has just started may not know the user yet,
/// and has the least load.
const MAX_FIRST_REFUSALS: u32 = 3;

/// A server that can be tried.
#[derive(Debug)]
struct Place {
    address: Address,
    /// What a master gave for it.
    ticket: Option<Secret>,
}

impl From<Address> for Place {
    fn from(address: Address) -> Self {
        Self { address, ticket: None }
    }
}

/// One look at all servers: each is tried once, and a second time where it is tried without a ticket and with one.
#[derive(Debug)]
struct Round {
    sources: VecDeque<Source>,
    places: VecDeque<Place>,
    tried: Vec<Address>,
    /// The ids of those that masters have named.
    named: Vec<String>,
    lost: Option<Place>,
}

impl Round {
    fn new(sources: &[Source], lost: Option<&Address>) -> Self {
        Self {
            sources: sources.iter().copied().collect(),
            places: VecDeque::new(),
            tried: Vec::new(),
            named: Vec::new(),
            lost: lost.cloned().map(Place::from),
        }
    }

    /// The next of the places at hand that was not tried.
    fn next(&mut self) -> Option<Place> {
        while let Some(place) = self.places.pop_front() {
            match &mut self.lost {
                // What was just lost is tried when all others were.
                Some(lost) if lost.address == place.address => {
                    lost.ticket = place.ticket.or_else(|| lost.ticket.take())
                }
                _ if place.ticket.is_none() && self.tried.contains(&place.address) => {}
                _ => {
                    self.tried.push(place.address.clone());
                    return Some(place);
                }
            }
        }
        None
    }

    /// Its ticket was refused, which need not be its bearer's fault. Without it the server may take the client all the same.
    fn try_without_ticket(&mut self, address: Address) {
        self.tried.retain(|tried| *tried != address);
        self.places.push_front(address.into());
    }
}

/// Where a round looks for servers, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Given,
    Masters,
    HeardOf,
    Lost,
}

impl Seeker {
    pub(crate) fn new(servers: Servers, options: Options) -> Self {
        Self {
            servers,
            options,
            heard_of: HeardOf::default(),
            backoff: Backoff::default(),
            redirects: 0,
            refusals: 0,
            settled_at: Instant::now(),
            is_ticketed: false,
        }
    }

    /// The first server that takes a connection, for a request that must not be made twice, and the ticket for it.
    ///
    /// # Errors
    /// Why the last one did not.
    pub(crate) async fn connect(&mut self) -> Result<(Connection, Option<Secret>), Error> {
        let mut round = Round::new(&[Source::Given, Source::Masters], None);
        let mut last_error = None;
        while let Some(place) = self.next_place(&mut round, &mut last_error).await {
            match Connection::open(&place.address, &self.options).await {
                Ok(connection) => return Ok((connection, place.ticket)),
                Err(error) if error.is_before_the_request() => last_error = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last_error.unwrap_or_else(nobody))
    }

    /// The first server that lets the session in; each is tried once.
    ///
    /// # Errors
    /// A refusal, if there was one; otherwise why the last one did not.
    pub(crate) async fn find_first(&mut self, login: &Message) -> Result<Arrived, Error> {
        let mut round = Round::new(&[Source::Given, Source::Masters], None);
        let (mut last_error, mut refusal, mut refusals) = (None, None, 0);
        while let Some(place) = self.next_place(&mut round, &mut last_error).await {
            match self.log_in_at(&place, login).await {
                Ok(arrived) => return Ok(arrived),
                Err(error @ Error::LoginFailed { .. }) if refusals + 1 < MAX_FIRST_REFUSALS => {
                    refusals += 1;
                    refusal = Some(error);
                }
                Err(error @ Error::InvalidMessage { .. }) if place.ticket.is_some() => {
                    refusal = Some(error);
                    round.try_without_ticket(place.address);
                }
                // It may want a ticket.
                Err(error @ Error::InvalidMessage { .. }) if !self.servers.masters.is_empty() => refusal = Some(error),
                Err(error) if error.is_refusal() => return Err(error),
                Err(error) => last_error = Some(error),
            }
        }
        Err(refusal.or(last_error).unwrap_or_else(nobody))
    }

    /// Goes where a server says.
    ///
    /// # Errors
    /// When that is not possible; the session may go on elsewhere.
    pub(crate) async fn follow(&mut self, from: &Address, to: &Address, login: &Message) -> Result<Arrived, Error> {
        if self.settled_at.elapsed() >= self.options.answer_timeout {
            self.redirects = 0;
        }
        let limit = self.options.max_redirects;
        if self.redirects >= limit {
            self.redirects = 0;
            return Err(Error::TooManyRedirects { server: from.clone(), limit });
        }
        self.redirects += 1;
        debug!(%from, %to, "redirected");
        sleep(pause_before_redirect(self.redirects)).await;
        self.heard_of.insert(to.clone());
        // Who needed a ticket here may need one there, and the master knows the loads as well.
        if self.is_ticketed
            && let Ok(Advice::Assigned(assigned)) = self.masters().ask(&[]).await
            && assigned.address != *from
            && let place = (Place { address: assigned.address, ticket: Some(assigned.ticket) })
            && let Ok(arrived) = self.log_in_at(&place, login).await
        {
            return Ok(arrived);
        }
        self.log_in_at(&to.clone().into(), login).await
    }

    /// Looks for a server until one lets the session in, for ever if the policy says so.
    ///
    /// # Errors
    /// When the policy's limits are reached.
    pub(crate) async fn find_again(
        &mut self,
        lost: &Address,
        why: Error,
        login: &Message,
        policy: &Reconnect,
    ) -> Result<Arrived, Error> {
        if self.settled_at.elapsed() >= policy.max_pause {
            self.backoff.reset();
        }
        if !why.is_refusal() {
            self.refusals = 0;
        }
        if self.is_refused_for_good(&why, policy) {
            return Err(why);
        }
        let mut last_error = Some(why);
        let search = self.search(lost, login, policy, &mut last_error);
        match policy.give_up_after {
            None => search.await,
            Some(after) => match timeout(after, search).await {
                Ok(found) => found,
                Err(_too_late) => Err(last_error.unwrap_or_else(nobody)),
            },
        }
    }

    async fn search(
        &mut self,
        lost: &Address,
        login: &Message,
        policy: &Reconnect,
        last_error: &mut Option<Error>,
    ) -> Result<Arrived, Error> {
        loop {
            let pause = self.backoff.next_pause(policy, &mut rand::rng());
            sleep(pause).await;
            let sources = [Source::Given, Source::Masters, Source::HeardOf, Source::Lost];
            let mut round = Round::new(&sources, Some(lost));
            while let Some(place) = self.next_place(&mut round, last_error).await {
                let error = match self.log_in_at(&place, login).await {
                    Ok(arrived) => return Ok(arrived),
                    Err(error) => error,
                };
                debug!(server = %place.address, %error, "not there");
                if place.ticket.is_some() && matches!(error, Error::InvalidMessage { .. }) {
                    round.try_without_ticket(place.address);
                } else if self.is_refused_for_good(&error, policy) {
                    return Err(error);
                }
                *last_error = Some(error);
            }
        }
    }

    /// Counts a refusal, and says whether it is one too many. A server may let the session in and redirect it to one that
    /// refuses it, so a login alone does not end the row.
    fn is_refused_for_good(&mut self, error: &Error, policy: &Reconnect) -> bool {
        self.refusals += u32::from(error.is_refusal());
        error.is_refusal() && self.refusals >= policy.max_refusals
    }

    /// The next server that was not tried yet in this round.
    async fn next_place(&self, round: &mut Round, last_error: &mut Option<Error>) -> Option<Place> {
        loop {
            if let Some(place) = round.next() {
                return Some(place);
            }
            match round.sources.pop_front()? {
                Source::Given => round.places.extend(self.servers.addresses.iter().cloned().map(Place::from)),
                Source::Masters if self.servers.masters.is_empty() => {}
                Source::Masters => match self.masters().ask(&round.named).await {
                    Ok(Advice::Assigned(assigned)) => {
                        round.named.push(assigned.node_id);
                        // If that one does not do.
                        if round.named.len() < MAX_NAMED {
                            round.sources.push_front(Source::Masters);
                        }
                        round.places.push_back(Place { address: assigned.address, ticket: Some(assigned.ticket) });
                    }
                    Ok(Advice::Listed(listed)) => round.places.extend(listed.into_iter().map(Place::from)),
                    Err(error) => {
                        debug!(%error, "the masters know no other server");
                        last_error.get_or_insert(error);
                    }
                },
                Source::HeardOf => {
                    let heard_of = self.heard_of.shuffled(&mut rand::rng());
                    round.places.extend(heard_of.into_iter().take(MAX_NAMED).map(Place::from));
                }
                Source::Lost => round.places.extend(round.lost.take()),
            }
        }
    }

    fn masters(&self) -> Masters {
        Masters::new(&self.servers.masters, self.options.tls.as_ref())
    }

    async fn log_in_at(&mut self, place: &Place, login: &Message) -> Result<Arrived, Error> {
        let connection = Connection::open(&place.address, &self.options).await?;
        match &place.ticket {
            Some(ticket) => {
                let arrived = self.log_in(connection, &with_ticket(login, ticket.clone())).await?;
                self.is_ticketed = true;
                Ok(arrived)
            }
            None => self.log_in(connection, login).await,
        }
    }

    /// Makes a new connection the session's.
    pub(crate) async fn log_in(&mut self, mut connection: Connection, login: &Message) -> Result<Arrived, Error> {
        match connection.ask(login, &self.options).await {
            Ok(Message::LoginSuccess { info, have, proof, servers }) => {
                debug!(server = %connection.server, info, is_extended = have.is_some(), "logged in");
                let named = servers.into_iter().take(MAX_NAMED);
                for address in named.filter_map(|named| Address::new(named.hostname, named.port).ok()) {
                    self.heard_of.insert(address);
                }
                self.settled_at = Instant::now();
                self.is_ticketed = false;
                Ok(Arrived { connection, have, proof })
            }
            other => Err(connection.fail(other).await),
        }
    }
}

/// The same LOGIN, with what a master gave for the server.
fn with_ticket(login: &Message, ticket: Secret) -> Message {
    let mut login = login.clone();
    if let Message::Login { ticket: slot, .. } = &mut login {
        *slot = Some(ticket);
    }
    login
}

fn nobody() -> Error {
    Error::NoServer { reason: "no address was given".into() }
}

/// In a surge servers send clients back and forth until they have heard of each other's loads again, which takes an
/// announcement interval (protocol, Load and redirection). So the first redirections are followed at once, later ones
/// more and more slowly, up to a second; and not in step with the others in the surge.
fn pause_before_redirect(redirects: u32) -> Duration {
    let Some(doublings) = redirects.checked_sub(4) else { return Duration::ZERO };
    let longest = Duration::from_millis(10 << doublings.min(7)).min(Duration::from_secs(1));
    longest.mul_f64(rand::random_range(0.5..1.0))
}
