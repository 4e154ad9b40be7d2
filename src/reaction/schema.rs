//! A table's columns as Arrow has them.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

use super::table::{Column, ColumnType, Table};

/// The Arrow type of a column: TEXT is Utf8, TIMESTAMP nanoseconds without zone, DECIMAL 128 bits, an array a List of
/// nullable items.
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
        ColumnType::Bytea => DataType::Binary,
        // At most 38 by construction, so that it fits.
        ColumnType::Decimal { precision, scale } => DataType::Decimal128(precision, scale.cast_signed()),
        ColumnType::Array(item) => DataType::List(Arc::new(Field::new_list_field(arrow_type(*item), true))),
    }
}

/// The schema of a table's batches as queries read them, in declaration order.
pub fn arrow_schema(table: &Table) -> SchemaRef {
    schema_of(table.columns.iter())
}

/// The schema of a table's records: without the columns that the log fills in.
pub fn record_schema(table: &Table) -> SchemaRef {
    schema_of(table.record_columns())
}

fn schema_of<'a>(columns: impl Iterator<Item = &'a Column>) -> SchemaRef {
    let fields = columns.map(|c| Field::new(&c.name, arrow_type(c.data_type), c.nullable));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}
