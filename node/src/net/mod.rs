//! How one node serves its connections.
//!
//! ```text
//!              accepted, dialled                       batches of parsed lines
//!   listener ───────────────────▶                ◀──────────────────────────── reader (one task a connection)
//!   dialer                        driver ── core
//!                                   │ │                  lines for one connection
//!                                   │ └─────────────────────────────────────▶ fan-out (a few tasks) ── writer (each
//!                                   ▼                                           ▲                      connection's
//!                             broadcast log ────────────────────────────────────┘                      sending side)
//! ```
//!
//! Waiting goes one way: readers wait for the driver, the driver waits for the fan-out's processor time, and nobody ever
//! waits for a peer: a socket that takes no more is left alone until it does.
//!
//! - `door`: plain connections and TLS, told apart.
//! - [`transport`]: what a connection and a source of connections are. - [`listener`], [`dialer`]: where they come from.
//! - `reader`: bytes to lines. - `driver`: the only owner of the core. - `fan_out`, `writer`: lines to sockets.
//! - `broadcast_log`: the core's log, shared. - `pace`: when publishers have to wait for the fan-out.
//!   `line_room`: what half lines may hold together.
//! - `traffic`: counters that connections share.
//! - `user_work`: hashing, and users on disk, in threads of their own.
//! - `server`: ties them together.

use std::time::Instant;

mod broadcast_log;
pub mod dialer;
mod door;
mod driver;
mod fan_out;
mod line_room;
pub mod listener;
mod pace;
mod reader;
mod server;
pub(crate) mod traffic;
pub mod transport;
mod user_work;
mod writer;

pub(crate) use broadcast_log::Logs;
pub(crate) use driver::Inbound;
pub use server::Server;
pub(crate) use traffic::Traffic;

/// Waits until then, or for ever.
async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
