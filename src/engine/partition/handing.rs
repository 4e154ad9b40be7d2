//! What a partition gives away: what is over, for good, and looks at what is open. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::Result;

use super::{Account, Partition};
use crate::engine::aggregate::Pane;
use crate::engine::compile::Target;
use crate::engine::early::OpenPane;
use crate::engine::kept::Kept;
use crate::engine::session::SessionRows;
use crate::engine::spill::Spill;
use crate::engine::taken::Taken;

/// What a partition hands over when windows close: one step, so that results and positions agree.
pub struct HandOver {
    /// By cut: the panes that are over.
    pub(crate) panes: Vec<(usize, Pane)>,
    /// By cut: all sessions' rows.
    pub(crate) sessions: Vec<(usize, SessionRows)>,
    /// By output: rows without a window, and how many reactions they are.
    pub(crate) rows: Vec<(usize, RecordBatch, u64)>,
    /// The first record with a row of a pane still open here.
    pub(crate) first_open: Option<i64>,
    /// The first record not taken in.
    pub(crate) next: i64,
    pub(crate) watermark: Option<i64>,
    pub(crate) account: Account,
    /// What is in no window and kept for inspection.
    pub(crate) kept: Kept,
    /// Rows in panes still open here.
    pub(crate) open: u64,
}

impl Partition {
    /// Hands over what is over once everything up to `boundary` is closed; without one, only what waits for no window.
    ///
    /// # Errors
    /// What DataFusion says of the aggregates' states.
    pub fn hand_over(&mut self, boundary: Option<i64>) -> Result<HandOver> {
        self.closed_to = self.closed_to.max(boundary);
        let (mut over, mut sessions, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        let (mut first_open, mut still_open) = (None::<i64>, 0);
        let source = &self.query.sources[self.source];
        for (taken, input) in self.taken.iter_mut().zip(&source.inputs) {
            match (taken, &input.into) {
                (Taken::Panes { panes, open }, Target::Cut { cut, .. }) => {
                    let from = boundary.map(|to| panes.boundary_at_or_before(to));
                    if let Some(from) = from {
                        let open_now = open.split_off(&from);
                        let closed = std::mem::replace(open, open_now);
                        over.extend(closed.into_values().map(|pane| (*cut, pane)));
                    }
                    let first = open.values().map(|pane| pane.first_offset).min();
                    first_open = first_open.into_iter().chain(first).min();
                    still_open += open.values().map(|pane| pane.rows).sum::<u64>();
                }
                (Taken::Bursts(bursts), Target::Cut { cut, .. }) => {
                    sessions.extend(bursts.hand_over()?.map(|rows| (*cut, rows)));
                }
                (Taken::Rows(pending), Target::Output { output, .. }) => {
                    let pending = std::mem::take(pending).into_iter();
                    rows.extend(pending.map(|(rows, reactions)| (*output, rows, reactions)));
                }
                _ => {}
            }
        }
        Ok(HandOver {
            panes: over,
            sessions,
            rows,
            first_open,
            next: self.next,
            watermark: self.watermark.value(),
            account: self.account,
            kept: std::mem::take(&mut self.kept),
            open: still_open,
        })
    }

    /// What these cuts' open panes hold here, which stays here.
    ///
    /// # Errors
    /// What DataFusion says of the aggregates' states.
    pub fn look(&mut self, cuts: &BTreeSet<usize>) -> Result<Vec<OpenPane>> {
        let Self { query, source, taken, scratch, .. } = self;
        let mut found = Vec::new();
        for (taken, input) in taken.iter_mut().zip(&query.sources[*source].inputs) {
            let (Taken::Panes { open, .. }, Target::Cut { cut, .. }) = (taken, &input.into) else { continue };
            if !cuts.contains(cut) {
                continue;
            }
            for (&start, pane) in open {
                let aggregation = &query.cuts[*cut].aggregation;
                let is_here = pane.pieces.is_empty();
                let partial = is_here.then(|| pane.accumulation.so_far(aggregation, scratch)).transpose()?;
                found.push(OpenPane { cut: *cut, start, rows: pane.rows, partial });
            }
        }
        Ok(found)
    }

    /// Puts aside what open panes hold. What sessions hold, and rows without a window, stay in memory.
    ///
    /// # Errors
    /// What DataFusion says of the aggregates' states, and why they cannot be put aside. Then this holds less than was taken
    /// in, and nothing of it may be committed.
    pub fn spill(&mut self, spill: &Arc<Spill>) -> Result<()> {
        let source = &self.query.sources[self.source];
        for (taken, input) in self.taken.iter_mut().zip(&source.inputs) {
            let (Taken::Panes { open, .. }, Target::Cut { cut, .. }) = (taken, &input.into) else { continue };
            for pane in open.values_mut() {
                pane.spill(&self.query.cuts[*cut].aggregation, spill)?;
            }
        }
        Ok(())
    }
}
