//! A few tasks that do all the writing. Each serves many connections, so that publishing costs a handful of wake-ups,
//! however many subscribers there are.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use arborcast_core::relay::{Piece, Position};
use arborcast_core::{CloseReason, ConnectionId};
use bytes::Bytes;
use tokio::sync::{Notify, mpsc};
use tracing::debug;

use super::broadcast_log::{BroadcastLogs, PerForm};
use super::pace::{Pace, Tally};
use super::sleep_until;
use super::traffic::Traffic;
use super::writer::{Progress, Subscription, Writer};
use crate::settings::FLUSH_TIMEOUT;

/// Batches of commands that may wait for one task; the driver waits for room.
const COMMAND_BATCHES: usize = 16;

/// Bytes that are written before other tasks, and who was just spoken to, have their turn. Writing that much takes a
/// fraction of a millisecond.
const TURN_BYTES: usize = 1 << 20;

/// How often late readers are looked at while publishers may be waiting for them.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What the driver tells a fan-out task about one connection. Positions are those of the driver's drafts at that moment;
/// the command is sent before the draft is published, so no cursor is past them when it arrives.
pub(super) enum Command {
    /// A new connection.
    Attach(Box<Writer>),
    /// See [`Writer::push`].
    Push { after: PerForm<Position>, line: Bytes },
    /// See [`Writer::replay`].
    Replay { after: PerForm<Position>, pieces: Vec<Piece> },
    /// See [`Writer::subscribe`].
    Subscribe { from: PerForm<Position>, subscription: Subscription },
    /// See [`Writer::finish`].
    Finish { after: PerForm<Position> },
}

/// The driver's end of a fan-out task.
pub(super) struct FanOutHandle {
    pub(super) commands: mpsc::Sender<Vec<(ConnectionId, Command)>>,
    wake: Arc<Ready>,
}

impl FanOutHandle {
    /// Something was published.
    pub(super) fn wake(&self) {
        self.wake.notify.notify_one();
    }

    /// Something was published, so little that waking threads would take longer than writing it: the tasks have their
    /// turn one after the other, beginning with this one.
    pub(super) fn wake_in_turn(&self) {
        self.wake.wake_in_turn();
    }
}

/// Why a task is woken.
#[derive(Default)]
struct Ready {
    /// The connections whose sockets have become writable again.
    connections: Mutex<Vec<ConnectionId>>,
    /// The next task is to be woken when this one has served its connections.
    wakes_next: AtomicBool,
    notify: Notify,
}

impl Ready {
    fn wake_in_turn(&self) {
        self.wakes_next.store(true, Ordering::Release);
        self.notify.notify_one();
    }
}

/// The waker of one connection's socket.
struct ReadyWaker {
    connection: ConnectionId,
    ready: Arc<Ready>,
}

impl Wake for ReadyWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // At most once for each time the socket said that it is full, so the list is no longer than the connections.
        self.ready.connections.lock().unwrap_or_else(PoisonError::into_inner).push(self.connection);
        self.ready.notify.notify_one();
    }
}

struct Served {
    writer: Writer,
    waker: Waker,
    /// The socket is full; its waker tells when that changes.
    blocked: bool,
}

/// One fan-out task.
pub(super) struct FanOut {
    index: usize,
    commands: mpsc::Receiver<Vec<(ConnectionId, Command)>>,
    logs: Arc<BroadcastLogs>,
    pace: Arc<Pace>,
    traffic: Arc<Traffic>,
    /// Bytes written in this pass.
    written: u64,
    max_waiting_bytes: usize,
    /// Boxed, since a table has room for twice as many as are in it.
    served: HashMap<ConnectionId, Box<Served>>,
    ready: Arc<Ready>,
    /// That of the next task.
    next: Option<Arc<Ready>>,
    /// Up to where everyone who could be was served.
    until: PerForm<Position>,
    /// When the connections that are being closed must be gone, earliest first.
    finishing: VecDeque<(Instant, ConnectionId)>,
    tally: Tally,
    /// The connections to serve in this pass; kept to reuse its memory.
    turn: Vec<ConnectionId>,
    pieces: Vec<Bytes>,
}

impl FanOut {
    pub(super) fn new(
        index: usize,
        logs: Arc<BroadcastLogs>,
        pace: Arc<Pace>,
        traffic: Arc<Traffic>,
        max_waiting_bytes: usize,
        next: Option<&FanOutHandle>,
    ) -> (FanOutHandle, Self) {
        let (sender, commands) = mpsc::channel(COMMAND_BATCHES);
        let ready = Arc::new(Ready::default());
        let fan_out = Self {
            index,
            commands,
            logs,
            pace,
            traffic,
            written: 0,
            max_waiting_bytes,
            served: HashMap::new(),
            ready: Arc::clone(&ready),
            next: next.map(|next| Arc::clone(&next.wake)),
            until: PerForm::default(),
            finishing: VecDeque::new(),
            tally: Tally::default(),
            turn: Vec::new(),
            pieces: Vec::new(),
        };
        (FanOutHandle { commands: sender, wake: ready }, fan_out)
    }

    /// Serves until the driver has gone and every connection is finished.
    pub(super) async fn run(mut self) {
        let mut driver_gone = false;
        while !(driver_gone && self.served.is_empty()) {
            let next_look = self.next_look();
            let first = tokio::select! {
                biased;
                () = self.ready.notify.notified() => None,
                batch = self.commands.recv(), if !driver_gone => {
                    driver_gone = batch.is_none();
                    batch
                }
                () = sleep_until(next_look) => None,
            };
            self.pass(first).await;
            // Writing never waits, so the task has to give way by itself.
            tokio::task::yield_now().await;
        }
        self.pace.report(self.index, Tally::default());
    }

    fn next_look(&self) -> Option<Instant> {
        let finishing = self.finishing.front().map(|(deadline, _)| *deadline);
        let late = self.tally.has_late_readers().then(|| Instant::now() + LOOK_AGAIN);
        finishing.into_iter().chain(late).min()
    }

    /// Serves once everyone who has something to get.
    async fn pass(&mut self, first: Option<Vec<(ConnectionId, Command)>>) {
        // The end is looked at before the commands are: what was published later than that may stand behind a command
        // that is not here yet.
        let ends = self.logs.ends();
        let mut now = Instant::now();
        self.turn.clear();
        if let Some(batch) = first {
            self.apply(batch, now);
        }
        self.apply_waiting(now);
        self.take_ready();
        let has_grown = ends != self.until;
        if has_grown {
            self.until = ends;
            self.turn.extend(self.served.keys());
        }
        let (mut turn, mut spoken_to) = (std::mem::take(&mut self.turn), Vec::new());
        let mut written = 0;
        for connection in turn.drain(..) {
            written += self.serve(connection, now);
            if written >= TURN_BYTES {
                written = 0;
                tokio::task::yield_now().await;
                now = Instant::now();
                self.apply_waiting(now);
                std::mem::swap(&mut self.turn, &mut spoken_to);
                for connection in spoken_to.drain(..) {
                    written += self.serve(connection, now);
                }
            }
        }
        self.turn = turn;
        if self.ready.wakes_next.swap(false, Ordering::AcqRel)
            && let Some(next) = &self.next
        {
            next.wake_in_turn();
        }
        self.traffic.sent_bytes.add(std::mem::take(&mut self.written));
        self.cut_overdue(now);
        // Nobody falls behind while nothing is published, and looking at everybody costs more than letting one in.
        if has_grown || self.tally.has_late_readers() {
            self.report(now);
        }
    }

    fn apply_waiting(&mut self, now: Instant) {
        while let Ok(batch) = self.commands.try_recv() {
            self.apply(batch, now);
        }
    }

    fn apply(&mut self, batch: Vec<(ConnectionId, Command)>, now: Instant) {
        for (connection, command) in batch {
            if let Command::Attach(writer) = command {
                let waker = Arc::new(ReadyWaker { connection, ready: Arc::clone(&self.ready) }).into();
                self.served.insert(connection, Box::new(Served { writer: *writer, waker, blocked: false }));
                continue;
            }
            // It may have failed meanwhile; then the core is about to hear of it.
            let Some(served) = self.served.get_mut(&connection) else { continue };
            match command {
                Command::Attach(_) => {}
                Command::Push { after, line } => {
                    served.writer.push(after, line);
                    if served.writer.own_bytes() > self.max_waiting_bytes {
                        self.drop_failed(connection, CloseReason::TooSlow);
                        continue;
                    }
                }
                Command::Replay { after, pieces } => served.writer.replay(after, pieces),
                Command::Subscribe { from, subscription } => served.writer.subscribe(from, subscription),
                Command::Finish { after } => {
                    served.writer.finish(after);
                    self.finishing.push_back((now + FLUSH_TIMEOUT, connection));
                }
            }
            self.turn.push(connection);
        }
    }

    fn take_ready(&mut self) {
        let mut ready = self.ready.connections.lock().unwrap_or_else(PoisonError::into_inner);
        for connection in ready.drain(..) {
            if let Some(served) = self.served.get_mut(&connection) {
                served.blocked = false;
                self.turn.push(connection);
            }
        }
    }

    /// Writes what there is for one connection; returns how many bytes that was.
    fn serve(&mut self, connection: ConnectionId, now: Instant) -> usize {
        let Some(served) = self.served.get_mut(&connection).filter(|served| !served.blocked) else { return 0 };
        let (mut cx, mut bytes) = (Context::from_waker(&served.waker), 0);
        match served.writer.poll_write(&mut cx, &self.logs, &self.until, now, &mut self.pieces, &mut bytes) {
            Ok(Progress::CaughtUp) => {}
            Ok(Progress::Blocked) => served.blocked = true,
            Ok(Progress::Yielded) => served.waker.wake_by_ref(),
            Ok(Progress::Finished) => drop(self.served.remove(&connection)),
            Err(reason) => self.drop_failed(connection, reason),
        }
        self.pieces.clear();
        self.written += bytes as u64;
        bytes
    }

    fn drop_failed(&mut self, connection: ConnectionId, reason: CloseReason) {
        if let Some(served) = self.served.remove(&connection) {
            served.writer.fail(reason);
        }
    }

    /// Cuts connections that were closed and have not taken their last words in time.
    fn cut_overdue(&mut self, now: Instant) {
        while let Some((_, connection)) = self.finishing.pop_front_if(|(deadline, _)| *deadline <= now) {
            if self.served.remove(&connection).is_some() {
                debug!(%connection, "closed before the peer took its last words");
            }
        }
    }

    /// Looks how far behind everybody is, also those who are blocked: whoever has fallen off the log can't be served any
    /// more, whether or not its socket ever takes something again.
    fn report(&mut self, now: Instant) {
        let starts = self.logs.starts();
        let mut tally = Tally::default();
        self.turn.clear();
        for (connection, served) in &self.served {
            if served.writer.has_fallen_off(&starts) {
                self.turn.push(*connection);
            } else if let Some((lag, still, is_link)) = served.writer.lag(&self.until, now) {
                tally.count(self.pace.max_lag(), lag, still, is_link);
            }
        }
        while let Some(connection) = self.turn.pop() {
            self.drop_failed(connection, CloseReason::TooSlow);
        }
        self.tally = tally;
        self.pace.report(self.index, tally);
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::pin::Pin;
    use std::task::Poll;

    use arborcast_core::Form;
    use tokio::io::AsyncWrite;
    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
    use tokio::task::JoinSet;
    use tokio::time::timeout;

    use super::super::broadcast_log::Draft;
    use super::super::writer::{Ending, Subscription};
    use super::*;

    const SUBSCRIBER: Subscription = Subscription { form: Form::Plain, is_link: false, takes_history: false };
    const PATIENCE: Duration = Duration::from_secs(20);

    /// Takes whatever comes, and tells whose it was and how long.
    struct Socket(ConnectionId, UnboundedSender<(ConnectionId, usize)>);

    impl AsyncWrite for Socket {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.1.send((self.0, bytes.len())).unwrap();
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    struct Bench {
        logs: Arc<BroadcastLogs>,
        pace: Arc<Pace>,
        draft: Draft,
        socket: UnboundedSender<(ConnectionId, usize)>,
    }

    impl Bench {
        fn new() -> (Self, UnboundedReceiver<(ConnectionId, usize)>) {
            let (socket, written) = unbounded_channel();
            let logs = Arc::new(BroadcastLogs::new(64 << 20, 0));
            (Self { logs, pace: Arc::new(Pace::new(2, 64 << 20)), draft: Draft::new(), socket }, written)
        }

        fn fan_out(&self, index: usize, next: Option<&FanOutHandle>) -> (FanOutHandle, FanOut) {
            FanOut::new(index, Arc::clone(&self.logs), Arc::clone(&self.pace), Arc::default(), 1 << 20, next)
        }

        fn attach(&self, connection: u64) -> (ConnectionId, Command) {
            let id = ConnectionId(connection);
            let half = Box::new(Socket(id, self.socket.clone()));
            (id, Command::Attach(Box::new(Writer::new(id, half, Arc::new(Ending::new()), Instant::now()))))
        }

        fn subscriber(&self, connection: u64) -> [(ConnectionId, Command); 2] {
            let from = PerForm::default();
            [self.attach(connection), (ConnectionId(connection), Command::Subscribe { from, subscription: SUBSCRIBER })]
        }

        fn publish(&mut self, bytes: usize) {
            self.draft.write(None.into(), |out| out.resize(out.len() + bytes, b'x'));
            self.draft.publish(&self.logs.plain);
        }
    }

    #[tokio::test]
    async fn who_is_answered_waits_for_a_turn_and_not_for_all_that_is_published() {
        let (mut bench, mut written) = Bench::new();
        let (handle, mut fan_out) = bench.fan_out(0, None);
        let (answered, answer) = (ConnectionId(100), Bytes::from_static(b"welcome\n"));
        let mut commands: Vec<_> = (0..16).flat_map(|connection| bench.subscriber(connection)).collect();
        commands.push(bench.attach(answered.0));
        fan_out.pass(Some(commands)).await;
        bench.publish(TURN_BYTES / 2);

        let ends = bench.logs.ends();
        let push = async {
            let command = Command::Push { after: ends, line: answer };
            assert!(handle.commands.send(vec![(answered, command)]).await.is_ok());
        };
        tokio::join!(fan_out.pass(None), push);

        let (mut before, mut after) = (0, 0);
        while let Ok((connection, bytes)) = written.try_recv() {
            if connection == answered {
                before = std::mem::take(&mut after);
            } else {
                after += bytes;
            }
        }
        assert!((TURN_BYTES..2 * TURN_BYTES).contains(&before), "{before} bytes came first");
        assert_eq!(before + after, 16 * TURN_BYTES / 2);
    }

    #[tokio::test]
    async fn tasks_that_have_their_turn_one_after_the_other_all_have_it() {
        let (mut bench, mut written) = Bench::new();
        let (last, second) = bench.fan_out(1, None);
        let (first, first_task) = bench.fan_out(0, Some(&last));
        for (handle, connection) in [(&first, 0), (&last, 1)] {
            assert!(handle.commands.send(bench.subscriber(connection).into()).await.is_ok());
        }
        let mut tasks = JoinSet::new();
        tasks.spawn(first_task.run());
        tasks.spawn(second.run());
        for _ in 0..3 {
            bench.publish(5);
            first.wake_in_turn();
            for connection in [0, 1] {
                let next = timeout(PATIENCE, written.recv()).await;
                assert_eq!(next, Ok(Some((ConnectionId(connection), 5))));
            }
        }
    }
}
