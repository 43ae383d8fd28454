//! What is logged, and in which form.

use std::io::{self, IsTerminal as _};

use clap::ValueEnum;
use tracing::warn;
use tracing_subscriber::EnvFilter;

/// The form of each line of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for programs.
    Json,
}

/// Starts logging to standard error, as much as RUST_LOG asks for: `info` where it is unset, empty, or not understood, which
/// is the first thing that is logged then.
pub fn start(format: LogFormat) {
    let asked = std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|asked| !asked.is_empty());
    let (filter, wrong) = match asked.map(|asked| EnvFilter::builder().parse(asked)).transpose() {
        Ok(filter) => (filter, None),
        Err(wrong) => (None, Some(wrong)),
    };
    let filter = filter.unwrap_or_else(|| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match format {
        LogFormat::Text => subscriber.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
    }
    if let Some(error) = wrong {
        warn!(%error, "RUST_LOG is not understood");
    }
}
