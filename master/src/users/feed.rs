//! One watcher's stream: all users, or those behind its position, then each that is added.
//!
//! All users are read page by page, each when the watcher has taken the one before. After that nobody waits for a watcher:
//! one that does not keep up is ended, and comes back with its position.

use std::sync::Arc;
use std::time::Duration;

use arborcast_proto::users::watch_response::Kind;
use arborcast_proto::users::{Added, Position as Told, User, WatchResponse as Message, Whole};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};
use tracing::debug;

use super::etcd::EtcdError;
use super::etcd::api::WatchResponse;
use super::metrics::Metrics;
use super::service::unavailable;
use super::store::{Position, Store};
use crate::outbox::Outbox;

/// How many messages may wait for one watcher.
pub(crate) const QUEUE: usize = 64;

/// Most users in one message.
const MAX_USERS: usize = 500;

/// How long a watcher may take to read a part of all users.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Before all users are read once more, since etcd no longer had what was asked for.
const PAUSE: Duration = Duration::from_millis(500);

/// Serves one watcher, until it is gone or the master stops.
pub(crate) async fn serve(
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    readers: Arc<Semaphore>,
    after: Option<Position>,
    outbox: Outbox<Message>,
    stop: CancellationToken,
) {
    metrics.watcher_came();
    let feed = Feed { store: &store, metrics: &metrics, readers: &readers, outbox: &outbox };
    let status = tokio::select! {
        biased;
        () = stop.cancelled() => Status::unavailable("this master is stopping"),
        () = outbox.ended() => Status::cancelled("the watcher is gone"),
        status = feed.run(after) => status,
    };
    metrics.watcher_left();
    debug!(%status, "a watcher of users is gone");
    outbox.end(status);
}

struct Feed<'a> {
    store: &'a Store,
    metrics: &'a Metrics,
    readers: &'a Semaphore,
    outbox: &'a Outbox<Message>,
}

/// Why a watch has ended.
enum Ended {
    /// The position is no good: all users are told once more.
    Forgotten,
    /// A member has not come as far as this position: it lags behind, or etcd was emptied a moment ago.
    Behind(Position),
    /// The watcher has to call again.
    With(Status),
}

impl Feed<'_> {
    /// With which status it ends.
    async fn run(&self, mut after: Option<Position>) -> Status {
        loop {
            let head = match self.store.head().await {
                Ok(head) => head,
                Err(error) => return unavailable(&error),
            };
            let is_good = |after: &Position| after.store == head.store && after.revision <= head.revision;
            let position = match after.filter(is_good) {
                Some(after) => {
                    self.offer(Vec::new(), after);
                    after
                }
                None => match self.tell_whole(head.store).await {
                    Ok(position) => position,
                    Err(Ended::With(status)) => return status,
                    Err(Ended::Forgotten | Ended::Behind(_)) => {
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                },
            };
            after = match self.follow(position).await {
                Ended::With(status) => return status,
                Ended::Forgotten => None,
                Ended::Behind(position) => Some(position),
            };
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn tell_whole(&self, store: u64) -> Result<Position, Ended> {
        // A page may be some megabytes long.
        let Ok(_reader) = self.readers.acquire().await else {
            return Err(Ended::With(Status::unavailable("this master is stopping")));
        };
        self.metrics.told_whole();
        let (mut cursor, mut is_first) = (None, true);
        loop {
            let page = self.store.page(cursor).await.map_err(|error| ended(&error))?;
            let position = Position { store, revision: page.revision };
            let is_last = page.next.is_none();
            let users = page.users.into_iter().map(User::from).collect();
            let whole = Whole { users, is_first, position: is_last.then(|| told(position)) };
            // What follows the last part must not find the queue full of parts.
            let delivery = async {
                self.outbox.deliver(Message { kind: Some(Kind::Whole(whole)) }).await && self.outbox.drained().await
            };
            if tokio::time::timeout(READ_TIMEOUT, delivery).await != Ok(true) {
                return Err(Ended::With(too_slow()));
            }
            if is_last {
                return Ok(position);
            }
            (cursor, is_first) = (page.next, false);
        }
    }

    /// Passes on what is added behind a position.
    async fn follow(&self, mut position: Position) -> Ended {
        let mut changes: Streaming<WatchResponse> = match self.store.watch(position.revision).await {
            Ok(changes) => changes,
            Err(error) => return ended(&error),
        };
        loop {
            let response = match changes.message().await {
                Ok(Some(response)) => response,
                Ok(None) => return Ended::With(Status::unavailable("etcd has ended the watch")),
                // Longer than what is read; all users are told without it.
                Err(status) if status.code() == Code::OutOfRange => return Ended::Forgotten,
                Err(status) => {
                    debug!(%status, "etcd has broken off a watch");
                    return Ended::With(Status::unavailable("etcd has broken off the watch"));
                }
            };
            if response.compact_revision > 0 {
                return Ended::Forgotten;
            }
            if response.canceled {
                debug!(reason = response.cancel_reason, "etcd has ended a watch");
                return Ended::With(Status::unavailable("etcd has ended the watch: it may have lost its quorum"));
            }
            if response.header.as_ref().is_some_and(|header| header.revision < position.revision) {
                return Ended::Behind(position);
            }
            // More of the last revision may follow.
            let last = response.events.iter().filter_map(|event| Some(event.kv.as_ref()?.mod_revision)).max();
            let through = last.map_or(position.revision, |last| last - i64::from(response.fragment));
            position.revision = position.revision.max(through);
            let users: Vec<User> =
                response.events.iter().filter_map(|event| self.store.added(event)).map(User::from).collect();
            if !self.offer(users, position) {
                return Ended::With(too_slow());
            }
        }
    }

    /// Tells of users that were added; in more than one message none but the last has the new position.
    fn offer(&self, users: Vec<User>, position: Position) -> bool {
        let mut rest = users.into_iter();
        loop {
            let users: Vec<User> = rest.by_ref().take(MAX_USERS).collect();
            let is_last = rest.len() == 0;
            let added = Added { users, position: is_last.then(|| told(position)) };
            if !self.outbox.offer(Message { kind: Some(Kind::Added(added)) }) {
                return false;
            }
            if is_last {
                return true;
            }
        }
    }
}

fn ended(error: &EtcdError) -> Ended {
    match error {
        EtcdError::OutOfRange => Ended::Forgotten,
        error => Ended::With(unavailable(error)),
    }
}

fn too_slow() -> Status {
    Status::resource_exhausted("the watcher does not read what it is told: call again with the last position")
}

fn told(position: Position) -> Told {
    Told { store: position.store, revision: position.revision }
}
