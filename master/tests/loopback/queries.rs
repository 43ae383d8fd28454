use arborcast_proto::registry::{
    FaultKind, GetHistoryRequest, GetNodeRequest, HappeningKind, ListNodesRequest, NodeReport,
};
use tonic::Code;

use crate::harness::{Master, Reporter, child, root, soon, until};

#[tokio::test]
async fn the_topology_shows_nodes_trees_and_faults() {
    let master = Master::start().await;
    let _nodes = [
        Reporter::register(&master, NodeReport { children: vec!["b".into()], load: 2, ..root("a") }).await,
        Reporter::register(&master, NodeReport { load: 3, ..child("b", "a") }).await,
        Reporter::register(&master, root("z")).await,
    ];
    let topology = master.topology().await;
    let ids: Vec<&str> = topology.nodes.iter().map(|node| node.report.as_ref().unwrap().node_id.as_str()).collect();
    assert_eq!(ids, ["a", "b", "z"]);
    let tree = &topology.fragments[0];
    assert_eq!((tree.root_id.as_str(), tree.nodes, tree.depth, tree.load), ("a", 2, 1, 5));
    let [fault] = &topology.faults[..] else { panic!("{:?}", topology.faults) };
    assert_eq!((fault.kind(), fault.node_ids.join(" ")), (FaultKind::SeveralFragments, "a z".into()));
    assert!(!topology.warming && topology.uptime.is_some() && topology.at.is_some());
}

#[tokio::test]
async fn nodes_come_in_pages() {
    let master = Master::start().await;
    let mut nodes = Vec::new();
    for id in ["a", "b", "c"] {
        nodes.push(Reporter::register(&master, root(id)).await);
    }
    let mut client = master.client().await;
    let mut pages = Vec::new();
    let mut page_token = String::new();
    loop {
        let page = soon(client.list_nodes(ListNodesRequest { page_size: 2, page_token })).await.unwrap().into_inner();
        pages.push(page.nodes.into_iter().map(|node| node.report.unwrap().node_id).collect::<String>());
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(pages, ["ab", "c"]);
}

#[tokio::test]
async fn an_unknown_node_is_not_found_and_no_name_is_no_argument() {
    let master = Master::start().await;
    let unknown = master.node("x").await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert!(unknown.message().contains("node x"), "{unknown:?}");
    let nameless = soon(master.client().await.get_node(GetNodeRequest::default())).await.unwrap_err();
    assert_eq!(nameless.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn what_happened_is_told_in_order_also_without_a_page() {
    let master = Master::start().await;
    let history = async |after: u64| {
        let request = GetHistoryRequest { after };
        soon(master.client().await.get_history(request)).await.unwrap().into_inner().happenings
    };
    let node = Reporter::register(&master, root("a")).await;
    until(async || match history(0).await.iter().any(|it| it.text == "a joined" || it.text == "a was there") {
        true => Ok(()),
        false => Err("nobody has joined".to_owned()),
    })
    .await;
    drop(node);
    let all = until(async || {
        let all = history(0).await;
        if all.iter().any(|it| it.text == "a lost") { Ok(all) } else { Err(format!("{all:?}")) }
    })
    .await;
    assert_eq!(all[0].kind(), HappeningKind::MasterStarted);
    assert!(all.is_sorted_by_key(|it| it.number) && all.iter().all(|it| it.at.is_some()), "{all:?}");
    let lost = all.last().unwrap();
    assert_eq!((lost.kind(), lost.node_id.as_str()), (HappeningKind::Lost, "a"));
    assert_eq!(history(lost.number - 1).await, std::slice::from_ref(lost));
    assert_eq!(history(u64::MAX).await, []);
}
