//! Records → rows, once for every query that reads the source. Pure.

use std::ops::Range;

use super::compile::CompiledSource;
use super::expression::Rows;
use crate::log::Record;
use crate::log::codec::{CodecError, declared_rows};

/// Decoded records of one partition, in order.
#[derive(Debug)]
pub(crate) struct Decoded {
    /// The rows of all records that could be decoded, in the records' order.
    rows: Rows,
    pub(crate) spans: Vec<Span>,
    /// What could not be decoded, by place among `spans`.
    pub(crate) bad: Vec<(usize, CodecError)>,
}

/// One record's share of the rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) offset: i64,
    pub(crate) timestamp_ms: i64,
    /// Where its rows end; they begin where those of the record before end.
    end: usize,
    /// How many rows the record's header declares, or has when it declares none; a record that declares none and cannot
    /// be decoded counts as one row.
    pub(crate) accepted: u64,
    /// As many when it could not be decoded, else 0.
    pub(crate) bad: u64,
}

impl Decoded {
    /// The rows of some of the records; `None` when there is none.
    pub(crate) fn rows_of(&self, spans: Range<usize>) -> Option<Rows> {
        let end = |place: usize| if place == 0 { 0 } else { self.spans[place - 1].end };
        let (from, to) = (end(spans.start), end(spans.end));
        (from < to).then(|| self.rows.slice(from, to - from))
    }
}

/// Decodes the first of `records` and as many of those that follow as make one batch; `spans` says how many.
pub(crate) fn decode(source: &CompiledSource, records: &[Record], partition: u32) -> Decoded {
    let decoded = source.codec.decode_some(partition, records, &source.columns);
    let mut bad = decoded.bad.iter().map(|(place, _)| *place).peekable();
    let mut begin = 0;
    let span = |((place, record), &end): ((usize, &Record), &usize)| {
        let is_bad = bad.next_if_eq(&place).is_some();
        let rows = if is_bad { 1 } else { end - begin };
        begin = end;
        let accepted = declared_rows(record).unwrap_or(rows as u64);
        Span {
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            end,
            accepted,
            bad: if is_bad { accepted } else { 0 },
        }
    };
    let spans = records.iter().enumerate().zip(&decoded.ends).map(span).collect();
    Decoded { rows: Rows::new(decoded.batch), spans, bad: decoded.bad }
}
