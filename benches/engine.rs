//! How fast the engine's pure core counts: rows per CPU-second of one thread, with no log and no network.
//!
//! ```text
//! cargo bench --bench engine -- [rows=4000000] [only=NAME]
//! ```
//!
//! The core takes pre-encoded records in, hands over and closes every window as its watermark passes it. Beside
//! `emoji_counts` stands, in the same run, a limit written by hand: it decodes the same records, reads the event time,
//! assigns the pane and counts per (pane, room, emoji) in arrays. Rows are like those of the bench `catch_up`: 50 emojis by
//! a falling frequency, one room. Every figure is the best of three passes, in CPU time, so that a busy machine tells
//! about the same; only the two threads are also told in wall time. Linux only: reads `/proc/thread-self`.

#![allow(clippy::print_stdout)] // its result is what it prints

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, TimestampNanosecondArray};
use arrow::datatypes::{Int32Type, TimestampNanosecondType};
use bytes::Bytes;
use emostream::engine::closing::{Closer, Start};
use emostream::engine::compile::CompiledQuery;
use emostream::engine::partition::{Partition, TimeRules};
use emostream::log::Record;
use emostream::log::codec::RecordCodec;
use emostream::sql::{SqlFile, plan_program};
use tokio::time::Instant;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

const TABLES: &str = include_str!("../sql/tables.sql");
const EMOJI_COUNTS: &str = include_str!("../sql/emoji_counts.sql");
const PASSES: usize = 3;
/// Records held in memory at most, so that small ones are fewer rows instead of gigabytes.
const MAX_RECORDS: usize = 200_000;
const START_NS: i64 = 1_700_000_002_000_000_000;
const PANE_NS: i64 = 2_000_000_000;

/// What is measured.
struct Case {
    name: &'static str,
    /// After `CREATE TABLE out`, columns of a sink; empty for the shipped one.
    sink: &'static str,
    sql: String,
    format: &'static str,
    record_rows: usize,
    /// Of event time.
    rows_per_second: i64,
    users: usize,
    /// How far apart in event time neighbours may lie, nanoseconds.
    jitter_ns: i64,
}

impl Case {
    fn arrow(name: &'static str, record_rows: usize) -> Self {
        let sql = EMOJI_COUNTS.to_owned();
        let (sink, format, rows_per_second) = ("", "'arrow'", 10_000);
        Self { name, sink, sql, format, record_rows, rows_per_second, users: 1_000_000_000, jitter_ns: 0 }
    }

    fn query(name: &'static str, sink: &'static str, sql: &str) -> Self {
        Self { sink, sql: format!("INSERT INTO out {sql}"), ..Self::arrow(name, 20_000) }
    }
}

fn cases() -> Vec<Case> {
    let counts = "start TIMESTAMP, room TEXT, emoji TEXT, n BIGINT";
    let over = |window: &str, rest: &str| {
        format!(
            "SELECT window.start, room, emoji_type, n FROM (SELECT {window} AS window, room, emoji_type, \
             count(*) AS n FROM reactions {rest} GROUP BY window, room, emoji_type)"
        )
    };
    let tumble = "tumble(INTERVAL '2 seconds')";
    let hop = "hop(INTERVAL '2 seconds', INTERVAL '60 seconds')";
    let users = format!(
        "SELECT window.start, user_id, n FROM (SELECT {tumble} AS window, user_id, count(*) AS n \
         FROM reactions GROUP BY window, user_id)"
    );
    let distinct = format!(
        "SELECT window.start, room, n FROM (SELECT {tumble} AS window, room, \
         count(DISTINCT user_id) AS n FROM reactions GROUP BY window, room)"
    );
    let many = Case {
        rows_per_second: 500_000,
        users: 100_000,
        ..Case::query("groups 100000", "start TIMESTAMP, user_id TEXT, n BIGINT", &users)
    };
    vec![
        Case::arrow("tumble 20000", 20_000),
        Case::arrow("tumble 200", 200),
        Case::arrow("tumble 20", 20),
        Case { jitter_ns: 300_000_000, ..Case::arrow("tumble, shuffled", 20_000) },
        Case::query("hop 2 s, 60 s", counts, &over(hop, "")),
        many,
        Case::query("count(DISTINCT user_id)", "start TIMESTAMP, room TEXT, n BIGINT", &distinct),
        Case::query("emoji_base filter", counts, &over(tumble, "WHERE emoji_base(emoji_type) <> '😀'")),
        Case { format: "'json'", ..Case::arrow("json 1", 1) },
        Case { format: "'json', 'framing' = 'newline'", ..Case::arrow("json lines 1000", 1000) },
        ten(counts, &|n| {
            over(tumble, "").replace("room, emoji_type, n FROM", &format!("room, emoji_type, n * {n} FROM"))
        }),
    ]
}

/// Ten INSERTs into ten sinks.
fn ten(sink: &'static str, select: &dyn Fn(usize) -> String) -> Case {
    let sql = (1..=10).map(|n| format!("INSERT INTO out{n} {};\n", select(n))).collect();
    Case { sql, sink, ..Case::arrow("ten outputs, one cut", 20_000) }
}

fn main() -> Result<(), AnyError> {
    let options: BTreeMap<String, String> = std::env::args()
        .filter_map(|argument| {
            argument.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()))
        })
        .collect();
    let rows = options.get("rows").and_then(|text| text.parse().ok()).unwrap_or(4_000_000);
    println!(
        "{:<26}{:>12}{:>12}{:>9}{:>12}{:>10}",
        "", "limit M/s", "core M/s", "ratio", "µs/record", "windows"
    );
    for case in cases() {
        if options.get("only").is_some_and(|only| !case.name.contains(only.as_str())) {
            continue;
        }
        let query = Arc::new(compile(&case)?);
        let records = records(&case, &query, rows)?;
        let (core, windows) = best(|| core(&query, &records))?;
        let rows = (records.len() * case.record_rows) as f64;
        let limit = match case.sink.is_empty() && case.format == "'arrow'" {
            true => {
                let (limit, counted) = best(|| limit(&query, &records))?;
                if counted != records.len() * case.record_rows {
                    return Err(format!("the limit counted {counted}").into());
                }
                Some(limit)
            }
            false => None,
        };
        let of_limit = |of: fn(f64, f64) -> f64| {
            limit.map_or_else(|| "-".to_owned(), |limit| format!("{:.2}", of(limit, core)))
        };
        println!(
            "{:<26}{:>12}{:>12.1}{:>9}{:>12.2}{:>10}",
            case.name,
            of_limit(|limit, _| limit)
                .parse::<f64>()
                .map_or_else(|_| "-".to_owned(), |limit| format!("{:.1}", rows / limit / 1e6)),
            rows / core / 1e6,
            of_limit(|limit, core| limit / core),
            core * 1e6 / records.len() as f64,
            windows
        );
        if case.name == "tumble 20000" {
            two_threads(&query, &records, rows)?;
        }
    }
    Ok(())
}

fn compile(case: &Case) -> Result<CompiledQuery, AnyError> {
    let tables = TABLES.replace("format = 'arrow'", &format!("format = {}", case.format));
    let sinks = match (case.sink, case.sql.contains("INSERT INTO out1 ")) {
        ("", _) => Vec::new(),
        (_, false) => vec!["out".to_owned()],
        (_, true) => (1..=10).map(|n| format!("out{n}")).collect(),
    };
    let sinks = sinks.iter().map(|sink| {
        format!("CREATE TABLE {sink} ({}) WITH (connector = 'kafka', type = 'sink', topic = '{sink}', format = 'json');\n", case.sink)
    });
    let files = [("tables.sql", tables + &sinks.collect::<String>()), ("measured.sql", case.sql.clone())];
    let files = files.map(|(name, text)| SqlFile { name: name.to_owned(), text });
    let program = plan_program(&files).map_err(|found| format!("{}: {found:?}", case.name))?;
    Ok(CompiledQuery::compile(program.queries.first().ok_or("no query")?)?)
}

fn records(case: &Case, query: &CompiledQuery, rows: usize) -> Result<Vec<Record>, AnyError> {
    let codec = RecordCodec::new(&query.sources[0].table);
    let rows = rows.min(MAX_RECORDS * case.record_rows);
    let mut records: Vec<Record> = Vec::with_capacity(rows / case.record_rows + 1);
    for start in (0..rows).step_by(case.record_rows) {
        let batch = batch(case, &codec, start..(start + case.record_rows).min(rows))?;
        for new in codec.encode(&batch)? {
            records.push(Record {
                offset: i64::try_from(records.len())?,
                timestamp_ms: START_NS / 1_000_000 + 3_600_000,
                key: None,
                // As a log hands it out: as long as it is.
                value: new.value.map(|value| Bytes::copy_from_slice(&value)),
                headers: new.headers,
            });
        }
    }
    Ok(records)
}

fn batch(case: &Case, codec: &RecordCodec, numbers: std::ops::Range<usize>) -> Result<RecordBatch, AnyError> {
    // A square root makes low numbers rarer and high ones likelier: a falling frequency, as emojis have.
    let mixed = |n: usize| n.wrapping_mul(2_654_435_761) >> 7;
    let emoji =
        |n: usize| char::from_u32(0x1F600 + ((mixed(n) % 2_500) as f64).sqrt() as u32).map(String::from);
    let user = |n: usize| Some(format!("user{:09}", n.wrapping_mul(7919) % case.users));
    let step = 1_000_000_000 / case.rows_per_second;
    let time = |n: usize| {
        let early = if case.jitter_ns == 0 { 0 } else { (mixed(n) as i64).rem_euclid(case.jitter_ns) };
        Some(START_NS + n as i64 * step - early)
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(numbers.clone().map(user).collect::<StringArray>()),
        Arc::new(numbers.clone().map(emoji).collect::<StringArray>()),
        Arc::new(numbers.clone().map(|_| Some("main")).collect::<StringArray>()),
        Arc::new(numbers.map(time).collect::<TimestampNanosecondArray>()),
    ];
    Ok(RecordBatch::try_new(Arc::clone(codec.schema()), columns)?)
}

/// All of one partition: the number of windows that it wrote.
fn core(query: &Arc<CompiledQuery>, records: &[Record]) -> Result<usize, AnyError> {
    let start = Start::decide(query, None, &[vec![0]]);
    let rules = TimeRules { future_tolerance_ms: 60_000, idle_ms: 1_000 };
    let mut partition = Partition::new(Arc::clone(query), start.lanes[0], rules, &start)?;
    let mut closer = Closer::new(Arc::clone(query), 1, &start);
    let (mut rest, mut windows) = (records, 0);
    loop {
        let is_over = rest.is_empty();
        if is_over {
            partition.end();
        } else {
            // As many as a read gives.
            let pushed = partition.push(&rest[..rest.len().min(2_000)], 0)?;
            if let Some((_, error)) = pushed.bad.first() {
                return Err(error.to_string().into());
            }
            rest = &rest[pushed.taken..];
        }
        let boundary = partition.watermark().and_then(|ns| query.boundary_at_or_before(ns));
        if boundary > closer.emitted() {
            let closed = closer.close(vec![partition.hand_over(boundary)?], boundary)?;
            windows += closed.windows().count();
            if !closed.checkpoint.figures.is_conserved() || closed.checkpoint.figures.late > 0 {
                return Err(format!("{:?}", closed.checkpoint.figures).into());
            }
        }
        if is_over {
            return Ok(windows);
        }
    }
}

/// The same by hand, for one query: how many rows it counted.
fn limit(query: &CompiledQuery, records: &[Record]) -> Result<usize, AnyError> {
    let source = &query.sources[0];
    let codec = RecordCodec::new(&source.table);
    let mut panes: BTreeMap<i64, Vec<u64>> = BTreeMap::new();
    let (mut rooms, mut emojis) = (Names::default(), Names::default());
    let (mut rest, mut counted) = (records, 0);
    while !rest.is_empty() {
        let decoded = codec.decode_some(0, rest, &[1, 2, 3]);
        rest = &rest[decoded.taken..];
        let columns = decoded.batch.columns();
        let (emoji_of, emoji) = emojis.numbers(&columns[0])?;
        let (room_of, room) = rooms.numbers(&columns[1])?;
        let times = columns[2].as_primitive::<TimestampNanosecondType>().values();
        let (mut pane, mut counts) = (i64::MAX, &mut Vec::new());
        for ((&ns, &emoji), &room) in times.iter().zip(emoji).zip(room) {
            if ns < pane || ns - pane >= PANE_NS {
                pane = ns - ns.rem_euclid(PANE_NS);
                counts = panes.entry(pane).or_insert_with(|| vec![0; 16 * 256]);
            }
            counts[room_of[room as usize] * 256 + emoji_of[emoji as usize]] += 1;
        }
        let over = panes.last_key_value().map_or(i64::MIN, |(pane, _)| pane - PANE_NS);
        while let Some(pane) = panes.first_entry().filter(|pane| *pane.key() < over) {
            counted += pane.remove().into_iter().sum::<u64>() as usize;
        }
    }
    Ok(counted + panes.into_values().flatten().sum::<u64>() as usize)
}

/// Texts by number.
#[derive(Default)]
struct Names(HashMap<String, usize>);

impl Names {
    /// The number of each of the column's values, and each row's value.
    fn numbers<'a>(&mut self, column: &'a ArrayRef) -> Result<(Vec<usize>, &'a [i32]), AnyError> {
        let column = column.as_dictionary_opt::<Int32Type>().ok_or("no dictionary")?;
        let values = column.values().as_string::<i32>();
        let mut number = |value: &str| match self.0.get(value) {
            Some(known) => *known,
            None => {
                let next = self.0.len();
                self.0.insert(value.to_owned(), next);
                next
            }
        };
        let numbers = (0..values.len()).map(|at| number(values.value(at))).collect();
        Ok((numbers, column.keys().values()))
    }
}

/// Two partitions side by side.
fn two_threads(query: &Arc<CompiledQuery>, records: &[Record], rows: f64) -> Result<(), AnyError> {
    let alone = Instant::now();
    core(query, records)?;
    let alone = alone.elapsed().as_secs_f64();
    let began = Instant::now();
    let cpu = std::thread::scope(|scope| {
        let threads = [0, 1].map(|_| scope.spawn(|| best(|| core(query, records)).map(|(cpu, _)| cpu)));
        threads
            .map(|thread| thread.join().map_err(|_| "a thread panicked")?)
            .into_iter()
            .sum::<Result<f64, AnyError>>()
    })?;
    let wall = began.elapsed().as_secs_f64() / PASSES as f64;
    println!(
        "{:<26}{:>12}{:>12.1}{:>9}{:>12}{:>10}  wall {:.2} × one",
        "two threads",
        "-",
        2.0 * rows / cpu / 1e6,
        "-",
        "-",
        "-",
        2.0 * alone / wall
    );
    Ok(())
}

/// The CPU-seconds of the fastest of several passes, and what it returned.
fn best<T>(pass: impl Fn() -> Result<T, AnyError>) -> Result<(f64, T), AnyError> {
    let mut best: Option<(f64, T)> = None;
    for _ in 0..PASSES {
        let began = cpu_seconds()?;
        let value = pass()?;
        let cpu = cpu_seconds()? - began;
        if best.as_ref().is_none_or(|(known, _)| cpu < *known) {
            best = Some((cpu, value));
        }
    }
    best.ok_or_else(|| "no pass".into())
}

/// What this thread has run, by the scheduler's nanoseconds.
fn cpu_seconds() -> Result<f64, AnyError> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(stat.split_whitespace().next().ok_or("no figure")?.parse::<f64>()? / 1e9)
}
