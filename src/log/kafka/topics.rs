//! Topics: created with what they keep, and trimmed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::topic_partition_list::Offset;

use super::meta::{ANSWER, Meta, failed};
use super::settings::{Context, KafkaSettings};
use super::{blocking, create};
use crate::log::{LogError, Retention, TopicSpec};

/// How long to wait until new topics are led.
const SETTLED: Duration = Duration::from_secs(10);

/// Creates what does not exist; refuses what exists with fewer partitions.
pub(super) async fn create_topics(
    settings: &KafkaSettings,
    meta: &Arc<Meta>,
    specs: &[TopicSpec],
) -> Result<(), LogError> {
    let missing = missing(meta, specs).await?;
    if missing.is_empty() {
        return Ok(());
    }
    let admin: AdminClient<Context> = create(&settings.asking("read_committed"), Context)?;
    let configs: Vec<_> = missing.iter().map(config).collect();
    let mut topics = Vec::with_capacity(missing.len());
    for (spec, config) in missing.iter().zip(&configs) {
        let partitions = i32::try_from(spec.partitions).unwrap_or(i32::MAX);
        let topic = NewTopic::new(&spec.name, partitions, TopicReplication::Fixed(-1));
        topics.push(config.iter().fold(topic, |topic, (name, value)| topic.set(name, value)));
    }
    let options = AdminOptions::new().operation_timeout(Some(ANSWER)).request_timeout(Some(SETTLED));
    let results =
        admin.create_topics(&topics, &options).await.map_err(|error| failed("creating topics", &error))?;
    for result in results {
        match result {
            // Another process was first; how many partitions it has is checked below.
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => return Err(not_created(&topic, code)),
        }
    }
    settle(meta, missing).await
}

/// Which of the topics do not exist.
async fn missing(meta: &Arc<Meta>, specs: &[TopicSpec]) -> Result<Vec<TopicSpec>, LogError> {
    let (meta, specs) = (Arc::clone(meta), specs.to_vec());
    blocking(move || {
        let mut missing = Vec::new();
        for spec in specs {
            match meta.ask_partitions(&spec.name)? {
                Some(there) if there < spec.partitions => {
                    return Err(LogError::Refused(format!(
                        "topic {} has {there} partitions and {} are asked for; add them with \
                         `kafka-topics.sh --alter --topic {} --partitions {}` or ask for fewer",
                        spec.name, spec.partitions, spec.name, spec.partitions
                    )));
                }
                Some(_) => {}
                None => missing.push(spec),
            }
        }
        Ok(missing)
    })
    .await
}

/// Waits until the brokers lead the new topics: before, the first append would find no leader.
async fn settle(meta: &Arc<Meta>, created: Vec<TopicSpec>) -> Result<(), LogError> {
    let begun = tokio::time::Instant::now();
    loop {
        let absent = missing(meta, &created).await?;
        let (asked, names) = (Arc::clone(meta), created.clone());
        let led = blocking(move || Ok(names.iter().all(|spec| asked.is_led(&spec.name)))).await?;
        if absent.is_empty() && led {
            return Ok(());
        }
        if begun.elapsed() > SETTLED {
            return Err(LogError::Unavailable("new topics have no leader yet".to_owned()));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn not_created(topic: &str, code: RDKafkaErrorCode) -> LogError {
    use RDKafkaErrorCode as Code;
    let message = format!("topic {topic} could not be created: {code}");
    match code {
        Code::InvalidTopic
        | Code::InvalidPartitions
        | Code::InvalidConfig
        | Code::PolicyViolation
        | Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed => LogError::Refused(message),
        _ => LogError::Unavailable(message),
    }
}

/// The topic's own settings. How many copies are kept is the cluster's default.
fn config(spec: &TopicSpec) -> Vec<(&'static str, String)> {
    let stamp = if spec.log_append_time { "LogAppendTime" } else { "CreateTime" };
    let mut config = vec![("message.timestamp.type", stamp.to_owned())];
    match spec.retention {
        Retention::Age(age) => {
            let age_ms = age.as_millis();
            // Only closed segments age: by Kafka's default one is closed after a week.
            let segment_ms = (age_ms / 4).clamp(600_000, 7 * 24 * 3_600_000);
            config.push(("cleanup.policy", "delete".to_owned()));
            config.push(("retention.ms", age_ms.to_string()));
            config.push(("segment.ms", segment_ms.to_string()));
        }
        Retention::LatestPerKey => {
            config.push(("cleanup.policy", "compact".to_owned()));
            config.push(("segment.bytes", (16 * 1024 * 1024).to_string()));
            config.push(("min.cleanable.dirty.ratio", "0.1".to_owned()));
        }
    }
    config
}

/// Removes records below `offset`.
pub(super) async fn trim(
    settings: &KafkaSettings,
    meta: &Arc<Meta>,
    topic: &str,
    partition: u32,
    offset: i64,
) -> Result<(), LogError> {
    let (place, asked) = ((topic.to_owned(), super::number(partition)), Arc::clone(meta));
    let about = format!("{topic}/{partition}");
    let asked_place = place.clone();
    let (start, end) = blocking(move || {
        asked.require(&asked_place.0, partition)?;
        let starts = asked.starts(&BTreeSet::from([asked_place.clone()]));
        let starts = starts.map_err(|error| failed(&asked_place.0, &error))?;
        let end = asked.end(&asked_place, super::meta::Counting::Stable)?;
        Ok((starts.get(&asked_place).copied().unwrap_or(0), end))
    })
    .await?;
    let offset = offset.min(end);
    if offset <= start {
        return Ok(());
    }
    let admin: AdminClient<Context> = create(&settings.asking("read_committed"), Context)?;
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&place.0, place.1, Offset::Offset(offset))
        .map_err(|error| failed(&about, &error))?;
    let options = AdminOptions::new().operation_timeout(Some(ANSWER)).request_timeout(Some(SETTLED));
    let answer = admin.delete_records(&list, &options).await.map_err(|error| failed(&about, &error))?;
    answer.elements().iter().try_for_each(|element| element.error()).map_err(|error| failed(&about, &error))
}
