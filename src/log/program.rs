//! The running program in the log: tables, queries and their versions, in the topic `emostream.program`.
//!
//! Whoever reads the SQL (the engine's process) stores the program here; ingest, publisher and query follow it, so
//! that they need no SQL of their own. The topic is compacted and has one partition: key `table/NAME` holds a
//! [`Table`], key `query/NAME` a [`QueryEntry`], key `version/NAME/NUMBER` a [`VersionEntry`], key `file/NAME` the
//! text of a file, all as JSON. A change is one transaction, but a follower may see it in two steps when it is longer
//! than one read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{
    Log, LogError, NewRecord, Reader, Record, Retention, TOPIC_BAD, TOPIC_CHECKPOINTS, TOPIC_LIVE,
    TOPIC_MEMBERS, TOPIC_PROGRAM, TOPIC_REGISTRATIONS, TopicSpec, Transaction, late_topic,
};
use crate::reaction::table::{LateRows, Table, TableKind};
use crate::reaction::time::rfc3339;
use crate::shutdown::Tasks;

/// How many versions of a query are kept, the running one included; older ones are forgotten.
pub const VERSIONS_KEPT: usize = 50;
/// The id under which the program's writer is fenced.
const WRITER_ID: &str = "emostream.program";
/// How long live messages are kept for clients that resume.
const LIVE_RETENTION: Duration = Duration::from_secs(24 * 3600);
/// How long records that could not be read are kept for inspection.
const BAD_RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);
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
    /// The newest versions of each query by number, the running one among them.
    pub versions: BTreeMap<String, BTreeMap<u64, VersionEntry>>,
    /// The files that all of this was planned from, by name without folder: their texts.
    pub files: BTreeMap<String, String>,
}

impl ProgramView {
    /// Why the newest version of a query is not the one that runs; `None` when it runs.
    pub fn rolled_back(&self, query: &str) -> Option<&VersionEntry> {
        let newest = self.versions.get(query)?.values().next_back()?;
        newest.failed.as_ref().and(Some(newest))
    }

    /// The sinks whose rows can be read, by name.
    pub fn result_tables(&self) -> impl Iterator<Item = &Table> {
        self.tables_of(TableKind::Sink).filter(|table| table.is_in_the_log())
    }

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
    /// From 1; a changed text gets the number after the highest that was ever given to the query.
    pub version: u64,
    /// The tables it writes.
    #[serde(default)]
    pub sinks: Vec<String>,
    /// The tables it reads.
    pub sources: Vec<String>,
}

/// One version of a query.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionEntry {
    /// Its number.
    pub version: u64,
    /// The whole text of its file.
    pub text: String,
    /// When it was put, nanoseconds since the Unix epoch; RFC 3339 in JSON.
    #[serde(with = "rfc3339")]
    pub since: i64,
    /// Why it was rolled back.
    pub failed: Option<String>,
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
        topic(TOPIC_REGISTRATIONS, Retention::LatestPerKey),
        topic(TOPIC_LIVE, Retention::Age(LIVE_RETENTION)),
        topic(TOPIC_BAD, Retention::Age(BAD_RETENTION)),
    ]
}

/// The topic that carries a table. A sink's records are stamped by the log, unless the sink names a column for that.
pub fn table_topic(table: &Table, partitions: u32, retention: Duration) -> TopicSpec {
    TopicSpec {
        name: table.topic.clone(),
        partitions,
        retention: Retention::Age(retention),
        log_append_time: table.kind == TableKind::Sink && table.with.timestamp_field.is_none(),
    }
}

/// The topic of a table's late rows, when it wants them in one: like the table's own, so that a table over it can be read.
pub fn late_table_topic(table: &Table, partitions: u32, retention: Duration) -> Option<TopicSpec> {
    let is_wanted = table.kind == TableKind::Source && table.with.late_rows == LateRows::Table;
    let own = || table_topic(table, partitions, retention);
    is_wanted.then(|| TopicSpec { name: late_topic(&table.topic), ..own() })
}

/// The running program as it is now; empty when nobody has stored one.
///
/// # Errors
/// As the log's.
pub async fn read(log: &dyn Log) -> Result<ProgramView, LogError> {
    log.create_topics(&system_topics()).await?;
    Ok(View::of(log.latest(TOPIC_PROGRAM).await?).program())
}

/// Makes `wanted` the running program and returns it with the versions it now has: a new query starts at 1, one whose
/// text changed gets the next number, others keep theirs (versions in `wanted` do not matter). What is gone is removed,
/// with its versions. Writes nothing when nothing changed. `now` stamps new versions.
///
/// # Errors
/// As the log's. After an error, store again.
pub async fn store(log: &dyn Log, wanted: &ProgramView, now: i64) -> Result<ProgramView, LogError> {
    change(log, |running| numbered(running, wanted, now)).await
}

/// Makes `to` the running version of a query again, because version `failed` failed and why. The program comes back as
/// it is then; nothing changes when either is not there.
///
/// # Errors
/// As the log's. After an error, do it again.
pub async fn roll_back(
    log: &dyn Log,
    query: &str,
    failed: u64,
    to: u64,
    reason: &str,
) -> Result<ProgramView, LogError> {
    change(log, |running| {
        let mut program = running.clone();
        let versions = program.versions.entry(query.to_owned()).or_default();
        let text = versions.get(&to).map(|entry| entry.text.clone());
        if let (Some(text), Some(failed)) = (text, versions.get_mut(&failed)) {
            failed.failed = Some(reason.to_owned());
            if let Some(file) = program.files.get_mut(&format!("{query}.sql")) {
                text.clone_into(file);
            }
            if let Some(entry) = program.queries.get_mut(query) {
                (entry.version, entry.text) = (to, text);
            }
        }
        program
    })
    .await
}

/// One transaction from the running program to another.
async fn change(
    log: &dyn Log,
    to: impl FnOnce(&ProgramView) -> ProgramView,
) -> Result<ProgramView, LogError> {
    log.create_topics(&system_topics()).await?;
    let mut writer = log.fence(WRITER_ID).await?;
    let running = View::of(log.latest(TOPIC_PROGRAM).await?).program();
    let program = to(&running);
    let changes = changes(&running, &program)?;
    if !changes.is_empty() {
        let records = changes.into_iter().map(|record| (TOPIC_PROGRAM.to_owned(), 0, record)).collect();
        writer.commit(Transaction { records, consumed: Vec::new() }).await?;
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
            if let Err(error) = program.take(key, value) {
                tracing::error!(key, offset = record.offset, %error, "an entry of the program is not readable; left out");
            }
        }
        program
    }
}

impl ProgramView {
    /// Takes in an entry; unknown kinds are of a later version of this program and left out.
    fn take(&mut self, key: &str, value: &[u8]) -> Result<(), serde_json::Error> {
        match key.split_once('/') {
            Some(("table", name)) => {
                drop(self.tables.insert(name.to_owned(), serde_json::from_slice(value)?))
            }
            Some(("query", name)) => {
                drop(self.queries.insert(name.to_owned(), serde_json::from_slice(value)?))
            }
            Some(("file", name)) => drop(self.files.insert(name.to_owned(), serde_json::from_slice(value)?)),
            Some(("version", rest)) => {
                let (query, entry) = (rest.split('/').next().unwrap_or(rest), serde_json::from_slice(value)?);
                let VersionEntry { version, .. } = entry;
                self.versions.entry(query.to_owned()).or_default().insert(version, entry);
            }
            _ => {}
        }
        Ok(())
    }

    /// Every entry by key.
    fn entries(&self) -> Result<BTreeMap<String, Vec<u8>>, serde_json::Error> {
        let mut entries = BTreeMap::new();
        for (name, table) in &self.tables {
            entries.insert(format!("table/{name}"), serde_json::to_vec(table)?);
        }
        for (name, query) in &self.queries {
            entries.insert(format!("query/{name}"), serde_json::to_vec(query)?);
        }
        for (name, text) in &self.files {
            entries.insert(format!("file/{name}"), serde_json::to_vec(text)?);
        }
        for (query, versions) in &self.versions {
            for (version, entry) in versions {
                entries.insert(format!("version/{query}/{version}"), serde_json::to_vec(entry)?);
            }
        }
        Ok(entries)
    }
}

/// `wanted` with its versions, as they follow those of `running`.
fn numbered(running: &ProgramView, wanted: &ProgramView, now: i64) -> ProgramView {
    let mut program = wanted.clone();
    program.versions = BTreeMap::new();
    for query in program.queries.values_mut() {
        let mut versions = running.versions.get(&query.name).cloned().unwrap_or_default();
        let highest = versions.keys().next_back().copied().unwrap_or(0);
        query.version = match running.queries.get(&query.name) {
            Some(old) if old.text == query.text => old.version,
            old => old.map_or(0, |old| old.version).max(highest) + 1,
        };
        let entry =
            VersionEntry { version: query.version, text: query.text.clone(), since: now, failed: None };
        versions.entry(query.version).or_insert(entry);
        while versions.len() > VERSIONS_KEPT
            && let Some(oldest) = versions.keys().copied().find(|version| *version != query.version)
        {
            versions.remove(&oldest);
        }
        program.versions.insert(query.name.clone(), versions);
    }
    program
}

/// The records that lead from one program to another.
fn changes(running: &ProgramView, program: &ProgramView) -> Result<Vec<NewRecord>, LogError> {
    let unreadable = |error: serde_json::Error| LogError::Refused(error.to_string());
    let (before, after) = (running.entries().map_err(unreadable)?, program.entries().map_err(unreadable)?);
    let gone = before.keys().filter(|key| !after.contains_key(*key));
    let gone = gone.map(|key| NewRecord::keyed(key.clone(), None));
    let gone: Vec<_> = gone.collect();
    let changed = after.into_iter().filter(|(key, value)| before.get(key) != Some(value));
    Ok(changed.map(|(key, value)| NewRecord::keyed(key, Some(value.into()))).chain(gone).collect())
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
            ..ProgramView::default()
        }
    }

    /// A log's topic in memory: the records of all changes so far.
    fn replayed(steps: &[Vec<NewRecord>]) -> ProgramView {
        let mut view = View::of(BTreeMap::new());
        for (offset, record) in (0..).zip(steps.iter().flatten()) {
            let NewRecord { key, value, headers, .. } = record.clone();
            view.apply(Record { offset, timestamp_ms: 0, key, value, headers });
        }
        view.program()
    }

    /// The next program, and the records that lead there.
    fn step(running: &ProgramView, wanted: &ProgramView) -> (ProgramView, Vec<NewRecord>) {
        let program = numbered(running, wanted, 1_000);
        let records = changes(running, &program).unwrap();
        (program, records)
    }

    #[test]
    fn a_query_whose_text_changes_gets_the_next_version() {
        let (first, one) = step(&ProgramView::default(), &program(&[("a", "SELECT 1"), ("b", "SELECT 2")]));
        let (second, two) = step(&first, &program(&[("a", "SELECT 3"), ("b", "SELECT 2")]));
        assert_eq!(second.queries["a"].version, 2);
        assert_eq!(second.queries["b"].version, 1);
        // Each query comes with its version.
        assert_eq!((one.len(), two.len()), (5, 2));
        assert_eq!(replayed(&[one, two]), second);
        let texts: Vec<_> = second.versions["a"].values().map(|entry| entry.text.as_str()).collect();
        assert_eq!(texts, ["SELECT 1", "SELECT 3"]);
    }

    #[test]
    fn what_is_gone_is_removed_and_what_stays_is_not_written_again() {
        let (first, one) = step(&ProgramView::default(), &program(&[("a", "SELECT 1"), ("b", "SELECT 2")]));
        let (second, two) = step(&first, &program(&[("b", "SELECT 2")]));
        assert_eq!(two.len(), 2);
        assert_eq!(replayed(&[one, two]), second);
        assert!(step(&second, &second).1.is_empty());
    }

    #[test]
    fn a_number_is_never_given_twice_and_old_versions_are_forgotten() {
        let (mut running, _) = step(&ProgramView::default(), &program(&[("a", "SELECT 0")]));
        for n in 1..60 {
            running = step(&running, &program(&[("a", &format!("SELECT {n}"))])).0;
        }
        let kept: Vec<u64> = running.versions["a"].keys().copied().collect();
        assert_eq!(kept, (11..=60).collect::<Vec<_>>());
        // Rolled back to 59: the next one is 61 all the same.
        let query = running.queries.get_mut("a").unwrap();
        (query.version, query.text) = (59, "SELECT 58".to_owned());
        let (next, _) = step(&running, &program(&[("a", "SELECT 59")]));
        assert_eq!(next.queries["a"].version, 61);
    }
}
