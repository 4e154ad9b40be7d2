//! How to reach Kafka, and the librdkafka properties of each kind of client.
//!
//! Any property may be set by the operator, except those on which what this log promises rests.

use std::collections::BTreeMap;
use std::fmt;

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::log::{ClientConfigs, LogError};
use crate::reaction::table::FIXED_CLIENT_CONFIGS;

/// The group under which readers present themselves. They assign partitions themselves and never join it, but
/// librdkafka wants a name.
const GROUP: &str = "emostream.readers";

/// `[log.kafka]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KafkaSettings {
    /// `HOST:PORT`, or several separated by commas.
    pub bootstrap_servers: String,
    /// librdkafka properties by name (`"security.protocol" = "SSL"`); they override this log's defaults.
    #[serde(deserialize_with = "properties")]
    pub properties: BTreeMap<String, String>,
}

impl KafkaSettings {
    /// Settings that name a broker and nothing else.
    pub fn new(bootstrap_servers: impl Into<String>) -> Self {
        Self { bootstrap_servers: bootstrap_servers.into(), properties: BTreeMap::new() }
    }

    /// Whether these settings can be used at all.
    ///
    /// # Errors
    /// [`LogError::Refused`] when no broker is named, when a property is one this log sets itself, or when TLS or
    /// SASL is asked for in a build without it.
    pub fn check(&self) -> Result<(), LogError> {
        if self.bootstrap_servers.trim().is_empty() {
            return Err(LogError::Refused(
                "log.kafka.bootstrap_servers is empty; name a broker as HOST:PORT".to_owned(),
            ));
        }
        if let Some(name) = self.properties.keys().find(|name| FIXED_CLIENT_CONFIGS.contains(&name.as_str()))
        {
            return Err(LogError::Refused(format!(
                "log.kafka.properties: {name} is set by emostream itself; remove it"
            )));
        }
        if !cfg!(feature = "kafka-tls")
            && let Some(name) = self.properties.iter().find_map(wants_tls)
        {
            return Err(LogError::Refused(format!(
                "log.kafka.properties: {name} needs TLS or SASL, which this build has not; build it with `--features kafka-tls`"
            )));
        }
        Ok(())
    }

    /// These settings for one client with properties of its own.
    pub(super) fn with(&self, configs: &ClientConfigs) -> Self {
        let mut settings = self.clone();
        settings.properties.extend(configs.iter().map(|(name, value)| (name.clone(), value.clone())));
        settings
    }

    /// What all clients share.
    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set_log_level(RDKafkaLogLevel::Info);
        config.set("bootstrap.servers", &self.bootstrap_servers);
        config.set("client.id", "emostream");
        config.set("log.connection.close", "false");
        config.set("socket.nagle.disable", "true");
        // The defaults go up to 10 s, which a viewer would see after a broker's restart.
        config.set("reconnect.backoff.ms", "50");
        config.set("reconnect.backoff.max.ms", "1000");
        config
    }

    /// The operator's properties over the defaults, and over both what must be so.
    fn finish(&self, mut config: ClientConfig, fixed: &[(&str, &str)]) -> ClientConfig {
        for (name, value) in &self.properties {
            config.set(name, value);
        }
        for (name, value) in fixed {
            config.set(*name, *value);
        }
        config
    }

    /// A client that only asks: for metadata and for offsets, of committed or of all records.
    pub(super) fn asking(&self, isolation: &str) -> ClientConfig {
        self.finish(self.client(), &[("isolation.level", isolation)])
    }

    /// A consumer of committed records that reports the end of a partition.
    fn consumer(&self, defaults: &[(&str, &str)]) -> ClientConfig {
        let mut config = self.client();
        config.set("fetch.min.bytes", "1");
        config.set("fetch.error.backoff.ms", "50");
        for (name, value) in defaults {
            config.set(*name, *value);
        }
        self.finish(
            config,
            &[
                ("group.id", GROUP),
                ("isolation.level", "read_committed"),
                ("auto.offset.reset", "error"),
                ("enable.auto.commit", "false"),
                ("enable.auto.offset.store", "false"),
                ("enable.partition.eof", "true"),
            ],
        )
    }

    /// A reader's consumer.
    pub(super) fn reader(&self) -> ClientConfig {
        self.consumer(&[
            // A fetch is answered as soon as there is a byte, so a long wait costs no latency and saves requests.
            ("fetch.wait.max.ms", "500"),
            // librdkafka's default of 1 s after a full queue cost a factor of three in catching up.
            ("fetch.queue.backoff.ms", "2"),
            ("fetch.message.max.bytes", "4194304"),
            ("queued.max.messages.kbytes", "16384"),
            ("queued.min.messages", "100000"),
        ])
    }

    /// A consumer that reads to the end once: its last fetch is empty, so it must not wait long.
    pub(super) fn scanner(&self) -> ClientConfig {
        self.consumer(&[("fetch.wait.max.ms", "2"), ("fetch.queue.backoff.ms", "2")])
    }

    /// What both producers share. Callers batch already, so a message waits for no other.
    fn producer(&self) -> ClientConfig {
        let mut config = self.client();
        config.set("linger.ms", "0");
        config.set("retry.backoff.ms", "20");
        config.set("queue.buffering.max.messages", "100000");
        config.set("queue.buffering.max.kbytes", "65536");
        config
    }

    /// The producer of appends.
    pub(super) fn appender(&self) -> ClientConfig {
        let mut config = self.producer();
        config.set("message.timeout.ms", "5000");
        config.set("socket.timeout.ms", "5000");
        self.finish(config, &[("acks", "all"), ("enable.idempotence", "true")])
    }

    /// The producer of one writer's transactions.
    pub(super) fn writer(&self, writer_id: &str) -> ClientConfig {
        let mut config = self.producer();
        config.set("message.timeout.ms", "8000");
        config.set("transaction.timeout.ms", "10000");
        self.finish(
            config,
            &[("acks", "all"), ("enable.idempotence", "true"), ("transactional.id", writer_id)],
        )
    }

    /// A member of a group that shares out a lease: a broker's least session time by default. Heartbeats are frequent,
    /// because a standby learns from the answer to its next one that the lease is free. The lease's topic holds nothing
    /// that could be read.
    pub(super) fn lease(&self, group: &str) -> ClientConfig {
        let mut config = self.client();
        config.set("session.timeout.ms", "6000");
        config.set("heartbeat.interval.ms", "500");
        self.finish(
            config,
            &[
                ("group.id", group),
                ("partition.assignment.strategy", "cooperative-sticky"),
                ("auto.offset.reset", "latest"),
                ("enable.auto.commit", "false"),
                ("enable.auto.offset.store", "false"),
            ],
        )
    }

    /// A consumer that only lends a group's name to a transaction.
    pub(super) fn group(&self, group: &str) -> ClientConfig {
        self.finish(self.client(), &[("group.id", group), ("enable.auto.commit", "false")])
    }

    /// The most bytes a message may have.
    pub(super) fn max_message_bytes(&self) -> usize {
        let set = self.properties.get("message.max.bytes").and_then(|value| value.parse().ok());
        set.unwrap_or(1_000_000)
    }
}

/// Whether librdkafka knows these properties and takes their values.
///
/// # Errors
/// Names the first one that it does not take, and why.
pub fn check_client_configs(configs: &ClientConfigs) -> Result<(), String> {
    let said = |error: LogError| error.to_string().replace("log.kafka.properties: ", "");
    KafkaSettings::new("localhost").with(configs).check().map_err(said)?;
    for (name, value) in configs {
        let set = ClientConfig::new().set(name, value).create_native_config();
        if let Err(KafkaError::ClientConfig(_, reason, ..)) = set {
            return Err(format!("{name} = {value}: {reason}"));
        }
    }
    Ok(())
}

/// The property's name, when it needs a build with TLS.
fn wants_tls((name, value): (&String, &String)) -> Option<String> {
    let encrypted = name == "security.protocol" && !value.eq_ignore_ascii_case("plaintext");
    let other = name.starts_with("ssl.") || name.starts_with("sasl.");
    (encrypted || other).then(|| name.clone())
}

/// Reads a map whose values may be text, numbers or booleans.
fn properties<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Value {
        Text(String),
        Int(i64),
        Float(f64),
        Bool(bool),
    }
    struct Properties;
    impl<'de> Visitor<'de> for Properties {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("librdkafka properties: names with a text, number or boolean each")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut properties = BTreeMap::new();
            while let Some((name, value)) = map.next_entry::<String, Value>()? {
                let value = match value {
                    Value::Text(text) => text,
                    Value::Int(number) => number.to_string(),
                    Value::Float(number) => number.to_string(),
                    Value::Bool(choice) => choice.to_string(),
                };
                properties.insert(name, value);
            }
            Ok(properties)
        }
    }
    deserializer.deserialize_map(Properties)
}

/// Sends librdkafka's messages to `tracing`.
#[derive(Clone, Debug, Default)]
pub(super) struct Context;

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        use RDKafkaLogLevel::{Alert, Critical, Debug, Emerg, Error, Info, Notice, Warning};
        match level {
            Emerg | Alert | Critical | Error => tracing::warn!(target: "librdkafka", "{facility}: {message}"),
            Warning | Notice => tracing::info!(target: "librdkafka", "{facility}: {message}"),
            Info | Debug => tracing::debug!(target: "librdkafka", "{facility}: {message}"),
        }
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        // The end of a partition and a lost connection come here too; whoever waits gets an answer of its own.
        tracing::debug!(target: "librdkafka", "{error}: {reason}");
    }
}

impl ConsumerContext for Context {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_property_the_promises_rest_on_is_refused() {
        let mut settings = KafkaSettings::new("localhost:9092");
        settings.properties.insert("isolation.level".to_owned(), "read_uncommitted".to_owned());
        let error = settings.check().unwrap_err();
        assert!(error.to_string().contains("isolation.level is set by emostream itself"), "{error}");
    }

    #[test]
    fn an_empty_broker_is_refused() {
        assert!(matches!(KafkaSettings::default().check(), Err(LogError::Refused(_))));
    }

    #[test]
    fn a_tables_properties_are_those_that_librdkafka_takes() {
        let of = |name: &str, value: &str| ClientConfigs::from([(name.to_owned(), value.to_owned())]);
        assert_eq!(check_client_configs(&of("fetch.max.bytes", "1000000")), Ok(()));
        assert_eq!(check_client_configs(&of("compression.type", "lz4")), Ok(()));
        for (name, value) in [("fetch.max.bites", "1"), ("linger.ms", "soon"), ("group.id", "g")] {
            let refused = check_client_configs(&of(name, value)).unwrap_err();
            assert!(refused.contains(name), "{refused}");
        }
        let settings = KafkaSettings::new("localhost:9092").with(&of("linger.ms", "7"));
        assert_eq!(settings.writer("w").get("linger.ms"), Some("7"));
    }

    #[cfg(not(feature = "kafka-tls"))]
    #[test]
    fn tls_without_the_feature_names_the_feature() {
        let mut settings = KafkaSettings::new("localhost:9092");
        settings.properties.insert("security.protocol".to_owned(), "SASL_SSL".to_owned());
        let error = settings.check().unwrap_err();
        assert!(error.to_string().contains("--features kafka-tls"), "{error}");
    }

    #[test]
    fn values_may_be_numbers_and_unknown_keys_are_refused() {
        let text = r#"{"bootstrap_servers": "b:1", "properties": {"linger.ms": 5, "socket.keepalive.enable": true}}"#;
        let settings: KafkaSettings = serde_json::from_str(text).unwrap();
        assert_eq!(settings.properties["linger.ms"], "5");
        assert_eq!(settings.appender().get("linger.ms"), Some("5"));
        assert_eq!(settings.appender().get("socket.keepalive.enable"), Some("true"));
        assert!(serde_json::from_str::<KafkaSettings>(r#"{"servers": "b:1"}"#).is_err());
    }
}
