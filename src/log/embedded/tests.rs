//! What only the embedded log has to show: a stalled disk, its bounds, retention and holds, and a file that shrinks.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::*;
use crate::clock;
use crate::log::Retention;
use crate::shutdown::Tasks;

const LIMIT: Duration = Duration::from_secs(30);
const DAY: Retention = Retention::Age(Duration::from_secs(24 * 60 * 60));

async fn open(dir: &TempDir, settings: Settings) -> Arc<EmbeddedLog> {
    let log = EmbeddedLog::open(dir.path(), settings).unwrap();
    let spec = |name: &str, retention| TopicSpec {
        name: name.to_owned(),
        partitions: 2,
        retention,
        log_append_time: true,
    };
    log.create_topics(&[spec("plain", DAY), spec("compacted", Retention::LatestPerKey)]).await.unwrap();
    log
}

fn record(value: impl Into<Bytes>) -> NewRecord {
    NewRecord { value: Some(value.into()), ..NewRecord::default() }
}

async fn append(log: &EmbeddedLog, value: impl Into<Bytes>) -> Result<i64, LogError> {
    log.append("plain", 0, vec![record(value)]).await
}

async fn start(log: &EmbeddedLog) -> i64 {
    log.describe("plain").await.unwrap().unwrap()[0].start
}

async fn values(log: &EmbeddedLog) -> Vec<Bytes> {
    let mut reader = log.reader("plain", 0, start(log).await).await.unwrap();
    let records = reader.read(1 << 20, Duration::ZERO).await.unwrap().records;
    records.into_iter().map(|record| record.value.unwrap()).collect()
}

/// Keeps the writer thread from beginning a transaction until it is dropped.
fn stall(dir: &Path) -> Connection {
    let db = Connection::open(dir.join(FILE)).unwrap();
    db.busy_timeout(schema::BUSY).unwrap();
    db.execute_batch("BEGIN IMMEDIATE").unwrap();
    db
}

/// Starts an append and returns once the writer thread has taken it.
async fn begin(log: &Arc<EmbeddedLog>, value: &'static str) -> JoinHandle<Result<i64, LogError>> {
    let writing = Arc::clone(log);
    let append = Tasks::new().spawn(async move { append(&writing, value).await });
    taken(log).await;
    append
}

/// Returns once the writer thread has taken what was just spawned.
async fn taken(log: &EmbeddedLog) {
    // One thread runs it all: the task has queued its order when this goes on.
    tokio::task::yield_now().await;
    let deadline = Instant::now() + LIMIT;
    while !log.shared.queue.is_empty() {
        assert!(Instant::now() < deadline, "the writer thread does nothing");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_stalled_write_is_indefinite_and_one_behind_it_was_certainly_not_written() {
    let dir = TempDir::new().unwrap();
    let log = open(&dir, Settings { write_timeout_ms: 1_000, ..Settings::default() }).await;
    let mut writer = log.fence("writer").await.unwrap();
    let mut reader = log.reader("plain", 0, 0).await.unwrap();
    let stalled = stall(dir.path());

    let first = begin(&log, "begun").await;
    let transaction =
        Transaction { records: vec![("plain".to_owned(), 0, record("never"))], consumed: Vec::new() };
    let (behind, commit) = tokio::join!(append(&log, "never"), writer.commit(transaction.clone()));
    assert!(matches!(behind, Err(LogError::Unavailable(_))), "{behind:?}");
    assert!(matches!(commit, Err(LogError::Unavailable(_))), "{commit:?}");
    let quiet = reader.read(1, Duration::ZERO).await.unwrap();
    assert_eq!(quiet.complete_until_ms, None, "a write is under way");
    let first = first.await.unwrap();
    assert!(matches!(first, Err(LogError::Indefinite(_))), "{first:?}");

    drop(stalled);
    assert_eq!(reader.read(1 << 20, LIMIT).await.unwrap().records.len(), 1);
    writer
        .commit(Transaction { records: vec![("plain".to_owned(), 0, record("later"))], ..transaction })
        .await
        .unwrap();
    assert_eq!(values(&log).await, ["begun", "later"]);
    reader.read(1 << 20, LIMIT).await.unwrap();
    let quiet = reader.read(1, Duration::ZERO).await.unwrap();
    assert!(quiet.complete_until_ms.is_some(), "nothing is under way any more");
    log.close().await;
}

#[tokio::test]
async fn a_commit_whose_end_is_not_known_ends_its_writer() {
    let dir = TempDir::new().unwrap();
    let log = open(&dir, Settings { write_timeout_ms: 1_000, ..Settings::default() }).await;
    let mut writer = log.fence("writer").await.unwrap();
    let stalled = stall(dir.path());
    let transaction =
        Transaction { records: vec![("plain".to_owned(), 0, record("x"))], consumed: Vec::new() };
    let first = transaction.clone();
    let committing = Tasks::new().spawn(async move { (writer.commit(first).await, writer) });
    taken(&log).await;
    let (outcome, mut writer) = committing.await.unwrap();
    assert!(matches!(outcome, Err(LogError::Indefinite(_))), "{outcome:?}");
    drop(stalled);
    assert!(matches!(writer.commit(transaction.clone()).await, Err(LogError::Indefinite(_))));
    // The new writer's fence comes after what the old one left: now its outcome is decided.
    let mut writer = log.fence("writer").await.unwrap();
    assert_eq!(values(&log).await, ["x"]);
    writer.commit(transaction).await.unwrap();
    log.close().await;
}

#[tokio::test]
async fn a_full_queue_takes_nothing_more() {
    let dir = TempDir::new().unwrap();
    let settings = Settings { write_timeout_ms: 1_000, queue_bytes: 100, ..Settings::default() };
    let log = open(&dir, settings).await;
    let stalled = stall(dir.path());
    let first = begin(&log, "as large as the queue, while it lasts").await;
    let second = append(&log, "small").await;
    assert!(matches!(&second, Err(LogError::Unavailable(why)) if why.contains("full")), "{second:?}");
    drop(stalled);
    drop(first.await.unwrap());
    assert_eq!(append(&log, "small").await.unwrap(), 1);
    log.close().await;
}

#[tokio::test]
async fn a_full_log_refuses_appends_first_and_takes_them_again_after_a_trim() {
    let dir = TempDir::new().unwrap();
    let log = open(&dir, Settings { max_bytes: 8 << 20, ..Settings::default() }).await;
    let mut writer = log.fence("writer").await.unwrap();
    let mut written = 0;
    let refused = loop {
        match append(&log, vec![7; 100_000]).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(&refused, LogError::Unavailable(why) if why.contains("8388608")), "{refused:?}");
    assert!((60..90).contains(&written), "{written} records of 100 kB in 8 MiB");
    let small =
        || Transaction { records: vec![("plain".to_owned(), 1, record("result"))], consumed: Vec::new() };
    writer.commit(small()).await.unwrap();

    log.trim("plain", 0, written).await.unwrap();
    let deadline = Instant::now() + LIMIT;
    while append(&log, "fits").await.is_err() {
        assert!(Instant::now() < deadline, "what was trimmed was not deleted");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    log.close().await;
}

#[tokio::test]
async fn a_file_shrinks_after_a_trim() {
    let dir = TempDir::new().unwrap();
    let log = open(&dir, Settings::default()).await;
    for _ in 0..200 {
        append(&log, vec![7; 100_000]).await.unwrap();
    }
    log.close().await;
    let size = || std::fs::metadata(dir.path().join(FILE)).unwrap().len();
    assert!(size() > 20_000_000, "{} bytes", size());

    let log = open(&dir, Settings::default()).await;
    log.trim("plain", 0, 199).await.unwrap();
    let deadline = Instant::now() + LIMIT;
    loop {
        let pages = log.shared.pool.with(|db| schema::pages(db).map_err(|e| not_written(&e))).await.unwrap();
        if pages.0 < 32 {
            break;
        }
        assert!(Instant::now() < deadline, "{pages:?} pages and free ones");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(values(&log).await.len(), 1);
    log.close().await;
    assert!(size() < 1 << 20, "{} bytes", size());
}

#[tokio::test]
async fn retention_removes_what_is_old_but_never_what_is_held() {
    let dir = TempDir::new().unwrap();
    let log = open(&dir, Settings::default()).await;
    for n in 0..10 {
        append(&log, n.to_string()).await.unwrap();
    }
    let day_ms = 24 * 60 * 60 * 1000;
    let now_ms = clock::wall_ms();
    log.apply_retention(now_ms + day_ms - 60_000).await.unwrap();
    assert_eq!(start(&log).await, 0, "nothing is a day old");

    log.hold("query", "plain", 0, Some(2)).await.unwrap();
    log.hold("other", "plain", 0, Some(8)).await.unwrap();
    log.hold("query", "plain", 0, Some(4)).await.unwrap();
    log.apply_retention(now_ms + 2 * day_ms).await.unwrap();
    assert_eq!(start(&log).await, 4);
    log.hold("query", "plain", 0, Some(6)).await.unwrap();
    log.close().await;

    // A hold is there again after a restart, as it was at the last trim.
    let log = open(&dir, Settings::default()).await;
    log.trim("plain", 0, 10).await.unwrap();
    assert_eq!(start(&log).await, 4);
    log.hold("query", "plain", 0, None).await.unwrap();
    log.trim("plain", 0, 10).await.unwrap();
    assert_eq!(start(&log).await, 8);
    log.hold("other", "plain", 0, None).await.unwrap();
    log.apply_retention(now_ms + 2 * day_ms).await.unwrap();
    assert_eq!(start(&log).await, 10);
    assert_eq!(append(&log, "next").await.unwrap(), 10);
    log.close().await;
}

#[tokio::test]
async fn a_tombstone_goes_after_a_day_and_its_offset_is_not_taken_again() {
    let dir = TempDir::new().unwrap();
    let log = open(&dir, Settings::default()).await;
    let keyed = |value: Option<&'static str>| NewRecord {
        key: Some(Bytes::from_static(b"k")),
        value: value.map(Bytes::from),
        ..NewRecord::default()
    };
    log.append("compacted", 0, vec![keyed(Some("1")), keyed(None)]).await.unwrap();
    log.apply_retention(clock::wall_ms()).await.unwrap();
    let stored = |log: &Arc<EmbeddedLog>| {
        let topic = log.shared.topics.get("compacted").unwrap();
        let read = move |db: &Connection| {
            schema::read(db, &topic.partitions[0], 0, 10, 1 << 20).map(|batch| batch.records)
        };
        let log = Arc::clone(log);
        async move { log.shared.pool.with(read).await.unwrap() }
    };
    assert_eq!(stored(&log).await.len(), 1, "only the tombstone is left");
    log.apply_retention(clock::wall_ms() + 2 * 24 * 60 * 60 * 1000).await.unwrap();
    assert_eq!(stored(&log).await, []);
    log.close().await;
    let log = open(&dir, Settings::default()).await;
    assert_eq!(log.append("compacted", 0, vec![keyed(Some("2"))]).await.unwrap(), 2);
    log.close().await;
}

#[tokio::test]
async fn a_file_of_another_program_is_left_alone() {
    let dir = TempDir::new().unwrap();
    let db = Connection::open(dir.path().join(FILE)).unwrap();
    db.execute_batch("CREATE TABLE theirs (x)").unwrap();
    drop(db);
    let opened = EmbeddedLog::open(dir.path(), Settings::default());
    assert!(matches!(opened.map(|_| ()), Err(OpenError::NotOurs(_))));
    std::fs::write(dir.path().join(FILE), vec![0x55; 4096]).unwrap();
    let opened = EmbeddedLog::open(dir.path(), Settings::default());
    assert!(matches!(opened.map(|_| ()), Err(OpenError::Database { .. })));
}

#[tokio::test]
async fn a_record_that_is_too_large_or_lacks_its_key_is_refused() {
    let dir = TempDir::new().unwrap();
    let log = open(&dir, Settings::default()).await;
    let large = append(&log, vec![0; MAX_RECORD_BYTES + 1]).await;
    assert!(matches!(large, Err(LogError::Refused(_))), "{large:?}");
    let no_key = log.append("compacted", 0, vec![record("x")]).await;
    assert!(matches!(no_key, Err(LogError::Refused(_))), "{no_key:?}");
    assert!(log.latest("plain").await.is_err());
    log.close().await;
}
