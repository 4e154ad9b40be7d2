//! Small Arrow records, read side by side into one batch, without the library. An array of the library costs the same
//! however few rows it has, and so does a batch in the engine: with both, a record of twenty rows cost as much as
//! two thousand rows. Here its values are copied behind those of the records before it.
//!
//! Only the usual record: flat columns of text and numbers, no nulls, not compressed, of a schema that was seen before.
//! Whatever is unusual goes the general way and gets its error there.

use ::arrow::datatypes::{DataType, Schema, TimeUnit};
use ::arrow::ipc::{DictionaryBatch, RecordBatch, root_as_message};

use super::arrow::Messages;
use super::{Decoded, ENOUGH_ROWS, ENOUGH_TEXT, RecordCodec, check_count};
use crate::log::Record;
use crate::reaction::columns::Column as Growing;

/// From here on a record is worth a batch of its own: some thousand rows.
const SMALL_BYTES: usize = 64 << 10;

/// Where the columns wanted lie in the usual record, in the order in which they are wanted.
#[derive(Debug)]
pub(super) struct Usual(Vec<Place>);

#[derive(Debug)]
struct Place {
    /// Among the batch's nodes, of which a flat column has one.
    node: usize,
    /// The first of its buffers: which rows have a value.
    buffer: usize,
    form: Form,
}

#[derive(Debug)]
enum Form {
    Fixed,
    Text,
    /// Keys into that dictionary.
    Coded(i64),
}

impl Usual {
    /// `None` when one of the columns up to the last that is wanted is not flat.
    pub(super) fn of(schema: &Schema, wanted: &[usize]) -> Option<Self> {
        let mut buffers = Vec::new();
        let mut next = 0;
        for field in schema.fields() {
            buffers.push(next);
            next += match field.data_type() {
                DataType::Utf8 | DataType::LargeUtf8 | DataType::Binary | DataType::LargeBinary => 3,
                DataType::Boolean | DataType::Timestamp(..) | DataType::Dictionary(..) => 2,
                number if number.is_numeric() => 2,
                _ => break,
            };
        }
        let place = |&node: &usize| {
            let field = schema.field(node);
            let form = match field.data_type() {
                DataType::Utf8 => Form::Text,
                DataType::Dictionary(keys, values)
                    if **keys == DataType::Int32 && **values == DataType::Utf8 =>
                {
                    #[allow(deprecated)] // as in the general way
                    Form::Coded(field.dict_id()?)
                }
                DataType::Timestamp(TimeUnit::Nanosecond, None)
                | DataType::Int32
                | DataType::Int64
                | DataType::UInt32
                | DataType::UInt64
                | DataType::Float32
                | DataType::Float64 => Form::Fixed,
                _ => return None,
            };
            Some(Place { node, buffer: *buffers.get(node)?, form })
        };
        wanted.iter().map(place).collect::<Option<_>>().map(Self)
    }
}

/// The rows of as many of the first records as are small and usual; `None` when the first is not.
pub(super) fn decode(codec: &RecordCodec, records: &[Record], columns: &[usize]) -> Option<Decoded> {
    let mut small = Small::new(codec, records, columns);
    let mut ends = Vec::new();
    let mut rows = 0;
    for record in records {
        let Some(taken) = small.take(record) else {
            small.built.iter_mut().for_each(|column| column.truncate(rows));
            break;
        };
        rows += taken;
        ends.push(rows);
        if rows >= ENOUGH_ROWS || small.built.iter().map(Growing::text_bytes).sum::<usize>() >= ENOUGH_TEXT {
            break;
        }
    }
    let decoded = Decoded { ends, ..codec.nothing(columns) };
    (!decoded.ends.is_empty()).then(|| codec.finish(columns, small.built, decoded))
}

/// The rows so far.
struct Small<'a> {
    known: super::arrow::KnownSchemas,
    columns: &'a [usize],
    built: Vec<Growing>,
    /// The texts of the dictionaries of the record at hand.
    dictionaries: Vec<(i64, Vec<&'a str>)>,
}

impl<'a> Small<'a> {
    fn new(codec: &'a RecordCodec, records: &[Record], columns: &'a [usize]) -> Self {
        let is_small = |record: &Record| record.value.as_ref().is_some_and(|value| value.len() < SMALL_BYTES);
        let rows = if records.first().is_some_and(is_small) { ENOUGH_ROWS } else { 0 };
        let column = |&place: &usize| {
            let column = &codec.columns[place];
            Growing::coded(column.data_type, column.nullable, rows)
        };
        let built = columns.iter().map(column).collect();
        Self { known: codec.known_schemas(), columns, built, dictionaries: Vec::new() }
    }

    /// Takes the record; `None` when it is not usual, and then some of its columns may have been taken.
    fn take(&mut self, record: &'a Record) -> Option<usize> {
        let value = record.value.as_deref().filter(|value| value.len() < SMALL_BYTES)?;
        let mut messages = Messages::of(value);
        let description = messages.description().ok()??;
        let known = self.known.iter().find(|known| known.is(description, self.columns)).cloned()?;
        let usual = known.usual.as_ref()?;
        messages.body(known.body).ok()?;
        self.dictionaries.clear();
        let rows = loop {
            let head = root_as_message(messages.description().ok()??).ok()?;
            let body = &value[messages.body(head.bodyLength()).ok()?];
            match head.header_as_dictionary_batch() {
                Some(dictionary) => self.learn(&dictionary, body)?,
                None => break self.rows(usual, &head.header_as_record_batch()?, body)?,
            }
        };
        let is_over = matches!(messages.description(), Ok(None));
        (is_over && check_count(record, rows).is_ok()).then_some(rows)
    }

    fn learn(&mut self, dictionary: &DictionaryBatch<'a>, body: &'a [u8]) -> Option<()> {
        let is_known = self.dictionaries.iter().any(|(id, _)| *id == dictionary.id());
        let batch = dictionary.data()?;
        if is_known || dictionary.isDelta() || batch.compression().is_some() {
            return None;
        }
        let rows = usize::try_from(batch.length()).ok()?;
        let texts = texts(&batch, 0, 0, rows, body)?.collect::<Option<_>>()?;
        self.dictionaries.push((dictionary.id(), texts));
        Some(())
    }

    fn rows(&mut self, usual: &Usual, batch: &RecordBatch<'a>, body: &'a [u8]) -> Option<usize> {
        let rows = usize::try_from(batch.length()).ok().filter(|rows| *rows > 0)?;
        if batch.compression().is_some() {
            return None;
        }
        for (place, column) in usual.0.iter().zip(&mut self.built) {
            match &place.form {
                Form::Fixed => {
                    is_whole(batch, place.node, rows)?;
                    let bytes = rows.checked_mul(column.fixed_width()?)?;
                    column.extend_fixed(buffer(batch, place.buffer + 1, body)?.get(..bytes)?)?;
                }
                Form::Coded(id) => {
                    is_whole(batch, place.node, rows)?;
                    let (_, texts) = self.dictionaries.iter().find(|(known, _)| known == id)?;
                    let keys = buffer(batch, place.buffer + 1, body)?.get(..rows.checked_mul(4)?)?;
                    column.extend_coded(texts, keys)?;
                }
                Form::Text => {
                    for text in texts(batch, place.node, place.buffer, rows, body)? {
                        column.push_text(text?).ok()?;
                    }
                }
            }
        }
        Some(rows)
    }
}

/// That a column has a value in each of the batch's rows.
fn is_whole(batch: &RecordBatch<'_>, node: usize, rows: usize) -> Option<()> {
    let nodes = batch.nodes().filter(|nodes| node < nodes.len())?;
    let node = nodes.get(node);
    (usize::try_from(node.length()).is_ok_and(|length| length == rows) && node.null_count() == 0)
        .then_some(())
}

fn buffer<'v>(batch: &RecordBatch<'_>, place: usize, body: &'v [u8]) -> Option<&'v [u8]> {
    let buffers = batch.buffers().filter(|buffers| place < buffers.len())?;
    let buffer = buffers.get(place);
    let start = usize::try_from(buffer.offset()).ok()?;
    body.get(start..start.checked_add(usize::try_from(buffer.length()).ok()?)?)
}

/// The texts of a column, the first of whose buffers that is; each is `None` when it is none.
fn texts<'v>(
    batch: &RecordBatch<'_>,
    node: usize,
    first: usize,
    rows: usize,
    body: &'v [u8],
) -> Option<impl Iterator<Item = Option<&'v str>> + use<'v>> {
    is_whole(batch, node, rows)?;
    let ends =
        buffer(batch, first + 1, body)?.get(..rows.checked_add(1)?.checked_mul(4)?)?.as_chunks::<4>().0;
    let bytes = buffer(batch, first + 2, body)?;
    let end = |end: [u8; 4]| usize::try_from(i32::from_le_bytes(end)).ok();
    Some(ends.windows(2).map(move |ends| std::str::from_utf8(bytes.get(end(ends[0])?..end(ends[1])?)?).ok()))
}
