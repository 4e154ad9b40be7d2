//! Windows by the thousand: each told once whatever is cut off where, and a checkpoint that stays small.

use std::sync::Arc;

use super::tests::row;
use super::{Gather, Positions, TOLD_BYTES, Told};
use crate::log::result_row::ResultRow;

/// What the last commit says.
#[derive(Clone, Default)]
struct Checkpoint {
    resume: Positions,
    told: Vec<Told>,
}

impl Checkpoint {
    fn bytes(&self) -> usize {
        serde_json::to_string(&self.told).unwrap().len()
    }
}

/// A log, and a process that reads it and tells; it goes on from its checkpoint however often it dies.
struct Bench {
    log: Vec<Vec<ResultRow>>,
    gather: Gather,
    at: Vec<usize>,
    committed: Checkpoint,
    told: Vec<String>,
    largest: usize,
    most_names: usize,
}

fn table() -> Arc<str> {
    "t".into()
}

impl Bench {
    fn new(log: Vec<Vec<ResultRow>>, most_names: usize) -> Self {
        let at = vec![0; log.len()];
        let gather = Gather { most_told_bytes: most_names, ..Gather::default() };
        Self { log, gather, at, committed: Checkpoint::default(), told: Vec::new(), largest: 0, most_names }
    }

    fn die(&mut self) {
        let Checkpoint { resume, told } = self.committed.clone();
        self.at = (0..self.log.len())
            .map(|number| {
                let resumed = resume.get(&(table(), number as u32));
                resumed.map_or(0, |offset| usize::try_from(*offset).unwrap())
            })
            .collect();
        let text = serde_json::to_string(&told).unwrap();
        let told = serde_json::from_str(&text).unwrap();
        self.gather = Gather { most_told_bytes: self.most_names, ..Gather::restore(told) };
    }

    /// Reads one row of that partition; false at its end.
    fn read(&mut self, partition: usize) -> bool {
        let Some(row) = self.log[partition].get(self.at[partition]) else { return false };
        let (number, offset) = (partition as u32, self.at[partition] as i64);
        self.gather.add(&table(), number, offset, row.clone(), 0);
        self.gather.advance(&table(), number, offset + 1);
        self.at[partition] += 1;
        true
    }

    fn read_all(&mut self) {
        for partition in 0..self.log.len() {
            while self.read(partition) {}
        }
    }

    /// One commit; false when there is nothing to tell.
    fn commit(&mut self, messages: usize) -> bool {
        let taken = self.gather.take(messages, usize::MAX);
        if taken.is_empty() {
            return false;
        }
        let closed = taken.into_iter().filter(|(_, whole)| whole.is_final);
        self.told
            .extend(closed.map(|(key, whole)| format!("{} {} {}", key.end, key.room, whole.rows.concat())));
        let (resume, told) = self.gather.checkpoint();
        self.committed.resume.extend(resume);
        self.committed.told = told;
        self.largest = self.largest.max(self.committed.bytes());
        true
    }
}

#[test]
fn twenty_thousand_interleaved_rooms_are_told_once_from_small_checkpoints() {
    const ROOMS: usize = 20_000;
    let half = |json: &str| (0..ROOMS).map(|n| row(10, &format!("room{n:05}"), 2, json)).collect::<Vec<_>>();
    let mut bench = Bench::new(vec![half("a"), half("b")], TOLD_BYTES);
    bench.read_all();
    for commit in 1.. {
        if !bench.commit(1000) {
            break;
        }
        if commit % 5 == 0 {
            bench.die();
            bench.read_all();
        }
    }
    assert!(bench.largest < TOLD_BYTES + 10_000, "{} bytes", bench.largest);
    assert_eq!(bench.told.len(), ROOMS);
    bench.told.sort();
    bench.told.dedup();
    assert_eq!(bench.told.len(), ROOMS);
    assert!(bench.committed.told.is_empty());
    assert_eq!(bench.committed.resume.into_values().collect::<Vec<_>>(), [ROOMS as i64; 2]);
}

/// Windows of three partitions that overlap in every way, told early first, room for the names of two, cut off anywhere.
#[test]
fn with_no_room_for_names_too_each_window_is_told_exactly_once() {
    let mut log = vec![Vec::new(), Vec::new(), Vec::new()];
    let rooms: Vec<String> = (0..8).map(|n| format!("room{n}")).collect();
    for end in 0..10_i64 {
        for part in 0..4 {
            for (n, room) in rooms.iter().enumerate() {
                let (is_final, revision) = (part >= 2, part as u64 / 2);
                let partition = (n + part % 2 * (n % 3)) % 3;
                log[partition].push(ResultRow { is_final, revision, ..row(end, room, 2, "x") });
            }
        }
    }
    let expected: Vec<String> =
        (0..10).flat_map(|end| rooms.iter().map(move |room| format!("{end} {room} xx"))).collect();
    let mut at_once = 0;
    for seed in 0..300_u64 {
        let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % below
        };
        let mut bench = Bench::new(log.clone(), 250);
        for _ in 0..2_000 {
            match next(20) {
                0 => bench.die(),
                1..=4 => {
                    let (before, most) = (bench.told.len(), 1 + next(3) as usize);
                    bench.commit(most);
                    at_once += usize::from(bench.told.len() > before + most);
                }
                _ => drop(bench.read(next(3) as usize)),
            }
        }
        bench.read_all();
        while bench.commit(3) {}
        bench.told.sort();
        let mut expected = expected.clone();
        expected.sort();
        assert_eq!(bench.told, expected, "seed {seed}");
        assert!(bench.largest < 1_000, "{} bytes", bench.largest);
    }
    assert!(at_once > 300, "{at_once} times all at once");
}

#[test]
fn what_an_incomplete_window_holds_back_waits_and_then_comes() {
    let mut first = vec![row(0, "half", 2, "h")];
    first.extend((1..20_000).map(|end| row(end, "main", 1, "x")));
    let mut bench = Bench::new(vec![first, vec![row(0, "half", 2, "h")]], TOLD_BYTES);
    while bench.read(0) {}
    while bench.commit(1000) {}
    assert!(bench.told.len() < 5_000 && bench.largest < TOLD_BYTES + 10_000);
    assert!(bench.read(1));
    while bench.commit(1000) {}
    assert_eq!(bench.told.len(), 20_000);
    assert!(bench.committed.bytes() < 10);
}

#[test]
fn windows_that_the_newest_incomplete_one_does_not_hold_back_come() {
    let mut rows: Vec<ResultRow> = (0..20_000).map(|n| row(10, &format!("room{n}"), 1, "x")).collect();
    rows.push(row(12, "half", 2, "h"));
    let mut bench = Bench::new(vec![rows], TOLD_BYTES);
    bench.read_all();
    while bench.commit(1000) {}
    assert_eq!(bench.told.len(), 20_000);
    assert_eq!(bench.committed.resume[&(table(), 0)], 20_000);
}
