//! The examples of `sql/examples/`: each plans, and gives the rows that were worked out by hand.
//!
//! `tests/golden/examples/reactions.txt` is what all of them count, `NAME.jsonl` what one of them answers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use emostream::sql::files::load_folder;
use emostream::sql::{SqlFile, plan_program};
use serde_json::{Map, Value};

use crate::support::rows::{self, Row};
use crate::support::stage::{MS, Stage, prepare_beside};

fn folder(inside: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(inside)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The reactions in order: the time at which each line's arrive, and its rows.
fn reactions() -> Vec<(i64, Vec<Row>)> {
    let text = read(&folder("tests/golden/examples/reactions.txt"));
    let line = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let [ms, user, emoji, room, times] = words.as_slice() else { panic!("{line}") };
        let ms: i64 = ms.parse().unwrap();
        let row = vec![Value::from(*user), Value::from(*emoji), Value::from(*room), Value::from(ms * MS)];
        (ms, vec![row; times.parse().unwrap()])
    };
    text.lines().filter(|line| !line.starts_with('#')).map(line).collect()
}

#[test]
fn every_example_gives_the_rows_that_were_worked_out_by_hand() {
    let files = load_folder(&folder("sql/examples")).unwrap();
    let names: BTreeSet<&str> = files
        .iter()
        .map(|file| Path::new(&file.name).file_stem().unwrap().to_str().unwrap())
        .filter(|name| *name != "tables")
        .collect();
    assert!(names.len() >= 6, "{names:?}");
    for name in names {
        let is_its = |file: &&SqlFile| Path::new(&file.name).file_stem().is_some_and(|stem| stem == name);
        let (its, beside): (Vec<SqlFile>, Vec<SqlFile>) =
            files.iter().cloned().partition(|file| is_its(&file));
        for partitions in [1, 2] {
            let query = prepare_beside(&its, &beside).unwrap_or_else(|wrong| panic!("{wrong}"));
            let mut stage = Stage::new(&query, partitions);
            assert_eq!(query.outputs[0].sink.name, name, "an example writes the sink of its name");
            for (n, (ms, rows)) in reactions().iter().enumerate() {
                stage.append(n % partitions, &rows::batch(query.source(), rows), *ms);
            }
            stage.read_all();
            stage.end(1_000_000);
            let found = stage.results();
            let expected = read(&folder("tests/golden/examples").join(name).with_extension("jsonl"));
            let expected: Vec<Map<String, Value>> =
                expected.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let expected = rows::sorted(&expected);
            assert_eq!(found, expected, "{name}, {partitions} partitions");
        }
    }
}

#[test]
fn the_examples_are_one_program_and_no_part_of_the_shipped_one() {
    let examples = plan_program(&load_folder(&folder("sql/examples")).unwrap()).unwrap();
    assert_eq!(examples.warnings, []);
    let shipped = plan_program(&load_folder(&folder("sql")).unwrap()).unwrap();
    assert_eq!(shipped.queries.len(), 1, "a folder's sub-folders are not read");
    let source = |program: &emostream::sql::Program| program.queries[0].sources[0].clone();
    assert_eq!(source(&examples), source(&shipped), "they read what is posted already");
}
