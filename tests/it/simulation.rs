//! The pure pipeline under faults, step by step by a seed, against a model that judges row by row.
//!
//! A kill at any step, a partition that is read slowly, records that are read again after a recovery, commits that are
//! refused or end in doubt, clocks that jump, partitions that are added, open windows that are told early. [`Stage`] checks after every step that rows
//! are conserved, that no window is emitted twice and that no watermark steps back. The model decides by itself how far
//! windows are closed and what becomes of every row; in the end the windows must hold exactly the rows that it counts.

use std::collections::BTreeMap;

use emostream::engine::closing::Closed;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::json;

use crate::support::stage::{MS, Prepared, RULES, Stage, compile};
use crate::support::{rows, seeds};

const TABLES: &str = include_str!("../../sql/tables.sql");
const DELAY_MS: i64 = 500;
/// After all that a clock can have jumped to.
const END_MS: i64 = 1_000_000_000;

/// How event time is divided, in milliseconds, as the model sees it.
#[derive(Clone, Copy, Debug)]
enum Windows {
    /// Every `slide`, a window of `width`; side by side when they are equal.
    Hop {
        slide: i64,
        width: i64,
    },
    Session {
        gap: i64,
    },
}

/// A query and what the model knows of it.
#[derive(Clone, Copy, Debug)]
struct Case {
    call: &'static str,
    windows: Windows,
    /// Windows are closed at multiples of this.
    step_ms: i64,
    /// The clock's longest step.
    pace_ms: i64,
}

const CASES: [Case; 4] = [
    Case {
        call: "tumble(INTERVAL '2 seconds')",
        windows: Windows::Hop { slide: 2_000, width: 2_000 },
        step_ms: 2_000,
        pace_ms: 120,
    },
    Case {
        call: "hop(INTERVAL '1 second', INTERVAL '3 seconds')",
        windows: Windows::Hop { slide: 1_000, width: 3_000 },
        step_ms: 1_000,
        pace_ms: 120,
    },
    Case {
        call: "session(INTERVAL '700 milliseconds')",
        windows: Windows::Session { gap: 700 },
        step_ms: 70,
        pace_ms: 120,
    },
    // Saved panes of ten seconds.
    Case {
        call: "tumble(INTERVAL '90 seconds')",
        windows: Windows::Hop { slide: 90_000, width: 90_000 },
        step_ms: 10_000,
        pace_ms: 3_000,
    },
];

impl Case {
    fn query(&self) -> Prepared {
        let shipped = include_str!("../../sql/emoji_counts.sql");
        assert!(shipped.contains("tumble(INTERVAL '2 seconds')"));
        let windowed = shipped.replace("tumble(INTERVAL '2 seconds')", self.call);
        let tables = match self.tells_early() {
            true => TABLES.replace("type = 'sink'", "type = 'sink', emit_every = '50 milliseconds'"),
            false => TABLES.to_owned(),
        };
        compile(&tables, &windowed.replace("FROM reactions", "FROM reactions WHERE emoji_type <> 'filtered'"))
    }

    fn tells_early(&self) -> bool {
        matches!(self.windows, Windows::Hop { .. })
    }

    fn is_late(&self, ms: i64, closed_to: i64) -> bool {
        match self.windows {
            Windows::Hop { slide, width } => ms.div_euclid(slide) * slide + width <= closed_to,
            Windows::Session { .. } => ms < closed_to,
        }
    }

    /// The windows of one group, by start and end, with how many rows they have. A row is in the windows that were open
    /// when it was read.
    fn counts(&self, mut rows: Vec<(i64, i64)>) -> BTreeMap<(i64, i64), i64> {
        let mut counts = BTreeMap::new();
        match self.windows {
            Windows::Hop { slide, width } => {
                for (ms, closed_to) in rows {
                    let last = ms.div_euclid(slide) * slide;
                    let starts = (0..width / slide).map(|back| last - back * slide);
                    for start in starts.filter(|start| start + width > closed_to) {
                        *counts.entry((start, start + width)).or_insert(0) += 1;
                    }
                }
            }
            Windows::Session { gap } => {
                rows.sort_unstable();
                for burst in rows.chunk_by(|(a, _), (b, _)| b - a < gap) {
                    let (first, last) = (burst[0].0, burst[burst.len() - 1].0);
                    counts.insert((first, last + gap), burst.len() as i64);
                }
            }
        }
        counts
    }
}

#[derive(Clone, Debug)]
struct Row {
    room: &'static str,
    emoji: &'static str,
    ms: i64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Filtered,
    Future,
    Late,
    Counted,
}

/// One partition as the model knows it.
#[derive(Clone, Default)]
struct Partition {
    /// By offset: the rows, and the time of the record.
    records: Vec<(Vec<Row>, i64)>,
    /// By offset, as far as the records are judged.
    fates: Vec<Vec<Fate>>,
    /// By offset: up to where windows were closed then.
    closed_to_ms: Vec<i64>,
    watermark_ms: Option<i64>,
    last_record_ms: Option<i64>,
}

/// What a commit makes durable.
#[derive(Clone, Default)]
struct Durable {
    closed_to_ms: Option<i64>,
    /// By partition: records accounted, and the watermark.
    partitions: Vec<(usize, Option<i64>)>,
}

/// Rows by room and emoji.
type Counts<'m> = BTreeMap<(&'m str, &'m str), i64>;

struct Model {
    case: Case,
    partitions: Vec<Partition>,
    /// How many of the partitions are known since the last recovery.
    known: usize,
    closed_to_ms: Option<i64>,
    durable: Durable,
}

impl Model {
    fn read(&mut self, partition: usize, offset: usize) {
        let closed_to = self.closed_to_ms.unwrap_or(i64::MIN);
        let case = self.case;
        let at = &mut self.partitions[partition];
        let (rows, timestamp_ms) = at.records[offset].clone();
        let future_from = timestamp_ms + RULES.future_tolerance_ms;
        let fate = |row: &Row| match row {
            row if row.emoji == "filtered" => Fate::Filtered,
            row if row.ms > future_from => Fate::Future,
            row if case.is_late(row.ms, closed_to) => Fate::Late,
            _ => Fate::Counted,
        };
        if offset == at.fates.len() {
            at.fates.push(rows.iter().map(fate).collect());
            at.closed_to_ms.push(closed_to);
        }
        let largest = rows.iter().map(|row| row.ms).filter(|ms| *ms <= future_from).max();
        at.watermark_ms = at.watermark_ms.max(largest.map(|ms| ms - DELAY_MS));
        at.last_record_ms = Some(timestamp_ms);
    }

    fn prove_end(&mut self, partition: usize, ms: i64) {
        let at = &mut self.partitions[partition];
        if at.last_record_ms.is_none_or(|last| ms >= last) {
            at.watermark_ms = at.watermark_ms.max(Some(ms - DELAY_MS));
        }
    }

    /// The last boundary that all partitions have passed, if there is one after what is closed.
    fn over(&self) -> Option<i64> {
        let slowest =
            self.partitions[..self.known].iter().map(|partition| partition.watermark_ms).min().flatten();
        let boundary = slowest.map(|ms| ms.div_euclid(self.case.step_ms) * self.case.step_ms);
        boundary.filter(|_| boundary > self.closed_to_ms)
    }

    fn hand_over(&mut self) -> Durable {
        self.closed_to_ms = self.over().or(self.closed_to_ms);
        let partitions = self.partitions[..self.known].iter();
        Durable {
            closed_to_ms: self.closed_to_ms,
            partitions: partitions.map(|partition| (partition.fates.len(), partition.watermark_ms)).collect(),
        }
    }

    fn restart(&mut self) {
        self.closed_to_ms = self.durable.closed_to_ms;
        self.known = self.partitions.len();
        for (index, partition) in self.partitions.iter_mut().enumerate() {
            let (seen, watermark_ms) =
                self.durable.partitions.get(index).copied().unwrap_or((0, self.durable.closed_to_ms));
            partition.fates.truncate(seen);
            partition.closed_to_ms.truncate(seen);
            partition.watermark_ms = watermark_ms;
            partition.last_record_ms = None;
        }
    }

    /// Every row that was judged, with what became of it, and up to where windows were closed then.
    fn judged(&self) -> impl Iterator<Item = (&Row, Fate, i64)> {
        self.partitions.iter().flat_map(|partition| {
            let judged = partition.fates.iter().zip(&partition.closed_to_ms);
            partition.records.iter().zip(judged).flat_map(|((rows, _), (fates, closed_to))| {
                rows.iter().zip(fates).map(|(row, fate)| (row, *fate, *closed_to))
            })
        })
    }

    /// The windows that hold a row that counts, with the rows of each group.
    fn windows(&self) -> BTreeMap<(i64, i64), Counts<'_>> {
        let mut groups: BTreeMap<(&str, &str), Vec<(i64, i64)>> = BTreeMap::new();
        for (row, _, closed_to) in self.judged().filter(|(_, fate, _)| *fate == Fate::Counted) {
            groups.entry((row.room, row.emoji)).or_default().push((row.ms, closed_to));
        }
        let mut windows: BTreeMap<_, Counts<'_>> = BTreeMap::new();
        for (group, rows) in groups {
            for (window, count) in self.case.counts(rows) {
                windows.entry(window).or_default().insert(group, count);
            }
        }
        windows
    }

    fn count(&self, fate: Fate) -> u64 {
        self.judged().filter(|(_, found, _)| *found == fate).count() as u64
    }
}

/// The pipeline and its model side by side.
struct World {
    query: Prepared,
    stage: Stage,
    model: Model,
    clock_ms: i64,
    /// Read ten times less often than the others.
    slow: usize,
    /// Refused cleanly, to be repeated as it is.
    refused: Option<(Closed, Durable)>,
    faults: usize,
    /// What was told of open windows at the last look: how many rows each had.
    told: BTreeMap<(i64, i64), i64>,
    looks: usize,
    /// No row is late or future, and no clock jumps.
    calm: bool,
}

impl World {
    fn new(case: Case, query: &Prepared, calm: bool, random: &mut StdRng) -> Self {
        let partitions = random.random_range(1..4);
        Self {
            query: query.clone(),
            stage: Stage::new(query, partitions),
            model: Model {
                case,
                partitions: vec![Partition::default(); partitions],
                known: partitions,
                closed_to_ms: None,
                durable: Durable::default(),
            },
            clock_ms: random.random_range(-10_000..100_000),
            slow: random.random_range(0..partitions),
            refused: None,
            faults: 0,
            told: BTreeMap::new(),
            looks: 0,
            calm,
        }
    }

    fn step(&mut self, random: &mut StdRng) {
        self.clock_ms += random.random_range(0..self.model.case.pace_ms);
        let partitions = self.stage.partitions();
        let partition = random.random_range(0..partitions);
        match random.random_range(0..100) {
            0..30 => self.append(partition, random),
            30..70 if partition != self.slow || random.random_ratio(1, 10) => self.read(partition),
            70..80 => {
                let jump = if self.calm { 0 } else { *[0, 0, 0, 0, -10_000, 3_000].choose(random).unwrap() };
                self.prove_end(partition, self.clock_ms + jump);
            }
            80..97 => self.close(random),
            97 => self.restart(),
            98 if partitions < 5 => {
                self.stage.add_partition();
                self.model.partitions.push(Partition::default());
                // What is written to a partition before it is found may be late then.
                if self.calm {
                    self.restart();
                }
            }
            _ => {}
        }
        assert_eq!(self.stage.closed_to(), self.model.closed_to_ms.map(|ms| ms * MS), "closed up to");
    }

    fn append(&mut self, partition: usize, random: &mut StdRng) {
        let calm = self.calm;
        let row = |random: &mut StdRng| {
            // Mostly in time, some hours or moments too late, some too early.
            let ahead = match random.random_range(0..40) {
                _ if calm => random.random_range(-400..1),
                0 => -3_600_000,
                1 => random.random_range(-6_000..-400),
                2 => random.random_range(4_900..5_200),
                3 => 3_600_000,
                _ => random.random_range(-400..1),
            };
            Row {
                room: ["a", "b"].choose(random).unwrap(),
                emoji: ["x", "y", "z", "filtered"].choose(random).unwrap(),
                ms: self.clock_ms + ahead,
            }
        };
        let rows: Vec<Row> = (0..random.random_range(1..12)).map(|_| row(random)).collect();
        let values: Vec<rows::Row> = rows
            .iter()
            .map(|row| vec![json!("user"), json!(row.emoji), json!(row.room), json!(row.ms * MS)])
            .collect();
        self.stage.append(partition, &rows::batch(self.query.source(), &values), self.clock_ms);
        self.model.partitions[partition].records.push((rows, self.clock_ms));
    }

    fn read(&mut self, partition: usize) {
        let offset = self.stage.next(partition);
        if self.stage.read(partition) {
            self.model.read(partition, offset);
        }
    }

    fn prove_end(&mut self, partition: usize, ms: i64) {
        if partition < self.model.known && self.stage.unread(partition) == 0 {
            self.stage.prove_end(partition, ms);
            self.model.prove_end(partition, ms);
        }
    }

    /// Hands over what is over and commits it, or what was refused before; a commit may fail in any way.
    fn close(&mut self, random: &mut StdRng) {
        let (closed, durable) = match self.refused.take() {
            Some(again) => again,
            None => {
                let is_over = self.stage.is_rebuilt() && self.model.over().is_some();
                let due = random.random_ratio(1, 5);
                let Some(mut closed) = self.stage.hand_over(due) else {
                    assert!(!is_over, "a window is over and not closed");
                    return;
                };
                assert!(is_over || due, "nothing is over and something was closed");
                let durable = self.model.hand_over();
                if self.model.case.tells_early() && random.random_ratio(1, 2) {
                    self.look(&mut closed);
                }
                (closed, durable)
            }
        };
        match random.random_range(0..10) {
            // Refused: nothing of it is in the log.
            0 => self.refused = Some((closed, durable)),
            // Killed between hand-over and commit, or in doubt and not in the log.
            1 => self.restart(),
            // In doubt, and in the log.
            2 => {
                self.commit(&closed, durable);
                self.restart();
            }
            _ => self.commit(&closed, durable),
        }
    }

    /// Open windows are told as they stand: those that end first, and of these the ones with rows that were not told.
    fn look(&mut self, closed: &mut Closed) {
        let closed_to = self.model.closed_to_ms.unwrap_or(i64::MIN);
        let open = self.model.windows().into_iter().filter(|((_, end), _)| *end > closed_to);
        let open: Vec<_> = open.take(16).collect();
        let mut expected = BTreeMap::new();
        let mut told = BTreeMap::new();
        for (window, groups) in open {
            let rows = groups.values().sum::<i64>();
            if self.told.get(&window) != Some(&rows) {
                for ((room, emoji), count) in groups {
                    expected.insert((window, room.to_owned(), emoji.to_owned()), count);
                }
            }
            told.insert(window, rows);
        }
        self.told = told;
        self.looks += usize::from(!expected.is_empty());
        let mut found = BTreeMap::new();
        for early in self.stage.look(closed) {
            for row in &early.rows {
                let text = |name: &str| row[name].as_str().unwrap().to_owned();
                let window = (early.window.start / MS, early.window.end / MS);
                let group = (window, text("room"), text("emoji_type"));
                assert_eq!(found.insert(group, row["count"].as_i64().unwrap()), None, "{row:?} came twice");
            }
        }
        assert_eq!(found, expected, "told early");
    }

    fn commit(&mut self, closed: &Closed, durable: Durable) {
        self.stage.commit(closed);
        self.model.durable = durable;
    }

    fn restart(&mut self) {
        self.faults += 1;
        self.refused = None;
        self.told.clear();
        self.stage.restart();
        self.model.restart();
    }

    /// Everything is read, proved complete and committed.
    fn drain(&mut self) {
        if let Some((closed, durable)) = self.refused.take() {
            self.commit(&closed, durable);
        }
        self.restart();
        for partition in 0..self.stage.partitions() {
            while self.stage.unread(partition) > 0 {
                self.read(partition);
            }
        }
        for partition in 0..self.stage.partitions() {
            self.prove_end(partition, END_MS);
        }
        if let Some(closed) = self.stage.hand_over(true) {
            let durable = self.model.hand_over();
            self.commit(&closed, durable);
        }
    }

    fn agrees(&self) {
        let figures = self.stage.checkpoint().unwrap().figures;
        let found =
            (figures.filtered, figures.future, figures.late, figures.counted, figures.bad, figures.open);
        let count = |fate| self.model.count(fate);
        let expected =
            (count(Fate::Filtered), count(Fate::Future), count(Fate::Late), count(Fate::Counted), 0, 0);
        assert_eq!(found, expected, "filtered, future, late, counted, bad, open");
        let mut expected = BTreeMap::new();
        for ((start, end), groups) in self.model.windows() {
            for ((room, emoji), count) in groups {
                expected.insert((start * MS, end * MS, room.to_owned(), emoji.to_owned()), count);
            }
        }
        let mut found = BTreeMap::new();
        for emitted in self.stage.emitted() {
            for row in &emitted.rows {
                let text = |name: &str| row[name].as_str().unwrap().to_owned();
                let key = (emitted.window.start, emitted.window.end, text("room"), text("emoji_type"));
                assert_eq!(found.insert(key, row["count"].as_i64().unwrap()), None, "{row:?} came twice");
            }
        }
        assert_eq!(found, expected);
    }
}

fn faults_over(case: Case) {
    let query = case.query();
    let (mut late, mut future, mut counted, mut faults, mut windows, mut looks) = (0, 0, 0, 0, 0, 0);
    seeds::each("EMOSTREAM_SIMULATION_CASES", 150, |_, mut random| {
        let mut world = World::new(case, &query, false, &mut random);
        for _ in 0..random.random_range(50..600) {
            world.step(&mut random);
        }
        world.drain();
        world.agrees();
        late += world.model.count(Fate::Late);
        future += world.model.count(Fate::Future);
        counted += world.model.count(Fate::Counted);
        windows += world.stage.emitted().len();
        faults += world.faults;
        looks += world.looks;
    });
    assert!(
        counted > late && late > 0 && future > 0 && faults > 0 && windows > 0,
        "{counted} counted, {late} late, {future} future, {faults} faults, {windows} windows"
    );
    assert!(looks > 0 || !case.tells_early(), "nothing was told early");
}

fn replay_over(case: Case) {
    let query = case.query();
    let mut windows = 0;
    seeds::each("EMOSTREAM_SIMULATION_CASES", 50, |_, mut random| {
        let mut world = World::new(case, &query, true, &mut random);
        for _ in 0..random.random_range(20..200) {
            world.step(&mut random);
        }
        world.drain();
        let live = (world.stage.results(), world.stage.checkpoint().unwrap().figures);
        let mut replay = Stage::with_log_of(&query, world.stage);
        replay.interleaved();
        replay.end(END_MS);
        let again = (replay.results(), replay.checkpoint().unwrap().figures);
        // Which rows are late depends on the order of reading; without any, everything is the same.
        assert_eq!(live.1.late, 0);
        assert_eq!(again, live);
        windows += replay.emitted().len();
    });
    assert!(windows > 0, "nothing was emitted");
}

#[test]
fn whatever_fails_tumbling_windows_hold_exactly_the_rows_that_were_on_time() {
    faults_over(CASES[0]);
}

#[test]
fn whatever_fails_hopping_windows_hold_exactly_the_rows_that_were_on_time() {
    faults_over(CASES[1]);
}

#[test]
fn whatever_fails_sessions_hold_exactly_the_rows_that_were_on_time() {
    faults_over(CASES[2]);
}

#[test]
fn whatever_fails_long_windows_hold_exactly_the_rows_that_were_on_time() {
    faults_over(CASES[3]);
}

#[test]
fn a_replay_from_the_start_gives_what_was_emitted_live() {
    CASES.into_iter().for_each(replay_over);
}
