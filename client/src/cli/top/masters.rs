//! Watches the tree at one master after the other: the next one when one is gone.

use std::error::Error;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arborcast_client::Address;
use arborcast_client::tls::{Tls, connector};
use arborcast_proto::registry::registry_client::RegistryClient;
use arborcast_proto::registry::{
    ChangeKind, GetHistoryRequest, GetTopologyRequest, HappeningKind, TopologyChange, WatchTopologyRequest,
    watch_topology_response,
};
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, timeout};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::history::{Change, Tone, What};
use super::model::Update;
use super::picture::{Node, Picture};

/// How long a master may take to accept a connection, and to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Between two looks at the whole tree, which bring rates; and between a change and the next look.
const INTERVAL: Duration = Duration::from_secs(1);
const AFTER_CHANGE: Duration = Duration::from_millis(100);

/// Between two rounds in which no master could be watched.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Longest answer. Ten thousand nodes with long names take a few million bytes.
const MAX_ANSWER: usize = 64 << 20;

type Registry = RegistryClient<Channel>;

/// What people call a master.
fn name(master: &Address) -> String {
    format!("master {master}")
}

/// Says what there is to see until nobody listens any more.
pub(crate) async fn follow(masters: Vec<Address>, tls: Option<Arc<Tls>>, updates: mpsc::Sender<Update>) {
    let mut pause = FIRST_PAUSE;
    let mut knows_the_past = false;
    loop {
        let mut was_seen = false;
        for master in &masters {
            let mut watch = Watch { source: name(master), updates: &updates, knows_the_past, has_begun: false };
            let reason = watch.run(master, tls.as_ref()).await;
            was_seen |= watch.has_begun;
            knows_the_past |= watch.has_begun;
            let gone = Update::Gone { source: name(master), reason };
            if updates.send(gone).await.is_err() {
                return;
            }
        }
        if was_seen {
            pause = FIRST_PAUSE;
        }
        sleep(pause).await;
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

/// What the first master that answers sees.
///
/// # Errors
/// In words for people, when none answers.
pub(crate) async fn look(masters: &[Address], tls: Option<&Arc<Tls>>) -> Result<Picture, String> {
    let mut reasons = Vec::new();
    for master in masters {
        let looked = async {
            let mut registry = connect(master, tls).await?;
            picture(&mut registry, name(master)).await
        };
        match looked.await {
            Ok(picture) => return Ok(picture),
            Err(reason) => reasons.push(format!("{master}: {reason}")),
        }
    }
    Err(format!("no master answers ({})", reasons.join("; ")))
}

async fn connect(master: &Address, tls: Option<&Arc<Tls>>) -> Result<Registry, String> {
    let endpoint = Endpoint::from_shared(format!("http://{master}")).map_err(|error| innermost(&error))?;
    let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT);
    let connecting = async {
        match tls {
            Some(tls) => endpoint.connect_with_connector(connector(Arc::clone(tls))).await,
            None => endpoint.connect().await,
        }
    };
    let connected = timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| "it can't be reached in time".to_owned())?;
    let channel = connected.map_err(|error| innermost(&error))?;
    Ok(RegistryClient::new(channel).max_decoding_message_size(MAX_ANSWER))
}

async fn picture(registry: &mut Registry, source: String) -> Result<Picture, String> {
    let topology = in_time(registry.get_topology(GetTopologyRequest {})).await?;
    Ok(Picture::read(source, topology.into_inner(), SystemTime::now()))
}

async fn in_time<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, String> {
    let answer = timeout(ANSWER_TIMEOUT, call).await.map_err(|_| "it does not answer in time".to_owned())?;
    answer.map_err(|status| words(&status))
}

/// What went wrong, without what it is wrapped in.
pub(in crate::cli) fn words(status: &Status) -> String {
    if status.source().is_some() || status.message().is_empty() {
        innermost(status)
    } else {
        status.message().to_owned()
    }
}

fn innermost(error: &dyn Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// One master, as long as it can be watched.
struct Watch<'a> {
    source: String,
    updates: &'a mpsc::Sender<Update>,
    /// It was seen before: what happened is known, or a row says that nobody was watching.
    knows_the_past: bool,
    has_begun: bool,
}

impl Watch<'_> {
    /// Until it ends, and says why.
    async fn run(&mut self, master: &Address, tls: Option<&Arc<Tls>>) -> String {
        match self.watch(master, tls).await {
            Ok(never) => match never {},
            Err(reason) => reason,
        }
    }

    async fn watch(&mut self, master: &Address, tls: Option<&Arc<Tls>>) -> Result<std::convert::Infallible, String> {
        let mut registry = connect(master, tls).await?;
        let mut changes = in_time(registry.watch_topology(WatchTopologyRequest {})).await?.into_inner();
        let first = in_time(changes.message()).await?.and_then(|message| message.kind);
        let Some(watch_topology_response::Kind::Topology(first)) = first else {
            return Err("it does not begin with the whole tree".to_owned());
        };
        if !self.knows_the_past {
            self.remember(&mut registry).await?;
        }
        let began = Picture::read(self.source.clone(), first, SystemTime::now());
        self.has_begun = true;
        self.send(Update::Began(Box::new(began))).await?;
        let (source, has_changed) = (self.source.clone(), Notify::new());
        let looks = async {
            loop {
                let picture = picture(&mut registry, source.clone()).await?;
                self.send(Update::Picture(Box::new(picture))).await?;
                let mut interval = pin!(sleep(INTERVAL));
                tokio::select! {
                    () = &mut interval => {}
                    () = has_changed.notified() => tokio::select! {
                        () = interval => {}
                        () = sleep(AFTER_CHANGE) => {}
                    },
                }
            }
        };
        let changes = async {
            while let Some(message) = changes.message().await.map_err(|status| words(&status))? {
                if let Some(watch_topology_response::Kind::Change(change)) = message.kind
                    && let Some((at, change)) = read(change)
                {
                    self.send(Update::Change(at, Box::new(change))).await?;
                    has_changed.notify_one();
                }
            }
            Err("it has ended the watch".to_owned())
        };
        tokio::select! {
            ended = looks => ended,
            ended = changes => ended,
        }
    }

    /// What happened before. A master of an earlier version knows nothing of that.
    async fn remember(&self, registry: &mut Registry) -> Result<(), String> {
        let Ok(answer) = in_time(registry.get_history(GetHistoryRequest::default())).await else { return Ok(()) };
        for happening in answer.into_inner().happenings {
            let tone = match happening.kind() {
                HappeningKind::Lost => Tone::Bad,
                HappeningKind::Reattached => Tone::Good,
                HappeningKind::Drained => Tone::Worrying,
                HappeningKind::Unspecified | HappeningKind::MasterStarted | HappeningKind::Joined => Tone::Plain,
            };
            let at = happening.at.and_then(|at| at.try_into().ok()).unwrap_or(SystemTime::UNIX_EPOCH);
            self.send(Update::Told(at, What::Remembered { text: happening.text, tone })).await?;
        }
        Ok(())
    }

    async fn send(&self, update: Update) -> Result<(), String> {
        self.updates.send(update).await.map_err(|_| "nobody listens".to_owned())
    }
}

/// What has changed when. Kinds that are not known here, and changes without what they need, say nothing.
fn read(change: TopologyChange) -> Option<(SystemTime, Change)> {
    let at = change.at.and_then(|at| at.try_into().ok()).unwrap_or_else(SystemTime::now);
    let read = match change.kind() {
        ChangeKind::Lost => Change::Lost { reason: change.lost_reason(), id: change.node_id },
        ChangeKind::Joined | ChangeKind::Changed | ChangeKind::Reparented => Change::Seen(Node::read(change.node?)?),
        ChangeKind::Unspecified => return None,
    };
    Some((at, read))
}
