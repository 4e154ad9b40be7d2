//! Joins with static tables as they are used: under `run`, under `up` while the file changes, and where it is missing.

use std::path::Path;
use std::time::Duration;

use emostream::reaction::figures::Figures;
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::binary::{Running, emostream, post_json};

const TABLES: &str = "
CREATE TABLE reactions (
  user_id TEXT NOT NULL, emoji_type TEXT NOT NULL, room TEXT NOT NULL DEFAULT 'main', timestamp TIMESTAMP NOT NULL DEFAULT now(),
  WATERMARK FOR timestamp AS (timestamp - INTERVAL '500 milliseconds')
) WITH (connector = 'kafka', type = 'source');
CREATE TABLE support (window_start TIMESTAMP, window_end TIMESTAMP, team TEXT, count BIGINT)
  WITH (connector = 'kafka', type = 'sink', format = 'json');
CREATE TABLE teams (emoji TEXT NOT NULL, team TEXT) WITH (connector = 'single_file', path = 'teams.json', type = 'source');
";
const SUPPORT: &str = "INSERT INTO support SELECT window.start, window.end, team, count FROM (
  SELECT tumble(INTERVAL '500 milliseconds') AS window, team, count(*) AS count
  FROM reactions JOIN teams ON emoji_type = emoji GROUP BY window, team);
";
const QUERY: &str = "/v1/queries/support";

fn program(teams: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("sql")).unwrap();
    for (file, text) in [("tables.sql", TABLES), ("support.sql", SUPPORT)] {
        std::fs::write(dir.path().join("sql").join(file), text).unwrap();
    }
    save(dir.path(), teams);
    dir
}

/// The file of the table: x is of these teams.
fn save(dir: &Path, teams: &str) {
    let lines = teams.split(' ').map(|team| format!("{{\"emoji\":\"x\",\"team\":\"{team}\"}}\n"));
    std::fs::write(dir.join("sql/teams.json"), lines.collect::<String>()).unwrap();
}

async fn send(up: &Running, method: Method, path: &str, body: String) -> Value {
    let answer = Client::new().request(method, up.url(path)).body(body).send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.status());
    serde_json::from_str(&answer.text().await.unwrap()).unwrap()
}

/// Posts reactions until a window of that team is told; how many.
async fn cheer_for(up: &Running, team: &str) -> u64 {
    for sent in 1..300 {
        let body = r#"[{"user_id":"ada","emoji_type":"x"},{"user_id":"ada","emoji_type":"of no team"}]"#;
        assert_eq!(post_json(&up.url("/v1/tables/reactions"), body).await.0, 202);
        tokio::time::sleep(Duration::from_millis(100)).await;
        if up.json("/v1/results/support").await.to_string().contains(&format!("\"{team}\"")) {
            return sent;
        }
    }
    panic!("no window tells of {team}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_file_counts_from_the_next_version_or_start_on() {
    let dir = program("red");
    let mut up = Running::up(dir.path(), &[]);
    up.ready().await;
    let mut sent = cheer_for(&up, "red").await;
    let listed = up.json("/v1/tables").await.to_string();
    assert!(!listed.contains("teams"), "nobody posts to it: {listed}");

    save(dir.path(), "blue");
    let body = json!({"name": "support", "text": SUPPORT}).to_string();
    let verdict = send(&up, Method::POST, "/v1/queries/check", body).await;
    assert_eq!(verdict["compatibility"]["kind"], "switches", "{verdict}");
    assert!(verdict["plan"].as_str().unwrap().contains("join (TableScan: teams)"), "{verdict}");
    send(&up, Method::PUT, QUERY, SUPPORT.to_owned()).await;
    sent += cheer_for(&up, "blue").await;

    // Saving the SQL as it was does the same.
    save(dir.path(), "green");
    tokio::time::sleep(Duration::from_millis(20)).await;
    std::fs::write(dir.path().join("sql/support.sql"), SUPPORT).unwrap();
    sent += cheer_for(&up, "green").await;

    up.kill();
    save(dir.path(), "gold silver");
    let up = Running::up(dir.path(), &[]);
    up.ready().await;
    sent += cheer_for(&up, "silver").await;
    let is_done =
        |query: &Value| query["state"] == "running" && query["open"] == 0 && query["lag_records"] == 0;
    let query = up.poll(QUERY, is_done).await;
    let figures: Figures = serde_json::from_value(query.clone()).unwrap();
    assert!(figures.is_conserved() && figures.expanded > 0, "{query}");
    assert_eq!((figures.late, figures.future, figures.bad), (0, 0, 0), "{query}");
    // What a version counted before is not counted again; what gold and silver share counts once.
    assert!(figures.counted <= sent && figures.expanded == figures.counted, "{sent}: {query}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_file_nothing_starts_and_the_table_is_named() {
    let dir = program("red");
    std::fs::remove_file(dir.path().join("sql/teams.json")).unwrap();
    for args in [&["check"][..], &["up", "--listen", "127.0.0.1:0"]] {
        let output = emostream(dir.path()).args(args).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(
            said.contains("tables.sql:8:14: error: static table 'teams': teams.json: No such file"),
            "{said}"
        );
    }
}

#[test]
fn a_run_over_files_joins_too_and_says_what_is_wrong_with_a_line() {
    let dir = program("red blue");
    let select = "CREATE TABLE given (emoji_type TEXT, at TIMESTAMP NOT NULL, WATERMARK FOR at)
      WITH (connector = 'single_file', path = 'given.json', type = 'source');
      SELECT team, n FROM (SELECT tumble(INTERVAL '1 second') AS w, team, count(*) AS n
                           FROM given JOIN teams ON emoji = emoji_type GROUP BY 1, 2) ORDER BY team;";
    std::fs::write(dir.path().join("sql/run.sql"), select).unwrap();
    let given = r#"{"emoji_type":"x","at":"2026-01-01T00:00:00Z"}"#;
    std::fs::write(dir.path().join("sql/given.json"), format!("{given}\n{given}\n")).unwrap();
    let run = || emostream(dir.path()).args(["run", "sql/run.sql", "--format", "json"]).output().unwrap();
    let told = String::from_utf8(run().stdout).unwrap();
    assert_eq!(told, "{\"team\":\"blue\",\"n\":2}\n{\"team\":\"red\",\"n\":2}\n");
    for (lines, said) in [
        ("{\"emoji\":\"x\"}\n{\"team\":\"red\"}\n".to_owned(), "static table 'teams': teams.json:2: "),
        (
            "{\"emoji\":\"x\"}\n".repeat(1001),
            "1001 lines of teams have the same key, the first of them is line 1",
        ),
    ] {
        std::fs::write(dir.path().join("sql/teams.json"), lines).unwrap();
        let output = run();
        let found = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && found.contains(said), "{found}");
    }
}
