//! `cargo simulate`: many simulated storms, to find the seed that breaks the healing.

use std::panic::{self, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use arborcast_tests::calm::{self, FalseAlarms};
use arborcast_tests::{crowd, promises, rivals, storm};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

/// How often progress is shown.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// Faults in each run with `--promises`.
const FAULTS: usize = 10;

/// Servers that are killed in the large tree, and the longest time that a line takes over a wire there.
const FAULTS_IN_CROWD: usize = 20;
const ROUND: Duration = Duration::from_millis(20);

/// What a shell makes of a program that Ctrl-C has ended.
const INTERRUPTED: u8 = 130;

/// Simulates storms over trees of servers, one for each seed, in virtual time: servers crash, freeze, are cut off.
///
/// With --registrations clients register names meanwhile. With --rivals N nothing happens to the servers, and two to four
/// clients at a time want each of N names.
///
/// A seed that fails is printed with a command that replays it. Ctrl-C ends after the runs that are under way; a second
/// one at once. Exit code 0 if all held, 1 if any failed, 130 if none had failed until Ctrl-C.
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
    /// Publishers and subscribers, and one fault after the other: nothing acknowledged may be lost, doubled, or out of
    /// order
    #[arg(long, conflicts_with = "calm")]
    promises: bool,
    /// Half of the servers prefer some other one as their parent, and go back to it
    #[arg(long, conflicts_with_all = ["calm", "promises"])]
    homing: bool,
    /// Masters propose moves through the storm, right ones and made up ones; with --promises, a line of servers becomes
    /// a shallow tree while everybody publishes
    #[arg(long, conflicts_with_all = ["calm", "homing", "registrations", "rivals"])]
    balance: bool,
    /// Register names through the storm
    #[arg(long, conflicts_with_all = ["calm", "promises", "homing", "rivals"])]
    registrations: bool,
    /// Names that several clients want at once, and no storm
    #[arg(long, value_name = "NAMES", conflicts_with_all = ["calm", "promises", "homing"])]
    rivals: Option<usize>,
    /// No storms: nothing fails, every message is late by up to 200 ms, and nobody may take anybody for dead
    #[arg(long)]
    calm: bool,
    /// One large tree: how it forms, what it costs while nothing happens, and how it heals when servers are killed.
    /// Prints a table, and runs the first seed only
    #[arg(long, conflicts_with_all = ["balance", "calm", "homing", "promises", "registrations", "rivals"])]
    crowd: bool,
    /// Clients of the large tree
    #[arg(long, value_name = "N", default_value_t = 100_000, requires = "crowd")]
    clients: usize,
    /// Seconds between two announcements of the servers of the large tree
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, requires = "crowd")]
    announce_interval: u64,
    /// How long a calm run takes, in virtual time
    #[arg(long, value_name = "MINUTES", default_value_t = 10, requires = "calm")]
    minutes: u32,
}

/// What all workers share.
#[derive(Default)]
struct Progress {
    taken: AtomicU64,
    done: AtomicU64,
    checks: AtomicU64,
    is_interrupted: AtomicBool,
    failures: Mutex<Vec<u64>>,
}

impl Progress {
    fn failures(&self) -> usize {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn line(&self, cli: &Cli, start: Instant) -> String {
        let (done, seconds) = (self.done.load(Ordering::Relaxed), start.elapsed().as_secs_f64());
        let rate = done as f64 / seconds.max(0.001);
        let failures = self.failures();
        format!(
            "{done} of {} runs with {} nodes, {failures} failed, {seconds:.0} s, {rate:.2} runs/s",
            cli.seeds, cli.nodes
        )
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (progress, start) = (Progress::default(), Instant::now());
    if cli.crowd {
        show_crowd(&cli, start);
        return ExitCode::SUCCESS;
    }
    // One line for each failure is enough; replaying the seed tells more.
    panic::set_hook(Box::new(|info| {
        let message = info.payload_as_str().unwrap_or("panicked");
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        println!("{message} ({place})");
    }));
    thread::scope(|scope| {
        let workers: Vec<_> = (0..thread::available_parallelism().map_or(1, usize::from))
            .map(|_| scope.spawn(|| work(&cli, &progress)))
            .collect();
        watch(&cli, &progress, start, || workers.iter().all(thread::ScopedJoinHandle::is_finished));
    });
    let checks = progress.checks.load(Ordering::Relaxed);
    println!("{}, {checks} checks", progress.line(&cli, start));
    let failures = progress.failures.lock().unwrap_or_else(PoisonError::into_inner);
    for seed in failures.iter() {
        println!("replay: {}", replay(&cli, *seed));
    }
    match (failures.is_empty(), progress.is_interrupted.load(Ordering::Relaxed)) {
        (false, _) => ExitCode::FAILURE,
        (true, true) => ExitCode::from(INTERRUPTED),
        (true, false) => ExitCode::SUCCESS,
    }
}

/// Runs one large tree, and prints what was seen.
fn show_crowd(cli: &Cli, start: Instant) {
    let plan = crowd::Plan {
        seed: cli.first,
        servers: cli.nodes.into(),
        clients: cli.clients,
        faults: FAULTS_IN_CROWD,
        announce_interval: Duration::from_secs(cli.announce_interval),
        delay: ROUND,
    };
    let seen = crowd::run(&plan, |said| eprintln!("{:.0} s: {said}", start.elapsed().as_secs_f64()));
    println!("| what | result |\n|---|---|");
    println!("| servers; clients, counted | {}; {} |", plan.servers, plan.clients);
    let rounds = |time: Duration| time.as_secs_f64() / ROUND.as_secs_f64();
    println!(
        "| one tree since the first start, at {} servers a second | {:.1} s, {} messages |",
        200,
        seen.formed.as_secs_f64(),
        seen.messages_to_form
    );
    let [formed, damaged, balanced] = seen.depth;
    println!("| depth: formed, after the last fault, balanced | {formed}, {damaged}, {balanced} |");
    println!("| most children | {} |", seen.fan_out);
    println!(
        "| masters balance the tree after the last fault | {:.1} s, {} moves |",
        seen.balanced.0.as_secs_f64(),
        seen.balanced.1
    );
    for (command, rate) in &seen.idle {
        println!("| idle: {command} over all links | {rate:.0} a second |");
    }
    let all: f64 = seen.idle.values().sum();
    println!("| idle: all over all links; for each server | {all:.0} a second; {:.1} |", all / plan.servers as f64);
    for (name, of_root) in [("an inner server", false), ("the root", true)] {
        let mut heals: Vec<_> = seen.heals.iter().filter(|heal| heal.was_root == of_root).collect();
        heals.sort_by_key(|heal| heal.took);
        let (Some(median), Some(longest)) = (heals.get(heals.len() / 2), heals.last()) else { continue };
        println!(
            "| {name} dies ({} times): one tree again, median and longest | {} ms, {} ms; {:.0}, {:.0} rounds of {} ms |",
            heals.len(),
            median.took.as_millis(),
            longest.took.as_millis(),
            rounds(median.took),
            rounds(longest.took),
            ROUND.as_millis()
        );
        let mean = |of: fn(&crowd::Heal) -> u64| heals.iter().map(|heal| of(heal)).sum::<u64>() / heals.len() as u64;
        println!(
            "| for it, means: announcements; others beyond those of an idle tree; orphans; clients | {}; {}; {}; {} |",
            mean(|heal| heal.announcements),
            mean(|heal| heal.messages),
            mean(|heal| heal.orphans as u64),
            mean(|heal| heal.clients as u64)
        );
    }
    println!("| clients of a server at the end, fewest and most | {}, {} |", seen.loads.0, seen.loads.1);
    println!("| processor time | {:.0} s |", start.elapsed().as_secs_f64());
}

/// Runs one seed after the other.
fn work(cli: &Cli, progress: &Progress) {
    while !progress.is_interrupted.load(Ordering::Relaxed) {
        let index = progress.taken.fetch_add(1, Ordering::Relaxed);
        let Some(seed) = cli.first.checked_add(index).filter(|_| index < cli.seeds) else { return };
        match catch_unwind(|| run(cli, seed)) {
            Ok(checks) => drop(progress.checks.fetch_add(checks, Ordering::Relaxed)),
            Err(_) => {
                println!("failed: {}", replay(cli, seed));
                progress.failures.lock().unwrap_or_else(PoisonError::into_inner).push(seed);
            }
        }
        progress.done.fetch_add(1, Ordering::Relaxed);
    }
}

/// Runs one seed, and returns how much was checked. Panics when something does not hold.
fn run(cli: &Cli, seed: u64) -> u64 {
    if cli.promises && cli.balance {
        return promises::run_balancing(seed, cli.nodes.into(), FAULTS).delivered;
    }
    if cli.balance {
        return storm::run_balancing(seed, cli.nodes.into());
    }
    if cli.promises {
        return promises::run(seed, cli.nodes.into(), FAULTS).delivered;
    }
    if let Some(names) = cli.rivals {
        return rivals::race(seed, cli.nodes.into(), names);
    }
    if cli.registrations {
        return rivals::storm(seed, cli.nodes.into());
    }
    if cli.homing {
        return storm::run_homing(seed, cli.nodes.into());
    }
    if !cli.calm {
        return storm::run(seed, cli.nodes.into());
    }
    let time = Duration::from_secs(60) * cli.minutes;
    let found = calm::run(seed, cli.nodes.into(), time, calm::JITTER);
    assert_eq!(found, FalseAlarms::NONE, "false alarms");
    1
}

fn replay(cli: &Cli, seed: u64) -> String {
    let mut mode = String::new();
    for (is_on, flag) in [
        (cli.calm, format!(" --calm --minutes {}", cli.minutes)),
        (cli.promises, " --promises".to_owned()),
        (cli.balance, " --balance".to_owned()),
        (cli.homing, " --homing".to_owned()),
        (cli.registrations, " --registrations".to_owned()),
        (cli.rivals.is_some(), format!(" --rivals {}", cli.rivals.unwrap_or_default())),
    ] {
        if is_on {
            mode += &flag;
        }
    }
    format!("cargo simulate -- --nodes {} --first {seed} --seeds 1{mode}", cli.nodes)
}

/// Shows progress and waits for Ctrl-C until all is done.
fn watch(cli: &Cli, progress: &Progress, start: Instant, is_done: impl Fn() -> bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime.inspect_err(|error| eprintln!("Ctrl-C will end this at once: {error}")) else { return };
    runtime.block_on(async {
        let Ok(mut interrupts) = signal(SignalKind::interrupt()) else { return };
        let mut shown = Instant::now();
        while !is_done() {
            // Short enough that the end is not noticed late.
            let pause = timeout(Duration::from_millis(20), interrupts.recv());
            if pause.await.is_ok() && progress.is_interrupted.swap(true, Ordering::Relaxed) {
                std::process::exit(INTERRUPTED.into());
            }
            if shown.elapsed() >= PROGRESS_EVERY {
                shown = Instant::now();
                eprintln!("{}", progress.line(cli, start));
            }
        }
    });
}
