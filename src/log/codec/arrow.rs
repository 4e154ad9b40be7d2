//! Format `arrow`: one batch ↔ one self-contained Arrow IPC stream.
//!
//! Text columns of few values are dictionary-encoded (Int32 keys) on the way in, so that the engine groups by small
//! integers. Buffers may be compressed (LZ4, ZSTD), each on its own: only those of the columns asked for are decompressed.
//!
//! The library's stream reader trusts what it reads: it allocates what a message claims to hold, and panics on some
//! damaged descriptions. So the messages are taken apart here: every length and place is compared with what is there
//! before the library is asked to build an array from it, and that last step is isolated.

use std::collections::HashMap;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use ::arrow::array::{
    Array, ArrayRef, DictionaryArray, Int32Array, RecordBatch, RecordBatchOptions, StringArray,
};
use ::arrow::buffer::Buffer;
use ::arrow::compute::cast;
use ::arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef};
use ::arrow::ipc::convert::fb_to_schema;
use ::arrow::ipc::reader::{read_dictionary, read_record_batch};
use ::arrow::ipc::writer::{IpcWriteOptions, StreamWriter};
use ::arrow::ipc::{CompressionType, Message, MetadataVersion, root_as_message};
use bytes::Bytes;
use hashbrown::HashMap as FastMap;

use super::arrow_small::Usual;
use super::{CodecError, Compression, MAX_READ_ROWS, Origin, RecordCodec, damaged, new_record};
use crate::log::{ARROW_STREAM, NewRecord};
use crate::reaction::columns::{Column as Growing, shortened};
use crate::sync::lock;

/// What a record's compressed buffers may hold together once they are decompressed. Hundred times a usual record.
const MAX_INFLATED: u64 = 64 << 20;
/// How many schemas are remembered.
const MAX_KNOWN: usize = 16;

/// Fewer rows are not worth compressing: their headers are most of what they take.
const MIN_COMPRESSED: usize = 1000;

pub(super) fn encode(batch: &RecordBatch, compression: Compression) -> Result<NewRecord, CodecError> {
    let batch = with_dictionaries(batch)?;
    let mut value = Vec::with_capacity(batch.get_array_memory_size() + 1024);
    let compression = match compression {
        Compression::Lz4 if batch.num_rows() >= MIN_COMPRESSED => Some(CompressionType::LZ4_FRAME),
        Compression::Zstd if batch.num_rows() >= MIN_COMPRESSED => Some(CompressionType::ZSTD),
        _ => None,
    };
    let options = IpcWriteOptions::default().try_with_compression(compression).map_err(damaged)?;
    let writer = StreamWriter::try_new_with_options(&mut value, &batch.schema(), options);
    let mut writer = writer.map_err(damaged)?;
    writer.write(&batch).and_then(|()| writer.finish()).map_err(damaged)?;
    drop(writer);
    new_record(value, ARROW_STREAM, batch.num_rows())
}

/// The columns asked for, by name. Types are checked; nulls and the row count are the caller's to check.
pub(super) fn decode(
    codec: &RecordCodec,
    from: Origin<'_>,
    value: &Bytes,
    columns: &[usize],
) -> Result<RecordBatch, CodecError> {
    // Descriptions that are well-formed and still make no sense (a list without a child, a decimal of 300 digits) end
    // in panics of the library. They share nothing with what comes after.
    let read = std::panic::catch_unwind(AssertUnwindSafe(|| read(codec, from, value, columns)));
    read.unwrap_or_else(|_| Err(broken("its description makes no sense")))
}

fn broken(reason: &str) -> CodecError {
    CodecError::Damaged(format!("no Arrow stream of one batch: {reason}"))
}

fn read(
    codec: &RecordCodec,
    from: Origin<'_>,
    value: &Bytes,
    columns: &[usize],
) -> Result<RecordBatch, CodecError> {
    let buffer = Buffer::from(value.clone());
    let mut messages = Messages::of(value);
    let known = known(codec, &mut messages, columns)?;
    let Known { schema, wanted, version, .. } = known.as_ref();
    let mut dictionaries = HashMap::new();
    let mut found: Option<RecordBatch> = None;
    while let Some(description) = messages.description()? {
        let description = aligned(description);
        let head = parse(&description)?;
        let body = messages.body(head.bodyLength())?;
        let body = buffer.slice_with_length(body.start, body.len());
        if let Some(batch) = head.header_as_dictionary_batch() {
            let data = batch.data().ok_or_else(|| broken("a dictionary has no values"))?;
            messages.check(data, &body)?;
            if wanted.needs(batch.id()) {
                read_dictionary(&body, batch, schema, &mut dictionaries, version).map_err(damaged)?;
            }
        } else if let Some(batch) = head.header_as_record_batch() {
            if found.is_some() {
                return Err(broken("it holds more than one batch"));
            }
            messages.check(batch, &body)?;
            let read = read_record_batch(
                &body,
                batch,
                Arc::clone(schema),
                &dictionaries,
                Some(&wanted.present),
                version,
            );
            found = Some(read.map_err(damaged)?);
        } else {
            return Err(broken("it holds something that is no batch"));
        }
    }
    let batch = found.ok_or_else(|| broken("it holds no batch"))?;
    let batch = with_int32_keys(batch)?;
    if wanted.is_all { Ok(batch) } else { wanted.fill(codec, from, &batch, columns) }
}

/// A schema as records describe it.
#[derive(Debug)]
pub(super) struct Known {
    description: Vec<u8>,
    columns: Vec<usize>,
    pub(super) body: i64,
    version: MetadataVersion,
    schema: SchemaRef,
    wanted: Wanted,
    /// How small records of it are read; `None` where they are not usual.
    pub(super) usual: Option<Usual>,
}

impl Known {
    /// Whether records describe it so, for one who wants these columns.
    pub(super) fn is(&self, description: &[u8], columns: &[usize]) -> bool {
        self.description == description && self.columns == columns
    }
}

/// The schemas last seen, newest first: writers describe theirs alike, and which of a small record's text columns are
/// dictionaries depends on its rows.
pub(super) type KnownSchemas = Arc<Vec<Arc<Known>>>;

/// What the stream begins with.
fn known(
    codec: &RecordCodec,
    messages: &mut Messages<'_>,
    columns: &[usize],
) -> Result<Arc<Known>, CodecError> {
    let description = messages.description()?.ok_or_else(|| broken("it is empty"))?;
    let seen = codec.known_schemas();
    let known = match seen.iter().find(|known| known.is(description, columns)) {
        Some(known) => Arc::clone(known),
        None => {
            let known = Arc::new(learn(codec, description, columns)?);
            let others = seen.iter().take(MAX_KNOWN - 1).cloned();
            let all = std::iter::once(Arc::clone(&known)).chain(others).collect();
            *lock(&codec.known_schemas) = Arc::new(all);
            known
        }
    };
    messages.body(known.body)?;
    Ok(known)
}

fn learn(codec: &RecordCodec, description: &[u8], columns: &[usize]) -> Result<Known, CodecError> {
    let head = aligned(description);
    let head = parse(&head)?;
    let schema = head.header_as_schema().ok_or_else(|| broken("it does not begin with a schema"))?;
    let schema = Arc::new(fb_to_schema(schema));
    let wanted = Wanted::find(codec, &schema, columns)?;
    Ok(Known {
        description: description.to_vec(),
        columns: columns.to_vec(),
        body: head.bodyLength(),
        version: head.version(),
        usual: if wanted.is_all { Usual::of(&schema, &wanted.present) } else { None },
        wanted,
        schema,
    })
}

fn parse(head: &[u8]) -> Result<Message<'_>, CodecError> {
    root_as_message(head).map_err(|error| broken(&error.to_string()))
}

/// The messages of a stream, each within its bounds.
pub(super) struct Messages<'v> {
    value: &'v [u8],
    next: usize,
    /// What the compressed buffers seen so far claim to hold.
    inflated: u64,
}

impl<'v> Messages<'v> {
    pub(super) fn of(value: &'v [u8]) -> Self {
        Self { value, next: 0, inflated: 0 }
    }

    /// The next message's description; `None` at the end of the stream. Its body follows.
    pub(super) fn description(&mut self) -> Result<Option<&'v [u8]>, CodecError> {
        let cut = || broken("it ends within a message");
        let at = self.next;
        let mut length = || {
            let word: [u8; 4] = self.value.get(self.next..self.next + 4)?.try_into().ok()?;
            self.next += 4;
            Some(u32::from_le_bytes(word))
        };
        // Streams of old writers lack the continuation marker, and may lack the end.
        let head = match length() {
            None if self.value.len() == at => return Ok(None),
            Some(u32::MAX) => length(),
            other => other,
        };
        let head = usize::try_from(head.ok_or_else(cut)?).map_err(|_| cut())?;
        if head == 0 {
            return Ok(None);
        }
        self.take(head).map(Some)
    }

    /// Where the body of the message just described lies.
    pub(super) fn body(&mut self, length: i64) -> Result<Range<usize>, CodecError> {
        let start = self.next;
        let length = usize::try_from(length).map_err(|_| broken("it ends within a message"))?;
        self.take(length).map(|body| start..start + body.len())
    }

    fn take(&mut self, length: usize) -> Result<&'v [u8], CodecError> {
        let end = self.next.checked_add(length);
        let taken = end.and_then(|end| self.value.get(self.next..end));
        let taken = taken.ok_or_else(|| broken("it ends within a message"))?;
        self.next += length;
        Ok(taken)
    }

    /// That a batch's buffers lie in its body, and that neither they nor its rows claim more than is read.
    fn check(&mut self, batch: ::arrow::ipc::RecordBatch<'_>, body: &Buffer) -> Result<(), CodecError> {
        let rows = |length: i64| usize::try_from(length).is_ok_and(|length| length <= MAX_READ_ROWS);
        if !rows(batch.length())
            || batch.nodes().is_some_and(|nodes| {
                nodes
                    .iter()
                    .any(|node| !rows(node.length()) || !(0..=node.length()).contains(&node.null_count()))
            })
        {
            return Err(broken("a length makes no sense"));
        }
        for buffer in batch.buffers().into_iter().flatten() {
            let range = usize::try_from(buffer.offset()).ok().zip(usize::try_from(buffer.length()).ok());
            let bytes = range.and_then(|(from, length)| body.get(from..from.checked_add(length)?));
            let bytes = bytes.ok_or_else(|| broken("a buffer lies outside of its message"))?;
            if batch.compression().is_some() && !bytes.is_empty() {
                // The first eight bytes say how long it is decompressed; -1: it is not compressed.
                let (length, _) =
                    bytes.split_first_chunk().ok_or_else(|| broken("a compressed buffer is cut"))?;
                let length = i64::from_le_bytes(*length);
                self.inflated = self.inflated.saturating_add(u64::try_from(length).unwrap_or(0));
                if length < -1 || self.inflated > MAX_INFLATED {
                    let limit = MAX_INFLATED >> 20;
                    return Err(broken(&format!("decompressed it would be more than {limit} MB")));
                }
            }
        }
        Ok(())
    }
}

/// Descriptions are read in place, for which they must lie at a multiple of eight; buffers of their own do.
fn aligned(description: &[u8]) -> Buffer {
    Buffer::from(description)
}

/// Which of a record's columns are read.
#[derive(Debug)]
struct Wanted {
    /// By column asked for: its place in the record, and which of those read it is.
    found: Vec<Option<usize>>,
    /// The places in the record to read, in the order in which they are asked for.
    present: Vec<usize>,
    /// Dictionaries that they need.
    dictionaries: Vec<i64>,
    is_all: bool,
}

impl Wanted {
    /// Columns by name; that they are of the table's types.
    fn find(codec: &RecordCodec, stored: &SchemaRef, columns: &[usize]) -> Result<Self, CodecError> {
        let mut wanted = Self {
            found: Vec::with_capacity(columns.len()),
            present: Vec::with_capacity(columns.len()),
            dictionaries: Vec::new(),
            is_all: true,
        };
        for &column in columns {
            let expected = codec.all.field(column);
            if column >= codec.held.fields().len() {
                wanted.is_all = false;
                wanted.found.push(None);
                continue;
            }
            // Mostly the record has the table's columns.
            let at_its_place =
                stored.fields().get(column).is_some_and(|field| field.name() == expected.name());
            let place = if at_its_place { Some(column) } else { stored.index_of(expected.name()).ok() };
            wanted.is_all &= place.is_some();
            wanted.found.push(place.map(|_| wanted.present.len()));
            if let Some(place) = place {
                let field = stored.field(place);
                check_type(field, expected)?;
                if matches!(field.data_type(), DataType::Dictionary(..)) {
                    #[allow(deprecated)] // the only way to know which dictionaries need not be decompressed
                    wanted.dictionaries.extend(field.dict_id());
                }
                wanted.present.push(place);
            }
        }
        Ok(wanted)
    }

    fn needs(&self, dictionary: i64) -> bool {
        self.dictionaries.contains(&dictionary)
    }

    /// With the columns that the record does not have.
    fn fill(
        &self,
        codec: &RecordCodec,
        from: Origin<'_>,
        batch: &RecordBatch,
        columns: &[usize],
    ) -> Result<RecordBatch, CodecError> {
        let (mut fields, mut arrays) = (Vec::with_capacity(columns.len()), Vec::with_capacity(columns.len()));
        for (found, &column) in self.found.iter().zip(columns) {
            let array: ArrayRef = match found {
                Some(at) => Arc::clone(batch.column(*at)),
                None => absent(codec, from, column, batch.num_rows())?,
            };
            let expected = codec.all.field(column);
            fields.push(Field::new(expected.name(), array.data_type().clone(), true));
            arrays.push(array);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options).map_err(damaged)
    }
}

/// Foreign writers choose other keys for their dictionaries.
fn with_int32_keys(batch: RecordBatch) -> Result<RecordBatch, CodecError> {
    let is_foreign = |data_type: &DataType| match data_type {
        DataType::Dictionary(keys, _) => **keys != DataType::Int32,
        _ => false,
    };
    if !batch.columns().iter().any(|column| is_foreign(column.data_type())) {
        return Ok(batch);
    }
    let coded = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let column = |column: &ArrayRef| match is_foreign(column.data_type()) {
        true => cast(column, &coded).map_err(damaged),
        false => Ok(Arc::clone(column)),
    };
    let columns = batch.columns().iter().map(column).collect::<Result<Vec<_>, _>>()?;
    let fields = batch
        .schema()
        .fields()
        .iter()
        .zip(&columns)
        .map(|(field, column)| Field::new(field.name(), column.data_type().clone(), field.is_nullable()))
        .collect::<Vec<_>>();
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options).map_err(damaged)
}

/// A column that was added after the record was written.
fn absent(codec: &RecordCodec, from: Origin<'_>, place: usize, rows: usize) -> Result<ArrayRef, CodecError> {
    let column = &codec.columns[place];
    let mut values = Growing::coded(column.data_type, column.nullable, rows);
    for _ in 0..rows {
        codec.push_absent(place, from, &mut values).map_err(CodecError::WrongSchema)?;
    }
    values.into_array().map_err(damaged)
}

fn check_type(stored: &Field, expected: &Field) -> Result<(), CodecError> {
    let plain = match stored.data_type() {
        DataType::Dictionary(_, values) => values.as_ref(),
        plain => plain,
    };
    if plain == expected.data_type() {
        return Ok(());
    }
    let plain = shortened(&plain.to_string());
    let reason = format!("column {} is {plain}, the table has {}", stored.name(), expected.data_type());
    Err(CodecError::WrongSchema(reason))
}
/// Replaces every text column of few values by a dictionary.
fn with_dictionaries(batch: &RecordBatch) -> Result<RecordBatch, CodecError> {
    let mut fields = Vec::with_capacity(batch.num_columns());
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(batch.num_columns());
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        let text = column.as_any().downcast_ref::<StringArray>();
        match text.and_then(dictionary) {
            Some(encoded) => {
                let field = Field::new(field.name(), encoded.data_type().clone(), field.is_nullable());
                fields.push(Arc::new(field));
                columns.push(Arc::new(encoded));
            }
            None => {
                fields.push(Arc::clone(field));
                columns.push(Arc::clone(column));
            }
        }
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(damaged)
}

/// The column as a dictionary, or `None` when that would not pay: fewer than 16 rows (the dictionary's own message
/// costs some 200 bytes), or more than one distinct value for every four rows.
fn dictionary(text: &StringArray) -> Option<DictionaryArray<Int32Type>> {
    if text.len() < 16 {
        return None;
    }
    let limit = (text.len() / 4).max(4);
    let mut codes: FastMap<&str, i32> = FastMap::with_capacity(64);
    let mut values: Vec<&str> = Vec::with_capacity(64);
    let mut keys = Vec::with_capacity(text.len());
    for value in text {
        let Some(value) = value else {
            keys.push(None);
            continue;
        };
        let next = i32::try_from(values.len()).ok()?;
        let code = *codes.entry(value).or_insert_with(|| {
            values.push(value);
            next
        });
        if values.len() > limit {
            return None;
        }
        keys.push(Some(code));
    }
    let values = Arc::new(StringArray::from(values));
    DictionaryArray::try_new(Int32Array::from(keys), values).ok()
}
