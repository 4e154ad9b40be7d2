//! Closing windows: panes of all partitions become the windows' rows, the figures and the next checkpoint. Pure.

mod open;
mod start;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::Result;

use self::open::OpenWindows;
pub use self::start::{Lane, Start};
use super::aggregate::Pane;
use super::bounds::Size;
use super::closed::{ClosedRows, WindowRows};
use super::compile::{CompiledCut, CompiledOutput, CompiledQuery};
use super::early::{Early, Look, OpenPane};
use super::groups::Scratch;
use super::kept::Kept;
use super::partition::{Account, HandOver};
use super::saved::{Saved, SavedKey, SavedRecord, State};
use super::session::{LeftOut, Sessions};
use super::session_switch::SessionSwitch;
use super::spill::Spill;
use crate::reaction::checkpoint::{Checkpoint, Gap, OpenSessions, Position, Told};
use crate::reaction::figures::Figures;
use crate::reaction::time::Window;

/// One closed window: what a sink is to receive.
#[derive(Debug)]
pub struct ClosedWindow {
    /// Its span.
    pub window: Window,
    /// Its rows, with the sink's columns and types by position.
    pub rows: Vec<RecordBatch>,
}

/// What one commit writes into one sink.
#[derive(Debug, Default)]
pub struct ClosedOutput {
    /// In order of time.
    pub windows: Vec<ClosedWindow>,
    /// Windows that are open, as they stand; in order of time.
    pub early: Vec<ClosedWindow>,
    /// Rows without a window, in the order in which each partition gave them.
    pub rows: Vec<RecordBatch>,
}

/// What one commit writes.
#[derive(Debug)]
pub struct Closed {
    /// By output of the query.
    pub outputs: Vec<ClosedOutput>,
    /// Goes into the same transaction.
    pub checkpoint: Checkpoint,
    /// Go there too: state that is not rebuilt from the log.
    pub saved: Vec<SavedRecord>,
    /// And what is in no window.
    pub kept: Kept,
}

impl Closed {
    /// Whether there is nothing but positions.
    pub fn is_empty(&self) -> bool {
        let empty = |output: &ClosedOutput| {
            output.windows.is_empty() && output.early.is_empty() && output.rows.is_empty()
        };
        self.saved.is_empty() && self.kept.is_empty() && self.outputs.iter().all(empty)
    }

    /// The closed windows of all outputs.
    pub fn windows(&self) -> impl Iterator<Item = &ClosedWindow> {
        self.outputs.iter().flat_map(|output| &output.windows)
    }
}

/// The query's side of closing: what windows share between closings, and totals that survive restarts.
pub struct Closer {
    query: Arc<CompiledQuery>,
    version: u64,
    gap: Option<Gap>,
    lanes: Vec<Lane>,
    /// The account at the start, besides which partitions count.
    base: Figures,
    counted: u64,
    emitted: Option<i64>,
    took_over_at: Option<i64>,
    revision: u64,
    early: Early,
    sessions: SessionSwitch,
    cuts: Vec<OpenWindows>,
    saved: Saved,
    scratch: Scratch,
}

impl Closer {
    /// A closer that goes on from `start`. State that was saved has to be given to it by [`Self::restore`].
    pub fn new(query: Arc<CompiledQuery>, version: u64, start: &Start) -> Self {
        Self {
            version,
            gap: start.gap,
            lanes: start.lanes.clone(),
            base: start.figures,
            counted: start.figures.counted,
            emitted: start.emitted,
            took_over_at: start.took_over_at,
            revision: start.revision,
            early: Early::default(),
            sessions: start.sessions,
            cuts: query.cuts.iter().map(|cut| OpenWindows::new(cut, start)).collect(),
            saved: Saved::new(&query),
            scratch: Scratch::default(),
            query,
        }
    }

    /// Finds what was saved beside the checkpoint among the keys of the checkpoints topic: what is to be given to
    /// [`Self::restore`], as often as there is a key, and then [`Self::restored`] is to be called. Keys of other queries are
    /// left alone; states of another plan of this query are removed by the next commit.
    ///
    /// # Errors
    /// When what the checkpoint names is not there.
    pub fn find_saved<'k>(
        &mut self,
        start: &Start,
        keys: impl IntoIterator<Item = &'k [u8]>,
    ) -> Result<Vec<SavedKey>> {
        self.saved.find(&self.query, &start.saved, keys)
    }

    /// Takes in a value that was saved.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn restore(&mut self, key: &SavedKey, value: &[u8]) -> Result<()> {
        match (self.saved.restore(&self.query, key, value)?, &mut self.cuts[key.cut]) {
            (State::Pane(chunk), OpenWindows::Sliding(windows)) => windows.restore(chunk, &mut self.scratch),
            (State::Sessions(rows), OpenWindows::Sessions(sessions)) => {
                sessions.restore(rows);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// All that was saved has been taken in.
    ///
    /// # Errors
    /// What DataFusion says of the states.
    pub fn restored(&mut self, start: &Start) -> Result<()> {
        for cut in &mut self.cuts {
            if let (OpenWindows::Sessions(sessions), Some(closed_to)) = (cut, start.emitted) {
                sessions.forget_closed(closed_to, &mut self.scratch)?;
            }
        }
        Ok(())
    }

    /// Every window ending at or before this has been closed.
    pub fn emitted(&self) -> Option<i64> {
        self.emitted
    }

    /// Rows of all windows closed so far, whether they are committed yet or not.
    pub fn counted(&self) -> u64 {
        self.counted
    }

    /// Rows handed over, of windows still open.
    pub fn open(&self) -> u64 {
        self.cuts.iter().map(OpenWindows::rows).sum()
    }

    /// What is held in memory for windows still open.
    pub fn size(&self) -> Size {
        self.cuts.iter().map(OpenWindows::size).sum()
    }

    /// Puts aside what is held for windows still open, sessions excepted.
    ///
    /// # Errors
    /// As [`super::partition::Partition::spill`].
    pub fn spill(&mut self, spill: &Arc<Spill>) -> Result<()> {
        self.cuts.iter_mut().try_for_each(|cut| cut.spill(spill))
    }

    /// The end of the first window that what was handed over is part of.
    pub fn next_end(&self) -> Option<i64> {
        let closed_to = self.emitted.unwrap_or(i64::MIN);
        self.cuts.iter().filter_map(|cut| cut.next_end(closed_to)).min()
    }

    /// Turns what all partitions handed over for `boundary` into windows, figures and the checkpoint.
    ///
    /// # Errors
    /// When the plan above the cut fails on the rows of a window.
    pub fn close(&mut self, handed: Vec<HandOver>, boundary: Option<i64>) -> Result<Closed> {
        let from = self.emitted;
        self.emitted = self.emitted.max(boundary);
        // Whoever was told a window early has to find the final one newer.
        if self.revision > 0 || self.query.tells_early() {
            self.revision += 1;
        }
        let mut outputs: Vec<ClosedOutput> = Vec::new();
        outputs.resize_with(self.query.outputs.len(), ClosedOutput::default);
        let (mut partitions, mut kept) = (Vec::with_capacity(handed.len()), Kept::default());
        let mut single: Vec<BTreeMap<i64, Pane>> = Vec::new();
        single.resize_with(self.cuts.len(), BTreeMap::new);
        for (lane, handed) in handed.into_iter().enumerate() {
            kept.append(handed.kept);
            partitions.push(Left {
                first_open: handed.first_open,
                next: handed.next,
                watermark: handed.watermark,
                account: handed.account,
                open: handed.open,
            });
            for (output, rows, reactions) in handed.rows {
                self.counted += reactions;
                outputs[output].rows.push(rows);
            }
            for (cut, rows) in handed.sessions {
                if let OpenWindows::Sessions(sessions) = &mut self.cuts[cut] {
                    sessions.add(rows);
                }
            }
            for (cut, pane) in handed.panes {
                self.add(lane, cut, pane, &mut single[cut])?;
            }
        }
        let closed = self.close_cuts(single, from)?;
        self.run_above(&closed, &mut outputs)?;
        let saved = self.save()?;
        let checkpoint = self.checkpoint(&partitions);
        Ok(Closed { outputs, checkpoint, saved, kept })
    }

    /// Adds to `closed`, which was handed over at the same moment, the open windows as they stand with what the partitions
    /// hold of them.
    ///
    /// # Errors
    /// As [`Self::close`].
    pub fn look(&mut self, open: Vec<OpenPane>, look: Look<'_>, closed: &mut Closed) -> Result<()> {
        let held = self.cuts.iter().map(OpenWindows::sliding).collect();
        let told = self.early.look(&self.query, held, open, self.emitted, look, &mut self.scratch)?;
        for (output, windows) in told {
            closed.outputs[output].early = windows;
        }
        Ok(())
    }

    fn add(&mut self, lane: usize, cut: usize, pane: Pane, single: &mut BTreeMap<i64, Pane>) -> Result<()> {
        if let OpenWindows::Sliding(windows) = &mut self.cuts[cut] {
            return windows.add(lane, pane, &mut self.scratch);
        }
        match single.entry(pane.window.start) {
            std::collections::btree_map::Entry::Vacant(entry) => drop(entry.insert(pane)),
            std::collections::btree_map::Entry::Occupied(mut entry) => {
                let merged = entry.get_mut();
                merged.rows += pane.rows;
                merged.pieces.extend(pane.pieces);
                if let Some(partial) = pane.accumulation.into_rest()? {
                    merged.accumulation.merge(&partial, &mut self.scratch)?;
                }
            }
        }
        Ok(())
    }

    /// By cut: the rows of the windows that are over.
    fn close_cuts(&mut self, single: Vec<BTreeMap<i64, Pane>>, from: Option<i64>) -> Result<Vec<ClosedRows>> {
        let mut all = Vec::with_capacity(self.cuts.len());
        for ((cut, panes), compiled) in self.cuts.iter_mut().zip(single).zip(&self.query.cuts) {
            let mut closed = ClosedRows::default();
            for (_, pane) in panes {
                self.counted += pane.rows;
                let Pane { window, pieces, accumulation, .. } = pane;
                if let Some(rows) =
                    WindowRows::new(&compiled.aggregation, window, pieces, Some(accumulation))?
                {
                    closed.push(window, rows);
                }
            }
            let to = self.emitted.unwrap_or(i64::MIN);
            self.counted += match cut {
                OpenWindows::Single => 0,
                OpenWindows::Sliding(windows) => windows.close(from, to, &mut closed, &mut self.scratch)?,
                OpenWindows::Sessions(sessions) => sessions.close(to, &mut closed, &mut self.scratch)?,
            };
            all.push(closed);
        }
        Ok(all)
    }

    fn run_above(&self, closed: &[ClosedRows], outputs: &mut [ClosedOutput]) -> Result<()> {
        for (compiled, output) in self.query.outputs.iter().zip(outputs) {
            output.windows = compiled.windows(closed)?;
        }
        Ok(())
    }

    fn save(&mut self) -> Result<Vec<SavedRecord>> {
        for (cut, windows) in self.cuts.iter_mut().enumerate() {
            match windows {
                OpenWindows::Single => {}
                OpenWindows::Sliding(windows) => {
                    let first_open = self.emitted.zip(self.query.cuts[cut].panes);
                    let first_open = first_open.map(|(to, panes)| panes.first_open_start(to));
                    self.saved.panes(cut, windows.unsaved(), first_open)?;
                }
                OpenWindows::Sessions(sessions) => {
                    let fresh = sessions.unsaved();
                    self.saved.sessions(cut, fresh, sessions.all())?;
                }
            }
        }
        Ok(self.saved.take())
    }

    fn checkpoint(&self, partitions: &[Left]) -> Checkpoint {
        let mut sources: BTreeMap<String, Vec<Position>> = BTreeMap::new();
        for (place, (lane, left)) in self.lanes.iter().zip(partitions).enumerate() {
            let held = self.cuts.iter().filter_map(|cut| cut.first_offset(place));
            let resume = held.chain(left.first_open).min().unwrap_or(left.next);
            let topic = &self.query.sources[lane.source].table.topic;
            let position = Position { resume, seen: left.next, watermark: left.watermark };
            sources.entry(topic.clone()).or_default().push(position);
        }
        let open = partitions.iter().map(|left| left.open).sum::<u64>() + self.open();
        let account = total(partitions.iter().map(|left| left.account));
        Checkpoint {
            query: self.query.name.clone(),
            version: self.version,
            fingerprint: self.query.fingerprint.clone(),
            emitted: self.emitted,
            sources,
            figures: self.figures(account, open, self.counted),
            gap: self.gap,
            saved: self.saved.counts(),
            sessions: self.open_sessions(),
            revision: self.revision,
            took_over_at: self.took_over_at,
            told: self.told(),
        }
    }

    fn told(&self) -> Option<Told> {
        let emitted = self.emitted?;
        let before = self.took_over_at.unwrap_or(i64::MIN);
        let by =
            |cut: &CompiledCut| cut.panes.map_or(emitted, |panes| panes.slide_start(emitted)).max(before);
        let (by_all, by_some) = (self.query.cuts.iter().map(by).min(), self.query.cuts.iter().map(by).max());
        by_all.zip(by_some).map(|(by_all, by_some)| Told { by_all, by_some })
    }

    fn sessions(&self) -> impl Iterator<Item = &Sessions> {
        self.cuts.iter().filter_map(OpenWindows::sessions)
    }

    fn open_sessions(&self) -> Option<OpenSessions> {
        let definition = self.query.sessions.as_ref()?.definition.clone();
        let from = self.sessions().filter_map(Sessions::first_open).min();
        let whole_from = Some(self.sessions.whole_from).filter(|whole_from| *whole_from > i64::MIN);
        Some(OpenSessions { definition, from, whole_from })
    }

    /// The figures of a cut: `account` and `open` of all partitions, `counted` as far as it is committed.
    pub fn figures(&self, account: Account, open: u64, counted: u64) -> Figures {
        let left_out: Vec<LeftOut> = self.sessions().map(Sessions::left_out).collect();
        // They were filled in again to be left out: the account is that of this version.
        let emitted_before: u64 = left_out.iter().map(|left_out| left_out.emitted_before).sum();
        let not_whole: u64 = left_out.iter().map(|left_out| left_out.not_whole).sum();
        Figures {
            accepted: self.base.accepted + account.accepted - emitted_before,
            counted,
            filtered: self.base.filtered + account.filtered,
            late: self.base.late + account.late + not_whole,
            future: self.base.future + account.future,
            bad: self.base.bad + account.bad,
            open,
            expanded: self.base.expanded + account.expanded,
        }
    }
}

impl CompiledOutput {
    /// What the sink gets of these windows of the cuts, in order of time.
    pub(super) fn windows(&self, closed: &[ClosedRows]) -> Result<Vec<ClosedWindow>> {
        let mut windows: BTreeMap<Window, Vec<RecordBatch>> = BTreeMap::new();
        for part in &self.parts {
            for (window, rows) in part.run(closed)? {
                windows.entry(window).or_default().push(rows);
            }
        }
        Ok(windows.into_iter().map(|(window, rows)| ClosedWindow { window, rows }).collect())
    }
}

/// What is left of a hand-over once its rows are taken.
struct Left {
    first_open: Option<i64>,
    next: i64,
    watermark: Option<i64>,
    account: Account,
    open: u64,
}

/// The sum of the partitions' accounts.
pub fn total(accounts: impl IntoIterator<Item = Account>) -> Account {
    accounts.into_iter().fold(Account::default(), |sum, account| Account {
        accepted: sum.accepted + account.accepted,
        filtered: sum.filtered + account.filtered,
        late: sum.late + account.late,
        future: sum.future + account.future,
        bad: sum.bad + account.bad,
        expanded: sum.expanded + account.expanded,
    })
}
