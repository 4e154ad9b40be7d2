//! Closing windows: panes of all partitions become the windows' rows, the figures and the next checkpoint. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::Result;

use super::aggregate::Pane;
use super::change::Takeover;
use super::compile::CompiledQuery;
use super::groups::Scratch;
use super::partition::{Account, HandOver};
use crate::reaction::checkpoint::{Checkpoint, Gap, Position};
use crate::reaction::figures::Figures;
use crate::reaction::time::Window;

/// One closed window: what the sink is to receive.
#[derive(Debug)]
pub struct ClosedWindow {
    /// Its span.
    pub window: Window,
    /// Its rows, with the sink's columns and types by position.
    pub rows: Vec<RecordBatch>,
}

/// What one commit writes.
#[derive(Debug)]
pub struct Closed {
    /// In order of time.
    pub windows: Vec<ClosedWindow>,
    /// Goes into the same transaction.
    pub checkpoint: Checkpoint,
}

/// Where a query goes on: from its checkpoint, or from the start of its source.
#[derive(Clone, Debug, PartialEq)]
pub struct Start {
    /// By partition.
    pub positions: Vec<Position>,
    /// Every window ending at or before this has been emitted.
    pub emitted: Option<i64>,
    /// The account at the positions' `seen`, without what is open.
    pub figures: Figures,
    /// What this version cannot rebuild.
    pub gap: Option<Gap>,
    /// The account begins with the rows that are filled into windows again: what the version before it did with all
    /// others cannot be told from its totals.
    pub begins_account: bool,
}

impl Start {
    /// Decides from where `query` reads. `first_offsets` are the starts of the source topic's partitions.
    ///
    /// A checkpoint of the same plan at and below the cut is continued; after one of another plan this one takes over,
    /// reading from `first_offsets` ([`Start::take_over`] can be told better ones).
    pub fn decide(query: &CompiledQuery, checkpoint: Option<&Checkpoint>, first_offsets: &[i64]) -> Self {
        let checkpoint = checkpoint.filter(|checkpoint| checkpoint.topic == query.source.topic);
        match checkpoint {
            Some(checkpoint) if checkpoint.fingerprint == query.fingerprint => Self {
                positions: positions(checkpoint, first_offsets),
                emitted: checkpoint.emitted,
                figures: Figures { open: 0, ..checkpoint.figures },
                gap: checkpoint.gap,
                begins_account: false,
            },
            Some(Checkpoint { emitted: Some(emitted), .. }) => {
                let takeover = Takeover::after(query.rhythm(), *emitted);
                Self::take_over(checkpoint, takeover, first_offsets)
            }
            // Nothing was emitted by anybody.
            _ => Self::take_over(None, Takeover { emitted: i64::MIN, rows_from: i64::MIN }, first_offsets),
        }
    }

    /// After a version with another plan, which wrote `checkpoint`: emits the windows that end after
    /// `takeover.emitted`, whose rows all lie at or after `rows_at`, by partition. Those of them that the other version
    /// had seen are filled in again and begin the account; none is late.
    pub fn take_over(checkpoint: Option<&Checkpoint>, takeover: Takeover, rows_at: &[i64]) -> Self {
        let positions = match checkpoint {
            Some(checkpoint) => {
                let mut positions = positions(checkpoint, rows_at);
                for (position, &rows_at) in positions.iter_mut().zip(rows_at) {
                    position.resume = rows_at.min(position.seen);
                }
                positions
            }
            None => {
                let first = |&start: &i64| Position { resume: start, seen: start, watermark: None };
                rows_at.iter().map(first).collect()
            }
        };
        Self {
            positions,
            emitted: checkpoint.map(|_| takeover.emitted),
            figures: Figures::default(),
            gap: None,
            begins_account: checkpoint.is_some(),
        }
    }
}

/// The checkpoint's; a partition added since then starts at the query's watermark.
fn positions(checkpoint: &Checkpoint, first_offsets: &[i64]) -> Vec<Position> {
    let mut positions = checkpoint.partitions.clone();
    let added = first_offsets.iter().skip(positions.len());
    positions.extend(added.map(|&start| Position {
        resume: start,
        seen: start,
        watermark: checkpoint.emitted,
    }));
    positions
}

/// The query's side of closing: totals that survive partitions and restarts.
pub struct Closer {
    query: Arc<CompiledQuery>,
    version: u64,
    gap: Option<Gap>,
    /// The account at the start, besides which partitions count.
    base: Figures,
    counted: u64,
    emitted: Option<i64>,
    scratch: Scratch,
}

impl Closer {
    /// A closer that goes on from `start`.
    pub fn new(query: Arc<CompiledQuery>, version: u64, start: &Start) -> Self {
        Self {
            query,
            version,
            gap: start.gap,
            base: start.figures,
            counted: start.figures.counted,
            emitted: start.emitted,
            scratch: Scratch::default(),
        }
    }

    /// Every window ending at or before this has been closed.
    pub fn emitted(&self) -> Option<i64> {
        self.emitted
    }

    /// Rows of all windows closed so far, whether they are committed yet or not.
    pub fn counted(&self) -> u64 {
        self.counted
    }

    /// Turns what all partitions handed over for `boundary` into windows, figures and the checkpoint.
    ///
    /// # Errors
    /// When the plan above the cut fails on the rows of a window.
    pub fn close(&mut self, handed: Vec<HandOver>, boundary: Option<i64>) -> Result<Closed> {
        self.emitted = self.emitted.max(boundary);
        let positions = handed.iter().map(|partition| partition.position).collect();
        let open = handed.iter().map(|partition| partition.open).sum();
        let account = total(handed.iter().map(|partition| partition.account));
        let mut merged: BTreeMap<i64, Pane> = BTreeMap::new();
        for pane in handed.into_iter().flat_map(|partition| partition.panes) {
            self.counted += pane.rows;
            match merged.entry(pane.window.start) {
                std::collections::btree_map::Entry::Vacant(entry) => drop(entry.insert(pane)),
                std::collections::btree_map::Entry::Occupied(mut entry) => {
                    entry.get_mut().merge(pane, &mut self.scratch)?;
                }
            }
        }
        let windows = merged.into_values().map(|pane| {
            let window = pane.window;
            let rows = pane.into_result(&self.query.aggregation)?;
            Ok(ClosedWindow { window, rows: self.query.above.run(rows)? })
        });
        let windows = windows.collect::<Result<Vec<_>>>()?;
        let checkpoint = Checkpoint {
            query: self.query.name.clone(),
            version: self.version,
            fingerprint: self.query.fingerprint.clone(),
            topic: self.query.source.topic.clone(),
            emitted: self.emitted,
            partitions: positions,
            figures: self.figures(account, open, self.counted),
            gap: self.gap,
        };
        Ok(Closed { windows, checkpoint })
    }

    /// The figures of a cut: `account` and `open` of all partitions, `counted` as far as it is committed.
    pub fn figures(&self, account: Account, open: u64, counted: u64) -> Figures {
        Figures {
            accepted: self.base.accepted + account.accepted,
            counted,
            filtered: self.base.filtered + account.filtered,
            late: self.base.late + account.late,
            future: self.base.future + account.future,
            bad: self.base.bad + account.bad,
            open,
        }
    }
}

/// The sum of the partitions' accounts.
pub fn total(accounts: impl IntoIterator<Item = Account>) -> Account {
    accounts.into_iter().fold(Account::default(), |sum, account| Account {
        accepted: sum.accepted + account.accepted,
        filtered: sum.filtered + account.filtered,
        late: sum.late + account.late,
        future: sum.future + account.future,
        bad: sum.bad + account.bad,
    })
}
