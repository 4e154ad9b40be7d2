//! What is known of a partition without asking SQLite: its range, its newest records, and the writes under way.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::watch;

use super::{MAX_RECORD_BYTES, headers};
use crate::log::{LogError, NewRecord, PartitionRange, Record};
use crate::sync::lock;

/// What a record costs in memory beside its bytes, about.
const RECORD_OVERHEAD_BYTES: usize = 96;

/// One partition of one topic. Its records are a table of their own, so that appends stay at the right edge of a
/// tree, where SQLite fills pages instead of splitting them.
#[derive(Debug)]
pub(super) struct Partition {
    pub(super) id: i64,
    pub(super) topic: Arc<str>,
    pub(super) number: u32,
    pub(super) is_compacted: bool,
    pub(super) sql: Sql,
    tail_limit: usize,

    state: Mutex<State>,
    /// The end again, for those who wait for it to move.
    moved: watch::Sender<i64>,
}

/// The statements on a partition's table.
#[derive(Debug)]
pub(super) struct Sql {
    pub(super) insert: String,
    pub(super) delete_key: String,
    pub(super) delete_below: String,
    pub(super) delete_tombstones: String,
    pub(super) select: String,
    pub(super) select_live: String,
    pub(super) first: String,
    pub(super) last: String,
    pub(super) stamp_from: String,
}

#[derive(Debug)]
struct State {
    start: i64,
    end: i64,
    /// No later record is stamped below it: the newest stamp, or the newest proof of completeness.
    clock_ms: i64,
    /// Writes that were called and are not yet visible, refused or withdrawn.
    under_way: usize,

    /// Every record from `tail_start` on (of a compacted partition: the newest per key).
    tail: VecDeque<Record>,
    tail_start: i64,
    tail_bytes: usize,
}

/// Where a partition stood when it was loaded.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Standing {
    pub(super) start: i64,
    pub(super) end: i64,
    pub(super) clock_ms: i64,
}

/// What a reader finds at its position.
#[derive(Debug)]
pub(super) enum Look {
    /// Records from memory. `complete`: they reach the end, and no write was under way.
    Found { records: Vec<Record>, next: i64, complete: bool },
    /// They are in SQLite, below `until`; `complete` as above, for one who reads up to there.
    Stored { until: i64, complete: bool },
    /// There is nothing from this position on.
    End { complete: bool },
    /// The position is below the start.
    Gone { start: i64 },
}

impl Partition {
    pub(super) fn new(
        id: i64,
        topic: Arc<str>,
        number: u32,
        is_compacted: bool,
        tail_limit: usize,
        at: Standing,
    ) -> Self {
        let Standing { start, end, clock_ms } = at;
        let state = State {
            start,
            end,
            clock_ms,
            under_way: 0,
            tail: VecDeque::new(),
            tail_start: end,
            tail_bytes: 0,
        };
        Self {
            id,
            topic,
            number,
            is_compacted,
            sql: Sql::new(id),
            tail_limit,
            state: Mutex::new(state),
            moved: watch::Sender::new(end),
        }
    }

    pub(super) fn range(&self) -> PartitionRange {
        let state = lock(&self.state);
        PartitionRange { start: state.start, end: state.end }
    }

    /// The next offset and the earliest stamp of the next record.
    pub(super) fn next(&self) -> (i64, i64) {
        let state = lock(&self.state);
        (state.end, state.clock_ms)
    }

    /// Changes whenever the end moves.
    pub(super) fn moves(&self) -> watch::Receiver<i64> {
        self.moved.subscribe()
    }

    /// The bytes of a record that may be written here.
    pub(super) fn check(&self, record: &NewRecord) -> Result<usize, LogError> {
        let bytes = record.key.as_ref().map_or(0, Bytes::len)
            + record.value.as_ref().map_or(0, Bytes::len)
            + record.headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        if bytes > MAX_RECORD_BYTES {
            return Err(LogError::Refused(format!(
                "a record of {bytes} bytes; the most is {MAX_RECORD_BYTES}"
            )));
        }
        if !headers::is_encodable(&record.headers) {
            return Err(LogError::Refused("a header's name is longer than 65535 bytes".to_owned()));
        }
        if self.is_compacted && record.key.is_none() {
            return Err(LogError::Refused(format!("a record of {} needs a key", self.topic)));
        }
        Ok(bytes + RECORD_OVERHEAD_BYTES)
    }

    /// What is there from `from` on. `now_ms` is the wall clock, read before the call; a complete answer promises
    /// that no later record is stamped before it.
    pub(super) fn look(&self, from: i64, max_bytes: usize, now_ms: i64) -> Look {
        let mut state = lock(&self.state);
        if from < state.start {
            return Look::Gone { start: state.start };
        }
        let quiet = state.under_way == 0;
        if from < state.tail_start {
            // The promise is kept even when the reader then stops short of it.
            state.promise(quiet, now_ms);
            return Look::Stored { until: state.end, complete: quiet };
        }
        if from >= state.end {
            state.promise(quiet, now_ms);
            return Look::End { complete: quiet };
        }
        let first = state.tail.partition_point(|record| record.offset < from);
        let mut budget = Budget::new(max_bytes);
        let records: Vec<Record> =
            state.tail.range(first..).take_while(|r| budget.take(r)).cloned().collect();
        if first + records.len() < state.tail.len() {
            let next = records.last().map_or(from, |record| record.offset + 1);
            return Look::Found { records, next, complete: false };
        }
        state.promise(quiet, now_ms);
        Look::Found { records, next: state.end, complete: quiet }
    }

    /// Makes committed records visible; readers are told by [`Partition::tell`].
    pub(super) fn publish(&self, records: Vec<Record>, end: i64, clock_ms: i64) {
        let mut state = lock(&self.state);
        if self.is_compacted {
            let keys: HashSet<&Bytes> = records.iter().filter_map(|record| record.key.as_ref()).collect();
            state.forget(|record| record.key.as_ref().is_some_and(|key| keys.contains(key)));
        }
        state.tail_bytes += records.iter().map(weight).sum::<usize>();
        state.tail.extend(records);
        state.end = end;
        state.clock_ms = state.clock_ms.max(clock_ms);
        while state.tail_bytes > self.tail_limit
            && let Some(oldest) = state.tail.pop_front()
        {
            state.tail_bytes -= weight(&oldest);
            state.tail_start = oldest.offset + 1;
        }
    }

    /// Wakes those who wait for the end to move.
    pub(super) fn tell(&self) {
        self.moved.send_replace(self.range().end);
    }

    /// What is below `start` is gone from now on.
    pub(super) fn raise_start(&self, start: i64) {
        let mut state = lock(&self.state);
        state.start = state.start.max(start);
        state.tail_start = state.tail_start.max(start);
        state.forget(|record| record.offset < start);
    }

    /// The error for a reader that was overtaken by a trim.
    pub(super) fn gone(&self, asked: i64, start: i64) -> LogError {
        LogError::OffsetGone { topic: self.topic.to_string(), partition: self.number, asked, start }
    }
}

impl State {
    fn promise(&mut self, quiet: bool, now_ms: i64) {
        if quiet {
            self.clock_ms = self.clock_ms.max(now_ms);
        }
    }

    fn forget(&mut self, is_gone: impl Fn(&Record) -> bool) {
        let mut freed = 0;
        self.tail.retain(|record| {
            let gone = is_gone(record);
            freed += if gone { weight(record) } else { 0 };
            !gone
        });
        self.tail_bytes -= freed;
    }
}

impl Sql {
    fn new(id: i64) -> Self {
        let table = format!("records_{id}");
        let columns = "offset, time, key, headers, value";
        Self {
            insert: format!("INSERT INTO {table} ({columns}) VALUES (?1, ?2, ?3, ?4, ?5)"),
            delete_key: format!("DELETE FROM {table} WHERE key = ?1"),
            delete_below: format!("DELETE FROM {table} WHERE offset < ?1"),
            delete_tombstones: format!("DELETE FROM {table} WHERE value IS NULL AND time < ?1"),
            select: format!(
                "SELECT {columns} FROM {table} WHERE offset >= ?1 AND offset < ?2 ORDER BY offset"
            ),
            select_live: format!("SELECT {columns} FROM {table} WHERE value IS NOT NULL AND offset >= ?1"),
            first: format!("SELECT min(offset) FROM {table}"),
            last: format!("SELECT offset, time FROM {table} ORDER BY offset DESC LIMIT 1"),
            stamp_from: format!("SELECT time FROM {table} WHERE offset >= ?1 ORDER BY offset LIMIT 1"),
        }
    }
}

/// Counts a batch's bytes; the first record always fits.
#[derive(Debug)]
pub(super) struct Budget {
    left: usize,
    is_fresh: bool,
}

impl Budget {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { left: max_bytes, is_fresh: true }
    }

    /// Whether this record still belongs to the batch.
    pub(super) fn take(&mut self, record: &Record) -> bool {
        let weight = weight(record);
        let fits = self.is_fresh || weight <= self.left;
        self.is_fresh = false;
        self.left = self.left.saturating_sub(weight);
        fits
    }

    /// Whether nothing more can belong to it.
    pub(super) fn is_spent(&self) -> bool {
        !self.is_fresh && self.left == 0
    }
}

fn weight(record: &Record) -> usize {
    RECORD_OVERHEAD_BYTES
        + record.key.as_ref().map_or(0, Bytes::len)
        + record.value.as_ref().map_or(0, Bytes::len)
        + record.headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>()
}

/// A write that was called: while it lives, no reader may claim to have seen everything.
#[derive(Debug)]
pub(super) struct UnderWay(Arc<Partition>);

impl UnderWay {
    pub(super) fn new(partition: &Arc<Partition>) -> Self {
        lock(&partition.state).under_way += 1;
        Self(Arc::clone(partition))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        lock(&self.0.state).under_way -= 1;
    }
}
