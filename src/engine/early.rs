//! Early results: windows as they stand while they are open. Pure.
//!
//! When a sink wants them (`emit_every`), every partition tells what its open panes hold and goes on holding it
//! ([`OpenPane`]); with what the query holds of panes that are over, that makes the open windows. Nothing is closed by it:
//! watermark, positions and figures are what they would be without. A window in which no row has come since it was last
//! told is not told again, and one of which something was put aside is told when it is over: it would have to be read
//! from disk at every tick.

use std::collections::{BTreeMap, BTreeSet};

use datafusion::common::Result;

use super::aggregate::Partial;
use super::closed::{ClosedRows, WindowRows};
use super::closing::ClosedWindow;
use super::compile::{CompiledCut, CompiledQuery};
use super::groups::Scratch;
use super::sliding::SlidingWindows;
use super::window::Panes;
use crate::reaction::time::Window;

/// Of each windowed aggregate, at most so many open windows are told at a time: those that end first.
const MAX_WINDOWS: usize = 16;

/// What a partition holds of a pane that is open.
pub struct OpenPane {
    pub(crate) cut: usize,
    pub(crate) start: i64,
    pub(crate) rows: u64,
    /// `None` where some of it is put aside.
    pub(crate) partial: Option<Partial>,
}

/// Which open windows are to be told.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    /// For these outputs of the query.
    pub outputs: &'a [usize],
    /// None that ends after this: another version tells those.
    pub until: Option<i64>,
}

/// What was told of windows that are open.
#[derive(Default)]
pub(crate) struct Early {
    /// By output: the windows told last, and how many rows they had.
    told: BTreeMap<usize, BTreeMap<Window, u64>>,
}

/// The open windows of one cut.
struct OpenCut<'a> {
    compiled: &'a CompiledCut,
    panes: Panes,
    held: Option<&'a SlidingWindows>,
    open: BTreeMap<i64, OpenRows>,
    /// With their rows.
    windows: BTreeMap<Window, u64>,
}

#[derive(Default)]
struct OpenRows {
    rows: u64,
    partials: Vec<Partial>,
    is_aside: bool,
}

impl Early {
    /// By output: the open windows that have changed since they were told. `held` is, by cut, what the query holds of
    /// panes that are over.
    pub(crate) fn look(
        &mut self,
        query: &CompiledQuery,
        held: Vec<Option<&SlidingWindows>>,
        open: Vec<OpenPane>,
        closed_to: Option<i64>,
        look: Look<'_>,
        scratch: &mut Scratch,
    ) -> Result<Vec<(usize, Vec<ClosedWindow>)>> {
        let mut cuts: Vec<Option<OpenCut<'_>>> =
            query.cuts.iter().zip(held).map(|(compiled, held)| OpenCut::new(compiled, held)).collect();
        for pane in open {
            if let Some(cut) = &mut cuts[pane.cut] {
                cut.add(pane);
            }
        }
        for cut in cuts.iter_mut().flatten() {
            cut.windows = cut.first_open(closed_to, look.until);
        }
        let mut told = Vec::with_capacity(look.outputs.len());
        for &output in look.outputs {
            let changed = self.changed(output, &cuts, &cuts_of(query, &[output]));
            if changed.is_empty() {
                continue;
            }
            let mut rows = Vec::with_capacity(cuts.len());
            for cut in &cuts {
                let rows_of = cut.as_ref().map(|cut| cut.rows(&changed, scratch)).transpose()?;
                rows.push(rows_of.unwrap_or_default());
            }
            told.push((output, query.outputs[output].windows(&rows)?));
        }
        Ok(told)
    }

    /// The windows of which an output has more rows than were told, which counts as telling them.
    fn changed(
        &mut self,
        output: usize,
        cuts: &[Option<OpenCut<'_>>],
        read: &BTreeSet<usize>,
    ) -> BTreeSet<Window> {
        let mut rows: BTreeMap<Window, u64> = BTreeMap::new();
        for cut in read.iter().filter_map(|cut| cuts.get(*cut)?.as_ref()) {
            for (window, of_cut) in &cut.windows {
                *rows.entry(*window).or_default() += of_cut;
            }
        }
        let before = self.told.insert(output, rows.clone()).unwrap_or_default();
        rows.retain(|window, rows| before.get(window) != Some(rows));
        rows.into_keys().collect()
    }
}

/// The windowed aggregates that these outputs read.
pub fn cuts_of(query: &CompiledQuery, outputs: &[usize]) -> BTreeSet<usize> {
    let parts = outputs.iter().flat_map(|output| &query.outputs[*output].parts);
    parts.flat_map(super::above::Above::cuts).collect()
}

impl<'a> OpenCut<'a> {
    fn new(compiled: &'a CompiledCut, held: Option<&'a SlidingWindows>) -> Option<Self> {
        let panes = compiled.panes?;
        Some(Self { compiled, panes, held, open: BTreeMap::new(), windows: BTreeMap::new() })
    }

    fn add(&mut self, pane: OpenPane) {
        let open = self.open.entry(pane.start).or_default();
        open.rows += pane.rows;
        open.is_aside |= pane.partial.is_none();
        open.partials.extend(pane.partial);
    }

    /// The open windows that end first and have rows.
    fn first_open(&self, closed_to: Option<i64>, until: Option<i64>) -> BTreeMap<Window, u64> {
        let held = self.held.into_iter().flat_map(SlidingWindows::starts);
        let starts: BTreeSet<i64> = held.chain(self.open.keys().copied()).collect();
        let mut found = BTreeMap::new();
        let mut after = closed_to.unwrap_or(i64::MIN);
        while found.len() < MAX_WINDOWS {
            // The first pane with a window that ends later: windows in between have no rows.
            let Some(first) = starts.iter().find(|start| self.panes.last_window_end(**start) > after) else {
                break;
            };
            let end = self.panes.window_end_after(after.max(*first));
            if until.is_some_and(|until| end > until) {
                break;
            }
            let window = Window { start: end.saturating_sub(self.panes.width_ns()), end };
            let open = self.open.range(window.start..window.end).map(|(_, open)| open.rows);
            let rows = open.sum::<u64>() + self.held.map_or(0, |held| held.rows_in(window));
            if rows > 0 && !self.is_aside(window) {
                found.insert(window, rows);
            }
            after = end;
        }
        found
    }

    /// Whether something of a window is put aside.
    fn is_aside(&self, window: Window) -> bool {
        let mut open = self.open.range(window.start..window.end);
        open.any(|(_, open)| open.is_aside) || self.held.is_some_and(|held| held.is_aside(window))
    }

    /// The rows of those of its windows that are wanted, as if they were closed now.
    fn rows(&self, wanted: &BTreeSet<Window>, scratch: &mut Scratch) -> Result<ClosedRows> {
        let mut closed = ClosedRows::default();
        for window in self.windows.keys().filter(|window| wanted.contains(window)) {
            let held = self.held.into_iter().flat_map(|held| held.parts_of(*window));
            let open = self.open.range(window.start..window.end).flat_map(|(_, open)| &open.partials);
            let aggregation = &self.compiled.aggregation;
            if let Some(sum) = Partial::sum(aggregation, held.chain(open), scratch)? {
                closed.push(*window, WindowRows::Whole(sum.into_result(aggregation, *window)?));
            }
        }
        Ok(closed)
    }
}
