//! What waits to be sent on one server stream: bounded, never waited for, and ended with a status.

use std::sync::{Arc, OnceLock};

use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// The sending end. Clones send on the same stream.
#[derive(Debug)]
pub(crate) struct Outbox<T> {
    items: mpsc::Sender<T>,
    end: Arc<End>,
}

#[derive(Debug, Default)]
struct End {
    status: OnceLock<Status>,
    come: CancellationToken,
}

impl<T> Clone for Outbox<T> {
    fn clone(&self) -> Self {
        Self { items: self.items.clone(), end: Arc::clone(&self.end) }
    }
}

/// An outbox of so many items and the stream that the peer reads. The permit is given back when the stream is gone.
pub(crate) fn outbox<T: Send + 'static>(
    capacity: usize,
    permit: OwnedSemaphorePermit,
) -> (Outbox<T>, BoxStream<'static, Result<T, Status>>) {
    let (sender, receiver) = mpsc::channel(capacity);
    let outbox = Outbox { items: sender, end: Arc::default() };
    let reading = Some((receiver, Arc::clone(&outbox.end), permit));
    (outbox, stream::unfold(reading, next).boxed())
}

type Reading<T> = Option<(mpsc::Receiver<T>, Arc<End>, OwnedSemaphorePermit)>;

/// The end overtakes what still waits: it is for peers that are not to go on.
async fn next<T>(reading: Reading<T>) -> Option<(Result<T, Status>, Reading<T>)> {
    let (mut receiver, end, permit) = reading?;
    let item = tokio::select! {
        biased;
        () = end.come.cancelled() => None,
        item = receiver.recv() => item,
    };
    match item {
        Some(item) => Some((Ok(item), Some((receiver, end, permit)))),
        None => end.status.get().map(|status| (Err(status.clone()), None)),
    }
}

impl<T> Outbox<T> {
    /// Queues an item. False if there is no room, or the stream has ended.
    pub(crate) fn offer(&self, item: T) -> bool {
        !self.end.come.is_cancelled() && self.items.try_send(item).is_ok()
    }

    /// Queues an item when there is room. False if the stream has ended. Waits as long as the peer does: bound it in time.
    pub(crate) async fn deliver(&self, item: T) -> bool {
        !self.end.come.is_cancelled() && self.items.send(item).await.is_ok()
    }

    /// Waits until nothing is queued any more. False if the stream has ended. Waits as long as the peer does: bound it in
    /// time.
    pub(crate) async fn drained(&self) -> bool {
        self.items.reserve_many(self.items.max_capacity()).await.is_ok()
    }

    /// Ends the stream. The first status counts.
    pub(crate) fn end(&self, status: Status) {
        // Somebody else may have ended it already.
        let _ = self.end.status.set(status);
        self.end.come.cancel();
    }

    /// Waits until the stream has ended: by [`end`](Self::end), or because the peer is gone.
    pub(crate) async fn ended(&self) {
        tokio::select! {
            () = self.end.come.cancelled() => {}
            () = self.items.closed() => {}
        }
    }

    /// Whether it has been ended by [`end`](Self::end).
    pub(crate) fn was_told(&self) -> bool {
        self.end.come.is_cancelled()
    }

    /// Whether it has.
    pub(crate) fn has_ended(&self) -> bool {
        self.end.come.is_cancelled() || self.items.is_closed()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;

    fn outbox_of_two() -> (Outbox<u8>, BoxStream<'static, Result<u8, Status>>, Arc<Semaphore>) {
        let slots = Arc::new(Semaphore::new(1));
        let (outbox, stream) = outbox(2, Arc::clone(&slots).try_acquire_owned().unwrap());
        (outbox, stream, slots)
    }

    #[tokio::test]
    async fn items_come_in_order_and_no_more_than_fit() {
        let (outbox, mut stream, _) = outbox_of_two();
        assert_eq!([1, 2, 3].map(|item| outbox.offer(item)), [true, true, false]);
        assert_eq!(stream.next().await.unwrap().unwrap(), 1);
        assert_eq!(stream.next().await.unwrap().unwrap(), 2);
    }

    #[tokio::test]
    async fn the_first_end_overtakes_what_waits_and_is_the_last_item() {
        let (outbox, mut stream, slots) = outbox_of_two();
        outbox.offer(1);
        outbox.end(Status::aborted("first"));
        outbox.end(Status::internal("second"));
        assert!(!outbox.offer(2));
        assert_eq!(stream.next().await.unwrap().unwrap_err().message(), "first");
        assert!(stream.next().await.is_none());
        assert_eq!(slots.available_permits(), 1, "the place is free again");
    }

    #[tokio::test]
    async fn it_is_drained_when_the_peer_has_read_everything() {
        let (outbox, mut stream, _) = outbox_of_two();
        assert!(outbox.deliver(1).await && outbox.deliver(2).await);
        let mut drained = std::pin::pin!(outbox.drained());
        assert!(futures_util::poll!(&mut drained).is_pending());
        stream.next().await.unwrap().unwrap();
        assert!(futures_util::poll!(&mut drained).is_pending());
        stream.next().await.unwrap().unwrap();
        assert!(drained.await);
        assert_eq!([3, 4, 5].map(|item| outbox.offer(item)), [true, true, false], "there is room for all again");
        drop(stream);
        assert!(!outbox.drained().await);
    }

    #[tokio::test]
    async fn it_is_known_when_the_peer_is_gone() {
        let (outbox, stream, slots) = outbox_of_two();
        assert!(!outbox.has_ended());
        drop(stream);
        outbox.ended().await;
        assert!(outbox.has_ended());
        assert_eq!(slots.available_permits(), 1);
    }
}
