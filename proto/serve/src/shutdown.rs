//! The one way to stop a server: SIGINT (Ctrl-C) or SIGTERM.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// The signals that stop a server.
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// Takes the signals over from the operating system's default, which would kill the process.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn install() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Cancels `stop` at the first signal, and ends the process at the second, for those who can't wait.
    pub async fn forward(mut self, stop: CancellationToken) {
        let signal = self.next().await;
        info!(signal, "stopping; once more to end at once");
        stop.cancel();
        let signal = self.next().await;
        info!(signal, "ending at once");
        std::process::exit(1);
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}
