use arborcast_proto::registry::{NodeReport, NodeState, OtherServers, advice};

use crate::harness::{Master, Reporter, root};

/// The next list of other servers that a node is told.
async fn told(node: &mut Reporter) -> OtherServers {
    loop {
        if let Some(advice::Kind::Servers(servers)) = node.next_of_all().await.unwrap() {
            return servers;
        }
    }
}

fn below_a(id: &str) -> NodeReport {
    let path = vec!["a".into(), id.into()];
    let key = root("a").key;
    NodeReport { key, parent_id: "a".into(), path, depth: 1, state: NodeState::Live.into(), ..root(id) }
}

/// A load of 2^63 is one like any.
#[tokio::test]
async fn nodes_are_told_of_others_again_and_again_and_soon_of_those_with_less_load() {
    let master = Master::start().await;
    let mut a = Reporter::register(&master, NodeReport { load: 1 << 63, ..root("a") }).await;
    let mut b = Reporter::register(&master, NodeReport { load: 3, ..below_a("b") }).await;
    while told(&mut a).await.least_loaded.first().is_none_or(|server| (&*server.node_id, server.load) != ("b", 3)) {}
    while told(&mut b).await.least_loaded.first().is_none_or(|server| server.load != 1 << 63) {}
    assert_eq!(told(&mut a).await.least_loaded.len(), 1, "again");
    b.report(NodeReport { load: 1, ..below_a("b") }).await;
    while told(&mut a).await.least_loaded[0].load != 1 {}
    drop(b);
    while !told(&mut a).await.least_loaded.is_empty() {}
}
