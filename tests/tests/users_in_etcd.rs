//! Users that masters keep in etcd (protocol, U10 to U16), with all that can be killed, frozen, emptied and cut off.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, SystemTime};

use arborcast_proto::users::{Outcome, Registration, User, VerifyRequest, WatchRequest};
use arborcast_proto::users::{RegisterRequest, watch_response::Kind};
use arborcast_tests::etcd::{self, Etcd};
use arborcast_tests::keepers::{Keepers, can_log_in, is_refused, register, registers, registers_at_last};
use arborcast_tests::lines;
use arborcast_tests::master::{Master, with_secret};
use arborcast_tests::node::{NodeBuilder, SECRET};
use arborcast_tests::peer::Peer;
use arborcast_tests::process::{Process, Signal, client_binary, master_binary, node_binary};
use arborcast_tests::scrape;
use arborcast_tests::wait::{self, PATIENCE};
use tempfile::TempDir;
use tonic::{Code, Status};

/// A hash of the right form, of which nobody knows the secret.
const HASH: &str = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaA";

fn user(username: &str, number: u64) -> User {
    let registration = Registration { at: 1, server: "test".into(), number };
    User { username: username.into(), hash: HASH.into(), registration: Some(registration) }
}

#[test]
fn a_name_has_one_owner_who_can_log_in_everywhere_at_once() {
    if !etcd::is_installed() {
        return;
    }
    let mut keepers = Keepers::start(1, 2, 3);
    registers(keepers.at(0), "aaron", "sesame");
    for node in 0..3 {
        assert!(can_log_in(keepers.at(node), "aaron", "sesame"), "at {node}");
        assert!(!can_log_in(keepers.at(node), "aaron", "other"), "at {node}");
        is_refused(keepers.at(node), "aaron", "other", "already registered");
    }
    assert!(!can_log_in(keepers.at(0), "nobody", "sesame"));
    let stored = keepers.etcd.control(&["get", "--prefix", "/arborcast/users/"]);
    assert!(stored.contains("/arborcast/users/aaron") && stored.contains("$argon2id$") && !stored.contains("sesame"));

    // Masters keep nothing, and etcd everything.
    for master in 0..2 {
        keepers.kill_master(master);
        keepers.start_master(master);
    }
    registers_at_last(keepers.at(1), "berta", "sesame");
    keepers.etcd.kill(0);
    keepers.etcd.start_member(0);
    registers_at_last(keepers.at(2), "clara", "sesame");
    // Nodes that start with nothing.
    for node in 0..3 {
        keepers.kill_node(node);
    }
    keepers.start_node(1);
    keepers.wait_for_users(1, 3);
    assert!(can_log_in(keepers.at(1), "aaron", "sesame"));
    is_refused(keepers.at(1), "aaron", "other", "already registered");
}

/// The master has been asked, and nobody knows whether it was done: the node asks another one, with the same words.
#[test]
fn a_master_that_dies_in_the_middle_of_a_registration_costs_a_moment() {
    if !etcd::is_installed() {
        return;
    }
    let mut keepers = Keepers::start(1, 2, 1);
    for round in 0..2 {
        keepers.etcd.freeze(0);
        let mut client = Peer::connect(keepers.at(0));
        let name = format!("user{round}");
        client.send(lines::register(&name, "sesame"));
        // The request is on its way through one of them, or with etcd, when they die one after the other.
        wait::until(PATIENCE, || {
            let metrics = scrape::metrics(scrape::http_address(&keepers.node(0).process));
            match scrape::value(&metrics, "arborcast_node_registrations_pending") {
                Some(1.0) => Ok(()),
                other => Err(format!("{other:?} registrations are pending")),
            }
        });
        keepers.kill_master(round);
        keepers.etcd.thaw(0);
        assert_eq!(client.next_line().command(), "REGISTER_SUCCESS");
        assert!(can_log_in(keepers.at(0), &name, "sesame"));
        keepers.start_master(round);
    }
}

#[test]
fn without_etcd_nobody_registers_and_everybody_known_logs_in() {
    if !etcd::is_installed() {
        return;
    }
    let mut keepers = Keepers::start(1, 2, 2);
    registers(keepers.at(0), "aaron", "sesame");
    keepers.wait_for_users(1, 1);
    keepers.etcd.freeze(0);
    is_refused(keepers.at(1), "berta", "sesame", "etcd has no quorum, or can't be reached");
    assert!(can_log_in(keepers.at(1), "aaron", "sesame"));
    assert!(!can_log_in(keepers.at(1), "nobody", "sesame"));
    keepers.etcd.thaw(0);
    registers_at_last(keepers.at(1), "clara", "sesame");
    // And perhaps berta: nobody could say.
    wait::until(PATIENCE, || {
        if can_log_in(keepers.at(0), "clara", "sesame") { Ok(()) } else { Err("clara is unknown".to_owned()) }
    });

    keepers.etcd.kill(0);
    is_refused(keepers.at(0), "dora", "sesame", "etcd has no quorum, or can't be reached");
    assert!(can_log_in(keepers.at(0), "aaron", "sesame"));
    for master in 0..2 {
        keepers.kill_master(master);
    }
    is_refused(keepers.at(0), "emil", "sesame", "no master can be reached");
    assert!(can_log_in(keepers.at(0), "clara", "sesame"));
}

#[test]
fn of_three_members_one_may_die_and_with_two_dead_nobody_registers() {
    if !etcd::is_installed() {
        return;
    }
    let mut keepers = Keepers::start(3, 2, 2);
    registers(keepers.at(0), "aaron", "sesame");
    keepers.etcd.kill(0);
    registers_at_last(keepers.at(1), "berta", "sesame");
    is_refused(keepers.at(0), "berta", "other", "already registered");
    for node in 0..2 {
        keepers.wait_for_users(node, 2);
    }
    keepers.etcd.kill(1);
    is_refused(keepers.at(0), "clara", "sesame", "etcd has no quorum, or can't be reached");
    for (node, name) in [(0, "aaron"), (0, "berta"), (1, "aaron"), (1, "berta")] {
        assert!(can_log_in(keepers.at(node), name, "sesame"), "{name} at {node}");
    }
    keepers.etcd.start_member(0);
    registers_at_last(keepers.at(1), "dora", "sesame");
    assert!(can_log_in(keepers.at(0), "dora", "sesame"));
}

/// Rivals at all nodes want the same names, while members of etcd, masters and nodes are killed and come back.
#[test]
fn through_kills_no_name_has_two_owners_and_every_success_stays() {
    if !etcd::is_installed() {
        return;
    }
    const NAMES: usize = 8;
    let keepers = Mutex::new(Keepers::start(3, 2, 3));
    let owners: Mutex<BTreeMap<String, Vec<String>>> = Mutex::default();
    let at = |node: usize| keepers.lock().unwrap().at(node);
    let addresses = [at(0), at(1), at(2)];
    thread::scope(|scope| {
        let rivals: Vec<_> = (0..3)
            .map(|node| {
                let (address, owners) = (addresses[node], &owners);
                scope.spawn(move || {
                    for round in 0..2 {
                        for name in 0..NAMES {
                            let (name, secret) = (format!("user{name}"), format!("secret of {node} in {round}"));
                            if tries_to_register(address, &name, &secret) {
                                owners.lock().unwrap().entry(name).or_default().push(secret);
                            }
                        }
                    }
                })
            })
            .collect();
        let mut victim = 0;
        while rivals.iter().any(|rival| !rival.is_finished()) {
            let mut keepers = keepers.lock().unwrap();
            let (member, frozen, master) = (victim % 3, (victim + 1) % 3, victim % 2);
            keepers.etcd.kill(member);
            keepers.kill_master(master);
            // Now and then there is no quorum.
            if victim % 2 == 0 {
                keepers.etcd.freeze(frozen);
            }
            thread::sleep(Duration::from_millis(500));
            if victim % 2 == 0 {
                keepers.etcd.thaw(frozen);
            }
            keepers.start_master(master);
            keepers.etcd.start_member(member);
            keepers.etcd.wait_until_it_answers();
            victim += 1;
        }
        assert!(victim > 0);
    });
    let mut keepers = keepers.into_inner().unwrap();
    for node in 0..3 {
        keepers.kill_node(node);
        keepers.start_node(node);
    }
    keepers.wait_until_told();
    let owners = owners.into_inner().unwrap();
    assert!(!owners.is_empty());
    for (name, secrets) in owners {
        assert_eq!(secrets.len(), 1, "{name} has several owners");
        for node in 0..3 {
            assert!(can_log_in(keepers.at(node), &name, &secrets[0]), "{name} at {node}");
            assert!(!can_log_in(keepers.at(node), &name, "another secret"), "{name} at {node}");
        }
    }
}

/// Whether the name is ours; that it is not, or that nobody knows, is an answer as well.
fn tries_to_register(at: SocketAddr, name: &str, secret: &str) -> bool {
    let (command, info) = register(at, name, secret);
    assert!(command == "REGISTER_SUCCESS" || command == "REGISTER_FAILED", "{command}: {info}");
    command == "REGISTER_SUCCESS"
}

#[test]
fn where_etcd_was_emptied_users_stay_and_can_be_brought_back() {
    if !etcd::is_installed() {
        return;
    }
    let directory = TempDir::new().unwrap();
    let builder = NodeBuilder::default().flag("--data-dir", directory.path().display());
    let mut keepers = Keepers::start_with(Etcd::start(1), 1, 1, &builder);
    registers(keepers.at(0), "aaron", "sesame");
    registers(keepers.at(0), "berta", "sesame");
    // A client may be told before the master is; what is on its way would be done in the new store as well.
    wait::until(PATIENCE, || match keepers.master_metric(0, "user_registrations_total{outcome=\"registered\"}") {
        Some(2.0) => Ok(()),
        other => Err(format!("{other:?} registrations are done")),
    });
    keepers.etcd.empty();
    keepers.master(0).process.wait_for_stderr("was emptied");
    scrape::wait_for(scrape::http_address(&keepers.node(0).process), "arborcast_node_users_not_at_masters", 2.0);
    assert!(can_log_in(keepers.at(0), "aaron", "sesame"));
    is_refused(keepers.at(0), "aaron", "other", "already registered");
    registers_at_last(keepers.at(0), "clara", "sesame");

    // Somebody who has never heard of her takes a name. Here it stays hers.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let registration = Registration { at: now.as_millis() as u64, server: "elsewhere".into(), number: 1 };
    let thief = User { registration: Some(registration), ..user("berta", 1) };
    let register = RegisterRequest { user: Some(thief) };
    keepers.master(0).ask_for_users(async |mut users| users.register(with_secret(register)).await).unwrap();
    wait::until(PATIENCE, || match keepers.node_metric(0, "users_conflicting_total") {
        Some(1.0) => Ok(()),
        other => Err(format!("{other:?} conflicts")),
    });
    assert!(can_log_in(keepers.at(0), "berta", "sesame"));

    keepers.kill_node(0);
    let master = keepers.master_addresses()[0];
    let (code, conflicts) = import(directory.path().to_str().unwrap(), master);
    assert_eq!((code, conflicts), (3, vec!["conflict: berta".to_owned()]));
    assert!(keepers.etcd.control(&["get", "/arborcast/users/aaron"]).contains("$argon2id$"));
    // The operator decides.
    keepers.etcd.control(&["del", "/arborcast/users/berta"]);
    for _ in 0..2 {
        assert_eq!(import(directory.path().to_str().unwrap(), master), (0, Vec::new()));
    }
    keepers.start_node(0);
    keepers.wait_until_told();
    assert_eq!(keepers.node_metric(0, "users_not_at_masters"), Some(0.0));
    assert!(can_log_in(keepers.at(0), "berta", "sesame"));
}

/// `arborcast-node import-users`: its exit code, and its standard output.
#[track_caller]
fn import(directory: &str, master: SocketAddr) -> (i32, Vec<String>) {
    let master = master.to_string();
    let arguments = ["-s", SECRET, "--data-dir", directory, "--master", &master, "import-users"];
    let mut process = Process::start(node_binary(), arguments);
    let code = process.wait_exit(3 * PATIENCE).code().unwrap();
    (code, process.stdout())
}

#[test]
fn the_users_of_a_tree_move_into_etcd_with_one_command() {
    if !etcd::is_installed() {
        return;
    }
    let directory = TempDir::new().unwrap();
    let builder = NodeBuilder::default().flag("--data-dir", directory.path().display());
    let old = builder.clone().extended().start();
    for name in ["aaron", "berta"] {
        assert_eq!(register(old.address(), name, "sesame").0, "REGISTER_SUCCESS");
    }
    let etcd = Etcd::start(1);
    let master = Master::start_with(SocketAddr::from(([127, 0, 0, 1], 0)), &["--users", &etcd.url()]);
    let path = directory.path().to_str().unwrap().to_owned();
    let in_use = import(&path, master.address());
    assert_eq!(in_use.0, 1, "the node runs");
    drop(old);
    assert_eq!(import(&path, master.address()), (0, Vec::new()));
    drop(master);
    let keepers = Keepers::start_with(etcd, 1, 1, &NodeBuilder::default());
    keepers.wait_for_users(0, 2);
    assert!(can_log_in(keepers.at(0), "aaron", "sesame"));
    is_refused(keepers.at(0), "berta", "other", "already registered");

    assert_eq!(import("/nowhere/at/all", keepers.master_addresses()[0]).0, 1);
    // Masters that keep no users, or are not there: it stops, and says so.
    let plain = Master::start();
    assert_eq!(import(&path, plain.address()).0, 1);
}

#[test]
fn what_is_no_user_is_skipped_and_counted() {
    if !etcd::is_installed() {
        return;
    }
    let etcd = Etcd::start(1);
    etcd.put("/arborcast/users/garbage", b"{}");
    etcd.put("/arborcast/users/anonymous", b"x");
    for number in 0..10 {
        // Together longer than what is read at once.
        etcd.put(&format!("/arborcast/users/long{number}"), &vec![b'x'; 1 << 20]);
    }
    etcd.put("/arborcast/usersbeside", b"x");
    etcd.put("/elsewhere", b"x");
    let mut keepers = Keepers::start_with(etcd, 1, 1, &NodeBuilder::default());
    registers(keepers.at(0), "aaron", "sesame");
    keepers.wait_for_users(0, 1);
    for (reason, at_least) in [("foreign", 1.0), ("name", 1.0), ("too_long", 10.0)] {
        let name = format!("users_skipped_total{{reason=\"{reason}\"}}");
        assert!(keepers.master_metric(0, &name).is_some_and(|found| found >= at_least), "{name}");
    }
    is_refused(keepers.at(0), "garbage", "sesame", "already registered");
    assert!(!can_log_in(keepers.at(0), "garbage", "sesame"));
    // Also while nodes are told of changes.
    keepers.etcd.put("/arborcast/users/more", b"\xff");
    keepers.etcd.put("/arborcast/users/longer", &vec![b'x'; 1 << 20]);
    keepers.etcd.control(&["del", "/arborcast/users/aaron"]);
    let register = RegisterRequest { user: Some(user("berta", 1)) };
    keepers.master(0).ask_for_users(async |mut users| users.register(with_secret(register)).await).unwrap();
    keepers.wait_for_users(0, 2);
    assert!(can_log_in(keepers.at(0), "aaron", "sesame"), "deleted in etcd is not deleted here");
}

/// More than one page; and a node that changes its master is not told all again.
#[test]
fn a_node_goes_on_where_it_was_at_another_master() {
    if !etcd::is_installed() {
        return;
    }
    const USERS: u64 = 1203;
    let mut keepers = Keepers::start(1, 2, 0);
    keepers
        .master(0)
        .ask_for_users(async |users| {
            let all = (0..USERS).map(|number| {
                let mut users = users.clone();
                let register = RegisterRequest { user: Some(user(&format!("user{number}"), number)) };
                async move { users.register(with_secret(register)).await }
            });
            let mut last = None;
            for answer in futures_util::future::join_all(all).await {
                last = Some(answer?);
            }
            last.ok_or_else(|| Status::internal("none"))
        })
        .unwrap();
    let flags = keepers
        .master_addresses()
        .iter()
        .fold(NodeBuilder::default(), |builder, master| builder.flag("--master", master));
    let node = flags.flag("--users", "masters").flag("--http", "127.0.0.1:0").start();
    let http = scrape::http_address(&node.process);
    scrape::wait_for(http, "arborcast_node_users", USERS as f64);
    scrape::wait_for(http, "arborcast_node_users_not_at_masters", 0.0);
    let watched = |keepers: &mut Keepers, master| keepers.master_metric(master, "user_watchers") == Some(1.0);
    let first = if watched(&mut keepers, 0) { 0 } else { 1 };
    assert!(watched(&mut keepers, first));
    keepers.kill_master(first);
    let register = RegisterRequest { user: Some(user("later", 1)) };
    let other = keepers.master(1 - first);
    other.ask_for_users(async |mut users| users.register(with_secret(register)).await).unwrap();
    scrape::wait_for(http, "arborcast_node_users", USERS as f64 + 1.0);
    assert_eq!(keepers.master_metric(1 - first, "users_told_whole_total"), Some(0.0));
}

#[test]
fn a_position_that_etcd_has_forgotten_means_all_users_once_more() {
    if !etcd::is_installed() {
        return;
    }
    let mut keepers = Keepers::start(1, 1, 0);
    let register = |keepers: &mut Keepers, name: &str| {
        let register = RegisterRequest { user: Some(user(name, 1)) };
        keepers.master(0).ask_for_users(async |mut users| users.register(with_secret(register)).await).unwrap();
    };
    register(&mut keepers, "aaron");
    let watch = |keepers: &mut Keepers, after| {
        let call = async |mut users: arborcast_proto::users::users_client::UsersClient<_>| {
            let mut told = users.watch(with_secret(WatchRequest { after })).await?.into_inner();
            let message = told.message().await?.and_then(|message| message.kind);
            Ok(tonic::Response::new(message.ok_or_else(|| Status::internal("nothing"))?))
        };
        keepers.master(0).ask_for_users(call).unwrap()
    };
    let Kind::Whole(whole) = watch(&mut keepers, None) else { panic!("all users come first") };
    assert_eq!((whole.users.len(), whole.is_first), (1, true));
    let position = whole.position;
    assert!(position.is_some());
    let Kind::Added(added) = watch(&mut keepers, position) else { panic!("the position is good") };
    assert_eq!((added.users.len(), added.position), (0, position));

    register(&mut keepers, "berta");
    register(&mut keepers, "clara");
    let revision = position.unwrap().revision + 2;
    keepers.etcd.control(&["compact", &revision.to_string()]);
    let call = async |mut users: arborcast_proto::users::users_client::UsersClient<_>| {
        let mut told = users.watch(with_secret(WatchRequest { after: position })).await?.into_inner();
        loop {
            match told.message().await?.and_then(|message| message.kind) {
                Some(Kind::Whole(whole)) => return Ok(tonic::Response::new(whole)),
                Some(Kind::Added(_)) => {}
                None => return Err(Status::internal("nothing")),
            }
        }
    };
    let whole = keepers.master(0).ask_for_users(call).unwrap();
    assert_eq!(whole.users.len(), 3);
}

#[test]
fn a_registration_that_is_repeated_at_another_master_finds_itself() {
    if !etcd::is_installed() {
        return;
    }
    let mut keepers = Keepers::start(1, 2, 0);
    let mut register = |master: usize, user: User| {
        let register = RegisterRequest { user: Some(user) };
        let answer =
            keepers.master(master).ask_for_users(async |mut users| users.register(with_secret(register)).await);
        let answer = answer.unwrap();
        (answer.outcome(), answer.owner)
    };
    for master in [0, 1, 0] {
        assert_eq!(register(master, user("aaron", 1)), (Outcome::Registered, None));
    }
    assert_eq!(register(1, user("aaron", 2)), (Outcome::Taken, Some(user("aaron", 1))));
    let other_hash = User { hash: HASH.replace("aGFzaA", "b3RoZXI"), ..user("aaron", 1) };
    assert_eq!(register(0, other_hash), (Outcome::Taken, Some(user("aaron", 1))));
}

#[test]
fn calls_need_the_secret_and_masters_that_keep_users() {
    if !etcd::is_installed() {
        return;
    }
    let mut keepers = Keepers::start(1, 1, 0);
    let verify = || VerifyRequest { username: "aaron".into() };
    let code = |master: &Master, request: tonic::Request<VerifyRequest>| {
        let mut found = Code::Ok;
        let _ = master.ask_for_users(async |mut users| {
            let answer = users.verify(request).await;
            found = answer.as_ref().err().map_or(Code::Ok, Status::code);
            answer
        });
        found
    };
    assert_eq!(code(keepers.master(0), tonic::Request::new(verify())), Code::Unauthenticated);
    assert_eq!(code(keepers.master(0), with_secret(verify())), Code::NotFound);
    let nobody = VerifyRequest { username: "anonymous".into() };
    assert_eq!(code(keepers.master(0), with_secret(nobody)), Code::InvalidArgument);
    for wrong in [
        user("anonymous", 1),
        User { hash: "sesame".into(), ..user("x", 1) },
        User { registration: None, ..user("x", 1) },
    ] {
        let register = RegisterRequest { user: Some(wrong) };
        let refused = keepers.master(0).ask_for_users(async |mut users| users.register(with_secret(register)).await);
        assert!(
            refused
                .is_err_and(|said| said.contains("invalid argument") || said.contains("Client specified an invalid")),
            "refused"
        );
    }
    let plain = Master::start();
    assert_eq!(code(&plain, with_secret(verify())), Code::Unimplemented);
}

/// A node that was not told registers nothing at masters that keep users.
#[test]
fn a_node_that_was_not_told_registers_nobody() {
    if !etcd::is_installed() {
        return;
    }
    let keepers = Keepers::start(1, 1, 1);
    registers(keepers.at(0), "aaron", "sesame");
    let misled = NodeBuilder::default().flag("--master", keepers.master_addresses()[0]).start();
    misled.process.wait_for_stderr("until it is started with --users masters");
    is_refused(misled.address(), "berta", "sesame", "--users masters");
    wait::until(PATIENCE, || {
        if can_log_in(misled.address(), "aaron", "sesame") { Ok(()) } else { Err("aaron is unknown".to_owned()) }
    });
}

/// A master that reaches etcd, and its address.
fn start_logging(flags: &[&str], filter: &str) -> (Process, String) {
    let arguments = [&["-s", SECRET, "--listen", "127.0.0.1:0"], flags].concat();
    let master = Process::start_logging(master_binary(), arguments, filter);
    master.wait_for_stderr("users are kept in etcd");
    let address = master.stdout_line_matching("address", |line| line.strip_prefix("listening on ").map(str::to_owned));
    (master, address)
}

#[test]
fn etcd_that_wants_a_password_gets_it_and_no_log_does() {
    if !etcd::is_installed() {
        return;
    }
    const PASSWORD: &str = "PasswordForEtcd";
    let etcd = Etcd::start(1);
    etcd.control(&["user", "add", &format!("root:{PASSWORD}")]);
    etcd.control(&["user", "grant-role", "root", "root"]);
    etcd.control(&["auth", "enable"]);
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let url = etcd.url();
    let mut without = Master::start_with(listen, &["--users", &url]);
    without.process.wait_for_stderr("nobody can register");
    without.process.signal(Signal::SIGTERM);
    let file = file.display().to_string();
    let (master, address) =
        start_logging(&["--users", &url, "--users-login", "root", "--users-password-file", &file], "trace");
    let node = NodeBuilder::default().flag("--master", address).flag("--users", "masters").log("trace").start();
    registers(node.address(), "aaron", "SecretOfTheUser");
    for process in [&master, &node.process] {
        let log = process.stderr().join("\n");
        assert!(log.contains("TRACE") && !log.contains(PASSWORD) && !log.contains("SecretOfTheUser"));
    }
}

#[test]
fn etcd_that_wants_certificates_is_shown_one() {
    if !etcd::is_installed() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let mut made = Process::start(client_binary(), ["certs", folder.path().to_str().unwrap(), "127.0.0.1"]);
    assert!(made.wait_exit(PATIENCE).success());
    let file = |name: &str| folder.path().join(name).display().to_string();
    let etcd = Etcd::start_over_tls(folder.path());
    let (url, listen) = (etcd.url(), SocketAddr::from(([127, 0, 0, 1], 0)));
    let authority = ["--users", &url, "--users-ca", &file("ca.pem")];
    let (certificate, key) = (file("node.pem"), file("node.key"));

    let without = Master::start_with(listen, &authority);
    without.process.wait_for_stderr("nobody can register");
    let identity = ["--users-cert", &certificate, "--users-key", &key];
    let (mut master, address) = start_logging(&[&authority[..], &identity].concat(), "info");
    let node = NodeBuilder::default().flag("--master", address).flag("--users", "masters").start();
    registers(node.address(), "aaron", "sesame");
    assert!(etcd.control(&["get", "/arborcast/users/aaron"]).contains("$argon2id$"));
    master.signal(Signal::SIGHUP);
    master.wait_for_stderr("certificates read again");
}

#[test]
fn the_readme_names_every_metric_of_those_that_keep_users() {
    if !etcd::is_installed() {
        return;
    }
    let mut keepers = Keepers::start(1, 1, 1);
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let node = scrape::metrics(scrape::http_address(&keepers.node(0).process));
    let master = scrape::metrics(scrape::http_address(&keepers.master(0).process));
    let families = |text: &str| -> Vec<String> {
        let lines = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        lines.filter(|name| name.contains("_user")).map(str::to_owned).collect()
    };
    let all = [families(&node), families(&master)].concat();
    assert!(all.len() > 8, "{all:?}");
    for name in all {
        assert!(readme.contains(&format!("`{name}")), "{name} is not in the README");
    }
}
