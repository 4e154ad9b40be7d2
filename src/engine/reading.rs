//! Reading: one task per partition of a query's sources feeds its run.

use tokio_util::sync::CancellationToken;

use super::closing::Lane;
use super::compile::CompiledQuery;
use super::failure::Failure;
use super::partition::Pushed;
use super::run::{COMMIT_EVERY, PROOF_WAIT, Run};
use super::shared::Shared;
use crate::clock;
use crate::log::{Log, LogError, PartitionRange, Reader, Record, failpoint};
use crate::reaction::table::Table;

/// One read brings about this many bytes: enough to amortise it, little to hold.
const READ_BYTES: usize = 4 << 20;

/// Feeds one partition until told to stop.
pub(super) async fn read_partition(
    shared: &Shared,
    run: &Run,
    index: usize,
    lane: Lane,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let topic = &run.query.sources[lane.source].table.topic;
    let mut reader = shared.log.reader(topic, lane.partition, lane.from.resume).await?;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            ended = read_once(shared, run, index, lane, reader.as_mut()) => ended?,
        }
    }
}

async fn read_once(
    shared: &Shared,
    run: &Run,
    index: usize,
    lane: Lane,
    reader: &mut dyn Reader,
) -> Result<(), Failure> {
    while run.has_to_wait(index) {
        tokio::time::sleep(PROOF_WAIT).await;
    }
    let earlier = run.earlier.notified();
    tokio::pin!(earlier);
    earlier.as_mut().enable();
    let batch = tokio::select! {
        batch = reader.read(READ_BYTES, run.read_wait(clock::wall_ns())) => batch?,
        () = earlier => return Ok(()),
    };
    failpoint::hit("engine.read");
    let now_ms = clock::wall_ms();
    let mut records = batch.records.as_slice();
    while !records.is_empty() {
        let permit = shared.workers.acquire().await;
        let pushed = run.push(index, records, now_ms)?;
        drop(permit);
        tell(&run.query, lane, records, &pushed)?;
        records = &records[pushed.taken..];
        tokio::task::yield_now().await;
    }
    shared.bounds.check(run.read_to(index, batch.next, batch.complete_until_ms))
}

/// Of the records that cannot be decoded.
fn tell(query: &CompiledQuery, lane: Lane, records: &[Record], pushed: &Pushed) -> Result<(), Failure> {
    let Table { name: table, topic, .. } = &query.sources[lane.source].table;
    let (query, partition) = (query.name.as_str(), lane.partition);
    for (place, error) in &pushed.bad {
        let offset = records[*place].offset;
        tracing::warn!(query, topic, partition, offset, %error, "a record cannot be read");
    }
    let Some(error) = &pushed.stopped_by else { return Ok(()) };
    let offset = records[pushed.taken].offset;
    Err(Failure::Stop(format!(
        "{topic}, partition {partition}, offset {offset}: {error}; to leave such records out and go on from there, say \
         bad_data = 'drop' in CREATE TABLE {table}"
    )))
}

/// Tells every few seconds how many records are not read yet, and ends the run when a topic has got more partitions.
pub(super) async fn observe_lag(shared: &Shared, run: &Run, stop: &CancellationToken) -> Result<(), Failure> {
    loop {
        // A log that does not answer is no reason to stop: the readers will say so.
        if let Ok(ranges) = ranges(shared.log.as_ref(), &run.query).await {
            let gauge = metrics::gauge!("emostream_engine_lag_records", "query" => run.query.name.clone());
            gauge.set(run.lag(&ranges) as f64);
            if let Some(topic) = run.has_grown(&ranges) {
                return Err(Failure::Renew(format!("{topic} has more partitions")));
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(COMMIT_EVERY) => {}
        }
    }
}

/// By source of the query: the ranges of its topic's partitions.
pub(super) async fn ranges(
    log: &dyn Log,
    query: &CompiledQuery,
) -> Result<Vec<Vec<PartitionRange>>, LogError> {
    let mut all = Vec::with_capacity(query.sources.len());
    for source in &query.sources {
        all.push(describe(log, &source.table.topic).await?);
    }
    Ok(all)
}

pub(super) async fn describe(log: &dyn Log, topic: &str) -> Result<Vec<PartitionRange>, LogError> {
    log.describe(topic).await?.ok_or_else(|| LogError::UnknownTopic(topic.to_owned()))
}
