//! What is in no window and kept for inspection until the next commit: bad records and, where the table says so, late
//! rows. Bounded. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Map, Value};

use super::compile::CompiledSource;
use crate::log::codec::CodecError;
use crate::log::{NewRecord, Record, TOPIC_BAD, late_topic};
use crate::reaction::json::json_value;

/// Header of what is kept: the query that could not count it.
pub(super) const HEADER_QUERY: &str = "query";
/// Header: the topic it was read from.
pub(super) const HEADER_TOPIC: &str = "topic";
/// Header: the partition of that topic, decimal.
pub(super) const HEADER_PARTITION: &str = "partition";
/// Header: the record's offset there, decimal.
pub(super) const HEADER_OFFSET: &str = "offset";
/// Header: `late`, `future`, or what is wrong with the record.
pub(super) const HEADER_REASON: &str = "reason";
/// Header of a bad record: how many bytes its value had; what is kept may be only the beginning.
pub(super) const HEADER_BYTES: &str = "bytes";

/// The most that one commit keeps: records and rows together.
const MAX_RECORDS: usize = 100;
/// The most bytes of values that one commit keeps.
const MAX_BYTES: usize = 1 << 20;
/// As much of a bad record's value is kept.
const MAX_VALUE_BYTES: usize = 64 << 10;
/// As much of a reason is kept, in characters.
const MAX_REASON: usize = 1000;

/// Why a row is in no window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missed {
    Late,
    Future,
}

/// What waits for the next commit.
#[derive(Debug, Default)]
pub struct Kept {
    /// Topic and record.
    records: Vec<(String, NewRecord)>,
    bytes: usize,
    left_out: u64,
}

impl Kept {
    /// Topic and record, in the order in which each partition gave them.
    pub fn records(&self) -> &[(String, NewRecord)] {
        &self.records
    }

    /// How many records and rows were more than one commit keeps; they are only counted.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Whether there is nothing to be written.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Adds what another partition kept.
    pub(super) fn append(&mut self, other: Self) {
        self.left_out += other.left_out;
        for (topic, record) in other.records {
            self.add(topic, record);
        }
    }

    fn add(&mut self, topic: String, record: NewRecord) {
        let bytes = record.value.as_ref().map_or(0, Bytes::len);
        if self.records.len() >= MAX_RECORDS || self.bytes + bytes > MAX_BYTES {
            self.left_out += 1;
            return;
        }
        self.bytes += bytes;
        self.records.push((topic, record));
    }

    /// Keeps a record that cannot be decoded.
    pub(super) fn add_bad(&mut self, from: Origin<'_>, error: &CodecError) {
        let value = from.record.value.as_ref();
        let kept = value.map(|value| value.slice(..value.len().min(MAX_VALUE_BYTES)));
        let reason: String = error.to_string().chars().take(MAX_REASON).collect();
        let bytes = value.map_or(0, Bytes::len).to_string();
        let record = from.described(kept, &reason).header(HEADER_BYTES, bytes);
        self.add(TOPIC_BAD.to_owned(), record);
    }

    /// Keeps rows of a record, by their places in it, as JSON objects of all the table's columns.
    pub(super) fn add_missed(
        &mut self,
        source: &CompiledSource,
        from: Origin<'_>,
        rows: &BTreeMap<usize, Missed>,
    ) {
        let room = MAX_RECORDS.saturating_sub(self.records.len());
        self.left_out += rows.len().saturating_sub(room) as u64;
        if room == 0 {
            return;
        }
        let columns: Vec<usize> = (0..source.table.columns.len()).collect();
        let batch = match source.codec.decode(from.partition, from.record, &columns) {
            Ok(batch) => batch,
            // A column that the query does not read is damaged: no row of it can be shown, but the record can.
            Err(error) => return self.add_bad(from, &error),
        };
        for (&row, missed) in rows.iter().take(room) {
            let named = source.table.columns.iter().zip(batch.columns());
            let object: Map<String, Value> = named
                .map(|(column, values)| (column.name.clone(), json_value(values, row).unwrap_or_default()))
                .collect();
            let value = Bytes::from(Value::Object(object).to_string());
            let reason = match missed {
                Missed::Late => "late",
                Missed::Future => "future",
            };
            self.add(late_topic(&source.table.topic), from.described(Some(value), reason));
        }
    }
}

/// A record, where it is from, and for which query it was read.
#[derive(Clone, Copy)]
pub(super) struct Origin<'r> {
    pub(super) query: &'r str,
    pub(super) topic: &'r str,
    pub(super) partition: u32,
    pub(super) record: &'r Record,
}

impl Origin<'_> {
    fn described(&self, value: Option<Bytes>, reason: &str) -> NewRecord {
        NewRecord { value: Some(value.unwrap_or_default()), ..NewRecord::default() }
            .header(HEADER_QUERY, self.query)
            .header(HEADER_TOPIC, self.topic)
            .header(HEADER_PARTITION, self.partition.to_string())
            .header(HEADER_OFFSET, self.record.offset.to_string())
            .header(HEADER_REASON, reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(offset: i64, bytes: usize) -> Record {
        let value = Some(Bytes::from(vec![b'x'; bytes]));
        Record { offset, timestamp_ms: 0, key: None, value, headers: Vec::new() }
    }

    fn keep(kept: &mut Kept, record: &Record) {
        let from = Origin { query: "q", topic: "t", partition: 3, record };
        kept.add_bad(from, &CodecError::Damaged("torn".to_owned()));
    }

    #[test]
    fn a_commit_keeps_a_hundred_records_and_counts_the_others() {
        let (mut one, mut other) = (Kept::default(), Kept::default());
        for offset in 0..70 {
            keep(&mut one, &record(offset, 10));
            keep(&mut other, &record(offset, 10));
        }
        one.append(other);
        assert_eq!((one.records().len(), one.left_out()), (100, 40));
    }

    #[test]
    fn a_commit_keeps_a_megabyte_and_of_a_value_its_beginning() {
        let mut kept = Kept::default();
        (0..20).for_each(|offset| keep(&mut kept, &record(offset, 1 << 20)));
        assert_eq!((kept.records().len(), kept.left_out()), (16, 4));
        let (topic, first) = &kept.records()[0];
        assert_eq!((topic.as_str(), first.value.as_ref().unwrap().len()), (TOPIC_BAD, MAX_VALUE_BYTES));
        let headers: Vec<(&str, &[u8])> =
            first.headers.iter().map(|(name, value)| (name.as_ref(), value.as_ref())).collect();
        let expected: [(&str, &[u8]); 6] = [
            ("query", b"q"),
            ("topic", b"t"),
            ("partition", b"3"),
            ("offset", b"0"),
            ("reason", b"not readable: torn"),
            ("bytes", b"1048576"),
        ];
        assert_eq!(headers, expected);
    }
}
