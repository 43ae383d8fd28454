//! Part II, Masters (G1): what a master says may cost time, and nothing else. Here one that lies, floods or hangs stands
//! beside a right one, or alone; trees form and heal all the same, with activities everywhere and none twice.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::net::{Ipv4Addr, TcpListener};

use arborcast_proto::registry::Candidate;
use arborcast_tests::fake_master::{Character, FakeMaster, Reports, candidate};
use arborcast_tests::forest::Forest;
use arborcast_tests::node::NodeBuilder;
use arborcast_tests::tree::{wait_until_each_knows, wait_until_linked};
use std::time::Duration;

/// A tree of five forms with this master beside a right one, and heals when its root and then another dies.
#[track_caller]
fn forms_and_heals_beside(fake: &FakeMaster) {
    let builder = NodeBuilder::default().announce_every(Duration::from_millis(500));
    let mut forest = Forest::grow_with(1, 5, &builder.flag("--master", fake.address()));
    let root = forest.shape().root();
    forest.kill(root);
    forest.wait_until_one_tree();
    let shape = forest.shape();
    let victim = shape.inner().first().copied().unwrap_or_else(|| shape.root());
    forest.kill(victim);
    forest.wait_until_one_tree();
    for place in forest.awake() {
        assert_eq!(forest.node(place).process.exit_status(), None, "a lie ends nobody");
    }
}

/// An address of this machine where nobody listens.
fn dead_port() -> u32 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port().into()
}

fn reported(reports: &Reports, is_named: impl Fn(&Reports, &str) -> bool) -> Vec<Candidate> {
    let named = reports.values().filter(|report| is_named(reports, &report.node_id));
    named.map(|report| candidate(&report.node_id, &report.hostname, report.port)).collect()
}

#[test]
fn one_that_names_the_asker_itself_does_no_harm() {
    let fake = FakeMaster::start(|asker: &str, reports: &Reports| Some(reported(reports, |_, id| id == asker)));
    forms_and_heals_beside(&fake);
    assert!(fake.asked() > 0);
}

/// Under another name the asker is not recognised before it meets itself.
#[test]
fn one_that_names_the_asker_under_another_id_does_no_harm() {
    let fake = FakeMaster::start(|asker: &str, reports: &Reports| {
        let own = reported(reports, |_, id| id == asker);
        Some(own.into_iter().map(|own| Candidate { node_id: "somebody".into(), ..own }).collect())
    });
    forms_and_heals_beside(&fake);
    assert!(fake.asked() > 0);
}

#[test]
fn one_that_names_the_askers_own_subtree_does_no_harm() {
    let fake = FakeMaster::start(|asker: &str, reports: &Reports| {
        let asker = asker.to_owned();
        Some(reported(reports, |reports, id| reports[id].path.contains(&asker) && id != asker))
    });
    forms_and_heals_beside(&fake);
    assert!(fake.asked() > 0);
}

#[test]
fn one_that_names_a_dead_address_does_no_harm() {
    let port = dead_port();
    let fake = FakeMaster::start(move |_: &str, _: &Reports| Some(vec![candidate("dead", "127.0.0.1", port)]));
    forms_and_heals_beside(&fake);
    assert!(fake.asked() > 0);
}

#[test]
fn one_that_names_ten_thousand_does_no_harm() {
    let port = dead_port();
    let fake = FakeMaster::start(move |_: &str, _: &Reports| {
        Some((0..10_000).map(|number| candidate(&format!("dead-{number}"), "127.0.0.1", port)).collect())
    });
    forms_and_heals_beside(&fake);
    assert!(fake.asked() > 0);
}

#[test]
fn one_that_names_garbage_does_no_harm() {
    let fake = FakeMaster::start(|_: &str, _: &Reports| {
        let hosts = ["", " ", "\0", "a\nb", "\u{202e}", "-oProxyCommand=x", "999.1.1.1", "[::", "http://x/", "..", "☃"];
        let long = "x".repeat(100_000);
        let garbage = hosts.iter().copied().chain([long.as_str()]);
        let mut candidates: Vec<_> = garbage.map(|host| candidate(host, host, 1)).collect();
        candidates.extend([candidate("", "127.0.0.1", 0), candidate("port", "127.0.0.1", 70_000)]);
        Some(candidates)
    });
    forms_and_heals_beside(&fake);
    assert!(fake.asked() > 0);
}

/// Lies, unasked and without end.
struct Flood {
    port: u32,
}

impl Character for Flood {
    fn answer(&self, _: &str, _: &Reports) -> Option<Vec<Candidate>> {
        Some((0..100).map(|number| candidate(&format!("dead-{number}"), "127.0.0.1", self.port)).collect())
    }

    fn is_talkative(&self) -> bool {
        true
    }
}

#[test]
fn one_that_floods_advice_does_no_harm() {
    forms_and_heals_beside(&FakeMaster::start(Flood { port: dead_port() }));
}

/// Takes calls and never answers.
struct Hangs;

impl Character for Hangs {
    fn answer(&self, _: &str, _: &Reports) -> Option<Vec<Candidate>> {
        None
    }

    fn takes_reports(&self) -> bool {
        false
    }
}

#[test]
fn one_that_hangs_does_no_harm() {
    let fake = FakeMaster::start(Hangs);
    forms_and_heals_beside(&fake);
    assert!(fake.asked() > 0);
}

/// The system accepts connections on its behalf, and nothing ever comes back.
#[test]
fn one_that_never_says_a_word_does_no_harm() {
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let builder = NodeBuilder::default().announce_every(Duration::from_millis(500));
    let mut forest = Forest::grow_with(1, 3, &builder.flag("--master", silent.local_addr().unwrap()));
    let root = forest.shape().root();
    forest.kill(root);
    forest.wait_until_one_tree();
}

/// S2c: where only lies are named, those who are remembered are asked, and so are configured parents.
#[test]
fn alone_it_keeps_nobody_from_those_who_are_remembered() {
    let port = dead_port();
    let fake = FakeMaster::start(move |_: &str, _: &Reports| Some(vec![candidate("dead", "127.0.0.1", port)]));
    let builder = || NodeBuilder::default().announce_every(Duration::from_millis(300)).flag("--master", fake.address());
    let root = builder().start();
    let (one, other) = (builder().parent(root.address()).start(), builder().parent(root.address()).start());
    for node in [&one, &other] {
        wait_until_linked(&root, node);
    }
    wait_until_linked(&one, &other);
    // This master names no other servers, so after a while they announce themselves.
    wait_until_each_knows(&[&one, &other], 2);
    drop(root);
    wait_until_linked(&one, &other);
    assert!(fake.asked() > 0);
}
