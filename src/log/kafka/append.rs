//! Appends: one idempotent producer for the whole process.
//!
//! A message that librdkafka gave up is reported without saying whether it had been sent, so a time-out is
//! `Indefinite`. After the first one, nothing is queued before the partition's leader answers again: while a broker is
//! down, callers learn at once that nothing was written.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer};
use tokio::time::Instant;

use super::meta::{ANSWER, Counting, Meta, failed};
use super::settings::{Context, KafkaSettings};
use super::{blocking, create, number};
use crate::log::{LogError, NewRecord};
use crate::sync::lock;

/// How long a full queue is waited for.
const QUEUE_WAIT: Duration = Duration::from_secs(5);
/// How long a suspected leader may take to answer.
const LEADER: Duration = Duration::from_millis(500);
/// How long a failed question after the leader counts for others.
const ASK_AGAIN: Duration = Duration::from_millis(300);
/// What a record takes besides key, value and headers, generously.
const OVERHEAD_BYTES: usize = 512;

pub(super) struct Appender {
    settings: KafkaSettings,
    meta: Arc<Meta>,
    max_bytes: usize,
    producer: Mutex<FutureProducer<Context>>,
    /// A delivery failed since a leader last answered.
    suspect: AtomicBool,
    /// When a suspected leader did not answer.
    unanswered: tokio::sync::Mutex<Option<Instant>>,
}

impl Appender {
    pub(super) fn new(settings: &KafkaSettings, meta: &Arc<Meta>) -> Result<Self, LogError> {
        Ok(Self {
            settings: settings.clone(),
            meta: Arc::clone(meta),
            max_bytes: settings.max_message_bytes(),
            producer: Mutex::new(create(&settings.appender(), Context)?),
            suspect: AtomicBool::new(false),
            unanswered: tokio::sync::Mutex::new(None),
        })
    }

    /// See [`crate::log::Log::append`]. Several records are not atomic: a crash may keep the first ones only.
    pub(super) async fn append(
        &self,
        topic: &str,
        partition: u32,
        records: &[NewRecord],
    ) -> Result<i64, LogError> {
        self.check(topic, partition, records).await?;
        let producer = lock(&self.producer).clone();
        let deadline = Instant::now() + QUEUE_WAIT;
        let mut deliveries = Vec::with_capacity(records.len());
        let mut outcome = Ok(-1);
        for record in records {
            let mut queued = enqueue(&producer, topic, partition, record, deadline).await;
            if deliveries.is_empty() && matches!(queued, Err(LogError::UnknownTopic(_))) {
                refresh(&producer, topic).await?;
                queued = enqueue(&producer, topic, partition, record, deadline).await;
            }
            match queued {
                Ok(delivery) => deliveries.push(delivery),
                Err(error) if deliveries.is_empty() => {
                    outcome = Err(error);
                    break;
                }
                Err(error) => {
                    outcome = Err(LogError::Indefinite(format!("some records were queued, then: {error}")));
                    break;
                }
            }
        }
        let several = deliveries.len() > 1;
        for delivery in deliveries {
            match delivery.await {
                Ok(Ok(delivered)) => outcome = outcome.map(|_| delivered.offset),
                Ok(Err((error, _))) => {
                    self.suspect.store(true, Ordering::Release);
                    outcome = Err(undelivered(&format!("{topic}/{partition}"), &error, several));
                }
                Err(_) => outcome = Err(LogError::Indefinite("the producer was closed".to_owned())),
            }
        }
        if outcome.is_err() {
            self.replace_if_broken(&producer);
        }
        outcome
    }

    /// What can be said before anything is queued.
    async fn check(&self, topic: &str, partition: u32, records: &[NewRecord]) -> Result<(), LogError> {
        if records.is_empty() {
            return Err(LogError::Refused("an append without records".to_owned()));
        }
        if let Some(bytes) = records.iter().map(size).find(|&bytes| bytes > self.max_bytes) {
            return Err(LogError::Refused(format!(
                "a record of {bytes} bytes; Kafka takes at most {}",
                self.max_bytes
            )));
        }
        if !self.meta.knows(topic, partition) {
            let (meta, topic) = (Arc::clone(&self.meta), topic.to_owned());
            blocking(move || meta.require(&topic, partition)).await?;
        }
        if self.suspect.load(Ordering::Acquire) { self.ask_leader(topic, partition).await } else { Ok(()) }
    }

    /// One question at a time; those who wait take its answer.
    async fn ask_leader(&self, topic: &str, partition: u32) -> Result<(), LogError> {
        let mut unanswered = self.unanswered.lock().await;
        if !self.suspect.load(Ordering::Acquire) {
            return Ok(());
        }
        let answer = if unanswered.is_some_and(|at| at.elapsed() < ASK_AGAIN) {
            false
        } else {
            let (meta, place) = (Arc::clone(&self.meta), (topic.to_owned(), number(partition)));
            let ask = move || {
                meta.serve();
                let places = std::collections::BTreeSet::from([place]);
                Ok(meta.ends(&places, Counting::All, LEADER).is_ok_and(|ends| !ends.is_empty()))
            };
            blocking(ask).await?
        };
        if answer {
            self.suspect.store(false, Ordering::Release);
            *unanswered = None;
            Ok(())
        } else {
            if unanswered.is_none_or(|at| at.elapsed() >= ASK_AGAIN) {
                *unanswered = Some(Instant::now());
            }
            Err(LogError::Unavailable(format!("the leader of {topic}/{partition} does not answer")))
        }
    }

    /// A producer with a fatal error never sends again; a new one does.
    fn replace_if_broken(&self, used: &FutureProducer<Context>) {
        let Some((code, reason)) = used.client().fatal_error() else { return };
        let mut current = lock(&self.producer);
        if current.client().native_ptr() != used.client().native_ptr() {
            return;
        }
        tracing::warn!("the Kafka producer is beyond repair ({code}: {reason}); it is replaced");
        match create(&self.settings.appender(), Context) {
            Ok(producer) => {
                let broken = std::mem::replace(&mut *current, producer);
                // Closing one waits for its thread.
                drop(tokio::task::spawn_blocking(move || drop(broken)));
            }
            Err(error) => tracing::warn!("no new Kafka producer: {error}"),
        }
    }
}

/// Tells the producer what partitions the topic has: by itself it would ask in minutes, when some were added.
async fn refresh(producer: &FutureProducer<Context>, topic: &str) -> Result<(), LogError> {
    let (producer, topic) = (producer.clone(), topic.to_owned());
    blocking(move || {
        let asked = producer.client().fetch_metadata(Some(&topic), ANSWER);
        asked.map(drop).map_err(|error| failed(&topic, &error))
    })
    .await
}

/// Puts one record into the producer's queue, waiting while that is full.
async fn enqueue(
    producer: &FutureProducer<Context>,
    topic: &str,
    partition: u32,
    record: &NewRecord,
    deadline: Instant,
) -> Result<DeliveryFuture, LogError> {
    let mut message = FutureRecord {
        topic,
        partition: Some(number(partition)),
        payload: record.value.as_deref(),
        key: record.key.as_deref(),
        timestamp: record.timestamp_ms,
        headers: headers(record),
    };
    loop {
        match producer.send_result(message) {
            Ok(delivery) => return Ok(delivery),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                if Instant::now() >= deadline {
                    return Err(LogError::Unavailable("the producer's queue is full".to_owned()));
                }
                message = back;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Err((error, _)) => return Err(not_queued(topic, &error)),
        }
    }
}

/// A record's headers as librdkafka wants them.
pub(super) fn headers(record: &NewRecord) -> Option<OwnedHeaders> {
    if record.headers.is_empty() {
        return None;
    }
    let empty = OwnedHeaders::new_with_capacity(record.headers.len());
    let add = |headers: OwnedHeaders, (key, value): &(std::borrow::Cow<'static, str>, bytes::Bytes)| {
        headers.insert(Header { key, value: Some(value.as_ref()) })
    };
    Some(record.headers.iter().fold(empty, add))
}

/// About how many bytes a record takes in a request.
pub(super) fn size(record: &NewRecord) -> usize {
    let length = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(0, |bytes| bytes.len());
    let headers: usize = record.headers.iter().map(|(name, value)| name.len() + value.len() + 10).sum();
    length(&record.key) + length(&record.value) + headers + OVERHEAD_BYTES
}

/// Why a message was not even queued: nothing was written.
fn not_queued(about: &str, error: &KafkaError) -> LogError {
    match undelivered(about, error, false) {
        LogError::Indefinite(message) => LogError::Unavailable(message),
        other => other,
    }
}

/// What a failed delivery means. Only errors that end a message's first attempt say that it was not written.
fn undelivered(about: &str, error: &KafkaError, several: bool) -> LogError {
    use RDKafkaErrorCode as Code;
    let refused = match error.rdkafka_error_code() {
        Some(Code::MessageSizeTooLarge | Code::InvalidRecord | Code::TopicAuthorizationFailed) => {
            LogError::Refused(format!("{about}: {error}"))
        }
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition) => {
            LogError::UnknownTopic(about.to_owned())
        }
        Some(Code::PurgeQueue) => LogError::Unavailable(format!("{about}: {error}")),
        _ => return LogError::Indefinite(format!("{about}: {error}")),
    };
    if several { LogError::Indefinite(refused.to_string()) } else { refused }
}
