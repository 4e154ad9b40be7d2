//! What a partition took in for one input and did not hand over yet. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::Result;

use super::aggregate::Pane;
use super::bounds::Size;
use super::compile::{CompiledInput, CompiledQuery, Target};
use super::session::Bursts;
use super::window::Panes;
use crate::sql::cut::Windowing;

/// What was taken in for one input and not handed over yet.
pub(super) enum Taken {
    Panes {
        panes: Panes,
        open: BTreeMap<i64, Pane>,
    },
    Bursts(Bursts),
    /// Batches, and how many reactions each is.
    Rows(Vec<(RecordBatch, u64)>),
}

impl Taken {
    pub(super) fn new(query: &CompiledQuery, input: &CompiledInput) -> Result<Self> {
        let Target::Cut { cut, .. } = input.into else { return Ok(Self::Rows(Vec::new())) };
        let cut = &query.cuts[cut];
        Ok(match (cut.panes, cut.windowing) {
            (None, Windowing::Session { gap_ns }) => {
                Self::Bursts(Bursts::new(gap_ns, Arc::clone(&cut.aggregation))?)
            }
            (Some(panes), _) => Self::Panes { panes, open: BTreeMap::new() },
            (None, _) => Self::Rows(Vec::new()),
        })
    }

    pub(super) fn rows(&self) -> u64 {
        match self {
            Self::Panes { open, .. } => open.values().map(|pane| pane.rows).sum(),
            Self::Bursts(bursts) => bursts.rows(),
            Self::Rows(rows) => rows.iter().map(|(_, reactions)| reactions).sum(),
        }
    }

    pub(super) fn size(&self) -> Size {
        match self {
            Self::Panes { open, .. } => open.values().map(|pane| pane.accumulation.size()).sum(),
            Self::Bursts(bursts) => bursts.size(),
            Self::Rows(rows) => {
                Size { groups: 0, bytes: rows.iter().map(|(rows, _)| rows.get_array_memory_size()).sum() }
            }
        }
    }

    pub(super) fn earliest_end(&self, closed_to: Option<i64>) -> Option<i64> {
        match self {
            Self::Panes { panes, open } => {
                let (first, _) = open.first_key_value()?;
                Some(panes.window_end_after(closed_to.map_or(*first, |closed_to| closed_to.max(*first))))
            }
            Self::Bursts(bursts) => bursts.earliest_end(),
            Self::Rows(_) => None,
        }
    }

    /// A row before this is late.
    pub(super) fn late_before(&self, closed_to: Option<i64>) -> i64 {
        match (self, closed_to) {
            (Self::Panes { panes, .. }, Some(closed_to)) => panes.first_open_start(closed_to),
            (Self::Bursts(_), Some(closed_to)) => closed_to,
            _ => i64::MIN,
        }
    }
}
