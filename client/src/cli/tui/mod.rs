//! `arborcast tui`: the stream of activities on a terminal, and a line to send some.
//!
//! Pure: `scrollback` (what has arrived), `model` (what is shown, and how it changes), `view` (how it looks). This file has
//! the loop between the session, the terminal and the clock.

mod model;
mod scrollback;
mod view;

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use arborcast_client::{Activity, Error, Publisher, Subscriber};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::args::Args;
use super::failure::Failure;
use super::interactive::join;
use super::output::say;
use super::terminal::{Input, Screen};
use model::{Effect, Model};

/// Between two pictures. What happens meanwhile is on the next one.
const FRAME: Duration = Duration::from_millis(33);

/// How many activities wait to be published, at most, while there is no connection or the window is full.
const MAX_WAITING: usize = 64;

/// How long what was sent may take to be acknowledged when one quits.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

pub(crate) async fn run(args: &Args) -> Result<(), Failure> {
    // Before the terminal is taken, so that whatever goes wrong is said where one looks afterwards.
    Screen::check()?;
    let session = join(args).await?;
    let (publisher, mut subscriber) = session.split();
    let username = args.user()?.map_or_else(|| "anonymous".to_owned(), |(username, _)| username);
    let model = Model::new(username, publisher.server().to_string(), SystemTime::now());
    let mut ui = Ui { screen: Screen::open()?, model, waiting: VecDeque::new() };
    let outcome = ui.run(&publisher, &mut subscriber).await;
    let waiting = ui.waiting.len() as u64;
    drop(ui);
    outcome?;
    leave(&publisher, subscriber, waiting).await
}

/// The program while it has the terminal.
struct Ui {
    screen: Screen,
    model: Model,
    /// Not published yet.
    waiting: VecDeque<Activity>,
}

impl Ui {
    /// Until one quits, or the session ends.
    async fn run(&mut self, publisher: &Publisher, subscriber: &mut Subscriber) -> Result<(), Failure> {
        let mut seconds = interval(Duration::from_secs(1));
        seconds.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut next_frame = Some(Instant::now());
        loop {
            tokio::select! {
                // What a person does comes first, and pictures before more activities.
                biased;
                input = self.screen.input() => {
                    if !self.handle_input(input)? {
                        return Ok(());
                    }
                }
                () = sleep_until(next_frame.unwrap_or_else(Instant::now)), if next_frame.is_some() => {
                    self.draw(publisher)?;
                    next_frame = None;
                    continue;
                }
                _ = seconds.tick() => self.model.tick(SystemTime::now()),
                published = publish_first(publisher, &self.waiting), if !self.waiting.is_empty() => {
                    self.published(published)?;
                }
                event = subscriber.next_event() => match event {
                    Some(event) => self.model.handle_event(event?, SystemTime::now()),
                    None => return Ok(()),
                }
            }
            next_frame = next_frame.or_else(|| Some(Instant::now() + FRAME));
        }
    }

    fn draw(&mut self, publisher: &Publisher) -> Result<(), Failure> {
        self.model.unacknowledged = publisher.published().saturating_sub(publisher.taken()) + self.waiting.len() as u64;
        let model = &mut self.model;
        self.screen.draw(|frame| {
            model.set_rows(view::stream_rows(frame.area()));
            let cursor = view::draw(model, frame.area(), frame.buffer_mut());
            frame.set_cursor_position(cursor);
        })
    }

    /// Says whether to go on.
    fn handle_input(&mut self, input: Input) -> Result<bool, Failure> {
        let effect = match input {
            Input::End => return Ok(false),
            Input::Resize => None,
            Input::Paste(text) => {
                self.model.handle_paste(&text);
                None
            }
            Input::Key(key) => self.model.handle_key(key),
        };
        match effect {
            None => {}
            Some(Effect::Quit) => return Ok(false),
            Some(Effect::Redraw) => self.screen.clear()?,
            Some(Effect::Copy(text)) => self.screen.copy(&text)?,
            Some(Effect::Send(activity)) if self.waiting.len() >= MAX_WAITING => {
                self.model.refuse(&activity, &format!("{MAX_WAITING} are waiting for a server already"));
            }
            Some(Effect::Send(activity)) => self.waiting.push_back(activity),
        }
        Ok(true)
    }

    fn published(&mut self, outcome: Result<(), Error>) -> Result<(), Failure> {
        let activity = self.waiting.pop_front();
        match (outcome, activity) {
            (Err(error @ Error::TooLong { .. }), Some(activity)) => self.model.refuse(&activity, &error.to_string()),
            (outcome, _) => outcome?,
        }
        Ok(())
    }
}

/// Nothing is published when it is dropped while waiting.
async fn publish_first(publisher: &Publisher, waiting: &VecDeque<Activity>) -> Result<(), Error> {
    match waiting.front() {
        Some(activity) => publisher.publish(activity).await,
        None => Ok(()),
    }
}

/// Waits a moment for what was sent, and says what is not safe.
async fn leave(publisher: &Publisher, subscriber: Subscriber, waiting: u64) -> Result<(), Failure> {
    // Without a subscriber what arrives is thrown away, and does not hold up the acknowledgements.
    drop(subscriber);
    if publisher.taken() < publisher.published() {
        say("waiting until what was sent is acknowledged");
        // Counted below.
        let _ = timeout(FLUSH_TIMEOUT, publisher.flush()).await;
    }
    let (taken, published) = (publisher.taken(), publisher.published() + waiting);
    // All that was asked for is done, whether or not the server says good-bye.
    let _ = publisher.logout().await;
    match taken < published {
        true => Err(Failure::Interrupted { exit_code: 1, taken, published }),
        false => Ok(()),
    }
}
