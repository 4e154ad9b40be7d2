//! Columns that are not posted as they are kept: DECIMAL, BYTEA, arrays, and those that the log fills in.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, LargeBinaryArray, LargeListArray, RecordBatch};
use arrow::datatypes::Int64Type;
use arrow::ipc::writer::StreamWriter;
use serde_json::{Value, json};

use super::decode::{BodyFormat, DecodeError, Decoder, EventTimeRule};
use crate::reaction::json::json_value;
use crate::reaction::schema::record_schema;
use crate::reaction::table::{
    Column, ColumnSource, ColumnType, DefaultValue, Format, MetadataField, Table, TableKind, TableOptions,
};

const CLIENT: EventTimeRule = EventTimeRule::Client { future_tolerance_ns: 0 };

fn table() -> Table {
    let column = |(name, data_type, default): (&str, ColumnType, Option<Value>)| Column {
        name: name.to_owned(),
        data_type,
        nullable: true,
        default: default.map(DefaultValue::Literal),
        source: ColumnSource::Record,
    };
    let columns = [
        ("price", ColumnType::decimal(10, 2).unwrap(), Some(json!("1.50"))),
        ("photo", ColumnType::Bytea, None),
        ("tags", ColumnType::Text.array().unwrap(), Some(json!(["a"]))),
        ("counts", ColumnType::Bigint.array().unwrap(), None),
        ("times", ColumnType::Timestamp.array().unwrap(), None),
    ];
    let mut columns: Vec<Column> = columns.into_iter().map(column).collect();
    columns.push(Column {
        name: "part".to_owned(),
        data_type: ColumnType::Int,
        nullable: false,
        default: None,
        source: ColumnSource::Metadata(MetadataField::Partition),
    });
    Table {
        name: "t".to_owned(),
        kind: TableKind::Source,
        topic: "t".to_owned(),
        format: Format::Arrow,
        columns,
        watermark: None,
        key_field: None,
        options: BTreeMap::new(),
        with: TableOptions::default(),
    }
}

fn decoder() -> Decoder {
    Decoder::new(&table()).unwrap()
}

fn decode(format: BodyFormat, body: &[u8]) -> Result<RecordBatch, DecodeError> {
    let decoder = decoder();
    let mut decoded = decoder.decode(format, body, 0, CLIENT)?;
    // Twice, as the batcher joins requests.
    let again = decoded.rows.clone();
    decoded.rows.append(&again);
    let batch = decoded.rows.into_batch(record_schema(&table())).unwrap();
    let rows = batch.num_rows() / 2;
    assert_eq!(batch.slice(0, rows), batch.slice(rows, rows));
    Ok(batch.slice(rows, rows))
}

/// Every row as a JSON object.
fn rows(batch: &RecordBatch) -> Vec<Value> {
    let fields = batch.schema();
    let cell = |place: usize, row| {
        (fields.field(place).name().clone(), json_value(batch.column(place), row).unwrap())
    };
    let row = |row| Value::Object((0..batch.num_columns()).map(|place| cell(place, row)).collect());
    (0..batch.num_rows()).map(row).collect()
}

fn stream(batch: &RecordBatch) -> Vec<u8> {
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    writer.write(batch).unwrap();
    writer.into_inner().unwrap()
}

#[test]
fn what_is_posted_as_json_is_kept_exactly_and_read_from_arrow_too() {
    let posted = r#"[
        {"price": "12345678.90", "photo": "/wAB", "tags": ["x", null, ""], "counts": [1, -2],
         "times": ["1970-01-01T00:00:01Z", 2000000000]},
        {"price": -0.05, "photo": "", "tags": [], "counts": null, "times": null},
        {"price": 3, "counts": [null]},
        {"price": null, "tags": null}]"#;
    let expected = [
        json!({"price": "12345678.90", "photo": "/wAB", "tags": ["x", null, ""], "counts": [1, -2],
               "times": ["1970-01-01T00:00:01Z", "1970-01-01T00:00:02Z"]}),
        json!({"price": "-0.05", "photo": "", "tags": [], "counts": null, "times": null}),
        json!({"price": "3.00", "photo": null, "tags": ["a"], "counts": [null], "times": null}),
        json!({"price": null, "photo": null, "tags": null, "counts": null, "times": null}),
    ];
    let batch = decode(BodyFormat::Json, posted.as_bytes()).unwrap();
    assert_eq!(rows(&batch), expected);
    assert_eq!(rows(&decode(BodyFormat::ArrowStream, &stream(&batch)).unwrap()), expected);
}

#[test]
fn other_kinds_of_arrow_arrays_fit_too() {
    let columns: [(&str, ArrayRef); 3] = [
        ("price", Arc::new(Int64Array::from(vec![7, -8]))),
        ("photo", Arc::new(LargeBinaryArray::from(vec![Some(&b"\xff\x00"[..]), None]))),
        ("counts", Arc::new(LargeListArray::from_iter_primitive::<Int64Type, _, _>([None, Some([Some(5)])]))),
    ];
    let batch = RecordBatch::try_from_iter_with_nullable(columns.map(|(name, a)| (name, a, true))).unwrap();
    let found = rows(&decode(BodyFormat::ArrowStream, &stream(&batch)).unwrap());
    assert_eq!(
        (&found[0]["price"], &found[0]["photo"], &found[0]["counts"]),
        (&json!("7.00"), &json!("/wA="), &Value::Null)
    );
    assert_eq!((&found[1]["price"], &found[1]["counts"]), (&json!("-8.00"), &json!([5])));
}

#[test]
fn what_would_be_rounded_cut_or_guessed_is_refused_with_what_to_do() {
    for (row, column, words) in [
        (r#"{"price": 1.005}"#, "price", "nothing is rounded"),
        (r#"{"price": "1.005"}"#, "price", "nothing is rounded"),
        (r#"{"price": 123456789}"#, "price", "DECIMAL(10, 2) does not hold"),
        (r#"{"price": 0.30000000000000004}"#, "price", "send it as text"),
        (r#"{"price": 1e300}"#, "price", "DECIMAL(10, 2) does not hold"),
        (r#"{"price": "a lot"}"#, "price", "'a lot' is no number"),
        (r#"{"price": true}"#, "price", "a number, or its digits as text"),
        (r#"{"photo": "/wA"}"#, "photo", "no base64 text"),
        (r#"{"photo": "_wAB"}"#, "photo", "no base64 text"),
        (r#"{"photo": 5}"#, "photo", "BYTEA takes base64 text"),
        (r#"{"tags": "x"}"#, "tags", "TEXT[] takes an array; of its items each text"),
        (r#"{"tags": ["x", 5]}"#, "tags", "an array with the number 5 in it"),
        (r#"{"tags": [["x"]]}"#, "tags", "an array with an array in it"),
        (r#"{"counts": [99999999999999999999]}"#, "counts", "an array with"),
        (r#"{"times": ["noon"]}"#, "times", "'noon'"),
        (r#"{"part": 1}"#, "part", "filled in by emostream; leave it out"),
    ] {
        match decode(BodyFormat::Json, row.as_bytes()) {
            Err(DecodeError::Row { row: 0, column: Some(at), detail }) => {
                assert_eq!(at, column, "{row}: {detail}");
                assert!(detail.contains(words), "{row}: {detail}");
            }
            other => panic!("{row}: {other:?}"),
        }
    }
}
