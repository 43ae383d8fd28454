//! Where clients and other servers connect to.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arborcast_tls::Either;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::door::Door;
use super::driver::Inbound;
use super::traffic::Traffic;
use super::transport::{self, Accept};
use crate::error::NodeError;

/// How many connections the operating system keeps until they are accepted.
const BACKLOG: u32 = 4096;

/// How long to wait after accepting failed, which is mostly for want of file descriptors.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Of connections that are turned away, and of failures to accept, the first and every so many are logged.
const LOG_EVERY: u64 = 1000;

/// Opens the port, also right after another process has left it.
///
/// # Errors
/// [`NodeError::Listen`] when the address is in use or not ours.
pub fn bind(address: SocketAddr) -> Result<TcpListener, NodeError> {
    let listen = || -> io::Result<TcpListener> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|source| NodeError::Listen { address, source })
}

/// Accepts until told to stop, and closes at once what is over the limit of connections.
pub(super) async fn accept_all(
    mut source: impl Accept,
    slots: Arc<Semaphore>,
    inbox: mpsc::Sender<Inbound>,
    traffic: Arc<Traffic>,
    door: Option<Door>,
    stop: CancellationToken,
) {
    let (mut turned_away, mut failures) = (0_u64, 0_u64);
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = source.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => match Arc::clone(&slots).try_acquire_owned() {
                Ok(slot) => {
                    if let Some(door) = &door {
                        // Bounded by the slots, and in time.
                        tasks.spawn(door.clone().admit(stream, peer, slot, inbox.clone()));
                        while tasks.try_join_next().is_some() {}
                        continue;
                    }
                    let connection = transport::connection(Either::Left(stream), peer);
                    if inbox.send(Inbound::Accepted { connection, slot, as_client: false }).await.is_err() {
                        return;
                    }
                }
                Err(_) => {
                    if turned_away.is_multiple_of(LOG_EVERY) {
                        warn!(turned_away, "too many connections: turned one away; see --max-connections");
                    }
                    turned_away += 1;
                    traffic.turned_away.add(1);
                }
            },
            Err(error) => {
                if failures.is_multiple_of(LOG_EVERY) {
                    warn!(%error, failures, "can't accept a connection");
                }
                failures += 1;
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    }
}
