//! Talking to etcd: which member is asked, for how long, and what is made of its silence.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arborcast_proto::wire::Secret;
use arborcast_tls::{Tls, connector};
use thiserror::Error;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tracing::debug;

pub(crate) mod api {
    //! The part of etcd's API that is used, made at build time from `etcd/rpc.proto`.
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::indexing_slicing,
        clippy::or_fun_call,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::use_self,
        reason = "generated"
    )]
    tonic::include_proto!("etcdserverpb");
}

use api::auth_client::AuthClient;
use api::kv_client::KvClient;
use api::watch_client::WatchClient;
use api::{AuthenticateRequest, RangeRequest, RangeResponse, TxnRequest, TxnResponse};
use api::{WatchCreateRequest, WatchRequest, WatchResponse, watch_request};

/// How long a connection to a member may take.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// How long one member may take to answer.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long all of them together may take.
const PATIENCE: Duration = Duration::from_millis(2500);

/// After all of them were asked in vain; twice as long after the next time, and so on.
const PAUSE: Duration = Duration::from_millis(50);

/// How often a quiet connection is asked whether it still stands. etcd ends those that ask more often than every five
/// seconds.
const KEEPALIVE: Duration = Duration::from_secs(6);

/// How long the answer to that may take.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest answer that is read. etcd's own bound for one value is 1.5 MiB.
const MAX_MESSAGE: usize = 8 << 20;

/// Longest reason of etcd that is passed on, in characters.
const MAX_REASON: usize = 200;

type Header = MetadataValue<Ascii>;

/// Why etcd did not do what it was asked for. Whether it did it nevertheless is not known, unless a variant says so.
#[derive(Debug, Clone, Error)]
pub(crate) enum EtcdError {
    /// No member could be reached, or had a majority of the others behind it, in time.
    #[error("etcd has no quorum, or can't be reached ({0})")]
    NoQuorum(String),
    /// It does not let us. Nothing was done.
    #[error("etcd does not let this master use it ({0}): check --users-login and what that name may do")]
    Forbidden(String),
    /// It can't take more. Nothing was done.
    #[error("etcd takes nothing more ({0})")]
    Full(String),
    /// What was asked for is gone, or is longer than what is read. Nothing was done.
    #[error("etcd no longer has what was asked for, or it is too long")]
    OutOfRange,
    /// Something else: another version, or no etcd.
    #[error("etcd answers what makes no sense ({0})")]
    Nonsense(String),
}

impl EtcdError {
    fn of(status: &Status) -> Self {
        let why = || status.message().chars().take(MAX_REASON).collect();
        match status.code() {
            Code::OutOfRange => Self::OutOfRange,
            Code::ResourceExhausted => Self::Full(why()),
            Code::PermissionDenied | Code::Unauthenticated | Code::FailedPrecondition => Self::Forbidden(why()),
            // In a request that makes sense only name and password can be wrong.
            Code::InvalidArgument => Self::Forbidden(why()),
            Code::Unimplemented | Code::Internal => Self::Nonsense(why()),
            _ => Self::NoQuorum(why()),
        }
    }

    /// Whether another member, or the same one later, may do it.
    fn is_passing(&self) -> bool {
        matches!(self, Self::NoQuorum(_) | Self::Nonsense(_))
    }
}

/// Who we are to etcd, where it asks.
#[derive(Clone)]
pub(crate) struct Login {
    /// The name.
    pub(crate) name: String,
    /// The password.
    pub(crate) password: Secret,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A cluster of etcd.
#[derive(Debug)]
pub(crate) struct Etcd {
    members: Vec<Member>,
    /// The member that answered last.
    preferred: AtomicUsize,
    login: Option<Login>,
}

#[derive(Debug)]
struct Member {
    address: String,
    calls: Channel,
    /// Apart from calls: what is not read of one watch must not hold up anything else.
    watches: Channel,
    /// What it gave us for name and password.
    token: Mutex<Option<Header>>,
    /// Held while it is asked for that: it takes etcd a tenth of a second of a processor, which is enough once.
    login: tokio::sync::Mutex<()>,
}

impl Member {
    fn token(&self) -> Option<Header> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Etcd {
    /// Connects when it is asked for something.
    ///
    /// # Errors
    /// An address that can't be one.
    pub(crate) fn new(
        addresses: &[String],
        login: Option<Login>,
        tls: Option<&Arc<Tls>>,
    ) -> Result<Self, tonic::transport::Error> {
        let member = |address: &String| {
            let endpoint = Endpoint::from_shared(format!("http://{address}"))?
                .connect_timeout(CONNECT_TIMEOUT)
                .http2_keep_alive_interval(KEEPALIVE)
                .keep_alive_timeout(KEEPALIVE_TIMEOUT)
                .keep_alive_while_idle(true);
            let channel = || match tls {
                Some(tls) => endpoint.connect_with_connector_lazy(connector(Arc::clone(tls))),
                None => endpoint.connect_lazy(),
            };
            Ok(Member {
                address: address.clone(),
                calls: channel(),
                watches: channel(),
                token: Mutex::default(),
                login: tokio::sync::Mutex::default(),
            })
        };
        let members = addresses.iter().map(member).collect::<Result<_, _>>()?;
        Ok(Self { members, preferred: AtomicUsize::new(0), login })
    }

    /// Reads keys.
    ///
    /// # Errors
    /// See there.
    pub(crate) async fn range(&self, range: RangeRequest) -> Result<RangeResponse, EtcdError> {
        self.ask(|member, header| {
            let request = request(range.clone(), header);
            async move { kv(member).range(request).await.map(tonic::Response::into_inner) }
        })
        .await
    }

    /// Does something at one moment, or nothing. Where it is not known which, it is tried again: the transaction must be one
    /// that can be repeated.
    ///
    /// # Errors
    /// See there.
    pub(crate) async fn transact(&self, transaction: TxnRequest) -> Result<TxnResponse, EtcdError> {
        self.ask(|member, header| {
            let request = request(transaction.clone(), header);
            async move { kv(member).txn(request).await.map(tonic::Response::into_inner) }
        })
        .await
    }

    /// Opens a stream of changes. Whoever does not read it holds up other watches.
    ///
    /// # Errors
    /// See there.
    pub(crate) async fn watch(&self, create: WatchCreateRequest) -> Result<Streaming<WatchResponse>, EtcdError> {
        let create = WatchRequest { request_union: Some(watch_request::RequestUnion::CreateRequest(create)) };
        self.ask(|member, header| {
            // The stream of requests must not end before that of the answers.
            let requests = futures_util::StreamExt::chain(
                futures_util::stream::iter([create.clone()]),
                futures_util::stream::pending(),
            );
            let request = request(requests, header);
            let mut client = WatchClient::new(member.watches.clone()).max_decoding_message_size(MAX_MESSAGE);
            async move { client.watch(request).await.map(tonic::Response::into_inner) }
        })
        .await
    }

    /// Asks one member after the other, the one that answered last first.
    async fn ask<'a, T, F>(&'a self, call: impl Fn(&'a Member, Option<Header>) -> F) -> Result<T, EtcdError>
    where
        F: Future<Output = Result<T, Status>> + Send,
    {
        let deadline = Instant::now() + PATIENCE;
        let first = self.preferred.load(Ordering::Relaxed);
        let mut last = EtcdError::NoQuorum("no member is known".to_owned());
        for (attempt, index) in (first..first.saturating_add(self.members.len())).cycle().enumerate() {
            if attempt > 0 && attempt.is_multiple_of(self.members.len()) {
                let rounds = attempt / self.members.len().max(1) - 1;
                sleep_until(deadline.min(Instant::now() + PAUSE * (1 << rounds.min(6)))).await;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let index = index % self.members.len().max(1);
            let Some(member) = self.members.get(index).filter(|_| !left.is_zero()) else { break };
            let outcome = timeout(left.min(ATTEMPT_TIMEOUT), self.ask_member(member, &call)).await;
            let error = match outcome {
                Ok(Ok(answer)) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Ok(Err(error)) => error,
                // What clients are told does not say where it is.
                Err(_elapsed) => EtcdError::NoQuorum("a member does not answer in time".to_owned()),
            };
            debug!(member = member.address, %error, "etcd did not do it");
            if !error.is_passing() {
                return Err(error);
            }
            last = error;
        }
        Err(last)
    }

    async fn ask_member<'a, T, F>(
        &self,
        member: &'a Member,
        call: &impl Fn(&'a Member, Option<Header>) -> F,
    ) -> Result<T, EtcdError>
    where
        F: Future<Output = Result<T, Status>> + Send,
    {
        let Some(login) = &self.login else { return call(member, None).await.map_err(|status| EtcdError::of(&status)) };
        let known = member.token();
        let token = match &known {
            Some(token) => token.clone(),
            None => log_in(member, login, None).await?,
        };
        match call(member, Some(token)).await {
            // It forgets tokens after some minutes, and when it starts again.
            Err(status)
                if known.is_some() && matches!(status.code(), Code::Unauthenticated | Code::InvalidArgument) =>
            {
                let token = log_in(member, login, known.as_ref()).await?;
                call(member, Some(token)).await.map_err(|status| EtcdError::of(&status))
            }
            outcome => outcome.map_err(|status| EtcdError::of(&status)),
        }
    }
}

/// A token other than the one that is no good any more. Of those who need one at a time the first gets it for all.
async fn log_in(member: &Member, login: &Login, stale: Option<&Header>) -> Result<Header, EtcdError> {
    let _turn = member.login.lock().await;
    if let Some(token) = member.token().filter(|token| Some(token) != stale) {
        return Ok(token);
    }
    let request = AuthenticateRequest { name: login.name.clone(), password: login.password.expose().to_owned() };
    let answer = AuthClient::new(member.calls.clone()).authenticate(Request::new(request)).await;
    let token = answer.map_err(|status| EtcdError::of(&status))?.into_inner().token;
    let mut token: Header = token.parse().map_err(|_| EtcdError::Nonsense("its token is none".to_owned()))?;
    token.set_sensitive(true);
    *member.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.clone());
    Ok(token)
}

fn kv(member: &Member) -> KvClient<Channel> {
    KvClient::new(member.calls.clone()).max_decoding_message_size(MAX_MESSAGE)
}

/// A member that knows of no leader says so at once, and does not wait for one.
fn request<T>(message: T, token: Option<Header>) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("hasleader", Header::from_static("true"));
    if let Some(token) = token {
        request.metadata_mut().insert("token", token);
    }
    request
}
