//! One server of an arborcast broadcast tree: the shell around [`arborcast_core::Node`].
//!
//! The core decides, this crate carries out: it listens, dials, reads lines, writes what the core says, and watches the
//! clock. See `net` for how a connection is served; everything a node is told at the start is in [`settings`], its
//! command line in [`cli`]; `registry` talks to the masters, `users` to those that keep users, [`memory`] keeps what the
//! next run has to know, `store` the users; `credentials` hashes their secrets; `http`
//! answers operators, with `metrics`; [`import`] brings users to the masters; what can keep a node from running is in [`error`].

pub mod cli;
mod credentials;
pub mod error;
mod http;
pub mod import;
pub mod memory;
mod metrics;
pub mod net;
mod registry;
pub mod settings;
mod store;
mod users;

pub use error::NodeError;
pub use net::Server;
pub use settings::Settings;
pub use store::StoreError;
