//! Who comes in where plain connections and TLS are taken at one port.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arborcast_proto::wire::Message;
use arborcast_tls::{Stream, Tls, begins_with_tls, trouble_of};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;
use tracing::debug;

use super::driver::Inbound;
use super::traffic::Traffic;
use super::transport;
use crate::settings::{LINGER_TIMEOUT, Require};

/// Looks at who comes before the core hears of them.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) tls: Arc<Tls>,
    pub(super) require: Option<Require>,
    /// How long a handshake may take.
    pub(super) patience: Duration,
    pub(super) traffic: Arc<Traffic>,
}

impl Door {
    /// Lets one in, or closes it and counts why. The place among the connections is its from the start.
    pub(super) async fn admit(
        self,
        stream: TcpStream,
        peer: SocketAddr,
        slot: OwnedSemaphorePermit,
        inbox: mpsc::Sender<Inbound>,
    ) {
        let is_tls = match timeout(self.patience, begins_with_tls(&stream)).await {
            Ok(Ok(is_tls)) => is_tls,
            Ok(Err(error)) => return debug!(%peer, %error, "gone before it said anything"),
            // It is told so by the core, in the words of the protocol.
            Err(_silent) => false,
        };
        let stream = if is_tls { self.shake_hands(stream, peer).await } else { self.take_plain(stream, peer).await };
        if let Some(stream) = stream {
            let as_client = !self.may_be_server(&stream);
            let connection = transport::connection(stream, peer);
            // The driver being gone means that the node has stopped.
            let _ = inbox.send(Inbound::Accepted { connection, slot, as_client }).await;
        }
    }

    async fn shake_hands(&self, stream: TcpStream, peer: SocketAddr) -> Option<Stream> {
        let shaken = timeout(self.patience, self.tls.accept(stream)).await;
        match shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => {
                self.traffic.count_handshake("success");
                Some(stream)
            }
            Err(error) => {
                let outcome = match trouble_of(&error) {
                    Some(trouble) => trouble.name(),
                    None if error.kind() == io::ErrorKind::TimedOut => "timeout",
                    None => "broken_off",
                };
                self.traffic.count_handshake(outcome);
                debug!(%peer, %error, "no TLS");
                None
            }
        }
    }

    async fn take_plain(&self, mut stream: TcpStream, peer: SocketAddr) -> Option<Stream> {
        if self.require != Some(Require::All) {
            return Some(Stream::Plain(stream));
        }
        self.traffic.count_handshake("plain");
        debug!(%peer, "plain where TLS is required");
        let info = "this server takes TLS connections only".to_owned();
        let refusal = async {
            stream.write_all(&Message::InvalidMessage { info }.to_line()).await?;
            stream.shutdown().await?;
            // Closing with unread bytes would reset the connection, and the peer might not read why.
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
        };
        // However it ends, it has had its chance.
        let _ = timeout(LINGER_TIMEOUT.min(self.patience), refusal).await;
        None
    }

    fn may_be_server(&self, stream: &Stream) -> bool {
        if stream.is_tls() { !self.tls.knows_peers() || stream.peer_is_certified() } else { self.require.is_none() }
    }
}
