//! Asking masters for servers.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arborcast_proto::registry::registry_client::RegistryClient;
use arborcast_proto::registry::{AssignClientRequest, ListNodesRequest, Node, NodeState};
use arborcast_proto::wire::Secret;
use arborcast_tls::{Tls, connector};
use rand::seq::SliceRandom as _;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tracing::debug;

use crate::address::Address;
use crate::candidates::{Listed, rank};
use crate::error::{Error, printable};

/// How long connecting to a master may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long one master may take to name somebody.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// How many pages of nodes are read: as many as hold what a master knows at most.
const MAX_PAGES: usize = 10;

/// Masters, with connections that are made when they are needed and kept until it is dropped.
#[derive(Clone)]
pub struct Masters(Vec<(Address, RegistryClient<Channel>)>);

impl fmt::Debug for Masters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(address, _)| address)).finish()
    }
}

/// The server that one client should go to.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// The server's id.
    pub node_id: String,
    /// Where it is.
    pub address: Address,
    /// What to show there, in the field `ticket` of LOGIN or REGISTER: once, and soon.
    pub ticket: Secret,
}

/// What the masters have said.
#[derive(Debug, Clone)]
pub enum Advice {
    /// This one.
    Assigned(Assignment),
    /// One of these, in this order. From masters that assign nobody to anywhere; they give no tickets.
    Listed(Vec<Address>),
}

impl Masters {
    /// Must be called within a tokio runtime. What can't be an address of a master is left out.
    pub fn new(addresses: &[Address], tls: Option<&Arc<Tls>>) -> Self {
        let client = |master: &Address| {
            let endpoint = Endpoint::from_shared(format!("http://{master}")).ok()?;
            let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).timeout(ANSWER_TIMEOUT);
            let channel = match tls {
                Some(tls) => endpoint.connect_with_connector_lazy(connector(Arc::clone(tls))),
                None => endpoint.connect_lazy(),
            };
            Some((master.clone(), RegistryClient::new(channel)))
        };
        Self(addresses.iter().filter_map(client).collect())
    }

    /// Asks one after the other, in random order, for a server for one client, other than those with these ids; at most 256
    /// of them. Only one names a server, since each counts the client at the server that it names; those that have just
    /// started are asked when no other does.
    ///
    /// # Errors
    /// [`Error::NoServer`], with what the last one said, when no master names anybody.
    pub async fn ask(&self, leave_out: &[String]) -> Result<Advice, Error> {
        let mut masters: Vec<_> = self.0.iter().collect();
        masters.shuffle(&mut rand::rng());
        let mut reason = if masters.is_empty() { "there are no masters" } else { "no master answers" }.to_owned();
        let (mut warming, mut listed) = (Vec::new(), None);
        for (master, registry) in masters {
            match ask_one(registry.clone(), leave_out, true).await {
                Ok(Answer::Assigned(assignment)) => return Ok(Advice::Assigned(assignment)),
                Ok(Answer::Listed(servers)) if servers.is_empty() => reason = format!("the master {master} knows none"),
                Ok(Answer::Listed(servers)) => drop(listed.get_or_insert(servers)),
                Ok(Answer::Warming) => warming.push((master, registry)),
                Err(status) => reason = describe(master, &status),
            }
        }
        for (master, registry) in warming {
            match ask_one(registry.clone(), leave_out, false).await {
                Ok(Answer::Assigned(assignment)) => return Ok(Advice::Assigned(assignment)),
                Ok(Answer::Listed(_) | Answer::Warming) => {}
                Err(status) => reason = describe(master, &status),
            }
        }
        listed.map(Advice::Listed).ok_or(Error::NoServer { reason })
    }
}

/// What one master says.
enum Answer {
    Assigned(Assignment),
    Listed(Vec<Address>),
    Warming,
}

fn describe(master: &Address, status: &Status) -> String {
    debug!(%master, %status, "a master names no server");
    match status.code() {
        // Also what it means that there is no connection; the master's own words say which.
        Code::Unavailable => format!("the master {master}: {}", printable(status.message())),
        _ => format!("the master {master} does not answer"),
    }
}

async fn ask_one(
    registry: RegistryClient<Channel>,
    leave_out: &[String],
    unless_warming: bool,
) -> Result<Answer, Status> {
    let answer = timeout(ANSWER_TIMEOUT, assign_or_list(registry, leave_out, unless_warming)).await;
    answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")))
}

async fn assign_or_list(
    mut registry: RegistryClient<Channel>,
    leave_out: &[String],
    unless_warming: bool,
) -> Result<Answer, Status> {
    let request = AssignClientRequest { leave_out: leave_out.to_vec(), unless_warming };
    let answer = match registry.assign_client(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) if status.code() == Code::Unimplemented => {
            return Ok(Answer::Listed(rank(list(registry).await?, &mut rand::rng())));
        }
        Err(status) => return Err(status),
    };
    if answer.warming && unless_warming {
        return Ok(Answer::Warming);
    }
    let port = u16::try_from(answer.port).map_err(|error| Status::internal(error.to_string()))?;
    let address = Address::new(answer.hostname, port).map_err(|error| Status::internal(error.to_string()))?;
    Ok(Answer::Assigned(Assignment { node_id: answer.node_id, address, ticket: answer.ticket.into() }))
}

async fn list(mut registry: RegistryClient<Channel>) -> Result<Vec<Listed>, Status> {
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
