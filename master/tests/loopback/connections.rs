use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{Master, soon};

/// Connects and says this much, and nothing more.
async fn mute(master: &Master, says: &[u8]) -> TcpStream {
    let mut connection = TcpStream::connect(("127.0.0.1", master.port)).await.unwrap();
    connection.write_all(says).await.unwrap();
    connection
}

/// Waits until the master has closed the connection, politely or not.
async fn closed(mut connection: TcpStream) {
    let mut bytes = Vec::new();
    // A reset is an end as well.
    let _ = soon(connection.read_to_end(&mut bytes)).await;
}

#[tokio::test]
async fn a_connection_that_does_not_begin_is_given_up() {
    let master = Master::start_with(|settings| settings.bounds.handshake_timeout = Duration::from_millis(50)).await;
    closed(mute(&master, b"").await).await;
    closed(mute(&master, b"PRI * HTTP/2.0").await).await;
}

#[tokio::test]
async fn nonsense_is_closed_and_harms_nobody() {
    let master = Master::start().await;
    closed(mute(&master, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await).await;
    closed(mute(&master, &[0xff; 4096]).await).await;
    master.topology().await;
}

#[tokio::test]
async fn the_next_connection_waits_until_another_is_closed() {
    let master = Master::start_with(|settings| settings.bounds.connections = 1).await;
    let first = mute(&master, b"").await;
    let waiting = tokio::spawn(async move { master.topology().await });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    drop(first);
    soon(waiting).await.unwrap();
}
