//! Real servers in a line, which masters make a shallow tree (protocol, Balance). Simulated ones are in `balance.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arborcast_client::{Activity, Address, Event, Identity, Options, Servers, Session, Subscriber};
use arborcast_tests::forest::Forest;
use arborcast_tests::node::SECRET;
use arborcast_tests::process::{Process, client_binary};
use arborcast_tests::wait::{self, PATIENCE};
use tokio::time::timeout;

/// The least depth that eight servers with two children each can have, and the one more that is left as it is.
const SHALLOW: u32 = 4;

#[track_caller]
fn wait_until_shallow(forest: &Forest) {
    wait::until(3 * PATIENCE, || match forest.depth()? {
        depth if depth <= SHALLOW => Ok(()),
        depth => Err(format!("the depth is {depth}")),
    });
}

fn at(address: SocketAddr) -> Servers {
    let address = Address::new(address.ip().to_string(), address.port()).unwrap();
    Servers { addresses: vec![address], masters: Vec::new() }
}

/// Every number in its turn, and none twice.
async fn receive(mut subscriber: Subscriber, got: Arc<Mutex<u64>>) {
    while let Some(event) = subscriber.next_event().await {
        let Event::Activities(batch) = event.expect("the server stays") else { panic!("the session is disturbed") };
        for activity in &batch {
            let value: serde_json::Value = serde_json::from_slice(activity.as_bytes()).unwrap();
            let mut next = got.lock().unwrap();
            assert_eq!(value["number"].as_u64(), Some(*next));
            *next += 1;
        }
    }
}

#[test]
fn a_line_becomes_shallow_while_somebody_publishes_and_nobody_misses_anything() {
    let mut forest = Forest::line(2, 8);
    forest.dismiss_clients();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let options = Options::default();
    let log_in = |place| {
        let session = Session::login(at(forest.address(place)), &Identity::Anonymous, &options);
        runtime.block_on(session).unwrap().split()
    };
    // Two at each server. Whoever is in stays there.
    let mut publishers = Vec::new();
    let mut receivers = Vec::new();
    for place in (0..8).chain(0..8) {
        let (publisher, subscriber) = log_in(place);
        let got = Arc::<Mutex<u64>>::default();
        publishers.push(publisher);
        receivers.push((Arc::clone(&got), runtime.spawn(receive(subscriber, got))));
    }
    let (publisher, stop) = (publishers.pop().unwrap(), Arc::new(AtomicBool::new(false)));
    let is_over = Arc::clone(&stop);
    let published = Arc::<AtomicU64>::default();
    let counter = Arc::clone(&published);
    let publishing = runtime.spawn(async move {
        while !is_over.load(Ordering::Relaxed) {
            let number = publisher.published();
            publisher.publish(&Activity::parse(&format!(r#"{{"number":{number}}}"#)).unwrap()).await.unwrap();
            counter.store(publisher.published(), Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        timeout(PATIENCE, publisher.flush()).await.expect("all is acknowledged").unwrap();
        assert_eq!(publisher.taken(), publisher.published());
        publisher.published()
    });
    let wait_for_more = || {
        let before = published.load(Ordering::Relaxed);
        wait::until(PATIENCE, || match published.load(Ordering::Relaxed) {
            now if now > before + 100 => Ok(()),
            now => Err(format!("{now} published")),
        });
    };
    wait_for_more();
    forest.restart_masters();
    wait_until_shallow(&forest);
    wait_for_more();
    stop.store(true, Ordering::Relaxed);
    let published = runtime.block_on(publishing).unwrap();
    wait::until(PATIENCE, || {
        let got: Vec<u64> = receivers.iter().map(|(got, _)| *got.lock().unwrap()).collect();
        if got.iter().all(|got| *got == published) { Ok(()) } else { Err(format!("{got:?} of {published}")) }
    });
    assert!(receivers.iter().all(|(_, receiver)| !receiver.is_finished()), "nobody lost its server");
    forest.shape();
}

#[track_caller]
fn rebalance(forest: &Forest, arguments: &[&str]) -> Process {
    let master = forest.master().address().to_string();
    let arguments = ["rebalance", "--master", &master].into_iter().chain(arguments.iter().copied());
    Process::start(client_binary(), arguments)
}

#[test]
fn without_balancing_a_line_stays_until_an_operator_with_the_secret_asks() {
    let mut forest = Forest::line(1, 8);
    forest.restart_masters_with(&["--no-balance"]);
    wait::until(PATIENCE, || match forest.depth()? {
        7 => Ok(()),
        depth => Err(format!("the depth is {depth}")),
    });
    let mut plan = rebalance(&forest, &["--dry-run"]);
    assert_eq!(plan.wait_exit(PATIENCE).code(), Some(0), "{:?}", plan.stderr());
    let said = plan.stdout();
    assert!(said[0].starts_with("tree of tree-0: 8 nodes, depth 7, at least 3; depth "), "{said:?}");
    assert!(said[1].contains(" below it: from tree-") && said[1].contains(" to tree-0, depth "), "{said:?}");
    let mut stranger = rebalance(&forest, &["-s", "another secret"]);
    assert_eq!(stranger.wait_exit(PATIENCE).code(), Some(1));
    let mut nobody = rebalance(&forest, &[]);
    assert_eq!(nobody.wait_exit(PATIENCE).code(), Some(2));
    assert_eq!(forest.depth(), Ok(7), "nobody who may has asked");
    let mut operator = rebalance(&forest, &["-s", SECRET]);
    assert_eq!(operator.wait_exit(PATIENCE).code(), Some(0), "{:?}", operator.stderr());
    wait_until_shallow(&forest);
    forest.shape();
}
