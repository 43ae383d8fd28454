//! One master from start to stop.

use std::sync::Arc;

use arborcast_proto::registry::FILE_DESCRIPTOR_SET;
use arborcast_proto::registry::registry_server::RegistryServer;
use arborcast_proto::users::FILE_DESCRIPTOR_SET as USERS_DESCRIPTOR_SET;
use arborcast_proto::users::users_server::UsersServer;
use axum::middleware::from_fn_with_state;
use futures_util::stream::Stream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic_health::pb::FILE_DESCRIPTOR_SET as HEALTH_DESCRIPTOR_SET;
use tracing::{info, warn};

use crate::admission::TicketOffice;
use crate::auth::Authorizer;
use crate::error::MasterError;
use crate::health;
use crate::http::{self, Page};
use crate::incoming::bounded;
use crate::metrics;
use crate::naming;
use crate::registry::Registry;
use crate::service::Service;
use crate::settings::{CALL_TIMEOUT, KEEPALIVE, MAX_MESSAGE, STOP_TIMEOUT, Settings};
use crate::users::{self, Users};
use crate::watch::Announcer;

/// How many watchers may wait for the announcer to look at them.
const NEWCOMERS: usize = 16;

/// Calls at one time on one connection.
const MAX_CALLS: u32 = 128;

/// Longest metadata of one call, in bytes.
const MAX_METADATA: u32 = 16 << 10;

/// How much of a call, and of a connection, may be on its way to us unread.
const CALL_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 512 << 10;

/// Longest request to the health and reflection services.
const MAX_SMALL_MESSAGE: usize = 16 << 10;

/// Runs a master on a source of connections until `stop` is cancelled.
///
/// # Errors
/// When it can't begin.
pub async fn serve<IO>(
    connections: impl Stream<Item = IO> + Send,
    settings: Settings,
    stop: CancellationToken,
) -> Result<(), MasterError>
where
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    serve_with_page(connections, settings, None, stop).await
}

/// As [`serve`], with a live page.
///
/// # Errors
/// When it can't begin.
pub async fn serve_with_page<IO>(
    connections: impl Stream<Item = IO> + Send,
    settings: Settings,
    page: Option<Page>,
    stop: CancellationToken,
) -> Result<(), MasterError>
where
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let Settings { master_id, secret, warm_up, balances, users, bounds } = settings;
    let users = users.map(Users::new).transpose()?;
    let registry = Arc::new(Registry::new(master_id, warm_up, balances, users.is_some(), bounds.topology));
    let (newcomers, watchers) = mpsc::channel(NEWCOMERS);
    let tasks = TaskTracker::new();
    let tickets = TicketOffice::new(&secret, registry.master_id().to_owned());
    let authorizer = Authorizer::new(secret);
    match page {
        Some(page) => {
            let counted = users.as_ref().map(Users::metrics);
            tasks.spawn(http::serve(page, Arc::clone(&registry), authorizer.clone(), counted, stop.clone()))
        }
        None => tasks.spawn(http::remember(Arc::clone(&registry), stop.clone())),
    };
    let (reporter, health_service) = tonic_health::server::health_reporter();
    health::begin(&reporter).await;
    let users = users
        .map(|users| users.serve(authorizer.clone(), bounds.report_streams, reporter.clone(), &tasks, stop.clone()))
        .transpose()?;
    let service =
        Service::new(Arc::clone(&registry), authorizer, tickets, newcomers, &bounds, tasks.clone(), stop.clone());
    let routes = routes(service, users)?.add_service(health_service.max_decoding_message_size(MAX_SMALL_MESSAGE));
    let routes = routes.into_axum_router().layer(from_fn_with_state(Arc::clone(&registry), metrics::count));

    info!(master = registry.master_id(), ?warm_up, balances, "serving");
    tasks.spawn(Announcer::new(Arc::clone(&registry), watchers).run(stop.clone()));
    tasks.spawn(naming::run(registry, stop.clone()));
    tasks.spawn(health::follow(reporter, warm_up, stop.clone()));
    tasks.close();
    let incoming = bounded(connections, bounds.connections, bounds.handshake_timeout);
    let serving = async {
        builder().add_routes(routes.into()).serve_with_incoming_shutdown(incoming, stop.cancelled()).await?;
        stop.cancel();
        tasks.wait().await;
        Ok(())
    };
    let too_late = async {
        stop.cancelled().await;
        tokio::time::sleep(STOP_TIMEOUT).await;
    };
    tokio::select! {
        biased;
        outcome = serving => outcome,
        () = too_late => {
            warn!(tasks = tasks.len(), "cut what did not end in time");
            Ok(())
        }
    }
}

fn builder() -> Server {
    Server::builder()
        .timeout(CALL_TIMEOUT)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(MAX_CALLS)
        .http2_max_header_list_size(MAX_METADATA)
        .initial_stream_window_size(CALL_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
}

fn routes(service: Service, users: Option<users::Service>) -> Result<Routes, MasterError> {
    let reflection = || {
        let reflection = tonic_reflection::server::Builder::configure();
        let reflection = match &users {
            Some(_) => reflection.register_encoded_file_descriptor_set(USERS_DESCRIPTOR_SET),
            None => reflection,
        };
        reflection
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(HEALTH_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET)
            .include_reflection_service(false)
    };
    let mut routes = Routes::default()
        .add_service(RegistryServer::new(service).max_decoding_message_size(MAX_MESSAGE))
        .add_service(reflection().build_v1()?.max_decoding_message_size(MAX_SMALL_MESSAGE))
        .add_service(reflection().build_v1alpha()?.max_decoding_message_size(MAX_SMALL_MESSAGE));
    if let Some(users) = users {
        routes = routes.add_service(UsersServer::new(users).max_decoding_message_size(MAX_SMALL_MESSAGE));
    }
    Ok(routes)
}
