use std::time::Duration;

use arborcast_proto::registry::registry_server::SERVICE_NAME;
use tonic::{Code, Streaming};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::harness::{Master, soon};

async fn watch(master: &Master, service: &str) -> Streaming<HealthCheckResponse> {
    let request = HealthCheckRequest { service: service.into() };
    soon(HealthClient::new(master.channel().await).watch(request)).await.unwrap().into_inner()
}

async fn next(health: &mut Streaming<HealthCheckResponse>) -> ServingStatus {
    soon(health.message()).await.unwrap().unwrap().status()
}

#[tokio::test]
async fn a_master_serves_once_it_has_warmed_up() {
    let master = Master::start_with(|settings| settings.warm_up = Duration::from_secs(2)).await;
    for service in ["", SERVICE_NAME] {
        let mut health = watch(&master, service).await;
        if service.is_empty() {
            assert_eq!(next(&mut health).await, ServingStatus::NotServing);
            assert!(master.topology().await.warming);
        }
        while next(&mut health).await != ServingStatus::Serving {}
    }
    assert!(!master.topology().await.warming);
}

#[tokio::test]
async fn it_says_so_when_it_stops() {
    let mut master = Master::start().await;
    let mut health = watch(&master, SERVICE_NAME).await;
    while next(&mut health).await != ServingStatus::Serving {}
    master.stop.cancel();
    assert_eq!(next(&mut health).await, ServingStatus::NotServing);
    assert!(soon(health.message()).await.unwrap().is_none(), "and a watcher does not hold up the end");
    soon(&mut master.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn of_a_service_that_is_not_there_it_knows_nothing() {
    let master = Master::start().await;
    let request = HealthCheckRequest { service: "nonsense".into() };
    let refused = soon(HealthClient::new(master.channel().await).check(request)).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
}
