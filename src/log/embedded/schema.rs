//! The file: its settings, its tables, and how rows become topics and records.
//!
//! `records_N` holds the records of the partition with id N. A partition's start is written when it is raised; its
//! end is one past its last record, and written only where that record may be deleted.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::partition::{Budget, Partition, Standing};
use super::topics::{Holds, Topic, Topics};
use super::{OpenError, headers, not_written};
use crate::log::{LogError, ReadBatch, Record, Retention};

/// "emos", so that `file` and we tell our files from others.
const APPLICATION_ID: i64 = 0x656d_6f73;
/// Raised with every change of the tables.
const VERSION: i64 = 1;
/// How long SQLite waits for a lock of its own; they are short.
pub(super) const BUSY: Duration = Duration::from_secs(5);

/// Page size and vacuum mode must come before the first table and WAL mode.
const NEW_FILE: &str = "PRAGMA page_size = 32768; PRAGMA auto_vacuum = INCREMENTAL;";
/// A checkpoint is never left to chance: the housekeeping makes them.
const CONNECTION: &str = "PRAGMA synchronous = FULL; PRAGMA fullfsync = ON; PRAGMA wal_autocheckpoint = 0;
    PRAGMA journal_size_limit = 67108864; PRAGMA cache_size = -16384; PRAGMA temp_store = MEMORY;";
const TABLES: &str = "
    BEGIN IMMEDIATE;
    CREATE TABLE topic (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
        retention_ms INTEGER -- null: the newest record per key
    ) STRICT;
    CREATE TABLE partition (
        id INTEGER PRIMARY KEY, topic INTEGER NOT NULL REFERENCES topic (id), number INTEGER NOT NULL,
        start INTEGER NOT NULL DEFAULT 0, end INTEGER NOT NULL DEFAULT 0, UNIQUE (topic, number)
    ) STRICT;
    CREATE TABLE writer (id TEXT PRIMARY KEY, epoch INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE hold (
        partition INTEGER NOT NULL, holder TEXT NOT NULL, offset INTEGER NOT NULL, PRIMARY KEY (partition, holder)
    ) STRICT, WITHOUT ROWID;";

/// Opens the file for writing, making it and its tables when missing.
pub(super) fn open(path: &Path) -> Result<Connection, OpenError> {
    let failed = |error: rusqlite::Error| OpenError::Database {
        path: path.display().to_string(),
        message: error.to_string(),
    };
    let connection = connect(path).map_err(failed)?;
    let number = |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let (application, version) = (number("application_id"), number("user_version"));
    match (application.map_err(failed)?, version.map_err(failed)?) {
        (APPLICATION_ID, VERSION) => {}
        (0, 0) if is_empty(&connection).map_err(failed)? => {
            let finish =
                format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION}; COMMIT;");
            connection.execute_batch(&format!("{TABLES}{finish}")).map_err(failed)?;
        }
        (APPLICATION_ID, version) => {
            let path = path.display();
            return Err(OpenError::NotOurs(format!(
                "{path} has format {version}; this program reads {VERSION}"
            )));
        }
        _ => return Err(OpenError::NotOurs(format!("{} is not a file of this program", path.display()))),
    }
    Ok(connection)
}

/// A connection that may write, with the settings that are not kept in the file.
pub(super) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(1024);
    connection.execute_batch(NEW_FILE)?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))?;
    connection.execute_batch(CONNECTION)?;
    Ok(connection)
}

/// The pages of the file and how many of them are free.
pub(super) fn pages(db: &Connection) -> rusqlite::Result<(u64, u64)> {
    let number = |name| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let [pages, free] = [number("page_count")?, number("freelist_count")?];
    Ok((u64::try_from(pages).unwrap_or(0), u64::try_from(free).unwrap_or(0)))
}

fn is_empty(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0))
}

/// Adds a topic's rows and its partitions' tables; the ids of the partitions.
pub(super) fn create_topic(
    db: &Connection,
    name: &str,
    partitions: u32,
    retention: Retention,
) -> rusqlite::Result<Vec<i64>> {
    let retention_ms = match retention {
        Retention::Age(age) => Some(i64::try_from(age.as_millis()).unwrap_or(i64::MAX)),
        Retention::LatestPerKey => None,
    };
    db.execute("INSERT INTO topic (name, retention_ms) VALUES (?1, ?2)", params![name, retention_ms])?;
    let topic = db.last_insert_rowid();
    let mut ids = Vec::new();
    for number in 0..partitions {
        db.execute("INSERT INTO partition (topic, number) VALUES (?1, ?2)", params![topic, number])?;
        let id = db.last_insert_rowid();
        db.execute_batch(&format!(
            "CREATE TABLE records_{id} (
                offset INTEGER PRIMARY KEY, time INTEGER NOT NULL, key BLOB, headers BLOB, value BLOB
            ) STRICT"
        ))?;
        if retention == Retention::LatestPerKey {
            db.execute_batch(&format!("CREATE UNIQUE INDEX records_{id}_key ON records_{id} (key)"))?;
        }
        ids.push(id);
    }
    Ok(ids)
}

/// All topics with their partitions as they stand.
pub(super) fn load_topics(db: &Connection, tail_limit: usize) -> rusqlite::Result<Topics> {
    let mut topics = Vec::new();
    let mut rows = db.prepare("SELECT id, name, retention_ms FROM topic")?;
    let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    for row in rows {
        let (id, name, retention_ms): (i64, String, Option<i64>) = row?;
        let name: Arc<str> = Arc::from(name);
        let retention = retention_ms.map_or(Retention::LatestPerKey, |age_ms| {
            Retention::Age(Duration::from_millis(u64::try_from(age_ms).unwrap_or(0)))
        });
        let mut partitions = Vec::new();
        let mut rows = db.prepare("SELECT id, start, end FROM partition WHERE topic = ?1 ORDER BY number")?;
        let rows = rows.query_map([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        for (number, row) in (0..).zip(rows) {
            let (id, start, end): (i64, i64, i64) = row?;
            let is_compacted = retention == Retention::LatestPerKey;
            let at = Standing { start, end, clock_ms: 0 };
            let empty = Partition::new(id, Arc::clone(&name), number, is_compacted, tail_limit, at);
            let last = db.query_row(&empty.sql.last, [], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
            let (last, clock_ms): (i64, i64) = last.unwrap_or((-1, 0));
            let at = Standing { start, end: end.max(last + 1), clock_ms };
            let partition = Partition::new(id, Arc::clone(&name), number, is_compacted, tail_limit, at);
            partitions.push(Arc::new(partition));
        }
        topics.push(Topic { name, retention, partitions });
    }
    Ok(Topics::new(topics))
}

/// The holds on trims as they were last written.
pub(super) fn load_holds(db: &Connection) -> rusqlite::Result<Holds> {
    let mut holds = Holds::default();
    let mut rows = db.prepare("SELECT partition, holder, offset FROM hold")?;
    let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    for row in rows {
        let (partition, holder, offset): (i64, String, i64) = row?;
        holds.set(&holder, partition, Some(offset));
    }
    Ok(holds)
}

/// The records of a partition in `from..until`, as many as `max_bytes` allow.
pub(super) fn read(
    db: &Connection,
    partition: &Partition,
    from: i64,
    until: i64,
    max_bytes: usize,
) -> Result<ReadBatch, LogError> {
    let failed = |error: rusqlite::Error| not_written(&error);
    let mut statement = db.prepare_cached(&partition.sql.select).map_err(failed)?;
    let mut rows = statement.query([from, until]).map_err(failed)?;
    let mut batch = ReadBatch { records: Vec::new(), next: until, complete_until_ms: None };
    let mut budget = Budget::new(max_bytes);
    while let Some(row) = rows.next().map_err(failed)? {
        let record = record(row, partition)?;
        if !budget.take(&record) {
            batch.next = record.offset;
            break;
        }
        let next = record.offset + 1;
        batch.records.push(record);
        if budget.is_spent() {
            batch.next = next;
            break;
        }
    }
    Ok(batch)
}

/// The newest record of every key that has a value; with its value, or only of one key.
pub(super) fn latest(
    db: &Connection,
    topic: &Topic,
    only: Option<&Bytes>,
) -> Result<BTreeMap<Bytes, Record>, LogError> {
    let failed = |error: rusqlite::Error| not_written(&error);
    let mut newest: BTreeMap<Bytes, Record> = BTreeMap::new();
    for partition in &topic.partitions {
        let mut statement = db.prepare_cached(&partition.sql.select_live).map_err(failed)?;
        let mut rows = statement.query([partition.range().start]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let mut record = record(row, partition)?;
            if let Some(key) = record.key.clone() {
                if only.is_some_and(|only| *only != key) {
                    record.value = None;
                }
                newest.insert(key, record);
            }
        }
    }
    Ok(newest)
}

fn record(row: &Row<'_>, partition: &Partition) -> Result<Record, LogError> {
    let Partition { topic, number, .. } = partition;
    let damaged = |what: &str| LogError::Refused(format!("a record of {topic}/{number} is damaged: {what}"));
    let number = |column| row.get::<_, i64>(column).map_err(|error| damaged(&error.to_string()));
    let blob = |column| match row.get_ref(column) {
        Ok(ValueRef::Blob(bytes)) => Ok(Some(bytes)),
        Ok(ValueRef::Null) => Ok(None),
        _ => Err(damaged("no blob where one belongs")),
    };
    let (headers, stamp_ms) = headers::decode(blob(3)?).ok_or_else(|| damaged("its headers"))?;
    Ok(Record {
        offset: number(0)?,
        timestamp_ms: stamp_ms.map_or_else(|| number(1), Ok)?,
        key: blob(2)?.map(Bytes::copy_from_slice),
        headers,
        value: blob(4)?.map(Bytes::copy_from_slice),
    })
}
