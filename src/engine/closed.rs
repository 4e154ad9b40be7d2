//! The rows of closed windows of one cut, side by side in time. Pure.

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use datafusion::common::Result;

use crate::reaction::time::Window;

/// Batches of rows with the windows they belong to, windows ascending by start and end, each once.
#[derive(Debug, Default)]
pub(crate) struct ClosedRows {
    windows: Vec<(Window, RecordBatch)>,
}

impl ClosedRows {
    /// Adds a window after those that are there.
    pub(crate) fn push(&mut self, window: Window, rows: RecordBatch) {
        self.windows.push((window, rows));
    }

    /// The windows, in order.
    pub(crate) fn windows(&self) -> &[(Window, RecordBatch)] {
        &self.windows
    }

    /// The rows of one window; none is an empty batch.
    pub(crate) fn of(&self, window: Window, schema: &SchemaRef) -> RecordBatch {
        let place = self.windows.binary_search_by_key(&window, |(window, _)| *window);
        let found = place.ok().and_then(|place| self.windows.get(place));
        found.map_or_else(|| RecordBatch::new_empty(SchemaRef::clone(schema)), |(_, rows)| rows.clone())
    }

    /// All rows as one batch; how many belong to each window stands in [`Self::windows`].
    pub(crate) fn together(&self, schema: &SchemaRef) -> Result<RecordBatch> {
        match self.windows.as_slice() {
            [(_, only)] => Ok(only.clone()),
            windows => Ok(concat_batches(schema, windows.iter().map(|(_, rows)| rows))?),
        }
    }
}
