//! An aggregate function that takes its rows in order, over rows that come in any. Pure.
//!
//! Rows wait until there are many or the result is asked for. Then they are sorted and become a partial aggregate of their
//! own, and partial aggregates are merged in order, as those of panes are.

use std::mem::{size_of_val, take};
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::compute::{SortColumn, concat, lexsort_to_indices};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::Accumulator;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;

/// The functions that rely on sorted input where they have an ORDER BY. The others sort for themselves (`array_agg`,
/// `string_agg`), compare (`first_value`, `last_value`), or do not depend on the order at all.
const SORTED: [&str; 1] = ["nth_value"];

/// So many rows are sorted together.
const MANY: usize = 8192;

/// The function's accumulator, whatever order its rows come in.
pub(crate) fn accumulator(function: &Arc<AggregateFunctionExpr>) -> Result<Box<dyn Accumulator>> {
    let merged = function.create_accumulator()?;
    if function.order_bys().is_empty() || !SORTED.contains(&function.fun().name()) {
        return Ok(merged);
    }
    Ok(Box::new(Sorted { function: Arc::clone(function), waiting: Vec::new(), rows: 0, merged }))
}

#[derive(Debug)]
struct Sorted {
    function: Arc<AggregateFunctionExpr>,
    /// Batches of its arguments, then of what its ORDER BY names.
    waiting: Vec<Vec<ArrayRef>>,
    rows: usize,
    merged: Box<dyn Accumulator>,
}

impl Sorted {
    fn merge_waiting(&mut self) -> Result<()> {
        self.rows = 0;
        let waiting = take(&mut self.waiting);
        let columns = waiting.first().map_or(0, Vec::len);
        if columns == 0 {
            return Ok(());
        }
        let together = (0..columns).map(|column| {
            let parts: Vec<_> = waiting.iter().map(|batch| batch[column].as_ref()).collect();
            Ok(concat(&parts)?)
        });
        let together = together.collect::<Result<Vec<ArrayRef>>>()?;
        let order_bys = self.function.order_bys();
        let order = together[columns - order_bys.len()..].iter().zip(order_bys);
        let order: Vec<SortColumn> = order
            .map(|(values, by)| SortColumn { values: Arc::clone(values), options: Some(by.options) })
            .collect();
        let places = lexsort_to_indices(&order, None)?;
        let sorted = together.iter().map(|column| Ok(arrow::compute::take(column, &places, None)?));
        let mut part = self.function.create_accumulator()?;
        part.update_batch(&sorted.collect::<Result<Vec<_>>>()?)?;
        let state = part.state()?.iter().map(ScalarValue::to_array).collect::<Result<Vec<_>>>()?;
        self.merged.merge_batch(&state)
    }
}

impl Accumulator for Sorted {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.rows += values.first().map_or(0, |column| column.len());
        self.waiting.push(values.to_vec());
        if self.rows >= MANY { self.merge_waiting() } else { Ok(()) }
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.merged.merge_batch(states)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.merge_waiting()?;
        self.merged.state()
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.merge_waiting()?;
        self.merged.evaluate()
    }

    fn size(&self) -> usize {
        let waiting = self.waiting.iter().flatten().map(|column| column.get_array_memory_size());
        size_of_val(self) + waiting.sum::<usize>() + self.merged.size()
    }
}
