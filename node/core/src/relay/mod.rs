//! How activities get from one node to everyone: a line is stored once and read by many.
//!
//! - [`log`]: the broadcast log, append-only and bounded.
//! - [`cursor`]: where one reader stands in it.

pub mod cursor;
pub mod log;

pub use cursor::Cursor;
pub use log::{Log, Position};
