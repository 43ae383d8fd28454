//! The live page of one master, and what tools ask over HTTP: metrics, and whether the master is alive and knows everybody.
//!
//! Event streams are told the latest state only: a browser that is slow misses states in between, and nothing queues up
//! for it. One that reads nothing is cut.

mod state;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use futures_util::stream;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::metadata::MetadataMap;
use tracing::{debug, info};

use crate::auth::Authorizer;
use crate::error::MasterError;
use crate::messages;
use crate::metrics::{self, Metrics};
use crate::registry::Registry;
use crate::users;

/// Connections at one time; the others wait in the operating system's queue.
const MAX_CONNECTIONS: usize = 192;

/// Event streams at one time; more are refused, so that metrics and health are always answered.
const MAX_STREAMS: usize = 128;

/// How long a connection that is no event stream may take.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a browser may leave its event stream unread.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait after accepting failed, which is mostly for want of file descriptors.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Nothing from elsewhere, and nothing inline.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

/// A live page that is about to be served.
#[derive(Debug)]
pub struct Page {
    listener: TcpListener,
    peer_pages: Vec<String>,
}

impl Page {
    /// Opens the port.
    ///
    /// # Errors
    /// [`MasterError::ListenHttp`] when there is no such address, or it is in use or not ours.
    pub async fn bind(host: &str, port: u16, peer_pages: Vec<String>) -> Result<Self, MasterError> {
        let listen = async || {
            let addresses: Vec<SocketAddr> = lookup_host((host, port)).await?.collect();
            TcpListener::bind(addresses.as_slice()).await
        };
        let listener =
            listen().await.map_err(|source| MasterError::ListenHttp { host: host.to_owned(), port, source })?;
        Ok(Self { listener, peer_pages })
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
    metrics: Arc<Metrics>,
    users: Option<Arc<users::metrics::Metrics>>,
    states: watch::Sender<Bytes>,
    streams: Arc<Semaphore>,
}

/// One connection.
#[derive(Debug, Default)]
struct Line {
    cut: CancellationToken,
    is_stream: AtomicBool,
}

/// Answers until told to stop. What is being answered then is cut.
pub(crate) async fn serve(
    page: Page,
    registry: Arc<Registry>,
    authorizer: Authorizer,
    users: Option<Arc<users::metrics::Metrics>>,
    stop: CancellationToken,
) {
    let metrics = Arc::new(Metrics::default());
    let (states, _) = watch::channel(Bytes::new());
    let following = state::follow(Arc::clone(&registry), Arc::clone(&metrics), states.clone(), page.peer_pages);
    let streams = Arc::new(Semaphore::new(MAX_STREAMS));
    let router = Router::new()
        .route("/", get(async || asset("text/html; charset=utf-8", include_str!("assets/index.html"))))
        .route("/page.css", get(async || asset("text/css; charset=utf-8", include_str!("assets/page.css"))))
        .route("/page.js", get(async || asset("text/javascript; charset=utf-8", include_str!("assets/page.js"))))
        .route(
            "/d3-hierarchy.min.js",
            get(async || asset("text/javascript; charset=utf-8", include_str!("assets/d3-hierarchy.min.js"))),
        )
        .route("/events", get(events))
        .route("/metrics", get(text_of_metrics))
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .route("/drain/{id}", post(drain))
        .with_state(Arc::new(Shared { registry, authorizer, metrics, users, states, streams }));
    // Dropping the tasks ends them.
    let _ = stop.run_until_cancelled(async { tokio::join!(accept_all(page.listener, router), following) }).await;
}

async fn accept_all(listener: TcpListener, router: Router) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut tasks = JoinSet::new();
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
}

async fn answer(stream: TcpStream, peer: SocketAddr, router: Router) {
    let line = Arc::new(Line::default());
    let service = TowerToHyperService::new(router.layer(Extension(Arc::clone(&line))));
    let mut builder = http1::Builder::new();
    let connection = builder.keep_alive(false).serve_connection(TokioIo::new(stream), service);
    let too_slow = async {
        tokio::time::sleep(CONNECTION_TIMEOUT).await;
        if line.is_stream.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        outcome = connection => if let Err(error) = outcome { debug!(%peer, %error, "no answer over HTTP") },
        () = line.cut.cancelled() => debug!(%peer, "cut an event stream that nobody reads"),
        () = too_slow => debug!(%peer, "too slow for an answer over HTTP"),
    }
}

fn asset(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text).into_response()
}

async fn events(State(shared): State<Arc<Shared>>, Extension(line): Extension<Arc<Line>>) -> Response {
    let Ok(permit) = Arc::clone(&shared.streams).try_acquire_owned() else {
        shared.metrics.page_streams_refused.inc();
        return (StatusCode::SERVICE_UNAVAILABLE, "this master serves no more pages now\n").into_response();
    };
    shared.metrics.page_streams_opened.inc();
    line.is_stream.store(true, Ordering::Relaxed);
    let (sender, receiver) = mpsc::channel(1);
    let feed = feed(shared.states.subscribe(), sender, line, Arc::clone(&shared.metrics), permit);
    let feed = AbortOnDropHandle::new(tokio::spawn(feed));
    shared.registry.wake_page();
    let body = stream::unfold((receiver, feed), async |(mut receiver, feed): (mpsc::Receiver<Bytes>, _)| {
        receiver.recv().await.map(|state| (Ok::<_, Infallible>(state), (receiver, feed)))
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(body)).into_response()
}

/// Ends with the connection, which owns it, and with the page, which drops the states.
async fn feed(
    mut states: watch::Receiver<Bytes>,
    sender: mpsc::Sender<Bytes>,
    line: Arc<Line>,
    metrics: Arc<Metrics>,
    _permit: OwnedSemaphorePermit,
) {
    while states.changed().await.is_ok() {
        let state = states.borrow_and_update().clone();
        match tokio::time::timeout(READ_TIMEOUT, sender.send(state)).await {
            Ok(Ok(())) => {}
            Ok(Err(_gone)) => return,
            Err(_elapsed) => {
                metrics.page_streams_dropped.inc();
                line.cut.cancel();
                return;
            }
        }
    }
}

async fn text_of_metrics(State(shared): State<Arc<Shared>>) -> Response {
    let streams = MAX_STREAMS.saturating_sub(shared.streams.available_permits());
    match metrics::text(&shared.registry, &shared.metrics, shared.users.as_deref(), streams) {
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
        Err(refusal) => (StatusCode::CONFLICT, format!("{refusal}\n")).into_response(),
    }
}
