//! The publisher: committed windows of all sinks, in one order, each exactly once, on `emostream.live`.
//!
//! A thin loop around [`Sequencer`]: read what came, commit what is whole, read on. It guarantees that no window is
//! lost and none published twice across crashes of this process and failures of the log; it does not choose who
//! publishes ([`super::standby`] does): the last one that starts fences those before it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use super::feeds::{Feed, Feeds, Positions};
use super::sequence::{Checkpoint, Commit, Sequencer, WRITER_ID};
use crate::clock;
use crate::log::program::{ProgramView, system_topics};
use crate::log::result_row::{self, LIVE_COLUMNS, is_of_window};
use crate::log::{
    Lease, Log, LogError, ReadBatch, TOPIC_CHECKPOINTS, TOPIC_LIVE, Transaction, Writer, failpoint,
};
use crate::reaction::live::MAX_ROOM_BYTES;
use crate::reaction::table::Table;
use crate::shutdown::Tasks;

/// Bytes of rows in windows not yet told, above which partitions that are ahead wait for those behind.
const MAX_GATHERED_BYTES: usize = 64 << 20;
/// How long to wait before the log is tried again: from, to.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// The sequencer's process.
pub struct Publisher {
    log: Arc<dyn Log>,
    program: watch::Receiver<Arc<ProgramView>>,
    recovered: AtomicBool,
    /// Another process puts windows into order.
    stands_by: AtomicBool,
}

impl Publisher {
    /// Publishes the sinks of that program; [`Publisher::run`] does it.
    pub fn new(log: Arc<dyn Log>, program: watch::Receiver<Arc<ProgramView>>) -> Arc<Self> {
        Arc::new(Self { log, program, recovered: AtomicBool::new(false), stands_by: AtomicBool::new(false) })
    }

    /// Publishes until the tasks stop.
    ///
    /// # Errors
    /// `Fenced`: another publisher took over, or the lease is lost, and this process must stop publishing.
    pub async fn run(&self, lease: &dyn Lease, tasks: &Tasks) -> Result<(), LogError> {
        let stop = tasks.token();
        let mut pause = RETRY.0;
        loop {
            let Some(ended) = stop.run_until_cancelled(self.session(lease)).await else { return Ok(()) };
            let was_recovered = self.recovered.swap(false, Ordering::Relaxed);
            match ended {
                Err(error @ LogError::Fenced(_)) => return Err(error),
                Err(LogError::Indefinite(error)) => {
                    tracing::warn!(error, "a commit's outcome is not known; recovering from the checkpoint");
                }
                Err(error) => {
                    pause = if was_recovered { RETRY.0 } else { (pause * 2).min(RETRY.1) };
                    tracing::error!(%error, "publishing stopped; trying again");
                    stop.run_until_cancelled(tokio::time::sleep(pause)).await;
                }
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Says that another process puts windows into order, or that this one is to.
    pub(super) fn stand_by(&self, stands_by: bool) {
        self.stands_by.store(stands_by, Ordering::Relaxed);
    }

    /// Whether another process puts windows into order.
    pub fn stands_by(&self) -> bool {
        self.stands_by.load(Ordering::Relaxed)
    }

    /// Whether it stands by, or has recovered and publishes; otherwise what it waits for.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn ready(&self) -> Result<(), String> {
        if self.stands_by() || self.recovered.load(Ordering::Relaxed) {
            Ok(())
        } else {
            Err("has not read its checkpoint yet".to_owned())
        }
    }

    /// From fencing to the first failure; ends without one when the program's owner is gone.
    async fn session(&self, lease: &dyn Lease) -> Result<(), LogError> {
        self.log.create_topics(&system_topics()).await?;
        if !lease.is_held() {
            return Err(LogError::Fenced("this process does not hold the lease".to_owned()));
        }
        let mut writer = self.log.fence(WRITER_ID).await?;
        let mut sequencer = recover(self.log.as_ref()).await?;
        let mut program = self.program.clone();
        let mut feeds = Feeds::new(Arc::clone(&self.log));
        self.follow_tables(&mut feeds, &mut sequencer, &mut program).await;
        self.recovered.store(true, Ordering::Relaxed);
        let mut ends = Ends::default();
        loop {
            let mut in_hand = Vec::new();
            tokio::select! {
                changed = program.changed() => match changed {
                    Ok(()) => self.follow_tables(&mut feeds, &mut sequencer, &mut program).await,
                    Err(_) => return Ok(()),
                },
                read = feeds.next() => in_hand.push(self.take(&mut sequencer, &mut ends, read)),
            }
            while let Some(read) = feeds.next_now() {
                in_hand.push(self.take(&mut sequencer, &mut ends, read));
            }
            self.publish(writer.as_mut(), &mut sequencer).await?;
            ends.report_lost(&mut sequencer);
            ends.release(in_hand, &mut feeds, sequencer.gather.bytes() > MAX_GATHERED_BYTES);
        }
    }

    /// Reads the program's sinks and no others.
    async fn follow_tables(
        &self,
        feeds: &mut Feeds,
        sequencer: &mut Sequencer,
        program: &mut watch::Receiver<Arc<ProgramView>>,
    ) {
        let program = Arc::clone(&program.borrow_and_update());
        feeds.set_tables(program.result_tables().cloned(), |table: &Table| -> Positions {
            sequencer.position(&table.name, &table.topic).map(|at| at.resume.clone()).unwrap_or_default()
        });
        // Where a removed table stood stays known, should it come back; its records are no longer needed.
        for (_, at) in sequencer.positions().filter(|(table, _)| !program.tables.contains_key(*table)) {
            for &partition in at.resume.keys() {
                self.hold(&at.topic, partition, None).await;
            }
        }
    }

    /// Commits whole windows until none is left.
    async fn publish(&self, writer: &mut dyn Writer, sequencer: &mut Sequencer) -> Result<(), LogError> {
        while let Some(commit) = sequencer.commit().map_err(|error| LogError::Refused(error.to_string()))? {
            let Commit { transaction, messages, too_long } = commit;
            failpoint::hit("publish.commit.before");
            commit_patiently(writer, &transaction).await?;
            failpoint::hit("publish.commit.after");
            metrics::counter!("emostream_publish_windows_total").increment(messages as u64);
            for (window, bytes) in too_long {
                metrics::counter!("emostream_publish_too_long_total").increment(1);
                tracing::error!(
                    ?window,
                    bytes,
                    "a window is too long for a live message; it is in the results only"
                );
            }
            for (topic, partition, resume) in transaction.consumed.into_iter().flat_map(|(_, at)| at) {
                self.hold(&topic, partition, Some(resume)).await;
            }
        }
        Ok(())
    }

    /// Keeps what is not published yet from retention, where the log can.
    async fn hold(&self, topic: &str, partition: u32, offset: Option<i64>) {
        if let Err(error) = self.log.hold(WRITER_ID, topic, partition, offset).await {
            tracing::warn!(topic, partition, %error, "the log was not told which results are still needed");
        }
    }

    fn take(&self, sequencer: &mut Sequencer, ends: &mut Ends, (feed, batch): (Feed, ReadBatch)) -> Feed {
        let now_ms = clock::wall_ms();
        let mut newest_window = None;
        for record in batch.records.iter().filter(|record| is_of_window(&feed.table, record)) {
            match result_row::read(&feed.table, record, &LIVE_COLUMNS) {
                Ok(rows) => {
                    for row in rows {
                        newest_window = newest_window.max(Some(row.window.end));
                        if row.room.len() > MAX_ROOM_BYTES {
                            metrics::counter!("emostream_publish_long_rooms_total").increment(1);
                            let (table, offset, bytes) = (&feed.name, record.offset, row.room.len());
                            tracing::warn!(%table, offset, bytes, "a room's name is too long to be asked for; not shown live");
                            continue;
                        }
                        sequencer.gather.add(&feed.name, feed.partition, record.offset, row, now_ms);
                    }
                }
                Err(error) => {
                    metrics::counter!("emostream_publish_unusable_records_total").increment(1);
                    let (table, partition, offset) = (&feed.name, feed.partition, record.offset);
                    tracing::warn!(%table, partition, offset, error, "a result belongs to no window; not shown live");
                }
            }
        }
        sequencer.gather.advance(&feed.name, feed.partition, batch.next);
        ends.note(&feed, newest_window, batch.complete_until_ms);
        feed
    }
}

/// The checkpoint, or a new history. After the fence nothing changes it any more.
async fn recover(log: &dyn Log) -> Result<Sequencer, LogError> {
    let mut checkpoints = log.latest(TOPIC_CHECKPOINTS).await?;
    let stored = checkpoints.remove(WRITER_ID.as_bytes()).and_then(|record| record.value);
    if let Some(value) = stored {
        let checkpoint: Checkpoint = serde_json::from_slice(&value).map_err(|error| {
            LogError::Refused(format!("the publisher's checkpoint is not readable: {error}"))
        })?;
        let sequencer = Sequencer::restore(checkpoint);
        tracing::info!(next = %sequencer.next_id(), "the publisher goes on");
        return Ok(sequencer);
    }
    // Seconds, so that epochs rise from one history to the next though nothing remembers the last one.
    let epoch = u64::try_from(clock::wall_ms() / 1000).unwrap_or(1);
    tracing::info!(epoch, "the publisher begins a new history");
    Ok(Sequencer::new(epoch))
}

/// `Unavailable` means that nothing was written: the same transaction is tried again until the log takes it.
async fn commit_patiently(writer: &mut dyn Writer, transaction: &Transaction) -> Result<(), LogError> {
    let mut pause = RETRY.0;
    loop {
        match writer.commit(transaction.clone()).await {
            Err(LogError::Unavailable(error)) => {
                tracing::warn!(error, topic = TOPIC_LIVE, "windows wait for the log");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY.1);
            }
            other => return other,
        }
    }
}

/// How far every partition was read.
#[derive(Default)]
struct Ends {
    partitions: BTreeMap<(Arc<str>, u32), End>,
    counts: BTreeMap<Arc<str>, usize>,
    held: Vec<Feed>,
}

struct End {
    /// The latest window end read last; `None` at the partition's end, where nothing is ahead of anything.
    window: Option<i64>,
    complete_until_ms: Option<i64>,
}

impl Ends {
    fn note(&mut self, feed: &Feed, window: Option<i64>, complete_until_ms: Option<i64>) {
        self.counts.insert(Arc::clone(&feed.name), feed.partitions);
        self.partitions.insert((Arc::clone(&feed.name), feed.partition), End { window, complete_until_ms });
    }

    /// Up to which time every partition of a table was read completely.
    fn complete_until(&self, table: &str) -> Option<i64> {
        let mut read = 0;
        let mut until = i64::MAX;
        for (_, end) in self.partitions.iter().filter(|((name, _), _)| &**name == table) {
            until = until.min(end.complete_until_ms?);
            read += 1;
        }
        (self.counts.get(table) == Some(&read)).then_some(until)
    }

    fn report_lost(&self, sequencer: &mut Sequencer) {
        if !sequencer.gather.is_waiting() {
            return;
        }
        for lost in sequencer.gather.give_up(|table| self.complete_until(table)) {
            metrics::counter!("emostream_publish_incomplete_windows_total").increment(1);
            tracing::error!(window = ?lost.key, rows = lost.rows, expected = lost.expected,
                "a window lacks rows that the log no longer holds; it is not shown live");
        }
    }

    /// Lets feeds read on. When too much is gathered, only those that are not ahead of others of their table: the
    /// rows that are missing are there.
    fn release(&mut self, in_hand: Vec<Feed>, feeds: &mut Feeds, is_full: bool) {
        self.held.extend(in_hand);
        for feed in std::mem::take(&mut self.held) {
            if is_full && self.is_ahead(&feed) {
                self.held.push(feed);
            } else {
                feeds.resume(feed);
            }
        }
    }

    fn is_ahead(&self, feed: &Feed) -> bool {
        let of_table = self.partitions.iter().filter(|((table, _), _)| *table == feed.name);
        let behind = of_table.filter_map(|(_, end)| end.window).min();
        let own = self.partitions.get(&(Arc::clone(&feed.name), feed.partition)).and_then(|end| end.window);
        own.zip(behind).is_some_and(|(own, behind)| own > behind)
    }
}
