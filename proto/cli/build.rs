//! Gives the program's version the commit it was built from, where there is one and where it is worth it.
//!
//! Only in release builds: in others every commit would compile everything anew that depends on this. ARBORCAST_BUILD_COMMIT
//! says it where the repository is not at hand, as in a container.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=ARBORCAST_BUILD_COMMIT");
    let given = std::env::var("ARBORCAST_BUILD_COMMIT").ok().filter(|commit| !commit.is_empty());
    let is_release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = given.or_else(|| if is_release { commit() } else { None });
    let version = env!("CARGO_PKG_VERSION");
    let version = commit.map_or_else(|| version.to_owned(), |commit| format!("{version} ({commit})"));
    println!("cargo::rustc-env=ARBORCAST_VERSION={version}");
}

/// The commit that is checked out; none without git, and none where the repository is somebody else's around this one.
fn commit() -> Option<String> {
    if git(&["rev-parse", "--show-prefix"])? != "proto/cli/" {
        return None;
    }
    // Written with every commit and every checkout. Where it is not kept, HEAD is better than nothing; a file that is not
    // there would make cargo run this at each build.
    let watched = ["logs/HEAD", "HEAD"].into_iter().filter_map(|name| git(&["rev-parse", "--git-path", name]));
    if let Some(path) = watched.into_iter().find(|path| Path::new(path).exists()) {
        println!("cargo::rerun-if-changed={path}");
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
