//! The one way to stop a server: SIGINT (Ctrl-C) or SIGTERM.

use std::io::{self, IsTerminal as _};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

/// The signals that stop a server, and the one that must not.
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    /// Reads certificates again, where there are any. A service that is told to reload must not end for having none;
    /// one that was started by hand ends with its terminal.
    hangup: Option<Signal>,
}

impl StopSignals {
    /// Takes the signals over from the operating system's default, which would kill the process.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn install() -> io::Result<Self> {
        let is_service = !io::stdin().is_terminal();
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: is_service.then(|| signal(SignalKind::hangup())).transpose()?,
        })
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
        loop {
            let hangup = async {
                match &mut self.hangup {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.terminate.recv() => return "SIGTERM",
                _ = hangup => debug!("SIGHUP"),
            }
        }
    }
}
