//! What can keep a node from running.

use std::io;
use std::net::SocketAddr;

use arborcast_tls::TlsError;
use thiserror::Error;

use crate::store::StoreError;

/// Why a node could not start or go on. The `Display` text is one plain sentence for the operator that names the cause
/// and the way out. None of these leaves anything behind.
#[derive(Debug, Error)]
pub enum NodeError {
    /// The listener could not be opened.
    #[error("cannot listen on {address}: {source}; choose another port with -lp or another address with --bind")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the operating system says.
        source: io::Error,
    },
    /// The listener for HTTP could not be opened.
    #[error("cannot listen on {host}:{port} for HTTP: {source}; choose another address with --http")]
    ListenHttp {
        /// The host.
        host: String,
        /// The port there.
        port: u16,
        /// What the operating system says.
        source: io::Error,
    },
    /// Certificates can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// SIGHUP can't be taken.
    #[error("cannot take signals: {0}")]
    Signals(io::Error),
    /// Users can't be read from disk.
    #[error(transparent)]
    Users(#[from] StoreError),
    /// The configured parent could not be reached.
    #[error("cannot reach the parent server {host}:{port}: {source}; check -rh and -rp, and that it is running")]
    ParentUnreachable {
        /// The parent's host.
        host: String,
        /// The parent's port.
        port: u16,
        /// What the operating system says.
        source: io::Error,
    },
    /// The parent answered AUTHENTICATE with a refusal.
    #[error("the parent server {host}:{port} refused this node: {info}; check that -s is the secret of that tree")]
    ParentRefused {
        /// The parent's host.
        host: String,
        /// The parent's port.
        port: u16,
        /// The parent's words.
        info: String,
    },
    /// The parent closed the connection before it said anything of use.
    #[error(
        "the parent server {host}:{port} closed the connection before it said anything; check that an arborcast \
         server, or another server of this protocol, listens there"
    )]
    ParentClosed {
        /// The parent's host.
        host: String,
        /// The parent's port.
        port: u16,
    },
    /// The configured parent is this very node.
    #[error("the parent server {host}:{port} is this node itself; give another server with -rh and -rp")]
    ParentIsSelf {
        /// The parent's host.
        host: String,
        /// The parent's port.
        port: u16,
    },
}
