//! Result records → closed windows: the one rule by which publisher and query see results.
//!
//! A window of one table and room is shown when as many of its rows are here as every one of them says in its
//! `window-rows` header, over all partitions. The rows were written in one transaction, so the rest always comes;
//! only where retention cut into a window are some missing for ever, and such a window is dropped when there is no
//! more room ([`MAX_PENDING_ROWS`]). Pure: no I/O, no clock.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{
    HEADER_FINAL, HEADER_REVISION, HEADER_WINDOW_END, HEADER_WINDOW_ROWS, HEADER_WINDOW_START, Record,
};
use crate::reaction::live::DEFAULT_ROOM;
use crate::reaction::table::Table;
use crate::reaction::time::{Window, parse_rfc3339};

/// The most rows that wait for the rest of their window, per table. Beyond it the oldest window is dropped.
pub const MAX_PENDING_ROWS: usize = 500_000;
/// The column that names a row's room.
pub const ROOM_COLUMN: &str = "room";
/// The columns that repeat a row's window.
pub const WINDOW_COLUMNS: [&str; 2] = ["window_start", "window_end"];

/// One result row: a column name → value object in the table's order.
pub type Row = Map<String, Value>;

/// All rows of one window of one table and room.
#[derive(Clone, Debug, PartialEq)]
pub struct Closed {
    /// The room, [`DEFAULT_ROOM`] where the table has none or the row's is null.
    pub room: String,
    /// Its span of event time.
    pub window: Window,
    /// False for an early result.
    pub is_final: bool,
    /// The highest one replaces the whole window; an early one never replaces a final one.
    pub revision: u64,
    /// In the order of partition and offset, with all columns.
    pub rows: Vec<Row>,
}

impl Closed {
    /// Its rows without those columns.
    #[must_use]
    pub fn rows_without(self, columns: &[&str]) -> Vec<Row> {
        let mut rows = self.rows;
        for row in &mut rows {
            for column in columns {
                row.shift_remove(*column);
            }
        }
        rows
    }
}

/// Why a record shows nothing. It is left out; the rest goes on.
#[derive(Debug, thiserror::Error)]
pub enum GatherError {
    /// A header is missing or not readable.
    #[error("header {0} is missing or not readable")]
    Header(&'static str),
    /// The value is no JSON object.
    #[error("the value is no JSON object: {0}")]
    Value(String),
}

/// Collects one table's rows until their windows are complete.
#[derive(Debug)]
pub struct Gatherer {
    has_room: bool,
    max_rows: usize,

    pending: BTreeMap<Key, Pending>,
    pending_rows: usize,

    dropped_windows: u64,
}

/// Ordered by the window's end, so that the oldest is the first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    end: i64,
    start: i64,
    room: String,
    revision: u64,
    is_final: bool,
}

#[derive(Debug, Default)]
struct Pending {
    /// By partition and offset, so that a record read twice counts once.
    rows: BTreeMap<(u32, i64), Row>,
}

impl Gatherer {
    /// For the sink `table`.
    pub fn new(table: &Table) -> Self {
        Self::with_bound(table, MAX_PENDING_ROWS)
    }

    fn with_bound(table: &Table, max_rows: usize) -> Self {
        Self {
            has_room: table.column(ROOM_COLUMN).is_some(),
            max_rows,
            pending: BTreeMap::new(),
            pending_rows: 0,
            dropped_windows: 0,
        }
    }

    /// Takes one record; returns its window when it is complete with it.
    ///
    /// # Errors
    /// When the record says nothing about a window.
    pub fn push(&mut self, partition: u32, record: &Record) -> Result<Option<Closed>, GatherError> {
        let wanted: usize = header(record, HEADER_WINDOW_ROWS, |text| text.parse().ok())?;
        let (key, row) = self.read(record)?;
        if wanted <= 1 {
            return Ok(Some(close(key, vec![row])));
        }
        let pending = self.pending.entry(key.clone()).or_default();
        if pending.rows.insert((partition, record.offset), row).is_none() {
            self.pending_rows += 1;
        }
        if pending.rows.len() >= wanted {
            let rows = self.remove(&key);
            return Ok(Some(close(key, rows)));
        }
        while self.pending_rows > self.max_rows {
            let Some(oldest) = self.pending.keys().next().cloned() else { break };
            self.remove(&oldest);
            self.dropped_windows += 1;
        }
        Ok(None)
    }

    /// From where a partition must be read again after a restart, when it was read up to `next`: the first record of
    /// a window that is not complete yet.
    pub fn resume(&self, partition: u32, next: i64) -> i64 {
        let offsets = self.pending.values().flat_map(|pending| pending.rows.keys());
        offsets.filter(|(of, _)| *of == partition).map(|(_, offset)| *offset).fold(next, i64::min)
    }

    /// Whether no window waits for rows.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// How many incomplete windows were dropped for want of room.
    pub fn dropped_windows(&self) -> u64 {
        self.dropped_windows
    }

    fn read(&self, record: &Record) -> Result<(Key, Row), GatherError> {
        let key = Key {
            start: header(record, HEADER_WINDOW_START, |text| parse_rfc3339(text).ok())?,
            end: header(record, HEADER_WINDOW_END, |text| parse_rfc3339(text).ok())?,
            revision: header(record, HEADER_REVISION, |text| text.parse().ok())?,
            is_final: header(record, HEADER_FINAL, |text| text.parse().ok())?,
            room: DEFAULT_ROOM.to_owned(),
        };
        let value = record.value.as_deref().unwrap_or_default();
        let row: Row =
            serde_json::from_slice(value).map_err(|error| GatherError::Value(error.to_string()))?;
        let room = row.get(ROOM_COLUMN).filter(|room| self.has_room && !room.is_null());
        Ok(match room.map(|room| room.as_str().map_or_else(|| room.to_string(), str::to_owned)) {
            Some(room) => (Key { room, ..key }, row),
            None => (key, row),
        })
    }

    fn remove(&mut self, key: &Key) -> Vec<Row> {
        let rows: Vec<Row> =
            self.pending.remove(key).map(|p| p.rows.into_values().collect()).unwrap_or_default();
        self.pending_rows -= rows.len();
        rows
    }
}

fn header<T>(
    record: &Record,
    name: &'static str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<T, GatherError> {
    record.header(name).and_then(read).ok_or(GatherError::Header(name))
}

fn close(key: Key, rows: Vec<Row>) -> Closed {
    let window = Window { start: key.start, end: key.end };
    Closed { room: key.room, window, is_final: key.is_final, revision: key.revision, rows }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::NewRecord;
    use crate::reaction::table::{Column, ColumnType, Format, TableKind};
    use crate::reaction::time::format_rfc3339;

    fn table() -> Table {
        let room =
            Column { name: "room".to_owned(), data_type: ColumnType::Text, nullable: true, default: None };
        Table {
            name: "counts".to_owned(),
            kind: TableKind::Sink,
            topic: "counts".to_owned(),
            format: Format::Json,
            columns: vec![room],
            watermark: None,
            key_field: None,
            options: BTreeMap::new(),
        }
    }

    fn record(offset: i64, end_s: i64, room: &str, of_rows: usize) -> Record {
        let value = serde_json::json!({"window_start": "x", "room": room, "n": offset}).to_string();
        let new = NewRecord::default()
            .header(HEADER_WINDOW_START, format_rfc3339((end_s - 2) * 1_000_000_000))
            .header(HEADER_WINDOW_END, format_rfc3339(end_s * 1_000_000_000))
            .header(HEADER_FINAL, "true")
            .header(HEADER_REVISION, "0")
            .header(HEADER_WINDOW_ROWS, of_rows.to_string());
        Record { offset, timestamp_ms: 0, key: None, value: Some(value.into()), headers: new.headers }
    }

    #[test]
    fn a_window_closes_with_its_last_row_from_whichever_partition() {
        let mut gatherer = Gatherer::new(&table());
        assert_eq!(gatherer.push(1, &record(7, 2, "main", 2)).unwrap(), None);
        assert_eq!(
            gatherer.push(1, &record(7, 2, "main", 2)).unwrap(),
            None,
            "the same record again is no other row"
        );
        assert_eq!(gatherer.resume(1, 9), 7);
        assert_eq!(gatherer.resume(0, 9), 9);
        let closed = gatherer.push(0, &record(3, 2, "main", 2)).unwrap().unwrap();
        assert_eq!((closed.room.as_str(), closed.rows.len()), ("main", 2));
        let rows = closed.rows_without(&["window_start", "room"]);
        assert_eq!(serde_json::to_string(&rows).unwrap(), r#"[{"n":3},{"n":7}]"#);
        assert!(gatherer.is_empty());
    }

    #[test]
    fn rooms_close_apart_from_each_other() {
        let mut gatherer = Gatherer::new(&table());
        assert!(gatherer.push(0, &record(0, 2, "a", 2)).unwrap().is_none());
        assert_eq!(gatherer.push(0, &record(1, 2, "b", 1)).unwrap().unwrap().room, "b");
    }

    #[test]
    fn beyond_the_bound_the_oldest_incomplete_window_goes() {
        let mut gatherer = Gatherer::with_bound(&table(), 1);
        assert!(gatherer.push(0, &record(0, 4, "a", 2)).unwrap().is_none());
        assert!(gatherer.push(0, &record(1, 2, "a", 2)).unwrap().is_none());
        assert_eq!(gatherer.dropped_windows(), 1);
        assert!(gatherer.push(0, &record(2, 4, "a", 2)).unwrap().is_some());
    }

    #[test]
    fn a_record_without_the_headers_is_named() {
        let mut bare = record(0, 2, "a", 1);
        bare.headers.clear();
        assert!(matches!(
            Gatherer::new(&table()).push(0, &bare),
            Err(GatherError::Header(HEADER_WINDOW_ROWS))
        ));
    }
}
