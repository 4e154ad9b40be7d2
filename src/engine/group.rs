//! Consumer groups, as other programs know them: under which a query's positions are committed, and where a first
//! start with `'source.offset' = 'group'` begins. The query itself goes by its checkpoint.

use std::collections::BTreeMap;

use super::compile::CompiledQuery;
use crate::log::{Consumed, Log, LogError, PartitionRange};
use crate::reaction::checkpoint::Checkpoint;
use crate::reaction::table::{SourceOffset, Table};

/// The group of a source: the table's, or the query's own.
fn group_of(query: &CompiledQuery, source: &Table) -> String {
    source.with.group_id.clone().unwrap_or_else(|| format!("emostream.{}", query.name))
}

/// What is read up to that checkpoint, by group.
pub(super) fn consumed(query: &CompiledQuery, checkpoint: &Checkpoint) -> Vec<Consumed> {
    let mut groups: BTreeMap<String, Vec<(String, u32, i64)>> = BTreeMap::new();
    for source in &query.sources {
        let topic = &source.table.topic;
        let positions = checkpoint.sources.get(topic).into_iter().flatten().zip(0..);
        let group = groups.entry(group_of(query, &source.table)).or_default();
        group.extend(positions.map(|(position, partition)| (topic.clone(), partition, position.seen)));
    }
    groups.into_iter().collect()
}

/// By source and partition, the first record of interest to a query that has no checkpoint of that topic: the log's
/// first, or where the group stands as far as the log still has that.
pub(super) async fn starts(
    log: &dyn Log,
    query: &CompiledQuery,
    checkpoint: Option<&Checkpoint>,
    ranges: &[Vec<PartitionRange>],
) -> Result<Vec<Vec<i64>>, LogError> {
    let mut all = Vec::with_capacity(ranges.len());
    for (source, ranges) in query.sources.iter().zip(ranges) {
        let table = &source.table;
        let is_known = checkpoint.is_some_and(|checkpoint| checkpoint.sources.contains_key(&table.topic));
        let committed = match table.with.source_offset {
            SourceOffset::Group if !is_known => log.committed(&group_of(query, table), &table.topic).await?,
            _ => BTreeMap::new(),
        };
        let start = |(partition, range): (u32, &PartitionRange)| {
            committed.get(&partition).map_or(range.start, |offset| *offset.clamp(&range.start, &range.end))
        };
        all.push((0..).zip(ranges).map(start).collect());
    }
    Ok(all)
}
