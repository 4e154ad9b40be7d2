//! The real binary is killed under load while it runs queries that a restart cannot simply read again: sessions, windows
//! of an hour (their partial aggregates are saved beside the checkpoint), and rows without a window. At the end every
//! committed result is there once, and all together are what one batch query over the same log gives.
//!
//! Event time is in the rows, a minute a request and ahead of the clock, so that hours pass in seconds and no clock
//! closes a window: a row that is late, and any other result than the batch's, is a defect.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::DataType;
use datafusion::prelude::SessionContext;
use emostream::clock::wall_ms;
use emostream::log::Log;
use emostream::log::codec::{RecordCodec, arrow_schema};
use emostream::log::kafka::{KafkaLog, KafkaSettings};
use emostream::reaction::figures::Figures;
use emostream::reaction::table::Table;
use emostream::reaction::time::format_rfc3339;
use emostream::sql::{Program, SqlFile, plan_program};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::support::binary::Running;
use crate::support::kafka::Broker;
use crate::support::load::{Ledger, Load, Outcome};
use crate::support::patient::{End, Patient, ends};
use crate::support::stage::MS;
use crate::support::{books, rows};

const MINUTE_MS: i64 = 60_000;
/// Rows of a request are at most so much older than its minute; less than the table's delay.
const OUT_OF_ORDER_MS: i64 = 45_000;

const TABLES: &str = "
CREATE TABLE plays (
  id BIGINT NOT NULL, user_id TEXT NOT NULL, emoji_type TEXT NOT NULL, room TEXT NOT NULL, timestamp TIMESTAMP NOT NULL,
  WATERMARK FOR timestamp AS (timestamp - INTERVAL '1 minute')
) WITH (connector = 'kafka', type = 'source', format = 'arrow');

CREATE TABLE stays (window_start TIMESTAMP, window_end TIMESTAMP, user_id TEXT, plays BIGINT, ids BIGINT)
WITH (connector = 'kafka', type = 'sink', format = 'json');
CREATE TABLE hours (window_start TIMESTAMP, window_end TIMESTAMP, room TEXT, plays BIGINT, people BIGINT, ids BIGINT)
WITH (connector = 'kafka', type = 'sink', format = 'json');
CREATE TABLE last_hour (window_start TIMESTAMP, window_end TIMESTAMP, room TEXT, plays BIGINT, newest BIGINT)
WITH (connector = 'kafka', type = 'sink', format = 'json');
CREATE TABLE loud (id BIGINT, user_id TEXT, at TIMESTAMP)
WITH (connector = 'kafka', type = 'sink', format = 'json');
";

/// A query: its sink's name, its text, and the same as a batch over `plays`.
const QUERIES: [(&str, &str, &str); 4] = [
    (
        "stays",
        "INSERT INTO stays SELECT window.start, window.end, user_id, plays, ids FROM (
           SELECT session(INTERVAL '5 minutes') AS window, user_id, count(*) AS plays, sum(id) AS ids
           FROM plays WHERE room <> 'end' GROUP BY window, user_id)",
        "SELECT min(timestamp), max(timestamp) + INTERVAL '5 minutes', user_id, count(*), sum(id) FROM (
           SELECT *, sum(fresh) OVER (PARTITION BY user_id ORDER BY timestamp) AS stay FROM (
             SELECT *, CASE WHEN timestamp < lag(timestamp) OVER (PARTITION BY user_id ORDER BY timestamp)
                                             + INTERVAL '5 minutes' THEN 0 ELSE 1 END AS fresh
             FROM plays WHERE room <> 'end'))
         GROUP BY user_id, stay",
    ),
    (
        "hours",
        "INSERT INTO hours SELECT window.start, window.end, room, plays, people, ids FROM (
           SELECT tumble(INTERVAL '1 hour') AS window, room, count(*) AS plays, count(DISTINCT user_id) AS people,
                  sum(id) AS ids
           FROM plays WHERE room <> 'end' GROUP BY window, room)",
        "SELECT hour, hour + INTERVAL '1 hour', room, count(*), count(DISTINCT user_id), sum(id) FROM (
           SELECT *, date_bin(INTERVAL '1 hour', timestamp) AS hour FROM plays WHERE room <> 'end')
         GROUP BY hour, room",
    ),
    (
        "last_hour",
        "INSERT INTO last_hour SELECT window.start, window.end, room, plays, newest FROM (
           SELECT hop(INTERVAL '1 minute', INTERVAL '1 hour') AS window, room, count(*) AS plays, max(id) AS newest
           FROM plays WHERE room <> 'end' GROUP BY window, room)",
        "SELECT start, start + INTERVAL '1 hour', room, count(*), max(id) FROM (
           SELECT *, to_timestamp_nanos((CAST(timestamp AS BIGINT) / 60000000000 - back.value) * 60000000000) AS start
           FROM plays CROSS JOIN generate_series(0, 59) AS back WHERE room <> 'end')
         GROUP BY start, room",
    ),
    (
        "loud",
        "INSERT INTO loud SELECT id, user_id, timestamp FROM plays WHERE room IN ('left', 'right') AND id % 3 > 0",
        "SELECT id, user_id, timestamp FROM plays WHERE room IN ('left', 'right') AND id % 3 > 0",
    ),
];

/// The rows of a request: none is older than the watermark that the requests before it can bring about.
fn request(from_ms: i64, number: u64, tag: &str) -> Vec<Value> {
    let mut random = StdRng::seed_from_u64(number);
    let minute_ms = from_ms + number as i64 * MINUTE_MS;
    let row = |n: u64| {
        let ms = minute_ms - random.random_range(0..OUT_OF_ORDER_MS);
        let user = random.random_range(0..8);
        let room = ["main", "left", "right"].choose(&mut random).unwrap();
        json!({"id": number * 10 + n, "user_id": format!("user{user}"), "emoji_type": tag, "room": room,
               "timestamp": format_rfc3339(ms * MS)})
    };
    (0..1 + number % 5).map(row).collect()
}

/// Long after all rows, and counted by no query: what is over by now is closed.
fn last_row(after_ms: i64) -> Value {
    json!([{"id": 0, "user_id": "nobody", "emoji_type": "end", "room": "end",
            "timestamp": format_rfc3339((after_ms + 24 * 60 * MINUTE_MS) * MS)}])
}

fn program() -> Program {
    let query = |(name, text, _): &(&str, &str, &str)| file(name, text);
    let files: Vec<SqlFile> = [file("tables", TABLES)].into_iter().chain(QUERIES.iter().map(query)).collect();
    plan_program(&files).unwrap()
}

fn file(name: &str, text: &str) -> SqlFile {
    SqlFile { name: format!("{name}.sql"), text: text.to_owned() }
}

fn patient(args: &[&str]) -> Patient {
    let files = QUERIES.map(|(name, text, _)| (format!("{name}.sql"), text));
    let files = files.iter().map(|(name, text)| (name.as_str(), *text));
    Patient::new(args, &[("tables.sql", TABLES)].into_iter().chain(files).collect::<Vec<_>>())
        .with("EMOSTREAM__INGEST__FUTURE_TOLERANCE_MS", 365_i64 * 24 * 60 * MINUTE_MS)
}

/// Ends the process in all these ways under load, and then lets everything be counted. Returns the senders' ledger.
async fn survive(patient: &Patient, ends: &[End]) -> Ledger {
    let from_ms = wall_ms() + 10 * MINUTE_MS;
    let (tell, address) = watch::channel(None);
    let load = Load::of(&address, "/v1/tables/plays", &["plays"], move |_, number, tag| {
        request(from_ms, number, tag)
    });
    for end in ends {
        let before = load.accepted();
        patient.run_to(end, &tell).await;
        eprintln!("{end:?}: {} requests accepted", load.accepted() - before);
    }
    let mut process = Running::start(&mut patient.command());
    tell.send_replace(Some(process.url("")));
    process.ready().await;
    let ledger = load.stop().await;
    let after_ms = from_ms + ledger.len() as i64 * MINUTE_MS;
    count_everything(&process, &ledger, after_ms).await;
    assert_eq!(process.terminate().await, Some(0));
    ledger
}

/// Sends the last row until every partition has one, which shows in that no row is open in any query.
async fn count_everything(process: &Running, ledger: &Ledger, after_ms: i64) {
    let client = reqwest::Client::new();
    let (accepted, unknown) = books::sent(ledger);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    'queries: loop {
        let last =
            client.post(process.url("/v1/tables/plays")).json(&last_row(after_ms)).send().await.unwrap();
        assert_eq!(last.status(), 202);
        tokio::time::sleep(Duration::from_millis(20)).await;
        for (query, ..) in QUERIES {
            let answer = process.json(&format!("/v1/queries/{query}")).await;
            let figures: Figures = serde_json::from_value(answer.clone()).unwrap_or_default();
            assert!(figures.is_conserved(), "{query}: {answer}");
            assert_eq!((figures.late, figures.future, figures.bad), (0, 0, 0), "{query}: {answer}");
            let is_done = answer["state"] == "running" && figures.open == 0 && figures.accepted > accepted;
            if !is_done {
                let patience = tokio::time::Instant::now() < deadline;
                assert!(patience, "{query}: {accepted} rows were answered 202, {unknown} unknown: {answer}");
                continue 'queries;
            }
        }
        return;
    }
}

/// All rows of `plays`, as the log has them.
async fn rows_of(log: &dyn Log, table: &Table) -> RecordBatch {
    let codec = RecordCodec::new(table);
    let schema = arrow_schema(table);
    let places: Vec<usize> = (0..table.columns.len()).collect();
    let mut batches = Vec::new();
    for (records, partition) in books::committed(log, &table.topic).await.iter().zip(0..) {
        assert!(!records.is_empty(), "partition {partition} has no rows");
        for record in records {
            let batch = codec.decode(partition, record, &places).unwrap();
            let columns = batch.columns().iter().zip(schema.fields());
            let plain = columns.map(|(column, field)| cast(column, field.data_type()).unwrap());
            batches.push(RecordBatch::try_new(Arc::clone(&schema), plain.collect()).unwrap());
        }
    }
    concat_batches(&schema, &batches).unwrap()
}

/// Every request that was answered 202 is in the log with all its rows, once; one of which nobody was told is there so or
/// not at all.
fn check_log(plays: &RecordBatch, ledger: &Ledger) {
    let tags = cast(plays.column_by_name("emoji_type").unwrap(), &DataType::Utf8).unwrap();
    let mut counts = BTreeMap::<&str, u64>::new();
    for tag in tags.as_string::<i32>().iter().flatten().filter(|tag| *tag != "end") {
        *counts.entry(tag).or_default() += 1;
    }
    for (tag, sent) in ledger {
        let found = counts.remove(tag.as_str()).unwrap_or_default();
        match sent.outcome {
            Outcome::Accepted => assert_eq!(found, sent.rows, "{tag}"),
            Outcome::Refused => assert_eq!(found, 0, "{tag}"),
            Outcome::Unknown => assert!(found == 0 || found == sent.rows, "{tag}: {found} of {}", sent.rows),
        }
    }
    assert!(counts.is_empty(), "never sent: {counts:?}");
}

/// What a committed reader finds on every sink's topic is what the batch query gives.
async fn check_results(log: &dyn Log, ledger: &Ledger) {
    let program = program();
    let table = |name: &str| program.tables.iter().find(|table| table.name == name).unwrap();
    let plays = rows_of(log, table("plays")).await;
    check_log(&plays, ledger);
    let context = SessionContext::new();
    context.register_batch("plays", plays).unwrap();
    for (sink, _, batch) in QUERIES {
        let answer = context.sql(batch).await.unwrap().collect().await.unwrap();
        let expected = rows::sorted(&rows::as_written(table(sink), &answer));
        let records = books::committed(log, &table(sink).topic).await;
        let found = records.iter().flatten().map(|record| record.value.as_deref().unwrap());
        let found: Vec<Map<String, Value>> =
            found.map(|value| serde_json::from_slice(value).unwrap()).collect();
        let found = rows::sorted(&found);
        eprintln!("{sink}: {} rows", found.len());
        let distinct: BTreeSet<&String> = found.iter().collect();
        assert_eq!(distinct.len(), found.len(), "{sink}: a row comes twice");
        let differ = found.iter().zip(&expected).position(|(found, expected)| found != expected);
        let at = differ.unwrap_or(found.len().min(expected.len()));
        assert_eq!(
            found.get(at),
            expected.get(at),
            "{sink}: row {at} of {} and {}",
            found.len(),
            expected.len()
        );
        assert!(found.len() >= 10, "{sink}: {found:?} prove nothing");
    }
}

/// The engine's points, which are the same on both logs, and at which hit to die at the latest.
const ENGINE: [(&str, u32); 5] = [
    ("engine.read", 120),
    ("engine.hand_over", 60),
    ("engine.hand_over", 6),
    ("engine.commit.before", 20),
    ("engine.commit.after", 20),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_hours_and_rows_are_what_a_batch_gives_however_the_process_ends_on_the_embedded_log() {
    let points = [
        ("embedded.append.before_commit", 30),
        ("embedded.append.after_commit", 30),
        ("embedded.commit.before", 40),
        ("embedded.commit.after", 40),
    ];
    let patient = patient(&[]);
    let ledger = survive(&patient, &ends(&[&points[..], &ENGINE].concat(), 6)).await;
    check_results(patient.embedded_log().await.as_ref(), &ledger).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_hours_and_rows_are_what_a_batch_gives_however_the_process_ends_on_kafka() {
    let points = [
        ("kafka.append.before", 30),
        ("kafka.append.after", 30),
        ("kafka.commit.before", 20),
        ("kafka.commit.after_send", 20),
        ("kafka.commit.after", 20),
    ];
    let broker = Broker::start();
    let patient = patient(&["--kafka", &broker.address]);
    let ledger = survive(&patient, &ends(&[&points[..], &ENGINE].concat(), 3)).await;
    let log = KafkaLog::connect(KafkaSettings::new(broker.address.clone())).await.unwrap();
    check_results(log.as_ref(), &ledger).await;
}
