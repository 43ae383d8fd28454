//! Users in etcd: made, found, listed and watched. Every answer is etcd's of this moment; nothing is kept here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arborcast_proto::wire::UserRecord;
use arborcast_proto::wire::limits::quote;
use tonic::Streaming;
use tracing::{debug, error, warn};

use super::etcd::api::{
    Compare, Event, KeyValue, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest, WatchResponse,
    compare, event, request_op, response_op,
};
use super::etcd::{Etcd, EtcdError};
use super::metrics::Metrics;
use super::record::{self, Keys, Owner, Unusable};

/// Most keys that are read at once.
const MAX_PAGE: i64 = 500;

/// Of what is skipped, the first and every so many are logged.
const LOG_EVERY: u64 = 1000;

/// Where a watcher is: in which store, and at which of its revisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    /// The store's number, never 0.
    pub(crate) store: u64,
    /// The revision.
    pub(crate) revision: i64,
}

/// A part of all users.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) users: Vec<UserRecord>,
    /// Where the next part begins; none behind the last.
    pub(crate) next: Option<Cursor>,
    /// The revision at which all parts are read.
    pub(crate) revision: i64,
}

/// Where the next part of all users begins.
#[derive(Debug, Clone)]
pub(crate) struct Cursor {
    key: Vec<u8>,
    revision: i64,
    /// Fewer than usual while there are values of another kind that are too long together.
    limit: i64,
}

/// The users of one cluster in etcd.
#[derive(Debug)]
pub(crate) struct Store {
    etcd: Etcd,
    keys: Keys,
    metrics: Arc<Metrics>,
    /// The number of the store that answered last; 0 at first.
    last_seen: AtomicU64,
}

impl Store {
    pub(crate) fn new(etcd: Etcd, keys: Keys, metrics: Arc<Metrics>) -> Self {
        Self { etcd, keys, metrics, last_seen: AtomicU64::new(0) }
    }

    /// Which store this is, and its revision. A new store gets a number, at random.
    ///
    /// # Errors
    /// When etcd can't be asked, or what is in the number's place is none.
    pub(crate) async fn head(&self) -> Result<Position, EtcdError> {
        let key = self.keys.store();
        let found = self.etcd.range(RangeRequest { key: key.clone(), ..RangeRequest::default() }).await?;
        let (value, revision) = match found.kvs.into_iter().next() {
            Some(found_key) => (found_key.value, found.header.map_or(0, |header| header.revision)),
            None => {
                let number = rand::random_range(1..=u64::MAX);
                let value = format!("{number:016x}").into_bytes();
                self.create(key, value).await?
            }
        };
        let number = std::str::from_utf8(&value).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
        let store = number.filter(|number| *number > 0).ok_or_else(|| {
            EtcdError::Nonsense("what is at the prefix is not ours: choose another --users-prefix".to_owned())
        })?;
        let before = self.last_seen.swap(store, Ordering::Relaxed);
        if before != 0 && before != store {
            error!(
                "etcd is another one, or was emptied: nodes keep the users that they know, and no name that they know is \
                 given to others; bring the users back with `arborcast-node import-users`"
            );
        }
        Ok(Position { store, revision })
    }

    /// Gives a name to who asks, if it is nobody's.
    ///
    /// # Errors
    /// When that is not known: it may have been done. The same call again finds out.
    pub(crate) async fn register(&self, user: &UserRecord) -> Result<Owner, EtcdError> {
        let key = self.keys.user(&user.username);
        let value = record::value(user);
        let (found, _) = self.create(key.clone(), value).await?;
        Ok(record::owner(user, self.keys.read(&key, &found)))
    }

    /// Puts a value where there is none: the one transaction of which all depends. Returns what is there afterwards, and
    /// the revision.
    async fn create(&self, key: Vec<u8>, value: Vec<u8>) -> Result<(Vec<u8>, i64), EtcdError> {
        let is_absent = Compare {
            result: compare::CompareResult::Equal.into(),
            target: compare::CompareTarget::Create.into(),
            key: key.clone(),
            target_union: Some(compare::TargetUnion::CreateRevision(0)),
        };
        let put = request_op::Request::RequestPut(PutRequest { key: key.clone(), value: value.clone() });
        let get = request_op::Request::RequestRange(RangeRequest { key, ..RangeRequest::default() });
        let transaction = TxnRequest {
            compare: vec![is_absent],
            success: vec![RequestOp { request: Some(put) }],
            failure: vec![RequestOp { request: Some(get) }],
        };
        let answer = self.etcd.transact(transaction).await?;
        let revision = answer.header.map_or(0, |header| header.revision);
        if answer.succeeded {
            return Ok((value, revision));
        }
        let found = answer.responses.into_iter().find_map(|response| match response.response? {
            response_op::Response::ResponseRange(range) => range.kvs.into_iter().next(),
            response_op::Response::ResponsePut(_) => None,
        });
        let found = found.ok_or_else(|| EtcdError::Nonsense("a key is neither there nor absent".to_owned()))?;
        Ok((found.value, revision))
    }

    /// Who has a name.
    ///
    /// # Errors
    /// When etcd can't be asked.
    pub(crate) async fn find(&self, username: &str) -> Result<Option<UserRecord>, EtcdError> {
        let range = RangeRequest { key: self.keys.user(username), ..RangeRequest::default() };
        let found = self.etcd.range(range).await?.kvs.into_iter().next();
        Ok(found.and_then(|found| self.read(&found)))
    }

    /// A part of all users: the first one, or one behind another.
    ///
    /// # Errors
    /// When etcd can't be asked; [`EtcdError::OutOfRange`] when it no longer has what is behind the other part.
    pub(crate) async fn page(&self, cursor: Option<Cursor>) -> Result<Page, EtcdError> {
        let (first, behind) = self.keys.users();
        let mut cursor = cursor.unwrap_or(Cursor { key: first, revision: 0, limit: MAX_PAGE });
        loop {
            let range = RangeRequest {
                key: cursor.key.clone(),
                range_end: behind.clone(),
                limit: cursor.limit,
                revision: cursor.revision,
                keys_only: false,
            };
            match self.etcd.range(range.clone()).await {
                Ok(answer) => {
                    let revision = if cursor.revision == 0 {
                        answer.header.map_or(0, |header| header.revision)
                    } else {
                        cursor.revision
                    };
                    let last = answer.kvs.last().filter(|_| answer.more).map(|last| after(&last.key));
                    let limit = (2 * cursor.limit).min(MAX_PAGE);
                    let next = last.map(|key| Cursor { key, revision, limit });
                    let users = answer.kvs.iter().filter_map(|found| self.read(found)).collect();
                    return Ok(Page { users, next, revision });
                }
                // Either too long, which fewer are not, or gone.
                Err(EtcdError::OutOfRange) if cursor.limit > 1 => cursor.limit /= 2,
                Err(EtcdError::OutOfRange) => {
                    let answer = self.etcd.range(RangeRequest { keys_only: true, ..range }).await?;
                    let Some(longest) = answer.kvs.first() else { return Err(EtcdError::OutOfRange) };
                    self.skip(&longest.key, Unusable::TooLong);
                    cursor.key = after(&longest.key);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// What happens behind a revision.
    ///
    /// # Errors
    /// When etcd can't be asked.
    pub(crate) async fn watch(&self, after: i64) -> Result<Streaming<WatchResponse>, EtcdError> {
        let (key, range_end) = self.keys.users();
        let start_revision = after.saturating_add(1);
        let watch = WatchCreateRequest { key, range_end, start_revision, progress_notify: true, fragment: true };
        self.etcd.watch(watch).await
    }

    /// The user that an event is about, if it is about one that is there now.
    pub(crate) fn added(&self, event: &Event) -> Option<UserRecord> {
        let found = event.kv.as_ref()?;
        if event.r#type() == event::EventType::Delete {
            let deleted = self.metrics.deleted();
            if deleted % LOG_EVERY == 1 {
                let key = quote(&String::from_utf8_lossy(&found.key));
                warn!(key, deleted, "a user was deleted from etcd: nodes that know the user keep them");
            }
            return None;
        }
        self.read(found)
    }

    fn read(&self, found: &KeyValue) -> Option<UserRecord> {
        self.keys.read(&found.key, &found.value).map_err(|unusable| self.skip(&found.key, unusable)).ok()
    }

    fn skip(&self, key: &[u8], why: Unusable) {
        let skipped = self.metrics.skipped(why.name());
        let (key, why) = (quote(&String::from_utf8_lossy(key)), why.name());
        if skipped % LOG_EVERY == 1 {
            warn!(key, why, skipped, "what is in etcd here is no user: skipped");
        } else {
            debug!(key, why, "skipped what is no user");
        }
    }
}

/// The first key behind this one.
fn after(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}
