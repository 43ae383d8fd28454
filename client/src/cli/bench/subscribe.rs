//! A client that receives.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arborcast_client::tls;
use arborcast_proto::wire::{Message, Resume};

use super::connection::{Doorway, Ending, EnterError, Entered, Traveller};
use super::desk::Desk;
use super::run::Run;
use super::stream::{Incoming, Other, Scratch, read_other};

/// What the clients of one thread share.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) run: Arc<Run>,
    pub(crate) desk: Rc<RefCell<Desk>>,
    pub(crate) scratch: Rc<Scratch>,
    pub(crate) doorway: Rc<Doorway>,
}

/// Receives until the run is over, at one server after the other. Returns only when it can't go on. The subscriber is at
/// this place of the desk, and is this client of all.
pub(crate) async fn subscribe(shared: Shared, place: usize, client: usize) -> EnterError {
    let Shared { run, desk, .. } = &shared;
    let mut traveller = Traveller::new(Arc::clone(run), Rc::clone(&shared.doorway), client);
    let session = session_id(run, client);
    let resume = |have| run.plan.is_acknowledged.then(|| Resume { session: session.clone(), have, proof: None });
    let mut entered = match traveller.enter(&run.login(resume(None))).await {
        Ok(entered) => entered,
        Err(error) => return error,
    };
    loop {
        let ending = attend(run, listen(&shared, place, entered)).await;
        if let Err(error) = give_up(run, &ending) {
            return error;
        }
        let have = desk.borrow().have(place);
        entered = match traveller.enter_again(ending, &run.login(resume(have))).await {
            Ok(entered) => entered,
            Err(error) => return error,
        };
    }
}

async fn listen(Shared { run, desk, scratch, .. }: &Shared, place: usize, entered: Entered) -> Ending {
    let Entered { stream, server, rest, have } = entered;
    desk.borrow_mut().entered(place, Rc::clone(&server), have);
    // The other half must not be dropped: that would end the sending direction.
    let (half, _writer) = tls::split(stream);
    let take = |mut lines: &[u8]| {
        let now = run.now();
        let mut desk = desk.borrow_mut();
        loop {
            let (batch, other) = desk.take(place, lines, now);
            if batch.deliveries > 0 {
                run.progress.deliveries.fetch_add(batch.deliveries, Ordering::Relaxed);
                run.progress.bytes.fetch_add(batch.bytes, Ordering::Relaxed);
                run.progress.longest_silence.fetch_max(batch.longest_silence, Ordering::Relaxed);
            }
            let (line, behind) = other?;
            match read_other(&server, line) {
                Other::Ending(ending) => return Some(ending),
                Other::Foreign => desk.count_foreign(),
                Other::Message(Message::RelayHave { have, .. }) => desk.learn(place, have),
                Other::Message(Message::RelayGap { origin, through }) => desk.skip(place, origin, through),
                Other::Message(_) => {}
            }
            lines = behind;
        }
    };
    Incoming::new(half, &server, rest).read(scratch, take).await
}

/// Counts a client as logged in for as long as its session lasts.
pub(crate) async fn attend(run: &Run, session: impl Future<Output = Ending>) -> Ending {
    run.progress.connected.fetch_add(1, Ordering::Relaxed);
    let ending = session.await;
    run.progress.connected.fetch_sub(1, Ordering::Relaxed);
    if matches!(ending, Ending::Lost(_)) {
        run.progress.lost_connections.fetch_add(1, Ordering::Relaxed);
    }
    ending
}

/// # Errors
/// When a lost connection is the end.
pub(crate) fn give_up(run: &Run, ending: &Ending) -> Result<(), EnterError> {
    match ending {
        Ending::Lost(error) if run.options.reconnect.is_none() => Err(error.clone().into()),
        Ending::Lost(_) | Ending::Moved(_) => Ok(()),
    }
}

/// The id of a client's extended session.
pub(crate) fn session_id(run: &Run, client: usize) -> Box<str> {
    format!("bench-{:016x}-{client}", run.id).into()
}
