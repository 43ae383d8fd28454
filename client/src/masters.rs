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
use crate::error::Error;

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
    /// of them. One master only, if it answers: each counts the client at the server that it names.
    ///
    /// # Errors
    /// [`Error::NoServer`], with what the last one said, when no master names anybody.
    pub async fn ask(&self, leave_out: &[String]) -> Result<Advice, Error> {
        let mut masters: Vec<_> = self.0.iter().collect();
        masters.shuffle(&mut rand::rng());
        let mut reason = if masters.is_empty() { "there are no masters" } else { "no master answers" }.to_owned();
        let mut second_best = None;
        for (master, registry) in masters {
            let answer = timeout(ANSWER_TIMEOUT, ask_one(registry.clone(), leave_out)).await;
            match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time"))) {
                Ok((advice, true)) => return Ok(advice),
                Ok((Advice::Listed(listed), _)) if listed.is_empty() => {
                    reason = format!("the master {master} knows none")
                }
                Ok((advice, false)) => drop(second_best.get_or_insert(advice)),
                Err(status) => {
                    debug!(%master, %status, "can't ask a master");
                    reason = match status.code() {
                        // Its own words, for when it has looked.
                        Code::Unavailable if leave_out.is_empty() => {
                            format!("the master {master} knows none, or is not there")
                        }
                        Code::Unavailable => format!("the master {master} knows no other"),
                        _ => format!("the master {master} does not answer"),
                    };
                }
            }
        }
        second_best.ok_or(Error::NoServer { reason })
    }
}

/// What one master says, and whether another could hardly say better.
async fn ask_one(mut registry: RegistryClient<Channel>, leave_out: &[String]) -> Result<(Advice, bool), Status> {
    let request = AssignClientRequest { leave_out: leave_out.to_vec() };
    let answer = match registry.assign_client(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) if status.code() == Code::Unimplemented => {
            let listed = rank(list(registry).await?, &mut rand::rng());
            return Ok((Advice::Listed(listed), false));
        }
        Err(status) => return Err(status),
    };
    let port = u16::try_from(answer.port).map_err(|error| Status::internal(error.to_string()))?;
    let address = Address::new(answer.hostname, port).map_err(|error| Status::internal(error.to_string()))?;
    let assignment = Assignment { node_id: answer.node_id, address, ticket: answer.ticket.into() };
    Ok((Advice::Assigned(assignment), !answer.warming))
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
