//! TLS of arborcast's programs, with rustls: what is between a socket and the lines or calls that go over it.
//!
//! Plain connections and TLS come in at one port: the first byte tells them apart, since TLS begins with 22, which neither
//! a line of JSON nor HTTP/2 does. So a server's address is the same for both, and nothing else in the protocol has to
//! know of TLS.
//!
//! - [`Tls`]: what a program was told, loaded and checked, and loaded again when it is told to.
//! - [`Stream`]: a connection, plain or not. - [`Acceptor`]: who comes in over one or the other.
//! - [`TlsError`]: what can be wrong with the files.
//! - [`connector`]: how gRPC gets its connections.
//! - [`hangups`], [`reload_at`]: loading again at SIGHUP.
//! - [`Trouble`]: why a handshake failed, in words for people.

mod acceptor;
#[cfg(feature = "cli")]
mod args;
mod error;
mod files;
mod grpc;
mod hangup;
mod stream;
mod trouble;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::net::TcpStream;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::ServerCertVerifier as _;
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig, crypto};
use tokio_rustls::{TlsAcceptor, TlsConnector};

pub use acceptor::{Acceptor, Handshakes};
#[cfg(feature = "cli")]
pub use args::Args;
pub use error::TlsError;
pub use grpc::{Connector, connector};
pub use hangup::{hangups, reload_at};
pub use stream::{ReadHalf, Stream, WriteHalf, begins_with_tls, peer_is_certified, socket, split};
pub use tokio_util::either::Either;
pub use trouble::{Trouble, trouble_of};

/// What HTTP/2 and HTTP/1.1 are called where the two ends agree on a protocol.
const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// Whose certificates are right when we connect to somebody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Nobody's: connections that we make are plain.
    Nobody,
    /// Those of the authorities that the operating system trusts.
    System,
    /// Those of the authorities in this file. Who connects to us may show one of theirs as well.
    Authority(PathBuf),
}

/// What goes over the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Lines of JSON.
    Lines,
    /// gRPC, and so HTTP/2.
    Grpc,
    /// HTTP/1.1, for browsers and tools. They are asked for no certificate.
    Http,
}

/// A certificate and its key, each in a file of PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, and those between it and the authority.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// What a program is told about TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Who we are. Without it nobody can connect to us over TLS.
    pub identity: Option<Identity>,
    /// Who is right.
    pub trust: Trust,
    /// What others call us, if that is known: the certificate must be for that name.
    pub name: Option<String>,
}

/// The certificates that are in use. Cheap to ask; loading them again affects new connections only.
#[derive(Debug)]
pub struct Tls {
    settings: Settings,
    current: RwLock<Arc<Configs>>,
}

#[derive(Debug)]
struct Configs {
    server: Option<ByProtocol<ServerConfig>>,
    client: Option<ByProtocol<ClientConfig>>,
}

#[derive(Debug)]
struct ByProtocol<T> {
    lines: Arc<T>,
    grpc: Arc<T>,
    http: Arc<T>,
}

impl<T> ByProtocol<T> {
    fn of(&self, protocol: Protocol) -> Arc<T> {
        Arc::clone(match protocol {
            Protocol::Lines => &self.lines,
            Protocol::Grpc => &self.grpc,
            Protocol::Http => &self.http,
        })
    }
}

impl Tls {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// When one can't be used: then nothing is.
    pub fn load(settings: Settings) -> Result<Self, TlsError> {
        let current = RwLock::new(Arc::new(configs(&settings)?));
        Ok(Self { settings, current })
    }

    /// Reads the files again, for the connections that begin from now on.
    ///
    /// # Errors
    /// When one can't be used: then everything stays as it is.
    pub fn reload(&self) -> Result<(), TlsError> {
        let configs = Arc::new(configs(&self.settings)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = configs;
        Ok(())
    }

    /// What it was told.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether others can connect to us over TLS.
    pub fn is_offered(&self) -> bool {
        self.settings.identity.is_some()
    }

    /// Whether the connections that we make are to be TLS.
    pub fn is_used(&self) -> bool {
        self.settings.trust != Trust::Nobody
    }

    /// Whether who connects to us can show a certificate of our authority.
    pub fn knows_peers(&self) -> bool {
        matches!(self.settings.trust, Trust::Authority(_))
    }

    /// Begins TLS with somebody who has connected to us. Takes as long as the peer does: bound it in time.
    ///
    /// # Errors
    /// Those of the socket, and [`Trouble`], which [`trouble_of`] finds in them.
    pub async fn accept(&self, stream: TcpStream, protocol: Protocol) -> io::Result<Stream> {
        let current = self.current();
        let config = current.server.as_ref().ok_or(io::ErrorKind::Unsupported)?.of(protocol);
        let accepted = TlsAcceptor::from(config).accept(stream).await;
        accepted.map(|stream| Either::Right(Box::new(stream.into()))).map_err(|error| trouble::explain(error, None))
    }

    /// Begins TLS with `host`, to which `stream` leads, if connections that we make are to be TLS. Takes as long as the
    /// peer does: bound it in time.
    ///
    /// # Errors
    /// The same; the text says what is wrong with `host`.
    pub async fn connect(&self, host: &str, stream: TcpStream, protocol: Protocol) -> io::Result<Stream> {
        let current = self.current();
        let Some(client) = &current.client else { return Ok(Either::Left(stream)) };
        let config = client.of(protocol);
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| io::Error::other(format!("{host:?} is no name that a certificate can have")))?;
        let connected = TlsConnector::from(config).connect(name, stream).await;
        let connected = connected.map(|stream| Either::Right(Box::new(stream.into())));
        connected.map_err(|error| trouble::explain(error, Some(host)))
    }

    fn current(&self) -> Arc<Configs> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(crypto::ring::default_provider())
}

fn configs(settings: &Settings) -> Result<Configs, TlsError> {
    let roots = match &settings.trust {
        Trust::Nobody => None,
        Trust::System => Some(files::system_authorities()?),
        Trust::Authority(path) => Some(files::authorities(path)?),
    };
    let roots = roots.map(Arc::new);
    let identity = settings.identity.as_ref().map(files::identity).transpose()?;
    if let (Some(identity), Some((chain, _)), Some(roots), Trust::Authority(authority)) =
        (&settings.identity, &identity, &roots, &settings.trust)
    {
        check_own(settings, identity, authority, chain, roots)?;
    }
    let server = match (&settings.identity, &identity) {
        (Some(files), Some((chain, key))) => {
            let peers = matches!(settings.trust, Trust::Authority(_)).then(|| roots.clone()).flatten();
            Some(servers(files, chain, key, peers)?)
        }
        _ => None,
    };
    let client = match roots {
        Some(roots) => {
            let lines = client(settings.identity.as_ref(), identity, roots)?;
            let (mut grpc, mut http) = (lines.clone(), lines.clone());
            grpc.alpn_protocols = vec![HTTP2.to_vec()];
            http.alpn_protocols = vec![HTTP1.to_vec()];
            Some(ByProtocol { lines: Arc::new(lines), grpc: Arc::new(grpc), http: Arc::new(http) })
        }
        None => None,
    };
    Ok(Configs { server, client })
}

fn servers(
    files: &Identity,
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
    peers: Option<Arc<RootCertStore>>,
) -> Result<ByProtocol<ServerConfig>, TlsError> {
    let lines = server(files, chain, key, peers)?;
    let mut grpc = lines.clone();
    grpc.alpn_protocols = vec![HTTP2.to_vec()];
    let mut http = server(files, chain, key, None)?;
    http.alpn_protocols = vec![HTTP1.to_vec()];
    Ok(ByProtocol { lines: Arc::new(lines), grpc: Arc::new(grpc), http: Arc::new(http) })
}

fn server(
    files: &Identity,
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
    peers: Option<Arc<RootCertStore>>,
) -> Result<ServerConfig, TlsError> {
    let unusable = |error| TlsError::unusable(&files.certificate, error);
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(unusable)?;
    let builder = match peers {
        None => builder.with_no_client_auth(),
        Some(roots) => {
            // Clients need none; who is a server is asked for it later.
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).allow_unauthenticated();
            let verifier = verifier
                .build()
                .map_err(|error| TlsError::Unusable { path: files.certificate.clone(), why: error.to_string() })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    builder.with_single_cert(chain.to_vec(), key.clone_key()).map_err(unusable)
}

fn client(
    files: Option<&Identity>,
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    roots: Arc<RootCertStore>,
) -> Result<ClientConfig, TlsError> {
    let path = files.map(|files| files.certificate.clone()).unwrap_or_default();
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| TlsError::unusable(&path, error))?.with_root_certificates(roots);
    match identity {
        None => Ok(builder.with_no_client_auth()),
        Some((chain, key)) => {
            builder.with_client_auth_cert(chain, key).map_err(|error| TlsError::unusable(&path, error))
        }
    }
}

/// Whether others who trust the same authority would take our certificate: better said now than by each of them.
fn check_own(
    settings: &Settings,
    identity: &Identity,
    authority: &Path,
    chain: &[CertificateDer<'static>],
    roots: &Arc<RootCertStore>,
) -> Result<(), TlsError> {
    let Some((own, between)) = chain.split_first() else { return Ok(()) };
    let wrong = |trouble| TlsError::WouldBeRefused {
        path: identity.certificate.clone(),
        authority: authority.to_owned(),
        trouble,
    };
    let name = settings.name.clone().unwrap_or_else(|| "localhost".to_owned());
    let name = ServerName::try_from(name).map_err(|_| wrong(Trouble::WrongName))?;
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), provider()).build();
    let verifier =
        verifier.map_err(|error| TlsError::Unusable { path: authority.to_owned(), why: error.to_string() })?;
    let outcome = verifier.verify_server_cert(own, between, &name, &[], UnixTime::now());
    match outcome.map_err(|error| Trouble::of(&error)) {
        Ok(_) => Ok(()),
        Err(Trouble::WrongName) if settings.name.is_none() => Ok(()),
        Err(trouble) => Err(wrong(trouble)),
    }
}
