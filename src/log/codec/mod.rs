//! The record codec: batches of a table's rows ↔ records, in the format that the table's DDL names.
//!
//! | format | a record's value |
//! |---|---|
//! | `arrow` | one Arrow IPC stream of one batch (`arrow.rs`) |
//! | `json` | one JSON object; with `framing = 'newline'` one a line (`json.rs`) |
//! | `raw_string` | text, the one column (`raw.rs`) |
//!
//! Records come from foreign writers too, so whatever a value holds costs that record only: a typed error, no panic,
//! and no allocation out of proportion to the value. TEXT is Utf8 or a dictionary of it with Int32 keys, whichever is
//! at hand: the engine groups by the keys. Two records of one topic may differ in that.

mod arrow;
mod arrow_small;
mod json;
mod json_plain;
mod json_text;
mod raw;

use std::sync::{Arc, Mutex};

use ::arrow::array::{Array, RecordBatch, RecordBatchOptions};
use ::arrow::datatypes::{Field, Schema, SchemaRef};
use ::arrow::error::ArrowError;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{HEADER_CONTENT_TYPE, HEADER_ROWS, NewRecord, Record};
use crate::reaction::columns::{Column as Growing, Mismatch, takes};
pub use crate::reaction::schema::{arrow_schema, record_schema};
use crate::reaction::table::{Column, ColumnSource, ColumnType, DefaultValue, Format, MetadataField, Table};
use crate::reaction::time::NS_PER_MS;
use crate::sync::lock;
pub use json_text::JsonText;

/// The most rows a record may have that this program writes.
pub const MAX_ROWS: usize = 20_000;
/// The most bytes such a record's value may have: below Kafka's default limit of 1 MB with room for headers.
pub const MAX_BYTES: usize = 700_000;
/// The most rows a record may have to be read; foreign writers have limits of their own.
pub const MAX_READ_ROWS: usize = 1 << 20;
/// [`RecordCodec::decode_some`] stops at the first record that brings the rows to this many.
const ENOUGH_ROWS: usize = 8192;
/// And here: rows are not gathered from further records beyond this much text.
const ENOUGH_TEXT: usize = 16 << 20;

/// Why a value could not be encoded or decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The batch does not fit one record; its size in bytes.
    #[error("{0} bytes encoded; a record holds at most {MAX_BYTES}")]
    TooLarge(usize),
    /// Not of the table's format, or damaged.
    #[error("not readable: {0}")]
    Damaged(String),
    /// Readable, but not this table's columns.
    #[error("{0}")]
    WrongSchema(String),
    /// A line of JSON, counted from 1, that is no row of the table.
    #[error("line {line}: {reason}")]
    Line {
        /// Counted from 1 within the record; empty lines count.
        line: usize,
        /// What is wrong with it, and what was expected.
        reason: String,
    },
}

/// Writes and reads the records of one table.
#[derive(Clone, Debug)]
pub struct RecordCodec {
    layout: Layout,
    compression: Compression,
    topic: String,
    columns: Vec<Column>,
    /// Of all columns, and of those that records hold.
    all: SchemaRef,
    held: SchemaRef,
    /// Of the last Arrow records read.
    known_schemas: Arc<Mutex<arrow::KnownSchemas>>,
}

/// What the buffers of Arrow records are compressed with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Nothing.
    #[default]
    None,
    /// LZ4 frames.
    Lz4,
    /// Zstandard.
    Zstd,
}

/// How a value is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Arrow,
    Json(json::Options),
    RawString,
}

/// A record and the partition it is from.
#[derive(Clone, Copy)]
struct Origin<'r> {
    partition: u32,
    record: &'r Record,
}

/// What [`RecordCodec::decode_some`] read: the rows of one or more records as one batch.
#[derive(Debug)]
pub struct Decoded {
    /// How many records of those given are done; at least one of any. The next call gets the rest.
    pub taken: usize,
    /// Their rows, in order. The columns are those asked for, in that order.
    pub batch: RecordBatch,
    /// By record: where its rows end in `batch`. They begin where those of the record before end.
    pub ends: Vec<usize>,
    /// Records that have no rows because they could not be decoded, by place among those given.
    pub bad: Vec<(usize, CodecError)>,
}

impl Decoded {
    /// The rows of a record, as a range of `batch`; empty for a bad one.
    pub fn rows_of(&self, record: usize) -> std::ops::Range<usize> {
        let start = if record == 0 { 0 } else { self.ends[record - 1] };
        start..self.ends[record]
    }
}

impl RecordCodec {
    /// The codec of `table`'s records.
    pub fn new(table: &Table) -> Self {
        Self::in_format(table, table.record_format())
    }

    /// The codec of `table`'s columns in that format.
    pub fn in_format(table: &Table, format: Format) -> Self {
        let layout = match format {
            Format::Arrow => Layout::Arrow,
            Format::Json => Layout::Json(json::Options::of(table)),
            Format::RawString => Layout::RawString,
        };
        Self {
            layout,
            compression: Compression::None,
            topic: table.topic.clone(),
            columns: table.columns.clone(),
            all: arrow_schema(table),
            held: record_schema(table),
            known_schemas: Arc::default(),
        }
    }

    /// The same, which compresses the records of many rows that it writes in format `arrow`.
    #[must_use]
    pub fn compressing(self, compression: Compression) -> Self {
        Self { compression, ..self }
    }

    /// The columns that records hold as Arrow has them, in declaration order, TEXT as Utf8. METADATA columns, which the
    /// log fills in, come after them in a table and are not among them.
    pub fn schema(&self) -> &SchemaRef {
        &self.held
    }

    fn held_names(&self) -> impl Iterator<Item = &str> {
        self.held.fields().iter().map(|field| field.name().as_str())
    }

    /// About how many bytes a row takes besides its text, where rows are written one after the other; `None` where a
    /// record is columns.
    pub fn row_bytes(&self) -> Option<usize> {
        let width = |column: &Column| match column.data_type {
            ColumnType::Text => 2,
            ColumnType::Boolean => 5,
            _ => 20,
        };
        match self.layout {
            Layout::Arrow => None,
            Layout::RawString => Some(0),
            // `"name":value,`, and a time is longer than a number.
            Layout::Json(_) => Some(
                self.columns.iter().map(|column| column.name.len() + 4 + width(column)).sum::<usize>() + 12,
            ),
        }
    }

    /// Encodes a batch of all the table's columns; the records say their row count in a header. Lines of JSON become as
    /// many records as they need. Without rows there is no record.
    ///
    /// # Errors
    /// [`CodecError::TooLarge`] when what belongs into one record does not fit it: a whole batch in Arrow, else one row.
    pub fn encode(&self, batch: &RecordBatch) -> Result<Vec<NewRecord>, CodecError> {
        if batch.num_rows() == 0 {
            return Ok(Vec::new());
        }
        match self.layout {
            Layout::Arrow => Ok(vec![arrow::encode(batch, self.compression)?]),
            Layout::Json(options) => json::encode(self, options, batch),
            Layout::RawString => raw::encode(batch),
        }
    }

    /// As [`RecordCodec::encode`], in as many records as the rows need.
    ///
    /// # Errors
    /// [`CodecError::TooLarge`] when one row does not fit a record.
    pub fn encode_all(&self, batch: &RecordBatch) -> Result<Vec<NewRecord>, CodecError> {
        let mut records = Vec::new();
        let mut waiting = vec![batch.clone()];
        while let Some(batch) = waiting.pop() {
            let rows = batch.num_rows();
            let halves = || [batch.slice(rows / 2, rows - rows / 2), batch.slice(0, rows / 2)];
            if rows > MAX_ROWS {
                waiting.extend(halves());
                continue;
            }
            match self.encode(&batch) {
                Ok(new) => records.extend(new),
                Err(CodecError::TooLarge(_)) if rows > 1 => waiting.extend(halves()),
                Err(error) => return Err(error),
            }
        }
        Ok(records)
    }

    /// The rows of a batch of all the table's columns as lines, for files and terminals: JSON objects, or text.
    ///
    /// # Errors
    /// When a value cannot be shown.
    pub fn lines(&self, batch: &RecordBatch) -> Result<Vec<u8>, CodecError> {
        match self.layout {
            Layout::RawString => raw::lines(batch),
            Layout::Json(options) => json::lines(self, options, batch),
            Layout::Arrow => json::lines(self, json::Options::default(), batch),
        }
    }

    /// Decodes one record. `columns` are the places (in the table's order) that the caller needs; only those are built.
    ///
    /// Columns are found by name. One that a record does not have, because it is older than the column or its writer
    /// leaves it out, has the table's DEFAULT there, or null. METADATA columns say what the log knows of the record, which
    /// is of that partition.
    ///
    /// # Errors
    /// When the value is not of the table's format and columns.
    pub fn decode(
        &self,
        partition: u32,
        record: &Record,
        columns: &[usize],
    ) -> Result<RecordBatch, CodecError> {
        let mut decoded = self.decode_some(partition, std::slice::from_ref(record), columns);
        match decoded.bad.pop() {
            Some((_, error)) => Err(error),
            None => Ok(decoded.batch),
        }
    }

    /// Decodes the first of `records`, and with it as many of those that follow as make one batch worth its cost: records
    /// of one row share the building of arrays. Call it until all are taken.
    ///
    /// ```text
    /// while !records.is_empty() {
    ///     let decoded = codec.decode_some(partition, records, &columns);
    ///     // decoded.batch, decoded.rows_of(n) for records[n], decoded.bad
    ///     records = &records[decoded.taken..];
    /// }
    /// ```
    pub fn decode_some(&self, partition: u32, records: &[Record], columns: &[usize]) -> Decoded {
        match self.layout {
            Layout::Arrow => arrow_small::decode(self, records, columns).unwrap_or_else(|| {
                self.one(records, columns, |record, value| {
                    arrow::decode(self, Origin { partition, record }, value, columns)
                })
            }),
            Layout::Json(options) => json::decode(self, options, partition, records, columns),
            Layout::RawString => raw::decode(self, partition, records, columns),
        }
    }

    /// One record, one batch.
    fn one(
        &self,
        records: &[Record],
        columns: &[usize],
        decode: impl FnOnce(&Record, &Bytes) -> Result<RecordBatch, CodecError>,
    ) -> Decoded {
        let Some(record) = records.first() else { return self.nothing(columns) };
        let batch = value(record).and_then(|value| decode(record, value)).and_then(|batch| {
            check_count(record, batch.num_rows())?;
            self.check_nulls(&batch, columns)?;
            Ok(batch)
        });
        match batch {
            Ok(batch) => Decoded { taken: 1, ends: vec![batch.num_rows()], batch, bad: Vec::new() },
            Err(error) => Decoded { taken: 1, ends: vec![0], bad: vec![(0, error)], ..self.nothing(columns) },
        }
    }

    fn known_schemas(&self) -> arrow::KnownSchemas {
        Arc::clone(&lock(&self.known_schemas))
    }

    fn nothing(&self, columns: &[usize]) -> Decoded {
        let batch = RecordBatch::new_empty(self.projected(columns));
        Decoded { taken: 0, batch, ends: Vec::new(), bad: Vec::new() }
    }

    /// The columns built as the batch of what was decoded.
    fn finish(&self, columns: &[usize], built: Vec<Growing>, mut decoded: Decoded) -> Decoded {
        decoded.taken = decoded.ends.len();
        match self.build(columns, built, decoded.ends.last().copied().unwrap_or_default()) {
            Ok(batch) => decoded.batch = batch,
            // Text of more than 2 GB: none of it can be shown.
            Err(error) => {
                decoded.bad = (0..decoded.taken).map(|number| (number, error.clone())).collect();
                decoded.ends.fill(0);
            }
        }
        decoded
    }

    fn build(&self, columns: &[usize], built: Vec<Growing>, rows: usize) -> Result<RecordBatch, CodecError> {
        let (mut fields, mut arrays) = (Vec::with_capacity(built.len()), Vec::with_capacity(built.len()));
        for (values, &place) in built.into_iter().zip(columns) {
            let column = &self.columns[place];
            let array = values.into_array().map_err(damaged)?;
            fields.push(Field::new(&column.name, array.data_type().clone(), column.nullable));
            arrays.push(array);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Schema::new(fields).into(), arrays, &options).map_err(damaged)
    }

    fn projected(&self, columns: &[usize]) -> SchemaRef {
        let fields = columns.iter().filter_map(|&place| self.all.fields().get(place).cloned());
        Schema::new(fields.collect::<Vec<_>>()).into()
    }

    fn check_nulls(&self, batch: &RecordBatch, columns: &[usize]) -> Result<(), CodecError> {
        for (column, &place) in batch.columns().iter().zip(columns) {
            let expected = &self.columns[place];
            if !expected.nullable && column.is_nullable() && column.logical_null_count() > 0 {
                let reason = format!("column {} holds a null, and it is NOT NULL", expected.name);
                return Err(CodecError::WrongSchema(reason));
            }
        }
        Ok(())
    }

    /// What a row of `record` has in a column that it leaves out: what ingest would have filled in, with the record's
    /// time of writing for `now()`.
    fn push_absent(&self, place: usize, from: Origin<'_>, into: &mut Growing) -> Result<(), String> {
        let column = &self.columns[place];
        if let ColumnSource::Metadata(field) = column.source {
            let pushed = self.push_metadata(field, from, into);
            return pushed.map_err(|mismatch| self.mismatch(place, &mismatch));
        }
        let pushed = match &column.default {
            Some(DefaultValue::Now) => into.push_i64(from.record.timestamp_ms.saturating_mul(NS_PER_MS)),
            Some(DefaultValue::Literal(value)) => into.push_json(value),
            None if column.nullable => into.push_null(),
            None => {
                let sql = column.data_type.sql_name();
                return Err(format!(
                    "column {} is missing; it is {sql} NOT NULL without a default",
                    column.name
                ));
            }
        };
        pushed.map_err(|mismatch| self.mismatch(place, &mismatch))
    }

    /// What the log knows of a record: null for one without key, and for a key that is no text in a TEXT column.
    fn push_metadata(
        &self,
        field: MetadataField,
        from: Origin<'_>,
        into: &mut Growing,
    ) -> Result<(), Mismatch> {
        let Origin { partition, record } = from;
        match field {
            MetadataField::Partition => into.push_i64(i64::from(partition)),
            MetadataField::OffsetId => into.push_i64(record.offset),
            MetadataField::Topic => into.push_text(&self.topic),
            // TIMESTAMP is nanoseconds, BIGINT milliseconds.
            MetadataField::Timestamp if into.is_timestamp() => {
                into.push_i64(record.timestamp_ms.saturating_mul(NS_PER_MS))
            }
            MetadataField::Timestamp => into.push_i64(record.timestamp_ms),
            MetadataField::Key => match record.key.as_deref() {
                None => into.push_null(),
                Some(key) if into.is_text() => match std::str::from_utf8(key) {
                    Ok(text) => into.push_text(text),
                    Err(_) => into.push_null(),
                },
                Some(key) => into.push_bytes(key),
            },
        }
    }

    /// That a column got a value it does not take.
    fn mismatch(&self, place: usize, mismatch: &Mismatch) -> String {
        let Column { name, data_type, .. } = &self.columns[place];
        let sql = data_type.sql_name();
        match mismatch {
            Mismatch::Null => format!("column {name} is null, and it is NOT NULL"),
            Mismatch::Type(found) => format!("column {name} is {found}; {sql} takes {}", takes(*data_type)),
            Mismatch::Range(found) => format!("column {name} is {found}, which {sql} does not hold"),
            Mismatch::Time(why) | Mismatch::Form(why) => format!("column {name}: {why}"),
        }
    }
}

fn value(record: &Record) -> Result<&Bytes, CodecError> {
    record.value.as_ref().ok_or_else(|| CodecError::Damaged("the record has no value".to_owned()))
}

/// The rows that a record's writer says it has, in a header; foreign writers say nothing.
pub fn declared_rows(record: &Record) -> Option<u64> {
    record.header(HEADER_ROWS)?.parse().ok()
}

fn check_count(record: &Record, rows: usize) -> Result<(), CodecError> {
    match declared_rows(record) {
        Some(declared) if declared != rows as u64 => {
            let reason = format!("it has {rows} rows, and its header says {declared}");
            Err(CodecError::Damaged(reason))
        }
        _ if rows > MAX_READ_ROWS => {
            Err(CodecError::Damaged(format!("it has {rows} rows; at most {MAX_READ_ROWS} are read")))
        }
        _ => Ok(()),
    }
}

fn new_record(value: Vec<u8>, content_type: &str, rows: usize) -> Result<NewRecord, CodecError> {
    if value.len() > MAX_BYTES {
        return Err(CodecError::TooLarge(value.len()));
    }
    let record = NewRecord { value: Some(Bytes::from(value)), ..NewRecord::default() };
    Ok(record.header(HEADER_CONTENT_TYPE, content_type).header(HEADER_ROWS, rows.to_string()))
}

fn damaged(error: ArrowError) -> CodecError {
    CodecError::Damaged(error.to_string())
}

#[cfg(test)]
mod tests;
