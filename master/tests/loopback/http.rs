use std::time::Duration;

use arborcast_master::http::Page;
use arborcast_master::{Settings, connections, listen, serve_with_page};
use arborcast_proto::registry::{
    DrainNodeRequest, GetTopologyRequest, NodeReport, Topology, WatchTopologyRequest, advice,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;

use tonic::Request;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic_prost::ProstCodec;

use crate::harness::{Master, Reporter, SECRET, root, soon, until, with_secret};

async fn start() -> (Master, u16) {
    start_with(|page| page).await
}

async fn start_with(change: impl FnOnce(Page) -> Page) -> (Master, u16) {
    let settings = Settings { warm_up: Duration::ZERO, ..Settings::new(SECRET.into()) };
    let page = change(Page::bind("127.0.0.1", 0, Vec::new()).await.unwrap());
    let http = page.address().unwrap().port();
    let listener = listen("127.0.0.1", 0).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let stop = CancellationToken::new();
    let task = tokio::spawn(serve_with_page(connections(listener), settings, Some(page), stop.clone()));
    (Master { port, stop, task }, http)
}

async fn ask(port: u16, request: &str) -> TcpStream {
    let mut stream = soon(TcpStream::connect(("127.0.0.1", port))).await.unwrap();
    soon(stream.write_all(format!("{request}\r\nhost: x\r\n\r\n").as_bytes())).await.unwrap();
    stream
}

async fn answer(port: u16, request: &str) -> String {
    let mut text = String::new();
    soon(ask(port, request).await.read_to_string(&mut text)).await.unwrap();
    text
}

async fn read_until(stream: &mut TcpStream, wanted: &str) {
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(wanted) {
        assert_ne!(soon(stream.read_buf(&mut seen)).await.unwrap(), 0, "no {wanted}");
    }
}

#[tokio::test]
async fn the_events_tell_who_joined_and_who_was_lost() {
    let (master, http) = start().await;
    let mut events = ask(http, "GET /events HTTP/1.1").await;
    let node = Reporter::register(&master, root("<b>a\"")).await;
    read_until(&mut events, r#"<b>a\" joined"#).await;
    drop(node);
    read_until(&mut events, r#"<b>a\" lost"#).await;
}

#[tokio::test]
async fn a_node_is_drained_with_the_secret_and_the_header_only() {
    let (master, http) = start().await;
    let mut node = Reporter::register(&master, root("a")).await;
    let drain = "POST /drain/a HTTP/1.1";
    let header = "x-arborcast: drain";
    let bare = answer(http, &format!("{drain}\r\nauthorization: Bearer {SECRET}")).await;
    assert!(bare.starts_with("HTTP/1.1 403"), "{bare}");
    let wrong = answer(http, &format!("{drain}\r\n{header}\r\nauthorization: Bearer wrong")).await;
    assert!(wrong.starts_with("HTTP/1.1 401"), "{wrong}");
    assert!(!master.node("a").await.unwrap().drain_requested);
    let right = answer(http, &format!("{drain}\r\n{header}\r\nauthorization: Bearer {SECRET}")).await;
    assert!(right.starts_with("HTTP/1.1 202"), "{right}");
    assert!(matches!(node.next().await.unwrap(), Some(advice::Kind::Drain(_))));
}

#[tokio::test]
async fn many_scrapes_are_all_answered() {
    let (master, http) = start().await;
    let _node = Reporter::register(&master, root("a")).await;
    for _ in 0..3000 {
        let text = answer(http, "GET /metrics HTTP/1.1").await;
        assert!(text.contains("arborcast_master_nodes{state=\"live\"} 1"), "{text}");
    }
    assert!(answer(http, "GET /readyz HTTP/1.1").await.starts_with("HTTP/1.1 200"));
    let page = answer(http, "GET / HTTP/1.1").await;
    assert!(page.contains("content-security-policy: default-src 'none'"), "{page}");
}

/// What a master did, by who asked what and how it was answered.
#[tokio::test]
async fn the_metrics_tell_of_calls_streams_advice_and_watchers() {
    let (master, http) = start().await;
    let ask = async || answer(http, "GET /metrics HTTP/1.1").await;
    let node = Reporter::register(&master, root("a")).await;
    let mut second = Reporter::register(&master, root("a")).await;
    master.node("b").await.unwrap_err();
    let watcher = soon(master.client().await.watch_topology(WatchTopologyRequest {})).await.unwrap();
    let mut odd = Grpc::new(master.channel().await);
    soon(odd.ready()).await.unwrap();
    let path = PathAndQuery::from_static("/some/thing-else");
    let codec = ProstCodec::<GetTopologyRequest, Topology>::default();
    soon(odd.unary(Request::new(GetTopologyRequest {}), path, codec)).await.unwrap_err();
    let other = Reporter::open_with(&master, NodeReport { node_id: String::new(), ..root("x") }).await;
    until(async || {
        let text = ask().await;
        let missing = [
            r#"grpc_calls_total{method="arborcast.registry.v1.Registry/Report",code="Ok"} 3"#,
            r#"grpc_calls_total{method="arborcast.registry.v1.Registry/GetNode",code="NotFound"} 1"#,
            r#"grpc_calls_total{method="other",code="Unimplemented"} 1"#,
            "report_streams 1",
            "report_streams_opened_total 3",
            r#"report_streams_closed_total{reason="replaced"} 1"#,
            r#"report_streams_closed_total{reason="invalid"} 1"#,
            r#"advice_total{kind="welcome",outcome="sent"} 2"#,
            "watchers 1",
        ]
        .into_iter()
        .find(|line| !text.contains(&format!("\narborcast_master_{line}\n")));
        missing.map_or(Ok(()), |line| Err(format!("{line} in {text}")))
    })
    .await;
    drop((node, other, watcher));
    let drain = DrainNodeRequest { node_id: "a".into(), incarnation: 0 };
    soon(master.client().await.drain_node(with_secret(drain))).await.unwrap();
    assert!(matches!(second.next().await.unwrap(), Some(advice::Kind::Drain(_))));
    until(async || {
        let text = ask().await;
        let is_right = text.contains("master_watchers 0\n")
            && text.contains("master_advice_total{kind=\"drain\",outcome=\"sent\"} 1\n");
        if is_right { Ok(()) } else { Err(text) }
    })
    .await;
}

/// The volume is made by a tree that changes all the time; the others must not notice.
#[tokio::test]
async fn a_browser_that_reads_nothing_is_cut_and_counted() {
    let (master, http) = start_with(|page| page.with_read_timeout(Duration::from_millis(200))).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut deaf = soon(socket.connect(([127, 0, 0, 1], http).into())).await.unwrap();
    soon(deaf.write_all(b"GET /events HTTP/1.1\r\nhost: x\r\n\r\n")).await.unwrap();
    let mut reader = ask(http, "GET /events HTTP/1.1").await;
    read_until(&mut reader, "event: tree").await;
    let report = |number: usize, hostname: String| NodeReport { hostname, ..root(&format!("{number:0>120}")) };
    let mut nodes = Vec::new();
    for number in 0..300 {
        nodes.push(Reporter::register(&master, report(number, "x".repeat(250))).await);
    }
    let is_cut = |metrics: &str| {
        ["streams_dropped_total 1\n", "streams_opened_total 2\n", "streams 1\n"]
            .iter()
            .all(|line| metrics.contains(&format!("\narborcast_master_page_{line}")))
    };
    soon(async {
        for turn in 0.. {
            nodes[0].report(report(0, format!("{turn:0>200}"))).await;
            read_until(&mut reader, &format!("{turn:0>200}")).await;
            if is_cut(&answer(http, "GET /metrics HTTP/1.1").await) {
                break;
            }
        }
    })
    .await;
    let mut rest = Vec::new();
    let end = soon(deaf.read_to_end(&mut rest)).await;
    assert!(end.is_err() || rest.len() < 8 << 20, "it got {} bytes after it was cut", rest.len());
}
