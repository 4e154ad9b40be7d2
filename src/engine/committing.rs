//! Committing: what closed becomes one transaction of the log.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::closing::Closed;
use super::compile::CompiledQuery;
use super::failure::Failure;
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

/// Commits; while nothing was written because the log is not available, tries again with the same rows.
pub(super) async fn commit(
    writer: &mut dyn Writer,
    transaction: Transaction,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let mut wait = RETRY.0;
    loop {
        failpoint::hit("engine.commit.before");
        match writer.commit(transaction.clone()).await {
            Ok(()) => {
                failpoint::hit("engine.commit.after");
                return Ok(());
            }
            Err(LogError::Unavailable(reason)) => tracing::warn!(reason, "a commit waits for the log"),
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(RETRY.1),
        }
    }
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
    let saved = closed.saved.iter().map(|saved| (saved.key.clone(), saved.value.clone()));
    for (key, value) in saved.chain([(query.name.clone(), Some(value))]) {
        records.push((TOPIC_CHECKPOINTS.to_owned(), 0, NewRecord::keyed(key, value)));
    }
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
