//! What a CREATE TABLE declares, against golden files: types, options, columns, watermarks.
//!
//! `tests/golden/tables/NAME.sql` is a program of its own. `NAME.expected` holds the diagnostics, or the tables as the
//! program topic carries them and what is made of its queries. `UPDATE_GOLDEN=1` rewrites it.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Int32Array, ListBuilder, RecordBatch, StringArray, StringBuilder, TimestampNanosecondArray,
};
use emostream::reaction::schema::record_schema;
use emostream::reaction::table::Table;
use emostream::sql::{SqlFile, plan_program};
use serde_json::{Value, json};

use crate::support::golden;
use crate::support::stage::{Stage, compile};

/// A table's JSON, a column a line, without the options as they were written.
fn describe(table: &Table) -> String {
    let mut json = serde_json::to_value(table).unwrap();
    assert_eq!(&serde_json::from_value::<Table>(json.clone()).unwrap(), table, "it is read back the same");
    let fields = json.as_object_mut().unwrap();
    fields.remove("options");
    let columns = fields.remove("columns").unwrap_or(Value::Null);
    let mut text = format!("{json}\n");
    for column in columns.as_array().unwrap() {
        writeln!(text, "  {column}").unwrap();
    }
    text
}

fn verdict(case: &Path) -> String {
    let name = case.file_name().unwrap().to_str().unwrap().to_owned();
    let file = SqlFile { name, text: std::fs::read_to_string(case).unwrap() };
    match plan_program(&[file]) {
        Ok(program) => {
            let warnings = program.warnings.iter().map(|warning| format!("{warning}\n"));
            let tables = program.tables.iter().map(describe);
            let queries = program.queries.iter().map(super::sql::describe_query);
            warnings.chain(tables).chain(queries).collect()
        }
        Err(diagnostics) => diagnostics.iter().map(|diagnostic| format!("{diagnostic}\n")).collect(),
    }
}

#[test]
fn every_declaration_gets_its_expected_verdict() {
    golden::check("tables", 11, verdict);
}

#[test]
fn a_table_that_was_stored_before_there_were_these_options_is_still_read() {
    let stored = r#"{"name":"t","type":"source","topic":"t","format":"arrow","columns":
        [{"name":"x","type":"INT UNSIGNED","nullable":true,"default":null}],
        "watermark":{"column":"x","delay_ns":5},"key_field":null,"options":{"connector":"kafka"}}"#;
    let table: Table = serde_json::from_str(stored).unwrap();
    assert_eq!(table.with, Default::default());
    assert_eq!(table.record_columns().count(), 1);
}

/// A batch of the columns that a record of the query's source holds.
fn held(stage: &Stage, columns: Vec<ArrayRef>) -> RecordBatch {
    RecordBatch::try_new(record_schema(&stage.query().sources[0].table), columns).unwrap()
}

fn texts(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

#[test]
fn a_query_reads_what_the_log_knows_of_a_record() {
    let tables = "CREATE TABLE clicks (
            part INT NOT NULL METADATA FROM 'partition', place BIGINT METADATA FROM 'offset_id', user_id TEXT NOT NULL,
            written BIGINT METADATA FROM 'timestamp', at TIMESTAMP NOT NULL METADATA FROM 'timestamp',
            subject TEXT METADATA FROM 'topic', raw BYTEA METADATA FROM 'key', name TEXT METADATA FROM 'key',
            WATERMARK FOR at
        ) WITH (connector = 'kafka', type = 'source', topic = 'the.clicks');
        CREATE TABLE seen (part INT, subject TEXT, raw BYTEA, name TEXT, places BIGINT, first BIGINT, latest TIMESTAMP, n BIGINT)
        WITH (connector = 'kafka', type = 'sink');";
    let query =
        "INSERT INTO seen SELECT part, subject, raw, name, sum(place), min(written), max(at), count(user_id)
        FROM clicks GROUP BY tumble(INTERVAL '2 seconds'), part, subject, raw, name";
    let mut stage = Stage::new(&compile(tables, query), 2);
    let two = held(&stage, vec![texts(&["a", "b"])]);
    stage.append_keyed(0, &two, 10_100, b"k");
    stage.append_keyed(0, &two, 11_900, b"k");
    stage.append(1, &two, 11_000);
    stage.append_keyed(1, &two, 11_500, b"\xff");
    stage.read_all();
    stage.end(12_000);
    let at = |part: i64, raw: Value, name: Value, places: i64, first: i64, latest: &str, n: i64| {
        json!({"part": part, "subject": "the.clicks", "raw": raw, "name": name, "places": places, "first": first,
               "latest": latest, "n": n})
    };
    let mut expected = [
        at(0, json!("aw=="), json!("k"), 2, 10_100, "1970-01-01T00:00:11.900Z", 4),
        at(1, Value::Null, Value::Null, 0, 11_000, "1970-01-01T00:00:11Z", 2),
        at(1, json!("/w=="), Value::Null, 2, 11_500, "1970-01-01T00:00:11.500Z", 2),
    ]
    .map(|row| row.to_string());
    expected.sort();
    assert_eq!(stage.results(), expected);
}

#[test]
fn without_a_declared_event_time_a_window_closes_a_second_after_the_logs_time() {
    let tables = "CREATE TABLE clicks (user_id TEXT NOT NULL) WITH (connector = 'kafka', type = 'source');
        CREATE TABLE counts (n BIGINT) WITH (connector = 'kafka', type = 'sink');";
    let query = "INSERT INTO counts SELECT count(*) FROM clicks GROUP BY tumble(INTERVAL '2 seconds')";
    let mut stage = Stage::new(&compile(tables, query), 1);
    let three = held(&stage, vec![texts(&["a", "b", "c"])]);
    stage.append(0, &three, 10_000);
    stage.append(0, &three, 11_999);
    stage.append(0, &three, 12_999);
    stage.read_all();
    assert!(stage.emitted().is_empty(), "the watermark is a millisecond before the window's end");
    stage.append(0, &three, 13_000);
    stage.read_all();
    assert_eq!(stage.results(), [r#"{"n":6}"#]);
}

#[test]
fn generated_columns_are_computed_and_every_type_is_written_as_it_is_documented() {
    let tables = "CREATE TABLE sales (
            cents INT NOT NULL, euros DECIMAL(10, 2) GENERATED ALWAYS AS (CAST(cents AS DECIMAL(10, 2)) / 100) STORED,
            tags TEXT[], photo BYTEA DEFAULT X'ff00', fee DECIMAL(4, 2) DEFAULT 1.5, ids BIGINT[] DEFAULT ARRAY[7, NULL],
            at TIMESTAMP NOT NULL, WATERMARK FOR at
        ) WITH (connector = 'kafka', type = 'source');
        CREATE TABLE bills (tags TEXT[], photo BYTEA, ids BIGINT[], euros DECIMAL(12, 2), fees DECIMAL(12, 2), cents BIGINT[])
        WITH (connector = 'kafka', type = 'sink');";
    let query = "INSERT INTO bills SELECT tags, photo, ids, sum(euros), sum(fee), array_agg(cents) FROM sales WHERE euros < 5
        GROUP BY tumble(INTERVAL '1 second'), tags, photo, ids";
    let mut stage = Stage::new(&compile(tables, query), 1);
    // A record from before photo, fee and ids were declared.
    let before = compile(
        "CREATE TABLE sales (cents INT NOT NULL, tags TEXT[], at TIMESTAMP NOT NULL, WATERMARK FOR at)
         WITH (connector = 'kafka', type = 'source'); CREATE TABLE n (n BIGINT) WITH (connector = 'blackhole');",
        "INSERT INTO n SELECT count(*) FROM sales GROUP BY tumble(INTERVAL '1 second')",
    );
    let mut tags = ListBuilder::new(StringBuilder::new());
    for _ in 0..3 {
        tags.values().append_value("x");
        tags.append(true);
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int32Array::from(vec![5, 250, 99_999])),
        Arc::new(tags.finish()),
        Arc::new(TimestampNanosecondArray::from(vec![10_000_000_000; 3])),
    ];
    let batch = RecordBatch::try_new(record_schema(&before.sources[0].table), columns).unwrap();
    stage.append(0, &batch, 10_000);
    stage.read_all();
    stage.end(20_000);
    let expected = json!({"tags": ["x"], "photo": "/wA=", "ids": [7, null], "euros": "2.55", "fees": "3.00",
                          "cents": [5, 250]});
    assert_eq!(stage.results(), [expected.to_string()]);
}

/// What the reference says, and that the planner says the same.
const REFERENCE: &str = include_str!("../../sql/README.md");

/// The names that a diagnostic of `ddl` lists behind `before`, up to the line's end.
fn listed(ddl: &str, before: &str) -> Vec<String> {
    let file = SqlFile { name: "t.sql".into(), text: ddl.into() };
    let diagnostics = plan_program(&[file]).unwrap_err();
    let text: String = diagnostics.iter().map(|diagnostic| format!("{diagnostic}\n")).collect();
    let (_, names) = text.split_once(before).unwrap_or_else(|| panic!("no '{before}' in\n{text}"));
    let names = names.lines().next().unwrap().replace(" or ", ", ");
    names.split(", ").map(|name| name.trim_matches('\'').to_owned()).collect()
}

#[test]
fn the_reference_names_every_option_value_type_and_metadata_there_is() {
    let with = |options: &str| format!("CREATE TABLE t (x TEXT) WITH ({options}, type = 'source')");
    let kafka = |option: &str| with(&format!("connector = 'kafka', {option} = 'zzzzzzzzzz'"));
    let metadata =
        "CREATE TABLE t (x TEXT METADATA FROM 'zzzzzzzz') WITH (connector = 'kafka', type = 'source')";
    let mut all = listed(&kafka("zzzzzzzzzz"), "options: ");
    assert!(all.len() > 20, "{all:?}");
    all.extend(listed(&with("connector = 'zzzzzzzzzz'"), "expected "));
    for option in ["format", "bad_data", "late_rows", "'source.offset'", "'source.read_mode'", "framing"] {
        all.extend(listed(&kafka(option), "expected "));
    }
    all.extend(listed(metadata, "metadata: "));
    let types = listed("CREATE TABLE t (x BLOB) WITH (connector = 'stdout')", "types: ").join(", ");
    // One of them has a comma of its own.
    all.extend(types.replace("DECIMAL(10, 2)", "DECIMAL(10; 2)").split(", ").map(|t| t.replace(';', ",")));
    for name in all {
        let quoted = [format!("`{name}`"), format!("`'{name}'`")];
        assert!(quoted.iter().any(|name| REFERENCE.contains(name)), "sql/README.md does not name {name}");
    }
}

#[test]
fn the_references_sql_and_functions_plan() {
    let blocks: Vec<&str> =
        REFERENCE.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(blocks.len(), 1);
    let functions: Vec<&str> = REFERENCE
        .lines()
        .filter_map(|line| line.strip_prefix("| `emoji_")?.split_once('('))
        .map(|f| f.0)
        .collect();
    assert_eq!(functions.len(), 4);
    let calls: Vec<String> = functions.iter().map(|name| format!("max(emoji_{name}(user_id))")).collect();
    let emojis = format!(
        "CREATE TABLE facts (a TEXT, b TEXT, c TEXT, d DOUBLE) WITH (connector = 'stdout');
         INSERT INTO facts SELECT {} FROM clicks GROUP BY tumble(INTERVAL '1 second')",
        calls.join(", ")
    );
    let files = [("a.sql", blocks[0]), ("b.sql", emojis.as_str())];
    let files = files.map(|(name, text)| SqlFile { name: name.into(), text: text.into() });
    let program = plan_program(&files).unwrap_or_else(|found| {
        panic!("{}", found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    });
    assert_eq!(program.warnings, []);
    assert_eq!(program.queries.len(), 2);
}
