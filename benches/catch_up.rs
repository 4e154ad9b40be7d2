//! How fast the engine catches up from the log: rows per CPU-second of the whole process, all threads counted.
//!
//! ```text
//! cargo bench --bench catch_up -- [rows=20000000] [record_rows=20000] [kafka=HOST:PORT]
//! ```
//!
//! Fills a log with the shipped `reactions` (50 emojis by a falling frequency, one room, 13-byte user ids, 10,000
//! reactions per second of event time), then starts the engine with the shipped `emoji_counts` and waits until every row
//! is counted or open. Without `kafka=` it uses the embedded log in a temporary folder. Linux only: reads `/proc/self`.

#![allow(clippy::print_stdout)] // its result is what it prints

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampNanosecondArray};
use emostream::engine::{Place, Seat, Settings};
use emostream::log::codec::RecordCodec;
use emostream::log::program::{system_topics, table_topic};
use emostream::log::{Log, NewRecord};
use emostream::shutdown::Tasks;
use emostream::sql::{Program, SqlFile, plan_program};
use tokio::time::Instant;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

const FILES: [(&str, &str); 2] = [
    ("tables.sql", include_str!("../sql/tables.sql")),
    ("emoji_counts.sql", include_str!("../sql/emoji_counts.sql")),
];
const PARTITIONS: u32 = 3;
const ROWS_PER_SECOND: i64 = 10_000;

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let options: BTreeMap<String, String> = std::env::args()
        .filter_map(|argument| {
            argument.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()))
        })
        .collect();
    let number =
        |name: &str, default: usize| options.get(name).and_then(|text| text.parse().ok()).unwrap_or(default);
    let (rows, record_rows) = (number("rows", 20_000_000), number("record_rows", 20_000));
    let folder = tempfile::tempdir()?;
    let log = open(options.get("kafka"), folder.path()).await?;
    let program = program()?;
    let mut topics = system_topics();
    topics.extend(
        program.tables.iter().map(|table| table_topic(table, PARTITIONS, Duration::from_secs(86_400))),
    );
    log.create_topics(&topics).await?;
    let began = Instant::now();
    let bytes = fill(log.as_ref(), &program, rows, record_rows).await?;
    eprintln!("filled {rows} rows in {:.1?}, {:.1} bytes a row", began.elapsed(), bytes as f64 / rows as f64);
    measure(&log, rows, record_rows).await
}

async fn open(kafka: Option<&String>, folder: &std::path::Path) -> Result<Arc<dyn Log>, AnyError> {
    Ok(match kafka {
        Some(bootstrap) => {
            let bootstrap_servers = bootstrap.clone();
            let settings = emostream::log::kafka::KafkaSettings { bootstrap_servers, ..Default::default() };
            emostream::log::kafka::KafkaLog::connect(settings).await?
        }
        None => emostream::log::embedded::EmbeddedLog::open(folder, Default::default())?,
    })
}

fn program() -> Result<Program, AnyError> {
    let files = FILES.map(|(name, text)| SqlFile { name: name.to_owned(), text: text.to_owned() });
    plan_program(&files).map_err(|found| format!("{found:?}").into())
}

/// Returns how many bytes of values were written.
async fn fill(log: &dyn Log, program: &Program, rows: usize, record_rows: usize) -> Result<usize, AnyError> {
    let codec = RecordCodec::new(&program.queries[0].sources[0]);
    let topic = &program.queries[0].sources[0].topic;
    let start_ns = 1_700_000_000_000_000_000_i64;
    let (mut written, mut bytes) = (0, 0);
    let mut pending: Vec<Vec<NewRecord>> = vec![Vec::new(); PARTITIONS as usize];
    while written < rows {
        let numbers = written..(written + record_rows).min(rows);
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
                    .map(|n| Some(start_ns + n as i64 * (1_000_000_000 / ROWS_PER_SECOND)))
                    .collect::<TimestampNanosecondArray>(),
            ),
        ];
        let records = codec.encode(&RecordBatch::try_new(Arc::clone(codec.schema()), columns)?)?;
        bytes += records.iter().flat_map(|record| &record.value).map(|value| value.len()).sum::<usize>();
        let partition = (written / record_rows) % PARTITIONS as usize;
        pending[partition].extend(records);
        written = numbers.end;
        if pending[partition].len() == 20 || written == rows {
            for (partition, records) in
                pending.iter_mut().enumerate().filter(|(_, records)| !records.is_empty())
            {
                log.append(topic, u32::try_from(partition)?, std::mem::take(records)).await?;
            }
        }
    }
    Ok(bytes)
}

async fn measure(log: &Arc<dyn Log>, rows: usize, record_rows: usize) -> Result<(), AnyError> {
    let tasks = Tasks::new();
    let (began, cpu_before) = (Instant::now(), cpu_seconds()?);
    let sql = tempfile::tempdir()?;
    for (name, text) in FILES {
        std::fs::write(sql.path().join(name), text)?;
    }
    let place = Place {
        folder: sql.path().to_owned(),
        partitions: PARTITIONS,
        retention: Duration::from_secs(86_400),
        servers: Vec::new(),
    };
    let seat = Seat::occupy(log, place, &Settings::default(), &tasks).await?;
    let engine = seat.engine().ok_or("no engine")?;
    loop {
        let report = engine.report("emoji_counts").await?.ok_or("no query")?;
        let done =
            report.figures.counted as usize + report.figures.open as usize >= rows && report.lag_records == 0;
        if done && report.figures.accepted as usize >= rows {
            break;
        }
        if let Some(error) = report.last_error {
            return Err(error.into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (wall, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds()? - cpu_before);
    println!(
        "catch_up: {rows} rows in records of {record_rows}: {:.2} s wall, {cpu:.2} CPU-s, {:.1} million rows per CPU-second, {} MB resident at most",
        wall,
        rows as f64 / cpu / 1e6,
        peak_mb()?
    );
    tasks.stop(Duration::from_secs(10)).await;
    Ok(())
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
