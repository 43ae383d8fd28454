//! What one publisher has published, has to publish next, and may not publish yet.

use std::collections::VecDeque;

use super::payload::Template;
use super::schedule::Schedule;

/// What a publisher does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// There may be more to write at once.
    Write,
    /// Nothing is due before this time.
    WaitUntil(u64),
    /// Too much is on its way.
    WaitForRoom,
    /// Everything is published.
    Done,
}

/// The activities of one publisher. Times in nanoseconds from the start of the run.
#[derive(Debug)]
pub(crate) struct Outbox {
    template: Template,
    schedule: Schedule,
    /// Whether they are numbered, and so acknowledged and sent again.
    is_numbered: bool,
    window: usize,
    /// When those that are on their way were published, oldest first.
    on_their_way: VecDeque<u64>,
    /// The first of them.
    first: u64,
    /// The next to be written: one that is written again, as long as it is not the next new one.
    next_write: u64,
}

impl Outbox {
    pub(crate) fn new(template: Template, schedule: Schedule, is_numbered: bool, window: usize) -> Self {
        let on_their_way = VecDeque::new();
        Self { template, schedule, is_numbered, window, on_their_way, first: 0, next_write: 0 }
    }

    /// How many have been published.
    pub(crate) fn published(&self) -> u64 {
        self.first + self.on_their_way.len() as u64
    }

    /// The first so many have arrived. Returns how many of them were not known to have.
    pub(crate) fn acknowledge(&mut self, count: u64) -> u64 {
        let count = count.min(self.published());
        let news = count.saturating_sub(self.first);
        // As many as are on their way at most, since it is at most what is published.
        self.on_their_way.drain(..usize::try_from(news).unwrap_or(usize::MAX).min(self.on_their_way.len()));
        self.first += news;
        self.next_write = self.next_write.max(self.first);
        news
    }

    /// There is a new connection: what was acknowledged by nobody is sent again, and what nobody acknowledges is no longer
    /// waited for.
    pub(crate) fn start_over(&mut self) {
        if self.is_numbered {
            self.next_write = self.first;
        } else {
            self.acknowledge(self.published());
        }
    }

    /// Whether it is worth while to go on, after the window was full.
    pub(crate) fn has_room(&self) -> bool {
        self.on_their_way.len() <= self.window / 2
    }

    /// Appends messages that are due, until there are `max_bytes`, and says what comes after them. `free_since` as in
    /// [`Schedule::stamp`].
    pub(crate) fn fill(&mut self, now: u64, free_since: u64, max_bytes: usize, out: &mut Vec<u8>) -> Next {
        while out.len() < max_bytes {
            let sequence = self.next_write;
            let place = usize::try_from(sequence - self.first).unwrap_or(usize::MAX);
            let time = match self.on_their_way.get(place) {
                Some(time) => *time,
                None if self.on_their_way.len() >= self.window => return Next::WaitForRoom,
                None => match self.schedule.due(sequence) {
                    None => return Next::Done,
                    Some(due) if due > now => return Next::WaitUntil(due),
                    Some(due) => {
                        let time = self.schedule.stamp(due, now, free_since);
                        self.on_their_way.push_back(time);
                        time
                    }
                },
            };
            self.template.put(sequence, time, self.is_numbered.then_some(sequence + 1), out);
            self.next_write += 1;
        }
        Next::Write
    }

    /// Appends only messages that have been published before, and are to be sent again.
    pub(crate) fn fill_again(&mut self, max_bytes: usize, out: &mut Vec<u8>) -> Next {
        while out.len() < max_bytes {
            let place = usize::try_from(self.next_write - self.first).unwrap_or(usize::MAX);
            let Some(time) = self.on_their_way.get(place) else { return Next::Done };
            self.template.put(self.next_write, *time, self.is_numbered.then_some(self.next_write + 1), out);
            self.next_write += 1;
        }
        Next::Write
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox(is_numbered: bool, window: usize, rate: Option<u64>, count: Option<u64>) -> Outbox {
        let template = Template::new(1, 0, 128, ("anonymous".into(), None)).unwrap();
        Outbox::new(template, Schedule::new(0, 1, rate, count), is_numbered, window)
    }

    fn lines(outbox: &mut Outbox, now: u64) -> (usize, Next) {
        let mut out = Vec::new();
        let next = outbox.fill(now, 0, usize::MAX, &mut out);
        (out.iter().filter(|byte| **byte == b'\n').count(), next)
    }

    #[test]
    fn no_more_is_on_its_way_than_the_window_allows() {
        let mut outbox = outbox(false, 4, None, Some(6));
        assert_eq!(lines(&mut outbox, 0), (4, Next::WaitForRoom));
        assert!(!outbox.has_room());
        assert_eq!(outbox.acknowledge(3), 3);
        assert!(outbox.has_room());
        assert_eq!(outbox.acknowledge(2), 0, "known");
        assert_eq!(outbox.acknowledge(100), 1, "no more than there are");
        assert_eq!(lines(&mut outbox, 0), (2, Next::Done));
        assert_eq!(outbox.published(), 6);
    }

    #[test]
    fn what_is_due_is_published_and_nothing_before_its_time() {
        let mut outbox = outbox(false, 100, Some(1000), None);
        assert_eq!(lines(&mut outbox, 2_500_000), (3, Next::WaitUntil(3_000_000)));
        assert_eq!(lines(&mut outbox, 2_600_000), (0, Next::WaitUntil(3_000_000)));
    }

    #[test]
    fn on_a_new_connection_only_what_is_numbered_is_sent_again() {
        for (is_numbered, expected) in [(true, 2), (false, 0)] {
            let mut outbox = outbox(is_numbered, 4, None, Some(4));
            lines(&mut outbox, 0);
            outbox.acknowledge(2);
            outbox.start_over();
            assert_eq!(lines(&mut outbox, 0), (expected, Next::Done));
            assert_eq!(outbox.published(), 4);
        }
    }

    #[test]
    fn messages_come_in_pieces_of_bounded_length() {
        let mut outbox = outbox(true, 1000, None, None);
        let mut out = Vec::new();
        assert_eq!(outbox.fill(0, 0, 1000, &mut out), Next::Write);
        assert!((1000..1500).contains(&out.len()));
    }
}
