//! Who comes in where plain connections and TLS are taken at one port.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::either::Either;

use crate::{Protocol, Stream, Tls, begins_with_tls, trouble_of};

/// What happened at the ports of one server, by how it ended: `success`, `timeout`, `broken_off`, `plain` where TLS is
/// required, or the [name](crate::Trouble::name) of what was wrong.
#[derive(Debug, Default)]
pub struct Handshakes(Mutex<BTreeMap<&'static str, u64>>);

impl Handshakes {
    /// Adds one.
    pub fn count(&self, outcome: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(outcome).or_default() += 1;
    }

    /// How many there were of each.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Takes TLS at a port, beside plain connections or instead of them.
#[derive(Debug, Clone)]
pub struct Acceptor {
    /// The certificates.
    pub tls: Arc<Tls>,
    /// What others speak there.
    pub protocol: Protocol,
    /// Whether plain connections are closed.
    pub requires_tls: bool,
    /// How long a peer may take to finish its handshake, and before that to begin anything at all.
    pub patience: Duration,
    /// Where it is counted how handshakes end.
    pub handshakes: Arc<Handshakes>,
}

impl Acceptor {
    /// Finds out which of the two it is, and begins TLS with who begins it. Who says nothing in time is closed.
    ///
    /// # Errors
    /// Why it was closed; that is counted.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<Stream> {
        let begins = timeout(self.patience, begins_with_tls(&stream)).await;
        if begins.unwrap_or_else(|_| Err(self.too_slow()))? {
            self.shake_hands(stream).await
        } else if self.requires_tls {
            self.handshakes.count("plain");
            Err(io::Error::other("plain where TLS is required"))
        } else {
            Ok(Either::Left(stream))
        }
    }

    /// Begins TLS with one who has begun it.
    ///
    /// # Errors
    /// The same.
    pub async fn shake_hands(&self, stream: TcpStream) -> io::Result<Stream> {
        let Ok(shaken) = timeout(self.patience, self.tls.accept(stream, self.protocol)).await else {
            return Err(self.too_slow());
        };
        self.handshakes.count(match &shaken {
            Ok(_) => "success",
            Err(error) => trouble_of(error).map_or("broken_off", |trouble| trouble.name()),
        });
        shaken
    }

    fn too_slow(&self) -> io::Error {
        self.handshakes.count("timeout");
        io::ErrorKind::TimedOut.into()
    }
}
