//! What arborcast's servers do beside their own work.
//!
//! - [`http`]: operators, their tools and browsers get answers, within bounds.
//! - [`shutdown`]: SIGINT and SIGTERM.

pub mod http;
pub mod shutdown;
