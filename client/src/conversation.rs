//! The task behind a session: it alone owns the socket.

use arborcast_proto::wire::{Activity, Have, Message, RelayTag, Resume, Secret};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::debug;

use crate::address::Address;
use crate::connection::Connection;
use crate::error::Error;
use crate::event::Event;
use crate::options::Options;
use crate::program::{Intent, Program};
use crate::received::{Arrival, Received};
use crate::seeker::{Arrived, Seeker};
use crate::session::Identity;

/// While this much is queued for the socket, nothing more is: what lies here can't be flushed in one write anyway.
const MAX_QUEUED: usize = 64 << 10;

/// How far the session has come, for its halves to see.
#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) server: Address,
    /// How many published activities were acknowledged.
    pub(crate) taken: u64,
    /// Why it has ended. Set before the channels close.
    pub(crate) error: Option<Error>,
}

impl Progress {
    pub(crate) fn new(server: Address) -> Self {
        Self { server, taken: 0, error: None }
    }
}

/// How a connection ended, if not by an error.
#[derive(Debug)]
enum Departure {
    LoggedOut,
    Redirected(Address),
}

/// Who the session is, to every server.
#[derive(Debug)]
pub(crate) struct Passport {
    pub(crate) identity: Identity,
    /// The session's id, the same wherever it logs in again (protocol, E1); without it plain sessions only.
    pub(crate) session: Option<Box<str>>,
    /// What a server has given as a proof that it verified the secret (protocol, U9).
    pub(crate) proof: Option<Secret>,
    /// The line limit of servers.
    pub(crate) max_line: usize,
}

impl Passport {
    pub(crate) fn new(identity: &Identity, options: &Options) -> Self {
        let session = options.extended.then(|| format!("{:032x}", rand::random::<u128>()).into());
        Self { identity: identity.clone(), session, proof: None, max_line: options.max_line }
    }

    /// The LOGIN of one who has received this, or was not in before.
    pub(crate) fn login(&self, received: Option<&Received>) -> Message {
        let login = |have: Option<Have>| {
            let resume = self.session.clone().map(|session| Resume { session, have, proof: self.proof.clone() });
            self.identity.login(resume)
        };
        let Some(received) = received else { return login(None) };
        let room = self.max_line.saturating_sub(login(Some(Have::new())).to_line().len());
        login(Some(received.have(room)))
    }
}

/// Lives as long as the session. Awaits the server and the program at the same time and never one only: a program that
/// doesn't take what arrives stops the reading, not the writing.
#[derive(Debug)]
pub(crate) struct Conversation {
    connection: Connection,
    passport: Passport,
    options: Options,
    seeker: Seeker,
    program: Program,
    progress: watch::Sender<Progress>,
    received: Received,
    is_extended: bool,
    has_said_logout: bool,
    read_at: Instant,
    /// The connection before ended because nothing was acknowledged, and nothing has been since.
    is_unanswered: bool,
}

impl Conversation {
    /// Goes on with a connection that is logged in.
    pub(crate) fn new(
        arrived: Arrived,
        mut passport: Passport,
        options: Options,
        seeker: Seeker,
        program: Program,
        progress: watch::Sender<Progress>,
    ) -> Self {
        let mut received = Received::default();
        let is_extended = arrived.have.is_some();
        received.merge(arrived.have.unwrap_or_default());
        passport.proof = arrived.proof;
        Self {
            connection: arrived.connection,
            passport,
            options,
            seeker,
            program,
            progress,
            received,
            is_extended,
            has_said_logout: false,
            read_at: Instant::now(),
            is_unanswered: false,
        }
    }

    /// Until the program leaves or something final goes wrong; what arrived before that is still handed over.
    pub(crate) async fn run(mut self) {
        if let Err(error) = self.converse().await {
            debug!(%error, "session ends");
            self.progress.send_modify(|progress| progress.error = Some(error));
        }
        self.program.end().await;
    }

    async fn converse(&mut self) -> Result<(), Error> {
        loop {
            let goes_on = match self.exchange().await {
                Ok(Departure::LoggedOut) => return Ok(()),
                Ok(Departure::Redirected(target)) => self.follow(&target).await?,
                Err(error) => {
                    self.connection.close(&error).await;
                    if !error.is_worth_another_try() {
                        return Err(error);
                    }
                    self.recover(error).await?
                }
            };
            if !goes_on {
                return Ok(());
            }
        }
    }

    /// Exchanges activities over one connection until it ends.
    async fn exchange(&mut self) -> Result<Departure, Error> {
        let events = self.program.events();
        loop {
            if self.program.is_told_all()
                && let Some(departure) = self.handle_arrivals()?
            {
                return Ok(departure);
            }
            self.send();
            let may_read = self.program.is_told_all();
            // Compared here as well, since a timer that is always made anew might never be found to have run out.
            let is_waiting = may_read && !self.program.window.is_empty();
            let patience = self.options.echo_timeout.saturating_sub(self.program.due_since.elapsed());
            if is_waiting && patience.is_zero() {
                let server = self.connection.server.clone();
                return Err(Error::NoEcho { server, after: self.options.echo_timeout });
            }
            let may_publish = self.program.may_publish() && self.connection.writer.pending() < MAX_QUEUED;
            // Reading comes last, since a server can keep it busy for ever; the window makes the others pause.
            tokio::select! {
                biased;
                command = self.program.commands.recv(), if may_publish => self.program.handle_command(command),
                () = self.connection.writer.write(), if self.connection.writer.pending() > 0 => {}
                room = events.reserve(), if !may_read => self.program.hand_over(room.ok()),
                read = self.connection.reader.read(), if may_read => match read {
                    Ok(()) => self.read_at = Instant::now(),
                    Err(_) if self.program.intent == Intent::Leave => return Ok(Departure::LoggedOut),
                    Err(cause) => return Err(self.connection.lost(cause)),
                },
                () = sleep(patience), if is_waiting => {}
            }
        }
    }

    /// Queues as much of what is to be sent as makes one write.
    fn send(&mut self) {
        let writer = &mut self.connection.writer;
        while writer.pending() < MAX_QUEUED
            && let Some((number, activity)) = self.program.window.next_to_send(self.is_extended)
        {
            writer.queue(&self.passport.identity.activity_message(number, activity.clone()));
        }
        if self.program.intent == Intent::Leave && self.program.window.is_sent() && !self.has_said_logout {
            self.has_said_logout = true;
            writer.queue(&Message::Logout);
        }
    }

    /// Takes in what has been read, up to a redirection.
    fn handle_arrivals(&mut self) -> Result<Option<Departure>, Error> {
        let mut taken = 0;
        let outcome = loop {
            match self.connection.next_message() {
                Ok(Some(Message::ActivityBroadcast { relay, activity })) if self.is_extended => {
                    self.handle_named(relay.as_ref(), activity);
                }
                Ok(Some(Message::ActivityBroadcast { activity, .. })) => {
                    taken += u64::from(self.program.window.handle_arrival(&activity));
                    self.program.tell_activity(activity);
                }
                Ok(Some(Message::ActivityAck { number })) if self.is_extended => {
                    taken += self.program.window.handle_ack(number);
                }
                Ok(Some(Message::RelayGap { origin, through })) if self.is_extended => {
                    let missing = self.received.skip(&origin, through);
                    if missing > 0 {
                        self.program.tell(Event::Gap { origin: origin.to_string(), missing });
                    }
                }
                Ok(Some(Message::RelayHave { have, .. })) if self.is_extended => self.received.merge(have),
                Ok(Some(Message::Redirect { .. })) if self.program.intent == Intent::Leave => {
                    break Ok(Some(Departure::LoggedOut));
                }
                Ok(Some(Message::Redirect { hostname, port })) => break self.redirected(hostname, port).map(Some),
                Ok(Some(other)) => break Err(self.connection.refused(other)),
                Ok(None) => break Ok(None),
                Err(error) => break Err(error),
            }
        };
        if taken > 0 {
            self.is_unanswered = false;
            self.program.due_since = Instant::now();
            self.progress.send_modify(|progress| progress.taken += taken);
        }
        outcome
    }

    /// Takes in an activity of an extended session, unless it is there already (protocol, E3).
    fn handle_named(&mut self, name: Option<&RelayTag>, activity: Activity) {
        if let Some(name) = name {
            match self.received.take(name) {
                Arrival::Duplicate => return,
                Arrival::New { missing: 0 } => {}
                Arrival::New { missing } => self.program.tell(Event::Gap { origin: name.origin.to_string(), missing }),
            }
        }
        self.program.tell_activity(activity);
    }

    fn redirected(&self, hostname: String, port: u16) -> Result<Departure, Error> {
        let server = || self.connection.server.clone();
        let target = Address::new(hostname, port).map_err(|cause| Error::BadRedirect { server: server(), cause })?;
        Ok(Departure::Redirected(target))
    }

    /// Goes where the server says. It has processed nothing of what was not acknowledged (protocol, Load and redirection),
    /// so all of that is sent again. Returns whether the session goes on.
    async fn follow(&mut self, target: &Address) -> Result<bool, Error> {
        let login = self.login();
        let following = self.seeker.follow(&self.connection.server, target, &login);
        match self.program.serve_during(following).await {
            None => Ok(false),
            Some(Ok(arrived)) => {
                self.settle(arrived);
                Ok(true)
            }
            Some(Err(error)) if error.is_worth_another_try() || error.is_refusal() => self.recover(error).await,
            Some(Err(error)) => Err(error),
        }
    }

    /// Finds another server after an error that may not happen there. Returns whether the session goes on.
    async fn recover(&mut self, error: Error) -> Result<bool, Error> {
        let Some(policy) = self.options.reconnect.clone() else { return Err(error) };
        let is_unanswered = matches!(error, Error::NoEcho { .. });
        if is_unanswered && self.is_hopeless() {
            return Err(error);
        }
        self.is_unanswered |= is_unanswered;
        let lost_at = Instant::now();
        let lost = self.connection.server.clone();
        debug!(server = %lost, %error, "lost");
        self.program.tell(Event::Lost { server: lost.clone(), error: error.clone() });
        let login = self.login();
        let search = self.seeker.find_again(&lost, error, &login, &policy);
        let Some(found) = self.program.serve_during(search).await else { return Ok(false) };
        let is_resumed = self.settle(found?);
        let (server, after) = (self.connection.server.clone(), lost_at.elapsed());
        self.program.tell(Event::Reconnected { server, after, is_resumed });
        Ok(true)
    }

    /// Whether an activity that did not come back would not come back elsewhere either: of a server that gives back others
    /// it must be feared that it changes them, and sending them again and again would be worse than giving up. In an
    /// extended session the servers drop what they have seen.
    fn is_hopeless(&self) -> bool {
        !self.is_extended && (self.is_unanswered || self.read_at > self.program.due_since)
    }

    fn login(&self) -> Message {
        // What arrives where nobody listens need not be asked for again.
        let resumes = self.is_extended && self.program.is_subscribed();
        self.passport.login(resumes.then_some(&self.received))
    }

    /// Goes on over a new connection. Returns whether what was missed meanwhile follows.
    fn settle(&mut self, arrived: Arrived) -> bool {
        let was_resumable = self.is_extended && self.program.is_subscribed();
        self.connection = arrived.connection;
        self.passport.proof = arrived.proof.or_else(|| self.passport.proof.take());
        self.is_extended = arrived.have.is_some();
        if !(was_resumable && self.is_extended) {
            // What a plain session receives has no names: where it ends, nobody can say what is lacking.
            self.received.forget_origins();
        }
        self.received.merge(arrived.have.unwrap_or_default());
        self.program.window.rewind();
        self.has_said_logout = false;
        self.program.due_since = Instant::now();
        self.read_at = self.program.due_since;
        self.progress.send_modify(|progress| progress.server = self.connection.server.clone());
        was_resumable && self.is_extended
    }
}
