//! Early results, through the whole program: who asks for them sees windows grow, and everybody sees each window's end once,
//! however the process ends meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use emostream::log::Log;
use emostream::log::embedded::{self, EmbeddedLog};
use emostream::log::kafka::{KafkaLog, KafkaSettings};
use emostream::reaction::live::LiveMessage;
use tokio::sync::watch;

use crate::support::binary::Running;
use crate::support::books;
use crate::support::kafka::Broker;
use crate::support::load::{Ledger, Load};
use crate::support::viewer::{Shown, Viewer};
use crate::support::waiting::until;

/// Sinks without a room are seen in `main`, where nobody sends.
const ROOMS: [&str; 3] = ["left", "right", "main"];
const PATIENCE: Duration = Duration::from_secs(120);
const TABLES: &str = "
CREATE TABLE reactions (
  user_id TEXT NOT NULL, emoji_type TEXT NOT NULL, room TEXT NOT NULL, timestamp TIMESTAMP NOT NULL DEFAULT now(),
  WATERMARK FOR timestamp AS (timestamp - INTERVAL '1 second')
) WITH (connector = 'kafka', type = 'source', topic = 'reactions', format = 'arrow');
CREATE TABLE by_request (
  window_start TIMESTAMP, window_end TIMESTAMP, room TEXT, emoji_type TEXT, count BIGINT, people BIGINT
) WITH (connector = 'kafka', type = 'sink', 'sink.key_field' = 'room', emit_every = '100 milliseconds');
CREATE TABLE hopping (window_start TIMESTAMP, window_end TIMESTAMP, room TEXT, count BIGINT)
WITH (connector = 'kafka', type = 'sink', emit_every = '150 milliseconds');
CREATE TABLE sums (window_start TIMESTAMP, window_end TIMESTAMP, count BIGINT)
WITH (connector = 'kafka', type = 'sink', emit_every = '90 milliseconds');
";
const BY_REQUEST: &str = "
INSERT INTO by_request SELECT window.start, window.end, room, emoji_type, count, people
FROM (
  SELECT tumble(INTERVAL '2 seconds') AS window, room, emoji_type, count(*) AS count,
         count(DISTINCT user_id) AS people
  FROM reactions GROUP BY window, room, emoji_type
);
";
const HOPPING: &str = "
INSERT INTO hopping SELECT window.start, window.end, room, count
FROM (
  SELECT hop(INTERVAL '1 second', INTERVAL '3 seconds') AS window, room, count(*) AS count
  FROM reactions GROUP BY window, room
);
INSERT INTO sums SELECT window.start, window.end, count
FROM (SELECT tumble(INTERVAL '1 second') AS window, count(*) AS count FROM reactions GROUP BY window);
";

/// Kills a process under load while windows are open, and closes the books of the next one; both folders and logs are the
/// caller's to look at.
async fn watched(dir: &Path, args: &[&str]) -> Ledger {
    std::fs::create_dir(dir.join("sql")).unwrap();
    std::fs::write(dir.join("sql/tables.sql"), TABLES).unwrap();
    std::fs::write(dir.join("sql/by_request.sql"), BY_REQUEST).unwrap();
    std::fs::write(dir.join("sql/hopping.sql"), HOPPING).unwrap();
    let mut up = Running::up(dir, args);
    up.ready().await;
    let (tell, address) = watch::channel(Some(up.url("")));
    let plain = Viewer::start(address.clone(), &ROOMS);
    let eager = Viewer::start_asking(address.clone(), &ROOMS, "&early=1");
    let load = Load::start(&address, "/v1/tables/reactions", &ROOMS[..2]);
    for _ in 0..2 {
        let before = eager.shown(|shown| (shown.early.len(), shown.messages.len()));
        until("windows are told early and closed", PATIENCE, || {
            eager.shown(|shown| shown.early.len() > before.0 + 10 && shown.messages.len() > before.1 + 4)
        })
        .await;
        up.kill();
        tell.send_replace(None);
        up = Running::up(dir, args);
        up.ready().await;
        tell.send_replace(Some(up.url("")));
    }
    let ledger = load.stop().await;
    books::settle(&up, "by_request", &ledger).await;
    let windows = books::all_results(&up, "by_request").await;
    up.poll("/v1/queries/hopping", |query| query["open"] == 0).await;
    let hopping = books::all_results(&up, "hopping").await;
    let sums = books::all_results(&up, "sums").await;
    books::check_requests(&ledger, &windows);
    let sinks =
        [("by_request", windows.as_slice()), ("hopping", hopping.as_slice()), ("sums", sums.as_slice())];
    for viewer in [&plain, &eager] {
        until("every window is shown", PATIENCE, || viewer.shown(|shown| books::is_shown(shown, &sinks)))
            .await;
        viewer.shown(|shown| books::check_shown(shown, &sinks));
    }
    assert_eq!(plain.shown(|shown| shown.early.len()), 0);
    eager.shown(check_early);
    assert_eq!(up.terminate().await, Some(0));
    ledger
}

/// Whatever is told early of a window grows into what is told at its end, and not after that.
fn check_early(shown: &Shown) {
    let mut windows: BTreeMap<_, Vec<&LiveMessage>> = BTreeMap::new();
    let ends = shown.messages.iter().map(|(message, _)| message);
    for message in shown.early.iter().chain(ends) {
        let LiveMessage { table, room, window, .. } = message;
        windows.entry((table, room, window.start)).or_default().push(message);
    }
    let mut grown = BTreeSet::new();
    for ((table, _, start), told) in windows {
        let counts = |message: &LiveMessage| -> BTreeMap<String, u64> {
            let text =
                |row: &serde_json::Map<_, serde_json::Value>| row.get("emoji_type").map(ToString::to_string);
            message
                .rows
                .iter()
                .map(|row| (text(row).unwrap_or_default(), row["count"].as_u64().unwrap()))
                .collect()
        };
        for (earlier, later) in told.iter().zip(told.iter().skip(1)) {
            assert!(earlier.id < later.id, "{} before {}", earlier.id, later.id);
            let later_counts = counts(later);
            for (tag, count) in counts(earlier) {
                assert!(later_counts.get(&tag) >= Some(&count), "{} {}: {tag} shrinks", earlier.id, later.id);
            }
        }
        assert!(told.last().is_some_and(|last| last.is_final), "{table} {start} has no end");
        // How often a window is told early is the machine's to say; that it is, the program's.
        if told.len() > 1 {
            grown.insert(table);
        }
    }
    assert_eq!(grown.len(), 3, "windows are told as they grow: {grown:?}");
}

async fn check_log(log: &dyn Log) {
    assert!(books::check_sink_topic(log, "by_request").await > 0);
    assert!(books::check_sink_topic(log, "hopping").await > 0);
    assert!(books::check_sink_topic(log, "sums").await > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn windows_are_told_as_they_grow_and_end_once_on_the_embedded_log() {
    let dir = tempfile::tempdir().unwrap();
    assert!(watched(dir.path(), &[]).await.len() > 10);
    let data = dir.path().join("data");
    let opened = tokio::task::spawn_blocking(move || EmbeddedLog::open(&data, embedded::Settings::default()));
    let log = opened.await.unwrap().unwrap();
    check_log(log.as_ref()).await;
    log.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn windows_are_told_as_they_grow_and_end_once_on_kafka() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start();
    assert!(watched(dir.path(), &["--kafka", &broker.address]).await.len() > 10);
    let log = KafkaLog::connect(KafkaSettings::new(broker.address.clone())).await.unwrap();
    check_log(log.as_ref()).await;
}
