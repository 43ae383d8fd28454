//! What operators and their tools ask over HTTP: metrics, and whether the node is alive and takes clients.
//!
//! Each connection gets one answer and a bounded time, and there are few at once, so that neither thousands of scrapes nor
//! somebody who never reads an answer costs more than they are worth: the others wait in the operating system's queue.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arborcast_core::{NotReady, Status};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, response};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::error::NodeError;
use crate::metrics::{self, Identity, MasterObservation, Observation};
use crate::net::{Inbound, Logs, Traffic};
use crate::registry::MasterStates;

/// Connections at one time.
const MAX_CONNECTIONS: usize = 64;

/// How long a connection may take from the first byte of its request to the last one of its answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the node may take to say how it is; less than a scrape waits.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// How long to wait after accepting failed, which is mostly for want of file descriptors.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// What is needed to say how the node is.
pub(crate) struct Inspector {
    pub(crate) identity: Identity,
    pub(crate) inbox: mpsc::Sender<Inbound>,
    pub(crate) logs: Logs,
    pub(crate) traffic: Arc<Traffic>,
    pub(crate) masters: MasterStates,
    /// Whether a master tells of users, if they are kept there.
    pub(crate) users_told: Option<Arc<AtomicBool>>,
    pub(crate) max_connections: usize,
    pub(crate) max_log_bytes: u64,
}

/// Opens the port.
///
/// # Errors
/// [`NodeError::ListenHttp`] when there is no such address, or it is in use or not ours.
pub(crate) async fn bind(host: &str, port: u16) -> Result<(TcpListener, SocketAddr), NodeError> {
    let listen = async || -> io::Result<_> {
        let addresses: Vec<SocketAddr> = lookup_host((host, port)).await?.collect();
        let listener = TcpListener::bind(addresses.as_slice()).await?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    listen().await.map_err(|source| NodeError::ListenHttp { host: host.to_owned(), port, source })
}

/// Answers until told to stop. What is being answered then is cut.
pub(crate) async fn serve(listener: TcpListener, inspector: Inspector, stop: CancellationToken) {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .fallback(async || (StatusCode::NOT_FOUND, "there is /metrics, /healthz and /readyz\n"))
        .with_state(Arc::new(inspector));
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut tasks = JoinSet::new();
    let accept_all = async {
        loop {
            // Never closed.
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let answer = answer(stream, peer, router.clone());
                    tasks.spawn(async move {
                        answer.await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    debug!(%error, "can't accept a connection for HTTP");
                    tokio::time::sleep(RETRY_AFTER).await;
                }
            }
            while tasks.try_join_next().is_some() {}
        }
    };
    // Dropping the tasks ends them.
    let _ = stop.run_until_cancelled(accept_all).await;
}

async fn answer(stream: TcpStream, peer: SocketAddr, router: Router) {
    let service = TowerToHyperService::new(router);
    let mut builder = http1::Builder::new();
    let connection = builder.keep_alive(false).serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%peer, %error, "no answer over HTTP"),
        Err(_elapsed) => debug!(%peer, "too slow for an answer over HTTP"),
    }
}

async fn metrics(State(inspector): State<Arc<Inspector>>) -> Response {
    let Some(status) = inspector.status().await else {
        return (StatusCode::SERVICE_UNAVAILABLE, "the node does not answer\n").into_response();
    };
    match metrics::text(inspector.observe(status)) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn readyz(State(inspector): State<Arc<Inspector>>) -> response::Result<&'static str> {
    let why = match inspector.status().await.map(|status| status.readiness) {
        Some(Ok(())) => return Ok("ready\n"),
        Some(Err(NotReady::Draining)) => "not ready: it drains, and is about to stop\n",
        Some(Err(NotReady::Joining)) => "not ready: it looks for its place in the tree\n",
        Some(Err(NotReady::Orphaned)) => "not ready: it has lost its parent, and looks for another one\n",
        None => "not ready: it does not answer\n",
    };
    Err((StatusCode::SERVICE_UNAVAILABLE, why).into())
}

impl Inspector {
    /// What the core says, if it says it in time.
    async fn status(&self) -> Option<Status> {
        let (answer, status) = oneshot::channel();
        let ask = async {
            self.inbox.send(Inbound::Inspected { answer }).await.ok()?;
            status.await.ok()
        };
        tokio::time::timeout(ANSWER_TIMEOUT, ask).await.ok().flatten()
    }

    fn observe(&self, status: Status) -> Observation {
        let masters = self.masters.iter().map(|(address, state)| MasterObservation {
            address: address.clone(),
            is_connected: state.is_connected(),
            streams_lost: state.streams_lost(),
        });
        Observation {
            identity: self.identity.clone(),
            status,
            log_bytes: self.logs.retained_bytes(),
            max_log_bytes: self.max_log_bytes,
            max_connections: self.max_connections,
            received_bytes: self.traffic.received_bytes.get(),
            sent_bytes: self.traffic.sent_bytes.get(),
            turned_away: self.traffic.turned_away.get(),
            handshakes: self.traffic.handshakes(),
            masters: masters.collect(),
            users_told: self.users_told.as_ref().map(|is_told| is_told.load(Ordering::Relaxed)),
        }
    }
}
