//! Rows → the panes that hold them. Pure.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use arrow::array::UInt32Array;
use datafusion::common::Result;

use super::aggregate::{Aggregation, Arguments, Pane};
use super::expression::{RowExpr, Rows};
use super::groups::Scratch;
use super::window::{Panes, Run, runs};
use crate::reaction::time::Window;

/// Rows that change between panes more often than this are gathered by pane: a run costs as much as some hundred rows.
const MAX_RUNS: usize = 8;

pub(crate) struct IntoPanes<'a> {
    pub(crate) aggregation: &'a Aggregation,
    pub(crate) keys: &'a [RowExpr],
    pub(crate) arguments: &'a [Arguments],
}

impl IntoPanes<'_> {
    /// Fills panes with rows of records from `offset` on; returns how many have times at the very ends of 64 bits, which
    /// no window holds.
    pub(crate) fn fill(
        &self,
        panes: Panes,
        open: &mut BTreeMap<i64, Pane>,
        rows: &Rows,
        event_ns: &[i64],
        offset: i64,
        scratch: &mut Scratch,
    ) -> Result<u64> {
        let (runs, left_out) = runs(panes, event_ns);
        let mut taken = 0;
        for (window, part) in parts(&runs, rows)? {
            let pane = match open.entry(window.start) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(Pane::new(self.aggregation, window, offset)?),
            };
            let part = part.as_ref().unwrap_or(rows);
            pane.accumulation.update(self.keys, self.arguments, part, scratch)?;
            pane.rows += part.reactions() as u64;
            taken += part.reactions();
        }
        Ok(if left_out == 0 { 0 } else { (rows.reactions() - taken) as u64 })
    }
}

/// The rows by pane, in their order; `None` when one pane holds all.
fn parts(runs: &[Run], rows: &Rows) -> Result<Vec<(Window, Option<Rows>)>> {
    match runs {
        [run] if run.rows == rows.len() => Ok(vec![(run.pane, None)]),
        _ if runs.len() <= MAX_RUNS => {
            Ok(runs.iter().map(|run| (run.pane, Some(rows.slice(run.from, run.rows)))).collect())
        }
        _ => {
            let mut places: BTreeMap<Window, Vec<u32>> = BTreeMap::new();
            for run in runs {
                // A record has far fewer than 2^32 rows.
                places.entry(run.pane).or_default().extend(run.from as u32..(run.from + run.rows) as u32);
            }
            let gather = |(pane, places)| Ok((pane, Some(rows.at(&UInt32Array::from(places))?)));
            places.into_iter().map(gather).collect()
        }
    }
}
