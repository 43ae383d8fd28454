//! Asking masters for servers.

use std::sync::Arc;
use std::time::Duration;

use arborcast_proto::registry::registry_client::RegistryClient;
use arborcast_proto::registry::{ListNodesRequest, Node, NodeState};
use arborcast_tls::{Tls, connector};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::Endpoint;
use tracing::debug;

use crate::address::Address;
use crate::candidates::Listed;

/// How long connecting to a master may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the masters together may take to name somebody.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// How many pages of nodes are read: as many as hold what a master knows at most.
const MAX_PAGES: usize = 10;

/// Asks all masters at once, and listens to the first that names a server.
///
/// # Errors
/// In words for people, when none did.
pub(crate) async fn ask(masters: &[Address], tls: Option<&Arc<Tls>>) -> Result<Vec<Listed>, String> {
    let mut questions: FuturesUnordered<_> = masters.iter().map(|master| list(master, tls)).collect();
    let mut reason = if masters.is_empty() { "there are no masters" } else { "no master answers" }.to_owned();
    let first_useful = async {
        while let Some((master, answer)) = questions.next().await {
            match answer {
                Ok(listed) if !listed.is_empty() => return Some(listed),
                Ok(_) => reason = format!("the master {master} knows none"),
                Err(status) => {
                    debug!(%master, %status, "can't ask a master");
                    reason = format!("the master {master} does not answer");
                }
            }
        }
        None
    };
    let answered = timeout(ANSWER_TIMEOUT, first_useful).await;
    answered.ok().flatten().ok_or(reason)
}

async fn list<'a>(master: &'a Address, tls: Option<&Arc<Tls>>) -> (&'a Address, Result<Vec<Listed>, Status>) {
    (master, list_pages(master, tls).await)
}

async fn list_pages(master: &Address, tls: Option<&Arc<Tls>>) -> Result<Vec<Listed>, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{master}"));
    let endpoint = endpoint.map_err(|error| Status::invalid_argument(error.to_string()))?;
    let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).timeout(ANSWER_TIMEOUT);
    let channel = match tls {
        Some(tls) => endpoint.connect_with_connector_lazy(connector(Arc::clone(tls))),
        None => endpoint.connect_lazy(),
    };
    let mut registry = RegistryClient::new(channel);
    let (mut listed, mut page_token) = (Vec::new(), String::new());
    for _ in 0..MAX_PAGES {
        let page = registry.list_nodes(ListNodesRequest { page_size: 0, page_token }).await?.into_inner();
        listed.extend(page.nodes.into_iter().filter_map(listed_node));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    Ok(listed)
}

/// The node, if it takes clients and can be reached.
fn listed_node(node: Node) -> Option<Listed> {
    let report = node.report?;
    let state = report.state();
    if node.drain_requested || matches!(state, NodeState::Draining | NodeState::Unspecified) {
        return None;
    }
    let address = Address::new(report.hostname, u16::try_from(report.port).ok()?).ok()?;
    Some(Listed { address, load: report.load, is_live: state == NodeState::Live })
}
