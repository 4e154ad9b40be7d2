//! Closed windows → records of the results topic: one JSON object per row, with the window in the headers. Pure.

use std::collections::HashMap;

use arrow::array::RecordBatch;
use bytes::Bytes;
use datafusion::common::{DataFusionError, Result, internal_err};
use serde_json::{Map, Value};

use super::closing::{ClosedOutput, ClosedWindow};
use crate::log::result_row::COLUMN_ROOM;
use crate::log::{
    HEADER_FINAL, HEADER_REVISION, HEADER_WINDOW_END, HEADER_WINDOW_ROWS, HEADER_WINDOW_START, NewRecord,
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
        for row in json_rows(sink, batch)? {
            all.push(record(sink, partitions, &row)?);
        }
    }
    Ok(all)
}

/// A row as a record, without headers.
fn record(sink: &Table, partitions: u32, row: &Map<String, Value>) -> Result<(u32, NewRecord)> {
    let key = sink.key_field.as_ref().and_then(|field| row.get(field)).map(text_of);
    let partition = key.as_ref().map_or(0, |key| partition_of(key.as_bytes(), partitions));
    let value = serde_json::to_vec(row).map_err(|error| DataFusionError::External(Box::new(error)))?;
    let record =
        NewRecord { key: key.map(Bytes::from), value: Some(Bytes::from(value)), headers: Vec::new() };
    Ok((partition, record))
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
    let mut rows = Vec::new();
    for batch in &closed.rows {
        rows.extend(json_rows(sink, batch)?);
    }
    let mut rows_of_room: HashMap<String, usize> = HashMap::new();
    for row in &rows {
        *rows_of_room.entry(room_of(row)).or_default() += 1;
    }
    let start = format_rfc3339(closed.window.start);
    let end = format_rfc3339(closed.window.end);
    let records = rows.iter().map(|row| {
        let (partition, record) = record(sink, partitions, row)?;
        let window_rows = rows_of_room.get(&room_of(row)).copied().unwrap_or_default();
        let record = record
            .header(HEADER_WINDOW_START, start.as_str())
            .header(HEADER_WINDOW_END, end.as_str())
            .header(HEADER_FINAL, if word.is_final { "true" } else { "false" })
            .header(HEADER_REVISION, word.revision.to_string())
            .header(HEADER_WINDOW_ROWS, window_rows.to_string());
        Ok((partition, record))
    });
    records.collect()
}

fn room_of(row: &Map<String, Value>) -> String {
    row.get(COLUMN_ROOM).filter(|room| !room.is_null()).map_or_else(|| DEFAULT_ROOM.to_owned(), text_of)
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A key's partition: FNV-1a (Fowler, Noll, Vo), which needs no state and never changes between builds.
fn partition_of(key: &[u8], partitions: u32) -> u32 {
    let hash =
        key.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    hash % partitions.max(1)
}

fn json_rows(sink: &Table, batch: &RecordBatch) -> Result<Vec<Map<String, Value>>> {
    let mut rows = vec![Map::with_capacity(sink.columns.len()); batch.num_rows()];
    if batch.num_columns() != sink.columns.len() {
        return internal_err!(
            "{} has {} columns, the query {}",
            sink.name,
            sink.columns.len(),
            batch.num_columns()
        );
    }
    for (column, values) in sink.columns.iter().zip(batch.columns()) {
        for (place, row) in rows.iter_mut().enumerate() {
            let Some(value) = json_value(values, place) else {
                return internal_err!("no JSON form for {}", values.data_type());
            };
            row.insert(column.name.clone(), value);
        }
    }
    Ok(rows)
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
