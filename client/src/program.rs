//! The program's end of a session: what it wants, and what it is told.

use std::collections::VecDeque;

use arborcast_proto::wire::Activity;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::event::Event;
use crate::window::Window;

/// What the program wants.
#[derive(Debug)]
pub(crate) enum Command {
    /// Send this.
    Publish(Activity),
    /// Leave, once everything before it is sent.
    Logout,
}

/// What the program may still want.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intent {
    /// Anything.
    Publish,
    /// Only to receive: its publisher is gone.
    Listen,
    /// To leave: the end of the stream is what it waits for.
    Leave,
}

/// Owned by the session's task. Goes on working while there is no connection.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
    /// Cancelled when the program wants to leave: without a connection there is nothing to wait for.
    leaving: CancellationToken,
    pub(crate) intent: Intent,
    pub(crate) window: Window,
    /// Since when the oldest activity in the window has been waited for, the time in which nothing was read not counted.
    pub(crate) due_since: Instant,
    /// Not handed to the program yet. Nothing is read meanwhile.
    outbox: VecDeque<Event>,
    outbox_since: Instant,
}

impl Program {
    pub(crate) fn new(
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<Event>,
        leaving: CancellationToken,
        window: Window,
    ) -> Self {
        let now = Instant::now();
        Self {
            commands,
            events,
            leaving,
            intent: Intent::Publish,
            window,
            due_since: now,
            outbox: VecDeque::new(),
            outbox_since: now,
        }
    }

    pub(crate) fn handle_command(&mut self, command: Option<Command>) {
        match command {
            Some(Command::Publish(activity)) => {
                if self.window.is_empty() {
                    self.due_since = Instant::now();
                }
                self.window.push(activity);
            }
            Some(Command::Logout) => self.intent = Intent::Leave,
            None => self.intent = Intent::Listen,
        }
    }

    pub(crate) fn may_publish(&self) -> bool {
        self.intent == Intent::Publish && self.window.has_room()
    }

    pub(crate) fn tell(&mut self, event: Event) {
        if self.outbox.is_empty() {
            self.outbox_since = Instant::now();
        }
        self.outbox.push_back(event);
    }

    /// The same for an activity. Those that come together are told together.
    pub(crate) fn tell_activity(&mut self, activity: Activity) {
        match self.outbox.back_mut() {
            Some(Event::Activities(batch)) => batch.push(activity),
            _ => self.tell(Event::Activities(vec![activity])),
        }
    }

    pub(crate) fn is_told_all(&self) -> bool {
        self.outbox.is_empty()
    }

    /// Whether anybody is there to be told.
    pub(crate) fn is_subscribed(&self) -> bool {
        !self.events.is_closed()
    }

    /// The sender of events, for a wait that must not hold the program.
    pub(crate) fn events(&self) -> mpsc::Sender<Event> {
        self.events.clone()
    }

    /// Hands one event over, if somebody has room for it; without a subscriber all are thrown away.
    pub(crate) fn hand_over(&mut self, room: Option<mpsc::Permit<'_, Event>>) {
        let now = Instant::now();
        // While the program kept us from reading, no acknowledgement could be seen.
        self.due_since += now.duration_since(self.outbox_since);
        self.outbox_since = now;
        match room {
            Some(room) => {
                if let Some(event) = self.outbox.pop_front() {
                    room.send(event);
                }
            }
            None => self.outbox.clear(),
        }
    }

    /// Serves the program until this is done, or the program wants to leave.
    pub(crate) async fn serve_during<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        let (events, leaving) = (self.events(), self.leaving.clone());
        loop {
            tokio::select! {
                biased;
                () = leaving.cancelled() => return None,
                command = self.commands.recv(), if self.may_publish() => self.handle_command(command),
                room = events.reserve(), if !self.is_told_all() => self.hand_over(room.ok()),
                done = &mut work => return Some(done),
            }
        }
    }

    /// Hands over what is left, and lets nothing more come in.
    pub(crate) async fn end(mut self) {
        self.commands.close();
        for event in self.outbox {
            // Where nobody takes it any more, nobody misses it.
            if self.events.send(event).await.is_err() {
                return;
            }
        }
    }
}
