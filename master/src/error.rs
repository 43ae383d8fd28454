//! What can keep a master from running.

use std::io;

use thiserror::Error;

/// Why a master could not start or go on. The `Display` text is one plain sentence for the operator that names the cause
/// and the way out. None of these leaves anything behind.
#[derive(Debug, Error)]
pub enum MasterError {
    /// The listener could not be opened.
    #[error("cannot listen on {host}:{port}: {source}; choose another address or port with --listen")]
    Listen {
        /// The host.
        host: String,
        /// The port.
        port: u16,
        /// What the operating system says.
        source: io::Error,
    },
    /// The listener of the live page could not be opened.
    #[error("cannot listen on {host}:{port} for HTTP: {source}; choose another address or port with --http")]
    ListenHttp {
        /// The host.
        host: String,
        /// The port.
        port: u16,
        /// What the operating system says.
        source: io::Error,
    },
    /// The certificates for etcd can't be used.
    #[error("cannot reach etcd over TLS: {0}")]
    UsersTls(#[from] arborcast_tls::TlsError),
    /// That certificates have changed could not be heard.
    #[error("cannot take over SIGHUP: {0}")]
    Hangups(io::Error),
    /// The descriptions of the services do not fit together: a bug in the build.
    #[error("cannot describe the services for reflection: {0}; this is a bug")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The server ended by itself.
    #[error("cannot serve: {0}")]
    Serve(#[from] tonic::transport::Error),
}
