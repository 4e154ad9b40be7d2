//! The SQL front end against golden files: a text, and what is said about it.
//!
//! `tests/golden/sql/NAME.sql` is one file, planned beside the shipped `sql/tables.sql`; a folder there is a program of its own.
//! `NAME.expected` holds the diagnostics, or what the engine gets to compile. `UPDATE_GOLDEN=1` rewrites it.

use std::fmt::Write as _;
use std::path::Path;

use emostream::sql::cut::Part;
use emostream::sql::files::{load_file, load_folder};
use emostream::sql::{Program, Query, SqlFile, plan_program, plan_program_with};

use crate::support::golden;

fn shipped() -> Vec<SqlFile> {
    load_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("sql")).unwrap()
}

/// The file as the golden names it: without the way to this folder.
fn short(mut file: SqlFile) -> SqlFile {
    let name = Path::new(&file.name).file_name().unwrap();
    file.name = name.to_str().unwrap().to_owned();
    file
}

/// What is said about a golden program: its diagnostics, or each query's cut.
fn verdict(case: &Path) -> String {
    let planned = if case.is_dir() {
        let files: Vec<SqlFile> = load_folder(case).unwrap().into_iter().map(short).collect();
        plan_program(&files)
    } else {
        let tables = load_file(&Path::new(env!("CARGO_MANIFEST_DIR")).join("sql/tables.sql")).unwrap();
        plan_program_with(&[short(load_file(case).unwrap())], &[short(tables)])
    };
    match planned {
        Ok(program) => describe(&program),
        Err(diagnostics) => diagnostics.iter().fold(String::new(), |mut text, diagnostic| {
            writeln!(text, "{diagnostic}").unwrap();
            text
        }),
    }
}

fn describe(program: &Program) -> String {
    let mut text = String::new();
    for warning in &program.warnings {
        writeln!(text, "{warning}").unwrap();
    }
    for query in &program.queries {
        text += &describe_query(query);
    }
    text
}

pub(crate) fn describe_query(query: &Query) -> String {
    let mut text = String::new();
    let names = |tables: Vec<&str>| tables.join(", ");
    let sources = names(query.sources.iter().map(|source| source.name.as_str()).collect());
    let sinks = names(query.sinks().map(|sink| sink.name.as_str()).collect());
    writeln!(text, "query {}: {sources} into {sinks}", query.name).unwrap();
    for (place, cut) in query.cuts.iter().enumerate() {
        writeln!(text, "cut {place}: {}, group expression {}", cut.windowing, cut.window_index).unwrap();
        let types = cut.output_schema.fields().iter().enumerate();
        let types = types.filter(|(place, _)| *place != cut.window_index).map(|(_, field)| field.data_type());
        let types: Vec<_> = types.collect();
        for input in &cut.inputs {
            writeln!(text, "from {}", input.source).unwrap();
            for filter in &input.filters {
                writeln!(text, "where {filter}").unwrap();
            }
            for (key, data_type) in input.keys.iter().zip(&types) {
                writeln!(text, "key {key} as {data_type}").unwrap();
            }
            for (aggregate, data_type) in input.aggregates.iter().zip(&types[input.keys.len()..]) {
                writeln!(text, "aggregate {aggregate} as {data_type}").unwrap();
            }
        }
    }
    for output in &query.outputs {
        for part in &output.parts {
            writeln!(text, "into {}:", output.sink.name).unwrap();
            match part {
                Part::Windowed(part) => {
                    let kind = if part.row_by_row.is_some() { "row by row" } else { "plan" };
                    writeln!(text, "{kind} over cuts {:?}", part.cuts).unwrap();
                    writeln!(text, "{}", part.above.display_indent()).unwrap();
                }
                Part::RowWise(rows) => {
                    writeln!(text, "each row of {}", rows.source).unwrap();
                    for filter in &rows.filters {
                        writeln!(text, "where {filter}").unwrap();
                    }
                    for column in &rows.columns {
                        writeln!(text, "column {column}").unwrap();
                    }
                }
            }
        }
    }
    // A window call's name is long.
    let interval =
        "IntervalMonthDayNano(\"IntervalMonthDayNano { months: 0, days: 0, nanoseconds: 2000000000 }\")";
    text.replace(interval, "2 s")
}

#[test]
fn every_golden_text_gets_its_expected_verdict() {
    golden::check("sql", 21, verdict);
}

#[test]
fn the_shipped_folder_plans_without_a_warning() {
    let program = plan_program(&shipped()).unwrap();
    assert_eq!(program.warnings, []);
    assert_eq!(program.queries.len(), 1);
    let reversed: Vec<SqlFile> = shipped().into_iter().rev().collect();
    let again = plan_program(&reversed).unwrap();
    assert_eq!(again.tables, program.tables);
    assert_eq!(again.queries[0].fingerprint(), program.queries[0].fingerprint());
}

/// The shipped program with one text replaced.
fn edited(from: &str, to: &str) -> Program {
    let mut files = shipped();
    assert!(files.iter().any(|file| file.text.contains(from)), "'{from}' is in no shipped file");
    for file in &mut files {
        file.text = file.text.replace(from, to);
    }
    plan_program(&files).unwrap()
}

#[test]
fn a_fingerprint_changes_with_what_lies_at_or_below_the_cut_and_with_nothing_else() {
    let fingerprint = |program: &Program| program.queries[0].fingerprint();
    let shipped = fingerprint(&plan_program(&shipped()).unwrap());
    for (from, to) in [
        ("1000 ", "2000 "),
        ("AS scaled", "AS shown"),
        ("FROM (", "\n\nFROM ("),
        ("GROUP BY window, room, emoji_type", "GROUP BY window, room, emoji_type HAVING count(*) > 3"),
        ("emoji_counts\nSELECT window.start", "emoji_counts\nSELECT window.end"),
    ] {
        assert_eq!(fingerprint(&edited(from, to)), shipped, "{from} → {to}");
    }
    for (from, to) in [
        ("'2 seconds'", "'3 seconds'"),
        ("FROM reactions", "FROM reactions WHERE room <> 'test'"),
        ("count(*) AS", "count(DISTINCT user_id) AS"),
        ("GROUP BY window, room, emoji_type", "GROUP BY window, upper(room), room, emoji_type"),
    ] {
        assert_ne!(fingerprint(&edited(from, to)), shipped, "{from} → {to}");
    }
}

#[test]
fn the_sinks_columns_and_types_are_what_the_plan_above_gives() {
    let program = edited("scaled BIGINT", "scaled DOUBLE");
    let Part::Windowed(part) = &program.queries[0].outputs[0].parts[0] else { panic!("it has a window") };
    let schema = part.above.schema();
    let fields: Vec<String> =
        schema.fields().iter().map(|f| format!("{} {}", f.name(), f.data_type())).collect();
    let expected = [
        "window_start Timestamp(ns)",
        "window_end Timestamp(ns)",
        "room Utf8",
        "emoji_type Utf8",
        "count Int64",
        "scaled Float64",
    ];
    assert_eq!(fields, expected);
}

/// Where each word, number, quoted text or sign of a text begins and ends.
fn tokens(text: &str) -> Vec<(usize, usize)> {
    let mut tokens: Vec<(usize, usize)> = Vec::new();
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut before = ' ';
    for (index, c) in text.char_indices() {
        let end = index + c.len_utf8();
        match tokens.last_mut() {
            Some(last) if last.1 == index && is_word(c) && is_word(before) => last.1 = end,
            _ if c.is_whitespace() => {}
            _ => tokens.push((index, end)),
        }
        before = c;
    }
    tokens
}

#[test]
fn whatever_is_damaged_in_the_shipped_files_the_answer_has_a_place_in_the_text() {
    let files = shipped();
    let mut refused = 0;
    for (index, file) in files.iter().enumerate() {
        for (start, end) in tokens(&file.text) {
            for instead in ["", "window"] {
                let mut damaged = files.clone();
                damaged[index].text.replace_range(start..end, instead);
                let Err(diagnostics) = plan_program(&damaged) else { continue };
                refused += 1;
                assert!(!diagnostics.is_empty());
                for found in diagnostics {
                    let within = damaged.iter().find(|file| file.name == found.file).unwrap();
                    let line = within.text.lines().nth(found.line as usize - 1).unwrap_or_default();
                    assert_eq!(found.source_line, line, "{found}");
                    assert!(
                        found.column >= 1 && found.column as usize <= line.chars().count() + 1,
                        "{found}"
                    );
                    assert!(
                        !found.message.is_empty() && !found.message.contains("Internal error"),
                        "{found}"
                    );
                }
            }
        }
    }
    assert!(refused > 200, "only {refused} damages were noticed");
}
