//! Closed windows → records of the results topic: one JSON object per row, with the window in the headers. Pure.

use std::collections::HashMap;

use arrow::array::{Array, ArrayRef, RecordBatch};
use bytes::Bytes;
use datafusion::common::{DataFusionError, Result, internal_err};
use serde_json::Value;

use super::closing::{ClosedOutput, ClosedWindow};
use crate::log::result_row::COLUMN_ROOM;
use crate::log::{
    HEADER_FINAL, HEADER_REVISION, HEADER_WINDOW_END, HEADER_WINDOW_ROWS, HEADER_WINDOW_START, Headers,
    NewRecord, header_name,
};
use crate::reaction::json::json_value;
use crate::reaction::live::DEFAULT_ROOM;
use crate::reaction::table::Table;
use crate::reaction::time::format_rfc3339;

/// What a record says of its window besides rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// False for an early result.
    pub is_final: bool,
    /// The highest one replaces the whole window.
    pub revision: u64,
}

/// The records of one commit into one sink: partition and record. All its windows have that revision.
///
/// # Errors
/// As [`records`].
pub fn output_records(
    sink: &Table,
    partitions: u32,
    closed: &ClosedOutput,
    revision: u64,
) -> Result<Vec<(u32, NewRecord)>> {
    let mut all = Vec::new();
    for window in &closed.windows {
        all.extend(records(sink, partitions, window, Word { is_final: true, revision })?);
    }
    for window in &closed.early {
        all.extend(records(sink, partitions, window, Word { is_final: false, revision })?);
    }
    for batch in &closed.rows {
        let rows = JsonRows::new(sink, batch)?;
        for row in 0..batch.num_rows() {
            all.push(rows.record(partitions, row, Headers::new())?);
        }
    }
    Ok(all)
}

/// The records of one window: partition and record, in the rows' order. Rows with the same `'sink.key_field'` go to
/// the same partition, those of a sink without one to partition 0.
///
/// # Errors
/// When a column's type has no JSON form: the planner let through what it must not.
pub fn records(
    sink: &Table,
    partitions: u32,
    closed: &ClosedWindow,
    word: Word,
) -> Result<Vec<(u32, NewRecord)>> {
    let batches = closed.rows.iter().map(|batch| JsonRows::new(sink, batch)).collect::<Result<Vec<_>>>()?;
    let places = || batches.iter().flat_map(|rows| (0..rows.count).map(move |row| (rows, row)));
    let mut rows_of_room: HashMap<String, usize> = HashMap::new();
    let mut rooms = Vec::new();
    for (rows, row) in places() {
        let room = rows.room(row)?;
        *rows_of_room.entry(room.clone()).or_default() += 1;
        rooms.push(room);
    }
    // The same for all rows: made once.
    let header = |name, text: String| (header_name(name), Bytes::from(text));
    let mut headers = vec![
        header(HEADER_WINDOW_START, format_rfc3339(closed.window.start)),
        header(HEADER_WINDOW_END, format_rfc3339(closed.window.end)),
        header(HEADER_FINAL, word.is_final.to_string()),
        header(HEADER_REVISION, word.revision.to_string()),
        header(HEADER_WINDOW_ROWS, String::new()),
    ];
    let records = places().zip(&rooms).map(|((rows, row), room)| {
        let window_rows = rows_of_room.get(room).copied().unwrap_or_default();
        headers.pop();
        headers.push(header(HEADER_WINDOW_ROWS, window_rows.to_string()));
        rows.record(partitions, row, headers.clone())
    });
    records.collect()
}

/// A batch on its way into a sink.
struct JsonRows<'a> {
    columns: &'a [ArrayRef],
    count: usize,
    /// By column: `{"name":` or `,"name":`.
    heads: Vec<String>,
    key: Option<usize>,
    room: Option<usize>,
}

impl<'a> JsonRows<'a> {
    fn new(sink: &'a Table, batch: &'a RecordBatch) -> Result<Self> {
        if batch.num_columns() != sink.columns.len() {
            let (found, expected) = (batch.num_columns(), sink.columns.len());
            return internal_err!("{} has {expected} columns, the query {found}", sink.name);
        }
        let heads = sink.columns.iter().enumerate().map(|(place, column)| {
            format!("{}{}:", if place == 0 { '{' } else { ',' }, Value::from(column.name.as_str()))
        });
        let place = |name: &str| sink.columns.iter().position(|column| column.name == name);
        Ok(Self {
            columns: batch.columns(),
            count: batch.num_rows(),
            heads: heads.collect(),
            key: sink.key_field.as_deref().and_then(place),
            room: place(COLUMN_ROOM),
        })
    }

    fn value(&self, column: usize, row: usize) -> Result<Value> {
        match json_value(&self.columns[column], row) {
            Some(value) => Ok(value),
            None => internal_err!("no JSON form for {}", self.columns[column].data_type()),
        }
    }

    /// The row as an object.
    fn record(&self, partitions: u32, row: usize, headers: Headers) -> Result<(u32, NewRecord)> {
        let mut object = Vec::with_capacity(32 * (self.columns.len() + 1));
        for (column, head) in self.heads.iter().enumerate() {
            object.extend_from_slice(head.as_bytes());
            let written = serde_json::to_writer(&mut object, &self.value(column, row)?);
            written.map_err(|error| DataFusionError::External(Box::new(error)))?;
        }
        object.push(b'}');
        let key = self.key.map(|key| self.value(key, row).map(text_of)).transpose()?;
        let partition = key.as_ref().map_or(0, |key| partition_of(key.as_bytes(), partitions));
        Ok((partition, NewRecord { key: key.map(Bytes::from), value: Some(Bytes::from(object)), headers }))
    }

    fn room(&self, row: usize) -> Result<String> {
        let room = self.room.map(|room| self.value(room, row)).transpose()?;
        Ok(room.filter(|room| !room.is_null()).map_or_else(|| DEFAULT_ROOM.to_owned(), text_of))
    }
}

fn text_of(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// A key's partition: FNV-1a (Fowler, Noll, Vo), which needs no state and never changes between builds.
fn partition_of(key: &[u8], partitions: u32) -> u32 {
    let hash =
        key.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    hash % partitions.max(1)
}

#[cfg(test)]
mod tests {
    use super::partition_of;

    #[test]
    fn a_key_keeps_its_partition_between_builds() {
        // FNV-1a's published test vectors: "" → 811c9dc5, "a" → e40c292c, "foobar" → bf9cf968.
        assert_eq!(partition_of(b"", u32::MAX), 0x811c_9dc5);
        assert_eq!(partition_of(b"a", u32::MAX), 0xe40c_292c);
        assert_eq!(partition_of(b"foobar", 16), 0xbf9c_f968 % 16);
    }
}
