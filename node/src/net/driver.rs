//! The only owner of the core: hands it what happens, and carries out what it says.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use arborcast_core::{Action, CloseReason, ConnectionId, Event, GiveUp, Node, ReceivedLine};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info};

use super::broadcast_log::{BroadcastLog, Draft};
use super::fan_out::{Command, FanOutHandle};
use super::pace::Pace;
use super::reader::Reader;
use super::sleep_until;
use super::transport::Connection;
use super::writer::{Ending, Writer};

/// Batches of lines that may wait for the driver, of all connections together; readers wait for room, in turn.
pub(super) const INBOX_BATCHES: usize = 256;

/// Batches that are handled before their outcome is sent out.
const BATCHES_AT_ONCE: usize = 64;

/// Bytes that are published at once.
const MAX_DRAFT_BYTES: u64 = 256 << 10;

/// What happens on the connections.
pub(super) enum Inbound {
    /// Somebody connected.
    Accepted { connection: Connection, slot: OwnedSemaphorePermit },
    /// We connected to our parent.
    Dialled { connection: Connection, slot: OwnedSemaphorePermit },
    /// Lines came.
    Lines { connection: ConnectionId, lines: Vec<ReceivedLine> },
    /// A connection ended by itself.
    Ended { connection: ConnectionId, reason: CloseReason },
}

/// What the tasks of the connections share.
pub(super) struct Shared {
    pub(super) inbox: mpsc::Sender<Inbound>,
    pub(super) log: Arc<BroadcastLog>,
    pub(super) pace: Arc<Pace>,
    pub(super) readers: TaskTracker,
    pub(super) stop: CancellationToken,
    pub(super) max_line: usize,
}

/// The task that owns the core.
pub(super) struct Driver {
    core: Node,
    shared: Shared,
    fan_outs: Vec<FanOut>,
    endings: HashMap<ConnectionId, Arc<Ending>>,
    next_id: u64,
    draft: Draft,
    actions: Vec<Action>,
    given_up: Option<GiveUp>,
}

/// A fan-out task, and what it has to be told after the events at hand.
struct FanOut {
    handle: FanOutHandle,
    commands: Vec<(ConnectionId, Command)>,
}

impl Driver {
    pub(super) fn new(core: Node, shared: Shared, fan_outs: Vec<FanOutHandle>) -> Self {
        let fan_outs = fan_outs.into_iter().map(|handle| FanOut { handle, commands: Vec::new() }).collect();
        Self {
            core,
            shared,
            fan_outs,
            endings: HashMap::new(),
            next_id: 0,
            draft: Draft::new(),
            actions: Vec::new(),
            given_up: None,
        }
    }

    /// Runs until told to stop, or until the core gives up.
    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Inbound>) -> Result<(), GiveUp> {
        let stop = self.shared.stop.clone();
        let mut batches = Vec::with_capacity(BATCHES_AT_ONCE);
        while self.given_up.is_none() {
            let deadline = self.core.next_deadline();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = sleep_until(deadline) => {}
                _ = inbox.recv_many(&mut batches, BATCHES_AT_ONCE) => {}
            }
            // A timer future may be late when much is going on; the clock is not.
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                self.handle(Event::DeadlinePassed);
            }
            for inbound in batches.drain(..) {
                self.on_inbound(inbound);
                if self.draft.unpublished_bytes() > MAX_DRAFT_BYTES {
                    self.send_out().await;
                }
            }
            self.send_out().await;
        }
        self.handle(Event::Stop);
        self.send_out().await;
        info!(closed = ?self.core.view().closings, "connections closed since the start");
        self.given_up.map_or(Ok(()), Err)
    }

    fn on_inbound(&mut self, inbound: Inbound) {
        match inbound {
            Inbound::Accepted { connection, slot } => {
                let connection = self.attach(connection, slot);
                self.handle(Event::Accepted { connection });
            }
            Inbound::Dialled { connection, slot } => {
                let connection = self.attach(connection, slot);
                self.handle(Event::Dialled { connection });
            }
            Inbound::Lines { connection, lines } => {
                for line in lines {
                    self.handle(Event::Received { connection, line });
                }
            }
            Inbound::Ended { connection, reason } => {
                self.handle(Event::Closed { connection, reason });
                self.finish(connection);
            }
        }
    }

    /// Starts reading from and writing to a new connection.
    fn attach(&mut self, connection: Connection, slot: OwnedSemaphorePermit) -> ConnectionId {
        let id = ConnectionId(self.next_id);
        self.next_id += 1;
        debug!(connection = %id, peer = %connection.peer, "connected");
        let ending = Arc::new(Ending::new());
        let writer = Writer::new(id, connection.write, Arc::clone(&ending), Instant::now());
        self.command(id, Command::Attach(Box::new(writer)));
        self.endings.insert(id, Arc::clone(&ending));
        let reader = Reader {
            connection: id,
            half: connection.read,
            max_line: self.shared.max_line,
            inbox: self.shared.inbox.clone(),
            gate: self.shared.pace.gate(),
            ending,
            stop: self.shared.stop.clone(),
            slot,
        };
        self.shared.readers.spawn(reader.run());
        id
    }

    fn handle(&mut self, event: Event) {
        let mut actions = std::mem::take(&mut self.actions);
        self.core.handle(Instant::now(), event, &mut actions);
        for action in actions.drain(..) {
            self.carry_out(action);
        }
        self.actions = actions;
    }

    fn carry_out(&mut self, action: Action) {
        let after = self.draft.end();
        match action {
            Action::Send { connection, line } => self.command(connection, Command::Push { after, line }),
            Action::Subscribe { connection, is_link } => {
                self.command(connection, Command::Subscribe { from: after, is_link });
            }
            Action::Publish { publication, from } => self.draft.write(from, |out| publication.write_to(out)),
            Action::Close { connection, .. } => self.finish(connection),
            Action::GiveUp(why) => self.given_up = Some(why),
        }
    }

    /// Ends a connection behind everything that was sent and published to it so far.
    fn finish(&mut self, connection: ConnectionId) {
        if let Some(ending) = self.endings.remove(&connection) {
            ending.begin();
            self.command(connection, Command::Finish { after: self.draft.end() });
        }
    }

    fn command(&mut self, connection: ConnectionId, command: Command) {
        let index = usize::try_from(connection.0).unwrap_or(0) % self.fan_outs.len().max(1);
        if let Some(fan_out) = self.fan_outs.get_mut(index) {
            fan_out.commands.push((connection, command));
        }
    }

    /// Hands over what has gathered: first what is for single connections, then what is for everybody.
    async fn send_out(&mut self) {
        for fan_out in &mut self.fan_outs {
            if !fan_out.commands.is_empty() {
                // A fan-out task ends after the driver.
                let _ = fan_out.handle.commands.send(std::mem::take(&mut fan_out.commands)).await;
            }
        }
        if self.draft.unpublished_bytes() > 0 {
            self.draft.publish(&self.shared.log);
            for fan_out in &self.fan_outs {
                fan_out.handle.wake();
            }
        }
    }
}
