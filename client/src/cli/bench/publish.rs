//! A client that publishes.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arborcast_client::tls::{WriteHalf, split};
use arborcast_proto::wire::{Have, Message, Resume};
use memchr::memchr_iter;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::connection::{Ending, EnterError, Entered, Traveller};
use super::outbox::{Next, Outbox};
use super::payload::{Decoder, Template};
use super::run::{Phase, Run};
use super::schedule::Schedule;
use super::stream::{Incoming, Other, read_other};
use super::subscribe::{Shared, attend, give_up, session_id};

/// The most that is written in one go.
const WRITE_SIZE: usize = 64 << 10;

/// A publisher that had to wait for longer than this was held up by its server: our own timers are not finer.
const TIMER_RESOLUTION: Duration = Duration::from_millis(2);

/// One publisher, whichever connection it has.
#[derive(Debug)]
struct Publisher {
    run: Arc<Run>,
    number: usize,
    decoder: Decoder,
    outbox: RefCell<Outbox>,
    /// There may be room in the window again.
    room: Notify,
    /// It could publish nothing until then, in nanoseconds from the start.
    free_since: Cell<u64>,
    is_finished: Cell<bool>,
}

/// Publishes what is due, and then stays, until the run is over. Returns only when it can't go on.
pub(crate) async fn publish(shared: Shared, number: usize, template: Template) -> EnterError {
    let run = &shared.run;
    let plan = &run.plan;
    let mut traveller = Traveller::new(Arc::clone(run), Rc::clone(&shared.doorway), number);
    let session = session_id(run, number);
    // What others publish is nothing to it, so to resume it counts as received whatever there is.
    let login = run.login(plan.is_acknowledged.then_some(Resume { session, have: None::<Have>, proof: None }));
    let schedule = Schedule::new(number, plan.publishers, plan.rate, plan.count);
    let publisher = Publisher {
        run: Arc::clone(run),
        number,
        decoder: shared.desk.borrow().decoder().clone(),
        outbox: RefCell::new(Outbox::new(template, schedule, plan.is_acknowledged, plan.window)),
        room: Notify::new(),
        free_since: Cell::new(0),
        is_finished: Cell::new(false),
    };
    let mut entered = match traveller.enter(&login).await {
        Ok(entered) => entered,
        Err(error) => return error,
    };
    loop {
        let ending = attend(run, publisher.converse(&shared, entered)).await;
        if let Err(error) = give_up(run, &ending) {
            return error;
        }
        entered = match traveller.enter_again(ending, &login).await {
            Ok(entered) => entered,
            Err(error) => return error,
        };
        publisher.outbox.borrow_mut().start_over();
        publisher.free_since.set(run.now());
    }
}

impl Publisher {
    /// Both directions of one connection, until it ends.
    async fn converse(&self, shared: &Shared, entered: Entered) -> Ending {
        let Entered { stream, server, rest, .. } = entered;
        let (reader, writer) = split(stream);
        let take = |lines: &[u8]| {
            memchr_iter(b'\n', lines)
                .scan(0, |start, end| lines.get(std::mem::replace(start, end + 1)..end))
                .find_map(|line| self.take(line, |line| read_other(&server, line)))
        };
        let reading = Incoming::new(reader, &server, rest).read(&shared.scratch, take);
        tokio::select! {
            ending = reading => ending,
            // What can't be written any more: why, the server may have said.
            never = self.write(writer) => never,
        }
    }

    fn take(&self, line: &[u8], read_other: impl Fn(&[u8]) -> Other) -> Option<Ending> {
        if let Some(delivery) = self.decoder.read(line) {
            if delivery.publisher == self.number && !self.run.plan.is_acknowledged {
                self.acknowledge(delivery.sequence + 1);
            }
            return None;
        }
        match read_other(line) {
            Other::Ending(ending) => return Some(ending),
            Other::Message(Message::ActivityAck { number }) => self.acknowledge(number),
            Other::Foreign | Other::Message(_) => {}
        }
        None
    }

    fn acknowledge(&self, count: u64) {
        let news = self.outbox.borrow_mut().acknowledge(count);
        if news > 0 {
            self.run.progress.acknowledged.fetch_add(news, Ordering::Relaxed);
            self.room.notify_one();
        }
    }

    /// Writes what is due while the run lasts. Never returns.
    async fn write<T>(&self, mut writer: WriteHalf) -> T {
        let run = &self.run;
        let mut phase = run.phase.subscribe();
        // It ends with the run, which ends all its tasks.
        let _ = phase.wait_for(|phase| *phase >= Phase::Publishing).await;
        let mut out = Vec::with_capacity(WRITE_SIZE);
        loop {
            let is_ending = *phase.borrow() == Phase::Ending;
            let now = run.now();
            let next = {
                let mut outbox = self.outbox.borrow_mut();
                let before = outbox.published();
                let next = match is_ending {
                    true => outbox.fill_again(WRITE_SIZE, &mut out),
                    false => outbox.fill(now, self.free_since.get(), WRITE_SIZE, &mut out),
                };
                if outbox.published() > before {
                    run.set_published(self.number, outbox.published());
                    run.progress.last_published.fetch_max(now, Ordering::Relaxed);
                }
                next
            };
            if next == Next::Done && !is_ending && !self.is_finished.replace(true) {
                run.progress.finished.fetch_add(1, Ordering::Relaxed);
            }
            if !out.is_empty() {
                if writer.write_all(&out).await.is_err() || writer.flush().await.is_err() {
                    break;
                }
                out.clear();
                self.note_delay(now);
                continue;
            }
            match next {
                Next::Write => {}
                Next::Done => break,
                Next::WaitUntil(due) => {
                    let due = Instant::from_std(run.started() + Duration::from_nanos(due));
                    tokio::select! {
                        () = sleep_until(due) => {}
                        _ = phase.changed() => {}
                    }
                }
                Next::WaitForRoom => {
                    tokio::select! {
                        () = self.wait_for_room() => self.note_delay(now),
                        _ = phase.changed() => {}
                    }
                }
            }
        }
        // The connection is still read.
        std::future::pending().await
    }

    /// Half the window at a time when as much as possible is published: one activity at a time would be a system call for
    /// each.
    async fn wait_for_room(&self) {
        loop {
            self.room.notified().await;
            if self.run.plan.rate.is_some() || self.outbox.borrow().has_room() {
                return;
            }
        }
    }

    /// The server may have kept us waiting since then.
    fn note_delay(&self, since: u64) {
        let now = self.run.now();
        if u128::from(now.saturating_sub(since)) > TIMER_RESOLUTION.as_nanos() {
            self.free_since.set(now);
        }
    }
}
