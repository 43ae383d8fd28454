//! The servers, alone or three together, with as little configuration as makes them comparable.

use std::env;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::protocol::Protocol;
use crate::node::{NodeBuilder, listening_port};
use crate::process::Process;
use crate::tree::wait_until_all_know_each_other;
use crate::wait::{self, PATIENCE};

/// So that clients can be spread over a tree: a server redirects by what it has last heard of the others.
const ANNOUNCE_INTERVAL: Duration = Duration::from_millis(50);

/// Ticks in a second in what the operating system says of processor time.
const TICKS: f64 = 100.0;

/// Somebody who can carry the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contender {
    /// Our node, or a tree of them, in plain mode.
    Arborcast,
    /// The same with extended servers and sessions, everything acknowledged.
    ArborcastAcknowledged,
    /// nats-server; three are leaf nodes below a hub.
    Nats,
    /// Three nats-servers as a cluster.
    NatsCluster,
    /// mosquitto; three are bridged.
    Mosquitto,
    /// ngircd; three are linked below one.
    Ngircd,
    /// One process that writes the same bytes as our node, and does nothing else.
    Raw,
}

impl Contender {
    /// For the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Arborcast => "arborcast",
            Self::ArborcastAcknowledged => "arborcast, acknowledged",
            Self::Nats => "nats-server",
            Self::NatsCluster => "nats-server, cluster",
            Self::Mosquitto => "mosquitto",
            Self::Ngircd => "ngircd",
            Self::Raw => "raw writes",
        }
    }

    /// How its clients speak.
    pub fn protocol(self) -> Protocol {
        match self {
            Self::Arborcast => Protocol::Plain,
            Self::ArborcastAcknowledged => Protocol::Acknowledged,
            Self::Nats | Self::NatsCluster => Protocol::Nats,
            Self::Mosquitto => Protocol::Mqtt,
            Self::Ngircd => Protocol::Irc,
            Self::Raw => Protocol::Raw,
        }
    }

    /// The program that has to be there, which is also the name of its Debian package.
    fn program(self) -> Option<&'static str> {
        match self {
            Self::Nats | Self::NatsCluster => Some("nats-server"),
            Self::Mosquitto => Some("mosquitto"),
            Self::Ngircd => Some("ngircd"),
            Self::Arborcast | Self::ArborcastAcknowledged | Self::Raw => None,
        }
    }

    /// What has to be installed first, if anything.
    pub fn missing(self) -> Option<&'static str> {
        self.program().filter(|program| find(program).is_none())
    }

    /// The version, as the program itself says it.
    pub fn version(self) -> Option<String> {
        let output = std::process::Command::new(find(self.program()?)?).arg(self.version_flag()).output().ok()?;
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&text)
            .lines()
            .find(|line| line.contains("version") || line.contains(": v") || line.starts_with("ngIRCd"))
            .map(Into::into)
    }

    fn version_flag(self) -> &'static str {
        if self == Self::Mosquitto { "-h" } else { "--version" }
    }
}

/// Debian puts daemons where not everybody's PATH leads.
fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Running servers of one kind. Killed when dropped.
#[derive(Debug)]
pub struct Servers {
    processes: Vec<Process>,
    addresses: Vec<SocketAddr>,
    _configuration: Option<TempDir>,
}

impl Servers {
    /// Starts one, or three that pass everything on to each other. `sockets` is for how many the raw writer waits.
    pub fn start(contender: Contender, count: usize, sockets: usize) -> Self {
        match contender {
            Contender::Arborcast | Contender::ArborcastAcknowledged => Self::arborcast(contender, count),
            Contender::Nats | Contender::NatsCluster => Self::nats(contender, count),
            Contender::Mosquitto => Self::mosquitto(count),
            Contender::Ngircd => Self::ngircd(count),
            Contender::Raw => Self::raw(sockets),
        }
    }

    /// Where they listen.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// How much processor time they have used so far, in seconds, in the kernel and outside.
    pub fn processor_seconds(&self) -> f64 {
        let ticks = |process: &Process| {
            let stat = fs::read_to_string(format!("/proc/{}/stat", process.id())).expect("the server lives");
            let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
            fields[11].parse::<f64>().expect("a number") + fields[12].parse::<f64>().expect("a number")
        };
        self.processes.iter().map(ticks).sum::<f64>() / TICKS
    }

    /// How much memory they use.
    pub fn resident_bytes(&self) -> u64 {
        self.processes.iter().map(Process::resident_bytes).sum()
    }

    fn arborcast(contender: Contender, count: usize) -> Self {
        let builder = || {
            let builder = NodeBuilder::default().announce_every(ANNOUNCE_INTERVAL);
            if contender == Contender::ArborcastAcknowledged { builder.extended() } else { builder }
        };
        let mut nodes = vec![builder().start()];
        for _ in 1..count {
            nodes.push(builder().parent(nodes[0].address()).start());
        }
        wait_until_all_know_each_other(&nodes.iter().collect::<Vec<_>>());
        let addresses = nodes.iter().map(crate::node::Node::address).collect();
        Self { processes: nodes.into_iter().map(|node| node.process).collect(), addresses, _configuration: None }
    }

    fn nats(contender: Contender, count: usize) -> Self {
        let (ports, links) = (free_ports(count), free_ports(count));
        Self::configured("nats-server", &["-c"], &ports, |place| {
            let common = format!("listen: \"127.0.0.1:{}\"\nserver_name: \"n{place}\"\n", ports[place]);
            let link = match (contender, place) {
                _ if count == 1 => String::new(),
                (Contender::NatsCluster, _) => {
                    let routes: Vec<_> = links.iter().map(|port| format!("nats-route://127.0.0.1:{port}")).collect();
                    format!(
                        "cluster {{ name: c, listen: \"127.0.0.1:{}\", routes: [{}] }}\n",
                        links[place],
                        routes.join(", ")
                    )
                }
                (_, 0) => format!("leafnodes {{ listen: \"127.0.0.1:{}\" }}\n", links[0]),
                _ => format!("leafnodes {{ remotes: [ {{ url: \"nats-leaf://127.0.0.1:{}\" }} ] }}\n", links[0]),
            };
            common + &link
        })
    }

    fn mosquitto(count: usize) -> Self {
        let ports = free_ports(count);
        Self::configured("mosquitto", &["-c"], &ports, |place| {
            let common = format!(
                "listener {} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\nmax_queued_messages 0\n\
                 persistence false\nlog_type error\n",
                ports[place]
            );
            if place == 0 {
                return common;
            }
            common
                + &format!(
                    "connection b{place}\naddress 127.0.0.1:{}\ntopic # both 0\nnotifications false\n\
                     bridge_protocol_version mqttv311\nrestart_timeout 1\n",
                    ports[0]
                )
        })
    }

    fn ngircd(count: usize) -> Self {
        let ports = free_ports(count);
        Self::configured("ngircd", &["-n", "-f"], &ports, |place| {
            let common = format!(
                "[Global]\nName = n{place}.example\nInfo = n{place}\nListen = 127.0.0.1\nPorts = {}\nMotdPhrase = hello\n\
                 [Limits]\nMaxConnections = 0\nMaxConnectionsIP = 0\nMaxPenaltyTime = 0\nPingTimeout = 3600\n\
                 ConnectRetry = 1\n[Options]\nDNS = no\nIdent = no\nPAM = no\nSyslogFacility = local1\n",
                ports[place]
            );
            let link = |to: usize, how: &str| {
                format!("[Server]\nName = n{to}.example\nMyPassword = link\nPeerPassword = link\n{how}\n")
            };
            match place {
                0 => common + &(1..count).map(|child| link(child, "Passive = yes")).collect::<String>(),
                _ => common + &link(0, &format!("Host = 127.0.0.1\nPort = {}", ports[0])),
            }
        })
    }

    fn configured(program: &str, flags: &[&str], ports: &[u16], configuration: impl Fn(usize) -> String) -> Self {
        let binary = find(program).expect("asked before");
        let directory = tempfile::tempdir().expect("a directory for the configuration");
        let addresses: Vec<_> = ports.iter().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, *port))).collect();
        let mut processes = Vec::new();
        for (place, address) in addresses.iter().enumerate() {
            let file = directory.path().join(format!("{place}.conf"));
            fs::write(&file, configuration(place)).expect("the configuration can be written");
            processes.push(Process::start(&binary, flags.iter().map(Path::new).chain([&*file])));
            wait::until(PATIENCE, || match TcpStream::connect(address) {
                Ok(_) => Ok(()),
                Err(error) => Err(format!("{program} does not listen on {address}: {error}")),
            });
        }
        Self { processes, addresses, _configuration: Some(directory) }
    }

    fn raw(sockets: usize) -> Self {
        let own = env::current_exe().expect("this program has a file");
        let process = Process::start(&own, ["--raw-writer".to_owned(), sockets.to_string()]);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, listening_port(&process)));
        Self { processes: vec![process], addresses: vec![address], _configuration: None }
    }
}

/// Ports that nobody listens on at this moment.
fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port")).collect();
    listeners.iter().map(|listener| listener.local_addr().expect("it is bound").port()).collect()
}
