//! A client whose server is killed goes on at another one, which it finds by the masters alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::net::SocketAddr;

use arborcast_client::{Activity, Address, Event, Identity, Options, Servers, Session};
use arborcast_tests::forest::{Forest, Place};
use arborcast_tests::process::{Process, client_binary};
use arborcast_tests::wait::{self, PATIENCE};
use tokio::time::timeout;

/// Masters and three servers, without a client.
#[track_caller]
fn forest() -> Forest {
    let mut forest = Forest::grow(2, 3);
    forest.dismiss_clients();
    expect_load(&forest, 0);
    forest
}

/// Waits until so many clients are logged in, as a master sees it, and says at which of the servers.
#[track_caller]
fn expect_load(forest: &Forest, load: u64) -> Vec<SocketAddr> {
    wait::until(PATIENCE, || {
        let nodes = forest.master().topology()?.nodes.into_iter().filter_map(|node| node.report);
        let loads: Vec<_> = nodes.map(|report| (report.hostname, report.port, report.load)).collect();
        let at = loads.iter().filter(|(_, _, load)| *load > 0);
        match loads.iter().map(|(_, _, load)| load).sum::<u64>() {
            sum if sum == load => Ok(at.map(|(host, port, _)| format!("{host}:{port}").parse().unwrap()).collect()),
            _ => Err(format!("the loads are {loads:?}")),
        }
    })
}

fn place_of(forest: &Forest, server: SocketAddr) -> Place {
    forest.awake().into_iter().find(|place| forest.address(*place) == server).expect("the server is one of ours")
}

fn masters(forest: &Forest) -> String {
    forest.master_addresses().iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// README, The client: it says so, and goes on.
#[test]
fn listen_goes_on_at_another_server_when_its_own_is_killed() {
    let mut forest = forest();
    let masters = masters(&forest);
    let mut listener = Process::start(client_binary(), ["listen", "--master", &masters, "--count", "1"]);
    let server = expect_load(&forest, 1)[0];
    forest.kill(place_of(&forest, server));
    wait::until(PATIENCE, || {
        let said = listener.stderr();
        if said.iter().any(|line| line.contains("back at ")) { Ok(()) } else { Err(format!("it said {said:?}")) }
    });
    assert!(listener.stderr()[0].contains(&format!("lost the connection to {server}")), "{:?}", listener.stderr());
    forest.shape();
    let mut sender = Process::start(client_binary(), ["send", "--master", &masters, r#"{"verb":"waves"}"#]);
    assert_eq!(sender.wait_exit(PATIENCE).code(), Some(0), "{:?}", sender.stderr());
    assert_eq!(listener.wait_exit(PATIENCE).code(), Some(0), "{:?}", listener.stderr());
    assert_eq!(listener.stdout(), [r#"{"verb":"waves","authenticated_user":"anonymous"}"#]);
}

/// The library, crate documentation: "What was lost is never counted as taken."
#[test]
fn what_a_killed_server_had_is_published_again() {
    let mut forest = forest();
    let addresses = forest.master_addresses().iter();
    let masters = addresses.map(|master| Address::new(master.ip().to_string(), master.port()).unwrap()).collect();
    let servers = Servers { addresses: Vec::new(), masters };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let session = runtime.block_on(Session::login(servers, &Identity::Anonymous, &Options::default())).unwrap();
    let (publisher, mut subscriber) = session.split();
    let events = runtime.spawn(async move {
        let mut events = Vec::new();
        while let Some(event) = subscriber.next_event().await {
            match event.unwrap() {
                Event::Activities(_) => {}
                other => events.push(other),
            }
        }
        events
    });
    let publish = async |numbers: std::ops::Range<u32>| {
        for number in numbers {
            publisher.publish(&Activity::parse(&format!(r#"{{"n":{number}}}"#)).unwrap()).await.unwrap();
        }
    };
    runtime.block_on(publish(0..500));
    let server = format!("{}", publisher.server()).parse().unwrap();
    forest.kill(place_of(&forest, server));
    let rest = async {
        publish(500..1000).await;
        publisher.flush().await.unwrap();
        publisher.logout().await.unwrap();
        events.await.unwrap()
    };
    let events = runtime.block_on(async { timeout(PATIENCE, rest).await }).expect("it goes on elsewhere");
    assert_eq!((publisher.taken(), publisher.published()), (1000, 1000));
    let [Event::Lost { server: lost, .. }, Event::Reconnected { server: found, .. }] = &events[..] else {
        panic!("{events:?}")
    };
    assert_ne!(lost, found);
}
