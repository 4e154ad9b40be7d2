//! Partial aggregates: groups, and one DataFusion accumulator per aggregate function.
//!
//! Pure. [`Accumulation`] is live: rows and other partial aggregates are taken in. [`Partial`] is what is left of it when it
//! retires: arrays, which are cheap to keep, to merge into several windows and to save (an accumulator gives up its
//! state only once).

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StructArray, TimestampNanosecondArray, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::{Result, internal_err};
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_expr::GroupsAccumulatorAdapter;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;

use super::bounds::Size;
use super::expression::{RowExpr, Rows};
use super::groups::{Groups, Scratch};
use super::snapshot::Chunk;
use super::sorted;
use super::spill::{Piece, Spill};
use crate::reaction::time::Window;

/// What all partial aggregates of a cut share: keys, functions and the shape of the result.
#[derive(Debug)]
pub(crate) struct Aggregation {
    pub(crate) key_types: Vec<DataType>,
    pub(crate) functions: Vec<Arc<AggregateFunctionExpr>>,
    /// The window's place among the result's columns; keys are around it, aggregates after.
    pub(crate) window_index: usize,
    pub(crate) output: SchemaRef,
}

/// What one aggregate function takes of a row.
#[derive(Debug, Clone)]
pub(crate) struct Arguments {
    /// Its arguments, then what its ORDER BY names.
    pub(crate) values: Vec<RowExpr>,
    /// `FILTER (WHERE …)`.
    pub(crate) filter: Option<RowExpr>,
    /// It is `count(*)`: nothing of a row matters but that it is there.
    pub(crate) is_count: bool,
}

fn accumulator(function: &Arc<AggregateFunctionExpr>) -> Result<Box<dyn GroupsAccumulator>> {
    if function.groups_accumulator_supported() {
        return function.create_groups_accumulator();
    }
    let function = Arc::clone(function);
    Ok(Box::new(GroupsAccumulatorAdapter::new(move || sorted::accumulator(&function))))
}

/// The accumulators of a cut's functions, over numbered groups.
pub(crate) struct Accumulators(Vec<Box<dyn GroupsAccumulator>>);

impl Accumulators {
    pub(crate) fn new(aggregation: &Aggregation) -> Result<Self> {
        Ok(Self(aggregation.functions.iter().map(accumulator).collect::<Result<_>>()?))
    }

    /// Takes in rows; `group_of_row` numbers them, below `groups`.
    pub(crate) fn update(
        &mut self,
        arguments: &[Arguments],
        rows: &Rows,
        group_of_row: &[usize],
        groups: usize,
    ) -> Result<()> {
        for (arguments, accumulator) in arguments.iter().zip(&mut self.0) {
            let values = arguments.values.iter().map(|value| value.evaluate_plain(rows));
            let values = values.collect::<Result<Vec<_>>>()?;
            let filter =
                arguments.filter.as_ref().map(|filter| filter.evaluate_condition(rows)).transpose()?;
            accumulator.update_batch(&values, group_of_row, filter.as_ref(), groups)?;
        }
        Ok(())
    }

    /// Takes in states; `group_of_state` numbers them, below `groups`.
    pub(crate) fn merge(
        &mut self,
        states: &[Vec<ArrayRef>],
        group_of_state: &[usize],
        groups: usize,
    ) -> Result<()> {
        for (state, accumulator) in states.iter().zip(&mut self.0) {
            accumulator.merge_batch(state, group_of_state, groups)?;
        }
        Ok(())
    }

    /// Bytes in memory, about.
    pub(crate) fn size(&self) -> usize {
        self.0.iter().map(|accumulator| accumulator.size()).sum()
    }

    /// Gives up the states of all groups, of which there must be one.
    pub(crate) fn into_states(mut self) -> Result<Vec<Vec<ArrayRef>>> {
        self.0.iter_mut().map(|accumulator| accumulator.state(EmitTo::All)).collect()
    }

    /// Gives up the results of all groups, of which there must be one.
    pub(crate) fn into_results(mut self) -> Result<Vec<ArrayRef>> {
        self.0.iter_mut().map(|accumulator| accumulator.evaluate(EmitTo::All)).collect()
    }
}

/// Live partial aggregates by group.
pub(crate) struct Accumulation {
    groups: Groups,
    accumulators: Accumulators,
}

impl Accumulation {
    pub(crate) fn new(aggregation: &Aggregation) -> Result<Self> {
        Ok(Self {
            groups: Groups::new(&aggregation.key_types)?,
            accumulators: Accumulators::new(aggregation)?,
        })
    }

    /// How much is held.
    pub(crate) fn size(&self) -> Size {
        Size { groups: self.groups.len(), bytes: self.groups.size() + self.accumulators.size() }
    }

    /// Whether there is no group.
    pub(crate) fn is_empty(&self) -> bool {
        self.groups.len() == 0
    }

    /// Takes in rows.
    pub(crate) fn update(
        &mut self,
        keys: &[RowExpr],
        arguments: &[Arguments],
        rows: &Rows,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let keys = keys.iter().map(|key| key.evaluate(rows)).collect::<Result<Vec<_>>>()?;
        if arguments.iter().all(|arguments| arguments.is_count)
            && self.groups.count(&keys, rows.len(), scratch)?
        {
            // The state of a count is the count.
            let counts: ArrayRef = Arc::new(Int64Array::from_iter_values(scratch.counts.iter().copied()));
            let states = vec![vec![counts]; arguments.len()];
            return self.accumulators.merge(&states, &scratch.counted, self.groups.len());
        }
        self.groups.number(&keys, rows.len(), scratch)?;
        self.accumulators.update(arguments, rows, &scratch.group_of_row, self.groups.len())
    }

    /// Takes in other partial aggregates of the same cut.
    pub(crate) fn merge(&mut self, other: &Partial, scratch: &mut Scratch) -> Result<()> {
        self.groups.number(&other.keys, other.groups, scratch)?;
        self.accumulators.merge(&other.states, &scratch.group_of_row, self.groups.len())
    }

    /// What it holds now, which it goes on holding; there must be a group. An accumulator gives its state up: it is taken
    /// back.
    pub(crate) fn so_far(&mut self, aggregation: &Aggregation, scratch: &mut Scratch) -> Result<Partial> {
        let partial = std::mem::replace(self, Self::new(aggregation)?).into_partial()?;
        self.merge(&partial, scratch)?;
        Ok(partial)
    }

    /// Retires; `None` when there is no group.
    pub(crate) fn into_rest(self) -> Result<Option<Partial>> {
        if self.is_empty() { Ok(None) } else { self.into_partial().map(Some) }
    }

    /// Retires; there must be a group.
    pub(crate) fn into_partial(self) -> Result<Partial> {
        let groups = self.groups.len();
        Ok(Partial { groups, keys: self.groups.into_keys()?, states: self.accumulators.into_states()? })
    }

    /// The window's rows as the query's aggregate yields them: one per group.
    pub(crate) fn into_result(self, aggregation: &Aggregation, window: Window) -> Result<RecordBatch> {
        let groups = self.groups.len();
        let keys = self.groups.into_keys()?;
        let bounds = (vec![window.start; groups], vec![window.end; groups]);
        result(aggregation, keys, bounds, self.accumulators.into_results()?)
    }
}

/// Retired partial aggregates: one row per group. At least one.
#[derive(Clone, Debug)]
pub(crate) struct Partial {
    pub(crate) groups: usize,
    pub(crate) keys: Vec<ArrayRef>,
    /// By function: the columns of its state.
    pub(crate) states: Vec<Vec<ArrayRef>>,
}

impl Partial {
    /// How much is held.
    pub(crate) fn size(&self) -> Size {
        let arrays = self.keys.iter().chain(self.states.iter().flatten());
        Size { groups: self.groups, bytes: arrays.map(|array| array.get_array_memory_size()).sum() }
    }

    /// These groups of it, which may be none.
    pub(crate) fn taken(&self, groups: &[u32]) -> Result<Self> {
        let places = UInt32Array::from(groups.to_vec());
        let taken = |arrays: &[ArrayRef]| -> Result<Vec<ArrayRef>> {
            arrays.iter().map(|array| Ok(take(array, &places, None)?)).collect()
        };
        Ok(Self {
            groups: groups.len(),
            keys: taken(&self.keys)?,
            states: self.states.iter().map(|state| taken(state)).collect::<Result<_>>()?,
        })
    }

    /// The sum of partial aggregates of different rows; `None` of none.
    pub(crate) fn sum<'p>(
        aggregation: &Aggregation,
        parts: impl IntoIterator<Item = &'p Self>,
        scratch: &mut Scratch,
    ) -> Result<Option<Accumulation>> {
        let mut parts = parts.into_iter().peekable();
        if parts.peek().is_none() {
            return Ok(None);
        }
        let mut sum = Accumulation::new(aggregation)?;
        for part in parts {
            sum.merge(part, scratch)?;
        }
        Ok(Some(sum))
    }
}

/// A cut's output: keys with the window among them, then the functions' results.
pub(crate) fn result(
    aggregation: &Aggregation,
    mut keys: Vec<ArrayRef>,
    (starts, ends): (Vec<i64>, Vec<i64>),
    results: Vec<ArrayRef>,
) -> Result<RecordBatch> {
    let DataType::Struct(fields) = aggregation.output.field(aggregation.window_index).data_type() else {
        return internal_err!("the window column is no struct");
    };
    let bounds: Vec<ArrayRef> = vec![
        Arc::new(TimestampNanosecondArray::from(starts)),
        Arc::new(TimestampNanosecondArray::from(ends)),
    ];
    let window: ArrayRef = Arc::new(StructArray::try_new(fields.clone(), bounds, None)?);
    keys.insert(aggregation.window_index, window);
    keys.extend(results);
    Ok(RecordBatch::try_new(Arc::clone(&aggregation.output), keys)?)
}

/// Partial aggregates of one pane, of the rows of one partition.
pub(crate) struct Pane {
    pub(crate) window: Window,
    /// Rows taken in.
    pub(crate) rows: u64,
    /// The first record with a row in this pane, or one before it.
    pub(crate) first_offset: i64,
    /// What was put aside; older than what follows.
    pub(crate) pieces: Vec<Arc<Piece>>,
    pub(crate) accumulation: Accumulation,
}

impl Pane {
    pub(crate) fn new(aggregation: &Aggregation, window: Window, first_offset: i64) -> Result<Self> {
        let accumulation = Accumulation::new(aggregation)?;
        Ok(Self { window, rows: 0, first_offset, pieces: Vec::new(), accumulation })
    }

    /// Puts aside what is in memory.
    pub(crate) fn spill(&mut self, aggregation: &Aggregation, spill: &Arc<Spill>) -> Result<()> {
        let rows = self.rows_in_memory();
        let held = std::mem::replace(&mut self.accumulation, Accumulation::new(aggregation)?);
        if let Some(partial) = held.into_rest()? {
            self.pieces.push(Arc::new(Piece::new(Chunk { start: self.window.start, rows, partial }, spill)?));
        }
        Ok(())
    }

    /// Rows taken in and not put aside.
    pub(crate) fn rows_in_memory(&self) -> u64 {
        self.rows - self.pieces.iter().map(|piece| piece.rows()).sum::<u64>()
    }
}
