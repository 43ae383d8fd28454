//! Whole-system tests of arborcast, and what they are made of.
//!
//! The black-box tests know nothing of how a server works inside: they start real binaries and talk to them in lines of
//! JSON, so that each can be held against a sentence of Part I of the protocol.
//!
//! - [`process`]: starts real binaries, reads what they print, signals them, and never leaves one behind.
//! - [`node`]: one running server.
//! - [`tree`]: several, in a shape, that know each other.
//! - [`master`]: one running master, and what it answers.
//! - [`etcd`]: where masters keep users, if they do.
//! - [`fake_master`]: a master played by the test, which lies.
//! - [`forest`]: masters, and servers that find their places by themselves, to be killed, frozen and drained.
//! - [`network`]: network namespaces, whose wires can be pulled out.
//! - [`peer`]: a client or a server played by the test, line by line; and a parent that a server dials.
//! - [`stage`]: one real server among servers played by the test.
//! - [`cluster`]: whole trees of cores in virtual time; [`invariants`]: what must hold in them at every step.
//! - [`simulated_masters`]: the masters in such a tree, which lie, lag and disagree.
//! - [`solo`]: one core, driven by hand.
//! - [`storm`]: a run of such a tree through crashes, freezes, cuts and lying masters.
//! - [`crowd`]: a large tree: how it forms, what it costs, how it heals.
//! - [`calm`]: a run in which nothing fails, and nobody may be taken for dead.
//! - [`resuming`]: a client of extended sessions in such a tree; [`promises`]: a run in which everything that is published
//!   must reach everybody.
//! - [`scrape`]: what a process says over HTTP; [`browser`]: a real browser that looks at it.
//! - [`reporters`]: servers played by the test, of which a real master hears.
//! - [`control`]: what servers say to each other when nothing happens, counted.
//! - [`seeds`]: many runs, and the seed of the one that fails.
//! - [`chaos`]: real servers and clients, and faults by seed.
//! - [`rivals`]: clients that want the same names at the same time.
//! - [`keepers`]: masters that keep users in etcd, and nodes that register there.
//! - [`lines`]: the lines peers send.
//! - [`peers`]: the same load on other people's servers.
//! - [`wait`]: polling with a deadline, the only way in which a test waits for something it can't read from a socket.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a harness fails by panicking")]

pub mod browser;
pub mod calm;
pub mod chaos;
pub mod cluster;
pub mod control;
pub mod crowd;
pub mod etcd;
pub mod fake_master;
pub mod forest;
pub mod invariants;
pub mod keepers;
pub mod lines;
pub mod master;
pub mod network;
pub mod node;
pub mod peer;
pub mod peers;
pub mod process;
pub mod promises;
pub mod reporters;
pub mod resuming;
pub mod rivals;
pub mod scrape;
pub mod seeds;
pub mod simulated_masters;
pub mod solo;
pub mod stage;
pub mod storm;
pub mod terminal;
pub mod tree;
pub mod wait;
