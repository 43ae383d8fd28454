//! `cargo simulate`: many simulated storms, to find the seed that breaks the healing.

use std::panic::catch_unwind;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use arborcast_tests::{rivals, storm};
use clap::Parser;

/// How often progress is shown.
const PROGRESS_EVERY: u64 = 500;

/// Simulates storms over trees of servers, one for each seed, in virtual time: servers crash, freeze, are cut off.
///
/// With --registrations clients register names meanwhile. With --rivals N nothing happens to the servers, and two to four
/// clients at a time want each of N names.
///
/// A seed that fails is printed; `--first SEED --seeds 1` with the same --nodes replays it. Exit code 1 if any failed.
#[derive(Parser)]
#[command(name = "cargo simulate")]
struct Cli {
    /// Servers in each run
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u16).range(2..=60_000))]
    nodes: u16,
    /// How many runs
    #[arg(long, value_name = "N", default_value_t = 1000)]
    seeds: u64,
    /// The first seed
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    first: u64,
    /// Register names through the storm
    #[arg(long, conflicts_with = "rivals")]
    registrations: bool,
    /// Names that several clients want at once
    #[arg(long, value_name = "NAMES")]
    rivals: Option<usize>,
}

impl Cli {
    /// Runs the simulation of one seed, and returns how much it has looked at.
    fn simulate(&self, seed: u64) -> u64 {
        match self.rivals {
            Some(names) => rivals::race(seed, self.nodes.into(), names),
            None if self.registrations => rivals::storm(seed, self.nodes.into()),
            None => storm::run(seed, self.nodes.into()),
        }
    }

    /// How a seed is run again.
    fn replay(&self, seed: u64) -> String {
        let what = match self.rivals {
            Some(names) => format!(" --rivals {names}"),
            None if self.registrations => " --registrations".to_owned(),
            None => String::new(),
        };
        format!("cargo simulate -- --nodes {} --first {seed} --seeds 1{what}", self.nodes)
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let Cli { nodes, seeds, first, .. } = cli;
    let (next, done, failed, checks) = (AtomicU64::new(first), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let last = first.saturating_add(seeds);
    let start = Instant::now();
    let work = || {
        while let seed = next.fetch_add(1, Ordering::Relaxed)
            && seed < last
        {
            match catch_unwind(|| cli.simulate(seed)) {
                Ok(observed) => drop(checks.fetch_add(observed, Ordering::Relaxed)),
                Err(_) => {
                    failed.fetch_add(1, Ordering::Relaxed);
                    println!("failed: {}", cli.replay(seed));
                }
            }
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            if done.is_multiple_of(PROGRESS_EVERY) {
                eprintln!("{done} of {seeds} runs, {:.0} s", start.elapsed().as_secs_f64());
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let (failed, checks) = (failed.load(Ordering::Relaxed), checks.load(Ordering::Relaxed));
    println!(
        "{seeds} runs with {nodes} nodes, {failed} failed, {checks} checks, {:.0} s",
        start.elapsed().as_secs_f64()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
