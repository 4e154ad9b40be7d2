//! What a column has that a record does not hold: its `DEFAULT`, where rows were written before the column was
//! declared, or what the log knows of the record. Pure.

use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Schema, SchemaRef};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use datafusion::common::ScalarValue;
use serde_json::Value;

use crate::log::Record;
use crate::log::codec::{self, CodecError};
use crate::reaction::decimal::parse_decimal;
use crate::reaction::schema::arrow_type;
use crate::reaction::table::{Column, ColumnSource, ColumnType, DefaultValue, MetadataField, Table};
use crate::reaction::time::{NS_PER_MS, parse_rfc3339};

/// The rows of a record: `columns` (places in `table`, ascending) from its value where it has them, otherwise what `DEFAULT`
/// or the log says.
///
/// # Errors
/// As [`codec::decode`].
pub(crate) fn read_record(
    table: &Table,
    schema: &SchemaRef,
    columns: &[usize],
    record: &Record,
    partition: u32,
) -> Result<RecordBatch, CodecError> {
    let Some(value) = &record.value else {
        return Err(CodecError::Damaged("the record has no value".to_owned()));
    };
    let column = |place: usize| table.columns.get(place);
    // Metadata comes after all columns of the record, in a table as well as here.
    let held =
        columns.partition_point(|&place| column(place).is_some_and(|c| c.source == ColumnSource::Record));
    let batch = codec::decode_or_fill(value, schema, &columns[..held], |place| {
        column(place).and_then(|column| default_value(column, record.timestamp_ms))
    })?;
    if held == columns.len() {
        return Ok(batch);
    }
    let mut fields = batch.schema().fields().to_vec();
    let mut arrays = batch.columns().to_vec();
    for &place in &columns[held..] {
        let Some(Column { source: ColumnSource::Metadata(field), data_type, .. }) = column(place) else {
            continue;
        };
        let value = metadata_value(*field, *data_type, record, &table.topic, partition);
        fields.push(Arc::clone(&schema.fields()[place]));
        arrays.push(value.to_array_of_size(batch.num_rows()).map_err(no_array)?);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options).map_err(no_array)
}

fn no_array(error: impl std::fmt::Display) -> CodecError {
    CodecError::WrongSchema(error.to_string())
}

/// What the log knows of a record, as a value of the column's type: null for a record without key, and for a key that is no
/// text in a TEXT column.
fn metadata_value(
    field: MetadataField,
    data_type: ColumnType,
    record: &Record,
    topic: &str,
    partition: u32,
) -> ScalarValue {
    let key = record.key.as_deref();
    match (field, data_type) {
        // No log has more than two billion partitions.
        (MetadataField::Partition, _) => ScalarValue::from(i32::try_from(partition).unwrap_or(i32::MAX)),
        (MetadataField::OffsetId, _) => ScalarValue::from(record.offset),
        (MetadataField::Timestamp, ColumnType::Timestamp) => {
            timestamp(record.timestamp_ms.saturating_mul(NS_PER_MS))
        }
        (MetadataField::Timestamp, _) => ScalarValue::from(record.timestamp_ms),
        (MetadataField::Topic, _) => ScalarValue::from(topic),
        (MetadataField::Key, ColumnType::Bytea) => ScalarValue::Binary(key.map(<[u8]>::to_vec)),
        (MetadataField::Key, _) => {
            ScalarValue::Utf8(key.and_then(|key| std::str::from_utf8(key).ok()).map(str::to_owned))
        }
    }
}

/// What such a row has in `column`: what ingest would have filled in, with the record's time of writing for `now()`.
/// `None` without a default, or for one that is not of the column's type.
fn default_value(column: &Column, written_ms: i64) -> Option<ScalarValue> {
    match column.default.as_ref()? {
        DefaultValue::Now => Some(timestamp(written_ms.saturating_mul(NS_PER_MS))),
        DefaultValue::Literal(value) => literal(value, column.data_type),
    }
}

fn literal(value: &Value, data_type: ColumnType) -> Option<ScalarValue> {
    match data_type {
        ColumnType::Text => value.as_str().map(|text| ScalarValue::Utf8(Some(text.to_owned()))),
        ColumnType::Timestamp => {
            let ns = value.as_i64().or_else(|| value.as_str().and_then(|text| parse_rfc3339(text).ok()));
            ns.map(timestamp)
        }
        ColumnType::Int => value.as_i64().and_then(|n| i32::try_from(n).ok()).map(ScalarValue::from),
        ColumnType::Bigint => value.as_i64().map(ScalarValue::from),
        ColumnType::IntUnsigned => value.as_u64().and_then(|n| u32::try_from(n).ok()).map(ScalarValue::from),
        ColumnType::BigintUnsigned => value.as_u64().map(ScalarValue::from),
        ColumnType::Float => value.as_f64().map(|number| ScalarValue::from(number as f32)),
        ColumnType::Double => value.as_f64().map(ScalarValue::from),
        ColumnType::Boolean => value.as_bool().map(ScalarValue::from),
        ColumnType::Bytea => value
            .as_str()
            .and_then(|text| STANDARD.decode(text).ok())
            .map(|bytes| ScalarValue::Binary(Some(bytes))),
        ColumnType::Decimal { precision, scale } => {
            let value = value.as_str().and_then(|text| parse_decimal(text, precision, scale).ok())?;
            Some(ScalarValue::Decimal128(Some(value), precision, scale.cast_signed()))
        }
        ColumnType::Array(item) => {
            let item_type = arrow_type(*item);
            let items = value.as_array()?.iter().map(|value| match value {
                Value::Null => ScalarValue::try_from(&item_type).ok(),
                value => literal(value, *item),
            });
            let items = items.collect::<Option<Vec<_>>>()?;
            Some(ScalarValue::List(ScalarValue::new_list_nullable(&items, &item_type)))
        }
    }
}

fn timestamp(ns: i64) -> ScalarValue {
    ScalarValue::TimestampNanosecond(Some(ns), None)
}
