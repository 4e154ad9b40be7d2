//! Transactions: one producer per writer id, whose `transactional.id` is that id.
//!
//! What an error means depends on where it happened. Until the commit is requested, nothing can become visible: the
//! transaction is aborted and the error is `Unavailable`. From then on only the brokers know, and a commit is never
//! tried again (after a lost answer a second try may commit what was already aborted, or be told of the wrong
//! transaction): `Indefinite`. A producer that was fenced says so at either place.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext, PurgeConfig};
use rdkafka::topic_partition_list::Offset;
use tokio::time::Instant;

use super::append::{headers, size};
use super::meta::failed;
use super::settings::{Context, KafkaSettings};
use super::{blocking, create, number};
use crate::log::{LogError, NewRecord, Transaction, Writer, failpoint};
use crate::sync::lock;

/// How long fencing may take: the brokers first decide what the earlier writer left open.
const FENCE: Duration = Duration::from_secs(30);
/// How long the records of a transaction may take to be written, and then how long its commit.
const WRITE: Duration = Duration::from_secs(9);
/// How often to look whether they are.
const DELIVERY_LOOK: Duration = Duration::from_micros(250);
/// How long to wait for an abort.
const ABORT: Duration = Duration::from_secs(3);

/// Remembers the first record that could not be delivered.
#[derive(Default)]
struct Deliveries {
    failed: Mutex<Option<KafkaError>>,
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        Context.log(level, facility, message);
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        Context.error(error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            lock(&self.failed).get_or_insert_with(|| error.clone());
        }
    }
}

/// What the blocking threads work with.
struct Session {
    writer_id: String,
    settings: KafkaSettings,
    producer: BaseProducer<Deliveries>,
    groups: Mutex<HashMap<String, Arc<ConsumerGroupMetadata>>>,
}

pub(super) struct KafkaWriter {
    session: Arc<Session>,
    /// Why this writer commits nothing any more.
    dead: Option<LogError>,
}

/// Fences every earlier writer of the id; returns when what they left open is decided.
pub(super) async fn fence(settings: &KafkaSettings, writer_id: &str) -> Result<KafkaWriter, LogError> {
    let (settings, writer_id) = (settings.clone(), writer_id.to_owned());
    let session = blocking(move || {
        let producer: BaseProducer<Deliveries> = create(&settings.writer(&writer_id), Deliveries::default())?;
        producer.init_transactions(FENCE).map_err(|error| failed(&format!("fencing {writer_id}"), &error))?;
        Ok(Session { writer_id, settings, producer, groups: Mutex::default() })
    })
    .await?;
    Ok(KafkaWriter { session: Arc::new(session), dead: None })
}

#[async_trait]
impl Writer for KafkaWriter {
    async fn commit(&mut self, transaction: Transaction) -> Result<(), LogError> {
        if let Some(dead) = &self.dead {
            return Err(dead.clone());
        }
        if let Some(bytes) = self.session.too_large(&transaction) {
            return Err(LogError::Refused(format!("a record of {bytes} bytes is larger than Kafka takes")));
        }
        if transaction.records.is_empty() && transaction.consumed.is_empty() {
            return Ok(());
        }
        // A commit whose caller went away in the middle goes on; nobody then knows its end.
        self.dead = Some(LogError::Indefinite("an earlier commit was not waited for".to_owned()));
        let session = Arc::clone(&self.session);
        let outcome = blocking(move || session.transact(&transaction)).await;
        self.dead = match &outcome {
            Err(error @ (LogError::Indefinite(_) | LogError::Fenced(_))) => Some(error.clone()),
            _ => None,
        };
        outcome
    }
}

impl Drop for KafkaWriter {
    fn drop(&mut self) {
        // Closing a producer waits for its threads.
        let session = Arc::clone(&self.session);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            drop(runtime.spawn_blocking(move || drop(session)));
        }
    }
}

impl Session {
    fn too_large(&self, transaction: &Transaction) -> Option<usize> {
        let limit = self.settings.max_message_bytes();
        transaction.records.iter().map(|(_, _, record)| size(record)).find(|&bytes| bytes > limit)
    }

    fn transact(&self, transaction: &Transaction) -> Result<(), LogError> {
        failpoint::hit("kafka.commit.before");
        self.serve();
        self.producer
            .begin_transaction()
            .map_err(|error| self.broken(&error).unwrap_or_else(|| self.unknown(&error)))?;
        if let Err(error) = self.write(transaction) {
            return Err(self.abort(&error));
        }
        failpoint::hit("kafka.commit.after_send");
        match self.producer.commit_transaction(WRITE) {
            Ok(()) => {
                failpoint::hit("kafka.commit.after");
                Ok(())
            }
            Err(error) => Err(self.broken(&error).unwrap_or_else(|| self.unknown(&error))),
        }
    }

    /// Everything before the commit is requested.
    fn write(&self, transaction: &Transaction) -> Result<(), KafkaError> {
        *lock(&self.producer.context().failed) = None;
        let deadline = Instant::now() + WRITE;
        for (topic, partition, record) in &transaction.records {
            self.send(topic, *partition, record, deadline)?;
        }
        self.deliver(deadline)?;
        if let Some(error) = lock(&self.producer.context().failed).take() {
            return Err(error);
        }
        for (group, positions) in &transaction.consumed {
            let mut list = TopicPartitionList::with_capacity(positions.len());
            for (topic, partition, offset) in positions {
                list.add_partition_offset(topic, number(*partition), Offset::Offset(*offset))?;
            }
            self.producer.send_offsets_to_transaction(&list, self.group(group)?.as_ref(), WRITE)?;
        }
        Ok(())
    }

    fn send(
        &self,
        topic: &str,
        partition: u32,
        record: &NewRecord,
        deadline: Instant,
    ) -> Result<(), KafkaError> {
        let mut message: BaseRecord<'_, [u8], [u8]> = BaseRecord {
            topic,
            partition: Some(number(partition)),
            payload: record.value.as_deref(),
            key: record.key.as_deref(),
            timestamp: record.timestamp_ms,
            headers: headers(record),
            delivery_opaque: (),
        };
        loop {
            match self.producer.send(message) {
                Ok(()) => return Ok(()),
                Err((error @ KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    if Instant::now() >= deadline {
                        return Err(error);
                    }
                    message = back;
                    self.producer.poll(Duration::from_millis(5));
                }
                Err((error, _)) => return Err(error),
            }
        }
    }

    /// Waits until every record is delivered. The binding's own `flush`, which also begins its commit, serves events in
    /// steps of 100 ms that no event ends; with nothing in flight it returns at once. Its `poll` waits in whole
    /// milliseconds and turns around at full speed for what is less, which cost as much as all of decoding.
    fn deliver(&self, deadline: Instant) -> Result<(), KafkaError> {
        self.producer.poll(Duration::ZERO);
        while self.producer.in_flight_count() > 0 && Instant::now() < deadline {
            std::thread::park_timeout(DELIVERY_LOOK);
            self.producer.poll(Duration::ZERO);
        }
        self.producer.flush(deadline.saturating_duration_since(Instant::now()))
    }

    /// Ends the transaction so that none of it is seen, and says what that means.
    fn abort(&self, cause: &KafkaError) -> LogError {
        self.producer.purge(PurgeConfig::default().queue().inflight());
        if let Err(error) = self.producer.flush(ABORT) {
            tracing::debug!("{}: purged messages did not come back: {error}", self.writer_id);
        }
        match self.producer.abort_transaction(ABORT) {
            Ok(()) => match self.broken(cause) {
                Some(fenced @ LogError::Fenced(_)) => fenced,
                _ => failed(&self.writer_id, cause),
            },
            Err(error) => {
                self.broken(&error).or_else(|| self.broken(cause)).unwrap_or_else(|| self.unknown(cause))
            }
        }
    }

    /// When the producer is at its end: fenced, or in a state that only a new one leaves.
    fn broken(&self, error: &KafkaError) -> Option<LogError> {
        let is_fence = |code: RDKafkaErrorCode| {
            matches!(
                code,
                RDKafkaErrorCode::Fenced
                    | RDKafkaErrorCode::ProducerFenced
                    | RDKafkaErrorCode::InvalidProducerEpoch
            )
        };
        let fatal = self.producer.client().fatal_error();
        let fenced = error.rdkafka_error_code().is_some_and(is_fence)
            || fatal.as_ref().is_some_and(|(code, _)| is_fence(*code));
        if fenced {
            return Some(LogError::Fenced(format!("{}: another writer took over", self.writer_id)));
        }
        fatal.map(|(code, reason)| LogError::Indefinite(format!("{}: {code}: {reason}", self.writer_id)))
    }

    fn unknown(&self, error: &KafkaError) -> LogError {
        LogError::Indefinite(format!("{}: {error}", self.writer_id))
    }

    /// The group's name in the form a transaction wants; a consumer is made for it once.
    fn group(&self, group: &str) -> Result<Arc<ConsumerGroupMetadata>, KafkaError> {
        if let Some(known) = lock(&self.groups).get(group) {
            return Ok(Arc::clone(known));
        }
        let consumer: BaseConsumer<Context> = self.settings.group(group).create_with_context(Context)?;
        let metadata = consumer.group_metadata().ok_or(KafkaError::Canceled)?;
        let metadata = Arc::new(metadata);
        lock(&self.groups).insert(group.to_owned(), Arc::clone(&metadata));
        Ok(metadata)
    }

    /// Hands on log lines that came since the last commit.
    fn serve(&self) {
        self.producer.poll(Duration::ZERO);
    }
}
