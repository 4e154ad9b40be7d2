//! Rows → JSON objects, one at a time, without building a tree of values.

use std::io::Write;

use ::arrow::array::{Array, ArrayRef, AsArray, BooleanArray, DictionaryArray, PrimitiveArray, StringArray};
use ::arrow::buffer::NullBuffer;
use ::arrow::datatypes::{
    ArrowPrimitiveType, DataType, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    TimeUnit, TimestampNanosecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use ::arrow::util::display::{ArrayFormatter, FormatOptions};
use serde::Serialize;

use super::{CodecError, damaged};
use crate::reaction::json::json_value;
use crate::reaction::time::{NS_PER_MS, format_rfc3339};

/// Writes rows of some arrays as JSON objects, in the columns' order and with nulls written as such. Times are RFC 3339
/// in UTC, or integers of milliseconds; a struct is an object; other types of columns are as [`json_value`] has them, and
/// what is no column's type (dates, intervals) is text.
pub struct JsonText<'a> {
    /// `{"name":` or `,"name":` and the values.
    columns: Vec<(Vec<u8>, Values<'a>)>,
}

struct Values<'a> {
    nulls: Option<NullBuffer>,
    form: Form<'a>,
}

enum Form<'a> {
    Text(&'a StringArray),
    Coded(&'a DictionaryArray<Int32Type>, &'a StringArray),
    Time(&'a PrimitiveArray<TimestampNanosecondType>, bool),
    Int8(&'a PrimitiveArray<Int8Type>),
    Int16(&'a PrimitiveArray<Int16Type>),
    Int32(&'a PrimitiveArray<Int32Type>),
    Int64(&'a PrimitiveArray<Int64Type>),
    UInt8(&'a PrimitiveArray<UInt8Type>),
    UInt16(&'a PrimitiveArray<UInt16Type>),
    UInt32(&'a PrimitiveArray<UInt32Type>),
    UInt64(&'a PrimitiveArray<UInt64Type>),
    Float32(&'a PrimitiveArray<Float32Type>),
    Float64(&'a PrimitiveArray<Float64Type>),
    Boolean(&'a BooleanArray),
    Struct(JsonText<'a>),
    Column(&'a ArrayRef),
    Other(ArrayFormatter<'a>),
}

const DISPLAY: FormatOptions<'static> = FormatOptions::new();

impl<'a> JsonText<'a> {
    /// A writer of these columns' rows. `unix_millis`: times as integers of milliseconds.
    ///
    /// # Errors
    /// When a column is of a type that has no text.
    pub fn new<'n>(
        names: impl IntoIterator<Item = &'n str>,
        arrays: &'a [ArrayRef],
        unix_millis: bool,
    ) -> Result<Self, CodecError> {
        let columns = names.into_iter().zip(arrays).enumerate().map(|(place, (name, array))| {
            let mut head = vec![if place == 0 { b'{' } else { b',' }];
            write_value(&mut head, name)?;
            head.push(b':');
            Ok((head, Values::new(array, unix_millis)?))
        });
        Ok(Self { columns: columns.collect::<Result<_, CodecError>>()? })
    }

    /// Appends a row's object.
    ///
    /// # Errors
    /// When a value cannot be shown.
    pub fn write(&self, row: usize, to: &mut Vec<u8>) -> Result<(), CodecError> {
        for (head, values) in &self.columns {
            to.extend_from_slice(head);
            values.write(row, to)?;
        }
        to.extend_from_slice(if self.columns.is_empty() { b"{}" } else { b"}" });
        Ok(())
    }
}

impl<'a> Values<'a> {
    fn new(array: &'a ArrayRef, unix_millis: bool) -> Result<Self, CodecError> {
        let form = match array.data_type() {
            DataType::Utf8 => Form::Text(array.as_string()),
            DataType::Dictionary(..) => match array.as_dictionary_opt::<Int32Type>() {
                Some(coded) if coded.values().data_type() == &DataType::Utf8 => {
                    Form::Coded(coded, coded.values().as_string())
                }
                _ => Form::Other(ArrayFormatter::try_new(array.as_ref(), &DISPLAY).map_err(damaged)?),
            },
            DataType::Timestamp(TimeUnit::Nanosecond, _) => Form::Time(array.as_primitive(), unix_millis),
            DataType::Int8 => Form::Int8(array.as_primitive()),
            DataType::Int16 => Form::Int16(array.as_primitive()),
            DataType::Int32 => Form::Int32(array.as_primitive()),
            DataType::Int64 => Form::Int64(array.as_primitive()),
            DataType::UInt8 => Form::UInt8(array.as_primitive()),
            DataType::UInt16 => Form::UInt16(array.as_primitive()),
            DataType::UInt32 => Form::UInt32(array.as_primitive()),
            DataType::UInt64 => Form::UInt64(array.as_primitive()),
            DataType::Float32 => Form::Float32(array.as_primitive()),
            DataType::Float64 => Form::Float64(array.as_primitive()),
            DataType::Boolean => Form::Boolean(array.as_boolean()),
            DataType::Struct(fields) => {
                let names = fields.iter().map(|field| field.name().as_str());
                Form::Struct(JsonText::new(names, array.as_struct().columns(), unix_millis)?)
            }
            DataType::Binary | DataType::Decimal128(..) | DataType::List(_) => Form::Column(array),
            _ => Form::Other(ArrayFormatter::try_new(array.as_ref(), &DISPLAY).map_err(damaged)?),
        };
        Ok(Self { nulls: array.logical_nulls(), form })
    }

    fn write(&self, row: usize, to: &mut Vec<u8>) -> Result<(), CodecError> {
        if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            to.extend_from_slice(b"null");
            return Ok(());
        }
        match &self.form {
            Form::Text(values) => write_value(to, values.value(row)),
            Form::Coded(coded, values) => match coded.key(row) {
                Some(key) => write_value(to, values.value(key)),
                None => write_value(to, &()),
            },
            Form::Time(values, true) => write_value(to, &values.value(row).div_euclid(NS_PER_MS)),
            Form::Time(values, false) => write_value(to, &format_rfc3339(values.value(row))),
            Form::Int8(values) => number(to, values, row),
            Form::Int16(values) => number(to, values, row),
            Form::Int32(values) => number(to, values, row),
            Form::Int64(values) => number(to, values, row),
            Form::UInt8(values) => number(to, values, row),
            Form::UInt16(values) => number(to, values, row),
            Form::UInt32(values) => number(to, values, row),
            Form::UInt64(values) => number(to, values, row),
            Form::Float32(values) => number(to, values, row),
            Form::Float64(values) => number(to, values, row),
            Form::Boolean(values) => write_value(to, &values.value(row)),
            Form::Struct(object) => object.write(row, to),
            Form::Column(values) => match json_value(values, row) {
                Some(value) => write_value(to, &value),
                None => Err(CodecError::WrongSchema(format!("{} has no JSON form", values.data_type()))),
            },
            Form::Other(text) => write_value(to, &text.value(row).try_to_string().map_err(damaged)?),
        }
    }
}

fn number<T: ArrowPrimitiveType>(
    to: &mut Vec<u8>,
    values: &PrimitiveArray<T>,
    row: usize,
) -> Result<(), CodecError>
where
    T::Native: Serialize,
{
    write_value(to, &values.value(row))
}

fn write_value<V: Serialize + ?Sized>(to: &mut Vec<u8>, value: &V) -> Result<(), CodecError> {
    serde_json::to_writer(to.by_ref(), value).map_err(|error| CodecError::Damaged(error.to_string()))
}
