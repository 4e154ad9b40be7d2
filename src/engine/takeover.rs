//! Where a query reads when a version with another plan takes over: asks the log for the first record that can hold a
//! row of its windows, and for what is gone.

use std::time::Duration;

use super::change::Takeover;
use super::closing::Start;
use super::compile::CompiledQuery;
use super::session_switch::{SessionSwitch, first_open};
use crate::log::{Log, LogError, PartitionRange};
use crate::reaction::checkpoint::{Checkpoint, Gap, Told};
use crate::reaction::time::NS_PER_MS;

/// How long a record that is there may take to be read.
const READ_WAIT: Duration = Duration::from_secs(5);

/// The start of `query` after the checkpoint of another plan that has told that much. A row lies in no record that
/// is stamped earlier than the row less the tolerance, because it would have been one of the future there.
///
/// # Errors
/// As the log's.
pub(super) async fn start(
    log: &dyn Log,
    query: &CompiledQuery,
    checkpoint: &Checkpoint,
    told: Told,
    ranges: &[Vec<PartitionRange>],
    tolerance_ms: i64,
) -> Result<Start, LogError> {
    // What windows of some kind hold and those of others do not is told by none: it would come twice.
    let Told { by_all, by_some: emitted } = told;
    let untold = (by_all < emitted).then_some(Gap { from: by_all, to: emitted });
    let before = checkpoint.sessions.as_ref();
    // Rows of sessions that are open are in no window yet, and a query without sessions does not ask which they are.
    let boundary = if query.sessions.is_some() { emitted } else { first_open(before, emitted) };
    let wanted = Takeover::after(&query.windows, boundary);
    let switch = query.sessions.as_ref().map(|kind| SessionSwitch::after(before, kind, emitted));
    let rows_from = switch
        .and_then(|switch| switch.rows_from)
        .map_or(wanted.rows_from, |from| from.min(wanted.rows_from));
    let stamp_ms = rows_from.div_euclid(NS_PER_MS).saturating_sub(tolerance_ms);
    let (mut rows_at, mut whole_from, mut all_are_there) = (Vec::with_capacity(ranges.len()), i64::MIN, true);
    for (source, ranges) in query.sources.iter().zip(ranges) {
        let topic = source.table.topic.as_str();
        let mut of_topic = Vec::with_capacity(ranges.len());
        for (range, partition) in ranges.iter().zip(0..) {
            let offset = log.offset_at(topic, partition, stamp_ms).await?;
            of_topic.push(offset);
            all_are_there &= range.start == 0 && offset <= range.start;
            // All that is left is stamped late enough: records before it may be gone.
            if range.start > 0 && offset <= range.start {
                let gone_to = match first_stamp(log, topic, partition, *range).await? {
                    Some(first_ms) => first_ms.saturating_add(tolerance_ms).saturating_mul(NS_PER_MS),
                    // All that it held is gone: as far as anybody has read it.
                    None => watermark_of(checkpoint, topic, partition).saturating_add(source.delay_ns),
                };
                whole_from = whole_from.max(gone_to);
            }
        }
        rows_at.push(of_topic);
    }
    let takeover = wanted.without_rows_before(&query.windows, whole_from);
    let lost = (takeover.emitted > wanted.emitted).then_some(Gap { from: emitted, to: takeover.rows_from });
    let (mut sessions, mut of_sessions) = (SessionSwitch::default(), None);
    if let Some((switch, kind)) = switch.zip(query.sessions.as_ref()) {
        sessions = match all_are_there {
            true => switch.with_all_rows(before),
            false => switch.without_rows_before(kind, whole_from),
        };
        of_sessions = sessions.gap(before, kind, emitted);
    }
    let gap = [untold, lost, of_sessions].into_iter().flatten().reduce(Gap::with);
    Ok(Start { gap, sessions, ..Start::take_over(query, Some(checkpoint), takeover, &rows_at) })
}

/// How far event time had come in a partition; the earliest time there is when nobody has read it.
fn watermark_of(checkpoint: &Checkpoint, topic: &str, partition: u32) -> i64 {
    let positions = checkpoint.sources.get(topic);
    let position = positions.and_then(|positions| positions.get(partition as usize));
    position.and_then(|position| position.watermark).unwrap_or(i64::MIN)
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::log::embedded::{EmbeddedLog, Settings};
    use crate::log::{NewRecord, Retention, TopicSpec};
    use crate::reaction::checkpoint::Position;
    use crate::reaction::figures::Figures;
    use crate::sql::{SqlFile, plan_program};

    const TOLERANCE_MS: i64 = 50;

    fn query() -> CompiledQuery {
        let file = |name: &str, text: &str| SqlFile { name: name.to_owned(), text: text.to_owned() };
        let counts = include_str!("../../sql/emoji_counts.sql").replace("2 seconds", "100 milliseconds");
        let files =
            [file("tables.sql", include_str!("../../sql/tables.sql")), file("emoji_counts.sql", &counts)];
        CompiledQuery::compile(&plan_program(&files).unwrap().queries[0]).unwrap()
    }

    /// A log with ten records on one partition, some milliseconds apart, and their stamps.
    async fn log(dir: &std::path::Path) -> (Arc<EmbeddedLog>, Vec<i64>) {
        let log = EmbeddedLog::open(dir, Settings::default()).unwrap();
        let retention = Retention::Age(Duration::from_secs(3600));
        let spec =
            TopicSpec { name: "reactions".to_owned(), partitions: 1, retention, log_append_time: false };
        log.create_topics(&[spec]).await.unwrap();
        for _ in 0..10 {
            let record = NewRecord { value: Some(Bytes::from_static(b"x")), ..NewRecord::default() };
            log.append("reactions", 0, vec![record]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        let mut reader = log.reader("reactions", 0, 0).await.unwrap();
        let batch = reader.read(1 << 20, READ_WAIT).await.unwrap();
        (log, batch.records.iter().map(|record| record.timestamp_ms).collect())
    }

    async fn started(log: &EmbeddedLog, emitted_ms: i64, seen: i64) -> Start {
        let checkpoint = Checkpoint {
            query: "emoji_counts".to_owned(),
            version: 1,
            fingerprint: "another".to_owned(),
            emitted: Some(emitted_ms * NS_PER_MS),
            sources: [("reactions".to_owned(), vec![Position { resume: seen, seen, watermark: None }])]
                .into(),
            figures: Figures::default(),
            gap: None,
            saved: Vec::new(),
            sessions: None,
            revision: 0,
            took_over_at: None,
            told: None,
        };
        let (query, ranges) = (query(), log.describe("reactions").await.unwrap().unwrap());
        let told = checkpoint.told().unwrap();
        start(log, &query, &checkpoint, told, &[ranges], TOLERANCE_MS).await.unwrap()
    }

    #[tokio::test]
    async fn it_reads_from_the_first_record_that_may_hold_a_row_of_its_windows() {
        let dir = tempfile::tempdir().unwrap();
        let (log, stamps) = log(dir.path()).await;
        let boundary = stamps[8] - stamps[8].rem_euclid(100);
        let first = stamps.iter().position(|stamp| *stamp >= boundary - TOLERANCE_MS).unwrap() as i64;
        let start = started(&log, boundary, 9).await;
        assert_eq!((start.emitted, start.gap), (Some(boundary * NS_PER_MS), None));
        assert_eq!(start.lanes[0].from, Position { resume: first, seen: 9, watermark: None });
        assert!(start.begins_account && first > 0 && first < 9);
        // What the old version has not read is read in any case.
        assert_eq!(started(&log, boundary, 1).await.lanes[0].from.resume, 1);
        log.close().await;
    }

    #[tokio::test]
    async fn what_is_gone_from_the_log_is_a_gap_and_no_window_is_emitted_in_part() {
        let dir = tempfile::tempdir().unwrap();
        let (log, stamps) = log(dir.path()).await;
        log.trim("reactions", 0, 6).await.unwrap();
        let emitted = stamps[1] - stamps[1].rem_euclid(100);
        let start = started(&log, emitted, 6).await;
        let whole = stamps[6] + TOLERANCE_MS;
        let first_window = whole + (100 - whole.rem_euclid(100)) % 100;
        let gap = Gap { from: emitted * NS_PER_MS, to: first_window * NS_PER_MS };
        assert_eq!((start.gap, start.emitted), (Some(gap), Some(first_window * NS_PER_MS)));
        log.close().await;
    }
}
