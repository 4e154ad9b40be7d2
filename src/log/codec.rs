//! The record codec: a batch of reactions ↔ the bytes of one record (a self-contained Arrow IPC stream).
//!
//! Text columns of few values are dictionary-encoded (Int32 keys) on the way in, so that the engine groups by small
//! integers. That choice is private to a record: the SQL type of TEXT is Utf8, and two records of one topic may differ.

use std::io::Cursor;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, DictionaryArray, Int32Array, RecordBatch, RecordBatchOptions, StringArray,
    new_null_array,
};
use arrow::datatypes::{DataType, Field, Int32Type, Schema};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
use datafusion::common::ScalarValue;
use hashbrown::HashMap;

use super::{ARROW_STREAM, HEADER_CONTENT_TYPE, HEADER_ROWS, NewRecord};
pub use crate::reaction::schema::arrow_schema;

/// The most rows a record may have.
pub const MAX_ROWS: usize = 20_000;
/// The most bytes a record's value may have: below Kafka's default limit of 1 MB with room for headers.
pub const MAX_BYTES: usize = 700_000;

/// Why a value could not be encoded or decoded.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The batch does not fit one record; its size in bytes.
    #[error("{0} bytes encoded; a record holds at most {MAX_BYTES}")]
    TooLarge(usize),
    /// Not an Arrow IPC stream of one batch, or damaged.
    #[error("not a readable Arrow stream: {0}")]
    Damaged(String),
    /// Readable, but not this table's columns.
    #[error("{0}")]
    WrongSchema(String),
}

/// Encodes a batch as one record, with its row count and content type as headers.
///
/// # Errors
/// [`CodecError::TooLarge`] when it does not fit.
pub fn encode(batch: &RecordBatch) -> Result<NewRecord, CodecError> {
    let batch = with_dictionaries(batch)?;
    let mut value = Vec::with_capacity(batch.get_array_memory_size() + 1024);
    let mut writer = StreamWriter::try_new(&mut value, &batch.schema()).map_err(damaged)?;
    writer.write(&batch).and_then(|()| writer.finish()).map_err(damaged)?;
    drop(writer);
    if value.len() > MAX_BYTES {
        return Err(CodecError::TooLarge(value.len()));
    }
    let record = NewRecord { key: None, value: Some(Bytes::from(value)), headers: Vec::with_capacity(2) };
    Ok(record.header(HEADER_CONTENT_TYPE, ARROW_STREAM).header(HEADER_ROWS, batch.num_rows().to_string()))
}

/// Decodes a record's value. `columns` are the places (in `table`'s order) that the caller needs; only those are
/// decompressed. TEXT comes as Utf8 or as a dictionary of it, whichever the record holds.
///
/// A record from before the table was changed has its columns at other places: they are found by name, and one that
/// is not there is null.
///
/// # Errors
/// When the value is no Arrow stream of one batch, or lacks a `NOT NULL` column, or has one of another type.
pub fn decode(value: &Bytes, schema: &Schema, columns: &[usize]) -> Result<RecordBatch, CodecError> {
    decode_or_fill(value, schema, columns, |_| None)
}

/// As [`decode`]; a column that the record does not have is filled with what `default` says of its place.
///
/// # Errors
/// As [`decode`].
pub fn decode_or_fill(
    value: &Bytes,
    schema: &Schema,
    columns: &[usize],
    default: impl Fn(usize) -> Option<ScalarValue>,
) -> Result<RecordBatch, CodecError> {
    let mut reader = match StreamReader::try_new(Cursor::new(value), Some(columns.to_vec())) {
        Ok(reader) if !columns.is_empty() && has_columns(&reader.schema(), schema, columns) => reader,
        _ => return decode_by_name(value, schema, columns, default),
    };
    let batch = only_batch(&mut reader)?;
    for (field, &place) in batch.schema().fields().iter().zip(columns) {
        check_type(field, schema.field(place))?;
    }
    Ok(batch)
}

/// Whether a record's columns are those asked for, in that order.
fn has_columns(stored: &Schema, schema: &Schema, columns: &[usize]) -> bool {
    stored.fields().iter().map(|field| field.name()).eq(columns.iter().map(|&at| schema.field(at).name()))
}

/// Rare, so it may cost a second look at the record's schema.
fn decode_by_name(
    value: &Bytes,
    schema: &Schema,
    columns: &[usize],
    default: impl Fn(usize) -> Option<ScalarValue>,
) -> Result<RecordBatch, CodecError> {
    let stored = StreamReader::try_new(Cursor::new(value), None).map_err(damaged)?.schema();
    let places: Vec<Option<usize>> =
        columns.iter().map(|&column| stored.index_of(schema.field(column).name()).ok()).collect();
    let mut present: Vec<usize> = places.iter().flatten().copied().collect();
    if present.is_empty() {
        present.push(0); // only for the number of rows
    }
    let mut reader = StreamReader::try_new(Cursor::new(value), Some(present)).map_err(damaged)?;
    let batch = only_batch(&mut reader)?;
    let mut found = batch.schema_ref().fields().iter().zip(batch.columns());
    let (mut fields, mut arrays) = (Vec::with_capacity(columns.len()), Vec::with_capacity(columns.len()));
    for (place, &column) in places.iter().zip(columns) {
        let expected = schema.field(column);
        match place.and_then(|_| found.next()) {
            Some((field, array)) => {
                check_type(field, expected)?;
                fields.push(Arc::clone(field));
                arrays.push(Arc::clone(array));
            }
            None => {
                fields.push(Arc::new(expected.clone()));
                arrays.push(absent(expected, default(column), batch.num_rows())?);
            }
        }
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options).map_err(damaged)
}

/// A column that was added after the record was written.
fn absent(field: &Field, default: Option<ScalarValue>, rows: usize) -> Result<ArrayRef, CodecError> {
    match default {
        Some(default) => {
            default.to_array_of_size(rows).map_err(|error| CodecError::WrongSchema(error.to_string()))
        }
        None if field.is_nullable() => Ok(new_null_array(field.data_type(), rows)),
        None => {
            let reason =
                format!("it has no column {}, which may not be null and has no default", field.name());
            Err(CodecError::WrongSchema(reason))
        }
    }
}

fn only_batch(reader: &mut StreamReader<Cursor<&Bytes>>) -> Result<RecordBatch, CodecError> {
    let batch = match reader.next() {
        Some(batch) => batch.map_err(damaged)?,
        None => return Err(CodecError::Damaged("it holds no batch".to_owned())),
    };
    if reader.next().is_some() {
        return Err(CodecError::Damaged("it holds more than one batch".to_owned()));
    }
    Ok(batch)
}

fn check_type(stored: &Field, expected: &Field) -> Result<(), CodecError> {
    let plain = match stored.data_type() {
        DataType::Dictionary(_, values) => values.as_ref(),
        plain => plain,
    };
    if plain == expected.data_type() {
        return Ok(());
    }
    let reason = format!("column {} is {plain}, the table has {}", stored.name(), expected.data_type());
    Err(CodecError::WrongSchema(reason))
}

fn damaged(error: arrow::error::ArrowError) -> CodecError {
    CodecError::Damaged(error.to_string())
}

/// Replaces every text column of few values by a dictionary.
fn with_dictionaries(batch: &RecordBatch) -> Result<RecordBatch, CodecError> {
    let mut fields = Vec::with_capacity(batch.num_columns());
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(batch.num_columns());
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        let text = column.as_any().downcast_ref::<StringArray>();
        match text.and_then(dictionary) {
            Some(encoded) => {
                let field = Field::new(field.name(), encoded.data_type().clone(), field.is_nullable());
                fields.push(Arc::new(field));
                columns.push(Arc::new(encoded));
            }
            None => {
                fields.push(Arc::clone(field));
                columns.push(Arc::clone(column));
            }
        }
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(damaged)
}

/// The column as a dictionary, or `None` when that would not pay: fewer than 16 rows (the dictionary's own message
/// costs some 200 bytes), or more than one distinct value for every four rows.
fn dictionary(text: &StringArray) -> Option<DictionaryArray<Int32Type>> {
    if text.len() < 16 {
        return None;
    }
    let limit = (text.len() / 4).max(4);
    let mut codes: HashMap<&str, i32> = HashMap::with_capacity(64);
    let mut values: Vec<&str> = Vec::with_capacity(64);
    let mut keys = Vec::with_capacity(text.len());
    for value in text {
        let Some(value) = value else {
            keys.push(None);
            continue;
        };
        let next = i32::try_from(values.len()).ok()?;
        let code = *codes.entry(value).or_insert_with(|| {
            values.push(value);
            next
        });
        if values.len() > limit {
            return None;
        }
        keys.push(Some(code));
    }
    let values = Arc::new(StringArray::from(values));
    DictionaryArray::try_new(Int32Array::from(keys), values).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(columns: &[(&str, DataType, bool)]) -> Schema {
        let field = |(name, data_type, nullable): &(&str, DataType, bool)| {
            Field::new(*name, data_type.clone(), *nullable)
        };
        Schema::new(columns.iter().map(field).collect::<Vec<_>>())
    }

    /// A record of the columns `user` (text, the same in 20 rows) and `n`.
    fn record() -> Bytes {
        let before = schema(&[("user", DataType::Utf8, false), ("n", DataType::Int32, false)]);
        let user: ArrayRef = Arc::new(StringArray::from(vec!["ada"; 20]));
        let n: ArrayRef = Arc::new(Int32Array::from_iter_values(0..20));
        encode(&RecordBatch::try_new(Arc::new(before), vec![user, n]).unwrap()).unwrap().value.unwrap()
    }

    #[test]
    fn a_record_from_before_a_column_was_added_has_nulls_there() {
        for after in [
            [
                ("country", DataType::Utf8, true),
                ("user", DataType::Utf8, false),
                ("n", DataType::Int32, false),
            ],
            [
                ("user", DataType::Utf8, false),
                ("country", DataType::Utf8, true),
                ("n", DataType::Int32, false),
            ],
            [
                ("user", DataType::Utf8, false),
                ("n", DataType::Int32, false),
                ("country", DataType::Utf8, true),
            ],
        ] {
            let after = schema(&after);
            let batch = decode(&record(), &after, &[0, 1, 2]).unwrap();
            let names: Vec<_> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
            let expected: Vec<_> = after.fields().iter().map(|field| field.name().clone()).collect();
            assert_eq!((names, batch.num_rows()), (expected, 20));
            let nulls = |name: &str| batch.column_by_name(name).unwrap().logical_null_count();
            assert_eq!((nulls("country"), nulls("user"), nulls("n")), (20, 0, 0));
        }
    }

    #[test]
    fn rows_are_counted_where_no_column_is_read_or_none_is_there() {
        let after = schema(&[("country", DataType::Utf8, true)]);
        assert_eq!(decode(&record(), &after, &[]).unwrap().num_rows(), 20);
        let batch = decode(&record(), &after, &[0]).unwrap();
        assert_eq!((batch.num_rows(), batch.column(0).logical_null_count()), (20, 20));
    }

    #[test]
    fn a_column_that_may_not_be_null_or_is_of_another_type_is_not_made_up() {
        let refused = |after: &[(&str, DataType, bool)], columns: &[usize]| {
            decode(&record(), &schema(after), columns).unwrap_err().to_string()
        };
        let country = ("country", DataType::Utf8, false);
        assert!(refused(&[country, ("n", DataType::Int32, false)], &[0, 1]).contains("no column country"));
        assert!(refused(&[("n", DataType::Int64, false)], &[0]).contains("column n is Int32"));
    }
}
