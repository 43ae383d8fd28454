//! One server of an arborcast broadcast tree: the shell around [`arborcast_core::Node`].
//!
//! The core decides, this crate carries out: it listens, dials, reads lines, writes what the core says, and watches the
//! clock. See `net` for how a connection is served; everything a node is told at the start is in [`settings`], its
//! command line in [`cli`], and what can keep it from running in [`error`].

pub mod cli;
pub mod error;
pub mod net;
pub mod settings;

pub use error::NodeError;
pub use net::Server;
pub use settings::Settings;
