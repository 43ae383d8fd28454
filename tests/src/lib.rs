//! Whole-system tests of arborcast, and what they are made of.
//!
//! The black-box tests know nothing of how a server works inside: they start real binaries and talk to them in lines of
//! JSON, so that each can be held against a sentence of Part I of the protocol.
//!
//! - [`process`]: starts real binaries, reads what they print, signals them, and never leaves one behind.
//! - [`node`]: one running server.
//! - [`tree`]: several, in a shape, that know each other.
//! - [`master`]: one running master, and what it answers.
//! - [`forest`]: masters, and servers that find their places by themselves, to be killed, frozen and drained.
//! - [`peer`]: a client or a server played by the test, line by line; and a parent that a server dials.
//! - [`stage`]: one real server among servers played by the test.
//! - [`cluster`]: whole trees of cores in virtual time; [`invariants`]: what must hold in them at every step.
//! - [`storm`]: a run of such a tree through crashes, freezes, cuts and lying masters.
//! - [`rivals`]: clients that want the same names at the same time.
//! - [`lines`]: the lines peers send.
//! - [`wait`]: polling with a deadline, the only way in which a test waits for something it can't read from a socket.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a harness fails by panicking")]

pub mod cluster;
pub mod forest;
pub mod invariants;
pub mod lines;
pub mod master;
pub mod node;
pub mod peer;
pub mod process;
pub mod rivals;
pub mod stage;
pub mod storm;
pub mod tree;
pub mod wait;
