//! Rules about the source text: who may name whom, which library stays behind which fence, what is pure.
//!
//! Each rule is a function from one file to its violations. One test runs all of them on this tree; the others run
//! each rule on a sample that breaks it, so that a rule which can no longer fail is noticed. Clippy's part (no
//! `unwrap`, no clock, no unbounded queue) is in `Cargo.toml` and `clippy.toml`.

use std::fs;
use std::path::Path;

/// Which modules a module may name, besides itself. A stage that needs another stage's word has found a word that
/// belongs into `reaction` or onto a topic.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("reaction", &[]),
    ("clock", &[]),
    ("sync", &[]),
    ("shutdown", &[]),
    ("telemetry", &["clock", "shutdown", "sync"]),
    ("http", &["reaction", "clock", "shutdown", "telemetry", "sync"]),
    ("log", &["reaction", "clock", "shutdown", "telemetry", "sync"]),
    ("sql", &["reaction"]),
    ("ingest", &["log", "reaction", "telemetry", "shutdown", "http", "clock", "sync"]),
    ("engine", &["sql", "log", "reaction", "telemetry", "shutdown", "http", "clock", "sync"]),
    ("publish", &["log", "reaction", "telemetry", "shutdown", "http", "clock", "sync"]),
    ("query", &["log", "reaction", "telemetry", "shutdown", "http", "clock", "sync"]),
    ("simulate", &["reaction", "shutdown", "clock", "sync"]),
    ("config", &["ingest", "engine", "publish", "query", "log", "reaction", "telemetry", "http"]),
];

/// Only these see everything: the composition roots.
const SEES_ALL: &[&str] = &["cli", "lib", "main"];

/// A library, and the only files that may name it: a folder ends in `/`, `*/` stands for any folder.
const FENCES: &[(&str, &[&str])] = &[
    ("rdkafka", &["src/log/kafka/"]),
    ("rusqlite", &["src/log/embedded/"]),
    ("axum", &["*/routes.rs", "*/http.rs", "src/http/"]),
    ("hyper", &["src/http/"]),
    ("hyper_util", &["src/http/"]),
    ("socket2", &["src/http/"]),
    ("tungstenite", &["src/http/upgrade.rs", "*/socket.rs", "src/simulate/viewer.rs", "*tests.rs"]),
    ("datafusion", &["src/sql/", "src/engine/", "src/query/"]),
];

/// Files whose code takes time and data as arguments: no async, no clock, no input or output. By the beginning of their
/// path, so that a file that is split stays pure; each must be there, so that a rename does not end the rule.
const PURE: &[&str] = &[
    "src/reaction/",
    "src/log/result_row.rs",
    "src/query/gather.rs",
    "src/engine/watermark",
    "src/engine/window",
    "src/engine/partition",
    "src/engine/taken",
    "src/engine/decode",
    "src/engine/ring",
    "src/engine/sharing",
    "src/engine/bounded",
    "src/engine/connector/impulse",
    "src/engine/aggregate",
    "src/engine/groups",
    "src/engine/texts",
    "src/engine/expression",
    "src/engine/closing",
    "src/engine/early",
    "src/engine/kept",
    "src/engine/sliding",
    "src/engine/session",
    "src/engine/saved",
    "src/engine/snapshot",
    "src/engine/spill/mod",
    "src/engine/spill/parts",
    "src/engine/spill/piece",
    "src/engine/sorted",
    "src/engine/steps",
    "src/engine/lookup",
    "src/engine/in_sequence",
    "src/log/codec/",
    "src/engine/change",
    "src/engine/sink",
    "src/publish/command",
    "src/publish/frame",
    "src/publish/gather",
    "src/publish/history",
    "src/publish/message",
    "src/publish/protocol",
    "src/publish/queue",
    "src/publish/sequence",
    "src/simulate/answer",
    "src/simulate/crowd",
    "src/simulate/frames",
    "src/simulate/hearing",
    "src/simulate/sse",
];

/// What a pure file does not name. `std::fs` and the like are found in grouped imports too.
const IMPURE_WORDS: &[&str] = &["async", "await", "tokio", "SystemTime", "Instant"];
const IMPURE_PATHS: &[(&str, &[&str])] =
    &[("crate", &["clock"]), ("std", &["fs", "net", "thread", "process"])];

/// What says something of the machine or the way a text was written, and nothing of the program.
const FOREIGN_WORDS: &[&str] = &[
    "/work/",
    "/root/",
    "shared/design",
    "this session",
    "another session",
    "next session",
    "previous session",
    "anthropic",
    "claude",
    "language model",
];

// ---------------------------------------------------------------------------------------------------------------
// The rules
// ---------------------------------------------------------------------------------------------------------------

/// One file of the tree: its path from the top with `/`, its text, and for Rust its code alone.
struct Source {
    path: String,
    text: String,
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let code = if path.ends_with(".rs") { code_only(text) } else { String::new() };
        Self { path: path.to_owned(), text: text.to_owned(), code }
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// `src/log/codec.rs` → `log`; `src/http.rs` → `http`; nothing outside `src/`.
    fn module(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("src/").filter(|_| self.is_rust())?;
        Some(inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs"))
    }

    fn violation(&self, at: usize, message: &str) -> String {
        let line = self.text[..at].matches('\n').count() + 1;
        format!("{}:{line}: {message}", self.path)
    }
}

fn dependency_directions(source: &Source) -> Vec<String> {
    let Some(module) = source.module().filter(|module| !SEES_ALL.contains(module)) else { return Vec::new() };
    let Some((_, allowed)) = MAY_NAME.iter().find(|(name, _)| *name == module) else {
        return vec![source.violation(0, &format!("add `{module}` to MAY_NAME in tests/tidy.rs"))];
    };
    let depth = source.path.matches('/').count() - usize::from(source.path.ends_with("/mod.rs"));
    let to_the_root = "super::".repeat(depth);
    let known = |name: &str| SEES_ALL.contains(&name) || MAY_NAME.iter().any(|(module, _)| *module == name);
    let mut named = children_of(&source.code, "crate::");
    named.extend(children_of(&source.code, &to_the_root));
    named
        .into_iter()
        .filter(|(_, name)| known(name) && *name != module && !allowed.contains(name))
        .map(|(at, name)| {
            let may = if allowed.is_empty() { "nothing".to_owned() } else { allowed.join(", ") };
            source.violation(at, &format!("`{module}` must not name `{name}`; it may name {may}"))
        })
        .collect()
}

fn fences(source: &Source) -> Vec<String> {
    let Some(module) = source.module() else { return Vec::new() };
    let mut violations = Vec::new();
    for (library, files) in FENCES {
        let inside = files.iter().any(|allowed| match allowed.strip_prefix('*') {
            Some(suffix) => source.path.ends_with(suffix),
            None if allowed.ends_with('/') => source.path.starts_with(allowed),
            None => source.path == *allowed,
        });
        if inside {
            continue;
        }
        let message = format!("`{module}` names {library}, which stays in {}", files.join(", "));
        violations.extend(words(&source.code, library).map(|at| source.violation(at, &message)));
    }
    violations
}

fn purity(source: &Source) -> Vec<String> {
    if !PURE.iter().any(|pure| source.path.starts_with(pure)) {
        return Vec::new();
    }
    let mut violations = Vec::new();
    for word in IMPURE_WORDS {
        let message = format!("`{word}` in a pure file: time and data are arguments here");
        violations.extend(words(&source.code, word).map(|at| source.violation(at, &message)));
    }
    for (parent, children) in IMPURE_PATHS {
        for (at, name) in children_of(&source.code, &format!("{parent}::")) {
            if children.contains(&name) {
                violations.push(source.violation(at, &format!("`{parent}::{name}` in a pure file")));
            }
        }
    }
    violations
}

fn header(source: &Source) -> Vec<String> {
    let first = source.text.lines().next().unwrap_or_default();
    let says_something =
        first.strip_prefix("//! ").is_some_and(|sentence| sentence.split_whitespace().count() > 2);
    if !source.is_rust() || says_something {
        return Vec::new();
    }
    vec![source.violation(0, "the file does not open with a `//!` sentence on what it is for")]
}

fn no_skipped_test(source: &Source) -> Vec<String> {
    let message = "a test that is not run proves nothing: run it or remove it";
    source.code.match_indices("#[ignore").map(|(at, _)| source.violation(at, message)).collect()
}

fn no_foreign_words(source: &Source) -> Vec<String> {
    if source.path == "tests/tidy.rs" {
        return Vec::new();
    }
    let text = source.text.to_ascii_lowercase();
    let mut violations = Vec::new();
    for word in FOREIGN_WORDS {
        let message =
            format!("`{word}` says something of a machine or of how this was written, not of emostream");
        violations.extend(text.match_indices(word).map(|(at, _)| source.violation(at, &message)));
    }
    violations
}

const RULES: &[fn(&Source) -> Vec<String>] =
    &[dependency_directions, fences, purity, header, no_skipped_test, no_foreign_words];

// ---------------------------------------------------------------------------------------------------------------
// Reading Rust, as far as the rules need it
// ---------------------------------------------------------------------------------------------------------------

/// The code with comments and the insides of literals blanked out, byte for byte, lines kept.
fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_or_comment_end(text, at);
        match end {
            Some(end) => {
                for byte in &mut code[at..end] {
                    if *byte != b'\n' {
                        *byte = b' ';
                    }
                }
                at = end;
            }
            None => at += 1,
        }
    }
    String::from_utf8_lossy(&code).into_owned()
}

/// Where the comment or literal that begins at `at` ends, or None when none begins there.
fn literal_or_comment_end(text: &str, at: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let rest = &bytes[at..];
    let find = |needle: &str, from: usize| find_bytes(bytes, needle.as_bytes(), from);
    if rest.starts_with(b"//") {
        return Some(find("\n", at).unwrap_or(bytes.len()));
    }
    if rest.starts_with(b"/*") {
        return Some(find("*/", at + 2).map_or(bytes.len(), |end| end + 2));
    }
    if rest.starts_with(b"r\"") || rest.starts_with(b"r#") {
        let hashes = rest[1..].iter().take_while(|byte| **byte == b'#').count();
        if rest.get(1 + hashes) == Some(&b'"') && !continues_a_word(bytes, at) {
            let close = format!("\"{}", "#".repeat(hashes));
            let inside = at + hashes + 2;
            return Some(find(&close, inside).map_or(bytes.len(), |end| end + close.len()));
        }
    }
    match rest.first() {
        Some(b'"') => Some(quoted_end(bytes, at, b'"')),
        // A lifetime has no second quote after one character or escape.
        Some(b'\'') if rest.get(1) == Some(&b'\\') => Some(quoted_end(bytes, at, b'\'')),
        Some(b'\'') => {
            let character = text[at + 1..].chars().next()?;
            let end = at + 1 + character.len_utf8();
            (bytes.get(end) == Some(&b'\'')).then_some(end + 1)
        }
        _ => None,
    }
}

fn continues_a_word(bytes: &[u8], at: usize) -> bool {
    at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_')
}

fn quoted_end(bytes: &[u8], at: usize, quote: u8) -> usize {
    let mut end = at + 1;
    while end < bytes.len() && bytes[end] != quote {
        end += if bytes[end] == b'\\' { 2 } else { 1 };
    }
    (end + 1).min(bytes.len())
}

fn find_bytes(bytes: &[u8], needle: &[u8], from: usize) -> Option<usize> {
    let rest = bytes.get(from..)?;
    rest.windows(needle.len()).position(|window| window == needle).map(|at| from + at)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Where `word` stands as a word of its own.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let after = code.as_bytes().get(at + word.len());
        !continues_a_word(code.as_bytes(), *at) && !after.is_some_and(|byte| is_word(*byte))
    })
}

/// The names that follow `prefix` (such as `crate::`), one by one also out of a group `crate::{a::b, c}`.
fn children_of<'a>(code: &'a str, prefix: &str) -> Vec<(usize, &'a str)> {
    let bytes = code.as_bytes();
    let mut children = Vec::new();
    for (start, _) in code.match_indices(prefix) {
        // `super::super::` inside a longer chain, or `mycrate::`.
        if continues_a_word(bytes, start) || start >= 2 && &bytes[start - 2..start] == b"::" {
            continue;
        }
        let mut at = start + prefix.len();
        if bytes.get(at) != Some(&b'{') {
            children.push((at, word_at(code, at)));
            continue;
        }
        let (mut depth, mut expects_name) = (0_usize, false);
        while let Some(byte) = bytes.get(at) {
            match byte {
                b'{' => (depth, expects_name) = (depth + 1, depth == 0),
                b'}' if depth == 1 => break,
                b'}' => depth -= 1,
                b',' => expects_name = depth == 1,
                byte if is_word(*byte) && expects_name => {
                    children.push((at, word_at(code, at)));
                    expects_name = false;
                }
                _ => {}
            }
            at += 1;
        }
    }
    children
}

fn word_at(code: &str, at: usize) -> &str {
    let length = code.as_bytes()[at..].iter().take_while(|byte| is_word(**byte)).count();
    &code[at..at + length]
}

/// Every text file of the tree, without what is built or recorded.
fn tree(folder: &Path, inside: &str, into: &mut Vec<Source>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries {
        let entry = entry.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{inside}{name}");
        let kind = entry.file_type().unwrap_or_else(|error| panic!("{path}: {error}"));
        if kind.is_dir() {
            if ![".git", "target", "data"].contains(&name.as_str()) {
                tree(&entry.path(), &format!("{path}/"), into);
            }
        } else if kind.is_file() && name != ".git" {
            // What is no UTF-8 is no text.
            if let Ok(text) = fs::read_to_string(entry.path()) {
                into.push(Source::new(&path, &text));
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------
// The tests
// ---------------------------------------------------------------------------------------------------------------

#[test]
fn the_tree_keeps_every_rule() {
    let mut sources = Vec::new();
    tree(Path::new(env!("CARGO_MANIFEST_DIR")), "", &mut sources);
    assert!(
        sources.iter().any(|source| source.path == "src/lib.rs"),
        "the walk does not find the source tree"
    );
    for pure in PURE {
        let there = sources.iter().any(|source| source.path.starts_with(pure));
        assert!(there, "no file begins with {pure}: name its successor in PURE");
    }
    let violations: Vec<String> =
        sources.iter().flat_map(|source| RULES.iter().flat_map(|rule| rule(source))).collect();
    assert!(violations.is_empty(), "{} violations\n{}\n", violations.len(), violations.join("\n"));
}

/// Runs one rule on one file; `expected` are parts of the violations, in order.
#[track_caller]
fn check(rule: fn(&Source) -> Vec<String>, path: &str, text: &str, expected: &[&str]) {
    let found = rule(&Source::new(path, text));
    assert_eq!(found.len(), expected.len(), "{path}: {found:?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.contains(expected), "{found:?} does not say {expected:?}");
    }
}

#[test]
fn a_stage_that_names_another_stage_is_found() {
    let rule = dependency_directions;
    check(
        rule,
        "src/ingest/mod.rs",
        "use crate::log::Log;\nuse crate::engine::Worker;\n",
        &["mod.rs:2: `ingest`"],
    );
    check(
        rule,
        "src/query/figures.rs",
        "use crate::{log::{self, codec}, publish::Hub, http};",
        &["name `publish`"],
    );
    check(
        rule,
        "src/publish/a/b.rs",
        "fn f() { super::super::super::query::g(); }",
        &["must not name `query`"],
    );
    check(rule, "src/publish/a/b.rs", "use super::super::query::Row;", &[]);
    check(rule, "src/sql/plan.rs", "use crate::log::Log;", &["`sql` must not name `log`"]);
    check(rule, "src/engine/worker.rs", "use crate::config::Settings;", &["must not name `config`"]);
    check(rule, "src/reaction/time.rs", "use crate::clock::wall_ns;", &["it may name nothing"]);
    check(rule, "src/cli/up.rs", "use crate::{engine, ingest};", &[]);
    check(rule, "src/utils/mod.rs", "", &["add `utils` to MAY_NAME"]);
    check(
        rule,
        "src/ingest/mod.rs",
        "//! Unlike [`crate::engine`].\nconst A: &str = \"crate::engine\";",
        &[],
    );
}

#[test]
fn a_library_outside_its_fence_is_found() {
    check(
        fences,
        "src/engine/worker.rs",
        "\nuse rdkafka::Message;",
        &["worker.rs:2: `engine` names rdkafka"],
    );
    check(fences, "src/log/kafka/read.rs", "use rdkafka::Message;", &[]);
    check(fences, "src/log/kafka/read.rs", "use rusqlite::Connection;", &["stays in src/log/embedded/"]);
    check(fences, "src/ingest/mod.rs", "use axum::Router;", &["names axum"]);
    check(fences, "src/ingest/routes.rs", "use axum::Router;", &[]);
    check(fences, "src/http.rs", "use axum::Json;", &[]);
    check(fences, "src/publish/hub.rs", "use tungstenite::Message;", &["names tungstenite"]);
    check(fences, "src/publish/routes.rs", "use hyper::upgrade::OnUpgrade;", &["stays in src/http/"]);
    check(fences, "src/log/mod.rs", "use datafusion::arrow::array::Array;", &["names datafusion"]);
    check(fences, "src/log/mod.rs", "// rdkafka does this\nlet rdkafka_like = \"rdkafka\";", &[]);
}

#[test]
fn a_pure_file_that_waits_or_reads_a_clock_is_found() {
    check(purity, "src/engine/window.rs", "async fn close() {}", &["`async` in a pure file"]);
    check(purity, "src/engine/watermark_idle.rs", "use crate::clock;", &["`crate::clock`"]);
    check(purity, "src/engine/closing/mod.rs", "use std::{collections::BTreeMap, fs};", &["`std::fs`"]);
    check(purity, "src/publish/queue.rs", "use tokio::sync::mpsc;", &["`tokio`"]);
    check(
        purity,
        "src/publish/protocol.rs",
        "fn now() -> Instant { Instant::now() }",
        &["`Instant`", "`Instant`"],
    );
    check(purity, "src/reaction/room.rs", "use std::net::IpAddr;", &["`std::net`"]);
    check(purity, "src/engine/window.rs", "/// Not async.\nfn close() {}", &[]);
    check(purity, "src/engine/worker.rs", "async fn run() {}", &[]);
}

#[test]
fn a_file_without_a_header_is_found() {
    check(header, "src/engine/mod.rs", "mod worker;", &["mod.rs:1: the file does not open"]);
    check(header, "src/engine/mod.rs", "//! The engine\nmod worker;", &["does not open"]);
    check(header, "src/engine/mod.rs", "//! Stage 2: counts.\nmod worker;", &[]);
    check(header, "README.md", "# emostream", &[]);
}

#[test]
fn a_skipped_test_is_found() {
    check(
        no_skipped_test,
        "tests/it/log.rs",
        "#[test]\n#[ignore]\nfn a() {}",
        &["log.rs:2: a test that is not run"],
    );
    check(no_skipped_test, "tests/it/log.rs", "#[test]\nfn a() {}", &[]);
}

#[test]
fn a_word_about_the_machine_is_found() {
    check(no_foreign_words, "README.md", "See\n/root/notes.", &["README.md:2: `/root/`"]);
    check(no_foreign_words, "src/lib.rs", "// written by Claude", &["`claude`"]);
    check(no_foreign_words, "src/log/kafka/mod.rs", "// session.timeout.ms; a session window", &[]);
}

#[test]
fn comments_and_literals_are_not_code() {
    let text = "a /* b */ \"c \\\" d\" r#\"e \" f\"# 'g' '\\'' fn h<'i>(x: &'i str) // j\nk";
    let code: Vec<String> = code_only(text).split_whitespace().map(str::to_owned).collect();
    assert_eq!(code, ["a", "fn", "h<'i>(x:", "&'i", "str)", "k"]);
    assert_eq!(code_only(text).len(), text.len());
}
