//! Tables of every format and connector in a program that runs: `emostream up` as it is used.

use std::path::Path;
use std::time::Duration;

use emostream::log::kafka::{KafkaLog, KafkaSettings};
use emostream::log::{Log, NewRecord, Retention, TopicSpec, Transaction};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::binary::{Running, emostream, post_json};
use crate::support::kafka::Broker;

/// A folder with these files under `sql/`.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("sql")).unwrap();
    for (name, text) in files {
        write(folder.path(), name, text);
    }
    folder
}

fn write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join("sql").join(name), text).unwrap();
}

const FORMATS: &str = "
CREATE TABLE sent (user_id TEXT NOT NULL, room TEXT NOT NULL, at TIMESTAMP NOT NULL, WATERMARK FOR at)
WITH (connector = 'kafka', type = 'source');
CREATE TABLE as_json (window_start TIMESTAMP, window_end TIMESTAMP, room TEXT, user_id TEXT, n BIGINT, share DECIMAL(5, 2))
WITH (connector = 'kafka', type = 'sink', 'sink.key_field' = 'room');
CREATE TABLE as_arrow (window_start TIMESTAMP, window_end TIMESTAMP, room TEXT, user_id TEXT, n BIGINT, share DECIMAL(5, 2))
WITH (connector = 'kafka', type = 'sink', 'sink.key_field' = 'room', format = 'arrow');
CREATE TABLE as_text (who TEXT) WITH (connector = 'kafka', type = 'sink', format = 'raw_string');
";
const INTO_FORMATS: &str = "
CREATE VIEW counted AS SELECT window, room, user_id, n, CASE WHEN n > 1 THEN 0.5 END AS share FROM (
  SELECT tumble(INTERVAL '2 seconds') AS window, room, user_id, count(*) AS n FROM sent GROUP BY window, room, user_id);
INSERT INTO as_json SELECT window.start, window.end, room, user_id, n, share FROM counted ORDER BY user_id;
INSERT INTO as_arrow SELECT window.start, window.end, room, user_id, n, share FROM counted ORDER BY user_id;
INSERT INTO as_text SELECT user_id FROM counted ORDER BY user_id;
";
const SENT: &str = r#"[{"user_id":"ada","room":"b","at":"2026-01-01T00:00:00Z"},
    {"user_id":"bob \"b\"","room":"a","at":"2026-01-01T00:00:00Z"},
    {"user_id":"ada","room":"a","at":"2026-01-01T00:00:01Z"},
    {"user_id":"ada","room":"a","at":"2026-01-01T00:00:01Z"},
    {"user_id":"eve","room":"a","at":"2026-01-01T00:00:02Z"}]"#;

/// A viewer of a table.
async fn live(up: &Running, table: &str) -> reqwest::Response {
    reqwest::get(up.url(&format!("/v1/live?table={table}&room=a&room=b&room=main"))).await.unwrap()
}

/// Its first `count` messages, without what names them.
async fn messages(mut answer: reqwest::Response, count: usize) -> Vec<Value> {
    let (mut text, mut messages) = (String::new(), Vec::new());
    while messages.len() < count {
        let chunk = tokio::time::timeout(Duration::from_secs(60), answer.chunk()).await;
        text += std::str::from_utf8(&chunk.expect("messages come").unwrap().unwrap()).unwrap();
        messages = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data:")?).ok())
            .map(|message| json!([message["room"], message["window"], message["rows"]]))
            .collect();
    }
    messages
}

#[tokio::test]
async fn results_look_the_same_whatever_the_format_of_their_sink() {
    let folder = folder(&[("tables.sql", FORMATS), ("counted.sql", INTO_FORMATS)]);
    let up = Running::up(folder.path(), &[]);
    up.ready().await;
    let (json, arrow, text) =
        (live(&up, "as_json").await, live(&up, "as_arrow").await, live(&up, "as_text").await);
    let posted = post_json(&up.url("/v1/tables/sent"), SENT).await;
    assert_eq!(posted.0, 202, "{posted:?}");
    let enough = |windows: &[Value]| windows.len() == 2;
    let json_windows = up.windows("as_json", enough).await;
    assert_eq!(up.windows("as_arrow", enough).await, json_windows);
    let first = json!([
        {"room": "a", "user_id": "ada", "n": 2, "share": "0.50"},
        {"room": "a", "user_id": "bob \"b\"", "n": 1, "share": null},
        {"room": "b", "user_id": "ada", "n": 1, "share": null}
    ]);
    assert_eq!(json_windows[1]["rows"], first, "{json_windows:?}");
    let (json, arrow) = (messages(json, 3).await, messages(arrow, 3).await);
    assert_eq!((&arrow, json[0][2][0]["share"].as_str()), (&json, Some("0.50")));
    let text_windows = up.windows("as_text", enough).await;
    assert_eq!(text_windows[1]["rows"], json!([{"who": "ada"}, {"who": "ada"}, {"who": "bob \"b\""}]));
    assert_eq!(messages(text, 2).await[0][2], text_windows[1]["rows"]);
}

const ON_KAFKA: &str = "
CREATE TABLE sent (user_id TEXT NOT NULL, at TIMESTAMP NOT NULL, WATERMARK FOR at)
WITH (connector = 'kafka', type = 'source', format = 'json', bootstrap_servers = 'BROKER', 'source.group_id' = 'others',
  'source.offset' = 'group', client_configs = 'fetch.max.bytes=2000000');
CREATE TABLE counts (window_start TIMESTAMP, window_end TIMESTAMP, n BIGINT)
WITH (connector = 'kafka', type = 'sink', bootstrap_servers = 'BROKER', 'sink.timestamp_field' = 'window_end',
  client_configs = 'linger.ms=1');
";
const COUNT: &str = "INSERT INTO counts SELECT window.start, window.end, n FROM (
  SELECT tumble(INTERVAL '2 seconds') AS window, count(*) AS n FROM sent GROUP BY window);";

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_names_its_broker_runs_there_from_where_a_group_stands_on_kafka() {
    let broker = Broker::start();
    let log = KafkaLog::connect(KafkaSettings::new(&broker.address)).await.unwrap();
    let hour = Retention::Age(Duration::from_secs(3600));
    let spec = TopicSpec { name: "sent".to_owned(), partitions: 3, retention: hour, log_append_time: false };
    log.create_topics(&[spec]).await.unwrap();
    let row = |n: i64| NewRecord {
        value: Some(format!("{{\"user_id\":\"u\",\"at\":\"2026-01-01T00:00:{n:02}Z\"}}").into()),
        ..NewRecord::default()
    };
    log.append("sent", 0, (0..6).map(row).collect()).await.unwrap();
    // Another program's group has read the first two.
    let consumed = vec![("others".to_owned(), vec![("sent".to_owned(), 0, 2)])];
    let mut others = log.fence("others").await.unwrap();
    others.commit(Transaction { records: Vec::new(), consumed }).await.unwrap();

    let tables = ON_KAFKA.replace("BROKER", &broker.address);
    let folder = folder(&[("tables.sql", &tables), ("count.sql", COUNT)]);
    let up = Running::up(folder.path(), &[]);
    up.ready().await;
    let windows = up.windows("counts", |windows| windows.len() == 2).await;
    let counts: Vec<_> = windows.iter().map(|window| window["rows"][0]["n"].clone()).collect();
    assert_eq!(counts, [2, 2], "the first two rows are in no window: {windows:?}");
    let figures = up.poll("/v1/queries/count", |query| query["open"] == 0).await;
    assert_eq!(figures["accepted"], 4, "{figures}");
    assert_eq!(log.committed("others", "sent").await.unwrap()[&0], 6);

    let partitions = log.describe("counts").await.unwrap().unwrap().len();
    let mut reader = log.reader("counts", 0, 0).await.unwrap();
    let mut stamps = Vec::new();
    while stamps.len() < 2 {
        let batch = reader.read(1 << 20, Duration::from_secs(10)).await.unwrap();
        stamps.extend(batch.records.iter().map(|record| record.timestamp_ms));
    }
    assert_eq!((partitions, stamps), (3, vec![1_767_225_604_000, 1_767_225_606_000]));

    // Another broker than the program's.
    let elsewhere = tables.replace(&broker.address, "127.0.0.1:1");
    write(folder.path(), "tables.sql", &elsewhere);
    let refused = emostream(folder.path())
        .args(["up", "--kafka", &broker.address, "--listen", "127.0.0.1:0"])
        .output()
        .unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    let place = "sql/tables.sql:3:85: error: the log is ";
    assert!(said.contains(place) && said.contains("one transaction, which cannot span two logs"), "{said}");
}
