//! A query over inputs that end: everything is read, then the watermark goes to infinity and all windows close. Pure: no
//! clock, so the same inputs give the same results.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::error::DataFusionError;

use super::closing::{Closed, Closer, Lane, Start, total};
use super::compile::CompiledQuery;
use super::connector::{ConnectorError, Input, Piece, lines_of};
use super::partition::{Partition, TimeRules};
use super::watermark;
use crate::log::Record;
use crate::reaction::figures::Figures;

/// Rows are as early or late as their file says.
const RULES: TimeRules = TimeRules { future_tolerance_ms: i64::MAX, idle_ms: 0 };

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
pub enum BoundedError {
    /// An input cannot be read, or a result not be written.
    #[error(transparent)]
    Connector(#[from] ConnectorError),
    /// An expression failed on a row.
    #[error("{0}")]
    Query(#[from] DataFusionError),
}

/// What became of the inputs' rows.
#[derive(Debug, Default)]
pub struct Ended {
    /// The account.
    pub figures: Figures,
    /// How many lines or records could not be read and are left out, as `bad_data = 'drop'` says.
    pub bad: u64,
    /// The first of them, with its place.
    pub first_bad: Option<ConnectorError>,
}

/// Runs a query over its inputs, one for each of its sources in their order, and hands on the results as windows close:
/// the output's place in the query, and its rows. A line is a record here, so that a bad one costs no other.
///
/// # Errors
/// See [`BoundedError`]. What was handed on before stays.
pub fn run_to_end(
    query: &Arc<CompiledQuery>,
    inputs: Vec<Input>,
    mut on_result: impl FnMut(usize, &RecordBatch) -> Result<(), ConnectorError>,
) -> Result<Ended, BoundedError> {
    let start = Start::decide(query, None, &vec![vec![0]; inputs.len()]);
    let mut closer = Closer::new(Arc::clone(query), 1, &start);
    let partition = |lane: &Lane| Partition::new(Arc::clone(query), *lane, RULES, &start);
    let mut partitions = start.lanes.iter().map(partition).collect::<Result<Vec<_>, _>>()?;
    let mut inputs: Vec<Option<Input>> = inputs.into_iter().map(Some).collect();
    let mut ended = Ended::default();
    loop {
        // The input that is furthest behind is read next, so that none makes the rows of another late.
        let open = (0..inputs.len()).filter(|&at| inputs[at].is_some());
        let Some(behind) = open.min_by_key(|&at| partitions[at].watermark()) else { break };
        match inputs[behind].as_mut().and_then(Iterator::next) {
            None => {
                inputs[behind] = None;
                partitions[behind].end();
            }
            Some(piece) => {
                let (mut lines, first) = (lines_of(&piece?), partitions[behind].next());
                (first..).zip(&mut lines).for_each(|(offset, line)| line.record.offset = offset);
                push(&mut partitions[behind], &lines, &mut ended)?;
            }
        }
        let reached = watermark::minimum(partitions.iter().map(Partition::watermark));
        let boundary = reached.and_then(|ns| query.boundary_at_or_before(ns)).max(closer.emitted());
        if boundary > closer.emitted() || partitions.iter().any(|partition| partition.pending() > 0) {
            let handed = partitions.iter_mut().map(|partition| partition.hand_over(boundary));
            let closed = closer.close(handed.collect::<Result<_, _>>()?, boundary)?;
            hand_on(&closed, &mut on_result)?;
        }
    }
    let account = total(partitions.iter().map(Partition::account));
    let open = partitions.iter().map(Partition::open).sum::<u64>() + closer.open();
    ended.figures = closer.figures(account, open, closer.counted());
    Ok(ended)
}

fn push(partition: &mut Partition, lines: &[Piece], ended: &mut Ended) -> Result<(), BoundedError> {
    let records: Vec<Record> = lines.iter().map(|line| line.record.clone()).collect();
    let mut done = 0;
    while done < records.len() {
        let pushed = partition.push(&records[done..], 0)?;
        for (place, error) in &pushed.bad {
            ended.bad += 1;
            ended.first_bad.get_or_insert_with(|| lines[done + place].place.refused(error));
        }
        done += pushed.taken;
        if let Some(error) = &pushed.stopped_by {
            return Err(lines[done].place.refused(error).into());
        }
    }
    Ok(())
}

fn hand_on(
    closed: &Closed,
    on_result: &mut impl FnMut(usize, &RecordBatch) -> Result<(), ConnectorError>,
) -> Result<(), ConnectorError> {
    for (output, closed) in closed.outputs.iter().enumerate() {
        let windows = closed.windows.iter().flat_map(|window| &window.rows);
        windows.chain(&closed.rows).try_for_each(|rows| on_result(output, rows))?;
    }
    Ok(())
}
