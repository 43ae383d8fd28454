//! Part II, "the network, in two": both parts go on, each as one tree, and become one when they reach each other again.
//! With real processes in network namespaces whose wires are pulled out, so that nobody is told of it.
//!
//! Needs root and iproute2. A CI without them is broken; elsewhere the tests say what they need and don't run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use arborcast_tests::lines;
use arborcast_tests::network::Network;
use arborcast_tests::node::{SECRET, listening_port};
use arborcast_tests::peer::{Arrival, Peer};
use arborcast_tests::process::{Process, Signal, master_binary, node_binary};
use arborcast_tests::wait;
use nix::sched::{CloneFlags, setns};

/// A silence, some rounds of looking for a parent, and a machine with other things to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// Two parts with a master each: servers 0 to 2 in one, 3 to 5 in the other.
struct World {
    // Processes go before the network they are in.
    nodes: Vec<Process>,
    clients: Vec<Peer>,
    masters: Vec<Process>,
    network: Network,
    waves: u64,
}

const NODES: usize = 6;
const PORT: u16 = 3780;

fn space_of(node: usize) -> usize {
    node / 3
}

fn port_of(node: usize) -> u16 {
    PORT + node as u16
}

/// Starts a binary in a namespace. `ip` becomes that binary, so signals go to the right process.
fn start_in(network: &Network, space: usize, binary: &Path, arguments: &[String]) -> Process {
    let fixed = ["netns", "exec", network.name(space)].map(OsString::from);
    let arguments = fixed.into_iter().chain([binary.into()]).chain(arguments.iter().map(OsString::from));
    Process::start(Path::new("ip"), arguments)
}

/// Connects from inside of a namespace. The thread that does it ends with it.
fn connect_in(network: &Network, space: usize, to: SocketAddr) -> Peer {
    let path = format!("/run/netns/{}", network.name(space));
    let connecting = std::thread::spawn(move || {
        setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        TcpStream::connect(to).unwrap()
    });
    Peer::over(connecting.join().unwrap())
}

impl World {
    /// All servers in one tree, or nothing where that can't be played.
    fn make() -> Option<Self> {
        let network = match Network::make(2) {
            Ok(network) => network,
            Err(why) => {
                assert!(std::env::var_os("CI").is_none(), "CI must be root and have iproute2: {why}");
                eprintln!("skipped: no network namespaces here ({why}); needs root and iproute2");
                return None;
            }
        };
        let mut world = Self { nodes: Vec::new(), clients: Vec::new(), masters: Vec::new(), network, waves: 0 };
        let masters: Vec<String> = (0..2).map(|space| format!("{}:7100", world.network.address(space))).collect();
        for (space, address) in masters.iter().enumerate() {
            let arguments = ["--listen", address, "-s", SECRET].map(str::to_owned);
            let master = start_in(&world.network, space, master_binary(), &arguments);
            listening_port(&master);
            world.masters.push(master);
        }
        for node in 0..NODES {
            let address = world.network.address(space_of(node)).to_string();
            let (id, port) = (format!("node-{node}"), port_of(node).to_string());
            let flags = ["-lh", &address, "--bind", &address, "-lp", &port, "--id", &id, "-s", SECRET, "-a", "500"];
            let more = ["--max-children", "2", "--master", &masters[0], "--master", &masters[1]];
            let arguments: Vec<String> = flags.iter().chain(&more).map(ToString::to_string).collect();
            let process = start_in(&world.network, space_of(node), node_binary(), &arguments);
            listening_port(&process);
            world.nodes.push(process);
        }
        for node in 0..NODES {
            let to = SocketAddr::new(world.network.address(space_of(node)), port_of(node));
            let mut client = connect_in(&world.network, space_of(node), to);
            client.send(lines::login_anonymously());
            client.expect_command("LOGIN_SUCCESS");
            world.clients.push(client);
        }
        world.wait_until_tree(&[0, 1, 2, 3, 4, 5]);
        Some(world)
    }

    /// Waits until an activity from the client at each of these servers reaches the client at each of them, and at none of
    /// the others, and none comes twice.
    #[track_caller]
    fn wait_until_tree(&mut self, group: &[usize]) {
        wait::until(PATIENCE, || {
            self.waves += 1;
            for node in group {
                let activity = format!(r#"{{"wave":{},"from":{node}}}"#, self.waves);
                self.clients[*node].send(lines::anonymous_activity(&activity));
            }
            for node in group {
                let mut missing: BTreeSet<u64> = group.iter().map(|node| *node as u64).collect();
                while !missing.is_empty() {
                    match self.clients[*node].arrival(Duration::from_secs(1)) {
                        Arrival::Line(line) if line["activity"]["wave"] == self.waves => {
                            let from = line["activity"]["from"].as_u64().unwrap();
                            if !missing.remove(&from) {
                                return Err(format!("node {node} got something it must not: {}", line.text()));
                            }
                        }
                        Arrival::Line(line) if line.command() == "ACTIVITY_BROADCAST" => {}
                        Arrival::Nothing => return Err(format!("nothing of {missing:?} has reached {node}")),
                        other => panic!("node {node} has dropped its client: {other:?}"),
                    }
                }
            }
            Ok(())
        });
    }

    /// Waits until no activity gets from one server to another any more.
    #[track_caller]
    fn wait_until_apart(&mut self, from: usize, to: usize) {
        wait::until(PATIENCE, || {
            self.waves += 1;
            let wave = self.waves;
            self.clients[from].send(lines::anonymous_activity(&format!(r#"{{"wave":{wave},"from":{from}}}"#)));
            self.clients[from].expect("its own", |line| (line["activity"]["wave"] == wave).then_some(()));
            while let Arrival::Line(line) = self.clients[to].arrival(Duration::from_millis(200)) {
                if line["activity"]["wave"] == wave {
                    return Err(format!("an activity from {from} has reached {to}"));
                }
            }
            Ok(())
        });
    }

    /// Waits until the two parts are apart, and each is one tree.
    #[track_caller]
    fn wait_until_two_trees(&mut self) {
        self.wait_until_apart(0, 3);
        self.wait_until_apart(3, 0);
        self.wait_until_tree(&[0, 1, 2]);
        self.wait_until_tree(&[3, 4, 5]);
        self.wait_until_apart(1, 4);
    }

    fn all_run(&mut self) -> bool {
        self.nodes.iter_mut().all(|node| node.exit_status().is_none())
    }
}

/// F1, H2.
#[test]
fn two_parts_are_one_tree_each_and_then_one() {
    let Some(mut world) = World::make() else { return };
    for _ in 0..2 {
        world.network.unplug(1);
        world.wait_until_two_trees();
        world.network.plug(1);
        world.wait_until_tree(&[0, 1, 2, 3, 4, 5]);
    }
    assert!(world.all_run(), "nobody has ended");
}

/// In one direction nothing gets through, so that TCP gets no answers in the other one either.
#[test]
fn a_one_way_cut_is_a_cut_and_heals() {
    let Some(mut world) = World::make() else { return };
    for (from, to) in [(0, 1), (1, 0)] {
        world.network.cut_one_way(from, to);
        world.wait_until_two_trees();
        world.network.heal_one_way(from, to);
        world.wait_until_tree(&[0, 1, 2, 3, 4, 5]);
    }
    assert!(world.all_run(), "nobody has ended");
}

/// A server that dies and one that is frozen while the network is cut are missed in their part only.
#[test]
fn each_part_heals_by_itself_while_the_network_is_cut() {
    let Some(mut world) = World::make() else { return };
    world.network.unplug(0);
    world.wait_until_two_trees();
    world.nodes[0].signal(Signal::SIGKILL);
    world.nodes[3].signal(Signal::SIGSTOP);
    world.wait_until_tree(&[1, 2]);
    world.wait_until_tree(&[4, 5]);
    world.nodes[3].signal(Signal::SIGCONT);
    world.wait_until_tree(&[3, 4, 5]);
    world.network.plug(0);
    world.wait_until_tree(&[1, 2, 3, 4, 5]);
}
