use arborcast_proto::registry::registry_client::RegistryClient;
use arborcast_proto::registry::{
    ChangeKind, LostReason, NodeReport, TopologyChange, WatchTopologyRequest, WatchTopologyResponse,
    watch_topology_response::Kind,
};
use tonic::{Code, Streaming};

use crate::harness::{Master, Reporter, child, root, soon, until};

type Changes = Streaming<WatchTopologyResponse>;

async fn watch(master: &Master) -> Changes {
    soon(master.client().await.watch_topology(WatchTopologyRequest {})).await.unwrap().into_inner()
}

async fn next(changes: &mut Changes) -> Kind {
    soon(changes.message()).await.unwrap().unwrap().kind.unwrap()
}

async fn next_change(changes: &mut Changes) -> TopologyChange {
    let Kind::Change(change) = next(changes).await else { panic!("a second topology") };
    assert!(change.at.is_some());
    change
}

#[tokio::test]
async fn first_comes_everything_and_then_each_change() {
    let master = Master::start().await;
    let a = Reporter::register(&master, root("a")).await;
    let mut changes = watch(&master).await;
    let Kind::Topology(first) = next(&mut changes).await else { panic!("no topology first") };
    assert_eq!(first.nodes.len(), 1);

    let b = Reporter::register(&master, root("b")).await;
    let joined = next_change(&mut changes).await;
    assert_eq!((joined.kind(), joined.node_id.as_str()), (ChangeKind::Joined, "b"));
    assert_eq!(joined.node.unwrap().report.unwrap(), root("b"));

    b.report(child("b", "a")).await;
    let moved = next_change(&mut changes).await;
    assert_eq!((moved.kind(), moved.old_parent_id.as_str()), (ChangeKind::Reparented, ""));
    assert_eq!(moved.node.unwrap().tree_root_id, "a");

    a.report(NodeReport { load: 1, ..root("a") }).await;
    let changed = next_change(&mut changes).await;
    assert_eq!((changed.kind(), changed.node_id.as_str()), (ChangeKind::Changed, "a"));

    drop(a);
    let lost = next_change(&mut changes).await;
    assert_eq!((lost.kind(), lost.node_id.as_str()), (ChangeKind::Lost, "a"));
    assert_eq!((lost.lost_reason(), lost.node), (LostReason::StreamEnded, None));

    b.report(NodeReport { heartbeat_interval_ms: 1, ..child("b", "a") }).await;
    while next_change(&mut changes).await.lost_reason() != LostReason::Silent {}
    b.report(child("b", "a")).await;
    assert_eq!(next_change(&mut changes).await.kind(), ChangeKind::Joined);
}

#[tokio::test]
async fn a_watcher_that_does_not_keep_up_is_ended_and_the_others_go_on() {
    let master = Master::start_with(|settings| settings.bounds.watcher_queue = 4).await;
    let channel = soon(master.endpoint().initial_stream_window_size(65_535).connect()).await.unwrap();
    let mut slow =
        soon(RegistryClient::new(channel).watch_topology(WatchTopologyRequest {})).await.unwrap().into_inner();
    assert!(matches!(next(&mut slow).await, Kind::Topology(_)));

    // More than fits into the windows, the buffers and the queue.
    let long = NodeReport { children: vec!["x".repeat(128); 1024], ..root("a") };
    let node = Reporter::register(&master, long.clone()).await;
    for load in 1..=60 {
        node.report(NodeReport { load, ..long.clone() }).await;
        until(async || match master.node("a").await.map(|node| node.report.unwrap().load) {
            Ok(seen) if seen == load => Ok(()),
            other => Err(format!("{load} is not there: {other:?}")),
        })
        .await;
    }
    let end = loop {
        match soon(slow.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a clean end"),
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), Code::ResourceExhausted, "{end:?}");
    let mut again = watch(&master).await;
    let Kind::Topology(topology) = next(&mut again).await else { panic!("no topology first") };
    assert_eq!(topology.nodes[0].report.as_ref().unwrap().load, 60);
}

#[tokio::test]
async fn watchers_are_bounded_and_make_room_when_they_go() {
    let master = Master::start_with(|settings| settings.bounds.watchers = 1).await;
    let first = watch(&master).await;
    let refused = soon(master.client().await.watch_topology(WatchTopologyRequest {})).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    drop(first);
    until(async || {
        let answer = master.client().await.watch_topology(WatchTopologyRequest {}).await;
        answer.map(|_| ()).map_err(|status| status.to_string())
    })
    .await;
}
