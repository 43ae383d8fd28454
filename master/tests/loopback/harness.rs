//! A master, nodes that report to it, and deadlines for everything.

use std::future::Future;
use std::time::{Duration, Instant};

use arborcast_master::{MasterError, Settings, connections, listen, serve};
use arborcast_proto::registry::registry_client::RegistryClient;
use arborcast_proto::registry::{
    Advice, Candidate, FindParentRequest, FragmentKey, GetNodeRequest, GetTopologyRequest, Node, NodeReport, NodeState,
    Topology, Welcome, advice,
};
use futures_util::stream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

pub(crate) const SECRET: &str = "s3cret";

/// Nothing here takes this long, however busy the machine is.
const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) async fn soon<F: Future>(what: F) -> F::Output {
    tokio::time::timeout(DEADLINE, what).await.expect("in time")
}

/// Asks again and again until there is an answer.
pub(crate) async fn until<T, F: Future<Output = Result<T, String>>>(mut ask: impl FnMut() -> F) -> T {
    let begin = Instant::now();
    loop {
        match soon(ask()).await {
            Ok(answer) => return answer,
            Err(missing) => assert!(begin.elapsed() < DEADLINE, "still: {missing}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) struct Master {
    pub(crate) port: u16,
    pub(crate) stop: CancellationToken,
    pub(crate) task: JoinHandle<Result<(), MasterError>>,
}

impl Drop for Master {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Master {
    /// One that has warmed up.
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings { warm_up: Duration::ZERO, ..Settings::new(SECRET.into()) };
        change(&mut settings);
        Self::start_at(0, settings).await
    }

    pub(crate) async fn start_at(port: u16, settings: Settings) -> Self {
        let listener = listen("127.0.0.1", port).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(connections(listener), settings, stop.clone()));
        Self { port, stop, task }
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::from_shared(format!("http://127.0.0.1:{}", self.port)).unwrap().connect_timeout(DEADLINE)
    }

    pub(crate) async fn channel(&self) -> Channel {
        soon(self.endpoint().connect()).await.unwrap()
    }

    pub(crate) async fn client(&self) -> RegistryClient<Channel> {
        RegistryClient::new(self.channel().await).max_decoding_message_size(64 << 20)
    }

    pub(crate) async fn topology(&self) -> Topology {
        soon(self.client().await.get_topology(GetTopologyRequest {})).await.unwrap().into_inner()
    }

    pub(crate) async fn node(&self, id: &str) -> Result<Node, Status> {
        let request = GetNodeRequest { node_id: id.into() };
        soon(self.client().await.get_node(request)).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn until_gone(&self, id: &str) {
        until(async || match self.node(id).await {
            Ok(_) => Err(format!("{id} is there")),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => panic!("{status:?}"),
        })
        .await;
    }

    pub(crate) async fn candidates(&self, id: &str, key: FragmentKey) -> Vec<Candidate> {
        let request = FindParentRequest { node_id: id.into(), incarnation: 1, key: Some(key), leave_out: Vec::new() };
        soon(self.client().await.find_parent(with_secret(request))).await.unwrap().into_inner().candidates
    }
}

pub(crate) fn with_secret<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {SECRET}").parse().unwrap());
    request
}

pub(crate) fn key(reign: u64, root: &str) -> FragmentKey {
    FragmentKey { reign, root_id: root.into(), unsettled: false }
}

/// A live root.
pub(crate) fn root(id: &str) -> NodeReport {
    NodeReport {
        node_id: id.into(),
        incarnation: 1,
        hostname: "localhost".into(),
        port: 3780,
        version: "test".into(),
        key: Some(key(0, id)),
        parent_id: String::new(),
        path: vec![id.into()],
        depth: 0,
        children: Vec::new(),
        max_children: 4,
        load: 0,
        state: NodeState::Live.into(),
        heartbeat_interval_ms: 60_000,
        move_answer: None,
        activities: 0,
        settled_tickets: Vec::new(),
        masters: 0,
    }
}

/// A live child of a root.
pub(crate) fn child(id: &str, parent: &str) -> NodeReport {
    NodeReport {
        key: Some(key(0, parent)),
        parent_id: parent.into(),
        path: vec![parent.into(), id.into()],
        depth: 1,
        ..root(id)
    }
}

/// A node's side of its report stream.
pub(crate) struct Reporter {
    pub(crate) reports: mpsc::Sender<NodeReport>,
    pub(crate) advice: Streaming<Advice>,
}

impl Reporter {
    /// Opens a stream and says nothing yet.
    pub(crate) async fn open(master: &Master) -> Self {
        let (reports, receiver) = mpsc::channel::<NodeReport>(16);
        let stream = stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
        let advice = soon(master.client().await.report(with_secret(stream))).await.unwrap().into_inner();
        Self { reports, advice }
    }

    /// Opens one and reports, whatever comes of it.
    pub(crate) async fn open_with(master: &Master, report: NodeReport) -> Self {
        let reporter = Self::open(master).await;
        reporter.report(report).await;
        reporter
    }

    /// A registered node.
    pub(crate) async fn register(master: &Master, report: NodeReport) -> Self {
        Self::welcomed(master, report).await.0
    }

    pub(crate) async fn welcomed(master: &Master, report: NodeReport) -> (Self, Welcome) {
        let mut reporter = Self::open_with(master, report).await;
        match reporter.next().await {
            Ok(Some(advice::Kind::Welcome(welcome))) => (reporter, welcome),
            other => panic!("expected to be welcome, got {other:?}"),
        }
    }

    pub(crate) async fn report(&self, report: NodeReport) {
        soon(self.reports.send(report)).await.expect("the stream is open");
    }

    /// The next advice but lists of other servers, which come all the time; none at a clean end.
    pub(crate) async fn next(&mut self) -> Result<Option<advice::Kind>, Status> {
        loop {
            match self.next_of_all().await? {
                Some(advice::Kind::Servers(_)) => {}
                advice => return Ok(advice),
            }
        }
    }

    /// The next advice of whatever kind; none at a clean end.
    pub(crate) async fn next_of_all(&mut self) -> Result<Option<advice::Kind>, Status> {
        let advice = soon(self.advice.message()).await?;
        Ok(advice.map(|advice| advice.kind.expect("a kind")))
    }

    /// How the stream ends. Advice before it is ignored.
    pub(crate) async fn end(&mut self) -> Option<Status> {
        loop {
            match self.next().await {
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(status) => return Some(status),
            }
        }
    }

    pub(crate) async fn end_code(&mut self) -> Option<Code> {
        self.end().await.map(|status| status.code())
    }
}
