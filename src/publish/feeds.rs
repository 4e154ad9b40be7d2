//! The publisher's readers: every partition of every sink topic, read as soon as there is something to read.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};

use super::sequence::WRITER_ID;
use crate::log::{Log, LogError, ReadBatch, Reader};
use crate::reaction::table::Table;

/// Bytes of one read, about.
const READ_BYTES: usize = 1 << 20;
/// How long one read waits for records. It returns at once when some come; the bound only lets ends be noticed.
const READ_WAIT: Duration = Duration::from_secs(2);
/// How often a sink's topic that does not exist yet is looked for, and a failed read is tried again.
const RETRY: Duration = Duration::from_millis(250);

/// A partition being read.
pub(super) struct Feed {
    /// The sink.
    pub table: Arc<Table>,
    /// Its name, shared.
    pub name: Arc<str>,
    /// Which partition.
    pub partition: u32,
    /// How many partitions the topic has.
    pub partitions: usize,
    serial: u64,
    next: i64,
    reader: Box<dyn Reader>,
}

/// Where a table is read from, by partition; a partition that is missing, from its start.
pub(super) type Positions = BTreeMap<u32, i64>;

enum Event {
    Opened(Vec<Feed>),
    Read(Feed, Result<ReadBatch, LogError>),
}

/// All feeds. Each is in one of two states: being read (a future here), or in its holder's hands.
pub(super) struct Feeds {
    log: Arc<dyn Log>,
    open: HashMap<String, (Arc<Table>, u64)>,
    next_serial: u64,
    running: FuturesUnordered<BoxFuture<'static, Event>>,
}

impl Feeds {
    /// No feed yet.
    pub(super) fn new(log: Arc<dyn Log>) -> Self {
        Self { log, open: HashMap::new(), next_serial: 0, running: FuturesUnordered::new() }
    }

    /// Reads these tables and no others. `position` says where to begin one that is not read yet.
    pub(super) fn set_tables(
        &mut self,
        tables: impl IntoIterator<Item = Table>,
        mut position: impl FnMut(&Table) -> Positions,
    ) {
        let wanted: BTreeMap<String, Table> =
            tables.into_iter().map(|table| (table.name.clone(), table)).collect();
        self.open.retain(|name, _| wanted.contains_key(name));
        for (name, table) in wanted {
            let known = self.open.get(&name);
            if known.is_some_and(|(known, _)| **known == table) {
                continue;
            }
            let same_topic = known.filter(|(known, _)| known.topic == table.topic).map(|(_, serial)| *serial);
            let serial = same_topic.unwrap_or_else(|| {
                self.next_serial += 1;
                self.next_serial
            });
            let table = Arc::new(table);
            if same_topic.is_none() {
                let opening = open(Arc::clone(&self.log), Arc::clone(&table), serial, position(&table));
                self.running.push(opening.boxed());
            }
            self.open.insert(name, (table, serial));
        }
    }

    /// The next read that brought something. Waits for ever when there is no feed. Hand the feed back with
    /// [`Feeds::resume`], or its partition is read no further.
    pub(super) async fn next(&mut self) -> (Feed, ReadBatch) {
        loop {
            match self.running.next().await {
                None => std::future::pending().await,
                Some(event) => {
                    if let Some(read) = self.settle(event) {
                        return read;
                    }
                }
            }
        }
    }

    /// The next read that has already ended, if any.
    pub(super) fn next_now(&mut self) -> Option<(Feed, ReadBatch)> {
        while let Some(Some(event)) = self.running.next().now_or_never() {
            if let Some(read) = self.settle(event) {
                return Some(read);
            }
        }
        None
    }

    /// Reads on.
    pub(super) fn resume(&mut self, feed: Feed) {
        if self.is_current(&feed.name, feed.serial) {
            self.running.push(read(feed).boxed());
        }
    }

    fn is_current(&self, name: &str, serial: u64) -> bool {
        self.open.get(name).is_some_and(|(_, current)| *current == serial)
    }

    fn settle(&mut self, event: Event) -> Option<(Feed, ReadBatch)> {
        match event {
            Event::Opened(feeds) => {
                feeds.into_iter().for_each(|feed| self.resume(feed));
                None
            }
            Event::Read(feed, _) if !self.is_current(&feed.name, feed.serial) => None,
            Event::Read(mut feed, Ok(batch)) => {
                feed.next = batch.next;
                if let Some((table, _)) = self.open.get(&*feed.name) {
                    feed.table = Arc::clone(table);
                }
                Some((feed, batch))
            }
            Event::Read(feed, Err(error)) => {
                self.running.push(reopen(Arc::clone(&self.log), feed, error).boxed());
                None
            }
        }
    }
}

async fn read(mut feed: Feed) -> Event {
    let result = feed.reader.read(READ_BYTES, READ_WAIT).await;
    Event::Read(feed, result)
}

/// Opens every partition; waits while the topic does not exist or the log is not available.
async fn open(log: Arc<dyn Log>, table: Arc<Table>, serial: u64, positions: Positions) -> Event {
    loop {
        match try_open(log.as_ref(), &table, serial, &positions).await {
            Ok(Some(feeds)) => return Event::Opened(feeds),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(table = %table.name, %error, "a sink cannot be read yet; trying again")
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn try_open(
    log: &dyn Log,
    table: &Arc<Table>,
    serial: u64,
    positions: &Positions,
) -> Result<Option<Vec<Feed>>, LogError> {
    let Some(ranges) = log.describe(&table.topic).await? else { return Ok(None) };
    let name: Arc<str> = table.name.as_str().into();
    let mut feeds = Vec::with_capacity(ranges.len());
    for (partition, range) in (0_u32..).zip(&ranges) {
        let next = match positions.get(&partition) {
            None => range.start,
            Some(&resume) if (range.start..=range.end).contains(&resume) => resume,
            Some(&resume) => {
                tracing::error!(
                    table = %table.name, partition, resume, start = range.start, end = range.end,
                    "windows are lost to live viewers: the log no longer holds the position to go on from"
                );
                range.start
            }
        };
        // Before anything is published, so that retention never gets ahead of what is not.
        log.hold(WRITER_ID, &table.topic, partition, Some(next)).await?;
        let reader = log.reader(&table.topic, partition, next).await?;
        let (table, name) = (Arc::clone(table), Arc::clone(&name));
        feeds.push(Feed { table, name, partition, partitions: ranges.len(), serial, next, reader });
    }
    Ok(Some(feeds))
}

async fn reopen(log: Arc<dyn Log>, mut feed: Feed, error: LogError) -> Event {
    let (table, partition) = (Arc::clone(&feed.name), feed.partition);
    if let LogError::OffsetGone { asked, start, .. } = error {
        tracing::error!(%table, partition, asked, start, "windows are lost to live viewers: the log was trimmed");
        feed.next = start;
    } else {
        tracing::warn!(%table, partition, %error, "a sink cannot be read; trying again");
        tokio::time::sleep(RETRY).await;
    }
    match log.reader(&feed.table.topic, partition, feed.next).await {
        Ok(reader) => {
            feed.reader = reader;
            read(feed).await
        }
        Err(error) => Event::Read(feed, Err(error)),
    }
}
