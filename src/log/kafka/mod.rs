//! The log on Apache Kafka, by librdkafka.
//!
//! - Appends go through one idempotent producer ([`append`]); a writer's transactions through a producer of its own
//!   whose `transactional.id` fences earlier ones ([`writer`]).
//! - Readers see committed records only ([`reader`]) and get proof of having reached the end from a thread that asks the
//!   brokers ([`ends`]).
//! - A commit is durable when it is answered, and seen by readers when its markers are written, a moment later.
//!   [`Log::latest`] and [`Log::describe`] wait for them.
//! - What blocks runs on the runtime's blocking threads.

mod append;
mod copies;
mod ends;
mod group;
mod latest;
mod lease;
mod meta;
mod reader;
mod settings;
mod topics;
mod writer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext};
use rdkafka::error::KafkaError;

pub use self::settings::{KafkaSettings, check_client_configs};

use self::append::Appender;
use self::ends::Ends;
use self::meta::Meta;
use self::reader::KafkaReader;
use super::{
    ClientConfigs, Lease, Log, LogError, NewRecord, PartitionRange, Reader, Record, Retention, TopicSpec,
    Writer, failpoint, lease_topic,
};

/// Nothing is ever written to a lease's topic.
const LEASE_RETENTION: Duration = Duration::from_secs(24 * 3600);
/// How long the first broker may take to answer.
const CONNECT: Duration = Duration::from_secs(10);

/// A Kafka cluster as the log.
pub struct KafkaLog {
    settings: KafkaSettings,
    meta: Arc<Meta>,
    ends: Arc<Ends>,
    appender: Appender,
}

impl KafkaLog {
    /// Connects, and returns when a broker answers.
    ///
    /// # Errors
    /// [`LogError::Refused`] when the settings are wrong, [`LogError::Unavailable`] when no broker answers in 10 s.
    pub async fn connect(settings: KafkaSettings) -> Result<Arc<Self>, LogError> {
        settings.check()?;
        let meta = Meta::new(&settings)?;
        let asked = Arc::clone(&meta);
        let reached = blocking(move || Ok(asked.reach(CONNECT))).await?;
        reached.map_err(|error| {
            LogError::Unavailable(format!(
                "no Kafka broker answers at {}: {error}",
                settings.bootstrap_servers
            ))
        })?;
        let ends = Ends::start(&settings, &meta)?;
        let appender = Appender::new(&settings, &meta)?;
        Ok(Arc::new(Self { settings, meta, ends, appender }))
    }
}

#[async_trait]
impl Log for KafkaLog {
    fn is_shared(&self) -> bool {
        true
    }

    async fn create_topics(&self, specs: &[TopicSpec]) -> Result<(), LogError> {
        topics::create_topics(&self.settings, &self.meta, specs).await
    }

    async fn describe(&self, topic: &str) -> Result<Option<Vec<PartitionRange>>, LogError> {
        let (meta, topic) = (Arc::clone(&self.meta), topic.to_owned());
        blocking(move || meta.ranges(&topic)).await
    }

    async fn append(&self, topic: &str, partition: u32, records: Vec<NewRecord>) -> Result<i64, LogError> {
        failpoint::hit("kafka.append.before");
        let appended = self.appender.append(topic, partition, &records).await;
        failpoint::hit("kafka.append.after");
        appended
    }

    async fn reader(&self, topic: &str, partition: u32, offset: i64) -> Result<Box<dyn Reader>, LogError> {
        self.reader_with(topic, partition, offset, &ClientConfigs::new()).await
    }

    async fn reader_with(
        &self,
        topic: &str,
        partition: u32,
        offset: i64,
        configs: &ClientConfigs,
    ) -> Result<Box<dyn Reader>, LogError> {
        let settings = self.settings.with(configs);
        let (meta, ends) = (Arc::clone(&self.meta), Arc::clone(&self.ends));
        let topic = topic.to_owned();
        let open = move || {
            meta.require(&topic, partition)?;
            KafkaReader::open(&settings, &meta, &ends, &topic, partition, offset)
        };
        Ok(Box::new(blocking(open).await?))
    }

    async fn committed(&self, group: &str, topic: &str) -> Result<BTreeMap<u32, i64>, LogError> {
        let (settings, meta) = (self.settings.clone(), Arc::clone(&self.meta));
        let (group, topic) = (group.to_owned(), topic.to_owned());
        blocking(move || group::committed(&settings, &meta, &group, &topic)).await
    }

    async fn offset_at(&self, topic: &str, partition: u32, timestamp_ms: i64) -> Result<i64, LogError> {
        let (meta, topic) = (Arc::clone(&self.meta), topic.to_owned());
        blocking(move || {
            meta.require(&topic, partition)?;
            meta.offset_at(&(topic, number(partition)), timestamp_ms)
        })
        .await
    }

    async fn fence(&self, writer_id: &str) -> Result<Box<dyn Writer>, LogError> {
        Ok(Box::new(writer::fence(&self.settings, writer_id).await?))
    }

    async fn fence_with(
        &self,
        writer_id: &str,
        configs: &ClientConfigs,
    ) -> Result<Box<dyn Writer>, LogError> {
        Ok(Box::new(writer::fence(&self.settings.with(configs), writer_id).await?))
    }

    async fn latest(&self, topic: &str) -> Result<BTreeMap<Bytes, Record>, LogError> {
        let (settings, meta, topic) = (self.settings.clone(), Arc::clone(&self.meta), topic.to_owned());
        blocking(move || latest::latest(&settings, &meta, &topic, None)).await
    }

    async fn latest_of(&self, topic: &str, key: &[u8]) -> Result<BTreeMap<Bytes, Record>, LogError> {
        let (settings, meta, topic) = (self.settings.clone(), Arc::clone(&self.meta), topic.to_owned());
        let only = Bytes::copy_from_slice(key);
        blocking(move || latest::latest(&settings, &meta, &topic, Some(&only))).await
    }

    async fn lease(&self, name: &str) -> Result<Arc<dyn Lease>, LogError> {
        let retention = Retention::Age(LEASE_RETENTION);
        let topic = lease_topic(name);
        let spec = TopicSpec { name: topic.clone(), partitions: 1, retention, log_append_time: false };
        self.create_topics(&[spec]).await?;
        Ok(Arc::new(lease::join(&self.settings, &format!("emostream.{name}"), &topic)?))
    }

    async fn trim(&self, topic: &str, partition: u32, offset: i64) -> Result<(), LogError> {
        topics::trim(&self.settings, &self.meta, topic, partition, offset).await
    }
}

/// Runs what blocks where it may.
async fn blocking<T, F>(work: F) -> Result<T, LogError>
where
    F: FnOnce() -> Result<T, LogError> + Send + 'static,
    T: Send + 'static,
{
    let ended = tokio::task::spawn_blocking(work).await;
    ended.unwrap_or_else(|error| {
        Err(LogError::Indefinite(format!("a thread of the Kafka log ended: {error}")))
    })
}

/// Creates a client; fails only for settings that no broker could mend.
fn create<C, T>(config: &ClientConfig, context: C) -> Result<T, LogError>
where
    C: ClientContext,
    T: FromClientConfigAndContext<C>,
{
    config.create_with_context(context).map_err(|error| match error {
        KafkaError::ClientConfig(_, reason, name, value) => {
            LogError::Refused(format!("log.kafka.properties: {name} = {value}: {reason}"))
        }
        other => LogError::Refused(format!("a Kafka client could not be created: {other}")),
    })
}

/// A partition's number as librdkafka wants it.
fn number(partition: u32) -> i32 {
    i32::try_from(partition).unwrap_or(i32::MAX)
}
