//! The publisher's core: rows from several partitions become whole windows, each told once.
//!
//! A (table, room, window, revision) is whole when it holds as many rows as its records announce; the transaction
//! that wrote one of them guarantees that the others come. The highest revision replaces the whole window, an early
//! one never replaces a final one, and after the final one nothing of that window is told any more.
//!
//! To go on after a crash, a partition is read again from `resume`: the first record of any window that is not yet
//! told. What was told already and has records beyond `resume` is remembered with the checkpoint ([`Told`]), so that
//! reading those records again tells nothing twice. Those names are bounded in bytes, because a checkpoint is one record:
//! when they are too many, all windows that nothing incomplete holds back are told at once, and `resume` passes them.
//!
//! Pure: times and records are arguments.

#[cfg(test)]
mod many_tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::log::result_row::ResultRow;

/// How long after its first row an incomplete window may lack rows, although every partition was read to its end.
pub const GIVE_UP_AFTER_MS: i64 = 30_000;
/// Windows told before `resume` that are remembered all the same (in memory only): a partition that lags behind
/// may still bring their early results.
const REMEMBERED: usize = 10_000;
/// Bytes of JSON that name windows told beyond `resume` in a checkpoint; about, and then no more are named.
const TOLD_BYTES: usize = 256 << 10;

/// Which window of which room. Ordered as windows are told: by end, table, room.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WindowKey {
    /// The first instant after the window, nanoseconds since the Unix epoch.
    pub end: i64,
    /// The sink.
    pub table: Arc<str>,
    /// The room.
    pub room: Box<str>,
    /// The first instant of the window, nanoseconds since the Unix epoch.
    pub start: i64,
}

/// A whole window, ready to be told.
#[derive(Clone, Debug, PartialEq)]
pub struct Whole {
    /// False for an early result.
    pub is_final: bool,
    /// Which version of the window this is.
    pub revision: u64,
    /// JSON objects, in the order of their partitions and offsets.
    pub rows: Vec<Box<str>>,
    offsets: Offsets,
}

/// A window that was told: enough to recognise its records when they are read again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// Which window.
    #[serde(flatten)]
    pub key: WindowKey,
    /// Whether its last word is told.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// The highest revision told.
    pub revision: u64,
    /// The last offset of its records, by partition.
    pub last: BTreeMap<u32, i64>,
}

/// The first and last offset of a window's records, by partition.
#[derive(Clone, Debug, Default, PartialEq)]
struct Offsets(BTreeMap<u32, (i64, i64)>);

impl Offsets {
    fn add(&mut self, partition: u32, first: i64, last: i64) {
        let range = self.0.entry(partition).or_insert((first, last));
        *range = (range.0.min(first), range.1.max(last));
    }

    fn add_all(&mut self, other: &Self) {
        for (&partition, &(first, last)) in &other.0 {
            self.add(partition, first, last);
        }
    }
}

/// Rows of one revision that is not whole yet.
#[derive(Debug, Default)]
struct Part {
    expected: u64,
    /// By partition, offset, and place in the record.
    rows: BTreeMap<(u32, i64, u32), Box<str>>,
}

/// A window that is not whole yet.
#[derive(Debug)]
struct Waiting {
    first_seen_ms: i64,
    /// By whether it is final, and revision.
    revisions: BTreeMap<(bool, u64), Part>,
    offsets: Offsets,
}

/// One incomplete window that was given up.
#[derive(Clone, Debug, PartialEq)]
pub struct GivenUp {
    /// Which window.
    pub key: WindowKey,
    /// How many rows had come.
    pub rows: u64,
    /// How many were announced.
    pub expected: u64,
}

/// Offset by table and partition.
pub type Positions = BTreeMap<(Arc<str>, u32), i64>;

/// All windows between reading and telling.
#[derive(Debug)]
pub struct Gather {
    waiting: BTreeMap<WindowKey, Waiting>,
    ready: BTreeMap<WindowKey, Whole>,
    told_beyond: BTreeMap<WindowKey, Told>,
    told_before: BTreeMap<WindowKey, Told>,
    /// Bytes of what a checkpoint says of those beyond, about, and how many they may be.
    told_bytes: usize,
    most_told_bytes: usize,
    next: Positions,
    bytes: usize,
}

impl Default for Gather {
    fn default() -> Self {
        Self {
            waiting: BTreeMap::new(),
            ready: BTreeMap::new(),
            told_beyond: BTreeMap::new(),
            told_before: BTreeMap::new(),
            told_bytes: 0,
            most_told_bytes: TOLD_BYTES,
            next: Positions::new(),
            bytes: 0,
        }
    }
}

impl Gather {
    /// Goes on after a crash: `told` is what the checkpoint names.
    pub fn restore(told: Vec<Told>) -> Self {
        let told_bytes = told.iter().map(Told::bytes).sum();
        let told_beyond = told.into_iter().map(|told| (told.key.clone(), told)).collect();
        Self { told_beyond, told_bytes, ..Self::default() }
    }

    /// Takes one row, read from that partition at that offset.
    pub fn add(&mut self, table: &Arc<str>, partition: u32, offset: i64, row: ResultRow, now_ms: i64) {
        let ResultRow { room, window, is_final, revision, window_rows, nth, json } = row;
        let key = WindowKey { end: window.end, table: Arc::clone(table), room, start: window.start };
        if self.is_told(&key, partition, offset, (is_final, revision)) {
            return;
        }
        if let Some(whole) = self.ready.get_mut(&key)
            && (whole.is_final || (false, whole.revision) >= (is_final, revision))
        {
            whole.offsets.add(partition, offset, offset);
            return;
        }
        let waiting = self.waiting.entry(key.clone()).or_insert_with(|| Waiting {
            first_seen_ms: now_ms,
            revisions: BTreeMap::new(),
            offsets: Offsets::default(),
        });
        waiting.offsets.add(partition, offset, offset);
        let part = waiting.revisions.entry((is_final, revision)).or_default();
        part.expected = window_rows;
        self.bytes += json.len();
        if let Some(again) = part.rows.insert((partition, offset, nth), json) {
            self.bytes -= again.len();
        }
        if part.rows.len() as u64 >= part.expected {
            self.complete(key, (is_final, revision));
        }
    }

    /// Everything below `next` of that partition was added.
    pub fn advance(&mut self, table: &Arc<str>, partition: u32, next: i64) {
        self.next.insert((Arc::clone(table), partition), next);
    }

    /// Takes whole windows to tell, in their order: at most `messages`, and about `bytes` of rows. They count as
    /// told; when the telling fails with an unknown outcome, everything starts anew from the checkpoint.
    ///
    /// When a checkpoint has no room for the names of more, it takes all at once that nothing incomplete holds back, however
    /// many they are (as many rows as are gathered): behind them `resume` needs no names. Others wait.
    pub fn take(&mut self, messages: usize, bytes: usize) -> Vec<(WindowKey, Whole)> {
        let is_full = self.told_bytes >= self.most_told_bytes;
        let keys: Vec<WindowKey> = if is_full {
            let tables: BTreeSet<Arc<str>> = self.ready.keys().map(|key| Arc::clone(&key.table)).collect();
            let mut keys: Vec<_> = tables.iter().flat_map(|table| self.before_cut(table)).collect();
            keys.sort();
            keys
        } else {
            self.ready.keys().take(messages).cloned().collect()
        };
        let (mut taken, mut taken_bytes) = (Vec::with_capacity(keys.len()), 0);
        for key in keys {
            if !is_full && (taken_bytes >= bytes || self.told_bytes >= self.most_told_bytes) {
                break;
            }
            if let Some(whole) = self.ready.remove(&key) {
                taken_bytes += size(&whole.rows);
                self.remember(&key, &whole);
                taken.push((key, whole));
            }
        }
        self.bytes -= taken_bytes;
        taken
    }

    /// The whole windows of a table that lie before the highest cut (an offset of each partition) which no window lies across
    /// and which nothing incomplete lies before.
    fn before_cut(&self, table: &Arc<str>) -> Vec<WindowKey> {
        let of_table = self.next.iter().filter(|((name, _), _)| name == table);
        let mut cut: BTreeMap<u32, i64> = of_table.map(|((_, number), &next)| (*number, next)).collect();
        for (_, waiting) in self.waiting.iter().filter(|(key, _)| key.table == *table) {
            lower(&mut cut, &waiting.offsets);
        }
        let mut before: Vec<_> = self.ready.iter().filter(|(key, _)| key.table == *table).collect();
        loop {
            let known = before.len();
            before.retain(|(_, Whole { offsets, .. })| {
                let reaches = |(partition, (_, last)): (&u32, &(i64, i64))| {
                    cut.get(partition).is_none_or(|cut| last >= cut)
                };
                let is_across = offsets.0.iter().any(reaches);
                if is_across {
                    // It goes to the far side, and perhaps takes others with it.
                    lower(&mut cut, offsets);
                }
                !is_across
            });
            if before.len() == known {
                return before.into_iter().map(|(key, _)| key.clone()).collect();
            }
        }
    }

    /// From where each partition must be read again, and what was told beyond that. A partition that is not named
    /// was not read since the start, and stays where it was.
    pub fn checkpoint(&mut self) -> (Positions, Vec<Told>) {
        let mut resume = self.next.clone();
        let untold = self.waiting.iter().map(|(key, waiting)| (key, &waiting.offsets));
        let untold = untold.chain(self.ready.iter().map(|(key, whole)| (key, &whole.offsets)));
        for (key, offsets) in untold {
            for (&partition, &(first, _)) in &offsets.0 {
                let position = resume.entry((Arc::clone(&key.table), partition)).or_insert(first);
                *position = first.min(*position);
            }
        }
        let is_beyond = |told: &Told| {
            told.last.iter().any(|(&partition, &last)| {
                resume.get(&(Arc::clone(&told.key.table), partition)).is_none_or(|&resume| last >= resume)
            })
        };
        let passed: Vec<_> = self.told_beyond.values().filter(|told| !is_beyond(told)).cloned().collect();
        for told in passed {
            self.told_beyond.remove(&told.key);
            self.told_before.insert(told.key.clone(), told);
        }
        while self.told_before.len() > REMEMBERED {
            self.told_before.pop_first();
        }
        self.told_bytes = self.told_beyond.values().map(Told::bytes).sum();
        (resume, self.told_beyond.values().cloned().collect())
    }

    /// Removes the incomplete windows that can no longer become whole: `complete_until` says up to which wall-clock
    /// time (milliseconds) every partition of a table was read completely.
    pub fn give_up(&mut self, complete_until: impl Fn(&str) -> Option<i64>) -> Vec<GivenUp> {
        let lost = self.waiting.iter().filter(|(key, waiting)| {
            complete_until(&key.table).is_some_and(|until| until > waiting.first_seen_ms + GIVE_UP_AFTER_MS)
        });
        let lost: Vec<WindowKey> = lost.map(|(key, _)| key.clone()).collect();
        lost.into_iter().filter_map(|key| self.abandon(key)).collect()
    }

    /// Bytes of rows held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether rows of some window are still missing.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn abandon(&mut self, key: WindowKey) -> Option<GivenUp> {
        let waiting = self.waiting.remove(&key)?;
        self.bytes -= waiting.revisions.values().map(Part::bytes).sum::<usize>();
        let (_, part) = waiting.revisions.last_key_value()?;
        Some(GivenUp { key, rows: part.rows.len() as u64, expected: part.expected })
    }

    fn is_told(&mut self, key: &WindowKey, partition: u32, offset: i64, word: (bool, u64)) -> bool {
        let told = match self.told_beyond.get_mut(key) {
            Some(told) => Some(told),
            None => self.told_before.get_mut(key),
        };
        let Some(told) = told.filter(|told| told.is_final || (told.is_final, told.revision) >= word) else {
            return false;
        };
        let last = told.last.entry(partition).or_insert(offset);
        *last = offset.max(*last);
        true
    }

    fn complete(&mut self, key: WindowKey, (is_final, revision): (bool, u64)) {
        let Some(mut waiting) = self.waiting.remove(&key) else { return };
        let later = waiting.revisions.split_off(&(is_final, revision + 1));
        let Some(part) = waiting.revisions.remove(&(is_final, revision)) else { return };
        self.bytes -= waiting.revisions.values().map(Part::bytes).sum::<usize>();
        let mut offsets = waiting.offsets.clone();
        if let Some(earlier) = self.ready.remove(&key) {
            self.bytes -= size(&earlier.rows);
            offsets.add_all(&earlier.offsets);
        }
        let rows = part.rows.into_values().collect();
        self.ready.insert(key.clone(), Whole { is_final, revision, rows, offsets });
        if is_final {
            self.bytes -= later.values().map(Part::bytes).sum::<usize>();
        } else if !later.is_empty() {
            self.waiting.insert(key, Waiting { revisions: later, ..waiting });
        }
    }

    fn remember(&mut self, key: &WindowKey, whole: &Whole) {
        let before = self.told_beyond.remove(key).or_else(|| self.told_before.remove(key));
        let mut last = before.map(|told| told.last).unwrap_or_default();
        for (&partition, &(_, offset)) in &whole.offsets.0 {
            let known = last.entry(partition).or_insert(offset);
            *known = offset.max(*known);
        }
        let told = Told { key: key.clone(), is_final: whole.is_final, revision: whole.revision, last };
        self.told_bytes += told.bytes();
        self.told_beyond.insert(key.clone(), told);
    }
}

impl Told {
    /// About what it takes in a checkpoint.
    fn bytes(&self) -> usize {
        serde_json::to_string(self).map_or(0, |text| text.len() + 1)
    }
}

impl Part {
    fn bytes(&self) -> usize {
        self.rows.values().map(|row| row.len()).sum()
    }
}

/// Lowers a cut until a window with these offsets has nothing before it.
fn lower(cut: &mut BTreeMap<u32, i64>, offsets: &Offsets) {
    for (partition, &(first, _)) in &offsets.0 {
        if let Some(cut) = cut.get_mut(partition) {
            *cut = first.min(*cut);
        }
    }
}

fn size(rows: &[Box<str>]) -> usize {
    rows.iter().map(|row| row.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reaction::time::Window;

    pub(super) fn row(end: i64, room: &str, rows: u64, json: &str) -> ResultRow {
        ResultRow {
            room: room.into(),
            window: Window { start: end - 2, end },
            is_final: true,
            revision: 0,
            window_rows: rows,
            nth: 0,
            json: json.into(),
        }
    }

    fn early(end: i64, revision: u64, json: &str) -> ResultRow {
        ResultRow { is_final: false, revision, ..row(end, "main", 1, json) }
    }

    struct Bench {
        gather: Gather,
        table: Arc<str>,
    }

    impl Bench {
        fn new(told: Vec<Told>) -> Self {
            Self { gather: Gather::restore(told), table: "t".into() }
        }

        fn add(&mut self, partition: u32, offset: i64, row: ResultRow) {
            self.gather.add(&self.table, partition, offset, row, 0);
            self.gather.advance(&self.table, partition, offset + 1);
        }

        fn told(&mut self) -> Vec<String> {
            let taken = self.gather.take(usize::MAX, usize::MAX);
            taken.into_iter().map(|(k, w)| format!("{} {} {}", k.end, k.room, w.rows.concat())).collect()
        }

        fn resume(&mut self, partition: u32) -> i64 {
            self.gather.checkpoint().0[&(Arc::clone(&self.table), partition)]
        }
    }

    #[test]
    fn a_window_is_told_when_all_partitions_brought_their_rows() {
        let mut bench = Bench::new(Vec::new());
        bench.add(1, 7, row(10, "main", 3, "c"));
        bench.add(0, 3, row(10, "main", 3, "a"));
        assert_eq!(bench.told(), Vec::<String>::new());
        bench.add(0, 4, row(10, "main", 3, "b"));
        assert_eq!(bench.told(), ["10 main abc"]);
        assert_eq!(bench.told(), Vec::<String>::new());
        assert_eq!(bench.gather.bytes(), 0);
    }

    #[test]
    fn windows_come_by_end_then_room() {
        let mut bench = Bench::new(Vec::new());
        for (offset, (end, room)) in [(12, "a"), (10, "b"), (10, "a")].into_iter().enumerate() {
            bench.add(0, offset as i64, row(end, room, 1, ""));
        }
        assert_eq!(bench.told(), ["10 a ", "10 b ", "12 a "]);
    }

    #[test]
    fn the_highest_revision_replaces_and_nothing_follows_the_final_one() {
        let mut bench = Bench::new(Vec::new());
        bench.add(0, 0, early(10, 0, "early0"));
        assert_eq!(bench.told(), ["10 main early0"]);
        bench.add(0, 1, early(10, 0, "again"));
        assert_eq!(bench.told(), Vec::<String>::new());
        bench.add(0, 2, early(10, 1, "early1"));
        bench.add(0, 3, ResultRow { is_final: true, ..early(10, 2, "final") });
        assert_eq!(bench.told(), ["10 main final"]);
        bench.add(0, 4, early(10, 3, "late"));
        bench.add(0, 5, ResultRow { is_final: true, ..early(10, 4, "twice") });
        assert_eq!(bench.told(), Vec::<String>::new());
        assert_eq!(bench.gather.bytes(), 0);
    }

    #[test]
    fn an_early_result_of_a_lagging_partition_does_not_follow_the_final_one() {
        let mut bench = Bench::new(Vec::new());
        bench.add(1, 0, ResultRow { is_final: true, ..early(10, 1, "final") });
        assert_eq!(bench.told(), ["10 main final"]);
        assert_eq!(bench.gather.checkpoint().1, Vec::new());
        bench.add(0, 0, early(10, 0, "early"));
        assert_eq!(bench.told(), Vec::<String>::new());
    }

    #[test]
    fn resume_stays_at_the_first_row_of_a_window_not_told() {
        let mut bench = Bench::new(Vec::new());
        bench.add(0, 5, row(10, "half", 2, "h"));
        bench.add(0, 6, row(10, "whole", 1, "w"));
        bench.add(1, 3, row(12, "untaken", 1, "u"));
        assert_eq!(bench.resume(0), 5);
        assert_eq!(bench.resume(1), 3);
        assert_eq!(bench.told().len(), 2);
        assert_eq!((bench.resume(0), bench.resume(1)), (5, 4));
        bench.add(1, 4, row(10, "half", 2, "g"));
        assert_eq!(bench.resume(1), 4);
        bench.told();
        assert_eq!((bench.resume(0), bench.resume(1)), (7, 5));
    }

    /// Every cut of a run with interleaved windows over three partitions: stopped there, restored from the
    /// checkpoint of the last telling, and read again from `resume`.
    #[test]
    fn after_a_crash_at_any_row_each_window_is_told_exactly_once() {
        let mut rows: Vec<(u32, ResultRow)> = Vec::new();
        for end in 0..12_i64 {
            for (partition, room, of_rows) in
                [(0, "a", 3), (1, "a", 3), (2, "a", 3), (1, "b", 2), (0, "b", 2), (2, "c", 1)]
            {
                rows.push((partition, row(end, room, of_rows, &partition.to_string())));
            }
        }
        let log = |partition: u32| rows.iter().filter(move |(p, _)| *p == partition).map(|(_, row)| row);
        for seed in 0..200_u64 {
            let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
            let mut all = Vec::new();
            let mut committed: (Positions, Vec<Told>) = Default::default();
            'run: loop {
                let mut bench = Bench::new(committed.1.clone());
                let table = Arc::clone(&bench.table);
                let mut at: Vec<i64> =
                    (0..3).map(|p| committed.0.get(&(Arc::clone(&table), p)).copied().unwrap_or(0)).collect();
                loop {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let partition = (random >> 33) as u32 % 3;
                    let offset = at[partition as usize];
                    if let Some(row) = log(partition).nth(offset as usize) {
                        bench.add(partition, offset, row.clone());
                        at[partition as usize] += 1;
                    }
                    if (random >> 40) % 3 == 0 {
                        let told = bench.told();
                        if !told.is_empty() {
                            all.extend(told);
                            let (resume, told) = bench.gather.checkpoint();
                            committed.0.extend(resume);
                            committed.1 = told;
                        }
                    }
                    if (random >> 50) % 31 == 0 {
                        break;
                    }
                    if (0..3).all(|p| log(p).nth(at[p as usize] as usize).is_none()) {
                        all.extend(bench.told());
                        break 'run;
                    }
                }
            }
            let mut expected: Vec<String> = (0..12)
                .flat_map(|e| [format!("{e} a 012"), format!("{e} b 01"), format!("{e} c 2")])
                .collect();
            all.sort();
            expected.sort();
            assert_eq!(all, expected, "seed {seed}");
        }
    }

    #[test]
    fn an_incomplete_window_is_given_up_only_when_every_partition_proves_that_nothing_comes() {
        let mut bench = Bench::new(Vec::new());
        bench.add(0, 5, row(10, "half", 2, "h"));
        assert_eq!(bench.gather.give_up(|_| None), []);
        assert_eq!(bench.gather.give_up(|_| Some(GIVE_UP_AFTER_MS)), []);
        let lost = bench.gather.give_up(|_| Some(GIVE_UP_AFTER_MS + 1));
        assert_eq!((lost.len(), lost[0].rows, lost[0].expected), (1, 1, 2));
        assert_eq!((bench.resume(0), bench.gather.bytes()), (6, 0));
    }
}
