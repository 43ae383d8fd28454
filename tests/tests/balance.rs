//! Masters keep trees shallow, and servers move without losing anything (protocol, Balance). `cargo simulate --
//! --balance` runs many more storms.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use arborcast_proto::wire::Message;
use arborcast_tests::promises;
use arborcast_tests::seeds::for_seeds;
use arborcast_tests::simulated_masters::Character;
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
    });
}

/// Two masters that never talk to each other, and see the tree at different times.
#[test]
fn two_masters_with_different_pictures_move_one_server_at_a_time_and_come_to_an_end() {
    for_seeds(0..10, |seed| {
        let mut cluster = storm::line(seed, 40, 2, 0);
        let lag =
            |cluster: &mut arborcast_tests::cluster::Cluster| Duration::from_millis(cluster.rng.random_range(0..2500));
        let lags = [Duration::ZERO, lag(&mut cluster)];
        cluster.set_masters(lags.map(|lag| Character { lag, ..Character::honest() }));
        cluster.balance();
        cluster.run_until("the tree is shallow", 3 * MINUTE, |cluster| cluster.depth() <= ceil_log(40, 2) + 1);
        cluster.run_for(2 * MINUTE);
        let before = (cluster.parent_changes(), cluster.proposals());
        cluster.run_for(10 * MINUTE);
        assert_eq!((cluster.parent_changes(), cluster.proposals()), before);
        assert_eq!(cluster.most_moving(), 1);
    });
}

/// Masters that make up proposals, at all times and for all servers: to anywhere, below each other, at once.
#[test]
fn whatever_masters_propose_one_server_moves_at_a_time_and_there_is_one_tree() {
    for_seeds(0..20, |seed| {
        let mut cluster = storm::line(seed, 20, 3, 0);
        cluster.set_masters([Character { lies: 1.0, ..Character::honest() }; 3]);
        cluster.balance();
        cluster.run_for(5 * MINUTE);
        let outcomes = cluster.move_outcomes();
        assert!(outcomes["moved"] > 5 && outcomes["own_subtree"] > 5 && outcomes["no_gain"] > 5, "{outcomes:?}");
        assert_eq!(cluster.most_moving(), 1);
        storm::settle_balanced(&mut cluster);
        assert!(cluster.depth() <= ceil_log(20, 3) + 1);
    });
}

#[test]
fn a_storm_in_which_masters_propose_moves_ends_in_one_tree_at_rest() {
    for_seeds(0..60, |seed| assert!(storm::run_balancing(seed, 12) > 20));
}

/// Publishers and subscribers everywhere, while the line becomes a tree and servers are hurt.
#[test]
fn nothing_is_lost_or_doubled_while_servers_move() {
    for_seeds(0..8, |seed| {
        let seen = promises::run_balancing(seed, 10, 5);
        assert!(seen.moves > 0 && seen.delivered > 1000, "{seen:?}");
    });
}

/// A server that prefers a parent stays below it, however deep that is.
#[test]
fn a_server_stays_below_the_parent_that_it_prefers() {
    let mut cluster = storm::line(1, 6, 8, 1);
    let homing = cluster.add_homing_server(8, 5);
    cluster.run_until("it is home", 2 * MINUTE, |cluster| cluster.is_home(homing));
    cluster.balance();
    for _ in 0..600 {
        cluster.run_for(Duration::from_secs(1));
        // Those above it move, and take it with them.
        assert!(cluster.is_home(homing));
    }
    assert!(cluster.depth() <= 3);
}
