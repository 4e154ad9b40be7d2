//! Reads one partition: a consumer of its own, whose fetched messages wait in librdkafka, bounded, until they are asked
//! for. No thread of ours: librdkafka wakes the reader when its queue is no longer empty.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::topic_partition_list::Offset;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::copies::Copies;
use super::ends::{Ends, Watch};
use super::meta::{Meta, Place, failed};
use super::settings::{Context, KafkaSettings};
use super::{blocking, create, number};
use crate::log::{LogError, ReadBatch, Reader, Record, header_name};

pub(super) struct KafkaReader {
    place: Place,
    meta: Arc<Meta>,
    ends: Arc<Ends>,
    watch: Arc<Watch>,
    woken: Arc<Notify>,
    /// Only absent while it is dropped.
    source: Option<Source>,
    copies: Copies,
    /// Where the next read goes on.
    next: i64,
    /// The offset is not in the log: every further read says so.
    gone: bool,
    /// An error to report once the records before it are.
    failure: Option<LogError>,
}

struct Source {
    queue: PartitionQueue<Context>,
    consumer: Arc<BaseConsumer<Context>>,
}

impl KafkaReader {
    /// Starts fetching at `offset`.
    pub(super) fn open(
        settings: &KafkaSettings,
        meta: &Arc<Meta>,
        ends: &Arc<Ends>,
        topic: &str,
        partition: u32,
        offset: i64,
    ) -> Result<Self, LogError> {
        let place = (topic.to_owned(), number(partition));
        let about = |error: KafkaError| failed(topic, &error);
        let consumer: Arc<BaseConsumer<Context>> = Arc::new(create(&settings.reader(), Context)?);
        // Before the assignment, so that no message takes the way of the consumer's common queue.
        let mut queue = consumer
            .split_partition_queue(topic, place.1)
            .ok_or_else(|| LogError::UnknownTopic(format!("{topic}/{partition}")))?;
        let woken = Arc::new(Notify::new());
        let wakes = Arc::clone(&woken);
        queue.set_nonempty_callback(move || wakes.notify_one());
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, place.1, Offset::Offset(offset)).map_err(about)?;
        consumer.assign(&list).map_err(about)?;
        let watch = ends.watch(place.clone(), offset, Arc::clone(&woken));
        Ok(Self {
            place,
            meta: Arc::clone(meta),
            ends: Arc::clone(ends),
            watch,
            woken,
            source: Some(Source { queue, consumer }),
            copies: Copies::default(),
            next: offset,
            gone: false,
            failure: None,
        })
    }

    /// Takes what librdkafka holds, up to about `max_bytes`. Never waits.
    fn take(&mut self, max_bytes: usize) -> Vec<Record> {
        let mut records = Vec::new();
        let mut bytes = 0;
        let Some(source) = &self.source else { return records };
        // Serves log lines; records do not come this way.
        if let Some(Err(error)) = source.consumer.poll(Duration::ZERO) {
            tracing::debug!("a reader of {}/{}: {error}", self.place.0, self.place.1);
        }
        while bytes < max_bytes && self.failure.is_none() && !self.gone {
            match source.queue.poll(Duration::ZERO) {
                None => break,
                Some(Ok(message)) => {
                    bytes += message.payload_len() + message.key_len();
                    self.next = message.offset() + 1;
                    records.push(record(&message, |bytes| self.copies.copy(bytes)));
                }
                Some(Err(KafkaError::PartitionEOF(_))) => {}
                Some(Err(error)) => match error.rdkafka_error_code() {
                    Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                        self.gone = true
                    }
                    _ => self.failure = lasting(&self.place, &error),
                },
            }
        }
        if !records.is_empty() {
            self.watch.moved(self.next);
        }
        records
    }

    /// Moves on over offsets that hold transaction markers only. Whoever waits for a position is told at once.
    fn pass_markers(&mut self) -> bool {
        match self.watch.nothing_before(self.next) {
            Some(end) if end > self.next => {
                self.next = end;
                self.watch.skipped(end);
                true
            }
            _ => false,
        }
    }

    /// Where the log starts, for a reader whose offset is not in it.
    async fn offset_gone(&self) -> LogError {
        let (meta, place) = (Arc::clone(&self.meta), self.place.clone());
        let asked_place = place.clone();
        let ask = move || {
            let places = std::collections::BTreeSet::from([asked_place]);
            meta.starts(&places).map_err(|error| failed("where a partition starts", &error))
        };
        match blocking(ask).await {
            Ok(starts) => LogError::OffsetGone {
                topic: place.0.clone(),
                partition: u32::try_from(place.1).unwrap_or_default(),
                asked: self.next,
                start: starts.get(&place).copied().unwrap_or_default(),
            },
            Err(error) => error,
        }
    }
}

#[async_trait]
impl Reader for KafkaReader {
    async fn read(&mut self, max_bytes: usize, wait: Duration) -> Result<ReadBatch, LogError> {
        let deadline = Instant::now() + wait;
        loop {
            // What is taken here is returned before anything is awaited, so that a dropped read loses nothing.
            let records = self.take(max_bytes.max(1));
            if !records.is_empty() {
                return Ok(ReadBatch { records, next: self.next, complete_until_ms: None });
            }
            if self.gone {
                return Err(self.offset_gone().await);
            }
            if let Some(failure) = self.failure.take() {
                return Err(failure);
            }
            let now = Instant::now();
            self.ends.waits(&self.watch, deadline.saturating_duration_since(now));
            let is_over = self.pass_markers()
                || now >= deadline
                || tokio::time::timeout_at(deadline, self.woken.notified()).await.is_err();
            if is_over {
                let complete_until_ms = self.watch.proof(self.next).map(|(_, before_ms)| before_ms);
                return Ok(ReadBatch { records: Vec::new(), next: self.next, complete_until_ms });
            }
        }
    }
}

impl Drop for KafkaReader {
    fn drop(&mut self) {
        // Closing a consumer waits for its threads.
        let source = self.source.take();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(source))),
            Err(_) => drop(source),
        }
    }
}

/// The error, when it does not pass by itself. librdkafka goes on after lost connections and changed leaders.
fn lasting(place: &Place, error: &KafkaError) -> Option<LogError> {
    match failed(&format!("{}/{}", place.0, place.1), error) {
        LogError::Unavailable(message) => {
            if matches!(error, KafkaError::MessageConsumptionFatal(_)) {
                return Some(LogError::Unavailable(message));
            }
            tracing::debug!("a reader goes on after: {message}");
            None
        }
        lasting => Some(lasting),
    }
}

/// Copies a message out of librdkafka's memory.
pub(super) fn record(message: &BorrowedMessage<'_>, mut copy: impl FnMut(&[u8]) -> Bytes) -> Record {
    let headers = message.headers().map(|headers| {
        let copied = headers
            .iter()
            .map(|header| (header_name(header.key), header.value.map(&mut copy).unwrap_or_default()));
        copied.collect()
    });
    Record {
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis().unwrap_or_default(),
        key: message.key().map(&mut copy),
        value: message.payload().map(&mut copy),
        headers: headers.unwrap_or_default(),
    }
}
