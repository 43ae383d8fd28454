//! etcd, real and on the loopback interface: one member or more, to be killed, frozen, emptied and started again.

use std::env;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::process::{Process, Signal};
use crate::wait::{self, PATIENCE};

/// How often other ports are tried, where others have taken those that were free a moment ago.
const ATTEMPTS: usize = 5;

/// A cluster of etcd. Killed, and its files removed, when dropped.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
    /// The folder of the certificates; plain without.
    certificates: Option<PathBuf>,
}

#[derive(Debug)]
struct Member {
    name: String,
    client_port: u16,
    peer_port: u16,
    directory: TempDir,
    /// Absent while it is dead.
    process: Option<Process>,
}

/// Whether etcd can be started here. Where it can't, that is said; where everything must be tested, it is a failure.
///
/// # Panics
/// Where the variable `CI` is `true`.
pub fn is_installed() -> bool {
    let folders = env::var_os("PATH").unwrap_or_default();
    let is_there = |program: &str| env::split_paths(&folders).any(|folder| folder.join(program).is_file());
    let is_installed = is_there("etcd") && is_there("etcdctl");
    if !is_installed {
        assert_ne!(env::var_os("CI").unwrap_or_default(), "true", "CI must have etcd and etcdctl on its PATH");
        println!("skipped: etcd is not installed (apt-get install etcd-server etcd-client)");
    }
    is_installed
}

impl Etcd {
    /// So many members, which answer when this returns.
    ///
    /// # Panics
    /// When they don't.
    #[track_caller]
    pub fn start(members: usize) -> Self {
        Self::start_with(members, None)
    }

    /// One member that is reached over TLS, with a certificate, and with those that `arborcast certs` has made there.
    ///
    /// # Panics
    /// When it does not answer.
    #[track_caller]
    pub fn start_over_tls(certificates: &Path) -> Self {
        Self::start_with(1, Some(certificates))
    }

    #[track_caller]
    fn start_with(members: usize, certificates: Option<&Path>) -> Self {
        for _ in 1..ATTEMPTS {
            let mut etcd = Self::begin(members, certificates);
            if etcd.answers() {
                return etcd;
            }
        }
        let mut etcd = Self::begin(members, certificates);
        assert!(etcd.answers(), "etcd does not start");
        etcd
    }

    fn begin(members: usize, certificates: Option<&Path>) -> Self {
        // All at once, so that they differ.
        let listeners: Vec<TcpListener> = (0..2 * members)
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("there are ports left"))
            .collect();
        let ports: Vec<u16> =
            listeners.iter().map(|listener| listener.local_addr().expect("it is bound").port()).collect();
        let members = ports.chunks(2).enumerate().map(|(index, ports)| Member {
            name: format!("m{index}"),
            client_port: ports[0],
            peer_port: ports[1],
            directory: tempfile::tempdir().expect("there is room"),
            process: None,
        });
        let mut etcd = Self { members: members.collect(), certificates: certificates.map(Path::to_owned) };
        drop(listeners);
        for member in 0..etcd.members.len() {
            etcd.start_member(member);
        }
        etcd
    }

    /// Whether it answers before long. It does not if a member has ended.
    fn answers(&mut self) -> bool {
        let mut has_ended = false;
        wait::until(PATIENCE, || {
            let ended = |member: &mut Member| member.process.as_mut().is_some_and(|it| it.exit_status().is_some());
            has_ended = self.members.iter_mut().any(ended);
            if has_ended || self.try_control(&["get", "nothing"]) { Ok(()) } else { Err("no answer".to_owned()) }
        });
        !has_ended
    }

    /// Waits until it answers.
    #[track_caller]
    pub fn wait_until_it_answers(&self) {
        wait::until(PATIENCE, || {
            if self.try_control(&["get", "nothing"]) { Ok(()) } else { Err("etcd does not answer".to_owned()) }
        });
    }

    /// Starts a member: for the first time, or again with what it has.
    pub fn start_member(&mut self, member: usize) {
        let peers = self.members.iter().map(|peer| format!("{}=http://127.0.0.1:{}", peer.name, peer.peer_port));
        let peers = peers.collect::<Vec<_>>().join(",");
        let member = &mut self.members[member];
        assert!(member.process.is_none(), "{} runs", member.name);
        let scheme = if self.certificates.is_some() { "https" } else { "http" };
        let client = format!("{scheme}://127.0.0.1:{}", member.client_port);
        let peer = format!("http://127.0.0.1:{}", member.peer_port);
        let mut command = Command::new("etcd");
        // Settings of this machine's own etcd are none of ours.
        for (name, _) in env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("ETCD")) {
                command.env_remove(name);
            }
        }
        command.args(["--name", &member.name, "--logger", "zap", "--log-level", "error"]);
        command.arg("--data-dir").arg(member.directory.path());
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &peers, "--initial-cluster-state", "new"]);
        if let Some(folder) = &self.certificates {
            command.arg("--cert-file").arg(folder.join("node.pem")).arg("--key-file").arg(folder.join("node.key"));
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(folder.join("ca.pem"));
        }
        member.process = Some(Process::start_command(command.stdin(Stdio::null())));
    }

    /// Where masters find it.
    pub fn url(&self) -> String {
        let members = self.members.iter().map(|member| format!("127.0.0.1:{}", member.client_port));
        format!("etcd://{}", members.collect::<Vec<_>>().join(","))
    }

    /// Kills a member without giving it a chance.
    pub fn kill(&mut self, member: usize) {
        self.members[member].process = None;
    }

    /// Stops a member's processor; its connections stay open.
    pub fn freeze(&mut self, member: usize) {
        self.members[member].process.as_mut().expect("it runs").signal(Signal::SIGSTOP);
    }

    /// Lets a frozen member go on.
    pub fn thaw(&mut self, member: usize) {
        self.members[member].process.as_mut().expect("it runs").signal(Signal::SIGCONT);
    }

    /// Kills all members, and starts them with nothing.
    #[track_caller]
    pub fn empty(&mut self) {
        for member in &mut self.members {
            member.process = None;
            member.directory = tempfile::tempdir().expect("there is room");
        }
        for member in 0..self.members.len() {
            self.start_member(member);
        }
        self.wait_until_it_answers();
    }

    /// Runs etcdctl.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn control(&self, arguments: &[&str]) -> String {
        let output = self.controller().args(arguments).output().expect("etcdctl can be run");
        assert!(output.status.success(), "etcdctl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Writes a value under a key.
    ///
    /// # Panics
    /// When it can't.
    #[track_caller]
    pub fn put(&self, key: &str, value: &[u8]) {
        // From standard input, since there it may be long.
        let mut command = self.controller();
        let mut child = command.args(["put", key]).stdin(Stdio::piped()).spawn().expect("etcdctl can be run");
        child.stdin.take().expect("it is piped").write_all(value).expect("etcdctl reads");
        assert!(child.wait().expect("our own child").success(), "etcdctl put {key}");
    }

    fn try_control(&self, arguments: &[&str]) -> bool {
        let output = self.controller().args(arguments).output().expect("etcdctl can be run");
        output.status.success()
    }

    fn controller(&self) -> Command {
        let endpoints: Vec<String> =
            self.members.iter().map(|member| format!("127.0.0.1:{}", member.client_port)).collect();
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &endpoints.join(","), "--command-timeout=2s"]);
        if let Some(folder) = &self.certificates {
            command.arg("--cacert").arg(folder.join("ca.pem"));
            command.arg("--cert").arg(folder.join("node.pem")).arg("--key").arg(folder.join("node.key"));
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Where a member keeps what it has.
    pub fn directory(&self, member: usize) -> &Path {
        self.members[member].directory.path()
    }
}
