//! Activities on standard output, one per line, and words for people on standard error.

use std::fmt::Display;
use std::io::{self, Write as _};

use arborcast_client::{Event, Subscriber};
use tokio::io::AsyncWriteExt as _;

use super::failure::Failure;

/// Prints what arrives until the session ends, the limit is reached, or nobody reads it any more. What arrived together
/// is written and flushed together.
pub(crate) async fn print(mut subscriber: Subscriber, limit: Option<usize>) -> Result<(), Failure> {
    let mut stdout = tokio::io::stdout();
    let mut left = limit.unwrap_or(usize::MAX);
    while left > 0
        && let Some(event) = subscriber.next_event().await
    {
        let batch = match event? {
            Event::Activities(batch) => batch,
            other => {
                say_event(&other);
                continue;
            }
        };
        let mut lines = Vec::new();
        for activity in batch.iter().take(left) {
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

/// Says on standard error what has happened to the session, in one line. Activities are nothing to be said.
pub(crate) fn say_event(event: &Event) {
    if let Some(words) = event_in_words(event) {
        say(words);
    }
}

/// What has happened to the session, in one line. Activities are nothing to be said.
pub(crate) fn event_in_words(event: &Event) -> Option<String> {
    match event {
        Event::Activities(_) => None,
        Event::Lost { error, .. } => Some(format!("{error}; looking for another server")),
        Event::Reconnected { server, after, is_resumed } => {
            let missing = if *is_resumed { "" } else { "; what others published meanwhile may be missing" };
            Some(format!("back at {server} after {:.1} s{missing}", after.as_secs_f64()))
        }
        Event::Gap { origin, missing } => {
            let origin = origin.replace(char::is_control, "\u{fffd}");
            Some(format!("a gap: at least {missing} activities that entered the tree at {origin} are lost"))
        }
    }
}

/// Says something on standard error. If nobody listens there, there is nobody left to tell.
pub(crate) fn say(text: impl Display) {
    let _ = writeln!(io::stderr(), "arborcast: {text}");
}
