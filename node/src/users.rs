//! Users that the masters keep: names are registered there, asked for there, and what is added is told by a stream.
//!
//! Any master serves: whoever does not answer is left for the next one, and what was begun at one is repeated word for word
//! at another. All that is asked has an answer within a bounded time, for the core waits for it.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arborcast_core::{AtMasters, Event, TaskId, Told};
use arborcast_proto::users::watch_response::Kind;
use arborcast_proto::users::{Added, Outcome, Position, RegisterRequest, User, VerifyRequest, WatchRequest, Whole};
use arborcast_proto::wire::UserRecord;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Status};
use tracing::{debug, info, warn};

use crate::net::Inbound;
use crate::registry::Client;

/// How long a registration may take, at all masters together: less than clients wait (protocol, B50).
const REGISTER_TIMEOUT: Duration = Duration::from_secs(8);

/// How long looking up a user may take, at all masters together (protocol, B50).
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(3);

/// How long one master may take, which waits for etcd for two and a half seconds.
const CALL_TIMEOUT: Duration = Duration::from_millis(3500);

/// Calls at one time, of each kind; the others wait.
const MAX_CALLS: usize = 64;

/// The pause after all masters were asked in vain, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// Of a row of failures the first and every so many are logged as a warning.
const WARN_EVERY: u32 = 30;

/// The masters as keepers of users.
pub(crate) struct Users {
    masters: Arc<[Client]>,
    inbox: mpsc::Sender<Inbound>,
    registrations: Arc<Semaphore>,
    lookups: Arc<Semaphore>,
    tasks: TaskTracker,
    ended: CancellationToken,
    is_told: Arc<AtomicBool>,
}

impl Users {
    /// Begins to be told of users. What is begun, `tasks` own until `ended`.
    pub(crate) fn start(
        masters: Vec<Client>,
        inbox: mpsc::Sender<Inbound>,
        tasks: TaskTracker,
        ended: CancellationToken,
    ) -> Self {
        let (masters, is_told): (Arc<[Client]>, _) = (masters.into(), Arc::new(AtomicBool::new(false)));
        let watch = keep_watching(Arc::clone(&masters), inbox.clone(), Arc::clone(&is_told));
        tasks.spawn(ended.clone().run_until_cancelled_owned(watch));
        let calls = || Arc::new(Semaphore::new(MAX_CALLS));
        Self { masters, inbox, registrations: calls(), lookups: calls(), tasks, ended, is_told }
    }

    /// Whether some master tells of users at the moment.
    pub(crate) fn is_told(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_told)
    }

    /// Registers a user in a task of its own, and hands over what came of it.
    pub(crate) fn register(&self, record: UserRecord) {
        let (masters, calls) = (Arc::clone(&self.masters), Arc::clone(&self.registrations));
        self.answer(async move {
            let deadline = Instant::now() + REGISTER_TIMEOUT;
            let turn = timeout_at(deadline, calls.acquire()).await;
            let outcome = match turn {
                Ok(_turn) => register(&masters, &record, deadline).await,
                Err(_elapsed) => AtMasters::Unknown("too many registrations wait for the masters".to_owned()),
            };
            Event::UserRegistered { record, outcome }
        });
    }

    /// Asks for a user in a task of its own, and hands over what came of it.
    pub(crate) fn look_up(&self, task: TaskId, username: String) {
        let (masters, calls) = (Arc::clone(&self.masters), Arc::clone(&self.lookups));
        self.answer(async move {
            let asked = async {
                let _turn = calls.acquire().await.ok()?;
                look_up(&masters, &username).await
            };
            let user = timeout(LOOK_UP_TIMEOUT, asked).await.ok().flatten();
            Event::UserLookedUp { task, user }
        });
    }

    fn answer(&self, work: impl Future<Output = Event> + Send + 'static) {
        let inbox = self.inbox.clone();
        self.tasks.spawn(self.ended.clone().run_until_cancelled_owned(async move {
            // The driver being gone means that the node has stopped.
            let _ = inbox.send(Inbound::Answered(work.await)).await;
        }));
    }
}

/// All masters, those to which there is contact first, and of these another one first each time.
fn in_turn(masters: &[Client]) -> Vec<&Client> {
    let first = rand::random_range(0..masters.len().max(1));
    let mut masters: Vec<&Client> = masters.iter().cycle().skip(first).take(masters.len()).collect();
    masters.sort_by_key(|master| !master.is_connected());
    masters
}

/// Registers a user at one master after the other, until one says whose the name is, or the time is over.
pub(crate) async fn register(masters: &[Client], user: &UserRecord, deadline: Instant) -> AtMasters {
    let mut why = "no master can be reached".to_owned();
    let mut rounds = 0;
    while Instant::now() < deadline {
        for master in in_turn(masters) {
            let until = deadline.min(Instant::now() + CALL_TIMEOUT);
            match timeout_at(until, register_at(master, user.clone())).await {
                Ok(Ok(outcome)) => return outcome,
                Ok(Err(status)) => {
                    debug!(master = master.address(), %status, "a master did not register a user");
                    if status.code() == Code::InvalidArgument {
                        return AtMasters::Unknown(status.message().to_owned());
                    }
                    why = reason(&status).unwrap_or(why);
                }
                Err(_elapsed) => debug!(master = master.address(), "a master does not answer in time"),
            }
        }
        sleep_until(deadline.min(Instant::now() + pause(rounds))).await;
        rounds += 1;
    }
    AtMasters::Unknown(why)
}

async fn register_at(master: &Client, user: UserRecord) -> Result<AtMasters, Status> {
    let request = master.request(RegisterRequest { user: Some(user.into()) });
    let answer = master.users().register(request).await?.into_inner();
    match answer.outcome() {
        Outcome::Registered => Ok(AtMasters::Registered),
        Outcome::Taken => Ok(AtMasters::Taken(answer.owner.and_then(User::into_record))),
        Outcome::Unspecified => Err(Status::internal("the master says nothing that is known here")),
    }
}

/// Asks each master once.
async fn look_up(masters: &[Client], username: &str) -> Option<UserRecord> {
    for master in in_turn(masters) {
        let request = master.request(VerifyRequest { username: username.to_owned() });
        match timeout(CALL_TIMEOUT, master.users().verify(request)).await {
            Ok(Ok(answer)) => {
                let user = answer.into_inner().user.and_then(User::into_record);
                return user.filter(|user| user.username == username);
            }
            Ok(Err(status)) if status.code() == Code::NotFound => return None,
            Ok(Err(status)) => debug!(master = master.address(), %status, "a master can't look up a user"),
            Err(_elapsed) => debug!(master = master.address(), "a master does not answer in time"),
        }
    }
    None
}

/// What a master has said, for people; `None` where there was no answer.
fn reason(status: &Status) -> Option<String> {
    if status.source().is_some() {
        None
    } else if status.code() == Code::Unimplemented {
        Some("the master does not keep users".to_owned())
    } else {
        Some(status.message().to_owned())
    }
}

fn pause(failures: u32) -> Duration {
    let pause = PAUSE.0.saturating_mul(1 << failures.min(8)).min(PAUSE.1);
    pause.mul_f64(rand::random_range(0.5..1.0))
}

/// Is told of users by one master after the other, for ever.
async fn keep_watching(masters: Arc<[Client]>, inbox: mpsc::Sender<Inbound>, is_told: Arc<AtomicBool>) {
    let mut position = None;
    let mut failures = 0_u32;
    loop {
        for master in in_turn(&masters) {
            let status = watch(master, &mut position, &inbox, &mut failures, &is_told).await;
            is_told.store(false, Ordering::Relaxed);
            let status = reason(&status).unwrap_or_else(|| status.message().to_owned());
            if failures.is_multiple_of(WARN_EVERY) {
                warn!(master = master.address(), status, failures, "this master does not tell of users");
            } else {
                debug!(master = master.address(), status, failures, "this master does not tell of users");
            }
            failures = failures.saturating_add(1);
        }
        sleep(pause(failures / u32::try_from(masters.len().max(1)).unwrap_or(1))).await;
    }
}

/// One stream, until it breaks.
async fn watch(
    master: &Client,
    position: &mut Option<Position>,
    inbox: &mpsc::Sender<Inbound>,
    failures: &mut u32,
    is_told: &AtomicBool,
) -> Status {
    let request = master.request(WatchRequest { after: *position });
    let mut told = match timeout(CALL_TIMEOUT, master.users().watch(request)).await {
        Ok(Ok(told)) => told.into_inner(),
        Ok(Err(status)) => return status,
        Err(_elapsed) => return Status::deadline_exceeded("no answer in time"),
    };
    loop {
        let kind = match told.message().await {
            Ok(Some(message)) => message.kind,
            Ok(None) => return Status::unavailable("the master ended the stream"),
            Err(status) => return status,
        };
        let (users, what, now_at) = match kind {
            Some(Kind::Whole(Whole { users, is_first, position })) => {
                (users, Told::Whole { is_first, is_last: position.is_some() }, position)
            }
            Some(Kind::Added(Added { users, position })) => (users, Told::Added, position),
            None => continue,
        };
        if now_at.is_some() && !is_told.swap(true, Ordering::Relaxed) {
            info!(master = master.address(), "a master tells of users");
            *failures = 0;
        }
        let users: Vec<UserRecord> = users.into_iter().filter_map(User::into_record).collect();
        if !users.is_empty() || matches!(what, Told::Whole { .. }) {
            let event = Event::UsersTold { users, told: what };
            if inbox.send(Inbound::Answered(event)).await.is_err() {
                return Status::cancelled("the node has stopped");
            }
        }
        // What was handed over is known, so that it need not be told again.
        *position = now_at.or(*position);
    }
}
