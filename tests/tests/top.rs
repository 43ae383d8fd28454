//! `arborcast top` on a terminal and in a pipe: README, The tree on a full screen.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::thread;

use arborcast_tests::forest::Forest;
use arborcast_tests::master::Master;
use arborcast_tests::node::{Node, NodeBuilder};
use arborcast_tests::process::{Process, Signal, client_binary};
use arborcast_tests::scrape::{http_address, wait_for};
use arborcast_tests::terminal::Terminal;
use arborcast_tests::wait::PATIENCE;
use serde_json::Value;

const CONTROL_C: &str = "\x03";
const PAGE_UP: &str = "\x1b[5~";

/// Watches these masters, and sees so many nodes.
#[track_caller]
fn top(masters: &[SocketAddr], nodes: usize) -> Terminal {
    let masters = masters.iter().flat_map(|master| ["--master".to_owned(), master.to_string()]);
    let terminal = Terminal::start(client_binary(), std::iter::once("top".to_owned()).chain(masters));
    terminal.wait_for_row("● watching");
    wait_for_header(&terminal, &format!(" {nodes} nodes  1 tree "));
    assert!(terminal.is_taken());
    terminal
}

#[track_caller]
fn wait_for_header(terminal: &Terminal, text: &str) {
    terminal.wait_for(text, |rows| rows[0].contains(text).then_some(()));
}

/// A tree whose clients are gone, since they would be at nodes that are killed.
#[track_caller]
fn grow(masters: usize, servers: usize) -> Forest {
    let mut forest = Forest::grow(masters, servers);
    forest.dismiss_clients();
    forest
}

#[track_caller]
fn quit(mut terminal: Terminal) {
    terminal.press("q");
    assert_eq!(terminal.wait_until_given_back().exit_code(), 0);
}

fn run(arguments: &[&str]) -> Process {
    Process::start(client_binary(), [&["top"], arguments].concat())
}

fn with_http() -> NodeBuilder {
    NodeBuilder::default().extended().flag("--http", "127.0.0.1:0")
}

fn start(builder: &NodeBuilder) -> (Node, SocketAddr) {
    let node = builder.start();
    let http = http_address(&node.process);
    (node, http)
}

/// Who died, what moved where, and how long it took.
#[test]
fn the_death_of_an_inner_node_is_told_with_all_that_follows() {
    let mut forest = grow(1, 7);
    let terminal = top(forest.master_addresses(), 7);
    let shape = forest.shape();
    let dead = shape.inner()[0];
    let children = shape.children_of(dead);
    let (name, root) = (forest.id(dead).to_owned(), forest.id(shape.root()).to_owned());
    terminal.wait_for_row(&format!("─ {name} "));
    forest.kill(dead);
    terminal.wait_for_row(&format!("✗ {name} is lost; it was below {root}, with"));
    for child in children {
        let row = terminal.wait_for_row(&format!("✓ {} re-attached from {name} to tree-", forest.id(child)));
        assert!(row.ends_with(" ms") || row.ends_with(" s"), "{row}");
    }
    terminal.wait_for_row(&format!(" after {name} was lost: "));
    wait_for_header(&terminal, " 6 nodes  1 tree ");
    let lost = terminal.wait_for_row(" LOST ");
    assert!(lost.contains(&format!("─ {name} ")), "it stays where it was: {lost}");
    quit(terminal);
}

#[test]
fn a_node_that_drains_is_told_and_is_not_lost() {
    let mut forest = grow(1, 4);
    let terminal = top(forest.master_addresses(), 4);
    let inner = forest.shape().inner()[0];
    let name = forest.id(inner).to_owned();
    forest.terminate(inner);
    terminal.wait_for_row(&format!("{name} has drained and left"));
    terminal.wait_for_row(" left ");
    assert!(!terminal.rows().iter().any(|row| row.contains("is lost")), "{:?}", terminal.rows());
    assert!(forest.wait_exit(inner).success());
    quit(terminal);
}

/// Whoever looks only now finds out all the same.
#[test]
fn what_happened_before_it_began_is_told_by_the_master() {
    let mut forest = grow(1, 7);
    let inner = forest.shape().inner()[0];
    let (name, child) = (forest.id(inner).to_owned(), forest.shape().children_of(inner)[0]);
    forest.kill(inner);
    forest.shape();
    let terminal = top(forest.master_addresses(), 6);
    terminal.wait_for_row(&format!("{name} lost"));
    terminal.wait_for_row(&format!("{} re-attached from {name} to ", forest.id(child)));
    terminal.wait_for_row("watching master");
    quit(terminal);
}

#[test]
fn keys_mark_find_fold_explain_and_pause() {
    let mut forest = grow(1, 5);
    let mut terminal = top(forest.master_addresses(), 5);
    terminal.press("/TREE-3\r\r");
    terminal.wait_for_row("╭ tree-3 ─");
    terminal.wait_for_row("known for");
    terminal.press("\r?");
    terminal.wait_for_row("╭ keys ─");
    terminal.press("?");
    terminal.wait_for("the tree again", |rows| (!rows.iter().any(|row| row.contains("keys ─"))).then_some(()));
    let root = forest.id(forest.shape().root()).to_owned();
    terminal.press(&format!("/{root}\r\x1b[D"));
    terminal.wait_for_row(&format!("{root} +4 "));
    terminal.press("\x1b[C p");
    terminal.press(PAGE_UP);
    terminal.press("p");
    terminal.wait_for_row("─ paused ");
    let leaf = forest.shape().leaves()[0];
    forest.kill(leaf);
    terminal.wait_for_row(" below ─");
    wait_for_header(&terminal, " 5 nodes ");
    terminal.press("p");
    wait_for_header(&terminal, " 4 nodes ");
    terminal.wait_for_row(&format!("✗ {} is lost", forest.id(leaf)));
    quit(terminal);
}

#[test]
fn the_screen_fits_every_size() {
    let forest = grow(1, 3);
    let mut terminal = top(forest.master_addresses(), 3);
    let root = forest.id(forest.shape().root()).to_owned();
    for (columns, rows) in [(120, 40), (40, 10), (10, 3), (1, 1), (80, 24)] {
        terminal.resize(columns, rows);
        if rows > 2 {
            let tree = if rows > 3 { 2 } else { 1 };
            terminal.wait_for(&format!("tree at {columns}x{rows}"), |seen| {
                let is_drawn = seen.len() == usize::from(rows) && seen[tree].starts_with(&root);
                (is_drawn && seen[usize::from(rows) - 1].starts_with("↑↓ mark")).then_some(())
            });
        }
    }
    terminal.press(CONTROL_C);
    assert_eq!(terminal.wait_until_given_back().exit_code(), 0);
}

#[test]
fn signals_give_the_terminal_back() {
    let forest = grow(1, 2);
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut terminal = top(forest.master_addresses(), 2);
        terminal.signal(signal);
        assert_eq!(terminal.wait_until_given_back().exit_code(), 0, "{signal}");
    }
}

#[test]
fn a_master_that_is_gone_and_comes_back_is_told_and_nobody_is_taken_for_lost() {
    let mut forest = grow(1, 3);
    let master = forest.master_addresses()[0];
    let terminal = top(&[master], 3);
    forest.kill_masters();
    terminal.wait_for_row("○ gone, ");
    terminal.wait_for_row(&format!("✗ master {master} is gone: "));
    wait_for_header(&terminal, " 3 nodes ");
    forest.restart_masters();
    terminal.wait_for_row(&format!("master {master} has started anew"));
    terminal.wait_for_row("● watching");
    wait_for_header(&terminal, " 3 nodes  1 tree ");
    let leaf = forest.shape().leaves()[0];
    forest.kill(leaf);
    terminal.wait_for_row(&format!("✗ {} is lost", forest.id(leaf)));
    let lost = terminal.rows().iter().filter(|row| row.contains("is lost")).count();
    assert_eq!(lost, 1, "{:?}", terminal.rows());
    quit(terminal);
}

#[test]
fn the_next_master_is_watched_when_one_is_gone() {
    let mut forest = grow(2, 3);
    let masters = forest.master_addresses().to_vec();
    let terminal = top(&masters, 3);
    wait_for_header(&terminal, &format!("master {} ● watching", masters[0]));
    forest.kill_master(0);
    wait_for_header(&terminal, &format!("master {} ● watching", masters[1]));
    terminal.wait_for_row(&format!("watching master {}: 3 nodes in 1 tree", masters[1]));
    quit(terminal);
}

#[test]
fn a_frozen_master_is_as_good_as_gone() {
    let (mut frozen, other) = (Master::start(), Master::start());
    let node = NodeBuilder::default().flag("--master", frozen.address()).flag("--master", other.address());
    let _nodes = ["a", "b"].map(|id| node.clone().id(id).start());
    let terminal = top(&[frozen.address(), other.address()], 2);
    frozen.process.signal(Signal::SIGSTOP);
    terminal.wait_for_row(&format!("✗ master {} is gone: it does not answer in time", frozen.address()));
    wait_for_header(&terminal, &format!("master {} ● watching", other.address()));
    quit(terminal);
}

/// One that was never there is asked again and again as well.
#[test]
fn it_begins_when_a_master_begins() {
    let mut forest = grow(1, 2);
    let master = forest.master_addresses()[0].to_string();
    forest.kill_masters();
    let terminal = Terminal::start(client_binary(), ["top", "--master", &master]);
    terminal.wait_for_row("; trying again");
    forest.restart_masters();
    terminal.wait_for_row("● watching");
    wait_for_header(&terminal, " 2 nodes  1 tree ");
    quit(terminal);
}

#[test]
fn without_masters_one_node_says_what_it_knows() {
    let (root, root_http) = start(&with_http().id("a-root"));
    let (inner, http) = start(&with_http().id("b-inner").parent(root.address()));
    wait_for(http, "arborcast_node_depth", 1.0);
    let (leaf, _) = start(&with_http().id("c-leaf").parent(inner.address()));
    wait_for(http, r#"arborcast_node_child_info{child="c-leaf"}"#, 1.0);
    wait_for(root_http, r#"arborcast_node_child_info{child="b-inner"}"#, 1.0);
    let terminal = Terminal::start(client_binary(), ["top", "--node", &format!("http://{http}")]);
    wait_for_header(&terminal, &format!("node {http} ● watching"));
    for row in ["a-root ", "└─ b-inner ", "   └─ c-leaf "] {
        terminal.wait_for(row, |rows| rows.iter().any(|seen| seen.starts_with(row)).then_some(()));
    }
    terminal.wait_for_row("0 clients, 2 servers, 0 others");
    drop(leaf);
    terminal.wait_for_row("c-leaf is no longer below b-inner");
    drop(root);
    terminal.wait_for_row("b-inner is the root now");
    drop(inner);
    terminal.wait_for_row(&format!("✗ node {http} is gone: "));
    quit(terminal);
}

/// Whoever answers there may say anything.
#[test]
fn hostile_names_are_shown_as_text() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let body = "arborcast_node_info{id=\"\x1b]0;owned\x07\x1b[2J\u{9b}31m\u{202e}\x7f\",address=\"\x1b[?1049l\"} 1\n\
                arborcast_node_parent_info{parent=\"up\\n\\\"\x1bc\"} 1\narborcast_node_depth 99999999999999999999\n\
                arborcast_node_activities_published_total NaN\n{{{\narborcast_node_info{\n";
    let body = format!("{body}arborcast_node_child_info{{child=\"{}\"}} 1\n", "x".repeat(100_000));
    // Ends with the test's process.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ =
                write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
        }
    });
    let terminal = Terminal::start(client_binary(), ["top", "--node", &address.to_string()]);
    terminal.wait_for_row("␛]0;owned␇␛[2J");
    terminal.wait_for_row("up␊\"␛c");
    terminal.wait_for_row("xxxxxxxx…");
    assert!(terminal.is_taken());
    let asked = terminal.asked();
    assert!(asked.titles.is_empty() && asked.bells == 0, "{asked:?}");
    for raw in ["]0;owned\x07".as_bytes(), "\u{202e}".as_bytes(), "\u{9b}".as_bytes(), b"\x7f"] {
        assert!(!terminal.has_written(raw), "{raw:?}");
    }
    quit(terminal);
}

#[test]
fn a_pipe_gets_the_tree_once() {
    let forest = grow(1, 3);
    let master = forest.master_addresses()[0].to_string();
    let mut process = run(&["--once", "--master", &master]);
    assert_eq!(process.wait_exit(PATIENCE).code(), Some(0));
    let lines = process.stdout();
    assert!(
        lines[0].starts_with(&format!("master {master} at ")) && lines[0].contains(": 3 nodes, 1 tree, "),
        "{lines:?}"
    );
    assert!(lines[1].starts_with("node ") && lines[1].ends_with(" address"), "{lines:?}");
    let root = forest.id(forest.shape().root());
    assert!(lines[2].starts_with(&format!("{root} ")) && lines[2].contains(" live "), "{lines:?}");
    assert!(lines[3].starts_with("├─ ") && lines[4].starts_with("└─ "), "{lines:?}");

    let mut process = run(&["--json", "--master", &master]);
    assert_eq!(process.wait_exit(PATIENCE).code(), Some(0));
    let whole: Value = serde_json::from_str(&process.stdout()[0]).unwrap();
    assert_eq!((&whole["trees"], &whole["nodes"][0]["id"]), (&1.into(), &"tree-0".into()));
    assert_eq!(whole["nodes"][1]["state"], "live");
}

#[test]
fn a_node_is_printed_too() {
    let (_node, http) = start(&with_http().id("alone"));
    let mut process = run(&["--once", "--node", &http.to_string()]);
    assert_eq!(process.wait_exit(PATIENCE).code(), Some(0));
    let lines = process.stdout();
    assert!(lines[0].contains(": 1 node, 1 tree, ") && lines[2].starts_with("alone "), "{lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("connections: 0 clients, ")), "{lines:?}");
}

#[test]
fn what_can_t_be_shown_is_said_in_a_sentence() {
    // Nobody listens at a port that was free a moment ago, or that one is taken by nobody who speaks gRPC.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for (arguments, code, words) in [
        (vec!["--once", "--master", &free], 1, "no master answers ("),
        (vec!["--json", "--node", &free], 1, "no node at "),
        (vec!["--once"], 2, "--master HOST:PORT"),
        (vec!["--once", "--node", "https://h:1"], 2, "is not a"),
        (vec!["--master", &free], 2, "--once"),
    ] {
        let mut command = Command::new(client_binary());
        command.arg("top").args(&arguments).stdin(Stdio::null()).env_remove("ARBORCAST_MASTERS");
        let mut process = Process::start_command(&mut command);
        assert_eq!(process.wait_exit(PATIENCE).code(), Some(code), "{arguments:?}");
        let said = process.stderr();
        assert!(said.len() == 1 && said[0].contains(words), "{arguments:?}: {said:?}");
        assert!(process.stdout().is_empty(), "{arguments:?}");
    }
}
