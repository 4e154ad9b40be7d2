//! How fast the engine catches up from the log: rows per CPU-second of the whole process, all threads counted.
//!
//! ```text
//! cargo bench --bench catch_up -- [rows=20000000] [record_rows=20000] [format=arrow|json|lines] [partitions=3]
//!                                 [rate=10000] [queries=1 shape=above|keys] [kafka=HOST:PORT] [PROPERTY=VALUE …]
//! ```
//!
//! Fills a log with the shipped `reactions` (50 emojis by a falling frequency, one room, 13-byte user ids, 10,000
//! reactions, or `rate=`, per second of event time), then starts the engine with the shipped `emoji_counts` and waits until
//! every row is counted or open. With `queries=` it does the same for so many together afterwards, which differ above the
//! cut or in their keys, and tells how many times the one query's CPU time that took. No row is given out before all have
//! begun. Without `kafka=` it uses the embedded log in a temporary folder. What has a point in its name is a
//! property of librdkafka: `compression.type=zstd` compresses what is written, `compression=zstd` does so column by column as
//! `[ingest] compression` does. Records of JSON are written without
//! headers, as foreign writers do. Linux only: reads `/proc/self`.
//!
//! What the profile said of reading 20 million rows from Kafka, before the changes that it led to: a quarter was the
//! system's copy out of the socket; a sixth a wait for deliveries that span instead of sleeping; a sixth the copy out of
//! librdkafka, most of it pages that the system mapped and cleared for every record; a sixth decoding and counting. Of
//! the embedded log a quarter was the allocator.
//!
//! 10 million rows from Kafka, in four runs one after the other (million rows per CPU-second, bytes a row before Kafka):
//!
//! | plain | `compression=zstd` | `compression=lz4` | `compression.type=zstd` |
//! |---|---|---|---|
//! | 17.2, 33 | 14.9, 10 | 11.8, 18 | 7.4, 33 |
//!
//! Column by column what the query does not read stays compressed, and less is copied out of the socket; librdkafka
//! decompresses whole batches, into buffers that it guesses the size of.

#![allow(clippy::print_stdout)] // its result is what it prints

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampNanosecondArray};
use async_trait::async_trait;
use bytes::Bytes;
use emostream::engine::{Place, Seat, Settings};
use emostream::log::codec::{Compression, RecordCodec};
use emostream::log::program::{system_topics, table_topic};
use emostream::log::{
    Log, LogError, NewRecord, PartitionRange, ReadBatch, Reader, Record, TopicSpec, Writer,
};
use emostream::shutdown::Tasks;
use emostream::sql::{Program, SqlFile, plan_program};
use tokio::sync::watch;
use tokio::time::Instant;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

const EMOJI_COUNTS: &str = include_str!("../sql/emoji_counts.sql");
/// As many keys as queries, each of one column.
const KEYS: [&str; 10] = [
    "emoji_type",
    "upper(emoji_type)",
    "lower(emoji_type)",
    "reverse(emoji_type)",
    "trim(emoji_type)",
    "concat(emoji_type, '1')",
    "concat(emoji_type, '2')",
    "concat(emoji_type, '3')",
    "concat(emoji_type, '4')",
    "concat(emoji_type, '5')",
];

/// What is measured.
struct Case {
    rows: usize,
    record_rows: usize,
    partitions: u32,
    /// Rows per second of event time.
    rate: i64,
    tables: String,
    has_headers: bool,
    compression: Compression,
}

impl Case {
    fn of(options: &BTreeMap<String, String>) -> Result<Self, AnyError> {
        let number = |name: &str, default: usize| {
            options
                .get(name)
                .map_or(Ok(default), |text| text.parse())
                .map_err(|_| format!("{name} is no number"))
        };
        let (format, record_rows, rows) = match options.get("format").map_or("arrow", String::as_str) {
            "arrow" => ("'arrow'", 20_000, 20_000_000),
            "json" => ("'json'", 1, 2_000_000),
            "lines" => ("'json', 'framing' = 'newline'", 1000, 5_000_000),
            other => return Err(format!("format={other}; there are arrow, json and lines").into()),
        };
        let tables =
            include_str!("../sql/tables.sql").replacen("format = 'arrow'", &format!("format = {format}"), 1);
        Ok(Self {
            rows: number("rows", rows)?,
            record_rows: if record_rows == 1 { 1 } else { number("record_rows", record_rows)? },
            partitions: u32::try_from(number("partitions", 3)?)?,
            rate: i64::try_from(number("rate", 10_000)?)?,
            tables,
            has_headers: format == "'arrow'",
            compression: match options.get("compression").map(String::as_str) {
                None => Compression::None,
                Some("lz4") => Compression::Lz4,
                Some("zstd") => Compression::Zstd,
                Some(other) => return Err(format!("compression={other}; there are lz4 and zstd").into()),
            },
        })
    }

    fn program(&self) -> Result<Program, AnyError> {
        let files = [("tables.sql", self.tables.as_str()), ("emoji_counts.sql", EMOJI_COUNTS)];
        let files = files.map(|(name, text)| SqlFile { name: name.to_owned(), text: text.to_owned() });
        plan_program(&files).map_err(|found| format!("{found:?}").into())
    }
}

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let options: BTreeMap<String, String> = std::env::args()
        .filter_map(|argument| {
            argument.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()))
        })
        .collect();
    let case = Case::of(&options)?;
    let folder = tempfile::tempdir()?;
    let log = open(&options, folder.path()).await?;
    let program = case.program()?;
    let mut topics = system_topics();
    topics.extend(
        program.tables.iter().map(|table| table_topic(table, case.partitions, Duration::from_secs(86_400))),
    );
    log.create_topics(&topics).await?;
    let began = Instant::now();
    let bytes = fill(log.as_ref(), &program, &case).await?;
    let Case { rows, .. } = case;
    eprintln!("filled {rows} rows in {:.1?}, {:.1} bytes a row", began.elapsed(), bytes as f64 / rows as f64);
    let one = measure(&log, &case, &[("one".to_owned(), EMOJI_COUNTS.to_owned())]).await?;
    let queries: usize = options.get("queries").map_or(Ok(1), |text| text.parse())?;
    if queries > 1 {
        let differ_in_keys = options.get("shape").is_some_and(|shape| shape == "keys");
        let several: Vec<_> = (0..queries).map(|n| (format!("q{n}"), query(n, differ_in_keys))).collect();
        let case = Case { tables: with_sinks(&case.tables, queries), ..case };
        let several = measure(&log, &case, &several).await?;
        println!("catch_up: {queries} queries cost {:.2} times what one costs", several / one);
    }
    Ok(())
}

/// The tables, and a sink for each of several queries.
fn with_sinks(tables: &str, queries: usize) -> String {
    let (source, sink) = tables.split_once("CREATE TABLE emoji_counts").unwrap_or((tables, ""));
    let sink = |n: usize| {
        let columns = sink.replace("topic = 'emoji_counts'", &format!("topic = 'counts_{n}'"));
        format!("CREATE TABLE counts_{n}{columns}")
    };
    source.to_owned() + &(0..queries).map(sink).collect::<String>()
}

/// The n-th of several queries.
fn query(n: usize, differs_in_keys: bool) -> String {
    let text = EMOJI_COUNTS.replace("INSERT INTO emoji_counts", &format!("INSERT INTO counts_{n}"));
    if !differs_in_keys {
        return text.replace("1000", &format!("{}", 1000 + n));
    }
    let keyed = format!("window, room, {} AS emoji_type, count(*)", KEYS[n % KEYS.len()]);
    text.replace("window, room, emoji_type, count(*)", &keyed)
        .replace("GROUP BY window, room, emoji_type", "GROUP BY 1, 2, 3")
}

async fn open(
    options: &BTreeMap<String, String>,
    folder: &std::path::Path,
) -> Result<Arc<dyn Log>, AnyError> {
    Ok(match options.get("kafka") {
        Some(bootstrap) => {
            let mut settings = emostream::log::kafka::KafkaSettings::new(bootstrap.as_str());
            let named = options.iter().filter(|(name, _)| name.contains('.'));
            settings.properties = named.map(|(name, value)| (name.clone(), value.clone())).collect();
            emostream::log::kafka::KafkaLog::connect(settings).await?
        }
        None => emostream::log::embedded::EmbeddedLog::open(folder, Default::default())?,
    })
}

/// Returns how many bytes of values were written.
async fn fill(log: &dyn Log, program: &Program, case: &Case) -> Result<usize, AnyError> {
    let Case { rows, record_rows, partitions, .. } = *case;
    // As many records as are encoded, and appended, together.
    let batch_rows = record_rows.max(20_000);
    let codec = RecordCodec::new(&program.queries[0].sources[0]).compressing(case.compression);
    let topic = &program.queries[0].sources[0].topic;
    let start_ns = 1_700_000_000_000_000_000_i64;
    let (mut written, mut bytes) = (0, 0);
    let mut pending: Vec<Vec<NewRecord>> = vec![Vec::new(); partitions as usize];
    while written < rows {
        let numbers = written..(written + batch_rows).min(rows);
        // Squaring makes low numbers likelier: a falling frequency, as emojis have.
        let emoji = |n: usize| {
            let spread = (n.wrapping_mul(2_654_435_761) >> 7) % 2_500;
            char::from_u32(0x1F600 + (spread as f64).sqrt() as u32).map(String::from)
        };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(
                numbers
                    .clone()
                    .map(|n| Some(format!("user{:09}", n.wrapping_mul(7919) % 1_000_000_000)))
                    .collect::<StringArray>(),
            ),
            Arc::new(numbers.clone().map(emoji).collect::<StringArray>()),
            Arc::new(numbers.clone().map(|_| Some("main")).collect::<StringArray>()),
            Arc::new(
                numbers
                    .clone()
                    .map(|n| Some(start_ns + n as i64 * (1_000_000_000 / case.rate)))
                    .collect::<TimestampNanosecondArray>(),
            ),
        ];
        let batch = RecordBatch::try_new(Arc::clone(codec.schema()), columns)?;
        let mut records = Vec::new();
        for from in (0..batch.num_rows()).step_by(record_rows) {
            records.extend(codec.encode(&batch.slice(from, record_rows.min(batch.num_rows() - from)))?);
        }
        if !case.has_headers {
            records.iter_mut().for_each(|record| record.headers.clear());
        }
        bytes += records.iter().flat_map(|record| &record.value).map(|value| value.len()).sum::<usize>();
        let partition = (written / batch_rows) % partitions as usize;
        pending[partition].extend(records);
        written = numbers.end;
        if pending[partition].len() >= 20 || written == rows {
            for (partition, records) in
                pending.iter_mut().enumerate().filter(|(_, records)| !records.is_empty())
            {
                log.append(topic, u32::try_from(partition)?, std::mem::take(records)).await?;
            }
        }
    }
    Ok(bytes)
}

/// Runs these queries, by name, over all that is there. Returns the CPU-seconds that took.
async fn measure(log: &Arc<dyn Log>, case: &Case, queries: &[(String, String)]) -> Result<f64, AnyError> {
    let Case { rows, record_rows, partitions, .. } = *case;
    let (tasks, sql) = (Tasks::new(), tempfile::tempdir()?);
    std::fs::write(sql.path().join("tables.sql"), &case.tables)?;
    for (name, text) in queries {
        std::fs::write(sql.path().join(format!("{name}.sql")), text)?;
    }
    let place = Place {
        folder: sql.path().to_owned(),
        partitions,
        retention: Duration::from_secs(86_400),
        servers: Vec::new(),
    };
    let gated = Arc::new(Gated { log: Arc::clone(log), is_open: watch::Sender::new(false) });
    let shared: Arc<dyn Log> = Arc::<Gated>::clone(&gated);
    let seat = Seat::occupy(&shared, place, &Settings::default(), &tasks).await?;
    let engine = seat.engine().ok_or("no engine")?;
    while engine.restored().is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let (began, cpu_before) = (Instant::now(), cpu_seconds()?);
    gated.is_open.send_replace(true);
    for (name, _) in queries {
        loop {
            let report = engine.report(name).await?.ok_or("no query")?;
            let figures = report.figures;
            let done = figures.counted as usize + figures.open as usize >= rows && report.lag_records == 0;
            if done && figures.accepted as usize >= rows {
                break;
            }
            if let Some(error) = report.last_error {
                return Err(error.into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let (wall, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds()? - cpu_before);
    println!(
        "catch_up: {} queries, {rows} rows in records of {record_rows}: {wall:.2} s wall, {cpu:.2} CPU-s, {:.1} million rows per CPU-second, {} MB resident at most",
        queries.len(),
        rows as f64 / cpu / 1e6,
        peak_mb()?
    );
    drop(engine);
    tasks.stop(Duration::from_secs(10)).await;
    Ok(cpu)
}

/// A log whose readers find nothing before it is opened.
struct Gated {
    log: Arc<dyn Log>,
    is_open: watch::Sender<bool>,
}

struct GatedReader {
    reader: Box<dyn Reader>,
    next: i64,
    is_open: watch::Receiver<bool>,
}

#[async_trait]
impl Reader for GatedReader {
    async fn read(&mut self, max_bytes: usize, wait: Duration) -> Result<ReadBatch, LogError> {
        if tokio::time::timeout(wait, self.is_open.wait_for(|is_open| *is_open)).await.is_err() {
            return Ok(ReadBatch { next: self.next, ..ReadBatch::default() });
        }
        let batch = self.reader.read(max_bytes, wait).await?;
        self.next = batch.next;
        Ok(batch)
    }
}

#[async_trait]
impl Log for Gated {
    fn is_shared(&self) -> bool {
        self.log.is_shared()
    }

    async fn create_topics(&self, specs: &[TopicSpec]) -> Result<(), LogError> {
        self.log.create_topics(specs).await
    }

    async fn describe(&self, topic: &str) -> Result<Option<Vec<PartitionRange>>, LogError> {
        self.log.describe(topic).await
    }

    async fn append(&self, topic: &str, partition: u32, records: Vec<NewRecord>) -> Result<i64, LogError> {
        self.log.append(topic, partition, records).await
    }

    async fn reader(&self, topic: &str, partition: u32, offset: i64) -> Result<Box<dyn Reader>, LogError> {
        let reader = self.log.reader(topic, partition, offset).await?;
        Ok(Box::new(GatedReader { reader, next: offset, is_open: self.is_open.subscribe() }))
    }

    async fn offset_at(&self, topic: &str, partition: u32, timestamp_ms: i64) -> Result<i64, LogError> {
        self.log.offset_at(topic, partition, timestamp_ms).await
    }

    async fn fence(&self, writer_id: &str) -> Result<Box<dyn Writer>, LogError> {
        self.log.fence(writer_id).await
    }

    async fn latest(&self, topic: &str) -> Result<BTreeMap<Bytes, Record>, LogError> {
        self.log.latest(topic).await
    }

    async fn trim(&self, topic: &str, partition: u32, offset: i64) -> Result<(), LogError> {
        self.log.trim(topic, partition, offset).await
    }
}

/// User and system time of all threads of this process.
fn cpu_seconds() -> Result<f64, AnyError> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit_once(')').ok_or("no name in stat")?.1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    // Fields 14 and 15 of proc(5), counted from 1 with the first two before the name's end; 100 ticks a second.
    Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / 100.0)
}

fn peak_mb() -> Result<u64, AnyError> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM")).ok_or("no VmHWM")?;
    Ok(line.split_whitespace().nth(1).ok_or("no number")?.parse::<u64>()? / 1024)
}
