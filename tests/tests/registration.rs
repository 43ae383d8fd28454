//! Part I, Registration, and the login window.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::time::{Duration, Instant};

use arborcast_tests::lines;
use arborcast_tests::node::Node;
use arborcast_tests::peer::{Arrival, Line, Peer};
use arborcast_tests::stage::{BUSY, Stage};
use arborcast_tests::wait::{self, PATIENCE};

/// "or 2 s pass without a LOCK_DENIED"
const LOGIN_WINDOW: Duration = Duration::from_secs(2);

/// Asks to register over a connection of its own, and returns the answer.
#[track_caller]
fn answer_to_register(node: &Node, username: &str, secret: &str) -> Line {
    let mut client = Peer::connect(node.address());
    client.send(lines::register(username, secret));
    client.next_line()
}

/// The same, where the name must be taken.
#[track_caller]
fn expect_taken(node: &Node, username: &str, secret: &str) {
    let mut client = Peer::connect(node.address());
    client.send(lines::register(username, secret));
    let refusal = client.expect_last("REGISTER_FAILED");
    assert_eq!(refusal.info(), format!("{username} is already registered with the system"));
}

/// A login that must be refused.
#[track_caller]
fn expect_login_fails(node: &Node, username: &str, secret: &str) {
    let mut client = Peer::connect(node.address());
    client.send(lines::login(username, secret));
    assert_eq!(client.expect_last("LOGIN_FAILED").info(), "attempt to login with wrong secret");
}

/// A login that can be answered only when its pair is settled.
#[track_caller]
fn held_login(node: &Node, username: &str, secret: &str) -> Peer {
    let mut client = Peer::connect(node.address());
    client.send(lines::login(username, secret));
    client.expect_silence();
    client
}

/// A name that `link`'s side registers: stored here, and settled if `link` leads to the only other server.
#[track_caller]
fn stored_for_another(stage: &mut Stage, link: &mut Peer, username: &str, secret: &str) {
    link.send(lines::lock_request(username, secret));
    let allowed = lines::lock_allowed(username, secret, stage.node.id());
    link.expect_message(&allowed);
    stage.observer.expect_message(&lines::lock_request(username, secret));
    stage.observer.expect_message(&allowed);
}

/// Part I, Registration, step 1.
#[test]
fn anonymous_cannot_be_registered() {
    let node = Node::start();
    let mut client = Peer::connect(node.address());
    client.send(lines::register("anonymous", "s"));
    client.expect_last("REGISTER_FAILED");
}

/// Part I, Registration, step 1: "S knows `u`", registered here, with whatever secret.
#[test]
fn a_registered_name_is_taken() {
    let node = Node::start();
    assert_eq!(answer_to_register(&node, "aaron", "s").command(), "REGISTER_SUCCESS");
    expect_taken(&node, "aaron", "s");
    expect_taken(&node, "aaron", "another");
}

/// Part I, Registration, step 1: "or being registered by anyone": by another server's client.
#[test]
fn a_name_that_another_server_registers_is_taken() {
    let mut stage = Stage::new();
    let mut link = stage.server("other");
    let _third = stage.server("third");
    stored_for_another(&mut stage, &mut link, "aaron", "s");
    expect_taken(&stage.node, "aaron", "s");
    expect_taken(&stage.node, "aaron", "another");
}

/// Part I, Registration, step 1: "or being registered by anyone": by another client of this server.
#[test]
fn a_name_that_another_client_registers_is_taken() {
    let mut stage = Stage::new();
    let mut link = stage.server("other");
    let mut client = stage.registering("aaron", "s");
    expect_taken(&stage.node, "aaron", "s");
    expect_taken(&stage.node, "aaron", "another");
    // The first is not disturbed by it.
    link.send(lines::lock_allowed("aaron", "s", "other"));
    client.expect_command("REGISTER_SUCCESS");
}

/// Part I, Registration, step 2: "No other server is known: store, REGISTER_SUCCESS. The connection stays open; the
/// client logs in on it."
#[test]
fn alone_a_server_registers_at_once_and_the_client_logs_in_on_the_same_connection() {
    let node = Node::start();
    let mut client = Peer::connect(node.address());
    client.send(lines::register("aaron", "s3"));
    assert_eq!(client.expect_command("REGISTER_SUCCESS").info(), "register success for aaron");
    client.send(lines::login("aaron", "s3"));
    assert_eq!(client.expect_command("LOGIN_SUCCESS").info(), "logged in as user aaron");
}

/// Part I, Registration, step 3: "A link over which no SERVER_ANNOUNCE came is not a known server." Then step 2 holds,
/// which asks nobody.
#[test]
fn a_link_without_an_announcement_is_not_waited_for() {
    let mut stage = Stage::new();
    assert_eq!(answer_to_register(&stage.node, "aaron", "s").command(), "REGISTER_SUCCESS");
    let mut another = Peer::link(stage.node.address());
    let mark = lines::lock_allowed("nobody", "nothing", "nowhere");
    another.send(&mark);
    stage.observer.expect_text(&mark);
}

/// Part I, Registration, step 3: "flood LOCK_REQUEST(u, s)": over every server link, known server or not.
#[test]
fn the_lock_request_goes_over_every_link() {
    let (mut stage, mut parent) = Stage::below_a_parent();
    let mut child = stage.server("child");
    // Reads it at the observer, who is no known server.
    let _client = stage.registering("ängström \"the\" {first}", "\u{1F600}\\n");
    for link in [&mut parent, &mut child] {
        link.expect_message(&lines::lock_request("ängström \"the\" {first}", "\u{1F600}\\n"));
    }
}

/// Part I, Registration, steps 3 and 4: "With `server` ids, tick off ids".
#[test]
fn named_answers_are_ticked_off_and_all_must_come() {
    let mut stage = Stage::new();
    let (mut a, mut b) = (stage.server("a"), stage.server("b"));
    stage.announce(&mut b, "behind b", BUSY);
    let mut client = stage.registering("aaron", "s");
    stage.flood(&mut a, &lines::lock_allowed("aaron", "s", "a"));
    stage.flood(&mut b, &lines::lock_allowed("aaron", "s", "behind b"));
    // Neither a repeated answer, nor a stranger's, nor one for another pair stands for the missing one.
    stage.flood(&mut b, &lines::lock_allowed("aaron", "s", "behind b"));
    stage.flood(&mut b, &lines::lock_allowed("aaron", "s", "stranger"));
    stage.flood(&mut b, &lines::lock_allowed("aaron", "other", "b"));
    stage.flood(&mut b, &lines::lock_allowed("berta", "s", "b"));
    client.expect_silence();
    b.send(lines::lock_allowed("aaron", "s", "b"));
    assert_eq!(client.expect_command("REGISTER_SUCCESS").info(), "register success for aaron");
    client.send(lines::login("aaron", "s"));
    client.expect_command("LOGIN_SUCCESS");
}

/// Part I, Registration, step 3: "without, count (per link)".
#[test]
fn nameless_answers_are_counted_per_link() {
    let mut stage = Stage::new();
    let (mut a, mut b) = (stage.server("a"), stage.server("b"));
    stage.announce(&mut b, "behind b", BUSY);
    let mut client = stage.registering("aaron", "s");
    let allowed = lines::nameless_lock_allowed("aaron", "s");
    // Three answers, but all over the link that one server is behind.
    for _ in 0..3 {
        stage.flood(&mut a, &allowed);
    }
    stage.flood(&mut b, &allowed);
    client.expect_silence();
    b.send(&allowed);
    client.expect_command("REGISTER_SUCCESS");
}

/// Part I, Registration, step 3: "one tree may mix both".
#[test]
fn one_tree_may_mix_named_and_nameless_answers() {
    let mut stage = Stage::new();
    let (mut a, mut b) = (stage.server("a"), stage.server("b"));
    stage.announce(&mut b, "behind b", BUSY);
    let mut client = stage.registering("aaron", "s");
    stage.flood(&mut b, &lines::nameless_lock_allowed("aaron", "s"));
    stage.flood(&mut a, &lines::nameless_lock_allowed("aaron", "s"));
    client.expect_silence();
    b.send(lines::lock_allowed("aaron", "s", "behind b"));
    client.expect_command("REGISTER_SUCCESS");
}

/// Part I, Registration, step 3: "A server whose link is lost is no longer waited for". One lost among several.
#[test]
fn servers_behind_a_lost_link_are_no_longer_waited_for() {
    let mut stage = Stage::new();
    let (mut kept, mut lost) = (stage.server("kept"), stage.server("lost"));
    stage.announce(&mut lost, "behind lost", BUSY);
    let mut client = stage.registering("aaron", "s");
    stage.flood(&mut kept, &lines::lock_allowed("aaron", "s", "kept"));
    client.expect_silence();
    drop(lost);
    client.expect_command("REGISTER_SUCCESS");
}

/// Part I, Registration, step 3: the last link that was waited for is lost.
#[test]
fn when_nobody_is_left_to_wait_for_the_registration_succeeds() {
    let mut stage = Stage::new();
    let only = stage.server("only");
    let mut client = stage.registering("aaron", "s");
    drop(only);
    client.expect_command("REGISTER_SUCCESS");
}

/// Part I, Registration, step 3: "nameless answers that came over that link no longer count".
#[test]
fn nameless_answers_over_a_lost_link_do_not_stand_for_others() {
    let mut stage = Stage::new();
    let (mut kept, mut lost) = (stage.server("kept"), stage.server("lost"));
    let mut client = stage.registering("aaron", "s");
    for _ in 0..2 {
        stage.flood(&mut lost, &lines::nameless_lock_allowed("aaron", "s"));
    }
    drop(lost);
    // Only when the link is known to be lost does the silence mean anything: until then its one server had answered.
    wait_until_unknown(&mut stage, &mut kept);
    client.expect_silence();
    kept.send(lines::nameless_lock_allowed("aaron", "s"));
    client.expect_command("REGISTER_SUCCESS");
}

/// Waits until `kept` leads to the only known server: then a LOCK_REQUEST from there is settled at once.
#[track_caller]
fn wait_until_unknown(stage: &mut Stage, kept: &mut Peer) {
    let mut attempt = 0;
    wait::until(PATIENCE, || {
        attempt += 1;
        let name = format!("probe {attempt}");
        stage.flood(kept, &lines::lock_request(&name, "s"));
        let mut probe = Peer::connect(stage.node.address());
        probe.send(lines::login(&name, "s"));
        match probe.arrival(Duration::from_millis(100)) {
            Arrival::Line(line) if line.command() == "LOGIN_SUCCESS" => Ok(()),
            other => Err(format!("the lost link is still waited for: {other:?}")),
        }
    });
}

/// Part I, Registration, step 3: "from every server known at that moment": not from those that come later.
#[test]
fn a_server_that_comes_later_is_not_waited_for() {
    let mut stage = Stage::new();
    let mut early = stage.server("early");
    let mut client = stage.registering("aaron", "s");
    let _late = stage.server("late");
    early.send(lines::lock_allowed("aaron", "s", "early"));
    client.expect_command("REGISTER_SUCCESS");
}

/// Part I, Registration, step 4: "A LOCK_DENIED(u, s): REGISTER_FAILED, close."
#[test]
fn a_denial_ends_the_registration() {
    let mut stage = Stage::new();
    let (mut a, mut b) = (stage.server("a"), stage.server("b"));
    let mut client = stage.registering("aaron", "s");
    stage.flood(&mut a, &lines::lock_allowed("aaron", "s", "a"));
    // A denial of another pair is not one.
    stage.flood(&mut b, &lines::lock_denied("aaron", "another"));
    stage.flood(&mut b, &lines::lock_denied("berta", "s"));
    client.expect_silence();
    b.send(lines::lock_denied("aaron", "s"));
    client.expect_last("REGISTER_FAILED");
    expect_login_fails(&stage.node, "aaron", "s");
    // The name is free again.
    stage.observer.expect_text(&lines::lock_denied("aaron", "s"));
    let mut again = stage.registering("aaron", "s2");
    a.send(lines::lock_allowed("aaron", "s2", "a"));
    b.send(lines::lock_allowed("aaron", "s2", "b"));
    again.expect_command("REGISTER_SUCCESS");
}

/// Part I, Registration, step 4: "No full answer in 10 s: REGISTER_FAILED, close, and flood LOCK_DENIED(u, s) so that
/// nobody keeps it." The slowest test of this file.
#[test]
fn without_all_answers_in_ten_seconds_the_registration_fails_and_is_denied_everywhere() {
    let mut stage = Stage::new();
    let (mut a, mut silent) = (stage.server("a"), stage.server("silent"));
    let begin = Instant::now();
    let mut client = stage.registering("aaron", "s");
    stage.flood(&mut a, &lines::lock_allowed("aaron", "s", "a"));
    let denied = lines::lock_denied("aaron", "s");
    client.expect_last("REGISTER_FAILED");
    assert!(begin.elapsed() >= Duration::from_secs(10), "given up after {:?}", begin.elapsed());
    stage.observer.expect_message(&denied);
    a.expect("the denial", |line| (line.command() == "LOCK_DENIED").then_some(()));
    silent.expect("the denial", |line| (line.command() == "LOCK_DENIED").then_some(()));
    expect_login_fails(&stage.node, "aaron", "s");
    // The name is free again.
    let _again = stage.registering("aaron", "s2");
}

/// Part I, Registration, step 5: "The client going away does not stop it."
#[test]
fn the_client_going_away_does_not_stop_its_registration() {
    let mut stage = Stage::new();
    let mut link = stage.server("other");
    let open_before = stage.node.process.open_files();
    drop(stage.registering("aaron", "s"));
    wait::until(PATIENCE, || match stage.node.process.open_files() {
        open if open <= open_before => Ok(()),
        open => Err(format!("{open} open files instead of {open_before}: the client's connection is not closed")),
    });
    stage.flood(&mut link, &lines::lock_allowed("aaron", "s", "other"));
    Peer::logged_in(stage.node.address(), "aaron", "s");
}

/// Part I, Registration, step 5: "a second REGISTER while one is pending is INVALID_MESSAGE". The first goes on: its
/// client going away does not stop it.
#[test]
fn a_second_register_while_one_is_pending_is_invalid() {
    let mut stage = Stage::new();
    let mut link = stage.server("other");
    let mut client = stage.registering("aaron", "s");
    client.send(lines::register("berta", "s"));
    client.expect_last("INVALID_MESSAGE");
    stage.flood(&mut link, &lines::lock_allowed("aaron", "s", "other"));
    Peer::logged_in(stage.node.address(), "aaron", "s");
    expect_login_fails(&stage.node, "berta", "s");
}

/// Part I, Registration, step 5: "One registration at a time per connection": one after the other is fine.
#[test]
fn a_connection_may_register_one_name_after_the_other() {
    let node = Node::start();
    let mut client = Peer::connect(node.address());
    for username in ["aaron", "berta"] {
        client.send(lines::register(username, "s"));
        client.expect_command("REGISTER_SUCCESS");
    }
    client.send(lines::login("aaron", "s"));
    client.expect_command("LOGIN_SUCCESS");
}

/// Part I, Registration: a LOGIN behind a pending REGISTER on the same connection waits for its outcome.
#[test]
fn a_login_behind_a_pending_register_waits_for_the_outcome() {
    let mut stage = Stage::new();
    let mut link = stage.server("other");
    let ahead = [lines::login("aaron", "s"), lines::activity("aaron", "s", r#"{"n":1}"#)].join("\n");
    let mut lucky = stage.registering("aaron", "s");
    lucky.send(&ahead);
    lucky.expect_silence();
    stage.flood(&mut link, &lines::lock_allowed("aaron", "s", "other"));
    lucky.expect_command("REGISTER_SUCCESS");
    lucky.expect_command("LOGIN_SUCCESS");
    lucky.expect_command("ACTIVITY_BROADCAST");
    stage.observer.expect_command("ACTIVITY_BROADCAST");

    let mut unlucky = stage.registering("berta", "s");
    unlucky.send(lines::login("berta", "s"));
    link.send(lines::lock_denied("berta", "s"));
    unlucky.expect_last("REGISTER_FAILED");
}

/// Part I, Load: a client that registered here may be redirected when it logs in; REGISTER itself never redirects.
#[test]
fn registering_does_not_redirect() {
    let mut stage = Stage::new();
    let mut link = Peer::link(stage.node.address());
    stage.announce(&mut link, "free", -100);
    let mut client = stage.registering("aaron", "s");
    stage.flood(&mut link, &lines::lock_allowed("aaron", "s", "free"));
    client.expect_command("REGISTER_SUCCESS");
    client.expect_silence();
    client.send(lines::login("aaron", "s"));
    client.expect_command("LOGIN_SUCCESS");
    client.expect_last("REDIRECT");
}

/// Part I, Registration, a server that receives LOCK_REQUEST: "pass it on", unchanged, and "store (u, s) and flood
/// LOCK_ALLOWED(u, s, own id) to all links, the one it came from included".
#[test]
fn a_request_for_a_free_name_is_passed_on_stored_and_allowed_to_all() {
    let mut stage = Stage::new();
    let (mut asking, mut other) = (stage.server("asking"), stage.server("other"));
    let request = r#"{"secret":"s","since":1.0,"command":"LOCK_REQUEST","username":"aar\u006fn"}"#;
    asking.send(request);
    let allowed = lines::lock_allowed("aaron", "s", stage.node.id());
    for link in [&mut other, &mut stage.observer] {
        link.expect_text(request);
        link.expect_message(&allowed);
    }
    asking.expect_message(&allowed);
    stage.expect_nothing_more([&mut asking, &mut other]);
    Peer::logged_in(stage.node.address(), "aaron", "s");
}

/// Part I, Registration, a server that receives LOCK_REQUEST and "knows `u` with another secret (stored ...): flood
/// LOCK_DENIED(u, s) to all links". Registered here, or known from another server; settled or not.
#[test]
fn a_request_for_a_name_stored_with_another_secret_is_denied_to_all() {
    let mut stage = Stage::new();
    assert_eq!(answer_to_register(&stage.node, "own", "right").command(), "REGISTER_SUCCESS");
    let (mut asking, mut other) = (stage.server("asking"), stage.server("other"));
    asking.send(lines::lock_request("pending", "right"));
    for link in [&mut asking, &mut other, &mut stage.observer] {
        link.expect("LOCK_ALLOWED", |line| (line.command() == "LOCK_ALLOWED").then_some(()));
    }
    for username in ["own", "pending"] {
        let (request, denied) = (lines::lock_request(username, "wrong"), lines::lock_denied(username, "wrong"));
        asking.send(&request);
        asking.expect_message(&denied);
        for link in [&mut other, &mut stage.observer] {
            link.expect_text(&request);
            link.expect_message(&denied);
        }
        stage.expect_nothing_more([&mut asking, &mut other]);
        // And it keeps what it had.
        Peer::logged_in(stage.node.address(), username, "right");
        expect_login_fails(&stage.node, username, "wrong");
    }
}

/// Part I, Registration, a server that receives LOCK_REQUEST and "knows `u` with another secret (... pending for its own
/// client)".
#[test]
fn a_request_for_a_name_its_own_client_is_registering_with_another_secret_is_denied_to_all() {
    let mut stage = Stage::new();
    let (mut asking, mut other) = (stage.server("asking"), stage.server("other"));
    let mut client = stage.registering("aaron", "right");
    for link in [&mut asking, &mut other] {
        link.expect_message(&lines::lock_request("aaron", "right"));
    }
    let (request, denied) = (lines::lock_request("aaron", "wrong"), lines::lock_denied("aaron", "wrong"));
    asking.send(&request);
    asking.expect_message(&denied);
    for link in [&mut other, &mut stage.observer] {
        link.expect_text(&request);
        link.expect_message(&denied);
    }
    // Its own client's registration goes on.
    for (link, id) in [(&mut asking, "asking"), (&mut other, "other")] {
        link.send(lines::lock_allowed("aaron", "right", id));
    }
    client.expect_command("REGISTER_SUCCESS");
}

/// Part I, Registration: "Same name, same secret is therefore allowed".
#[test]
fn a_request_for_a_name_stored_with_the_same_secret_is_allowed() {
    let mut stage = Stage::new();
    assert_eq!(answer_to_register(&stage.node, "aaron", "s").command(), "REGISTER_SUCCESS");
    let mut asking = stage.server("asking");
    asking.send(lines::lock_request("aaron", "s"));
    asking.expect_message(&lines::lock_allowed("aaron", "s", stage.node.id()));
    Peer::logged_in(stage.node.address(), "aaron", "s");
}

/// Part I, Registration: the same name and secret being registered here and elsewhere at once is allowed on both sides.
#[test]
fn a_request_for_the_pair_its_own_client_is_registering_is_allowed() {
    let mut stage = Stage::new();
    let mut asking = stage.server("asking");
    let mut client = stage.registering("aaron", "s");
    asking.expect_message(&lines::lock_request("aaron", "s"));
    asking.send(lines::lock_request("aaron", "s"));
    asking.expect_message(&lines::lock_allowed("aaron", "s", stage.node.id()));
    asking.send(lines::lock_allowed("aaron", "s", "asking"));
    client.expect_command("REGISTER_SUCCESS");
}

/// Part I, Registration, a server that receives LOCK_DENIED: "pass it on; remove `u` if it is stored with exactly `s`".
#[test]
fn a_denial_is_passed_on_and_removes_only_the_exact_pair() {
    let mut stage = Stage::new();
    assert_eq!(answer_to_register(&stage.node, "aaron", "s").command(), "REGISTER_SUCCESS");
    let (mut denying, mut other) = (stage.server("denying"), stage.server("other"));
    for near in [("aaron", "another"), ("Aaron", "s"), ("aaron", "s ")] {
        let line = lines::lock_denied(near.0, near.1);
        stage.flood(&mut denying, &line);
        other.expect_text(&line);
        Peer::logged_in(stage.node.address(), "aaron", "s");
    }
    let exact = r#"{"why":["x",1.0],"username":"aaron","command":"LOCK_DENIED","secret":"\u0073"}"#;
    stage.flood(&mut denying, exact);
    other.expect_text(exact);
    stage.expect_nothing_more([&mut denying]);
    expect_login_fails(&stage.node, "aaron", "s");
}

/// Part I, Registration, LOCK_DENIED: "Sessions already logged in as `u` go on."
#[test]
fn sessions_of_a_removed_user_go_on() {
    let mut stage = Stage::new();
    let mut session = Peer::registered(stage.node.address(), "aaron", "s");
    let mut denying = stage.server("denying");
    stage.flood(&mut denying, &lines::lock_denied("aaron", "s"));
    expect_login_fails(&stage.node, "aaron", "s");
    session.send(lines::activity("aaron", "s", r#"{"n":1}"#));
    assert_eq!(session.expect_command("ACTIVITY_BROADCAST")["activity"]["authenticated_user"], "aaron");
}

/// Part I, Registration, LOCK_ALLOWED: "pass it on", unchanged, whether or not anybody waits for it; and not back.
#[test]
fn an_allowance_is_passed_on_unchanged_but_not_back() {
    let (mut stage, mut parent) = Stage::below_a_parent();
    let mut child = stage.server("child");
    for line in [
        r#"{"x":1e2,"server":"far","secret":"s","username":"u","command":"LOCK_ALLOWED"}"#,
        r#"{"secret":"s","username":"u","command":"LOCK_ALLOWED"}"#,
    ] {
        stage.flood(&mut parent, line);
        child.expect_text(line);
        stage.expect_nothing_more([&mut parent, &mut child]);
    }
}

/// Part I, The login window: a LOGIN with a pending pair "is held and answered when it is settled": at once when the
/// LOCK_ALLOWEDs cover all but one, "never let in early".
#[test]
fn a_login_is_held_until_all_known_servers_but_the_originator_have_allowed() {
    let mut stage = Stage::new();
    let (mut origin, mut b, mut c) = (stage.server("origin"), stage.server("b"), stage.server("c"));
    let begin = Instant::now();
    stage.flood(&mut origin, &lines::lock_request("aaron", "s"));
    let mut client = held_login(&stage.node, "aaron", "s");
    stage.flood(&mut b, &lines::lock_allowed("aaron", "s", "b"));
    client.expect_silence();
    stage.flood(&mut c, &lines::lock_allowed("aaron", "s", "c"));
    client.expect_command("LOGIN_SUCCESS");
    assert!(begin.elapsed() < LOGIN_WINDOW, "let in after {:?}", begin.elapsed());
    Peer::logged_in(stage.node.address(), "aaron", "s");
}

/// Part I, The login window, with the answers of servers of 2018, counted per link.
#[test]
fn nameless_allowances_settle_a_pending_pair_as_well() {
    let mut stage = Stage::new();
    let (mut origin, mut b, mut c) = (stage.server("origin"), stage.server("b"), stage.server("c"));
    stage.flood(&mut origin, &lines::lock_request("aaron", "s"));
    let mut client = held_login(&stage.node, "aaron", "s");
    let allowed = lines::nameless_lock_allowed("aaron", "s");
    for _ in 0..3 {
        stage.flood(&mut b, &allowed);
    }
    client.expect_silence();
    stage.flood(&mut c, &allowed);
    client.expect_command("LOGIN_SUCCESS");
}

/// Part I, The login window: a LOCK_DENIED settles the pair too; then the held LOGIN fails.
#[test]
fn a_held_login_fails_when_the_pair_is_denied() {
    let mut stage = Stage::new();
    let (mut origin, mut b) = (stage.server("origin"), stage.server("b"));
    let _third = stage.server("third");
    stage.flood(&mut origin, &lines::lock_request("aaron", "s"));
    let mut client = held_login(&stage.node, "aaron", "s");
    stage.flood(&mut b, &lines::lock_denied("aaron", "another"));
    client.expect_silence();
    stage.flood(&mut b, &lines::lock_denied("aaron", "s"));
    assert_eq!(client.expect_last("LOGIN_FAILED").info(), "attempt to login with wrong secret");
}

/// Part I, The login window: "or 2 s pass without a LOCK_DENIED": "at most 2 s later", "never refused for being quick".
#[test]
fn a_held_login_is_let_in_after_two_seconds_without_a_denial() {
    let mut stage = Stage::new();
    let (mut origin, _b, _c) = (stage.server("origin"), stage.server("b"), stage.server("c"));
    let begin = Instant::now();
    stage.flood(&mut origin, &lines::lock_request("aaron", "s"));
    let mut client = held_login(&stage.node, "aaron", "s");
    client.expect_command("LOGIN_SUCCESS");
    assert!(begin.elapsed() >= LOGIN_WINDOW, "let in after {:?}", begin.elapsed());
}

/// Part I, The login window: with one other server known there is nobody but the originator: settled at once.
#[test]
fn with_one_other_server_a_pair_is_settled_at_once() {
    let mut stage = Stage::new();
    let mut origin = stage.server("origin");
    let begin = Instant::now();
    stage.flood(&mut origin, &lines::lock_request("aaron", "s"));
    Peer::logged_in(stage.node.address(), "aaron", "s");
    assert!(begin.elapsed() < LOGIN_WINDOW, "let in after {:?}", begin.elapsed());
}

/// Part I, The login window: "every known server but one": a server that is lost meanwhile is not known any more.
#[test]
fn a_pending_pair_is_settled_when_the_servers_that_are_missing_are_lost() {
    let mut stage = Stage::new();
    let (mut origin, b, mut c) = (stage.server("origin"), stage.server("b"), stage.server("c"));
    let begin = Instant::now();
    stage.flood(&mut origin, &lines::lock_request("aaron", "s"));
    let mut client = held_login(&stage.node, "aaron", "s");
    stage.flood(&mut c, &lines::lock_allowed("aaron", "s", "c"));
    client.expect_silence();
    drop(b);
    client.expect_command("LOGIN_SUCCESS");
    assert!(begin.elapsed() < LOGIN_WINDOW, "let in after {:?}", begin.elapsed());
}

/// Part I, The login window: with no other server known nobody can be waited for, so that the time must pass.
#[test]
fn with_no_other_server_known_a_pair_is_settled_after_two_seconds() {
    let mut stage = Stage::new();
    let begin = Instant::now();
    let mut unannounced = Peer::link(stage.node.address());
    stage.flood(&mut unannounced, &lines::lock_request("aaron", "s"));
    let mut client = held_login(&stage.node, "aaron", "s");
    client.expect_command("LOGIN_SUCCESS");
    assert!(begin.elapsed() >= LOGIN_WINDOW, "let in after {:?}", begin.elapsed());
}

/// Part I, The login window: only the pending pair itself is held; a wrong secret is wrong already.
#[test]
fn a_wrong_secret_for_a_pending_name_fails_at_once() {
    let mut stage = Stage::new();
    let (mut origin, _b, _c) = (stage.server("origin"), stage.server("b"), stage.server("c"));
    stage.flood(&mut origin, &lines::lock_request("aaron", "s"));
    let held = held_login(&stage.node, "aaron", "s");
    expect_login_fails(&stage.node, "aaron", "wrong");
    drop(held);
}

/// Part I, The login window: requests of one connection are answered in order, so that a held LOGIN delays what comes
/// behind it.
#[test]
fn a_held_login_delays_what_comes_behind_it_on_its_connection_only() {
    let mut stage = Stage::new();
    let (mut origin, mut b) = (stage.server("origin"), stage.server("b"));
    let mut bystander = Peer::anonymous(stage.node.address());
    let _third = stage.server("third");
    stage.flood(&mut origin, &lines::lock_request("aaron", "s"));
    let mut client = held_login(&stage.node, "aaron", "s");
    client.send(lines::activity("aaron", "s", r#"{"n":"held"}"#));
    bystander.send(lines::anonymous_activity(r#"{"n":"free"}"#));
    assert_eq!(bystander.expect_command("ACTIVITY_BROADCAST")["activity"]["n"], "free");
    stage.flood(&mut b, &lines::lock_allowed("aaron", "s", "b"));
    stage.flood(&mut b, &lines::lock_allowed("aaron", "s", "third"));
    client.expect_command("LOGIN_SUCCESS");
    assert_eq!(client.expect_command("ACTIVITY_BROADCAST")["activity"]["n"], "held");
    assert_eq!(bystander.expect_command("ACTIVITY_BROADCAST")["activity"]["n"], "held");
}

/// Part I, Messages: a LOGIN with an unknown name or a wrong secret is LOGIN_FAILED and closed.
#[test]
fn a_login_with_a_wrong_secret_or_an_unknown_name_fails() {
    let node = Node::start();
    Peer::registered(node.address(), "aaron", "s");
    for (username, secret) in [("aaron", "wrong"), ("aaron", ""), ("Aaron", "s"), ("nobody", "s"), ("", "")] {
        expect_login_fails(&node, username, secret);
    }
}
