//! Values as the program writes them in JSON: one form for every column type, whoever writes it.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{
    DataType, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type, TimeUnit,
    TimestampNanosecondType, UInt32Type, UInt64Type,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::decimal::format_decimal;
use super::time::format_rfc3339;

/// A value as JSON: times as RFC 3339 text, decimals as text (a number would lose digits in most readers), bytes as
/// base64 text, arrays as arrays, floats that JSON lacks (NaN, infinity) as null. `None` for Arrow types that are no
/// column's.
pub fn json_value(values: &ArrayRef, row: usize) -> Option<Value> {
    if values.is_null(row) {
        return Some(Value::Null);
    }
    Some(match values.data_type() {
        DataType::Utf8 => Value::from(values.as_string::<i32>().value(row)),
        DataType::Boolean => Value::from(values.as_boolean().value(row)),
        DataType::Int32 => Value::from(values.as_primitive::<Int32Type>().value(row)),
        DataType::Int64 => Value::from(values.as_primitive::<Int64Type>().value(row)),
        DataType::UInt32 => Value::from(values.as_primitive::<UInt32Type>().value(row)),
        DataType::UInt64 => Value::from(values.as_primitive::<UInt64Type>().value(row)),
        DataType::Float32 => Value::from(shortest(values.as_primitive::<Float32Type>().value(row))),
        DataType::Float64 => Value::from(values.as_primitive::<Float64Type>().value(row)),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            Value::from(format_rfc3339(values.as_primitive::<TimestampNanosecondType>().value(row)))
        }
        DataType::Binary => Value::from(STANDARD.encode(values.as_binary::<i32>().value(row))),
        DataType::Decimal128(_, scale) => {
            let scale = u8::try_from(*scale).ok()?;
            Value::from(format_decimal(values.as_primitive::<Decimal128Type>().value(row), scale))
        }
        DataType::List(_) => {
            let items = values.as_list::<i32>().value(row);
            (0..items.len()).map(|item| json_value(&items, item)).collect::<Option<_>>()?
        }
        DataType::Dictionary(..) => {
            let dictionary = values.as_any_dictionary();
            json_value(dictionary.values(), dictionary.normalized_keys()[row])?
        }
        _ => return None,
    })
}

/// The number that is written with the digits that `value` needs, 0.1 for 0.1: widened as it is, 0.10000000149… would
/// be written.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        BinaryArray, Decimal128Array, DictionaryArray, Float32Array, Float64Array, Int64Array, ListArray,
        UInt64Array,
    };
    use arrow::datatypes::Int32Type as Code;
    use serde_json::json;

    use super::*;

    #[test]
    fn every_type_has_its_form() {
        let decimals = Decimal128Array::from(vec![-1205]).with_precision_and_scale(10, 2).unwrap();
        let lists = ListArray::from_iter_primitive::<Int64Type, _, _>([Some([Some(1), None])]);
        let forms: [(ArrayRef, Value); 10] = [
            (Arc::new(decimals), json!("-12.05")),
            (Arc::new(BinaryArray::from(vec![&[0xff, 0, 1][..]])), json!("/wAB")),
            (Arc::new(lists), json!([1, null])),
            (Arc::new(DictionaryArray::<Code>::from_iter(["a"])), json!("a")),
            (Arc::new(Float64Array::from(vec![f64::NAN])), json!(null)),
            (Arc::new(Float64Array::from(vec![0.5])), json!(0.5)),
            (Arc::new(Float32Array::from(vec![0.1])), json!(0.1)),
            (Arc::new(Float32Array::from(vec![f32::INFINITY])), json!(null)),
            (Arc::new(Int64Array::from(vec![None])), json!(null)),
            (Arc::new(UInt64Array::from(vec![u64::MAX])), json!(u64::MAX)),
        ];
        for (values, form) in forms {
            assert_eq!(json_value(&values, 0), Some(form), "{values:?}");
        }
    }
}
