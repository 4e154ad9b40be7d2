//! Queries that change while rows flow, against the real binary: by PUT, by a saved file, by DELETE, back to an earlier
//! version; and at the end every row that was accepted is in exactly one window.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use emostream::clock::wall_ns;
use emostream::reaction::figures::Figures;
use emostream::reaction::time::{NS_PER_MS, parse_rfc3339};
use reqwest::header::{ETAG, HeaderMap, HeaderValue, IF_MATCH, ORIGIN};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::support::binary::Running;
use crate::support::books::{self, ClosedWindow};
use crate::support::kafka::Broker;
use crate::support::load::{Ledger, Load, Outcome, Sent};

const QUERY: &str = "/v1/queries/by_request";
const TABLES: &str = "
CREATE TABLE reactions (
  user_id TEXT NOT NULL, emoji_type TEXT NOT NULL, room TEXT NOT NULL, timestamp TIMESTAMP NOT NULL DEFAULT now(),
  WATERMARK FOR timestamp AS (timestamp - INTERVAL '1 second')
) WITH (connector = 'kafka', type = 'source', topic = 'reactions', format = 'arrow');

CREATE TABLE by_request (
  window_start TIMESTAMP, window_end TIMESTAMP, room TEXT, emoji_type TEXT, count BIGINT, people BIGINT, scaled BIGINT
) WITH (connector = 'kafka', type = 'sink', topic = 'by_request', format = 'json', 'sink.key_field' = 'room');
";

/// Every request's rows by its tag; `scaled` is told above the cut from `keep`, which is kept below it.
fn by_request(width: &str, keep: &str, scaled: &str) -> String {
    format!(
        "INSERT INTO by_request
SELECT window.start, window.end, room, emoji_type, count, people, {scaled}
FROM (
  SELECT tumble(INTERVAL '{width}') AS window, room, emoji_type, count(*) AS count,
         count(DISTINCT user_id) AS people, {keep} AS kept
  FROM reactions GROUP BY window, room, emoji_type
);
"
    )
}

fn plain(width: &str) -> String {
    by_request(width, "count(*)", "kept")
}

/// A folder with this query.
fn program(query: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("sql")).unwrap();
    save(dir.path(), "tables.sql", TABLES);
    save(dir.path(), "by_request.sql", query);
    dir
}

/// As an editor does: a new file is renamed over the old one.
fn save(dir: &Path, file: &str, text: &str) {
    let (new, path) = (dir.join("new"), dir.join("sql").join(file));
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

fn saved(dir: &TempDir) -> String {
    std::fs::read_to_string(dir.path().join("sql/by_request.sql")).unwrap()
}

/// Status, headers and body of a request with that text.
async fn send(
    up: &Running,
    method: Method,
    path: &str,
    text: &str,
    headers: HeaderMap,
) -> (u16, HeaderMap, Value) {
    let request = Client::new().request(method, up.url(path)).headers(headers).body(text.to_owned());
    let answer = request.send().await.unwrap();
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    let body = answer.text().await.unwrap();
    (status, headers, serde_json::from_str(&body).unwrap_or(Value::Null))
}

async fn put(up: &Running, text: &str) -> Value {
    let (status, _, body) = send(up, Method::PUT, QUERY, text, HeaderMap::new()).await;
    assert_eq!(status, 200, "{body}");
    body
}

/// A running process under load.
struct Busy {
    tell: watch::Sender<Option<String>>,
    load: Load,
}

impl Busy {
    async fn start(up: &Running) -> Self {
        up.ready().await;
        let (tell, address) = watch::channel(Some(up.url("")));
        let busy = Self { tell, load: Load::start(&address, "/v1/tables/reactions", &["left", "right"]) };
        busy.go_on(up).await;
        busy
    }

    /// Until a window is closed that is open now.
    async fn go_on(&self, up: &Running) {
        let now = wall_ns();
        let end = |window: &Value| parse_rfc3339(window["end"].as_str().unwrap()).unwrap();
        up.windows("by_request", |windows| windows.first().is_some_and(|newest| end(newest) > now)).await;
    }

    async fn stop(self) -> Ledger {
        self.load.stop().await
    }
}

/// Once nothing is open any more: every request is counted whole, in one window of one version.
async fn close_books(up: &Running, ledger: &Ledger) -> Vec<ClosedWindow> {
    let is_done =
        |query: &Value| query["state"] == "running" && query["open"] == 0 && query["lag_records"] == 0;
    let query = up.poll(QUERY, is_done).await;
    let figures: Figures = serde_json::from_value(query.clone()).unwrap();
    assert!(figures.is_conserved(), "{query}");
    assert_eq!(
        (figures.late, figures.future, figures.bad, &query["gap"]),
        (0, 0, 0, &Value::Null),
        "{query}"
    );
    let windows = books::all_results(up, "by_request").await;
    books::check_requests(ledger, &windows);
    let (accepted, unknown) = books::sent(ledger);
    let counted = books::total(&windows, "count");
    assert!((accepted..=accepted + unknown).contains(&counted), "{accepted} + {unknown}: {counted}");
    windows
}

/// The widths of the windows in order of time, milliseconds, each once while it lasts.
fn widths(windows: &[ClosedWindow]) -> Vec<i64> {
    let mut widths: Vec<i64> =
        windows.iter().rev().map(|closed| (closed.window.end - closed.window.start) / NS_PER_MS).collect();
    widths.dedup();
    widths
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_says_what_would_become_of_a_text_and_changes_nothing() {
    let dir = program(&plain("1 second"));
    let up = Running::up(dir.path(), &[]);
    up.ready().await;
    let check = async |name: &str, text: String| {
        let body = json!({"name": name, "text": text}).to_string();
        let (status, _, verdict) =
            send(&up, Method::POST, "/v1/queries/check", &body, HeaderMap::new()).await;
        assert_eq!(status, 200, "{verdict}");
        verdict
    };
    for (text, kind) in [
        (plain("1 second"), "unchanged"),
        (by_request("1 second", "count(*)", "kept * 2"), "continues"),
        (plain("2 seconds"), "switches"),
        (plain("7 hours"), "overlaps"),
    ] {
        let verdict = check("by_request", text).await;
        assert_eq!(
            (&verdict["ok"], &verdict["compatibility"]["kind"]),
            (&json!(true), &json!(kind)),
            "{verdict}"
        );
    }
    let verdict = check("by_request", plain("2 seconds")).await;
    let plan = verdict["plan"].as_str().unwrap();
    assert!(plan.contains("tumble(2 s)") && plan.contains("key     reactions.room"), "{plan}");
    let at = parse_rfc3339(verdict["compatibility"]["at"].as_str().unwrap()).unwrap();
    assert_eq!(at % 2_000_000_000, 0, "{verdict}");

    let wrong =
        check("by_request", plain("1 second").replace("emoji_type, count,", "emoji_tipe, count,")).await;
    assert_eq!(
        (&wrong["ok"], &wrong["plan"], &wrong["compatibility"]),
        (&json!(false), &Value::Null, &Value::Null)
    );
    let found = &wrong["diagnostics"][0];
    assert_eq!((&found["line"], &found["column"]), (&json!(2), &json!(40)), "{wrong}");
    assert!(found["suggestion"].as_str().unwrap().contains("emoji_type"), "{wrong}");
    let limited =
        check("by_request", format!("{}\nLIMIT 3;", plain("1 second").trim_end().trim_end_matches(';')))
            .await;
    let warned = &limited["diagnostics"][0];
    assert_eq!((&limited["ok"], &warned["severity"]), (&json!(true), &json!("warning")), "{limited}");
    let taken = check("other", plain("1 second")).await;
    assert!(taken["diagnostics"][0]["message"].as_str().unwrap().contains("by_request"), "{taken}");

    let (status, _, refused) = send(&up, Method::PUT, QUERY, "SELECT 1", HeaderMap::new()).await;
    assert_eq!((status, &refused["ok"], &refused["status"]), (422, &json!(false), &json!(422)), "{refused}");
    let query = up.json(QUERY).await;
    assert_eq!((&query["version"], &query["text"]), (&json!(1), &json!(plain("1 second"))));
    assert_eq!(saved(&dir), plain("1 second"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edit_above_the_cut_goes_on_without_a_gap_and_only_one_editor_is_first() {
    let dir = program(&plain("500 milliseconds"));
    let up = Running::up(dir.path(), &[]);
    let busy = Busy::start(&up).await;
    let doubled = by_request("500 milliseconds", "count(*)", "kept * 2");
    let tag = |tag: &'static str| HeaderMap::from_iter([(IF_MATCH, HeaderValue::from_static(tag))]);
    let (status, headers, _) = send(&up, Method::PUT, QUERY, &doubled, tag("\"1\"")).await;
    assert_eq!((status, &headers[ETAG]), (200, &HeaderValue::from_static("\"2\"")));
    let (status, _, problem) = send(&up, Method::PUT, QUERY, &plain("3 seconds"), tag("\"1\"")).await;
    assert_eq!((status, &problem["type"]), (412, &json!("about:blank#outdated")));
    let evil = HeaderMap::from_iter([(ORIGIN, HeaderValue::from_static("https://evil.example"))]);
    assert_eq!(send(&up, Method::PUT, QUERY, &plain("3 seconds"), evil).await.0, 403);
    busy.go_on(&up).await;
    let ledger = busy.stop().await;
    // The account goes on as well.
    books::settle(&up, "by_request", &ledger).await;
    let windows = close_books(&up, &ledger).await;
    assert_eq!(widths(&windows), [500]);
    let mut factors: Vec<u64> = windows
        .iter()
        .rev()
        .flat_map(|window| &window.rows)
        .map(|row| row["scaled"].as_u64().unwrap() / row["count"].as_u64().unwrap())
        .collect();
    factors.dedup();
    assert_eq!(factors, [1, 2]);
    assert_eq!(saved(&dir), doubled);
    assert_eq!(up.json(QUERY).await["version"], 2, "the file that PUT wrote is not taken up again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_window_takes_over_at_a_common_boundary_and_any_version_can_be_put_back() {
    another_window_and_back(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_window_takes_over_at_a_common_boundary_on_kafka_too() {
    let broker = Broker::start();
    another_window_and_back(&["--kafka", &broker.address]).await;
}

async fn another_window_and_back(args: &[&str]) {
    let dir = program(&plain("1 second"));
    let up = Running::up(dir.path(), args);
    let busy = Busy::start(&up).await;
    assert_eq!(put(&up, &plain("2 seconds")).await["version"], 2);
    up.poll(QUERY, |query| query["state"] == "running").await;
    busy.go_on(&up).await;
    let (status, _, restored) =
        send(&up, Method::PUT, &format!("{QUERY}?version=1"), "", HeaderMap::new()).await;
    assert_eq!(
        (status, &restored["version"], &restored["text"]),
        (200, &json!(3), &json!(plain("1 second")))
    );
    up.poll(QUERY, |query| query["state"] == "running").await;
    busy.go_on(&up).await;
    let ledger = busy.stop().await;
    let windows = close_books(&up, &ledger).await;
    assert_eq!(widths(&windows), [1000, 2000, 1000]);
    let versions = up.json(&format!("{QUERY}/versions")).await["versions"].clone();
    let listed: Vec<_> =
        versions.as_array().unwrap().iter().map(|version| (&version["version"], &version["state"])).collect();
    let (replaced, running) = (&json!("replaced"), &json!("running"));
    assert_eq!(listed, [(&json!(1), replaced), (&json!(2), replaced), (&json!(3), running)]);
    assert_eq!(versions[1]["text"], plain("2 seconds"));
    assert_eq!(send(&up, Method::PUT, &format!("{QUERY}?version=9"), "", HeaderMap::new()).await.0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_are_open_at_a_change_below_the_window_are_emitted_once_and_whole() {
    let sessions = |gap: &str, keep: &str| {
        by_request("1 second", keep, "kept")
            .replace("tumble(INTERVAL '1 second')", &format!("session(INTERVAL '{gap}')"))
    };
    let dir = program(&sessions("2 seconds", "count(*)"));
    let mut up = Running::up(dir.path(), &[]);
    let busy = Busy::start(&up).await;
    let verdict = async |up: &Running, text: String| {
        let body = json!({"name": "by_request", "text": text}).to_string();
        let (_, _, verdict) = send(up, Method::POST, "/v1/queries/check", &body, HeaderMap::new()).await;
        verdict["compatibility"].clone()
    };
    let same = verdict(&up, sessions("2 seconds", "min(length(room))")).await;
    assert!(same["kind"] == "switches" && same["detail"].as_str().unwrap().contains("read again"), "{same}");
    let others = verdict(&up, sessions("3 seconds", "count(*)")).await;
    assert!(
        others["kind"] == "overlaps" && others["detail"].as_str().unwrap().contains("other sessions"),
        "{others}"
    );
    for (round, keep) in
        ["min(length(room))", "count(DISTINCT room)", "max(length(room))"].into_iter().enumerate()
    {
        assert_eq!(put(&up, &sessions("2 seconds", keep)).await["version"], 2 + round);
        if round == 1 {
            busy.tell.send_replace(None);
            up.kill();
            up = Running::up(dir.path(), &[]);
            up.ready().await;
            busy.tell.send_replace(Some(up.url("")));
        }
        up.poll(QUERY, |query| query["state"] == "running").await;
        busy.go_on(&up).await;
    }
    let ledger = busy.stop().await;
    close_books(&up, &ledger).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_saved_file_is_taken_up_and_one_that_does_not_plan_is_told_and_left() {
    let dir = program(&plain("500 milliseconds"));
    let up = Running::up(dir.path(), &[]);
    let busy = Busy::start(&up).await;
    save(dir.path(), "by_request.sql", &plain("1 second"));
    up.poll(QUERY, |query| query["version"] == 2 && query["state"] == "running").await;
    busy.go_on(&up).await;
    save(
        dir.path(),
        "by_request.sql",
        &plain("1 second").replace("room, emoji_type, count", "room, emoji, count"),
    );
    let told = up.poll(QUERY, |query| !query["last_error"].is_null()).await;
    assert!(told["last_error"].as_str().unwrap().contains("by_request.sql:4:"), "{told}");
    assert_eq!(
        (&told["version"], &told["state"], &told["text"]),
        (&json!(2), &json!("running"), &json!(plain("1 second")))
    );
    // A change that breaks what runs is refused as a whole.
    save(dir.path(), "tables.sql", &TABLES.replace("user_id TEXT", "person TEXT"));
    up.poll(QUERY, |query| query["last_error"].as_str().is_some_and(|error| error.contains("user_id"))).await;
    busy.go_on(&up).await;
    // A column and the query that reads it, saved one after the other, are one change.
    let row = "room TEXT NOT NULL, timestamp";
    save(
        dir.path(),
        "tables.sql",
        &TABLES.replace(row, "room TEXT NOT NULL, weight INT DEFAULT 3, timestamp"),
    );
    let weighed = by_request("1 second", "min(weight)", "kept");
    save(dir.path(), "by_request.sql", &weighed);
    let taken = up.poll(QUERY, |query| query["version"] == 3 && query["state"] == "running").await;
    assert_eq!((&taken["last_error"], &taken["text"]), (&Value::Null, &json!(weighed)));
    busy.go_on(&up).await;
    let ledger = busy.stop().await;
    let windows = close_books(&up, &ledger).await;
    assert_eq!(widths(&windows), [500, 1000]);
    let newest = windows[0].rows.iter().map(|row| row["scaled"].as_u64().unwrap());
    assert_eq!(newest.collect::<BTreeSet<_>>(), BTreeSet::from([3]), "the default of the new column");
    assert_eq!(up.json("/v1/tables/reactions").await["columns"][3]["name"], "weight");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_during_a_switch_loses_and_doubles_nothing() {
    let dir = program(&plain("1 second"));
    let mut up = Running::up(dir.path(), &[]);
    let busy = Busy::start(&up).await;
    for (round, width) in ["3 seconds", "2 seconds", "5 seconds"].iter().enumerate() {
        let put = put(&up, &plain(width)).await;
        assert_eq!(put["version"], 2 + round);
        tokio::time::sleep(Duration::from_millis(400 * round as u64)).await;
        busy.tell.send_replace(None);
        up.kill();
        up = Running::up(dir.path(), &[]);
        up.ready().await;
        busy.tell.send_replace(Some(up.url("")));
        up.poll(QUERY, |query| query["state"] == "running").await;
        busy.go_on(&up).await;
    }
    let ledger = busy.stop().await;
    let windows = close_books(&up, &ledger).await;
    assert_eq!(widths(&windows), [1000, 3000, 2000, 5000]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_fails_on_a_row_is_rolled_back_and_the_one_before_it_misses_no_window() {
    let dir = program(&plain("500 milliseconds"));
    let mut up = Running::up(dir.path(), &[]);
    let busy = Busy::start(&up).await;
    // The senders' users have longer names; one row of another sender brings it down.
    let failing = by_request("500 milliseconds", "sum(10 / (length(user_id) - 3))", "kept");
    put(&up, &failing).await;
    let row = json!({"user_id": "ann", "emoji_type": "the-row", "room": "left"}).to_string();
    let headers = HeaderMap::from_iter([(
        "content-type".parse().unwrap(),
        HeaderValue::from_static("application/json"),
    )]);
    assert_eq!(send(&up, Method::POST, "/v1/tables/reactions", &row, headers).await.0, 202);
    let back = up.poll(QUERY, |query| query["version"] == 1 && query["state"] == "running").await;
    let error = back["last_error"].as_str().unwrap();
    assert!(error.contains("version 2 failed") && error.to_lowercase().contains("divide by zero"), "{back}");
    assert_eq!(back["text"], plain("500 milliseconds"));
    let versions = up.json(&format!("{QUERY}/versions")).await["versions"].clone();
    assert_eq!((&versions[0]["state"], &versions[1]["state"]), (&json!("running"), &json!("failed")));
    busy.go_on(&up).await;
    // The file still says it; a restart does not try it again.
    assert_eq!(saved(&dir), failing);
    busy.tell.send_replace(None);
    assert_eq!(up.terminate().await, Some(0));
    up = Running::up(dir.path(), &[]);
    up.ready().await;
    assert_eq!(up.json(QUERY).await["version"], 1);
    busy.tell.send_replace(Some(up.url("")));
    busy.go_on(&up).await;
    // And the next one gets a number of its own.
    assert_eq!(put(&up, &plain("1 second")).await["version"], 3);
    up.poll(QUERY, |query| query["state"] == "running" && query["last_error"].is_null()).await;
    busy.go_on(&up).await;
    let mut ledger = busy.stop().await;
    let row = Sent { room: "left", rows: 1, outcome: Outcome::Accepted };
    ledger.insert("the-row".to_owned(), row);
    let windows = close_books(&up, &ledger).await;
    assert_eq!(widths(&windows), [500, 1000]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_query_stops_and_its_results_stay() {
    let dir = program(&plain("500 milliseconds"));
    let mut up = Running::up(dir.path(), &[]);
    let busy = Busy::start(&up).await;
    let before = up.windows("by_request", |windows| windows.len() > 1).await;
    assert_eq!(send(&up, Method::DELETE, QUERY, "", HeaderMap::new()).await.0, 204);
    let (status, _, problem) = send(&up, Method::GET, QUERY, "", HeaderMap::new()).await;
    assert_eq!((status, &problem["type"]), (404, &json!("about:blank#unknown-query")));
    assert_eq!(send(&up, Method::DELETE, QUERY, "", HeaderMap::new()).await.0, 404);
    assert!(!dir.path().join("sql/by_request.sql").exists());
    let at_the_end = books::all_results(&up, "by_request").await;
    let accepted = busy.load.accepted();
    let going_on = async {
        while busy.load.accepted() < accepted + 100 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), going_on).await.expect("rows are accepted all the same");
    busy.tell.send_replace(None);
    assert_eq!(up.terminate().await, Some(0));
    up = Running::up(dir.path(), &[]);
    up.ready().await;
    let after = books::all_results(&up, "by_request").await;
    assert!(after == at_the_end && after.len() >= before.len(), "nothing more, and nothing less");
    // Put again, it goes on where it stopped: what came meanwhile is counted, and nothing twice.
    busy.tell.send_replace(Some(up.url("")));
    let (status, _, report) =
        send(&up, Method::PUT, QUERY, &plain("500 milliseconds"), HeaderMap::new()).await;
    assert_eq!((status, &report["version"]), (201, &json!(1)));
    busy.go_on(&up).await;
    let ledger = busy.stop().await;
    close_books(&up, &ledger).await;
}
