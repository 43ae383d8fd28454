//! The task behind a session: it alone owns the socket.

use std::mem;
use std::time::Duration;

use arborcast_proto::wire::{Activity, Message};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tracing::debug;

use crate::address::Address;
use crate::connection::Connection;
use crate::error::Error;
use crate::options::Options;
use crate::session::Identity;
use crate::unechoed::Unechoed;

/// While this much is queued for the socket, nothing more is taken from the program: what lies here can't be flushed
/// in one write anyway.
const MAX_QUEUED: usize = 64 << 10;

/// What the program wants.
#[derive(Debug)]
pub(crate) enum Command {
    /// Send this.
    Publish(Activity),
    /// Leave, once everything before it is sent.
    Logout,
}

/// How far the session has come, for its halves to see.
#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) server: Address,
    /// How many published activities came back.
    pub(crate) taken: u64,
    /// Why it has ended. Set before the channels close.
    pub(crate) error: Option<Error>,
}

impl Progress {
    pub(crate) fn new(server: Address) -> Self {
        Self { server, taken: 0, error: None }
    }
}

/// What the program may still want.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Intent {
    /// Anything.
    Publish,
    /// Only to receive: its publisher is gone.
    Listen,
    /// LOGOUT is sent; the end of the stream is what it waits for.
    Leave,
}

/// How a connection ended, if not by an error.
#[derive(Debug)]
enum Departure {
    LoggedOut,
    Redirected(Address),
}

/// Lives as long as the session. Awaits the server and the program at the same time and never one only: a program that
/// doesn't take what arrives stops the reading, not the writing.
#[derive(Debug)]
pub(crate) struct Conversation {
    connection: Connection,
    identity: Identity,
    options: Options,
    commands: mpsc::Receiver<Command>,
    received: mpsc::Sender<Vec<Activity>>,
    progress: watch::Sender<Progress>,
    intent: Intent,
    unechoed: Unechoed,
    /// Since when the oldest unechoed activity has been waited for, the time in which nothing was read not counted.
    echo_due_since: Instant,
    /// Arrived, and not handed to the program yet. Nothing is read meanwhile.
    batch: Vec<Activity>,
    batch_since: Instant,
    logged_in_at: Instant,
    redirects: u32,
}

impl Conversation {
    /// Goes on with a connection that is logged in.
    pub(crate) fn new(
        connection: Connection,
        identity: Identity,
        options: Options,
        commands: mpsc::Receiver<Command>,
        received: mpsc::Sender<Vec<Activity>>,
        progress: watch::Sender<Progress>,
    ) -> Self {
        let now = Instant::now();
        Self {
            unechoed: Unechoed::new(identity.username(), &options),
            connection,
            identity,
            options,
            commands,
            received,
            progress,
            intent: Intent::Publish,
            echo_due_since: now,
            batch: Vec::new(),
            batch_since: now,
            logged_in_at: now,
            redirects: 0,
        }
    }

    /// Until the program leaves or something goes wrong; what arrived before that is still handed over.
    pub(crate) async fn run(mut self) {
        if let Err(error) = self.converse().await {
            debug!(%error, "session ends");
            self.progress.send_modify(|progress| progress.error = Some(error));
        }
        self.commands.close();
        if !self.batch.is_empty() {
            // Where nobody takes it any more, nobody misses it.
            let _ = self.received.send(self.batch).await;
        }
    }

    async fn converse(&mut self) -> Result<(), Error> {
        loop {
            match self.exchange().await {
                Ok(Departure::LoggedOut) => return Ok(()),
                Ok(Departure::Redirected(server)) => self.follow(&server).await?,
                Err(error) => {
                    self.connection.close(&error).await;
                    return Err(error);
                }
            }
        }
    }

    /// Exchanges activities over one connection until it ends.
    async fn exchange(&mut self) -> Result<Departure, Error> {
        let received = self.received.clone();
        loop {
            if self.batch.is_empty()
                && let Some(departure) = self.handle_arrivals()?
            {
                return Ok(departure);
            }
            let may_read = self.batch.is_empty();
            // Compared here as well, since a timer that is always made anew might never be found to have run out.
            let is_waiting = may_read && !self.unechoed.is_empty();
            let echo_wait = self.options.echo_timeout.saturating_sub(self.echo_due_since.elapsed());
            if is_waiting && echo_wait.is_zero() {
                let server = self.connection.server.clone();
                return Err(Error::NoEcho { server, after: self.options.echo_timeout });
            }
            let may_send = self.unechoed.has_room() && self.connection.writer.pending() < MAX_QUEUED;
            // Reading comes last, since a server can keep it busy for ever; the window makes the others pause.
            tokio::select! {
                biased;
                command = self.commands.recv(), if self.intent == Intent::Publish && may_send => {
                    self.handle_command(command);
                }
                () = self.connection.writer.write(), if self.connection.writer.pending() > 0 => {}
                permit = received.reserve(), if !may_read => {
                    let batch = mem::take(&mut self.batch);
                    // While the program kept us from reading, no echo could be seen.
                    self.echo_due_since += self.batch_since.elapsed();
                    // Without a subscriber it is thrown away.
                    if let Ok(permit) = permit {
                        permit.send(batch);
                    }
                }
                read = self.connection.reader.read(), if may_read => match read {
                    Ok(()) => {}
                    Err(_) if self.intent == Intent::Leave => return Ok(Departure::LoggedOut),
                    Err(cause) => return Err(self.connection.lost(cause)),
                },
                () = sleep(echo_wait), if is_waiting => {}
            }
        }
    }

    fn handle_command(&mut self, command: Option<Command>) {
        match command {
            Some(Command::Publish(activity)) => {
                if self.unechoed.is_empty() {
                    self.echo_due_since = Instant::now();
                }
                self.connection.writer.queue(&self.identity.activity_message(activity.clone()));
                self.unechoed.push(activity);
            }
            Some(Command::Logout) => {
                self.connection.writer.queue(&Message::Logout);
                self.intent = Intent::Leave;
            }
            None => self.intent = Intent::Listen,
        }
    }

    /// Takes in what has been read, up to a redirection.
    fn handle_arrivals(&mut self) -> Result<Option<Departure>, Error> {
        let mut taken = 0;
        let outcome = loop {
            match self.connection.next_message() {
                Ok(Some(Message::ActivityBroadcast { activity, .. })) => {
                    taken += u64::from(self.unechoed.handle_arrival(&activity));
                    self.batch.push(activity);
                }
                Ok(Some(Message::Redirect { .. })) if self.intent == Intent::Leave => {
                    break Ok(Some(Departure::LoggedOut));
                }
                Ok(Some(Message::Redirect { hostname, port })) => break self.redirected(hostname, port).map(Some),
                Ok(Some(other)) => break Err(self.connection.refused(other)),
                Ok(None) => break Ok(None),
                Err(error) => break Err(error),
            }
        };
        self.batch_since = Instant::now();
        if taken > 0 {
            self.echo_due_since = self.batch_since;
            self.progress.send_modify(|progress| progress.taken += taken);
        }
        outcome
    }

    fn redirected(&self, hostname: String, port: u16) -> Result<Departure, Error> {
        let server = || self.connection.server.clone();
        let target = Address::new(hostname, port).map_err(|cause| Error::BadRedirect { server: server(), cause })?;
        Ok(Departure::Redirected(target))
    }

    /// Goes where the server says. It has processed nothing of what did not come back (protocol, Load and redirection),
    /// so all of that is sent again.
    async fn follow(&mut self, server: &Address) -> Result<(), Error> {
        if self.logged_in_at.elapsed() >= self.options.answer_timeout {
            self.redirects = 0;
        }
        let limit = self.options.max_redirects;
        if self.redirects == limit {
            return Err(Error::TooManyRedirects { server: self.connection.server.clone(), limit });
        }
        self.redirects += 1;
        debug!(from = %self.connection.server, to = %server, "redirected");
        sleep(pause_before_redirect(self.redirects)).await;
        self.connection = Connection::open(server, &self.options).await?;
        log_in(&mut self.connection, &self.identity, &self.options).await?;
        for activity in self.unechoed.iter() {
            self.connection.writer.queue(&self.identity.activity_message(activity.clone()));
        }
        self.logged_in_at = Instant::now();
        self.echo_due_since = self.logged_in_at;
        self.progress.send_modify(|progress| progress.server = server.clone());
        Ok(())
    }
}

/// In a surge servers send clients back and forth until they have heard of each other's loads again, which takes an
/// announcement interval (protocol, Load and redirection). So the first redirections are followed at once, later ones
/// more and more slowly, up to a second; and not in step with the others in the surge.
fn pause_before_redirect(redirects: u32) -> Duration {
    let Some(doublings) = redirects.checked_sub(4) else { return Duration::ZERO };
    let longest = Duration::from_millis(10 << doublings.min(7)).min(Duration::from_secs(1));
    longest.mul_f64(rand::random_range(0.5..1.0))
}

/// Makes a new connection a session's.
pub(crate) async fn log_in(connection: &mut Connection, identity: &Identity, options: &Options) -> Result<(), Error> {
    match connection.ask(&identity.login(), options).await {
        Ok(Message::LoginSuccess { info, .. }) => {
            debug!(server = %connection.server, info, "logged in");
            Ok(())
        }
        other => Err(connection.fail(other).await),
    }
}
