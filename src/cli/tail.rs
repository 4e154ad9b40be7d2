//! `emostream tail TABLE`: a topic's rows as they come, one JSON object a line.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use reqwest::Url;
use serde_json::{Map, Value};

use super::live::{self, Live, Trouble};
use super::process::SettingsArgs;
use super::{Failure, logs, process};
use crate::config::LogKind;
use crate::log::codec::{CodecError, JsonText, RecordCodec};
use crate::log::program;
use crate::log::{HEADER_FINAL, Log, LogError, Reader, Record};
use crate::reaction::live::LiveMessage;
use crate::reaction::table::Table;
use crate::reaction::time::format_rfc3339;

/// The most bytes one read brings.
const READ_BYTES: usize = 1 << 20;
/// How long one read waits.
const READ_WAIT: Duration = Duration::from_secs(1);
/// How long the table may take to appear in the running program.
const PROGRAM_WAIT: Duration = Duration::from_secs(5);

/// Print a table's rows as they come, one JSON object a line
///
/// From Kafka (--kafka, or kind = "kafka" under `[log]`) it reads the table's topic, source or sink. A running
/// `emostream up` keeps its log to itself, so without Kafka this follows that process at --url: windows of a sink only.
/// Rows of a window that is still open (emit_every) say `"final": false`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The table
    table: String,
    /// A running `emostream up`, or a subscriber
    #[arg(long, value_parser = live::server_url, default_value = "http://127.0.0.1:8080")]
    url: Url,
    /// Only this room; without Kafka the default is `main`
    #[arg(long, value_name = "NAME")]
    room: Option<String>,
    /// From the start of the topic instead of from now on (Kafka only)
    #[arg(long)]
    from_start: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Prints until it is stopped.
///
/// # Errors
/// When the table is unknown, or the log or the process does not answer.
pub fn run(args: Args) -> Result<(), Failure> {
    let settings = args.settings.load()?.settings;
    process::run(&settings.clone(), |process| async move {
        let followed: std::pin::Pin<Box<dyn Future<Output = Failure> + Send>> = match settings.log.kind {
            LogKind::Kafka => {
                let log = logs::connect_kafka(&settings).await?;
                let table = find_table(&log, &args.table, &process.stages).await?;
                let readers = open(&log, &table, args.from_start).await.map_err(failure)?;
                eprintln!("emostream tail: connected; waiting for records of {}", table.topic);
                Box::pin(follow_topic(table, args.room, readers))
            }
            LogKind::Embedded if args.from_start => {
                return Err(Failure::usage("--from-start reads the log itself, which needs --kafka"));
            }
            LogKind::Embedded => Box::pin(follow_live(args.url, args.table, args.room)),
        };
        Ok(followed)
    })
}

fn failure(error: LogError) -> Failure {
    Failure::outside(error.to_string())
}

async fn find_table(
    log: &Arc<dyn Log>,
    name: &str,
    tasks: &crate::shutdown::Tasks,
) -> Result<Table, Failure> {
    let mut view = program::follow(Arc::clone(log), tasks).await.map_err(failure)?;
    let known = {
        let wanted = view.wait_for(|view| view.tables.contains_key(name));
        match tokio::time::timeout(PROGRAM_WAIT, wanted).await {
            Ok(Ok(view)) => view.tables.get(name).cloned(),
            _ => None,
        }
    };
    if let Some(table) = known {
        return Ok(table);
    }
    let names: Vec<String> = view.borrow().tables.keys().cloned().collect();
    Err(Failure::input(format!(
        "there is no table {name} in the running program; there are: {}",
        names.join(", ")
    )))
}

type Partition = (u32, Box<dyn Reader>);

async fn open(log: &Arc<dyn Log>, table: &Table, from_start: bool) -> Result<Vec<Partition>, LogError> {
    let ranges =
        log.describe(&table.topic).await?.ok_or_else(|| LogError::UnknownTopic(table.topic.clone()))?;
    let mut partitions = Vec::with_capacity(ranges.len());
    for (number, range) in (0..).zip(ranges) {
        let offset = if from_start { range.start } else { range.end };
        partitions.push((number, log.reader(&table.topic, number, offset).await?));
    }
    Ok(partitions)
}

/// Every record of all partitions; ends with what went wrong.
async fn follow_topic(table: Table, room: Option<String>, partitions: Vec<Partition>) -> Failure {
    let codec = RecordCodec::new(&table);
    let read = |(number, mut reader): Partition| async move {
        let batch = reader.read(READ_BYTES, READ_WAIT).await;
        (number, reader, batch)
    };
    let mut reads: FuturesUnordered<_> = partitions.into_iter().map(read).collect();
    while let Some((number, reader, batch)) = reads.next().await {
        let records = match batch {
            Ok(batch) => batch.records,
            Err(error) => return failure(error),
        };
        for record in &records {
            let rows = match rows_of(&codec, record) {
                Ok(rows) => rows,
                Err(error) => {
                    tracing::warn!(partition = number, offset = record.offset, %error, "a record is left out");
                    continue;
                }
            };
            let wanted = |row: &Map<String, Value>| match &room {
                Some(room) => row.get("room").and_then(Value::as_str) == Some(room),
                None => true,
            };
            if let Err(failure) = print_rows(rows.into_iter().filter(wanted)) {
                return failure;
            }
        }
        reads.push(read((number, reader)));
    }
    Failure::outside(format!("{} has no partitions", table.topic))
}

fn print_rows(rows: impl Iterator<Item = Map<String, Value>>) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    for row in rows {
        writeln!(out, "{}", Value::Object(row))
            .map_err(|error| Failure::outside(format!("standard output: {error}")))?;
    }
    out.flush().map_err(|error| Failure::outside(format!("standard output: {error}")))
}

/// A record's rows as JSON objects, in the table's order of columns.
fn rows_of(codec: &RecordCodec, record: &Record) -> Result<Vec<Map<String, Value>>, CodecError> {
    let columns: Vec<usize> = (0..codec.schema().fields().len()).collect();
    let batch = codec.decode(0, record, &columns)?;
    let names = codec.schema().fields().iter().map(|field| field.name().as_str());
    let text = JsonText::new(names, batch.columns(), false)?;
    let row = |row| {
        let mut object = Vec::new();
        text.write(row, &mut object)?;
        serde_json::from_slice(&object).map_err(|error| CodecError::Damaged(error.to_string()))
    };
    let mut rows: Vec<Map<String, Value>> = (0..batch.num_rows()).map(row).collect::<Result<_, _>>()?;
    if record.header(HEADER_FINAL) == Some("false") {
        rows.iter_mut().for_each(mark_early);
    }
    Ok(rows)
}

/// Says that the row's window is still open.
fn mark_early(row: &mut Map<String, Value>) {
    row.insert(HEADER_FINAL.to_owned(), Value::Bool(false));
}

/// The rows of every window, as a viewer gets them.
async fn follow_live(url: Url, table: String, room: Option<String>) -> Failure {
    match try_follow_live(&url, &table, room.as_deref()).await {
        Ok(()) => Failure::outside(format!("{url} closed the stream")),
        Err(failure) => failure,
    }
}

async fn try_follow_live(url: &Url, table: &str, room: Option<&str>) -> Result<(), Failure> {
    let failure = |trouble| match trouble {
        Trouble::Refused(problem) => Failure::input(problem),
        Trouble::Outside(error) => Failure::outside(error),
    };
    let mut parameters = vec![("table", table), ("early", "1")];
    parameters.extend(room.map(|room| ("room", room)));
    let mut live = Live::open(url, &parameters).await.map_err(failure)?;
    eprintln!("emostream tail: connected; waiting for windows of {table}");
    for unheard in live::unheard_of(url, &[table.to_owned()]).await {
        eprintln!("emostream tail: {unheard}");
    }
    while let Some(event) = live.next().await.map_err(failure)? {
        // Events of other kinds (gap, drain) carry no message; their data is skipped.
        if let Ok(message) = serde_json::from_str::<LiveMessage>(&event.data) {
            print_rows(live_rows(message).into_iter())?;
        }
    }
    Ok(())
}

/// With the columns that a live message says once for all its rows.
fn live_rows(message: LiveMessage) -> Vec<Map<String, Value>> {
    let once = [
        ("window_start", format_rfc3339(message.window.start)),
        ("window_end", format_rfc3339(message.window.end)),
        ("room", message.room),
    ];
    let with_once = |row: Map<String, Value>| {
        let texts = once.iter().map(|(name, text)| ((*name).to_owned(), Value::String(text.clone())));
        let mut row: Map<String, Value> = texts.chain(row).collect();
        if !message.is_final {
            mark_early(&mut row);
        }
        row
    };
    message.rows.into_iter().map(with_once).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use arrow::array::{
        ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampNanosecondArray,
    };

    use super::*;
    use crate::reaction::table::{Column, ColumnSource, ColumnType, Format, TableKind, TableOptions};

    #[test]
    fn an_arrow_record_is_printed_as_json_rows() {
        let types = [ColumnType::Text, ColumnType::Timestamp, ColumnType::Bigint, ColumnType::Boolean];
        let column = |(name, data_type): (&str, ColumnType)| Column {
            name: name.to_owned(),
            data_type,
            nullable: true,
            default: None,
            source: ColumnSource::Record,
        };
        let table = Table {
            name: "t".to_owned(),
            kind: TableKind::Source,
            topic: "t".to_owned(),
            format: Format::Arrow,
            columns: ["text", "time", "number", "yes"].into_iter().zip(types).map(column).collect(),
            watermark: None,
            key_field: None,
            options: BTreeMap::new(),
            with: TableOptions::default(),
        };
        let codec = RecordCodec::new(&table);
        let texts: Vec<Option<&str>> = (0..20).map(|n| (n != 1).then_some("😀 \"x\"")).collect();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(texts)),
            Arc::new(TimestampNanosecondArray::from(vec![1_500_000_000; 20])),
            Arc::new(Int64Array::from(vec![i64::MAX; 20])),
            Arc::new(BooleanArray::from(vec![true; 20])),
        ];
        let batch = RecordBatch::try_new(Arc::clone(codec.schema()), columns).unwrap();
        let new = codec.encode(&batch).unwrap().remove(0);
        let record = Record { offset: 0, timestamp_ms: 0, key: None, value: new.value, headers: new.headers };
        let rows = rows_of(&codec, &record).unwrap();
        let expected = r#"{"text":"😀 \"x\"","time":"1970-01-01T00:00:01.500Z","number":9223372036854775807,"yes":true}"#;
        assert_eq!(Value::Object(rows[0].clone()).to_string(), expected);
        assert!(!rows[0].contains_key("final"));
        let early = Record { headers: vec![(HEADER_FINAL.into(), "false".into())], ..record.clone() };
        assert_eq!(rows_of(&codec, &early).unwrap()[0]["final"], Value::Bool(false));
        assert_eq!(rows[1]["text"], Value::Null);
        assert_eq!(rows.len(), 20);
    }
}
