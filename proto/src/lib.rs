//! Everything that crosses an arborcast socket, and nothing else.
//!
//! - [`wire`]: the newline-delimited JSON protocol between servers, and between clients and servers.
//! - `registry`: the masters' gRPC service; `users`: the one of masters that keep users. Only with the feature `registry`,
//!   because it brings tokio, which the pure core of the node must not see.
//! - `ticket`: what a master gives to a client for a server. Only with the feature `tickets`: clients just carry them.
//!
//! The normative text is `proto/README.md`; where code and text differ, the text is right. This crate does no I/O: bytes
//! go in and messages come out, so that the node, the client, the simulator and the tests all speak through the same
//! code.

#[cfg(feature = "registry")]
mod generated;
#[cfg(feature = "registry")]
pub mod registry;
#[cfg(feature = "tickets")]
pub mod ticket;
#[cfg(feature = "registry")]
pub mod users;
pub mod wire;
