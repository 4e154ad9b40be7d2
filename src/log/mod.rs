//! The log between the stages: durable, partitioned, append-only, transactional.
//!
//! Two implementations of one small trait: Apache Kafka and the embedded one. Both pass the same conformance
//! tests. The trait has what the stages need and no more.
//!
//! What a log promises:
//! - *Order*: offsets of one partition rise; a reader sees records in offset order. Offsets may have holes
//!   (Kafka's transaction markers take some), so nobody computes with them but `next`.
//! - *Durability*: what `append` or `commit` answered survives the process and, as far as the disk keeps its word
//!   about fsync, a power cut.
//! - *Atomicity*: readers see all records of a committed [`Transaction`] or none; those of a transaction that
//!   did not commit are never seen.
//! - *Fencing*: once `fence(id)` returned a writer, no earlier writer of that id commits anything any more.

pub mod codec;
pub mod embedded;
pub mod failpoint;
pub mod kafka;
pub mod program;
pub mod result_row;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

/// Header of a source record: how many rows its batch has, as decimal text.
pub const HEADER_ROWS: &str = "rows";
/// Header that names the encoding of a record's value.
pub const HEADER_CONTENT_TYPE: &str = "content-type";
/// The content type of Arrow IPC streams.
pub const ARROW_STREAM: &str = "application/vnd.apache.arrow.stream";
/// Header of a result record: the window's start, RFC 3339.
pub const HEADER_WINDOW_START: &str = "window-start";
/// Header of a result record: the window's end, RFC 3339.
pub const HEADER_WINDOW_END: &str = "window-end";
/// Header of a result record: `true` for the window's last word, `false` for an early result.
pub const HEADER_FINAL: &str = "final";
/// Header of a result record: the highest revision replaces the whole window; decimal, from 0.
pub const HEADER_REVISION: &str = "revision";
/// Header of a result record: how many rows this (table, room, window, revision) has over all partitions; decimal.
pub const HEADER_WINDOW_ROWS: &str = "window-rows";

/// The topic that holds the running program: tables, queries, versions. Compacted, one partition.
pub const TOPIC_PROGRAM: &str = "emostream.program";
/// The topic that holds checkpoints by query name. Compacted, one partition.
pub const TOPIC_CHECKPOINTS: &str = "emostream.checkpoints";
/// The publisher's ordered messages. One partition.
pub const TOPIC_LIVE: &str = "emostream.live";
/// Heartbeats of clusters and subscribers. Compacted, one partition.
pub const TOPIC_MEMBERS: &str = "emostream.members";
/// Registered HTTP endpoints, where each is served and what it has. Compacted, one partition.
pub const TOPIC_REGISTRATIONS: &str = "emostream.registrations";

/// Records that could not be read, kept for inspection. One partition.
pub const TOPIC_BAD: &str = "emostream.bad";

/// The topic of rows that came too late for their window, of a table with `late_rows = 'table'` on that topic.
pub fn late_topic(topic: &str) -> String {
    format!("{topic}_late")
}

/// The topic whose one partition is a lease: `emostream.lease` is the engine's, others carry their name.
pub fn lease_topic(name: &str) -> String {
    if name == "engine" { "emostream.lease".to_owned() } else { format!("emostream.lease.{name}") }
}

/// The topic of one cluster's copy of [`TOPIC_LIVE`]. One partition.
pub fn cluster_topic(cluster: &str) -> String {
    format!("emostream.cluster.{cluster}")
}

/// A record's headers, in order; names may repeat.
pub type Headers = Vec<(Cow<'static, str>, Bytes)>;

/// The name of a header; those named above are not copied.
pub fn header_name(name: &str) -> Cow<'static, str> {
    const KNOWN: [&str; 7] = [
        HEADER_ROWS,
        HEADER_CONTENT_TYPE,
        HEADER_WINDOW_START,
        HEADER_WINDOW_END,
        HEADER_FINAL,
        HEADER_REVISION,
        HEADER_WINDOW_ROWS,
    ];
    let known = KNOWN.into_iter().find(|known| *known == name);
    known.map_or_else(|| Cow::Owned(name.to_owned()), Cow::Borrowed)
}

/// A record to be written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NewRecord {
    /// For compacted topics the identity; else free.
    pub key: Option<Bytes>,
    /// `None` is a tombstone: on a compacted topic it removes the key.
    pub value: Option<Bytes>,
    /// See [`Headers`].
    pub headers: Headers,
    /// What the record is stamped with, milliseconds since the Unix epoch, where the topic does not say
    /// [`TopicSpec::log_append_time`]; `None`: when it is written.
    pub timestamp_ms: Option<i64>,
}

impl NewRecord {
    /// A record of a compacted topic; without a value it removes the key.
    pub fn keyed(key: impl Into<Bytes>, value: Option<Bytes>) -> Self {
        Self { key: Some(key.into()), value, ..Self::default() }
    }

    /// Adds a header with a text value.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((header_name(name), Bytes::from(value.into())));
        self
    }
}

/// A record as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Its place in the partition.
    pub offset: i64,
    /// When it was written, milliseconds since the Unix epoch: the writer's clock, or the log's (see [`TopicSpec`]).
    pub timestamp_ms: i64,
    /// See [`NewRecord::key`].
    pub key: Option<Bytes>,
    /// See [`NewRecord::value`].
    pub value: Option<Bytes>,
    /// See [`Headers`].
    pub headers: Headers,
}

impl Record {
    /// The first header of that name, when it is UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(header, _)| header == name)?;
        std::str::from_utf8(value).ok()
    }
}

/// A topic to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    /// Letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// At least one.
    pub partitions: u32,
    /// What is kept.
    pub retention: Retention,
    /// Kafka: whose clock stamps the records. True: the broker's (`LogAppendTime`), false: the writer's.
    /// Embedded: the writer thread's clock, unless a record brings a stamp of its own.
    pub log_append_time: bool,
}

/// What a topic keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// Records younger than this.
    Age(Duration),
    /// The newest record of every key, for ever.
    LatestPerKey,
}

/// The offsets of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionRange {
    /// The first offset still there.
    pub start: i64,
    /// The offset the next record would take at the earliest; what is below is committed or aborted.
    pub end: i64,
}

/// What one read brought.
#[derive(Clone, Debug, Default)]
pub struct ReadBatch {
    /// In offset order; empty when nothing came within the wait.
    pub records: Vec<Record>,
    /// The offset from which the next read goes on.
    pub next: i64,
    /// Proof of having reached the end: when `Some(t)`, every record that was appended to this partition before
    /// wall-clock time `t` (milliseconds) has been returned by this reader. `None` where that cannot be said:
    /// records follow, a write is under way, or the broker does not answer.
    pub complete_until_ms: Option<i64>,
}

/// A consumer group's positions: group → (topic, partition, next offset).
pub type Consumed = (String, Vec<(String, u32, i64)>);

/// What is written atomically.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    /// Topic, partition and record; in order within a partition.
    pub records: Vec<(String, u32, NewRecord)>,
    /// Kafka: positions for lag tools, by group. Embedded: ignored.
    pub consumed: Vec<Consumed>,
}

/// What went wrong, by what the caller must do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    /// Nothing was written; try again later. Full disk, busy broker, time-out before anything began.
    #[error("the log is not available: {0}")]
    Unavailable(String),
    /// A write began and its end is not known. A writer must be fenced anew and the log read before going on.
    #[error("the outcome of a write is not known: {0}")]
    Indefinite(String),
    /// Another writer of the same id took over. Stop; do not fence again without being told to.
    #[error("fenced: {0}")]
    Fenced(String),
    /// The offset asked for is no longer there.
    #[error("offset {asked} of {topic}/{partition} is gone; the log starts at {start}")]
    OffsetGone {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// The offset asked for.
        asked: i64,
        /// The first one there.
        start: i64,
    },
    /// No such topic or partition.
    #[error("no topic or partition {0}")]
    UnknownTopic(String),
    /// The request can never succeed: a record too large, a topic that exists with other partitions, a damaged file.
    #[error("{0}")]
    Refused(String),
}

/// librdkafka properties of one client besides the log's own, by name.
pub type ClientConfigs = BTreeMap<String, String>;

/// A durable, partitioned, append-only, transactional store.
#[async_trait]
pub trait Log: Send + Sync + 'static {
    /// Whether other processes append to it too, so that what they are about to append cannot be seen from here.
    fn is_shared(&self) -> bool {
        false
    }

    /// Creates the topics that do not exist. One that exists with at least as many partitions is left as it is.
    async fn create_topics(&self, specs: &[TopicSpec]) -> Result<(), LogError>;

    /// The ranges of a topic's partitions, by partition; `None` when there is no such topic.
    async fn describe(&self, topic: &str) -> Result<Option<Vec<PartitionRange>>, LogError>;

    /// Appends to one partition, durably and in order, outside of any transaction. Returns the last offset.
    /// Bounded: waits while the log is busy, at most its own write time-out; then `Unavailable` when nothing was
    /// written, `Indefinite` when that is not known.
    async fn append(&self, topic: &str, partition: u32, records: Vec<NewRecord>) -> Result<i64, LogError>;

    /// Says that rows received at that wall-clock time are about to be appended to the topic, until the answer is
    /// dropped: no [`ReadBatch::complete_until_ms`] goes past them. A shared log cannot know of what waits in other
    /// processes and does nothing; there only the table's delay covers it.
    fn announce(&self, _topic: &str, _received_ms: i64) -> Box<dyn Send + Sync> {
        Box::new(())
    }

    /// A reader of one partition from `offset` on (inclusive), of committed records only.
    async fn reader(&self, topic: &str, partition: u32, offset: i64) -> Result<Box<dyn Reader>, LogError>;

    /// As [`Log::reader`], by a client with these properties. The embedded log has no clients: there they mean nothing.
    async fn reader_with(
        &self,
        topic: &str,
        partition: u32,
        offset: i64,
        _configs: &ClientConfigs,
    ) -> Result<Box<dyn Reader>, LogError> {
        self.reader(topic, partition, offset).await
    }

    /// The next offsets that a consumer group has committed, by partition. The embedded log keeps none.
    async fn committed(&self, _group: &str, _topic: &str) -> Result<BTreeMap<u32, i64>, LogError> {
        Ok(BTreeMap::new())
    }

    /// The first offset still there whose record is stamped at or after that time; the end when there is none. What
    /// lies before it is stamped earlier.
    async fn offset_at(&self, topic: &str, partition: u32, timestamp_ms: i64) -> Result<i64, LogError>;

    /// Fences every earlier writer of that id, waits until what it left open is decided, and returns a new one.
    async fn fence(&self, writer_id: &str) -> Result<Box<dyn Writer>, LogError>;

    /// As [`Log::fence`], by a client with these properties, as [`Log::reader_with`].
    async fn fence_with(
        &self,
        writer_id: &str,
        _configs: &ClientConfigs,
    ) -> Result<Box<dyn Writer>, LogError> {
        self.fence(writer_id).await
    }

    /// A lease of that name: of all processes that ask for it, one holds it. It only says who is to try; what makes two
    /// of them safe is fencing. A log of one process has nobody to ask, and the lease is held at once.
    async fn lease(&self, _name: &str) -> Result<Arc<dyn Lease>, LogError> {
        Ok(alone())
    }

    /// The newest committed record of every key of a compacted topic (without tombstones), including everything
    /// that was committed before the call.
    async fn latest(&self, topic: &str) -> Result<BTreeMap<Bytes, Record>, LogError>;

    /// As [`Log::latest`], for who wants one key of a topic whose values may be more than fits: only the record of that key
    /// has its value.
    async fn latest_of(&self, topic: &str, key: &[u8]) -> Result<BTreeMap<Bytes, Record>, LogError> {
        let mut latest = self.latest(topic).await?;
        latest.iter_mut().filter(|(of, _)| *of != key).for_each(|(_, record)| record.value = None);
        Ok(latest)
    }

    /// Removes records below `offset` from a partition. Kafka may leave this to its retention.
    async fn trim(&self, topic: &str, partition: u32, offset: i64) -> Result<(), LogError>;

    /// Says that `holder` still needs the records of a partition from `offset` on: until it says otherwise, also
    /// across restarts, neither retention nor [`Log::trim`] passes them. `None` ends the hold. Cheap to repeat at
    /// every commit. Kafka does not do this: there only retention long enough keeps what is needed.
    async fn hold(
        &self,
        _holder: &str,
        _topic: &str,
        _partition: u32,
        _offset: Option<i64>,
    ) -> Result<(), LogError> {
        Ok(())
    }
}

/// One process's part in a lease.
#[async_trait]
pub trait Lease: Send + Sync {
    /// Whether this process holds it, as far as it can know: false also for one that stood still for so long that
    /// another may have it.
    fn is_held(&self) -> bool;

    /// Ends when this process holds it.
    async fn held(&self);

    /// Ends when this process does not hold it (any more).
    async fn lost(&self);

    /// Gives it up for good, so that another process has it at once.
    async fn release(&self);
}

/// The lease of a process that is alone: always held.
pub fn alone() -> Arc<dyn Lease> {
    Arc::new(Alone)
}

struct Alone;

#[async_trait]
impl Lease for Alone {
    fn is_held(&self) -> bool {
        true
    }

    async fn held(&self) {}

    async fn lost(&self) {
        std::future::pending().await
    }

    async fn release(&self) {}
}

/// Reads one partition in order.
#[async_trait]
pub trait Reader: Send {
    /// The next records, at most about `max_bytes` of values (at least one record when there is one). Waits up to
    /// `wait` for the first; returns as soon as there is any. Cancel-safe: a dropped read loses nothing.
    async fn read(&mut self, max_bytes: usize, wait: Duration) -> Result<ReadBatch, LogError>;
}

/// Commits transactions, one at a time, as the only live writer of its id.
#[async_trait]
pub trait Writer: Send {
    /// Writes all of it or nothing, durably. After `Indefinite` or `Fenced` this writer is dead.
    async fn commit(&mut self, transaction: Transaction) -> Result<(), LogError>;
}
