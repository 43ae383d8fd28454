//! From a list of servers to a connection that is logged in, and to the next one when that is lost.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arborcast_client::masters::{Advice, Masters};
use arborcast_client::tls::{Protocol, Stream};
use arborcast_client::{Address, Error as SessionError, Options};
use arborcast_proto::wire::{Have, Message, Secret};
use bytes::Bytes;
use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::run::Run;

/// How many clients of one thread may be about to log in at a time: fewer than a server's backlog holds.
const LOGINS_AT_A_TIME: usize = 256;

/// How many clients of one thread may ask the masters at a time: fewer than a master answers at once on one connection.
const QUESTIONS_AT_A_TIME: usize = 64;

/// How many servers one client has itself named by masters before it is taken to be hopeless.
const MAX_NAMED: usize = 3;

/// Between two rounds through all servers, at first and at most.
const MIN_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// How many servers may refuse a client that was logged in before, one after the other, before that is believed. One
/// that has just started may not know the user yet.
const MAX_REFUSALS: u32 = 10;

/// The first redirections in a row are followed at once, further ones more and more slowly: servers that have not heard of
/// each other's loads yet send a surge of clients back and forth.
const QUICK_REDIRECTS: u32 = 4;

/// A server that keeps a client for so long ends the row.
const SETTLED: Duration = Duration::from_secs(5);

/// Servers that others named are remembered up to this number.
const MAX_HEARD_OF: usize = 16;

const READ_SIZE: usize = 4 << 10;

/// A server whose name is resolved, once for all clients.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) address: Address,
    sockets: Vec<SocketAddr>,
}

impl Server {
    /// # Errors
    /// [`SessionError::UnknownHost`].
    pub(crate) async fn resolve(address: Address) -> Result<Self, SessionError> {
        let sockets = lookup_host((address.host(), address.port())).await;
        let sockets: io::Result<Vec<_>> = sockets.map(Iterator::collect);
        match sockets {
            Ok(sockets) => Ok(Self { address, sockets }),
            Err(cause) => Err(SessionError::UnknownHost { server: address, cause: Arc::new(cause) }),
        }
    }
}

/// How a session ended.
#[derive(Debug)]
pub(crate) enum Ending {
    /// The server wants the client to go there.
    Moved(Address),
    /// In any other way.
    Lost(SessionError),
}

/// Why a server did not let a client in.
#[derive(Debug, Clone, Error)]
pub(crate) enum EnterError {
    /// What can happen to every session.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The server has no extended sessions.
    #[error("{server} acknowledges nothing: start it with --master or --extended, or leave out --acknowledged")]
    NothingAcknowledged {
        /// Who was asked.
        server: Address,
    },
}

impl EnterError {
    /// Whether the server has said no, and is likely to say so again.
    fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::NothingAcknowledged { .. }
                | Self::Session(
                    SessionError::AuthenticationFail { .. }
                        | SessionError::InvalidMessage { .. }
                        | SessionError::LoginFailed { .. }
                )
        )
    }
}

/// A connection that is logged in.
#[derive(Debug)]
pub(crate) struct Entered {
    pub(crate) stream: Stream,
    pub(crate) server: Rc<Address>,
    /// What was read behind the answer.
    pub(crate) rest: Vec<u8>,
    /// What counts as received, if the session is an extended one.
    pub(crate) have: Option<Have>,
}

/// What the clients of one thread share.
#[derive(Debug)]
pub(crate) struct Doorway {
    logins: Semaphore,
    questions: Semaphore,
    masters: Masters,
    /// Those that masters have named.
    resolved: RefCell<BTreeMap<(String, u16), Server>>,
}

impl Doorway {
    /// Must be made within the runtime of the thread.
    pub(crate) fn new(run: &Run) -> Self {
        Self {
            logins: Semaphore::new(LOGINS_AT_A_TIME),
            questions: Semaphore::new(QUESTIONS_AT_A_TIME),
            masters: Masters::new(&run.masters, run.options.tls.as_ref()),
            resolved: RefCell::default(),
        }
    }

    /// Where the masters send a client that does not want to go to the named ones.
    async fn ask_masters(&self, named: &mut Vec<String>) -> Result<(Server, Option<Secret>), SessionError> {
        // It is never closed.
        let place = self.questions.acquire().await;
        let (address, ticket) = match self.masters.ask(named).await? {
            Advice::Assigned(assigned) => {
                named.push(assigned.node_id);
                (assigned.address, Some(assigned.ticket))
            }
            Advice::Listed(listed) => {
                let first = listed.into_iter().next();
                (first.ok_or_else(|| SessionError::NoServer { reason: "the masters know none".into() })?, None)
            }
        };
        drop(place);
        let name = (address.host().to_owned(), address.port());
        let known = self.resolved.borrow().get(&name).cloned();
        let server = match known {
            Some(server) => server,
            None => Server::resolve(address).await?,
        };
        self.resolved.borrow_mut().entry(name).or_insert_with(|| server.clone());
        Ok((server, ticket))
    }
}

/// One client, wherever it is.
#[derive(Debug)]
pub(crate) struct Traveller {
    run: Arc<Run>,
    doorway: Rc<Doorway>,
    /// Which of the servers is tried next.
    turn: usize,
    heard_of: Vec<Server>,
    redirects: u32,
    refusals: u32,
    entered: Instant,
}

impl Traveller {
    /// The client with this number; clients take the servers in turns.
    pub(crate) fn new(run: Arc<Run>, doorway: Rc<Doorway>, number: usize) -> Self {
        Self { run, doorway, turn: number, heard_of: Vec::new(), redirects: 0, refusals: 0, entered: Instant::now() }
    }

    /// The first server that lets the client in; each is tried once.
    ///
    /// # Errors
    /// A refusal at once; otherwise why the last one did not.
    pub(crate) async fn enter(&mut self, login: &Message) -> Result<Entered, EnterError> {
        let mut last_error = SessionError::NoServer { reason: "no address was given".into() }.into();
        let mut named = Vec::new();
        for _ in 0..self.choices() {
            match self.try_next(&mut named, login).await {
                Ok(entered) => return Ok(entered),
                Err(error) if error.is_refusal() => return Err(error),
                Err(error) => last_error = error,
            }
        }
        Err(last_error)
    }

    /// Finds a server again, for ever.
    ///
    /// # Errors
    /// When too many refuse in a row.
    pub(crate) async fn enter_again(&mut self, ending: Ending, login: &Message) -> Result<Entered, EnterError> {
        if let Ending::Moved(address) = ending {
            if self.entered.elapsed() >= SETTLED {
                self.redirects = 0;
            }
            self.redirects += 1;
            sleep(self.pause_before_redirect()).await;
            if self.run.masters.is_empty()
                && let Ok(server) = Server::resolve(address).await
                && let Ok(entered) = self.log_in(&server, login).await
            {
                return Ok(entered);
            }
        }
        self.redirects = 0;
        let mut pause = MIN_PAUSE;
        loop {
            let mut named = Vec::new();
            for _ in 0..self.choices() + self.heard_of.len() {
                match self.try_next(&mut named, login).await {
                    Ok(entered) => return Ok(entered),
                    Err(error) if error.is_refusal() => {
                        self.refusals += 1;
                        if self.refusals >= MAX_REFUSALS {
                            return Err(error);
                        }
                    }
                    Err(_) => {}
                }
            }
            sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause = (2 * pause).min(MAX_PAUSE);
        }
    }

    /// How many servers a round tries that nobody had to tell of.
    fn choices(&self) -> usize {
        if self.run.masters.is_empty() { self.run.servers.len() } else { MAX_NAMED }
    }

    /// The server that a master names, if there are masters that do; otherwise the next one.
    async fn try_next(&mut self, named: &mut Vec<String>, login: &Message) -> Result<Entered, EnterError> {
        let mut nobody = SessionError::NoServer { reason: "no address was given".into() };
        if !self.run.masters.is_empty() {
            let doorway = Rc::clone(&self.doorway);
            match doorway.ask_masters(named).await {
                Ok((server, ticket)) => return self.log_in(&server, &with_ticket(login, ticket)).await,
                Err(error) => nobody = error,
            }
        }
        match self.next_server() {
            Some(server) => self.log_in(&server, login).await,
            None => Err(nobody.into()),
        }
    }

    fn next_server(&mut self) -> Option<Server> {
        let place = self.turn.checked_rem(self.run.servers.len() + self.heard_of.len())?;
        self.turn += 1;
        self.run.servers.iter().chain(&self.heard_of).nth(place).cloned()
    }

    fn pause_before_redirect(&self) -> Duration {
        let Some(doublings) = self.redirects.checked_sub(QUICK_REDIRECTS) else { return Duration::ZERO };
        let longest = Duration::from_millis(10 << doublings.min(7)).min(MAX_PAUSE);
        longest.mul_f64(rand::random_range(0.5..1.0))
    }

    async fn log_in(&mut self, server: &Server, login: &Message) -> Result<Entered, EnterError> {
        let doorway = Rc::clone(&self.doorway);
        // It is never closed.
        let _place = doorway.logins.acquire().await;
        let address = &server.address;
        let options = &self.run.options;
        let mut stream = match timeout(options.connect_timeout, connect(server, options)).await {
            Err(_) => {
                let after = options.connect_timeout;
                return Err(SessionError::ConnectTimeout { server: address.clone(), after }.into());
            }
            Ok(Err(error)) => return Err(error.into()),
            Ok(Ok(stream)) => stream,
        };
        let answer = timeout(options.answer_timeout, ask(&mut stream, address, login, 2 * options.max_line)).await;
        let no_answer = |_| SessionError::NoAnswer {
            server: address.clone(),
            request: login.command(),
            after: options.answer_timeout,
        };
        let (answer, rest) = answer.map_err(no_answer)??;
        let Message::LoginSuccess { have, servers, .. } = answer else { return Err(refused(address, answer).into()) };
        if self.run.plan.is_acknowledged && have.is_none() {
            return Err(EnterError::NothingAcknowledged { server: address.clone() });
        }
        self.refusals = 0;
        self.entered = Instant::now();
        for target in servers {
            self.remember(target.hostname, target.port).await;
        }
        self.run.progress.logins.fetch_add(1, Ordering::Relaxed);
        Ok(Entered { stream, server: Rc::new(address.clone()), rest, have })
    }

    async fn remember(&mut self, host: String, port: u16) {
        let Ok(address) = Address::new(host, port) else { return };
        let is_known = self.run.servers.iter().chain(&self.heard_of).any(|server| server.address == address);
        if !is_known
            && self.heard_of.len() < MAX_HEARD_OF
            && let Ok(server) = Server::resolve(address).await
        {
            self.heard_of.push(server);
        }
    }
}

async fn connect(server: &Server, options: &Options) -> Result<Stream, SessionError> {
    let address = &server.address;
    let no_connection = |cause| SessionError::Connect { server: address.clone(), cause: Arc::new(cause) };
    let stream = TcpStream::connect(server.sockets.as_slice()).await.map_err(no_connection)?;
    stream.set_nodelay(true).map_err(no_connection)?;
    let no_tls = |cause| SessionError::Tls { server: address.clone(), cause: Arc::new(cause) };
    match &options.tls {
        None => Ok(Stream::Left(stream)),
        Some(tls) => tls.connect(address.host(), stream, Protocol::Lines).await.map_err(no_tls),
    }
}

fn with_ticket(login: &Message, ticket: Option<Secret>) -> Message {
    let mut login = login.clone();
    if let Message::Login { ticket: slot, .. } = &mut login {
        *slot = ticket;
    }
    login
}

/// Sends a request, and reads its answer and what comes with it.
async fn ask(
    stream: &mut Stream,
    server: &Address,
    request: &Message,
    max_line: usize,
) -> Result<(Message, Vec<u8>), SessionError> {
    let lost = |cause| SessionError::Lost { server: server.clone(), cause: Arc::new(cause) };
    stream.write_all(&request.to_line()).await.map_err(lost)?;
    stream.flush().await.map_err(lost)?;
    let mut read = Vec::new();
    loop {
        read.reserve(READ_SIZE);
        let scanned = read.len();
        if stream.read_buf(&mut read).await.map_err(lost)? == 0 {
            return Err(lost(io::Error::new(io::ErrorKind::UnexpectedEof, "it was closed at the other end")));
        }
        if let Some(end) = memchr::memchr(b'\n', read.get(scanned..).unwrap_or_default()) {
            let rest = read.split_off(scanned + end + 1);
            read.pop();
            let cause = |cause| SessionError::Undecodable { server: server.clone(), cause };
            return Ok((Message::parse(&Bytes::from(read)).map_err(cause)?, rest));
        }
        if read.len() > max_line {
            return Err(lost(io::Error::new(io::ErrorKind::InvalidData, "its answer is too long")));
        }
    }
}

/// What it means that a server sent this and nothing better.
pub(crate) fn refused(server: &Address, message: Message) -> SessionError {
    let server = server.clone();
    match message {
        Message::AuthenticationFail { info } => SessionError::AuthenticationFail { server, info },
        Message::InvalidMessage { info } => SessionError::InvalidMessage { server, info },
        Message::LoginFailed { info } => SessionError::LoginFailed { server, info },
        other => SessionError::Unexpected { server, command: other.command() },
    }
}
