//! Part II, K1 and C3: who has the wrong secret, or claims an id that is another's, stays outside, and nobody inside is
//! hurt.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use arborcast_proto::registry::Topology;
use arborcast_tests::forest::Forest;
use arborcast_tests::lines;
use arborcast_tests::node::{NodeBuilder, SECRET};
use arborcast_tests::peer::Peer;

/// Applies at a server under an id, as a run and from an address of one's own choice; says how that was refused.
#[track_caller]
fn refusal(forest: &Forest, at: usize, id: &str, incarnation: u64) -> String {
    let mut impostor = Peer::connect(forest.address(at));
    impostor.send(lines::apply(SECRET, id, incarnation, 1));
    impostor.expect_last("LINK_REFUSED")["reason"].as_str().unwrap().to_owned()
}

/// Whatever run it says to be, and wherever it asks: the rightful owner keeps its place.
#[test]
fn an_id_in_use_is_refused_everywhere_and_its_owner_stays() {
    let mut forest = Forest::grow(1, 5);
    forest.wait_until_all_know_each_other();
    let shape = forest.shape();
    for owner in 0..5 {
        let id = forest.id(owner).to_owned();
        for at in 0..5 {
            for incarnation in [0, 1, u64::MAX] {
                let reason = refusal(&forest, at, &id, incarnation);
                // Below the owner it is found on the way from the root first.
                assert!(
                    ["ID_IN_USE", "OWN_SUBTREE"].contains(&&*reason),
                    "{reason}: {id} at {at} as run {incarnation}"
                );
            }
        }
    }
    assert_eq!(forest.shape(), shape, "nobody has moved");
    forest.wait_until_one_tree();
}

/// A whole second server under the id of another: it stays alone, says why, and the tree stands.
#[test]
fn a_second_server_under_an_id_in_use_says_so_and_stays_alone() {
    let mut forest = Forest::grow(1, 3);
    forest.wait_until_all_know_each_other();
    let (shape, leaf) = (forest.shape(), forest.shape().leaves()[0]);
    let builder = NodeBuilder::default().flag("--master", forest.master().address());
    let mut second = builder.id(forest.id(leaf)).start();
    second.process.wait_for_stderr("is in use by another server");
    assert_eq!(second.process.exit_status(), None, "it goes on trying");
    assert_eq!(forest.shape_besides(duplicates), shape);
    drop(second);
    // The master remembers the second one for a while.
    forest.wait_until_activities_reach_everybody();
}

/// The master points out that there are two of a name, which is right.
fn duplicates(topology: &mut Topology) {
    use arborcast_proto::registry::FaultKind;
    topology.faults.retain(|fault| fault.kind() != FaultKind::DuplicateId);
}

#[test]
fn a_server_with_the_wrong_secret_says_so_and_stays_alone() {
    let mut forest = Forest::grow(1, 3);
    let (shape, root) = (forest.shape(), forest.shape().root());
    let builder = NodeBuilder::default().secret("wrong").flag("--master", forest.master().address());
    let mut stranger = builder.parent(forest.address(root)).log("info").start();
    stranger.process.wait_for_stderr("the supplied secret is incorrect");
    stranger.process.wait_for_stderr("no contact with this master");
    assert_eq!(stranger.process.exit_status(), None, "it goes on trying");
    assert!(stranger.process.stderr().iter().all(|line| !line.contains("wrong\"")), "secrets are never logged");
    assert_eq!(forest.shape(), shape);
    forest.wait_until_one_tree();
}
