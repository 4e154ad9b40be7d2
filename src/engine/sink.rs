//! Closed windows → records of the results topic, in the sink's format, with the window in the headers. Pure.
//!
//! A row is a record of its own in JSON and text; in Arrow a record holds the rows of one room and one key.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, TimestampNanosecondArray, UInt64Array};
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::{DataType, Schema};
use bytes::Bytes;
use datafusion::common::{DataFusionError, Result, internal_err};
use serde_json::Value;

use super::closing::{ClosedOutput, ClosedWindow};
use crate::log::codec::{CodecError, RecordCodec, record_schema};
use crate::log::result_row::COLUMN_ROOM;
use crate::log::{
    HEADER_FINAL, HEADER_REVISION, HEADER_ROWS, HEADER_WINDOW_END, HEADER_WINDOW_ROWS, HEADER_WINDOW_START,
    NewRecord, header_name,
};
use crate::reaction::json::json_value;
use crate::reaction::live::DEFAULT_ROOM;
use crate::reaction::schema::arrow_type;
use crate::reaction::table::{Format, Table};
use crate::reaction::time::{NS_PER_MS, format_rfc3339};

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
        all.extend(written(sink, partitions, batch)?.into_iter().map(|one| (one.partition, one.record)));
    }
    Ok(all)
}

/// The records of one window: partition and record, in the rows' order. Rows with the same `'sink.key_field'` go to
/// the same partition, those of a sink without one to partition 0.
///
/// # Errors
/// When a column's type has no JSON form: the planner let through what it must not. When a row fits no record.
pub fn records(
    sink: &Table,
    partitions: u32,
    closed: &ClosedWindow,
    word: Word,
) -> Result<Vec<(u32, NewRecord)>> {
    let mut all = Vec::new();
    for batch in &closed.rows {
        all.extend(written(sink, partitions, batch)?);
    }
    let mut rows_of_room: HashMap<String, usize> = HashMap::new();
    for one in &all {
        *rows_of_room.entry(one.room.clone()).or_default() += one.rows;
    }
    // The same for all rows: made once.
    let header = |name, text: String| (header_name(name), Bytes::from(text));
    let headers = [
        header(HEADER_WINDOW_START, format_rfc3339(closed.window.start)),
        header(HEADER_WINDOW_END, format_rfc3339(closed.window.end)),
        header(HEADER_FINAL, word.is_final.to_string()),
        header(HEADER_REVISION, word.revision.to_string()),
    ];
    let records = all.into_iter().map(|mut one| {
        let window_rows = rows_of_room.get(&one.room).copied().unwrap_or_default();
        one.record.headers.extend_from_slice(&headers);
        (one.partition, one.record.header(HEADER_WINDOW_ROWS, window_rows.to_string()))
    });
    Ok(records.collect())
}

/// A record without the headers of its window, and whose rows it holds.
struct Written {
    partition: u32,
    record: NewRecord,
    room: String,
    rows: usize,
}

fn written(sink: &Table, partitions: u32, batch: &RecordBatch) -> Result<Vec<Written>> {
    if batch.num_columns() != sink.columns.len() {
        let (name, columns) = (&sink.name, sink.columns.len());
        return internal_err!("{name} has {columns} columns, the query {}", batch.num_columns());
    }
    let place = |key: Option<&str>| key.map_or(0, |key| partition_of(key.as_bytes(), partitions));
    let one = |key: Option<String>, room: String, rows: usize, value: Option<Bytes>| Written {
        partition: place(key.as_deref()),
        record: NewRecord { key: key.map(Bytes::from), value, ..NewRecord::default() },
        room,
        rows,
    };
    let stamps = Stamps::new(sink, batch)?;
    match sink.record_format() {
        Format::Json => {
            let rows = JsonRows::new(sink, batch);
            let row = |place: usize| {
                let key = rows.of_column(rows.key, place)?.as_ref().map(text_of);
                let room = room_of(rows.of_column(rows.room, place)?.as_ref());
                let mut written = one(key, room, 1, Some(rows.object(place)?.into()));
                written.record.timestamp_ms = stamps.of([place as u64]);
                Ok(written)
            };
            (0..batch.num_rows()).map(row).collect()
        }
        Format::RawString => {
            let texts = cast(batch.column(0), &DataType::Utf8)?;
            let rows = texts.as_string::<i32>().iter().map(|text| {
                let key = sink.key_field.as_ref().map(|_| text_of(&Value::from(text)));
                one(key, DEFAULT_ROOM.to_owned(), 1, text.map(|text| Bytes::from(text.to_owned())))
            });
            Ok(rows.collect())
        }
        Format::Arrow => {
            let (codec, batch) = (RecordCodec::new(sink), as_declared(sink, batch)?);
            let mut records = Vec::new();
            for ((key, room), rows) in together(sink, &batch)? {
                let stamp_ms = stamps.of(rows.iter().copied());
                let rows = take_record_batch(&batch, &UInt64Array::from(rows))?;
                for new in codec.encode_all(&rows).map_err(external::<CodecError>)? {
                    let mut written = one(key.clone(), room.clone(), rows_in(&new), new.value);
                    written.record.headers = new.headers;
                    written.record.timestamp_ms = stamp_ms;
                    records.push(written);
                }
            }
            Ok(records)
        }
    }
}

/// What `'sink.timestamp_field'` says of each row.
struct Stamps(Option<TimestampNanosecondArray>);

impl Stamps {
    fn new(sink: &Table, batch: &RecordBatch) -> Result<Self> {
        let place = sink.with.timestamp_field.as_deref().and_then(|field| sink.column(field));
        let Some((place, column)) = place else { return Ok(Self(None)) };
        let times = cast(batch.column(place), &arrow_type(column.data_type))?;
        Ok(Self(times.as_primitive_opt().cloned()))
    }

    /// The stamp of a record of these rows: the latest of theirs, in milliseconds. A row without leaves it to the log.
    fn of(&self, rows: impl IntoIterator<Item = u64>) -> Option<i64> {
        let times = self.0.as_ref()?;
        let time = |row: u64| {
            usize::try_from(row).ok().filter(|row| times.is_valid(*row)).map(|row| times.value(row))
        };
        rows.into_iter().filter_map(time).max().map(|ns| ns.div_euclid(NS_PER_MS))
    }
}

fn external<E: std::error::Error + Send + Sync + 'static>(error: E) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// How many rows the codec says a record has.
fn rows_in(record: &NewRecord) -> usize {
    let header = record.headers.iter().find(|(name, _)| name == HEADER_ROWS);
    header.and_then(|(_, rows)| std::str::from_utf8(rows).ok()?.parse().ok()).unwrap_or_default()
}

/// The batch under the sink's names. Nulls are the query's affair.
fn as_declared(sink: &Table, batch: &RecordBatch) -> Result<RecordBatch> {
    let (mut fields, mut columns) = (Vec::new(), Vec::new());
    for (field, values) in record_schema(sink).fields().iter().zip(batch.columns()) {
        fields.push(field.as_ref().clone().with_nullable(true));
        columns.push(cast(values, field.data_type())?);
    }
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

type Group = ((Option<String>, String), Vec<u64>);

/// The rows by key and room, both in the order of their first row.
fn together(sink: &Table, batch: &RecordBatch) -> Result<Vec<Group>> {
    let column = |name: &str| sink.column(name).map(|(place, _)| batch.column(place));
    let (keys, rooms) = (sink.key_field.as_deref().and_then(column), column(COLUMN_ROOM));
    let value = |values: &ArrayRef, row| match json_value(values, row) {
        Some(value) => Ok(value),
        None => internal_err!("no JSON form for {}", values.data_type()),
    };
    let (mut groups, mut known): (Vec<Group>, HashMap<_, usize>) = (Vec::new(), HashMap::new());
    for row in 0..batch.num_rows() {
        let key = keys.map(|keys| value(keys, row)).transpose()?.as_ref().map(text_of);
        let room = room_of(rooms.map(|rooms| value(rooms, row)).transpose()?.as_ref());
        let at = *known.entry((key.clone(), room.clone())).or_insert_with(|| {
            groups.push(((key, room), Vec::new()));
            groups.len() - 1
        });
        groups[at].1.push(row as u64);
    }
    Ok(groups)
}

fn room_of(room: Option<&Value>) -> String {
    room.filter(|room| !room.is_null()).map_or_else(|| DEFAULT_ROOM.to_owned(), text_of)
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

/// A batch of rows on their way into JSON.
struct JsonRows<'a> {
    columns: &'a [ArrayRef],
    /// By column: `{"name":` or `,"name":`.
    heads: Vec<String>,
    key: Option<usize>,
    room: Option<usize>,
}

impl<'a> JsonRows<'a> {
    fn new(sink: &Table, batch: &'a RecordBatch) -> Self {
        let heads = sink.columns.iter().enumerate().map(|(place, column)| {
            format!("{}{}:", if place == 0 { '{' } else { ',' }, Value::from(column.name.as_str()))
        });
        let place = |name: &str| sink.column(name).map(|(place, _)| place);
        let (heads, key) = (heads.collect(), sink.key_field.as_deref().and_then(place));
        Self { columns: batch.columns(), heads, key, room: place(COLUMN_ROOM) }
    }

    fn of_column(&self, column: Option<usize>, row: usize) -> Result<Option<Value>> {
        column.map(|column| self.value(column, row)).transpose()
    }

    fn value(&self, column: usize, row: usize) -> Result<Value> {
        match json_value(&self.columns[column], row) {
            Some(value) => Ok(value),
            None => internal_err!("no JSON form for {}", self.columns[column].data_type()),
        }
    }

    fn object(&self, row: usize) -> Result<Vec<u8>> {
        let mut object = Vec::with_capacity(32 * (self.columns.len() + 1));
        for (column, head) in self.heads.iter().enumerate() {
            object.extend_from_slice(head.as_bytes());
            serde_json::to_writer(&mut object, &self.value(column, row)?).map_err(external)?;
        }
        object.push(b'}');
        Ok(object)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use arrow::array::{Int64Array, StringArray};

    use super::*;
    use crate::log::Record;
    use crate::log::result_row::{ResultRow, WINDOW_COLUMNS, emoji_counts, read};
    use crate::reaction::time::Window;

    #[test]
    fn a_key_keeps_its_partition_between_builds() {
        // FNV-1a's published test vectors: "" → 811c9dc5, "a" → e40c292c, "foobar" → bf9cf968.
        assert_eq!(partition_of(b"", u32::MAX), 0x811c_9dc5);
        assert_eq!(partition_of(b"a", u32::MAX), 0xe40c_292c);
        assert_eq!(partition_of(b"foobar", 16), 0xbf9c_f968 % 16);
    }

    const FINAL: Word = Word { is_final: true, revision: 0 };

    fn closed() -> ClosedWindow {
        let times = |ns: i64| Arc::new(TimestampNanosecondArray::from(vec![ns; 5])) as ArrayRef;
        let rooms = StringArray::from(vec![Some("b"), Some("a"), None, Some("b"), Some("a")]);
        let emojis = StringArray::from(vec![Some("x"), Some("x"), Some("x"), None, Some("y\"")]);
        let columns: [ArrayRef; 5] = [
            times(0),
            times(2_000_000_000),
            Arc::new(rooms),
            Arc::new(emojis),
            Arc::new(Int64Array::from(vec![1, 2, 3, 4, i64::MAX])),
        ];
        // Named as the query names them, not as the sink does.
        let batch = RecordBatch::try_from_iter(["a", "b", "c", "d", "e"].into_iter().zip(columns)).unwrap();
        ClosedWindow { window: Window { start: 0, end: 2_000_000_000 }, rows: vec![batch] }
    }

    /// What publisher and query make of the records: by room, rows in order of partition and offset.
    fn shown(sink: &Table, closed: &ClosedWindow) -> (usize, BTreeMap<String, (u64, Vec<String>)>) {
        let records = records(sink, 3, closed, FINAL).unwrap();
        let (mut of_room, mut count) = (BTreeMap::new(), 0);
        let mut in_order: Vec<_> =
            (0..).zip(records).map(|(n, (partition, new))| (partition, n, new)).collect();
        in_order.sort_by_key(|(partition, n, _)| (*partition, *n));
        for (_, offset, NewRecord { key, value, headers, .. }) in in_order {
            count += 1;
            let record = Record { offset, timestamp_ms: 0, key, value, headers };
            for ResultRow { room, window_rows, json, .. } in read(sink, &record, &WINDOW_COLUMNS).unwrap() {
                let rows = of_room.entry(room.to_string()).or_insert((window_rows, Vec::new()));
                assert_eq!(rows.0, window_rows);
                rows.1.push(json.to_string());
            }
        }
        (count, of_room)
    }

    #[test]
    fn an_arrow_sink_shows_what_a_json_sink_shows_in_a_record_a_room() {
        for key in [None, Some("room"), Some("emoji_type")] {
            let json = Table { key_field: key.map(str::to_owned), ..emoji_counts() };
            let arrow = Table { format: Format::Arrow, ..json.clone() };
            let (as_json, as_arrow) = (shown(&json, &closed()), shown(&arrow, &closed()));
            assert_eq!(as_arrow.1, as_json.1, "{key:?}");
            assert_eq!((as_json.0, as_arrow.0), (5, if key == Some("emoji_type") { 5 } else { 3 }));
            assert_eq!(as_arrow.1["b"].0, 2);
        }
    }

    #[test]
    fn rows_of_one_room_become_as_many_records_as_they_need() {
        let mut window = closed();
        window.rows = vec![
            arrow::compute::concat_batches(
                &window.rows[0].schema(),
                std::iter::repeat_n(&window.rows[0], 11_000),
            )
            .unwrap(),
        ];
        let arrow = Table { format: Format::Arrow, ..emoji_counts() };
        let (records, rows) = shown(&arrow, &window);
        assert!(records > 3, "{records}");
        assert_eq!((rows["a"].0, rows["a"].1.len()), (22_000, 22_000));
    }

    #[test]
    fn a_text_sink_has_one_column_and_its_window_in_the_headers() {
        let mut sink = Table { format: Format::RawString, ..emoji_counts() };
        sink.columns = vec![sink.columns[3].clone()];
        let mut window = closed();
        window.rows = vec![window.rows[0].project(&[3]).unwrap()];
        let expected = ["x", "x", "x", "null", "y\\\""].map(|text| match text {
            "null" => "{\"emoji_type\":null}".to_owned(),
            text => format!("{{\"emoji_type\":\"{text}\"}}"),
        });
        assert_eq!(shown(&sink, &window).1["main"], (5, expected.to_vec()));
        assert_eq!(records(&sink, 3, &window, FINAL).unwrap()[0].1.value.as_deref(), Some(&b"x"[..]));
    }
}
