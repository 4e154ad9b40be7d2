//! What inputs give and outputs write, on real files.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::UInt64Type;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::{FileWriter, StreamWriter};

use super::output::Output;
use super::*;
use crate::log::codec::RecordCodec;
use crate::reaction::table::{
    Column, ColumnSource, ColumnType, Format, Framing, Table, TableKind, TableOptions,
};

fn table(format: Format, columns: &[(&str, ColumnType)]) -> Table {
    let column = |(name, data_type): &(&str, ColumnType)| Column {
        name: (*name).to_owned(),
        data_type: *data_type,
        nullable: false,
        default: None,
        source: ColumnSource::Record,
    };
    Table {
        name: "t".to_owned(),
        kind: TableKind::Source,
        topic: "t".to_owned(),
        format,
        columns: columns.iter().map(column).collect(),
        watermark: None,
        key_field: None,
        options: BTreeMap::new(),
        with: TableOptions { framing: Some(Framing::Newline), ..TableOptions::default() },
    }
}

const COLUMNS: &[(&str, ColumnType)] = &[("text", ColumnType::Text), ("n", ColumnType::Bigint)];

fn batch(rows: i64) -> RecordBatch {
    let text: ArrayRef = Arc::new((0..rows).map(|n| Some(format!("text{n}"))).collect::<StringArray>());
    let n: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows));
    let more: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows));
    RecordBatch::try_from_iter([("more", more), ("n", n), ("text", text)]).unwrap()
}

/// Every row's `n`, in order.
fn numbers(table: &Table, input: Input) -> Vec<i64> {
    let codec = RecordCodec::new(table);
    let mut numbers = Vec::new();
    for (offset, piece) in (0..).zip(input) {
        let piece = piece.unwrap();
        assert_eq!(piece.record.offset, offset);
        let batch = codec.decode(0, &piece.record, &[1]).unwrap();
        numbers.extend(batch.column(0).as_primitive::<arrow::datatypes::Int64Type>().values());
    }
    numbers
}

#[test]
fn lines_are_read_to_the_end_with_or_without_a_last_line_end() {
    let folder = tempfile::tempdir().unwrap();
    let table = table(Format::Json, COLUMNS);
    for end in ["", "\n", "\n\n"] {
        let lines: Vec<String> = (0..2500).map(|n| format!("{{\"text\":\"x\",\"n\":{n}}}")).collect();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, lines.join("\n") + end).unwrap();
        let input = file::read(&table, &path, "rows.jsonl", Cursor::default()).unwrap();
        assert_eq!(numbers(&table, input), (0..2500).collect::<Vec<i64>>());
    }
    std::fs::write(folder.path().join("empty"), "").unwrap();
    assert_eq!(
        file::read(&table, &folder.path().join("empty"), "empty", Cursor::default()).unwrap().count(),
        0
    );
    let missing =
        file::read(&table, &folder.path().join("missing"), "missing", Cursor::default()).err().unwrap();
    assert!(missing.to_string().starts_with("missing: No such file"), "{missing}");
}

#[test]
fn a_bad_line_is_named_by_its_number_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let table = table(Format::Json, COLUMNS);
    let mut lines: Vec<String> = (0..2500).map(|n| format!("{{\"text\":\"x\",\"n\":{n}}}")).collect();
    lines[2100] = "{\"text\":\"x\",\"n\":\"many\"}".to_owned();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, lines.join("\n")).unwrap();
    let codec = RecordCodec::new(&table);
    let refused = file::read(&table, &path, "rows.jsonl", Cursor::default()).unwrap().find_map(|piece| {
        let piece = piece.unwrap();
        codec.decode(0, &piece.record, &[0, 1]).err().map(|error| piece.place.refused(&error).to_string())
    });
    assert_eq!(refused.unwrap(), "rows.jsonl:2101: column n is the text 'many'; BIGINT takes an integer");
}

#[test]
fn arrow_files_and_streams_are_read_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let table = table(Format::Arrow, COLUMNS);
    let batch = batch(30_000);
    let expected: Vec<i64> = (0..30_000).chain(0..30_000).collect();
    let path = folder.path().join("rows");
    let mut stream = StreamWriter::try_new(std::fs::File::create(&path).unwrap(), &batch.schema()).unwrap();
    (0..2).for_each(|_| stream.write(&batch).unwrap());
    stream.finish().unwrap();
    assert_eq!(numbers(&table, file::read(&table, &path, "rows", Cursor::default()).unwrap()), expected);
    let mut whole = FileWriter::try_new(std::fs::File::create(&path).unwrap(), &batch.schema()).unwrap();
    (0..2).for_each(|_| whole.write(&batch).unwrap());
    whole.finish().unwrap();
    assert_eq!(numbers(&table, file::read(&table, &path, "rows", Cursor::default()).unwrap()), expected);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let cut = file::read(&table, &path, "rows", Cursor::default()).err().unwrap().to_string();
    assert!(cut.starts_with("rows: no readable Arrow IPC file or stream: "), "{cut}");
}

#[test]
fn an_impulse_counts_in_its_own_time() {
    let columns = [("counter", ColumnType::BigintUnsigned), ("subtask_index", ColumnType::BigintUnsigned)];
    let table = table(Format::Arrow, &columns);
    let codec = RecordCodec::new(&table);
    for (rate, count, records, last_ms) in
        [(2.0, 5, 5, 2_000), (10_000.0, 25, 3, 2), (0.5, 2, 2, 2_000), (1.0, 0, 0, 0)]
    {
        let pieces: Vec<Piece> =
            impulse::impulse(&table, rate, count, Cursor::default()).map(Result::unwrap).collect();
        assert_eq!(pieces.len(), records);
        let mut counters = Vec::new();
        for piece in &pieces {
            let batch = codec.decode(0, &piece.record, &[0, 1]).unwrap();
            counters.extend_from_slice(batch.column(0).as_primitive::<UInt64Type>().values());
            assert!(batch.column(1).as_primitive::<UInt64Type>().values().iter().all(|index| *index == 0));
        }
        assert_eq!(counters, (0..count).collect::<Vec<_>>());
        assert_eq!(pieces.last().map_or(0, |piece| piece.record.timestamp_ms), last_ms);
    }
}

/// What was written, also after it was given away.
#[derive(Clone, Default)]
struct Shared(Arc<std::sync::Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn outputs_hold_what_was_written_and_nothing_of_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    let rows = batch(3).project(&[2, 1]).unwrap();
    let lines = "{\"text\":\"text0\",\"n\":0}\n{\"text\":\"text1\",\"n\":1}\n{\"text\":\"text2\",\"n\":2}\n";
    std::fs::write(&path, "much longer than what comes after it ".repeat(100)).unwrap();
    let mut output = Output::file(&table(Format::Json, COLUMNS), &path, "out").unwrap();
    (0..2).for_each(|_| output.write(&rows).unwrap());
    output.finish().unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), [lines, lines].concat());
    let mut output = Output::file(&table(Format::Arrow, COLUMNS), &path, "out").unwrap();
    (0..2).for_each(|_| output.write(&rows).unwrap());
    output.finish().unwrap();
    let read = StreamReader::try_new(std::fs::File::open(&path).unwrap(), None).unwrap();
    assert_eq!(read.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 6);
    let shown = Shared::default();
    let mut output = Output::stdout(&table(Format::Json, COLUMNS), Box::new(shown.clone()));
    output.write(&rows).unwrap();
    assert_eq!(String::from_utf8(shown.0.lock().unwrap().clone()).unwrap(), lines);
    assert!(Output::file(&table(Format::Json, COLUMNS), &folder.path().join("no/out"), "no/out").is_err());
}
