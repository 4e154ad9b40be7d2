//! The newest record of every key of a compacted topic, complete up to the moment of the call.
//!
//! The last stable offset is not the end: below another writer's open transaction there may be committed records that
//! no committed reader is shown yet. So the high watermark is taken first, then the open transactions are waited for,
//! and only then is the topic read, up to the first end it meets.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::Offset;
use tokio::time::Instant;

use super::meta::{ANSWER, Counting, Meta, Place, failed};
use super::reader::record;
use super::settings::{Context, KafkaSettings};
use super::{create, number};
use crate::log::{LogError, Record};

/// How long open transactions are waited for: brokers abort one after its own time-out, ours after 10 s.
const DECIDED: Duration = Duration::from_secs(60);
/// How often is asked whether they are decided.
const ASK: Duration = Duration::from_millis(10);
/// How long a partition may be silent before its end.
const SILENCE: Duration = Duration::from_secs(10);

/// See [`crate::log::Log::latest`], and with `only` one key [`crate::log::Log::latest_of`]. Blocks.
pub(super) fn latest(
    settings: &KafkaSettings,
    meta: &Meta,
    topic: &str,
    only: Option<&Bytes>,
) -> Result<BTreeMap<Bytes, Record>, LogError> {
    let Some(partitions) = meta.ask_partitions(topic)? else {
        return Err(LogError::UnknownTopic(topic.to_owned()));
    };
    let places: BTreeSet<Place> =
        (0..partitions).map(|partition| (topic.to_owned(), number(partition))).collect();
    let about = |error: KafkaError| failed(topic, &error);
    let ends = meta.ends(&places, Counting::All, ANSWER).map_err(about)?;
    let starts = meta.starts(&places).map_err(about)?;
    let mut newest = BTreeMap::new();
    let mut consumer: Option<BaseConsumer<Context>> = None;
    for place in &places {
        let (Some(&start), Some(&end)) = (starts.get(place), ends.get(place)) else {
            return Err(LogError::Unavailable(format!(
                "the brokers do not say where {topic}/{} ends",
                place.1
            )));
        };
        if start == end {
            continue;
        }
        wait_until_decided(meta, place, end)?;
        let consumer = match &mut consumer {
            Some(consumer) => consumer,
            none => none.insert(create(&settings.scanner(), Context)?),
        };
        scan(consumer, place, only, &mut newest)?;
    }
    Ok(newest)
}

/// Waits until no transaction that began below `end` is open.
fn wait_until_decided(meta: &Meta, place: &Place, end: i64) -> Result<(), LogError> {
    let begun = Instant::now();
    while meta.end(place, Counting::Stable)? < end {
        if begun.elapsed() > DECIDED {
            return Err(LogError::Unavailable(format!(
                "a transaction on {}/{} has been open for {} s",
                place.0,
                place.1,
                DECIDED.as_secs()
            )));
        }
        std::thread::park_timeout(ASK);
    }
    Ok(())
}

/// Reads a partition from its start to the first end it meets. What compaction removes meanwhile was not the newest.
fn scan(
    consumer: &BaseConsumer<Context>,
    place: &Place,
    only: Option<&Bytes>,
    newest: &mut BTreeMap<Bytes, Record>,
) -> Result<(), LogError> {
    let about = |error: KafkaError| failed(&place.0, &error);
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&place.0, place.1, Offset::Beginning).map_err(about)?;
    consumer.assign(&list).map_err(about)?;
    let mut heard = Instant::now();
    loop {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                heard = Instant::now();
                let mut record = record(&message, Bytes::copy_from_slice);
                let Some(key) = record.key.clone() else { continue };
                if record.value.is_some() {
                    if only.is_some_and(|only| *only != key) {
                        record.value = None;
                    }
                    newest.insert(key, record);
                } else {
                    newest.remove(&key);
                }
            }
            Some(Err(KafkaError::PartitionEOF(_))) => break,
            Some(Err(error)) => tracing::debug!("reading {}/{}: {error}", place.0, place.1),
            None => {}
        }
        if heard.elapsed() > SILENCE {
            return Err(LogError::Unavailable(format!("{}/{} cannot be read to its end", place.0, place.1)));
        }
    }
    consumer.unassign().map_err(about)
}
