//! The same load on other servers: what `cargo peers` is made of.
//!
//! - [`protocol`]: what a client says to each kind of server, and what a delivery looks like.
//! - [`servers`]: starts them, alone or three together.
//! - [`load`]: publishers and subscribers, the same for all of them.
//! - [`raw`]: a process that writes the same bytes and does nothing else: the upper bound.
//! - [`cases`]: what is measured, of whom.

pub mod cases;
pub mod load;
pub mod protocol;
pub mod raw;
pub mod servers;
