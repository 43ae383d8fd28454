//! What operators and their tools ask over HTTP: metrics, and whether the node is alive and takes clients.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arborcast_core::{NotReady, Status};
use arborcast_serve::http;
use arborcast_tls::Acceptor;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, response};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::error::NodeError;
use crate::metrics::{self, Identity, MasterObservation, Observation};
use crate::net::{Inbound, Logs, Traffic};
use crate::registry::MasterStates;

/// Connections at one time.
const MAX_CONNECTIONS: usize = 64;

/// How long the node may take to say how it is; less than a scrape waits.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

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
        let listener = http::bind(host, port).await?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    listen().await.map_err(|source| NodeError::ListenHttp { host: host.to_owned(), port, source })
}

/// Answers until told to stop. What is being answered then is cut.
pub(crate) async fn serve(listener: TcpListener, tls: Option<Acceptor>, inspector: Inspector, stop: CancellationToken) {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .fallback(async || (StatusCode::NOT_FOUND, "there is /metrics, /healthz and /readyz\n"))
        .with_state(Arc::new(inspector));
    http::serve(listener, tls, router, MAX_CONNECTIONS, stop).await;
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
            handshakes: self.traffic.handshakes.counts(),
            failed_dials: self.traffic.failed_dials.get(),
            masters: masters.collect(),
            users_told: self.users_told.as_ref().map(|is_told| is_told.load(Ordering::Relaxed)),
        }
    }
}
