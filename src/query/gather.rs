//! Rows become whole windows: a window is answered when as many of its rows are here as each of them announces.
//!
//! The rows were written in one transaction, so the rest always comes; only where retention cut into a window are
//! some missing for ever, and such a window is dropped when there is no more room ([`MAX_PENDING_ROWS`]). Pure: no
//! I/O, no clock.

use std::collections::BTreeMap;

use crate::log::result_row::ResultRow;
use crate::reaction::time::Window;

/// The most rows that wait for the rest of their window, per table. Beyond it the oldest window is dropped.
pub(super) const MAX_PENDING_ROWS: usize = 500_000;

/// All rows of one window of one table and room.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Whole {
    /// The room.
    pub(super) room: Box<str>,
    /// Its span of event time.
    pub(super) window: Window,
    /// False for an early result.
    pub(super) is_final: bool,
    /// The highest one replaces the whole window.
    pub(super) revision: u64,
    /// JSON objects, in the order of partition and offset.
    pub(super) rows: Vec<Box<str>>,
}

/// By partition, offset and place in the record, so that a record read twice counts once.
type Rows = BTreeMap<(u32, i64, u32), Box<str>>;

/// Collects one table's rows until their windows are whole.
#[derive(Debug)]
pub(super) struct Gatherer {
    max_rows: usize,
    pending: BTreeMap<Key, Rows>,
    pending_rows: usize,
}

/// Ordered by the window's end, so that the oldest is the first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    end: i64,
    start: i64,
    room: Box<str>,
    revision: u64,
    is_final: bool,
}

impl Gatherer {
    /// With nothing yet.
    pub(super) fn new() -> Self {
        Self { max_rows: MAX_PENDING_ROWS, pending: BTreeMap::new(), pending_rows: 0 }
    }

    /// Takes the row read from that partition at that offset; returns its window when it is whole with it.
    pub(super) fn add(&mut self, partition: u32, offset: i64, row: ResultRow) -> Option<Whole> {
        let ResultRow { room, window, is_final, revision, window_rows, nth, json } = row;
        let key = Key { end: window.end, start: window.start, room, revision, is_final };
        if window_rows <= 1 {
            return Some(whole(key, vec![json]));
        }
        let rows = self.pending.entry(key.clone()).or_default();
        if rows.insert((partition, offset, nth), json).is_none() {
            self.pending_rows += 1;
        }
        if rows.len() as u64 >= window_rows {
            let rows = self.remove(&key);
            return Some(whole(key, rows));
        }
        while self.pending_rows > self.max_rows {
            let Some(oldest) = self.pending.keys().next().cloned() else { break };
            let lost = self.remove(&oldest).len();
            metrics::counter!("emostream_query_incomplete_windows_total").increment(1);
            tracing::warn!(end = oldest.end, room = %oldest.room, rows = lost, "a window never became whole; not answered");
        }
        None
    }

    fn remove(&mut self, key: &Key) -> Vec<Box<str>> {
        let rows: Vec<_> =
            self.pending.remove(key).map(|rows| rows.into_values().collect()).unwrap_or_default();
        self.pending_rows -= rows.len();
        rows
    }
}

fn whole(key: Key, rows: Vec<Box<str>>) -> Whole {
    let window = Window { start: key.start, end: key.end };
    Whole { room: key.room, window, is_final: key.is_final, revision: key.revision, rows }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(end: i64, room: &str, of_rows: u64, json: &str) -> ResultRow {
        ResultRow {
            room: room.into(),
            window: Window { start: end - 2, end },
            is_final: true,
            revision: 0,
            window_rows: of_rows,
            nth: 0,
            json: json.into(),
        }
    }

    #[test]
    fn a_window_is_whole_with_its_last_row_from_whichever_partition() {
        let mut gatherer = Gatherer::new();
        assert_eq!(gatherer.add(1, 7, row(2, "main", 2, "b")), None);
        assert_eq!(gatherer.add(1, 7, row(2, "main", 2, "b")), None, "the same record again is no other row");
        let whole = gatherer.add(0, 9, row(2, "main", 2, "a")).unwrap();
        assert_eq!((&*whole.room, whole.rows.concat().as_str()), ("main", "ab"));
    }

    #[test]
    fn rooms_become_whole_apart_from_each_other() {
        let mut gatherer = Gatherer::new();
        assert_eq!(gatherer.add(0, 0, row(2, "a", 2, "")), None);
        assert_eq!(&*gatherer.add(0, 1, row(2, "b", 1, "")).unwrap().room, "b");
    }

    #[test]
    fn beyond_the_bound_the_oldest_incomplete_window_goes() {
        let mut gatherer = Gatherer { max_rows: 1, ..Gatherer::new() };
        assert_eq!(gatherer.add(0, 0, row(4, "a", 2, "x")), None);
        assert_eq!(gatherer.add(0, 1, row(2, "a", 2, "y")), None);
        assert_eq!(gatherer.add(0, 2, row(2, "a", 2, "y")), None, "its first row is gone");
        assert_eq!(gatherer.add(0, 3, row(4, "a", 2, "z")).unwrap().rows.concat(), "xz");
    }
}
