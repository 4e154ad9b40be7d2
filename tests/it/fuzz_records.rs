//! Damaged records of every format, between good ones: rows or a typed error every time, never a panic, never more memory
//! than the record is worth, and the neighbours as if nothing were beside them.
//!
//! `EMOSTREAM_FUZZ_CASES=N` runs more cases of each format; a failure names its seed.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, Once};

use arrow::array::{Array, ArrayRef, AsArray, DictionaryArray, RecordBatch};
use arrow::datatypes::{DataType, Field, Int32Type, Schema};
use arrow::ipc::CompressionType;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};
use bytes::Bytes;
use emostream::log::Record;
use emostream::log::codec::{Decoded, JsonText, RecordCodec, arrow_schema};
use rand::Rng;
use rand::rngs::StdRng;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::support::stage::{Prepared, Stage, compile};
use crate::support::{damage, rows, seeds};

const CASES: &str = "EMOSTREAM_FUZZ_CASES";
const DEFAULT_CASES: u64 = 2_000;

const COLUMNS: &str =
    "user_id TEXT NOT NULL, emoji TEXT NOT NULL, country TEXT, n INT, big BIGINT UNSIGNED, weight DOUBLE,
    fair BOOLEAN, tags TEXT[], price DECIMAL(10, 2), photo BYTEA,
    timestamp TIMESTAMP NOT NULL, WATERMARK FOR timestamp AS (timestamp - INTERVAL '1 second')";
const LINES: &str =
    "value TEXT, timestamp TIMESTAMP NOT NULL METADATA FROM 'timestamp', WATERMARK FOR timestamp";
const COUNTED: &str = "INSERT INTO counts SELECT count(*) FROM records GROUP BY tumble(INTERVAL '1 hour')";

/// Decoding may hold this many times the records, besides [`FREE_BYTES`]: columns, copies, values being read.
const TIMES: u64 = 16;
/// What decoding needs however small a record is.
const FREE_BYTES: u64 = 1 << 20;
/// What the codec lets compressed buffers grow to, and as much again while they are read.
const INFLATED_BYTES: u64 = 2 * (64 << 20);

/// A table, and good records of it.
struct Corpus {
    query: Prepared,
    codec: RecordCodec,
    records: Vec<Bytes>,
    /// What a record may grow to when its length says nothing.
    free_bytes: u64,
    /// How many rows a value has as another reader sees it; `None` when it is none of the format.
    rows: fn(&[u8]) -> Option<usize>,
}

impl Corpus {
    fn new(columns: &str, options: &str, rows: fn(&[u8]) -> Option<usize>) -> Self {
        let tables = format!(
            "CREATE TABLE records ({columns}) WITH (connector = 'kafka', type = 'source', {options});
             CREATE TABLE counts (n BIGINT) WITH (connector = 'kafka', type = 'sink')"
        );
        let query = compile(&tables, COUNTED);
        let codec = RecordCodec::new(query.source());
        Self { query, codec, records: Vec::new(), free_bytes: FREE_BYTES, rows }
    }

    /// What the codec itself writes of so many rows.
    fn with_written(mut self, counts: &[i64]) -> Self {
        for &count in counts {
            let encoded = self.codec.encode(&batch(&self.query, count)).unwrap();
            self.records.extend(encoded.into_iter().filter_map(|record| record.value));
        }
        self
    }

    fn with(mut self, values: impl IntoIterator<Item = Bytes>) -> Self {
        self.records.extend(values);
        self
    }
}

fn row(i: i64) -> rows::Row {
    let emoji = ["😀", "🎉\"", "🔥\\"][(i % 3) as usize];
    let tag = ["a", "b"][(i % 2) as usize];
    let country = if i % 3 == 0 { Value::Null } else { json!(["de", "br", "jp"][(i % 3) as usize]) };
    vec![
        json!(format!("user {}", i * 7919 % 1000)),
        json!(emoji),
        country,
        if i % 5 == 0 { Value::Null } else { json!(i) },
        json!(u64::MAX - i as u64),
        json!(i as f64 / 3.0),
        json!(i % 7 != 0),
        json!([tag, null]),
        json!(format!("{}.25", i % 100)),
        json!("/wAB"),
        json!(i * 1_000_000_000),
    ]
}

fn batch(query: &Prepared, count: i64) -> RecordBatch {
    rows::batch(query.source(), &(0..count).map(row).collect::<Vec<_>>())
}

fn arrow() -> Corpus {
    let corpus = Corpus::new(COLUMNS, "format = 'arrow'", |_| None).with_written(&[1, 15, 16, 300]);
    // Whoever writes to the topic may compress.
    let batch = with_dictionary(&batch(&corpus.query, 300));
    let compressed = [CompressionType::ZSTD, CompressionType::LZ4_FRAME].map(|compression| {
        let options = IpcWriteOptions::default().try_with_compression(Some(compression)).unwrap();
        let mut value = Vec::new();
        let mut writer = StreamWriter::try_new_with_options(&mut value, &batch.schema(), options).unwrap();
        writer.write(&batch).and_then(|()| writer.finish()).unwrap();
        drop(writer);
        Bytes::from(value)
    });
    Corpus { free_bytes: INFLATED_BYTES, ..corpus.with(compressed) }
}

/// The batch with its first column as a dictionary.
fn with_dictionary(batch: &RecordBatch) -> RecordBatch {
    let texts: DictionaryArray<Int32Type> = batch.column(0).as_string::<i32>().iter().collect();
    let mut columns = batch.columns().to_vec();
    let mut fields: Vec<Field> = batch.schema().fields().iter().map(|field| field.as_ref().clone()).collect();
    fields[0] = fields[0].clone().with_data_type(texts.data_type().clone());
    columns[0] = Arc::new(texts);
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

/// Objects as foreign writers have them: spaces, escapes, other fields, another order, what is left out.
fn foreign_objects() -> [Bytes; 5] {
    [
        r#"{ "timestamp" : "2026-01-01T00:00:00.5Z", "emoji" : "\ud83d\ude00\n", "user_id" : "a\"b\\c" }"#,
        r#"{"user_id":"a","emoji":"b","timestamp":1,"more":{"deep":[[[{"x":[1,2.5e10,-0]}]]]},"n":-2147483648}"#,
        r#"{"tags":["x",null,"y"],"price":12.5,"photo":"","weight":1e300,"user_id":"","emoji":"","timestamp":0}"#,
        r#"{"fair":true,"big":18446744073709551615,"user_id":"日本語","emoji":"👩‍👩‍👧","country":null,"timestamp":"2026-01-01 00:00:00"}"#,
        r#"{"price":"-99999999.99","emoji":"x","user_id":"y","timestamp":9223372036854775807,"tags":[]}"#,
    ]
    .map(|text| Bytes::from_static(text.as_bytes()))
}

/// By a reader that knows nothing of tables. What no column needs is not looked at: text may be no UTF-8, a number too
/// large.
fn is_object(value: &[u8]) -> bool {
    serde_json::from_str::<BTreeMap<String, IgnoredAny>>(&String::from_utf8_lossy(value)).is_ok()
}

fn json() -> Corpus {
    Corpus::new(COLUMNS, "format = 'json'", |value| is_object(value).then_some(1))
        .with_written(&[12])
        .with(foreign_objects())
}

fn newline() -> Corpus {
    let lines = |value: &[u8]| {
        let lines = value.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        let mut lines = lines.filter(|line| !line.is_empty());
        lines.try_fold(0, |count, line| is_object(line).then_some(count + 1))
    };
    let foreign = foreign_objects().join(&b"\r\n\n"[..]);
    Corpus::new(COLUMNS, "format = 'json', framing = 'newline'", lines)
        .with_written(&[1, 20, 300])
        .with([foreign.into()])
}

fn raw_string() -> Corpus {
    let texts =
        ["", "x", "{\"not\": \"read\"}", "日本語 👩‍👩‍👧", "a\0b\r\n", "twenty times twenty, and some more"];
    Corpus::new(LINES, "format = 'raw_string'", |value| std::str::from_utf8(value).is_ok().then_some(1))
        .with(texts.map(Bytes::from))
}

fn record(value: Bytes) -> Record {
    Record { offset: 0, timestamp_ms: 1_000, key: None, value: Some(value), headers: Vec::new() }
}

/// A record's rows as text, whatever the columns' arrays are.
fn shown(batch: &RecordBatch) -> Vec<String> {
    let schema = batch.schema();
    let names = schema.fields().iter().map(|field| field.name().as_str());
    let text = JsonText::new(names, batch.columns(), false).unwrap();
    let row = |row| {
        let mut object = Vec::new();
        text.write(row, &mut object).unwrap();
        String::from_utf8(object).unwrap()
    };
    (0..batch.num_rows()).map(row).collect()
}

/// Each record's rows, or why it has none.
fn decode_all(
    codec: &RecordCodec,
    mut records: &[Record],
    columns: &[usize],
) -> Vec<Result<RecordBatch, String>> {
    let mut all = Vec::new();
    while !records.is_empty() {
        let decoded = codec.decode_some(0, records, columns);
        let Decoded { taken, batch, bad, .. } = &decoded;
        let rows = (0..*taken).map(|place| match bad.iter().find(|(at, _)| *at == place) {
            Some((_, error)) => {
                assert!(decoded.rows_of(place).is_empty(), "{error}");
                Err(error.to_string())
            }
            None => {
                let rows = decoded.rows_of(place);
                Ok(batch.slice(rows.start, rows.len()))
            }
        });
        all.extend(rows);
        records = &records[*taken..];
    }
    all
}

/// Everything that the engine relies on without looking again.
fn is_what_was_asked_for(batch: &RecordBatch, schema: &Schema, columns: &[usize]) {
    assert_eq!(batch.num_columns(), columns.len());
    for (array, &place) in batch.columns().iter().zip(columns) {
        array.to_data().validate_full().unwrap();
        let expected = schema.field(place);
        assert!(expected.is_nullable() || array.logical_null_count() == 0, "{}", expected.name());
        match array.data_type() {
            DataType::Dictionary(keys, values) => {
                assert_eq!((keys.as_ref(), values.as_ref()), (&DataType::Int32, expected.data_type()));
                codes_are_within(array);
            }
            plain => assert_eq!(plain, expected.data_type()),
        }
    }
}

fn codes_are_within(array: &ArrayRef) {
    let dictionary = array.as_dictionary::<Int32Type>();
    for code in dictionary.keys().iter().flatten() {
        assert!((code as usize) < dictionary.values().len(), "code {code}");
    }
}

thread_local! {
    /// Whether a panic on this thread is caught and expected: what is printed about one takes memory and time.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs it; a panic that it catches itself is not talked about.
fn quietly<T>(run: impl FnOnce() -> T) -> T {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                before(panic);
            }
        }));
    });
    QUIET.set(true);
    let answer = run();
    QUIET.set(false);
    answer
}

fn damaged_records_of(corpus: &Corpus) {
    let Corpus { query, codec, records, free_bytes, rows } = corpus;
    assert!(records.len() >= 4, "{} records are no corpus", records.len());
    let schema = arrow_schema(query.source());
    let all: Vec<usize> = (0..schema.fields().len()).collect();
    let some: Vec<usize> = all.iter().copied().filter(|place| place % 3 == 1).collect();
    let mut stage = Stage::new(query, 1);
    let (mut refused, mut read, mut good_rows, mut bad_rows) = (0, 0, 0, 0);
    seeds::each(CASES, DEFAULT_CASES, |_, mut random| {
        let pick = |random: &mut StdRng| records[random.random_range(0..records.len())].clone();
        let good = [pick(&mut random), pick(&mut random)];
        let mut value = pick(&mut random).to_vec();
        for _ in 0..random.random_range(1..4) {
            let other = pick(&mut random);
            value = match (std::str::from_utf8(&value), std::str::from_utf8(&other)) {
                (Ok(text), Ok(other)) if random.random_bool(0.5) => {
                    damage::text(text, other, &mut random).into_bytes()
                }
                _ => damage::bytes(&value, &other, &mut random),
            };
        }
        let value = Bytes::from(value);
        let columns = if random.random_bool(0.5) { &all } else { &some };
        let between = [good[0].clone(), value.clone(), good[1].clone()].map(record);
        let bytes: usize = between.iter().flat_map(|record| &record.value).map(Bytes::len).sum();
        let mut outcome = None;
        let memory =
            quietly(|| allocation_counter::measure(|| outcome = Some(decode_all(codec, &between, columns))));
        let bound = free_bytes + TIMES * bytes as u64;
        assert!(memory.bytes_max <= bound, "{} bytes for records of {bytes}", memory.bytes_max);
        let [before, damaged, after] = <[_; 3]>::try_from(outcome.unwrap()).unwrap();
        for (found, good) in [before, after].into_iter().zip(good) {
            let alone = codec.decode(0, &record(good.clone()), columns).unwrap();
            assert_eq!(shown(&found.unwrap()), shown(&alone), "a neighbour of {value:?}");
            stage.append_bytes(0, good, alone.num_rows(), 1_000);
            good_rows += alone.num_rows() as u64;
        }
        let claimed = match damaged {
            Ok(batch) => {
                read += 1;
                is_what_was_asked_for(&batch, &schema, columns);
                if let Some(expected) = rows(&value) {
                    assert_eq!(batch.num_rows(), expected, "{value:?}");
                } else {
                    assert!(rows(&records[0]).is_none(), "rows of what is none of the format: {value:?}");
                }
                batch.num_rows()
            }
            Err(error) => {
                refused += 1;
                assert!(!error.is_empty() && error.len() < 1_000, "{error}");
                1
            }
        };
        stage.append_bytes(0, value, claimed, 1_000);
        bad_rows += claimed as u64;
        quietly(|| while stage.read(0) {});
    });
    stage.end(i64::MAX / 1_000_000);
    let figures = stage.figures();
    assert!(figures.is_conserved() && figures.open == 0, "{figures:?}");
    assert_eq!(figures.accepted, good_rows + bad_rows);
    assert!(figures.bad <= bad_rows, "good rows are bad: {figures:?}");
    if refused + read > 1_000 {
        assert!(refused > 100 && read > 100, "{refused} refused, {read} read");
    }
}

#[test]
fn a_damaged_arrow_record_costs_that_record_and_nothing_else() {
    damaged_records_of(&arrow());
}

#[test]
fn a_damaged_json_record_costs_that_record_and_nothing_else() {
    damaged_records_of(&json());
}

#[test]
fn a_damaged_record_of_lines_costs_that_record_and_nothing_else() {
    damaged_records_of(&newline());
}

#[test]
fn a_damaged_text_record_costs_that_record_and_nothing_else() {
    damaged_records_of(&raw_string());
}
