//! A column's `DEFAULT` for rows that were written before the column was declared. Pure.

use datafusion::common::ScalarValue;

use crate::reaction::table::{Column, ColumnType, DefaultValue};
use crate::reaction::time::{NS_PER_MS, parse_rfc3339};

/// What such a row has in `column`: what ingest would have filled in, with the record's time of writing for `now()`.
/// `None` without a default, or for one that is not of the column's type.
pub(crate) fn default_value(column: &Column, written_ms: i64) -> Option<ScalarValue> {
    let value = match column.default.as_ref()? {
        DefaultValue::Now => return Some(timestamp(written_ms.saturating_mul(NS_PER_MS))),
        DefaultValue::Literal(value) => value,
    };
    match column.data_type {
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
    }
}

fn timestamp(ns: i64) -> ScalarValue {
    ScalarValue::TimestampNanosecond(Some(ns), None)
}
