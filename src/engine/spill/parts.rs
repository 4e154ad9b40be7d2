//! A window that was put aside in pieces, part by part: the groups of some hashes are merged, evaluated and handed on,
//! then those of the next. Pure.

use std::sync::Arc;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use datafusion::common::{DataFusionError, Result};

use super::piece::{Hashes, Piece, hashes_of, part_of};
use super::{BATCH_ROWS, Spill};
use crate::engine::aggregate::{Accumulation, Aggregation, Partial};
use crate::engine::groups::Scratch;
use crate::reaction::time::Window;

/// Of the memory of a query, what a part may have on disk: in memory it takes several times as much.
const OF_MEMORY: usize = 8;
/// How often more a part may take in memory than the query may hold: what is merged is beside what is open.
const AT_MOST: usize = 2;
/// A part may always take as much.
const MIN_PART_BYTES: usize = 16 << 20;
/// As many hashes there are.
const HASHES: u64 = 1 << 16;

/// A window of which pieces are put aside.
#[derive(Debug)]
pub(crate) struct InParts {
    aggregation: Arc<Aggregation>,
    window: Window,
    spill: Arc<Spill>,
    /// Each after those that are older.
    pieces: Vec<Arc<Piece>>,
    /// What is in memory, with its hashes.
    rest: Option<(Partial, Vec<u16>)>,
}

impl InParts {
    /// The pieces of a window, which are in `spill`, and what is in memory of it.
    pub(crate) fn new(
        aggregation: &Arc<Aggregation>,
        window: Window,
        spill: Arc<Spill>,
        pieces: Vec<Arc<Piece>>,
        rest: Option<Partial>,
    ) -> Result<Self> {
        let rest = rest.map(|rest| {
            let hashes = hashes_of(&rest.keys, rest.groups)?;
            Ok::<_, DataFusionError>((rest, hashes))
        });
        Ok(Self { aggregation: Arc::clone(aggregation), window, spill, pieces, rest: rest.transpose()? })
    }

    pub(crate) fn spill(&self) -> &Arc<Spill> {
        &self.spill
    }

    /// The window's rows as the query's aggregate yields them: one per group.
    pub(crate) fn batches(self: &Arc<Self>) -> Batches {
        let bytes: u64 = self.pieces.iter().map(|piece| piece.bytes()).sum();
        let bytes = bytes + self.rest.as_ref().map_or(0, |(rest, _)| rest.size().bytes as u64);
        let parts = bytes.div_ceil((self.spill.memory / OF_MEMORY).max(1) as u64).clamp(1, HASHES);
        Batches { of: Arc::clone(self), parts, next: 0, rows: None, scratch: Scratch::default() }
    }

    fn part(&self, hashes: &Hashes, scratch: &mut Scratch) -> Result<Accumulation> {
        let mut sum = Accumulation::new(&self.aggregation)?;
        let rest = self.rest.iter().map(|(rest, of_rest)| part_of(rest, of_rest, hashes));
        for partial in self.pieces.iter().flat_map(|piece| piece.within(hashes)).chain(rest) {
            let partial = partial?;
            if partial.groups > 0 {
                sum.merge(&partial, scratch)?;
            }
            let limit = self.spill.memory.saturating_mul(AT_MOST).max(MIN_PART_BYTES);
            if sum.size().bytes > limit {
                return Err(DataFusionError::External(Box::new(TooLarge { limit })));
            }
        }
        Ok(sum)
    }
}

/// What cannot be divided any more does not fit.
#[derive(Debug, thiserror::Error)]
#[error(
    "what a window keeps of few groups takes more than {limit} bytes of memory, as much as [engine] max_state_bytes leaves for \
     putting it together. What is committed stays, and the query goes on from there: raise it and start again, or change the query \
     (more keys, or less kept of each: no lists and no DISTINCT over that many values)"
)]
struct TooLarge {
    limit: usize,
}

/// The rows of a window in parts.
pub(crate) struct Batches {
    of: Arc<InParts>,
    parts: u64,
    next: u64,
    /// Of the part at hand, and how many were handed on.
    rows: Option<(RecordBatch, usize)>,
    scratch: Scratch,
}

impl Batches {
    fn next_part(&mut self) -> Result<bool> {
        while self.next < self.parts {
            let border = |part: u64| HASHES * part / self.parts;
            let (from, to) = (border(self.next), border(self.next + 1));
            self.next += 1;
            let sum = self.of.part(&(from as u16..=(to - 1) as u16), &mut self.scratch)?;
            if !sum.is_empty() {
                self.rows = Some((sum.into_result(&self.of.aggregation, self.of.window)?, 0));
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn next_batch(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some((rows, done)) = &mut self.rows {
                let more = (rows.num_rows() - *done).min(BATCH_ROWS);
                if more == rows.num_rows() {
                    return Ok(self.rows.take().map(|(rows, _)| rows));
                }
                if more > 0 {
                    // Copied, so that who keeps a batch does not keep, or account for, all of the part.
                    let places: UInt32Array = (*done as u32..(*done + more) as u32).collect();
                    *done += more;
                    return Ok(Some(take_record_batch(rows, &places)?));
                }
            }
            self.rows = None;
            if !self.next_part()? {
                return Ok(None);
            }
        }
    }
}

impl Iterator for Batches {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.next_batch().transpose();
        if let Some(Err(_)) = &batch {
            (self.next, self.rows) = (self.parts, None);
        }
        batch
    }
}
