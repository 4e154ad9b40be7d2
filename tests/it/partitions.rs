//! Partitions that are added to a topic while everything runs, a source's or a sink's, are written to and read: no row is
//! late for it, and viewers miss no window.

use std::time::Duration;

use emostream::log::kafka::{KafkaLog, KafkaSettings};
use emostream::log::{
    HEADER_FINAL, HEADER_REVISION, HEADER_WINDOW_END, HEADER_WINDOW_ROWS, HEADER_WINDOW_START, Log,
    NewRecord, Transaction, Writer,
};
use emostream::reaction::time::format_rfc3339;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::support::binary::Running;
use crate::support::books;
use crate::support::kafka::Broker;
use crate::support::load::Load;
use crate::support::viewer::Viewer;
use crate::support::waiting::until;

const TABLES: &str = "
CREATE TABLE reactions (
  user_id TEXT NOT NULL, emoji_type TEXT NOT NULL, room TEXT NOT NULL, timestamp TIMESTAMP NOT NULL DEFAULT now(),
  WATERMARK FOR timestamp AS (timestamp - INTERVAL '2 seconds')
) WITH (connector = 'kafka', type = 'source', topic = 'reactions', format = 'arrow');
CREATE TABLE by_request (
  window_start TIMESTAMP, window_end TIMESTAMP, room TEXT, emoji_type TEXT, count BIGINT, people BIGINT
) WITH (connector = 'kafka', type = 'sink', 'sink.key_field' = 'room');
";
const BY_REQUEST: &str = "
INSERT INTO by_request SELECT window.start, window.end, room, emoji_type, count, people
FROM (
  SELECT tumble(INTERVAL '500 milliseconds') AS window, room, emoji_type, count(*) AS count,
         count(DISTINCT user_id) AS people
  FROM reactions GROUP BY window, room, emoji_type
);
";
/// How long a step of a test may take.
const LIMIT: Duration = Duration::from_secs(30);
const BEFORE: usize = 3;
const AFTER: usize = 5;

async fn add_partitions(broker: &Broker, topic: &str) {
    let config = ClientConfig::new().set("bootstrap.servers", &broker.address).clone();
    let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
    let added = [NewPartitions::new(topic, AFTER)];
    let results = admin.create_partitions(&added, &AdminOptions::new()).await.unwrap();
    results.into_iter().for_each(|result| drop(result.unwrap()));
}

fn ends(table: &Value) -> Vec<i64> {
    let partitions = table["partitions"].as_array().cloned().unwrap_or_default();
    partitions.iter().map(|partition| partition["end"].as_i64().unwrap()).collect()
}

fn program() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("sql")).unwrap();
    std::fs::write(dir.path().join("sql/tables.sql"), TABLES).unwrap();
    std::fs::write(dir.path().join("sql/by_request.sql"), BY_REQUEST).unwrap();
    dir
}

/// A window of the sink that lies on these partitions and no others, as an engine would commit it.
async fn close(writer: &mut dyn Writer, end_s: i64, partitions: &[u32]) {
    let record = |partition: &u32| {
        let row = json!({"room": "main", "emoji_type": format!("on {partition}"), "count": 1, "people": 1});
        let record = NewRecord { value: Some(row.to_string().into()), ..NewRecord::default() }
            .header(HEADER_WINDOW_START, format_rfc3339((end_s - 1) * 1_000_000_000))
            .header(HEADER_WINDOW_END, format_rfc3339(end_s * 1_000_000_000))
            .header(HEADER_FINAL, "true")
            .header(HEADER_REVISION, "0")
            .header(HEADER_WINDOW_ROWS, partitions.len().to_string());
        ("by_request".to_owned(), *partition, record)
    };
    let records = partitions.iter().map(record).collect();
    writer.commit(Transaction { records, consumed: Vec::new() }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn windows_on_partitions_that_are_added_to_a_sink_reach_viewers() {
    let (broker, dir) = (Broker::start(), program());
    let up = Running::up(dir.path(), &["--kafka", &broker.address]);
    up.ready().await;
    let (_tell, address) = watch::channel(Some(up.url("")));
    let viewer = Viewer::start_asking(address, &["main"], "&last=1");
    let log = KafkaLog::connect(KafkaSettings::new(broker.address.clone())).await.unwrap();
    let mut writer = log.fence("another-engine").await.unwrap();
    let all: Vec<u32> = (0..AFTER as u32).collect();
    let shown = || viewer.shown(|shown| shown.messages.iter().map(|(m, _)| m.rows.len()).collect::<Vec<_>>());
    close(writer.as_mut(), 1, &all[..BEFORE]).await;
    until("windows are shown", LIMIT, || shown() == [BEFORE]).await;
    add_partitions(&broker, "by_request").await;
    let began = Instant::now();
    while log.describe("by_request").await.unwrap().unwrap().len() < AFTER {
        assert!(began.elapsed() < LIMIT, "partitions are not added");
    }
    // A new one, which knows the new partitions.
    let mut writer = log.fence("another-engine").await.unwrap();
    close(writer.as_mut(), 2, &all).await;
    close(writer.as_mut(), 3, &all[BEFORE..]).await;
    until("windows on added partitions are shown", LIMIT, || shown() == [BEFORE, AFTER, AFTER - BEFORE])
        .await;
    viewer.shown(|shown| assert!(shown.wrong.is_empty() && shown.gaps == 0, "{:?}", shown.wrong));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_are_added_while_a_query_runs_are_written_and_read_and_no_row_is_lost_or_late() {
    let (broker, dir) = (Broker::start(), program());
    let up = Running::up(dir.path(), &["--kafka", &broker.address]);
    up.ready().await;
    let (_tell, address) = watch::channel(Some(up.url("")));
    let load = Load::start(&address, "/v1/tables/reactions", &["left", "right"]);
    up.windows("by_request", |windows| windows.len() > 2).await;
    assert_eq!(ends(&up.json("/v1/tables/reactions").await).len(), BEFORE);
    add_partitions(&broker, "reactions").await;
    let written = |table: &Value| ends(table).len() == AFTER && ends(table).iter().all(|end| *end > 0);
    up.poll("/v1/tables/reactions", written).await;
    let ledger = load.stop().await;
    books::settle(&up, "by_request", &ledger).await;
    books::check_requests(&ledger, &books::all_results(&up, "by_request").await);
    assert_eq!(up.json("/v1/queries/by_request").await["last_error"], Value::Null, "nothing went wrong");
}
