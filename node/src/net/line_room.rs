//! Room for half lines. A line may be long, and thousands of connections may each keep the end of one back; what they
//! hold together is bounded.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What every connection may hold without asking for room.
const FREE_BYTES: usize = 16 << 10;

/// Room is counted in this many bytes.
const UNIT_BYTES: usize = 1 << 10;

/// The room of all connections together.
#[derive(Clone)]
pub(super) struct LineRoom(Arc<Semaphore>);

/// The part of it that one connection has taken; it is free again when this is dropped.
pub(super) struct LineShare {
    room: LineRoom,
    taken: Option<OwnedSemaphorePermit>,
}

impl LineRoom {
    pub(super) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new((bytes / UNIT_BYTES).min(Semaphore::MAX_PERMITS))))
    }

    pub(super) fn share(&self) -> LineShare {
        LineShare { room: self.clone(), taken: None }
    }
}

impl LineShare {
    /// Takes room for half a line of that many bytes, or gives back what is not needed any more. `false` if there is
    /// none left.
    pub(super) fn hold(&mut self, bytes: usize) -> bool {
        if bytes <= FREE_BYTES {
            self.taken = None;
            return true;
        }
        let held = self.taken.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let wanted = u32::try_from(bytes.div_ceil(UNIT_BYTES).saturating_sub(held)).unwrap_or(u32::MAX);
        let Ok(more) = Arc::clone(&self.room.0).try_acquire_many_owned(wanted) else { return false };
        match &mut self.taken {
            Some(taken) => taken.merge(more),
            None => self.taken = Some(more),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_lines_share_one_bound_and_short_ones_are_free() {
        let room = LineRoom::new(100 << 10);
        let (mut one, mut other) = (room.share(), room.share());
        assert!(one.hold(60 << 10) && one.hold(80 << 10));
        assert!(other.hold(FREE_BYTES) && !other.hold(FREE_BYTES + 5000));
        assert!(one.hold(0) && other.hold(100 << 10));
        drop(other);
        assert!(one.hold(100 << 10) && !one.hold((100 << 10) + 1));
    }
}
