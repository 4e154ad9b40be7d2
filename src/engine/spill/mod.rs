//! State put aside: what open windows hold goes to disk when memory does not suffice, and comes back part by part.
//!
//! ```text
//!  groups in memory ──▶ piece: groups in the order of their keys' hashes, in parcels of some kilobytes
//!                        piece       ╲
//!  window is over:       piece        ╲ hashes 0…n: merge, evaluate ──▶ rows ──▶ plan above the cut
//!                        what is left ╱ hashes n…m: merge, evaluate ──▶ rows ──▶
//! ```
//!
//! A [`Piece`] is one more partial aggregate of a pane, so that nothing else changes when there is one: what is in memory
//! begins anew and goes on as before. A window with pieces becomes [`InParts`]: only so many groups of it are in memory at
//! a time as were bargained for, and the operators above it, which may want to sort all of them, put aside what they
//! cannot hold on the same [`Shelf`]. What is there is scratch: recovery reads the log and what was saved beside the
//! checkpoint, as ever.

mod disk;
mod operators;
mod parts;
mod piece;

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::TaskContext;

pub use self::disk::Disk;
pub(crate) use self::parts::InParts;
pub(crate) use self::piece::Piece;

/// The operators above a cut have at least and at most as much memory, whatever the query may hold in its windows: less is
/// no use to a sort, and it puts its rows side by side, whose texts no array larger than two gigabytes can hold.
const OPERATORS_BYTES: (usize, usize) = (32 << 20, 1 << 30);
/// And the results of one commit.
const MIN_RESULTS_BYTES: u64 = 64 << 20;
/// The rows of one batch of a window in parts.
const BATCH_ROWS: usize = 2048;
/// What a row of results takes besides its own bytes on its way into the log: a record, its headers, its text.
const ROW_OVERHEAD: u64 = 600;
/// How much larger it is as text.
const TEXT_FACTOR: u64 = 4;

/// Why something could not be put aside or was not there any more.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    /// As much is there as may be.
    #[error(
        "open windows have {limit} bytes on disk, which is what [engine] max_spill_bytes allows. What is committed stays, \
         and the query goes on from there: raise it and start again, or change the query (fewer keys, shorter windows)"
    )]
    Full {
        /// How much may be there.
        limit: u64,
    },
    /// The disk does not do it.
    #[error(
        "open windows cannot be put aside in {dir}: {error}. Make room there, or let [engine] spill_dir name another \
         disk, and start again: what is committed stays, and the query goes on from there"
    )]
    Disk {
        /// Where it was tried.
        dir: String,
        /// What the system says.
        error: std::io::Error,
    },
}

impl From<ShelfError> for DataFusionError {
    fn from(error: ShelfError) -> Self {
        Self::External(Box::new(error))
    }
}

/// Where bytes are put aside.
pub trait Shelf: fmt::Debug + Send + Sync {
    /// Puts bytes aside; they are there as long as the answer is.
    ///
    /// # Errors
    /// See [`ShelfError`].
    fn put(&self, bytes: &[u8]) -> Result<Box<dyn Parcel>, ShelfError>;

    /// How many bytes are there.
    fn used(&self) -> u64;

    /// Throws everything away: nobody reads it any more.
    fn clear(&self);
}

/// Bytes that are put aside.
pub trait Parcel: fmt::Debug + Send + Sync {
    /// The bytes.
    ///
    /// # Errors
    /// See [`ShelfError`].
    fn read(&self) -> Result<Vec<u8>, ShelfError>;
}

/// Where one query puts aside what it cannot hold, and how much it can.
#[derive(Debug)]
pub struct Spill {
    shelf: Arc<dyn Shelf>,
    memory: usize,
    operators: Arc<TaskContext>,
}

impl Spill {
    /// For a query that may hold so many bytes in memory.
    ///
    /// # Errors
    /// What DataFusion says of its own operators' place.
    pub fn new(shelf: Arc<dyn Shelf>, memory: u64) -> Result<Self> {
        let memory = usize::try_from(memory).unwrap_or(usize::MAX);
        let operators = operators::context(&shelf, memory.clamp(OPERATORS_BYTES.0, OPERATORS_BYTES.1))?;
        Ok(Self { shelf, memory, operators })
    }

    /// How many bytes are put aside.
    pub fn used(&self) -> u64 {
        self.shelf.used()
    }

    /// Throws everything away: nobody reads it any more.
    pub fn clear(&self) {
        self.shelf.clear();
    }

    /// For the plan above a cut: memory within bounds, and a place for what is more.
    pub(crate) fn operators(&self) -> Arc<TaskContext> {
        Arc::clone(&self.operators)
    }

    /// For the results that one commit writes of windows in parts.
    pub(crate) fn results(&self) -> Results {
        Results { limit: (self.memory as u64).max(MIN_RESULTS_BYTES), rows: 0, bytes: 0 }
    }
}

/// Results on their way into one commit, which holds them all.
#[derive(Debug)]
pub(crate) struct Results {
    limit: u64,
    rows: u64,
    bytes: u64,
}

impl Results {
    /// Takes in some more.
    pub(crate) fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        self.rows += batch.num_rows() as u64;
        self.bytes +=
            batch.get_array_memory_size() as u64 * TEXT_FACTOR + batch.num_rows() as u64 * ROW_OVERHEAD;
        if self.bytes <= self.limit {
            return Ok(());
        }
        Err(DataFusionError::External(Box::new(TooManyResults { rows: self.rows, limit: self.limit })))
    }
}

/// A window has more results than a commit can hold.
#[derive(Debug, thiserror::Error)]
#[error(
    "a window has more than {rows} rows of results, and the commit that writes them all together may hold {limit} bytes of \
     memory, as [engine] max_state_bytes says. What is committed stays, and the query goes on from there: say HAVING, LIMIT or \
     row_number() <= N so that fewer are written, or raise it and start again"
)]
struct TooManyResults {
    rows: u64,
    limit: u64,
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array};

    use super::*;

    #[test]
    fn more_results_than_a_commit_can_hold_are_refused_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(Disk::new(dir.path(), 1 << 20).unwrap());
        let mut results = Spill::new(disk, 1_000_000).unwrap().results();
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1; 10_000]));
        let batch = RecordBatch::try_from_iter([("n", numbers)]).unwrap();
        let added = (0..).map_while(|_| results.add(&batch).ok()).count();
        assert!((5..=20).contains(&added), "{added}");
        let said = results.add(&batch).unwrap_err().to_string();
        assert!(said.contains("HAVING, LIMIT or row_number()") && said.contains("raise it"), "{said}");
    }
}
