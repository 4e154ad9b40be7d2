//! A query whose sessions are open when it is changed: the same sessions go on whole, and where rows make other sessions
//! those that end later are whole too.

use std::collections::BTreeMap;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::{Map, Value, json};

use crate::support::stage::{MS, Prepared, Stage, compile};
use crate::support::{rows, seeds};

const TABLES: &str = "
CREATE TABLE reactions (room TEXT NOT NULL, tag TEXT NOT NULL, at TIMESTAMP NOT NULL,
  WATERMARK FOR at AS (at - INTERVAL '500 milliseconds')
) WITH (connector = 'kafka', type = 'source');
CREATE TABLE visits (window_start TIMESTAMP, window_end TIMESTAMP, room TEXT, tag TEXT, n BIGINT)
WITH (connector = 'kafka', type = 'sink');";
const PARTITIONS: usize = 2;
/// As many gaps are read back where rows make other sessions.
const GAPS_BACK: i64 = 10;

#[derive(Clone, Copy)]
struct Version {
    gap_ms: i64,
    by_tag: bool,
    aggregate: &'static str,
}

const BEFORE: Version = Version { gap_ms: 700, by_tag: true, aggregate: "count(*)" };

impl Version {
    fn query(self) -> Prepared {
        let (tag, key) = if self.by_tag { ("tag", ", tag") } else { ("'any' AS tag", "") };
        let Self { gap_ms, aggregate, .. } = self;
        let text = format!(
            "INSERT INTO visits SELECT window.start, window.end, room, tag, n FROM (
               SELECT session(INTERVAL '{gap_ms} milliseconds') AS window, room, {tag}, {aggregate} AS n
               FROM reactions GROUP BY window, room{key})"
        );
        compile(TABLES, &text)
    }

    /// First row, end, room, tag and count of every session of these rows.
    fn sessions(self, rows: &[Row]) -> Vec<Session> {
        let mut groups: BTreeMap<(&str, &str), Vec<i64>> = BTreeMap::new();
        for row in rows {
            groups.entry((row.room, if self.by_tag { row.tag } else { "any" })).or_default().push(row.ms);
        }
        let mut sessions = Vec::new();
        for ((room, tag), mut times) in groups {
            times.sort_unstable();
            for burst in times.chunk_by(|a, b| b - a < self.gap_ms) {
                let (first, last) = (burst[0], burst[burst.len() - 1]);
                let session =
                    (first, last + self.gap_ms, room.to_owned(), tag.to_owned(), burst.len() as i64);
                sessions.push(session);
            }
        }
        sessions.sort();
        sessions
    }
}

type Session = (i64, i64, String, String, i64);

#[derive(Clone)]
struct Row {
    room: &'static str,
    tag: &'static str,
    ms: i64,
}

/// Rows that come in the order of time, or almost.
struct Crowd {
    clock_ms: i64,
    all: Vec<Row>,
}

impl Crowd {
    fn send(&mut self, stage: &mut Stage, records: usize, random: &mut StdRng) {
        for _ in 0..records {
            self.clock_ms += random.random_range(0..400);
            let row = |random: &mut StdRng| Row {
                room: ["a", "b", "c"].choose(random).unwrap(),
                tag: ["x", "y"].choose(random).unwrap(),
                ms: self.clock_ms - random.random_range(0..400),
            };
            let rows: Vec<Row> = (0..random.random_range(1..4)).map(|_| row(random)).collect();
            let values: Vec<rows::Row> =
                rows.iter().map(|row| vec![json!(row.room), json!(row.tag), json!(row.ms * MS)]).collect();
            let batch = rows::batch(stage.query().source(), &values);
            let partition = random.random_range(0..PARTITIONS);
            stage.append(partition, &batch, self.clock_ms);
            self.all.extend(rows);
            while stage.read(partition) {}
            stage.close();
        }
    }
}

fn emitted(stage: &Stage) -> Vec<Session> {
    let session = |row: &Map<String, Value>| {
        let ms =
            |name: &str| emostream::reaction::time::parse_rfc3339(row[name].as_str().unwrap()).unwrap() / MS;
        let text = |name: &str| row[name].as_str().unwrap().to_owned();
        (ms("window_start"), ms("window_end"), text("room"), text("tag"), row["n"].as_i64().unwrap())
    };
    let mut sessions: Vec<Session> = stage.rows().map(session).collect();
    sessions.sort();
    sessions
}

/// What the versions before and after a change emit, the rows, and up to where the one before did.
struct Change {
    old: Vec<Session>,
    new: Vec<Session>,
    all: Vec<Row>,
    boundary_ms: i64,
}

fn change_to(after: Version, random: &mut StdRng) -> Change {
    let mut stage = Stage::new(&BEFORE.query(), PARTITIONS);
    let mut crowd = Crowd { clock_ms: 100_000, all: Vec::new() };
    let records = random.random_range(40..80);
    crowd.send(&mut stage, records, random);
    let last = stage.hand_over(true).unwrap();
    stage.commit(&last);
    let (old, boundary_ms) = (emitted(&stage), stage.closed_to().unwrap() / MS);
    stage.go_on_as(&after.query());
    for _ in 0..random.random_range(1..4) {
        stage.interleaved();
        let records = random.random_range(0..40);
        crowd.send(&mut stage, records, random);
        stage.restart();
    }
    stage.interleaved();
    stage.end(crowd.clock_ms + 100_000);
    let figures = stage.checkpoint().unwrap().figures;
    let new = emitted(&stage);
    assert_eq!(figures.open, 0);
    assert_eq!(new.iter().map(|session| session.4 as u64).sum::<u64>(), figures.counted, "{figures:?}");
    Change { old, new, all: crowd.all, boundary_ms }
}

#[test]
fn sessions_of_which_something_else_is_kept_are_emitted_once_and_whole() {
    let mut open = 0;
    seeds::each("EMOSTREAM_SIMULATION_CASES", 60, |_, mut random| {
        let after = Version { aggregate: "count(room)", ..BEFORE };
        let Change { old, new, all, boundary_ms } = change_to(after, &mut random);
        let expected = BEFORE.sessions(&all);
        let is_old = |session: &&Session| session.1 <= boundary_ms;
        assert_eq!(old, expected.iter().filter(is_old).cloned().collect::<Vec<_>>(), "up to {boundary_ms}");
        let later: Vec<Session> = expected.iter().filter(|session| !is_old(session)).cloned().collect();
        assert_eq!(new, later, "after {boundary_ms}");
        open += later.iter().filter(|session| session.0 < boundary_ms).count();
    });
    assert!(open > 50, "only {open} sessions were open at a change");
}

#[test]
fn other_sessions_that_end_later_are_whole_and_none_is_told_in_part() {
    let versions = [
        Version { gap_ms: 300, ..BEFORE },
        Version { gap_ms: 1_500, ..BEFORE },
        Version { by_tag: false, ..BEFORE },
    ];
    let mut left_out = 0;
    seeds::each("EMOSTREAM_SIMULATION_CASES", 60, |seed, mut random| {
        let after = versions[seed as usize % versions.len()];
        let Change { new, all, boundary_ms, .. } = change_to(after, &mut random);
        let open = BEFORE
            .sessions(&all)
            .into_iter()
            .filter(|(first, end, ..)| *end > boundary_ms && *first < boundary_ms);
        let from_ms = open.map(|session| session.0).min().unwrap_or(boundary_ms);
        let whole_ms = from_ms - (GAPS_BACK - 1) * after.gap_ms;
        let (expected, rest): (Vec<_>, Vec<_>) = after
            .sessions(&all)
            .into_iter()
            .filter(|(_, end, ..)| *end > boundary_ms)
            .partition(|(first, ..)| *first >= whole_ms);
        assert_eq!(new, expected, "from {from_ms}, whole from {whole_ms}");
        left_out += rest.len();
    });
    assert!(left_out > 0, "no session was too long to be read back");
}
