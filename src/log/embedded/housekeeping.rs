//! A thread beside the writer: moves the write-ahead log into the file while the writer goes on, and applies the
//! topics' retention each minute.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _};
use tokio::time::Instant;

use super::partition::Partition;
use super::queue::{Order, Work};
use super::topics::Topic;
use super::{Shared, not_written};
use crate::clock;
use crate::log::{LogError, Retention};
use crate::sync::lock;

/// How often retention is applied.
const RETENTION_EVERY: Duration = Duration::from_secs(60);
/// How long a compacted topic shows that a key is gone, as on Kafka (`delete.retention.ms`).
const TOMBSTONE_MS: i64 = 24 * 60 * 60 * 1000;
/// When the write-ahead log is moved.
const CHECKPOINT_BYTES: u64 = 32 << 20;
/// When the writer waits for readers so that the log can begin anew.
const URGENT_BYTES: u64 = 256 << 20;

/// What the two threads tell each other.
#[derive(Debug, Default)]
pub(super) struct Housekeeper {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// About what was written since the write-ahead log last began anew.
    wal_bytes: u64,
    /// At which size the next checkpoint is due.
    checkpoint_at: u64,
    is_stopped: bool,
}

enum Chore {
    Checkpoint,
    Retention,
    Stop,
}

impl Housekeeper {
    pub(super) fn new() -> Self {
        let state = State { checkpoint_at: CHECKPOINT_BYTES, ..State::default() };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The writer wrote about that much.
    pub(super) fn wrote(&self, bytes: u64) {
        let mut state = lock(&self.state);
        state.wal_bytes += bytes;
        if state.wal_bytes >= state.checkpoint_at {
            self.changed.notify_one();
        }
    }

    /// Ends the thread.
    pub(super) fn stop(&self) {
        lock(&self.state).is_stopped = true;
        self.changed.notify_one();
    }

    /// The thread.
    pub(super) fn run(&self, shared: &Shared, db: &Connection) {
        let mut due = Instant::now() + RETENTION_EVERY;
        loop {
            match self.wait(due) {
                Chore::Stop => return,
                Chore::Checkpoint => {
                    if let Err(error) = checkpoint(db, "PASSIVE") {
                        tracing::warn!(%error, "the write-ahead log could not be moved; it grows");
                    }
                    shared.queue.finish_checkpoint();
                }
                Chore::Retention => {
                    due = Instant::now() + RETENTION_EVERY;
                    if let Err(error) = apply_retention(shared, db) {
                        tracing::warn!(%error, "retention could not be applied; it is tried again in a minute");
                    }
                }
            }
        }
    }

    fn wait(&self, due: Instant) -> Chore {
        let mut state = lock(&self.state);
        loop {
            if state.is_stopped {
                return Chore::Stop;
            }
            if state.wal_bytes >= state.checkpoint_at {
                state.checkpoint_at = state.wal_bytes + CHECKPOINT_BYTES;
                return Chore::Checkpoint;
            }
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Chore::Retention;
            }
            let waited = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
            state = waited.0;
        }
    }

    /// Called by the writer between two groups, when nearly all was moved: with the rest moved too, the next group
    /// begins the write-ahead log anew. A reader may be in the way; then it is tried again later, and when the log
    /// has become large the writer waits for the readers, whose transactions are short.
    pub(super) fn finish_checkpoint(&self, db: &Connection) {
        let is_urgent = lock(&self.state).wal_bytes >= URGENT_BYTES;
        match checkpoint(db, if is_urgent { "RESTART" } else { "PASSIVE" }) {
            Ok(true) => {
                let mut state = lock(&self.state);
                state.wal_bytes = 0;
                state.checkpoint_at = CHECKPOINT_BYTES;
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "the write-ahead log could not be moved; it grows"),
        }
    }
}

/// Whether all of the write-ahead log is in the file now.
fn checkpoint(db: &Connection, mode: &str) -> rusqlite::Result<bool> {
    db.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
        let (busy, log, moved): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(busy == 0 && log == moved)
    })
}

fn apply_retention(shared: &Shared, db: &Connection) -> Result<(), LogError> {
    for work in due(db, &shared.topics.all(), clock::wall_ms())? {
        // Nobody waits for the answer: what was not done is due again in a minute.
        let (order, _) = Order::new(work, Vec::new(), None, 0);
        shared.queue.push(order)?;
    }
    Ok(())
}

/// What the topics' retention asks for as of `now_ms`.
pub(super) fn due(db: &Connection, topics: &[Arc<Topic>], now_ms: i64) -> Result<Vec<Work>, LogError> {
    let mut work = Vec::new();
    for topic in topics {
        for partition in topic.partitions.iter().map(Arc::clone) {
            work.push(match topic.retention {
                Retention::LatestPerKey => Work::Expire { partition, before_ms: now_ms - TOMBSTONE_MS },
                Retention::Age(age) => {
                    let age_ms = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
                    let oldest_ms = now_ms.saturating_sub(age_ms);
                    let offset = first_since(db, &partition, oldest_ms).map_err(|e| not_written(&e))?;
                    Work::Trim { partition, offset }
                }
            });
        }
    }
    Ok(work)
}

/// The first offset stamped at or after `since_ms`, by bisection: stamps never fall along a partition.
pub(super) fn first_since(db: &Connection, partition: &Partition, since_ms: i64) -> rusqlite::Result<i64> {
    let range = partition.range();
    let mut stamp = db.prepare_cached(&partition.sql.stamp_from)?;
    let (mut low, mut high) = (range.start, range.end);
    while low < high {
        let middle = low + (high - low) / 2;
        let stamp_ms: Option<i64> = stamp.query_row([middle], |row| row.get(0)).optional()?;
        if stamp_ms.is_some_and(|stamp_ms| stamp_ms < since_ms) { low = middle + 1 } else { high = middle }
    }
    Ok(low)
}
