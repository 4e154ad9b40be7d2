//! A log that counts what is read of one topic, and keeps one writer waiting for as long as a test says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use emostream::log::{
    Log, LogError, NewRecord, PartitionRange, ReadBatch, Reader, Record, TopicSpec, Transaction, Writer,
};
use tokio::sync::watch;

/// A log and who looks at it.
pub(crate) struct Watched {
    log: Arc<dyn Log>,
    is_shared: bool,
    topic: String,
    read: Arc<AtomicUsize>,
    opened: AtomicUsize,
    /// The end of the id of the writer whose commits wait.
    held: watch::Sender<Option<String>>,
}

impl Watched {
    /// `is_shared` as of the real log; `topic` is the one that is counted.
    pub(crate) fn new(log: Arc<dyn Log>, is_shared: bool, topic: &str) -> Arc<Self> {
        let held = watch::Sender::new(None);
        let (read, opened) = (Arc::default(), AtomicUsize::new(0));
        Arc::new(Self { log, is_shared, topic: topic.to_owned(), read, opened, held })
    }

    /// Records of the topic that were read so far, by all readers together.
    pub(crate) fn read(&self) -> usize {
        self.read.load(Ordering::SeqCst)
    }

    /// Readers of the topic that were opened so far.
    pub(crate) fn opened(&self) -> usize {
        self.opened.load(Ordering::SeqCst)
    }

    /// Commits of this query wait from now on; `None`: of nobody.
    pub(crate) fn hold_commits_of(&self, query: Option<&str>) {
        self.held.send_replace(query.map(|query| format!(".{query}")));
    }
}

#[async_trait]
impl Log for Watched {
    fn is_shared(&self) -> bool {
        self.is_shared
    }

    async fn create_topics(&self, specs: &[TopicSpec]) -> Result<(), LogError> {
        self.log.create_topics(specs).await
    }

    async fn describe(&self, topic: &str) -> Result<Option<Vec<PartitionRange>>, LogError> {
        self.log.describe(topic).await
    }

    async fn append(&self, topic: &str, partition: u32, records: Vec<NewRecord>) -> Result<i64, LogError> {
        self.log.append(topic, partition, records).await
    }

    async fn reader(&self, topic: &str, partition: u32, offset: i64) -> Result<Box<dyn Reader>, LogError> {
        let reader = self.log.reader(topic, partition, offset).await?;
        if topic != self.topic {
            return Ok(reader);
        }
        self.opened.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(WatchedReader { reader, read: Arc::clone(&self.read) }))
    }

    async fn offset_at(&self, topic: &str, partition: u32, timestamp_ms: i64) -> Result<i64, LogError> {
        self.log.offset_at(topic, partition, timestamp_ms).await
    }

    async fn fence(&self, writer_id: &str) -> Result<Box<dyn Writer>, LogError> {
        let writer = self.log.fence(writer_id).await?;
        Ok(Box::new(WatchedWriter { writer, id: writer_id.to_owned(), held: self.held.subscribe() }))
    }

    async fn latest(&self, topic: &str) -> Result<BTreeMap<Bytes, Record>, LogError> {
        self.log.latest(topic).await
    }

    async fn trim(&self, topic: &str, partition: u32, offset: i64) -> Result<(), LogError> {
        self.log.trim(topic, partition, offset).await
    }

    async fn hold(
        &self,
        holder: &str,
        topic: &str,
        partition: u32,
        offset: Option<i64>,
    ) -> Result<(), LogError> {
        self.log.hold(holder, topic, partition, offset).await
    }
}

struct WatchedReader {
    reader: Box<dyn Reader>,
    read: Arc<AtomicUsize>,
}

#[async_trait]
impl Reader for WatchedReader {
    async fn read(&mut self, max_bytes: usize, wait: Duration) -> Result<ReadBatch, LogError> {
        let batch = self.reader.read(max_bytes, wait).await?;
        self.read.fetch_add(batch.records.len(), Ordering::SeqCst);
        Ok(batch)
    }
}

struct WatchedWriter {
    writer: Box<dyn Writer>,
    id: String,
    held: watch::Receiver<Option<String>>,
}

#[async_trait]
impl Writer for WatchedWriter {
    async fn commit(&mut self, transaction: Transaction) -> Result<(), LogError> {
        let Self { writer, id, held } = self;
        let is_free = |held: &Option<String>| held.as_ref().is_none_or(|held| !id.ends_with(held));
        held.wait_for(is_free).await.ok();
        writer.commit(transaction).await
    }
}
