//! The one order over all tables and rooms: numbers whole windows and says what a commit holds.
//!
//! Messages, their numbers and the read positions are one transaction, so that after a crash the same window gets the
//! same number or, when it was committed, none any more. Pure: no async, no clock, no I/O.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::gather::{Gather, Told, Whole, WindowKey};
use crate::log::result_row::quoted;
use crate::log::{NewRecord, TOPIC_CHECKPOINTS, TOPIC_LIVE, Transaction};
use crate::reaction::live::LiveId;
use crate::reaction::time::{NS_PER_MS, format_rfc3339};

/// The publisher's writer id, and the key of its checkpoint.
pub const WRITER_ID: &str = "emostream.publish";
/// The longest live message in bytes, because one record of the log holds it. A longer window is not sent live; it
/// stays readable at `/v1/results`.
pub const MAX_MESSAGE_BYTES: usize = 900_000;
/// Messages in one transaction at most; what is left goes into the next.
const COMMIT_MESSAGES: usize = 1_000;
/// Bytes of rows in one transaction, about.
const COMMIT_BYTES: usize = 4 << 20;
/// The longest time a client is asked to take for playing one window out.
const MAX_PACE_MS: i64 = 10_000;

/// What the publisher goes on from, stored with its messages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Which history the numbers belong to.
    pub epoch: u64,
    /// The number of the next message.
    pub next_sequence: u64,
    /// Where to read on, by table.
    pub tables: BTreeMap<String, TablePosition>,
    /// Windows told whose records lie beyond those positions.
    pub told: Vec<Told>,
}

/// Where to read one sink's topic on, so that every window not told can be rebuilt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TablePosition {
    /// The topic the offsets belong to.
    pub topic: String,
    /// Offset by partition.
    pub resume: BTreeMap<u32, i64>,
}

/// Gathers, numbers, and writes down.
#[derive(Debug)]
pub struct Sequencer {
    epoch: u64,
    next_sequence: u64,
    tables: BTreeMap<String, TablePosition>,
    /// Rows between reading and telling.
    pub gather: Gather,
}

/// One transaction, and what is worth saying about it.
#[derive(Debug)]
pub struct Commit {
    /// Live messages, then the checkpoint.
    pub transaction: Transaction,
    /// How many messages it has.
    pub messages: usize,
    /// Windows that are too long for a live message, with their length in bytes.
    pub too_long: Vec<(WindowKey, usize)>,
}

impl Sequencer {
    /// A history that begins now. Epochs must rise from one history to the next.
    pub fn new(epoch: u64) -> Self {
        Self { epoch, next_sequence: 1, tables: BTreeMap::new(), gather: Gather::default() }
    }

    /// Goes on where the last commit stood.
    pub fn restore(checkpoint: Checkpoint) -> Self {
        let Checkpoint { epoch, next_sequence, tables, told } = checkpoint;
        Self { epoch, next_sequence, tables, gather: Gather::restore(told) }
    }

    /// The id the next message gets.
    pub fn next_id(&self) -> LiveId {
        LiveId { epoch: self.epoch, sequence: self.next_sequence }
    }

    /// Where to read that table's topic on; `None` at its first time, and when it has another topic now.
    pub fn position(&mut self, table: &str, topic: &str) -> Option<&TablePosition> {
        let position = self.tables.entry(table.to_owned()).or_default();
        if position.topic != topic {
            *position = TablePosition { topic: topic.to_owned(), resume: BTreeMap::new() };
        }
        Some(&*position).filter(|position| !position.resume.is_empty())
    }

    /// Where every table known so far is read on, as of the last commit.
    pub fn positions(&self) -> impl Iterator<Item = (&str, &TablePosition)> {
        self.tables.iter().map(|(table, position)| (table.as_str(), position))
    }

    /// The next transaction; `None` when no whole window waits. Call again until then.
    ///
    /// # Errors
    /// When the checkpoint cannot be written as JSON, which is a bug.
    pub fn commit(&mut self) -> Result<Option<Commit>, serde_json::Error> {
        let taken = self.gather.take(COMMIT_MESSAGES, COMMIT_BYTES);
        if taken.is_empty() {
            return Ok(None);
        }
        let mut records = Vec::with_capacity(taken.len() + 1);
        let mut too_long = Vec::new();
        for (key, whole) in taken {
            let text = encode(self.next_id(), &key, &whole);
            if text.len() > MAX_MESSAGE_BYTES {
                too_long.push((key, text.len()));
                continue;
            }
            self.next_sequence += 1;
            let record = NewRecord { value: Some(text.into()), ..NewRecord::default() };
            records.push((TOPIC_LIVE.to_owned(), 0, record));
        }
        let messages = records.len();
        let (checkpoint, consumed) = self.checkpoint();
        let record = NewRecord::keyed(WRITER_ID, Some(serde_json::to_vec(&checkpoint)?.into()));
        records.push((TOPIC_CHECKPOINTS.to_owned(), 0, record));
        let transaction = Transaction { records, consumed: vec![(WRITER_ID.to_owned(), consumed)] };
        Ok(Some(Commit { transaction, messages, too_long }))
    }

    fn checkpoint(&mut self) -> (Checkpoint, Vec<(String, u32, i64)>) {
        let (resume, told) = self.gather.checkpoint();
        let mut consumed = Vec::with_capacity(resume.len());
        for ((table, partition), offset) in resume {
            if let Some(position) = self.tables.get_mut(&*table) {
                position.resume.insert(partition, offset);
                consumed.push((position.topic.clone(), partition, offset));
            }
        }
        let Self { epoch, next_sequence, tables, .. } = self;
        let checkpoint =
            Checkpoint { epoch: *epoch, next_sequence: *next_sequence, tables: tables.clone(), told };
        (checkpoint, consumed)
    }
}

/// The message as JSON in one line; the shape of [`crate::reaction::live::LiveMessage`].
fn encode(id: LiveId, key: &WindowKey, whole: &Whole) -> String {
    let pace_ms = ((key.end - key.start) / NS_PER_MS).min(MAX_PACE_MS);
    let Whole { is_final, rows, .. } = whole;
    let mut text = format!(
        r#"{{"id":"{id}","table":{},"room":{},"window":{{"start":"{}","end":"{}"}},"final":{is_final},"pace_ms":{pace_ms},"rows":["#,
        quoted(&key.table),
        quoted(&key.room),
        format_rfc3339(key.start),
        format_rfc3339(key.end),
    );
    text.reserve(rows.iter().map(|row| row.len() + 1).sum());
    for (n, row) in rows.iter().enumerate() {
        if n > 0 {
            text.push(',');
        }
        push_in_one_line(&mut text, row);
    }
    text.push_str("]}");
    text
}

/// A line break in JSON is only ever white space between tokens (inside a text it is escaped).
fn push_in_one_line(text: &mut String, json: &str) {
    text.extend(json.split(['\n', '\r']));
}

/// The table's name as the gathering core keys it.
pub fn table_name(name: &str) -> Arc<str> {
    Arc::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Record;
    use crate::log::result_row::{self, LIVE_COLUMNS, emoji_counts, result_record};
    use crate::reaction::live::LiveMessage;
    use serde_json::json;

    fn feed(sequencer: &mut Sequencer, offset: i64, window_ms: (i64, i64), value: serde_json::Value) {
        let NewRecord { key, value, headers, .. } = result_record(window_ms, 1, value);
        let record = Record { offset, timestamp_ms: 0, key, value, headers };
        let mut rows = result_row::read(&emoji_counts(), &record, &LIVE_COLUMNS).unwrap();
        let row = rows.remove(0);
        let table = table_name("emoji_counts");
        sequencer.position("emoji_counts", "emoji_counts");
        sequencer.gather.add(&table, 0, offset, row, 0);
        sequencer.gather.advance(&table, 0, offset + 1);
    }

    #[test]
    fn a_message_reads_back_as_the_window_it_tells() {
        let mut sequencer = Sequencer::new(1);
        feed(&mut sequencer, 0, (2000, 4000), json!({"room": "a\"b", "emoji_type": "😀", "count": 3785}));
        let commit = sequencer.commit().unwrap().unwrap();
        let (topic, _, record) = &commit.transaction.records[0];
        let message: LiveMessage = serde_json::from_slice(record.value.as_ref().unwrap()).unwrap();
        assert_eq!(topic, TOPIC_LIVE);
        assert_eq!(
            serde_json::to_value(&message).unwrap(),
            json!({"id": "e1-1", "table": "emoji_counts", "room": "a\"b",
                "window": {"start": "1970-01-01T00:00:02Z", "end": "1970-01-01T00:00:04Z"},
                "final": true, "pace_ms": 2000, "rows": [{"emoji_type": "😀", "count": 3785}]})
        );
    }

    #[test]
    fn the_checkpoint_goes_on_with_the_next_number_and_position() {
        let mut sequencer = Sequencer::new(7);
        for offset in 0..3 {
            feed(&mut sequencer, offset, (offset * 10, offset * 10 + 10), json!({}));
        }
        let commit = sequencer.commit().unwrap().unwrap();
        assert_eq!(commit.messages, 3);
        let (topic, _, record) = commit.transaction.records.last().unwrap();
        assert_eq!((topic.as_str(), record.key.as_deref()), (TOPIC_CHECKPOINTS, Some(WRITER_ID.as_bytes())));
        let checkpoint: Checkpoint = serde_json::from_slice(record.value.as_ref().unwrap()).unwrap();
        let mut restored = Sequencer::restore(checkpoint);
        assert_eq!(restored.next_id(), LiveId { epoch: 7, sequence: 4 });
        assert_eq!(restored.position("emoji_counts", "emoji_counts").unwrap().resume[&0], 3);
        assert!(restored.position("emoji_counts", "another").is_none());
        assert!(sequencer.commit().unwrap().is_none());
    }

    #[test]
    fn a_window_too_long_for_a_message_takes_no_number() {
        let mut sequencer = Sequencer::new(1);
        feed(&mut sequencer, 0, (0, 1), json!({"emoji_type": "x".repeat(MAX_MESSAGE_BYTES)}));
        feed(&mut sequencer, 1, (1, 2), json!({}));
        let commit = sequencer.commit().unwrap().unwrap();
        assert_eq!((commit.messages, commit.too_long.len()), (1, 1));
        assert_eq!(sequencer.next_id().sequence, 2);
    }

    #[test]
    fn a_message_is_one_line_whatever_the_record_looked_like() {
        let mut text = String::new();
        push_in_one_line(&mut text, "{\"a\":\n {\"b\":\r\n\"c\\n\"}}");
        assert_eq!(text, r#"{"a": {"b":"c\n"}}"#);
    }
}
