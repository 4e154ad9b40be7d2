//! Reads the sinks' topics into the store: each from the start of its retention, then as results are committed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::watch;

use super::store::ResultStore;
use crate::log::program::ProgramView;
use crate::log::{Log, LogError, PartitionRange, ReadBatch, Reader};
use crate::reaction::table::Table;
use crate::shutdown::Tasks;

/// The most bytes one read brings. Small, so that no partition runs far ahead of the others while reading back:
/// windows whose rows are spread over them would wait in memory.
const READ_BYTES: usize = 256 << 10;
/// How long a read at the end waits for the next result.
const READ_WAIT: Duration = Duration::from_secs(1);
/// How long a read waits while the end is not reached.
const BACK_WAIT: Duration = Duration::from_millis(100);
/// How often to look whether a topic has more partitions.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How long to wait before a topic that failed or does not exist yet is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Reads every sink of the program, and follows the program as sinks come, change and go.
pub(super) async fn follow_sinks(
    log: Arc<dyn Log>,
    program: watch::Receiver<Arc<ProgramView>>,
    store: Arc<ResultStore>,
    tasks: Tasks,
) {
    let mut program = program;
    let mut running: HashMap<String, (Arc<Table>, Tasks)> = HashMap::new();
    loop {
        let view = Arc::clone(&program.borrow_and_update());
        let is_current = |name: &String, table: &Arc<Table>| view.tables.get(name) == Some(table);
        let gone: Vec<String> =
            running.iter().filter(|(n, (t, _))| !is_current(n, t)).map(|(n, _)| n.clone()).collect();
        for name in gone {
            if let Some((_, reading)) = running.remove(&name) {
                reading.stop(READ_WAIT).await;
                store.end(&name);
            }
        }
        for table in view.result_tables() {
            if running.contains_key(&table.name) {
                continue;
            }
            let (table, reading) = (Arc::new(table.clone()), tasks.child());
            store.begin(&table);
            reading.spawn(keep_reading(
                Arc::clone(&log),
                Arc::clone(&table),
                Arc::clone(&store),
                reading.clone(),
            ));
            running.insert(table.name.clone(), (table, reading));
        }
        tokio::select! {
            () = tasks.cancelled() => return,
            changed = program.changed() => if changed.is_err() { return },
        }
    }
}

/// Reads one sink until it is cancelled; after a failure it goes on where it was.
async fn keep_reading(log: Arc<dyn Log>, table: Arc<Table>, store: Arc<ResultStore>, tasks: Tasks) {
    loop {
        let read = read_sink(log.as_ref(), &table, &store);
        let ended = tokio::select! {
            () = tasks.cancelled() => return,
            ended = read => ended,
        };
        let Err(error) = ended else { continue };
        tracing::warn!(sink = table.name, %error, "results cannot be read; trying again");
        tokio::select! {
            () = tasks.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

struct Partition {
    number: u32,
    reader: Box<dyn Reader>,
    next: i64,
}

/// Reads back what is there, then what comes. Ends when there are more partitions than before.
async fn read_sink(log: &dyn Log, table: &Arc<Table>, store: &ResultStore) -> Result<(), LogError> {
    let ranges = describe(log, table).await?;
    let mut partitions = open(log, table, store, &ranges).await?;
    loop {
        let behind =
            partitions.iter_mut().zip(&ranges).filter(|(partition, range)| partition.next < range.end);
        let reads: Vec<_> = behind.map(|(partition, _)| read(partition, BACK_WAIT)).collect();
        if reads.is_empty() {
            break;
        }
        for outcome in join_all(reads).await {
            let (number, batch) = outcome?;
            store.apply(&table.name, number, &batch.records, batch.next);
        }
    }
    store.read_back(&table.name);
    let known = partitions.len();
    let mut reads: FuturesUnordered<_> = partitions.into_iter().map(read_owned).collect();
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            Some((partition, outcome)) = reads.next() => {
                let batch = outcome?;
                store.apply(&table.name, partition.number, &batch.records, batch.next);
                reads.push(read_owned(partition));
            }
            _ = look.tick() => if describe(log, table).await?.len() > known { return Ok(()) },
        }
    }
}

async fn describe(log: &dyn Log, table: &Table) -> Result<Vec<PartitionRange>, LogError> {
    log.describe(&table.topic).await?.ok_or_else(|| LogError::UnknownTopic(table.topic.clone()))
}

/// A reader of every partition, from where the store is or the log begins, whichever is later.
async fn open(
    log: &dyn Log,
    table: &Arc<Table>,
    store: &ResultStore,
    ranges: &[PartitionRange],
) -> Result<Vec<Partition>, LogError> {
    let places = || (0..).zip(ranges);
    if places().any(|(number, range)| store.next(&table.name, number).is_some_and(|next| next > range.end)) {
        tracing::warn!(sink = table.name, "the topic was made anew; what was kept of it is forgotten");
        store.begin(table);
    }
    let mut partitions = Vec::with_capacity(ranges.len());
    for (number, range) in places() {
        let next = store.next(&table.name, number).map_or(range.start, |next| next.max(range.start));
        store.apply(&table.name, number, &[], next);
        partitions.push(Partition { number, reader: log.reader(&table.topic, number, next).await?, next });
    }
    Ok(partitions)
}

async fn read(partition: &mut Partition, wait: Duration) -> Result<(u32, ReadBatch), LogError> {
    let batch = partition.reader.read(READ_BYTES, wait).await?;
    partition.next = batch.next;
    Ok((partition.number, batch))
}

async fn read_owned(mut partition: Partition) -> (Partition, Result<ReadBatch, LogError>) {
    let outcome = read(&mut partition, READ_WAIT).await.map(|(_, batch)| batch);
    (partition, outcome)
}
