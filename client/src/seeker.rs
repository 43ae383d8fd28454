//! From servers that may be there to a connection that is logged in.

use std::time::Duration;

use arborcast_proto::wire::{Have, Message, Secret};
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use crate::address::Address;
use crate::backoff::Backoff;
use crate::candidates::{HeardOf, MAX_NAMED, rank};
use crate::connection::Connection;
use crate::error::Error;
use crate::masters;
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

/// The servers that one round has tried.
type Tried = Vec<Address>;

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
        }
    }

    /// The first server that takes a connection, for a request that must not be made twice.
    ///
    /// # Errors
    /// Why the last one did not.
    pub(crate) async fn connect(&mut self) -> Result<Connection, Error> {
        let mut tried = Tried::new();
        let mut last_error = None;
        for source in [Source::Given, Source::Masters] {
            for server in self.untried(source, None, &tried, &mut last_error).await {
                match Connection::open(&server, &self.options).await {
                    Ok(connection) => return Ok(connection),
                    Err(error) if error.is_before_the_request() => last_error = Some(error),
                    Err(error) => return Err(error),
                }
                tried.push(server);
            }
        }
        Err(last_error.unwrap_or_else(nobody))
    }

    /// The first server that lets the session in; each is tried once.
    ///
    /// # Errors
    /// A refusal, if there was one; otherwise why the last one did not.
    pub(crate) async fn find_first(&mut self, login: &Message) -> Result<Arrived, Error> {
        let mut tried = Tried::new();
        let (mut last_error, mut refusal, mut refusals) = (None, None, 0);
        for source in [Source::Given, Source::Masters] {
            for server in self.untried(source, None, &tried, &mut last_error).await {
                match self.log_in_at(&server, login).await {
                    Ok(arrived) => return Ok(arrived),
                    Err(error @ Error::LoginFailed { .. }) if refusals + 1 < MAX_FIRST_REFUSALS => {
                        refusals += 1;
                        refusal = Some(error);
                    }
                    Err(error) if error.is_refusal() => return Err(error),
                    Err(error) => last_error = Some(error),
                }
                tried.push(server);
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
        self.log_in_at(to, login).await
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
            let mut tried = Tried::new();
            for source in [Source::Given, Source::Masters, Source::HeardOf, Source::Lost] {
                for server in self.untried(source, Some(lost), &tried, last_error).await {
                    match self.log_in_at(&server, login).await {
                        Ok(arrived) => return Ok(arrived),
                        Err(error) => {
                            debug!(%server, %error, "not there");
                            if self.is_refused_for_good(&error, policy) {
                                return Err(error);
                            }
                            *last_error = Some(error);
                        }
                    }
                    tried.push(server);
                }
            }
        }
    }

    /// Counts a refusal, and says whether it is one too many. A server may let the session in and redirect it to one that
    /// refuses it, so a login alone does not end the row.
    fn is_refused_for_good(&mut self, error: &Error, policy: &Reconnect) -> bool {
        self.refusals += u32::from(error.is_refusal());
        error.is_refusal() && self.refusals >= policy.max_refusals
    }

    /// The servers of this source that were not tried yet.
    async fn untried(
        &self,
        source: Source,
        lost: Option<&Address>,
        tried: &[Address],
        last_error: &mut Option<Error>,
    ) -> Vec<Address> {
        let mut servers = match source {
            Source::Given => self.servers.addresses.clone(),
            Source::Masters if self.servers.masters.is_empty() => Vec::new(),
            Source::Masters => match masters::ask(&self.servers.masters, self.options.tls.as_ref()).await {
                Ok(listed) => rank(listed, &mut rand::rng()),
                Err(reason) => {
                    debug!(reason, "the masters know no server");
                    last_error.get_or_insert(Error::NoServer { reason });
                    Vec::new()
                }
            },
            Source::HeardOf => self.heard_of.shuffled(&mut rand::rng()),
            Source::Lost => return lost.filter(|lost| !tried.contains(lost)).cloned().into_iter().collect(),
        };
        // What was just lost is tried when all others were.
        servers.retain(|server| Some(server) != lost && !tried.contains(server));
        if source != Source::Given {
            servers.truncate(MAX_NAMED);
        }
        servers
    }

    async fn log_in_at(&mut self, server: &Address, login: &Message) -> Result<Arrived, Error> {
        let connection = Connection::open(server, &self.options).await?;
        self.log_in(connection, login).await
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
                Ok(Arrived { connection, have, proof })
            }
            other => Err(connection.fail(other).await),
        }
    }
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
