//! A whole tree is restarted under way, as for an upgrade.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use arborcast_tests::forest::Forest;

/// Each server in its turn is told to stop and started again at its address.
#[test]
fn every_server_is_restarted_in_its_turn_and_the_tree_stays_one() {
    let mut forest = Forest::grow(2, 5);
    for place in forest.awake() {
        forest.terminate(place);
        let status = forest.wait_exit(place);
        assert_eq!(status.code(), Some(0), "{status}");
        forest.wait_until_one_tree();
        forest.start(place);
        forest.wait_until_one_tree();
    }
}
