//! `cargo simulate`: many simulated storms, to find the seed that breaks the healing.

use std::panic::catch_unwind;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use arborcast_tests::storm;
use clap::Parser;

/// How often progress is shown.
const PROGRESS_EVERY: u64 = 500;

/// Simulates storms over trees of servers, one for each seed, in virtual time.
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
    /// Half of the servers prefer some other one as their parent, and go back to it
    #[arg(long)]
    homing: bool,
}

fn main() -> ExitCode {
    let Cli { nodes, seeds, first, homing } = Cli::parse();
    let (next, done, failed, checks) = (AtomicU64::new(first), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let last = first.saturating_add(seeds);
    let start = Instant::now();
    let work = || {
        while let seed = next.fetch_add(1, Ordering::Relaxed)
            && seed < last
        {
            let run = if homing { storm::run_homing } else { storm::run };
            match catch_unwind(|| run(seed, nodes.into())) {
                Ok(observed) => drop(checks.fetch_add(observed, Ordering::Relaxed)),
                Err(_) => {
                    failed.fetch_add(1, Ordering::Relaxed);
                    let homing = if homing { " --homing" } else { "" };
                    println!("failed: cargo simulate -- --nodes {nodes} --first {seed} --seeds 1{homing}");
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
