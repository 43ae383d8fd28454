//! Whether etcd answers: for the log, for metrics, and for those who ask for this master's health.

use std::sync::Arc;
use std::time::Duration;

use arborcast_proto::users::users_server::SERVICE_NAME;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tracing::{info, warn};

use super::metrics::Metrics;
use super::store::Store;

/// Between two questions.
const INTERVAL: Duration = Duration::from_secs(2);

/// Asks again and again, until told to stop.
pub(crate) async fn run(store: Arc<Store>, metrics: Arc<Metrics>, mut health: HealthReporter, stop: CancellationToken) {
    health.set_service_status(SERVICE_NAME, ServingStatus::NotServing).await;
    let asking = async {
        let mut is_first = true;
        loop {
            let outcome = store.head().await;
            let was_up = metrics.set_up(outcome.is_ok());
            match outcome {
                Ok(position) if !was_up => {
                    info!(
                        store = format!("{:016x}", position.store),
                        revision = position.revision,
                        "users are kept in etcd"
                    );
                    health.set_service_status(SERVICE_NAME, ServingStatus::Serving).await;
                }
                Err(error) if was_up || is_first => {
                    warn!(%error, "nobody can register; who is known to the nodes can log in");
                    health.set_service_status(SERVICE_NAME, ServingStatus::NotServing).await;
                }
                Ok(_) | Err(_) => {}
            }
            is_first = false;
            tokio::time::sleep(INTERVAL).await;
        }
    };
    let _ = stop.run_until_cancelled(asking).await;
    // Else those who watch it would hold up the end.
    health.set_service_status(SERVICE_NAME, ServingStatus::NotServing).await;
    health.clear_service_status(SERVICE_NAME).await;
}
