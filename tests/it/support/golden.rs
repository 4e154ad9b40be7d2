//! Golden files: a folder of cases, and beside each what is said of it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Every `NAME.sql` and every folder of `tests/golden/FOLDER` (at least so many) gets the verdict that `NAME.expected`
/// holds. `UPDATE_GOLDEN=1` rewrites it.
pub(crate) fn check(folder: &str, at_least: usize, verdict: impl Fn(&Path) -> String) {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(folder);
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let cases: BTreeSet<PathBuf> =
        entries.filter(|path| path.is_dir() || path.extension().is_some_and(|e| e == "sql")).collect();
    assert!(cases.len() >= at_least, "only {} golden texts were found", cases.len());
    let mut wrong = String::new();
    for case in cases {
        let expected_file = case.with_extension("expected");
        let actual = verdict(&case);
        if update {
            std::fs::write(&expected_file, &actual).unwrap();
            continue;
        }
        let expected = std::fs::read_to_string(&expected_file).unwrap_or_default();
        if expected != actual {
            writeln!(wrong, "{}\n--- expected\n{expected}--- actual\n{actual}", case.display()).unwrap();
        }
    }
    assert!(wrong.is_empty(), "UPDATE_GOLDEN=1 rewrites these, when they are right:\n{wrong}");
}
