//! A query over inputs that end: everything is read, then the watermark goes to infinity and all windows close. Pure: no
//! clock, so the same inputs give the same results.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::error::DataFusionError;

use super::closing::{Closed, Closer, Lane, Start, total};
use super::compile::CompiledQuery;
use super::connector::{ConnectorError, Input};
use super::partition::{Partition, TimeRules};
use super::watermark;
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

/// Runs a query over its inputs, one for each of its sources in their order, and hands on the results as windows close:
/// the output's place in the query, and its rows.
///
/// # Errors
/// See [`BoundedError`]. What was handed on before stays.
pub fn run_to_end(
    query: &Arc<CompiledQuery>,
    inputs: Vec<Input>,
    mut on_result: impl FnMut(usize, &RecordBatch) -> Result<(), ConnectorError>,
) -> Result<Figures, BoundedError> {
    let start = Start::decide(query, None, &vec![vec![0]; inputs.len()]);
    let mut closer = Closer::new(Arc::clone(query), 1, &start);
    let partition = |lane: &Lane| Partition::new(Arc::clone(query), *lane, RULES, &start);
    let mut partitions = start.lanes.iter().map(partition).collect::<Result<Vec<_>, _>>()?;
    let mut inputs: Vec<Option<Input>> = inputs.into_iter().map(Some).collect();
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
                let piece = piece?;
                let mut pushed = partitions[behind].push(std::slice::from_ref(&piece.record), 0)?;
                if let Some(error) = pushed.bad.pop().map(|(_, error)| error).or(pushed.stopped_by) {
                    return Err(piece.place.refused(&error).into());
                }
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
    Ok(closer.figures(account, open, closer.counted()))
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
