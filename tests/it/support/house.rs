//! The real engine on the embedded log, in a folder of its own: started again and again, with other settings or texts.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use emostream::clock::wall_ns;
use emostream::engine::worker::{QueryReport, State};
use emostream::engine::{Engine, EngineError, KeptRecord, Place, Seat, Settings};
use emostream::log::embedded::{self, EmbeddedLog};
use emostream::log::{Log, NewRecord, Record};
use emostream::reaction::time::{NS_PER_MS, format_rfc3339};
use emostream::shutdown::Tasks;
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) const HOUR_NS: i64 = 3600 * 1000 * NS_PER_MS;
const PATIENCE: Duration = Duration::from_secs(90);
pub(crate) const QUERY: &str = "INSERT INTO counts SELECT window.start, room, count FROM (
  SELECT tumble(INTERVAL '100 milliseconds') AS window, room, count(*) AS count
  FROM reactions WHERE user_id <> 'ghost' GROUP BY window, room
);";

pub(crate) fn tables(options: &str) -> String {
    format!(
        "CREATE TABLE reactions (user_id TEXT NOT NULL, room TEXT NOT NULL, note TEXT, at TIMESTAMP NOT NULL,
  WATERMARK FOR at AS (at - INTERVAL '2 seconds')
) WITH (connector = 'kafka', type = 'source', topic = 'given', format = 'json', framing = 'newline'{options});
CREATE TABLE counts (window_start TIMESTAMP, room TEXT, count BIGINT) WITH (connector = 'kafka', type = 'sink');
CREATE TABLE totals (window_start TIMESTAMP, count BIGINT) WITH (connector = 'kafka', type = 'sink');"
    )
}

/// A row of a user in a room, so long after now.
pub(crate) fn row(user: &str, room: &str, after_ns: i64) -> String {
    let at = format_rfc3339(wall_ns() + after_ns);
    json!({"user_id": user, "room": room, "note": "not read", "at": at}).to_string()
}

pub(crate) fn record(value: impl Into<Bytes>) -> NewRecord {
    NewRecord { value: Some(value.into()), ..NewRecord::default() }
}

/// A log, a folder of SQL, and an engine that is started again and again.
pub(crate) struct House {
    pub(crate) dir: TempDir,
    pub(crate) log: Arc<dyn Log>,
    running: Option<(Tasks, Arc<Engine>)>,
}

impl House {
    pub(crate) async fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sql")).unwrap();
        let log: Arc<dyn Log> =
            EmbeddedLog::open(&dir.path().join("data"), embedded::Settings::default()).unwrap();
        let mut house = Self { dir, log, running: None };
        files.iter().for_each(|(name, text)| house.save(name, text));
        house.restart(&Settings::default()).await;
        house
    }

    pub(crate) fn save(&self, name: &str, text: &str) {
        let (new, path) = (self.dir.path().join("new"), self.dir.path().join("sql").join(name));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    pub(crate) async fn restart(&mut self, settings: &Settings) {
        if let Some((tasks, engine)) = self.running.take() {
            drop(engine);
            assert!(tasks.stop(Duration::from_secs(20)).await, "it ends");
        }
        let started = self.start(settings).await;
        self.running = Some(started.unwrap_or_else(|error| panic!("{error}")));
    }

    /// Starts another one, or says why it does not start.
    pub(crate) async fn start(&self, settings: &Settings) -> Result<(Tasks, Arc<Engine>), EngineError> {
        let (folder, retention) = (self.dir.path().join("sql"), Duration::from_secs(3600));
        let place = Place { folder, partitions: 2, retention, servers: Vec::new() };
        let tasks = Tasks::new();
        let seat = Seat::occupy(&self.log, place, settings, &tasks).await?;
        Ok((tasks, seat.engine().unwrap()))
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.running.as_ref().unwrap().1
    }

    pub(crate) async fn append(&self, partition: u32, values: Vec<Bytes>) {
        let records = values.into_iter().map(record).collect();
        self.log.append("given", partition, records).await.unwrap();
    }

    /// Waits until a query's report is so.
    pub(crate) async fn until(&self, query: &str, is_so: impl Fn(&QueryReport) -> bool) -> QueryReport {
        until_report(self.engine(), query, is_so).await
    }

    /// Waits until so many rows are accounted, and none is open.
    pub(crate) async fn until_done(&self, query: &str, accepted: u64) -> QueryReport {
        let done = |report: &QueryReport| {
            report.state == State::Running && report.figures.open == 0 && report.figures.accepted == accepted
        };
        let report = self.until(query, done).await;
        assert!(report.figures.is_conserved(), "{report:?}");
        report
    }

    pub(crate) async fn until_kept(&self, count: usize) -> Vec<KeptRecord> {
        let waiting = async {
            loop {
                let kept = self.engine().kept("counts").await.unwrap().unwrap();
                if kept.len() >= count {
                    return kept;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("it is kept")
    }

    pub(crate) async fn sum_of(&self, topic: &str) -> u64 {
        let rows = records(self.log.as_ref(), topic).await;
        rows.iter().map(|record| value(record)["count"].as_u64().unwrap()).sum()
    }
}

pub(crate) fn value(record: &Record) -> Value {
    serde_json::from_slice(record.value.as_ref().unwrap()).unwrap()
}

/// All committed records of a topic.
pub(crate) async fn records(log: &dyn Log, topic: &str) -> Vec<Record> {
    let mut records = Vec::new();
    for (partition, range) in (0..).zip(log.describe(topic).await.unwrap().unwrap()) {
        let mut reader = log.reader(topic, partition, range.start).await.unwrap();
        let mut next = range.start;
        while next < range.end {
            let batch = reader.read(1 << 20, Duration::from_millis(100)).await.unwrap();
            next = batch.next;
            records.extend(batch.records);
        }
    }
    records
}

/// A query over this window, and in how many windows a row is.
pub(crate) const WINDOWS: [(&str, u64); 3] = [
    ("tumble(INTERVAL '100 milliseconds')", 1),
    ("hop(INTERVAL '100 milliseconds', INTERVAL '300 milliseconds')", 3),
    ("session(INTERVAL '100 milliseconds')", 1),
];

/// Waits until a query's report is so.
pub(crate) async fn until_report(
    engine: &Engine,
    query: &str,
    is_so: impl Fn(&QueryReport) -> bool,
) -> QueryReport {
    let mut last = None;
    let waiting = async {
        loop {
            let report = engine.report(query).await.unwrap().unwrap();
            if is_so(&report) {
                return report;
            }
            last = Some(report);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, waiting).await;
    found.unwrap_or_else(|_| panic!("still {last:?}"))
}
