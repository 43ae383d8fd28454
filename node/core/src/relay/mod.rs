//! How activities get from one node to everyone: a line is stored once and read by many.
//!
//! - [`log`]: the broadcast log, append-only and bounded. [`cursor`]: where one reader stands in it. [`piece`]: what one
//!   reader is sent out of turn.
//! - `ledger`: which activity of which origin stands where in the log, and what is missing. `publications`: which
//!   activities of which client sessions were seen. (The extensions.)

pub mod cursor;
pub(crate) mod ledger;
pub mod log;
pub mod piece;
pub(crate) mod publications;

pub use cursor::Cursor;
pub use log::{Log, Position, Source};
pub use piece::Piece;
