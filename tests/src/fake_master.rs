//! A master played by the test, which may say whatever the test likes.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arborcast_proto::registry::advice::Kind;
use arborcast_proto::registry::registry_server::{Registry, RegistryServer};
use arborcast_proto::registry::{
    Advice, AssignClientRequest, AssignClientResponse, Candidate, DrainNodeRequest, DrainNodeResponse,
    FindParentRequest, FindParentResponse, GetHistoryRequest, GetHistoryResponse, GetNodeRequest, GetTopologyRequest,
    ListNodesRequest, ListNodesResponse, Node, NodeReport, OtherFragment, RebalanceRequest, RebalanceResponse,
    Topology, WatchTopologyRequest, WatchTopologyResponse, Welcome,
};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tonic::codegen::tokio_stream::Stream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

/// How many pieces of advice wait for a node that is slow to take them.
const WAITING: usize = 16;

/// What the nodes have reported last, by id.
pub type Reports = BTreeMap<String, NodeReport>;

/// What it says to somebody who asks for a parent, and unasked.
pub trait Character: Send + Sync + 'static {
    /// Whom it names to this asker; nothing if it never answers.
    fn answer(&self, asker: &str, reports: &Reports) -> Option<Vec<Candidate>>;

    /// Whether it says the same unasked, all the time.
    fn is_talkative(&self) -> bool {
        false
    }

    /// The ticket that it gives to every client; none if it assigns nobody to anywhere.
    fn ticket(&self) -> Option<String> {
        None
    }

    /// Whether it takes reports at all, or leaves them without an answer.
    fn takes_reports(&self) -> bool {
        true
    }
}

impl<F: Fn(&str, &Reports) -> Option<Vec<Candidate>> + Send + Sync + 'static> Character for F {
    fn answer(&self, asker: &str, reports: &Reports) -> Option<Vec<Candidate>> {
        self(asker, reports)
    }
}

/// A candidate at an address.
pub fn candidate(id: &str, hostname: &str, port: u32) -> Candidate {
    Candidate { node_id: id.into(), hostname: hostname.into(), port, free_slots: 1, ..Candidate::default() }
}

/// A master that accepts connections. Gone when dropped.
#[derive(Debug)]
pub struct FakeMaster {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    runtime: Option<Runtime>,
}

impl FakeMaster {
    /// A master on a free port.
    pub fn start(character: impl Character) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("there are free ports");
        let address = listener.local_addr().expect("a listener has an address");
        let asked = Arc::new(AtomicUsize::new(0));
        let service = Service { character: Arc::new(character), reports: Arc::default(), asked: Arc::clone(&asked) };
        let incoming = futures_util::stream::unfold(listener, |listener| async move {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        });
        runtime.spawn(Server::builder().add_service(RegistryServer::new(service)).serve_with_incoming(incoming));
        Self { address, asked, runtime: Some(runtime) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How often it was asked for a parent.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for FakeMaster {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[derive(Clone)]
struct Service {
    character: Arc<dyn Character>,
    reports: Arc<Mutex<Reports>>,
    asked: Arc<AtomicUsize>,
}

impl Service {
    fn lie(&self, asker: &str) -> Option<Vec<Candidate>> {
        self.character.answer(asker, &self.reports.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes reports in until the node has gone.
    async fn listen(self, mut reports: Streaming<NodeReport>, advice: mpsc::Sender<Result<Advice, Status>>) {
        let mut talks = false;
        while let Ok(Some(report)) = reports.message().await {
            let id = report.node_id.clone();
            self.reports.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), report);
            if self.character.is_talkative() && !std::mem::replace(&mut talks, true) {
                let (service, advice) = (self.clone(), advice.clone());
                tokio::spawn(async move {
                    while let Some(candidates) = service.lie(&id) {
                        let said = Advice { kind: Some(Kind::Fragment(OtherFragment { candidates })) };
                        if advice.send(Ok(said)).await.is_err() {
                            return;
                        }
                    }
                });
            }
        }
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Registry for Service {
    type ReportStream = Answers<Advice>;
    type WatchTopologyStream = Answers<WatchTopologyResponse>;

    async fn report(&self, request: Request<Streaming<NodeReport>>) -> Result<Response<Self::ReportStream>, Status> {
        if !self.character.takes_reports() {
            std::future::pending::<()>().await;
        }
        let (sender, receiver) = mpsc::channel(WAITING);
        let welcome = Advice {
            kind: Some(Kind::Welcome(Welcome { master_id: "fake".into(), warming: false, keeps_users: false })),
        };
        let _ = sender.try_send(Ok(welcome));
        tokio::spawn(self.clone().listen(request.into_inner(), sender));
        let advice = futures_util::stream::unfold(receiver, |mut receiver| async move {
            let said = receiver.recv().await?;
            Some((said, receiver))
        });
        Ok(Response::new(Box::pin(advice)))
    }

    async fn find_parent(&self, request: Request<FindParentRequest>) -> Result<Response<FindParentResponse>, Status> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        match self.lie(&request.into_inner().node_id) {
            Some(candidates) => Ok(Response::new(FindParentResponse { candidates, warming: false })),
            None => {
                tokio::time::sleep(Duration::from_secs(3600)).await;
                Err(Status::deadline_exceeded("at last"))
            }
        }
    }

    async fn get_topology(&self, _: Request<GetTopologyRequest>) -> Result<Response<Topology>, Status> {
        Err(Status::unimplemented("not played"))
    }

    async fn list_nodes(&self, _: Request<ListNodesRequest>) -> Result<Response<ListNodesResponse>, Status> {
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let nodes = reports.into_values().map(|report| Node { report: Some(report), ..Node::default() });
        Ok(Response::new(ListNodesResponse { nodes: nodes.collect(), ..ListNodesResponse::default() }))
    }

    async fn get_history(&self, _: Request<GetHistoryRequest>) -> Result<Response<GetHistoryResponse>, Status> {
        Err(Status::unimplemented("not played"))
    }

    async fn get_node(&self, _: Request<GetNodeRequest>) -> Result<Response<Node>, Status> {
        Err(Status::unimplemented("not played"))
    }

    async fn watch_topology(
        &self,
        _: Request<WatchTopologyRequest>,
    ) -> Result<Response<Self::WatchTopologyStream>, Status> {
        Err(Status::unimplemented("not played"))
    }

    async fn assign_client(
        &self,
        request: Request<AssignClientRequest>,
    ) -> Result<Response<AssignClientResponse>, Status> {
        let ticket = self.character.ticket().ok_or_else(|| Status::unimplemented("not played"))?;
        let leave_out = request.into_inner().leave_out;
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let first = reports.into_values().find(|report| !leave_out.contains(&report.node_id));
        let NodeReport { node_id, hostname, port, .. } =
            first.ok_or_else(|| Status::unavailable("there is no other"))?;
        Ok(Response::new(AssignClientResponse { node_id, hostname, port, ticket, ..AssignClientResponse::default() }))
    }

    async fn rebalance(&self, _: Request<RebalanceRequest>) -> Result<Response<RebalanceResponse>, Status> {
        Err(Status::unimplemented("not played"))
    }

    async fn drain_node(&self, _: Request<DrainNodeRequest>) -> Result<Response<DrainNodeResponse>, Status> {
        Err(Status::unimplemented("not played"))
    }
}
