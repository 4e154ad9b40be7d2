//! Queries over one source, together: each as it would be alone, at the price of one read. The real engine on both logs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use emostream::clock;
use emostream::engine::worker::{QueryReport, State};
use emostream::engine::{Engine, Place, Seat, Settings};
use emostream::log::embedded::{self, EmbeddedLog};
use emostream::log::program::system_topics;
use emostream::log::{HEADER_ROWS, Log, NewRecord};
use emostream::reaction::time::{NS_PER_MS, format_rfc3339};
use emostream::shutdown::Tasks;
use emostream::sql::SqlFile;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::support::house::until_report;
use crate::support::kafka;
use crate::support::rows;
use crate::support::scoped::Scoped;
use crate::support::stage::{Stage, prepare};
use crate::support::watched::Watched;

const PARTITIONS: u32 = 2;
const SOURCE: &str =
    "CREATE TABLE given (user_id TEXT NOT NULL, room TEXT NOT NULL, weight BIGINT, at TIMESTAMP NOT NULL,
  WATERMARK FOR at AS (at - INTERVAL '3 seconds')
) WITH (connector = 'kafka', type = 'source', topic = 'given', format = 'json', framing = 'newline');";

/// The source, and a sink for each query, named as it is.
fn tables(queries: &[(&str, String)]) -> String {
    let sink = |(name, _): &(&str, String)| {
        format!(
            "CREATE TABLE {name} (start TIMESTAMP, name TEXT, value BIGINT) WITH (connector = 'kafka', type = 'sink');"
        )
    };
    SOURCE.to_owned() + &queries.iter().map(sink).collect::<String>()
}

/// A query of so much in each `window` by `key`, and what of it is told.
fn windowed(name: &str, window: &str, key: &str, value: &str, above: &str) -> String {
    format!(
        "INSERT INTO {name} SELECT window.start, name, value FROM (
           SELECT {window} AS window, {key} AS name, {value} AS value FROM given WHERE user_id <> 'ghost' GROUP BY 1, 2
         ) WHERE {above};"
    )
}

/// Rows of a moment, as a record, with how many they are.
fn record(rows: &[String]) -> NewRecord {
    let value = Some(Bytes::from(rows.join("\n")));
    NewRecord { value, ..NewRecord::default() }.header(HEADER_ROWS, rows.len().to_string())
}

fn row(user: &str, room: &str, weight: i64, before_ms: i64) -> String {
    let at = format_rfc3339(clock::wall_ns() - before_ms * NS_PER_MS);
    json!({"user_id": user, "room": room, "weight": weight, "at": at}).to_string()
}

/// An engine with these queries on a watched log.
struct House {
    log: Arc<Watched>,
    tasks: Tasks,
    engine: Arc<Engine>,
    names: Vec<String>,
    _dir: TempDir,
}

impl House {
    async fn embedded(queries: &[(&str, String)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = EmbeddedLog::open(&dir.path().join("data"), embedded::Settings::default()).unwrap();
        Self::start(dir, Watched::new(log, false, "given"), queries).await
    }

    async fn kafka(queries: &[(&str, String)]) -> Self {
        let log = Scoped::new(kafka::connect().await, kafka::fresh("sharing"));
        Self::start(tempfile::tempdir().unwrap(), Watched::new(log, true, "given"), queries).await
    }

    async fn start(dir: TempDir, log: Arc<Watched>, queries: &[(&str, String)]) -> Self {
        let folder = dir.path().join("sql");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("tables.sql"), tables(queries)).unwrap();
        for (name, text) in queries {
            std::fs::write(folder.join(format!("{name}.sql")), text).unwrap();
        }
        log.create_topics(&system_topics()).await.unwrap();
        let (tasks, retention) = (Tasks::new(), Duration::from_secs(3600));
        let place = Place { folder, partitions: PARTITIONS, retention, servers: Vec::new() };
        let shared: Arc<dyn Log> = Arc::<Watched>::clone(&log);
        let seat = Seat::occupy(&shared, place, &Settings::default(), &tasks).await.unwrap();
        let engine = seat.engine().unwrap();
        let names = queries.iter().map(|(name, _)| (*name).to_owned()).collect();
        Self { log, tasks, engine, names, _dir: dir }
    }

    async fn append(&self, partition: u32, records: Vec<NewRecord>) {
        self.log.append("given", partition, records).await.unwrap();
    }

    /// Waits until a query's report is so.
    async fn until(&self, query: &str, is_so: impl Fn(&QueryReport) -> bool) -> QueryReport {
        until_report(&self.engine, query, is_so).await
    }

    /// Waits until a query has accepted so many rows, and told all its windows.
    async fn until_told(&self, query: &str, rows: u64) -> QueryReport {
        let is_told = |report: &QueryReport| report.figures.accepted == rows && report.figures.open == 0;
        let report = self.until(query, is_told).await;
        assert!(report.figures.is_conserved() && report.figures.late == 0, "{report:?}");
        report
    }

    /// What a query wrote.
    async fn written(&self, query: &str) -> Vec<Map<String, Value>> {
        let mut written = Vec::new();
        for (partition, range) in (0..).zip(self.log.describe(query).await.unwrap().unwrap()) {
            let mut reader = self.log.reader(query, partition, range.start).await.unwrap();
            let mut next = range.start;
            while next < range.end {
                let batch = reader.read(1 << 20, Duration::from_millis(100)).await.unwrap();
                next = batch.next;
                let values = batch.records.iter().map(|record| record.value.as_ref().unwrap());
                written.extend(values.map(|value| serde_json::from_slice::<Map<_, _>>(value).unwrap()));
            }
        }
        written
    }

    async fn stop(self) {
        drop(self.engine);
        assert!(self.tasks.stop(Duration::from_secs(20)).await, "it ends");
    }
}

fn ten() -> Vec<(&'static str, String)> {
    let half = "tumble(INTERVAL '500 milliseconds')";
    let hop = "hop(INTERVAL '250 milliseconds', INTERVAL '1 second')";
    let session = "session(INTERVAL '30 milliseconds')";
    [
        ("every_room", half, "room", "count(*)", "true"),
        ("busy_rooms", half, "room", "count(*)", "value > 200"),
        ("quiet_rooms", half, "room", "count(*)", "value < 2000"),
        ("r_one", half, "room", "count(*)", "name = 'r1'"),
        ("weights", half, "room", "sum(weight)", "true"),
        ("users", half, "user_id", "count(*)", "true"),
        ("loud", half, "upper(room)", "max(weight)", "true"),
        ("sliding", hop, "room", "count(*)", "true"),
        ("people", hop, "room", "count(DISTINCT user_id)", "value > 1"),
        ("bursts", session, "user_id", "count(*)", "true"),
    ]
    .map(|(name, window, key, value, above)| (name, windowed(name, window, key, value, above)))
    .to_vec()
}

async fn ten_queries_together(house: House) {
    let mut random = StdRng::seed_from_u64(5);
    let mut sent: Vec<(u32, NewRecord, usize, i64)> = Vec::new();
    let (mut total, mut before) = (0, (0, 0));
    for number in 0..30 {
        let rows = if number < 2 { 1 } else { random.random_range(1..900) };
        let rows: Vec<String> = (0..rows)
            .map(|_| {
                let user = if random.random_ratio(1, 9) {
                    "ghost".to_owned()
                } else {
                    format!("u{}", random.random_range(0..6))
                };
                let room = format!("r{}", random.random_range(0..4));
                row(&user, &room, random.random_range(0..50), random.random_range(0..300))
            })
            .collect();
        let (partition, record, now_ms) = (number % PARTITIONS, record(&rows), clock::wall_ms());
        house.append(partition, vec![record.clone()]).await;
        total += rows.len() as u64;
        sent.push((partition, record, rows.len(), now_ms));
        if number == 1 {
            // All are there, those that came late with readers of their own.
            for query in &house.names {
                house.until(query, |report| report.figures.accepted == 2).await;
            }
            before = (house.log.read(), house.log.opened());
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    for (name, text) in ten() {
        house.until_told(name, total).await;
        let file = |name: &str, text: String| SqlFile { name: name.to_owned(), text };
        let query = prepare(&[file("tables.sql", tables(&ten())), file("query.sql", text)]).unwrap();
        let mut alone = Stage::new(&query, PARTITIONS as usize);
        for (partition, record, rows, now_ms) in &sent {
            alone.append_bytes(*partition as usize, record.value.clone().unwrap(), *rows, *now_ms);
        }
        alone.interleaved();
        alone.end(clock::wall_ms() + 60_000);
        let expected = alone.results();
        assert!(!expected.is_empty(), "{name}");
        assert_eq!(rows::sorted(&house.written(name).await), expected, "{name}");
    }
    let read = house.log.read() - before.0;
    assert_eq!((read, house.log.opened()), (sent.len() - 2, before.1), "each record was read once");
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_queries_tell_what_each_would_alone_and_read_each_record_once() {
    ten_queries_together(House::embedded(&ten()).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_queries_on_kafka_tell_what_each_would_alone_and_read_each_record_once() {
    ten_queries_together(House::kafka(&ten()).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_whose_commits_hang_holds_nobody_and_catches_up_exactly() {
    let half = "tumble(INTERVAL '500 milliseconds')";
    let copy = "INSERT INTO copies SELECT at, room, weight FROM given;".to_owned();
    let queries = [("copies", copy), ("counts", windowed("counts", half, "room", "count(*)", "true"))];
    let house = House::embedded(&queries).await;
    let rows = |from: i64, to: i64| (from..to).map(|n| row("u", "main", n, 0)).collect::<Vec<_>>();
    house.append(0, vec![record(&rows(0, 10))]).await;
    for query in &house.names {
        house.until_told(query, 10).await;
    }
    let (mut total, opened) = (10, house.log.opened());
    house.log.hold_commits_of(Some("copies"));
    // More rows than may wait for a commit, then more records than are kept for one that is behind.
    for _ in 0..45 {
        house.append(0, vec![record(&rows(total, total + 2_500))]).await;
        total += 2_500;
    }
    for _ in 0..11 {
        let records =
            rows(total, total + 5_000).iter().map(|row| record(std::slice::from_ref(row))).collect();
        house.append(0, records).await;
        total += 5_000;
    }
    let counts = house.until_told("counts", total as u64).await;
    assert_eq!(counts.figures.counted, total as u64);
    assert_eq!(house.log.opened(), opened);
    let copies = house.until("copies", |_| true).await;
    assert!(copies.figures.counted < 10_000 && copies.lag_records > 50_000, "{copies:?}");
    house.log.hold_commits_of(None);
    let copies = house.until_told("copies", total as u64).await;
    assert_eq!(copies.figures.counted, total as u64);
    assert_eq!(house.log.opened(), opened + 1, "it read what it had missed with a reader of its own");
    let read = house.log.read();
    house.append(0, vec![record(&rows(total, total + 1))]).await;
    for query in &house.names {
        house.until_told(query, total as u64 + 1).await;
    }
    assert_eq!((house.log.opened(), house.log.read()), (opened + 1, read + 1), "they read together again");
    let copied = house.written("copies").await;
    let different: BTreeSet<i64> = copied.iter().map(|row| row["value"].as_i64().unwrap()).collect();
    assert_eq!((copied.len() as i64, different), (total + 1, (0..=total).collect()));
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_that_fail_on_a_row_take_nobody_with_them() {
    let half = "tumble(INTERVAL '500 milliseconds')";
    let queries = [
        ("counts", windowed("counts", half, "room", "count(*)", "true")),
        ("some_counts", windowed("some_counts", half, "room", "count(*)", "value > 0")),
        ("shares", windowed("shares", half, "room", "sum(10 / weight)", "true")),
        ("some_shares", windowed("some_shares", half, "room", "sum(10 / weight)", "value > 0")),
    ];
    let house = House::embedded(&queries).await;
    let rows = |zero: i64| (0..600).map(|n| row("u", "main", n - zero, 0)).collect::<Vec<_>>();
    house.append(0, vec![record(&rows(-1))]).await;
    for query in &house.names {
        house.until_told(query, 600).await;
    }
    house.append(1, vec![record(&rows(300))]).await;
    house.append(0, vec![record(&rows(-1))]).await;
    for query in ["counts", "some_counts"] {
        let report = house.until_told(query, 1_800).await;
        assert_eq!((report.figures.counted, report.state), (1_800, State::Running));
    }
    for query in ["shares", "some_shares"] {
        let report = house.until(query, |report| report.state == State::Failed).await;
        let error = report.last_error.unwrap();
        assert!(error.to_lowercase().contains("divide by zero"), "{error}");
        assert_eq!(report.figures.counted, 600);
    }
    house.stop().await;
}
