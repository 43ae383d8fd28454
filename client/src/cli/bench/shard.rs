//! One thread with its part of the clients.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::{io, thread};

use tokio::runtime::Builder;
use tokio::task::{JoinSet, LocalSet};

use super::connection::Doorway;
use super::desk::{Desk, Subscriber};
use super::payload::{Decoder, Template};
use super::publish::publish;
use super::run::Run;
use super::statistics::Tally;
use super::stream::Scratch;
use super::subscribe::{Shared, subscribe};

/// What the subscribers of one thread have got.
#[derive(Debug)]
pub(crate) struct Harvest {
    pub(crate) tally: Tally,
    pub(crate) subscribers: Vec<HarvestedSubscriber>,
}

/// What one subscriber has got, fit to leave its thread.
#[derive(Debug)]
pub(crate) struct HarvestedSubscriber {
    pub(crate) number: usize,
    /// Of each publisher, how many did not come.
    pub(crate) missing: u64,
    /// When something came last, and the longest silence and when it began: nanoseconds from the start.
    pub(crate) last: u64,
    pub(crate) silence: (u64, u64),
    /// The server where it was then.
    pub(crate) silent_at: Option<String>,
}

/// A thread that runs until [`Run::over`].
#[derive(Debug)]
pub(crate) struct Shard(thread::JoinHandle<io::Result<Harvest>>);

impl Shard {
    /// Starts the thread that every `plan.threads`th client belongs to, from this one on. Publishers come first.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub(crate) fn start(
        run: &Arc<Run>,
        first: usize,
        templates: Vec<(usize, Template)>,
        tally: Tally,
    ) -> io::Result<Self> {
        let run = Arc::clone(run);
        let name = format!("bench-{first}");
        Ok(Self(thread::Builder::new().name(name).spawn(move || serve(&run, first, templates, tally))?))
    }

    /// Waits for its end, which must have been asked for.
    ///
    /// # Errors
    /// When it could not do its part.
    pub(crate) fn join(self) -> io::Result<Harvest> {
        self.0.join().unwrap_or_else(|_| Err(io::Error::other("a thread of the benchmark has panicked")))
    }
}

fn serve(run: &Arc<Run>, first: usize, templates: Vec<(usize, Template)>, tally: Tally) -> io::Result<Harvest> {
    let runtime = Builder::new_current_thread().enable_all().build().inspect_err(|_| run.failed.cancel())?;
    let plan = &run.plan;
    let clients: Vec<usize> = (first..plan.clients()).step_by(plan.threads).collect();
    let subscribers: Vec<usize> = clients.into_iter().filter(|client| *client >= plan.publishers).collect();
    let numbers = subscribers.iter().map(|client| client - plan.publishers);
    let desk = Rc::new(RefCell::new(Desk::new(Decoder::new(run.id), tally, numbers, plan.publishers)));
    let shared = {
        // Connections to masters belong to a runtime.
        let _entered = runtime.enter();
        Shared {
            run: Arc::clone(run),
            desk: Rc::clone(&desk),
            scratch: Rc::new(Scratch::new(run.options.max_line)),
            doorway: Rc::new(Doorway::new(run)),
        }
    };
    LocalSet::new().block_on(&runtime, async {
        let mut tasks = JoinSet::new();
        for (place, client) in subscribers.iter().enumerate() {
            tasks.spawn_local(subscribe(shared.clone(), place, *client));
        }
        for (number, template) in templates {
            tasks.spawn_local(publish(shared.clone(), number, template));
        }
        tokio::select! {
            () = run.over.cancelled() => {}
            Some(Ok(error)) = tasks.join_next() => run.fail(error),
        }
        run.over.cancelled().await;
        tasks.shutdown().await;
    });
    drop(shared);
    let desk = Rc::into_inner(desk).ok_or_else(|| io::Error::other("a client has outlived the benchmark"))?;
    let (tally, subscribers) = desk.into_inner().into_parts();
    let (published, end) = (run.published(), run.progress.last_published.load(std::sync::atomic::Ordering::Relaxed));
    let subscribers = subscribers.into_iter().map(|subscriber| harvest(subscriber, &published, end)).collect();
    Ok(Harvest { tally, subscribers })
}

fn harvest(mut subscriber: Subscriber, published: &[u64], end: u64) -> HarvestedSubscriber {
    let last = subscriber.silence.last();
    subscriber.end(end);
    let missing = subscriber.received.iter().zip(published).map(|(received, published)| received.missing(*published));
    HarvestedSubscriber {
        number: subscriber.number,
        missing: missing.sum(),
        last,
        silence: subscriber.silence.longest(),
        silent_at: subscriber.silent_at.map(|server| server.to_string()),
    }
}
