//! A log of its own for one test, within a log that others use at the same time: every topic and every writer id
//! gets a prefix.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use emostream::log::{
    Log, LogError, NewRecord, PartitionRange, Reader, Record, TopicSpec, Transaction, Writer,
};

/// The log under the prefix.
pub(crate) struct Scoped {
    log: Arc<dyn Log>,
    prefix: String,
}

impl Scoped {
    /// `prefix` must be fit for a topic's name, and fresh.
    pub(crate) fn new(log: Arc<dyn Log>, prefix: String) -> Arc<Self> {
        Arc::new(Self { log, prefix })
    }

    fn name(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }
}

#[async_trait]
impl Log for Scoped {
    async fn create_topics(&self, specs: &[TopicSpec]) -> Result<(), LogError> {
        let scoped = |spec: &TopicSpec| TopicSpec { name: self.name(&spec.name), ..spec.clone() };
        self.log.create_topics(&specs.iter().map(scoped).collect::<Vec<_>>()).await
    }

    async fn describe(&self, topic: &str) -> Result<Option<Vec<PartitionRange>>, LogError> {
        self.log.describe(&self.name(topic)).await
    }

    async fn append(&self, topic: &str, partition: u32, records: Vec<NewRecord>) -> Result<i64, LogError> {
        self.log.append(&self.name(topic), partition, records).await
    }

    async fn reader(&self, topic: &str, partition: u32, offset: i64) -> Result<Box<dyn Reader>, LogError> {
        self.log.reader(&self.name(topic), partition, offset).await
    }

    async fn offset_at(&self, topic: &str, partition: u32, timestamp_ms: i64) -> Result<i64, LogError> {
        self.log.offset_at(&self.name(topic), partition, timestamp_ms).await
    }

    async fn fence(&self, writer_id: &str) -> Result<Box<dyn Writer>, LogError> {
        let writer = self.log.fence(&self.name(writer_id)).await?;
        Ok(Box::new(ScopedWriter { writer, prefix: self.prefix.clone() }))
    }

    async fn latest(&self, topic: &str) -> Result<BTreeMap<Bytes, Record>, LogError> {
        self.log.latest(&self.name(topic)).await
    }

    async fn trim(&self, topic: &str, partition: u32, offset: i64) -> Result<(), LogError> {
        self.log.trim(&self.name(topic), partition, offset).await
    }

    async fn hold(
        &self,
        holder: &str,
        topic: &str,
        partition: u32,
        offset: Option<i64>,
    ) -> Result<(), LogError> {
        self.log.hold(&self.name(holder), &self.name(topic), partition, offset).await
    }
}

struct ScopedWriter {
    writer: Box<dyn Writer>,
    prefix: String,
}

#[async_trait]
impl Writer for ScopedWriter {
    async fn commit(&mut self, transaction: Transaction) -> Result<(), LogError> {
        let name = |topic: String| format!("{}.{topic}", self.prefix);
        let records = transaction.records.into_iter().map(|(topic, p, record)| (name(topic), p, record));
        let consumed = transaction.consumed.into_iter().map(|(group, positions)| {
            (name(group), positions.into_iter().map(|(topic, p, next)| (name(topic), p, next)).collect())
        });
        let consumed = consumed.collect();
        self.writer.commit(Transaction { records: records.collect(), consumed }).await
    }
}
