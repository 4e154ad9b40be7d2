//! A table's columns as Arrow has them.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

use super::table::{ColumnType, Table};

/// The Arrow type of a column: TEXT is Utf8, TIMESTAMP nanoseconds without zone.
pub fn arrow_type(column: ColumnType) -> DataType {
    match column {
        ColumnType::Text => DataType::Utf8,
        ColumnType::Timestamp => DataType::Timestamp(TimeUnit::Nanosecond, None),
        ColumnType::Int => DataType::Int32,
        ColumnType::Bigint => DataType::Int64,
        ColumnType::IntUnsigned => DataType::UInt32,
        ColumnType::BigintUnsigned => DataType::UInt64,
        ColumnType::Float => DataType::Float32,
        ColumnType::Double => DataType::Float64,
        ColumnType::Boolean => DataType::Boolean,
    }
}

/// The schema of a table's batches, in declaration order.
pub fn arrow_schema(table: &Table) -> SchemaRef {
    let fields = table.columns.iter().map(|c| Field::new(&c.name, arrow_type(c.data_type), c.nullable));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}
