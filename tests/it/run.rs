//! `emostream run` as it is used: files in, tables and files out, exit codes.

use std::path::Path;
use std::process::Output;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::binary::emostream;

const TABLES: &str = "
CREATE TABLE reactions (
  user_id TEXT NOT NULL, emoji_type TEXT NOT NULL, room TEXT NOT NULL DEFAULT 'main', timestamp TIMESTAMP NOT NULL,
  WATERMARK FOR timestamp AS (timestamp - INTERVAL '500 milliseconds')
) WITH (connector = 'single_file', type = 'source', path = 'reactions.jsonl', format = 'json');
CREATE TABLE counts (window_start TIMESTAMP, emoji_type TEXT, count BIGINT)
  WITH (connector = 'single_file', type = 'sink', path = 'counts.jsonl', format = 'json');
";
const SELECT: &str = "SELECT window.start AS window_start, emoji_type, count FROM (
  SELECT tumble(INTERVAL '2 seconds') AS window, emoji_type, count(*) AS count FROM reactions GROUP BY 1, 2)
  ORDER BY emoji_type";
const REACTIONS: &str = r#"{"user_id":"ada","emoji_type":"🎉","timestamp":"2026-01-01T00:00:00Z"}
{"user_id":"bob","emoji_type":"😀","timestamp":"2026-01-01T00:00:01.999Z"}
{"user_id":"eve","emoji_type":"🎉","timestamp":"2026-01-01T00:00:01Z","more":[1,2]}
{"user_id":"bob","emoji_type":"🎉","timestamp":"2026-01-01T00:00:02Z"}
"#;
const COUNTS: &str = r#"{"window_start":"2026-01-01T00:00:00Z","emoji_type":"🎉","count":2}
{"window_start":"2026-01-01T00:00:00Z","emoji_type":"😀","count":1}
{"window_start":"2026-01-01T00:00:02Z","emoji_type":"🎉","count":1}
"#;

/// A folder with these files under `sql/`.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("sql")).unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join("sql").join(name), text).unwrap();
    }
    folder
}

fn run(folder: &Path, args: &[&str]) -> Output {
    emostream(folder).arg("run").args(args).output().unwrap()
}

#[track_caller]
fn succeeds(folder: &Path, args: &[&str]) -> String {
    let output = run(folder, args);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "nothing but data where no terminal is");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn fails(folder: &Path, args: &[&str], code: i32) -> String {
    let output = run(folder, args);
    assert_eq!(output.status.code(), Some(code));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_select_is_printed_as_a_table_or_as_lines() {
    let folder = folder(&[("tables.sql", TABLES), ("counts.sql", SELECT), ("reactions.jsonl", REACTIONS)]);
    let table = succeeds(folder.path(), &["sql/counts.sql"]);
    let cells: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    assert_eq!(cells[0], ["window_start", "emoji_type", "count"]);
    assert_eq!(
        cells[1..],
        [
            ["2026-01-01T00:00:00", "🎉", "2"],
            ["2026-01-01T00:00:00", "😀", "1"],
            ["2026-01-01T00:00:02", "🎉", "1"]
        ]
    );
    assert_eq!(succeeds(folder.path(), &["sql/counts.sql", "--format", "json"]), COUNTS);
    let csv = succeeds(folder.path(), &["sql/counts.sql", "--format", "csv"]);
    assert_eq!(
        csv,
        "window_start,emoji_type,count\n2026-01-01T00:00:00Z,🎉,2\n2026-01-01T00:00:00Z,😀,1\n2026-01-01T00:00:02Z,🎉,1\n"
    );
}

#[test]
fn an_insert_writes_its_file_anew_and_paths_are_relative_to_the_sql() {
    let insert = format!("INSERT INTO counts {SELECT}");
    let folder = folder(&[("tables.sql", TABLES), ("counts.sql", &insert), ("reactions.jsonl", REACTIONS)]);
    for _ in 0..2 {
        assert_eq!(succeeds(folder.path(), &["sql/counts.sql"]), "");
        assert_eq!(std::fs::read_to_string(folder.path().join("sql/counts.jsonl")).unwrap(), COUNTS);
    }
    let to_stdout =
        TABLES.replace("'single_file', type = 'sink', path = 'counts.jsonl'", "'stdout', type = 'sink'");
    std::fs::write(folder.path().join("sql/tables.sql"), to_stdout).unwrap();
    assert_eq!(succeeds(folder.path(), &["sql/counts.sql"]), COUNTS);
    let nowhere = TABLES.replace(
        "'single_file', type = 'sink', path = 'counts.jsonl', format = 'json'",
        "'blackhole', type = 'sink'",
    );
    std::fs::write(folder.path().join("sql/tables.sql"), nowhere).unwrap();
    assert_eq!(succeeds(folder.path(), &["sql/counts.sql"]), "");
}

#[test]
fn the_query_of_the_readme_runs_as_it_stands() {
    let readme = include_str!("../../README.md");
    let (_, rest) = readme.split_once("```sql\n").expect("a query");
    let (sql, rest) = rest.split_once("```").expect("its end");
    assert!(rest.contains("`emostream run try.sql`"));
    let row = readme.split('`').find(|code| code.starts_with("{\"emoji_type\"")).expect("a row");
    let folder = folder(&[("try.sql", sql), ("reactions.jsonl", row)]);
    let rows = succeeds(folder.path(), &["sql/try.sql", "--format", "csv"]);
    assert_eq!(rows, "start,emoji_type,count\n2026-01-01T00:00:00Z,🎉,1\n");
}

#[test]
fn an_impulse_of_ten_rows_is_counted_without_a_clock() {
    let sql = "CREATE TABLE beats WITH (connector = 'impulse', type = 'source', event_rate = '4', message_count = '10');
        SELECT window.start AS start, n, last FROM (
          SELECT tumble(INTERVAL '1 second') AS window, count(*) AS n, max(counter) AS last FROM beats GROUP BY 1)";
    let folder = folder(&[("beats.sql", sql)]);
    let rows = succeeds(folder.path(), &["sql/beats.sql", "--format", "json"]);
    let expected = r#"{"start":"1970-01-01T00:00:00Z","n":4,"last":3}
{"start":"1970-01-01T00:00:01Z","n":4,"last":7}
{"start":"1970-01-01T00:00:02Z","n":2,"last":9}
"#;
    assert_eq!(rows, expected);
    let endless = sql.replace(", message_count = '10'", "");
    std::fs::write(folder.path().join("sql/beats.sql"), endless).unwrap();
    assert!(fails(folder.path(), &["sql/beats.sql"], 1).contains("has no end; give it a message_count"));
}

#[test]
fn an_empty_input_gives_an_empty_table() {
    let folder = folder(&[("tables.sql", TABLES), ("counts.sql", SELECT), ("reactions.jsonl", "")]);
    let table = succeeds(folder.path(), &["sql/counts.sql"]);
    assert_eq!(table.lines().filter(|line| line.starts_with('|')).count(), 1);
    assert!(table.contains("window_start"), "{table}");
    assert_eq!(succeeds(folder.path(), &["sql/counts.sql", "--format", "json"]), "");
    assert_eq!(
        succeeds(folder.path(), &["sql/counts.sql", "--format", "csv"]),
        "window_start,emoji_type,count\n"
    );
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let folder = folder(&[("tables.sql", TABLES), ("counts.sql", SELECT), ("reactions.jsonl", REACTIONS)]);
    let bad = REACTIONS.replace("\"eve\",\"emoji_type\":\"🎉\"", "\"eve\",\"emoji_type\":7");
    std::fs::write(folder.path().join("sql/reactions.jsonl"), bad).unwrap();
    let refused = "reactions.jsonl:3: column emoji_type is the number 7; TEXT takes text\n";
    let output = run(folder.path(), &["sql/counts.sql", "--format", "json"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("1 lines cannot be read and are not counted") && said.ends_with(refused), "{said}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), COUNTS.replace("\"count\":2", "\"count\":1"));
    let strict = TABLES.replace("'reactions.jsonl', format", "'reactions.jsonl', bad_data = 'fail', format");
    std::fs::write(folder.path().join("sql/tables.sql"), strict).unwrap();
    assert_eq!(fails(folder.path(), &["sql/counts.sql"], 1), format!("emostream: {refused}"));
    std::fs::remove_file(folder.path().join("sql/reactions.jsonl")).unwrap();
    assert!(fails(folder.path(), &["sql/counts.sql"], 1).contains("reactions.jsonl: No such file"));
    std::fs::write(folder.path().join("sql/counts.sql"), SELECT.replace("count(*)", "conut(*)")).unwrap();
    assert!(fails(folder.path(), &["sql/counts.sql"], 1).contains("sql/counts.sql:2:"));
    std::fs::write(folder.path().join("sql/counts.sql"), "CREATE VIEW a AS SELECT user_id FROM reactions")
        .unwrap();
    assert!(fails(folder.path(), &["sql/counts.sql"], 1).contains("there is nothing to run"));
    fails(folder.path(), &[], 2);
}

#[test]
fn a_topic_of_the_log_is_refused_with_what_to_use_instead() {
    let shipped = |name: &str| {
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("sql").join(name)).unwrap()
    };
    let tables = shipped("tables.sql");
    let folder = folder(&[("tables.sql", &tables), ("emoji_counts.sql", &shipped("emoji_counts.sql"))]);
    let said = fails(folder.path(), &["sql/emoji_counts.sql"], 1);
    assert!(
        said.contains("table 'reactions' is a topic of the log") && said.contains("'single_file'"),
        "{said}"
    );
    assert!(!folder.path().join("sql/counts.jsonl").exists());
}

#[test]
fn rows_that_come_late_are_told() {
    let folder = folder(&[("tables.sql", TABLES), ("counts.sql", SELECT)]);
    // More than a record of lines apart, so that the first window is closed in between.
    let line = |second: usize| {
        format!(
            "{{\"user_id\":\"u\",\"emoji_type\":\"x\",\"timestamp\":\"2026-01-01T00:00:{second:02}Z\"}}\n"
        )
    };
    let lines = line(10).repeat(1000) + &line(1);
    std::fs::write(folder.path().join("sql/reactions.jsonl"), lines).unwrap();
    let output = run(folder.path(), &["sql/counts.sql", "--format", "json"]);
    assert_eq!(output.status.code(), Some(0));
    let row: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(row["count"], 1000);
    assert!(String::from_utf8(output.stderr).unwrap().contains("1 rows came late"));
}
