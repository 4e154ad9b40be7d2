//! Tables of every format and connector in a program that runs: `emostream up` as it is used.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use arrow::ipc::reader::StreamReader;
use emostream::log::failpoint::CRASH_AT;
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
    let place = "sql/tables.sql:3:82: error: the log is ";
    assert!(said.contains(place) && said.contains("one transaction, which cannot span two logs"), "{said}");
}

const LINES: usize = 30_000;

const CARRIED: &str = "
CREATE TABLE lines (n BIGINT NOT NULL, at TIMESTAMP NOT NULL, padding TEXT, WATERMARK FOR at)
WITH (connector = 'single_file', type = 'source', path = '../lines.jsonl');
CREATE TABLE kept (window_start TIMESTAMP, n BIGINT, total BIGINT)
WITH (connector = 'single_file', type = 'sink', path = '../kept.jsonl');
CREATE TABLE shown (window_start TIMESTAMP, n BIGINT) WITH (connector = 'stdout', 'json.timestamp_format' = 'unix_millis');
CREATE TABLE dropped (n BIGINT) WITH (connector = 'blackhole');
CREATE TABLE counts (window_start TIMESTAMP, window_end TIMESTAMP, n BIGINT) WITH (connector = 'kafka', type = 'sink');
";
const CARRY: &str = "
CREATE VIEW counted AS SELECT window, n, total FROM (
  SELECT tumble(INTERVAL '2 seconds') AS window, count(*) AS n, sum(n) AS total FROM lines GROUP BY window);
INSERT INTO kept SELECT window.start, n, total FROM counted;
INSERT INTO shown SELECT window.start, n FROM counted;
INSERT INTO dropped SELECT n FROM counted;
INSERT INTO counts SELECT window.start, window.end, n FROM counted;
";

/// Lines ten milliseconds apart, and between them one that is no JSON and one that no record holds.
fn lines() -> String {
    let padding = "x".repeat(150);
    let mut lines = String::new();
    for n in 0..LINES {
        let at = format!("2026-01-01T00:{:02}:{:02}.{:02}Z", n / 6000, n / 100 % 60, n % 100);
        lines += &format!("{{\"n\":{n},\"at\":\"{at}\",\"padding\":\"{padding}\"}}\n");
        match n {
            10_000 => lines += "no JSON\n\n",
            20_000 => lines += &format!("{{\"n\":1,\"padding\":\"{}\"}}\n", "y".repeat(800_000)),
            _ => {}
        }
    }
    lines
}

/// What the file of the sink must hold: 200 lines a window.
fn kept() -> String {
    let window = |w: usize| {
        let (at, total) = (w * 2, (w * 200..w * 200 + 200).sum::<usize>());
        let start = format!("2026-01-01T00:{:02}:{:02}Z", at / 60, at % 60);
        format!("{{\"window_start\":\"{start}\",\"n\":200,\"total\":{total}}}\n")
    };
    (0..LINES / 200).map(window).collect()
}

/// `up` with its standard output in a file, killed at that point or after that time.
async fn killed(folder: &Path, args: &[&str], at: &str, after: Duration) {
    let mut up = start(folder, args, Some(at));
    let ending = async {
        while up.try_wait().unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(after, ending).await.is_err() {
        up.kill().unwrap();
        up.wait().unwrap();
    }
}

fn start(folder: &Path, args: &[&str], crash_at: Option<&str>) -> std::process::Child {
    let file = |name: &str| File::options().create(true).append(true).open(folder.join(name)).unwrap();
    let mut command = emostream(folder);
    command.args(["up", "--listen", "127.0.0.1:0"]).args(args);
    command.stdout(file("stdout")).stderr(file("stderr"));
    command.envs(crash_at.map(|point| (CRASH_AT, point))).spawn().unwrap()
}

/// Kills it at every point of carrying and at any moment, then lets it come to its end and looks at everything.
async fn every_line_is_carried_once(args: &[&str]) {
    let folder = folder(&[("tables.sql", CARRIED), ("carry.sql", CARRY)]);
    let file = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    std::fs::write(folder.path().join("kept.jsonl"), "what was there before").unwrap();
    // Its input is there only later.
    killed(folder.path(), args, "nowhere", Duration::from_secs(1)).await;
    std::fs::write(folder.path().join("lines.jsonl"), lines()).unwrap();
    let points = [
        "engine.feed.before:2",
        "engine.feed.after",
        "engine.feed.before:3",
        "engine.commit.after",
        "engine.outlet.before",
        "engine.outlet.after",
        "engine.outlet.after:2",
        "engine.commit.before:2",
    ];
    for point in points {
        killed(folder.path(), args, point, Duration::from_secs(5)).await;
    }
    for ms in [150, 400, 700, 1_000] {
        killed(folder.path(), args, "nowhere", Duration::from_millis(ms)).await;
    }
    let mut last = start(folder.path(), args, None);
    // Standard output may say again what came before a kill, and leaves nothing out.
    let said = || {
        let lines = file("stdout");
        lines.lines().filter(|line| line.starts_with('{')).map(str::to_owned).collect::<BTreeSet<_>>()
    };
    for _ in 0..1_000 {
        if file("kept.jsonl") == kept() && said().len() == LINES / 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    last.kill().unwrap();
    last.wait().unwrap();
    let (found, said) = (file("kept.jsonl"), said());
    assert_eq!((found.lines().count(), found, said.len()), (LINES / 200, kept(), LINES / 200));
    assert!(said.contains(r#"{"window_start":1767225600000,"n":200}"#), "{said:?}");

    let up = Running::up(folder.path(), args);
    up.ready().await;
    let all = |query: &Value| query["open"] == 0 && query["accepted"].as_u64() >= Some(LINES as u64 + 2);
    let figures = up.poll("/v1/queries/carry", all).await;
    let expected = json!({"accepted": LINES + 2, "counted": LINES, "bad": 2, "late": 0, "future": 0});
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(figures[name], *value, "{name}: {figures}");
    }
    let shown = up.windows("counts", |found| found.len() >= 100).await;
    assert!(shown.iter().all(|window| window["rows"] == json!([{"n": 200}])), "{shown:?}");
    let refused = up.json("/v1/results/dropped").await;
    assert!(refused["detail"].as_str().unwrap().contains("is a blackhole"), "{refused}");
    let posted = post_json(&up.url("/v1/tables/lines"), "[]").await;
    assert!(posted.0 == 404 && posted.1.contains("takes no rows"), "{posted:?}");
    assert_eq!(file("kept.jsonl"), kept(), "nothing is written again");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_line_of_a_file_is_counted_and_written_once_however_the_process_is_killed() {
    every_line_is_carried_once(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_line_of_a_file_is_counted_and_written_once_however_the_process_is_killed_on_kafka() {
    let broker = Broker::start();
    every_line_is_carried_once(&["--kafka", &broker.address]).await;
}

const BEATS: &str = "
CREATE TABLE beats WITH (connector = 'impulse', event_rate = '500', message_count = '1500');
CREATE TABLE counts (window_start TIMESTAMP, window_end TIMESTAMP, n BIGINT, last BIGINT)
WITH (connector = 'kafka', type = 'sink');
CREATE TABLE last (n BIGINT) WITH (connector = 'single_file', type = 'sink', path = 'last.arrow', format = 'arrow');
";
const BEAT: &str = "
INSERT INTO counts SELECT window.start, window.end, n, last FROM (
  SELECT tumble(INTERVAL '500 milliseconds') AS window, count(*) AS n, max(counter) AS last FROM beats GROUP BY window);
";

#[tokio::test]
async fn an_impulse_goes_on_from_its_number_after_a_kill_and_ends() {
    let every = format!("{BEAT}INSERT INTO last SELECT counter FROM beats;");
    let folder = folder(&[("tables.sql", BEATS), ("beat.sql", &every)]);
    killed(folder.path(), &[], "nowhere", Duration::from_millis(900)).await;
    killed(folder.path(), &[], "engine.feed.before:20", Duration::from_secs(2)).await;
    let up = Running::up(folder.path(), &[]);
    up.ready().await;
    let last = |windows: &[Value]| windows.iter().any(|window| window["rows"][0]["last"] == 1499);
    let windows = up.windows("counts", last).await;
    let counted: u64 = windows.iter().map(|window| window["rows"][0]["n"].as_u64().unwrap()).sum();
    assert_eq!(counted, 1500, "{windows:?}");
    let path = folder.path().join("sql/last.arrow");
    let rows = || -> Vec<i64> {
        let Ok(file) = File::open(&path) else { return Vec::new() };
        let Ok(stream) = StreamReader::try_new(file, None) else { return Vec::new() };
        let batches = stream.map_while(Result::ok);
        batches.flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec()).collect()
    };
    for _ in 0..500 {
        if rows().len() >= 1500 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(rows(), (0..1500).collect::<Vec<i64>>());
}
