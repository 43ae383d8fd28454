//! Masters keep trees shallow, and servers move without losing anything (protocol, Balance). `cargo simulate -- --balance`
//! runs many more storms.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use arborcast_proto::wire::Message;
use arborcast_tests::seeds::for_seeds;
use arborcast_tests::storm;
use rand::RngExt as _;

const MINUTE: Duration = Duration::from_secs(60);

fn ceil_log(servers: usize, max_children: usize) -> usize {
    (0..).find(|depth| max_children.pow(*depth) >= servers).unwrap() as usize
}

#[test]
fn a_line_of_50_is_a_shallow_tree_within_a_minute_and_nobody_moves_after_that() {
    for_seeds(0..6, |seed| {
        let (max_children, masters) = ([2, 3, 8][seed as usize % 3], 1 + seed as usize / 3);
        let mut cluster = storm::line(seed, 50, max_children, masters);
        cluster.balance();
        let deepest = ceil_log(50, max_children) + 1;
        cluster.run_until("the tree is shallow", MINUTE, |cluster| cluster.depth() <= deepest);
        cluster.run_until_trees(MINUTE);
        // The last move may not have been the last one that is worth it.
        cluster.run_for(MINUTE);
        let before = (cluster.parent_changes(), cluster.proposals());
        for server in 0..50 {
            let client = cluster.add_client(server);
            cluster.send(client, Message::Login { username: "anonymous".into(), secret: None, resume: None });
            cluster.run_for(Duration::from_secs(3));
            if cluster.rng.random() {
                cluster.disconnect(client);
            }
        }
        cluster.run_for(10 * MINUTE);
        assert_eq!((cluster.parent_changes(), cluster.proposals()), before, "loads come and go, and nobody moves");
        assert_eq!(cluster.most_moving(), 1, "one at a time, also with two masters");
        println!("{max_children} {masters} {} {:?}", cluster.proposals(), cluster.move_outcomes());
    });
}
