//! The command line of the real binary: exit codes and what they say.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::binary::{Running, emostream, post_json};

fn run(dir: &Path, args: &[&str]) -> Output {
    emostream(dir).args(args).output().expect("the binary runs")
}

/// Runs it; the exit code and every one of these texts on standard error must come.
#[track_caller]
fn check(command: &mut Command, code: i32, said: &[&str]) {
    let output = command.output().expect("the binary runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    for text in said {
        assert!(stderr.contains(text), "not in: {stderr}");
    }
}

#[test]
fn wrong_usage_exits_2() {
    let dir = tempfile::tempdir().unwrap();
    check(emostream(dir.path()).arg("uq"), 2, &["unrecognized subcommand 'uq'", "--help"]);
    check(&mut emostream(dir.path()), 2, &["Usage"]);
    check(emostream(dir.path()).args(["up", "--listen", "nonsense"]), 2, &["HOST:PORT"]);
    check(emostream(dir.path()).args(["up", "--listen", "8081"]), 2, &["write 127.0.0.1:8081"]);
    for command in ["watch", "simulate"] {
        let address = ["--url", "127.0.0.1:8080"];
        check(emostream(dir.path()).arg(command).args(address), 2, &["write http://127.0.0.1:8080"]);
    }
    // They serve nothing.
    check(emostream(dir.path()).args(["config", "--allow-public"]), 2, &["--allow-public"]);
    check(emostream(dir.path()).args(["tail", "a", "--allow-public"]), 2, &["--allow-public"]);
}

#[test]
fn a_data_directory_that_is_a_file_exits_2_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("afile"), "").unwrap();
    let args = ["up", "--listen", "127.0.0.1:0", "--data-dir", "afile"];
    check(emostream(dir.path()).args(args), 2, &["--data-dir afile is a file"]);
}

#[test]
fn who_waits_for_kafka_says_where_and_what_to_look_at() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = emostream(dir.path());
    command.args(["up", "--listen", "127.0.0.1:0", "--kafka", "127.0.0.1:1"]).stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    let lines = BufReader::new(process.stderr.take().unwrap()).lines();
    let waits = lines.map_while(Result::ok).find(|line| line.contains("waiting for Kafka"));
    process.kill().unwrap();
    process.wait().unwrap();
    let waits = waits.unwrap();
    assert!(waits.contains("at 127.0.0.1:1") && waits.contains("advertised.listeners"), "{waits}");
}

#[test]
fn config_says_where_each_value_comes_from() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("my.toml"), "[log]\npartitions = 5\n").unwrap();
    let output = emostream(dir.path())
        .args(["config", "--config", "my.toml", "--kafka", "localhost:9"])
        .env("EMOSTREAM__INGEST__FLUSH_ROWS", "77")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let origin = |setting: &str| {
        let line = text.lines().find(|line| line.starts_with(setting)).expect(setting);
        line.split_once("# ").expect("an origin").1.to_owned()
    };
    assert_eq!(origin("partitions = 5"), "file my.toml");
    assert_eq!(origin("flush_rows = 77"), "env EMOSTREAM__INGEST__FLUSH_ROWS");
    assert_eq!(origin("kind = \"kafka\""), "flag --kafka");
    assert_eq!(origin("flush_interval_ms = 200"), "default");
    assert!(output.status.success());
}

#[test]
fn what_config_prints_is_a_settings_file() {
    let dir = tempfile::tempdir().unwrap();
    let printed = run(dir.path(), &["config"]).stdout;
    std::fs::write(dir.path().join("all.toml"), &printed).unwrap();
    let again = run(dir.path(), &["config", "--config", "all.toml"]);
    assert_eq!(again.status.code(), Some(0), "{}", String::from_utf8_lossy(&again.stderr));
    let values = |text: &[u8]| -> Vec<String> {
        let text = String::from_utf8(text.to_vec()).unwrap();
        text.lines().map(|line| line.split("  # ").next().unwrap_or_default().trim().to_owned()).collect()
    };
    assert_eq!(values(&again.stdout), values(&printed));
}

#[test]
fn misspelt_settings_exit_2_and_suggest() {
    let dir = tempfile::tempdir().unwrap();
    check(
        emostream(dir.path()).arg("up").env("EMOSTREAM__LOG__PARTITONS", "3"),
        2,
        &["EMOSTREAM__LOG__PARTITONS", "did you mean log.partitions?"],
    );
    check(emostream(dir.path()).args(["config", "--config", "none.toml"]), 2, &["none.toml"]);
    check(
        emostream(dir.path()).arg("config").env("EMOSTREAM__PUBLISH__REGISTER_ALLOW", r#"["10.0.0.0/40"]"#),
        2,
        &["EMOSTREAM__PUBLISH__REGISTER_ALLOW", "'10.0.0.0/40' is no network"],
    );
    check(
        emostream(dir.path()).arg("config").env("EMOSTREAM__PUBLISH__ENDPOINT_FAILURES", "0"),
        2,
        &["publish.endpoint_failures = 0: at least 1"],
    );
    check(
        emostream(dir.path()).arg("up").env("EMOSTREAM__TELEMETRY__LOG_LEVEL", "loud"),
        2,
        &["telemetry.log_level = \"loud\" is no level", "info"],
    );
    check(
        emostream(dir.path()).arg("up").env("EMOSTREAM_HTTP_ORIGINS", "[]"),
        2,
        &["did you mean EMOSTREAM__HTTP__ORIGINS"],
    );
}

#[test]
fn a_public_address_exits_2_and_names_the_ways_out() {
    let dir = tempfile::tempdir().unwrap();
    check(emostream(dir.path()).args(["up", "--listen", "0.0.0.0:0"]), 2, &["127.0.0.1", "--allow-public"]);
    assert!(!dir.path().join("data").exists() && !dir.path().join("sql").exists(), "nothing was begun");
}

#[test]
fn sql_that_does_not_plan_exits_1_at_its_place_and_starts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let sql = dir.path().join("mysql");
    check(emostream(dir.path()).args(["up", "--sql", "mysql"]), 1, &["mysql"]);
    std::fs::create_dir(&sql).unwrap();
    check(emostream(dir.path()).args(["up", "--sql", "mysql"]), 1, &["source table"]);
    std::fs::write(sql.join("tables.sql"), include_str!("../../sql/tables.sql")).unwrap();
    let wrong = "INSERT INTO emoji_counts\nSELECT window.start, window.end, room, emoji_tipe, 1, 1\nFROM reactions;\n";
    std::fs::write(sql.join("wrong.sql"), wrong).unwrap();
    check(emostream(dir.path()).args(["up", "--sql", "mysql"]), 1, &["wrong.sql:2:", "error:"]);
    assert!(!dir.path().join("data").exists(), "nothing was begun");
}

#[test]
fn a_role_without_kafka_exits_2_and_says_how_to_name_it() {
    let dir = tempfile::tempdir().unwrap();
    for role in [
        vec!["ingest"],
        vec!["publish"],
        vec!["cluster", "eu"],
        vec!["subscribe", "--cluster", "eu"],
        vec!["query"],
    ] {
        let mut command = emostream(dir.path());
        check(command.args(role).args(["--listen", "127.0.0.1:0"]), 2, &["--kafka HOST:PORT"]);
    }
}

#[test]
fn a_port_in_use_exits_3() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    check(emostream(dir.path()).args(["up", "--listen", &address]), 3, &[&address, "in use", "--listen"]);
}

#[test]
fn a_data_directory_in_use_exits_3_and_names_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let first = Running::up(dir.path(), &[]);
    let said = [format!("process {}", first.id()), "--data-dir".to_owned()];
    let said: Vec<&str> = said.iter().map(String::as_str).collect();
    check(emostream(dir.path()).args(["up", "--listen", "127.0.0.1:0"]), 3, &said);
}

#[tokio::test]
async fn up_serves_a_reaction_as_a_window_and_reads_it_back_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = Running::up(dir.path(), &[]);
    assert!(dir.path().join("sql/tables.sql").exists(), "the first two files were written");
    up.ready().await;
    let (status, answer) = post_json(
        &up.url("/emoji"),
        r#"[{"user_id":"a","emoji_type":"😀"},{"user_id":"b","emoji_type":"😀"}]"#,
    )
    .await;
    assert_eq!((status, answer.as_str()), (202, r#"{"accepted":2}"#));
    let windows = up.windows("emoji_counts", |windows| counted(windows) == 2).await;
    let row = &windows[0]["rows"][0];
    assert_eq!((row["room"].as_str(), row["emoji_type"].as_str()), (Some("main"), Some("😀")));
    assert!(row.get("window_start").is_none());

    let figures = up.json("/v1/queries/emoji_counts").await;
    assert_eq!((figures["accepted"].as_u64(), figures["counted"].as_u64()), (Some(2), Some(2)));
    assert_eq!(figures["state"], "running");
    let unknown = up.json("/v1/results/emoji_count").await;
    assert_eq!(
        (unknown["status"].as_u64(), unknown["type"].as_str()),
        (Some(404), Some("about:blank#unknown-table"))
    );
    let table = up.json("/v1/tables/reactions").await;
    assert_eq!(table["columns"][2]["default"], "'main'");
    assert_eq!(table["partitions"].as_array().map(Vec::len), Some(3));
    assert_eq!(up.json("/docs").await["status"], 501);
    let (status, answer) = post_json(&up.url("/v1/tables/reaction"), "[]").await;
    assert!(status == 404 && answer.contains("the source tables are: reactions"), "{answer}");
    let put = reqwest::Client::new().put(up.url("/v1/queries/emoji_counts?version=x")).send().await.unwrap();
    assert!(put.text().await.unwrap().contains("?version=1"));

    assert_eq!(up.terminate().await, Some(0));
    let up = Running::up(dir.path(), &[]);
    up.ready().await;
    let again = up.json("/v1/results/emoji_counts").await;
    assert_eq!(again["windows"].as_array(), Some(&windows));
}

#[tokio::test]
async fn up_ends_within_its_time_although_a_viewer_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = Running::up(dir.path(), &[]);
    up.ready().await;
    let viewer = reqwest::get(up.url("/v1/live")).await.unwrap();
    let began = tokio::time::Instant::now();
    assert_eq!(up.terminate().await, Some(0));
    assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    drop(viewer);
}

fn counted(windows: &[serde_json::Value]) -> i64 {
    let rows = windows.iter().filter_map(|window| window["rows"].as_array()).flatten();
    rows.filter_map(|row| row["count"].as_i64()).sum()
}
