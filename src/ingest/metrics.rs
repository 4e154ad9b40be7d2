//! Ingest's metrics. Handles are looked up once: a look-up by name costs as much as a small request's parsing.

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

pub(super) struct Metrics {
    /// Rows answered 202.
    pub(super) accepted: Counter,
    /// Rows that wait for the log.
    pub(super) pending_rows: Gauge,
    /// Time of one append, in seconds.
    pub(super) append_seconds: Histogram,
    /// Rows of one record.
    pub(super) batch_rows: Histogram,
}

impl Metrics {
    pub(super) fn new() -> Self {
        metrics::describe_counter!("emostream_ingest_accepted_total", "rows answered 202");
        metrics::describe_counter!("emostream_ingest_refused_total", "requests refused, by reason");
        metrics::describe_gauge!("emostream_ingest_pending_rows", "rows that wait for the log");
        metrics::describe_histogram!("emostream_log_append_seconds", "time of one append to the log");
        metrics::describe_histogram!("emostream_ingest_batch_rows", "rows of one record");
        Self {
            accepted: counter!("emostream_ingest_accepted_total"),
            pending_rows: gauge!("emostream_ingest_pending_rows"),
            append_seconds: histogram!("emostream_log_append_seconds"),
            batch_rows: histogram!("emostream_ingest_batch_rows"),
        }
    }

    /// One request was refused. `reason` is the problem's kind.
    pub(super) fn refused(&self, reason: &str) {
        counter!("emostream_ingest_refused_total", "reason" => reason.to_owned()).increment(1);
    }
}
