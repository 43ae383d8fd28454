//! Answers over HTTP.
//!
//! Each connection gets one answer and a bounded time, and there are few at once, so that neither thousands of scrapes nor
//! somebody who never reads an answer costs more than they are worth: the others wait in the operating system's queue.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arborcast_tls::{Acceptor, Either, Stream};
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// How long a connection may take, once it is there, to the last byte of its answer, unless it [lasts](Line::last).
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// How long it may take to begin anything at all where TLS is taken, and to finish its handshake; at most.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait after accepting failed, which is mostly for want of file descriptors.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Opens the port.
///
/// # Errors
/// When there is no such address, or it is in use or not ours.
pub async fn bind(host: &str, port: u16) -> io::Result<TcpListener> {
    let addresses: Vec<SocketAddr> = lookup_host((host, port)).await?.collect();
    TcpListener::bind(addresses.as_slice()).await
}

/// One connection, as an extension of its request: for answers that are no ordinary ones.
#[derive(Debug, Clone, Default)]
pub struct Line {
    lasts: Arc<AtomicBool>,
    cut: CancellationToken,
}

impl Line {
    /// The answer is a stream, which may take as long as it likes. Who says so sees to it that there are few.
    pub fn last(&self) {
        self.lasts.store(true, Ordering::Relaxed);
    }

    /// Closes the connection, whatever is still on its way.
    pub fn cut(&self) {
        self.cut.cancel();
    }
}

/// Answers, on at most so many connections at a time, until told to stop. What is being answered then is cut.
/// With an acceptor, TLS is taken as well.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Acceptor>,
    router: Router,
    max_connections: usize,
    stop: CancellationToken,
) {
    let tls = tls.map(|acceptor| Acceptor { patience: acceptor.patience.min(HANDSHAKE_TIMEOUT), ..acceptor });
    // Dropping the tasks ends them.
    let _ = stop.run_until_cancelled(accept_all(listener, tls, router, max_connections)).await;
}

async fn accept_all(listener: TcpListener, tls: Option<Acceptor>, router: Router, max_connections: usize) {
    let slots = Arc::new(Semaphore::new(max_connections));
    let mut tasks = JoinSet::new();
    loop {
        // Never closed.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let answer = take(stream, peer, tls.clone(), router.clone());
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

async fn take(stream: TcpStream, peer: SocketAddr, tls: Option<Acceptor>, router: Router) {
    let stream = match tls {
        None => Ok(Either::Left(stream)),
        Some(acceptor) => acceptor.accept(stream).await,
    };
    match stream {
        Ok(stream) => answer(stream, peer, router).await,
        Err(error) => debug!(%peer, %error, "closed before it asked for anything over HTTP"),
    }
}

async fn answer(stream: Stream, peer: SocketAddr, router: Router) {
    let line = Line::default();
    let service = TowerToHyperService::new(router.layer(Extension(line.clone())));
    let mut builder = http1::Builder::new();
    let connection = builder.keep_alive(false).serve_connection(TokioIo::new(stream), service);
    let too_slow = async {
        tokio::time::sleep(CONNECTION_TIMEOUT).await;
        if line.lasts.load(Ordering::Relaxed) {
            pending::<()>().await;
        }
    };
    tokio::select! {
        outcome = connection => if let Err(error) = outcome { debug!(%peer, %error, "no answer over HTTP") },
        () = line.cut.cancelled() => debug!(%peer, "cut a connection that nobody reads"),
        () = too_slow => debug!(%peer, "too slow for an answer over HTTP"),
    }
}
