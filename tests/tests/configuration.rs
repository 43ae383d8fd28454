//! Where the values of flags may stand beside the command line, for the real programs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use arborcast_tests::node::{NodeBuilder, SECRET};
use arborcast_tests::peer::Peer;
use arborcast_tests::process::{client_binary, master_binary, node_binary};
use arborcast_tests::{lines, process::Process};
use tempfile::TempDir;

/// A folder with files of these names and texts.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn path(folder: &TempDir, name: &str) -> String {
    folder.path().join(name).display().to_string()
}

/// Runs a program that ends by itself.
fn run(binary: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(binary);
    command.args(arguments).envs(environment.iter().copied()).stdin(Stdio::null());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn a_node_runs_by_its_file_alone_and_its_secret_does_not_show() {
    let folder = folder(&[("secret", &format!("{SECRET}\n"))]);
    let config = format!("local-port = 0\nid = \"from-file\"\nsecret-file = {:?}\n", path(&folder, "secret"));
    fs::write(folder.path().join("node.toml"), config).unwrap();
    let process = Process::start(node_binary(), ["--config", &path(&folder, "node.toml")]);
    let node = NodeBuilder::default().listening(process);
    let command_line = fs::read_to_string(format!("/proc/{}/cmdline", node.process.id())).unwrap();
    assert!(command_line.contains("node.toml") && !command_line.contains(SECRET), "{command_line}");
    let mut link = Peer::connect(node.address());
    link.send(lines::authenticate(SECRET));
    assert_eq!(link.expect_command("SERVER_ANNOUNCE")["id"], "from-file");
}

/// For each program: flag, environment, file, default.
#[test]
fn each_place_comes_before_the_next() {
    for (binary, flag, variable, key, values) in [
        (node_binary(), "--local-port", "ARBORCAST_LOCAL_PORT", "local-port", ["1", "2", "3", "3780"]),
        (master_binary(), "--max-nodes", "ARBORCAST_MAX_NODES", "max-nodes", ["1", "2", "3", "10000"]),
        (client_binary(), "--remote-port", "ARBORCAST_REMOTE_PORT", "remote-port", ["1", "2", "3", "3780"]),
    ] {
        let folder = folder(&[("some.toml", &format!("{key} = {}\n", values[2])), ("none.toml", "")]);
        let (some, none) = (path(&folder, "some.toml"), path(&folder, "none.toml"));
        for (arguments, environment, value, place) in [
            (vec!["--config", &some, flag, values[0]], vec![(variable, values[1])], values[0], "command line"),
            (vec!["--config", &some], vec![(variable, values[1])], values[1], variable),
            (vec!["--config", &some], vec![], values[2], "some.toml:1"),
            (vec!["--config", &none], vec![], values[3], "default"),
            (vec![], vec![("ARBORCAST_CONFIG", some.as_str())], values[2], "some.toml:1"),
        ] {
            let printed = run(binary, &[&["--print-config"][..], &arguments].concat(), &environment);
            let printed = text(&printed.stdout);
            let expected = format!("{key} = {value}  # ");
            let line = printed.lines().find(|line| line.starts_with(&expected)).unwrap_or_else(|| panic!("{printed}"));
            assert!(line.ends_with(place), "{line}");
        }
    }
}

#[test]
fn a_check_says_by_its_exit_code_whether_a_configuration_can_be_used_and_touches_nothing() {
    let folder = folder(&[("secret", "x\n"), ("empty", "")]);
    let data = path(&folder, "data");
    let (secret, empty) = (path(&folder, "secret"), path(&folder, "empty"));
    for (binary, config, code, hint) in [
        (node_binary(), format!("secret-file = {secret:?}\nmaster = [\"a:1\"]\ndata-dir = {data:?}"), 0, ""),
        (node_binary(), "remote-hostname = \"there\"".to_owned(), 2, "--secret-file"),
        (node_binary(), "heartbeat-timeout = \"1s\"\nheartbeat-interval = \"1s\"".to_owned(), 2, "--heartbeat-timeout"),
        (node_binary(), format!("secret-file = {empty:?}"), 2, "is empty"),
        (node_binary(), "master = [\"nowhere\"]".to_owned(), 2, "node.toml:1: master: "),
        (
            node_binary(),
            "max-lime = 5000".to_owned(),
            2,
            "node.toml:1: max-lime: there is no such key; is `max-line` meant?",
        ),
        (node_binary(), "max-line = ".to_owned(), 2, "node.toml:1: max-line: "),
        (master_binary(), format!("secret-file = {secret:?}\nwarm-up = \"1s\""), 0, ""),
        (master_binary(), "warm-up = 1".to_owned(), 2, "node.toml:1: warm-up: expected a string, found an integer"),
        (master_binary(), "warm-up".to_owned(), 2, "node.toml:1: "),
        (
            master_binary(),
            "\nmax-node = 5".to_owned(),
            2,
            "node.toml:2: max-node: there is no such key; is `max-nodes` meant?",
        ),
        (master_binary(), String::new(), 2, "--secret-file"),
        (client_binary(), "[listen]\ncount".to_owned(), 2, "node.toml:2: "),
        (client_binary(), "[listen]\ncounts = 1".to_owned(), 2, "node.toml:2: counts: there is no such key"),
        (client_binary(), format!("username = \"a\"\nsecret-file = {secret:?}\n[listen]\ncount = 1"), 0, ""),
        (client_binary(), format!("secret-file = {secret:?}"), 2, "username"),
        (client_binary(), "[listen]\ncount = true".to_owned(), 2, "node.toml:2: count: expected an integer"),
    ] {
        fs::write(folder.path().join("node.toml"), &config).unwrap();
        let output = run(binary, &["--config", &path(&folder, "node.toml"), "--check-config"], &[]);
        let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{config}: {said}");
        assert!(said.contains(hint), "{config}: {said}");
        assert!(!PathBuf::from(&data).exists(), "{config}");
    }
}

/// The secret is nowhere in what is printed, wherever it was given.
#[test]
fn what_is_printed_has_no_secret_in_it() {
    let folder = folder(&[("some.toml", "secret = \"hush-hush\"\n"), ("none.toml", "")]);
    let (some, none) = (path(&folder, "some.toml"), path(&folder, "none.toml"));
    for binary in [node_binary(), master_binary(), client_binary()] {
        for (arguments, environment) in [
            (vec!["--config", &some], vec![]),
            (vec!["--config", &none], vec![("ARBORCAST_SECRET", "hush-hush")]),
            (vec!["--config", &none, "-s", "hush-hush"], vec![]),
        ] {
            let output = run(binary, &[&["--print-config"][..], &arguments].concat(), &environment);
            assert_eq!(output.status.code(), Some(0));
            assert!(text(&output.stdout).contains("# secret = \"***\""), "{}", text(&output.stdout));
            assert!(!text(&output.stdout).contains("hush"), "{}", text(&output.stdout));
        }
    }
}

/// A filter with a slip in it is said, and the log is what it is without one.
#[test]
fn a_filter_of_the_log_that_is_not_understood_is_said() {
    let node = NodeBuilder::default().log("arborcast=loud").start();
    node.process.wait_for_stderr("RUST_LOG is not understood");
    node.process.wait_for_stderr("serving");
}
