//! One node from start to stop.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Instant;

use arborcast_core::{Config, GiveUp, Node};
use arborcast_proto::wire::UserRecord;
use arborcast_tls::{Acceptor, Protocol, Tls, hangups, reload_at};
use tokio::net::TcpListener;
use tokio::signal::unix::Signal;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::broadcast_log::{BroadcastLogs, Logs};
use super::dialer::{Dialer, dial_parent};
use super::door::Door;
use super::driver::{Driver, INBOX_BATCHES, Inbound, MAX_DRAFT_BYTES, Shared};
use super::fan_out::FanOut;
use super::line_room::LineRoom;
use super::listener::{self, accept_all};
use super::pace::Pace;
use super::transport::Connection;
use super::user_work::UserWork;
use crate::credentials;
use crate::error::NodeError;
use crate::http::{self, Inspector};
use crate::metrics::Identity;
use crate::registry::Registry;
use crate::settings::{Bounds, Masters, Require, STOP_TIMEOUT, Settings, milliseconds_since_1970};
use crate::store::{Store, StoreError};
use crate::users::Users;

/// A node that listens, and has reached its parent if it is to have one, but serves nobody yet.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    parent: Option<(String, u16, Connection)>,
    core: Config,
    bounds: Bounds,
    masters: Option<Masters>,
    store: Option<Arc<Store>>,
    http: Option<(TcpListener, SocketAddr)>,
    dialer: Dialer,
    tls: Option<(Arc<Tls>, Signal)>,
    require_tls: Option<Require>,
}

impl Server {
    /// Opens the listener and the users on disk, then dials the parent.
    ///
    /// # Errors
    /// When one of these fails.
    pub async fn start(settings: Settings) -> Result<Self, NodeError> {
        let Settings { mut core, bind, parent, bounds, http, tls, require_tls, plain_server, masters } = settings;
        let tls = match tls {
            Some(tls) => Some((Arc::new(Tls::load(tls)?), hangups().map_err(NodeError::Signals)?)),
            None => None,
        };
        let listener = listener::bind(bind)?;
        let address = listener.local_addr().map_err(|source| NodeError::Listen { address: bind, source })?;
        core.port = address.port();
        let http = match http {
            Some((host, port)) => Some(http::bind(&host, port).await?),
            None => None,
        };
        let dialer = Dialer { tls: tls.as_ref().map(|(tls, _)| Arc::clone(tls)), plain: plain_server };
        let store = match (&mut core.extensions, masters.as_ref().and_then(|masters| masters.users.clone())) {
            (Some(extensions), Some(path)) => {
                let (store, users) = open_store(path).await?;
                extensions.users = users;
                extensions.keeps_users = true;
                Some(Arc::new(store))
            }
            (Some(_), None) => {
                info!("no --data-dir: users are kept in memory, and by the other nodes of the tree");
                None
            }
            (None, _) => None,
        };
        let parent = match parent {
            None => None,
            Some((host, port)) => {
                let connection = dial_parent(&host, port, address, &dialer).await?;
                Some((host, port, connection))
            }
        };
        Ok(Self { listener, address, parent, core, bounds, masters, store, http, dialer, tls, require_tls })
    }

    /// Where it listens; the port is the real one also where port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it answers over HTTP, if it does.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(|(_, address)| *address)
    }

    /// Serves until `stop` is cancelled, then closes every connection cleanly; a node that speaks the extensions first
    /// sends its children and clients elsewhere.
    ///
    /// # Errors
    /// When the parent refuses this node, or closes the connection before it said anything.
    pub async fn run(self, stop: CancellationToken) -> Result<(), NodeError> {
        let parent_name = self.parent.as_ref().map(|(host, port, _)| (host.clone(), *port));
        info!(id = self.core.id, address = %self.address, parent = ?parent_name, "serving");
        let outcome = serve(self, stop).await;
        let (host, port) = parent_name.unwrap_or_default();
        outcome.map_err(|why| match why {
            GiveUp::ParentRefused { info } => NodeError::ParentRefused { host, port, info },
            GiveUp::ParentClosed => NodeError::ParentClosed { host, port },
        })
    }
}

/// Opens the users on disk. Whatever a damaged file does to who reads it, it is told as an error.
async fn open_store(path: PathBuf) -> Result<(Store, Vec<UserRecord>), NodeError> {
    let file = path.clone();
    match tokio::task::spawn_blocking(move || Store::open(file)).await {
        Ok(outcome) => Ok(outcome?),
        Err(_panic) => Err(StoreError::Unreadable { path, why: "it can't be read".to_owned() }.into()),
    }
}

/// Runs a node until `stop` is cancelled or the core gives up.
async fn serve(server: Server, stop: CancellationToken) -> Result<(), GiveUp> {
    let Server {
        listener,
        address: _,
        parent,
        core: mut config,
        bounds,
        masters,
        store,
        http,
        dialer,
        tls,
        require_tls,
    } = server;
    let fan_outs = available_parallelism().map_or(1, NonZero::get);
    let (inbox, inbound) = mpsc::channel(INBOX_BATCHES);
    let ended = CancellationToken::new();
    let slots = Arc::new(Semaphore::new(bounds.max_connections));
    // A draft is published when it is longer than that; one batch of lines may come on top.
    let max_segment_bytes = MAX_DRAFT_BYTES + 4 * config.max_line as u64;
    let shared = Shared {
        inbox: inbox.clone(),
        logs: Arc::new(BroadcastLogs::new(bounds.log_bytes, max_segment_bytes)),
        pace: Arc::new(Pace::new(fan_outs, bounds.log_bytes)),
        line_room: LineRoom::new(bounds.max_half_line_bytes),
        traffic: Arc::default(),
        dialer,
        readers: TaskTracker::new(),
        ended: ended.clone(),
        slots: Arc::clone(&slots),
        max_line: config.max_line,
    };
    let readers = shared.readers.clone();

    let mut tasks = JoinSet::new();
    let mut handles = Vec::with_capacity(fan_outs);
    for index in (0..fan_outs).rev() {
        let (logs, pace, traffic) = (Arc::clone(&shared.logs), Arc::clone(&shared.pace), Arc::clone(&shared.traffic));
        let (handle, fan_out) = FanOut::new(index, logs, pace, traffic, bounds.max_waiting_bytes, handles.last());
        handles.push(handle);
        // It never waits for a peer, and gives way by itself; see there.
        tasks.spawn(tokio::task::unconstrained(fan_out.run()));
    }
    handles.reverse();
    if let Some((_, _, connection)) = parent
        && let Ok(slot) = Arc::clone(&slots).try_acquire_owned()
    {
        // There is room for it: nobody else has sent anything yet, and the driver starts below.
        let _ = inbox.send(Inbound::Dialled { connection, slot, attempt: None }).await;
    }
    let registry = masters
        .map(|masters| Registry::start(&masters, &config, shared.dialer.tls.as_ref(), &inbox, &ended, &mut tasks));
    let at_masters = config.extensions.as_ref().is_some_and(|extensions| extensions.users_at_masters);
    let users = registry
        .as_ref()
        .filter(|_| at_masters)
        .map(|registry| Users::start(registry.clients(), inbox.clone(), readers.clone(), ended.clone()));
    // One verification for each connection, and one hash for each registration, is the most that the core asks for.
    let (jobs, waiting_jobs) = mpsc::channel(bounds.max_connections.saturating_add(2 * config.max_registrations));
    if config.extensions.is_some() {
        tasks.spawn(credentials::run(waiting_jobs, inbox.clone(), readers.clone(), ended.clone()));
    }
    let user_work =
        UserWork { jobs, verifying: BTreeMap::new(), store, inbox: inbox.clone(), threads: readers.clone() };
    let acceptor = shared.dialer.tls.clone().filter(|tls| tls.is_offered()).map(|tls| Acceptor {
        tls,
        protocol: Protocol::Lines,
        requires_tls: require_tls == Some(Require::All),
        patience: config.login_timeout,
        handshakes: Arc::clone(&shared.traffic.handshakes),
    });
    if let Some((listener, _)) = http {
        let inspector = Inspector {
            identity: Identity { id: config.id.clone(), address: format!("{}:{}", config.hostname, config.port) },
            inbox: inbox.clone(),
            logs: Logs(Arc::clone(&shared.logs)),
            traffic: Arc::clone(&shared.traffic),
            masters: registry.as_ref().map(Registry::states).unwrap_or_default(),
            users_told: users.as_ref().map(Users::is_told),
            max_connections: bounds.max_connections,
            max_log_bytes: bounds.log_bytes,
        };
        let acceptor = acceptor.clone().map(|acceptor| Acceptor { protocol: Protocol::Http, ..acceptor });
        tasks.spawn(http::serve(listener, acceptor, inspector, ended.clone()));
    }
    let door = acceptor.map(|acceptor| Door { acceptor, require: require_tls });
    if let Some((tls, hangups)) = tls {
        let ended = ended.clone();
        tasks.spawn(async move {
            let _ = ended.run_until_cancelled(reload_at(hangups, tls)).await;
        });
    }
    tasks.spawn(accept_all(listener, slots, inbox, Arc::clone(&shared.traffic), door, ended.clone()));

    let is_extended = config.extensions.is_some();
    if let Some(extensions) = &mut config.extensions {
        extensions.milliseconds_since_1970 = milliseconds_since_1970();
    }
    let driver = Driver::new(Node::new(config, Instant::now()), shared, handles, registry, users, user_work);
    let outcome = tokio::spawn(driver.run(inbound, stop, is_extended)).await.unwrap_or_else(|panic| resume(panic));

    ended.cancel();
    readers.close();
    let all_ended = async {
        while tasks.join_next().await.is_some() {}
        readers.wait().await;
    };
    if tokio::time::timeout(STOP_TIMEOUT, all_ended).await.is_err() {
        warn!(connections = readers.len(), tasks = tasks.len(), "cut what did not end in time");
    }
    outcome
}

/// A bug in the core must not look like a clean end.
fn resume(error: tokio::task::JoinError) -> ! {
    match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(error) => panic!("the driver was cancelled: {}", io::Error::other(error)),
    }
}
