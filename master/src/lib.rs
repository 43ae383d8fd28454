//! A registry of an arborcast tree: nodes report to it, orphans ask it where to go, people and programs look at it.
//!
//! It keeps nothing. Masters know nothing of each other, and each is whole again one heartbeat after it started. They
//! advise and nodes decide, so that a master that is wrong costs time and nothing else.
//!
//! - [`topology`]: the tree, its faults and candidate parents. Pure: no tokio, no clock.
//! - `registry`: the topology and the streams that own it, behind one lock.
//! - `service`: the gRPC calls. `messages`: between protobuf and what the others work with. `auth`: the secret.
//! - `admission`: the tickets of clients that are sent to a node, and how many there were.
//! - `report_stream`: one node's stream. `watch`: what watchers and roots are told. `outbox`: what waits for one peer.
//! - [`http`]: the live page and what tools ask over HTTP. `metrics`: what Prometheus is told. `chronicle`: what it is told
//!   of one node after the other.
//! - [`users`]: names and their owners, in etcd.
//! - `health`, `incoming`, `secure`, `server`: what is around it. [`settings`], [`cli`], [`error`]: start and stop.

pub mod cli;
pub mod error;
pub mod http;
pub mod settings;
pub mod topology;
pub mod users;

mod admission;
mod auth;
mod chronicle;
mod health;
mod incoming;
mod messages;
mod metrics;
mod naming;
mod outbox;
mod registry;
mod report_stream;
mod secure;
mod server;
mod service;
mod watch;

pub use error::MasterError;
pub use incoming::{connections, listen};
pub use secure::{Guest, Secured, secured};
pub use server::{serve, serve_with_page};
pub use settings::Settings;
