//! The rows of closed windows of one cut, side by side in time. Pure.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use datafusion::common::Result;

use super::aggregate::{Accumulation, Aggregation};
use super::spill::{InParts, Piece};
use crate::reaction::time::Window;

/// Rows of one window.
#[derive(Clone, Debug)]
pub(crate) enum WindowRows {
    Whole(RecordBatch),
    /// Some of it was put aside.
    InParts(Arc<InParts>),
}

impl WindowRows {
    /// Of what was put aside of a window and what is in memory of it; `None` when there is nothing.
    pub(crate) fn new(
        aggregation: &Arc<Aggregation>,
        window: Window,
        pieces: Vec<Arc<Piece>>,
        in_memory: Option<Accumulation>,
    ) -> Result<Option<Self>> {
        let Some(spill) = pieces.first().map(|piece| Arc::clone(piece.spill())) else {
            let rows = in_memory.map(|sum| sum.into_result(aggregation, window)).transpose()?;
            return Ok(rows.map(Self::Whole));
        };
        let rest = in_memory.map(Accumulation::into_rest).transpose()?.flatten();
        let parts = InParts::new(aggregation, window, spill, pieces, rest)?;
        Ok(Some(Self::InParts(Arc::new(parts))))
    }
}

/// Rows with the windows they belong to, windows ascending by start and end, each once.
#[derive(Debug, Default)]
pub(crate) struct ClosedRows {
    windows: Vec<(Window, WindowRows)>,
}

impl ClosedRows {
    /// Adds a window after those that are there.
    pub(crate) fn push(&mut self, window: Window, rows: WindowRows) {
        self.windows.push((window, rows));
    }

    /// The windows, in order.
    pub(crate) fn windows(&self) -> impl Iterator<Item = Window> {
        self.windows.iter().map(|(window, _)| *window)
    }

    /// The windows whose rows are in memory, in order.
    pub(crate) fn whole(&self) -> impl Iterator<Item = (Window, &RecordBatch)> {
        self.windows.iter().filter_map(|(window, rows)| match rows {
            WindowRows::Whole(rows) => Some((*window, rows)),
            WindowRows::InParts(_) => None,
        })
    }

    /// The others, in order.
    pub(crate) fn in_parts(&self) -> impl Iterator<Item = (Window, &Arc<InParts>)> {
        self.windows.iter().filter_map(|(window, rows)| match rows {
            WindowRows::Whole(_) => None,
            WindowRows::InParts(parts) => Some((*window, parts)),
        })
    }

    /// The rows of one window; none is an empty batch.
    pub(crate) fn of(&self, window: Window, schema: &SchemaRef) -> WindowRows {
        let place = self.windows.binary_search_by_key(&window, |(window, _)| *window);
        let found = place.ok().and_then(|place| self.windows.get(place));
        let none = || WindowRows::Whole(RecordBatch::new_empty(SchemaRef::clone(schema)));
        found.map_or_else(none, |(_, rows)| rows.clone())
    }

    /// All rows of [`Self::whole`] windows as one batch; how many belong to each stands there.
    pub(crate) fn together(&self, schema: &SchemaRef) -> Result<RecordBatch> {
        match self.windows.as_slice() {
            [(_, WindowRows::Whole(only))] => Ok(only.clone()),
            _ => Ok(concat_batches(schema, self.whole().map(|(_, rows)| rows))?),
        }
    }
}
