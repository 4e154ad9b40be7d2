//! Rows as JSON values by column → a batch of a table, and a batch's rows as the sink writes them.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float32Array, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampNanosecondArray, UInt32Array, UInt64Array,
};
use arrow::compute::cast;
use emostream::engine::closing::{ClosedOutput, ClosedWindow};
use emostream::engine::sink::{self, Word};
use emostream::reaction::columns::Column;
use emostream::reaction::schema::{arrow_schema, record_schema};
use emostream::reaction::table::{ColumnType, Table};
use emostream::reaction::time::Window;
use serde_json::{Map, Value};

/// One row: a value per column of the table, times as nanoseconds.
pub(crate) type Row = Vec<Value>;

/// The rows as a batch of `table`.
pub(crate) fn batch(table: &Table, rows: &[Row]) -> RecordBatch {
    let columns = table.columns.iter().enumerate().map(|(place, column)| {
        let values = || rows.iter().map(|row| &row[place]);
        let array: ArrayRef = match column.data_type {
            ColumnType::Text => Arc::new(values().map(Value::as_str).collect::<StringArray>()),
            ColumnType::Timestamp => {
                Arc::new(values().map(Value::as_i64).collect::<TimestampNanosecondArray>())
            }
            ColumnType::Int => {
                Arc::new(values().map(|v| v.as_i64().map(|n| n as i32)).collect::<Int32Array>())
            }
            ColumnType::Bigint => Arc::new(values().map(Value::as_i64).collect::<Int64Array>()),
            ColumnType::IntUnsigned => {
                Arc::new(values().map(|v| v.as_u64().map(|n| n as u32)).collect::<UInt32Array>())
            }
            ColumnType::BigintUnsigned => Arc::new(values().map(Value::as_u64).collect::<UInt64Array>()),
            ColumnType::Float => {
                Arc::new(values().map(|v| v.as_f64().map(|n| n as f32)).collect::<Float32Array>())
            }
            ColumnType::Double => Arc::new(values().map(Value::as_f64).collect::<Float64Array>()),
            ColumnType::Boolean => Arc::new(values().map(Value::as_bool).collect::<BooleanArray>()),
            other => {
                let mut built = Column::new(other, column.nullable, rows.len());
                values().for_each(|value| built.push_json(value).unwrap());
                built.into_array().unwrap()
            }
        };
        array
    });
    RecordBatch::try_new(record_schema(table), columns.collect()).unwrap()
}

/// The rows of a closed window as the sink writes them.
pub(crate) fn written(sink: &Table, closed: &ClosedWindow) -> Vec<Map<String, Value>> {
    let records = sink::records(sink, 3, closed, Word { is_final: true, revision: 0 }).unwrap();
    records.into_iter().map(|(_, record)| serde_json::from_slice(&record.value.unwrap()).unwrap()).collect()
}

/// Rows without a window as the sink writes them.
pub(crate) fn written_rows(sink: &Table, batch: &RecordBatch) -> Vec<Map<String, Value>> {
    let output = ClosedOutput { rows: vec![batch.clone()], ..ClosedOutput::default() };
    let records = sink::output_records(sink, 3, &output, 0).unwrap();
    records.into_iter().map(|(_, record)| serde_json::from_slice(&record.value.unwrap()).unwrap()).collect()
}

/// The rows of a batch answer as the sink would write them: columns by position, cast to the sink's types.
pub(crate) fn as_written(sink: &Table, answer: &[RecordBatch]) -> Vec<Map<String, Value>> {
    let schema = arrow_schema(sink);
    let rows = answer.iter().map(|batch| {
        let columns = batch.columns().iter().zip(schema.fields());
        let columns = columns.map(|(column, field)| cast(column, field.data_type()).unwrap()).collect();
        let nullable: Vec<_> =
            schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect();
        RecordBatch::try_new(Arc::new(arrow::datatypes::Schema::new(nullable)), columns).unwrap()
    });
    written(sink, &ClosedWindow { window: Window { start: 0, end: 0 }, rows: rows.collect() })
}

/// Rows as sorted lines of JSON.
pub(crate) fn sorted<'r>(rows: impl IntoIterator<Item = &'r Map<String, Value>>) -> Vec<String> {
    let mut lines: Vec<String> = rows.into_iter().map(|row| serde_json::to_string(row).unwrap()).collect();
    lines.sort();
    lines
}
