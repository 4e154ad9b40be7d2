//! The one thread that writes: groups from the queue, each one SQLite transaction. What was trimmed is deleted a
//! little with each group, and when nothing is queued the file is vacuumed in small steps.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension as _, params};

use super::housekeeping::Housekeeper;
use super::partition::{Partition, Standing};
use super::queue::{Order, Work};
use super::topics::{Topic, check};
use super::{Shared, headers, not_written, schema};
use crate::clock;
use crate::log::failpoint;
use crate::log::{LogError, NewRecord, Record, Retention, TopicSpec};
use crate::sync::lock;

/// Records deleted in one step, so that a write waits little for it.
const DELETE_STEP_RECORDS: i64 = 64;
/// Pages given back in one step.
const VACUUM_STEP_PAGES: u64 = 64;
/// Beyond this part of the file, free pages are given back; below, the next appends take them.
const FREE_PART: u64 = 4;
/// What a group costs the write-ahead log per partition beside its records: a page or two.
const PAGE_BYTES: u64 = 32 << 10;

/// The thread's own state.
pub(super) struct WriterThread {
    shared: Arc<Shared>,
    housekeeper: Arc<Housekeeper>,
    db: Connection,

    /// Partitions that may have records below their start.
    garbage: VecDeque<Arc<Partition>>,
    /// Whether it is worth asking if there are free pages to give back.
    is_vacuuming: bool,
}

impl WriterThread {
    pub(super) fn new(shared: Arc<Shared>, housekeeper: Arc<Housekeeper>, db: Connection) -> Self {
        let garbage = shared.topics.all().iter().flat_map(|topic| topic.partitions.clone()).collect();
        Self { shared, housekeeper, db, garbage, is_vacuuming: true }
    }

    /// Runs until the queue is closed and empty.
    pub(super) fn run(mut self) {
        // Also after a panic: nobody may wait for a thread that is gone.
        let _close = CloseOnDrop(Arc::clone(&self.shared));
        loop {
            let is_idle = self.garbage.is_empty() && !self.is_vacuuming;
            let Some(next) = self.shared.queue.next(is_idle) else { break };
            if next.orders.is_empty() {
                self.tidy();
            } else {
                self.write(next.orders);
            }
            if next.finish_checkpoint {
                self.housekeeper.finish_checkpoint(&self.db);
            }
        }
        if let Err(error) = self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
            tracing::warn!(%error, "the write-ahead log could not be moved into the file; the next open does it");
        }
    }

    /// One group: all of it or none of it, then the answers.
    fn write(&mut self, orders: Vec<Order>) {
        let (orders, refused) = match self.full() {
            Some(full) => orders.into_iter().partition(|order| !full.stops(&order.work)),
            None => (orders, Vec::new()),
        };
        for order in refused {
            let limit = self.shared.settings.max_bytes;
            answer(order, Err(LogError::Unavailable(format!("the log holds its {limit} bytes"))));
        }
        if orders.is_empty() {
            return;
        }
        let mut group = Group::new(&self.db, &self.shared);
        let mut done = Vec::with_capacity(orders.len());
        let written = group.run(orders, &mut done);
        let written = written.and_then(|()| group.delete_some(&mut self.garbage));
        if let Err(error) = written.and_then(|()| group.commit()) {
            tracing::warn!(%error, "a group was not written");
            // In case it was the deleting that failed. The next trim brings it back.
            self.garbage.clear();
            for (order, outcome) in done {
                answer(order, outcome.and_then(|_| Err(error.clone())));
            }
            return;
        }
        for (partition, _) in &group.trimmed {
            if !self.garbage.iter().any(|queued| queued.id == partition.id) {
                self.garbage.push_back(Arc::clone(partition));
            }
            self.is_vacuuming = true;
        }
        self.housekeeper.wrote(group.wal_bytes);
        group.publish(done);
    }

    /// Whether the file is at its bound.
    fn full(&self) -> Option<Full> {
        let (pages, free) = schema::pages(&self.db).ok()?;
        let used = pages.saturating_sub(free) * PAGE_BYTES;
        let limit = self.shared.settings.max_bytes;
        (used >= limit).then_some(Full { also_commits: used >= limit.saturating_add(limit / 8) })
    }

    /// Nothing is queued: one step of deleting or vacuuming.
    fn tidy(&mut self) {
        let is_deleting = !self.garbage.is_empty();
        let done =
            if is_deleting { delete_some(&self.db, &mut self.garbage).map(|_| true) } else { self.vacuum() };
        match done {
            // What was deleted may be worth giving back.
            Ok(go_on) => self.is_vacuuming = go_on,
            Err(error) => {
                tracing::warn!(%error, "deleting what was trimmed failed; it is tried again at the next trim");
                self.garbage.clear();
                self.is_vacuuming = false;
            }
        }
    }

    /// Gives some free pages back; false when there is nothing to be gained.
    fn vacuum(&self) -> rusqlite::Result<bool> {
        let (pages, free) = schema::pages(&self.db)?;
        if free <= pages / FREE_PART {
            return Ok(false);
        }
        let mut vacuum =
            self.db.prepare_cached(&format!("PRAGMA incremental_vacuum({VACUUM_STEP_PAGES})"))?;
        let mut steps = vacuum.query([])?;
        while steps.next()?.is_some() {}
        Ok(true)
    }
}

/// Deletes some records below their partition's start; a partition that has none left goes from the list.
fn delete_some(db: &Connection, garbage: &mut VecDeque<Arc<Partition>>) -> rusqlite::Result<()> {
    let Some(partition) = garbage.front() else { return Ok(()) };
    let start = partition.range().start;
    let first: Option<i64> = db.prepare_cached(&partition.sql.first)?.query_row([], |row| row.get(0))?;
    match first.filter(|first| *first < start) {
        Some(first) => {
            let below = start.min(first.saturating_add(DELETE_STEP_RECORDS));
            db.prepare_cached(&partition.sql.delete_below)?.execute([below])?;
        }
        None => drop(garbage.pop_front()),
    }
    Ok(())
}

struct CloseOnDrop(Arc<Shared>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.queue.close();
    }
}

/// What a file at its bound refuses. Trims, holds and fences always pass: they are the way out.
struct Full {
    also_commits: bool,
}

impl Full {
    fn stops(&self, work: &Work) -> bool {
        match work {
            Work::Append { .. } | Work::CreateTopics(_) => true,
            Work::Commit { .. } => self.also_commits,
            Work::Fence(_) | Work::Trim { .. } | Work::Expire { .. } | Work::Hold { .. } => false,
        }
    }
}

type Outcome = Result<i64, LogError>;

fn answer(order: Order, outcome: Outcome) {
    // Whoever asked may have gone; the outcome stands all the same.
    drop(order.answer.send(outcome));
}

/// A transaction in the making and what becomes visible with it.
struct Group<'a> {
    db: &'a Connection,
    shared: &'a Shared,
    now_ms: i64,

    staged: BTreeMap<i64, Staged>,
    created: Vec<Topic>,
    trimmed: Vec<(Arc<Partition>, i64)>,
    has_appends: bool,
    has_commits: bool,
    wal_bytes: u64,
}

/// A partition's new records.
struct Staged {
    partition: Arc<Partition>,
    end: i64,
    clock_ms: i64,
    records: Vec<Record>,
}

impl<'a> Group<'a> {
    fn new(db: &'a Connection, shared: &'a Shared) -> Self {
        Self {
            db,
            shared,
            now_ms: clock::wall_ms(),
            staged: BTreeMap::new(),
            created: Vec::new(),
            trimmed: Vec::new(),
            has_appends: false,
            has_commits: false,
            wal_bytes: 0,
        }
    }

    /// Writes all orders into an open transaction; each goes to `done` with its answer. An error is everyone's.
    fn run(&mut self, orders: Vec<Order>, done: &mut Vec<(Order, Outcome)>) -> Result<(), LogError> {
        let mut failed = self.db.execute_batch("BEGIN IMMEDIATE").err();
        for mut order in orders {
            let mut outcome = Ok(0);
            if failed.is_none() {
                self.wal_bytes += u64::try_from(order.bytes).unwrap_or(0);
                match self.perform(&mut order.work) {
                    Ok(result) => outcome = result,
                    Err(error) => failed = Some(error),
                }
            }
            done.push((order, outcome));
        }
        let Some(error) = failed else { return Ok(()) };
        self.roll_back();
        Err(not_written(&error))
    }

    /// Deletes a little of what was trimmed, while there is an fsync to share.
    fn delete_some(&self, garbage: &mut VecDeque<Arc<Partition>>) -> Result<(), LogError> {
        delete_some(self.db, garbage).map_err(|error| {
            self.roll_back();
            not_written(&error)
        })
    }

    fn perform(&mut self, work: &mut Work) -> rusqlite::Result<Outcome> {
        match work {
            Work::Append { partition, records } => {
                self.has_appends = true;
                let mut last = 0;
                for record in std::mem::take(records) {
                    last = self.insert(partition, record)?;
                }
                Ok(Ok(last))
            }
            Work::Commit { writer, epoch, records } => {
                self.has_commits = true;
                if self.epoch(writer)? != Some(*epoch) {
                    return Ok(Err(LogError::Fenced(format!("a later writer {writer} took over"))));
                }
                for (partition, record) in std::mem::take(records) {
                    self.insert(&partition, record)?;
                }
                Ok(Ok(0))
            }
            Work::Fence(writer) => self.fence(writer).map(Ok),
            Work::CreateTopics(specs) => self.create(specs),
            Work::Trim { partition, offset } => self.trim(partition, *offset).map(Ok),
            Work::Expire { partition, before_ms } => self.expire(partition, *before_ms).map(Ok),
            Work::Hold { holder, partition, offset } => self.hold(holder, partition, *offset).map(Ok),
        }
    }

    /// Writes one record at the partition's end and returns its offset.
    fn insert(&mut self, partition: &Arc<Partition>, record: NewRecord) -> rusqlite::Result<i64> {
        let staged = self.staged.entry(partition.id).or_insert_with(|| {
            let (end, clock_ms) = partition.next();
            let clock_ms = clock_ms.max(self.now_ms);
            Staged { partition: Arc::clone(partition), end, clock_ms, records: Vec::new() }
        });
        let NewRecord { key, value, headers, timestamp_ms: stamp_ms } = record;
        if partition.is_compacted {
            self.db.prepare_cached(&partition.sql.delete_key)?.execute([key.as_deref()])?;
            staged.records.retain(|earlier| earlier.key != key);
        }
        let (offset, clock_ms) = (staged.end, staged.clock_ms);
        self.db.prepare_cached(&partition.sql.insert)?.execute(params![
            offset,
            clock_ms,
            key.as_deref(),
            headers::encode(&headers, stamp_ms).as_deref(),
            value.as_deref()
        ])?;
        staged.end += 1;
        let timestamp_ms = stamp_ms.unwrap_or(clock_ms);
        staged.records.push(Record { offset, timestamp_ms, key, value, headers });
        Ok(offset)
    }

    fn epoch(&self, writer: &str) -> rusqlite::Result<Option<i64>> {
        let mut select = self.db.prepare_cached("SELECT epoch FROM writer WHERE id = ?1")?;
        select.query_row([writer], |row| row.get(0)).optional()
    }

    fn fence(&self, writer: &str) -> rusqlite::Result<i64> {
        let sql = "INSERT INTO writer (id, epoch) VALUES (?1, 1)
            ON CONFLICT (id) DO UPDATE SET epoch = epoch + 1 RETURNING epoch";
        self.db.prepare_cached(sql)?.query_row([writer], |row| row.get(0))
    }

    /// Checks all before it makes any, so that a refusal leaves nothing behind.
    fn create(&mut self, specs: &[TopicSpec]) -> rusqlite::Result<Outcome> {
        let mut missing: Vec<&TopicSpec> = Vec::new();
        for spec in specs {
            let made =
                self.created.iter().find(|topic| *topic.name == *spec.name).map(|t| t.partitions.len());
            let there = made.or_else(|| self.shared.topics.ranges(&spec.name).map(|ranges| ranges.len()));
            let asked = missing.iter().find(|earlier| earlier.name == spec.name);
            let there =
                there.or(asked.map(|earlier| usize::try_from(earlier.partitions).unwrap_or(usize::MAX)));
            match there {
                Some(there) if there >= usize::try_from(spec.partitions).unwrap_or(usize::MAX) => {}
                Some(there) => {
                    let TopicSpec { name, partitions, .. } = spec;
                    let text = format!("topic {name} has {there} partitions, not {partitions}");
                    return Ok(Err(LogError::Refused(text)));
                }
                None => match check(spec) {
                    Ok(()) => missing.push(spec),
                    Err(error) => return Ok(Err(error)),
                },
            }
        }
        for TopicSpec { name, partitions, retention, .. } in missing {
            let ids = schema::create_topic(self.db, name, *partitions, *retention)?;
            let name: Arc<str> = Arc::from(name.as_str());
            let is_compacted = *retention == Retention::LatestPerKey;
            let tail_bytes = self.shared.settings.tail_bytes;
            let partition = |(number, id)| {
                let at = Standing::default();
                Arc::new(Partition::new(id, Arc::clone(&name), number, is_compacted, tail_bytes, at))
            };
            let partitions = (0..).zip(ids).map(partition).collect();
            self.created.push(Topic { name: Arc::clone(&name), retention: *retention, partitions });
        }
        Ok(Ok(0))
    }

    /// Writes the new start, and with it the end and the holds that allowed it. The records go later, in steps.
    fn trim(&mut self, partition: &Arc<Partition>, offset: i64) -> rusqlite::Result<i64> {
        let end = self.staged.get(&partition.id).map_or_else(|| partition.range().end, |staged| staged.end);
        let (floor, holders) = {
            let holds = lock(&self.shared.holds);
            (holds.floor(partition.id).unwrap_or(end), holds.of(partition.id))
        };
        let start = offset.min(end).min(floor);
        if start > partition.range().start {
            let update = "UPDATE partition SET start = max(start, ?1), end = max(end, ?2) WHERE id = ?3";
            self.db.prepare_cached(update)?.execute([start, end, partition.id])?;
            for (holder, offset) in holders {
                self.write_hold(&holder, partition.id, Some(offset))?;
            }
            self.trimmed.push((Arc::clone(partition), start));
        }
        Ok(start)
    }

    fn expire(&mut self, partition: &Arc<Partition>, before_ms: i64) -> rusqlite::Result<i64> {
        let end = self.staged.get(&partition.id).map_or_else(|| partition.range().end, |staged| staged.end);
        let mut delete = self.db.prepare_cached(&partition.sql.delete_tombstones)?;
        if delete.execute([before_ms])? > 0 {
            let update = "UPDATE partition SET end = max(end, ?1) WHERE id = ?2";
            self.db.prepare_cached(update)?.execute([end, partition.id])?;
        }
        Ok(0)
    }

    fn hold(&self, holder: &str, partition: &Partition, offset: Option<i64>) -> rusqlite::Result<i64> {
        self.write_hold(holder, partition.id, offset)?;
        lock(&self.shared.holds).set(holder, partition.id, offset);
        Ok(0)
    }

    fn write_hold(&self, holder: &str, partition: i64, offset: Option<i64>) -> rusqlite::Result<()> {
        let sql = match offset {
            Some(_) => "INSERT OR REPLACE INTO hold (holder, partition, offset) VALUES (?1, ?2, ?3)",
            None => "DELETE FROM hold WHERE holder = ?1 AND partition = ?2 AND ?3 IS NULL",
        };
        self.db.prepare_cached(sql)?.execute(params![holder, partition, offset])?;
        Ok(())
    }

    /// Makes it durable.
    fn commit(&mut self) -> Result<(), LogError> {
        self.hit(self.has_appends, "embedded.append.before_commit");
        self.hit(self.has_commits, "embedded.commit.before");
        if let Err(error) = self.db.execute_batch("COMMIT") {
            self.roll_back();
            // A full disk shows before the frame that would make the transaction valid is written. Any other
            // failure may come after it: then a crash right now would find the transaction, and the next group,
            // which writes over that place, decides that it never was.
            return Err(match error.sqlite_error_code() {
                Some(rusqlite::ErrorCode::DiskFull) => not_written(&error),
                _ => LogError::Indefinite(error.to_string()),
            });
        }
        self.hit(self.has_appends, "embedded.append.after_commit");
        self.hit(self.has_commits, "embedded.commit.after");
        let touched = u64::try_from(self.staged.len() + self.trimmed.len()).unwrap_or(0);
        self.wal_bytes += touched * PAGE_BYTES;
        Ok(())
    }

    fn hit(&self, applies: bool, point: &str) {
        if applies {
            failpoint::hit(point);
        }
    }

    fn roll_back(&self) {
        if !self.db.is_autocommit()
            && let Err(error) = self.db.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "a transaction could not be rolled back");
        }
    }

    /// Shows everything at one instant, then tells those who wait, then those who asked.
    fn publish(self, done: Vec<(Order, Outcome)>) {
        let mut told = Vec::with_capacity(self.staged.len());
        let mut answers = Vec::with_capacity(done.len());
        {
            let mut topics = self.shared.topics.publish();
            for topic in self.created {
                topics.insert(Arc::clone(&topic.name), Arc::new(topic));
            }
            for (_, Staged { partition, end, clock_ms, records }) in self.staged {
                partition.publish(records, end, clock_ms);
                told.push(partition);
            }
            for (partition, start) in self.trimmed {
                partition.raise_start(start);
            }
            for (mut order, outcome) in done {
                order.under_way.clear();
                answers.push((order, outcome));
            }
        }
        for partition in told {
            partition.tell();
        }
        for (order, outcome) in answers {
            answer(order, outcome);
        }
    }
}
