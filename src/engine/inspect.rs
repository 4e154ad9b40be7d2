//! What a query could not count, read back for whoever inspects it: bad records and late rows.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::Value;

use super::Engine;
use super::kept::{HEADER_BYTES, HEADER_OFFSET, HEADER_PARTITION, HEADER_QUERY, HEADER_REASON, HEADER_TOPIC};
use crate::log::{Log, LogError, Record, TOPIC_BAD, late_topic};
use crate::reaction::table::LateRows;
use crate::reaction::time::{NS_PER_MS, format_rfc3339};

/// At most so many of a topic's newest records are looked at.
const NEWEST: i64 = 1000;
/// At most so many bytes of them are held at a time.
const READ_BYTES: usize = 1 << 20;
/// How long a read waits that should find something at once.
const READ_WAIT: Duration = Duration::from_millis(200);

/// A record or a row that is in no window.
#[derive(Clone, Debug, Serialize)]
pub struct KeptRecord {
    /// When it was committed, RFC 3339.
    pub at: String,
    /// Where it was read.
    pub topic: String,
    /// The partition of that topic.
    pub partition: Option<u32>,
    /// The offset there of the record.
    pub offset: Option<i64>,
    /// `late`, `future`, or what is wrong with the record.
    pub reason: String,
    /// Of a late row, its columns.
    pub row: Option<Value>,
    /// Of a bad record, its value in base64; of a large one only the beginning.
    pub value: Option<String>,
    /// Of a bad record, how many bytes its value had.
    pub bytes: Option<u64>,
}

impl Engine {
    /// What a query could not count, the newest first; `None` when there is no query of that name.
    ///
    /// # Errors
    /// When the log does not answer.
    pub async fn kept(&self, name: &str) -> Result<Option<Vec<KeptRecord>>, LogError> {
        let Some(slot) = self.slot(name) else { return Ok(None) };
        let mut kept = Vec::new();
        let is_of_query = |record: &Record| record.header(HEADER_QUERY) == Some(name);
        let bad = newest(self.log.as_ref(), TOPIC_BAD).await?;
        kept.extend(bad.iter().filter(|record| is_of_query(record)).map(|record| described(record, true)));
        let running = slot.running();
        for source in &running.compiled().sources {
            if source.table.with.late_rows == LateRows::Table {
                let late = newest(self.log.as_ref(), &late_topic(&source.table.topic)).await?;
                let late = late.iter().filter(|record| is_of_query(record));
                kept.extend(late.map(|record| described(record, false)));
            }
        }
        kept.sort_by(|one, other| other.at.cmp(&one.at));
        Ok(Some(kept))
    }
}

/// The newest records of a topic's first partition, oldest first.
async fn newest(log: &dyn Log, topic: &str) -> Result<Vec<Record>, LogError> {
    let ranges = log.describe(topic).await?;
    let Some(range) = ranges.and_then(|ranges| ranges.first().copied()) else { return Ok(Vec::new()) };
    let mut next = range.start.max(range.end - NEWEST);
    let mut reader = log.reader(topic, 0, next).await?;
    let mut records = Vec::new();
    while next < range.end {
        let batch = reader.read(READ_BYTES, READ_WAIT).await?;
        // What a writer holds open is not there yet.
        if batch.records.is_empty() && batch.next <= next {
            break;
        }
        next = batch.next;
        records.extend(batch.records);
    }
    Ok(records)
}

fn described(record: &Record, is_bad: bool) -> KeptRecord {
    let header = |name| record.header(name).unwrap_or_default().to_owned();
    let value = record.value.as_deref().unwrap_or_default();
    KeptRecord {
        at: format_rfc3339(record.timestamp_ms.saturating_mul(NS_PER_MS)),
        topic: header(HEADER_TOPIC),
        partition: header(HEADER_PARTITION).parse().ok(),
        offset: header(HEADER_OFFSET).parse().ok(),
        reason: header(HEADER_REASON),
        row: if is_bad { None } else { serde_json::from_slice(value).ok() },
        value: is_bad.then(|| STANDARD.encode(value)),
        bytes: header(HEADER_BYTES).parse().ok(),
    }
}
