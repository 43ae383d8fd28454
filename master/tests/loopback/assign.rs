use std::time::Duration;

use arborcast_proto::registry::{AssignClientRequest, AssignClientResponse, NodeReport, NodeState, SettledTickets};
use arborcast_proto::ticket::{Ticket, TicketKey};
use arborcast_proto::wire::Origin;
use tonic::{Code, Status};

use crate::harness::{Master, Reporter, SECRET, root, soon, until};

async fn ask(master: &Master, request: AssignClientRequest) -> Result<AssignClientResponse, Status> {
    soon(master.client().await.assign_client(request)).await.map(tonic::Response::into_inner)
}

async fn assign(master: &Master) -> AssignClientResponse {
    ask(master, AssignClientRequest::default()).await.unwrap()
}

fn now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

#[tokio::test]
async fn anybody_is_told_the_least_loaded_node_and_gets_a_ticket_for_it() {
    let master = Master::start().await;
    let _nodes = [
        Reporter::register(&master, NodeReport { load: 7, ..root("a") }).await,
        Reporter::register(&master, NodeReport { load: 3, port: 3781, incarnation: 9, ..root("b") }).await,
    ];
    let answer = assign(&master).await;
    assert_eq!((answer.node_id.as_str(), answer.hostname.as_str(), answer.port), ("b", "localhost", 3781));
    assert_eq!((answer.expires_in.unwrap().seconds, answer.warming), (30, false));
    let (key, run) = (TicketKey::derive(&SECRET.into()), Origin { id: "b".into(), incarnation: 9 });
    let ticket = Ticket::check(&answer.ticket.as_str().into(), &key, &run, now()).unwrap();
    let second = assign(&master).await;
    let other = Ticket::check(&second.ticket.as_str().into(), &key, &run, now()).unwrap();
    assert_ne!(ticket.number, other.number);
    assert_eq!(&*ticket.issuer, master.topology().await.master_id);
}

#[tokio::test]
async fn what_was_handed_out_counts_until_the_node_says_that_it_is_settled() {
    let master = Master::start().await;
    let report = |load, count, master_id: &str| NodeReport {
        load,
        settled_tickets: vec![SettledTickets { master_id: master_id.into(), count }],
        ..root("a")
    };
    let id = master.topology().await.master_id;
    let node = Reporter::register(&master, report(0, 0, &id)).await;
    let _other = Reporter::register(&master, NodeReport { load: 2, ..root("b") }).await;
    for _ in 0..2 {
        assert_eq!(assign(&master).await.node_id, "a");
    }
    // Two are there, and one has gone again; that others have settled more is nothing to this master.
    node.report(report(1, 2, &id)).await;
    until(async || match master.node("a").await.unwrap().report.unwrap().load {
        1 => Ok(()),
        load => Err(format!("the load is {load}")),
    })
    .await;
    assert_eq!(assign(&master).await.node_id, "a");
    node.report(report(1, 99, "another master")).await;
    node.report(NodeReport { load: u64::MAX, ..report(1, u64::MAX, &id) }).await;
    until(async || match master.node("a").await.unwrap().report.unwrap().load {
        u64::MAX => Ok(()),
        load => Err(format!("the load is {load}")),
    })
    .await;
    assert_eq!(assign(&master).await.node_id, "b");
    assert_eq!(master.topology().await.nodes.len(), 2, "such a load does no harm");
}

#[tokio::test]
async fn nobody_is_named_where_there_is_none_and_nonsense_is_refused() {
    let master = Master::start().await;
    let leave_out = |ids: Vec<String>| AssignClientRequest { leave_out: ids, unless_warming: false };
    let refused = ask(&master, leave_out(Vec::new())).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    let _nodes = [
        Reporter::register(&master, root("a")).await,
        Reporter::register(&master, NodeReport { state: NodeState::Draining.into(), ..root("b") }).await,
    ];
    assert_eq!(assign(&master).await.node_id, "a");
    assert_eq!(ask(&master, leave_out(vec!["a".into()])).await.unwrap_err().code(), Code::Unavailable);
    for ids in [vec![String::new()], vec!["x".into(); 257], vec!["x".repeat(129)]] {
        assert_eq!(ask(&master, leave_out(ids)).await.unwrap_err().code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn a_master_that_warms_up_says_so_and_names_nobody_if_it_is_not_to() {
    let master = Master::start_with(|settings| settings.warm_up = Duration::from_secs(60)).await;
    let _node = Reporter::register(&master, root("a")).await;
    let unless_warming = AssignClientRequest { unless_warming: true, ..Default::default() };
    let nobody = ask(&master, unless_warming).await.unwrap();
    assert_eq!(nobody, AssignClientResponse { warming: true, ..Default::default() });
    let answer = assign(&master).await;
    assert_eq!((answer.node_id.as_str(), answer.warming), ("a", true));
}
