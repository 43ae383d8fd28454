//! Who comes in where plain connections and TLS are taken at one port.

use std::net::SocketAddr;

use arborcast_proto::wire::Message;
use arborcast_tls::{Acceptor, Either, Stream, begins_with_tls, peer_is_certified};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;
use tracing::debug;

use super::driver::Inbound;
use super::transport;
use crate::settings::{LINGER_TIMEOUT, Require};

/// Looks at who comes before the core hears of them.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) acceptor: Acceptor,
    pub(super) require: Option<Require>,
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
        let is_tls = match timeout(self.acceptor.patience, begins_with_tls(&stream)).await {
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
        self.acceptor.shake_hands(stream).await.inspect_err(|error| debug!(%peer, %error, "no TLS")).ok()
    }

    async fn take_plain(&self, mut stream: TcpStream, peer: SocketAddr) -> Option<Stream> {
        if !self.acceptor.requires_tls {
            return Some(Either::Left(stream));
        }
        self.acceptor.handshakes.count("plain");
        debug!(%peer, "plain where TLS is required");
        let info = "this server takes TLS connections only".to_owned();
        let refusal = async {
            stream.write_all(&Message::InvalidMessage { info }.to_line()).await?;
            stream.shutdown().await?;
            // Closing with unread bytes would reset the connection, and the peer might not read why.
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
        };
        // However it ends, it has had its chance.
        let _ = timeout(LINGER_TIMEOUT.min(self.acceptor.patience), refusal).await;
        None
    }

    fn may_be_server(&self, stream: &Stream) -> bool {
        match stream {
            Either::Left(_plain) => self.require.is_none(),
            Either::Right(_tls) => !self.acceptor.tls.knows_peers() || peer_is_certified(stream),
        }
    }
}
