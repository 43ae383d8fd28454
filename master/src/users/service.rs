//! The gRPC service `arborcast.users.v1.Users`: checks who calls, translates, and asks etcd.

use std::sync::Arc;

use arborcast_proto::users as pb;
use arborcast_proto::users::users_server::Users as UsersService;
use arborcast_proto::wire::UserRecord;
use arborcast_proto::wire::users::is_username;
use futures_util::stream::BoxStream;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use super::etcd::EtcdError;
use super::feed;
use super::metrics::Metrics;
use super::record::{self, Owner};
use super::store::{Position, Store};
use crate::auth::Authorizer;
use crate::outbox::outbox;

/// Registrations and lookups at one time.
const MAX_CALLS: usize = 1024;

/// Watchers that are told of all users at one time; others wait.
const MAX_READERS: usize = 16;

/// What the calls share.
#[derive(Debug)]
pub(crate) struct Service {
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    authorizer: Authorizer,
    calls: Semaphore,
    readers: Arc<Semaphore>,
    watchers: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Service {
    pub(crate) fn new(
        store: Arc<Store>,
        metrics: Arc<Metrics>,
        authorizer: Authorizer,
        watchers: Arc<Semaphore>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let (calls, readers) = (Semaphore::new(MAX_CALLS), Arc::new(Semaphore::new(MAX_READERS)));
        Self { store, metrics, authorizer, calls, readers, watchers, tasks, stop }
    }

    fn begin_call(&self) -> Result<SemaphorePermit<'_>, Status> {
        self.calls.try_acquire().map_err(|_| Status::resource_exhausted("this master is asked too much at once"))
    }

    async fn try_register(&self, user: Option<pb::User>) -> Result<Owner, Status> {
        let user = user.and_then(pb::User::into_record).ok_or_else(|| Status::invalid_argument("there is no user"))?;
        record::check(&user).map_err(Status::invalid_argument)?;
        let _call = self.begin_call()?;
        self.store.register(&user).await.map_err(|error| unavailable(&error))
    }

    async fn try_find(&self, username: &str) -> Result<UserRecord, Status> {
        if !is_username(username) {
            return Err(Status::invalid_argument("nobody can have this username"));
        }
        let _call = self.begin_call()?;
        let user = self.store.find(username).await.map_err(|error| unavailable(&error))?;
        user.ok_or_else(|| Status::not_found("nobody has this username"))
    }
}

#[tonic::async_trait]
impl UsersService for Service {
    type WatchStream = BoxStream<'static, Result<pb::WatchResponse, Status>>;

    async fn register(&self, request: Request<pb::RegisterRequest>) -> Result<Response<pb::RegisterResponse>, Status> {
        self.authorizer.check_node(&request)?;
        let outcome = self.try_register(request.into_inner().user).await;
        self.metrics.registration(match &outcome {
            Ok(Owner::Asker) => "registered",
            Ok(Owner::Other(_) | Owner::Nobody) => "taken",
            Err(status) => name(status),
        });
        let (outcome, owner) = match outcome? {
            Owner::Asker => (pb::Outcome::Registered, None),
            Owner::Other(owner) => (pb::Outcome::Taken, Some(owner.into())),
            Owner::Nobody => (pb::Outcome::Taken, None),
        };
        Ok(Response::new(pb::RegisterResponse { outcome: outcome.into(), owner }))
    }

    async fn verify(&self, request: Request<pb::VerifyRequest>) -> Result<Response<pb::VerifyResponse>, Status> {
        self.authorizer.check_node(&request)?;
        let user = self.try_find(&request.into_inner().username).await;
        self.metrics.lookup(user.as_ref().map_or_else(name, |_| "found"));
        Ok(Response::new(pb::VerifyResponse { user: Some(user?.into()) }))
    }

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.authorizer.check_node(&request)?;
        let slot = Arc::clone(&self.watchers).try_acquire_owned();
        let slot = slot.map_err(|_| Status::resource_exhausted("this master takes no more watchers now"))?;
        let (outbox, users) = outbox(feed::QUEUE, slot);
        let after = request.into_inner().after;
        let after = after.map(|pb::Position { store, revision }| Position { store, revision });
        let (store, metrics, readers) = (Arc::clone(&self.store), Arc::clone(&self.metrics), Arc::clone(&self.readers));
        self.tasks.spawn(feed::serve(store, metrics, readers, after, outbox, self.stop.clone()));
        Ok(Response::new(users))
    }
}

/// What a node is told when etcd does not do what it is asked for.
pub(crate) fn unavailable(error: &EtcdError) -> Status {
    Status::unavailable(error.to_string())
}

/// A name for the counters.
fn name(status: &Status) -> &'static str {
    match status.code() {
        tonic::Code::InvalidArgument => "invalid",
        tonic::Code::NotFound => "not_found",
        tonic::Code::ResourceExhausted => "refused",
        _ => "unavailable",
    }
}
