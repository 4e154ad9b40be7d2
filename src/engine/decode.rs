//! Records → rows, once for every query that reads the source. Pure.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::TimestampNanosecondType;
use arrow::error::ArrowError;

use super::expression::Rows;
use super::sharing::InPanes;
use crate::log::Record;
use crate::log::codec::{CodecError, MAX_READ_ROWS, RecordCodec, declared_rows};

/// Decoded records of one partition, in order.
#[derive(Debug)]
pub(crate) struct Decoded {
    /// The rows of all records that could be decoded, in the records' order.
    rows: Rows,
    pub(crate) spans: Arc<[Span]>,
    /// What could not be decoded, by place among `spans`.
    pub(crate) bad: Vec<(usize, CodecError)>,
    /// Of all rows.
    pub(crate) extent: Option<Extent>,
    /// What becomes of all rows in the panes of queries with the same identity.
    pub(crate) in_panes: Arc<[(Arc<str>, InPanes)]>,
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

/// The earliest and the latest event time of rows, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) earliest: i64,
    pub(crate) latest: i64,
}

impl Extent {
    /// `None` of no rows.
    pub(crate) fn of(event_ns: &[i64]) -> Option<Self> {
        let (&first, rest) = event_ns.split_first()?;
        let both = |(earliest, latest): (i64, i64), &ns: &i64| (earliest.min(ns), latest.max(ns));
        let (earliest, latest) = rest.iter().fold((first, first), both);
        Some(Self { earliest, latest })
    }

    /// Whether all lies between the two, both included.
    pub(crate) fn is_within(self, from: i64, to: i64) -> bool {
        from <= self.earliest && self.latest <= to
    }
}

/// Which columns are built of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Columns {
    /// By place in the table, in order.
    pub(crate) places: Vec<usize>,
    /// The event time's place among them.
    pub(crate) event_time: usize,
}

impl Columns {
    /// The event times of rows that have these columns.
    pub(crate) fn event_ns<'r>(&self, rows: &'r Rows) -> &'r [i64] {
        rows.batch().column(self.event_time).as_primitive::<TimestampNanosecondType>().values()
    }

    /// These and others.
    pub(crate) fn with(&self, others: impl IntoIterator<Item = usize>) -> Self {
        let event_place = self.places[self.event_time];
        let places: BTreeSet<usize> = self.places.iter().copied().chain(others).collect();
        let event_time = places.range(..event_place).count();
        Self { places: places.into_iter().collect(), event_time }
    }

    /// Where each of `these` is among them; `None` when one is missing.
    pub(crate) fn places_of(&self, these: &Self) -> Option<Vec<usize>> {
        these.places.iter().map(|place| self.places.binary_search(place).ok()).collect()
    }
}

impl Decoded {
    /// All rows.
    pub(crate) fn rows(&self) -> &Rows {
        &self.rows
    }

    /// The rows of some of the records; `None` when there is none.
    pub(crate) fn rows_of(&self, spans: Range<usize>) -> Option<Rows> {
        let end = |place: usize| if place == 0 { 0 } else { self.spans[place - 1].end };
        let (from, to) = (end(spans.start), end(spans.end));
        (from < to).then(|| self.rows.slice(from, to - from))
    }

    /// The same with fewer columns: those at `places`, in that order.
    pub(crate) fn project(&self, places: &[usize]) -> Result<Self, ArrowError> {
        Ok(Self {
            rows: project(&self.rows, places)?,
            spans: Arc::clone(&self.spans),
            bad: self.bad.clone(),
            extent: self.extent,
            in_panes: Arc::clone(&self.in_panes),
        })
    }

    /// About how many bytes of memory it holds.
    pub(crate) fn bytes(&self) -> usize {
        let column = |array: &ArrayRef| array.to_data().get_slice_memory_size().unwrap_or_default();
        self.rows.batch().columns().iter().map(column).sum::<usize>() + size_of_val(&*self.spans)
    }
}

/// The rows with the columns at `places`, in that order.
pub(crate) fn project(rows: &Rows, places: &[usize]) -> Result<Rows, ArrowError> {
    Ok(Rows::new(rows.batch().project(places)?))
}

/// Decodes the first of `records` and as many of those that follow as make one batch; `spans` says how many.
pub(crate) fn decode(codec: &RecordCodec, columns: &Columns, records: &[Record], partition: u32) -> Decoded {
    let decoded = codec.decode_some(partition, records, &columns.places);
    let mut bad = decoded.bad.iter().map(|(place, _)| *place).peekable();
    let mut begin = 0;
    let span = |((place, record), &end): ((usize, &Record), &usize)| {
        let is_bad = bad.next_if_eq(&place).is_some();
        let rows = if is_bad { 1 } else { end - begin };
        begin = end;
        // What cannot be read may declare anything; what can was compared with it.
        let accepted = declared_rows(record).unwrap_or(rows as u64).min(MAX_READ_ROWS as u64);
        Span {
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            end,
            accepted,
            bad: if is_bad { accepted } else { 0 },
        }
    };
    let spans = records.iter().enumerate().zip(&decoded.ends).map(span).collect();
    let rows = Rows::new(decoded.batch);
    let extent = Extent::of(columns.event_ns(&rows));
    Decoded { rows, spans, bad: decoded.bad, extent, in_panes: Arc::default() }
}
