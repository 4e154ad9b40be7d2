//! Golden streams: SQL, events in the order in which they come, and the windows that must come out.
//!
//! Each folder of `tests/golden/stream` is one: `*.sql` (the shipped tables are beside them), the files of static tables,
//! `events.txt`, `expected.txt`. The expectation holds for the events as written, shuffled within the delay, killed and restarted at
//! random places, with open windows put on disk at others, and over other numbers of partitions. `UPDATE_GOLDEN=1` rewrites it from the run as written.
//!
//! `events.txt` has one record a line, `partition +arrival: row, row`; a row is a value per column of the source, times
//! as `+ms` or `-ms` from `from`, null as `∅`. Other lines: `# comment`; `from TIME`; `prove partition +ms`, the
//! partition is quiet and read up to there; `fixed`, where what is late or future depends on partitions and order, which
//! then stay as written; `ordered`, where the order of a window's rows is part of the answer.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use emostream::reaction::table::{ColumnType, Table};
use emostream::reaction::time::{format_rfc3339, parse_rfc3339};
use emostream::sql::SqlFile;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use crate::support::rows::{self, Row};
use crate::support::stage::{MS, Prepared, Stage, prepare_beside};

/// After every event of every golden, and after every row that is dated ahead.
const AFTER_MS: i64 = 1_000_000_000;

enum Line {
    /// Partition, arrival, rows.
    Record(usize, i64, Vec<Row>),
    /// Partition, time.
    Prove(usize, i64),
}

struct Golden {
    query: Prepared,
    lines: Vec<Line>,
    partitions: usize,
    from_ms: i64,
    fixed: bool,
    ordered: bool,
}

impl Golden {
    fn load(folder: &Path) -> Self {
        let mut files: Vec<SqlFile> = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "sql") {
                // With its folder, because that is where static tables are.
                let name = path.to_string_lossy().into_owned();
                files.push(SqlFile { name, text: std::fs::read_to_string(&path).unwrap() });
            }
        }
        let tables = include_str!("../../sql/tables.sql").to_owned();
        let query = prepare_beside(&files, &[SqlFile { name: "tables.sql".into(), text: tables }]);
        let query = query.unwrap_or_else(|wrong| panic!("{wrong}"));
        let text = std::fs::read_to_string(folder.join("events.txt")).unwrap();
        let mut golden =
            Self { query, lines: Vec::new(), partitions: 1, from_ms: 0, fixed: false, ordered: false };
        for (number, line) in text.lines().enumerate() {
            let read = golden.read(line.trim());
            read.unwrap_or_else(|| panic!("{}/events.txt:{}: {line}", folder.display(), number + 1));
        }
        golden
    }

    fn read(&mut self, line: &str) -> Option<()> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "" | "#" => {}
            "fixed" => self.fixed = true,
            "ordered" => self.ordered = true,
            "from" => self.from_ms = parse_rfc3339(rest).ok()? / MS,
            "prove" => {
                let (partition, ms) = rest.split_once(' ')?;
                self.lines.push(Line::Prove(partition.parse().ok()?, self.time_ms(ms)?));
            }
            partition => {
                let partition = partition.parse().ok()?;
                let (arrival, text) = rest.split_once(": ")?;
                let arrival = self.time_ms(arrival)?;
                let rows = text.split(", ").map(|row| self.row(row)).collect::<Option<_>>()?;
                self.partitions = self.partitions.max(partition + 1);
                self.lines.push(Line::Record(partition, arrival, rows));
            }
        }
        Some(())
    }

    fn time_ms(&self, text: &str) -> Option<i64> {
        Some(self.from_ms + text.parse::<i64>().ok()?)
    }

    fn row(&self, text: &str) -> Option<Row> {
        let values: Vec<&str> = text.split_whitespace().collect();
        let columns = &self.query.source().columns;
        let value = |(text, column): (&&str, &emostream::reaction::table::Column)| {
            Some(match column.data_type {
                _ if *text == "∅" => Value::Null,
                ColumnType::Text => Value::from(*text),
                ColumnType::Timestamp => Value::from(self.time_ms(text)? * MS),
                _ => serde_json::from_str(text).ok()?,
            })
        };
        (values.len() == columns.len()).then(|| values.iter().zip(columns).map(value).collect())?
    }

    /// The event time of a row, in milliseconds.
    fn event_ms(&self, row: &Row) -> i64 {
        let source: &Table = self.query.source();
        let (place, _) = source.column(&source.watermark.as_ref().unwrap().column).unwrap();
        row[place].as_i64().unwrap().div_euclid(MS)
    }

    fn append(&self, stage: &mut Stage, partition: usize, rows: &[Row], arrival_ms: i64) {
        stage.append(partition, &rows::batch(self.query.source(), rows), arrival_ms);
    }

    /// As written; with `kills`, looked at, killed and restarted at random places. What was read before a kill is read again
    /// before the next event comes, as it does where a recovery takes less time than an event.
    fn as_written(&self, kills: Option<&mut StdRng>) -> String {
        let mut stage = Stage::new(&self.query, self.partitions);
        let mut kills = kills;
        for line in &self.lines {
            match line {
                Line::Record(partition, arrival_ms, rows) => {
                    self.append(&mut stage, *partition, rows, *arrival_ms);
                    stage.read(*partition);
                }
                Line::Prove(partition, ms) => stage.prove_end(*partition, *ms),
            }
            stage.close();
            let Some(random) = kills.as_deref_mut() else { continue };
            if random.random_ratio(1, 4) {
                stage.spill();
            }
            if random.random_ratio(1, 3) {
                stage.glance();
            }
            if random.random_ratio(1, 3) {
                stage.restart();
                stage.interleaved();
            }
        }
        self.answer(stage)
    }

    /// Other records over other partitions, in another order within the delay, read in any order, looked at and killed
    /// anywhere.
    fn shuffled(&self, partitions: usize, random: &mut StdRng) -> String {
        let delay_ms = self.query.source().watermark.as_ref().unwrap().delay_ns / MS;
        let records = self.lines.iter().filter_map(|line| match line {
            Line::Record(_, _, rows) => Some(rows),
            Line::Prove(..) => None,
        });
        let mut rows: Vec<(i64, &Row)> = records.flatten().map(|row| (self.event_ms(row), row)).collect();
        rows.shuffle(random);
        rows.sort_by_cached_key(|(ms, _)| ms + random.random_range(0..=delay_ms));
        let mut stage = Stage::new(&self.query, partitions);
        let mut rest = rows.as_slice();
        while !rest.is_empty() {
            let (record, after) = rest.split_at(random.random_range(1..=rest.len().min(5)));
            let latest = record.iter().map(|(ms, _)| *ms).max().unwrap();
            let record: Vec<Row> = record.iter().map(|(_, row)| (*row).clone()).collect();
            self.append(&mut stage, random.random_range(0..partitions), &record, latest);
            rest = after;
        }
        let (mut kills, spills) = (random.random_range(0..4), random.random_bool(0.5));
        while (0..partitions).any(|partition| stage.unread(partition) > 0) {
            stage.read(random.random_range(0..partitions));
            if spills && random.random_ratio(1, 4) {
                stage.spill();
            }
            if spills && kills > 0 && random.random_ratio(1, 6) {
                kills -= 1;
                stage.die_ahead();
            }
            if random.random_bool(0.7) {
                stage.close();
            }
            if random.random_ratio(1, 3) {
                stage.glance();
            }
            if kills > 0 && random.random_ratio(1, 5) {
                kills -= 1;
                stage.restart();
            }
        }
        self.answer(stage)
    }

    /// All windows and the figures, as text.
    fn answer(&self, mut stage: Stage) -> String {
        stage.end(self.from_ms + AFTER_MS);
        let mut windows: Vec<_> = stage.emitted().iter().collect();
        windows.sort_by(|a, b| (a.window, &a.sink).cmp(&(b.window, &b.sink)));
        let mut text = String::new();
        for emitted in windows {
            let (start, end) = (format_rfc3339(emitted.window.start), format_rfc3339(emitted.window.end));
            writeln!(text, "{start} … {end} into {}", emitted.sink).unwrap();
            let mut lines: Vec<String> =
                emitted.rows.iter().map(|row| serde_json::to_string(row).unwrap()).collect();
            if !self.ordered {
                lines.sort();
            }
            lines.iter().for_each(|line| writeln!(text, "  {line}").unwrap());
        }
        let rows = stage.row_wise();
        if !rows.is_empty() {
            writeln!(text, "rows without a window").unwrap();
            rows::sorted(rows).iter().for_each(|line| writeln!(text, "  {line}").unwrap());
        }
        let figures = serde_json::to_string(&stage.checkpoint().unwrap().figures).unwrap();
        writeln!(text, "figures {figures}").unwrap();
        text
    }
}

fn folders() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/stream");
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(folders.len() >= 40, "only {} golden streams were found", folders.len());
    folders
}

#[test]
fn every_golden_stream_gives_its_windows_however_it_comes() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut wrong = String::new();
    for folder in folders() {
        let golden = Golden::load(&folder);
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let straight = golden.as_written(None);
        if update {
            std::fs::write(folder.join("expected.txt"), &straight).unwrap();
        }
        let expected = std::fs::read_to_string(folder.join("expected.txt")).unwrap_or_default();
        let mut compare = |how: String, found: String| {
            if found != expected {
                writeln!(wrong, "{name}, {how}\n--- expected\n{expected}--- found\n{found}").unwrap();
            }
        };
        compare("as written".into(), straight);
        for seed in 0..4 {
            let mut random = StdRng::seed_from_u64(seed);
            compare(format!("killed, seed {seed}"), golden.as_written(Some(&mut random)));
            for partitions in [1, 2, 3, 5].into_iter().filter(|_| !golden.fixed) {
                let found = golden.shuffled(partitions, &mut random);
                compare(format!("shuffled, seed {seed}, {partitions} partitions"), found);
            }
        }
        if wrong.len() > 30_000 {
            break;
        }
    }
    assert!(wrong.is_empty(), "UPDATE_GOLDEN=1 rewrites these, when they are right:\n{wrong}");
    assert!(Stage::spilled() > 1_000, "{} bytes were on disk at most", Stage::spilled());
}
