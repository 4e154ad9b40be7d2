//! The pure pipeline: records in, closed windows out, by hand-set times. Every answer is compared with a batch
//! DataFusion query over the same rows, or with what the row counts must be.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampNanosecondArray};
use datafusion::prelude::{SessionConfig, SessionContext};
use emostream::engine::closing::{Closed, Closer, Lane, Start, total};
use emostream::engine::compile::CompiledQuery;
use emostream::engine::partition::{Partition, TimeRules};
use emostream::engine::{sink, watermark};
use emostream::log::Record;
use emostream::log::codec::{self, RecordCodec};
use emostream::reaction::checkpoint::Checkpoint;
use emostream::reaction::table::Table;
use emostream::sql::{SqlFile, plan_program};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value};

const TABLES: &str = include_str!("../../sql/tables.sql");
const EMOJI_COUNTS: &str = include_str!("../../sql/emoji_counts.sql");
const RULES: TimeRules = TimeRules { future_tolerance_ms: 5_000, idle_ms: 0 };
const MS: i64 = 1_000_000;

/// A reaction: user, emoji, room, event time in milliseconds.
pub(crate) type Reaction = (String, String, String, i64);

pub(crate) fn compile(tables: &str, query: &str) -> Arc<CompiledQuery> {
    let files = [
        SqlFile { name: "tables.sql".into(), text: tables.into() },
        SqlFile { name: "query.sql".into(), text: query.into() },
    ];
    let program = plan_program(&files).unwrap_or_else(|found| {
        panic!("{}", found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    });
    Arc::new(CompiledQuery::compile(&program.queries[0]).unwrap())
}

fn batch(table: &Table, reactions: &[Reaction]) -> RecordBatch {
    let texts =
        |of: fn(&Reaction) -> &str| Arc::new(reactions.iter().map(|r| Some(of(r))).collect::<StringArray>());
    let columns: Vec<ArrayRef> = vec![
        texts(|r| &r.0),
        texts(|r| &r.1),
        texts(|r| &r.2),
        Arc::new(reactions.iter().map(|r| Some(r.3 * MS)).collect::<TimestampNanosecondArray>()),
    ];
    RecordBatch::try_new(codec::arrow_schema(table), columns).unwrap()
}

/// A log in memory and a query that reads it, with time under the test's control.
pub(crate) struct Stage {
    pub(crate) query: Arc<CompiledQuery>,
    log: Vec<Vec<Record>>,
    partitions: Vec<Partition>,
    closer: Closer,
    checkpoint: Option<Checkpoint>,
    saved: BTreeMap<String, Vec<u8>>,
    pub(crate) emitted: Vec<Map<String, Value>>,
}

impl Stage {
    pub(crate) fn new(query: Arc<CompiledQuery>, partitions: usize) -> Self {
        let mut stage = Self {
            closer: Closer::new(Arc::clone(&query), 1, &Start::decide(&query, None, &[vec![]])),
            query,
            log: vec![Vec::new(); partitions],
            partitions: Vec::new(),
            checkpoint: None,
            saved: BTreeMap::new(),
            emitted: Vec::new(),
        };
        stage.restart();
        stage
    }

    /// As after `kill -9`: only the log and the last commit are left.
    fn restart(&mut self) {
        let start = Start::decide(&self.query, self.checkpoint.as_ref(), &[vec![0; self.log.len()]]);
        let partition = |lane: &Lane| Partition::new(Arc::clone(&self.query), *lane, RULES, &start).unwrap();
        self.partitions = start.lanes.iter().map(partition).collect();
        self.closer = Closer::new(Arc::clone(&self.query), 1, &start);
        let saved = self.saved.iter().map(|(key, value)| (key.as_bytes(), value.as_slice()));
        self.closer.restore(&start, saved).unwrap();
    }

    pub(crate) fn append(&mut self, partition: usize, reactions: &[Reaction], timestamp_ms: i64) {
        let batch = batch(&self.query.sources[0].table, reactions);
        self.append_batch(partition, &batch, timestamp_ms, None);
    }

    pub(crate) fn append_batch(
        &mut self,
        partition: usize,
        batch: &RecordBatch,
        timestamp_ms: i64,
        key: Option<&'static [u8]>,
    ) {
        let record = RecordCodec::new(&self.query.sources[0].table).encode(batch).unwrap().remove(0);
        let offset = self.log[partition].len() as i64;
        let Some(value) = record.value else { panic!("a record has a value") };
        let (headers, key) = (record.headers, key.map(Into::into));
        self.log[partition].push(Record { offset, timestamp_ms, key, value: Some(value), headers });
    }

    /// Reads one record of a partition, if there is one.
    fn read(&mut self, partition: usize) -> bool {
        let at = &mut self.partitions[partition];
        let Some(record) = self.log[partition].get(at.next() as usize) else { return false };
        at.push(record, record.timestamp_ms).unwrap();
        true
    }

    /// Closes what is over and commits it. Nothing is committed before everything is rebuilt.
    fn close(&mut self) {
        if !self.partitions.iter().all(Partition::is_rebuilt) {
            return;
        }
        let reached = watermark::minimum(self.partitions.iter().map(Partition::watermark));
        let boundary = reached.and_then(|ns| self.query.boundary_at_or_before(ns));
        if boundary > self.closer.emitted() || self.partitions.iter().any(|partition| partition.pending() > 0)
        {
            let handed =
                self.partitions.iter_mut().map(|partition| partition.hand_over(boundary).unwrap()).collect();
            let closed = self.closer.close(handed, boundary).unwrap();
            self.commit(closed);
        }
    }

    fn commit(&mut self, closed: Closed) {
        assert!(closed.checkpoint.figures.is_conserved(), "{:?}", closed.checkpoint.figures);
        for saved in &closed.saved {
            match &saved.value {
                Some(value) => drop(self.saved.insert(saved.key.clone(), value.clone())),
                None => drop(self.saved.remove(&saved.key)),
            }
        }
        for (output, closed) in self.query.outputs.iter().zip(&closed.outputs) {
            let records = sink::output_records(&output.sink, 3, closed).unwrap();
            let rows = records
                .into_iter()
                .map(|(_, record)| serde_json::from_slice(&record.value.unwrap()).unwrap());
            self.emitted.extend(rows);
        }
        let text = serde_json::to_vec(&closed.checkpoint).unwrap();
        self.checkpoint = Some(serde_json::from_slice(&text).unwrap());
    }

    pub(crate) fn read_all(&mut self) {
        for partition in 0..self.log.len() {
            while self.read(partition) {
                self.close();
            }
        }
    }

    /// All partitions are proved complete up to this time.
    pub(crate) fn end(&mut self, ms: i64) {
        self.partitions.iter_mut().for_each(|partition| partition.prove_end(ms));
        self.close();
    }

    pub(crate) fn sorted(&self) -> Vec<String> {
        let mut rows: Vec<_> = self.emitted.iter().map(|row| Value::from(row.clone()).to_string()).collect();
        rows.sort();
        rows
    }
}

fn reactions(seed: u64, count: usize, emojis: usize) -> Vec<Reaction> {
    let mut random = StdRng::seed_from_u64(seed);
    let row = |i: usize, random: &mut StdRng| {
        let emoji = char::from_u32(0x1F600 + random.random_range(0..emojis) as u32).unwrap().to_string();
        // Within the delay of 500 ms out of order.
        let ms = 10_000 + (i as i64) * 20 - random.random_range(0..400);
        (
            format!("user{}", random.random_range(0..40)),
            emoji,
            format!("room{}", random.random_range(0..3)),
            ms,
        )
    };
    (0..count).map(|i| row(i, &mut random)).collect()
}

/// The same SELECT as a batch query over the same rows, with `date_bin` for the window.
async fn batch_answer(query: &CompiledQuery, reactions: &[Reaction], sql: &str) -> Vec<String> {
    let config = SessionConfig::new().set_bool("datafusion.sql_parser.map_string_types_to_utf8view", false);
    let context = SessionContext::new_with_config(config);
    context.register_batch("reactions", batch(&query.sources[0].table, reactions)).unwrap();
    let result = context.sql(sql).await.unwrap().collect().await.unwrap();
    let mut rows: Vec<String> = Vec::new();
    for batch in result {
        // The sink's own writer, fed with the batch answer cast to the sink's types.
        let schema = codec::arrow_schema(&query.outputs[0].sink);
        let columns = batch.columns().iter().zip(schema.fields());
        let columns = columns.map(|(column, field)| arrow_cast(column, field.data_type())).collect();
        let batch = RecordBatch::try_new(schema, columns).unwrap();
        let window = emostream::reaction::time::Window { start: 0, end: 0 };
        let closed = emostream::engine::closing::ClosedWindow { window, rows: vec![batch] };
        for (_, record) in sink::records(&query.outputs[0].sink, 1, &closed).unwrap() {
            rows.push(String::from_utf8(record.value.unwrap().to_vec()).unwrap());
        }
    }
    rows.sort();
    rows
}

fn arrow_cast(column: &ArrayRef, to: &arrow::datatypes::DataType) -> ArrayRef {
    arrow::compute::cast(column, to).unwrap()
}

#[test]
fn up_to_1000_show_as_one_and_3785_as_three() {
    let mut stage = Stage::new(compile(TABLES, EMOJI_COUNTS), 1);
    let mut rows = Vec::new();
    for (emoji, count) in [("a", 1), ("b", 1000), ("c", 1001), ("d", 3785)] {
        rows.extend((0..count).map(|_| ("u".to_owned(), emoji.to_owned(), "main".to_owned(), 2_500)));
    }
    stage.append(0, &rows, 2_500);
    stage.read_all();
    stage.end(4_499);
    assert!(stage.emitted.is_empty(), "the watermark is a millisecond before the window's end");
    stage.end(4_500);
    let shown: BTreeMap<_, _> = stage
        .emitted
        .iter()
        .map(|row| (row["emoji_type"].as_str().unwrap(), (&row["count"], &row["scaled"])))
        .collect();
    let expected: [(&str, i64, i64); 4] = [("a", 1, 1), ("b", 1000, 1), ("c", 1001, 1), ("d", 3785, 3)];
    assert_eq!(shown.len(), 4);
    for (emoji, count, scaled) in expected {
        assert_eq!(shown[emoji], (&Value::from(count), &Value::from(scaled)), "{emoji}");
    }
    assert_eq!(stage.emitted[0]["window_start"], "1970-01-01T00:00:02Z");
    assert_eq!(stage.emitted[0]["window_end"], "1970-01-01T00:00:04Z");
}

/// One result column per aggregate; the windowed query and the batch query share the list.
const AGGREGATES: &str = "count(*), count(DISTINCT user_id), min(user_id), max(emoji_type),
    sum(CASE WHEN room = 'room1' THEN 2 ELSE 0 END), avg(length(user_id)),
    count(*) FILTER (WHERE room <> 'room2'), median(length(user_id)), round(stddev(length(user_id)), 9), bit_xor(length(user_id)),
    bool_or(room = 'room1')";

const WIDE_SINK: &str =
    "CREATE TABLE wide (window_start TIMESTAMP, emoji TEXT, a BIGINT, b BIGINT, c TEXT, d TEXT, e BIGINT,
    f DOUBLE, g BIGINT, h DOUBLE, i DOUBLE, j BIGINT, k BOOLEAN)
    WITH (connector = 'kafka', type = 'sink', format = 'json');";

#[tokio::test]
async fn any_aggregate_of_datafusion_gives_the_batch_answer() {
    let rows = reactions(7, 2_000, 12);
    let windowed = format!(
        "INSERT INTO wide SELECT w.window.start, * EXCEPT (window) FROM (
           SELECT tumble(INTERVAL '2 seconds') AS window, upper(emoji_type) AS emoji, {AGGREGATES}
           FROM (SELECT * FROM reactions WHERE emoji_type <> '😃' AND room <> 'room0') GROUP BY 1, 2) AS w"
    );
    let windowed =
        windowed.replace("w.window.start, * EXCEPT (window)", "w.window.start, w.* EXCEPT (window)");
    let query = compile(&format!("{TABLES}{WIDE_SINK}"), &windowed);
    let batch = format!(
        "SELECT date_bin(INTERVAL '2 seconds', timestamp, TIMESTAMP '1970-01-01') AS w, upper(emoji_type), {AGGREGATES}
         FROM reactions WHERE emoji_type <> '😃' AND room <> 'room0' GROUP BY 1, 2"
    );
    let expected = batch_answer(&query, &rows, &batch).await;
    assert!(expected.len() > 100);
    for partitions in [1, 3] {
        for per_record in [1, 7, 500] {
            let mut stage = Stage::new(Arc::clone(&query), partitions);
            for (n, chunk) in rows.chunks(per_record).enumerate() {
                stage.append(n % partitions, chunk, chunk[chunk.len() - 1].3 + 500);
            }
            stage.interleaved();
            stage.end(1_000_000);
            let found = stage.sorted();
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(found, expected, "{partitions} partitions, {per_record} rows a record");
            }
            assert_eq!(found.len(), expected.len());
        }
    }
}

impl Stage {
    /// Reads all partitions in turn, one record each.
    fn interleaved(&mut self) {
        loop {
            let read: Vec<_> = (0..self.log.len()).map(|partition| self.read(partition)).collect();
            self.close();
            if !read.contains(&true) {
                return;
            }
        }
    }
}

#[tokio::test]
async fn a_query_killed_anywhere_goes_on_as_if_nothing_had_happened() {
    let rows = reactions(11, 3_000, 30);
    let query = compile(TABLES, EMOJI_COUNTS);
    let batch = "SELECT w, w + INTERVAL '2 seconds', room, emoji_type, count, CASE WHEN count > 1000 THEN count / 1000 ELSE 1 END
         FROM (SELECT date_bin(INTERVAL '2 seconds', timestamp, TIMESTAMP '1970-01-01') AS w, room, emoji_type, count(*) AS count
               FROM reactions GROUP BY 1, 2, 3)";
    let expected = batch_answer(&query, &rows, batch).await;
    for seed in 0..20 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut stage = Stage::new(Arc::clone(&query), 3);
        for (n, chunk) in rows.chunks(random.random_range(1..40)).enumerate() {
            stage.append(n % 3, chunk, chunk[0].3 + 500);
        }
        // Out of step by a few records at most, as partitions of one topic are.
        let mut kills = 10;
        while (0..3)
            .any(|partition| (stage.partitions[partition].next() as usize) < stage.log[partition].len())
        {
            for partition in 0..3 {
                stage.read(partition);
                stage.close();
                if kills > 0 && random.random_ratio(1, 25) {
                    kills -= 1;
                    stage.restart();
                }
            }
        }
        stage.end(1_000_000);
        let figures = stage.checkpoint.as_ref().unwrap().figures;
        assert_eq!(figures.late, 0, "seed {seed}: {figures:?}");
        assert_eq!(figures.counted, 3_000, "seed {seed}");
        assert_eq!(stage.sorted(), expected, "seed {seed}");
    }
}

#[test]
fn every_row_is_accounted_once_whatever_became_of_it() {
    let sql = EMOJI_COUNTS.replace("FROM reactions", "FROM reactions WHERE emoji_type <> 'no'");
    let mut stage = Stage::new(compile(TABLES, &sql), 2);
    let row = |emoji: &str, ms| ("u".to_owned(), emoji.to_owned(), "main".to_owned(), ms);
    stage.append(0, &[row("a", 10_000), row("no", 10_001), row("a", 99_000)], 10_100);
    stage.append(1, &[row("b", 10_500)], 10_500);
    stage.read_all();
    stage.end(12_500);
    assert_eq!(stage.emitted.len(), 2);
    // Two late rows, one of them in a record that also has a row on time; one row in an open window.
    stage.append(0, &[row("a", 11_999), row("a", 12_000)], 12_600);
    stage.append(1, &[row("b", 11_000)], 12_600);
    let garbage = Record { value: Some(vec![1, 2, 3].into()), offset: 2, ..stage.log[1][0].clone() };
    stage.log[1].push(garbage);
    stage.read_all();
    for _ in 0..2 {
        let account = total(stage.partitions.iter().map(Partition::account));
        let open = stage.partitions.iter().map(Partition::open).sum();
        let figures = stage.closer.figures(account, open, stage.closer.counted());
        let found = (
            figures.accepted,
            figures.counted,
            figures.filtered,
            figures.late,
            figures.future,
            figures.bad,
            figures.open,
        );
        assert_eq!(found, (8, 2, 1, 2, 1, 1, 1));
        assert!(figures.is_conserved());
        // The same after a restart that reads again what is not committed yet.
        stage.restart();
        stage.read_all();
    }
}

#[test]
fn a_change_at_the_cut_emits_every_window_that_ends_later_whole_and_begins_its_account_with_them() {
    let row = |ms| ("u".to_owned(), "a".to_owned(), "main".to_owned(), ms);
    // Another width; where its first window starts; its rows; what else was accepted.
    for (width, starts, rows) in [("6 seconds", 18, 1), ("2 seconds", 18, 1), ("5 seconds", 15, 3)] {
        let mut stage = Stage::new(compile(TABLES, EMOJI_COUNTS), 1);
        for rows in [&[row(10_000), row(12_500)][..], &[row(15_000), row(16_000)], &[row(18_500)]] {
            stage.append(0, rows, rows[0].3);
        }
        stage.read_all();
        assert_eq!(stage.emitted.len(), 4, "10 s, 12 s, 14 s and 16 s");
        let changed = EMOJI_COUNTS
            .replace("2 seconds", width)
            .replace("FROM reactions", "FROM reactions WHERE room <> ''");
        stage.query = compile(TABLES, &changed);
        stage.emitted.clear();
        stage.restart();
        stage.append(0, &[row(18_700), row(1_000)], 18_700);
        stage.read_all();
        stage.end(40_000);
        let window = |row: &Map<String, Value>| (row["window_start"].clone(), row["count"].clone());
        let expected = (Value::from(format!("1970-01-01T00:00:{starts}Z")), Value::from(rows + 1));
        assert_eq!(stage.emitted.iter().map(window).collect::<Vec<_>>(), [expected], "{width}");
        let figures = stage.checkpoint.as_ref().unwrap().figures;
        assert_eq!((figures.accepted, figures.counted, figures.late), (rows + 2, rows + 1, 1), "{width}");
    }
}

#[test]
fn the_threshold_may_change_without_a_gap() {
    let before = compile(TABLES, EMOJI_COUNTS);
    let after = compile(TABLES, &EMOJI_COUNTS.replace("1000", "10"));
    assert_eq!(before.fingerprint, after.fingerprint);
    let wider = compile(TABLES, &EMOJI_COUNTS.replace("2 seconds", "3 seconds"));
    assert_ne!(before.fingerprint, wider.fingerprint);
}

#[test]
fn a_column_added_to_the_ddl_can_be_grouped_by() {
    let tables = TABLES
        .replace(
            "room       TEXT NOT NULL DEFAULT 'main',",
            "room TEXT NOT NULL DEFAULT 'main', country TEXT,",
        )
        .replace("room TEXT, emoji_type TEXT, count", "room TEXT, emoji_type TEXT, country TEXT, count");
    let sql = EMOJI_COUNTS.replace("emoji_type", "emoji_type, country");
    let query = compile(&tables, &sql);
    assert_eq!(query.sources[0].table.columns.len(), 5);
    assert_eq!(query.outputs[0].sink.columns[4].name, "country");
}

#[test]
fn rows_from_before_a_column_was_added_have_its_default() {
    let mut before = Stage::new(compile(TABLES, EMOJI_COUNTS), 1);
    before.append(0, &[("u".to_owned(), "a".to_owned(), "main".to_owned(), 2_500)], 2_500);
    let tables = TABLES
        .replace(
            "user_id    TEXT NOT NULL,",
            "country TEXT NOT NULL DEFAULT 'xx', weight INT DEFAULT 3, user_id TEXT NOT NULL,",
        )
        .replace(
            "room TEXT, emoji_type TEXT, count",
            "room TEXT, emoji_type TEXT, country TEXT, weight INT, count",
        );
    let sql = EMOJI_COUNTS.replace("emoji_type", "emoji_type, country, weight");
    let mut after = Stage::new(compile(&tables, &sql), 1);
    after.log = before.log;
    after.read_all();
    after.end(4_500);
    assert_eq!(after.emitted.len(), 1);
    assert_eq!(
        (&after.emitted[0]["country"], &after.emitted[0]["weight"]),
        (&Value::from("xx"), &Value::from(3))
    );
}
