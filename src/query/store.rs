//! The windows that can be answered, per sink and in order of time, within a bound.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::watch;

use super::Settings;
use super::gather::{Gatherer, Whole};
use crate::log::Record;
use crate::log::result_row::{self, WINDOW_COLUMNS, is_of_window};
use crate::reaction::table::Table;
use crate::reaction::time::Window;
use crate::sync::lock;

/// What a row and a room cost besides their text: pointers, lengths and the maps' share.
const OVERHEAD_BYTES: usize = 48;

/// Closed windows of all sinks. Shared by the readers that fill it and the requests that ask.
pub struct ResultStore {
    history_windows: usize,
    history_bytes: usize,
    inner: Mutex<Inner>,
    /// Rises with every record read, so that a request can wait for one.
    progress: watch::Sender<u64>,
}

/// By sink and partition: an offset.
pub type Offsets = BTreeMap<String, BTreeMap<u32, i64>>;

#[derive(Default)]
struct Inner {
    sinks: HashMap<String, Sink>,
    bytes: usize,
}

struct Sink {
    table: Arc<Table>,
    gatherer: Gatherer,
    windows: BTreeMap<Window, Arc<Rooms>>,
    bytes: usize,
    /// The next offset by partition.
    next: BTreeMap<u32, i64>,
    is_read_back: bool,
}

/// The rows of one window, by room.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rooms {
    rooms: BTreeMap<Box<str>, Answer>,
}

/// One room's rows: JSON objects with the table's columns, except the window's.
#[derive(Clone, Debug, PartialEq)]
struct Answer {
    revision: u64,
    rows: Vec<Box<str>>,
}

impl Rooms {
    /// Every room with its rows, by room. A row is a JSON object's text.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[Box<str>])> {
        self.rooms.iter().map(|(room, answer)| (&**room, answer.rows.as_slice()))
    }
}

impl Answer {
    fn bytes(&self) -> usize {
        OVERHEAD_BYTES + self.rows.iter().map(|row| row.len() + OVERHEAD_BYTES).sum::<usize>()
    }
}

impl ResultStore {
    /// An empty one with those bounds.
    pub fn new(settings: &Settings) -> Self {
        Self {
            history_windows: settings.history_windows.max(1),
            history_bytes: settings.history_bytes,
            inner: Mutex::default(),
            progress: watch::Sender::new(0),
        }
    }

    /// Starts a sink, empty; forgets what was kept under that name.
    pub fn begin(&self, table: &Arc<Table>) {
        self.end(&table.name);
        let sink = Sink {
            table: Arc::clone(table),
            gatherer: Gatherer::new(),
            windows: BTreeMap::new(),
            bytes: 0,
            next: BTreeMap::new(),
            is_read_back: false,
        };
        self.lock().sinks.insert(table.name.clone(), sink);
    }

    /// Forgets a sink.
    pub fn end(&self, sink: &str) {
        let mut inner = self.lock();
        if let Some(sink) = inner.sinks.remove(sink) {
            inner.bytes -= sink.bytes;
        }
    }

    /// Takes what one read of a partition brought; `next` is the offset from which the next one goes on.
    pub fn apply(&self, sink: &str, partition: u32, records: &[Record], next: i64) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let Some(sink) = inner.sinks.get_mut(sink) else { return };
        let before = sink.bytes;
        for record in records {
            if !is_of_window(&sink.table, record) {
                continue;
            }
            match result_row::read(&sink.table, record, &WINDOW_COLUMNS) {
                Ok(rows) => {
                    // Only closed windows are answered.
                    for row in rows.into_iter().filter(|row| row.is_final) {
                        if let Some(whole) = sink.gatherer.add(partition, record.offset, row) {
                            sink.insert(whole);
                        }
                    }
                }
                Err(error) => {
                    metrics::counter!("emostream_query_bad_records_total").increment(1);
                    tracing::warn!(sink = sink.table.name, partition, offset = record.offset, %error, "a result is left out");
                }
            }
        }
        while sink.windows.len() > self.history_windows {
            sink.remove_oldest();
        }
        sink.next.insert(partition, next);
        inner.bytes = inner.bytes - before + sink.bytes;
        inner.shrink_to(self.history_bytes);
        metrics::gauge!("emostream_query_history_bytes").set(inner.bytes as f64);
        self.progress.send_modify(|count| *count += 1);
    }

    /// The offset from which a partition goes on; `None` before it was read.
    pub fn next(&self, sink: &str, partition: u32) -> Option<i64> {
        self.lock().sinks.get(sink)?.next.get(&partition).copied()
    }

    /// Says that everything that was in the log when the sink began has been read.
    pub fn read_back(&self, sink: &str) {
        if let Some(sink) = self.lock().sinks.get_mut(sink) {
            sink.is_read_back = true;
        }
    }

    /// Whether [`ResultStore::read_back`] was said.
    pub fn is_read_back(&self, sink: &str) -> bool {
        self.lock().sinks.get(sink).is_some_and(|sink| sink.is_read_back)
    }

    /// Waits until every partition was read up to those offsets.
    pub async fn reached(&self, ends: &Offsets) {
        let mut progress = self.progress.subscribe();
        while !self.has_reached(ends) {
            if progress.changed().await.is_err() {
                return;
            }
        }
    }

    /// The windows of a sink with `from <= start < to`, on the far side of `after`, in that order of time. `None`
    /// when there is no such sink. At most `limit`.
    pub fn windows(&self, sink: &str, span: &Span, limit: usize) -> Option<Vec<(Window, Arc<Rooms>)>> {
        let inner = self.lock();
        let windows = &inner.sinks.get(sink)?.windows;
        let (low, high) = span.bounds();
        if is_empty(&low, &high) {
            return Some(Vec::new());
        }
        let range = windows.range((low, high)).map(|(window, rooms)| (*window, Arc::clone(rooms)));
        Some(if span.newest_first { range.rev().take(limit).collect() } else { range.take(limit).collect() })
    }

    fn has_reached(&self, ends: &Offsets) -> bool {
        let inner = self.lock();
        ends.iter().all(|(name, ends)| {
            let sink = inner.sinks.get(name);
            ends.iter().all(|(partition, end)| {
                let next = sink.and_then(|sink| sink.next.get(partition).copied());
                next.unwrap_or(0) >= *end
            })
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

impl Inner {
    fn shrink_to(&mut self, bytes: usize) {
        while self.bytes > bytes {
            let Some(largest) = self.sinks.values_mut().max_by_key(|sink| sink.bytes) else { return };
            let before = largest.bytes;
            if !largest.remove_oldest() {
                return;
            }
            self.bytes = self.bytes - before + largest.bytes;
        }
    }
}

impl Sink {
    /// A repeated or lower revision changes nothing; a higher one replaces the room's rows.
    fn insert(&mut self, whole: Whole) {
        let Whole { room, window, revision, rows, .. } = whole;
        let answer = Answer { revision, rows };
        let bytes = answer.bytes();
        let rooms = Arc::make_mut(self.windows.entry(window).or_default());
        match rooms.rooms.get_mut(&room) {
            Some(known) if known.revision >= revision => return,
            Some(known) => {
                self.bytes -= known.bytes();
                *known = answer;
            }
            None => {
                rooms.rooms.insert(room, answer);
            }
        }
        self.bytes += bytes;
    }

    fn remove_oldest(&mut self) -> bool {
        let Some((_, rooms)) = self.windows.pop_first() else { return false };
        self.bytes -= rooms.rooms.values().map(Answer::bytes).sum::<usize>();
        true
    }
}

/// Which windows, and in which order of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The earliest start, inclusive.
    pub from: Option<i64>,
    /// The latest start, exclusive.
    pub to: Option<i64>,
    /// The last window of the page before.
    pub after: Option<Window>,
    /// Descending.
    pub newest_first: bool,
}

impl Span {
    fn bounds(&self) -> (Bound<Window>, Bound<Window>) {
        let first_at = |start| Window { start, end: i64::MIN };
        let mut low = self.from.map_or(Bound::Unbounded, |from| Bound::Included(first_at(from)));
        let mut high = self.to.map_or(Bound::Unbounded, |to| Bound::Excluded(first_at(to)));
        if let Some(after) = self.after {
            let beyond = if self.newest_first { &mut high } else { &mut low };
            let is_narrower = match *beyond {
                Bound::Unbounded => true,
                Bound::Included(edge) | Bound::Excluded(edge) if self.newest_first => after < edge,
                Bound::Included(edge) | Bound::Excluded(edge) => after >= edge,
            };
            if is_narrower {
                *beyond = Bound::Excluded(after);
            }
        }
        (low, high)
    }
}

/// Whether `BTreeMap::range` would refuse these bounds.
fn is_empty(low: &Bound<Window>, high: &Bound<Window>) -> bool {
    match (low, high) {
        (Bound::Included(low), Bound::Included(high)) => low > high,
        (Bound::Included(low) | Bound::Excluded(low), Bound::Included(high) | Bound::Excluded(high)) => {
            low >= high
        }
        _ => false,
    }
}
