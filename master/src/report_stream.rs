//! One node's report stream: reads, coalesces what comes too fast, and hands over to the registry.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arborcast_proto::registry::{Advice, NodeReport};
use futures_util::stream::{Stream, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tracing::{debug, warn};

use crate::messages;
use crate::outbox::Outbox;
use crate::registry::Registry;
use crate::topology::{Incarnation, NodeId, Refusal, Report, StreamId};

/// Time between two reports that are taken, if they keep coming faster than that.
const TAKE_EVERY: Duration = Duration::from_millis(20);

/// How many may be taken at once, after a quiet time.
const BURST: u32 = 20;

/// Of the conflicts of one server, and of the nodes that find no room, the first and every so many are logged.
const LOG_EVERY: u64 = 100;

/// Serves one stream to its end.
pub(crate) async fn serve(
    registry: Arc<Registry>,
    reports: impl Stream<Item = Result<NodeReport, Status>> + Unpin,
    outbox: Outbox<Advice>,
    first_report_timeout: Duration,
    stop: CancellationToken,
) {
    let stream = registry.open_stream(outbox.clone());
    let mut reader =
        Reader { registry: &registry, stream, outbox: &outbox, speaker: None, pace: Pace::new(), coalesced: 0 };
    registry.metrics().report_streams_opened.inc();
    let (reason, end) = reader.read(reports, first_report_timeout, stop).await;
    let (speaker, coalesced) = (reader.speaker, reader.coalesced);
    // First the registry: who sees the end of the stream must not find the node afterwards.
    registry.close_stream(stream, speaker.as_ref().map(|(id, _)| id));
    registry.metrics().report_stream_closed(reason);
    debug!(?stream, ?speaker, coalesced, reason, ?end, "report stream ended");
    if let Some(status) = end {
        outbox.end(status);
    }
}

struct Reader<'a> {
    registry: &'a Registry,
    stream: StreamId,
    outbox: &'a Outbox<Advice>,
    /// Whom the stream is about, from the first report on.
    speaker: Option<(NodeId, Incarnation)>,
    pace: Pace,
    coalesced: u64,
}

impl Reader<'_> {
    /// Reads until the stream has to end, and says why, and with which status; none if the node itself ended it.
    async fn read(
        &mut self,
        mut reports: impl Stream<Item = Result<NodeReport, Status>> + Unpin,
        first_report_timeout: Duration,
        stop: CancellationToken,
    ) -> (&'static str, Option<Status>) {
        let first_report = tokio::time::sleep(first_report_timeout);
        tokio::pin!(first_report);
        let mut waiting: Option<Report> = None;
        loop {
            let now = Instant::now();
            let due = if self.pace.may_take(now) { waiting.take() } else { None };
            if let Some(report) = due {
                self.pace.take(now);
                if let Err(status) = self.take(report) {
                    return ("refused", Some(status));
                }
            }
            let next = tokio::select! {
                biased;
                () = stop.cancelled() => {
                    return ("stopping", Some(Status::unavailable("this master is stopping")));
                }
                // Somebody else has ended it already, or there is nobody to be told.
                () = self.outbox.ended() => {
                    return (if self.outbox.was_told() { "replaced" } else { "lost" }, None);
                }
                () = &mut first_report, if self.speaker.is_none() && waiting.is_none() => {
                    let status = Status::deadline_exceeded(format!("no report within {first_report_timeout:?}"));
                    return ("no_report", Some(status));
                }
                () = tokio::time::sleep_until(self.pace.next.into()), if waiting.is_some() => continue,
                next = reports.next() => next,
            };
            let report = match next {
                Some(Ok(message)) => messages::report(message, self.registry.master_id()),
                Some(Err(status)) => return ended_by_peer(status),
                None => return ("ended", None),
            };
            match report {
                Ok(report) => self.coalesced += u64::from(waiting.replace(report).is_some()),
                Err(status) => return ("invalid", Some(status)),
            }
        }
    }

    fn take(&mut self, report: Report) -> Result<(), Status> {
        let speaker = (report.id.clone(), report.incarnation);
        let is_first = self.speaker.is_none();
        if self.speaker.as_ref().is_some_and(|known| *known != speaker) {
            return Err(Status::invalid_argument("a report stream is about one start of one node"));
        }
        let address = (report.hostname.clone(), report.port);
        self.registry.report(self.stream, report).map_err(|refusal| {
            log(self.registry, &refusal, &address);
            refused(&refusal)
        })?;
        if is_first {
            self.registry.welcome(self.outbox);
            self.registry.repeat_drain(self.stream, &speaker.0, self.outbox);
        }
        self.speaker = Some(speaker);
        Ok(())
    }
}

/// A peer that breaks gRPC is told why; one that is gone is told nothing, and nobody hears it.
fn ended_by_peer(status: Status) -> (&'static str, Option<Status>) {
    match status.code() {
        Code::OutOfRange | Code::ResourceExhausted => {
            let status = Status::resource_exhausted(format!("a report is too long: {}", status.message()));
            ("too_long", Some(status))
        }
        Code::Internal | Code::InvalidArgument => {
            let status = Status::invalid_argument(format!("a report can't be read: {}", status.message()));
            ("unreadable", Some(status))
        }
        _ => ("lost", Some(status)),
    }
}

fn log(registry: &Registry, refusal: &Refusal, (hostname, port): &(String, u16)) {
    match refusal {
        Refusal::Conflict { id, times, .. } if times % LOG_EVERY == 1 => {
            warn!(%id, hostname, port, times, error = %refusal, "two servers use one id: refused the second");
        }
        Refusal::TooManyNodes { .. } | Refusal::TooManyIds { .. } => {
            let before = registry.metrics().had_no_room.inc();
            if before.is_multiple_of(LOG_EVERY) {
                warn!(error = %refusal, before, "refused a node");
            }
        }
        Refusal::Conflict { .. } | Refusal::LaterStart { .. } | Refusal::Superseded { .. } => {
            debug!(hostname, port, error = %refusal, "refused a report");
        }
    }
}

/// What a peer is told.
pub(crate) fn refused(refusal: &Refusal) -> Status {
    let text = refusal.to_string();
    match refusal {
        Refusal::LaterStart { .. } | Refusal::Conflict { .. } => Status::already_exists(text),
        Refusal::Superseded { .. } => Status::aborted(text),
        Refusal::TooManyNodes { .. } | Refusal::TooManyIds { .. } => Status::resource_exhausted(text),
    }
}

/// Lets a burst pass, and then one in every [`TAKE_EVERY`].
#[derive(Debug)]
struct Pace {
    /// The debt is paid off when this time comes.
    paid_off: Instant,
    /// From when on the next may be taken.
    next: Instant,
}

impl Pace {
    fn new() -> Self {
        let now = Instant::now();
        Self { paid_off: now, next: now }
    }

    fn may_take(&self, now: Instant) -> bool {
        now >= self.next
    }

    fn take(&mut self, now: Instant) {
        self.paid_off = self.paid_off.max(now) + TAKE_EVERY;
        // What is owed may reach the burst, and no more.
        self.next = self.paid_off.checked_sub(TAKE_EVERY * (BURST - 1)).map_or(now, |next| next.max(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_fifty_a_second() {
        let mut pace = Pace::new();
        let mut now = pace.next;
        let mut take_all = |now: Instant| {
            let mut taken = 0;
            while pace.may_take(now) && taken < 1000 {
                pace.take(now);
                taken += 1;
            }
            taken
        };
        assert_eq!(take_all(now), BURST);
        let taken: u32 = (0..1000).map(|_| (now += Duration::from_millis(1), take_all(now)).1).sum();
        assert!((48..=50).contains(&taken), "{taken}");
        now += Duration::from_secs(60);
        assert_eq!(take_all(now), BURST);
    }
}
