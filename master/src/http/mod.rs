//! The live page of one master, and what tools ask over HTTP: metrics, and whether the master is alive and knows everybody.
//!
//! Event streams are told the latest state only: a browser that is slow misses states in between, and nothing queues up
//! for it. One that reads nothing is cut.

mod assets;
mod state;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arborcast_serve::http::{self, Line};
use arborcast_tls::{Acceptor, Handshakes, Protocol};
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use futures_util::stream;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::metadata::MetadataMap;
use tracing::info;

use crate::auth::Authorizer;
use crate::error::MasterError;
use crate::messages;
use crate::metrics::{self, Open};
use crate::registry::Registry;
use crate::topology::DrainRefusal;
use crate::users;

use state::{Frame, Told};

/// Connections at one time; the others wait in the operating system's queue.
const MAX_CONNECTIONS: usize = 192;

/// Event streams at one time; more are refused, so that metrics and health are always answered.
const MAX_STREAMS: usize = 128;

/// How long a browser may leave its event stream unread.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// A live page that is about to be served.
#[derive(Debug)]
pub struct Page {
    listener: TcpListener,
    peer_pages: Vec<String>,
    tls: Option<Acceptor>,
    read_timeout: Duration,
}

impl Page {
    /// Opens the port.
    ///
    /// # Errors
    /// [`MasterError::ListenHttp`] when there is no such address, or it is in use or not ours.
    pub async fn bind(host: &str, port: u16, peer_pages: Vec<String>) -> Result<Self, MasterError> {
        let listener = http::bind(host, port).await;
        let listener = listener.map_err(|source| MasterError::ListenHttp { host: host.to_owned(), port, source })?;
        Ok(Self { listener, peer_pages, tls: None, read_timeout: READ_TIMEOUT })
    }

    /// Takes TLS there too, as the acceptor says.
    #[must_use]
    pub fn over_tls(self, acceptor: Acceptor) -> Self {
        Self { tls: Some(Acceptor { protocol: Protocol::Http, ..acceptor }), ..self }
    }

    /// Closes the event stream of a browser that has not read it for this long, instead of 10 s.
    #[must_use]
    pub fn with_read_timeout(self, read_timeout: Duration) -> Self {
        Self { read_timeout, ..self }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

struct Shared {
    registry: Arc<Registry>,
    authorizer: Authorizer,
    handshakes: Option<Arc<Handshakes>>,
    users: Option<Arc<users::metrics::Metrics>>,
    frames: watch::Sender<Arc<Frame>>,
    read_timeout: Duration,
    streams: Arc<Semaphore>,
}

/// Without a page: what happens is written down all the same, until told to stop.
pub(crate) async fn remember(registry: Arc<Registry>, stop: CancellationToken) {
    let (frames, _) = watch::channel(Arc::default());
    stop.run_until_cancelled(state::follow(registry, frames, Vec::new())).await;
}

/// Answers until told to stop. What is being answered then is cut.
pub(crate) async fn serve(
    page: Page,
    registry: Arc<Registry>,
    authorizer: Authorizer,
    users: Option<Arc<users::metrics::Metrics>>,
    stop: CancellationToken,
) {
    let (frames, _) = watch::channel(Arc::default());
    let following = state::follow(Arc::clone(&registry), frames.clone(), page.peer_pages);
    let streams = Arc::new(Semaphore::new(MAX_STREAMS));
    let handshakes = page.tls.as_ref().map(|acceptor| Arc::clone(&acceptor.handshakes));
    let router = Router::new()
        .merge(assets::router())
        .route("/events", get(events))
        .route("/metrics", get(text_of_metrics))
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .route("/drain/{id}", post(drain))
        .with_state(Arc::new(Shared {
            registry,
            authorizer,
            handshakes,
            users,
            frames,
            read_timeout: page.read_timeout,
            streams,
        }));
    let serving = http::serve(page.listener, page.tls, router, MAX_CONNECTIONS, stop.clone());
    tokio::join!(serving, stop.run_until_cancelled(following));
}

async fn events(State(shared): State<Arc<Shared>>, Extension(line): Extension<Line>) -> Response {
    let Ok(permit) = Arc::clone(&shared.streams).try_acquire_owned() else {
        shared.registry.metrics().page_streams_refused.inc();
        return (StatusCode::SERVICE_UNAVAILABLE, "this master serves no more pages now\n").into_response();
    };
    shared.registry.metrics().page_streams_opened.inc();
    line.last();
    let (sender, receiver) = mpsc::channel(1);
    let feed = feed(Arc::clone(&shared), sender, line, permit);
    let feed = AbortOnDropHandle::new(tokio::spawn(feed));
    let body = stream::unfold((receiver, feed), async |(mut receiver, feed): (mpsc::Receiver<Bytes>, _)| {
        receiver.recv().await.map(|state| (Ok::<_, Infallible>(state), (receiver, feed)))
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(body)).into_response()
}

/// Ends with the connection, which owns it.
async fn feed(shared: Arc<Shared>, sender: mpsc::Sender<Bytes>, line: Line, _permit: OwnedSemaphorePermit) {
    let mut frames = shared.frames.subscribe();
    let mut told = Told::default();
    // Not before it is subscribed, or it would wait for the next one.
    shared.registry.wake_page();
    while frames.changed().await.is_ok() {
        let frame = Arc::clone(&frames.borrow_and_update());
        match tokio::time::timeout(shared.read_timeout, sender.send(frame.news(&mut told))).await {
            Ok(Ok(())) => {}
            Ok(Err(_gone)) => return,
            Err(_elapsed) => {
                shared.registry.metrics().page_streams_dropped.inc();
                line.cut();
                return;
            }
        }
    }
}

async fn text_of_metrics(State(shared): State<Arc<Shared>>) -> Response {
    let page_streams = MAX_STREAMS.saturating_sub(shared.streams.available_permits());
    let handshakes = shared.handshakes.as_ref().map(|handshakes| handshakes.counts());
    match metrics::text(&shared.registry, Open { page_streams, handshakes, users: shared.users.as_deref() }) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    if shared.registry.is_warming() {
        return (StatusCode::SERVICE_UNAVAILABLE, "not ready: it may not know everybody yet\n").into_response();
    }
    "ready\n".into_response()
}

/// As `DrainNode` of the gRPC service. The header keeps other sites' pages from asking: a browser sends it for its own
/// site only, unless it is allowed to, which it is not.
async fn drain(State(shared): State<Arc<Shared>>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    if !headers.contains_key("x-arborcast") {
        return (StatusCode::FORBIDDEN, "the header `x-arborcast: drain` is missing\n").into_response();
    }
    if let Err(status) = shared.authorizer.check(&MetadataMap::from_headers(headers)) {
        return (StatusCode::UNAUTHORIZED, format!("{}\n", status.message())).into_response();
    }
    let id = match messages::node_id("id", id) {
        Ok(id) => id,
        Err(status) => return (StatusCode::BAD_REQUEST, format!("{}\n", status.message())).into_response(),
    };
    match shared.registry.drain(&id, None) {
        Ok(Some(_)) => {
            info!(node = %id, "asked a node to drain");
            (StatusCode::ACCEPTED, "asked\n").into_response()
        }
        Ok(None) => (StatusCode::SERVICE_UNAVAILABLE, "the node does not read what it is sent\n").into_response(),
        Err(refusal) => {
            let status = match refusal {
                DrainRefusal::Unknown(_) => StatusCode::NOT_FOUND,
                DrainRefusal::Silent(_) => StatusCode::SERVICE_UNAVAILABLE,
                DrainRefusal::OtherStart { .. } | DrainRefusal::Draining(_) => StatusCode::CONFLICT,
            };
            (status, format!("{refusal}\n")).into_response()
        }
    }
}
