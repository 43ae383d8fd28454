//! Real servers, masters, publishers and subscribers, and a seeded schedule of faults: whatever was acknowledged must be at
//! every subscriber, once and in order, and a name that two want has one owner, the same everywhere (protocol, Relay;
//! Extended sessions; Users in an extended tree).
//!
//! One server at a time is hurt, since the promise is for any one: killed, frozen, told to stop; masters die beside that.
//! The next fault strikes when all are one tree again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use arborcast_client::{
    Activity, Address, Credentials, Error, Event, Identity, Options, Publisher, Servers, Session, Subscriber, register,
};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinHandle;

use crate::forest::{Forest, Place};
use crate::lines;
use crate::peer::{Arrival, Peer};
use crate::wait;

/// How long everything may take to come to rest after the last fault.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is to be run.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Chooses the faults.
    pub seed: u64,
    /// For how long there are new faults.
    pub time: Duration,
    /// How many servers there are.
    pub servers: usize,
    /// How many publish.
    pub publishers: usize,
    /// How many receive.
    pub subscribers: usize,
    /// The pause between two activities of one publisher.
    pub pause: Duration,
}

/// What has happened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// How often each kind of fault struck.
    pub faults: BTreeMap<&'static str, u64>,
    /// Activities published.
    pub published: u64,
    /// Those that were acknowledged.
    pub acknowledged: u64,
    /// Deliveries to subscribers.
    pub delivered: u64,
    /// Deliveries that were due and did not take place.
    pub lost: u64,
    /// Deliveries that took place again.
    pub doubled: u64,
    /// Deliveries in the wrong order.
    pub out_of_order: u64,
    /// Gaps that subscribers were told of.
    pub gaps: u64,
    /// How often a client lost its server and went on.
    pub reconnects: u64,
    /// Names that two clients wanted at once.
    pub names: u64,
    /// Those that one of the two was told to have.
    pub won: u64,
    /// Those that both were told to have.
    pub won_twice: u64,
    /// Those whose owner can't log in somewhere, or differs from server to server: who was told what, and which secrets
    /// open which server.
    pub disputed: Vec<String>,
}

impl Report {
    /// Whether every promise was kept.
    pub fn is_clean(&self) -> bool {
        let broken = [self.lost, self.doubled, self.out_of_order, self.gaps, self.won_twice];
        self.acknowledged == self.published && broken == [0; 5] && self.disputed.is_empty()
    }
}

/// What a subscriber has seen: of each publisher, the number that comes next.
#[derive(Debug, Default)]
struct Seen {
    next: BTreeMap<u64, u64>,
    report: Report,
}

impl Seen {
    fn take(&mut self, activity: &Activity) {
        let value: serde_json::Value = serde_json::from_slice(activity.as_bytes()).expect("activities are JSON");
        let (Some(publisher), Some(number)) = (value["publisher"].as_u64(), value["number"].as_u64()) else { return };
        let next = self.next.entry(publisher).or_default();
        self.report.delivered += 1;
        match number.cmp(next) {
            std::cmp::Ordering::Equal => *next += 1,
            // Either it came before, or it was left out before.
            std::cmp::Ordering::Less => self.report.doubled += 1,
            std::cmp::Ordering::Greater => {
                self.report.out_of_order += 1;
                *next = number + 1;
            }
        }
    }
}

/// Runs it, and says how it went. `say` is told what is done.
///
/// # Panics
/// When the servers do not become one tree again, or a client gives up.
pub fn run(plan: &Plan, mut say: impl FnMut(&str)) -> Report {
    let mut forest = Forest::grow(2, plan.servers);
    forest.dismiss_clients();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime can be made");
    let address = |address: SocketAddr| Address::new(address.ip().to_string(), address.port()).expect("an address");
    let addresses: Vec<Address> = (0..plan.servers).map(|place| address(forest.address(place))).collect();
    let masters: Vec<Address> = forest.master_addresses().iter().copied().map(address).collect();
    let servers = |first: usize| {
        let mut addresses = addresses.clone();
        addresses.rotate_left(first % plan.servers);
        Servers { addresses, masters: masters.clone() }
    };
    let options = Options::default();
    let log_in = |first| {
        let session = Session::login(servers(first), &Identity::Anonymous, &options);
        runtime.block_on(session).expect("there are servers").split()
    };
    let seen: Vec<Arc<Mutex<Seen>>> = (0..plan.subscribers).map(|_| Arc::default()).collect();
    let mut subscribers = Vec::new();
    for (number, seen) in seen.iter().enumerate() {
        let (publisher, subscriber) = log_in(number);
        subscribers.push((publisher, runtime.spawn(receive(subscriber, Arc::clone(seen)))));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let publishers: Vec<JoinHandle<(u64, u64)>> = (0..plan.publishers)
        .map(|number| {
            // It only publishes, so what it receives is thrown away.
            let (publisher, _) = log_in(number * 2 + 1);
            runtime.spawn(publish(publisher, number as u64, plan.pause, Arc::clone(&stop)))
        })
        .collect();

    let mut report = Report::default();
    let mut rng = StdRng::seed_from_u64(plan.seed);
    let mut contests = Vec::new();
    let end = Instant::now() + plan.time;
    while Instant::now() < end {
        thread::sleep(Duration::from_millis(rng.random_range(100..1500)));
        let name = format!("user {}", contests.len());
        let rivals = [0, 1].map(|_| servers(rng.random_range(0..plan.servers)));
        contests.push(runtime.spawn(contend(name, rivals)));
        let fault = hurt(&mut forest, &mut rng, &mut say);
        *report.faults.entry(fault).or_default() += 1;
        forest.shape();
    }
    say("no more faults");
    stop.store(true, Ordering::Relaxed);
    let mut published = Vec::new();
    for publisher in publishers {
        let (sent, acknowledged) = runtime.block_on(publisher).expect("a publisher does not panic");
        published.push(sent);
        report.published += sent;
        report.acknowledged += acknowledged;
    }
    let lock = |seen: &Arc<Mutex<Seen>>| seen.lock().unwrap_or_else(PoisonError::into_inner).next.clone();
    let all: BTreeMap<u64, u64> = (0..).zip(published).filter(|(_, count)| *count > 0).collect();
    let deadline = Instant::now() + PATIENCE;
    while seen.iter().any(|seen| lock(seen) != all) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
    }
    for seen in &seen {
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        report.delivered += seen.report.delivered;
        report.doubled += seen.report.doubled;
        report.out_of_order += seen.report.out_of_order;
        report.gaps += seen.report.gaps;
        report.reconnects += seen.report.reconnects;
    }
    let due = report.published * plan.subscribers as u64;
    report.lost = (due + report.doubled).saturating_sub(report.delivered);
    for (_, subscriber) in &subscribers {
        subscriber.abort();
    }
    for contest in contests {
        let contest = runtime.block_on(contest).expect("a contest does not panic");
        report.names += 1;
        report.won += u64::from(!contest.winners.is_empty());
        report.won_twice += u64::from(contest.winners.len() > 1);
        report.disputed.extend(contest.dispute(&forest));
    }
    report
}

/// A name that two clients wanted at once, each with a secret of its own.
struct Contest {
    name: String,
    /// The secrets of those who were told that it is theirs.
    winners: Vec<&'static str>,
    /// Those of clients that were told nothing, since their server died meanwhile.
    unknown: Vec<&'static str>,
}

/// The secrets of the two.
const SECRETS: [&str; 2] = ["left", "right"];

async fn contend(name: String, servers: [Servers; 2]) -> Contest {
    let [left, right] = servers;
    let options = Options::default();
    let ask = async |servers: Servers, secret: &'static str| {
        let credentials = Credentials { username: name.clone(), secret: secret.into() };
        register(servers, &credentials, &options).await
    };
    let outcomes = tokio::join!(ask(left, SECRETS[0]), ask(right, SECRETS[1]));
    let mut contest = Contest { name: name.clone(), winners: Vec::new(), unknown: Vec::new() };
    for (outcome, secret) in [outcomes.0, outcomes.1].into_iter().zip(SECRETS) {
        match outcome {
            Ok(_) => contest.winners.push(secret),
            Err(Error::RegisterFailed { .. }) => {}
            Err(_) => contest.unknown.push(secret),
        }
    }
    contest
}

impl Contest {
    /// Tells if it is not so that the same secret, and no other, opens every server; that of the winner, if one is known.
    fn dispute(&self, forest: &Forest) -> Option<String> {
        let opens = |place: Place, secret: &str| {
            let mut client = Peer::connect(forest.address(place));
            client.send(lines::login(&self.name, secret));
            matches!(client.arrival(wait::PATIENCE), Arrival::Line(line) if line.command() == "LOGIN_SUCCESS")
        };
        let owners = |place| SECRETS.into_iter().filter(|secret| opens(place, secret)).collect::<Vec<_>>();
        let everywhere: Vec<_> = forest.awake().into_iter().map(owners).collect();
        let is_settled = everywhere.iter().all(|owners| match (&self.winners[..], &owners[..]) {
            ([winner], [owner]) => winner == owner,
            ([], []) => true,
            (winners, [owner]) => {
                let may_be = winners.contains(owner) || (winners.is_empty() && self.unknown.contains(owner));
                may_be && everywhere.iter().all(|other| other == owners)
            }
            _ => false,
        });
        let Self { name, winners, unknown } = self;
        (!is_settled).then(|| format!("{name}: won by {winners:?}, unknown {unknown:?}, opened by {everywhere:?}"))
    }
}

async fn receive(mut subscriber: Subscriber, seen: Arc<Mutex<Seen>>) {
    while let Some(event) = subscriber.next_event().await {
        let event = event.expect("a subscriber never gives up");
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Activities(batch) => batch.iter().for_each(|activity| seen.take(activity)),
            Event::Lost { .. } => {}
            Event::Reconnected { .. } => seen.report.reconnects += 1,
            Event::Gap { .. } => seen.report.gaps += 1,
        }
    }
}

/// Publishes until told to stop, and returns how many were published and how many of them acknowledged.
async fn publish(publisher: Publisher, number: u64, pause: Duration, stop: Arc<AtomicBool>) -> (u64, u64) {
    let mut count = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        let text = format!(r#"{{"publisher":{number},"number":{count}}}"#);
        let activity = Activity::parse(&text).expect("it is an object");
        publisher.publish(&activity).await.expect("a publisher never gives up");
        count += 1;
        tokio::time::sleep(pause).await;
    }
    let flushed = tokio::time::timeout(PATIENCE, publisher.flush()).await;
    flushed.expect("everything is acknowledged in the end").expect("a publisher never gives up");
    (publisher.published(), publisher.taken())
}

/// Does something to a server, and makes it good again.
fn hurt(forest: &mut Forest, rng: &mut StdRng, say: &mut impl FnMut(&str)) -> &'static str {
    let victim = *forest.awake().choose(rng).expect("there are servers");
    let id = forest.id(victim).to_owned();
    let pause = Duration::from_millis(rng.random_range(0..3000));
    let fault = ["kill -9", "kill -9", "freeze", "drain", "drain", "restart at once", "masters die", "a master dies"];
    let fault = *fault.choose(rng).expect("there are some");
    say(&format!("{fault}: {id}, for {} ms", pause.as_millis()));
    match fault {
        "freeze" => {
            forest.freeze(victim);
            thread::sleep(pause);
            forest.thaw(victim);
        }
        "drain" => {
            forest.terminate(victim);
            let status = forest.wait_exit(victim);
            assert_eq!(status.code(), Some(0), "{id} was told to stop");
            thread::sleep(pause);
            forest.start(victim);
        }
        "restart at once" => {
            forest.kill(victim);
            forest.start(victim);
        }
        "masters die" | "a master dies" => {
            if fault == "a master dies" {
                forest.kill_master(rng.random_range(0..2));
            } else {
                forest.kill_masters();
            }
            forest.kill(victim);
            thread::sleep(pause);
            forest.restart_masters();
            forest.start(victim);
        }
        _ => {
            forest.kill(victim);
            thread::sleep(pause);
            forest.start(victim);
        }
    }
    wait::until(wait::PATIENCE, || {
        if forest.awake().len() == forest.len() { Ok(()) } else { Err("not all servers run".to_owned()) }
    });
    fault
}
