//! A scripted server, and the command under test. Every wait has a deadline.

#![allow(dead_code, unreachable_pub, reason = "each test file uses some of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use arborcast_client::{Activity, Address, Credentials, Identity};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Long enough for any machine; a test that gets there has failed.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// How long nothing must happen before it counts as nothing. On a slow machine a test may miss a fault by it, never
/// see one that is not there.
pub const QUIET: Duration = Duration::from_millis(200);

/// Waits, but not for ever.
pub async fn within<T>(what: impl Future<Output = T>) -> T {
    timeout(DEADLINE, what).await.expect("nothing happened before the deadline")
}

/// A server that does what the test says.
pub struct FakeServer {
    listener: TcpListener,
}

impl FakeServer {
    pub async fn start() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    pub fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    pub fn address(&self) -> Address {
        Address::new("127.0.0.1", self.port()).unwrap()
    }

    /// The REDIRECT to this server.
    pub fn redirect(&self) -> Value {
        json!({ "command": "REDIRECT", "hostname": "127.0.0.1", "port": self.port() })
    }

    pub async fn accept(&self) -> Peer {
        let (stream, _) = within(self.listener.accept()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Peer { stream: BufReader::new(stream) }
    }

    /// Accepts a connection that logs in as `username`.
    pub async fn accept_login(&self, username: &str) -> Peer {
        let mut peer = self.accept().await;
        let login = peer.receive().await;
        assert_eq!((&login["command"], &login["username"]), (&json!("LOGIN"), &json!(username)));
        peer.send(&json!({ "command": "LOGIN_SUCCESS", "info": "logged in" })).await;
        peer
    }

    /// Accepts a connection that asks for an extended session, and gets one. Returns what it asked with as well.
    pub async fn accept_extended(&self, have: Value) -> (Peer, Value) {
        self.accept_extended_knowing(have, &[]).await
    }

    /// The same, at a server that knows of others.
    pub async fn accept_extended_knowing(&self, have: Value, others: &[&Self]) -> (Peer, Value) {
        let mut peer = self.accept().await;
        let mut login = peer.receive().await;
        assert_eq!(login["command"], "LOGIN");
        let target = |other: &&Self| json!({ "id": "other", "hostname": "127.0.0.1", "port": other.port() });
        let servers: Vec<_> = others.iter().map(target).collect();
        let success = json!({ "command": "LOGIN_SUCCESS", "info": "logged in", "have": have, "proof": "c0de", "servers": servers });
        peer.send(&success).await;
        (peer, login["resume"].take())
    }
}

/// The client's connection, as the server sees it.
pub struct Peer {
    stream: BufReader<TcpStream>,
}

impl Peer {
    pub async fn receive(&mut self) -> Value {
        let mut line = String::new();
        within(self.stream.read_line(&mut line)).await.unwrap();
        assert!(line.ends_with('\n'), "the stream ended with {line:?}");
        serde_json::from_str(&line).unwrap()
    }

    pub async fn expect(&mut self, message: Value) {
        assert_eq!(self.receive().await, message);
    }

    /// Expects a LOGIN like this one, whatever it asks for beside it.
    pub async fn expect_login(&mut self, login: Value) {
        let mut message = self.receive().await;
        message.as_object_mut().unwrap().remove("resume");
        assert_eq!(message, login);
    }

    /// Expects an ACTIVITY_MESSAGE with a number, and returns that and what is `n` in the activity.
    pub async fn receive_numbered(&mut self) -> (u64, u64) {
        let message = self.receive().await;
        assert_eq!(message["command"], "ACTIVITY_MESSAGE");
        (message["number"].as_u64().unwrap(), message["activity"]["n"].as_u64().unwrap())
    }

    /// Acknowledges what was published in an extended session.
    pub async fn acknowledge(&mut self, number: u64) {
        self.send(&json!({ "command": "ACTIVITY_ACK", "number": number })).await;
    }

    /// Sends an activity of an extended tree.
    pub async fn broadcast_named(&mut self, origin: &str, seq: u64, n: u64) {
        let activity = json!({ "n": n, "authenticated_user": "bert" });
        let line = json!({ "command": "ACTIVITY_BROADCAST", "origin": origin, "seq": seq, "activity": activity });
        self.send(&line).await;
    }

    /// Expects an ACTIVITY_MESSAGE, and returns its activity.
    pub async fn receive_activity(&mut self) -> Value {
        let mut message = self.receive().await;
        assert_eq!(message["command"], "ACTIVITY_MESSAGE");
        message["activity"].take()
    }

    /// Expects the stream to end here.
    pub async fn expect_end(&mut self) {
        let mut rest = String::new();
        // A reset is an end as well.
        let _ = within(self.stream.read_to_string(&mut rest)).await;
        assert_eq!(rest, "");
    }

    /// Asserts that the client sends nothing.
    pub async fn expect_nothing(&mut self) {
        let mut line = String::new();
        assert!(timeout(QUIET, self.stream.read_line(&mut line)).await.is_err(), "{line:?}");
    }

    pub async fn send(&mut self, message: &Value) {
        self.send_raw(format!("{message}\n").as_bytes()).await;
    }

    pub async fn send_raw(&mut self, bytes: &[u8]) {
        within(self.stream.write_all(bytes)).await.unwrap();
    }

    /// Sends `activity` as a broadcast by `username`.
    pub async fn broadcast(&mut self, mut activity: Value, username: &str) {
        activity["authenticated_user"] = username.into();
        self.send(&json!({ "command": "ACTIVITY_BROADCAST", "activity": activity })).await;
    }

    /// Expects LOGOUT, and closes.
    pub async fn expect_logout(mut self) {
        self.expect(json!({ "command": "LOGOUT" })).await;
    }

    pub fn into_inner(self) -> TcpStream {
        self.stream.into_inner()
    }
}

pub fn aaron() -> Credentials {
    Credentials { username: "aaron".into(), secret: "s3cret".into() }
}

pub fn aarons_identity() -> Identity {
    Identity::User(aaron())
}

pub fn activity(value: &Value) -> Activity {
    Activity::parse(&value.to_string()).unwrap()
}

pub fn value(activity: &Activity) -> Value {
    serde_json::from_slice(activity.as_bytes()).unwrap()
}

/// The `arborcast` command, talking to a fake server and, through pipes, to the test.
pub struct Arborcast {
    child: Child,
    stdout: Option<BufReader<tokio::process::ChildStdout>>,
    stderr: BufReader<tokio::process::ChildStderr>,
}

/// How a command ended, and what it said that was not read before.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Arborcast {
    pub fn start(args: &[&str], port: u16) -> Self {
        Self::start_with(args, port, |command| command)
    }

    pub fn start_with(args: &[&str], port: u16, setup: impl FnOnce(&mut Command) -> &mut Command) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_arborcast"));
        command.args(args).args(["-rh", "127.0.0.1", "-rp", &port.to_string()]).kill_on_drop(true);
        command.env_remove("RUST_LOG").env_remove("ARBORCAST_SECRET").env_remove("ARBORCAST_MASTERS");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = setup(&mut command).spawn().unwrap();
        let stdout = child.stdout.take().map(BufReader::new);
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self { child, stdout, stderr }
    }

    pub async fn type_in(&mut self, text: &str) {
        within(self.child.stdin.as_mut().unwrap().write_all(text.as_bytes())).await.unwrap();
    }

    pub fn end_input(&mut self) {
        self.child.stdin.take();
    }

    pub fn close_stdout(&mut self) {
        self.stdout.take();
    }

    pub async fn stdout_line(&mut self) -> String {
        let mut line = String::new();
        within(self.stdout.as_mut().unwrap().read_line(&mut line)).await.unwrap();
        line
    }

    pub async fn stderr_line(&mut self) -> String {
        let mut line = String::new();
        within(self.stderr.read_line(&mut line)).await.unwrap();
        line
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().unwrap().try_into().unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub async fn end(mut self) -> Ended {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        if let Some(mut pipe) = self.stdout.take() {
            within(pipe.read_to_string(&mut stdout)).await.unwrap();
        }
        within(self.stderr.read_to_string(&mut stderr)).await.unwrap();
        Ended { status: within(self.child.wait()).await.unwrap(), stdout, stderr }
    }
}

impl Ended {
    pub fn expect_code(&self, code: i32) {
        assert_eq!(self.status.code(), Some(code), "{self:?}");
    }
}
