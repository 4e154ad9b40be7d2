//! Reads one partition: at the end from memory, further back from SQLite, and waits without asking anyone.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::Instant;

use super::partition::{Look, Partition};
use super::{Shared, schema};
use crate::clock;
use crate::log::{LogError, ReadBatch, Reader};

/// A position in a partition.
pub(super) struct EmbeddedReader {
    shared: Arc<Shared>,
    partition: Arc<Partition>,
    moves: watch::Receiver<i64>,

    next: i64,
}

impl EmbeddedReader {
    /// Refuses an offset past the end: there the log is not the one that the offset came from.
    pub(super) fn new(shared: Arc<Shared>, partition: Arc<Partition>, offset: i64) -> Result<Self, LogError> {
        let range = partition.range();
        if offset > range.end {
            let Partition { topic, number, .. } = &*partition;
            return Err(LogError::Refused(format!(
                "offset {offset} of {topic}/{number} is past its end {}",
                range.end
            )));
        }
        if offset < range.start {
            return Err(partition.gone(offset, range.start));
        }
        let moves = partition.moves();
        Ok(Self { shared, partition, moves, next: offset })
    }

    /// One look: a batch, or `None` when the end was reached and a write is expected or may yet come.
    async fn look(&self, max_bytes: usize) -> Result<Seen, LogError> {
        // Before the look: what it does not show was not there at this time.
        let now_ms = self.shared.announced.complete_until(&self.partition.topic, clock::wall_ms());
        let proof = |complete: bool| complete.then_some(now_ms);
        match self.shared.topics.look(&self.partition, self.next, max_bytes, now_ms) {
            Look::Gone { start } => Err(self.partition.gone(self.next, start)),
            Look::End { complete } => Ok(Seen::End(proof(complete))),
            Look::Found { records, next, complete } => {
                Ok(Seen::Batch(ReadBatch { records, next, complete_until_ms: proof(complete) }))
            }
            Look::Stored { until, complete } => {
                let mut batch = self.stored(until, max_bytes).await?;
                if batch.next == until {
                    batch.complete_until_ms = proof(complete);
                }
                Ok(Seen::Batch(batch))
            }
        }
    }

    async fn stored(&self, until: i64, max_bytes: usize) -> Result<ReadBatch, LogError> {
        let (partition, from) = (Arc::clone(&self.partition), self.next);
        let batch =
            self.shared.pool.with(move |db| schema::read(db, &partition, from, until, max_bytes)).await?;
        // A start is raised before anything is deleted: still below our position, nothing was missing.
        let start = self.partition.range().start;
        if from < start {
            return Err(self.partition.gone(from, start));
        }
        Ok(batch)
    }
}

enum Seen {
    Batch(ReadBatch),
    End(Option<i64>),
}

#[async_trait]
impl Reader for EmbeddedReader {
    async fn read(&mut self, max_bytes: usize, wait: Duration) -> Result<ReadBatch, LogError> {
        let deadline = Instant::now() + wait;
        let mut is_last = wait.is_zero();
        loop {
            self.moves.mark_unchanged();
            match self.look(max_bytes).await? {
                Seen::Batch(batch) => {
                    self.next = batch.next;
                    // Of a compacted partition, all records in a stretch may be gone.
                    if !batch.records.is_empty() {
                        return Ok(batch);
                    }
                }
                Seen::End(complete_until_ms) if is_last => {
                    return Ok(ReadBatch { records: Vec::new(), next: self.next, complete_until_ms });
                }
                Seen::End(_) => {
                    let moved = tokio::time::timeout_at(deadline, self.moves.changed()).await;
                    is_last = moved.is_err();
                }
            }
        }
    }
}
