use std::time::Duration;

use arborcast_proto::registry::{FaultKind, NodeReport, WatchTopologyRequest, watch_topology_response::Kind};
use tonic::Code;

use crate::harness::{Master, Reporter, root, soon, until, with_secret};

#[tokio::test]
async fn a_node_is_known_from_its_first_report_until_its_stream_ends() {
    let master = Master::start().await;
    let (node, welcome) = Reporter::welcomed(&master, root("a")).await;
    assert!(!welcome.warming);
    assert_eq!(welcome.master_id, master.topology().await.master_id);
    let known = master.node("a").await.unwrap();
    assert_eq!(known.report.unwrap(), root("a"));
    assert_eq!(known.tree_root_id, "a");
    drop(node);
    master.until_gone("a").await;
}

#[tokio::test]
async fn a_node_that_ends_its_reports_gets_a_clean_end_and_is_gone() {
    let master = Master::start().await;
    let mut node = Reporter::register(&master, root("a")).await;
    node.reports = tokio::sync::mpsc::channel(1).0;
    assert_eq!(node.end_code().await, None);
    assert_eq!(master.node("a").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_later_stream_replaces_the_earlier_and_the_node_stays() {
    let master = Master::start().await;
    let mut first = Reporter::register(&master, root("a")).await;
    let second = Reporter::register(&master, NodeReport { load: 1, ..root("a") }).await;
    assert_eq!(first.end_code().await, Some(Code::Aborted));
    drop(first);
    assert_eq!(master.node("a").await.unwrap().report.unwrap().load, 1);
    let restarted = Reporter::register(&master, NodeReport { incarnation: 2, ..root("a") }).await;
    assert_eq!(master.node("a").await.unwrap().report.unwrap().incarnation, 2);
    drop((second, restarted));
}

#[tokio::test]
async fn a_ghost_and_a_second_server_of_the_name_are_refused() {
    let master = Master::start().await;
    let _node = Reporter::register(&master, NodeReport { incarnation: 2, ..root("a") }).await;
    let mut ghost = Reporter::open_with(&master, root("a")).await;
    assert_eq!(ghost.end_code().await, Some(Code::AlreadyExists));
    let mut second = Reporter::open_with(&master, NodeReport { port: 1, incarnation: 9, ..root("a") }).await;
    let refused = second.end().await.unwrap();
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert!(refused.message().contains("localhost:3780"), "{refused:?}");
    let topology = master.topology().await;
    assert_eq!(topology.nodes.len(), 1);
    let [fault] = &topology.faults[..] else { panic!("{:?}", topology.faults) };
    assert_eq!((fault.kind(), fault.node_ids.as_slice()), (FaultKind::DuplicateId, ["a".to_owned()].as_slice()));
}

#[tokio::test]
async fn what_breaks_a_bound_ends_the_stream_with_the_fields_name() {
    let master = Master::start().await;
    let mut node = Reporter::register(&master, root("a")).await;
    node.report(NodeReport { port: 0, ..root("a") }).await;
    let refused = node.end().await.unwrap();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().starts_with("port "), "{refused:?}");
    assert_eq!(master.node("a").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_stream_is_about_one_start_of_one_node() {
    let master = Master::start().await;
    for other in [root("b"), NodeReport { incarnation: 2, ..root("a") }] {
        let mut node = Reporter::register(&master, root("a")).await;
        node.report(other).await;
        assert_eq!(node.end_code().await, Some(Code::InvalidArgument));
        assert_eq!(master.topology().await.nodes, []);
    }
}

#[tokio::test]
async fn a_report_that_is_too_long_is_not_even_read() {
    let master = Master::start().await;
    let mut node = Reporter::open_with(&master, NodeReport { version: "x".repeat(1 << 20), ..root("a") }).await;
    assert_eq!(node.end_code().await, Some(Code::ResourceExhausted));
}

#[tokio::test]
async fn who_opens_a_stream_and_says_nothing_is_let_go() {
    let master = Master::start_with(|settings| settings.bounds.first_report_timeout = Duration::from_millis(50)).await;
    let mut node = Reporter::open(&master).await;
    assert_eq!(node.end_code().await, Some(Code::DeadlineExceeded));
}

#[tokio::test]
async fn nodes_and_streams_are_bounded() {
    let master = Master::start_with(|settings| {
        settings.bounds.topology.nodes = 1;
        settings.bounds.report_streams = 2;
    })
    .await;
    let _node = Reporter::register(&master, root("a")).await;
    let mut surplus = Reporter::open_with(&master, root("b")).await;
    assert_eq!(surplus.end_code().await, Some(Code::ResourceExhausted));
    let _silent = until(async || {
        // The place of the surplus node becomes free a moment after it has read its end.
        let stream = futures_util::stream::pending::<NodeReport>();
        master.client().await.report(with_secret(stream)).await.map_err(|status| status.to_string())
    })
    .await;
    let refused = master.client().await.report(with_secret(futures_util::stream::pending())).await;
    assert_eq!(refused.unwrap_err().code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn a_flood_of_reports_is_coalesced_and_the_last_one_counts() {
    const REPORTS: u64 = 5_000;
    let master = Master::start().await;
    let node = Reporter::register(&master, root("a")).await;
    let mut changes = soon(master.client().await.watch_topology(WatchTopologyRequest {})).await.unwrap().into_inner();
    let flood = tokio::spawn(async move {
        for load in 1..=REPORTS {
            node.report(NodeReport { load, ..root("a") }).await;
        }
        node
    });
    let mut seen = 0;
    loop {
        let Some(Kind::Change(change)) = soon(changes.message()).await.unwrap().unwrap().kind else { continue };
        seen += 1;
        if change.node.unwrap().report.unwrap().load == REPORTS {
            break;
        }
    }
    assert!(seen < REPORTS / 2, "{seen} of {REPORTS} were passed on");
    drop(soon(flood).await.unwrap());
}

#[tokio::test]
async fn a_silent_node_is_gone_from_the_answers_but_for_a_fault() {
    let master = Master::start().await;
    let node = Reporter::register(&master, NodeReport { heartbeat_interval_ms: 1, ..root("a") }).await;
    master.until_gone("a").await;
    let topology = master.topology().await;
    assert_eq!(topology.nodes, []);
    assert_eq!(topology.faults[0].kind(), FaultKind::Silent);
    node.report(root("a")).await;
    until(async || master.node("a").await.map_err(|status| status.to_string())).await;
}
