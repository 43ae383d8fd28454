use arborcast_master::cli::Cli;
use arborcast_proto::users::users_client::UsersClient;
use arborcast_proto::users::users_server::SERVICE_NAME;
use arborcast_proto::users::{VerifyRequest, WatchRequest};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::harness::{Master, soon, with_secret};

/// A master that is to keep users where nobody is.
async fn keeper() -> Master {
    let line = ["arborcast-master", "-s", "x", "--users", "etcd://127.0.0.1:1"];
    let users = Cli::read(line.map(Into::into)).unwrap().settings.users;
    Master::start_with(|settings| settings.users = users).await
}

async fn services(master: &Master) -> Vec<String> {
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let request = ServerReflectionRequest { host: String::new(), message_request };
    let mut client = ServerReflectionClient::new(master.channel().await);
    let mut answers =
        soon(client.server_reflection_info(futures_util::stream::iter([request]))).await.unwrap().into_inner();
    match soon(answers.message()).await.unwrap().unwrap().message_response.unwrap() {
        MessageResponse::ListServicesResponse(list) => list.service.into_iter().map(|service| service.name).collect(),
        other => panic!("no list: {other:?}"),
    }
}

#[tokio::test]
async fn only_a_master_that_keeps_users_has_the_service() {
    assert!(services(&keeper().await).await.iter().any(|service| service == SERVICE_NAME));
    let master = Master::start().await;
    assert!(!services(&master).await.iter().any(|service| service == SERVICE_NAME));
    let mut users = UsersClient::new(master.channel().await);
    let refused = soon(users.verify(with_secret(VerifyRequest::default()))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
}

#[tokio::test]
async fn without_etcd_it_runs_and_says_what_is_missing() {
    let mut master = keeper().await;
    let mut users = UsersClient::new(master.channel().await);
    let refused = soon(users.verify(VerifyRequest { username: "aaron".into() })).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let refused = soon(users.verify(with_secret(VerifyRequest { username: "aaron".into() }))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("etcd has no quorum, or can't be reached"), "{refused:?}");
    let mut told = soon(users.watch(with_secret(WatchRequest { after: None }))).await.unwrap().into_inner();
    assert_eq!(soon(told.message()).await.unwrap_err().code(), Code::Unavailable);

    let request = HealthCheckRequest { service: SERVICE_NAME.into() };
    let health = soon(HealthClient::new(master.channel().await).check(request)).await.unwrap().into_inner();
    assert_eq!(health.status(), ServingStatus::NotServing);
    // What waits for etcd does not hold up the end.
    let waiting = tokio::spawn(async move { users.verify(with_secret(VerifyRequest::default())).await });
    master.stop.cancel();
    soon(&mut master.task).await.unwrap().unwrap();
    assert!(soon(waiting).await.unwrap().is_err());
}
