//! What is counted and measured while the crowd runs. Written by all senders and viewers, read by the display.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::time::Instant;

use crate::sync::lock;

/// One hour in microseconds: what takes longer is recorded as this.
const LONGEST_US: u64 = 3_600_000_000;
/// How many different troubles are kept word by word; of others only the number.
const KEPT_TROUBLES: usize = 8;

/// Everything counted. All counters only rise, except `watching`.
#[derive(Debug)]
pub struct Tally {
    /// Reactions answered 202.
    accepted: AtomicU64,
    /// Reactions of requests whose outcome the server, or a broken connection, left open.
    unknown: AtomicU64,
    /// Reactions the server refused for good.
    pub(super) refused: AtomicU64,
    /// Requests that got an answer.
    pub(super) requests: AtomicU64,
    /// Answers 429 or 503 that asked to come back later.
    pub(super) busy: AtomicU64,
    /// Connections that could not be made.
    pub(super) unreachable: AtomicU64,
    /// Reactions accepted, by sender.
    by_sender: Vec<AtomicU64>,

    /// Viewers connected now.
    pub(super) watching: AtomicU64,
    /// Viewers that were connected at least once.
    pub(super) joined: AtomicU64,
    /// Joins that failed.
    pub(super) failed_joins: AtomicU64,
    /// Connections that ended and were made again.
    pub(super) reconnects: AtomicU64,
    /// Windows received, over all viewers.
    pub(super) deliveries: AtomicU64,
    /// Windows the server left out for viewers that fell behind.
    pub(super) skipped: AtomicU64,
    /// Windows received with the id of one received before.
    pub(super) duplicates: AtomicU64,
    /// Windows received with an id below one received before.
    pub(super) disordered: AtomicU64,
    /// Events that say a viewer missed something for good.
    pub(super) gaps: AtomicU64,

    send_latency: Latencies,
    delivery_latency: Latencies,
    troubles: Mutex<Vec<(String, u64)>>,
    begun: OnceLock<Instant>,
    ended: OnceLock<Instant>,
}

/// Latencies of many tasks, in microseconds.
#[derive(Debug)]
struct Latencies(Option<Mutex<Histogram<u64>>>);

/// Latencies in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half were faster.
    pub p50: f64,
    /// Nine of ten were faster.
    pub p90: f64,
    /// 99 of 100 were faster.
    pub p99: f64,
    /// The slowest.
    pub max: f64,
}

impl Latencies {
    fn new() -> Self {
        // Fails for bounds that make no sense only, and these do.
        Self(Histogram::new_with_bounds(1, LONGEST_US, 3).ok().map(Mutex::new))
    }

    fn record(&self, latency: Duration) {
        if let Some(histogram) = &self.0 {
            let latency_us = u64::try_from(latency.as_micros()).unwrap_or(LONGEST_US);
            lock(histogram).saturating_record(latency_us);
        }
    }

    fn percentiles(&self) -> Option<Percentiles> {
        let histogram = self.0.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        if histogram.is_empty() {
            return None;
        }
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Some(Percentiles { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: histogram.max() as f64 / 1000.0 })
    }
}

impl Tally {
    /// Nothing counted yet, for so many senders.
    pub fn new(senders: u64) -> Self {
        let zero = AtomicU64::default;
        Self {
            accepted: zero(),
            unknown: zero(),
            refused: zero(),
            requests: zero(),
            busy: zero(),
            unreachable: zero(),
            by_sender: (0..senders).map(|_| zero()).collect(),
            watching: zero(),
            joined: zero(),
            failed_joins: zero(),
            reconnects: zero(),
            deliveries: zero(),
            skipped: zero(),
            duplicates: zero(),
            disordered: zero(),
            gaps: zero(),
            send_latency: Latencies::new(),
            delivery_latency: Latencies::new(),
            troubles: Mutex::default(),
            begun: OnceLock::new(),
            ended: OnceLock::new(),
        }
    }

    pub(super) fn begin(&self, at: Instant) {
        self.begun.get_or_init(|| at);
    }

    pub(super) fn end(&self) {
        self.ended.get_or_init(Instant::now);
    }

    /// How long reactions have been, or were, sent. None before the first.
    pub fn elapsed(&self) -> Option<Duration> {
        let until = self.ended.get().copied().unwrap_or_else(Instant::now);
        self.begun.get().map(|begun| until.saturating_duration_since(*begun))
    }

    /// Whether sending is over and only the windows' closing is awaited.
    pub fn has_ended(&self) -> bool {
        self.ended.get().is_some()
    }

    /// Reactions answered 202.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }

    /// Reactions of requests whose outcome is not known.
    pub fn unknown(&self) -> u64 {
        self.unknown.load(Relaxed)
    }

    /// Windows received, over all viewers.
    pub fn deliveries(&self) -> u64 {
        self.deliveries.load(Relaxed)
    }

    /// Viewers connected now.
    pub fn watching(&self) -> u64 {
        self.watching.load(Relaxed)
    }

    /// Answers 429 or 503 that asked to come back later.
    pub fn busy(&self) -> u64 {
        self.busy.load(Relaxed)
    }

    /// From the time a request should have left to its answer. None before the first.
    pub fn send_latency(&self) -> Option<Percentiles> {
        self.send_latency.percentiles()
    }

    /// From a window's end to its receipt by a viewer, by the clocks of both machines. None before the first.
    pub fn delivery_latency(&self) -> Option<Percentiles> {
        self.delivery_latency.percentiles()
    }

    pub(super) fn has_senders(&self) -> bool {
        !self.by_sender.is_empty()
    }

    /// Reactions accepted per sender: the fewest, the median, the most.
    pub fn per_sender(&self) -> [u64; 3] {
        let mut counts: Vec<u64> = self.by_sender.iter().map(|count| count.load(Relaxed)).collect();
        counts.sort_unstable();
        let at = |place: usize| counts.get(place).copied().unwrap_or_default();
        [at(0), at(counts.len() / 2), at(counts.len().saturating_sub(1))]
    }

    /// What went wrong, in the words of whoever said it, and how often.
    pub fn troubles(&self) -> Vec<(String, u64)> {
        lock(&self.troubles).clone()
    }

    /// A request of `rows` reactions that was answered 202, with the times since each of its parts was due.
    pub(super) fn record_accepted(
        &self,
        sender: usize,
        rows: u64,
        since_due: impl Iterator<Item = Duration>,
    ) {
        self.accepted.fetch_add(rows, Relaxed);
        if let Some(count) = self.by_sender.get(sender) {
            count.fetch_add(rows, Relaxed);
        }
        since_due.for_each(|latency| self.send_latency.record(latency));
    }

    pub(super) fn record_unknown(&self, rows: u64) {
        self.unknown.fetch_add(rows, Relaxed);
    }

    pub(super) fn record_delivery(&self, since_end: Duration) {
        self.deliveries.fetch_add(1, Relaxed);
        self.delivery_latency.record(since_end);
    }

    pub(super) fn record_trouble(&self, text: &str) {
        let mut troubles = lock(&self.troubles);
        if let Some((_, times)) = troubles.iter_mut().find(|(known, _)| known == text) {
            *times += 1;
        } else if troubles.len() < KEPT_TROUBLES {
            troubles.push((text.to_owned(), 1));
        }
    }
}
