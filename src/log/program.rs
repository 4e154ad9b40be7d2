//! The running program in the log: tables, queries and their versions, in the topic `emostream.program`.
//!
//! Whoever reads the SQL (the engine's process) stores the program here; ingest, publisher and query follow it, so
//! that they need no SQL of their own. The topic is compacted and has one partition: key `table/NAME` holds a
//! [`Table`], key `query/NAME` a [`QueryEntry`], both as JSON. A change is one transaction, but a follower may see it
//! in two steps when it is longer than one read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{
    Log, LogError, NewRecord, Reader, Record, Retention, TOPIC_CHECKPOINTS, TOPIC_LIVE, TOPIC_MEMBERS,
    TOPIC_PROGRAM, TopicSpec, Transaction,
};
use crate::reaction::table::{Table, TableKind};
use crate::shutdown::Tasks;

/// The id under which the program's writer is fenced.
const WRITER_ID: &str = "emostream.program";
/// How long live messages are kept for clients that resume.
const LIVE_RETENTION: Duration = Duration::from_secs(24 * 3600);
/// How long one read waits for the next change.
const READ_WAIT: Duration = Duration::from_secs(1);
/// The most bytes one read brings.
const READ_BYTES: usize = 1 << 20;
/// How long to wait before the log is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Everything that runs: by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProgramView {
    /// Sources and sinks.
    pub tables: BTreeMap<String, Table>,
    /// Queries.
    pub queries: BTreeMap<String, QueryEntry>,
}

impl ProgramView {
    /// The tables of one kind, by name.
    pub fn tables_of(&self, kind: TableKind) -> impl Iterator<Item = &Table> {
        self.tables.values().filter(move |table| table.kind == kind)
    }
}

/// A query as it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueryEntry {
    /// Its file's name without `.sql`.
    pub name: String,
    /// The whole text of its file.
    pub text: String,
    /// From 1; rises by one whenever the text changes.
    pub version: u64,
    /// The tables it writes.
    #[serde(default)]
    pub sinks: Vec<String>,
    /// The tables it reads.
    pub sources: Vec<String>,
}

/// The topics that exist whatever the SQL says, apart from the clusters' own.
pub fn system_topics() -> Vec<TopicSpec> {
    let topic = |name: &str, retention| TopicSpec {
        name: name.to_owned(),
        partitions: 1,
        retention,
        log_append_time: false,
    };
    vec![
        topic(TOPIC_PROGRAM, Retention::LatestPerKey),
        topic(TOPIC_CHECKPOINTS, Retention::LatestPerKey),
        topic(TOPIC_MEMBERS, Retention::LatestPerKey),
        topic(TOPIC_LIVE, Retention::Age(LIVE_RETENTION)),
    ]
}

/// The topic that carries a table. A sink's records are stamped by the log, unless the sink names a column for that.
pub fn table_topic(table: &Table, partitions: u32, retention: Duration) -> TopicSpec {
    TopicSpec {
        name: table.topic.clone(),
        partitions,
        retention: Retention::Age(retention),
        log_append_time: table.kind == TableKind::Sink && !table.options.contains_key("sink.timestamp_field"),
    }
}

/// Makes `wanted` the running program and returns it with the versions it now has: a new query starts at 1, one whose
/// text changed is one above its old version, others keep theirs (the versions in `wanted` do not matter). What is
/// gone is removed. Writes nothing when nothing changed.
///
/// # Errors
/// As the log's. After an error, store again.
pub async fn store(log: &dyn Log, wanted: &ProgramView) -> Result<ProgramView, LogError> {
    log.create_topics(&system_topics()).await?;
    let mut writer = log.fence(WRITER_ID).await?;
    let running = View::of(log.latest(TOPIC_PROGRAM).await?).program();
    let (program, changes) = changes(&running, wanted)?;
    if !changes.is_empty() {
        let records = changes.into_iter().map(|record| (TOPIC_PROGRAM.to_owned(), 0, record)).collect();
        writer.commit(Transaction { records, consumed: None }).await?;
    }
    Ok(program)
}

/// Reads the program and keeps following it: the receiver always holds the newest one, which is empty until somebody
/// has stored one. Waits while the log is not available.
///
/// # Errors
/// Only when the process stops before the program was read, or the log refuses the topic.
pub async fn follow(log: Arc<dyn Log>, tasks: &Tasks) -> Result<watch::Receiver<Arc<ProgramView>>, LogError> {
    let (mut view, reader) = loop {
        match open(log.as_ref()).await {
            Ok(opened) => break opened,
            Err(error @ LogError::Refused(_)) => return Err(error),
            Err(error) => tracing::warn!(%error, "the running program cannot be read yet; trying again"),
        }
        tokio::select! {
            () = tasks.cancelled() => return Err(LogError::Unavailable("stopped before the program was read".to_owned())),
            () = tokio::time::sleep(RETRY) => {}
        }
    };
    let (sender, receiver) = watch::channel(Arc::new(view.program()));
    let stop = tasks.token();
    tasks.spawn(async move {
        let tailing = tail(log, reader, &mut view, &sender);
        tokio::select! {
            () = stop.cancelled() => {}
            () = tailing => {}
        }
    });
    Ok(receiver)
}

/// What is there now, and a reader that goes on from before it was read: a record seen twice does no harm.
async fn open(log: &dyn Log) -> Result<(View, Box<dyn Reader>), LogError> {
    log.create_topics(&system_topics()).await?;
    let ranges = log.describe(TOPIC_PROGRAM).await?;
    let end = ranges.and_then(|ranges| ranges.first().map(|range| range.end)).unwrap_or(0);
    let view = View::of(log.latest(TOPIC_PROGRAM).await?);
    Ok((view, log.reader(TOPIC_PROGRAM, 0, end).await?))
}

async fn tail(
    log: Arc<dyn Log>,
    reader: Box<dyn Reader>,
    view: &mut View,
    sender: &watch::Sender<Arc<ProgramView>>,
) {
    let mut reader = reader;
    while !sender.is_closed() {
        match reader.read(READ_BYTES, READ_WAIT).await {
            Ok(batch) => {
                let mut changed = false;
                for record in batch.records {
                    changed |= view.apply(record);
                }
                if changed {
                    sender.send_replace(Arc::new(view.program()));
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the running program cannot be read; trying again");
                tokio::time::sleep(RETRY).await;
                if let Ok((anew, next)) = open(log.as_ref()).await {
                    (*view, reader) = (anew, next);
                    sender.send_replace(Arc::new(view.program()));
                }
            }
        }
    }
}

/// The newest record of every key, by offset, so that reading one twice changes nothing.
struct View {
    newest: BTreeMap<Bytes, Record>,
}

impl View {
    fn of(newest: BTreeMap<Bytes, Record>) -> Self {
        Self { newest }
    }

    /// True when the program may have changed.
    fn apply(&mut self, record: Record) -> bool {
        let Some(key) = record.key.clone() else { return false };
        if self.newest.get(&key).is_some_and(|known| known.offset >= record.offset) {
            return false;
        }
        self.newest.insert(key, record);
        true
    }

    fn program(&self) -> ProgramView {
        let mut program = ProgramView::default();
        for (key, record) in &self.newest {
            let (Ok(key), Some(value)) = (std::str::from_utf8(key), &record.value) else { continue };
            let read = match key.split_once('/') {
                Some(("table", name)) => serde_json::from_slice(value).map(|table| {
                    program.tables.insert(name.to_owned(), table);
                }),
                Some(("query", name)) => serde_json::from_slice(value).map(|query| {
                    program.queries.insert(name.to_owned(), query);
                }),
                _ => continue,
            };
            if let Err(error) = read {
                tracing::error!(key, offset = record.offset, %error, "an entry of the program is not readable; left out");
            }
        }
        program
    }
}

/// `wanted` with its versions, and the records that lead there from `running`.
fn changes(running: &ProgramView, wanted: &ProgramView) -> Result<(ProgramView, Vec<NewRecord>), LogError> {
    let mut program = wanted.clone();
    let mut records = Vec::new();
    for query in program.queries.values_mut() {
        query.version = match running.queries.get(&query.name) {
            None => 1,
            Some(old) if old.text == query.text => old.version,
            Some(old) => old.version + 1,
        };
    }
    for (name, table) in &program.tables {
        if running.tables.get(name) != Some(table) {
            records.push(entry("table", name, Some(table))?);
        }
    }
    for (name, query) in &program.queries {
        if running.queries.get(name) != Some(query) {
            records.push(entry("query", name, Some(query))?);
        }
    }
    for name in running.tables.keys().filter(|name| !program.tables.contains_key(*name)) {
        records.push(entry::<Table>("table", name, None)?);
    }
    for name in running.queries.keys().filter(|name| !program.queries.contains_key(*name)) {
        records.push(entry::<QueryEntry>("query", name, None)?);
    }
    Ok((program, records))
}

fn entry<T: Serialize>(kind: &str, name: &str, value: Option<&T>) -> Result<NewRecord, LogError> {
    let value =
        value.map(serde_json::to_vec).transpose().map_err(|error| LogError::Refused(error.to_string()))?;
    Ok(NewRecord {
        key: Some(Bytes::from(format!("{kind}/{name}"))),
        value: value.map(Bytes::from),
        headers: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reaction::table::{Format, TableOptions};

    fn program(queries: &[(&str, &str)]) -> ProgramView {
        let table = Table {
            name: "counts".to_owned(),
            kind: TableKind::Sink,
            topic: "counts".to_owned(),
            format: Format::Json,
            columns: Vec::new(),
            watermark: None,
            key_field: None,
            options: BTreeMap::new(),
            with: TableOptions::default(),
        };
        let query = |&(name, text): &(&str, &str)| QueryEntry {
            name: name.to_owned(),
            text: text.to_owned(),
            version: 0,
            sinks: vec!["counts".to_owned()],
            sources: vec!["reactions".to_owned()],
        };
        ProgramView {
            tables: BTreeMap::from([(table.name.clone(), table)]),
            queries: queries.iter().map(query).map(|query| (query.name.clone(), query)).collect(),
        }
    }

    /// A log's topic in memory: the records of all changes so far.
    fn replayed(steps: &[Vec<NewRecord>]) -> ProgramView {
        let mut view = View::of(BTreeMap::new());
        for (offset, record) in (0..).zip(steps.iter().flatten()) {
            let NewRecord { key, value, headers } = record.clone();
            view.apply(Record { offset, timestamp_ms: 0, key, value, headers });
        }
        view.program()
    }

    #[test]
    fn a_query_whose_text_changes_gets_the_next_version() {
        let (first, one) =
            changes(&ProgramView::default(), &program(&[("a", "SELECT 1"), ("b", "SELECT 2")])).unwrap();
        let (second, two) = changes(&first, &program(&[("a", "SELECT 3"), ("b", "SELECT 2")])).unwrap();
        assert_eq!(second.queries["a"].version, 2);
        assert_eq!(second.queries["b"].version, 1);
        assert_eq!((one.len(), two.len()), (3, 1));
        assert_eq!(replayed(&[one, two]), second);
    }

    #[test]
    fn what_is_gone_is_removed_and_what_stays_is_not_written_again() {
        let (first, one) =
            changes(&ProgramView::default(), &program(&[("a", "SELECT 1"), ("b", "SELECT 2")])).unwrap();
        let (second, two) = changes(&first, &program(&[("b", "SELECT 2")])).unwrap();
        assert_eq!(two.len(), 1);
        assert_eq!(replayed(&[one, two]), second);
        assert!(changes(&second, &second).unwrap().1.is_empty());
    }
}
