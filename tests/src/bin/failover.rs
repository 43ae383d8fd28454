//! `cargo failover`: what clients notice when a server of a real tree dies, freezes or is drained.
//!
//! Some servers and two masters with their default settings, a publisher at a leaf, and a subscriber at every server.
//! Round for round one server is hurt, and is back before the next, or stays dead. What is measured, and what is not, says
//! `tests/benches/README.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a benchmark fails by panicking")]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use arborcast_tests::forest::{Forest, Place, Shape};
use arborcast_tests::lines;
use arborcast_tests::node::NodeBuilder;
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, ValueEnum};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

const MASTERS: usize = 2;

/// The servers' default, which the tests' default is not.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(5);

/// How long the stream flows before the fault.
const BEFORE: Duration = Duration::from_millis(200);

/// For how long all subscribers must get everything before a round ends.
const STEADY: Duration = Duration::from_millis(500);

/// A subscriber keeps up if it has what was published so long ago.
const BEHIND: Duration = Duration::from_millis(100);

/// After so long a round ends whatever is missing.
const MAX_ROUND: Duration = Duration::from_secs(30);

/// How often the subscribers are looked at during a round.
const LOOK: Duration = Duration::from_millis(10);

/// Measures what clients notice when a server of a tree dies, freezes or is drained.
#[derive(Parser)]
#[command(name = "cargo failover")]
struct Cli {
    /// Rounds of each fault
    #[arg(long, value_name = "N", default_value_t = 50)]
    rounds: usize,
    /// Only this fault; all of them if not given
    #[arg(long, value_enum)]
    only: Option<Fault>,
    /// Servers, each with a subscriber
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u16).range(4..=500))]
    servers: u16,
    /// Any server may be the victim, leaves too, and stays dead: a tree that shrinks
    #[arg(long, requires = "only")]
    for_good: bool,
    /// Activities per second
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Chooses victims and publishers
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

/// What is done to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Fault {
    Crash,
    Freeze,
    Drain,
    CrashWithoutMasters,
}

impl Fault {
    const ALL: [Self; 4] = [Self::Crash, Self::Freeze, Self::Drain, Self::CrashWithoutMasters];

    fn name(self) -> &'static str {
        match self {
            Self::Crash => "crash (kill -9)",
            Self::Freeze => "frozen (SIGSTOP)",
            Self::Drain => "drain (SIGTERM)",
            Self::CrashWithoutMasters => "crash, masters dead",
        }
    }
}

fn main() {
    let cli = Cli::parse();
    let enough = cli.rounds + 4 <= usize::from(cli.servers) && matches!(cli.only, Some(Fault::Crash | Fault::Drain));
    if cli.for_good && !enough {
        let error = "--for-good needs `--only crash` or `--only drain`, and four servers more than rounds";
        Cli::command().error(ErrorKind::ArgumentConflict, error).exit();
    }
    println!("Building the binaries, if that has not been done yet, and starting {} servers ...", cli.servers);
    let mut bench = Bench::new(&cli);
    println!("depth {}", bench.depth());
    let mut results = Vec::new();
    for fault in Fault::ALL.into_iter().filter(|fault| cli.only.is_none_or(|only| only == *fault)) {
        println!("\n{}: {} rounds", fault.name(), cli.rounds);
        let outcomes: Vec<Outcome> = (0..cli.rounds).map(|round| bench.round(fault, round)).collect();
        results.push((fault, outcomes));
    }
    println!("depth {}", bench.depth());
    println!("\n{}", table(&results));
}

/// The tree and its clients.
struct Bench {
    forest: Forest,
    subscribers: Vec<Subscriber>,
    rng: StdRng,
    pause: Duration,
    for_good: bool,
    /// Numbers go on from round to round, so that latecomers of an earlier one are not counted.
    next_number: u64,
}

/// What one round has shown.
struct Outcome {
    /// The longest time in which a subscriber got nothing.
    silence: Duration,
    /// From the fault until from then on everything that was published reached everybody. `None`: not in time.
    whole: Option<Duration>,
    /// Deliveries that did not take place.
    lost: usize,
    doubled: usize,
    out_of_order: usize,
    /// How many deliveries there should have been.
    expected: usize,
}

impl Bench {
    fn new(cli: &Cli) -> Self {
        let builder = NodeBuilder::default().announce_every(ANNOUNCE_INTERVAL);
        let mut forest = Forest::grow_with(MASTERS, cli.servers.into(), &builder);
        forest.dismiss_clients();
        let addresses = (0..forest.len()).map(|place| forest.address(place)).collect::<Vec<_>>();
        let subscribers = addresses.into_iter().map(Subscriber::connect).collect();
        let rng = StdRng::seed_from_u64(cli.seed);
        let pause = Duration::from_secs(1) / cli.rate;
        Self { forest, subscribers, rng, pause, for_good: cli.for_good, next_number: 0 }
    }

    fn round(&mut self, fault: Fault, round: usize) -> Outcome {
        let shape = self.forest.shape();
        if fault == Fault::CrashWithoutMasters {
            // They would long do in a tree that has been standing for longer than a few seconds.
            self.forest.wait_until_all_know_each_other();
        }
        let awake = self.forest.awake();
        let victim =
            self.pick(&if self.for_good { awake.clone() } else { [shape.inner(), vec![shape.root()]].concat() });
        let leaves: Vec<Place> = shape.leaves().into_iter().filter(|place| *place != victim).collect();
        let publisher = self.pick(&leaves);
        let survivors: Vec<Place> = awake.into_iter().filter(|place| *place != victim).collect();
        let first = self.next_number;
        for subscriber in &self.subscribers {
            subscriber.forget();
        }
        let stream = Stream::start(&self.subscribers[publisher], first, self.pause);
        thread::sleep(BEFORE);
        if fault == Fault::CrashWithoutMasters {
            self.forest.kill_masters();
        }
        let hurt_at = Instant::now();
        self.hurt(fault, victim);
        self.watch(&stream, &survivors, hurt_at);
        let published = stream.end();
        self.next_number = first + published.len() as u64;
        // What is still on its way.
        thread::sleep(BEHIND);
        let arrivals = survivors.iter().map(|place| self.subscribers[*place].arrivals(first)).collect::<Vec<_>>();
        let outcome = judge(&published, first, hurt_at, &arrivals);
        self.report(round, victim, &shape, &outcome);
        self.repair(fault, victim);
        outcome
    }

    fn pick(&mut self, places: &[Place]) -> Place {
        places[self.rng.random_range(0..places.len())]
    }

    fn hurt(&mut self, fault: Fault, victim: Place) {
        match fault {
            Fault::Crash | Fault::CrashWithoutMasters => self.forest.kill(victim),
            Fault::Freeze => self.forest.freeze(victim),
            Fault::Drain => self.forest.terminate(victim),
        }
    }

    /// Until all survivors have kept up for a while.
    fn watch(&self, stream: &Stream, survivors: &[Place], hurt_at: Instant) {
        let mut steady_since = Instant::now();
        let mut history = Vec::new();
        while hurt_at.elapsed() < MAX_ROUND && steady_since.elapsed() < STEADY {
            thread::sleep(LOOK);
            let now = Instant::now();
            history.push((now, stream.published.load(Ordering::Relaxed)));
            let due = history.iter().rev().find(|(at, _)| now.duration_since(*at) >= BEHIND);
            let keeps_up =
                |place: &Place| due.is_some_and(|(_, number)| self.subscribers[*place].next_number() >= *number);
            if !survivors.iter().all(keeps_up) {
                steady_since = now;
            }
        }
    }

    fn report(&self, round: usize, victim: Place, shape: &Shape, outcome: &Outcome) {
        let role = match victim {
            root if root == shape.root() => "root ",
            leaf if shape.children_of(leaf).is_empty() => "leaf ",
            _ => "inner",
        };
        let whole =
            outcome.whole.map_or_else(|| "not in time".to_owned(), |whole| format!("{} ms", milliseconds(whole)));
        println!(
            "  {:>3} {role} {:<8} silence {} ms, one tree after {whole}, lost {}, doubled {}, out of order {}",
            round + 1,
            self.forest.id(victim),
            milliseconds(outcome.silence),
            outcome.lost,
            outcome.doubled,
            outcome.out_of_order,
        );
    }

    fn depth(&self) -> u32 {
        self.forest.depth().expect("a master says how deep the tree is")
    }

    /// Everything as it was before: all servers, all masters, one tree, a subscriber everywhere. But for the victims that
    /// stay dead.
    fn repair(&mut self, fault: Fault, victim: Place) {
        match fault {
            Fault::Crash if self.for_good => {}
            Fault::Drain if self.for_good => {
                self.forest.wait_exit(victim);
            }
            Fault::Freeze => self.forest.thaw(victim),
            Fault::Drain => {
                self.forest.wait_exit(victim);
                self.forest.start(victim);
            }
            Fault::Crash | Fault::CrashWithoutMasters => self.forest.start(victim),
        }
        self.forest.restart_masters();
        self.forest.shape();
        if fault != Fault::Freeze && !self.for_good {
            self.subscribers[victim] = Subscriber::connect(self.forest.address(victim));
        }
    }
}

/// A client that notes when it got which number.
struct Subscriber {
    stream: TcpStream,
    /// One more than the largest number that came.
    next_number: Arc<AtomicU64>,
    arrivals: Arc<Mutex<Vec<(Instant, u64)>>>,
}

impl Subscriber {
    fn connect(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).expect("the server accepts connections");
        stream.set_nodelay(true).expect("a TCP socket has this option");
        writeln!(stream, "{}", lines::login_anonymously()).expect("the server takes a login");
        let mut reader = BufReader::new(stream.try_clone().expect("a socket can be duplicated"));
        // A server that has just started may be learning what happened before, and answer late.
        let mut answer = String::new();
        reader.read_line(&mut answer).expect("the server answers");
        assert!(answer.contains("LOGIN_SUCCESS"), "{answer}");
        let subscriber = Self { stream, next_number: Arc::default(), arrivals: Arc::default() };
        let (next_number, arrivals) = (Arc::clone(&subscriber.next_number), Arc::clone(&subscriber.arrivals));
        // Ends with the connection.
        thread::spawn(move || note_arrivals(reader, &next_number, &arrivals));
        subscriber
    }

    fn next_number(&self) -> u64 {
        self.next_number.load(Ordering::Relaxed)
    }

    fn forget(&self) {
        self.arrivals.lock().unwrap().clear();
    }

    fn arrivals(&self, from: u64) -> Vec<(Instant, u64)> {
        let arrivals = self.arrivals.lock().unwrap();
        arrivals.iter().copied().filter(|(_, number)| *number >= from).collect()
    }
}

fn note_arrivals(mut reader: BufReader<TcpStream>, next_number: &AtomicU64, arrivals: &Mutex<Vec<(Instant, u64)>>) {
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        if let Some(number) = number_in(&line) {
            next_number.fetch_max(number + 1, Ordering::Relaxed);
            arrivals.lock().unwrap().push((Instant::now(), number));
        }
        line.clear();
    }
}

/// The number of an activity, found without reading the JSON: all subscribers read a thousand a second each.
fn number_in(line: &[u8]) -> Option<u64> {
    const FIELD: &[u8] = b"\"number\":";
    let start = line.windows(FIELD.len()).position(|window| window == FIELD)? + FIELD.len();
    let digits = line[start..].iter().take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0, |number, digit| 10 * number + u64::from(digit - b'0')))
}

/// The activities of one round on their way out.
struct Stream {
    /// One more than the last number that was published.
    published: Arc<AtomicU64>,
    ends: Arc<AtomicBool>,
    publisher: thread::JoinHandle<Vec<Instant>>,
}

impl Stream {
    fn start(at: &Subscriber, first: u64, pause: Duration) -> Self {
        let (published, ends) = (Arc::new(AtomicU64::new(first)), Arc::new(AtomicBool::new(false)));
        let (counter, is_over) = (Arc::clone(&published), Arc::clone(&ends));
        let mut stream = at.stream.try_clone().expect("a socket can be duplicated");
        let publisher = thread::spawn(move || {
            let started = Instant::now();
            let mut times = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let number = first + times.len() as u64;
                let mut line = lines::anonymous_activity(&format!(r#"{{"number":{number}}}"#));
                line.push('\n');
                times.push(Instant::now());
                stream.write_all(line.as_bytes()).expect("the publisher's server takes what is sent");
                counter.store(number + 1, Ordering::Relaxed);
                let due = pause * u32::try_from(times.len()).expect("a round is short");
                thread::sleep((started + due).saturating_duration_since(Instant::now()));
            }
            times
        });
        Self { published, ends, publisher }
    }

    /// Ends it, and says when each activity was published.
    fn end(self) -> Vec<Instant> {
        self.ends.store(true, Ordering::Relaxed);
        self.publisher.join().expect("the publisher does not panic")
    }
}

/// Compares what was published with what came to the survivors.
fn judge(published: &[Instant], first: u64, hurt_at: Instant, arrivals: &[Vec<(Instant, u64)>]) -> Outcome {
    let ended_at = *published.last().expect("something was published");
    let (mut silence, mut lost, mut doubled, mut out_of_order) = (Duration::ZERO, 0, 0, 0);
    // For each activity, when the last of those who got it did, unless somebody did not.
    let mut complete_at = vec![Some(hurt_at); published.len()];
    for arrivals in arrivals {
        let mut seen = BTreeSet::new();
        let mut largest = None;
        for (at, number) in arrivals {
            if !seen.insert(*number) {
                doubled += 1;
            } else if largest > Some(*number) {
                out_of_order += 1;
            }
            largest = largest.max(Some(*number));
            if let Some(Some(complete)) = complete_at.get_mut((number - first) as usize) {
                *complete = (*complete).max(*at);
            }
        }
        for number in first..first + published.len() as u64 {
            if !seen.contains(&number) {
                lost += 1;
                complete_at[(number - first) as usize] = None;
            }
        }
        silence = silence.max(longest_silence(arrivals, hurt_at, ended_at));
    }
    // The first activity that was published after the fault and from which on nothing was lost.
    let after = published.partition_point(|at| *at < hurt_at);
    let last_lost = complete_at.iter().rposition(Option::is_none);
    let from = last_lost.map_or(after, |last| after.max(last + 1));
    let whole = complete_at.get(from).copied().flatten().map(|at| at.duration_since(hurt_at));
    Outcome { silence, whole, lost, doubled, out_of_order, expected: published.len() * arrivals.len() }
}

/// The longest time without an arrival that did not end before the fault, the time until the end included.
fn longest_silence(arrivals: &[(Instant, u64)], hurt_at: Instant, ended_at: Instant) -> Duration {
    let before = arrivals.iter().rev().map(|(at, _)| *at).find(|at| *at <= hurt_at).unwrap_or(hurt_at);
    let after = arrivals.iter().map(|(at, _)| *at).filter(|at| *at > hurt_at);
    let mut last = before;
    let mut longest = Duration::ZERO;
    for at in after.chain([ended_at]) {
        longest = longest.max(at.saturating_duration_since(last));
        last = at;
    }
    longest
}

fn table(results: &[(Fault, Vec<Outcome>)]) -> String {
    let mut text = String::from(
        "| fault | rounds | silence median / p99 / max (ms) | one tree after, median / p99 / max (ms) | lost | doubled | out of order |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for (fault, outcomes) in results {
        let sum = |of: fn(&Outcome) -> usize| outcomes.iter().map(of).sum::<usize>();
        let silence = quantiles(outcomes.iter().map(|outcome| outcome.silence));
        let whole = quantiles(outcomes.iter().filter_map(|outcome| outcome.whole));
        let late = outcomes.iter().filter(|outcome| outcome.whole.is_none()).count();
        let late = if late == 0 { String::new() } else { format!(" ({late} not in time)") };
        text.push_str(&format!(
            "| {} | {} | {silence} | {whole}{late} | {} of {} | {} | {} |\n",
            fault.name(),
            outcomes.len(),
            sum(|outcome| outcome.lost),
            sum(|outcome| outcome.expected),
            sum(|outcome| outcome.doubled),
            sum(|outcome| outcome.out_of_order),
        ));
    }
    text
}

/// Median, 99th percentile and maximum.
fn quantiles(values: impl Iterator<Item = Duration>) -> String {
    let mut values: Vec<Duration> = values.collect();
    values.sort_unstable();
    if values.is_empty() {
        return "-".to_owned();
    }
    let at = |percent: usize| milliseconds(values[(values.len() * percent).div_ceil(100).max(1) - 1]);
    format!("{} / {} / {}", at(50), at(99), at(100))
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.1}", duration.as_secs_f64() * 1000.0)
}
