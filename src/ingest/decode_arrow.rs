//! An Arrow IPC stream → rows: columns by name, every array type that holds a column's values.
//!
//! The reader of the Arrow library trusts lengths that it reads: it allocates what a message claims, and panics on
//! some damaged descriptions. So the messages are walked first, and nothing is read that claims more than the body
//! has; what still panics is caught and refused.

use std::io::Cursor;
use std::panic::AssertUnwindSafe;

use arrow::array::{Array, ArrayAccessor, AsArray, GenericListArray, OffsetSizeTrait, RecordBatch};
use arrow::buffer::Buffer;
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
    Int64Type, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::root_as_message;

use super::decode::{DecodeError, Decoder, Filling};
use crate::log::codec::MAX_ROWS;
use crate::reaction::columns::{Column, Mismatch, Rows};
use crate::reaction::decimal::format_decimal;
use crate::reaction::table::ColumnType;

/// The rows of all batches of a stream.
pub(super) fn stream(decoder: &Decoder, body: &[u8], receipt_ns: i64) -> Result<Rows, DecodeError> {
    check_messages(body)?;
    std::panic::catch_unwind(AssertUnwindSafe(|| read(decoder, body, receipt_ns)))
        .unwrap_or_else(|_| Err(damaged("its description is not understood")))
}

fn damaged(why: impl std::fmt::Display) -> DecodeError {
    DecodeError::Syntax { row: None, detail: format!("the body is no readable Arrow IPC stream: {why}") }
}

/// Every message lies within the body, is well-formed, and has no compressed buffers (they could be bombs; the body
/// as a whole may be compressed, that is bounded).
fn check_messages(body: &[u8]) -> Result<(), DecodeError> {
    let mut rest = body;
    if rest.is_empty() {
        return Err(damaged("it is empty"));
    }
    while let Some((mut head, mut tail)) = rest.split_first_chunk::<4>() {
        if head == &[0xff; 4] {
            (head, tail) =
                tail.split_first_chunk::<4>().ok_or_else(|| damaged("it ends within a message"))?;
        }
        let length = usize::try_from(u32::from_le_bytes(*head)).unwrap_or(usize::MAX);
        if length == 0 {
            return Ok(());
        }
        let (meta, tail) =
            tail.split_at_checked(length).ok_or_else(|| damaged("it ends within a message"))?;
        // Copied, because a description is read in place and must be aligned.
        let meta = Buffer::from(meta);
        let message = root_as_message(&meta).map_err(damaged)?;
        let length = usize::try_from(message.bodyLength()).unwrap_or(usize::MAX);
        rest = tail.get(length..).ok_or_else(|| damaged("it ends within a message"))?;
        let dictionary = message.header_as_dictionary_batch().and_then(|dictionary| dictionary.data());
        if let Some(batch) = message.header_as_record_batch().or(dictionary)
            && batch.compression().is_some()
        {
            return Err(damaged(
                "its buffers are compressed; write it without compression and send the whole body with Content-Encoding: \
                 zstd or gzip",
            ));
        }
    }
    if rest.is_empty() { Ok(()) } else { Err(damaged("it ends within a message")) }
}

fn read(decoder: &Decoder, body: &[u8], receipt_ns: i64) -> Result<Rows, DecodeError> {
    let reader = StreamReader::try_new(Cursor::new(body), None).map_err(damaged)?;
    let mut places = Vec::new();
    for field in reader.schema().fields() {
        let place = decoder
            .place(field.name(), places.len())
            .ok_or_else(|| decoder.unknown_column(0, field.name()))?;
        let data_type = decoder.columns[place].data_type;
        if !holds(field.data_type(), data_type) {
            return Err(decoder.mismatch(
                0,
                place,
                &Mismatch::Type(format!("of Arrow's type {}", field.data_type())),
            ));
        }
        if places.contains(&place) {
            return Err(damaged(format!("it has two columns {}", field.name())));
        }
        places.push(place);
    }
    let mut filling = Filling::new(decoder, receipt_ns, 1);
    for batch in reader {
        let batch = batch.map_err(damaged)?;
        if filling.rows.count.saturating_add(batch.num_rows()) > MAX_ROWS {
            return Err(DecodeError::TooLarge(format!("more than {MAX_ROWS} rows in one request")));
        }
        fill(&mut filling, &batch, &places)?;
    }
    Ok(filling.rows)
}

/// Row by row, so that errors name the first bad row and the formats share what follows.
fn fill(filling: &mut Filling<'_>, batch: &RecordBatch, places: &[usize]) -> Result<(), DecodeError> {
    let sources: Vec<Source<'_>> = batch.columns().iter().map(|array| source(array.as_ref())).collect();
    for row in 0..batch.num_rows() {
        for (&place, source) in places.iter().zip(&sources) {
            let number = filling.rows.count;
            let decoder = filling.decoder;
            source(filling.column(place)?, row)
                .map_err(|mismatch| decoder.mismatch(number, place, &mismatch))?;
        }
        filling.end_row()?;
    }
    Ok(())
}

/// Whether values of an Arrow type go into a column, as far as the type tells.
fn holds(arrow: &DataType, column: ColumnType) -> bool {
    match column {
        ColumnType::Text => match arrow {
            DataType::Dictionary(_, values) => is_text(values),
            plain => is_text(plain),
        },
        ColumnType::Timestamp => matches!(arrow, DataType::Timestamp(..) | DataType::Int64),
        ColumnType::Int | ColumnType::Bigint | ColumnType::IntUnsigned | ColumnType::BigintUnsigned => {
            arrow.is_integer()
        }
        ColumnType::Float | ColumnType::Double => {
            arrow.is_integer() || matches!(arrow, DataType::Float32 | DataType::Float64)
        }
        ColumnType::Boolean => arrow == &DataType::Boolean,
        ColumnType::Bytea => matches!(arrow, DataType::Binary | DataType::LargeBinary | DataType::BinaryView),
        ColumnType::Decimal { .. } => {
            arrow.is_integer() || is_text(arrow) || matches!(arrow, DataType::Decimal128(_, 0..))
        }
        ColumnType::Array(item) => match arrow {
            DataType::List(field) | DataType::LargeList(field) => holds(field.data_type(), *item),
            _ => false,
        },
    }
}

fn is_text(arrow: &DataType) -> bool {
    matches!(arrow, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// Pushes the value at a row into a column.
type Source<'a> = Box<dyn Fn(&mut Column, usize) -> Result<(), Mismatch> + 'a>;

fn source(array: &dyn Array) -> Source<'_> {
    match array.data_type() {
        DataType::Utf8 => text(array.as_string::<i32>()),
        DataType::LargeUtf8 => text(array.as_string::<i64>()),
        DataType::Utf8View => text(array.as_string_view()),
        DataType::Dictionary(..) => {
            let dictionary = array.as_any_dictionary();
            if dictionary.values().is_empty() {
                return Box::new(|column, _| column.push_null());
            }
            let keys = dictionary.normalized_keys();
            let values = source(dictionary.values().as_ref());
            Box::new(move |column, row| match array.is_null(row) {
                true => column.push_null(),
                false => values(column, keys[row]),
            })
        }
        DataType::Timestamp(TimeUnit::Second, _) => scaled::<TimestampSecondType>(array, 1_000_000_000),
        DataType::Timestamp(TimeUnit::Millisecond, _) => scaled::<TimestampMillisecondType>(array, 1_000_000),
        DataType::Timestamp(TimeUnit::Microsecond, _) => scaled::<TimestampMicrosecondType>(array, 1_000),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => scaled::<TimestampNanosecondType>(array, 1),
        DataType::Int8 => number::<Int8Type>(array, |column, value| column.push_i64(value.into())),
        DataType::Int16 => number::<Int16Type>(array, |column, value| column.push_i64(value.into())),
        DataType::Int32 => number::<Int32Type>(array, |column, value| column.push_i64(value.into())),
        DataType::Int64 => number::<Int64Type>(array, Column::push_i64),
        DataType::UInt8 => number::<UInt8Type>(array, |column, value| column.push_i64(value.into())),
        DataType::UInt16 => number::<UInt16Type>(array, |column, value| column.push_i64(value.into())),
        DataType::UInt32 => number::<UInt32Type>(array, |column, value| column.push_i64(value.into())),
        DataType::UInt64 => number::<UInt64Type>(array, Column::push_u64),
        DataType::Float32 => number::<Float32Type>(array, |column, value| column.push_f64(value.into())),
        DataType::Float64 => number::<Float64Type>(array, Column::push_f64),
        DataType::Boolean => {
            let values = array.as_boolean();
            Box::new(move |column, row| match values.is_null(row) {
                true => column.push_null(),
                false => column.push_bool(values.value(row)),
            })
        }
        DataType::Binary => bytes(array.as_binary::<i32>()),
        DataType::LargeBinary => bytes(array.as_binary::<i64>()),
        DataType::BinaryView => bytes(array.as_binary_view()),
        DataType::Decimal128(_, scale) => {
            let scale = u8::try_from(*scale).unwrap_or_default();
            number::<Decimal128Type>(array, move |column, value| {
                column.push_text(&format_decimal(value, scale))
            })
        }
        DataType::List(_) => list(array.as_list::<i32>()),
        DataType::LargeList(_) => list(array.as_list::<i64>()),
        other => {
            let found = format!("of Arrow's type {other}");
            Box::new(move |_, _| Err(Mismatch::Type(found.clone())))
        }
    }
}

fn text<'a>(values: impl ArrayAccessor<Item = &'a str> + 'a) -> Source<'a> {
    Box::new(move |column, row| match values.is_null(row) {
        true => column.push_null(),
        false => column.push_text(values.value(row)),
    })
}

fn bytes<'a>(values: impl ArrayAccessor<Item = &'a [u8]> + 'a) -> Source<'a> {
    Box::new(move |column, row| match values.is_null(row) {
        true => column.push_null(),
        false => column.push_bytes(values.value(row)),
    })
}

fn list<O: OffsetSizeTrait>(lists: &GenericListArray<O>) -> Source<'_> {
    let items = source(lists.values().as_ref());
    Box::new(move |column, row| match lists.is_null(row) {
        true => column.push_null(),
        false => {
            let offsets = lists.value_offsets();
            let places = offsets[row].as_usize()..offsets[row + 1].as_usize();
            column.push_array(|column| places.clone().try_for_each(|place| items(column, place)))
        }
    })
}

fn number<'a, T: ArrowPrimitiveType>(
    array: &'a dyn Array,
    push: impl Fn(&mut Column, T::Native) -> Result<(), Mismatch> + 'a,
) -> Source<'a> {
    let values = array.as_primitive::<T>();
    Box::new(move |column, row| match values.is_null(row) {
        true => column.push_null(),
        false => push(column, values.value(row)),
    })
}

/// Instants of another unit, as nanoseconds.
fn scaled<T: ArrowPrimitiveType<Native = i64>>(array: &dyn Array, unit_ns: i64) -> Source<'_> {
    number::<T>(array, move |column, value| match value.checked_mul(unit_ns) {
        Some(ns) => column.push_i64(ns),
        None => Err(Mismatch::Time(format!("{value} × {unit_ns} ns lies outside the years 1678 to 2261"))),
    })
}
