//! What a user does with the program, in the order of the README, against the real binary.

use std::path::Path;
use std::time::Duration;

use emostream::clock::wall_ns;
use emostream::reaction::live::LiveMessage;
use emostream::reaction::time::{NS_PER_MS, format_rfc3339};
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;
use tokio::sync::watch;

use crate::support::binary::Running;
use crate::support::books;
use crate::support::load::Load;

const README: &str = include_str!("../../README.md");
const TABLES: &str = include_str!("../../sql/tables.sql");
const EMOJI_COUNTS: &str = include_str!("../../sql/emoji_counts.sql");
const SECOND_NS: i64 = 1_000_000_000;
/// How long a step of a test may take.
const LIMIT: Duration = Duration::from_secs(30);

/// A folder with this program.
fn program(tables: &str, query: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("sql")).unwrap();
    write(&dir, "tables.sql", tables);
    write(&dir, "emoji_counts.sql", query);
    dir
}

fn write(dir: &TempDir, file: &str, text: &str) {
    std::fs::write(dir.path().join("sql").join(file), text).unwrap();
}

/// `text` with `from`, which must be there, replaced.
fn edited(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "no '{from}' in {text}");
    text.replace(from, to)
}

async fn post(url: String, rows: &Value) -> (u16, Value) {
    let answer = Client::new().post(url).json(rows).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// The next message of an event stream, and when it came.
async fn next_message(stream: &mut Response, text: &mut String) -> (LiveMessage, i64) {
    let reading = async {
        loop {
            if let Some((event, rest)) = text.split_once("\n\n") {
                let data = event.lines().find_map(|line| line.strip_prefix("data: ")).map(str::to_owned);
                *text = rest.to_owned();
                if let Some(data) = data {
                    return (serde_json::from_str(&data).unwrap(), wall_ns());
                }
                continue;
            }
            let bytes = stream.chunk().await.unwrap().expect("the stream goes on");
            text.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    };
    tokio::time::timeout(LIMIT, reading).await.expect("a window is shown")
}

/// A `curl` line of the README as a request to `process` instead.
/// Files that it names are those in `dir`.
fn curl(process: &Running, dir: &Path, line: &str) -> reqwest::RequestBuilder {
    let (mut url, mut body, mut headers, mut file, mut method) = (None, None, Vec::new(), None, None);
    let mut words = shell_words(line).into_iter().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "-N" => {}
            "-X" => method = words.next(),
            "-d" => body = words.next(),
            "-T" => file = words.next().map(|file| std::fs::read_to_string(dir.join(file)).unwrap()),
            "-H" => headers.extend(words.next()),
            _ => url = word.strip_prefix("http://127.0.0.1:8080").map(|path| process.url(path)),
        }
    }
    let url = url.unwrap_or_else(|| panic!("no address in {line}"));
    let request = match (body, file) {
        (Some(body), _) => Client::new().post(url).body(body),
        (None, Some(file)) => Client::new().put(url).body(file),
        (None, None) => Client::new().request(method.as_deref().unwrap_or("GET").parse().unwrap(), url),
    };
    headers.iter().fold(request, |request, header| {
        let (name, value) = header.split_once(": ").expect("a header");
        request.header(name, value)
    })
}

/// Words and 'quoted words', as the README writes them.
fn shell_words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (n, part) in line.split('\'').enumerate() {
        match n % 2 {
            0 => words.extend(part.split_whitespace().map(str::to_owned)),
            _ => words.push(part.to_owned()),
        }
    }
    words
}

#[tokio::test]
async fn the_curl_lines_of_the_readme_do_what_they_say() {
    let lines: Vec<&str> = README.lines().filter(|line| line.starts_with("curl ")).collect();
    let [send, watch, register, read, account, change, versions, undo, drain] = lines[..] else {
        panic!("other curl lines than these: {lines:?}")
    };
    let dir = tempfile::tempdir().unwrap();
    let up = Running::up(dir.path(), &[]);
    up.ready().await;
    assert_eq!(curl(&up, dir.path(), register).send().await.unwrap().status(), 201);
    let mut live = curl(&up, dir.path(), watch).send().await.unwrap();
    let sent = curl(&up, dir.path(), send).send().await.unwrap();
    assert_eq!(sent.status(), 202);
    let (message, _) = next_message(&mut live, &mut String::new()).await;
    let rows = serde_json::to_value(&message.rows).unwrap();
    assert_eq!(rows, json!([{"emoji_type": "🎉", "count": 1, "scaled": 1}]));
    let windows = up.windows("emoji_counts", |windows| !windows.is_empty()).await;
    let page: Value = curl(&up, dir.path(), read).send().await.unwrap().json().await.unwrap();
    assert_eq!(page["windows"], Value::from(windows.clone()));
    assert_eq!(windows[0]["start"], format_rfc3339(message.window.start));
    assert_eq!(windows[0]["rows"][0]["emoji_type"], "🎉");
    let account: Value = curl(&up, dir.path(), account).send().await.unwrap().json().await.unwrap();
    let figures = &account["queries"][0];
    assert_eq!(
        (&figures["accepted"], &figures["counted"], &figures["open"]),
        (&json!(1), &json!(1), &json!(0))
    );
    let put = curl(&up, dir.path(), change).send().await.unwrap();
    assert_eq!((put.status().as_u16(), put.headers()["etag"].to_str().unwrap()), (200, "\"1\""), "as it was");
    let versions: Value = curl(&up, dir.path(), versions).send().await.unwrap().json().await.unwrap();
    assert_eq!((&versions["versions"][0]["version"], &versions["versions"][1]), (&json!(1), &Value::Null));
    let put = curl(&up, dir.path(), undo).send().await.unwrap();
    assert_eq!((put.status().as_u16(), put.headers()["etag"].to_str().unwrap()), (200, "\"1\""), "as it was");
    assert_eq!(curl(&up, dir.path(), drain).send().await.unwrap().status(), 204);
    let is_draining = |topology: &Value| topology["clusters"][0]["subscribers"][0]["state"] == "draining";
    up.poll("/v1/topology", is_draining).await;
}

#[tokio::test]
async fn another_window_and_threshold_in_the_file_are_what_is_emitted_after_a_restart() {
    let dir = program(TABLES, EMOJI_COUNTS);
    let rows = Value::from(vec![json!({"user_id": "u", "emoji_type": "😀"}); 1500]);
    let counted = |windows: &[Value], n: usize| {
        windows.iter().flat_map(|window| window["rows"].as_array().unwrap()).count() == n
    };
    let mut up = Running::up(dir.path(), &[]);
    up.ready().await;
    assert_eq!(post(up.url("/v1/tables/reactions"), &rows).await.0, 202);
    let before = up.windows("emoji_counts", |windows| counted(windows, 1)).await;
    assert_eq!(before[0]["rows"][0]["scaled"], 1);
    assert_eq!(up.terminate().await, Some(0));

    // The old version goes on to the next common boundary, and the new one from there.
    let query = edited(EMOJI_COUNTS, "2 seconds", "3 seconds");
    write(&dir, "emoji_counts.sql", &edited(&query, "1000", "500"));
    let up = Running::up(dir.path(), &[]);
    up.ready().await;
    up.poll("/v1/queries/emoji_counts", |query| query["state"] == "running").await;
    let query = up.json("/v1/queries/emoji_counts").await;
    assert_eq!((&query["version"], &query["gap"]), (&json!(2), &Value::Null));
    assert_eq!(post(up.url("/v1/tables/reactions"), &rows).await.0, 202);
    let after = up.windows("emoji_counts", |windows| counted(windows, 2)).await;
    let [new, old] = &after[..] else { panic!("{after:?}") };
    assert_eq!(old, &before[0], "what was emitted before stays as it was");
    assert_eq!((&new["rows"][0]["count"], &new["rows"][0]["scaled"]), (&json!(1500), &json!(3)));
    let edge = |name: &str| emostream::reaction::time::parse_rfc3339(new[name].as_str().unwrap()).unwrap();
    assert_eq!(edge("end") - edge("start"), 3 * SECOND_NS);
}

#[tokio::test]
async fn a_column_in_the_ddl_is_all_it_takes_to_accept_it_and_group_by_it() {
    let dir = program(TABLES, EMOJI_COUNTS);
    let row = |country: &str| json!({"user_id": "u", "emoji_type": "😀", "country": country});
    let mut up = Running::up(dir.path(), &[]);
    up.ready().await;
    let (status, problem) = post(up.url("/emoji"), &row("nz")).await;
    assert_eq!((status, &problem["column"]), (400, &json!("country")));
    assert_eq!(post(up.url("/emoji"), &json!({"user_id": "u", "emoji_type": "😀"})).await.0, 202);
    assert_eq!(up.terminate().await, Some(0));

    let tables = edited(TABLES, "  timestamp  TIMESTAMP", "  country TEXT,\n  timestamp  TIMESTAMP");
    write(
        &dir,
        "tables.sql",
        &edited(&tables, "emoji_type TEXT, count", "emoji_type TEXT, country TEXT, count"),
    );
    write(&dir, "emoji_counts.sql", &edited(EMOJI_COUNTS, "emoji_type", "emoji_type, country"));
    let up = Running::up(dir.path(), &[]);
    up.ready().await;
    let rows = json!([row("nz"), row("fr"), row("nz"), {"user_id": "u", "emoji_type": "😀"}]);
    assert_eq!(post(up.url("/emoji"), &rows).await, (202, json!({"accepted": 4})));
    // The row from before the column was there has none.
    let total = |windows: &[Value]| {
        let rows = windows.iter().flat_map(|window| window["rows"].as_array().unwrap());
        rows.map(|row| row["count"].as_i64().unwrap()).sum::<i64>()
    };
    let windows = up.windows("emoji_counts", |windows| total(windows) == 5).await;
    let of = |country: Value| {
        let rows = windows.iter().flat_map(|window| window["rows"].as_array().unwrap());
        rows.filter(|row| row["country"] == country).map(|row| row["count"].as_i64().unwrap()).sum::<i64>()
    };
    assert_eq!((of(json!("nz")), of(json!("fr")), of(Value::Null)), (2, 1, 2));
}

/// The bounds hold for a debug build on a machine that runs other tests as well: half of the windows arrive within
/// 150 ms of the watermark delay, and none before it has passed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_is_shown_soon_after_its_end_and_the_watermark_delay() {
    let dir = program(TABLES, &edited(EMOJI_COUNTS, "2 seconds", "500 milliseconds"));
    let up = Running::up(dir.path(), &[]);
    up.ready().await;
    let mut live = reqwest::get(up.url("/v1/live")).await.unwrap();
    let (_tell, address) = watch::channel(Some(up.url("")));
    let load = Load::start(&address, "/v1/tables/reactions", &["main"]);
    let mut text = String::new();
    let mut lags_ms = Vec::new();
    while lags_ms.len() < 11 {
        let (message, came_ns) = next_message(&mut live, &mut text).await;
        lags_ms.push((came_ns - message.window.end) / NS_PER_MS);
    }
    load.stop().await;
    lags_ms.sort_unstable();
    eprintln!("window end to viewer, ms: {lags_ms:?}");
    assert!(lags_ms[0] >= 500, "shown before the watermark passed: {lags_ms:?}");
    assert!(lags_ms[lags_ms.len() / 2] <= 500 + 150, "{lags_ms:?}");
}

/// A connection that asks for live windows and then reads nothing; what the kernel takes for it is little.
async fn deaf_viewer(up: &Running) -> tokio::net::TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let address = up.url("").trim_start_matches("http://").to_owned();
    let mut connection = socket.connect(address.parse().unwrap()).await.unwrap();
    let request = format!("GET /v1/live HTTP/1.1\r\nhost: {address}\r\n\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    connection
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_ends_it_in_time_under_load_with_a_viewer_that_reads_nothing_and_loses_nothing() {
    const LONG: usize = 1_000;
    let dir = program(TABLES, &edited(EMOJI_COUNTS, "2 seconds", "200 milliseconds"));
    let mut up = Running::up(dir.path(), &[]);
    up.ready().await;
    let deaf = deaf_viewer(&up).await;
    // Windows of about 500 KB, until those that wait for the viewer are conflated: its socket is full.
    let long = |n: usize| json!({"user_id": "u", "emoji_type": format!("{n}{}", "x".repeat(400))});
    let rows = Value::from((0..LONG).map(long).collect::<Vec<_>>());
    let mut long_rows = 0;
    let filling = async {
        while !reqwest::get(up.url("/metrics")).await.unwrap().text().await.unwrap().lines().any(is_skipping)
        {
            assert_eq!(post(up.url("/emoji"), &rows).await.0, 202);
            long_rows += LONG as u64;
        }
    };
    tokio::time::timeout(LIMIT, filling).await.expect("the viewer falls behind");

    let (tell, address) = watch::channel(Some(up.url("")));
    let load = Load::start(&address, "/v1/tables/reactions", &["left", "right"]);
    while load.accepted() < 20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let began = tokio::time::Instant::now();
    assert_eq!(up.terminate().await, Some(0));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    tell.send_replace(None);
    drop(deaf);
    let ledger = load.stop().await;

    let up = Running::up(dir.path(), &[]);
    up.ready().await;
    let (accepted, unknown) = books::sent(&ledger);
    let figures = up.json("/v1/queries/emoji_counts").await;
    let found = figures["accepted"].as_u64().unwrap() - long_rows;
    assert!((accepted..=accepted + unknown).contains(&found), "{accepted} + {unknown}: {figures}");
}

/// A line of the metrics that says that windows were left out for a viewer.
fn is_skipping(line: &str) -> bool {
    line.starts_with("emostream_publish_skipped_total{") && !line.ends_with(" 0")
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_get_the_client_file_and_may_send_from_where_they_are_let_in() {
    let dir = program(TABLES, EMOJI_COUNTS);
    let up = Running::up(dir.path(), &[]);
    up.ready().await;
    let file = Client::new().get(up.url("/client.js")).send().await.unwrap();
    assert_eq!(file.headers()["content-type"], "text/javascript; charset=utf-8");
    assert_eq!(file.headers()["access-control-allow-origin"], "*");
    let text = file.text().await.unwrap();
    assert!(text.contains("export class Live") && text.contains("export class Sender"));
    for (origin, allowed) in [("http://localhost:3000", true), ("https://evil.example", false)] {
        let asked = Client::new()
            .request(reqwest::Method::OPTIONS, up.url("/v1/tables/reactions"))
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "content-type")
            .send();
        let headers = asked.await.unwrap().headers().clone();
        let answered = headers.get("access-control-allow-origin").map(|value| value.to_str().unwrap());
        assert_eq!(answered, allowed.then_some(origin));
    }
}
