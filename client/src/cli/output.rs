//! Activities on standard output, one per line, and words for people on standard error.

use std::fmt::Display;
use std::io::{self, Write as _};

use arborcast_client::Subscriber;
use tokio::io::AsyncWriteExt as _;

use super::failure::Failure;

/// Prints what arrives until the session ends, the limit is reached, or nobody reads it any more. What arrived together
/// is written and flushed together.
pub(crate) async fn print(mut subscriber: Subscriber, limit: Option<usize>) -> Result<(), Failure> {
    let mut stdout = tokio::io::stdout();
    let mut left = limit.unwrap_or(usize::MAX);
    while left > 0
        && let Some(batch) = subscriber.next_batch().await
    {
        let mut lines = Vec::new();
        for activity in batch?.iter().take(left) {
            lines.extend_from_slice(activity.as_bytes());
            lines.push(b'\n');
            left -= 1;
        }
        let written = async { stdout.write_all(&lines).await.and(stdout.flush().await) };
        match written.await {
            Err(cause) if cause.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written.map_err(Failure::Output)?,
        }
    }
    Ok(())
}

/// Says something on standard error. If nobody listens there, there is nobody left to tell.
pub(crate) fn say(text: impl Display) {
    let _ = writeln!(io::stderr(), "arborcast: {text}");
}
