//! What a program of arborcast says over HTTP, asked as a browser or Prometheus would.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use crate::process::Process;
use crate::wait::{self, PATIENCE};

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The head, the status line included.
    pub head: String,
    /// What follows.
    pub body: String,
}

/// Where a process that was started with `--http` answers.
#[track_caller]
pub fn http_address(process: &Process) -> SocketAddr {
    process.stdout_line_matching("`http on`", |line| line.strip_prefix("http on ")?.parse().ok())
}

/// Asks for a path.
///
/// # Errors
/// When there is no whole answer.
pub fn get(address: SocketAddr, path: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| io::Error::other(format!("no head in {text:?}")))?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("no status in {head:?}")))?;
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

/// All metrics.
#[track_caller]
pub fn metrics(address: SocketAddr) -> String {
    let answer = get(address, "/metrics").expect("the metrics can be had");
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.body
}

/// The value of a metric, named with its labels as it stands in the text.
pub fn value(metrics: &str, name: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// Waits until a metric has this value.
#[track_caller]
pub fn wait_for(address: SocketAddr, name: &str, expected: f64) {
    wait::until(PATIENCE, || {
        let metrics = metrics(address);
        let found = value(&metrics, name);
        if found == Some(expected) { Ok(()) } else { Err(format!("{name} is {found:?} and not {expected}")) }
    });
}
