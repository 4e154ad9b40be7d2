//! A log in memory, for tests: ordered, atomic, fenced, and failing when told to.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use crate::clock;
use crate::log::{
    Log, LogError, NewRecord, PartitionRange, ReadBatch, Reader, Record, Retention, TopicSpec, Transaction,
    Writer,
};
use crate::sync::lock;

/// What the next write does instead of succeeding.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// Nothing is written, and that is known.
    Unavailable,
    /// It is written, and that is not known.
    Written,
    /// It is not written, and that is not known.
    Lost,
}

#[derive(Clone, Default)]
pub(super) struct MemoryLog {
    state: Arc<Mutex<State>>,
    changed: Arc<watch::Sender<u64>>,
}

#[derive(Default)]
struct State {
    topics: HashMap<String, Topic>,
    epochs: HashMap<String, u64>,
    faults: HashMap<String, VecDeque<Fault>>,
}

struct Topic {
    retention: Retention,
    partitions: Vec<Vec<Record>>,
}

impl MemoryLog {
    /// The next writes to that topic fail so.
    pub(super) fn fail(&self, topic: &str, faults: impl IntoIterator<Item = Fault>) {
        lock(&self.state).faults.entry(topic.to_owned()).or_default().extend(faults);
    }

    /// All records of a partition, in order.
    pub(super) fn records(&self, topic: &str, partition: usize) -> Vec<Record> {
        lock(&self.state)
            .topics
            .get(topic)
            .map(|topic| topic.partitions[partition].clone())
            .unwrap_or_default()
    }

    /// How often a writer of that id was fenced.
    pub(super) fn epoch(&self, writer_id: &str) -> u64 {
        lock(&self.state).epochs.get(writer_id).copied().unwrap_or(0)
    }

    /// Forgets the first records of a partition, as retention does.
    pub(super) fn cut(&self, topic: &str, partition: usize, offset: i64) {
        let mut state = lock(&self.state);
        state.topics.get_mut(topic).unwrap().partitions[partition].retain(|record| record.offset >= offset);
    }

    /// Returns the last offset per write; an error when a fault of one of its topics is due.
    fn write(&self, records: Vec<(String, u32, NewRecord)>) -> Result<i64, LogError> {
        let mut state = lock(&self.state);
        let fault = records
            .iter()
            .find_map(|(topic, _, _)| state.faults.get_mut(topic).and_then(VecDeque::pop_front));
        match fault {
            Some(Fault::Unavailable) => return Err(LogError::Unavailable("told to".to_owned())),
            Some(Fault::Lost) => return Err(LogError::Indefinite("told to".to_owned())),
            Some(Fault::Written) | None => {}
        }
        let mut last = -1;
        for (topic, partition, NewRecord { key, value, headers, .. }) in records {
            let known = state.topics.get_mut(&topic).ok_or(LogError::UnknownTopic(topic))?;
            let records = &mut known.partitions[partition as usize];
            // Offsets have holes, as Kafka's transactions make them.
            last = records.last().map_or(0, |record| record.offset + 1 + record.offset % 2);
            records.push(Record { offset: last, timestamp_ms: clock::wall_ms(), key, value, headers });
        }
        drop(state);
        self.changed.send_modify(|version| *version += 1);
        if fault.is_some() { Err(LogError::Indefinite("told to".to_owned())) } else { Ok(last) }
    }
}

#[async_trait]
impl Log for MemoryLog {
    async fn create_topics(&self, specs: &[TopicSpec]) -> Result<(), LogError> {
        let mut state = lock(&self.state);
        for spec in specs {
            let partitions = vec![Vec::new(); spec.partitions as usize];
            state.topics.entry(spec.name.clone()).or_insert(Topic { retention: spec.retention, partitions });
        }
        Ok(())
    }

    async fn describe(&self, topic: &str) -> Result<Option<Vec<PartitionRange>>, LogError> {
        let range = |records: &Vec<Record>| PartitionRange {
            start: records.first().map_or(0, |record| record.offset),
            end: records.last().map_or(0, |record| record.offset + 1),
        };
        Ok(lock(&self.state).topics.get(topic).map(|topic| topic.partitions.iter().map(range).collect()))
    }

    async fn append(&self, topic: &str, partition: u32, records: Vec<NewRecord>) -> Result<i64, LogError> {
        self.write(records.into_iter().map(|record| (topic.to_owned(), partition, record)).collect())
    }

    async fn reader(&self, topic: &str, partition: u32, offset: i64) -> Result<Box<dyn Reader>, LogError> {
        if !lock(&self.state).topics.contains_key(topic) {
            return Err(LogError::UnknownTopic(topic.to_owned()));
        }
        let changed = self.changed.subscribe();
        Ok(Box::new(MemoryReader {
            log: self.clone(),
            changed,
            topic: topic.to_owned(),
            partition,
            next: offset,
        }))
    }

    async fn offset_at(&self, topic: &str, partition: u32, timestamp_ms: i64) -> Result<i64, LogError> {
        let records = self.records(topic, partition as usize);
        let found = records.iter().find(|record| record.timestamp_ms >= timestamp_ms);
        let end = records.last().map_or(0, |record| record.offset + 1);
        Ok(found.map_or(end, |record| record.offset))
    }

    async fn fence(&self, writer_id: &str) -> Result<Box<dyn Writer>, LogError> {
        let mut state = lock(&self.state);
        let epoch = state.epochs.entry(writer_id.to_owned()).or_default();
        *epoch += 1;
        Ok(Box::new(MemoryWriter { log: self.clone(), id: writer_id.to_owned(), epoch: *epoch }))
    }

    async fn latest(&self, topic: &str) -> Result<BTreeMap<Bytes, Record>, LogError> {
        let state = lock(&self.state);
        let topic = state.topics.get(topic).ok_or_else(|| LogError::UnknownTopic(topic.to_owned()))?;
        assert_eq!(topic.retention, Retention::LatestPerKey);
        let mut latest = BTreeMap::new();
        for record in topic.partitions.iter().flatten() {
            let key = record.key.clone().unwrap();
            match record.value {
                Some(_) => latest.insert(key, record.clone()),
                None => latest.remove(&key),
            };
        }
        Ok(latest)
    }

    async fn trim(&self, _: &str, _: u32, _: i64) -> Result<(), LogError> {
        Ok(())
    }
}

struct MemoryReader {
    log: MemoryLog,
    changed: watch::Receiver<u64>,
    topic: String,
    partition: u32,
    next: i64,
}

#[async_trait]
impl Reader for MemoryReader {
    async fn read(&mut self, max_bytes: usize, wait: Duration) -> Result<ReadBatch, LogError> {
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            self.changed.borrow_and_update();
            let now_ms = clock::wall_ms();
            let all = self.log.records(&self.topic, self.partition as usize);
            if let Some(first) = all.first().filter(|first| first.offset > self.next && self.next > 0) {
                let (topic, partition, asked) = (self.topic.clone(), self.partition, self.next);
                self.next = first.offset;
                return Err(LogError::OffsetGone { topic, partition, asked, start: first.offset });
            }
            let mut bytes = 0;
            let mut fits = |record: &Record| {
                let fits = bytes == 0 || bytes < max_bytes;
                bytes += record.value.as_ref().map_or(1, Bytes::len);
                fits
            };
            let from = all.partition_point(|record| record.offset < self.next);
            let records: Vec<Record> =
                all[from..].iter().take_while(|record| fits(record)).cloned().collect();
            if let Some(last) = records.last() {
                self.next = last.offset + 1;
                return Ok(ReadBatch { records, next: self.next, complete_until_ms: None });
            }
            if tokio::time::timeout_at(deadline, self.changed.changed()).await.is_err() {
                return Ok(ReadBatch { records, next: self.next, complete_until_ms: Some(now_ms) });
            }
        }
    }
}

struct MemoryWriter {
    log: MemoryLog,
    id: String,
    epoch: u64,
}

#[async_trait]
impl Writer for MemoryWriter {
    async fn commit(&mut self, transaction: Transaction) -> Result<(), LogError> {
        if lock(&self.log.state).epochs[&self.id] != self.epoch {
            return Err(LogError::Fenced(self.id.clone()));
        }
        self.log.write(transaction.records).map(|_| ())
    }
}
