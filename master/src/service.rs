//! The gRPC service: checks who calls, translates, and asks the registry. Nothing is decided here.

use std::sync::Arc;
use std::time::Duration;

use arborcast_proto::registry as pb;
use arborcast_proto::registry::registry_server::Registry as RegistryService;
use futures_util::stream::{BoxStream, StreamExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info};

use crate::admission::{EXPIRES_IN, TicketOffice};
use crate::auth::Authorizer;
use crate::messages;
use crate::outbox::{Outbox, outbox};
use crate::registry::Registry;
use crate::report_stream;
use crate::settings::Bounds;
use crate::topology::{DrainRefusal, Incarnation};
use crate::watch::Event;

/// How many pieces of advice may wait for one node. A node that does not read them gets no more.
const ADVICE_QUEUE: usize = 16;

/// How many nodes are on a page at most.
const MAX_PAGE: usize = 1000;

/// What the calls share.
#[derive(Debug)]
pub(crate) struct Service {
    registry: Arc<Registry>,
    authorizer: Authorizer,
    tickets: TicketOffice,
    newcomers: mpsc::Sender<Outbox<Event>>,
    report_slots: Arc<Semaphore>,
    watch_slots: Arc<Semaphore>,
    planning: Arc<Semaphore>,
    watcher_queue: usize,
    first_report_timeout: Duration,
    readers: TaskTracker,
    stop: CancellationToken,
}

impl Service {
    /// Watchers are handed to `newcomers`; report streams are read by `readers`, until `stop`.
    pub(crate) fn new(
        registry: Arc<Registry>,
        authorizer: Authorizer,
        tickets: TicketOffice,
        newcomers: mpsc::Sender<Outbox<Event>>,
        bounds: &Bounds,
        readers: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let slots = |count: usize| Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)));
        Self {
            registry,
            authorizer,
            tickets,
            newcomers,
            report_slots: slots(bounds.report_streams),
            watch_slots: slots(bounds.watchers),
            planning: slots(1),
            watcher_queue: bounds.watcher_queue.max(1),
            first_report_timeout: bounds.first_report_timeout,
            readers,
            stop,
        }
    }
}

#[tonic::async_trait]
impl RegistryService for Service {
    type ReportStream = BoxStream<'static, Result<pb::Advice, Status>>;
    type WatchTopologyStream = BoxStream<'static, Result<pb::WatchTopologyResponse, Status>>;

    async fn report(
        &self,
        request: Request<Streaming<pb::NodeReport>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        self.authorizer.check_node(&request)?;
        let permit = take(&self.report_slots, "report streams")?;
        let (outbox, advice) = outbox(ADVICE_QUEUE, permit);
        let (registry, timeout) = (Arc::clone(&self.registry), self.first_report_timeout);
        let reader = report_stream::serve(registry, request.into_inner(), outbox, timeout, self.stop.clone());
        self.readers.spawn(reader);
        Ok(Response::new(advice))
    }

    async fn find_parent(
        &self,
        request: Request<pb::FindParentRequest>,
    ) -> Result<Response<pb::FindParentResponse>, Status> {
        self.authorizer.check_node(&request)?;
        let asker = messages::asker(request.into_inner())?;
        let candidates = self.registry.find_parent(&asker).map_err(|refusal| report_stream::refused(&refusal))?;
        Ok(Response::new(pb::FindParentResponse {
            candidates: messages::candidates(candidates),
            warming: self.registry.is_warming(),
        }))
    }

    async fn get_topology(&self, _: Request<pb::GetTopologyRequest>) -> Result<Response<pb::Topology>, Status> {
        Ok(Response::new(messages::topology(&self.registry.picture(), self.registry.master_id())))
    }

    async fn list_nodes(
        &self,
        request: Request<pb::ListNodesRequest>,
    ) -> Result<Response<pb::ListNodesResponse>, Status> {
        let pb::ListNodesRequest { page_size, page_token } = request.into_inner();
        let size = usize::try_from(page_size).ok().filter(|size| (1..=MAX_PAGE).contains(size)).unwrap_or(MAX_PAGE);
        let picture = self.registry.picture();
        let forest = picture.topology.forest(picture.now);
        let mut rest = forest.nodes().skip_while(|(id, _)| id.as_str() <= page_token.as_str());
        let page: Vec<pb::Node> =
            rest.by_ref().take(size).map(|(_, entry)| messages::node(&forest.view(entry))).collect();
        let last = page.last().and_then(|node| node.report.as_ref()).map(|report| report.node_id.clone());
        let next_page_token = last.filter(|_| rest.next().is_some()).unwrap_or_default();
        Ok(Response::new(pb::ListNodesResponse { nodes: page, next_page_token, warming: picture.warming }))
    }

    async fn get_node(&self, request: Request<pb::GetNodeRequest>) -> Result<Response<pb::Node>, Status> {
        let id = messages::node_id("node_id", request.into_inner().node_id)?;
        let picture = self.registry.picture();
        let forest = picture.topology.forest(picture.now);
        match (forest.node(id.as_str()), picture.topology.entry(id.as_str())) {
            (Some(entry), _) => Ok(Response::new(messages::node(&forest.view(entry)))),
            (None, Some(_)) => Err(Status::not_found(format!("node {id} is silent"))),
            (None, None) => Err(Status::not_found(format!("node {id} is not registered at this master"))),
        }
    }

    async fn get_history(
        &self,
        request: Request<pb::GetHistoryRequest>,
    ) -> Result<Response<pb::GetHistoryResponse>, Status> {
        let happenings = self.registry.metrics().chronicle().since(request.into_inner().after);
        let happenings = happenings.iter().map(messages::happening).collect();
        Ok(Response::new(pb::GetHistoryResponse { happenings }))
    }

    async fn watch_topology(
        &self,
        _: Request<pb::WatchTopologyRequest>,
    ) -> Result<Response<Self::WatchTopologyStream>, Status> {
        let permit = take(&self.watch_slots, "watchers")?;
        let (outbox, events) = outbox(self.watcher_queue, permit);
        let stopping = |_| Status::unavailable("this master is stopping");
        self.newcomers.send(outbox).await.map_err(stopping)?;
        let (registry, watching) = (Arc::clone(&self.registry), self.registry.metrics().watcher());
        let translated = events.map(move |event| {
            let _as_long_as_it_is_read = &watching;
            event.map(|event| watched(&registry, &event))
        });
        Ok(Response::new(translated.boxed()))
    }

    async fn assign_client(
        &self,
        request: Request<pb::AssignClientRequest>,
    ) -> Result<Response<pb::AssignClientResponse>, Status> {
        let assignments = &self.registry.assignments;
        let pb::AssignClientRequest { leave_out, unless_warming } = request.into_inner();
        let leave_out = messages::left_out(leave_out).inspect_err(|_| assignments.count_invalid())?;
        let warming = self.registry.is_warming();
        if warming && unless_warming {
            assignments.count_warming();
            return Ok(Response::new(pb::AssignClientResponse { warming, ..Default::default() }));
        }
        let Some(assigned) = self.registry.assign(&leave_out) else {
            assignments.count_no_node();
            return Err(Status::unavailable("this master knows no node that takes clients"));
        };
        assignments.count_assigned();
        debug!(node = %assigned.id, "sent a client there");
        Ok(Response::new(pb::AssignClientResponse {
            ticket: self.tickets.ticket(&assigned).expose().to_owned(),
            node_id: assigned.id.to_string(),
            hostname: assigned.hostname,
            port: assigned.port.into(),
            expires_in: Some(messages::duration(EXPIRES_IN)),
            warming,
        }))
    }

    async fn rebalance(
        &self,
        request: Request<pb::RebalanceRequest>,
    ) -> Result<Response<pb::RebalanceResponse>, Status> {
        if !request.get_ref().dry_run {
            self.authorizer.check(request.metadata())?;
            self.registry.rebalance();
            info!("asked to balance the trees");
        }
        // It takes long in a large tree, and anybody may ask: one at a time, and beside everything else.
        let turn = take(&self.planning, "plans")?;
        let registry = Arc::clone(&self.registry);
        let planning = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let picture = registry.picture();
            let trees = registry.plan(&picture).into_iter().map(messages::tree_plan).collect();
            pb::RebalanceResponse { trees, warming: picture.warming, balances: registry.balances() }
        });
        let answer = planning.await.map_err(|_| Status::internal("the plan could not be made; this is a bug"))?;
        Ok(Response::new(answer))
    }

    async fn drain_node(
        &self,
        request: Request<pb::DrainNodeRequest>,
    ) -> Result<Response<pb::DrainNodeResponse>, Status> {
        self.authorizer.check(request.metadata())?;
        let message = request.into_inner();
        let id = messages::node_id("node_id", message.node_id)?;
        let wanted = Some(message.incarnation).filter(|&incarnation| incarnation != 0).map(Incarnation);
        let told = self.registry.drain(&id, wanted).map_err(|refusal| not_drained(&refusal))?;
        let Incarnation(incarnation) =
            told.ok_or_else(|| Status::unavailable(format!("node {id} does not read what this master sends it")))?;
        info!(node = %id, incarnation, "asked a node to drain");
        Ok(Response::new(pb::DrainNodeResponse { incarnation }))
    }
}

fn take(slots: &Arc<Semaphore>, what: &str) -> Result<OwnedSemaphorePermit, Status> {
    Arc::clone(slots)
        .try_acquire_owned()
        .map_err(|_| Status::resource_exhausted(format!("this master takes no more {what} now")))
}

fn not_drained(refusal: &DrainRefusal) -> Status {
    let text = refusal.to_string();
    match refusal {
        DrainRefusal::Unknown(_) => Status::not_found(text),
        DrainRefusal::Silent(_) => Status::unavailable(text),
        DrainRefusal::OtherStart { .. } | DrainRefusal::Draining(_) => Status::failed_precondition(text),
    }
}

/// Translated when it is sent and not when it is queued: what waits is shared by all watchers.
fn watched(registry: &Registry, event: &Event) -> pb::WatchTopologyResponse {
    use pb::watch_topology_response::Kind;
    let kind = match event {
        Event::Picture(picture) => Kind::Topology(messages::topology(picture, registry.master_id())),
        Event::Change(at, change) => Kind::Change(messages::change(*at, change)),
    };
    pb::WatchTopologyResponse { kind: Some(kind) }
}
