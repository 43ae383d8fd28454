use std::time::Duration;

use arborcast_master::Settings;
use arborcast_proto::registry::{WatchTopologyRequest, watch_topology_response::Kind};
use tonic::Code;

use crate::harness::{Master, Reporter, SECRET, key, root, soon};

#[tokio::test]
async fn a_master_that_stops_says_so_on_every_stream_and_waits_for_nobody() {
    let mut master = Master::start().await;
    let mut node = Reporter::register(&master, root("a")).await;
    let mut silent = Reporter::open(&master).await;
    let mut changes = soon(master.client().await.watch_topology(WatchTopologyRequest {})).await.unwrap().into_inner();
    assert!(matches!(soon(changes.message()).await.unwrap().unwrap().kind, Some(Kind::Topology(_))));
    master.stop.cancel();
    assert_eq!(node.end_code().await, Some(Code::Unavailable));
    assert_eq!(silent.end_code().await, Some(Code::Unavailable));
    assert_eq!(soon(changes.message()).await.unwrap_err().code(), Code::Unavailable);
    soon(&mut master.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_master_that_starts_again_knows_nobody_says_so_and_learns() {
    let mut first = Master::start().await;
    let mut node = Reporter::register(&first, root("a")).await;
    let first_id = first.topology().await.master_id;
    first.stop.cancel();
    assert_eq!(node.end_code().await, Some(Code::Unavailable));
    drop(node);
    soon(&mut first.task).await.unwrap().unwrap();

    let settings = Settings { warm_up: Duration::from_secs(60), ..Settings::new(SECRET.into()) };
    let second = Master::start_at(first.port, settings).await;
    let empty = second.topology().await;
    assert_ne!(empty.master_id, first_id);
    assert!(empty.warming && empty.nodes.is_empty());
    let (_node, welcome) = Reporter::welcomed(&second, root("a")).await;
    assert!(welcome.warming);
    assert_eq!(second.candidates("x", key(1, "x")).await.len(), 1, "what it knows it says, warming or not");
}
