//! Users of an extended tree, on real nodes (protocol, Users in an extended tree).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use arborcast_tests::forest::Forest;
use arborcast_tests::keepers::{can_log_in, registers_at_last};
use arborcast_tests::lines;
use arborcast_tests::master::Master;
use arborcast_tests::node::{Node, NodeBuilder};
use arborcast_tests::peer::Peer;
use arborcast_tests::process::Signal;
use arborcast_tests::tree::wait_until_all_know_each_other;
use arborcast_tests::wait::{self, PATIENCE};
use tempfile::TempDir;

/// A node that speaks the extensions; no master ever answers.
fn extended() -> NodeBuilder {
    plain().flag("--master", "127.0.0.1:1")
}

fn plain() -> NodeBuilder {
    NodeBuilder::default().announce_every(Duration::from_millis(300))
}

/// REGISTER, and the command of the answer.
#[track_caller]
fn register(at: SocketAddr, username: &str, secret: &str) -> String {
    let mut client = Peer::connect(at);
    client.send(lines::register(username, secret));
    client.next_line().command().to_owned()
}

#[track_caller]
fn wait_until_known(at: SocketAddr, username: &str, secret: &str) {
    wait::until(PATIENCE, || {
        if can_log_in(at, username, secret) { Ok(()) } else { Err(format!("{username} is unknown at {at}")) }
    });
}

/// A registered name works everywhere the moment it is registered, and no other secret does.
#[test]
fn a_name_registered_on_one_node_can_log_in_on_every_other_at_once() {
    let mut forest = Forest::grow(1, 6);
    forest.dismiss_clients();
    let origin = forest.shape().leaves()[0];
    assert_eq!(register(forest.address(origin), "aaron", "sesame"), "REGISTER_SUCCESS");
    for place in forest.awake() {
        assert!(can_log_in(forest.address(place), "aaron", "sesame"), "at {}", forest.id(place));
        assert!(!can_log_in(forest.address(place), "aaron", "other"), "at {}", forest.id(place));
        assert_eq!(register(forest.address(place), "aaron", "other"), "REGISTER_FAILED");
    }
}

/// A node that joins later, or is killed and comes back with nothing, knows who is registered.
#[test]
fn a_node_that_joins_later_knows_all_users() {
    let mut forest = Forest::grow(1, 3);
    assert_eq!(register(forest.address(0), "aaron", "sesame"), "REGISTER_SUCCESS");
    forest.kill(2);
    // Its vote may be waited for, as long as nobody has noticed.
    registers_at_last(forest.address(1), "berta", "sesame");
    forest.start(2);
    wait_until_known(forest.address(2), "berta", "sesame");
    assert!(can_log_in(forest.address(2), "aaron", "sesame"));
}

/// REGISTER_SUCCESS is a promise that a power cut does not break.
#[test]
fn users_survive_kill_and_restart_of_all_nodes() {
    let directories = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let builders: Vec<NodeBuilder> =
        directories.iter().map(|directory| extended().flag("--data-dir", directory.path().display())).collect();
    let mut root = builders[0].start();
    let mut child = builders[1].clone().parent(root.address()).start();
    wait_until_all_know_each_other(&[&root, &child]);
    for user in 0..20 {
        let at = if user % 2 == 0 { root.address() } else { child.address() };
        assert_eq!(register(at, &format!("user{user}"), "sesame"), "REGISTER_SUCCESS");
    }
    // At once: nothing is given time to be written.
    child.process.signal(Signal::SIGKILL);
    root.process.signal(Signal::SIGKILL);
    drop((root, child));

    root = builders[0].start();
    child = builders[1].clone().parent(root.address()).start();
    for user in 0..20 {
        let name = format!("user{user}");
        wait_until_known(root.address(), &name, "sesame");
        wait_until_known(child.address(), &name, "sesame");
        assert!(!can_log_in(root.address(), &name, "other"));
    }
    assert_eq!(register(child.address(), "user0", "other"), "REGISTER_FAILED");
    assert_no_secret_in(directories[0].path());
}

#[track_caller]
fn assert_no_secret_in(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(6).any(|window| window == b"sesame"), "a secret is on disk");
    }
}

/// Who registers where the tree is split keeps the name if they were the first; the other one is told.
#[test]
fn when_two_trees_meet_the_earlier_registration_counts_everywhere() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let builder = plain().flag("--master", port);
    let (left, right) = (builder.clone().id("left").start(), builder.id("right").start());
    assert_eq!(register(left.address(), "aaron", "early"), "REGISTER_SUCCESS");
    assert_eq!(register(right.address(), "aaron", "late"), "REGISTER_SUCCESS");
    assert_eq!(register(right.address(), "berta", "sesame"), "REGISTER_SUCCESS");
    let mut early = Peer::logged_in(left.address(), "aaron", "early");
    let mut late = Peer::logged_in(right.address(), "aaron", "late");

    let _master = Master::start_at(port);
    let told = late.expect_last("AUTHENTICATION_FAIL");
    assert!(told.info().contains("registered earlier"), "{}", told.info());
    wait_until_known(left.address(), "berta", "sesame");
    for at in [left.address(), right.address()] {
        assert!(can_log_in(at, "aaron", "early"));
        assert!(!can_log_in(at, "aaron", "late"));
    }
    early.send(lines::activity("aaron", "early", "{}"));
    early.expect_command("ACTIVITY_BROADCAST");
}

/// Exactly one of two gets each name, whichever nodes they ask, and the other one is told.
#[test]
fn two_hundred_rivals_for_one_name_each_have_one_winner() {
    let mut forest = Forest::grow(1, 4);
    forest.dismiss_clients();
    let at: Vec<SocketAddr> = forest.awake().into_iter().map(|place| forest.address(place)).collect();
    let mut rivals: Vec<[Peer; 2]> = (0..200)
        .map(|user: usize| [Peer::connect(at[user % 4]), Peer::connect(at[(user + 1 + user % 3) % 4])])
        .collect();
    for (user, pair) in rivals.iter_mut().enumerate() {
        for (side, client) in pair.iter_mut().enumerate() {
            client.send(lines::register(&format!("user{user}"), &format!("secret{side}")));
        }
    }
    for (user, pair) in rivals.iter_mut().enumerate() {
        let answers = pair.each_mut().map(|client| client.next_line().command().to_owned());
        let winner = match [answers[0].as_str(), answers[1].as_str()] {
            ["REGISTER_SUCCESS", "REGISTER_FAILED"] => 0,
            ["REGISTER_FAILED", "REGISTER_SUCCESS"] => 1,
            both => panic!("user{user}: {both:?}"),
        };
        for at in &at {
            for side in [0, 1] {
                let is_in = can_log_in(*at, &format!("user{user}"), &format!("secret{side}"));
                assert_eq!(is_in, side == winner, "user{user} with secret{side} at {at}");
            }
        }
    }
}

/// A plain parent, an extended node below it with an extended child, and a plain node below that.
struct MixedTree {
    nodes: [Node; 4],
}

impl MixedTree {
    #[track_caller]
    fn grow() -> Self {
        let above = plain().id("above").start();
        let border = extended().id("border").parent(above.address()).start();
        wait_until_all_know_each_other(&[&above, &border]);
        let inner = extended().id("inner").parent(border.address()).start();
        wait_until_all_know_each_other(&[&above, &border, &inner]);
        let below = plain().id("below").parent(inner.address()).start();
        let tree = Self { nodes: [above, border, inner, below] };
        wait_until_all_know_each_other(&tree.nodes.iter().collect::<Vec<_>>());
        tree
    }

    fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.nodes.iter().map(Node::address)
    }
}

/// U8: registered on any of them, a name works on each of them, and is taken on each of them.
#[test]
fn names_work_across_plain_and_extended_nodes_in_both_directions() {
    let tree = MixedTree::grow();
    for (place, at) in tree.addresses().enumerate() {
        let name = format!("user{place}");
        assert_eq!(register(at, &name, "sesame"), "REGISTER_SUCCESS", "at {}", tree.nodes[place].id());
        for (other, at) in tree.addresses().enumerate() {
            wait_until_known(at, &name, "sesame");
            assert!(!can_log_in(at, &name, "other"), "{name} at {}", tree.nodes[other].id());
        }
        for (other, at) in tree.addresses().enumerate() {
            assert_eq!(register(at, &name, "other"), "REGISTER_FAILED", "{name} at {}", tree.nodes[other].id());
        }
        for at in tree.addresses() {
            assert!(can_log_in(at, &name, "sesame"), "{name} after others have tried to have it");
        }
    }
}

/// D3b holds across the border: of two that register a name at once, at most one has it in the end, and the same
/// everywhere.
#[test]
fn rivals_on_both_sides_of_the_border_never_both_win() {
    let tree = MixedTree::grow();
    let at: Vec<SocketAddr> = tree.addresses().collect();
    for round in 0..20 {
        let name = format!("user{round}");
        let mut rivals = [Peer::connect(at[round % 4]), Peer::connect(at[(round + 1 + round % 3) % 4])];
        for (side, client) in rivals.iter_mut().enumerate() {
            client.send(lines::register(&name, &format!("secret{side}")));
        }
        let won = rivals.each_mut().map(|client| client.next_line().command() == "REGISTER_SUCCESS");
        assert_ne!(won, [true, true], "{name}");
        for at in &at {
            for (side, won) in won.into_iter().enumerate() {
                let secret = format!("secret{side}");
                wait::until(PATIENCE, || match can_log_in(*at, &name, &secret) == won {
                    true => Ok(()),
                    false => Err(format!("{name} with {secret} at {at}, which has won: {won}")),
                });
            }
        }
    }
}

/// U9: a crowd whose secrets have to be hashed waits, in a few threads, and nobody else does.
#[test]
fn a_crowd_of_unknown_secrets_keeps_nobody_else_waiting() {
    let directory = TempDir::new().unwrap();
    let builder = extended().flag("--data-dir", directory.path().display());
    let kept = builder.start();
    assert_eq!(register(kept.address(), "aaron", "sesame"), "REGISTER_SUCCESS");
    drop(kept);
    // It has the hash only, and none of these is found right and remembered.
    let node = builder.start();
    let mut crowd: Vec<Peer> = (0..400).map(|_| Peer::connect(node.address())).collect();
    for (number, client) in crowd.iter_mut().enumerate() {
        client.send(lines::login("aaron", &format!("guess {number}")));
    }
    let mut other = Peer::anonymous(node.address());
    other.send(lines::anonymous_activity("{}"));
    other.expect_command("ACTIVITY_BROADCAST");
    let threads = node.process.threads();
    let processors = std::thread::available_parallelism().unwrap().get();
    assert!(threads <= 3 * processors + 8, "{threads} threads on {processors} processors");
    // In order, and no guess is right.
    for client in crowd.iter_mut().take(20) {
        client.expect_last("LOGIN_FAILED");
    }
}

/// What is in the data directory and can't be used is said, with the way out, and left as it is.
#[test]
fn a_file_that_can_not_be_used_is_a_clear_error_at_the_start() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("users.redb");
    let start = || {
        let mut process = extended().flag("--data-dir", directory.path().display()).spawn();
        assert_eq!(process.wait_exit(PATIENCE).code(), Some(1));
        let stderr = process.stderr().join("\n");
        assert!(stderr.contains("users.redb"), "{stderr}");
        stderr
    };
    fs::write(&file, "something else\n".repeat(1000)).unwrap();
    let foreign = start();
    assert!(foreign.contains("move it away"), "{foreign}");
    assert_eq!(fs::read(&file).unwrap().len(), 15_000);
    fs::remove_file(&file).unwrap();

    fs::create_dir(&file).unwrap();
    let folder = start();
    assert!(folder.contains("--data-dir"), "{folder}");
    fs::remove_dir(&file).unwrap();

    let node = extended().flag("--data-dir", directory.path().display()).start();
    assert_eq!(register(node.address(), "aaron", "sesame"), "REGISTER_SUCCESS");
    let used = start();
    assert!(used.contains("another node is using"), "{used}");
    drop(node);
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 3]).unwrap();
    let truncated = start();
    assert!(truncated.contains("move it away"), "{truncated}");
}

/// A small file system of its own, unmounted when dropped. `None` where this test may not mount one.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let directory = TempDir::new().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=16m", "arborcast-test"]).arg(directory.path());
        mount.output().is_ok_and(|output| output.status.success()).then(|| Self(directory))
    }

    fn fill(&self) {
        // Longer than there is room for: the write fails, and what fitted stays.
        let _ = fs::write(self.0.path().join("filler"), vec![0_u8; 32 << 20]);
    }

    fn make_room(&self) {
        fs::remove_file(self.0.path().join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a node that was killed a moment ago may still hold its file.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

/// U5: what can't be written is refused, and everything else goes on; with room again, all is well again.
#[test]
fn a_full_disk_refuses_registrations_until_there_is_room() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("skipped: no file system can be mounted here");
        return;
    };
    let node = extended().flag("--data-dir", disk.0.path().display()).start();
    assert_eq!(register(node.address(), "before", "sesame"), "REGISTER_SUCCESS");
    disk.fill();
    let refused = |user: &usize| register(node.address(), &format!("user{user}"), "sesame") == "REGISTER_FAILED";
    // The file has some room of its own.
    let first = (0..20_000).find(refused).expect("a disk that is full refuses somebody");
    assert!(can_log_in(node.address(), "before", "sesame"));
    assert!(!can_log_in(node.address(), &format!("user{first}"), "sesame"));
    disk.make_room();
    wait::until(PATIENCE, || match register(node.address(), "after", "sesame").as_str() {
        "REGISTER_SUCCESS" => Ok(()),
        other => Err(format!("with room again: {other}")),
    });
    drop(node);
    let node = extended().flag("--data-dir", disk.0.path().display()).start();
    for name in ["before", "after"] {
        assert!(can_log_in(node.address(), name, "sesame"), "{name} after a restart");
    }
    assert!(!can_log_in(node.address(), &format!("user{first}"), "sesame"));
}
