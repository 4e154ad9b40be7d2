//! The pure pipeline: records in, closed windows out, by hand-set times. Every answer is compared with a batch
//! DataFusion query over the same rows, or with what the row counts must be.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::prelude::{SessionConfig, SessionContext};
use emostream::engine::closing::{Closer, Start};
use emostream::engine::partition::Partition;
use emostream::log::Record;
use emostream::log::codec::RecordCodec;
use emostream::reaction::figures::Figures;
use emostream::reaction::table::Table;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value};

use crate::support::rows;
use crate::support::stage::{MS, Prepared, RULES, Stage, compile};

const TABLES: &str = include_str!("../../sql/tables.sql");
const EMOJI_COUNTS: &str = include_str!("../../sql/emoji_counts.sql");

/// A reaction: user, emoji, room, event time in milliseconds.
type Reaction = (String, String, String, i64);

fn batch(table: &Table, reactions: &[Reaction]) -> RecordBatch {
    let row = |r: &Reaction| {
        vec![Value::from(r.0.as_str()), r.1.as_str().into(), r.2.as_str().into(), (r.3 * MS).into()]
    };
    rows::batch(table, &reactions.iter().map(row).collect::<Vec<_>>())
}

fn append(stage: &mut Stage, query: &Prepared, partition: usize, reactions: &[Reaction], timestamp_ms: i64) {
    stage.append(partition, &batch(query.source(), reactions), timestamp_ms);
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
async fn batch_answer(query: &Prepared, reactions: &[Reaction], sql: &str) -> Vec<String> {
    let config = SessionConfig::new().set_bool("datafusion.sql_parser.map_string_types_to_utf8view", false);
    let context = SessionContext::new_with_config(config);
    context.register_batch("reactions", batch(query.source(), reactions)).unwrap();
    let result = context.sql(sql).await.unwrap().collect().await.unwrap();
    rows::sorted(&rows::as_written(query.sink(), &result))
}

#[test]
fn up_to_1000_show_as_one_and_3785_as_three() {
    let query = compile(TABLES, EMOJI_COUNTS);
    let mut stage = Stage::new(&query, 1);
    let mut rows = Vec::new();
    for (emoji, count) in [("a", 1), ("b", 1000), ("c", 1001), ("d", 3785)] {
        rows.extend((0..count).map(|_| ("u".to_owned(), emoji.to_owned(), "main".to_owned(), 2_500)));
    }
    append(&mut stage, &query, 0, &rows, 2_500);
    stage.read_all();
    stage.end(4_499);
    assert!(stage.emitted().is_empty(), "the watermark is a millisecond before the window's end");
    stage.end(4_500);
    let shown: BTreeMap<_, _> = stage
        .rows()
        .map(|row| (row["emoji_type"].as_str().unwrap(), (&row["count"], &row["scaled"])))
        .collect();
    let expected: [(&str, i64, i64); 4] = [("a", 1, 1), ("b", 1000, 1), ("c", 1001, 1), ("d", 3785, 3)];
    assert_eq!(shown.len(), 4);
    for (emoji, count, scaled) in expected {
        assert_eq!(shown[emoji], (&Value::from(count), &Value::from(scaled)), "{emoji}");
    }
    assert_eq!(stage.emitted()[0].rows[0]["window_start"], "1970-01-01T00:00:02Z");
    assert_eq!(stage.emitted()[0].rows[0]["window_end"], "1970-01-01T00:00:04Z");
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
            let mut stage = Stage::new(&query, partitions);
            for (n, chunk) in rows.chunks(per_record).enumerate() {
                append(&mut stage, &query, n % partitions, chunk, chunk[chunk.len() - 1].3 + 500);
            }
            stage.interleaved();
            stage.end(1_000_000);
            let found = stage.results();
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(found, expected, "{partitions} partitions, {per_record} rows a record");
            }
            assert_eq!(found.len(), expected.len());
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
        let mut stage = Stage::new(&query, 3);
        for (n, chunk) in rows.chunks(random.random_range(1..40)).enumerate() {
            append(&mut stage, &query, n % 3, chunk, chunk[0].3 + 500);
        }
        // Out of step by a few records at most, as partitions of one topic are.
        let mut kills = 10;
        while (0..3).any(|partition| stage.unread(partition) > 0) {
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
        let figures = stage.checkpoint().unwrap().figures;
        assert_eq!(figures.late, 0, "seed {seed}: {figures:?}");
        assert_eq!(figures.counted, 3_000, "seed {seed}");
        assert_eq!(stage.results(), expected, "seed {seed}");
    }
}

#[test]
fn every_row_is_accounted_once_whatever_became_of_it() {
    let sql = EMOJI_COUNTS.replace("FROM reactions", "FROM reactions WHERE emoji_type <> 'no'");
    let query = compile(TABLES, &sql);
    let mut stage = Stage::new(&query, 2);
    let row = |emoji: &str, ms| ("u".to_owned(), emoji.to_owned(), "main".to_owned(), ms);
    append(&mut stage, &query, 0, &[row("a", 10_000), row("no", 10_001), row("a", 99_000)], 10_100);
    append(&mut stage, &query, 1, &[row("b", 10_500)], 10_500);
    stage.read_all();
    stage.end(12_500);
    assert_eq!(stage.rows().count(), 2);
    // Two late rows, one of them in a record that also has a row on time; one row in an open window.
    append(&mut stage, &query, 0, &[row("a", 11_999), row("a", 12_000)], 12_600);
    append(&mut stage, &query, 1, &[row("b", 11_000)], 12_600);
    stage.append_bytes(1, vec![1, 2, 3].into(), 1, 12_600);
    stage.read_all();
    for _ in 0..2 {
        let figures = stage.figures();
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

/// What a partition makes of `log`, given in slices of these lengths again and again and closed every hundred records;
/// the first 150 records were accounted before.
fn taken_in_slices(query: &Prepared, log: &[Record], slices: &[usize]) -> (Vec<Figures>, Vec<String>) {
    let shared = query.shared();
    let mut start = Start::decide(query, None, &[vec![0]]);
    start.lanes[0].from.seen = 150;
    let mut partition = Partition::new(Arc::clone(&shared), start.lanes[0], RULES, &start).unwrap();
    let mut closer = Closer::new(shared, 1, &start);
    let (mut figures, mut results, mut lengths) = (Vec::new(), Vec::new(), slices.iter().cycle());
    for hundred in log.chunks(100) {
        let mut rest = hundred;
        while let Some(length) = lengths.next().filter(|_| !rest.is_empty()) {
            let pushed = partition.push(&rest[..rest.len().min(*length)], 0).unwrap();
            for (place, _) in &pushed.bad {
                results.push(format!("bad at {}", rest[*place].offset));
            }
            rest = &rest[pushed.taken..];
        }
        assert_eq!(partition.next(), hundred.last().unwrap().offset + 1);
        let boundary = partition.watermark().and_then(|ns| query.boundary_at_or_before(ns));
        let closed = closer.close(vec![partition.hand_over(boundary).unwrap()], boundary).unwrap();
        figures.push(closed.checkpoint.figures);
        for window in closed.windows() {
            results.extend(rows::sorted(&rows::written(query.sink(), window)));
        }
    }
    (figures, results)
}

#[test]
fn records_taken_in_together_are_judged_each_by_itself() {
    let query = compile(&TABLES.replace("format = 'arrow'", "format = 'json'"), EMOJI_COUNTS);
    let mut random = StdRng::seed_from_u64(7);
    let mut sent = reactions(7, 1_000, 5);
    for row in sent.iter_mut().step_by(17) {
        row.3 -= 3_000; // late, once windows are closed
    }
    let encoded = RecordCodec::new(query.source()).encode(&batch(query.source(), &sent)).unwrap();
    assert_eq!(encoded.len(), sent.len(), "a record each");
    let log = (0..).zip(encoded.into_iter().zip(&sent)).map(|(offset, (new, row))| {
        let is_future = random.random_range(0..40) == 0;
        let is_bad = random.random_range(0..30) == 0;
        Record {
            offset,
            timestamp_ms: row.3 - if is_future { 5_001 } else { 0 },
            key: None,
            value: if is_bad { Some("{".into()) } else { new.value },
            headers: new.headers,
        }
    });
    let log: Vec<Record> = log.collect();
    let alone = taken_in_slices(&query, &log, &[1]);
    let last = alone.0.last().unwrap();
    assert!(last.late > 10 && last.future > 10 && last.bad > 10 && alone.1.len() > 50, "{alone:?}");
    for slices in [&[1_000][..], &[100], &[7, 1, 30], &[2]] {
        assert_eq!(taken_in_slices(&query, &log, slices), alone, "{slices:?}");
    }
}

#[test]
fn a_change_at_the_cut_goes_on_where_the_version_before_it_stopped() {
    let row = |ms| ("u".to_owned(), "a".to_owned(), "main".to_owned(), ms);
    let before = compile(TABLES, EMOJI_COUNTS);
    // Another width; where its first window starts; its rows.
    for (width, starts, rows) in [("6 seconds", 18, 1), ("2 seconds", 18, 1), ("5 seconds", 15, 3)] {
        let mut stage = Stage::new(&before, 1);
        for rows in [&[row(10_000), row(12_500)][..], &[row(15_000), row(16_000)], &[row(18_500)]] {
            append(&mut stage, &before, 0, rows, rows[0].3);
        }
        stage.read_all();
        assert_eq!(stage.rows().count(), 4, "10 s, 12 s, 14 s and 16 s");
        let changed = EMOJI_COUNTS
            .replace("2 seconds", width)
            .replace("FROM reactions", "FROM reactions WHERE room <> ''");
        let changed = compile(TABLES, &changed);
        stage.go_on_as(&changed);
        append(&mut stage, &changed, 0, &[row(18_700), row(1_000)], 18_700);
        stage.read_all();
        stage.end(40_000);
        let window = |row: &Map<String, Value>| (row["window_start"].clone(), row["count"].clone());
        let expected = (Value::from(format!("1970-01-01T00:00:{starts}Z")), Value::from(rows + 1));
        assert_eq!(stage.rows().map(window).collect::<Vec<_>>(), [expected], "{width}");
        let figures = stage.checkpoint().unwrap().figures;
        assert_eq!((figures.accepted, figures.counted, figures.late), (rows + 2, rows + 1, 1), "{width}");
    }
}

#[test]
fn a_first_start_from_latest_tells_no_window_of_which_it_did_not_see_every_row() {
    let query = compile(TABLES, EMOJI_COUNTS);
    let start = Start::from_now_on(&query, &[vec![7, 9]], 12_500 * MS);
    assert_eq!(start.emitted, Some(14_000 * MS), "the first window is that from 14 s on");
    let offsets: Vec<_> = start.lanes.iter().map(|lane| (lane.from.resume, lane.from.seen)).collect();
    assert_eq!(offsets, [(7, 7), (9, 9)]);
    assert_eq!(Start::from_now_on(&query, &[vec![7]], 14_000 * MS).emitted, Some(14_000 * MS));
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
    let query = compile(TABLES, EMOJI_COUNTS);
    let mut before = Stage::new(&query, 1);
    append(&mut before, &query, 0, &[("u".to_owned(), "a".to_owned(), "main".to_owned(), 2_500)], 2_500);
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
    let query = compile(&tables, &sql);
    let mut after = Stage::with_log_of(&query, before);
    after.read_all();
    after.end(4_500);
    let rows: Vec<_> = after.rows().collect();
    assert_eq!(rows.len(), 1);
    assert_eq!((&rows[0]["country"], &rows[0]["weight"]), (&Value::from("xx"), &Value::from(3)));
}
