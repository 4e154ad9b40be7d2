//! Tumbling and hopping windows from their panes. Pure.
//!
//! ```text
//!  panes       a b c d e f g │ h i
//!  front:  suffix sums up to the line     c…g  d…g  e…g  f…g  g
//!  back:   one sum behind it                                     h+i
//!  window e…i = front(e…g) + back(h+i)
//! ```
//!
//! A window of n panes is the sum of two partial aggregates, not of n ("two stacks", known from queues with a running
//! minimum): when the front is used up, the panes behind the line become the new front, each once. A row that comes for
//! a pane already over, while a window of it is open, is kept beside as a correction.
//!
//! What was put aside is beside all this: a window is the sum of what is in memory and of the pieces of its panes. Sums of
//! the front are put aside as they are, because the panes in them are not known apart any more.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::common::{DataFusionError, Result};

use super::aggregate::{Accumulation, Aggregation, Pane, Partial};
use super::bounds::Size;
use super::closed::{ClosedRows, WindowRows};
use super::groups::Scratch;
use super::snapshot::Chunk;
use super::spill::{Piece, Spill};
use super::window::Panes;
use crate::reaction::time::Window;

/// The panes of one cut that are over, as long as a window of theirs is open.
pub(crate) struct SlidingWindows {
    panes: Panes,
    aggregation: Arc<Aggregation>,
    /// By start.
    held: BTreeMap<i64, Held>,
    /// By start of the first pane: sums of the panes from there to `line`.
    front: BTreeMap<i64, Partial>,
    /// Where the front ends and the back begins.
    line: i64,
    /// The sum of the panes from `line` to `back_end`.
    back: Option<Partial>,
    back_end: i64,
    /// By pane start: rows that came after the front was built.
    corrections: BTreeMap<i64, Partial>,
    aside: Aside,
    /// What was taken in since the last save; only where panes are saved.
    unsaved: Vec<Unsaved>,
}

/// What was put aside of panes that are over.
#[derive(Default)]
struct Aside {
    /// By start of the first pane: sums up to where the line was. A front that is built later begins behind all of them.
    front: BTreeMap<i64, Arc<Piece>>,
    /// By start.
    panes: BTreeMap<i64, Vec<Arc<Piece>>>,
}

/// The front of a window holds at most so many times the groups of its panes; as many where every pane has the same keys.
const FRONT_AT_MOST: usize = 2;

impl Aside {
    fn of(&self, window: Window) -> Vec<Arc<Piece>> {
        let front = self.front.range(window.start..window.end).next().map(|(_, sum)| sum);
        let panes = self.panes.range(window.start..window.end).flat_map(|(_, pieces)| pieces);
        front.into_iter().chain(panes).map(Arc::clone).collect()
    }

    fn add(&mut self, start: i64, piece: Arc<Piece>) {
        self.panes.entry(start).or_default().push(piece);
    }

    fn forget_before(&mut self, first_open: i64) {
        self.front = self.front.split_off(&first_open);
        self.panes = self.panes.split_off(&first_open);
    }
}

/// More of a pane, to be saved.
pub(crate) enum Unsaved {
    Chunk(Chunk),
    /// The pane's start, and what was put aside of it.
    Piece(i64, Arc<Piece>),
}

impl Unsaved {
    pub(crate) fn start(&self) -> i64 {
        match self {
            Self::Chunk(chunk) => chunk.start,
            Self::Piece(start, _) => *start,
        }
    }
}

/// One pane that is over.
#[derive(Default)]
struct Held {
    rows: u64,
    /// Until the pane is in the front.
    partial: Option<Partial>,
    /// By lane: the first record with a row of it.
    first_offsets: BTreeMap<usize, i64>,
}

impl SlidingWindows {
    pub(crate) fn new(panes: Panes, aggregation: Arc<Aggregation>) -> Self {
        Self {
            panes,
            aggregation,
            held: BTreeMap::new(),
            front: BTreeMap::new(),
            line: i64::MIN,
            back: None,
            back_end: i64::MIN,
            corrections: BTreeMap::new(),
            aside: Aside::default(),
            unsaved: Vec::new(),
        }
    }

    /// How much is held in memory.
    pub(crate) fn size(&self) -> Size {
        let held = self.held.values().filter_map(|held| held.partial.as_ref());
        let sums = self.front.values().chain(&self.back).chain(self.corrections.values());
        held.chain(sums).map(Partial::size).sum()
    }

    /// Rows of windows still open.
    pub(crate) fn rows(&self) -> u64 {
        self.held.values().map(|held| held.rows).sum()
    }

    /// The first record of a lane that is needed to build what is held; none where panes are saved.
    pub(crate) fn first_offset(&self, lane: usize) -> Option<i64> {
        self.held.values().filter_map(|held| held.first_offsets.get(&lane).copied()).min()
    }

    /// The starts of the panes held.
    pub(crate) fn starts(&self) -> impl Iterator<Item = i64> {
        self.held.keys().copied()
    }

    /// How many rows are held of an open window.
    pub(crate) fn rows_in(&self, window: Window) -> u64 {
        self.held.range(window.start..window.end).map(|(_, held)| held.rows).sum()
    }

    /// Whether something of a window is put aside.
    pub(crate) fn is_aside(&self, window: Window) -> bool {
        !self.aside.of(window).is_empty()
    }

    /// What is in memory of an open window, in parts.
    pub(crate) fn parts_of(&self, window: Window) -> impl Iterator<Item = &Partial> {
        let over_the_line = self.line != i64::MIN && window.start <= self.line;
        let (sums, rest) = if over_the_line {
            let front = self.front.range(window.start..).next().map(|(_, sum)| sum);
            (front.into_iter().chain(&self.back), self.back_end)
        } else {
            (None.into_iter().chain(&None), window.start)
        };
        let corrections = self.corrections.range(window.start..window.end).map(|(_, partial)| partial);
        let held = self.held.range(rest..window.end.max(rest)).filter_map(|(_, held)| held.partial.as_ref());
        sums.chain(corrections).chain(held)
    }

    /// The end of the first window still to be closed, all up to `closed_to` being closed.
    pub(crate) fn next_end(&self, closed_to: i64) -> Option<i64> {
        let (first, _) =
            self.held.iter().find(|(start, _)| self.panes.last_window_end(**start) > closed_to)?;
        Some(self.panes.window_end_after(closed_to.max(*first)))
    }

    /// Takes in a pane that is over.
    pub(crate) fn add(&mut self, lane: usize, pane: Pane, scratch: &mut Scratch) -> Result<()> {
        let in_memory = pane.rows_in_memory();
        let Pane { window: Window { start, .. }, rows, first_offset, pieces, accumulation } = pane;
        let held = self.held.entry(start).or_default();
        held.rows += rows;
        if !self.panes.is_saved() {
            let first = held.first_offsets.entry(lane).or_insert(first_offset);
            *first = (*first).min(first_offset);
        }
        for piece in pieces {
            if self.panes.is_saved() {
                self.unsaved.push(Unsaved::Piece(start, Arc::clone(&piece)));
            }
            self.aside.add(start, piece);
        }
        let Some(partial) = accumulation.into_rest()? else { return Ok(()) };
        if self.panes.is_saved() {
            let chunk = Chunk { start, rows: in_memory, partial: partial.clone() };
            self.unsaved.push(Unsaved::Chunk(chunk));
        }
        self.take(start, partial, scratch)
    }

    /// Takes in a pane as it was saved.
    pub(crate) fn restore(&mut self, chunk: Chunk, scratch: &mut Scratch) -> Result<()> {
        self.held.entry(chunk.start).or_default().rows += chunk.rows;
        self.take(chunk.start, chunk.partial, scratch)
    }

    /// What has to be saved since the last call.
    pub(crate) fn unsaved(&mut self) -> Vec<Unsaved> {
        std::mem::take(&mut self.unsaved)
    }

    fn take(&mut self, start: i64, partial: Partial, scratch: &mut Scratch) -> Result<()> {
        let aggregation = Arc::clone(&self.aggregation);
        if start < self.line {
            let known = self.corrections.remove(&start);
            self.corrections.insert(start, added(&aggregation, known, partial, scratch)?);
            return Ok(());
        }
        if start < self.back_end {
            self.back = Some(added(&aggregation, self.back.take(), partial.clone(), scratch)?);
        }
        if start >= self.back_end || !self.panes.is_tumbling() {
            let held = self.held.entry(start).or_default();
            held.partial = Some(added(&aggregation, held.partial.take(), partial, scratch)?);
        }
        Ok(())
    }

    /// Puts aside what is in memory.
    pub(crate) fn spill(&mut self, spill: &Arc<Spill>) -> Result<()> {
        let aside = |start: i64, partial: Partial| {
            Ok::<_, DataFusionError>(Arc::new(Piece::new(Chunk { start, rows: 0, partial }, spill)?))
        };
        for (start, sum) in std::mem::take(&mut self.front) {
            self.aside.front.insert(start, aside(start, sum)?);
        }
        for (start, partial) in std::mem::take(&mut self.corrections) {
            self.aside.add(start, aside(start, partial)?);
        }
        // The panes of a hop's back are held one by one too.
        if let Some(back) = self.back.take().filter(|_| self.panes.is_tumbling()) {
            self.aside.add(self.line, aside(self.line, back)?);
        }
        for (start, held) in &mut self.held {
            if let Some(partial) = held.partial.take() {
                self.aside.add(*start, aside(*start, partial)?);
            }
        }
        Ok(())
    }

    /// Closes every window that ends after `from` and at or before `to`, in order. Returns how many rows are in no open
    /// window any more.
    pub(crate) fn close(
        &mut self,
        from: Option<i64>,
        to: i64,
        closed: &mut ClosedRows,
        scratch: &mut Scratch,
    ) -> Result<u64> {
        let mut closed_to = from.unwrap_or(i64::MIN);
        if self.line == i64::MIN
            && let Some(first) = self.held.keys().next()
        {
            let start = self.panes.slide_start(*first);
            (self.line, self.back_end) = (start, start);
        }
        while let Some(end) = self.next_end(closed_to).filter(|end| *end <= to) {
            let window = Window { start: end - self.panes.width_ns(), end };
            let (sum, pieces) = (self.window(window, scratch)?, self.aside.of(window));
            if let Some(rows) = WindowRows::new(&self.aggregation, window, pieces, sum)? {
                closed.push(window, rows);
            }
            closed_to = end;
        }
        let counted = self.forget(to);
        // A long window grows pane by pane, so that its end is no more work than any other moment.
        self.extend_back(to, scratch)?;
        Ok(counted)
    }

    /// The sum of what is in memory of the panes of a window, each of which is over.
    fn window(&mut self, window: Window, scratch: &mut Scratch) -> Result<Option<Accumulation>> {
        let aggregation = Arc::clone(&self.aggregation);
        if self.line < window.start {
            self.flip(window, scratch)?;
        } else {
            self.extend_back(window.end, scratch)?;
        }
        let front = self.front.range(window.start..).next().map(|(_, sum)| sum);
        let corrections = self.corrections.range(window.start..).map(|(_, partial)| partial);
        let parts: Vec<&Partial> = front.into_iter().chain(&self.back).chain(corrections).collect();
        Partial::sum(&aggregation, parts, scratch)
    }

    /// Adds the panes up to `end` to the back.
    fn extend_back(&mut self, end: i64, scratch: &mut Scratch) -> Result<()> {
        if self.line == i64::MIN || end <= self.back_end {
            return Ok(());
        }
        let aggregation = Arc::clone(&self.aggregation);
        let panes = self.held.range(self.back_end..end).filter_map(|(_, held)| held.partial.as_ref());
        let parts: Vec<&Partial> = self.back.iter().chain(panes).collect();
        if parts.len() > usize::from(self.back.is_some()) {
            let sum = Partial::sum(&aggregation, parts, scratch)?;
            self.back = sum.map(Accumulation::into_partial).transpose()?;
            if self.panes.is_tumbling() {
                // No other window wants them.
                self.held.range_mut(self.back_end..end).for_each(|(_, held)| held.partial = None);
            }
        }
        self.back_end = end;
        Ok(())
    }

    /// Makes the window's panes the new front: one sum for every start of a window. Where that would hold much more than
    /// the panes do, because their keys differ, this window is summed by itself.
    fn flip(&mut self, window: Window, scratch: &mut Scratch) -> Result<()> {
        self.front.clear();
        self.corrections.clear();
        let Some(front) = self.front_of(window, scratch)? else {
            (self.line, self.back_end, self.back) = (window.start, window.start, None);
            return self.extend_back(window.end, scratch);
        };
        self.held.range_mut(window.start..window.end).for_each(|(_, held)| held.partial = None);
        self.front = front;
        (self.line, self.back_end, self.back) = (window.end, window.end, None);
        Ok(())
    }

    fn front_of(&self, window: Window, scratch: &mut Scratch) -> Result<Option<BTreeMap<i64, Partial>>> {
        let mut starts: BTreeMap<i64, Vec<&Partial>> = BTreeMap::new();
        let mut held_size = Size::default();
        for (pane, held) in self.held.range(window.start..window.end) {
            held_size = held_size + held.partial.as_ref().map(Partial::size).unwrap_or_default();
            starts.entry(self.panes.slide_start(*pane)).or_default().extend(&held.partial);
        }
        let (mut front, mut size): (BTreeMap<i64, Partial>, _) = (BTreeMap::new(), Size::default());
        for (start, panes) in starts.into_iter().rev() {
            let later = front.first_key_value().map(|(_, later)| later);
            let sum = Partial::sum(&self.aggregation, panes.into_iter().chain(later), scratch)?;
            if let Some(sum) = sum.map(Accumulation::into_partial).transpose()? {
                size = size + sum.size();
                front.insert(start, sum);
            }
            if size.groups > FRONT_AT_MOST * held_size.groups {
                return Ok(None);
            }
        }
        Ok(Some(front))
    }

    /// Forgets the panes whose last window is closed.
    fn forget(&mut self, closed_to: i64) -> u64 {
        let first_open = self.panes.first_open_start(closed_to);
        let open = self.held.split_off(&first_open);
        let gone = std::mem::replace(&mut self.held, open);
        self.front = self.front.split_off(&first_open);
        self.corrections = self.corrections.split_off(&first_open);
        self.aside.forget_before(first_open);
        if self.held.is_empty() {
            (self.back, self.line, self.back_end) = (None, i64::MIN, i64::MIN);
        } else if self.panes.is_tumbling() && self.line < first_open {
            (self.back, self.line, self.back_end) = (None, first_open, first_open);
        }
        gone.values().map(|held| held.rows).sum()
    }
}

fn added(
    aggregation: &Aggregation,
    known: Option<Partial>,
    more: Partial,
    scratch: &mut Scratch,
) -> Result<Partial> {
    let Some(known) = known else { return Ok(more) };
    let sum = Partial::sum(aggregation, [&known, &more], scratch)?;
    sum.map_or(Ok(more), Accumulation::into_partial)
}
