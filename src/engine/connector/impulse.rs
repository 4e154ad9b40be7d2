//! The `impulse` source: rows made up one after the other, each with a number and a time of its own. Pure.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema};

use super::{ConnectorError, Cursor, Input, Piece, Place};
use crate::log::Record;
use crate::log::codec::{MAX_ROWS, RecordCodec};
use crate::reaction::table::Table;

/// The number that grows by one.
const COUNTER: &str = "counter";

/// Row `n` of `message_count` is written `n / event_rate` seconds after the Unix epoch, to the millisecond; rows of the
/// same millisecond are one record. Begins with row `from`. Its `counter` is `n`, its other columns are 0: there is one source of them.
pub fn impulse(table: &Table, event_rate: f64, message_count: u64, from: Cursor) -> Input {
    let (codec, name) = (RecordCodec::new(table), table.name.clone());
    let fields = codec.schema().fields().clone();
    let mut next = from.next;
    let pieces = std::iter::from_fn(move || {
        let first = next;
        if first >= message_count {
            return None;
        }
        let written_ms = written_ms(first, event_rate);
        while next < message_count
            && next - first < MAX_ROWS as u64
            && self::written_ms(next, event_rate) == written_ms
        {
            next += 1;
        }
        Some(piece(&codec, &name, &fields, first..next, written_ms))
    });
    Box::new(pieces)
}

/// When row `n` is written.
pub fn written_ms(n: u64, event_rate: f64) -> i64 {
    // Beyond 2^53 rows the times are approximate, and stay in order.
    (n as f64 * 1000.0 / event_rate) as i64
}

fn piece(
    codec: &RecordCodec,
    table: &str,
    fields: &arrow::datatypes::Fields,
    numbers: std::ops::Range<u64>,
    written_ms: i64,
) -> Result<Piece, ConnectorError> {
    let failed = |why: String| ConnectorError::Input(format!("{table}: {why}"));
    let (mut columns, mut kept): (Vec<ArrayRef>, Vec<Arc<Field>>) = (Vec::new(), Vec::new());
    for field in fields.iter().filter(|field| field.data_type() == &DataType::UInt64) {
        let values = numbers.clone().map(|n| if field.name() == COUNTER { n } else { 0 });
        columns.push(Arc::new(values.collect::<UInt64Array>()));
        kept.push(Arc::clone(field));
    }
    let batch = RecordBatch::try_new(Arc::new(Schema::new(kept)), columns)
        .map_err(|error| failed(error.to_string()))?;
    let new = codec.encode(&batch).map_err(|error| failed(error.to_string()))?.pop();
    let new = new.ok_or_else(|| failed("no rows".to_owned()))?;
    let after = Cursor { next: numbers.end, lines: 0 };
    let offset = i64::try_from(numbers.start).unwrap_or(i64::MAX);
    let record =
        Record { offset, timestamp_ms: written_ms, key: None, value: new.value, headers: new.headers };
    Ok(Piece { record, place: Place { file: table.to_owned(), line: 0 }, after })
}
