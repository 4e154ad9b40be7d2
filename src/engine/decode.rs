//! Records → rows, once for every query that reads the source. Pure.

use super::compile::CompiledSource;
use super::expression::Rows;
use crate::log::Record;
use crate::log::codec::{CodecError, declared_rows};

/// Decoded records of one partition, in order.
#[derive(Debug)]
pub(crate) struct Decoded {
    /// The rows of all records that could be decoded, in the records' order.
    rows: Option<Rows>,
    spans: Vec<Span>,
    /// What could not be decoded.
    pub(crate) bad: Option<CodecError>,
    pub(crate) bad_span: Span,
    /// The offset after the last of the records.
    pub(crate) next: i64,
}

/// One record's share of the rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) offset: i64,
    pub(crate) timestamp_ms: i64,
    pub(crate) rows: usize,
    /// How many rows the record's header declares, or has when it declares none.
    pub(crate) accepted: u64,
}

impl Decoded {
    /// Each record with its rows.
    pub(crate) fn by_record(&self) -> impl Iterator<Item = (Span, Rows)> {
        let mut from = 0;
        self.spans.iter().zip(self.rows.iter().cycle()).map(move |(span, rows)| {
            from += span.rows;
            (*span, rows.slice(from - span.rows, span.rows))
        })
    }
}

/// Decodes one record. A record that declares no number of rows and cannot be decoded counts as one row.
pub(crate) fn decode(source: &CompiledSource, record: &Record, partition: u32) -> Decoded {
    let declared = declared_rows(record);
    let span = |rows: usize| Span {
        offset: record.offset,
        timestamp_ms: record.timestamp_ms,
        rows,
        accepted: declared.unwrap_or(rows as u64),
    };
    let next = record.offset + 1;
    match source.codec.decode(partition, record, &source.columns).map(Rows::new) {
        Ok(rows) => {
            let spans = vec![span(rows.len())];
            Decoded { rows: Some(rows), spans, bad: None, bad_span: Span { accepted: 0, ..span(0) }, next }
        }
        Err(error) => Decoded { rows: None, spans: vec![], bad: Some(error), bad_span: span(1), next },
    }
}
