//! Closing windows: panes of all partitions become the windows' rows, the figures and the next checkpoint. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::Result;

use super::aggregate::Pane;
use super::bounds::Size;
use super::change::Takeover;
use super::closed::{ClosedRows, WindowRows};
use super::compile::{CompiledCut, CompiledOutput, CompiledQuery};
use super::early::{Early, Look, OpenPane};
use super::groups::Scratch;
use super::kept::Kept;
use super::partition::{Account, HandOver};
use super::saved::{Saved, SavedKey, SavedRecord, State};
use super::session::{LeftOut, Sessions};
use super::session_switch::SessionSwitch;
use super::sliding::SlidingWindows;
use super::spill::Spill;
use crate::reaction::checkpoint::{Checkpoint, Gap, OpenSessions, Position};
use crate::reaction::figures::Figures;
use crate::reaction::time::Window;
use crate::sql::cut::Windowing;

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

/// One partition of one source of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane {
    /// The source's place in the query.
    pub source: usize,
    /// The partition of its topic.
    pub partition: u32,
    /// Where it goes on.
    pub from: Position,
}

/// Where a query goes on: from its checkpoint, or from the start of its sources.
#[derive(Clone, Debug, PartialEq)]
pub struct Start {
    /// Every partition of every source, in order.
    pub lanes: Vec<Lane>,
    /// Every window ending at or before this has been emitted.
    pub emitted: Option<i64>,
    /// The account at the positions' `seen`, without what is open.
    pub figures: Figures,
    /// What this version cannot rebuild.
    pub gap: Option<Gap>,
    /// How many saved records of each cut belong to the checkpoint.
    pub saved: Vec<u64>,
    /// Which sessions are emitted.
    pub sessions: SessionSwitch,
    /// The highest revision written.
    pub revision: u64,
    /// The account begins with the rows that are filled into windows again: what the version before it did with all
    /// others cannot be told from its totals.
    pub begins_account: bool,
}

impl Start {
    /// Decides from where `query` reads. `first_offsets` are, by source, the starts of its topic's partitions.
    ///
    /// A checkpoint of the same plan at and below the cuts is continued; after one of another plan this one takes over,
    /// reading from `first_offsets`, by source ([`Start::take_over`] can be told better ones).
    pub fn decide(
        query: &CompiledQuery,
        checkpoint: Option<&Checkpoint>,
        first_offsets: &[Vec<i64>],
    ) -> Self {
        match checkpoint {
            Some(checkpoint) if checkpoint.fingerprint == query.fingerprint => Self {
                lanes: lanes(query, Some(checkpoint), first_offsets),
                emitted: checkpoint.emitted,
                figures: Figures { open: 0, ..checkpoint.figures },
                gap: checkpoint.gap,
                saved: checkpoint.saved.clone(),
                sessions: SessionSwitch::resumed(checkpoint.sessions.as_ref()),
                revision: checkpoint.revision,
                begins_account: false,
            },
            Some(Checkpoint { emitted: Some(emitted), .. }) => {
                let takeover = Takeover::after(query.rhythm(), *emitted);
                let before = checkpoint.and_then(|checkpoint| checkpoint.sessions.as_ref());
                let sessions =
                    query.sessions.as_ref().map(|kind| SessionSwitch::after(before, kind, *emitted));
                let sessions = sessions.unwrap_or_default();
                Self { sessions, ..Self::take_over(query, checkpoint, takeover, first_offsets) }
            }
            // Nothing was emitted by anybody.
            _ => {
                let nothing = Takeover { emitted: i64::MIN, rows_from: i64::MIN };
                Self::take_over(query, None, nothing, first_offsets)
            }
        }
    }

    /// For a query that has never run and wants nothing that is there: it reads from the ends of the log, and emits the
    /// windows that start at `now_ns` or later, because of no other it would see every row.
    #[must_use]
    pub fn from_now_on(query: &CompiledQuery, ends: &[Vec<i64>], now_ns: i64) -> Self {
        let rhythm = query.rhythm();
        let whole = Takeover::after(rhythm, now_ns).without_rows_before(rhythm, now_ns);
        let emitted = (!query.cuts.is_empty()).then_some(whole.emitted);
        Self { emitted, ..Self::decide(query, None, ends) }
    }

    /// After a version with another plan, which wrote `checkpoint`: emits the windows that end after
    /// `takeover.emitted`, whose rows all lie at or after `rows_at`, by source and partition. Those of them that the other
    /// version had seen are filled in again and begin the account; none is late.
    pub fn take_over(
        query: &CompiledQuery,
        checkpoint: Option<&Checkpoint>,
        takeover: Takeover,
        rows_at: &[Vec<i64>],
    ) -> Self {
        let mut lanes = lanes(query, checkpoint, rows_at);
        let rows_at = rows_at.iter().flatten();
        for (lane, &rows_at) in lanes.iter_mut().zip(rows_at).filter(|_| checkpoint.is_some()) {
            lane.from.resume = rows_at.min(lane.from.seen);
        }
        Self {
            lanes,
            emitted: checkpoint.map(|_| takeover.emitted),
            figures: Figures::default(),
            gap: None,
            saved: Vec::new(),
            sessions: SessionSwitch::default(),
            revision: checkpoint.map_or(0, |checkpoint| checkpoint.revision),
            begins_account: checkpoint.is_some(),
        }
    }
}

/// Every partition of every source, from the checkpoint's position; a partition added since then starts at the query's
/// watermark.
fn lanes(query: &CompiledQuery, checkpoint: Option<&Checkpoint>, first_offsets: &[Vec<i64>]) -> Vec<Lane> {
    let watermark = checkpoint.and_then(|checkpoint| checkpoint.emitted);
    let mut lanes = Vec::new();
    for (source, (compiled, firsts)) in query.sources.iter().zip(first_offsets).enumerate() {
        let known = checkpoint.and_then(|checkpoint| checkpoint.sources.get(&compiled.table.topic));
        for (partition, &first) in (0_u32..).zip(firsts) {
            let known = known.and_then(|positions| positions.get(partition as usize)).copied();
            let from = known.unwrap_or(Position { resume: first, seen: first, watermark });
            lanes.push(Lane { source, partition, from });
        }
    }
    lanes
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
    revision: u64,
    early: Early,
    sessions: SessionSwitch,
    cuts: Vec<OpenWindows>,
    saved: Saved,
    scratch: Scratch,
}

/// What one cut keeps of partitions' panes until their last window is closed.
enum OpenWindows {
    /// Nothing: a window is one pane, and closed with it.
    Single,
    Sliding(SlidingWindows),
    Sessions(Sessions),
}

impl OpenWindows {
    fn new(cut: &CompiledCut, start: &Start) -> Self {
        let aggregation = Arc::clone(&cut.aggregation);
        match (cut.panes, cut.windowing) {
            (None, Windowing::Session { gap_ns }) => {
                let mut sessions = Sessions::new(gap_ns, aggregation);
                sessions.go_on(start.sessions);
                Self::Sessions(sessions)
            }
            (Some(panes), _) if !panes.is_single() => Self::Sliding(SlidingWindows::new(panes, aggregation)),
            _ => Self::Single,
        }
    }

    fn rows(&self) -> u64 {
        match self {
            Self::Single => 0,
            Self::Sliding(windows) => windows.rows(),
            Self::Sessions(sessions) => sessions.rows(),
        }
    }

    fn size(&self) -> Size {
        match self {
            Self::Single => Size::default(),
            Self::Sliding(windows) => windows.size(),
            Self::Sessions(sessions) => sessions.size(),
        }
    }

    fn first_offset(&self, lane: usize) -> Option<i64> {
        match self {
            Self::Sliding(windows) => windows.first_offset(lane),
            Self::Single | Self::Sessions(_) => None,
        }
    }

    fn next_end(&self, closed_to: i64) -> Option<i64> {
        match self {
            Self::Single => None,
            Self::Sliding(windows) => windows.next_end(closed_to),
            Self::Sessions(sessions) => sessions.next_end(),
        }
    }
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
        self.cuts.iter_mut().try_for_each(|cut| match cut {
            OpenWindows::Sliding(windows) => windows.spill(spill),
            OpenWindows::Single | OpenWindows::Sessions(_) => Ok(()),
        })
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
        let held = self.cuts.iter().map(|cut| match cut {
            OpenWindows::Sliding(windows) => Some(windows),
            OpenWindows::Single | OpenWindows::Sessions(_) => None,
        });
        let held = held.collect();
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
        }
    }

    fn sessions(&self) -> impl Iterator<Item = &Sessions> {
        self.cuts.iter().filter_map(|cut| match cut {
            OpenWindows::Sessions(sessions) => Some(sessions),
            OpenWindows::Single | OpenWindows::Sliding(_) => None,
        })
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
