//! Whole trees of real servers: what Part I promises from one end to the other.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::thread;

use arborcast_tests::lines;
use arborcast_tests::peer::Peer;
use arborcast_tests::tree::Tree;

/// One sender at one server sends numbered activities; a client at every server must get each of them once, in order.
#[track_caller]
fn expect_all_activities_everywhere_in_order(tree: &Tree, sender_at: usize, count: usize) {
    // One client a server: nobody is redirected.
    let mut clients: Vec<Peer> = tree.nodes.iter().map(|node| Peer::anonymous(node.address())).collect();
    let mut stream = Peer::over(clients[sender_at].try_clone_stream());
    let writer = thread::spawn(move || {
        for n in 0..count {
            stream.send(lines::anonymous_activity(&format!(r#"{{"n":{n},"text":"{}"}}"#, "x".repeat(n % 300))));
        }
    });
    for (place, client) in clients.iter_mut().enumerate() {
        for n in 0..count {
            let line = client.expect_command("ACTIVITY_BROADCAST");
            assert_eq!(line["activity"]["n"], n, "at server {place}: {}", line.text());
        }
    }
    writer.join().unwrap();
    for client in &mut clients {
        client.expect_silence();
    }
}

/// Part I, Activities, through a line of five servers, from one end.
#[test]
fn through_a_line_of_five_every_activity_reaches_everybody_once_and_in_order() {
    expect_all_activities_everywhere_in_order(&Tree::line(5), 0, 2_000);
}

/// Part I, Activities, through a star of six servers, from one of its points.
#[test]
fn through_a_star_every_activity_reaches_everybody_once_and_in_order() {
    expect_all_activities_everywhere_in_order(&Tree::star(6), 3, 2_000);
}

/// Part I, Activities, through a binary tree of seven servers, from a leaf.
#[test]
fn through_a_binary_tree_every_activity_reaches_everybody_once_and_in_order() {
    let tree = Tree::binary(7);
    expect_all_activities_everywhere_in_order(&tree, tree.leaves_of_binary().start, 1_000);
}

/// Part I, Activities: everybody sends at once; everybody gets everything, and each sender's order is kept.
#[test]
fn when_everybody_sends_at_once_each_senders_order_is_kept_everywhere() {
    const COUNT: usize = 200;
    let tree = Tree::line(4);
    let mut clients: Vec<Peer> = tree.nodes.iter().map(|node| Peer::anonymous(node.address())).collect();
    let writers: Vec<_> = clients
        .iter()
        .enumerate()
        .map(|(sender, client)| {
            let mut stream = Peer::over(client.try_clone_stream());
            thread::spawn(move || {
                for n in 0..COUNT {
                    stream.send(lines::anonymous_activity(&format!(r#"{{"sender":{sender},"n":{n}}}"#)));
                }
            })
        })
        .collect();
    for client in &mut clients {
        let mut next = vec![0; tree.nodes.len()];
        for _ in 0..COUNT * tree.nodes.len() {
            let line = client.expect_command("ACTIVITY_BROADCAST");
            let sender = usize::try_from(line["activity"]["sender"].as_u64().unwrap()).unwrap();
            assert_eq!(line["activity"]["n"], next[sender], "from sender {sender}");
            next[sender] += 1;
        }
        assert!(next.iter().all(|count| *count == COUNT));
    }
    for writer in writers {
        writer.join().unwrap();
    }
}

/// Part I, Registration and The login window: after REGISTER_SUCCESS the name is good at every server, at once.
#[test]
fn a_name_registered_at_one_leaf_can_log_in_at_every_server() {
    let tree = Tree::binary(15);
    let leaves = tree.leaves_of_binary();
    let mut registering = Peer::connect(tree.address(leaves.start));
    registering.send(lines::register("aaron", "s3"));
    registering.expect_command("REGISTER_SUCCESS");
    for node in &tree.nodes {
        let mut session = Peer::connect(node.address());
        session.send(lines::login("aaron", "s3"));
        session.expect_command("LOGIN_SUCCESS");
        session.send(lines::logout());
        let mut second = Peer::connect(node.address());
        second.send(lines::register("aaron", "another"));
        second.expect_last("REGISTER_FAILED");
    }
}

/// Part I, Registration: a name has one secret in a tree, so that two who ask for it at once at different ends never
/// both get it; and who gets it can log in anywhere.
#[test]
fn a_name_asked_for_at_two_leaves_at_once_is_never_given_twice() {
    const ROUNDS: usize = 10;
    let tree = Tree::binary(15);
    let leaves = tree.leaves_of_binary();
    let (left, right) = (tree.address(leaves.start), tree.address(leaves.end - 1));
    let mut given = 0;
    for round in 0..ROUNDS {
        let username = format!("user {round}");
        let mut rivals = [(Peer::connect(left), "left"), (Peer::connect(right), "right")];
        for (rival, secret) in &mut rivals {
            rival.send(lines::register(&username, secret));
        }
        let answers = rivals.map(|(mut rival, secret)| (rival.next_line(), secret));
        let winners: Vec<&str> = answers
            .iter()
            .filter(|(answer, _)| answer.command() == "REGISTER_SUCCESS")
            .map(|(_, secret)| *secret)
            .collect();
        assert!(winners.len() <= 1, "{answers:?}");
        if let Some(winner) = winners.first() {
            given += 1;
            for address in [left, right, tree.address(0)] {
                Peer::logged_in(address, &username, winner);
            }
        }
    }
    println!("{given} of {ROUNDS} names were given to one of the two");
}
