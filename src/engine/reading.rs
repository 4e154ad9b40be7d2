//! Reading: one task per partition of a query's sources feeds its run.

use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::closing::Lane;
use super::compile::CompiledQuery;
use super::failure::Failure;
use super::partition::Pushed;
use super::run::{COMMIT_EVERY, PROOF_WAIT, Run};
use super::shared::Shared;
use super::sharing::SourceOf;
use super::tail::Follower;
use crate::clock;
use crate::log::{Log, LogError, PartitionRange, Record, failpoint};
use crate::reaction::table::Table;

/// Feeds one partition until told to stop.
pub(super) async fn read_partition(
    shared: &Shared,
    run: &Run,
    index: usize,
    lane: Lane,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let reader = SourceOf { query: Arc::clone(&run.query), source: lane.source };
    let mut follower = shared.tails.follow(reader, lane);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            ended = read_once(shared, run, index, lane, &mut follower) => ended?,
        }
    }
}

async fn read_once(
    shared: &Shared,
    run: &Run,
    index: usize,
    lane: Lane,
    follower: &mut Follower,
) -> Result<(), Failure> {
    while run.has_to_wait(index, clock::wall_ns(), shared.bounds) {
        tokio::time::sleep(PROOF_WAIT).await;
    }
    let earlier = run.earlier.notified();
    tokio::pin!(earlier);
    earlier.as_mut().enable();
    let stretch = tokio::select! {
        stretch = follower.next(run.read_wait(clock::wall_ns())) => stretch?,
        () = earlier => return Ok(()),
    };
    failpoint::hit("engine.read");
    if let Some(chunk) = &stretch.chunk {
        let mut place = 0;
        while place < chunk.records.len() {
            let decoded = follower.part(chunk, place, &shared.workers).await;
            let records = &chunk.records[place..];
            let permit = shared.workers.acquire().await;
            let pushed = run.take(index, records, &decoded, chunk.read_ms)?;
            drop(permit);
            tell(run, lane, records, &pushed)?;
            run.keep_within(shared.bounds)?;
            place += pushed.taken;
            tokio::task::yield_now().await;
        }
    }
    let topic = &run.query.sources[lane.source].table.topic;
    let proof = stretch.complete_until_ms.filter(|until_ms| shared.fed.is_complete(topic, *until_ms));
    run.read_to(index, stretch.next, proof);
    Ok(())
}

/// Of the records that cannot be decoded.
fn tell(run: &Run, lane: Lane, records: &[Record], pushed: &Pushed) -> Result<(), Failure> {
    let Table { name: table, topic, .. } = &run.query.sources[lane.source].table;
    let (query, partition) = (run.query.name.as_str(), lane.partition);
    for (place, error) in &pushed.bad {
        let offset = records[*place].offset;
        if let Some(more) = run.bad_told.say(Instant::now()) {
            tracing::warn!(query, topic, partition, offset, more, %error, "a record cannot be read");
        }
    }
    let Some(error) = &pushed.stopped_by else { return Ok(()) };
    let offset = records[pushed.taken].offset;
    Err(Failure::Stop(format!(
        "{topic}, partition {partition}, offset {offset}: {error}; to leave such records out and go on from there, say \
         bad_data = 'drop' in CREATE TABLE {table}"
    )))
}

/// Tells every few seconds how many records are not read yet, and how many were bad besides those that were told; ends the
/// run when a topic has got more partitions.
pub(super) async fn observe_lag(shared: &Shared, run: &Run, stop: &CancellationToken) -> Result<(), Failure> {
    loop {
        // A log that does not answer is no reason to stop: the readers will say so.
        if let Ok(ranges) = ranges(shared.log.as_ref(), &run.query).await {
            let gauge = metrics::gauge!("emostream_engine_lag_records", "query" => run.query.name.clone());
            gauge.set(run.lag(&ranges) as f64);
            let gauge = metrics::gauge!("emostream_engine_spilled_bytes", "query" => run.query.name.clone());
            gauge.set(run.spilled_bytes() as f64);
            if let Some(topic) = run.has_grown(&ranges) {
                return Err(Failure::Renew(format!("{topic} has more partitions")));
            }
        }
        if let Some(more) = run.bad_told.rest() {
            tracing::warn!(query = run.query.name, more, "more records could not be read");
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
