//! Consumer groups: nobody joins one here, but other programs may have committed offsets under its name.

use std::collections::BTreeMap;
use std::sync::Arc;

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::Offset;

use super::meta::{ANSWER, Meta, failed};
use super::settings::{Context, KafkaSettings};
use super::{create, number};
use crate::log::LogError;

/// The next offset that the group has committed, of every partition of the topic that it has one for. Blocks.
pub(super) fn committed(
    settings: &KafkaSettings,
    meta: &Arc<Meta>,
    group: &str,
    topic: &str,
) -> Result<BTreeMap<u32, i64>, LogError> {
    let partitions = meta.ask_partitions(topic)?.unwrap_or_default();
    let consumer: BaseConsumer<Context> = create(&settings.group(group), Context)?;
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition(topic, number(partition));
    }
    let answer = consumer.committed_offsets(list, ANSWER).map_err(|error| failed(group, &error))?;
    let elements = answer.elements();
    let offsets = (0..partitions).filter_map(|partition| {
        let found = elements.iter().find(|element| element.partition() == number(partition))?;
        match found.offset() {
            Offset::Offset(offset) => Some((partition, offset)),
            _ => None,
        }
    });
    Ok(offsets.collect())
}
