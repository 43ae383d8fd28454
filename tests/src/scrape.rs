//! What a program of arborcast says over HTTP, asked as a browser or Prometheus would.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use arborcast_client::tls::{Protocol, Settings, Tls, Trust};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

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
    stream.write_all(request(address, path).as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    answer(&text)
}

/// Asks for a path over TLS, of a server whose certificate is of this authority and for `localhost`.
///
/// # Errors
/// When there is no whole answer, or the certificate is wrong.
pub fn get_over_tls(address: SocketAddr, authority: &Path, path: &str) -> io::Result<Answer> {
    let settings = Settings { identity: None, trust: Trust::Authority(authority.to_owned()), name: None };
    let tls = Tls::load(settings).map_err(io::Error::other)?;
    let ask = async {
        let stream = tokio::net::TcpStream::connect(address).await?;
        let mut stream = tls.connect("localhost", stream, Protocol::Http).await?;
        stream.write_all(request(address, path).as_bytes()).await?;
        stream.flush().await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        answer(&text)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { tokio::time::timeout(PATIENCE, ask).await })?
}

fn request(address: SocketAddr, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")
}

fn answer(text: &str) -> io::Result<Answer> {
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
