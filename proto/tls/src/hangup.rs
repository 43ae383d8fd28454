//! SIGHUP: the certificates have changed.

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info};

use crate::Tls;

/// Takes SIGHUP over from the operating system, which would end the process.
///
/// # Errors
/// When the operating system refuses.
pub fn hangups() -> io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// Reads the certificates again at each signal, for ever. What can't be used is logged and changes nothing.
pub async fn reload_at(mut hangups: Signal, tls: Arc<Tls>) {
    while hangups.recv().await.is_some() {
        match tls.reload() {
            Ok(()) => info!("certificates read again"),
            Err(error) => error!(%error, "the certificates stay as they are"),
        }
    }
}
