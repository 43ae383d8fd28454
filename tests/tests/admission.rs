//! Masters send clients to servers with tickets, which the servers check without asking back (protocol, Admission).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::net::SocketAddr;
use std::time::SystemTime;

use arborcast_proto::registry::{Candidate, NodeState};
use arborcast_proto::ticket::{LEEWAY, LIFETIME, Ticket, TicketKey};
use arborcast_proto::wire::{Origin, Secret};
use arborcast_tests::fake_master::{Character, FakeMaster, Reports};
use arborcast_tests::lines;
use arborcast_tests::master::Master;
use arborcast_tests::node::{Node, NodeBuilder, SECRET};
use arborcast_tests::peer::Peer;
use arborcast_tests::process::{Process, Signal, client_binary};
use arborcast_tests::scrape::{http_address, metrics, value, wait_for};
use arborcast_tests::wait::{self, PATIENCE};

fn builder(masters: &[&Master]) -> NodeBuilder {
    let builder = NodeBuilder::default().flag("--http", "127.0.0.1:0");
    masters.iter().fold(builder, |builder, master| builder.flag("--master", master.address()))
}

/// A server that wants tickets, and a master that knows it as one of so many.
#[track_caller]
fn strict(master: &Master, nodes: usize) -> Node {
    let node = builder(&[master]).switch("--require-tickets").log("trace").start();
    wait_until_known(&[master], nodes);
    node
}

/// Waits until each master knows so many servers as one tree.
#[track_caller]
fn wait_until_known(masters: &[&Master], nodes: usize) {
    for master in masters {
        wait::until(PATIENCE, || match master.topology()? {
            topology if topology.nodes.len() == nodes && topology.fragments.len() == 1 => Ok(()),
            topology => Err(format!("{} servers in {:?}", topology.nodes.len(), topology.fragments)),
        });
    }
}

#[track_caller]
fn ticket_for(master: &Master, node: &Node) -> String {
    let others: Vec<String> =
        master.topology().unwrap().nodes.into_iter().map(|it| it.report.unwrap().node_id).collect();
    let others: Vec<&str> = others.iter().map(String::as_str).filter(|id| *id != node.id()).collect();
    let answer = master.assign(&others).unwrap();
    assert_eq!((answer.node_id.as_str(), answer.port), (node.id(), u32::from(node.address().port())));
    assert_eq!(answer.expires_in.unwrap().seconds.unsigned_abs(), LIFETIME);
    answer.ticket
}

/// A ticket that says what a master's says, changed, and signed with this secret.
fn signed(good: &str, secret: &str, change: impl FnOnce(&mut Ticket)) -> Secret {
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let key = TicketKey::derive(&SECRET.into());
    // Whose it is can be read only where that is known; so all of them are tried.
    let claims = good.split('.').nth(1).unwrap();
    let run: String =
        serde_json::from_slice::<serde_json::Value>(&decode(claims)).unwrap()["aud"].as_str().unwrap().into();
    let (incarnation, id) = run.split_once('/').unwrap();
    let run = Origin { id: id.into(), incarnation: incarnation.parse().unwrap() };
    let mut ticket = Ticket::check(&good.into(), &key, &run, seconds * 1000).unwrap();
    ticket.number += 1;
    change(&mut ticket);
    ticket.sign(&TicketKey::derive(&secret.into()))
}

/// base64url without padding.
fn decode(text: &str) -> Vec<u8> {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (mut bits, mut count, mut bytes) = (0_u32, 0, Vec::new());
    for digit in text.bytes() {
        bits = (bits << 6) | u32::try_from(alphabet.iter().position(|it| *it == digit).unwrap()).unwrap();
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from((bits >> count) & 0xff).unwrap());
        }
    }
    bytes
}

#[track_caller]
fn expect_refused(node: &Node, line: &str, info: &str) {
    let mut client = Peer::connect(node.address());
    client.send(line);
    let answer = client.expect_last("INVALID_MESSAGE");
    assert!(answer.info().contains(info), "{}", answer.text());
}

#[test]
fn a_server_that_wants_tickets_takes_good_ones_once_and_counts_why_it_refuses_others() {
    let master = Master::start();
    let (node, other) = (strict(&master, 1), strict(&master, 2));
    let http = http_address(&node.process);

    let ticket = ticket_for(&master, &node);
    let mut client = Peer::connect(node.address());
    client.send(lines::login_with_ticket(&ticket));
    client.expect_command("LOGIN_SUCCESS");
    expect_refused(&node, &lines::login_with_ticket(&ticket), "used before");

    let second = ticket_for(&master, &node);
    let mut user = Peer::connect(node.address());
    user.send(lines::register_with_ticket("aaron", "sesame", &second));
    user.expect_command("REGISTER_SUCCESS");
    user.send(lines::login("aaron", "sesame"));
    user.expect_command("LOGIN_SUCCESS");

    expect_refused(&node, &lines::login_anonymously(), "only with a ticket");
    expect_refused(&node, &lines::register("barbara", "s"), "only with a ticket");
    expect_refused(&node, r#"{"command":"LOGIN","username":"anonymous","ticket":7}"#, "only with a ticket");
    let foreign = ticket_for(&master, &other);
    expect_refused(&node, &lines::login_with_ticket(&foreign), "another server");
    let earlier = signed(&foreign, SECRET, |ticket| ticket.audience.id = node.id().into());
    expect_refused(&node, &lines::login_with_ticket(earlier.expose()), "another server");
    let expired = signed(&ticket, SECRET, |ticket| ticket.expires_at -= LIFETIME + LEEWAY + 1);
    expect_refused(&node, &lines::login_with_ticket(expired.expose()), "expired");
    let for_ever = signed(&ticket, SECRET, |ticket| ticket.expires_at = u64::MAX);
    expect_refused(&node, &lines::login_with_ticket(for_ever.expose()), "clock");
    let forged = signed(&ticket, "AnotherSecret", |_| ());
    expect_refused(&node, &lines::login_with_ticket(forged.expose()), "not signed");
    let unsigned = format!("{}.", ticket.rsplit_once('.').unwrap().0);
    expect_refused(&node, &lines::login_with_ticket(&unsigned), "not signed");
    expect_refused(&node, &lines::login_with_ticket("sesame"), "can't be read");

    let text = metrics(http);
    for (name, expected) in [
        ("tickets_total", 2.0),
        ("logins_total", 2.0),
        (r#"refusals_total{reason="no_ticket"}"#, 3.0),
        (r#"refusals_total{reason="ticket_expired"}"#, 1.0),
        (r#"refusals_total{reason="ticket_foreign"}"#, 2.0),
        (r#"refusals_total{reason="ticket_forged"}"#, 2.0),
        (r#"refusals_total{reason="ticket_malformed"}"#, 1.0),
        (r#"refusals_total{reason="ticket_replayed"}"#, 1.0),
        (r#"refusals_total{reason="ticket_too_far_ahead"}"#, 1.0),
    ] {
        assert_eq!(value(&text, &format!("arborcast_node_{name}")), Some(expected), "{name} in\n{text}");
    }
    node.process.wait_for_stderr("can't be read");
    let log = node.process.stderr().join("\n");
    for ticket in [ticket.as_str(), &second, &foreign, expired.expose(), forged.expose()] {
        let (_, signature) = ticket.rsplit_once('.').unwrap();
        assert!(!log.contains(signature), "a ticket is in the log");
    }
}

#[test]
fn the_ticket_of_a_held_login_is_used_once() {
    let master = Master::start();
    let node = strict(&master, 1);
    let mut user = Peer::connect(node.address());
    user.send(lines::register_with_ticket("aaron", "sesame", &ticket_for(&master, &node)));
    user.expect_command("REGISTER_SUCCESS");
    // This secret has to be hashed first, and the LOGIN waits meanwhile.
    let mut guesser = Peer::connect(node.address());
    let ticket = ticket_for(&master, &node);
    let login = lines::login("aaron", "wrong").replace('}', &format!(r#","ticket":"{ticket}"}}"#));
    guesser.send(&login);
    guesser.expect_last("LOGIN_FAILED");
    expect_refused(&node, &login, "used before");
}

#[test]
fn without_the_flag_a_server_needs_no_ticket_but_a_bad_one_is_refused() {
    let master = Master::start();
    let node = builder(&[&master]).start();
    wait_until_known(&[&master], 1);
    let mut client = Peer::connect(node.address());
    client.send(lines::login_anonymously());
    client.expect_command("LOGIN_SUCCESS");
    expect_refused(&node, &lines::login_with_ticket("sesame"), "can't be read");
}

#[test]
fn a_plain_server_does_not_look_at_tickets() {
    let node = Node::start();
    let mut client = Peer::connect(node.address());
    client.send(lines::register_with_ticket("aaron", "sesame", "anything"));
    client.expect_text(r#"{"command":"REGISTER_SUCCESS","info":"register success for aaron"}"#);
    client.send(lines::login_with_ticket("anything"));
    client.expect_text(r#"{"command":"LOGIN_SUCCESS","info":"logged in as user anonymous"}"#);
}

/// All that the command does, at servers that want tickets.
#[test]
fn the_command_gets_in_with_tickets_and_again_elsewhere_when_its_server_dies_or_drains() {
    let masters = [Master::start(), Master::start()];
    let known = [&masters[0], &masters[1]];
    let mut nodes: Vec<Node> = (0..3).map(|_| builder(&known).switch("--require-tickets").start()).collect();
    wait_until_known(&known, 3);
    // Nobody is at the first one.
    let addresses = ["127.0.0.1:1".to_owned(), masters[0].address().to_string(), masters[1].address().to_string()];
    let addresses = addresses.join(",");
    let client = |arguments: &[&str]| {
        let arguments = ["--master", addresses.as_str()].into_iter().chain(arguments.iter().copied());
        Process::start(client_binary(), arguments)
    };
    for arguments in [["-u", "aaron", "-s", "sesame", "register"], ["-u", "aaron", "-s", "sesame", "send"]] {
        let activity = arguments.contains(&"send").then_some("{}");
        let arguments: Vec<&str> = arguments.into_iter().chain(activity).collect();
        let mut client = client(&arguments);
        assert_eq!(client.wait_exit(PATIENCE).code(), Some(0), "{:?}", client.stderr());
    }
    let listener = client(&["listen"]);
    let at = |nodes: &[Node]| {
        wait::until(PATIENCE, || {
            let busy = nodes.iter().position(|node| {
                let text = metrics(http_address(&node.process));
                value(&text, r#"arborcast_node_connections{kind="client"}"#) == Some(1.0)
            });
            busy.ok_or_else(|| format!("nobody is anywhere: {:?}", listener.stderr()))
        })
    };
    let first = at(&nodes);
    nodes[first].process.signal(Signal::SIGKILL);
    nodes.remove(first);
    let second = at(&nodes);
    nodes[second].process.signal(Signal::SIGTERM);
    assert_eq!(nodes[second].process.wait_exit(PATIENCE).code(), Some(0));
    nodes.remove(second);
    at(&nodes);
}

#[test]
fn of_a_master_that_assigns_nobody_the_client_takes_the_list_and_a_dead_one_is_passed_over() {
    let old = FakeMaster::start(|_: &str, _: &_| Some(Vec::new()));
    let node = NodeBuilder::default().flag("--master", old.address()).start();
    let masters = format!("127.0.0.1:1,{}", old.address());
    wait::until(PATIENCE, || {
        let mut client = Process::start(client_binary(), ["--master", &masters, "send", "{}"]);
        match client.wait_exit(PATIENCE).code() {
            Some(0) => Ok(()),
            _ => Err(format!("{:?}", client.stderr())),
        }
    });
    drop(node);
}

/// A master with another secret.
struct Forger;

impl Character for Forger {
    fn answer(&self, _: &str, _: &Reports) -> Option<Vec<Candidate>> {
        Some(Vec::new())
    }

    fn ticket(&self) -> Option<String> {
        Some("sesame".into())
    }
}

/// V8: where no ticket is needed, a client goes on without the one that was refused.
#[test]
fn a_ticket_that_is_refused_keeps_a_client_out_only_where_one_is_needed() {
    let send = |forger: &FakeMaster| {
        let arguments = ["--master", &forger.address().to_string(), "send", "{}"].map(str::to_owned);
        let mut client = Process::start(client_binary(), arguments);
        (client.wait_exit(PATIENCE).code(), client.stderr().join("\n"))
    };
    let node =
        |forger: &FakeMaster| NodeBuilder::default().flag("--master", forger.address()).flag("--http", "127.0.0.1:0");
    let forger = FakeMaster::start(Forger);
    let lenient = node(&forger).start();
    wait::until(PATIENCE, || match send(&forger) {
        (Some(0), _) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    wait_for(http_address(&lenient.process), r#"arborcast_node_refusals_total{reason="ticket_malformed"}"#, 1.0);
    let forger = FakeMaster::start(Forger);
    let _strict = node(&forger).switch("--require-tickets").start();
    wait::until(PATIENCE, || match send(&forger) {
        (Some(1), said) if said.contains("only with a ticket") => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

/// Clients that ask any of these masters, all at once, and stay.
fn surge(masters: &[&Master], clients: usize) -> Process {
    let masters: Vec<String> = masters.iter().map(|master| master.address().to_string()).collect();
    let clients = clients.to_string();
    let line =
        ["bench", "--publishers", "0", "--duration", "10m", "--subscribers", &clients, "--master", &masters.join(",")];
    Process::start(client_binary(), line)
}

fn clients_at(address: SocketAddr) -> f64 {
    value(&metrics(address), r#"arborcast_node_connections{kind="client"}"#).unwrap()
}

#[track_caller]
fn wait_for_clients(nodes: &[SocketAddr], clients: f64) -> Vec<f64> {
    wait::until(3 * PATIENCE, || {
        let loads: Vec<f64> = nodes.iter().map(|node| clients_at(*node)).collect();
        if loads.iter().sum::<f64>() == clients { Ok(loads) } else { Err(format!("the loads are {loads:?}")) }
    })
}

#[test]
fn a_surge_through_two_masters_ends_balanced_without_a_redirection() {
    let (one, other) = (Master::start(), Master::start());
    let start = || builder(&[&one, &other]).announce_every(std::time::Duration::from_secs(3600)).start();
    let mut nodes = vec![start()];
    wait_until_known(&[&one, &other], 1);
    // One server has a lead, which the others have to make up for first.
    let _early = surge(&[&one], 150);
    let http = |nodes: &[Node]| nodes.iter().map(|node| http_address(&node.process)).collect::<Vec<_>>();
    wait_for_clients(&http(&nodes), 150.0);
    nodes.extend((0..4).map(|_| start()));
    wait_until_known(&[&one, &other], 5);
    let is_live = |master: &Master| {
        let nodes = master.topology().unwrap().nodes;
        nodes.into_iter().all(|node| node.report.unwrap().state() == NodeState::Live)
    };
    wait::until(PATIENCE, || if is_live(&one) && is_live(&other) { Ok(()) } else { Err("not all are live".into()) });
    let _surge = surge(&[&one, &other], 1_000);
    let nodes = http(&nodes);
    let loads = wait_for_clients(&nodes, 1_150.0);
    let mean = 1_150.0 / 5.0;
    assert!(loads.iter().all(|load| (load - mean).abs() <= 0.1 * mean), "{loads:?}");
    for node in nodes {
        let text = metrics(node);
        let redirected = value(&text, r#"arborcast_node_connections_closed_total{reason="redirected"}"#);
        assert_eq!(redirected.unwrap_or(0.0), 0.0, "{loads:?}\n{text}");
        wait_for(node, "arborcast_node_tickets_total", clients_at(node));
    }
}
