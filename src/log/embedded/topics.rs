//! The topics by name, the instant at which a group becomes visible, and what trims must leave.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::partition::{Look, Partition};
use crate::log::{LogError, PartitionRange, Retention, TopicSpec};

/// A topic and its partitions; never changes once it is there.
#[derive(Debug)]
pub(super) struct Topic {
    pub(super) name: Arc<str>,
    pub(super) retention: Retention,
    pub(super) partitions: Vec<Arc<Partition>>,
}

impl Topic {
    pub(super) fn is_compacted(&self) -> bool {
        self.retention == Retention::LatestPerKey
    }
}

/// All topics. Its lock is also what makes a group visible at one instant: the writer publishes under the write
/// half, readers look under the read half.
#[derive(Debug, Default)]
pub(super) struct Topics {
    by_name: RwLock<HashMap<Arc<str>, Arc<Topic>>>,
}

type ByName = HashMap<Arc<str>, Arc<Topic>>;

impl Topics {
    pub(super) fn new(topics: Vec<Topic>) -> Self {
        let by_name = topics.into_iter().map(|topic| (Arc::clone(&topic.name), Arc::new(topic))).collect();
        Self { by_name: RwLock::new(by_name) }
    }

    pub(super) fn get(&self, topic: &str) -> Result<Arc<Topic>, LogError> {
        self.read().get(topic).cloned().ok_or_else(|| LogError::UnknownTopic(topic.to_owned()))
    }

    pub(super) fn partition(&self, topic: &str, number: u32) -> Result<Arc<Partition>, LogError> {
        let topics = self.read();
        let partition =
            topics.get(topic).and_then(|topic| topic.partitions.get(usize::try_from(number).ok()?));
        partition.cloned().ok_or_else(|| LogError::UnknownTopic(format!("{topic}/{number}")))
    }

    pub(super) fn ranges(&self, topic: &str) -> Option<Vec<PartitionRange>> {
        let topics = self.read();
        Some(topics.get(topic)?.partitions.iter().map(|partition| partition.range()).collect())
    }

    pub(super) fn all(&self) -> Vec<Arc<Topic>> {
        self.read().values().cloned().collect()
    }

    /// [`Partition::look`], never in the middle of a group.
    pub(super) fn look(&self, partition: &Partition, from: i64, max_bytes: usize, now_ms: i64) -> Look {
        let _whole_groups = self.read();
        partition.look(from, max_bytes, now_ms)
    }

    /// Nobody looks while this is held.
    pub(super) fn publish(&self) -> RwLockWriteGuard<'_, ByName> {
        self.by_name.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, ByName> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The most partitions a topic can have.
const MAX_PARTITIONS: u32 = 1024;

/// Whether a topic can be made like this.
pub(super) fn check(spec: &TopicSpec) -> Result<(), LogError> {
    let is_legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if spec.name.is_empty() || spec.name.len() > 249 || !spec.name.chars().all(is_legal) {
        return Err(LogError::Refused(format!(
            "{:?} is no name for a topic: 1 to 249 letters, digits, '.', '_', '-'",
            spec.name
        )));
    }
    if !(1..=MAX_PARTITIONS).contains(&spec.partitions) {
        return Err(LogError::Refused(format!(
            "topic {} with {} partitions; it takes 1 to {MAX_PARTITIONS}",
            spec.name, spec.partitions
        )));
    }
    Ok(())
}

/// By partition id and holder, the offset below which that holder needs nothing any more. The file knows each of
/// them at its first value and as it was at the last trim, which is never above the true one.
#[derive(Debug, Default)]
pub(super) struct Holds {
    by_partition: HashMap<i64, HashMap<String, i64>>,
}

impl Holds {
    /// Moves a hold that is there; false when it is not.
    pub(super) fn move_to(&mut self, holder: &str, partition: i64, offset: i64) -> bool {
        let held = self.by_partition.get_mut(&partition).and_then(|holders| holders.get_mut(holder));
        held.map(|held| *held = offset).is_some()
    }

    pub(super) fn set(&mut self, holder: &str, partition: i64, offset: Option<i64>) {
        let holders = self.by_partition.entry(partition).or_default();
        match offset {
            Some(offset) => holders.insert(holder.to_owned(), offset),
            None => holders.remove(holder),
        };
    }

    /// What a trim of this partition must not pass.
    pub(super) fn floor(&self, partition: i64) -> Option<i64> {
        self.by_partition.get(&partition)?.values().copied().min()
    }

    pub(super) fn of(&self, partition: i64) -> Vec<(String, i64)> {
        let holders = self.by_partition.get(&partition);
        holders.into_iter().flatten().map(|(holder, offset)| (holder.clone(), *offset)).collect()
    }
}
