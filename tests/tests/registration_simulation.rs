//! Users of an extended tree, in virtual time (protocol, Users in an extended tree). `cargo simulate --registrations` runs
//! many more.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use arborcast_proto::wire::Message;
use arborcast_tests::cluster::{ClientIndex, Cluster};
use arborcast_tests::rivals::{self, agree, grown, login, register};
use arborcast_tests::seeds::for_seeds;

fn answer(cluster: &Cluster, client: ClientIndex) -> Option<&Message> {
    cluster.client(client).answers.first()
}

#[track_caller]
fn registers(cluster: &mut Cluster, server: usize, username: &str, secret: &str) -> ClientIndex {
    let client = cluster.add_client(server);
    cluster.send(client, register(username, secret));
    cluster.run_until("the registration is answered", Duration::from_secs(20), |cluster| {
        answer(cluster, client).is_some()
    });
    client
}

#[track_caller]
fn can_log_in(cluster: &mut Cluster, server: usize, username: &str, secret: &str) -> bool {
    let client = cluster.add_client(server);
    cluster.send(client, login(username, secret));
    cluster.run_until("the login is answered", Duration::from_secs(4), |cluster| answer(cluster, client).is_some());
    let is_in = matches!(answer(cluster, client), Some(Message::LoginSuccess { .. }));
    cluster.disconnect(client);
    is_in
}

/// U2, U3, U5.
#[test]
fn a_registered_name_can_log_in_at_every_server_at_once_and_with_no_other_secret() {
    let mut cluster = grown(1, 12);
    let client = registers(&mut cluster, 11, "aaron", "s");
    assert!(matches!(answer(&cluster, client), Some(Message::RegisterSuccess { .. })));
    for server in 0..12 {
        assert!(can_log_in(&mut cluster, server, "aaron", "s"), "at server {server}");
        assert!(!can_log_in(&mut cluster, server, "aaron", "t"), "at server {server}");
    }
    assert!(agree(&cluster));
    let taken = registers(&mut cluster, 3, "aaron", "t");
    assert!(matches!(answer(&cluster, taken), Some(Message::RegisterFailed { .. })));
}

/// U4.
#[test]
fn of_rivals_for_a_name_exactly_one_gets_it_and_nobody_is_in_without_it() {
    for_seeds(0..60, |seed| assert!(rivals::race(seed, 10, 20) > 1000));
}

/// U6, U7.
#[test]
fn after_crashes_and_partitions_all_servers_know_the_same_users() {
    for_seeds(0..100, |seed| assert!(rivals::storm(seed, 8) > 100));
}

/// One USER_PREPARE, USER_VOTE and USER_COMMIT for each link, and a USER_COMMITTED from each neighbour of the server that
/// was asked.
#[test]
fn a_registration_costs_three_messages_for_each_link() {
    for servers in [2, 10, 50, 200] {
        let mut messages = rivals::messages_for_one_registration(7, servers);
        println!("{servers} servers: {messages:?}");
        let links = servers as u64 - 1;
        let confirmations = messages.remove("USER_COMMITTED").expect("somebody confirms");
        assert!((1..=10).contains(&confirmations), "{confirmations} of {servers} servers");
        let expected = [("USER_COMMIT", links), ("USER_PREPARE", links), ("USER_VOTE", links)];
        assert!(messages.into_iter().eq(expected), "of {servers} servers");
    }
}

/// U7: a server that starts with an empty disk, or was away, knows everybody soon.
#[test]
fn a_server_that_joins_learns_of_all_users() {
    let mut cluster = grown(2, 6);
    for user in 0..50 {
        registers(&mut cluster, user % 6, &format!("user{user}"), "s");
    }
    let newcomer = cluster.add_extended_server(2);
    cluster
        .run_until("the newcomer knows them", Duration::from_secs(60), |cluster| cluster.users(newcomer).len() == 50);
    assert!(can_log_in(&mut cluster, newcomer, "user17", "s"));
    assert!(!can_log_in(&mut cluster, newcomer, "user17", "t"));

    cluster.crash(newcomer);
    cluster.run_for(Duration::from_secs(1));
    registers(&mut cluster, 1, "late", "s");
    cluster.restart(newcomer, true);
    assert_eq!(cluster.users(newcomer).len(), 50, "from its disk");
    cluster.run_until("it knows the late one", Duration::from_secs(60), |cluster| cluster.users(newcomer).len() == 51);
}

/// U7a, U7b: the earlier registration wins when two parts meet, and the other one's session is ended.
#[test]
fn when_two_parts_meet_the_earlier_registration_wins_and_the_sessions_of_the_other_end() {
    let mut cluster = Cluster::new(3);
    cluster.invariants.may_be_split = true;
    cluster.masters_alive = false;
    let (left, right) = (cluster.add_extended_server(4), cluster.add_extended_server(4));
    let early = registers(&mut cluster, left, "aaron", "early");
    // More than the clocks differ.
    cluster.run_for(Duration::from_secs(10));
    let late = registers(&mut cluster, right, "aaron", "late");
    cluster.send(early, login("aaron", "early"));
    cluster.send(late, login("aaron", "late"));
    cluster.run_for(Duration::from_secs(2));
    assert!(cluster.client(early).is_in() && cluster.client(late).is_in());

    cluster.masters_alive = true;
    cluster.run_until("they are one tree", Duration::from_secs(60), Cluster::is_one_tree);
    cluster.run_for(Duration::from_secs(5));
    assert!(agree(&cluster));
    assert!(cluster.client(early).is_in());
    let Some(Message::AuthenticationFail { info }) = cluster.client(late).answers.last() else {
        panic!("the loser was not told: {:?}", cluster.client(late).answers);
    };
    assert!(info.contains("registered earlier"), "{info}");
    for server in [left, right] {
        assert!(can_log_in(&mut cluster, server, "aaron", "early"));
        assert!(!can_log_in(&mut cluster, server, "aaron", "late"));
    }
    assert_eq!(cluster.view(right).user_counters.replaced, 1);
}

/// U8: servers of a plain tree at the border take part in both directions. Of two rivals at most one wins (D3b), wherever
/// they are, and all servers agree on who that is.
#[test]
fn across_the_border_of_a_plain_tree_no_name_has_two_owners() {
    let wins = std::sync::atomic::AtomicU64::new(0);
    for_seeds(0..150, |seed| {
        let mut cluster = Cluster::new(seed);
        cluster.announce_interval = Duration::from_secs(4);
        for _ in 0..4 {
            cluster.add_extended_server(2);
        }
        cluster.run_until("all are one tree", Duration::from_secs(120), Cluster::is_one_tree);
        let border = seed as usize % 4;
        let plain = cluster.add_server(Some(border));
        cluster.add_server(Some(plain));
        cluster.add_server(Some((border + 1) % 4));
        let servers = cluster.servers();
        // Masters tell the others.
        cluster.run_until("plain servers and their neighbours know all", Duration::from_secs(30), |cluster| {
            let hears = |server: usize| server >= 4 || server == border || server == (border + 1) % 4;
            (0..servers).filter(|server| hears(*server)).all(|server| cluster.view(server).servers.len() == servers - 1)
        });
        let one = seed as usize % servers;
        let other = (one + 1 + seed as usize / servers % (servers - 1)) % servers;
        let rivals = [one, other].map(|server| cluster.add_client(server));
        for client in rivals {
            cluster.send(client, register("aaron", &format!("secret of {client}")));
            let pause = Duration::from_millis(seed * 7 % 400);
            cluster.run_for(pause);
        }
        cluster.run_for(Duration::from_secs(20));
        let won = rivals.map(|client| matches!(answer(&cluster, client), Some(Message::RegisterSuccess { .. })));
        assert_ne!(won, [true, true]);
        for (client, won) in rivals.into_iter().zip(won) {
            wins.fetch_add(won.into(), std::sync::atomic::Ordering::Relaxed);
            for server in 0..servers {
                let is_in = can_log_in(&mut cluster, server, "aaron", &format!("secret of {client}"));
                assert_eq!(is_in, won, "at server {server}; rivals at {one} and {other}");
            }
        }
        assert!((0..servers).all(|server| cluster.view(server).unsettled == 0), "something is still pending");
    });
    let wins = wins.into_inner();
    assert!(wins > 75, "only {wins} of 150 were won");
}

/// U6: whoever waits for a vote of a server that dies is told, and can try again.
#[test]
fn every_registration_is_answered_whoever_dies_meanwhile() {
    for_seeds(0..100, |seed| {
        let mut cluster = grown(seed, 8);
        let clients: Vec<_> = (0..8).map(|server| cluster.add_client(server)).collect();
        for client in &clients {
            cluster.send(*client, register(&format!("user{client}"), "s"));
        }
        cluster.run_for(Duration::from_millis(seed * 20));
        let victim = seed as usize % 8;
        cluster.crash(victim);
        cluster.run_for(Duration::from_secs(20));
        for client in clients.iter().filter(|client| **client % 8 != victim) {
            assert_eq!(cluster.client(*client).answers.len(), 1, "client {client}");
        }
        // What nobody will ever decide is forgotten.
        cluster.run_for(Duration::from_secs(60));
        let live = || (0..8).filter(|server| *server != victim);
        assert!(live().all(|server| cluster.view(server).unsettled == 0), "something is pending for ever");
        cluster.run_until("the others agree", Duration::from_secs(60), agree);
    });
}

/// U5: what can't be written is not promised, and everything else goes on.
#[test]
fn a_full_disk_refuses_registrations_and_nothing_else() {
    let mut cluster = grown(4, 5);
    registers(&mut cluster, 2, "before", "s");
    cluster.fill_disk(2, true);
    let refused = registers(&mut cluster, 2, "aaron", "s");
    let Some(Message::RegisterFailed { info }) = answer(&cluster, refused) else { panic!("it was not refused") };
    assert!(info.contains("no space left"), "{info}");
    assert!(can_log_in(&mut cluster, 2, "before", "s"));
    assert!(!can_log_in(&mut cluster, 2, "aaron", "s"));
    // From elsewhere it is known all the same, and written when there is room.
    let elsewhere = registers(&mut cluster, 0, "aaron", "t");
    assert!(matches!(answer(&cluster, elsewhere), Some(Message::RegisterSuccess { .. })));
    assert!(can_log_in(&mut cluster, 2, "aaron", "t"));
    cluster.run_for(Duration::from_secs(12));
    assert_eq!(cluster.names_on_disk(2), ["before"]);
    assert!(cluster.view(2).user_counters.failed_writes >= 3);
    cluster.fill_disk(2, false);
    cluster.run_for(Duration::from_secs(6));
    assert_eq!(cluster.names_on_disk(2), ["aaron", "before"]);
    let again = registers(&mut cluster, 2, "berta", "s");
    assert!(matches!(answer(&cluster, again), Some(Message::RegisterSuccess { .. })));
}

/// The same seed gives the same run, so that a failing one can be replayed.
#[test]
fn the_same_seed_gives_the_same_race() {
    assert_eq!(rivals::race(7, 6, 5), rivals::race(7, 6, 5));
    assert_eq!(rivals::storm(7, 6), rivals::storm(7, 6));
}
