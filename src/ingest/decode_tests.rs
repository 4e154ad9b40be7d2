//! What the decoder takes and what it says about all else, as data: bodies and the rows or the words expected.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BooleanArray, DictionaryArray, Float64Array, Int32Array, Int64Array, LargeStringArray,
    NullArray, RecordBatch, StringArray, StringViewArray, TimestampMillisecondArray, TimestampSecondArray,
};
use arrow::datatypes::{DataType, Field, Int32Type, Schema, TimestampNanosecondType};
use arrow::ipc::CompressionType;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::decode::{BodyFormat, DecodeError, Decoded, Decoder, EventTimeRule};
use crate::log::codec::{self, RecordCodec};
use crate::reaction::columns::{Rows, record_overhead};
use crate::reaction::table::{
    Column, ColumnSource, ColumnType, DefaultValue, Format, Table, TableKind, TableOptions, Watermark,
};
use crate::reaction::time::parse_rfc3339;

const CLIENT: EventTimeRule = EventTimeRule::Client { future_tolerance_ns: 5_000_000_000 };

pub(super) fn receipt_ns() -> i64 {
    parse_rfc3339("2026-11-21T12:00:00Z").unwrap()
}

fn column(name: &str, data_type: ColumnType, nullable: bool, default: Option<DefaultValue>) -> Column {
    Column { name: name.to_owned(), data_type, nullable, default, source: ColumnSource::Record }
}

fn table(columns: Vec<Column>) -> Table {
    Table {
        name: "reactions".to_owned(),
        kind: TableKind::Source,
        topic: "reactions".to_owned(),
        format: Format::Arrow,
        columns,
        watermark: Some(Watermark { column: "timestamp".to_owned(), delay_ns: 500_000_000 }),
        key_field: None,
        options: BTreeMap::new(),
        with: TableOptions::default(),
    }
}

/// The table of the first two files.
pub(super) fn reactions() -> Decoder {
    Decoder::new(&table(vec![
        column("user_id", ColumnType::Text, false, None),
        column("emoji_type", ColumnType::Text, false, None),
        column("room", ColumnType::Text, false, Some(DefaultValue::Literal(json!("main")))),
        column("timestamp", ColumnType::Timestamp, false, Some(DefaultValue::Now)),
    ]))
    .unwrap()
}

/// A table with every type, all nullable but the first.
pub(super) fn every_type() -> Decoder {
    Decoder::new(&table(vec![
        column("timestamp", ColumnType::Timestamp, false, Some(DefaultValue::Now)),
        column("t", ColumnType::Text, true, None),
        column("i", ColumnType::Int, true, Some(DefaultValue::Literal(json!(7)))),
        column("b", ColumnType::Bigint, true, None),
        column("iu", ColumnType::IntUnsigned, true, None),
        column("bu", ColumnType::BigintUnsigned, true, None),
        column("f", ColumnType::Float, true, None),
        column("d", ColumnType::Double, true, None),
        column("o", ColumnType::Boolean, true, Some(DefaultValue::Literal(Value::Null))),
    ]))
    .unwrap()
}

fn codec(decoder: &Decoder) -> RecordCodec {
    let columns = decoder.columns.iter().map(|rule| column(&rule.name, rule.data_type, rule.nullable, None));
    RecordCodec::new(&table(columns.collect()))
}

pub(super) fn batch(decoder: &Decoder, rows: Rows) -> RecordBatch {
    rows.into_batch(Arc::clone(codec(decoder).schema())).unwrap()
}

/// Row `row` as text, the columns joined by `|`, null as `∅`.
fn row_text(batch: &RecordBatch, row: usize) -> String {
    let cell = |array: &ArrayRef| {
        if array.is_null(row) {
            return "∅".to_owned();
        }
        match array.data_type() {
            DataType::Utf8 => array.as_string::<i32>().value(row).to_owned(),
            DataType::Timestamp(..) => {
                let ns = array.as_primitive::<TimestampNanosecondType>().value(row);
                crate::reaction::time::format_rfc3339(ns)
            }
            DataType::Boolean => array.as_boolean().value(row).to_string(),
            _ => {
                let formatter =
                    arrow::util::display::ArrayFormatter::try_new(array, &Default::default()).unwrap();
                formatter.value(row).to_string()
            }
        }
    };
    batch.columns().iter().map(cell).collect::<Vec<_>>().join("|")
}

#[track_caller]
fn accepts(decoder: &Decoder, format: BodyFormat, body: impl AsRef<[u8]>, expected: &[&str]) {
    let Decoded { rows, .. } = decoder.decode(format, body.as_ref(), receipt_ns(), CLIENT).unwrap();
    let batch = batch(decoder, rows);
    let rows: Vec<String> = (0..batch.num_rows()).map(|row| row_text(&batch, row)).collect();
    assert_eq!(rows, expected);
}

/// The row and column that are named, and words that the message has.
#[track_caller]
fn refuses(
    decoder: &Decoder,
    format: BodyFormat,
    body: impl AsRef<[u8]>,
    row: usize,
    at: Option<&str>,
    words: &[&str],
) {
    match decoder.decode(format, body.as_ref(), receipt_ns(), CLIENT).unwrap_err() {
        DecodeError::Row { row: found, column, detail } => {
            assert_eq!((found, column.as_deref()), (row, at), "{detail}");
            for word in words {
                assert!(detail.contains(word), "'{detail}' does not say '{word}'");
            }
        }
        other => panic!("not about a row: {other:?}"),
    }
}

#[track_caller]
fn unreadable(
    decoder: &Decoder,
    format: BodyFormat,
    body: impl AsRef<[u8]>,
    row: Option<usize>,
    words: &str,
) {
    match decoder.decode(format, body.as_ref(), receipt_ns(), CLIENT).unwrap_err() {
        DecodeError::Syntax { row: found, detail } => {
            assert_eq!(found, row, "{detail}");
            assert!(detail.contains(words), "'{detail}' does not say '{words}'");
        }
        other => panic!("not about the syntax: {other:?}"),
    }
}

#[test]
fn objects_arrays_and_lines_become_rows_with_defaults() {
    let table = reactions();
    let one = r#"{"user_id":"u1","emoji_type":"😀","timestamp":"2026-11-21T11:59:59.5"}"#;
    let two = r#" { "timestamp" : "2026-11-21T12:59:58+01:00" , "room":"b", "emoji_type":"\ud83d\ude00", "user_id":"" } "#;
    let three = r#"{"emoji_type":"👩‍👩‍👧‍👦 \u0000\n","user_id":"u3"}"#;
    let first = "u1|😀|main|2026-11-21T11:59:59.500Z";
    let second = "|😀|b|2026-11-21T11:59:58Z";
    let third = "u3|👩‍👩‍👧‍👦 \u{0}\n|main|2026-11-21T12:00:00Z";
    accepts(&table, BodyFormat::Json, one, &[first]);
    accepts(&table, BodyFormat::Json, format!(" \n[{one},{two}\n,{three}] "), &[first, second, third]);
    accepts(&table, BodyFormat::Ndjson, format!("{one}\n\r\n  \n{two}\r\n{three}"), &[first, second, third]);
    accepts(&table, BodyFormat::Json, "[]", &[]);
    accepts(&table, BodyFormat::Ndjson, "", &[]);
    accepts(&table, BodyFormat::Ndjson, "\n\n", &[]);
}

#[test]
fn every_type_takes_its_values_and_nulls() {
    let table = every_type();
    let body = r#"[{"t":"x","i":-2147483648,"b":-9223372036854775808,"iu":4294967295,"bu":18446744073709551615,
        "f":1.5,"d":2,"o":true,"timestamp":1795262399000000000},
        {"t":null,"i":null,"b":null,"iu":null,"bu":null,"f":null,"d":null,"o":null}, {"d":1e300,"f":3,"o":false}]"#;
    accepts(
        &table,
        BodyFormat::Json,
        body,
        &[
            "2026-11-21T11:59:59Z|x|-2147483648|-9223372036854775808|4294967295|18446744073709551615|1.5|2.0|true",
            "2026-11-21T12:00:00Z|∅|∅|∅|∅|∅|∅|∅|∅",
            "2026-11-21T12:00:00Z|∅|7|∅|∅|∅|3.0|1e300|false",
        ],
    );
}

#[test]
fn a_bad_row_is_named_with_its_column_and_what_to_do() {
    let table = reactions();
    let good = r#"{"user_id":"u","emoji_type":"😀"}"#;
    let cases: &[(&str, Option<&str>, &[&str])] = &[
        (r#"{"user_id":"u"}"#, Some("emoji_type"), &["missing", "TEXT NOT NULL", "without a default"]),
        (r#"{}"#, Some("user_id"), &["missing"]),
        (r#"{"user_id":null,"emoji_type":"x"}"#, Some("user_id"), &["null", "NOT NULL"]),
        (r#"{"user_id":"u","emoji_type":"x","room":null}"#, Some("room"), &["null", "leave it out"]),
        (r#"{"user_id":5,"emoji_type":"x"}"#, Some("user_id"), &["the number 5", "TEXT takes text"]),
        (r#"{"user_id":-5,"emoji_type":"x"}"#, Some("user_id"), &["the number -5"]),
        (r#"{"user_id":1.5,"emoji_type":"x"}"#, Some("user_id"), &["the number 1.5"]),
        (r#"{"user_id":true,"emoji_type":"x"}"#, Some("user_id"), &["true", "TEXT"]),
        (r#"{"user_id":["u"],"emoji_type":"x"}"#, Some("user_id"), &["an array"]),
        (r#"{"user_id":{"a":{}},"emoji_type":"x"}"#, Some("user_id"), &["an object"]),
        (r#"{"user_id":"u","emoji":"x"}"#, Some("emoji"), &["no column emoji", "did you mean emoji_type?"]),
        (r#"{"userId":"u","emoji_type":"x"}"#, Some("userId"), &["did you mean user_id?"]),
        (
            r#"{"user_id":"u","emoji_type":"x","zzz":1}"#,
            Some("zzz"),
            &["its columns are user_id, emoji_type, room, timestamp"],
        ),
        (r#"{"user_id":"u","user_id":"v","emoji_type":"x"}"#, Some("user_id"), &["twice"]),
        (
            r#"{"user_id":"u","emoji_type":"x","timestamp":"noon"}"#,
            Some("timestamp"),
            &["'noon'", "RFC 3339"],
        ),
        (
            r#"{"user_id":"u","emoji_type":"x","timestamp":"9999-01-01T00:00:00Z"}"#,
            Some("timestamp"),
            &["1678 to 2261"],
        ),
        (
            r#"{"user_id":"u","emoji_type":"x","timestamp":1.5}"#,
            Some("timestamp"),
            &["the number 1.5", "nanoseconds"],
        ),
        (
            r#"{"user_id":"u","emoji_type":"x","timestamp":18446744073709551615}"#,
            Some("timestamp"),
            &["TIMESTAMP does not hold"],
        ),
        (r#"{"user_id":"u","emoji_type":"x","timestamp":true}"#, Some("timestamp"), &["true"]),
        ("5", None, &["row 1 is the number 5", "a row is an object"]),
        ("\"x\"", None, &["the text 'x'"]),
        ("null", None, &["null"]),
        ("[]", None, &["an array"]),
        ("false", None, &["false"]),
    ];
    for (bad, column, words) in cases {
        refuses(&table, BodyFormat::Json, format!("[{good},{bad},{good}]"), 1, *column, words);
        refuses(&table, BodyFormat::Ndjson, format!("{good}\n\n{bad}\n{good}"), 1, *column, words);
        if bad.starts_with('{') {
            refuses(&table, BodyFormat::Json, bad, 0, *column, words);
        }
    }
}

#[test]
fn the_name_of_a_room_is_no_longer_than_clients_can_ask_for() {
    let table = reactions();
    let named =
        |bytes: usize| format!(r#"{{"user_id":"u","emoji_type":"x","room":"{}"}}"#, "r".repeat(bytes));
    let most = format!("u|x|{}|2026-11-21T12:00:00Z", "r".repeat(256));
    accepts(&table, BodyFormat::Ndjson, [named(256), named(256)].join("\n"), &[&most, &most]);
    let words = ["room has 257 bytes", "at most 256"];
    for body in [format!("[{},{}]", named(256), named(257)), [named(1), named(257)].join(" ")] {
        let format = if body.starts_with('[') { BodyFormat::Json } else { BodyFormat::Ndjson };
        let body = body.replace("} {", "}\n{");
        refuses(&table, format, body, 1, Some("room"), &words);
    }
    let text = |values: Vec<String>| Arc::new(StringArray::from(values)) as ArrayRef;
    let rooms = vec![String::new(), "r".repeat(257)];
    let (user, emoji) = (text(vec!["u".to_owned(); 2]), text(vec!["x".to_owned(); 2]));
    let batch = arrow_batch(vec![("user_id", user), ("emoji_type", emoji), ("room", text(rooms))]);
    let body = arrow_stream(&[batch], IpcWriteOptions::default());
    refuses(&table, BodyFormat::ArrowStream, body, 1, Some("room"), &words);
}

#[test]
fn a_number_that_its_type_does_not_hold_is_refused() {
    let table = every_type();
    let cases = [
        (r#"{"i":2147483648}"#, "i", "INT does not hold"),
        (r#"{"i":-2147483649}"#, "i", "INT does not hold"),
        (r#"{"i":1.0}"#, "i", "INT takes an integer"),
        (r#"{"b":9223372036854775808}"#, "b", "BIGINT does not hold"),
        (r#"{"b":1e3}"#, "b", "an integer"),
        (r#"{"iu":-1}"#, "iu", "INT UNSIGNED does not hold"),
        (r#"{"iu":4294967296}"#, "iu", "INT UNSIGNED does not hold"),
        (r#"{"bu":-1}"#, "bu", "BIGINT UNSIGNED does not hold"),
        (r#"{"f":1e39}"#, "f", "FLOAT does not hold"),
        (r#"{"d":"1"}"#, "d", "the text '1'; DOUBLE takes a number"),
        (r#"{"o":1}"#, "o", "the number 1; BOOLEAN takes true or false"),
        (r#"{"o":"true"}"#, "o", "the text 'true'"),
    ];
    for (body, column, words) in cases {
        refuses(&table, BodyFormat::Json, body, 0, Some(column), &[words]);
    }
}

#[test]
fn what_is_no_json_is_refused_with_its_place() {
    let table = reactions();
    let good = r#"{"user_id":"u","emoji_type":"😀"}"#;
    for (body, row, words) in [
        ("", None, "empty"),
        ("  ", None, "empty"),
        ("5", None, "no JSON object"),
        ("hello", None, "no JSON object"),
        ("{", Some(0), "row 0 is no valid JSON"),
        (r#"{"user_id":"u"#, Some(0), "line 1 column"),
        (r#"{"user_id":"\ud83d"}"#, Some(0), "line 1 column"),
        (r#"{'user_id':"u"}"#, Some(0), "line 1 column"),
        (r#"{"user_id":01}"#, Some(0), "line 1 column"),
        ("[", Some(0), "line 1 column"),
    ] {
        unreadable(&table, BodyFormat::Json, body, row, words);
    }
    unreadable(&table, BodyFormat::Json, format!("[{good},{good}"), Some(2), "no valid JSON");
    unreadable(&table, BodyFormat::Json, format!("[{good},]"), Some(1), "no valid JSON");
    unreadable(&table, BodyFormat::Json, format!("{good}\n{good}"), None, "as an array or as NDJSON");
    unreadable(&table, BodyFormat::Ndjson, format!("{good}\n{{\n"), Some(1), "row 1 is no valid JSON");
    unreadable(&table, BodyFormat::Ndjson, format!("{good} {good}\n"), Some(1), "no valid JSON");
    unreadable(&table, BodyFormat::Json, b"{\"user_id\":\"\xff\"}", Some(0), "no valid JSON");
    let deep = format!("{{\"user_id\":{}", "[".repeat(1_000_000));
    refuses(&table, BodyFormat::Json, deep, 0, Some("user_id"), &["an array"]);
}

#[test]
fn a_time_ahead_of_the_clock_is_refused_and_one_far_behind_is_warned_of() {
    let table = reactions();
    let row = |ns: i64| format!(r#"{{"user_id":"u","emoji_type":"x","timestamp":{ns}}}"#);
    let now = receipt_ns();
    accepts(&table, BodyFormat::Json, row(now + 5_000_000_000), &["u|x|main|2026-11-21T12:00:05Z"]);
    let words = ["5001 ms ahead", "at most 5000 ms", "leave timestamp out", "time of receipt"];
    refuses(&table, BodyFormat::Json, row(now + 5_001_000_000), 0, Some("timestamp"), &words);
    refuses(
        &table,
        BodyFormat::Json,
        row(now + 3 * 3_600_000_000_000),
        0,
        Some("timestamp"),
        &["3 hours ahead"],
    );

    let warnings =
        |body: String| table.decode(BodyFormat::Json, body.as_bytes(), now, CLIENT).unwrap().warnings;
    assert_eq!(warnings(row(now - 60_000_000_000)), Vec::<String>::new());
    assert_eq!(
        warnings(row(now - 60_500_000_001)),
        ["row 0: timestamp is 60 seconds behind; its window has closed"]
    );
    let two_years = warnings(format!("[{},{}]", row(now), row(now - 63_100_000 * 1_000_000_000)));
    assert_eq!(two_years, ["row 1: timestamp is 2 years behind; its window has closed"]);
    let milliseconds = warnings(row(now / 1_000_000));
    assert!(milliseconds[0].ends_with("56 years behind; its window has closed (integers are nanoseconds)"));
    let many = warnings(format!("[{}]", vec![row(0); 500].join(",")));
    assert_eq!(many.len(), 10);
    assert_eq!(many[9], "491 more rows are far behind; their windows have closed");

    let far = [row(now + 1_000_000_000_000), row(0), row(i64::MIN), row(i64::MAX)];
    let body = format!("[{}]", far.join(","));
    let decoded = table.decode(BodyFormat::Json, body.as_bytes(), now, EventTimeRule::Receipt).unwrap();
    assert!(decoded.warnings.is_empty());
    let batch = batch(&table, decoded.rows);
    assert!((0..4).all(|row| row_text(&batch, row) == "u|x|main|2026-11-21T12:00:00Z"));
}

#[test]
fn more_rows_than_a_record_holds_are_refused() {
    let table = reactions();
    let row = r#"{"user_id":"u","emoji_type":"x"}"#;
    let body = |rows: usize| format!("[{}]", vec![row; rows].join(","));
    let decode = |body: String| table.decode(BodyFormat::Json, body.as_bytes(), receipt_ns(), CLIENT);
    assert_eq!(decode(body(codec::MAX_ROWS)).unwrap().rows.count, codec::MAX_ROWS);
    assert!(matches!(decode(body(codec::MAX_ROWS + 1)), Err(DecodeError::TooLarge(_))));
}

#[test]
fn a_default_that_its_column_does_not_take_is_an_error_of_the_table() {
    for (data_type, default) in [
        (ColumnType::Int, DefaultValue::Literal(json!("x"))),
        (ColumnType::Text, DefaultValue::Literal(Value::Null)),
        (ColumnType::Text, DefaultValue::Now),
        (ColumnType::Timestamp, DefaultValue::Literal(json!("yesterday"))),
    ] {
        assert!(Decoder::new(&table(vec![column("c", data_type, false, Some(default))])).is_err());
    }
}

fn arrow_stream(batches: &[RecordBatch], options: IpcWriteOptions) -> Vec<u8> {
    let mut writer = StreamWriter::try_new_with_options(Vec::new(), &batches[0].schema(), options).unwrap();
    for batch in batches {
        writer.write(batch).unwrap();
    }
    writer.into_inner().unwrap()
}

fn arrow_batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    let fields: Vec<Field> =
        columns.iter().map(|(name, a)| Field::new(*name, a.data_type().clone(), true)).collect();
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap()
}

#[test]
fn an_arrow_stream_becomes_rows_whatever_its_encodings_and_order() {
    let table = reactions();
    let dictionary: DictionaryArray<Int32Type> =
        vec![Some("😀"), Some("🎉"), Some("😀")].into_iter().collect();
    let first = arrow_batch(vec![
        (
            "timestamp",
            Arc::new(TimestampMillisecondArray::from(vec![1_795_262_399_250, 0, 1]).with_timezone("UTC")),
        ),
        ("emoji_type", Arc::new(dictionary)),
        ("user_id", Arc::new(LargeStringArray::from(vec!["a", "b", "c"]))),
    ]);
    let body = arrow_stream(&[first.clone(), first.slice(1, 1)], IpcWriteOptions::default());
    accepts(
        &table,
        BodyFormat::ArrowStream,
        &body,
        &[
            "a|😀|main|2026-11-21T11:59:59.250Z",
            "b|🎉|main|1970-01-01T00:00:00Z",
            "c|😀|main|1970-01-01T00:00:00.001Z",
            "b|🎉|main|1970-01-01T00:00:00Z",
        ],
    );
    let views = arrow_batch(vec![
        ("user_id", Arc::new(StringViewArray::from(vec!["a user with a rather long name"]))),
        ("emoji_type", Arc::new(StringArray::from(vec!["x"]))),
    ]);
    let expected = ["a user with a rather long name|x|main|2026-11-21T12:00:00Z"];
    accepts(&table, BodyFormat::ArrowStream, arrow_stream(&[views], IpcWriteOptions::default()), &expected);

    let numbers = arrow_batch(vec![
        ("b", Arc::new(Int32Array::from(vec![Some(-1), None]))),
        ("bu", Arc::new(Int64Array::from(vec![1, 2]))),
        ("f", Arc::new(Float64Array::from(vec![0.5, 1.0]))),
        ("o", Arc::new(BooleanArray::from(vec![Some(true), None]))),
        ("i", Arc::new(Int64Array::from(vec![None, Some(3)]))),
    ]);
    accepts(
        &every_type(),
        BodyFormat::ArrowStream,
        arrow_stream(&[numbers], IpcWriteOptions::default()),
        &["2026-11-21T12:00:00Z|∅|∅|-1|∅|1|0.5|∅|true", "2026-11-21T12:00:00Z|∅|3|∅|∅|2|1.0|∅|∅"],
    );
}

#[test]
fn a_bad_arrow_row_is_named_like_any_other() {
    let table = reactions();
    let users =
        |count: usize| -> (&str, ArrayRef) { ("user_id", Arc::new(StringArray::from(vec!["u"; count]))) };
    let emojis = |values: Vec<Option<&str>>| -> (&str, ArrayRef) {
        ("emoji_type", Arc::new(StringArray::from(values)))
    };
    let check = |columns, row, column, words: &[&str]| {
        let body = arrow_stream(&[arrow_batch(columns)], IpcWriteOptions::default());
        refuses(&table, BodyFormat::ArrowStream, body, row, Some(column), words);
    };
    check(vec![users(2), emojis(vec![Some("x"), None])], 1, "emoji_type", &["row 1", "null"]);
    check(vec![users(1)], 0, "emoji_type", &["missing"]);
    check(
        vec![users(1), ("emoji", Arc::new(StringArray::from(vec!["x"])))],
        0,
        "emoji",
        &["did you mean emoji_type?"],
    );
    check(
        vec![users(1), ("emoji_type", Arc::new(Int32Array::from(vec![1])))],
        0,
        "emoji_type",
        &["Int32", "TEXT takes text"],
    );
    check(vec![users(1), ("emoji_type", Arc::new(NullArray::new(1)))], 0, "emoji_type", &["Null"]);
    let late: ArrayRef = Arc::new(TimestampSecondArray::from(vec![i64::MAX]));
    check(
        vec![users(1), emojis(vec![Some("x")]), ("timestamp", late)],
        0,
        "timestamp",
        &["outside the years"],
    );
    let ahead: ArrayRef = Arc::new(TimestampSecondArray::from(vec![1_795_262_400, 1_795_269_601]));
    check(
        vec![users(2), emojis(vec![Some("x"); 2]), ("timestamp", ahead)],
        1,
        "timestamp",
        &["2 hours ahead"],
    );
}

#[test]
fn a_damaged_arrow_stream_is_refused_and_brings_nothing_down() {
    let table = reactions();
    let dictionary: DictionaryArray<Int32Type> = vec!["😀"; 3].into_iter().map(Some).collect();
    let batch = arrow_batch(vec![
        ("user_id", Arc::new(StringArray::from(vec!["a", "b", "c"]))),
        ("emoji_type", Arc::new(dictionary)),
    ]);
    let good = arrow_stream(std::slice::from_ref(&batch), IpcWriteOptions::default());
    let decode = |body: &[u8]| table.decode(BodyFormat::ArrowStream, body, receipt_ns(), CLIENT);
    assert!(decode(&good).is_ok());
    unreadable(&table, BodyFormat::ArrowStream, b"", None, "empty");
    unreadable(&table, BodyFormat::ArrowStream, b"hello world", None, "no readable Arrow IPC stream");
    unreadable(
        &table,
        BodyFormat::ArrowStream,
        &good[..good.len() / 2],
        None,
        "no readable Arrow IPC stream",
    );

    let zstd = IpcWriteOptions::default().try_with_compression(Some(CompressionType::ZSTD)).unwrap();
    unreadable(&table, BodyFormat::ArrowStream, arrow_stream(&[batch], zstd), None, "Content-Encoding");

    // Lengths, counts and offsets that claim anything at all: an answer every time, and no more memory than the body's.
    // The reader's panics are caught; their words would only hide those of other tests, which are still shown.
    let (here, others) = (std::thread::current().id(), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().id() != here {
            others(panic);
        }
    }));
    let mut random = StdRng::seed_from_u64(3);
    let mut refused = 0;
    for _ in 0..20_000 {
        let mut body = good.clone();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..body.len());
            body[at] = [0, 1, 0x7f, 0x80, 0xff, random.random()][random.random_range(0..6)];
        }
        refused += usize::from(decode(&body).is_err());
    }
    drop(std::panic::take_hook());
    assert!(refused > 1000, "only {refused} of the damaged streams were refused");
}

#[test]
fn rows_never_encode_to_more_than_was_reckoned() {
    let mut random = StdRng::seed_from_u64(5);
    let texts: Vec<String> = (0..3000).map(|n| format!("{n:0width$}", width = n % 40)).collect();
    for distinct in [1, 4, 50, 3000] {
        for count in [1, 15, 16, 17, 100, 5000] {
            let rows: Vec<Value> = (0..count)
                .map(|_| {
                    let mut row = json!({"t": texts[random.random_range(0..distinct)], "d": 0.5, "b": 1});
                    if random.random_range(0..3) == 0 {
                        row = json!({});
                    }
                    row
                })
                .collect();
            let table = every_type();
            let body = serde_json::to_vec(&rows).unwrap();
            let decoded = table.decode(BodyFormat::Json, &body, receipt_ns(), CLIENT).unwrap();
            let reckoned = decoded.rows.data_bytes() + record_overhead(codec(&table).schema());
            let encoded =
                codec(&table).encode(&batch(&table, decoded.rows)).unwrap()[0].value.as_ref().unwrap().len();
            assert!(encoded <= reckoned, "{encoded} > {reckoned} for {count} rows of {distinct} texts");
        }
    }
}

#[test]
fn joined_rows_are_the_rows_of_one_body_after_the_other() {
    let table = every_type();
    let bodies =
        [r#"[{"t":"a","i":1,"o":true},{"t":null}]"#, "[]", r#"[{"t":"bc","f":1.5},{"bu":3,"d":1},{"t":""}]"#];
    let decode =
        |body: &str| table.decode(BodyFormat::Json, body.as_bytes(), receipt_ns(), CLIENT).unwrap().rows;
    let mut joined = decode(bodies[0]);
    joined.append(&decode(bodies[1]));
    joined.append(&decode(bodies[2]));
    let whole = decode(r#"[{"t":"a","i":1,"o":true},{"t":null},{"t":"bc","f":1.5},{"bu":3,"d":1},{"t":""}]"#);
    assert_eq!(joined, whole);
    assert_eq!(batch(&table, joined), batch(&table, whole));
}
