//! Where a query goes on: which records of which partitions it reads, and what is behind it. Pure.

use crate::engine::change::Takeover;
use crate::engine::compile::CompiledQuery;
use crate::engine::session_switch::SessionSwitch;
use crate::reaction::checkpoint::{Checkpoint, Gap, Position, Told};
use crate::reaction::figures::Figures;

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
    /// Up to where versions before this one have told all rows.
    pub took_over_at: Option<i64>,
    /// The account begins with the rows that are filled into windows again: what the version before it did with all
    /// others cannot be told from its totals.
    pub begins_account: bool,
}

/// Nothing was emitted by anybody.
const NOTHING: Takeover = Takeover { emitted: i64::MIN, rows_from: i64::MIN };

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
                took_over_at: checkpoint.took_over_at,
                begins_account: false,
            },
            Some(before) => match before.told() {
                Some(Told { by_some: emitted, .. }) => {
                    let takeover = Takeover::after(&query.windows, emitted);
                    let before = before.sessions.as_ref();
                    let sessions =
                        query.sessions.as_ref().map(|kind| SessionSwitch::after(before, kind, emitted));
                    let sessions = sessions.unwrap_or_default();
                    Self { sessions, ..Self::take_over(query, checkpoint, takeover, first_offsets) }
                }
                // No window was: all of them are this version's. Rows without a window were, as far as it has seen.
                None => Self {
                    emitted: None,
                    took_over_at: None,
                    ..Self::take_over(query, checkpoint, NOTHING, first_offsets)
                },
            },
            None => Self::take_over(query, None, NOTHING, first_offsets),
        }
    }

    /// For a query that has never run and wants nothing that is there: it reads from the ends of the log, and emits the
    /// windows that start at `now_ns` or later, because of no other it would see every row.
    #[must_use]
    pub fn from_now_on(query: &CompiledQuery, ends: &[Vec<i64>], now_ns: i64) -> Self {
        let windows = &query.windows;
        let whole = Takeover::after(windows, now_ns).without_rows_before(windows, now_ns);
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
            took_over_at: checkpoint.map(|_| takeover.emitted),
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
