//! One reader and one decode for all queries that read a partition of a table together.
//!
//! Whoever finds nothing at its place reads on for all: there is no task of its own, and the ring ([`super::ring`])
//! moves when the first of the queries asks. A read waits as long as the most impatient of them does, because each
//! wants to know of the end when its window ends. One that is slow, waits for its commit or has failed asks for nothing
//! and holds nobody; what it misses it reads again with a reader of its own, until it meets the ring.
//!
//! Errors of the log go to the query that read; the next one opens the reader anew and finds out for itself.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::{MutexGuard, Notify, Semaphore, futures::Notified};
use tokio::time::Instant;

use super::chunk::{Chunk, Decoder};
use super::closing::Lane;
use super::decode::Decoded;
use super::ring::{Found, Limits, Ring, Weight};
use super::sharing::{Common, SourceOf};
use crate::clock;
use crate::log::{Log, LogError, ReadBatch, Reader};
use crate::reaction::table::Table;
use crate::sync::lock;

/// One read brings about this many bytes: enough to amortise it, little to hold.
const READ_BYTES: usize = 1 << 20;
/// How far a query may be behind the first before it reads alone: more than that is not kept for it. The bytes are those
/// of the records and of what is decoded of them.
pub(super) const LIMITS: Limits = Limits { records: 50_000, bytes: 32 << 20 };

/// What is read together in this process.
pub(super) struct Tails {
    log: Arc<dyn Log>,
    limits: Limits,
    tails: Mutex<Vec<Weak<Tail>>>,
}

impl Tails {
    pub(super) fn new(log: Arc<dyn Log>, limits: Limits) -> Self {
        Self { log, limits, tails: Mutex::default() }
    }

    /// A query's place in one partition. Queries share what is read when their tables are declared alike.
    pub(super) fn follow(&self, reader: SourceOf, lane: Lane) -> Follower {
        let table = &reader.compiled().table;
        let mut tails = lock(&self.tails);
        tails.retain(|tail| tail.strong_count() > 0);
        let known = tails.iter().filter_map(Weak::upgrade);
        let mut same = known.filter(|tail| tail.decoder.partition == lane.partition && tail.table == *table);
        let tail = same.next().unwrap_or_else(|| {
            let tail = Arc::new(Tail::new(Arc::clone(&self.log), self.limits, &reader, lane.partition));
            tails.push(Arc::downgrade(&tail));
            tail
        });
        let position = lane.from.resume;
        let id = tail.enter(&reader, position);
        Follower { tail, id, reader, position, alone: None }
    }
}

/// One partition of a table as it is read together.
struct Tail {
    log: Arc<dyn Log>,
    table: Table,
    decoder: Decoder,

    state: Mutex<State>,
    /// Who holds it reads for all. Opened when somebody reads.
    reader: tokio::sync::Mutex<Option<Opened>>,
    /// There is something to look at: a chunk, an end, an earlier wait, nobody who reads.
    changed: Notify,
}

struct State {
    ring: Ring<Arc<Chunk>>,
    /// What is known of the end.
    looked: Option<Looked>,
    /// By query at the end: until when it waits.
    waits: BTreeMap<u64, Instant>,
    /// Until when the read under way waits.
    reading_until: Option<Instant>,

    readers: BTreeMap<u64, SourceOf>,
    common: Arc<Common>,
    last_id: u64,
}

/// There was nothing at `end`.
#[derive(Clone, Copy)]
struct Looked {
    end: i64,
    /// The look was not before this.
    at: Instant,
    complete_until_ms: Option<i64>,
}

struct Opened {
    reader: Box<dyn Reader>,
    next: i64,
}

/// What follows a query's place.
pub(super) struct Stretch {
    /// `None` when nothing came within the wait.
    pub(super) chunk: Option<Arc<Chunk>>,
    /// Where the query goes on once it has taken that in.
    pub(super) next: i64,
    /// See [`ReadBatch::complete_until_ms`].
    pub(super) complete_until_ms: Option<i64>,
}

impl From<Arc<Chunk>> for Stretch {
    fn from(chunk: Arc<Chunk>) -> Self {
        Self { next: chunk.next, complete_until_ms: chunk.complete_until_ms, chunk: Some(chunk) }
    }
}

impl Tail {
    fn new(log: Arc<dyn Log>, limits: Limits, reader: &SourceOf, partition: u32) -> Self {
        let source = reader.compiled();
        let topic = source.table.topic.clone();
        Self {
            log,
            table: source.table.clone(),
            decoder: Decoder { codec: source.codec.clone(), partition, topic },
            state: Mutex::new(State {
                ring: Ring::new(limits),
                looked: None,
                waits: BTreeMap::new(),
                reading_until: None,
                readers: BTreeMap::new(),
                common: Arc::new(Common::of_one(reader)),
                last_id: 0,
            }),
            reader: tokio::sync::Mutex::new(None),
            changed: Notify::new(),
        }
    }

    fn enter(&self, reader: &SourceOf, place: i64) -> u64 {
        let mut state = lock(&self.state);
        state.last_id += 1;
        let id = state.last_id;
        state.ring.enter(id, place);
        state.readers.insert(id, reader.clone());
        state.common = Arc::new(Common::of(reader, state.readers.values()));
        id
    }

    fn leave(&self, id: u64) {
        let mut state = lock(&self.state);
        state.ring.leave(id);
        state.readers.remove(&id);
        if let Some(any) = state.readers.values().next().cloned() {
            state.common = Arc::new(Common::of(&any, state.readers.values()));
        }
        let is_deserted = state.ring.is_deserted();
        drop(state);
        // Who reads stands in the ring.
        if is_deserted && let Ok(mut reader) = self.reader.try_lock() {
            *reader = None;
        }
    }

    /// What follows `place`; `None` for one that is behind. Cancel-safe.
    async fn next(&self, id: u64, place: i64, until: Instant) -> Result<Option<Stretch>, LogError> {
        let _waiting = Waiting { tail: self, id };
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Before the look, so that nothing after it goes unnoticed.
            changed.as_mut().enable();
            match self.look(id, place, until) {
                Look::Found(stretch) => return Ok(Some(stretch)),
                Look::Behind => return Ok(None),
                Look::Nothing => {}
            }
            match self.reader.try_lock() {
                Ok(opened) => Leading { tail: self, opened: Some(opened) }.read(place, changed).await?,
                Err(_) => changed.await,
            }
        }
    }

    fn look(&self, id: u64, place: i64, until: Instant) -> Look {
        let mut state = lock(&self.state);
        let end = state.ring.end();
        match state.ring.seek(id, place) {
            Found::Chunk(chunk) => return Look::Found(chunk.into()),
            Found::Behind => return Look::Behind,
            Found::End => {}
        }
        if place > end {
            // It begins anew here: who waits further back is behind.
            self.changed.notify_waiters();
        }
        if let Some(looked) = state.looked.filter(|looked| looked.end == place && looked.at >= until) {
            let complete_until_ms = looked.complete_until_ms;
            return Look::Found(Stretch { chunk: None, next: place, complete_until_ms });
        }
        state.waits.insert(id, until);
        if state.reading_until.is_some_and(|reading_until| until < reading_until) {
            state.reading_until = Some(until);
            self.changed.notify_waiters();
        }
        Look::Nothing
    }
}

enum Look {
    Found(Stretch),
    Behind,
    Nothing,
}

/// A query that waits; it does not any more when this is dropped.
struct Waiting<'t> {
    tail: &'t Tail,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        lock(&self.tail.state).waits.remove(&self.id);
    }
}

/// The query that reads for all; another one does when this is dropped.
struct Leading<'t> {
    tail: &'t Tail,
    /// Only absent while it is dropped.
    opened: Option<MutexGuard<'t, Option<Opened>>>,
}

impl Leading<'_> {
    /// One read at the end, which is at `place`.
    async fn read(mut self, place: i64, changed: Pin<&mut Notified<'_>>) -> Result<(), LogError> {
        let tail = self.tail;
        let Some(opened) = self.opened.as_deref_mut() else { return Ok(()) };
        if opened.as_ref().is_none_or(|opened| opened.next != place) {
            *opened = None;
            *opened = Some(tail.open(place).await?);
        }
        let Some(Opened { reader, next }) = opened else { return Ok(()) };
        let now = Instant::now();
        let until = tail.read_until(now);
        let batch = tokio::select! {
            batch = reader.read(READ_BYTES, until.saturating_duration_since(now)) => batch,
            () = changed => return Ok(()),
        };
        match batch {
            Ok(batch) => {
                *next = batch.next;
                tail.take(place, batch, until.max(now));
                Ok(())
            }
            Err(error) => {
                *opened = None;
                Err(error)
            }
        }
    }
}

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        lock(&self.tail.state).reading_until = None;
        drop(self.opened.take());
        self.tail.changed.notify_waiters();
    }
}

impl Tail {
    async fn open(&self, place: i64) -> Result<Opened, LogError> {
        let (table, partition) = (&self.table, self.decoder.partition);
        let reader = self.log.reader_with(&table.topic, partition, place, &table.with.client_configs).await?;
        Ok(Opened { reader, next: place })
    }

    /// A query that was behind goes on in the ring, which may have begun anew with it: its reader is there already.
    fn join(&self, own: Opened) {
        if let Ok(mut opened) = self.reader.try_lock()
            && opened.is_none()
        {
            *opened = Some(own);
        }
        self.changed.notify_waiters();
    }

    /// Until when a read that begins now waits.
    fn read_until(&self, now: Instant) -> Instant {
        let mut state = lock(&self.state);
        let until = state.waits.values().copied().min().unwrap_or(now);
        state.reading_until = Some(until);
        until
    }

    /// Takes what was read at `place`; if there was nothing, the look was not before `at`.
    fn take(&self, place: i64, batch: ReadBatch, at: Instant) {
        let mut state = lock(&self.state);
        // It may have begun anew elsewhere meanwhile.
        if state.ring.end() != place {
            return;
        }
        if batch.records.is_empty() && batch.next == place {
            let complete_until_ms = batch.complete_until_ms;
            state.looked = Some(Looked { end: place, at, complete_until_ms });
            // They have what they waited for, or will have when they look.
            state.waits.retain(|_, until| *until > at);
            return;
        }
        state.waits.clear();
        let (records, next) = (batch.records.len(), batch.next);
        self.decoder.observe(&batch.records);
        let chunk = Arc::new(Chunk::new(batch, clock::wall_ms(), Arc::clone(&state.common)));
        let bytes = chunk.bytes();
        state.ring.push(chunk, next, Weight { records, bytes });
    }
}

/// A query's place in a partition.
pub(super) struct Follower {
    tail: Arc<Tail>,
    id: u64,
    reader: SourceOf,
    position: i64,
    /// While it is behind.
    alone: Option<Alone>,
}

impl Follower {
    /// What follows the place; waits up to `wait` for the first record. Cancel-safe: a dropped call loses nothing.
    ///
    /// # Errors
    /// As the log's.
    pub(super) async fn next(&mut self, wait: Duration) -> Result<Stretch, LogError> {
        let until = Instant::now() + wait;
        if self.alone.is_none()
            && let Some(stretch) = self.tail.next(self.id, self.position, until).await?
        {
            self.position = stretch.next;
            return Ok(stretch);
        }
        self.catch_up(until).await
    }

    /// What the query reads of a chunk's records from the one at `place` on. Cancel-safe.
    pub(super) async fn part(&mut self, chunk: &Chunk, place: usize, workers: &Semaphore) -> Arc<Decoded> {
        let Self { tail, reader, alone, .. } = self;
        let is_alone = alone.is_some();
        let weigh = |bytes| {
            if !is_alone {
                lock(&tail.state).ring.grow(chunk.next, bytes);
            }
        };
        chunk.part(place, &tail.decoder, reader, workers, weigh).await
    }

    /// Reads alone, up to where it meets the ring.
    async fn catch_up(&mut self, until: Instant) -> Result<Stretch, LogError> {
        let alone = match &mut self.alone {
            Some(alone) => alone,
            none => none.insert(Alone::open(&self.tail, &self.reader, self.position).await?),
        };
        let wait = until.saturating_duration_since(Instant::now());
        let mut batch = alone.opened.reader.read(READ_BYTES, wait).await?;
        alone.opened.next = batch.next;
        let common = Arc::clone(&alone.common);
        if let Some(place) = lock(&self.tail.state).ring.join(self.id, self.position, batch.next) {
            if place < batch.next {
                // The rest is read together.
                batch.records.retain(|record| record.offset < place);
                (batch.next, batch.complete_until_ms) = (place, None);
            }
            if let Some(alone) = self.alone.take() {
                self.tail.join(alone.opened);
            }
        }
        self.position = batch.next;
        let (next, complete_until_ms) = (batch.next, batch.complete_until_ms);
        self.tail.decoder.observe(&batch.records);
        let chunk = Chunk::new(batch, clock::wall_ms(), common);
        Ok(Stretch { chunk: Some(Arc::new(chunk)), next, complete_until_ms })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.tail.leave(self.id);
    }
}

/// A reader of one query's own.
struct Alone {
    opened: Opened,
    common: Arc<Common>,
    _counted: Counted,
}

impl Alone {
    async fn open(tail: &Tail, reader: &SourceOf, place: i64) -> Result<Self, LogError> {
        let counted = Counted::new();
        let opened = tail.open(place).await?;
        Ok(Self { opened, common: Arc::new(Common::of_one(reader)), _counted: counted })
    }
}

/// One of the readers that catch up, in the metrics.
struct Counted;

impl Counted {
    fn new() -> Self {
        metrics::gauge!("emostream_engine_catch_up_readers").increment(1);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::gauge!("emostream_engine_catch_up_readers").decrement(1);
    }
}

#[cfg(test)]
mod tests;
