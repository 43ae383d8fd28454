use arborcast_proto::registry::{Candidate, FindParentRequest, FragmentKey, NodeReport, NodeState, advice};
use std::time::Duration;
use tonic::Code;

use crate::harness::{Master, Reporter, child, key, root, soon, with_secret};

fn ids(candidates: &[Candidate]) -> Vec<&str> {
    candidates.iter().map(|candidate| candidate.node_id.as_str()).collect()
}

#[tokio::test]
async fn an_orphan_hears_where_to_go() {
    let master = Master::start().await;
    let orphan = NodeReport { key: Some(key(1, "c")), state: NodeState::Orphaned.into(), ..root("c") };
    let grandchild = NodeReport { key: Some(key(1, "c")), load: 3, ..child("d", "c") };
    let _nodes = [
        Reporter::register(&master, NodeReport { children: vec!["b".into()], load: 7, ..root("a") }).await,
        Reporter::register(&master, child("b", "a")).await,
        Reporter::register(&master, NodeReport { children: vec!["d".into()], ..orphan }).await,
        Reporter::register(&master, grandchild).await,
    ];
    let candidates = master.candidates("c", key(1, "c")).await;
    assert_eq!(ids(&candidates), ["a", "b"]);
    let first = Candidate {
        node_id: "a".into(),
        hostname: "localhost".into(),
        port: 3780,
        key: Some(key(0, "a")),
        depth: 0,
        load: 7,
        free_slots: 3,
    };
    assert_eq!(candidates[0], first);
    let others = master.candidates("x", key(2, "x")).await;
    assert_eq!(ids(&others), ["a", "b", "c", "d"], "the smaller fragment first");
}

#[tokio::test]
async fn nobody_knows_anybody_and_says_whether_that_means_something() {
    for (warm_up, warming) in [(Duration::ZERO, false), (Duration::from_secs(60), true)] {
        let master = Master::start_with(|settings| settings.warm_up = warm_up).await;
        let request =
            FindParentRequest { node_id: "x".into(), incarnation: 1, key: Some(key(1, "x")), leave_out: Vec::new() };
        let answer = soon(master.client().await.find_parent(with_secret(request))).await.unwrap().into_inner();
        assert_eq!((answer.candidates, answer.warming), (Vec::new(), warming));
    }
}

#[tokio::test]
async fn a_ghost_and_nonsense_are_refused() {
    let master = Master::start().await;
    let _node = Reporter::register(&master, NodeReport { incarnation: 2, ..root("a") }).await;
    let ask = |id: &str, key| FindParentRequest { node_id: id.into(), incarnation: 1, key, leave_out: Vec::new() };
    for (request, code) in [
        (ask("a", Some(key(1, "a"))), Code::AlreadyExists),
        (ask("", Some(key(1, "a"))), Code::InvalidArgument),
        (ask("x", None), Code::InvalidArgument),
        (FindParentRequest { leave_out: vec!["x".into(); 257], ..ask("x", Some(key(1, "x"))) }, Code::InvalidArgument),
    ] {
        let refused = soon(master.client().await.find_parent(with_secret(request))).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused:?}");
    }
}

#[tokio::test]
async fn a_fresh_cluster_gathers_around_the_smallest_id() {
    let master = Master::start().await;
    let unsettled = |id: &str| FragmentKey { root_id: id.into(), unsettled: true, reign: 0 };
    let fresh = |id: &str| NodeReport { key: Some(unsettled(id)), state: NodeState::Joining.into(), ..root(id) };
    let mut nodes = Vec::new();
    for id in ["b", "c", "a"] {
        nodes.push(Reporter::register(&master, fresh(id)).await);
    }
    assert_eq!(ids(&master.candidates("c", unsettled("c")).await), ["a"]);
    assert_eq!(ids(&master.candidates("a", unsettled("a")).await), <[&str; 0]>::default());
    // The others are told without asking: b perhaps first of nobody, c of b, but in the end of a.
    for node in &mut nodes[..2] {
        loop {
            let Some(advice::Kind::Fragment(fragment)) = node.next().await.unwrap() else { panic!("other advice") };
            if ids(&fragment.candidates) == ["a"] {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_root_is_told_of_a_smaller_fragment_at_once_and_again_and_the_smallest_is_not() {
    let master = Master::start().await;
    let mut small = Reporter::register(&master, root("a")).await;
    let mut large = Reporter::register(&master, NodeReport { key: Some(key(1, "b")), ..root("b") }).await;
    for _ in 0..2 {
        let Some(advice::Kind::Fragment(fragment)) = large.next().await.unwrap() else { panic!("other advice") };
        assert_eq!(ids(&fragment.candidates), ["a"]);
    }
    let drain = arborcast_proto::registry::DrainNodeRequest { node_id: "a".into(), incarnation: 0 };
    soon(master.client().await.drain_node(with_secret(drain))).await.unwrap();
    let first = small.next().await.unwrap();
    assert!(matches!(first, Some(advice::Kind::Drain(_))), "nothing came before it: {first:?}");
}
