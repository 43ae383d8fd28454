//! What a run has shown, for people and for programs.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::shard::Harvest;
use super::statistics::Tally;

/// The result of a run. The field names are those of the JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) servers: Vec<String>,
    pub(crate) publishers: usize,
    pub(crate) subscribers: usize,
    /// Bytes of each activity.
    pub(crate) size: usize,
    /// What was asked for, if not as many as possible.
    pub(crate) rate: Option<u64>,
    /// Whether sessions were extended.
    pub(crate) acknowledged_sessions: bool,
    /// A signal ended it.
    pub(crate) interrupted: bool,
    /// Seconds until all clients were in, and how many a second that were.
    pub(crate) login_seconds: f64,
    pub(crate) logins_per_second: f64,
    /// Seconds from the start until something was published last.
    pub(crate) publishing_seconds: f64,
    pub(crate) published: u64,
    pub(crate) publishes_per_second: f64,
    /// Activities that were acknowledged, or in plain sessions came back to their publisher.
    pub(crate) acknowledged: u64,
    /// Seconds from the start until something arrived last.
    pub(crate) delivering_seconds: f64,
    pub(crate) deliveries: u64,
    pub(crate) expected_deliveries: u64,
    pub(crate) deliveries_per_second: f64,
    /// Of lines that subscribers received, in millions of bytes.
    pub(crate) megabytes_per_second: f64,
    pub(crate) latency_microseconds: Option<Latency>,
    /// Deliveries that did not take place, and of which subscriber most.
    pub(crate) lost: u64,
    pub(crate) most_lost_by_one_subscriber: u64,
    pub(crate) doubled: u64,
    pub(crate) out_of_order: u64,
    /// Came again to extended sessions, which drop it.
    pub(crate) repeated: u64,
    /// How often servers said that something is gone for good.
    pub(crate) gaps: u64,
    /// Other people's activities that came to subscribers.
    pub(crate) foreign: u64,
    pub(crate) longest_silence: Option<LongestSilence>,
    /// How often a connection was lost.
    pub(crate) lost_connections: u64,
    /// Clients that had no server in the end.
    pub(crate) not_connected: usize,
}

/// Of deliveries, in microseconds.
#[derive(Debug, Serialize)]
pub(crate) struct Latency {
    min: f64,
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p99_9: f64,
    p99_99: f64,
    max: f64,
}

/// The longest time in which a subscriber got nothing.
#[derive(Debug, Serialize)]
pub(crate) struct LongestSilence {
    milliseconds: f64,
    /// When it began, in seconds from the start.
    began_at_second: f64,
    subscriber: usize,
    /// Where that subscriber was then.
    server: Option<String>,
}

/// What all threads have seen.
#[derive(Debug)]
pub(crate) struct Summary {
    pub(crate) tally: Tally,
    pub(crate) lost: u64,
    pub(crate) most_lost: u64,
    pub(crate) last: u64,
    pub(crate) longest_silence: Option<LongestSilence>,
}

impl Summary {
    /// Of at least one thread.
    pub(crate) fn of(harvests: Vec<Harvest>) -> Option<Self> {
        let mut summary: Option<Self> = None;
        for Harvest { tally, subscribers } in harvests {
            let missing = || subscribers.iter().map(|subscriber| subscriber.missing);
            let (lost, most_lost) = (missing().sum::<u64>(), missing().max().unwrap_or(0));
            let last = subscribers.iter().map(|subscriber| subscriber.last).max().unwrap_or(0);
            let silence = subscribers.into_iter().max_by_key(|subscriber| subscriber.silence.0);
            let longest_silence = silence.map(|subscriber| LongestSilence {
                milliseconds: subscriber.silence.0 as f64 / 1e6,
                began_at_second: subscriber.silence.1 as f64 / 1e9,
                subscriber: subscriber.number,
                server: subscriber.silent_at,
            });
            let part = Self { tally, lost, most_lost, last, longest_silence };
            summary = Some(match summary {
                None => part,
                Some(before) => before.and(part),
            });
        }
        summary
    }

    fn and(mut self, other: Self) -> Self {
        self.tally.add(&other.tally);
        self.lost += other.lost;
        self.most_lost = self.most_lost.max(other.most_lost);
        self.last = self.last.max(other.last);
        let milliseconds =
            |silence: &Option<LongestSilence>| silence.as_ref().map_or(-1.0, |silence| silence.milliseconds);
        if milliseconds(&other.longest_silence) > milliseconds(&self.longest_silence) {
            self.longest_silence = other.longest_silence;
        }
        self
    }
}

/// So many in such a time, a second.
pub(crate) fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

impl Latency {
    pub(crate) fn of(latencies: &Histogram<u64>) -> Option<Self> {
        let microseconds = |nanoseconds: u64| nanoseconds as f64 / 1e3;
        let at = |quantile| microseconds(latencies.value_at_quantile(quantile));
        (!latencies.is_empty()).then(|| Self {
            min: microseconds(latencies.min()),
            mean: latencies.mean() / 1e3,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: microseconds(latencies.max()),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "logins     {} clients in {:.2} s: {:.0} a second",
            self.publishers + self.subscribers,
            self.login_seconds,
            self.logins_per_second
        )?;
        writeln!(
            f,
            "published  {} in {:.2} s: {:.0} a second; {} {}",
            self.published,
            self.publishing_seconds,
            self.publishes_per_second,
            self.acknowledged,
            if self.acknowledged_sessions { "acknowledged" } else { "came back" },
        )?;
        writeln!(
            f,
            "delivered  {} of {} in {:.2} s: {:.0} a second, {:.1} MB/s",
            self.deliveries,
            self.expected_deliveries,
            self.delivering_seconds,
            self.deliveries_per_second,
            self.megabytes_per_second,
        )?;
        match &self.latency_microseconds {
            None => writeln!(f, "latency    nothing was delivered")?,
            Some(latency) => {
                let time = |microseconds: f64| milliseconds(microseconds / 1e3);
                writeln!(
                    f,
                    "latency    p50 {}, p90 {}, p99 {}, p99.9 {}, p99.99 {}, max {}",
                    time(latency.p50),
                    time(latency.p90),
                    time(latency.p99),
                    time(latency.p99_9),
                    time(latency.p99_99),
                    time(latency.max),
                )?;
            }
        }
        writeln!(
            f,
            "faults     {} lost (at most {} at one subscriber), {} doubled, {} out of order",
            self.lost, self.most_lost_by_one_subscriber, self.doubled, self.out_of_order
        )?;
        if self.acknowledged_sessions {
            writeln!(f, "resumed    {} came again and were dropped, {} gaps", self.repeated, self.gaps)?;
        }
        if let Some(silence) = &self.longest_silence {
            let server = silence.server.as_deref().map(|server| format!(" at {server}")).unwrap_or_default();
            writeln!(
                f,
                "silence    {} at most: subscriber {}{server}, {:.2} s into the run",
                milliseconds(silence.milliseconds),
                silence.subscriber,
                silence.began_at_second,
            )?;
        }
        write!(
            f,
            "connections {} lost, {} clients without a server in the end",
            self.lost_connections, self.not_connected
        )
    }
}

fn milliseconds(milliseconds: f64) -> String {
    let digits = if milliseconds < 10.0 { 3 } else { 1 };
    format!("{milliseconds:.digits$} ms")
}

/// What is counted while the run lasts.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) published: u64,
    pub(crate) deliveries: u64,
    pub(crate) bytes: u64,
}

/// One line about the time between two snapshots.
pub(crate) fn progress_line(
    (before, now): (Snapshot, Snapshot),
    interval: Duration,
    elapsed: Duration,
    (connected, clients): (usize, usize),
    longest_silence: Duration,
) -> String {
    let rate = |of: fn(&Snapshot) -> u64| per_second(of(&now).saturating_sub(of(&before)), interval.as_secs_f64());
    format!(
        "{:>4.0} s: {:.0} published/s, {:.0} delivered/s, {:.1} MB/s, longest silence {}, {connected} of {clients} connected",
        elapsed.as_secs_f64(),
        rate(|snapshot| snapshot.published),
        rate(|snapshot| snapshot.deliveries),
        rate(|snapshot| snapshot.bytes) / 1e6,
        milliseconds(longest_silence.as_secs_f64() * 1e3),
    )
}
