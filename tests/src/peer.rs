//! A client or a server played by the test, line by line.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::Index;
use std::time::{Duration, Instant};

use serde_json::Value;
use serde_json::value::RawValue;
use socket2::{Domain, Socket, Type};

use crate::lines;
use crate::node::SECRET;
use crate::wait::{self, PATIENCE};

/// How long nothing must come where the protocol says that nothing may. A server that says something anyway does so at
/// once; a slow one goes unnoticed this time, a right one never fails for it.
const SILENCE: Duration = Duration::from_millis(50);

/// A received line: its text, and the JSON object that it must be.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    text: String,
    fields: BTreeMap<String, Value>,
}

impl Line {
    #[track_caller]
    fn parse(text: Vec<u8>) -> Self {
        let text = String::from_utf8(text).expect("servers send UTF-8");
        let Ok(fields) = serde_json::from_str::<BTreeMap<String, Box<RawValue>>>(&text) else {
            panic!("a line that is not a JSON object: {text}");
        };
        // Numbers beyond all bounds are JSON, but no `Value`; who sends such things has to look at the text.
        let value = |raw: &RawValue| serde_json::from_str(raw.get()).unwrap_or_default();
        let fields = fields.iter().map(|(name, raw)| (name.clone(), value(raw))).collect();
        Self { text, fields }
    }

    /// The line as it came, without its `\n`.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The field `command`; empty if it is no string.
    pub fn command(&self) -> &str {
        self["command"].as_str().unwrap_or_default()
    }

    /// The field `info`.
    #[track_caller]
    pub fn info(&self) -> &str {
        self["info"].as_str().unwrap_or_else(|| panic!("no info in {}", self.text))
    }
}

impl Index<&str> for Line {
    type Output = Value;

    fn index(&self, field: &str) -> &Value {
        self.fields.get(field).unwrap_or(&Value::Null)
    }
}

/// What a peer meets next on its stream.
#[derive(Debug)]
pub enum Arrival {
    /// A whole line.
    Line(Line),
    /// The clean end of the stream.
    End,
    /// The end of the stream within a line, which is not a message then.
    HalfLine(String),
    /// The connection broke, which loses what was on its way.
    Broken(io::Error),
    /// Nothing, for as long as was asked.
    Nothing,
}

/// One end of a connection to a server.
#[derive(Debug)]
pub struct Peer {
    stream: TcpStream,
    /// Received, but not yet taken as lines.
    buffer: Vec<u8>,
    /// How much of `buffer` is known to hold no `\n`.
    scanned: usize,
    skips_announcements: bool,
}

impl Peer {
    /// Connects and says nothing.
    #[track_caller]
    pub fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).expect("the server accepts connections"))
    }

    /// Connects with so small a receive buffer that a server soon notices when nobody reads.
    #[track_caller]
    pub fn connect_narrow(address: SocketAddr) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("there are sockets left");
        socket.set_recv_buffer_size(4096).expect("a socket has this option");
        socket.connect(&address.into()).expect("the server accepts connections");
        Self::over(socket.into())
    }

    /// Speaks over a connection that stands.
    #[track_caller]
    pub fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("a TCP socket has this option");
        stream.set_write_timeout(Some(PATIENCE)).expect("a TCP socket has this option");
        Self { stream, buffer: Vec::new(), scanned: 0, skips_announcements: false }
    }

    /// Becomes a server link: gives the usual secret and takes the announcement that greets a new link. Announcements
    /// that come later are skipped unless asked for.
    #[track_caller]
    pub fn link(address: SocketAddr) -> Self {
        let mut peer = Self::connect(address);
        peer.send(lines::authenticate(SECRET));
        peer.expect_command("SERVER_ANNOUNCE");
        peer.skips_announcements = true;
        peer
    }

    /// Becomes a client session without a name.
    #[track_caller]
    pub fn anonymous(address: SocketAddr) -> Self {
        let mut peer = Self::connect(address);
        peer.send(lines::login_anonymously());
        peer.expect_command("LOGIN_SUCCESS");
        peer
    }

    /// Becomes a client session under a name that is registered.
    #[track_caller]
    pub fn logged_in(address: SocketAddr, username: &str, secret: &str) -> Self {
        let mut peer = Self::connect(address);
        peer.send(lines::login(username, secret));
        peer.expect_command("LOGIN_SUCCESS");
        peer
    }

    /// Registers a name and becomes a client session under it.
    #[track_caller]
    pub fn registered(address: SocketAddr, username: &str, secret: &str) -> Self {
        let mut peer = Self::connect(address);
        peer.send(lines::register(username, secret));
        peer.expect_command("REGISTER_SUCCESS");
        peer.send(lines::login(username, secret));
        peer.expect_command("LOGIN_SUCCESS");
        peer
    }

    /// Sends one line and its `\n`.
    #[track_caller]
    pub fn send(&mut self, line: impl AsRef<str>) {
        self.send_bytes(format!("{}\n", line.as_ref()).as_bytes());
    }

    /// Sends bytes as they are.
    #[track_caller]
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.try_send_bytes(bytes).expect("the server takes what is sent");
    }

    /// Sends bytes to a server that may have gone.
    ///
    /// # Errors
    /// When it has.
    pub fn try_send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Ends the stream in the peer's own direction; it can still read.
    pub fn end_sending(&self) {
        // Fails only when the connection is gone, which whoever reads next will see.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// A second handle, to write from another thread.
    #[track_caller]
    pub fn try_clone_stream(&self) -> TcpStream {
        self.stream.try_clone().expect("a socket can be duplicated")
    }

    /// What comes next on the stream within `patience`.
    #[track_caller]
    pub fn arrival(&mut self, patience: Duration) -> Arrival {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(line) = self.buffered_line() {
                if self.skips_announcements && line.command() == "SERVER_ANNOUNCE" {
                    continue;
                }
                return Arrival::Line(line);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Arrival::Nothing;
            }
            self.stream.set_read_timeout(Some(left)).expect("the time left is not zero");
            let mut chunk = [0; 16 << 10];
            match self.stream.read(&mut chunk) {
                Ok(0) if self.buffer.is_empty() => return Arrival::End,
                Ok(0) => return Arrival::HalfLine(String::from_utf8_lossy(&self.buffer).into_owned()),
                Ok(length) => self.buffer.extend_from_slice(&chunk[..length]),
                Err(error) if is_timeout(&error) || error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Arrival::Broken(error),
            }
        }
    }

    #[track_caller]
    fn buffered_line(&mut self) -> Option<Line> {
        let Some(found) = self.buffer[self.scanned..].iter().position(|byte| *byte == b'\n') else {
            self.scanned = self.buffer.len();
            return None;
        };
        let rest = self.buffer.split_off(self.scanned + found + 1);
        let mut line = std::mem::replace(&mut self.buffer, rest);
        line.pop();
        self.scanned = 0;
        Some(Line::parse(line))
    }

    /// The next line, whatever it is.
    #[track_caller]
    pub fn next_line(&mut self) -> Line {
        match self.arrival(PATIENCE) {
            Arrival::Line(line) => line,
            other => panic!("expected a line, met {other:?}"),
        }
    }

    /// The next line, which must have this command.
    #[track_caller]
    pub fn expect_command(&mut self, command: &str) -> Line {
        match self.arrival(PATIENCE) {
            Arrival::Line(line) if line.command() == command => line,
            other => panic!("expected {command}, met {other:?}"),
        }
    }

    /// The next line, which must have exactly this text.
    #[track_caller]
    pub fn expect_text(&mut self, text: &str) {
        match self.arrival(PATIENCE) {
            Arrival::Line(line) => assert_eq!(line.text(), text),
            other => panic!("expected {text}, met {other:?}"),
        }
    }

    /// The next line, which must say the same as this one, in whatever order of fields.
    #[track_caller]
    pub fn expect_message(&mut self, text: &str) {
        let expected = Line::parse(text.into());
        match self.arrival(PATIENCE) {
            Arrival::Line(line) if line.fields == expected.fields => {}
            other => panic!("expected {text}, met {other:?}"),
        }
    }

    /// The next line, which must be a LOGIN with these credentials, whatever else it asks for.
    #[track_caller]
    pub fn expect_login(&mut self, username: &str, secret: &str) {
        let login = self.expect_command("LOGIN");
        assert_eq!((&login["username"], &login["secret"]), (&username.into(), &secret.into()));
    }

    /// Reads until a line of which `wanted` makes something, and passes over the lines before it; `what` names it.
    #[track_caller]
    pub fn expect<T>(&mut self, what: &str, mut wanted: impl FnMut(&Line) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let (mut passed, mut last) = (0, String::new());
        loop {
            match self.arrival(deadline.saturating_duration_since(Instant::now())) {
                Arrival::Line(line) => {
                    if let Some(found) = wanted(&line) {
                        return found;
                    }
                    passed += 1;
                    last = line.text;
                }
                other => panic!("expected {what}, met {other:?} after {passed} other lines, the last of them {last:?}"),
            }
        }
    }

    /// The next announcement, even where announcements are skipped.
    #[track_caller]
    pub fn expect_announcement(&mut self) -> Line {
        let skipped = std::mem::replace(&mut self.skips_announcements, false);
        let announcement =
            self.expect("SERVER_ANNOUNCE", |line| (line.command() == "SERVER_ANNOUNCE").then(|| line.clone()));
        self.skips_announcements = skipped;
        announcement
    }

    /// The clean end of the stream, with nothing before it.
    #[track_caller]
    pub fn expect_end(&mut self) {
        match self.arrival(PATIENCE) {
            Arrival::End => {}
            other => panic!("expected the end of the stream, met {other:?}"),
        }
    }

    /// This command, then the clean end of the stream: a whole refusal.
    #[track_caller]
    pub fn expect_last(&mut self, command: &str) -> Line {
        let line = self.expect_command(command);
        self.expect_end();
        line
    }

    /// The end of the connection in whatever form, and whatever came before it.
    #[track_caller]
    pub fn expect_gone(&mut self) -> Vec<Line> {
        let deadline = Instant::now() + PATIENCE;
        let mut before = Vec::new();
        loop {
            match self.arrival(deadline.saturating_duration_since(Instant::now())) {
                Arrival::Line(line) => before.push(line),
                Arrival::End | Arrival::HalfLine(_) | Arrival::Broken(_) => return before,
                Arrival::Nothing => panic!("the connection is still open after {before:?}"),
            }
        }
    }

    /// Nothing, for a moment: only where the protocol says that nothing may come. Can't fail for a right server, and
    /// finds nearly every wrong one.
    #[track_caller]
    pub fn expect_silence(&mut self) {
        match self.arrival(SILENCE) {
            Arrival::Nothing => {}
            other => panic!("expected silence, met {other:?}"),
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// A server played by the test, for a node to dial.
#[derive(Debug)]
pub struct FakeParent {
    listener: TcpListener,
}

impl FakeParent {
    /// Listens on a free port.
    #[track_caller]
    pub fn listen() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("there are free ports");
        listener.set_nonblocking(true).expect("a listener has this option");
        Self { listener }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("a listener has an address")
    }

    /// Waits for the next connection.
    #[track_caller]
    pub fn accept(&self) -> Peer {
        let stream = wait::until(PATIENCE, || match self.listener.accept() {
            Ok((stream, _)) => Ok(stream),
            Err(error) => Err(format!("nobody has dialled ({error})")),
        });
        stream.set_nonblocking(false).expect("a socket has this option");
        Peer::over(stream)
    }

    /// Waits for a node to dial and to give the usual secret, and takes it in as a server link; announcements are
    /// skipped from now on unless asked for.
    #[track_caller]
    pub fn accept_link(&self) -> Peer {
        let mut peer = self.accept();
        peer.expect_message(&lines::authenticate(SECRET));
        peer.skips_announcements = true;
        peer
    }
}
