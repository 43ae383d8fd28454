//! What a run is asked to be.

use std::num::NonZeroUsize;
use std::thread::available_parallelism;
use std::time::Duration;

use arborcast_cli::open_files;

use super::payload::{MAX_PUBLISHERS, MIN_SIZE};
use crate::cli::failure::Failure;

/// How long a run takes when nothing says so.
const DEFAULT_DURATION: Duration = Duration::from_secs(10);

/// More threads than this only get into the way of the servers.
const MAX_DEFAULT_THREADS: usize = 4;

/// Files that a program needs beside its connections.
const OTHER_FILES: usize = 64;

/// The options of `arborcast bench`.
#[derive(clap::Args, Debug)]
pub(crate) struct BenchArgs {
    /// Clients that publish; 0 for connections on which nothing happens. What they receive themselves is not counted
    #[arg(long, value_name = "N", default_value_t = 1)]
    publishers: usize,
    /// Clients that receive, and whose deliveries are counted
    #[arg(long, value_name = "N", default_value_t = 10)]
    subscribers: usize,
    /// Activities a second, of all publishers together. Without it: as many as possible, with --window on their way
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    rate: Option<u64>,
    /// The length of each activity, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = size)]
    size: usize,
    /// How long to publish, such as 30s or 5m. Without it, and without --count: 10s
    #[arg(long, value_name = "TIME", value_parser = duration)]
    duration: Option<Duration>,
    /// How many activities to publish, all publishers together. With --duration: whichever comes first
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Use extended sessions: what is published is acknowledged and sent again until it is, and subscribers get what
    /// they missed. Needs servers with --master or --extended
    #[arg(long)]
    acknowledged: bool,
    /// Activities of one publisher that may be on their way: not acknowledged, or not come back, yet
    #[arg(long, value_name = "N", default_value = "1024")]
    window: NonZeroUsize,
    /// Threads that all clients share. Without it: one for each processor, and at most 4
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

/// A run that is possible.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) publishers: usize,
    pub(crate) subscribers: usize,
    pub(crate) rate: Option<u64>,
    pub(crate) size: usize,
    pub(crate) duration: Option<Duration>,
    pub(crate) count: Option<u64>,
    pub(crate) is_acknowledged: bool,
    pub(crate) window: usize,
    pub(crate) threads: usize,
    pub(crate) is_json: bool,
}

impl BenchArgs {
    /// What is asked for.
    ///
    /// # Errors
    /// When that is not possible, in words for people.
    pub(crate) fn plan(&self) -> Result<Plan, Failure> {
        let wrong = |reason: String| Err(Failure::BadBench { reason });
        if self.publishers == 0 && self.subscribers == 0 {
            return wrong("there is nothing to do with 0 publishers and 0 subscribers".into());
        }
        if self.publishers == 0 && self.count.is_some() {
            return wrong("--count needs publishers".into());
        }
        if self.publishers > MAX_PUBLISHERS {
            return wrong(format!("--publishers can be {MAX_PUBLISHERS} at most"));
        }
        let duration = match (self.duration, self.count) {
            (None, None) => Some(DEFAULT_DURATION),
            (duration, _) => duration,
        };
        let processors = available_parallelism().map_or(1, NonZeroUsize::get).min(MAX_DEFAULT_THREADS);
        let plan = Plan {
            publishers: self.publishers,
            subscribers: self.subscribers,
            rate: self.rate,
            size: self.size,
            duration,
            count: self.count,
            is_acknowledged: self.acknowledged,
            window: self.window.get(),
            threads: self.threads.map_or(processors, NonZeroUsize::get).min(self.publishers + self.subscribers),
            is_json: self.json,
        };
        plan.make_room_for_connections()?;
        Ok(plan)
    }
}

impl Plan {
    pub(crate) fn clients(&self) -> usize {
        self.publishers + self.subscribers
    }

    fn make_room_for_connections(&self) -> Result<(), Failure> {
        let needed = self.clients() + OTHER_FILES;
        // Where the system doesn't say, the first connection too many will.
        match open_files::make_room(needed) {
            Ok(limit) if limit < needed as u64 => Err(Failure::BadBench {
                reason: format!(
                    "{} connections need {needed} open files, and the system allows {limit}: see `ulimit -Hn`",
                    self.clients()
                ),
            }),
            _ => Ok(()),
        }
    }
}

fn size(text: &str) -> Result<usize, String> {
    let size = text.parse().map_err(|_| "it is not a number of bytes".to_owned())?;
    if size < MIN_SIZE { Err(format!("an activity needs at least {MIN_SIZE} bytes")) } else { Ok(size) }
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration.is_zero() => Err("it must be longer than nothing".into()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(error.to_string()),
    }
}
