//! Format `json`: objects ↔ rows, straight into typed columns; columns that nobody asks for are only skipped.
//!
//! A field that is no column of the table is ignored: foreign writers say more than is counted here. A column that a
//! row leaves out has its default, or null; what does not fit makes the whole record bad, also when it is one line of
//! many. TIMESTAMP is RFC 3339 text, or an integer: milliseconds with `'json.timestamp_format' = 'unix_millis'`, else
//! nanoseconds, the column's unit.

use std::fmt;

use ::arrow::array::RecordBatch;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Visitor};

use super::json_plain::{self, Usual};
use super::{
    CodecError, Decoded, ENOUGH_ROWS, ENOUGH_TEXT, JsonText, MAX_BYTES, MAX_READ_ROWS, MAX_ROWS, Origin,
    RecordCodec, check_count, new_record, value,
};
use crate::log::{NewRecord, Record};
use crate::reaction::columns::{Column as Growing, Mismatch, shortened};
use crate::reaction::json_row::{RowReader, read_fields};
use crate::reaction::table::{ColumnSource, ColumnType, Framing, Table};
use crate::reaction::time::NS_PER_MS;

const JSON: &str = "application/json";
const NDJSON: &str = "application/x-ndjson";
/// About how long a row is, for reserving room.
const ROW_BYTES: usize = 64;

/// What the table's options say of its JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// `framing = 'newline'`: one object a line; else one a record.
    pub(super) newline: bool,
    /// `'json.timestamp_format' = 'unix_millis'`.
    unix_millis: bool,
}

impl Options {
    pub(super) fn of(table: &Table) -> Self {
        let times = table.options.get("json.timestamp_format");
        Self {
            newline: table.with.framing == Some(Framing::Newline),
            unix_millis: times.is_some_and(|format| format == "unix_millis"),
        }
    }
}

/// The rows as objects with all columns, nulls included.
pub(super) fn encode(
    codec: &RecordCodec,
    options: Options,
    batch: &RecordBatch,
) -> Result<Vec<NewRecord>, CodecError> {
    let text = text(codec, options, batch)?;
    if options.newline {
        return encode_lines(&text, batch.num_rows());
    }
    let record = |row| {
        let mut object = Vec::with_capacity(ROW_BYTES * 2);
        text.write(row, &mut object)?;
        new_record(object, JSON, 1)
    };
    (0..batch.num_rows()).map(record).collect()
}

fn text<'b>(
    codec: &RecordCodec,
    options: Options,
    batch: &'b RecordBatch,
) -> Result<JsonText<'b>, CodecError> {
    let (found, expected) = (batch.num_columns(), codec.held.fields().len());
    if found != expected {
        return Err(CodecError::WrongSchema(format!("{found} columns, the table has {expected}")));
    }
    JsonText::new(codec.held_names(), batch.columns(), options.unix_millis)
}

/// One object a line.
pub(super) fn lines(
    codec: &RecordCodec,
    options: Options,
    batch: &RecordBatch,
) -> Result<Vec<u8>, CodecError> {
    let text = text(codec, options, batch)?;
    let mut lines = Vec::with_capacity(batch.num_rows() * ROW_BYTES * 2);
    for row in 0..batch.num_rows() {
        text.write(row, &mut lines)?;
        lines.push(b'\n');
    }
    Ok(lines)
}

/// As few records as hold all rows.
fn encode_lines(text: &JsonText<'_>, rows: usize) -> Result<Vec<NewRecord>, CodecError> {
    let mut records = Vec::with_capacity(1);
    let (mut lines, mut first) = (Vec::with_capacity(rows * ROW_BYTES), 0);
    for row in 0..rows {
        let before = lines.len();
        text.write(row, &mut lines)?;
        lines.push(b'\n');
        if lines.len() > MAX_BYTES && before > 0 {
            let rest = lines.split_off(before);
            records.push(new_record(std::mem::replace(&mut lines, rest), NDJSON, row - first)?);
            first = row;
        }
    }
    records.push(new_record(lines, NDJSON, rows - first)?);
    Ok(records)
}

pub(super) fn decode(
    codec: &RecordCodec,
    options: Options,
    partition: u32,
    records: &[Record],
    columns: &[usize],
) -> Decoded {
    let mut rows = Reading::new(codec, options, columns, records);
    let mut decoded =
        Decoded { ends: Vec::with_capacity(records.len().min(ENOUGH_ROWS)), ..codec.nothing(columns) };
    for (number, record) in records.iter().enumerate() {
        let before = rows.count;
        if let Err(error) = rows.record(Origin { partition, record }) {
            rows.truncate(before);
            decoded.bad.push((number, error));
        }
        decoded.ends.push(rows.count);
        if rows.count >= ENOUGH_ROWS || rows.text_bytes() >= ENOUGH_TEXT {
            break;
        }
    }
    codec.finish(columns, rows.built, decoded)
}

/// The rows so far.
pub(super) struct Reading<'a> {
    codec: &'a RecordCodec,
    options: Options,
    /// Places in the table of what is built.
    columns: &'a [usize],

    built: Vec<Growing>,
    count: usize,
    /// By column built: the number (from 1) of the last row that set it.
    set_by: Vec<usize>,
    /// How many the current row has set.
    set: usize,
    /// Rows mostly have the same fields in the same order.
    pub(super) usual: Usual,
    /// Why a row was refused: serde's errors are text at a place, ours name the column.
    refused: Option<String>,
}

impl<'a> Reading<'a> {
    fn new(codec: &'a RecordCodec, options: Options, columns: &'a [usize], records: &[Record]) -> Self {
        let bytes = records.first().and_then(|record| record.value.as_ref()).map_or(0, |value| value.len());
        let expected = if options.newline { bytes / ROW_BYTES } else { records.len() };
        let expected = expected.clamp(1, MAX_ROWS);
        let column = |&place: &usize| {
            let column = &codec.columns[place];
            Growing::coded(column.data_type, column.nullable, expected)
        };
        Self {
            codec,
            options,
            columns,
            built: columns.iter().map(column).collect(),
            count: 0,
            set_by: vec![0; columns.len()],
            set: 0,
            usual: Usual::default(),
            refused: None,
        }
    }

    fn record(&mut self, from: Origin<'_>) -> Result<(), CodecError> {
        let (value, before) = (value(from.record)?, self.count);
        if !self.options.newline {
            self.row(from, value)?;
            return check_count(from.record, 1);
        }
        let (mut rest, mut line) = (value.as_ref(), 0);
        while !rest.is_empty() {
            let end = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
            line += 1;
            let text = rest[..end].trim_ascii();
            if !text.is_empty() {
                self.row(from, text).map_err(|error| at_line(line, error))?;
            }
            rest = rest.get(end + 1..).unwrap_or_default();
            if self.count - before > MAX_READ_ROWS {
                break;
            }
        }
        check_count(from.record, self.count - before)
    }

    fn row(&mut self, from: Origin<'_>, text: &[u8]) -> Result<(), CodecError> {
        let before = self.count;
        if json_plain::take(self, text) {
            return self.end_row(from).map_err(CodecError::WrongSchema);
        }
        self.truncate(before);
        let mut json = serde_json::Deserializer::from_slice(text);
        let read = RowSeed { reading: self, from }.deserialize(&mut json).and_then(|()| json.end());
        read.map_err(|error| match self.refused.take() {
            Some(reason) => CodecError::WrongSchema(reason),
            None => CodecError::Damaged(no_object(&error)),
        })
    }

    fn look_up(&mut self, at: usize, name: &str) -> Option<usize> {
        let column = self.columns.iter().position(|&place| {
            let column = &self.codec.columns[place];
            column.name == name && column.source == ColumnSource::Record
        });
        let fields = &mut self.usual.fields;
        fields.truncate(at);
        // A row of thousands of fields is not worth remembering, nor is a name that is written with escapes.
        let is_plain = !name.bytes().any(|byte| byte == b'"' || byte == b'\\' || byte < 0x20);
        if at == fields.len() && at < 64 && is_plain {
            fields.push((format!("\"{name}\":"), column));
        }
        column
    }

    /// Whether integers of the column are milliseconds.
    pub(super) fn is_millis(&self, column: usize) -> bool {
        self.options.unix_millis
            && self.codec.columns[self.columns[column]].data_type == ColumnType::Timestamp
    }

    pub(super) fn is_timestamp(&self, column: usize) -> bool {
        self.built[column].is_timestamp()
    }

    pub(super) fn is_nullable(&self, column: usize) -> bool {
        self.codec.columns[self.columns[column]].nullable
    }

    /// The column to push one value into for the current row; `None` when the row has set it before.
    pub(super) fn slot(&mut self, column: usize) -> Option<&mut Growing> {
        let row = self.count + 1;
        if std::mem::replace(&mut self.set_by[column], row) == row {
            return None;
        }
        self.set += 1;
        Some(&mut self.built[column])
    }

    fn end_row(&mut self, from: Origin<'_>) -> Result<(), String> {
        if self.set < self.columns.len() {
            for (column, &place) in self.columns.iter().enumerate() {
                if self.set_by[column] != self.count + 1 {
                    self.codec.push_absent(place, from, &mut self.built[column])?;
                }
            }
        }
        self.set = 0;
        self.count += 1;
        Ok(())
    }

    fn refuse<E: Error>(&mut self, reason: String) -> E {
        self.refused = Some(reason);
        E::custom("refused")
    }

    /// Forgets the rows from `rows` on, and what the current row has set.
    fn truncate(&mut self, rows: usize) {
        self.count = rows;
        self.set = 0;
        self.set_by.fill(0);
        self.built.iter_mut().for_each(|column| column.truncate(rows));
    }

    fn text_bytes(&self) -> usize {
        self.built.iter().map(Growing::text_bytes).sum()
    }
}

impl RowReader for Reading<'_> {
    fn column<E: Error>(&mut self, at: usize, name: &str) -> Result<Option<usize>, E> {
        Ok(match self.usual.fields.get(at) {
            Some((known, column)) if unquoted(known) == name => *column,
            _ => self.look_up(at, name),
        })
    }

    fn push<E: Error>(
        &mut self,
        column: usize,
        push: impl FnOnce(&mut Growing) -> Result<(), Mismatch>,
    ) -> Result<(), E> {
        let place = self.columns[column];
        let Some(values) = self.slot(column) else {
            let reason = format!("column {} is given twice", self.codec.columns[place].name);
            return Err(self.refuse(reason));
        };
        push(values).map_err(|mismatch| {
            let reason = self.codec.mismatch(place, &mismatch);
            self.refuse(reason)
        })
    }

    fn push_integer<E: Error>(&mut self, column: usize, value: i64) -> Result<(), E> {
        if !self.is_millis(column) {
            return self.push(column, |values| values.push_i64(value));
        }
        self.push(column, |values| match value.checked_mul(NS_PER_MS) {
            Some(ns) => values.push_i64(ns),
            None => Err(Mismatch::Range(format!("{value} milliseconds"))),
        })
    }

    /// In a column that takes no null it is as if the field were missing: its default, or the row is bad.
    fn push_null<E: Error>(&mut self, column: usize) -> Result<(), E> {
        if self.is_nullable(column) { self.push(column, Growing::push_null) } else { Ok(()) }
    }

    fn is_array(&self, column: usize) -> bool {
        self.built[column].is_array()
    }
}

/// A field's name without its quotes and colon.
fn unquoted(field: &str) -> &str {
    field.get(1..field.len() - 2).unwrap_or_default()
}

fn at_line(line: usize, error: CodecError) -> CodecError {
    let reason = match error {
        CodecError::Damaged(reason) | CodecError::WrongSchema(reason) => reason,
        other => other.to_string(),
    };
    CodecError::Line { line, reason }
}

/// serde's words, with the column of the text only: the line is known better here. It quotes a text at any length.
fn no_object(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    let what = match what.split_once('"') {
        Some((before, quoted)) if quoted.len() > 100 => format!("{before}\"{}", shortened(quoted)),
        _ => what.to_owned(),
    };
    format!("no JSON object: {what} at character {}", error.column())
}

/// One row, appended to the rows so far.
struct RowSeed<'s, 'a> {
    reading: &'s mut Reading<'a>,
    from: Origin<'s>,
}

impl<'de> DeserializeSeed<'de> for RowSeed<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for RowSeed<'_, '_> {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("an object such as {\"emoji_type\": \"😀\"}")
    }

    fn visit_map<A: MapAccess<'de>>(self, row: A) -> Result<(), A::Error> {
        let fields = read_fields(self.reading, row)?;
        self.reading.usual.fields.truncate(fields);
        self.reading.end_row(self.from).map_err(|reason| self.reading.refuse(reason))
    }
}
