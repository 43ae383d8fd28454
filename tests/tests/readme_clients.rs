//! The clients that the README shows in other languages: taken from there, and run as it says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::env;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use arborcast_tests::lines;
use arborcast_tests::node::Node;
use arborcast_tests::peer::{FakeParent, Peer};
use arborcast_tests::process::Process;
use arborcast_tests::wait::{self, PATIENCE};
use serde_json::Value;
use tempfile::TempDir;

const README: &str = include_str!("../../README.md");

/// Where a program is. A CI without it is broken; elsewhere the test says what it needs and does not run.
fn program(name: &str, package: &str) -> Option<PathBuf> {
    let folders = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.is_file());
    if found.is_none() {
        assert_ne!(env::var_os("CI").unwrap_or_default(), "true", "CI must have {name} on its PATH");
        println!("skipped: {name} is not installed (apt-get install {package})");
    }
    found
}

/// The code in the README whose first line begins with the name of this file, in a folder of its own.
#[track_caller]
fn code(file: &str) -> (TempDir, PathBuf) {
    let blocks = README.split("\n```").map(|block| block.split_once('\n').unwrap_or_default().1);
    let is_it = |block: &&str| block.trim_start_matches(['#', '/', ' ']).starts_with(&format!("{file}, for: "));
    let blocks: Vec<&str> = blocks.filter(is_it).collect();
    assert_eq!(blocks.len(), 1, "the README has {} clients named {file}", blocks.len());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(file);
    fs::write(&path, format!("{}\n", blocks[0])).unwrap();
    (folder, path)
}

/// Waits for an activity on its standard output.
#[track_caller]
fn expect_printed(client: &Process, activity: &str) {
    let expected: Value = serde_json::from_str(activity).unwrap();
    client.stdout_line_matching(activity, |line| (serde_json::from_str::<Value>(line).ok()? == expected).then_some(()));
}

/// Logs in at a server that sends it to another one, as a user that is registered there; publishes, and prints what all publish.
#[track_caller]
fn logs_in_follows_a_redirection_publishes_and_prints(binary: &Path, script: &[&Path]) {
    let (crowded, node) = (FakeParent::listen(), Node::start());
    drop(Peer::registered(node.address(), "aaron", "s3"));
    let mut observer = Peer::anonymous(node.address());
    let mut command = Command::new(binary);
    command.args(script).arg("127.0.0.1").arg(crowded.address().port().to_string()).args(["aaron", "s3"]);
    let mut client = Process::start_command(command.stdin(Stdio::piped()));

    let mut session = crowded.accept();
    session.expect_login("aaron", "s3");
    let port = node.address().port();
    session.send(r#"{"command":"LOGIN_SUCCESS","info":"logged in as user aaron"}"#);
    session.send(format!(r#"{{"command":"REDIRECT","hostname":"127.0.0.1","port":{port}}}"#));
    session.end_sending();

    // It is in when it prints what others say; they say it until it does.
    let typed = r#"{"verb":"post","text":"é <&> \\ \" $HOME `x` %s","n":[1,{"m":null}]}"#;
    let hello = r#"{"verb":"greets","authenticated_user":"anonymous"}"#;
    wait::until(PATIENCE, || {
        observer.send(lines::anonymous_activity(r#"{"verb":"greets"}"#));
        observer.expect_message(&lines::broadcast(hello));
        let is_there = !client.stdout().is_empty();
        if is_there { Ok(()) } else { Err(format!("nothing is printed; stderr: {:?}", client.stderr())) }
    });
    expect_printed(&client, hello);
    let mut stdin = client.stdin();
    writeln!(stdin, "{typed}").unwrap();
    let seen =
        observer.expect("its activity", |line| (line["activity"]["verb"] == "post").then(|| line["activity"].clone()));
    let mut expected: Value = serde_json::from_str(typed).unwrap();
    expected["authenticated_user"] = "aaron".into();
    assert_eq!(seen, expected);
    expect_printed(&client, &expected.to_string());
    // The end of what is typed is no reason to stop listening.
    drop(stdin);
    observer.send(lines::anonymous_activity(r#"{"verb":"leaves"}"#));
    expect_printed(&client, r#"{"verb":"leaves","authenticated_user":"anonymous"}"#);
}

#[test]
fn the_python_client_works() {
    let Some(python) = program("python3", "python3") else { return };
    let (_folder, path) = code("client.py");
    logs_in_follows_a_redirection_publishes_and_prints(&python, &[&path]);
}

#[test]
fn the_node_js_client_works() {
    let Some(node) = program("node", "nodejs") else { return };
    let (_folder, path) = code("client.js");
    logs_in_follows_a_redirection_publishes_and_prints(&node, &[&path]);
}

#[test]
fn the_go_client_works() {
    let Some(go) = program("go", "golang-go") else { return };
    let (folder, path) = code("client.go");
    let binary = folder.path().join("client");
    let mut build = Command::new(go);
    build.args(["build", "-o"]).arg(&binary).arg(&path).current_dir(folder.path());
    // Whoever runs the tests may have no home, and need not get a new folder in it.
    build.env("GOCACHE", folder.path().join("cache")).env("GOFLAGS", "-mod=mod");
    let output = build.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    logs_in_follows_a_redirection_publishes_and_prints(&binary, &[]);
}

#[test]
fn the_shell_client_works() {
    let (Some(bash), Some(_)) = (program("bash", "bash"), program("jq", "jq")) else { return };
    let (_folder, path) = code("client.sh");
    logs_in_follows_a_redirection_publishes_and_prints(&bash, &[&path]);
}
