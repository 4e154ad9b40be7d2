//! A query over a log in memory, with time and faults under the test's control: the one place that drives the
//! engine's pure core.
//!
//! What a kill leaves is the log, the results and the checkpoint; a [`Stage`] keeps these apart from the rest. After
//! every step it checks what must always hold: figures are conserved, no window is emitted twice, and the watermark
//! never steps back.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use arrow::array::RecordBatch;
use bytes::Bytes;
use emostream::engine::bounds::Size;
use emostream::engine::closing::{Closed, Closer, Lane, Start, total};
use emostream::engine::compile::CompiledQuery;
use emostream::engine::early::{Look, cuts_of};
use emostream::engine::partition::{Partition, TimeRules};
use emostream::engine::spill::{Disk, Spill};
use emostream::engine::statics::StaticTables;
use emostream::engine::watermark;
use emostream::log::codec::RecordCodec;
use emostream::log::{HEADER_ROWS, NewRecord, Record};
use emostream::reaction::checkpoint::Checkpoint;
use emostream::reaction::figures::Figures;
use emostream::reaction::table::Table;
use emostream::reaction::time::Window;
use emostream::sql::{Diagnostic, SqlFile, plan_program_with};
use serde_json::{Map, Value};

use super::rows;

/// As in the settings' defaults.
pub(crate) const RULES: TimeRules = TimeRules { future_tolerance_ms: 5_000, idle_ms: 0 };
pub(crate) const MS: i64 = 1_000_000;

/// So little memory that a window of some groups comes in several parts.
static SPILL: LazyLock<Arc<Spill>> = LazyLock::new(|| {
    let disk = Disk::new(&std::env::temp_dir(), 1 << 30).unwrap();
    Arc::new(Spill::new(Arc::new(disk), 8 << 10).unwrap())
});
static SPILLED: AtomicU64 = AtomicU64::new(0);

/// A compiled query.
#[derive(Clone)]
pub(crate) struct Prepared {
    query: Arc<CompiledQuery>,
}

impl Deref for Prepared {
    type Target = CompiledQuery;

    fn deref(&self) -> &CompiledQuery {
        &self.query
    }
}

impl Prepared {
    /// The table of the query's first source.
    pub(crate) fn source(&self) -> &Table {
        &self.query.sources[0].table
    }

    /// For the engine's own parts.
    pub(crate) fn shared(&self) -> Arc<CompiledQuery> {
        Arc::clone(&self.query)
    }

    /// The query's first sink.
    pub(crate) fn sink(&self) -> &Table {
        &self.query.outputs[0].sink
    }
}

/// The first query of the files, or what is wrong with them.
pub(crate) fn prepare(files: &[SqlFile]) -> Result<Prepared, String> {
    prepare_beside(files, &[])
}

/// As [`prepare`], with tables from `beside` where the files do not declare them.
pub(crate) fn prepare_beside(files: &[SqlFile], beside: &[SqlFile]) -> Result<Prepared, String> {
    let all = |found: Vec<Diagnostic>| found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    let program = plan_program_with(files, beside).map_err(all)?;
    let query = &program.queries[0];
    let files: Vec<SqlFile> = files.iter().chain(beside).cloned().collect();
    let statics = StaticTables::read(&query.statics, &files).map_err(|(_, error)| error.to_string())?;
    let compiled = CompiledQuery::compile_with(query, &statics).map_err(|error| error.to_string())?;
    Ok(Prepared { query: Arc::new(compiled) })
}

/// The query of `query`, which must be right.
pub(crate) fn compile(tables: &str, query: &str) -> Prepared {
    let files = [
        SqlFile { name: "tables.sql".into(), text: tables.into() },
        SqlFile { name: "query.sql".into(), text: query.into() },
    ];
    prepare(&files).unwrap_or_else(|wrong| panic!("{wrong}"))
}

/// A closed window as it was committed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Emitted {
    /// The sink's name.
    pub(crate) sink: String,
    pub(crate) window: Window,
    /// In the order in which they were written.
    pub(crate) rows: Vec<Map<String, Value>>,
}

/// A query and its log.
pub(crate) struct Stage {
    query: Prepared,
    // What a kill leaves.
    log: Vec<Vec<Record>>,
    checkpoint: Option<Checkpoint>,
    saved: BTreeMap<String, Bytes>,
    emitted: Vec<Emitted>,
    /// By sink and window: the revision told last.
    early: BTreeMap<(String, Window), u64>,
    // What it takes.
    partitions: Vec<Partition>,
    closer: Closer,
    reached: Option<i64>,
    /// Rows without a window.
    row_wise: Vec<Map<String, Value>>,
}

impl Stage {
    pub(crate) fn new(query: &Prepared, partitions: usize) -> Self {
        let mut stage = Self {
            closer: Closer::new(Arc::clone(&query.query), 1, &Start::decide(query, None, &[vec![]])),
            query: query.clone(),
            log: vec![Vec::new(); partitions],
            partitions: Vec::new(),
            checkpoint: None,
            saved: BTreeMap::new(),
            emitted: Vec::new(),
            early: BTreeMap::new(),
            row_wise: Vec::new(),
            reached: None,
        };
        stage.restart();
        stage
    }

    /// As after `kill -9`: only the log and the last commit are left.
    pub(crate) fn restart(&mut self) {
        // Every source of a query reads the same log here.
        let firsts = vec![vec![0; self.log.len()]; self.query.sources.len()];
        let start = Start::decide(&self.query, self.checkpoint.as_ref(), &firsts);
        let partition =
            |lane: &Lane| Partition::new(Arc::clone(&self.query.query), *lane, RULES, &start).unwrap();
        self.partitions = start.lanes.iter().map(partition).collect();
        self.closer = Closer::new(Arc::clone(&self.query.query), 1, &start);
        let saved = self.closer.find_saved(&start, self.saved.keys().map(String::as_bytes)).unwrap();
        saved.iter().for_each(|key| self.closer.restore(key, &self.saved[&key.key]).unwrap());
        self.closer.restored(&start).unwrap();
        self.reached = None;
    }

    /// Another version of the query takes over from the last commit.
    pub(crate) fn go_on_as(&mut self, query: &Prepared) {
        self.query = query.clone();
        self.emitted.clear();
        self.restart();
    }

    /// Another query goes on with this one's log, without its checkpoint.
    pub(crate) fn with_log_of(query: &Prepared, other: Self) -> Self {
        let mut stage = Self::new(query, 0);
        stage.log = other.log;
        stage.restart();
        stage
    }

    /// The topic gets one more partition; it is found by the next [`Stage::restart`].
    pub(crate) fn add_partition(&mut self) {
        self.log.push(Vec::new());
    }

    /// Appends a record.
    pub(crate) fn append(&mut self, partition: usize, batch: &RecordBatch, timestamp_ms: i64) {
        let record = self.encode(batch);
        self.append_record(partition, record, timestamp_ms);
    }

    /// Appends a record with a key.
    pub(crate) fn append_keyed(
        &mut self,
        partition: usize,
        batch: &RecordBatch,
        timestamp_ms: i64,
        key: &'static [u8],
    ) {
        let record = NewRecord { key: Some(key.into()), ..self.encode(batch) };
        self.append_record(partition, record, timestamp_ms);
    }

    fn encode(&self, batch: &RecordBatch) -> NewRecord {
        RecordCodec::new(&self.query.sources[0].table).encode(batch).unwrap().remove(0)
    }

    pub(crate) fn query(&self) -> &Prepared {
        &self.query
    }

    /// Appends a value that says it has that many rows.
    pub(crate) fn append_bytes(&mut self, partition: usize, value: Bytes, rows: usize, timestamp_ms: i64) {
        let record = NewRecord { value: Some(value), ..NewRecord::default() };
        self.append_record(partition, record.header(HEADER_ROWS, rows.to_string()), timestamp_ms);
    }

    fn append_record(&mut self, partition: usize, record: NewRecord, timestamp_ms: i64) {
        let NewRecord { key, value, headers, .. } = record;
        let offset = self.log[partition].len() as i64;
        self.log[partition].push(Record { offset, timestamp_ms, key, value, headers });
    }

    pub(crate) fn partitions(&self) -> usize {
        self.log.len()
    }

    /// Records of that partition that are not read yet.
    pub(crate) fn unread(&self, partition: usize) -> usize {
        self.log[partition].len() - self.next(partition)
    }

    /// The offset of the next record of that partition.
    pub(crate) fn next(&self, partition: usize) -> usize {
        self.partitions.get(partition).map_or(0, |partition| partition.next() as usize)
    }

    /// Reads one record of a partition, if there is one.
    pub(crate) fn read(&mut self, partition: usize) -> bool {
        let Some(at) = self.partitions.get_mut(partition) else { return false };
        let Some(record) = self.log[partition].get(at.next() as usize) else { return false };
        let before = at.watermark();
        at.push(std::slice::from_ref(record), record.timestamp_ms).unwrap();
        assert!(at.watermark() >= before, "partition {partition}'s watermark stepped back");
        self.check();
        true
    }

    /// Every record of that partition before this time has been read, and it is quiet.
    pub(crate) fn prove_end(&mut self, partition: usize, ms: i64) {
        let at = &mut self.partitions[partition];
        let before = at.watermark();
        at.prove_end(ms);
        assert!(at.watermark() >= before, "partition {partition}'s watermark stepped back");
    }

    /// Whether everything accounted before the last restart has been read again.
    pub(crate) fn is_rebuilt(&self) -> bool {
        self.partitions.iter().all(Partition::is_rebuilt)
    }

    /// The event time up to which windows are closed, committed or not.
    pub(crate) fn closed_to(&self) -> Option<i64> {
        self.closer.emitted()
    }

    /// Hands over what is over; `None` when nothing is, and this is not `due`. Nothing is handed over before everything
    /// is rebuilt.
    pub(crate) fn hand_over(&mut self, due: bool) -> Option<Closed> {
        if !self.is_rebuilt() {
            return None;
        }
        let reached = watermark::minimum(self.partitions.iter().map(Partition::watermark));
        assert!(reached >= self.reached, "the watermark stepped back");
        self.reached = reached;
        let boundary = reached.and_then(|ns| self.query.boundary_at_or_before(ns));
        let boundary = boundary.max(self.closer.emitted());
        let pending = self.partitions.iter().any(|partition| partition.pending() > 0);
        if boundary == self.closer.emitted() && !due && !pending {
            return None;
        }
        let handed =
            self.partitions.iter_mut().map(|partition| partition.hand_over(boundary).unwrap()).collect();
        let closed = self.closer.close(handed, boundary).unwrap();
        assert!(closed.checkpoint.figures.is_conserved(), "{:?}", closed.checkpoint.figures);
        Some(closed)
    }

    /// What the windows hold that are open and were told otherwise or never; to be committed with `closed`, which was handed
    /// over just now.
    pub(crate) fn look(&mut self, closed: &mut Closed) -> Vec<Emitted> {
        let outputs: Vec<usize> = (0..self.query.outputs.len()).collect();
        let cuts = cuts_of(&self.query, &outputs);
        let open = self.partitions.iter_mut().flat_map(|partition| partition.look(&cuts).unwrap());
        let open = open.collect();
        self.closer.look(open, Look { outputs: &outputs, until: None }, closed).unwrap();
        let mut told = Vec::new();
        for (output, closed) in self.query.outputs.iter().zip(&closed.outputs) {
            let (name, sink) = (&output.sink.name, &output.sink);
            told.extend(closed.early.iter().map(|open| Emitted {
                sink: name.clone(),
                window: open.window,
                rows: rows::written(sink, open),
            }));
        }
        told
    }

    /// Looks at the open windows and tells nobody.
    pub(crate) fn glance(&mut self) {
        if let Some(mut closed) = self.hand_over(true) {
            self.look(&mut closed);
            closed.outputs.iter_mut().for_each(|output| output.early.clear());
            self.commit(&closed);
        }
    }

    /// The transaction: results and checkpoint, both or none.
    pub(crate) fn commit(&mut self, closed: &Closed) {
        for saved in &closed.saved {
            match saved.value().unwrap() {
                Some(value) => drop(self.saved.insert(saved.key.clone(), value)),
                None => drop(self.saved.remove(&saved.key)),
            }
        }
        let revision = closed.checkpoint.revision;
        for (output, closed) in self.query.query.outputs.iter().zip(&closed.outputs) {
            let sink = &output.sink;
            for told in closed.windows.iter().chain(&closed.early) {
                let before = self.early.insert((sink.name.clone(), told.window), revision);
                assert!(
                    before.is_none_or(|before| before < revision),
                    "{:?}: {before:?}, {revision}",
                    told.window
                );
            }
            for open in &closed.early {
                let is_over =
                    self.emitted.iter().any(|done| done.sink == sink.name && done.window == open.window);
                assert!(!is_over, "{:?} is told early after its end", open.window);
            }
            for window in &closed.windows {
                let twice =
                    self.emitted.iter().any(|done| done.sink == sink.name && done.window == window.window);
                assert!(!twice, "{:?} is emitted twice", window.window);
                let rows = rows::written(sink, window);
                self.emitted.push(Emitted { sink: sink.name.clone(), window: window.window, rows });
            }
            self.row_wise.extend(closed.rows.iter().flat_map(|batch| rows::written_rows(sink, batch)));
        }
        // Another version may have closed parts of a window that is not over.
        let of_this = |before: &&Checkpoint| before.fingerprint == closed.checkpoint.fingerprint;
        let before = self.checkpoint.as_ref().filter(of_this).and_then(|checkpoint| checkpoint.emitted);
        assert!(closed.checkpoint.emitted >= before, "`emitted` stepped back");
        let text = serde_json::to_vec(&closed.checkpoint).unwrap();
        self.checkpoint = Some(serde_json::from_slice(&text).unwrap());
    }

    /// Puts on disk what open windows hold.
    pub(crate) fn spill(&mut self) {
        self.partitions.iter_mut().for_each(|partition| partition.spill(&SPILL).unwrap());
        self.closer.spill(&SPILL).unwrap();
        self.check();
        SPILLED.fetch_max(SPILL.used(), Ordering::Relaxed);
    }

    /// The most that any stage of this process had on disk.
    pub(crate) fn spilled() -> u64 {
        SPILLED.load(Ordering::Relaxed)
    }

    /// As after `kill -9` between what goes ahead of a commit and the commit.
    pub(crate) fn die_ahead(&mut self) {
        let Some(closed) = self.hand_over(false) else { return };
        for saved in closed.saved.iter().filter(|saved| saved.goes_ahead()) {
            self.saved.insert(saved.key.clone(), saved.value().unwrap().unwrap());
        }
        self.restart();
    }

    /// Closes what is over and commits it.
    pub(crate) fn close(&mut self) {
        if let Some(closed) = self.hand_over(false) {
            self.commit(&closed);
        }
    }

    /// Reads partition after partition to its end.
    pub(crate) fn read_all(&mut self) {
        for partition in 0..self.log.len() {
            while self.read(partition) {
                self.close();
            }
        }
    }

    /// Reads all partitions in turn, one record each.
    pub(crate) fn interleaved(&mut self) {
        loop {
            let read: Vec<_> = (0..self.log.len()).map(|partition| self.read(partition)).collect();
            self.close();
            if !read.contains(&true) {
                return;
            }
        }
    }

    /// All partitions are proved complete up to this time; what is known then is committed.
    pub(crate) fn end(&mut self, ms: i64) {
        (0..self.partitions.len()).for_each(|partition| self.prove_end(partition, ms));
        if let Some(closed) = self.hand_over(true) {
            self.commit(&closed);
        }
    }

    pub(crate) fn checkpoint(&self) -> Option<&Checkpoint> {
        self.checkpoint.as_ref()
    }

    /// What open windows hold that the closer has.
    pub(crate) fn held(&self) -> Size {
        self.closer.size()
    }

    /// The account at this moment, open windows included.
    pub(crate) fn figures(&self) -> Figures {
        let account = total(self.partitions.iter().map(Partition::account));
        let open = self.partitions.iter().map(Partition::open).sum::<u64>() + self.closer.open();
        self.closer.figures(account, open, self.closer.counted())
    }

    fn check(&self) {
        if self.is_rebuilt() {
            assert!(self.figures().is_conserved(), "{:?}", self.figures());
        }
    }

    /// The windows committed so far, in that order.
    pub(crate) fn emitted(&self) -> &[Emitted] {
        &self.emitted
    }

    /// The rows without a window committed so far.
    pub(crate) fn row_wise(&self) -> &[Map<String, Value>] {
        &self.row_wise
    }

    /// All committed rows, in the order in which they were written.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &Map<String, Value>> {
        self.emitted.iter().flat_map(|window| &window.rows).chain(&self.row_wise)
    }

    /// All committed rows as sorted lines of JSON.
    pub(crate) fn results(&self) -> Vec<String> {
        rows::sorted(self.rows())
    }
}
