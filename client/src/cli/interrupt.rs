//! The signals that ask a program to end.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::failure::Failure;

/// Catches Ctrl-C and SIGTERM from its making on.
#[derive(Debug)]
pub(crate) struct Interrupt {
    ctrl_c: Signal,
    terminate: Signal,
}

impl Interrupt {
    pub(crate) fn new() -> Result<Self, Failure> {
        let caught = || -> io::Result<Self> {
            Ok(Self { ctrl_c: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
        };
        caught().map_err(Failure::Runtime)
    }

    /// Waits for one of them, and returns the exit code by which shells know it.
    pub(crate) async fn wait(&mut self) -> u8 {
        tokio::select! {
            _ = self.ctrl_c.recv() => 130,
            _ = self.terminate.recv() => 143,
        }
    }
}
