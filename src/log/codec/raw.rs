//! Format `raw_string`: a record's value is text, in the one column that records hold.

use ::arrow::array::{ArrayRef, AsArray, RecordBatch};
use ::arrow::compute::cast;
use ::arrow::datatypes::DataType;

use super::{CodecError, Decoded, ENOUGH_ROWS, Origin, RecordCodec, check_count, damaged, new_record, value};
use crate::log::{NewRecord, Record};
use crate::reaction::columns::Column as Growing;
use crate::reaction::table::ColumnSource;

const TEXT: &str = "text/plain; charset=utf-8";

pub(super) fn encode(batch: &RecordBatch) -> Result<Vec<NewRecord>, CodecError> {
    let texts = texts(batch)?;
    let record = |text: Option<&str>| new_record(text.unwrap_or_default().as_bytes().to_vec(), TEXT, 1);
    texts.as_string::<i32>().iter().map(record).collect()
}

/// The text of each row as a line.
pub(super) fn lines(batch: &RecordBatch) -> Result<Vec<u8>, CodecError> {
    let texts = texts(batch)?;
    let mut lines = Vec::with_capacity(batch.num_rows() * 64);
    for text in texts.as_string::<i32>() {
        lines.extend_from_slice(text.unwrap_or_default().as_bytes());
        lines.push(b'\n');
    }
    Ok(lines)
}

fn texts(batch: &RecordBatch) -> Result<ArrayRef, CodecError> {
    let column = batch.columns().first();
    let column = column.ok_or_else(|| CodecError::WrongSchema("there is no column".to_owned()))?;
    cast(column, &DataType::Utf8).map_err(damaged)
}

pub(super) fn decode(codec: &RecordCodec, partition: u32, records: &[Record], columns: &[usize]) -> Decoded {
    let records = &records[..records.len().min(ENOUGH_ROWS)];
    let column = |&place: &usize| {
        let column = &codec.columns[place];
        Growing::coded(column.data_type, column.nullable, records.len())
    };
    let mut built: Vec<Growing> = columns.iter().map(column).collect();
    let mut decoded = codec.nothing(columns);
    let mut rows = 0;
    for (number, record) in records.iter().enumerate() {
        match row(codec, Origin { partition, record }, columns, &mut built) {
            Ok(()) => rows += 1,
            Err(error) => {
                built.iter_mut().for_each(|column| column.truncate(rows));
                decoded.bad.push((number, error));
            }
        }
        decoded.ends.push(rows);
    }
    codec.finish(columns, built, decoded)
}

fn row(
    codec: &RecordCodec,
    from: Origin<'_>,
    columns: &[usize],
    built: &mut [Growing],
) -> Result<(), CodecError> {
    check_count(from.record, 1)?;
    let text = std::str::from_utf8(value(from.record)?);
    let text = text.map_err(|error| CodecError::Damaged(format!("no UTF-8 text: {error}")))?;
    for (values, &place) in built.iter_mut().zip(columns) {
        let pushed = if codec.columns[place].source == ColumnSource::Record {
            values.push_text(text).map_err(|mismatch| codec.mismatch(place, &mismatch))
        } else {
            codec.push_absent(place, from, values)
        };
        pushed.map_err(CodecError::WrongSchema)?;
    }
    Ok(())
}
