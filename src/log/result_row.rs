//! A results record read as rows of a window, their columns put into the order of the DDL, whatever the sink's format.
//!
//! Publisher and query must decide alike what a window holds and when it is whole: when as many of its rows are there
//! as each of them announces. Both read records with this; how each collects them differs, because the publisher must
//! go on after a crash where it stopped, and query reads everything back.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::cast;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

#[cfg(test)]
use super::NewRecord;
use super::codec::RecordCodec;
use super::{
    HEADER_FINAL, HEADER_REVISION, HEADER_WINDOW_END, HEADER_WINDOW_ROWS, HEADER_WINDOW_START, Record,
};
use crate::reaction::json::json_value;
use crate::reaction::live::DEFAULT_ROOM;
use crate::reaction::schema::arrow_schema;
use crate::reaction::table::{Format, Table};
use crate::reaction::time::{Window, parse_rfc3339};

/// The columns that repeat a row's window.
pub const WINDOW_COLUMNS: [&str; 2] = [COLUMN_START, COLUMN_END];
/// What a live message says once for all its rows.
pub const LIVE_COLUMNS: [&str; 3] = [COLUMN_START, COLUMN_END, COLUMN_ROOM];
/// The column that names a row's room.
pub const COLUMN_ROOM: &str = "room";

const COLUMN_START: &str = "window_start";
const COLUMN_END: &str = "window_end";

/// One row of one window, and what its record says about the whole window.
#[derive(Clone, Debug, PartialEq)]
pub struct ResultRow {
    /// The room, [`DEFAULT_ROOM`] where the sink has no such column or the value is null.
    pub room: Box<str>,
    /// The span of event time.
    pub window: Window,
    /// False for an early result.
    pub is_final: bool,
    /// The highest one replaces the whole window.
    pub revision: u64,
    /// How many rows this (table, room, window, revision) has over all partitions; at least 1.
    pub window_rows: u64,
    /// Its place among the rows of its record, from 0.
    pub nth: u32,
    /// The row as a JSON object: the table's columns in the order of the DDL, without those left out; a column the
    /// record lacks is null.
    pub json: Box<str>,
}

/// Reads a record of that sink; the rows' texts go without the columns of `left_out`.
///
/// # Errors
/// Says what the record lacks. Such a record belongs to no window and can never be shown.
pub fn read(table: &Table, record: &Record, left_out: &[&str]) -> Result<Vec<ResultRow>, String> {
    let window_rows: u64 = number(record, HEADER_WINDOW_ROWS)?;
    if window_rows == 0 {
        return Err(format!("header {HEADER_WINDOW_ROWS} is 0"));
    }
    let (is_final, revision) =
        (record.header(HEADER_FINAL) != Some("false"), number(record, HEADER_REVISION)?);
    let rows = rows(table, record)?;
    let row = |(nth, fields): (u32, &Fields<'_>)| {
        let window = Window {
            start: instant(record.header(HEADER_WINDOW_START), fields, COLUMN_START)?,
            end: instant(record.header(HEADER_WINDOW_END), fields, COLUMN_END)?,
        };
        if window.end <= window.start {
            return Err("the window ends before it starts".to_owned());
        }
        let (room, json) = (room(table, fields), shown_columns(table, fields, left_out));
        Ok(ResultRow { room, window, is_final, revision, window_rows, nth, json })
    };
    (0..).zip(&rows).map(row).collect()
}

fn rows<'a>(table: &Table, record: &'a Record) -> Result<Vec<Fields<'a>>, String> {
    let value = record.value.as_deref();
    match table.record_format() {
        Format::Json => Ok(vec![Fields::parse(value.ok_or("the record has no value")?)?]),
        Format::Arrow => arrow_rows(table, record),
        // Without a value the text is null.
        Format::RawString => {
            let text = value.map(std::str::from_utf8).transpose();
            let text = text.map_err(|error| format!("no UTF-8 text: {error}"))?;
            let name = table.columns.first().map(|column| column.name.clone()).unwrap_or_default();
            Ok(vec![Fields(vec![(Cow::Owned(name), raw(&serde_json::Value::from(text))?)])])
        }
    }
}

/// The rows of a sink's record in Arrow, text without dictionary. What a sink declares NOT NULL is not checked here: rows
/// are shown as they were committed.
///
/// # Errors
/// When the record holds something else.
pub fn batch_of(table: &Table, record: &Record) -> Result<RecordBatch, String> {
    let mut table = table.clone();
    table.columns.iter_mut().for_each(|column| column.nullable = true);
    let places: Vec<usize> = (0..table.columns.len()).collect();
    let batch = RecordCodec::new(&table).decode(0, record, &places).map_err(|error| error.to_string())?;
    let schema = arrow_schema(&table);
    let columns = batch.columns().iter().zip(schema.fields());
    let columns = columns.map(|(values, field)| cast(values, field.data_type())).collect::<Result<_, _>>();
    columns
        .and_then(|columns| RecordBatch::try_new(Arc::clone(&schema), columns))
        .map_err(|error| error.to_string())
}

/// The rows of an Arrow record, each value as [`json_value`] writes it.
fn arrow_rows(table: &Table, record: &Record) -> Result<Vec<Fields<'static>>, String> {
    let batch = batch_of(table, record)?;
    let mut rows: Vec<Fields<'_>> = (0..batch.num_rows()).map(|_| Fields(Vec::new())).collect();
    for (column, values) in table.columns.iter().zip(batch.columns()) {
        for (row, fields) in rows.iter_mut().enumerate() {
            let value = json_value(values, row).ok_or_else(|| format!("no JSON form of {}", column.name))?;
            fields.0.push((Cow::Owned(column.name.clone()), raw(&value)?));
        }
    }
    Ok(rows)
}

fn raw(value: &serde_json::Value) -> Result<Cow<'static, RawValue>, String> {
    serde_json::value::to_raw_value(value).map(Cow::Owned).map_err(|error| error.to_string())
}

/// Whether a record of that sink belongs to a window. The rows of a query without one do not: they are not shown by
/// window, live or later, and that is no defect of the record.
pub fn is_of_window(table: &Table, record: &Record) -> bool {
    record.header(HEADER_WINDOW_START).is_some() || table.column(COLUMN_START).is_some()
}

/// The object's members in their order, values as they were written.
struct Fields<'a>(Vec<(Cow<'a, str>, Cow<'a, RawValue>)>);

impl<'a> Fields<'a> {
    fn parse(value: &'a [u8]) -> Result<Self, String> {
        let mut from = serde_json::Deserializer::from_slice(value);
        let fields =
            from.deserialize_map(FieldsVisitor).map_err(|error| format!("no JSON object: {error}"))?;
        from.end().map_err(|error| format!("no JSON object: {error}"))?;
        Ok(fields)
    }

    fn get(&self, name: &str) -> Option<&RawValue> {
        self.0.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_ref())
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("one JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Vec::with_capacity(8);
        while let Some(Name(name)) = map.next_key()? {
            fields.push((name, Cow::Borrowed(map.next_value()?)));
        }
        Ok(Fields(fields))
    }
}

/// A member's name, borrowed where it has no escapes.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// From the header, or from the column where the record has no such header.
fn instant(header: Option<&str>, fields: &Fields<'_>, column: &str) -> Result<i64, String> {
    if let Some(text) = header {
        return parse_rfc3339(text);
    }
    let value = fields.get(column).ok_or_else(|| format!("neither header nor column names {column}"))?;
    parse_rfc3339(&text(value))
}

fn number(record: &Record, header: &str) -> Result<u64, String> {
    let text = record.header(header).ok_or_else(|| format!("header {header} is missing"))?;
    text.parse().map_err(|_| format!("header {header} is no number: '{text}'"))
}

fn room(table: &Table, fields: &Fields<'_>) -> Box<str> {
    let named = table.column(COLUMN_ROOM).and_then(|_| fields.get(COLUMN_ROOM));
    match named {
        Some(value) if value.get() != "null" => text(value).into(),
        _ => DEFAULT_ROOM.into(),
    }
}

/// A JSON text without its quotes; anything else as it is written.
fn text(value: &RawValue) -> String {
    serde_json::from_str::<String>(value.get()).unwrap_or_else(|_| value.get().to_owned())
}

fn shown_columns(table: &Table, fields: &Fields<'_>, left_out: &[&str]) -> Box<str> {
    let mut json = String::from("{");
    let shown = table.columns.iter().filter(|column| !left_out.contains(&column.name.as_str()));
    for column in shown {
        if json.len() > 1 {
            json.push(',');
        }
        json.push_str(&quoted(&column.name));
        json.push(':');
        json.push_str(fields.get(&column.name).map_or("null", RawValue::get));
    }
    json.push('}');
    json.into()
}

/// A text as JSON writes it.
pub(crate) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A record as the engine writes it, for tests of every file here.
#[cfg(test)]
pub(crate) fn result_record(window_ms: (i64, i64), rows: u64, value: serde_json::Value) -> NewRecord {
    let at = |ms: i64| crate::reaction::time::format_rfc3339(ms * crate::reaction::time::NS_PER_MS);
    NewRecord { value: Some(value.to_string().into()), ..NewRecord::default() }
        .header(HEADER_WINDOW_START, at(window_ms.0))
        .header(HEADER_WINDOW_END, at(window_ms.1))
        .header(HEADER_FINAL, "true")
        .header(HEADER_REVISION, "0")
        .header(HEADER_WINDOW_ROWS, rows.to_string())
}

/// The sink of sql/tables.sql, for tests of every file here.
#[cfg(test)]
pub(crate) fn emoji_counts() -> Table {
    use crate::reaction::table::ColumnType;
    let (window, text) = (ColumnType::Timestamp, ColumnType::Text);
    sink(
        "emoji_counts",
        &[
            (COLUMN_START, window),
            (COLUMN_END, window),
            (COLUMN_ROOM, text),
            ("emoji_type", text),
            ("count", ColumnType::Bigint),
        ],
    )
}

/// A sink with these columns, for tests.
#[cfg(test)]
pub(crate) fn sink(name: &str, columns: &[(&str, crate::reaction::table::ColumnType)]) -> Table {
    use crate::reaction::table::{Column, ColumnSource, Format, TableKind, TableOptions};
    let column = |(name, data_type): &(&str, _)| Column {
        name: (*name).to_owned(),
        data_type: *data_type,
        nullable: true,
        default: None,
        source: ColumnSource::Record,
    };
    Table {
        name: name.to_owned(),
        kind: TableKind::Sink,
        topic: name.to_owned(),
        format: Format::Json,
        columns: columns.iter().map(column).collect(),
        watermark: None,
        key_field: None,
        options: std::collections::BTreeMap::new(),
        with: TableOptions::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(record: NewRecord) -> Result<ResultRow, String> {
        let NewRecord { key, value, headers, .. } = record;
        let record = Record { offset: 0, timestamp_ms: 0, key, value, headers };
        super::read(&emoji_counts(), &record, &LIVE_COLUMNS).map(|mut rows| rows.remove(0))
    }

    #[test]
    fn columns_come_in_ddl_order_without_window_and_room_and_with_nulls() {
        let value = json!({"count": 9007199254740993_i64, "room": "a\"b", "window_end": "x", "stranger": 1});
        let row = read(result_record((0, 2000), 3, value)).unwrap();
        assert_eq!(&*row.json, r#"{"emoji_type":null,"count":9007199254740993}"#);
        assert_eq!((&*row.room, row.window_rows, row.is_final), ("a\"b", 3, true));
        assert_eq!(row.window, Window { start: 0, end: 2_000_000_000 });
    }

    #[test]
    fn a_row_without_a_room_belongs_to_main() {
        for value in [json!({"count": 1}), json!({"count": 1, "room": null})] {
            assert_eq!(&*read(result_record((0, 1), 1, value)).unwrap().room, "main");
        }
    }

    #[test]
    fn a_room_that_is_no_text_is_known_as_it_is_written() {
        assert_eq!(&*read(result_record((0, 1), 1, json!({"room": 7}))).unwrap().room, "7");
    }

    #[test]
    fn the_window_columns_serve_where_the_headers_are_missing() {
        let value = json!({"window_start": "1970-01-01T00:00:02", "window_end": "1970-01-01T00:00:04Z"});
        let mut record = result_record((0, 1), 1, value);
        record
            .headers
            .retain(|(name, _)| !name.starts_with("window-start") && !name.starts_with("window-end"));
        assert_eq!(read(record).unwrap().window, Window { start: 2_000_000_000, end: 4_000_000_000 });
    }

    #[test]
    fn a_record_that_belongs_to_no_window_says_why() {
        let mut without_rows = result_record((0, 1), 1, json!({}));
        without_rows.headers.retain(|(name, _)| name != HEADER_WINDOW_ROWS);
        assert!(read(without_rows).unwrap_err().contains("window-rows"));
        assert!(read(result_record((5, 5), 1, json!({}))).is_err());
        assert!(read(result_record((0, 5), 1, json!([1]))).unwrap_err().contains("object"));
    }
}
