//! The client of an arborcast tree: log in anywhere, publish activities, receive everybody's.
//!
//! A [`Session`] is one login. It follows the servers' redirections by itself, and goes on at another server when the
//! connection is lost, for ever unless [`Options::reconnect`] says otherwise. It tells apart what was only sent from what
//! was taken. What stays an error is what another server would not do better: a wrong secret, an invalid message.
//!
//! How much is kept over a lost connection depends on the servers:
//! - *Extended session*, where nodes have masters or `--extended`: what was published is acknowledged when no single server
//!   can lose it any more, and sent again until it is; everybody gets it once. What was missed meanwhile is received after
//!   all, as far as the servers still have it; what they have no longer is told as [`Event::Gap`]. Nothing comes twice.
//! - *Plain session*: what was published counts as taken when it comes back. What did not is sent again, and may reach others
//!   twice. What was missed meanwhile is lost.
//!
//! A session can move from a server of the one kind to one of the other and back. It keeps its id and its numbers; only an
//! extended session that goes on as one is resumed ([`Event::Reconnected`] says so).
//!
//! - [`address`]: where a server listens. [`servers`]: where a session may begin.
//! - [`error`]: everything that can go wrong, a variant per cause. [`event`]: what a session tells beside activities.
//! - [`options`]: every limit and time-out, with its default.
//! - [`session`]: what a program holds: [`Session`], and its halves [`Publisher`] and [`Subscriber`].
//! - `conversation`: the one task behind a session, the only owner of its socket. `program`: its other end.
//! - `connection`: one socket that speaks lines.
//! - `seeker`: finds a server, with [`masters`], which asks those.
//! - Pure: `window` (what was published and not acknowledged) with `echo` (what has come back), `received` (what an extended
//!   session has) with `publications` (one activity under two names), `candidates` (whom to try), `backoff`.
//!
//! Four promises hold throughout. Nothing a server sends can panic, hang for ever, or grow memory without bound. A
//! program that stops taking activities stops the socket from being read, it is not buffered for. When both halves of
//! a session are dropped, its task and its socket are gone. What was lost is never counted as taken.
//!
//! ```no_run
//! use arborcast_client::{Activity, Address, Event, Identity, Options, Servers, Session};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let servers = Servers { addresses: vec!["localhost:3780".parse()?], masters: vec!["localhost:7100".parse()?] };
//! let session = Session::login(servers, &Identity::Anonymous, &Options::default()).await?;
//! let (publisher, mut subscriber) = session.split();
//! publisher.publish(&Activity::parse(r#"{"verb":"waves"}"#)?).await?;
//! // For those who only want activities there is `next`.
//! while let Some(event) = subscriber.next_event().await {
//!     match event? {
//!         Event::Activities(batch) => batch.iter().for_each(|activity| println!("{activity}")),
//!         Event::Lost { error, .. } => eprintln!("{error}"),
//!         Event::Reconnected { server, after, .. } => eprintln!("back at {server} after {after:?}"),
//!         Event::Gap { origin, missing } => eprintln!("{missing} activities of {origin} are missing"),
//!     }
//! }
//! # Ok(())
//! # }
//! ```

pub mod address;
mod backoff;
mod candidates;
mod connection;
mod conversation;
mod echo;
pub mod error;
pub mod event;
pub mod masters;
pub mod options;
mod program;
mod publications;
mod received;
mod seeker;
pub mod servers;
pub mod session;
mod window;

pub use address::Address;
pub use arborcast_proto::wire::{Activity, Credentials, Secret, WireError};
pub use arborcast_tls as tls;
pub use error::Error;
pub use event::Event;
pub use options::{Options, Reconnect};
pub use servers::Servers;
pub use session::{Identity, Publisher, Session, Subscriber, register};
