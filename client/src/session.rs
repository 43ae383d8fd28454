//! What a program holds: one login, whichever server it is at.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::{future, mem, vec};

use arborcast_proto::wire::message::ANONYMOUS;
use arborcast_proto::wire::{Activity, Credentials, Message, Resume, Secret};
use futures_util::Stream;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::address::Address;
use crate::connection::Connection;
use crate::conversation::{Conversation, Passport, Progress};
use crate::error::Error;
use crate::event::Event;
use crate::options::Options;
use crate::program::{Command, Program};
use crate::seeker::{Arrived, Seeker};
use crate::servers::Servers;
use crate::window::Window;

/// How many publishes may wait in front of the window. When it is full, [`Publisher::publish`] waits.
const WAITING_COMMANDS: usize = 16;

/// How many events, each at most one read's worth of activities, may wait for the program. When it is full, the socket is
/// not read.
const WAITING_EVENTS: usize = 4;

/// Who logs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// Anybody: needs no registration and no secret.
    Anonymous,
    /// A registered user.
    User(Credentials),
}

impl Identity {
    /// The name that this identity's activities are stamped with.
    pub fn username(&self) -> &str {
        match self {
            Self::Anonymous => ANONYMOUS,
            Self::User(credentials) => &credentials.username,
        }
    }

    pub(crate) fn login(&self, resume: Option<Resume>) -> Message {
        let (username, secret) = self.to_fields();
        Message::Login { username, secret, resume, ticket: None }
    }

    pub(crate) fn activity_message(&self, number: Option<u64>, activity: Activity) -> Message {
        let (username, secret) = self.to_fields();
        Message::ActivityMessage { username, secret, number, activity }
    }

    fn to_fields(&self) -> (String, Option<Secret>) {
        match self.clone() {
            Self::Anonymous => (ANONYMOUS.into(), None),
            Self::User(Credentials { username, secret }) => (username, Some(secret)),
        }
    }
}

/// Registers a user, without logging in, and returns what the server says to it. Of several servers the first that takes a
/// connection is asked, and no other after it: a registration is not made twice.
///
/// # Errors
/// [`Error::RegisterFailed`] when the name is not to be had. After [`Error::NoAnswer`] and [`Error::Lost`] the name may
/// be registered all the same.
pub async fn register(
    servers: impl Into<Servers>,
    credentials: &Credentials,
    options: &Options,
) -> Result<String, Error> {
    let (mut connection, ticket) = Seeker::new(servers.into(), options.clone()).connect().await?;
    register_on(&mut connection, credentials, ticket, options).await
}

async fn register_on(
    connection: &mut Connection,
    credentials: &Credentials,
    ticket: Option<Secret>,
    options: &Options,
) -> Result<String, Error> {
    match connection.ask(&Message::Register { credentials: credentials.clone(), ticket }, options).await {
        Ok(Message::RegisterSuccess { info }) => Ok(info),
        other => Err(connection.fail(other).await),
    }
}

/// One login, wherever it is at the moment: publishes, and receives what everybody publishes, its own activities included.
///
/// Whoever only receives keeps calling [`next`](Self::next). Whoever publishes must go on receiving as well, since
/// publishing waits for what was published before to be acknowledged: use both halves of [`split`](Self::split) in two
/// tasks, or drop the [`Subscriber`] and publish only.
#[derive(Debug)]
pub struct Session {
    publisher: Publisher,
    subscriber: Subscriber,
}

impl Session {
    /// Logs in at the first of these servers that can be reached, or wherever that one redirects to.
    ///
    /// # Errors
    /// [`Error::LoginFailed`] when three servers refuse, or all if there are fewer, and whatever can happen to a connection
    /// when none could be reached: each is tried once. What goes wrong after a redirection is told by the methods of the session.
    pub async fn login(servers: impl Into<Servers>, identity: &Identity, options: &Options) -> Result<Self, Error> {
        let mut seeker = Seeker::new(servers.into(), options.clone());
        let passport = Passport::new(identity, options);
        let arrived = seeker.find_first(&passport.login(None)).await?;
        Ok(Self::start(arrived, passport, seeker, options))
    }

    /// Registers a user, and logs in on the same connection.
    ///
    /// # Errors
    /// Those of [`register`] and of [`login`](Self::login).
    pub async fn register(
        servers: impl Into<Servers>,
        credentials: &Credentials,
        options: &Options,
    ) -> Result<Self, Error> {
        let mut seeker = Seeker::new(servers.into(), options.clone());
        let (mut connection, ticket) = seeker.connect().await?;
        let is_ticketed = ticket.is_some();
        register_on(&mut connection, credentials, ticket, options).await?;
        let passport = Passport::new(&Identity::User(credentials.clone()), options);
        let arrived = seeker.log_in(connection, &passport.login(None)).await?;
        seeker.is_ticketed = is_ticketed;
        Ok(Self::start(arrived, passport, seeker, options))
    }

    fn start(arrived: Arrived, passport: Passport, seeker: Seeker, options: &Options) -> Self {
        let (commands, command_receiver) = mpsc::channel(WAITING_COMMANDS);
        let (event_sender, events) = mpsc::channel(WAITING_EVENTS);
        let progress = watch::Sender::new(Progress::new(arrived.connection.server.clone()));
        let progress_receiver = progress.subscribe();
        let (identity, leaving) = (&passport.identity, CancellationToken::new());
        let overhead = message_overhead(identity);
        let window = Window::new(identity.username(), options);
        let program = Program::new(command_receiver, event_sender, leaving.clone(), window);
        let conversation = Conversation::new(arrived, passport, options.clone(), seeker, program, progress);
        let task = Arc::new(AbortOnDropHandle::new(tokio::spawn(conversation.run())));
        Self {
            publisher: Publisher {
                overhead,
                options: options.clone(),
                commands,
                leaving,
                published: AtomicU64::new(0),
                progress: progress_receiver.clone(),
                task: Arc::clone(&task),
            },
            subscriber: Subscriber {
                batch: Vec::new().into_iter(),
                events,
                progress: progress_receiver,
                is_done: false,
                _task: task,
            },
        }
    }

    /// Two halves, for two tasks. The session ends when both are dropped. Without its [`Subscriber`] a session throws
    /// away what arrives.
    pub fn split(self) -> (Publisher, Subscriber) {
        (self.publisher, self.subscriber)
    }

    /// See [`Publisher::publish`].
    ///
    /// # Errors
    /// Those of [`Publisher::publish`].
    pub async fn publish(&self, activity: &Activity) -> Result<(), Error> {
        self.publisher.publish(activity).await
    }

    /// See [`Publisher::flush`]. It returns only while what arrives fits into the small buffer for it: behind a
    /// [`split`](Self::split) there is no such bound.
    ///
    /// # Errors
    /// Those of [`Publisher::flush`].
    pub async fn flush(&self) -> Result<(), Error> {
        self.publisher.flush().await
    }

    /// The next thing that happens; see [`Subscriber::next_event`].
    pub async fn next_event(&mut self) -> Option<Result<Event, Error>> {
        self.subscriber.next_event().await
    }

    /// The next activity; see [`Subscriber::next`].
    pub async fn next(&mut self) -> Option<Result<Activity, Error>> {
        self.subscriber.next().await
    }

    /// Leaves; see [`Publisher::logout`].
    ///
    /// # Errors
    /// Those of [`Publisher::logout`].
    pub async fn logout(self) -> Result<(), Error> {
        let (publisher, _) = self.split();
        publisher.logout().await
    }
}

impl Stream for Session {
    type Item = Result<Activity, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.subscriber).poll_next(cx)
    }
}

/// The half of a session that publishes.
#[derive(Debug)]
pub struct Publisher {
    /// How much longer a message is than its activity.
    overhead: usize,
    options: Options,
    commands: mpsc::Sender<Command>,
    leaving: CancellationToken,
    published: AtomicU64,
    progress: watch::Receiver<Progress>,
    task: Arc<AbortOnDropHandle<()>>,
}

impl Publisher {
    /// Hands an activity over to be sent. Waits while the window ([`Options::window_messages`]) is full of activities
    /// that are not acknowledged, and so also while the session looks for a server. When this returns the activity is on its
    /// way; when [`flush`](Self::flush) returns it has been taken. Nothing has been published when it is dropped while
    /// waiting.
    ///
    /// # Errors
    /// [`Error::TooLong`], after which the session goes on; or why the session has ended.
    pub async fn publish(&self, activity: &Activity) -> Result<(), Error> {
        let (length, limit) = (self.overhead + activity.as_bytes().len(), self.options.max_line);
        if length > limit {
            return Err(Error::TooLong { length, limit });
        }
        let room = self.commands.reserve().await.map_err(|_| self.ended())?;
        // Counted before it is handed over: a flush must never wait for too few.
        self.published.fetch_add(1, Ordering::Relaxed);
        room.send(Command::Publish(activity.detached()));
        Ok(())
    }

    /// Waits until everything published so far is acknowledged: another server has it, so that no single one can lose it
    /// (protocol, E5). In a plain session, where nothing is acknowledged: until it has come back. Waits for as long as the
    /// session looks for a server, which may be for ever ([`Reconnect`](crate::options::Reconnect)).
    ///
    /// # Errors
    /// Why the session has ended, if it did before that.
    pub async fn flush(&self) -> Result<(), Error> {
        let published = self.published();
        let all_taken = self.progress.clone().wait_for(|progress| progress.taken >= published).await.is_ok();
        if all_taken { Ok(()) } else { Err(self.ended()) }
    }

    /// How many activities have been published.
    pub fn published(&self) -> u64 {
        self.published.load(Ordering::Relaxed)
    }

    /// How many of them are acknowledged, as [`flush`](Self::flush) says: the first so many.
    pub fn taken(&self) -> u64 {
        self.progress.borrow().taken
    }

    /// The server where the session is now, or was last.
    pub fn server(&self) -> Address {
        self.progress.borrow().server.clone()
    }

    /// Sends LOGOUT behind what has been published, and waits for the server to close. A [`Subscriber`] still gets what
    /// arrives until then. Does not wait for what was published to be acknowledged: [`flush`](Self::flush) does. While there
    /// is no connection it ends the session at once.
    ///
    /// # Errors
    /// Why the session has ended, if not by this; [`Error::NoAnswer`] when the server took longer to close than
    /// [`Options::logout_timeout`]. It has ended in any case.
    pub async fn logout(&self) -> Result<(), Error> {
        let after = self.options.logout_timeout;
        self.leaving.cancel();
        let leaving = async {
            // Where nobody takes it, the session has already ended.
            let _ = self.commands.send(Command::Logout).await;
            self.commands.closed().await;
        };
        if timeout(after, leaving).await.is_err() {
            self.task.abort();
            return Err(Error::NoAnswer { server: self.server(), request: "LOGOUT", after });
        }
        self.progress.borrow().error.clone().map_or(Ok(()), Err)
    }

    fn ended(&self) -> Error {
        self.progress.borrow().error.clone().unwrap_or(Error::Ended)
    }
}

/// With the longest number, whether or not it will have one: it may move to a server where it has.
fn message_overhead(identity: &Identity) -> usize {
    let Ok(empty) = Activity::parse("{}") else { return 0 };
    identity.activity_message(Some(u64::MAX), empty).to_line().len() - "{}\n".len()
}

/// The half of a session that receives.
///
/// As long as it exists its activities must be taken: they are buffered only up to a small bound, and then the server
/// has to wait, which servers do not do for ever.
#[derive(Debug)]
pub struct Subscriber {
    batch: vec::IntoIter<Activity>,
    events: mpsc::Receiver<Event>,
    progress: watch::Receiver<Progress>,
    is_done: bool,
    _task: Arc<AbortOnDropHandle<()>>,
}

impl Subscriber {
    /// The next thing that happens: activities, a gap in them, or the connection lost and found again. After a logout
    /// `None`; otherwise why the session has ended, once, and then `None`. Nothing is lost when it is dropped while waiting.
    pub async fn next_event(&mut self) -> Option<Result<Event, Error>> {
        if !self.batch.as_slice().is_empty() {
            return Some(Ok(Event::Activities(mem::take(&mut self.batch).collect())));
        }
        match self.events.recv().await {
            Some(event) => Some(Ok(event)),
            None => self.end().map(Err),
        }
    }

    /// The next activity, whatever else happens before it; otherwise as [`next_event`](Self::next_event).
    ///
    /// An activity shares its buffer with others that came with it; whoever keeps few of many for long should keep
    /// [`Activity::detached`] copies.
    pub async fn next(&mut self) -> Option<Result<Activity, Error>> {
        future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// All the activities that are there, at least one, in their order; otherwise as [`next`](Self::next).
    pub async fn next_batch(&mut self) -> Option<Result<Vec<Activity>, Error>> {
        loop {
            match self.next_event().await? {
                Ok(Event::Activities(batch)) => return Some(Ok(batch)),
                Ok(Event::Lost { .. } | Event::Reconnected { .. } | Event::Gap { .. }) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }

    fn end(&mut self) -> Option<Error> {
        let is_news = !mem::replace(&mut self.is_done, true);
        is_news.then(|| self.progress.borrow().error.clone()).flatten()
    }
}

impl Stream for Subscriber {
    type Item = Result<Activity, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(activity) = self.batch.next() {
                return Poll::Ready(Some(Ok(activity)));
            }
            match ready!(self.events.poll_recv(cx)) {
                Some(Event::Activities(batch)) => self.batch = batch.into_iter(),
                Some(Event::Lost { .. } | Event::Reconnected { .. } | Event::Gap { .. }) => {}
                None => return Poll::Ready(self.end().map(Err)),
            }
        }
    }
}
