//! Where a query reads when a version with another plan takes over: asks the log for the first record that can hold a
//! row of its windows, and for what is gone.

use std::time::Duration;

use super::change::Takeover;
use super::closing::Start;
use super::compile::CompiledQuery;
use crate::log::{Log, LogError, PartitionRange};
use crate::reaction::checkpoint::{Checkpoint, Gap};
use crate::reaction::time::NS_PER_MS;

/// How long a record that is there may take to be read.
const READ_WAIT: Duration = Duration::from_secs(5);

/// The start of `query` after the checkpoint of another plan that emitted up to `emitted`. A row lies in no record that
/// is stamped earlier than the row less the tolerance, because it would have been one of the future there.
///
/// # Errors
/// As the log's.
pub(super) async fn start(
    log: &dyn Log,
    query: &CompiledQuery,
    checkpoint: &Checkpoint,
    emitted: i64,
    ranges: &[PartitionRange],
    tolerance_ms: i64,
) -> Result<Start, LogError> {
    let wanted = Takeover::after(query.rhythm(), emitted);
    let stamp_ms = |ns: i64| ns.div_euclid(NS_PER_MS).saturating_sub(tolerance_ms);
    let topic = query.source.topic.as_str();
    let (mut rows_at, mut whole_from) = (Vec::with_capacity(ranges.len()), i64::MIN);
    for (range, partition) in ranges.iter().zip(0..) {
        let offset = log.offset_at(topic, partition, stamp_ms(wanted.rows_from)).await?;
        rows_at.push(offset);
        // All that is left is stamped late enough: records before it may be gone.
        if range.start > 0 && offset <= range.start {
            let first_ms = first_stamp(log, topic, partition, *range).await?;
            let gone_to_ms = first_ms.map_or(i64::MIN, |first_ms| first_ms.saturating_add(tolerance_ms));
            whole_from = whole_from.max(gone_to_ms.saturating_mul(NS_PER_MS));
        }
    }
    let takeover = wanted.without_rows_before(query.rhythm(), whole_from);
    let gap = (takeover.emitted > wanted.emitted).then_some(Gap { from: emitted, to: takeover.rows_from });
    Ok(Start { gap, ..Start::take_over(Some(checkpoint), takeover, &rows_at) })
}

/// When the first record that is left was stamped; `None` when none is.
async fn first_stamp(
    log: &dyn Log,
    topic: &str,
    partition: u32,
    range: PartitionRange,
) -> Result<Option<i64>, LogError> {
    if range.start >= range.end {
        return Ok(None);
    }
    let mut reader = log.reader(topic, partition, range.start).await?;
    let batch = reader.read(1, READ_WAIT).await?;
    Ok(batch.records.first().map(|record| record.timestamp_ms))
}
