//! Real binaries: the one place that builds, starts, watches and ends them.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::signal;
pub use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;

use crate::wait::{self, PATIENCE};

/// How much of each of its two outputs is kept for a process; the oldest lines go first.
const MAX_CAPTURED: usize = 1 << 20;

/// Path of `arborcast-node`, built if need be.
pub fn node_binary() -> &'static Path {
    binary("arborcast-node")
}

/// Path of `arborcast`, the client, built if need be.
pub fn client_binary() -> &'static Path {
    binary("arborcast")
}

/// Path of `arborcast-master`, built if need be.
pub fn master_binary() -> &'static Path {
    binary("arborcast-master")
}

fn binary(name: &str) -> &'static Path {
    static BUILT: OnceLock<Vec<PathBuf>> = OnceLock::new();
    let built = BUILT.get_or_init(build);
    built.iter().find(|path| path.file_stem() == Some(OsStr::new(name))).expect("cargo built all binaries")
}

/// Builds the binaries in the profile of this test, and returns where cargo put them.
fn build() -> Vec<PathBuf> {
    let mut cargo = Command::new(env!("CARGO"));
    // Of the same toolchain, also where nobody has chosen one: a package may ask for another one, which need not be there.
    cargo.env("RUSTC", Path::new(env!("CARGO")).with_file_name("rustc"));
    // What cargo tells a test of its own package. Build scripts that look at such variables would be run once more each
    // time a test follows a build, and all that depends on them would be built again.
    let of_this_package = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(of_this_package) {
            cargo.env_remove(name);
        }
    }
    cargo.args(["build", "--quiet", "--bins"]);
    cargo.args(["--package=arborcast-node", "--package=arborcast-master", "--package=arborcast-client"]);
    cargo.args(["--message-format=json-render-diagnostics", "--manifest-path"]);
    cargo.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let output = cargo.stderr(Stdio::inherit()).output().expect("cargo can be run");
    assert!(output.status.success(), "the binaries under test don't build");
    let reports = output.stdout.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
    reports.filter_map(|report: Value| report["executable"].as_str().map(PathBuf::from)).collect()
}

/// A running binary. Killed and reaped when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdout: Capture,
    stderr: Capture,
}

impl Process {
    /// Starts a binary. Its log level is `warn` unless RUST_LOG is set for the test.
    pub fn start(binary: &Path, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        let log = std::env::var_os("RUST_LOG").unwrap_or_else(|| "warn".into());
        Self::start_logging(binary, arguments, &log)
    }

    /// What the operating system calls it.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The same with this log level.
    pub fn start_logging(
        binary: &Path,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
        log: impl AsRef<OsStr>,
    ) -> Self {
        let mut command = Command::new(binary);
        command.args(arguments).stdin(Stdio::null()).env("RUST_LOG", log);
        Self::start_command(&mut command)
    }

    /// Starts a command as it was prepared, and reads what it prints.
    pub fn start_command(command: &mut Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary can be started");
        let stdout = Capture::of(child.stdout.take().expect("stdout is piped"));
        let stderr = Capture::of(child.stderr.take().expect("stderr is piped"));
        Self { child, stdout, stderr }
    }

    /// Its standard input, once, if it was prepared to be piped.
    pub fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().expect("stdin is piped, and nobody has taken it")
    }

    /// Sends a signal, if the process is still there.
    pub fn signal(&mut self, signal: Signal) {
        // Not reaped before it is seen to have ended here, so the id can't be another's.
        if self.exit_status().is_none() {
            let id = i32::try_from(self.child.id()).expect("process ids are positive");
            signal::kill(Pid::from_raw(id), signal).expect("our own child can be signalled");
        }
    }

    /// How the process ended, if it has.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our own child can be waited for")
    }

    /// Waits until the process has ended by itself and all it printed was read.
    #[track_caller]
    pub fn wait_exit(&mut self, patience: Duration) -> ExitStatus {
        wait::until(patience, || match self.exit_status() {
            Some(status) if self.stdout.has_ended() && self.stderr.has_ended() => Ok(status),
            _ => Err(format!("the process has not ended; its stderr:\n{}", self.stderr.text())),
        })
    }

    /// Waits for the first line on stdout of which `matching` makes something; `what` names it.
    #[track_caller]
    pub fn stdout_line_matching<T>(&self, what: &str, matching: impl Fn(&str) -> Option<T>) -> T {
        wait::until(PATIENCE, || {
            // Asked before the lines are looked at, so that no line can come between the two.
            let ended = self.stdout.has_ended();
            match self.stdout.lines().iter().find_map(|line| matching(line)) {
                Some(found) => Ok(found),
                None if ended => panic!("no {what} on stdout, which has ended; stderr:\n{}", self.stderr.text()),
                None => Err(format!("no {what} on stdout; stderr:\n{}", self.stderr.text())),
            }
        })
    }

    /// The lines printed to stdout until now.
    pub fn stdout(&self) -> Vec<String> {
        self.stdout.lines()
    }

    /// The lines printed to stderr until now.
    pub fn stderr(&self) -> Vec<String> {
        self.stderr.lines()
    }

    /// Waits until a line with this text has been printed to stderr.
    #[track_caller]
    pub fn wait_for_stderr(&self, text: &str) {
        wait::until(PATIENCE, || {
            let lines = self.stderr();
            let is_there = lines.iter().any(|line| line.contains(text));
            if is_there { Ok(()) } else { Err(format!("no {text:?} in:\n{}", lines.join("\n"))) }
        });
    }

    /// How many bytes of memory the process has in use.
    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the process runs");
        let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        kilobytes.and_then(|number| number.parse::<u64>().ok()).expect("Linux says how much memory a process has")
            * 1024
    }

    /// How many threads the process has.
    pub fn threads(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("the process runs").count()
    }

    /// How many files and sockets the process has open.
    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("the process runs").count()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only for one that has ended and was reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- stderr of process {}:\n{}", self.child.id(), self.stderr.text());
        }
    }
}

/// What a process prints, read by a thread of its own.
#[derive(Debug, Clone, Default)]
struct Capture(Arc<Mutex<Captured>>);

#[derive(Debug, Default)]
struct Captured {
    lines: VecDeque<String>,
    bytes: usize,
    has_ended: bool,
}

impl Capture {
    fn of(pipe: impl Read + Send + 'static) -> Self {
        let capture = Self::default();
        let writer = capture.clone();
        thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while pipe.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                writer.locked(|captured| captured.push(String::from_utf8_lossy(line.trim_ascii_end()).into_owned()));
                line.clear();
            }
            writer.locked(|captured| captured.has_ended = true);
        });
        capture
    }

    fn locked<T>(&self, look: impl FnOnce(&mut Captured) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn lines(&self) -> Vec<String> {
        self.locked(|captured| captured.lines.iter().cloned().collect())
    }

    fn text(&self) -> String {
        self.lines().join("\n")
    }

    fn has_ended(&self) -> bool {
        self.locked(|captured| captured.has_ended)
    }
}

impl Captured {
    fn push(&mut self, line: String) {
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.bytes > MAX_CAPTURED
            && let Some(oldest) = self.lines.pop_front()
        {
            self.bytes -= oldest.len();
        }
    }
}
