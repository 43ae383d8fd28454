//! The client of an arborcast tree: log in anywhere, publish activities, receive everybody's.
//!
//! A [`Session`] is one login. It follows the servers' redirections by itself, sends again what a redirecting server
//! did not process, and tells apart what was only sent from what has come back. It does not reconnect after a lost
//! connection: that is an [`Error`], and the program decides.
//!
//! - [`address`]: where a server listens.
//! - [`error`]: everything that can go wrong, a variant per cause.
//! - [`options`]: every limit and time-out, with its default.
//! - [`session`]: what a program holds: [`Session`], and its halves [`Publisher`] and [`Subscriber`].
//! - `conversation`: the one task behind a session, the only owner of its socket.
//! - `connection`: one socket that speaks lines.
//! - `unechoed`: which published activities have not come back yet; pure.
//!
//! Three promises hold throughout. Nothing a server sends can panic, hang for ever, or grow memory without bound. A
//! program that stops taking activities stops the socket from being read, it is not buffered for. When both halves of
//! a session are dropped, its task and its socket are gone.
//!
//! ```no_run
//! use arborcast_client::{Activity, Address, Identity, Options, Session};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let server: Address = "localhost:3780".parse()?;
//! let mut session = Session::login(&server, &Identity::Anonymous, &Options::default()).await?;
//! session.publish(&Activity::parse(r#"{"verb":"waves"}"#)?).await?;
//! while let Some(activity) = session.next().await {
//!     println!("{}", activity?);
//! }
//! # Ok(())
//! # }
//! ```

pub mod address;
mod connection;
mod conversation;
pub mod error;
pub mod options;
pub mod session;
mod unechoed;

pub use address::Address;
pub use arborcast_proto::wire::{Activity, Credentials, Secret, WireError};
pub use error::Error;
pub use options::Options;
pub use session::{Identity, Publisher, Session, Subscriber, register};
