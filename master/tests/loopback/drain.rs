use arborcast_proto::registry::{DrainNodeRequest, NodeReport, NodeState, advice};
use tonic::{Code, Status};

use crate::harness::{Master, Reporter, key, root, soon, until, with_secret};

async fn drain(master: &Master, id: &str, incarnation: u64) -> Result<u64, Status> {
    let request = DrainNodeRequest { node_id: id.into(), incarnation };
    let answer = soon(master.client().await.drain_node(with_secret(request))).await?;
    Ok(answer.into_inner().incarnation)
}

#[tokio::test]
async fn the_node_hears_it_and_is_no_candidate_from_then_on() {
    let master = Master::start().await;
    let mut node = Reporter::register(&master, root("a")).await;
    assert_eq!(master.candidates("x", key(1, "x")).await.len(), 1);
    assert_eq!(drain(&master, "a", 1).await.unwrap(), 1);
    assert!(matches!(node.next().await.unwrap(), Some(advice::Kind::Drain(_))));
    assert_eq!(master.candidates("x", key(1, "x")).await, []);
    assert!(master.node("a").await.unwrap().drain_requested);
    drain(&master, "a", 0).await.expect("asking again does no harm");
    node.report(NodeReport { state: NodeState::Draining.into(), ..root("a") }).await;
    let refused = until(async || drain(&master, "a", 0).await.err().ok_or_else(|| "not draining yet".to_owned())).await;
    assert_eq!(refused.code(), Code::FailedPrecondition);
}

/// What was said over a stream that had just broken would be lost, and the master would wait for ever.
#[tokio::test]
async fn a_node_that_comes_again_hears_it_again() {
    let master = Master::start().await;
    let _broken = Reporter::register(&master, root("a")).await;
    drain(&master, "a", 1).await.unwrap();
    let mut again = Reporter::register(&master, root("a")).await;
    assert!(matches!(again.next().await.unwrap(), Some(advice::Kind::Drain(_))));
    // One that was started again was not meant.
    let started_again = NodeReport { incarnation: 2, ..root("a") };
    let _node = Reporter::register(&master, started_again).await;
    assert!(!master.node("a").await.unwrap().drain_requested);
}

#[tokio::test]
async fn who_cant_be_asked_is_said() {
    let master = Master::start().await;
    assert_eq!(drain(&master, "a", 0).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(drain(&master, "", 0).await.unwrap_err().code(), Code::InvalidArgument);
    let _node = Reporter::register(&master, NodeReport { heartbeat_interval_ms: 1, ..root("a") }).await;
    assert_eq!(drain(&master, "a", 2).await.unwrap_err().code(), Code::FailedPrecondition);
    master.until_gone("a").await;
    assert_eq!(drain(&master, "a", 0).await.unwrap_err().code(), Code::Unavailable);
}
