//! What the codec reads and writes, and what it refuses, as data. Mutated records are another test's affair.

use std::collections::BTreeMap;
use std::sync::Arc;

use ::arrow::array::{
    Array, ArrayRef, AsArray, Int32Array, Int64Array, ListBuilder, StringArray, StringBuilder,
};
use ::arrow::compute::cast;
use ::arrow::datatypes::{DataType, Field, Int32Type, TimestampNanosecondType};
use ::arrow::ipc::CompressionType;
use ::arrow::ipc::writer::{IpcWriteOptions, StreamWriter};
use serde_json::{Value, json};

use super::*;
use crate::reaction::table::{Framing, TableKind, TableOptions};
use crate::reaction::time::parse_rfc3339;

fn column(name: &str, data_type: ColumnType, nullable: bool, default: Option<DefaultValue>) -> Column {
    Column { name: name.to_owned(), data_type, nullable, default, source: ColumnSource::Record }
}

fn reactions() -> Vec<Column> {
    vec![
        column("user_id", ColumnType::Text, false, None),
        column("emoji_type", ColumnType::Text, false, None),
        column("room", ColumnType::Text, false, Some(DefaultValue::Literal(json!("main")))),
        column("weight", ColumnType::Int, true, None),
        column("timestamp", ColumnType::Timestamp, false, Some(DefaultValue::Now)),
    ]
}

fn codec_of(format: Format, columns: Vec<Column>, options: &[(&str, &str)]) -> RecordCodec {
    RecordCodec::new(&Table {
        name: "t".to_owned(),
        kind: TableKind::Source,
        topic: "t".to_owned(),
        format,
        columns,
        watermark: None,
        key_field: None,
        options: options
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect::<BTreeMap<_, _>>(),
        with: TableOptions {
            framing: options.contains(&NEWLINE).then_some(Framing::Newline),
            ..TableOptions::default()
        },
    })
}

const NEWLINE: (&str, &str) = ("framing", "newline");

/// From a writer that knows nothing of headers.
fn foreign(value: impl AsRef<[u8]>) -> Record {
    let value = Some(Bytes::copy_from_slice(value.as_ref()));
    Record { offset: 0, timestamp_ms: 1_500, key: None, value, headers: Vec::new() }
}

fn read(new: NewRecord) -> Record {
    Record { offset: 0, timestamp_ms: 1_500, key: new.key, value: new.value, headers: new.headers }
}

/// The rows as JSON objects, whatever the columns' arrays are.
fn rows(batch: &RecordBatch) -> Vec<Value> {
    let schema = batch.schema();
    let names = schema.fields().iter().map(|field| field.name().as_str());
    let text = JsonText::new(names, batch.columns(), false).unwrap();
    let row = |row| {
        let mut object = Vec::new();
        text.write(row, &mut object).unwrap();
        serde_json::from_slice(&object).unwrap()
    };
    (0..batch.num_rows()).map(row).collect()
}

const ALL: &[usize] = &[0, 1, 2, 3, 4];

fn batch_of(codec: &RecordCodec, count: i64) -> RecordBatch {
    let emojis = ["😀", "a \"quoted\"\n\\", "🎉"];
    let lines: Vec<String> = (0..count)
        .map(|n| {
            let weight = if n % 3 == 0 { Value::Null } else { json!(n) };
            json!({"user_id": format!("user{n}"), "emoji_type": emojis[n as usize % 3],
                   "room": "main", "weight": weight, "timestamp": n * 1_000_000})
            .to_string()
        })
        .collect();
    let json = codec_of(Format::Json, codec.columns.clone(), &[NEWLINE]);
    let batch = json.decode(0, &foreign(lines.join("\n")), ALL).unwrap();
    let plain = batch.columns().iter().zip(codec.schema().fields());
    let plain = plain.map(|(array, field)| cast(array, field.data_type()).unwrap());
    RecordBatch::try_new(Arc::clone(codec.schema()), plain.collect()).unwrap()
}

#[test]
fn what_is_written_in_any_format_is_read_back() {
    for (format, options, records) in [
        (Format::Arrow, &[][..], 1),
        (Format::Json, &[][..], 100),
        (Format::Json, &[NEWLINE][..], 1),
        (Format::Json, &[NEWLINE, ("json.timestamp_format", "unix_millis")][..], 1),
    ] {
        let codec = codec_of(format, reactions(), options);
        let batch = batch_of(&codec, 100);
        let written: Vec<Record> = codec.encode(&batch).unwrap().into_iter().map(read).collect();
        assert_eq!(written.len(), records);
        assert_eq!(written.iter().filter_map(declared_rows).sum::<u64>(), 100);
        let decoded = codec.decode_some(0, &written, ALL);
        assert_eq!((decoded.taken, decoded.bad.len()), (records, 0));
        assert_eq!(rows(&decoded.batch), rows(&batch), "{format:?} {options:?}");
        let some = codec.decode(0, &written[0], &[4, 1]).unwrap();
        let expected = batch.project(&[4, 1]).unwrap().slice(0, some.num_rows());
        assert_eq!(rows(&some), rows(&expected), "{format:?} {options:?}");
    }
}

/// What a codec reads of the records, call by call: rows, bad records, and how many calls.
fn read_all(codec: &RecordCodec, records: &[Record], columns: &[usize]) -> (Vec<Value>, Vec<usize>, usize) {
    let (mut found, mut bad, mut calls, mut rest) = (Vec::new(), Vec::new(), 0, records);
    while !rest.is_empty() {
        let decoded = codec.decode_some(0, rest, columns);
        assert_eq!(
            (decoded.ends.len(), decoded.ends.last()),
            (decoded.taken, Some(&decoded.batch.num_rows()))
        );
        found.extend(rows(&decoded.batch));
        bad.extend(decoded.bad.iter().map(|(place, _)| records.len() - rest.len() + place));
        rest = &rest[decoded.taken..];
        calls += 1;
    }
    (found, bad, calls)
}

#[test]
fn small_arrow_records_are_read_together_as_they_are_one_by_one() {
    let new = || codec_of(Format::Arrow, reactions(), &[]);
    let codec = new();
    let mut records = Vec::new();
    // With and without dictionaries, and one that is not small.
    for count in [1, 20, 3, 100, 16, 1, 5000, 40, 7] {
        records.extend(codec.encode(&batch_of(&codec, count)).unwrap().into_iter().map(read));
    }
    let (mut cut, mut miscounted) = (records[3].clone(), records[1].clone());
    cut.value = cut.value.map(|value| value.slice(..value.len() - 100));
    miscounted.headers = vec![(HEADER_ROWS.into(), Bytes::from("21"))];
    records.insert(4, cut);
    records.insert(2, miscounted);
    for (columns, fewest) in [(ALL, 11), (&[4, 1][..], 7), (&[0], 7), (&[2], 7)] {
        // A codec that has seen no schema yet reads the general way.
        let apart = records.iter().map(|record| read_all(&new(), std::slice::from_ref(record), columns));
        let apart: Vec<_> = apart.collect();
        let bad: Vec<usize> = (0..records.len()).filter(|&place| !apart[place].1.is_empty()).collect();
        assert_eq!(bad, [2, 5]);
        let found: Vec<Value> = apart.into_iter().flat_map(|(found, ..)| found).collect();
        read_all(&codec, &records, columns);
        assert_eq!(read_all(&codec, &records, columns), (found, bad, fewest), "{columns:?}");
    }
}

#[test]
fn lines_that_do_not_fit_one_record_become_several_and_a_row_that_fits_none_is_refused() {
    let codec = codec_of(Format::Json, reactions(), &[NEWLINE]);
    let batch = |bytes: usize| {
        let line = json!({"user_id": "u".repeat(bytes), "emoji_type": "x"}).to_string();
        let batch = codec.decode(0, &foreign([line.as_str(); 3].join("\n")), ALL).unwrap();
        let plain = batch.columns().iter().zip(codec.schema().fields());
        let plain = plain.map(|(array, field)| cast(array, field.data_type()).unwrap());
        RecordBatch::try_new(Arc::clone(codec.schema()), plain.collect()).unwrap()
    };
    let records = codec.encode(&batch(300_000)).unwrap();
    let sizes: Vec<u64> = records.into_iter().filter_map(|record| declared_rows(&read(record))).collect();
    assert_eq!(sizes, [2, 1]);
    assert!(matches!(codec.encode(&batch(MAX_BYTES)), Err(CodecError::TooLarge(_))));
}

#[test]
fn a_foreign_json_row_is_read_as_its_table_says() {
    let plain = codec_of(Format::Json, reactions(), &[]);
    let millis = codec_of(Format::Json, reactions(), &[("json.timestamp_format", "unix_millis")]);
    let time = |codec: &RecordCodec, value: Value| {
        let row = json!({"user_id": "u", "emoji_type": "x", "timestamp": value}).to_string();
        let batch = codec.decode(0, &foreign(row), &[4])?;
        Ok::<_, CodecError>(batch.column(0).as_primitive::<TimestampNanosecondType>().value(0))
    };
    let expected = parse_rfc3339("2026-01-31T18:30:00Z").unwrap();
    for text in [
        "2026-01-31T18:30:00Z",
        "2026-01-31T18:30:00",
        "2026-01-31T20:30:00+02:00",
        "2026-01-31 18:30:00.000",
    ] {
        assert_eq!(time(&plain, json!(text)), Ok(expected), "{text}");
        assert_eq!(time(&millis, json!(text)), Ok(expected), "{text}");
    }
    assert_eq!(time(&plain, json!(expected)), Ok(expected));
    assert_eq!(time(&millis, json!(expected / 1_000_000)), Ok(expected));
    assert!(time(&millis, json!(i64::MAX)).is_err());
    // Left out, or null where null is not allowed: the default, here the record's own time.
    assert_eq!(time(&plain, Value::Null), Ok(1_500_000_000));
    let row = r#" {"deep": [{"a": [1, {}]}], "emoji_type": "\u00e9", "user_id": "u", "weight": null, "more": "x"} "#;
    let batch = plain.decode(0, &foreign(row), ALL).unwrap();
    let expected = json!({"user_id": "u", "emoji_type": "é", "room": "main", "weight": null, "timestamp": "1970-01-01T00:00:01.500Z"});
    assert_eq!(rows(&batch), [expected]);
}

#[test]
fn a_bad_row_names_its_column_or_its_place_and_costs_its_record() {
    let codec = codec_of(Format::Json, reactions(), &[]);
    for (value, reason) in [
        (r#"{"emoji_type":"x"}"#, "column user_id is missing; it is TEXT NOT NULL without a default"),
        (r#"{"user_id":null,"emoji_type":"x"}"#, "column user_id is missing"),
        (r#"{"user_id":5,"emoji_type":"x"}"#, "column user_id is the number 5; TEXT takes text"),
        (r#"{"user_id":"u","emoji_type":["x"]}"#, "column emoji_type is an array"),
        (r#"{"user_id":"u","emoji_type":"x","weight":3000000000}"#, "3000000000, which INT does not hold"),
        (r#"{"user_id":"u","emoji_type":"x","timestamp":"soon"}"#, "'soon' is no time"),
        (r#"{"user_id":"u","user_id":"v","emoji_type":"x"}"#, "column user_id is given twice"),
        (r#"{"user_id":"u","emoji_type":"x""#, "EOF while parsing an object at character 31"),
        (r#"{"user_id":"u","emoji_type":"x"} {}"#, "trailing characters"),
        ("[1]", "expected an object"),
        ("", "EOF"),
        ("{\"user_id\":\"\u{1}\"}", "control character"),
    ] {
        let error = codec.decode(0, &foreign(value), ALL).unwrap_err().to_string();
        assert!(error.contains(reason), "{value}: {error}");
    }
    assert!(codec.decode(0, &foreign(b"{\"user_id\":\"\xff\",\"emoji_type\":\"x\"}"), ALL).is_err());
    assert!(codec.decode(0, &foreign("[".repeat(100_000)), ALL).is_err());
    let deep = format!(r#"{{"x":{}}}"#, "[".repeat(100_000));
    assert!(codec.decode(0, &foreign(deep), ALL).is_err());
    let lines = codec_of(Format::Json, reactions(), &[NEWLINE]);
    let good = r#"{"user_id":"u","emoji_type":"x"}"#;
    let error =
        lines.decode(0, &foreign(format!("{good}\n\n{good}\r\n{{\"user_id\":1}}\n{good}")), ALL).unwrap_err();
    assert_eq!(error.to_string(), "line 4: column user_id is the number 1; TEXT takes text");
    // What is quoted is enough to recognise it.
    for long in
        [json!("x".repeat(5_000)), json!({"user_id": "u", "emoji_type": "x", "timestamp": "x".repeat(5_000)})]
    {
        let error = codec.decode(0, &foreign(long.to_string()), ALL).unwrap_err().to_string();
        assert!(error.contains("xxxx…") && error.len() < 300, "{error}");
    }
    let tombstone = Record { value: None, ..foreign("") };
    assert!(codec.decode(0, &tombstone, ALL).unwrap_err().to_string().contains("no value"));
}

#[test]
fn the_fast_way_and_the_general_way_read_the_same() {
    let codec = codec_of(Format::Json, reactions(), &[NEWLINE]);
    let millis = codec_of(Format::Json, reactions(), &[NEWLINE, ("json.timestamp_format", "unix_millis")]);
    let (text, number) = (
        ["\"u\"", "\"\"", "\"é😀\"", "\"a\\n\"", "\"a\u{1}\"", "null", "5", "[1]"],
        [
            "0",
            "-0",
            "-5",
            "007",
            "1.5",
            "1e3",
            "123456789012345678",
            "9223372036854775807",
            "2147483648",
            "null",
            "true",
            "\"x\"",
            "-",
            "{}",
        ],
    );
    let time = ["0", "\"2026-01-31T18:30:00Z\"", "\"soon\"", "null", "1700000000000"];
    let mut agreed = 0;
    for user in text {
        for weight in number {
            for time in time {
                for more in ["", ",\"more\":1", ",\"more\":01", ",\"more\":\"\\\"\"", ",\"weight\":1"] {
                    let row = format!(
                        "{{\"user_id\":{user},\"emoji_type\":\"x\",\"weight\":{weight},\"timestamp\":{time}{more}}}"
                    );
                    // The first row teaches the fields; a space where none is expected forces the general way.
                    let known = format!(
                        "{{\"user_id\":\"u\",\"emoji_type\":\"x\",\"weight\":1,\"timestamp\":0{more}}}"
                    );
                    let spaced = row.replacen('{', "{ ", 1);
                    for codec in [&codec, &millis] {
                        let fast = codec.decode(0, &foreign(format!("{known}\n{row}")), ALL);
                        let general = codec.decode(0, &foreign(format!("{known}\n{spaced}")), ALL);
                        let what = |read: Result<RecordBatch, CodecError>| {
                            read.map(|batch| rows(&batch)).map_err(drop)
                        };
                        let (fast, general) = (what(fast), what(general));
                        agreed += usize::from(fast.is_ok());
                        assert_eq!(fast, general, "{row}");
                    }
                }
            }
        }
    }
    assert!(agreed > 100, "{agreed}");
}

#[test]
fn records_of_one_row_are_decoded_together_and_the_bad_ones_are_named() {
    for options in [&[][..], &[NEWLINE][..]] {
        let codec = codec_of(Format::Json, reactions(), options);
        let good = |n: usize| {
            foreign(json!({"user_id": format!("u{n}"), "emoji_type": "x", "weight": n}).to_string())
        };
        let mut records: Vec<Record> = (0..20_000).map(good).collect();
        for bad in [0, 7, 8, 9_999] {
            // Fails after some of its columns have been taken.
            records[bad] = foreign(r#"{"user_id":"never seen","emoji_type":"never seen","weight":"x"}"#);
        }
        let (mut rest, mut seen, mut batches) = (&records[..], 0, 0);
        while !rest.is_empty() {
            let decoded = codec.decode_some(0, rest, &[3, 0]);
            assert_eq!(decoded.ends.len(), decoded.taken);
            let weights = decoded.batch.column(0).as_primitive::<Int32Type>();
            for record in 0..decoded.taken {
                let is_bad = [0, 7, 8, 9_999].contains(&(seen + record));
                assert_eq!(decoded.rows_of(record).len(), usize::from(!is_bad));
                assert_eq!(decoded.bad.iter().any(|(bad, _)| *bad == record), is_bad);
                for row in decoded.rows_of(record) {
                    assert_eq!(weights.value(row) as usize, seen + record);
                }
            }
            assert_eq!(decoded.batch.num_rows(), decoded.ends[decoded.taken - 1]);
            seen += decoded.taken;
            rest = &rest[decoded.taken..];
            batches += 1;
        }
        assert_eq!((seen, batches), (20_000, 3));
    }
}

#[test]
fn text_of_few_values_is_a_dictionary_and_of_many_plain() {
    let codec = codec_of(Format::Json, reactions(), &[NEWLINE]);
    let batch = batch_of(&codec, 1000);
    let record = read(codec.encode(&batch).unwrap().remove(0));
    let decoded = codec.decode(0, &record, &[0, 1, 2]).unwrap();
    let types: Vec<_> = decoded.columns().iter().map(|column| column.data_type().clone()).collect();
    let coded = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    assert_eq!(types, [DataType::Utf8, coded.clone(), coded]);
    assert_eq!(rows(&decoded), rows(&batch.project(&[0, 1, 2]).unwrap()));
}

#[test]
fn raw_strings_are_the_records_values() {
    let codec = codec_of(Format::RawString, vec![column("value", ColumnType::Text, false, None)], &[]);
    let records = [foreign("a b"), foreign(b"\xff"), foreign("")];
    let decoded = codec.decode_some(0, &records, &[0]);
    assert_eq!(rows(&decoded.batch), [json!({"value": "a b"}), json!({"value": ""})]);
    assert_eq!((decoded.ends, decoded.bad[0].0), (vec![1, 1, 2], 1));
    let again: Vec<Record> = codec.encode(&decoded.batch).unwrap().into_iter().map(read).collect();
    assert_eq!(again[0].value, records[0].value);
    assert_eq!(declared_rows(&again[1]), Some(1));
}

#[test]
fn an_arrow_record_from_before_a_column_was_added_has_its_default_there() {
    let before = codec_of(Format::Arrow, reactions(), &[]);
    let record = read(before.encode(&batch_of(&before, 20)).unwrap().remove(0));
    let country = |nullable, default| column("country", ColumnType::Text, nullable, default);
    for place in 0..=5 {
        let with = |country: Column| {
            let mut columns = reactions();
            columns.insert(place, country);
            codec_of(Format::Arrow, columns, &[])
        };
        let all = [0, 1, 2, 3, 4, 5];
        let nulls = with(country(true, None)).decode(0, &record, &all).unwrap();
        assert!(rows(&nulls).iter().all(|row| row["country"].is_null()));
        assert_eq!(rows(&nulls)[19]["user_id"], "user19");
        let default =
            with(country(false, Some(DefaultValue::Literal(json!("??"))))).decode(0, &record, &all).unwrap();
        assert!(rows(&default).iter().all(|row| row["country"] == "??"));
        assert_eq!(default.num_rows(), 20);
        let refused = with(country(false, None)).decode(0, &record, &all).unwrap_err().to_string();
        assert!(refused.contains("column country is missing"), "{refused}");
        assert_eq!(with(country(false, None)).decode(0, &record, &[]).unwrap().num_rows(), 20);
    }
    let other = codec_of(Format::Arrow, vec![column("weight", ColumnType::Bigint, true, None)], &[]);
    let refused = other.decode(0, &record, &[0]).unwrap_err().to_string();
    assert_eq!(refused, "column weight is Int32, the table has Int64");
}

fn stream(batch: &RecordBatch, options: IpcWriteOptions) -> Vec<u8> {
    let mut writer = StreamWriter::try_new_with_options(Vec::new(), &batch.schema(), options).unwrap();
    writer.write(batch).unwrap();
    writer.into_inner().unwrap()
}

#[test]
fn compressed_buffers_are_read_up_to_a_limit() {
    let codec = codec_of(Format::Arrow, reactions(), &[]);
    let batch = batch_of(&codec, 1000);
    for compression in [CompressionType::LZ4_FRAME, CompressionType::ZSTD] {
        let options = IpcWriteOptions::default().try_with_compression(Some(compression)).unwrap();
        let record = foreign(stream(&batch, options.clone()));
        assert_eq!(rows(&codec.decode(0, &record, ALL).unwrap()), rows(&batch));
        // 1 KB that would become 80 MB.
        let text: ArrayRef = Arc::new(StringArray::from(vec!["x".repeat(80_000); 1000]));
        let bomb = RecordBatch::try_from_iter([("user_id", text)]).unwrap();
        let error = codec.decode(0, &foreign(stream(&bomb, options)), &[0]).unwrap_err().to_string();
        assert!(error.contains("more than 64 MB"), "{error}");
    }
}

#[test]
fn records_of_many_rows_are_compressed_where_it_is_asked_for() {
    let plain = codec_of(Format::Arrow, reactions(), &[]);
    let written = |codec: &RecordCodec, rows| codec.encode(&batch_of(codec, rows)).unwrap().remove(0);
    let size = |record: &NewRecord| record.value.as_ref().unwrap().len();
    for compression in [Compression::Lz4, Compression::Zstd] {
        let codec = plain.clone().compressing(compression);
        let (whole, small) = (written(&plain, 5000), written(&codec, 5000));
        assert!(size(&small) * 3 < size(&whole) * 2, "{} of {}", size(&small), size(&whole));
        let [small, whole] = [small, whole].map(|record| plain.decode(0, &read(record), ALL).unwrap());
        assert_eq!(rows(&small), rows(&whole));
        assert_eq!(written(&codec, 999), written(&plain, 999), "few rows are left as they are");
    }
}

#[test]
fn any_prefix_and_any_changed_byte_of_an_arrow_record_is_an_error_or_rows() {
    let codec = codec_of(Format::Arrow, reactions(), &[]);
    let batch = batch_of(&codec, 20);
    let whole = codec.encode(&batch).unwrap().remove(0).value.unwrap().to_vec();
    for end in 0..whole.len() - 8 {
        let error = codec.decode(0, &foreign(&whole[..end]), ALL);
        assert!(error.is_err(), "the first {end} of {} bytes", whole.len());
    }
    let mut damaged = 0;
    for place in 0..whole.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[place] = value;
            match codec.decode(0, &foreign(bytes), ALL) {
                Ok(batch) => assert!(batch.num_rows() <= MAX_READ_ROWS),
                Err(_) => damaged += 1,
            }
        }
    }
    assert!(damaged > whole.len() / 10);
}

#[test]
fn foreign_arrow_that_does_not_fit_is_refused_and_what_fits_is_read() {
    let codec = codec_of(Format::Arrow, reactions(), &[]);
    let base = batch_of(&codec, 20);
    let with = |name: &str, array: ArrayRef| {
        let mut columns: Vec<(String, ArrayRef, bool)> = base
            .schema()
            .fields()
            .iter()
            .zip(base.columns())
            .map(|(field, array)| (field.name().clone(), Arc::clone(array), true))
            .collect();
        match columns.iter_mut().find(|column| column.0 == name) {
            Some(column) => column.1 = array,
            None => columns.insert(0, (name.to_owned(), array, true)),
        }
        let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
        codec.decode(0, &foreign(stream(&batch, IpcWriteOptions::default())), ALL)
    };
    let mut lists = ListBuilder::new(StringBuilder::new());
    (0..20).for_each(|_| lists.append_value([Some("a"), None]));
    let lists: ArrayRef = Arc::new(lists.finish());
    // A column of a nested type that nobody asks for is passed over.
    assert_eq!(rows(&with("more", Arc::clone(&lists)).unwrap()), rows(&base));
    assert!(with("emoji_type", lists).unwrap_err().to_string().contains("the table has Utf8"));
    assert!(with("weight", Arc::new(Int64Array::from(vec![1; 20]))).is_err());
    let nulls: ArrayRef = Arc::new(StringArray::from(vec![None::<&str>; 20]));
    assert_eq!(with("room", nulls).unwrap_err().to_string(), "column room holds a null, and it is NOT NULL");
    // Keys of any width are read; the engine gets Int32.
    let small = DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8));
    let coded = with("emoji_type", cast(base.column(1), &small).unwrap()).unwrap();
    assert_eq!(rows(&coded), rows(&base));
    assert!(coded.column(1).as_dictionary_opt::<Int32Type>().is_some());
    assert!(codec.decode(0, &foreign(b"not arrow at all"), ALL).is_err());
}

#[test]
fn a_hostile_dictionary_index_is_refused() {
    let codec = codec_of(Format::Arrow, vec![column("t", ColumnType::Text, false, None)], &[]);
    let keys = Int32Array::from(vec![0x1234_5678_i32 & 1; 64]);
    let values = Arc::new(StringArray::from(vec!["a", "b"]));
    let coded: ArrayRef = Arc::new(::arrow::array::DictionaryArray::new(keys, values));
    let field = Field::new("t", coded.data_type().clone(), false);
    let batch = RecordBatch::try_new(Schema::new(vec![field]).into(), vec![coded]).unwrap();
    let value = stream(&batch, IpcWriteOptions::default());
    assert!(codec.decode(0, &foreign(&value), &[0]).is_ok());
    // The keys are the last 256 bytes before the end marker.
    for key in [2_i32, -1, i32::MAX, i32::MIN] {
        let mut hostile = value.clone();
        let place = hostile.len() - 8 - 256;
        hostile[place..place + 4].copy_from_slice(&key.to_le_bytes());
        assert!(codec.decode(0, &foreign(hostile), &[0]).is_err(), "{key}");
    }
}

#[test]
fn a_header_that_says_another_number_of_rows_is_not_believed() {
    for (format, options) in [(Format::Arrow, &[][..]), (Format::Json, &[NEWLINE][..])] {
        let codec = codec_of(format, reactions(), options);
        let mut record = read(codec.encode(&batch_of(&codec, 20)).unwrap().remove(0));
        record.headers = vec![(HEADER_ROWS.into(), Bytes::from("21"))];
        let error = codec.decode(0, &record, ALL).unwrap_err().to_string();
        assert!(error.contains("it has 20 rows, and its header says 21"), "{error}");
    }
}
