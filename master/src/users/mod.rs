//! Users that are kept in etcd: a name is one key there, made in one transaction, and so has one owner, whatever is lost or
//! cut off (proto/README.md, U10 to U16).
//!
//! - `address`, `record`: where etcd is, and how users stand in it. Pure.
//! - `etcd`: which member is asked, and for how long. `store`: users made, found, listed and watched there.
//! - `service`: the gRPC calls. `feed`: one watcher's stream. `probe`: whether etcd answers. `metrics`: what is counted.

mod address;
mod etcd;
mod feed;
pub(crate) mod metrics;
mod probe;
mod record;
mod service;
mod store;

use std::sync::Arc;

use arborcast_proto::wire::Secret;
use arborcast_tls::{Tls, hangups, reload_at};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic_health::server::HealthReporter;

use crate::auth::Authorizer;
use crate::error::MasterError;
use etcd::{Etcd, Login};
use metrics::Metrics;
use record::Keys;
use store::Store;

pub(crate) use address::members;
pub(crate) use service::Service;

/// Where users are kept.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The members of etcd, each `HOST:PORT`.
    pub(crate) members: Vec<String>,
    /// What all keys begin with. Trees that share one etcd have different ones.
    pub(crate) prefix: String,
    /// Name and password, if etcd wants them.
    pub(crate) login: Option<(String, Secret)>,
    /// TLS, if that is how etcd is reached.
    pub(crate) tls: Option<arborcast_tls::Settings>,
}

/// Users, ready to be served.
#[derive(Debug)]
pub(crate) struct Users {
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    tls: Option<Arc<Tls>>,
}

impl Users {
    /// Reads the certificates. etcd need not be there yet.
    ///
    /// # Errors
    /// When the certificates or the addresses can't be used.
    pub(crate) fn new(settings: Settings) -> Result<Self, MasterError> {
        let Settings { members, prefix, login, tls } = settings;
        let tls = tls.map(Tls::load).transpose()?.map(Arc::new);
        let login = login.map(|(name, password)| Login { name, password });
        let etcd = Etcd::new(&members, login, tls.as_ref())?;
        let metrics = Arc::new(Metrics::default());
        let store = Arc::new(Store::new(etcd, Keys::new(prefix), Arc::clone(&metrics)));
        Ok(Self { store, metrics, tls })
    }

    /// What is counted.
    pub(crate) fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// The service; what it begins, `tasks` own until `stop`. So many nodes may watch at a time. At SIGHUP the certificates
    /// are read again.
    ///
    /// # Errors
    /// When the operating system does not let go of SIGHUP.
    pub(crate) fn serve(
        self,
        authorizer: Authorizer,
        watchers: usize,
        health: HealthReporter,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<Service, MasterError> {
        if let Some(tls) = self.tls {
            let reloads = reload_at(hangups().map_err(MasterError::Hangups)?, tls);
            tasks.spawn(stop.clone().run_until_cancelled_owned(reloads));
        }
        tasks.spawn(probe::run(Arc::clone(&self.store), Arc::clone(&self.metrics), health, stop.clone()));
        let watchers = Arc::new(Semaphore::new(watchers.min(Semaphore::MAX_PERMITS)));
        Ok(Service::new(self.store, self.metrics, authorizer, watchers, tasks.clone(), stop))
    }
}
