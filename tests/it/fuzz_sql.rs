//! Damaged SQL: a place in the text or a plan, every time, and never a panic.
//!
//! `EMOSTREAM_FUZZ_CASES=N` runs more cases; a failure names its seed. Where the process itself ends (a stack that is used
//! up), `EMOSTREAM_TRACE=1` names each seed before it runs.

use std::path::{Path, PathBuf};

use emostream::engine::compile::CompiledQuery;
use emostream::sql::{Diagnostic, SqlFile, load_folder, plan_program_with};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::support::{damage, seeds};

const CASES: &str = "EMOSTREAM_FUZZ_CASES";

fn sql_files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sql_files(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "sql") {
            into.push(path);
        }
    }
}

/// Every text of the tree: what is shipped and the goldens that plan, and the goldens that do not.
fn corpus() -> (Vec<String>, Vec<String>) {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    sql_files(&top.join("sql"), &mut paths);
    sql_files(&top.join("tests/golden"), &mut paths);
    paths.sort();
    let (bad, good): (Vec<_>, Vec<_>) =
        paths.into_iter().partition(|path| path.to_string_lossy().contains("error_"));
    let read =
        |paths: Vec<PathBuf>| paths.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    (read(good), read(bad))
}

#[track_caller]
fn is_located(found: &Diagnostic, files: &[SqlFile]) {
    let file = files.iter().find(|file| file.name == found.file).expect("a file of the program");
    let line = file.text.lines().nth(found.line as usize - 1).unwrap_or_default();
    assert_eq!(found.source_line, line, "{found}");
    assert!(found.line as usize <= file.text.lines().count().max(1), "{found}");
    assert!(found.column >= 1 && found.column as usize <= line.chars().count() + 1, "{found}");
    assert!(!found.message.is_empty() && !found.message.contains("Internal error"), "{found}");
}

#[test]
fn damaged_sql_gets_a_place_in_the_text_or_a_plan_that_compiles() {
    let (good, bad) = corpus();
    assert!(good.len() > 30 && bad.len() > 40, "only {} + {} texts were found", good.len(), bad.len());
    let shipped = load_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("sql")).unwrap();
    let tables: Vec<SqlFile> = shipped.into_iter().filter(|file| file.name.ends_with("tables.sql")).collect();
    let (mut refused, mut planned, mut uncompiled) = (0, 0, 0);
    seeds::each(CASES, 2_000, |_, mut random| {
        let pick = |random: &mut StdRng| {
            let from = if random.random_ratio(4, 5) { &good } else { &bad };
            &from[random.random_range(0..from.len())]
        };
        let mut text = pick(&mut random).clone();
        for _ in 0..*[1, 1, 1, 2, 4].choose(&mut random).unwrap() {
            text = damage::text(&text, pick(&mut random), &mut random);
        }
        if random.random_ratio(1, 20) {
            let bytes = damage::bytes(text.as_bytes(), pick(&mut random).as_bytes(), &mut random);
            text = String::from_utf8_lossy(&bytes).into_owned();
        }
        let mut files = vec![SqlFile { name: "damaged.sql".into(), text }];
        match plan_program_with(&files, &tables) {
            Ok(program) => {
                planned += 1;
                for query in &program.queries {
                    if CompiledQuery::compile(query).is_err() {
                        uncompiled += 1;
                    }
                }
                files.extend(tables.clone());
                program.warnings.iter().for_each(|found| is_located(found, &files));
            }
            Err(found) => {
                refused += 1;
                assert!(!found.is_empty());
                files.extend(tables.clone());
                found.iter().for_each(|found| is_located(found, &files));
            }
        }
    });
    if refused + planned > 1_000 {
        assert!(refused > 500 && planned > 50, "{refused} refused, {planned} planned");
        assert!(uncompiled * 8 < planned, "{uncompiled} of {planned} plans do not compile");
    }
}
