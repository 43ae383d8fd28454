//! One running master, and what it answers.

use std::net::SocketAddr;

use arborcast_proto::registry::registry_client::RegistryClient;
use arborcast_proto::registry::{
    AssignClientRequest, AssignClientResponse, DrainNodeRequest, GetTopologyRequest, Topology,
};
use arborcast_proto::users::users_client::UsersClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::node::{SECRET, listening_port};
use crate::process::{Process, master_binary};
use crate::wait::PATIENCE;

/// The longest answer that is read, in bytes: ten thousand servers are more than the usual 4 MiB.
const MAX_ANSWER: usize = 64 << 20;

/// A request with the secret of the cluster.
///
/// # Panics
/// Never: the secret is ASCII.
pub fn with_secret<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let bearer = format!("Bearer {SECRET}").parse().expect("the secret is ASCII");
    request.metadata_mut().insert("authorization", bearer);
    request
}

/// A master that accepts connections. Killed when dropped.
#[derive(Debug)]
pub struct Master {
    /// Its process.
    pub process: Process,
    address: SocketAddr,
}

impl Master {
    /// A master on a free port.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// One that also answers over HTTP; see [`http_address`](crate::scrape::http_address).
    #[track_caller]
    pub fn start_with_http() -> Self {
        Self::start_with(SocketAddr::from(([127, 0, 0, 1], 0)), &["--http", "127.0.0.1:0"])
    }

    /// A master that knows nothing yet, at an address where one was before.
    #[track_caller]
    pub fn start_at(address: SocketAddr) -> Self {
        Self::start_with(address, &[])
    }

    /// The same, with these flags.
    #[track_caller]
    pub fn start_with(address: SocketAddr, flags: &[&str]) -> Self {
        let listen = address.to_string();
        let process = Process::start(master_binary(), [&["--listen", &listen, "-s", SECRET][..], flags].concat());
        let port = listening_port(&process);
        Self { process, address: SocketAddr::new(address.ip(), port) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The tree as it knows it.
    ///
    /// # Errors
    /// When it does not answer, in a sentence.
    pub fn topology(&self) -> Result<Topology, String> {
        self.ask(async |mut registry| registry.get_topology(GetTopologyRequest {}).await)
    }

    /// A node for a client, as it names it, other than these.
    ///
    /// # Errors
    /// When there is none, in a sentence.
    pub fn assign(&self, leave_out: &[&str]) -> Result<AssignClientResponse, String> {
        let leave_out = leave_out.iter().map(|&id| id.to_owned()).collect();
        let request = AssignClientRequest { leave_out, unless_warming: false };
        self.ask(async |mut registry| registry.assign_client(request).await)
    }

    /// Asks a node to drain.
    ///
    /// # Errors
    /// When the master refuses, in a sentence.
    pub fn drain(&self, node_id: &str) -> Result<(), String> {
        let request = with_secret(DrainNodeRequest { node_id: node_id.to_owned(), incarnation: 0 });
        self.ask(async |mut registry| registry.drain_node(request).await).map(|_| ())
    }

    /// Asks it what nodes and operators ask.
    ///
    /// # Errors
    /// When it does not answer, or refuses, in a sentence.
    pub fn ask<T>(
        &self,
        call: impl AsyncFnOnce(RegistryClient<Channel>) -> Result<Response<T>, Status>,
    ) -> Result<T, String> {
        self.ask_over(async |channel| call(RegistryClient::new(channel).max_decoding_message_size(MAX_ANSWER)).await)
    }

    /// Asks it as a keeper of users.
    ///
    /// # Errors
    /// When it does not answer, or refuses, in a sentence.
    pub fn ask_for_users<T>(
        &self,
        call: impl AsyncFnOnce(UsersClient<Channel>) -> Result<Response<T>, Status>,
    ) -> Result<T, String> {
        self.ask_over(async |channel| call(UsersClient::new(channel)).await)
    }

    fn ask_over<T>(&self, call: impl AsyncFnOnce(Channel) -> Result<Response<T>, Status>) -> Result<T, String> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).expect("an address makes a URI");
        let endpoint = endpoint.connect_timeout(PATIENCE).timeout(PATIENCE);
        runtime.block_on(async {
            let channel = endpoint.connect().await.map_err(|error| format!("can't reach {}: {error}", self.address))?;
            let answer = call(channel).await;
            answer.map(Response::into_inner).map_err(|status| format!("{} says {status}", self.address))
        })
    }
}
