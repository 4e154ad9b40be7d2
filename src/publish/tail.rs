//! The end of a topic with one partition, and what it holds until there.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use crate::log::{Log, LogError, PartitionRange, Record};

/// How long to wait for a record that is there.
const READ_WAIT: Duration = Duration::from_secs(1);
/// Bytes of one read, about.
const READ_BYTES: usize = 1 << 20;

/// The range of the topic's one partition.
pub(super) async fn range(log: &dyn Log, topic: &str) -> Result<PartitionRange, LogError> {
    let ranges = log.describe(topic).await?;
    ranges
        .and_then(|ranges| ranges.first().copied())
        .ok_or_else(|| LogError::UnknownTopic(format!("{topic}/0")))
}

/// The latest record of each key, and the offset from which on what is newer is to be read.
pub(super) async fn latest(log: &dyn Log, topic: &str) -> Result<(BTreeMap<Bytes, Record>, i64), LogError> {
    let end = range(log, topic).await?.end;
    let latest = log.latest(topic).await?;
    // What came meanwhile and is known must not be read again: an older record of its key would take its place.
    let next = latest.values().map(|record| record.offset + 1).fold(end, i64::max);
    Ok((latest, next))
}

/// The last record; `None` when there is none. Offsets may have holes, so it looks back in growing steps.
pub(super) async fn last_record(log: &dyn Log, topic: &str) -> Result<Option<Record>, LogError> {
    let range = range(log, topic).await?;
    let mut back = 1;
    loop {
        let from = range.start.max(range.end - back);
        let last = last_between(log, topic, from, range.end).await?;
        if last.is_some() || from == range.start {
            return Ok(last);
        }
        back *= 16;
    }
}

async fn last_between(log: &dyn Log, topic: &str, from: i64, end: i64) -> Result<Option<Record>, LogError> {
    if from >= end {
        return Ok(None);
    }
    let mut reader = log.reader(topic, 0, from).await?;
    let mut last = None;
    let mut next = from;
    while next < end {
        let batch = reader.read(READ_BYTES, READ_WAIT).await?;
        next = batch.next;
        let is_at_end = batch.records.is_empty() && batch.complete_until_ms.is_some();
        last = batch.records.into_iter().next_back().or(last);
        if is_at_end {
            break;
        }
    }
    Ok(last)
}
