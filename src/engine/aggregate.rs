//! The aggregation state of one pane: groups, and one DataFusion accumulator per aggregate function.
//!
//! Pure. Rows come in by [`Pane::update`], another partition's pane by [`Pane::merge`]; the result goes out once.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StructArray, TimestampNanosecondArray};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::{Result, internal_err};
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_expr::GroupsAccumulatorAdapter;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;

use super::expression::{RowExpr, Rows};
use super::groups::{Groups, Scratch};
use crate::reaction::time::Window;

/// One aggregate function of the query.
#[derive(Debug, Clone)]
pub(crate) struct Aggregate {
    pub(crate) function: Arc<AggregateFunctionExpr>,
    /// Its arguments, then what its ORDER BY names.
    pub(crate) arguments: Vec<RowExpr>,
    /// `FILTER (WHERE …)`.
    pub(crate) filter: Option<RowExpr>,
}

impl Aggregate {
    fn accumulator(&self) -> Result<Box<dyn GroupsAccumulator>> {
        if self.function.groups_accumulator_supported() {
            return self.function.create_groups_accumulator();
        }
        let function = Arc::clone(&self.function);
        Ok(Box::new(GroupsAccumulatorAdapter::new(move || function.create_accumulator())))
    }
}

/// What all panes of a query share: keys, aggregates and the shape of the result.
#[derive(Debug)]
pub(crate) struct Aggregation {
    pub(crate) keys: Vec<RowExpr>,
    pub(crate) aggregates: Vec<Aggregate>,
    /// The window's place among the result's columns; keys are around it, aggregates after.
    pub(crate) window_index: usize,
    pub(crate) output: SchemaRef,
}

/// Partial aggregates of one window, of the rows of one partition (or, after merging, of several).
pub(crate) struct Pane {
    pub(crate) window: Window,
    /// Rows taken in.
    pub(crate) rows: u64,
    /// The first record with a row in this pane, of the partition it belongs to.
    pub(crate) first_offset: i64,
    groups: Groups,
    accumulators: Vec<Box<dyn GroupsAccumulator>>,
}

impl Pane {
    pub(crate) fn new(aggregation: &Aggregation, window: Window, first_offset: i64) -> Result<Self> {
        let types: Vec<_> = aggregation.keys.iter().map(|key| key.data_type().clone()).collect();
        let accumulators =
            aggregation.aggregates.iter().map(Aggregate::accumulator).collect::<Result<_>>()?;
        Ok(Self { window, rows: 0, first_offset, groups: Groups::new(&types)?, accumulators })
    }

    pub(crate) fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Takes in rows, all of this window.
    pub(crate) fn update(
        &mut self,
        aggregation: &Aggregation,
        rows: &Rows,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let keys = aggregation.keys.iter().map(|key| key.evaluate(rows)).collect::<Result<Vec<_>>>()?;
        self.groups.number(&keys, rows.len(), scratch)?;
        let groups = self.groups.len();
        for (aggregate, accumulator) in aggregation.aggregates.iter().zip(&mut self.accumulators) {
            let arguments = aggregate.arguments.iter().map(|argument| argument.evaluate_plain(rows));
            let arguments = arguments.collect::<Result<Vec<_>>>()?;
            let filter =
                aggregate.filter.as_ref().map(|filter| filter.evaluate_condition(rows)).transpose()?;
            accumulator.update_batch(&arguments, &scratch.group_of_row, filter.as_ref(), groups)?;
        }
        self.rows += rows.len() as u64;
        Ok(())
    }

    /// Takes in the partial aggregates of another partition's pane of the same window.
    pub(crate) fn merge(&mut self, mut other: Self, scratch: &mut Scratch) -> Result<()> {
        let theirs = other.groups.len();
        let keys = other.groups.into_keys()?;
        self.groups.number(&keys, theirs, scratch)?;
        let groups = self.groups.len();
        for (ours, other) in self.accumulators.iter_mut().zip(&mut other.accumulators) {
            let state = other.state(EmitTo::All)?;
            ours.merge_batch(&state, &scratch.group_of_row, groups)?;
        }
        self.rows += other.rows;
        Ok(())
    }

    /// The window's rows as the query's aggregate yields them: one per group.
    pub(crate) fn into_result(mut self, aggregation: &Aggregation) -> Result<RecordBatch> {
        let groups = self.groups.len();
        let mut columns = self.groups.into_keys()?;
        let window = window_column(&aggregation.output, aggregation.window_index, self.window, groups)?;
        columns.insert(aggregation.window_index, window);
        for accumulator in &mut self.accumulators {
            columns.push(accumulator.evaluate(EmitTo::All)?);
        }
        Ok(RecordBatch::try_new(Arc::clone(&aggregation.output), columns)?)
    }
}

/// `struct<start, end>`, the same in every row.
fn window_column(output: &SchemaRef, index: usize, window: Window, rows: usize) -> Result<ArrayRef> {
    let DataType::Struct(fields) = output.field(index).data_type() else {
        return internal_err!("the window column is {}", output.field(index).data_type());
    };
    let bounds: Vec<ArrayRef> = vec![
        Arc::new(TimestampNanosecondArray::from_value(window.start, rows)),
        Arc::new(TimestampNanosecondArray::from_value(window.end, rows)),
    ];
    Ok(Arc::new(StructArray::try_new(fields.clone(), bounds, None)?))
}
