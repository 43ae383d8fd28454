//! `cargo chaos`: a tree of real servers under faults, and everything that was acknowledged must have arrived everywhere.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use arborcast_tests::chaos::{self, Plan};
use clap::Parser;

/// Hurts one server after the other while clients publish and receive, and counts what is lost or doubled.
///
/// Exit code 0 if everything that was published was acknowledged and reached every subscriber once and in order.
#[derive(Parser)]
#[command(name = "cargo chaos")]
struct Cli {
    /// For how long there are faults
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    minutes: f64,
    /// Chooses the faults
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Servers in the tree
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u16).range(3..=100))]
    servers: u16,
    /// Activities a second from each of four publishers
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let plan = Plan {
        seed: cli.seed,
        time: Duration::from_secs_f64(cli.minutes * 60.0),
        servers: cli.servers.into(),
        publishers: 4,
        subscribers: 6,
        pause: Duration::from_secs(1) / cli.rate,
    };
    println!("Building the binaries, if that has not been done yet, and starting {} servers ...", plan.servers);
    let start = Instant::now();
    let report = chaos::run(&plan, |what| eprintln!("{:>7.1} s  {what}", start.elapsed().as_secs_f64()));
    println!("seed {}, {} servers, {:.1} minutes: {report:#?}", cli.seed, cli.servers, cli.minutes);
    if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
