//! What packagers use: units, the compose file, sample configurations, completions, man pages, and the version.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use arborcast_tests::process::{client_binary, master_binary, node_binary};

fn packaging(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../node/packaging").join(file)
}

fn is_installed(program: &str) -> bool {
    let folders = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&folders).any(|folder| folder.join(program).is_file())
}

#[track_caller]
fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().expect("it can be run");
    assert!(status.success(), "{command:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

#[test]
fn systemd_has_nothing_to_say_about_the_units() {
    if !is_installed("systemd-analyze") {
        println!("skipped: systemd-analyze is not installed (apt-get install systemd)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (unit, binary) in [("arborcast-node.service", node_binary()), ("arborcast-master.service", master_binary())] {
        let text = fs::read_to_string(packaging(unit)).unwrap();
        let installed = format!("/usr/bin/{} ", unit.trim_end_matches(".service"));
        assert!(text.contains(&installed), "{unit}");
        let here = folder.path().join(unit);
        // It looks for the program, too.
        fs::write(&here, text.replace(&installed, &format!("{} ", binary.display()))).unwrap();
        let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&here).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let about_it: Vec<&str> = said.lines().filter(|line| line.contains("arborcast")).collect();
        assert!(about_it.is_empty() && output.status.success(), "{said}");
    }
}

#[test]
fn the_sample_configurations_can_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    fs::write(&secret, "x\n").unwrap();
    for (file, binary) in [("node.toml", node_binary()), ("master.toml", master_binary())] {
        let mut command = Command::new(binary);
        command.arg("--config").arg(packaging(file)).arg("--secret-file").arg(&secret).arg("--check-config");
        run(&mut command);
    }
}

/// By the command itself where it is there, and in any case every variable in it is one of a flag.
#[test]
fn the_compose_file_is_accepted_and_its_variables_are_flags() {
    let text = fs::read_to_string(packaging("compose.yaml")).unwrap();
    let variables: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| line.trim().split_once(": "))
        .filter(|(name, _)| name.starts_with("ARBORCAST_"))
        .map(|(name, value)| (name, value.trim_matches('"')))
        .collect();
    assert!(variables.len() >= 5, "{variables:?}");
    let printed: String = [node_binary(), master_binary()]
        .map(|binary| run(Command::new(binary).arg("--print-config").envs(variables.iter().copied())))
        .concat();
    for (name, _) in variables {
        assert!(printed.lines().any(|line| line.ends_with(&format!("# {name}"))), "{name} is no flag's: {printed}");
    }

    let composes = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("compose.yaml"), &text).unwrap();
    fs::write(folder.path().join("secret"), "x").unwrap();
    let mut command = if composes(Command::new("docker").args(["compose", "version"])) {
        let mut command = Command::new("docker");
        command.arg("compose");
        command
    } else if composes(Command::new("docker-compose").arg("version")) {
        Command::new("docker-compose")
    } else {
        assert_ne!(env::var_os("CI").unwrap_or_default(), "true", "CI must have docker-compose on its PATH");
        println!("skipped: neither docker compose nor docker-compose is installed");
        return;
    };
    let composed = run(command.args(["config", "--services"]).current_dir(folder.path()));
    let count = |prefix: &str| composed.lines().filter(|name| name.starts_with(prefix)).count();
    assert_eq!((count("master-"), count("node-")), (2, 7), "{composed}");
}

#[test]
fn the_programs_write_completions_and_man_pages() {
    let folder = tempfile::tempdir().unwrap();
    for (binary, pages) in [
        (node_binary(), &["arborcast-node.1"][..]),
        (master_binary(), &["arborcast-master.1"]),
        (client_binary(), &["arborcast.1", "arborcast-listen.1", "arborcast-send.1", "arborcast-register.1"]),
    ] {
        let script = run(Command::new(binary).args(["--generate-completions", "bash"]));
        let path = folder.path().join("completions");
        fs::write(&path, script).unwrap();
        if is_installed("bash") {
            run(Command::new("bash").arg("-n").arg(&path));
        }
        run(Command::new(binary).arg("--generate-man").arg(folder.path()));
        for page in pages {
            let text = fs::read_to_string(folder.path().join(page)).unwrap();
            assert!(text.contains(".SH SYNOPSIS") && text.contains("secret\\-file"), "{page}");
        }
    }
}

/// What the build script makes of a repository, of none, and of a commit that it is told.
#[test]
fn the_version_has_the_commit_where_there_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("build-script");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/cli/build.rs");
    let rustc = Path::new(env!("CARGO")).with_file_name("rustc");
    run(Command::new(rustc).env("CARGO_PKG_VERSION", "1.2.3").args(["--edition=2024", "-o"]).arg(&script).arg(source));
    let package = folder.path().join("proto/cli");
    fs::create_dir_all(&package).unwrap();
    let version = |profile: &str, commit: &str| {
        let mut command = Command::new(&script);
        command.current_dir(&package).env("PROFILE", profile).env("ARBORCAST_BUILD_COMMIT", commit);
        let said = run(command.env("GIT_CEILING_DIRECTORIES", folder.path().parent().unwrap()));
        said.lines().find_map(|line| line.strip_prefix("cargo::rustc-env=ARBORCAST_VERSION=")).unwrap().to_owned()
    };
    assert_eq!(version("release", ""), "1.2.3");
    assert_eq!(version("debug", "abc"), "1.2.3 (abc)");
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.current_dir(folder.path()).args(["-c", "user.name=x", "-c", "user.email=x@example.org"]);
        run(command.args(arguments))
    };
    git(&["init", "--quiet"]);
    git(&["commit", "--quiet", "--allow-empty", "--message=first"]);
    let commit = git(&["rev-parse", "--short=12", "HEAD"]);
    assert_eq!(version("release", ""), format!("1.2.3 ({})", commit.trim()));
    assert_eq!(version("debug", ""), "1.2.3");
    for (binary, name) in [(node_binary(), "arborcast-node"), (client_binary(), "arborcast")] {
        assert!(
            run(Command::new(binary).arg("--version")).starts_with(&format!("{name} {}", env!("CARGO_PKG_VERSION")))
        );
    }
}
