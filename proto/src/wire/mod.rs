//! The line protocol: one JSON object per line, UTF-8, ended by `\n`.
//!
//! - [`codec`]: bytes in, bounded lines out.
//! - [`message`]: lines in, typed messages out, and back.
//! - [`activity`]: the one payload that passes through unchanged, and how it is stamped with its author.
//! - [`error`]: what can be wrong with a line; its `Display` is the `info` of the INVALID_MESSAGE answer.
//! - [`limits`]: the numbers.
//! - [`relay`]: what activities carry between extended servers; [`users`]: what those tell each other about users.
//! - `quick`: activities in their usual form, read faster.
//! - [`secret`]: a string that never shows itself in a log.

pub mod activity;
pub mod codec;
pub mod error;
pub mod limits;
pub mod message;
mod quick;
pub mod relay;
pub mod secret;
pub mod users;

pub use activity::Activity;
pub use codec::LineDecoder;
pub use error::WireError;
pub use message::{Credentials, FragmentKey, Message, Reign, ServerAnnounce};
pub use relay::{Have, Origin, PublicationId, RelayTag, Resume};
pub use secret::Secret;
pub use users::{Denial, RegistrationId, UserRecord};
