//! The core decides and does nothing else: it depends on no runtime, no socket, no clock and no thread randomness.
//! Clippy forbids the calls (`node/core/clippy.toml`); this looks at the dependencies and at the source itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const IMPURE_CRATES: [&str; 12] = [
    "async-io",
    "crossbeam-channel",
    "fastrand",
    "getrandom",
    "mio",
    "polling",
    "rand",
    "rayon",
    "smol",
    "socket2",
    "tokio",
    "tokio-util",
];

const IMPURE_WORDS: [&str; 8] =
    ["Instant::now", "SystemTime", "TcpStream", "TcpListener", "UdpSocket", "std::thread", "std::env", "std::fs"];

/// Every crate that is linked into `package`, however indirectly.
fn dependencies(package: &str) -> Vec<String> {
    let arguments = ["tree", "--offline", "--locked", "--edges", "normal", "--prefix", "none", "--package", package];
    let output = Command::new(env!("CARGO")).current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

fn impure_dependencies(package: &str) -> Vec<String> {
    dependencies(package).into_iter().filter(|name| IMPURE_CRATES.contains(&name.as_str())).collect()
}

/// Impure words in the source below `folder`, comments and the tests at the foot of a file left out.
fn impure_words(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for file in sources(folder) {
        let text = fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
            let words = IMPURE_WORDS.iter().filter(|word| line.contains(**word));
            found.extend(words.map(|word| format!("{}: {word}", file.display())));
        }
    }
    found
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

#[test]
fn the_core_links_no_runtime_no_socket_and_no_randomness() {
    assert!(dependencies("arborcast-core").contains(&"bytes".to_owned()), "the list is not empty by accident");
    assert_eq!(impure_dependencies("arborcast-core"), Vec::<String>::new());
}

#[test]
fn the_core_names_no_clock_no_thread_and_no_socket() {
    assert!(sources(&workspace().join("node/core/src")).len() > 10, "the folder is where we think it is");
    assert_eq!(impure_words(&workspace().join("node/core/src")), Vec::<String>::new());
}

/// The two tests above can fail: the shell is everything that the core must not be.
#[test]
fn the_shell_would_be_caught() {
    assert!(impure_dependencies("arborcast-node").contains(&"tokio".to_owned()));
    assert!(impure_words(&workspace().join("node/src")).iter().any(|found| found.ends_with("Instant::now")));
}
