//! Committing: what closed becomes one transaction of the log.

use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::closing::Closed;
use super::compile::CompiledQuery;
use super::failure::Failure;
use super::saved::SavedRecord;
use super::{group, sink};
use crate::clock;
use crate::log::failpoint;
use crate::log::{Log, LogError, NewRecord, TOPIC_CHECKPOINTS, Transaction, Writer};
use crate::reaction::checkpoint::Checkpoint;

/// Between attempts at a write that the log did not take, and to recover: from … to.
pub(super) const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Under which a query writes: one live writer of each.
pub(super) fn writer_id(query: &str) -> String {
    format!("emostream.query.{query}")
}

/// As many bytes of what goes ahead are in one transaction.
const AHEAD_BYTES: usize = 4 << 20;

/// Commits; while nothing was written because the log is not available, tries again with the same rows. Answers whether it
/// was done when `stop` came.
pub(super) async fn commit(
    writer: &mut dyn Writer,
    transaction: Transaction,
    stop: &CancellationToken,
) -> Result<bool, Failure> {
    let mut wait = RETRY.0;
    loop {
        failpoint::hit("engine.commit.before");
        match writer.commit(transaction.clone()).await {
            Ok(()) => {
                failpoint::hit("engine.commit.after");
                return Ok(true);
            }
            Err(LogError::Unavailable(reason)) => tracing::warn!(reason, "a commit waits for the log"),
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(false),
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(RETRY.1),
        }
    }
}

/// Writes what goes ahead of a commit, some at a time, so that memory never holds all of it. No checkpoint counts it before
/// that commit. Answers whether it was done when `stop` came.
pub(super) async fn save_ahead(
    writer: &mut dyn Writer,
    saved: &[SavedRecord],
    stop: &CancellationToken,
) -> Result<bool, Failure> {
    let (mut records, mut bytes) = (Vec::new(), 0);
    let ahead: Vec<&SavedRecord> = saved.iter().filter(|saved| saved.goes_ahead()).collect();
    for (place, saved) in ahead.iter().enumerate() {
        let value = saved.value()?;
        bytes += value.as_ref().map_or(0, Bytes::len);
        records.push((TOPIC_CHECKPOINTS.to_owned(), 0, NewRecord::keyed(saved.key.clone(), value)));
        if bytes >= AHEAD_BYTES || place + 1 == ahead.len() {
            let transaction = Transaction { records: std::mem::take(&mut records), consumed: Vec::new() };
            bytes = 0;
            if !commit(writer, transaction, stop).await? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

pub(super) fn transaction(
    query: &CompiledQuery,
    closed: &Closed,
    sink_partitions: &[u32],
) -> Result<Transaction, Failure> {
    let (mut records, revision) = (Vec::new(), closed.checkpoint.revision);
    for ((output, closed), partitions) in query.outputs.iter().zip(&closed.outputs).zip(sink_partitions) {
        if !output.sink.is_in_the_log() {
            continue;
        }
        let rows = sink::output_records(&output.sink, *partitions, closed, revision)?;
        let topic = &output.sink.topic;
        records.extend(rows.into_iter().map(|(partition, record)| (topic.clone(), partition, record)));
    }
    let kept = closed.kept.records().iter();
    records.extend(kept.map(|(topic, record)| (topic.clone(), 0, record.clone())));
    let value = serde_json::to_vec(&closed.checkpoint)
        .map_err(|error| Failure::Stop(format!("the checkpoint cannot be written: {error}")))?;
    for saved in closed.saved.iter().filter(|saved| !saved.goes_ahead()) {
        records.push((TOPIC_CHECKPOINTS.to_owned(), 0, NewRecord::keyed(saved.key.clone(), saved.value()?)));
    }
    records.push((TOPIC_CHECKPOINTS.to_owned(), 0, NewRecord::keyed(query.name.clone(), Some(value.into()))));
    Ok(Transaction { records, consumed: group::consumed(query, &closed.checkpoint) })
}

/// Retention must not pass what this query would resume from.
pub(super) async fn hold(log: &dyn Log, query: &str, checkpoint: &Checkpoint) -> Result<(), LogError> {
    let holder = writer_id(query);
    for (topic, positions) in &checkpoint.sources {
        for (position, partition) in positions.iter().zip(0..) {
            log.hold(&holder, topic, partition, Some(position.resume)).await?;
        }
    }
    Ok(())
}

/// Metrics of one commit.
pub(super) fn observe(query: &str, closed: &Closed) {
    let query = query.to_owned();
    let left_out = closed.kept.left_out();
    if left_out > 0 {
        tracing::warn!(
            query,
            left_out,
            "more bad records or late rows than one commit keeps; these are only counted"
        );
    }
    let figures = closed.checkpoint.figures;
    metrics::counter!("emostream_engine_rows_total", "query" => query.clone()).absolute(figures.accepted);
    metrics::counter!("emostream_engine_late_rows_total", "query" => query.clone()).absolute(figures.late);
    metrics::gauge!("emostream_engine_open_rows", "query" => query.clone()).set(figures.open as f64);
    if let Some(emitted) = closed.checkpoint.emitted {
        metrics::gauge!("emostream_engine_watermark_seconds", "query" => query.clone())
            .set(emitted as f64 / 1e9);
    }
    let now_ns = clock::wall_ns();
    for window in closed.windows() {
        let lag_s = now_ns.saturating_sub(window.window.end) as f64 / 1e9;
        metrics::histogram!("emostream_engine_close_lag_seconds", "query" => query.clone()).record(lag_s);
    }
}
