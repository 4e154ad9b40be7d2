//! The publisher's readers: every partition of every sink topic, those that are added while it runs too, read as soon as
//! there is something to read.

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
/// How often to look whether a topic has more partitions.
const LOOK_EVERY: Duration = Duration::from_secs(2);

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
    Opened(Opened),
    Read(Feed, Result<ReadBatch, LogError>),
}

/// Partitions of a table that are read from now on.
struct Opened {
    table: Arc<Table>,
    serial: u64,
    feeds: Vec<Feed>,
    /// How many the topic has.
    partitions: usize,
}

/// A table that is read.
struct Open {
    table: Arc<Table>,
    serial: u64,
    /// How many partitions its topic has, as far as is known.
    partitions: usize,
}

/// All feeds. Each is in one of two states: being read (a future here), or in its holder's hands.
pub(super) struct Feeds {
    log: Arc<dyn Log>,
    open: HashMap<String, Open>,
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
            if known.is_some_and(|known| *known.table == table) {
                continue;
            }
            let same_topic = known.filter(|known| known.table.topic == table.topic);
            let same_topic = same_topic.map(|known| (known.serial, known.partitions));
            let (serial, partitions) = same_topic.unwrap_or_else(|| {
                self.next_serial += 1;
                (self.next_serial, 0)
            });
            let table = Arc::new(table);
            if same_topic.is_none() {
                let opening = open(Arc::clone(&self.log), Arc::clone(&table), serial, position(&table));
                self.running.push(opening.boxed());
            }
            self.open.insert(name, Open { table, serial, partitions });
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
        self.open.get(name).is_some_and(|current| current.serial == serial)
    }

    fn settle(&mut self, event: Event) -> Option<(Feed, ReadBatch)> {
        match event {
            Event::Opened(Opened { table, serial, feeds, partitions }) => {
                let current = self.open.get_mut(&table.name).filter(|current| current.serial == serial)?;
                current.partitions = partitions;
                feeds.into_iter().for_each(|feed| self.resume(feed));
                self.running.push(look_for_more(Arc::clone(&self.log), table, serial, partitions).boxed());
                None
            }
            Event::Read(feed, _) if !self.is_current(&feed.name, feed.serial) => None,
            Event::Read(mut feed, Ok(batch)) => {
                feed.next = batch.next;
                if let Some(current) = self.open.get(&*feed.name) {
                    feed.table = Arc::clone(&current.table);
                    feed.partitions = current.partitions;
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
        match try_open(log.as_ref(), &table, serial, 0, &positions).await {
            Ok(Some(feeds)) => {
                let partitions = feeds.len();
                return Event::Opened(Opened { table, serial, feeds, partitions });
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(table = %table.name, %error, "a sink cannot be read yet; trying again")
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Opens the partitions that come after those `known`, from their start; none most times.
async fn look_for_more(log: Arc<dyn Log>, table: Arc<Table>, serial: u64, known: usize) -> Event {
    tokio::time::sleep(LOOK_EVERY).await;
    let feeds = match try_open(log.as_ref(), &table, serial, known, &Positions::new()).await {
        Ok(feeds) => feeds.unwrap_or_default(),
        Err(error) => {
            tracing::warn!(table = %table.name, %error, "a sink cannot be asked for more partitions; trying again");
            Vec::new()
        }
    };
    let partitions = known + feeds.len();
    if !feeds.is_empty() {
        tracing::info!(table = %table.name, partitions, "a sink has more partitions");
    }
    Event::Opened(Opened { table, serial, feeds, partitions })
}

/// Opens the partitions from `first` on; `None` when there is no topic.
async fn try_open(
    log: &dyn Log,
    table: &Arc<Table>,
    serial: u64,
    first: usize,
    positions: &Positions,
) -> Result<Option<Vec<Feed>>, LogError> {
    let Some(ranges) = log.describe(&table.topic).await? else { return Ok(None) };
    let name: Arc<str> = table.name.as_str().into();
    let mut feeds = Vec::with_capacity(ranges.len().saturating_sub(first));
    for (partition, range) in (0_u32..).zip(&ranges).skip(first) {
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
