//! `grpc.health.v1`: not serving while the master does not know everybody yet, and once it stops.

use std::time::Duration;

use arborcast_proto::registry::registry_server::SERVICE_NAME;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tracing::info;

/// The health of everything, and of the one service.
const NAMES: [&str; 2] = ["", SERVICE_NAME];

/// Says "not serving" from now on.
pub(crate) async fn begin(health: &HealthReporter) {
    set(health, ServingStatus::NotServing).await;
}

/// Says "serving" when the master has warmed up, and ends those who watch when it stops.
pub(crate) async fn follow(mut health: HealthReporter, warm_up: Duration, stop: CancellationToken) {
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = tokio::time::sleep(warm_up) => {
            set(&health, ServingStatus::Serving).await;
            info!("warmed up");
            stop.cancelled().await;
        }
    }
    set(&health, ServingStatus::NotServing).await;
    for name in NAMES {
        // Else their streams would hold up the end.
        health.clear_service_status(name).await;
    }
}

async fn set(health: &HealthReporter, status: ServingStatus) {
    for name in NAMES {
        health.set_service_status(name, status).await;
    }
}
