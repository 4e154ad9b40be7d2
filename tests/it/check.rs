//! `emostream check` as it is run: exit codes, where it prints, which files make up the program.

use std::path::Path;
use std::process::Output;

use crate::support::binary::emostream;

fn check(folder: &Path, args: &[&str]) -> Output {
    emostream(folder).arg("check").args(args).output().unwrap()
}

/// A folder that holds a copy of the shipped `sql/`.
fn with_shipped_sql() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let sql = folder.path().join("sql");
    std::fs::create_dir(&sql).unwrap();
    for name in ["tables.sql", "emoji_counts.sql"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql").join(name);
        std::fs::copy(from, sql.join(name)).unwrap();
    }
    folder
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn explain_says_what_lies_below_at_and_above_the_cut() {
    let folder = with_shipped_sql();
    let output = check(folder.path(), &["--explain"]);
    let said = text(&output.stdout);
    let places = [
        "below cut 0",
        "read    reactions",
        "key     reactions.emoji_type",
        "at cut 0",
        "window  tumble(2 s)",
        "above cut 0",
        "WindowedRows",
    ];
    let found: Vec<_> = places.iter().map(|place| said.find(place)).collect();
    assert!(found.iter().all(Option::is_some) && found.is_sorted(), "{found:?}: {said}");
    assert!(said.starts_with("A query is cut at its window: "), "{said}");
    assert!(said.contains("tumble(INTERVAL '2 seconds')") && !said.contains("Int64(1))"), "{said}");
    assert!(said.ends_with("ok: 2 tables, 1 query\n"), "{said}");
    assert!(!text(&check(folder.path(), &[]).stdout).contains("cut 0"));
}

#[test]
fn the_shipped_folder_passes_whole_and_file_by_file() {
    let folder = with_shipped_sql();
    for args in
        [&[][..], &["--sql", "sql"], &["sql/emoji_counts.sql"], &["sql/emoji_counts.sql", "sql/tables.sql"]]
    {
        let output = check(folder.path(), args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", text(&output.stderr));
        assert!(text(&output.stdout).contains("emoji_counts: reactions → emoji_counts, tumble(2 s)"));
    }
}

#[test]
fn an_error_is_named_with_its_place_and_ends_with_exit_code_1() {
    let folder = with_shipped_sql();
    let path = folder.path().join("sql/emoji_counts.sql");
    let broken =
        std::fs::read_to_string(&path).unwrap().replace("emoji_type, count(*)", "emoji_typ, count(*)");
    std::fs::write(&path, broken).unwrap();
    let output = check(folder.path(), &["sql/emoji_counts.sql"]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.starts_with("sql/emoji_counts.sql:7:"), "{said}");
    assert!(said.contains("did you mean 'emoji_type'?"), "{said}");

    let output = check(folder.path(), &["--format", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let verdict: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(verdict["ok"], false);
    let found = &verdict["diagnostics"][0];
    assert_eq!((found["line"].as_u64(), found["severity"].as_str()), (Some(7), Some("error")));
    assert!(found["file"].as_str().unwrap().ends_with("sql/emoji_counts.sql"));
}

#[test]
fn a_delay_that_a_flush_can_use_up_is_a_warning_at_the_watermark() {
    let folder = with_shipped_sql();
    std::fs::write(folder.path().join("slow.toml"), "[ingest]\nflush_interval_ms = 251\n").unwrap();
    let output = check(folder.path(), &["--config", "slow.toml"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let said = text(&output.stderr);
    assert!(said.contains("sql/tables.sql:6:3: warning: ingest.flush_interval_ms = 251"), "{said}");

    std::fs::write(folder.path().join("slow.toml"), "[ingest]\nflush_interval_ms = 250\n").unwrap();
    let output = check(folder.path(), &["--config", "slow.toml"]);
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn a_file_or_folder_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for args in [&[][..], &["none.sql"], &["--sql", "elsewhere"]] {
        let output = check(folder.path(), args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let name = args.last().unwrap_or(&"sql");
        assert!(text(&output.stderr).contains(name), "{args:?}: {}", text(&output.stderr));
    }
}

#[test]
fn a_constant_without_a_value_is_refused_at_its_place_also_above_a_plan() {
    let folder = with_shipped_sql();
    let query = "-- The time is none.\nINSERT INTO emoji_counts SELECT window.start, window.end, room, emoji_type, n, 1 FROM
      (SELECT * FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room, emoji_type, count(*) AS n
                      FROM reactions GROUP BY 1, 2, 3) ORDER BY n LIMIT 3) WHERE window.start > '2026-x';";
    std::fs::write(folder.path().join("sql/emoji_counts.sql"), query).unwrap();
    let output = check(folder.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("emoji_counts.sql:4:97: error: "), "{said}");
    assert!(said.contains("2026-x"), "{said}");
}

#[test]
fn what_depends_on_the_order_of_rows_is_a_warning_and_no_failure() {
    let folder = with_shipped_sql();
    let path = folder.path().join("sql/emoji_counts.sql");
    let shipped = std::fs::read_to_string(&path).unwrap();
    let limited = shipped.replace(");", ")\nORDER BY count DESC, room LIMIT 3;");
    assert_ne!(limited, shipped);
    std::fs::write(&path, limited).unwrap();
    let output = check(folder.path(), &["--format", "json"]);
    assert_eq!(output.status.code(), Some(0));
    let verdict: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let [found] = verdict["diagnostics"].as_array().unwrap().as_slice() else { panic!("{verdict}") };
    assert_eq!((&verdict["ok"], found["severity"].as_str()), (&true.into(), Some("warning")), "{verdict}");
    assert_eq!(found["suggestion"], "end the ORDER BY with emoji_type");
    let said = check(folder.path(), &[]);
    assert_eq!(said.status.code(), Some(0));
    assert!(text(&said.stderr).contains("warning: this LIMIT"), "{}", text(&said.stderr));
}
