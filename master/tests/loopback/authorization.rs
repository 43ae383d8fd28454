use arborcast_proto::registry::{
    DrainNodeRequest, FindParentRequest, GetTopologyRequest, ListNodesRequest, NodeReport, WatchTopologyRequest,
};
use futures_util::stream;
use tonic::{Code, Request};

use crate::harness::{Master, Reporter, SECRET, key, root, soon};

fn with<T>(message: T, authorization: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(value) = authorization {
        request.metadata_mut().insert("authorization", value.parse().unwrap());
    }
    request
}

#[tokio::test]
async fn what_nodes_and_operators_do_needs_the_secret() {
    let master = Master::start().await;
    let _node = Reporter::register(&master, root("a")).await;
    let mut client = master.client().await;
    for value in [None, Some("Bearer wrong"), Some("Bearer"), Some(SECRET), Some("Basic s3cret")] {
        let find = FindParentRequest { node_id: "x".into(), key: Some(key(1, "x")), ..Default::default() };
        let drain = DrainNodeRequest { node_id: "a".into(), incarnation: 0 };
        let codes = [
            soon(client.report(with(stream::pending::<NodeReport>(), value))).await.map(|_| ()).unwrap_err(),
            soon(client.find_parent(with(find, value))).await.map(|_| ()).unwrap_err(),
            soon(client.drain_node(with(drain, value))).await.map(|_| ()).unwrap_err(),
        ];
        for status in codes {
            assert_eq!(status.code(), Code::Unauthenticated, "{value:?}");
            assert!(!format!("{status:?}").contains(SECRET));
        }
    }
    assert!(!master.node("a").await.unwrap().drain_requested);
}

#[tokio::test]
async fn looking_needs_nothing_and_shows_no_secret() {
    let master = Master::start().await;
    let _node = Reporter::register(&master, root("a")).await;
    let mut client = master.client().await;
    let topology = soon(client.get_topology(GetTopologyRequest {})).await.unwrap();
    let nodes = soon(client.list_nodes(ListNodesRequest::default())).await.unwrap();
    let watched = soon(client.watch_topology(WatchTopologyRequest {})).await.unwrap().into_inner().message().await;
    let node = master.node("a").await.unwrap();
    assert!(!format!("{topology:?} {nodes:?} {node:?} {watched:?}").contains(SECRET));
}
