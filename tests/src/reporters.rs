//! Nodes played by the test, that report to a real master whatever they are told to.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arborcast_proto::registry::registry_client::RegistryClient;
use arborcast_proto::registry::{Advice, FragmentKey, NodeReport, NodeState};
use futures_util::stream;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};

use crate::node::SECRET;
use crate::wait::PATIENCE;

/// Streams over one connection; a master takes 128.
const STREAMS: usize = 100;

/// How often a node says again what it said last: with each heartbeat.
const REPEAT: Duration = Duration::from_millis(300);

/// What is to be reported, and what was last.
type Reporting = (mpsc::Receiver<NodeReport>, Option<NodeReport>);

/// Report streams, by the ids of their nodes.
pub struct Reporters {
    runtime: Runtime,
    master: SocketAddr,
    channel: Option<Channel>,
    streams: BTreeMap<String, (mpsc::Sender<NodeReport>, AbortHandle)>,
    opened: usize,
    advised: Arc<AtomicU64>,
}

impl Reporters {
    /// None yet.
    pub fn new(master: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime can be made");
        Self { runtime, master, channel: None, streams: BTreeMap::new(), opened: 0, advised: Arc::default() }
    }

    /// How many pieces of advice they have got, all together.
    pub fn advised(&self) -> u64 {
        self.advised.load(Ordering::Relaxed)
    }

    /// Reports, over the stream of that node.
    #[track_caller]
    pub fn report(&mut self, report: NodeReport) {
        if !self.streams.contains_key(&report.node_id) {
            self.open(&report.node_id);
        }
        let (reports, _) = &self.streams[&report.node_id];
        self.runtime.block_on(reports.send(report)).expect("the stream is open");
    }

    /// Ends the stream of a node.
    pub fn end(&mut self, id: &str) {
        if let Some((_, advice)) = self.streams.remove(id) {
            advice.abort();
        }
    }

    fn open(&mut self, id: &str) {
        if self.opened.is_multiple_of(STREAMS) {
            let endpoint = Endpoint::from_shared(format!("http://{}", self.master)).expect("an address makes a URI");
            let channel = self.runtime.block_on(endpoint.connect_timeout(PATIENCE).connect());
            self.channel = Some(channel.expect("the master accepts connections"));
        }
        self.opened += 1;
        let channel = self.channel.clone().expect("just connected");
        let (reports, receiver) = mpsc::channel(16);
        let stream = stream::unfold((receiver, None), repeated);
        let mut request = Request::new(stream);
        request
            .metadata_mut()
            .insert("authorization", format!("Bearer {SECRET}").parse().expect("the secret is ASCII"));
        let answer = self.runtime.block_on(async { RegistryClient::new(channel).report(request).await });
        let advice = answer.expect("the master takes the stream").into_inner();
        // Ended by hand, or with the runtime.
        let reading = self.runtime.spawn(read(advice, Arc::clone(&self.advised))).abort_handle();
        self.streams.insert(id.to_owned(), (reports, reading));
    }
}

async fn read(mut advice: Streaming<Advice>, count: Arc<AtomicU64>) {
    while let Ok(Some(_)) = advice.message().await {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// The next report, or the last one again: a node that says nothing would soon be taken for silent.
async fn repeated((mut reports, last): Reporting) -> Option<(NodeReport, Reporting)> {
    let report = match (timeout(REPEAT, reports.recv()).await, last) {
        (Ok(report), _) => report?,
        (Err(_), Some(last)) => last,
        (Err(_), None) => reports.recv().await?,
    };
    Some((report.clone(), (reports, Some(report))))
}

/// A live node at the end of this path, which begins with its root.
pub fn live(path: &[&str]) -> NodeReport {
    let (id, above) = path.split_last().expect("a path has an end");
    NodeReport {
        masters: 0,
        move_answer: None,
        settled_tickets: Vec::new(),
        node_id: (*id).to_owned(),
        incarnation: 1,
        hostname: "tree.example.org".to_owned(),
        port: 3780,
        version: "arborcast-node 0.1.0".to_owned(),
        key: Some(FragmentKey { reign: 0, root_id: path[0].to_owned(), unsettled: false }),
        parent_id: above.last().copied().unwrap_or_default().to_owned(),
        path: path.iter().map(|id| (*id).to_owned()).collect(),
        depth: above.len() as u32,
        children: Vec::new(),
        max_children: 8,
        load: 3,
        state: NodeState::Live.into(),
        heartbeat_interval_ms: 300,
        activities: 0,
    }
}
