//! `arborcast send`.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use arborcast_client::{Activity, Error, Event, Publisher, Session, Subscriber};
use tokio::time::{Instant, interval_at};

use super::args::Args;
use super::failure::Failure;
use super::input::{Lines, what_instead};
use super::interrupt::Interrupt;
use super::output::say_event;

/// How often someone who waits is told how far it is; what takes less long is not worth a word.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

pub(crate) async fn run(args: &Args, activity: Option<&str>) -> Result<(), Failure> {
    let bad_activity = |error| Failure::BadActivity { reason: what_instead(&error) };
    let activity = activity.map(Activity::parse).transpose().map_err(bad_activity)?;
    let session = Session::login(args.servers()?, &args.identity()?, &args.options()).await?;
    let mut interrupt = Interrupt::new()?;
    let (publisher, mut subscriber) = session.split();
    let sent = tokio::select! {
        sent = send(&publisher, activity) => sent,
        never = show_progress(&publisher, &mut subscriber) => never,
        exit_code = interrupt.wait() => {
            Err(Failure::Interrupted { exit_code, taken: publisher.taken(), published: publisher.published() })
        }
    };
    drop(subscriber);
    // Everything is acknowledged or failed by now, whether or not the server says good-bye.
    let _ = publisher.logout().await;
    sent
}

/// Sends all there is, and waits until it is acknowledged.
async fn send(publisher: &Publisher, activity: Option<Activity>) -> Result<(), Failure> {
    let unfinished = |cause| Failure::Unfinished { cause, taken: publisher.taken(), published: publisher.published() };
    if let Some(activity) = activity {
        publisher.publish(&activity).await?;
        return publisher.flush().await.map_err(unfinished);
    }
    let mut lines = Lines::of_stdin();
    while let Some(line) = lines.next().await? {
        let reason = match line.activity {
            Err(reason) => reason,
            Ok(activity) => match publisher.publish(&activity).await {
                Ok(()) => continue,
                Err(Error::TooLong { limit, .. }) => format!("too long for a message of {limit} bytes"),
                Err(cause) => return Err(unfinished(cause)),
            },
        };
        publisher.flush().await.map_err(unfinished)?;
        return Err(Failure::BadLine { number: line.number, reason, taken: publisher.taken() });
    }
    publisher.flush().await.map_err(unfinished)
}

/// Says on standard error what happens to the session, counts there if a person may be looking, and never ends.
async fn show_progress(publisher: &Publisher, subscriber: &mut Subscriber) -> ! {
    let mut line = ProgressLine::default();
    let mut ticks = interval_at(Instant::now() + PROGRESS_INTERVAL, PROGRESS_INTERVAL);
    let mut has_ended = false;
    loop {
        tokio::select! {
            _ = ticks.tick() => line.show(publisher),
            event = subscriber.next_event(), if !has_ended => match event {
                Some(Ok(Event::Activities(_))) => {}
                Some(Ok(event)) => {
                    line.wipe();
                    say_event(&event);
                }
                // Whoever waits for the publisher hears why.
                Some(Err(_)) | None => has_ended = true,
            }
        }
    }
}

/// A line on the terminal that is written over again and again, and wiped out in the end.
#[derive(Debug, Default)]
struct ProgressLine {
    is_shown: bool,
}

impl ProgressLine {
    fn show(&mut self, publisher: &Publisher) {
        let mut stderr = io::stderr();
        self.is_shown = stderr.is_terminal();
        if self.is_shown {
            let _ = write!(stderr, "\r{} of {} acknowledged", publisher.taken(), publisher.published());
        }
    }

    fn wipe(&mut self) {
        if std::mem::take(&mut self.is_shown) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.wipe();
    }
}
