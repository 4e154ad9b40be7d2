//! Saved partial aggregates: what is not read again from the log after a restart, as records beside the checkpoint. Pure.
//!
//! A record's value is one Arrow IPC stream of one batch, a row per group: `first` and `last` (event time, nanoseconds: a
//! session's first and last row; a pane's start twice), `rows` (how many reactions; for a pane in its first row), then
//! the keys and the functions' states as DataFusion keeps them. Keys are `QUERY/IDENTITY/CUT/NUMBER`; the identity is that
//! of the plan at and below the cut and of the DataFusion version, so that a state is never read by another plan.

use std::io::Cursor;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, UInt64Array};
use arrow::datatypes::{Field, Int64Type, Schema, UInt64Type};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use datafusion::common::{DataFusionError, Result, exec_err};

use super::aggregate::Partial;
use super::session::SessionRows;
use crate::log::codec::MAX_BYTES;

/// One pane, or more of it.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    pub(crate) start: i64,
    pub(crate) rows: u64,
    pub(crate) partial: Partial,
}

impl Chunk {
    pub(crate) fn encode(&self) -> Result<Vec<Vec<u8>>> {
        let mut values = Vec::new();
        self.encode_each(|_, value| {
            values.push(fitting(value)?);
            Ok(())
        })?;
        Ok(values)
    }

    /// Value by value, with the places of the groups in it. What one group has is in one value, whether that fits a record
    /// or not.
    pub(crate) fn encode_each(&self, each: impl FnMut(Range<usize>, Vec<u8>) -> Result<()>) -> Result<()> {
        let groups = self.partial.groups;
        let rows = (0..groups).map(|group| if group == 0 { self.rows } else { 0 }).collect();
        encode(vec![self.start; groups], vec![self.start; groups], rows, &self.partial, each)
    }

    pub(crate) fn decode(value: &[u8], shape: &Shape) -> Result<Self> {
        let SessionRows { spans, rows, partial } = SessionRows::decode(value, shape)?;
        let start = spans.first().map_or(0, |(first, _)| *first);
        Ok(Self { start, rows: rows.iter().sum(), partial })
    }
}

impl SessionRows {
    pub(crate) fn encode(&self) -> Result<Vec<Vec<u8>>> {
        let (first, last) = self.spans.iter().copied().unzip();
        let mut values = Vec::new();
        encode(first, last, self.rows.clone(), &self.partial, |_, value| {
            values.push(fitting(value)?);
            Ok(())
        })?;
        Ok(values)
    }

    pub(crate) fn decode(value: &[u8], shape: &Shape) -> Result<Self> {
        let mut reader = StreamReader::try_new(Cursor::new(value), None)?;
        let Some(batch) = reader.next().transpose()? else {
            return exec_err!("a saved state holds no batch");
        };
        let columns: usize = 3 + shape.keys + shape.states.iter().sum::<usize>();
        if batch.num_columns() != columns || batch.num_rows() == 0 {
            return exec_err!("a saved state has {} columns, expected {columns}", batch.num_columns());
        }
        let damaged = || DataFusionError::Execution("a saved state has columns of other types".to_owned());
        let times = |at: usize| batch.column(at).as_primitive_opt::<Int64Type>().ok_or_else(damaged);
        let counts = batch.column(2).as_primitive_opt::<UInt64Type>().ok_or_else(damaged)?;
        let spans = times(0)?.values().iter().copied().zip(times(1)?.values().iter().copied());
        let mut rest = batch.columns()[3..].iter().cloned();
        let keys = rest.by_ref().take(shape.keys).collect();
        let states = shape.states.iter().map(|columns| rest.by_ref().take(*columns).collect());
        Ok(Self {
            spans: spans.collect(),
            rows: counts.values().to_vec(),
            partial: Partial { groups: batch.num_rows(), keys, states: states.collect() },
        })
    }
}

/// How many columns a cut's partial aggregates have.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) keys: usize,
    /// By function.
    pub(crate) states: Vec<usize>,
}

/// A value that fits a record of the log.
pub(crate) fn fitting(value: Vec<u8>) -> Result<Vec<u8>> {
    if value.len() <= MAX_BYTES {
        return Ok(value);
    }
    exec_err!("the state of one group has {} bytes; at most {MAX_BYTES} can be saved", value.len())
}

/// As few values as fit the log's records.
fn encode(
    first: Vec<i64>,
    last: Vec<i64>,
    rows: Vec<u64>,
    partial: &Partial,
    mut each: impl FnMut(Range<usize>, Vec<u8>) -> Result<()>,
) -> Result<()> {
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(first)),
        Arc::new(Int64Array::from(last)),
        Arc::new(UInt64Array::from(rows)),
    ];
    columns.extend(partial.keys.iter().cloned());
    columns.extend(partial.states.iter().flatten().cloned());
    let fields = columns.iter().enumerate().map(|(place, column)| {
        let name =
            ["first", "last", "rows"].get(place).map_or_else(|| format!("c{place}"), ToString::to_string);
        Field::new(name, column.data_type().clone(), true)
    });
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    split(&RecordBatch::try_new(schema, columns)?, 0, &mut each)
}

fn split(
    batch: &RecordBatch,
    from: usize,
    each: &mut impl FnMut(Range<usize>, Vec<u8>) -> Result<()>,
) -> Result<()> {
    let mut value = Vec::new();
    let mut writer = StreamWriter::try_new(&mut value, &batch.schema())?;
    writer.write(batch)?;
    writer.finish()?;
    drop(writer);
    let rows = batch.num_rows();
    if value.len() <= MAX_BYTES || rows == 1 {
        return each(from..from + rows, value);
    }
    split(&batch.slice(0, rows / 2), from, each)?;
    split(&batch.slice(rows / 2, rows - rows / 2), from + rows / 2, each)
}
