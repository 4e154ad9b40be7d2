//! The `single_file` source: a file of lines, JSON or text, or an Arrow IPC file or stream, to its end.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::cast;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::reader::{FileReader, StreamReader};
use bytes::Bytes;

use super::{ConnectorError, Cursor, Input, Piece, Place};
use crate::log::Record;
use crate::log::codec::RecordCodec;
use crate::reaction::table::{Format, Framing, Table};

/// So many lines, or so many bytes, are read as one record.
const LINES: usize = 1000;
const BYTES: usize = 256 << 10;
/// The longest line.
const MAX_LINE: usize = 16 << 20;
/// How an Arrow IPC file, other than a stream, begins.
const FILE_MAGIC: &[u8] = b"ARROW1";

/// The rows of the file at `path`, which messages call `shown`. Records say no time of writing: there is no clock in a
/// file, so `DEFAULT now()` is the Unix epoch.
///
/// # Errors
/// When it cannot be opened, ends before `from`, or begins as no Arrow file does.
pub fn read(table: &Table, path: &Path, shown: &str, from: Cursor) -> Result<Input, ConnectorError> {
    let failed = |error: std::io::Error| ConnectorError::Input(format!("{shown}: {error}"));
    let mut file = File::open(path).map_err(failed)?;
    let most = match table.format {
        Format::Json => LINES,
        Format::RawString => 1,
        Format::Arrow => {
            let first = usize::try_from(from.next).unwrap_or(usize::MAX);
            return Ok(Box::new(arrow_pieces(table, file, shown)?.skip(first)));
        }
    };
    let bytes = file.metadata().map_err(failed)?.len();
    if bytes < from.next {
        let read = from.next;
        return Err(ConnectorError::Input(format!(
            "{shown}: it has {bytes} bytes, and {read} of it were read: it is another file; name it otherwise in 'path'"
        )));
    }
    file.seek(SeekFrom::Start(from.next)).map_err(failed)?;
    let place = Place { file: shown.to_owned(), line: from.lines + 1 };
    Ok(Box::new(Lines { file: BufReader::new(file), place, offset: 0, most, bytes: from.next }))
}

/// A file holds its rows in lines, whatever a record of the table would hold.
pub fn as_read(source: &Table) -> Table {
    let mut source = source.clone();
    if source.format == Format::Json {
        source.with.framing = Some(Framing::Newline);
    }
    source
}

fn record(offset: i64, value: Bytes) -> Record {
    Record { offset, timestamp_ms: 0, key: None, value: Some(value), headers: Vec::new() }
}

/// Lines of text, some at a time.
struct Lines {
    file: BufReader<File>,
    place: Place,
    offset: i64,
    most: usize,
    /// Of the file, read so far.
    bytes: u64,
}

impl Iterator for Lines {
    type Item = Result<Piece, ConnectorError>;

    fn next(&mut self) -> Option<Self::Item> {
        let place = self.place.clone();
        let (mut lines, mut text) = (0, Vec::new());
        while lines < self.most && text.len() < BYTES {
            let before = text.len();
            let mut line = self.file.by_ref().take(MAX_LINE as u64 + 1);
            match line.read_until(b'\n', &mut text) {
                Ok(0) => break,
                Ok(_) if text.len() - before > MAX_LINE => {
                    let at = format!("{}:{}", place.file, place.line + lines);
                    let message =
                        format!("{at}: a line of more than {MAX_LINE} bytes; expected one row a line");
                    return Some(Err(ConnectorError::Input(message)));
                }
                Ok(_) => lines += 1,
                Err(error) => return Some(Err(ConnectorError::Outside(format!("{}: {error}", place.file)))),
            }
        }
        if lines == 0 {
            return None;
        }
        self.place.line += lines;
        self.offset += 1;
        self.bytes += text.len() as u64;
        let after = Cursor { next: self.bytes, lines: self.place.line - 1 };
        if self.most == 1 && text.last() == Some(&b'\n') {
            text.pop();
        }
        Some(Ok(Piece { record: record(self.offset - 1, text.into()), place, after }))
    }
}

type Batches = Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>> + Send>;

fn open_arrow(mut file: File) -> Result<Batches, ArrowError> {
    let mut magic = [0; FILE_MAGIC.len()];
    let is_file = file.read_exact(&mut magic).is_ok() && magic == FILE_MAGIC;
    file.seek(SeekFrom::Start(0))?;
    Ok(match is_file {
        true => Box::new(FileReader::try_new(BufReader::new(file), None)?),
        false => Box::new(StreamReader::try_new(BufReader::new(file), None)?),
    })
}

/// Damaged descriptions end in panics of the library.
fn guarded<T>(read: impl FnOnce() -> T) -> Result<T, String> {
    std::panic::catch_unwind(AssertUnwindSafe(read)).map_err(|_| "its description makes no sense".to_owned())
}

fn arrow_pieces(
    table: &Table,
    file: File,
    shown: &str,
) -> Result<impl Iterator<Item = Result<Piece, ConnectorError>> + use<>, ConnectorError> {
    let place = Place { file: shown.to_owned(), line: 0 };
    let codec = RecordCodec::new(table);
    let no_arrow = {
        let shown = shown.to_owned();
        move |why: String| {
            ConnectorError::Input(format!("{shown}: no readable Arrow IPC file or stream: {why}"))
        }
    };
    let opened = guarded(|| open_arrow(file)).and_then(|opened| opened.map_err(|error| error.to_string()));
    let mut batches = opened.map_err(&no_arrow)?;
    let mut offset = 0;
    let next_batch = move || {
        let read =
            guarded(|| batches.next()).and_then(|read| read.transpose().map_err(|error| error.to_string()));
        read.transpose()
    };
    Ok(std::iter::from_fn(next_batch).flat_map(move |batch| {
        let records = batch.map_err(&no_arrow).and_then(|batch| {
            let batch = fitted(&batch, codec.schema()).map_err(|error| no_arrow(error.to_string()))?;
            codec.encode_all(&batch).map_err(|error| place.refused(&error))
        });
        let pieces: Vec<_> = match records {
            Err(error) => vec![Err(error)],
            Ok(records) => records
                .into_iter()
                .map(|new| {
                    let record =
                        Record { headers: new.headers, ..record(offset, new.value.unwrap_or_default()) };
                    offset += 1;
                    let after = Cursor { next: record.offset.unsigned_abs() + 1, lines: 0 };
                    Ok(Piece { record, place: place.clone(), after })
                })
                .collect(),
        };
        pieces
    }))
}

/// The columns that the table has, as its types; those that it does not have are left out.
fn fitted(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let (mut fields, mut columns) = (Vec::new(), Vec::new());
    for field in schema.fields() {
        if let Some(column) = batch.column_by_name(field.name()) {
            // Nulls are judged by the codec.
            fields.push(Arc::new(field.as_ref().clone().with_nullable(true)));
            columns.push(cast(column, field.data_type())?);
        }
    }
    RecordBatch::try_new(Arc::new(arrow::datatypes::Schema::new(fields)), columns)
}
