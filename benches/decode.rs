//! How fast records of every format become columns: rows per CPU-second of one thread, log and engine left out.
//!
//! ```text
//! cargo bench --bench decode -- [rows=4000000]
//! ```
//!
//! The rows are those of the bench `catch_up`; the columns read are those of the shipped `emoji_counts` (emoji, room,
//! event time; not the user). Linux only: reads `/proc/self`.

#![allow(clippy::print_stdout)] // its result is what it prints

use std::hint::black_box;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampNanosecondArray};
use bytes::Bytes;
use emostream::log::Record;
use emostream::log::codec::RecordCodec;
use emostream::reaction::table::Framing;
use emostream::sql::{SqlFile, plan_program};

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// How many different rows there are; they repeat.
const DISTINCT: usize = 100_000;
const COLUMNS: [usize; 3] = [1, 2, 3];

fn main() -> Result<(), AnyError> {
    let rows = std::env::args().find_map(|argument| argument.strip_prefix("rows=")?.parse().ok());
    let rows: usize = rows.unwrap_or(4_000_000);
    for (name, format, framing, record_rows) in [
        ("arrow, records of 20000", "arrow", None, 20_000),
        ("arrow, records of 200", "arrow", None, 200),
        ("arrow, records of 20", "arrow", None, 20),
        ("json, one row a record", "json", None, 1),
        ("json lines, records of 1000", "json", Some(Framing::Newline), 1000),
        ("json lines, records of 20", "json", Some(Framing::Newline), 20),
    ] {
        let codec = codec(format, framing)?;
        let records = records(&codec, record_rows)?;
        let bytes: usize = records.iter().flat_map(|record| &record.value).map(|value| value.len()).sum();
        let began = cpu_seconds()?;
        let mut decoded = 0;
        while decoded < rows {
            let mut rest = &records[..];
            while !rest.is_empty() {
                let some = black_box(codec.decode_some(0, rest, &COLUMNS));
                if let Some((_, error)) = some.bad.first() {
                    return Err(error.to_string().into());
                }
                decoded += some.batch.num_rows();
                rest = &rest[some.taken..];
            }
        }
        let cpu = cpu_seconds()? - began;
        println!(
            "{name}: {:.2} million rows per CPU-second, {:.2} µs a record, {:.0} bytes a row",
            decoded as f64 / cpu / 1e6,
            cpu * 1e6 / (decoded as f64 / record_rows as f64),
            bytes as f64 / DISTINCT as f64
        );
    }
    Ok(())
}

fn codec(format: &str, framing: Option<Framing>) -> Result<RecordCodec, AnyError> {
    let file = SqlFile { name: "tables.sql".to_owned(), text: include_str!("../sql/tables.sql").to_owned() };
    let program = plan_program(&[file]).map_err(|found| format!("{found:?}"))?;
    let mut table =
        program.tables.into_iter().find(|table| table.name == "reactions").ok_or("no reactions")?;
    table.format = serde_json::from_value(format.into())?;
    table.with.framing = framing;
    Ok(RecordCodec::new(&table))
}

fn records(codec: &RecordCodec, record_rows: usize) -> Result<Vec<Record>, AnyError> {
    let mut records = Vec::new();
    for start in (0..DISTINCT).step_by(20_000) {
        let batch = batch(codec, start..start + 20_000)?;
        for start in (0..batch.num_rows()).step_by(record_rows.max(1)) {
            let part = batch.slice(start, record_rows.min(batch.num_rows() - start));
            let new = codec.encode(&part)?.into_iter();
            records.extend(new.map(|new| Record {
                offset: 0,
                timestamp_ms: 0,
                key: None,
                // As a log hands it out: a piece of a larger buffer.
                value: new.value.map(|value| Bytes::copy_from_slice(&value)),
                headers: new.headers,
            }));
        }
    }
    Ok(records)
}

fn batch(codec: &RecordCodec, numbers: std::ops::Range<usize>) -> Result<RecordBatch, AnyError> {
    // A square root makes low numbers rarer and high ones likelier: a falling frequency, as emojis have.
    let emoji = |n: usize| {
        let spread = (n.wrapping_mul(2_654_435_761) >> 7) % 2_500;
        char::from_u32(0x1F600 + (spread as f64).sqrt() as u32).map(String::from)
    };
    let user = |n: usize| Some(format!("user{:09}", n.wrapping_mul(7919) % 1_000_000_000));
    let time = |n: usize| Some(1_700_000_000_000_000_000_i64 + n as i64 * 100_000);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(numbers.clone().map(user).collect::<StringArray>()),
        Arc::new(numbers.clone().map(emoji).collect::<StringArray>()),
        Arc::new(numbers.clone().map(|_| Some("main")).collect::<StringArray>()),
        Arc::new(numbers.map(time).collect::<TimestampNanosecondArray>()),
    ];
    Ok(RecordBatch::try_new(Arc::clone(codec.schema()), columns)?)
}

/// User and system time of all threads of this process.
fn cpu_seconds() -> Result<f64, AnyError> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit_once(')').ok_or("no name in stat")?.1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    // Fields 14 and 15 of proc(5), counted from 1 with the first two before the name's end; 100 ticks a second.
    Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / 100.0)
}
