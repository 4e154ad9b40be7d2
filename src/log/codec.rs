//! The record codec: a batch of reactions ↔ the bytes of one record (a self-contained Arrow IPC stream).
//!
//! Text columns of few values are dictionary-encoded (Int32 keys) on the way in, so that the engine groups by small
//! integers. That choice is private to a record: the SQL type of TEXT is Utf8, and two records of one topic may differ.

use std::io::Cursor;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, DictionaryArray, Int32Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int32Type, Schema};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
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
/// # Errors
/// When the value is no Arrow stream of one batch, or its columns are not the table's.
pub fn decode(value: &Bytes, schema: &Schema, columns: &[usize]) -> Result<RecordBatch, CodecError> {
    let mut reader = StreamReader::try_new(Cursor::new(value), Some(columns.to_vec())).map_err(damaged)?;
    let batch = match reader.next() {
        Some(batch) => batch.map_err(damaged)?,
        None => return Err(CodecError::Damaged("it holds no batch".to_owned())),
    };
    if reader.next().is_some() {
        return Err(CodecError::Damaged("it holds more than one batch".to_owned()));
    }
    for (field, &place) in batch.schema().fields().iter().zip(columns) {
        let expected = schema.field(place);
        let stored = match field.data_type() {
            DataType::Dictionary(_, values) => values.as_ref(),
            plain => plain,
        };
        if field.name() != expected.name() || stored != expected.data_type() {
            return Err(CodecError::WrongSchema(format!(
                "column {place} is {} {stored}, the table has {} {}",
                field.name(),
                expected.name(),
                expected.data_type()
            )));
        }
    }
    Ok(batch)
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
