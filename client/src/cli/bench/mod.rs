//! `arborcast bench`: publishes and receives as much as asked, and says how the servers did.
//!
//! - Pure: `payload` (what is published, and found again without reading JSON), `schedule` (when), `outbox` (what one
//!   publisher has on its way), `statistics` and `desk` (what came, and what did not), `report`.
//! - `args`: what is asked for. `run`: what all threads share.
//! - `shard`: a thread with its part of the clients. `subscribe`, `publish`: a client. `connection`: how it gets to a
//!   server, and to another. `stream`: reading many sockets through one buffer.

mod args;
mod connection;
mod desk;
mod outbox;
mod payload;
mod publish;
mod report;
mod run;
mod schedule;
mod shard;
mod statistics;
mod stream;
mod subscribe;

use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};

pub(crate) use args::BenchArgs;
pub(crate) use connection::EnterError;

use super::args::Args;
use super::failure::Failure;
use super::interrupt::Interrupt;
use super::output::say;
use args::Plan;
use connection::Server;
use payload::Template;
use report::{Latency, Report, Snapshot, Summary, per_second, progress_line};
use run::{Phase, Run};
use shard::Shard;
use statistics::Tally;

/// How often it is looked at how far the run is.
const LOOK: Duration = Duration::from_millis(5);

/// How often that is said.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// All clients are where they stay when so long nobody has logged in anywhere.
const SETTLED: Duration = Duration::from_millis(150);

/// How long to wait for what is on its way, while nothing arrives; and in all.
const STRAGGLERS: Duration = Duration::from_secs(3);
const MAX_STRAGGLERS: Duration = Duration::from_secs(60);

pub(crate) const EXAMPLES: &str = "\
Every client is a connection of its own; they take the servers given with -rh in turns, follow redirections, and go on at \
another server when theirs is lost. With --master and no -rh each asks a master where to go. A line a second on standard \
error says how far it is, the result goes to standard output. Latency is from publishing to reading; with --rate, what a \
server held up counts from when it was due. The longest silence is the longest time in which a subscriber got nothing: kill \
a server meanwhile, and it says what that cost. Publishers receive everything as well, as every client does; what they \
receive is not counted.

Other people at these servers get everything that is published.

Examples:
  As much as possible, for ten seconds:
    arborcast bench --subscribers 100
  Latency at a given rate:
    arborcast bench --subscribers 50 --rate 2000 --duration 30s
  Several servers:
    arborcast bench -rh tree1.example -rh tree2.example:4000 --publishers 3 --subscribers 99
  A surge of clients, each of which asks a master:
    arborcast bench --master a.example:7100 --publishers 0 --subscribers 1000
  Acknowledged, for programs:
    arborcast bench --acknowledged --count 100000 --json | jq .latency_microseconds.p99
  Idle connections:
    arborcast bench --publishers 0 --subscribers 5000 --duration 1m

Exit codes: 0 everything arrived once and in order, 1 it could not be measured, 2 wrong usage, 3 something was lost, \
doubled or out of order, 130 interrupted (the result so far is printed).";

pub(crate) async fn run(args: &Args, bench: &BenchArgs) -> Result<(), Failure> {
    let plan = bench.plan()?;
    let mut servers = Vec::new();
    let given = args.servers()?;
    for address in given.addresses {
        servers.push(Server::resolve(address).await?);
    }
    // As for every command, servers that are named come first.
    let masters = if servers.is_empty() { given.masters } else { Vec::new() };
    let run = Arc::new(Run::new(plan, servers, masters, args.identity()?, args.options()));
    let templates = templates(&run)?;
    let mut interrupt = Interrupt::new()?;
    let shards = start_shards(&run, templates)?;
    let ended = conduct(&run, &mut interrupt).await;
    let not_connected = run.plan.clients().saturating_sub(run.progress.connected.load(Ordering::Relaxed));
    run.over.cancel();
    let harvests: Result<Vec<_>, _> = shards.into_iter().map(Shard::join).collect();
    let summary = Summary::of(harvests.map_err(Failure::Runtime)?);
    let (Ended { login_seconds, interrupted }, Some(summary)) = (ended?, summary) else {
        return Err(Failure::Runtime(io::Error::other("no thread")));
    };
    let report = report(&run, summary, login_seconds, interrupted.is_some(), not_connected);
    print(&report, run.plan.is_json)?;
    if let Some(error) = run.failure() {
        return Err(error.into());
    }
    match interrupted {
        Some(exit_code) => Err(Failure::BenchInterrupted { exit_code }),
        None if report.lost + report.doubled + report.out_of_order > 0 => {
            Err(Failure::Unreliable { lost: report.lost, doubled: report.doubled, out_of_order: report.out_of_order })
        }
        None => Ok(()),
    }
}

/// The messages of each publisher, which must fit the servers' limit.
fn templates(run: &Run) -> Result<Vec<Template>, Failure> {
    let size = run.plan.size;
    let template = |publisher| Template::new(run.id, publisher, size, run.name_and_secret());
    let templates: Result<Vec<_>, _> = (0..run.plan.publishers).map(template).collect();
    let templates = templates.map_err(|error| Failure::BadBench { reason: error.to_string() })?;
    let (length, limit) = (templates.iter().map(Template::max_length).max().unwrap_or(0), run.options.max_line);
    match length > limit {
        true => Err(Failure::BadBench {
            reason: format!("--size {size} makes messages of {length} bytes, and servers take at most {limit}"),
        }),
        false => Ok(templates),
    }
}

fn start_shards(run: &Arc<Run>, templates: Vec<Template>) -> Result<Vec<Shard>, Failure> {
    let threads = run.plan.threads;
    let mut parts: Vec<Vec<_>> = (0..threads).map(|_| Vec::new()).collect();
    for (number, template) in templates.into_iter().enumerate() {
        if let Some(part) = parts.get_mut(number % threads) {
            part.push((number, template));
        }
    }
    let mut shards = Vec::new();
    for (first, part) in parts.into_iter().enumerate() {
        let tally = Tally::new().map_err(io::Error::other);
        match tally.and_then(|tally| Shard::start(run, first, part, tally)) {
            Ok(shard) => shards.push(shard),
            Err(cause) => {
                run.over.cancel();
                return Err(Failure::Runtime(cause));
            }
        }
    }
    Ok(shards)
}

/// How the run ended.
#[derive(Debug)]
struct Ended {
    login_seconds: f64,
    /// The exit code of the signal that ended it.
    interrupted: Option<u8>,
}

/// Logs in, publishes, and waits for what is on its way.
///
/// # Errors
/// Only when it ended before anything was published.
async fn conduct(run: &Run, interrupt: &mut Interrupt) -> Result<Ended, Failure> {
    let login_seconds = tokio::select! {
        login_seconds = log_in(run) => login_seconds,
        () = run.failed.cancelled() => return Err(failure(run)),
        exit_code = interrupt.wait() => return Err(Failure::BenchInterrupted { exit_code }),
    };
    run.start();
    let publishing = async {
        tokio::select! {
            () = publish(run) => None,
            () = run.failed.cancelled() => None,
            exit_code = interrupt.wait() => Some(exit_code),
        }
    };
    let interrupted = with_progress(run, publishing).await;
    run.phase.send_replace(Phase::Ending);
    let interrupted = tokio::select! {
        () = wait_for_stragglers(run) => interrupted,
        () = run.failed.cancelled() => interrupted,
        // Who asks twice does not want to wait.
        exit_code = interrupt.wait() => Some(exit_code),
    };
    Ok(Ended { login_seconds, interrupted })
}

fn failure(run: &Run) -> Failure {
    match run.failure() {
        Some(error) => error.into(),
        None => Failure::Runtime(io::Error::other("a thread could not start")),
    }
}

/// Waits until all clients are in and stay where they are. Returns how long it took, in seconds, until the last one was in.
async fn log_in(run: &Run) -> f64 {
    let (begin, mut said) = (Instant::now(), Instant::now());
    let (mut seen, mut changed) = (0, begin);
    let clients = run.plan.clients();
    loop {
        let connected = run.progress.connected.load(Ordering::Relaxed);
        let logins = run.progress.logins.load(Ordering::Relaxed);
        if logins != seen {
            (seen, changed) = (logins, Instant::now());
        }
        if connected == clients && changed.elapsed() >= SETTLED {
            return (changed - begin).as_secs_f64();
        }
        if said.elapsed() >= PROGRESS_INTERVAL {
            said = Instant::now();
            say(format_args!("{connected} of {clients} clients are in"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Until the time is over, or all is published.
async fn publish(run: &Run) {
    let Plan { publishers, duration, .. } = run.plan;
    loop {
        let is_late = duration.is_some_and(|duration| run.started().elapsed() >= duration);
        if is_late || publishers > 0 && run.progress.finished.load(Ordering::Relaxed) >= publishers {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Until everything has arrived, or nothing arrives any more.
async fn wait_for_stragglers(run: &Run) {
    let begin = Instant::now();
    let (mut seen, mut changed) = ((0, 0), begin);
    while changed.elapsed() < STRAGGLERS && begin.elapsed() < MAX_STRAGGLERS {
        // Read anew each time: a publisher may have been just about to publish.
        let published: u64 = run.published().iter().sum();
        let acknowledged = run.progress.acknowledged.load(Ordering::Relaxed);
        let deliveries = run.progress.deliveries.load(Ordering::Relaxed);
        let is_acknowledged = !run.plan.is_acknowledged || acknowledged >= published;
        if is_acknowledged && deliveries >= published * run.plan.subscribers as u64 {
            return;
        }
        if seen != (deliveries, acknowledged) {
            (seen, changed) = ((deliveries, acknowledged), Instant::now());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Says how far it is while something lasts.
async fn with_progress<T>(run: &Run, lasting: impl Future<Output = T>) -> T {
    let mut ticks = interval(PROGRESS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut lasting = std::pin::pin!(lasting);
    let (mut before, mut then) = (snapshot(run), Instant::now());
    loop {
        tokio::select! {
            output = &mut lasting => return output,
            _ = ticks.tick() => {}
        }
        let (now, connected) = (snapshot(run), run.progress.connected.load(Ordering::Relaxed));
        let silence = Duration::from_nanos(run.progress.longest_silence.load(Ordering::Relaxed));
        let clients = (connected, run.plan.clients());
        say(progress_line((before, now), then.elapsed(), run.started().elapsed(), clients, silence));
        (before, then) = (now, Instant::now());
    }
}

fn snapshot(run: &Run) -> Snapshot {
    Snapshot {
        published: run.published().iter().sum(),
        deliveries: run.progress.deliveries.load(Ordering::Relaxed),
        bytes: run.progress.bytes.load(Ordering::Relaxed),
    }
}

fn report(run: &Run, summary: Summary, login_seconds: f64, is_interrupted: bool, not_connected: usize) -> Report {
    let plan = &run.plan;
    let published: u64 = run.published().iter().sum();
    let seconds = |nanoseconds: u64| nanoseconds as f64 / 1e9;
    let publishing_seconds = seconds(run.progress.last_published.load(Ordering::Relaxed));
    let delivering_seconds = seconds(summary.last);
    let tally = summary.tally;
    Report {
        servers: run.servers.iter().map(|server| server.address.to_string()).collect(),
        publishers: plan.publishers,
        subscribers: plan.subscribers,
        size: plan.size,
        rate: plan.rate,
        acknowledged_sessions: plan.is_acknowledged,
        interrupted: is_interrupted,
        login_seconds,
        logins_per_second: per_second(plan.clients() as u64, login_seconds),
        publishing_seconds,
        published,
        publishes_per_second: per_second(published, publishing_seconds),
        acknowledged: run.progress.acknowledged.load(Ordering::Relaxed),
        delivering_seconds,
        deliveries: tally.deliveries,
        expected_deliveries: published * plan.subscribers as u64,
        deliveries_per_second: per_second(tally.deliveries, delivering_seconds),
        megabytes_per_second: per_second(tally.bytes, delivering_seconds) / 1e6,
        latency_microseconds: Latency::of(&tally.latencies),
        lost: summary.lost,
        most_lost_by_one_subscriber: summary.most_lost,
        doubled: tally.doubled,
        out_of_order: tally.out_of_order,
        repeated: tally.repeated,
        gaps: tally.gaps,
        foreign: tally.foreign,
        longest_silence: summary.longest_silence.filter(|_| published > 0),
        lost_connections: run.progress.lost_connections.load(Ordering::Relaxed),
        not_connected,
    }
}

fn print(report: &Report, is_json: bool) -> Result<(), Failure> {
    let text = match is_json {
        true => serde_json::to_string(report).map_err(|error| Failure::Output(error.into()))?,
        false => report.to_string(),
    };
    writeln!(io::stdout(), "{text}").map_err(Failure::Output)
}
