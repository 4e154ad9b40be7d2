//! Rows as columns of plain vectors: cheap to fill value by value, to join, to cut back, and to turn into one Arrow batch.
//!
//! Arrow's own builders would do for filling; joining the rows of many small requests into one batch would then
//! need the concatenation kernel and an allocation per request and column.

mod bulk;

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Decimal128Array, Float32Array, Float64Array, Int32Array, Int64Array,
    ListArray, RecordBatch, StringArray, TimestampNanosecondArray, UInt32Array, UInt64Array,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{Field, SchemaRef};
use arrow::error::ArrowError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::decimal::{DecimalError, parse_decimal};
use super::dictionary::Dictionary;
use super::parse_time::parse_time;
use super::schema::arrow_type;
use super::table::ColumnType;

/// What a value has that its column does not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// Null in a `NOT NULL` column.
    Null,
    /// A value of another type; as a person would call it: `the number 5`.
    Type(String),
    /// The right type and too large or too small.
    Range(String),
    /// Text that is no time; a whole sentence.
    Time(String),
    /// A value that is not written as its type is; a whole sentence.
    Form(String),
}

/// One column that grows.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    values: Values,
    /// For a nullable column: which rows have a value.
    valid: Option<Vec<bool>>,
}

#[derive(Clone, Debug, PartialEq)]
enum Values {
    /// Row `i` is `bytes[offsets[i]..offsets[i + 1]]`.
    Text {
        offsets: Vec<i32>,
        bytes: Vec<u8>,
    },
    /// As text, of any bytes.
    Bytea {
        offsets: Vec<i32>,
        bytes: Vec<u8>,
    },
    Decimal {
        precision: u8,
        scale: u8,
        values: Vec<i128>,
    },
    /// Row `i` is `items[offsets[i]..offsets[i + 1]]`.
    Array {
        item: &'static ColumnType,
        offsets: Vec<i32>,
        items: Box<Column>,
    },
    /// Text that may turn out to be of few values.
    Coded(Dictionary),
    Timestamp(Vec<i64>),
    Int(Vec<i32>),
    Bigint(Vec<i64>),
    IntUnsigned(Vec<u32>),
    BigintUnsigned(Vec<u64>),
    Float(Vec<f32>),
    Double(Vec<f64>),
    Boolean(Vec<bool>),
}

impl Column {
    /// An empty column with room for `rows` rows.
    pub fn new(data_type: ColumnType, nullable: bool, rows: usize) -> Self {
        let values = match data_type {
            ColumnType::Text => {
                let mut offsets = Vec::with_capacity(rows + 1);
                offsets.push(0);
                Values::Text { offsets, bytes: Vec::with_capacity(rows * 16) }
            }
            ColumnType::Timestamp => Values::Timestamp(Vec::with_capacity(rows)),
            ColumnType::Int => Values::Int(Vec::with_capacity(rows)),
            ColumnType::Bigint => Values::Bigint(Vec::with_capacity(rows)),
            ColumnType::IntUnsigned => Values::IntUnsigned(Vec::with_capacity(rows)),
            ColumnType::BigintUnsigned => Values::BigintUnsigned(Vec::with_capacity(rows)),
            ColumnType::Float => Values::Float(Vec::with_capacity(rows)),
            ColumnType::Double => Values::Double(Vec::with_capacity(rows)),
            ColumnType::Boolean => Values::Boolean(Vec::with_capacity(rows)),
            ColumnType::Bytea => Values::Bytea { offsets: vec![0], bytes: Vec::new() },
            ColumnType::Decimal { precision, scale } => {
                Values::Decimal { precision, scale, values: Vec::with_capacity(rows) }
            }
            ColumnType::Array(item) => {
                Values::Array { item, offsets: vec![0], items: Box::new(Self::new(*item, true, 0)) }
            }
        };
        Self { values, valid: nullable.then(|| Vec::with_capacity(rows)) }
    }

    /// As [`Column::new`]; text of few values becomes a dictionary of Utf8 with Int32 keys.
    pub fn coded(data_type: ColumnType, nullable: bool, rows: usize) -> Self {
        match data_type {
            ColumnType::Text => {
                let values = Values::Coded(Dictionary::with_capacity(rows));
                Self { values, valid: nullable.then(|| Vec::with_capacity(rows)) }
            }
            _ => Self::new(data_type, nullable, rows),
        }
    }

    /// Text, or a time as RFC 3339 text.
    ///
    /// # Errors
    /// When the column does not take it; the column is then as it was.
    pub fn push_text(&mut self, text: &str) -> Result<(), Mismatch> {
        match &mut self.values {
            Values::Text { offsets, bytes } => {
                bytes.extend_from_slice(text.as_bytes());
                offsets.push(offset(bytes.len()));
            }
            Values::Coded(dictionary) => {
                dictionary.push(text);
                self.spell_out_if_wide();
            }
            Values::Timestamp(values) => values.push(parse_time(text).map_err(Mismatch::Time)?),
            Values::Bytea { offsets, bytes } => {
                STANDARD.decode_vec(text, bytes).map_err(|why| {
                    bytes.truncate(usize::try_from(offsets[offsets.len() - 1]).unwrap_or_default());
                    Mismatch::Form(format!("'{}' is no base64 text: {why}", shortened(text)))
                })?;
                offsets.push(offset(bytes.len()));
            }
            Values::Decimal { precision, scale, values } => {
                values.push(parse_decimal(text, *precision, *scale).map_err(|why| no_decimal(why, text))?);
            }
            _ => return Err(Mismatch::Type(format!("the text '{}'", shortened(text)))),
        }
        self.mark_valid();
        Ok(())
    }

    /// A number; for a TIMESTAMP nanoseconds.
    ///
    /// # Errors
    /// When the column does not take it; the column is then as it was.
    pub fn push_i64(&mut self, value: i64) -> Result<(), Mismatch> {
        let range = |_| Mismatch::Range(value.to_string());
        match &mut self.values {
            Values::Timestamp(values) | Values::Bigint(values) => values.push(value),
            Values::Int(values) => values.push(i32::try_from(value).map_err(range)?),
            Values::IntUnsigned(values) => values.push(u32::try_from(value).map_err(range)?),
            Values::BigintUnsigned(values) => values.push(u64::try_from(value).map_err(range)?),
            Values::Float(values) => values.push(value as f32),
            Values::Double(values) => values.push(value as f64),
            Values::Decimal { .. } => return self.push_text(&value.to_string()),
            Values::Text { .. }
            | Values::Coded(_)
            | Values::Bytea { .. }
            | Values::Array { .. }
            | Values::Boolean(_) => {
                return Err(Mismatch::Type(format!("the number {value}")));
            }
        }
        self.mark_valid();
        Ok(())
    }

    /// As [`Column::push_i64`], for numbers that are larger.
    ///
    /// # Errors
    /// When the column does not take it; the column is then as it was.
    pub fn push_u64(&mut self, value: u64) -> Result<(), Mismatch> {
        if let Ok(value) = i64::try_from(value) {
            return self.push_i64(value);
        }
        match &mut self.values {
            Values::BigintUnsigned(values) => values.push(value),
            Values::Float(values) => values.push(value as f32),
            Values::Double(values) => values.push(value as f64),
            Values::Decimal { .. } => return self.push_text(&value.to_string()),
            Values::Text { .. }
            | Values::Coded(_)
            | Values::Bytea { .. }
            | Values::Array { .. }
            | Values::Boolean(_) => {
                return Err(Mismatch::Type(format!("the number {value}")));
            }
            _ => return Err(Mismatch::Range(value.to_string())),
        }
        self.mark_valid();
        Ok(())
    }

    /// A number with a fraction.
    ///
    /// # Errors
    /// When the column does not take it; the column is then as it was.
    pub fn push_f64(&mut self, value: f64) -> Result<(), Mismatch> {
        match &mut self.values {
            Values::Double(values) => values.push(value),
            Values::Float(values) => {
                let narrow = value as f32;
                if narrow.is_infinite() && value.is_finite() {
                    return Err(Mismatch::Range(value.to_string()));
                }
                values.push(narrow);
            }
            Values::Decimal { .. } => return self.push_text(&exact_text(value)?),
            _ => return Err(Mismatch::Type(format!("the number {value}"))),
        }
        self.mark_valid();
        Ok(())
    }

    /// True or false.
    ///
    /// # Errors
    /// When the column does not take it; the column is then as it was.
    pub fn push_bool(&mut self, value: bool) -> Result<(), Mismatch> {
        let Values::Boolean(values) = &mut self.values else {
            return Err(Mismatch::Type(value.to_string()));
        };
        values.push(value);
        self.mark_valid();
        Ok(())
    }

    /// Bytes as they are.
    ///
    /// # Errors
    /// When the column does not take it; the column is then as it was.
    pub fn push_bytes(&mut self, value: &[u8]) -> Result<(), Mismatch> {
        let Values::Bytea { offsets, bytes } = &mut self.values else {
            return Err(Mismatch::Type("bytes".to_owned()));
        };
        bytes.extend_from_slice(value);
        offsets.push(offset(bytes.len()));
        self.mark_valid();
        Ok(())
    }

    /// One array; `fill` pushes its items.
    ///
    /// # Errors
    /// When the column does not take it; the column is then as it was.
    pub fn push_array(
        &mut self,
        fill: impl FnOnce(&mut Self) -> Result<(), Mismatch>,
    ) -> Result<(), Mismatch> {
        let Values::Array { item, offsets, items } = &mut self.values else {
            return Err(Mismatch::Type("an array".to_owned()));
        };
        let mut added = Self::new(**item, true, 0);
        fill(&mut added).map_err(within_array)?;
        items.append(&added);
        offsets.push(offset(items.valid.as_ref().map_or(0, Vec::len)));
        self.mark_valid();
        Ok(())
    }

    /// Whether its values are instants.
    pub fn is_timestamp(&self) -> bool {
        matches!(self.values, Values::Timestamp(_))
    }

    /// Whether its values are text.
    pub fn is_text(&self) -> bool {
        matches!(self.values, Values::Text { .. } | Values::Coded(_))
    }

    /// Whether it takes [`Column::push_array`].
    pub fn is_array(&self) -> bool {
        matches!(self.values, Values::Array { .. })
    }

    /// A value of a parsed document, such as a DEFAULT or an array's item.
    ///
    /// # Errors
    /// When the column does not take it; the column is then as it was.
    pub fn push_json(&mut self, value: &serde_json::Value) -> Result<(), Mismatch> {
        use serde_json::Value;
        match value {
            Value::Null => self.push_null(),
            Value::Bool(value) => self.push_bool(*value),
            Value::String(text) => self.push_text(text),
            Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(value), _) => self.push_i64(value),
                (None, Some(value)) => self.push_u64(value),
                (None, None) => self.push_f64(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::Array(items) => {
                self.push_array(|column| items.iter().try_for_each(|item| column.push_json(item)))
            }
            Value::Object(_) => Err(Mismatch::Type("an object".to_owned())),
        }
    }

    /// No value.
    ///
    /// # Errors
    /// When the column does not take it; the column is then as it was.
    pub fn push_null(&mut self) -> Result<(), Mismatch> {
        self.valid.as_mut().ok_or(Mismatch::Null)?.push(false);
        match &mut self.values {
            Values::Text { offsets, bytes } => offsets.push(offset(bytes.len())),
            Values::Coded(dictionary) => dictionary.push_null(),
            Values::Timestamp(values) | Values::Bigint(values) => values.push(0),
            Values::Int(values) => values.push(0),
            Values::IntUnsigned(values) => values.push(0),
            Values::BigintUnsigned(values) => values.push(0),
            Values::Float(values) => values.push(0.0),
            Values::Double(values) => values.push(0.0),
            Values::Boolean(values) => values.push(false),
            Values::Bytea { offsets, bytes } => offsets.push(offset(bytes.len())),
            Values::Decimal { values, .. } => values.push(0),
            Values::Array { offsets, .. } => offsets.push(offsets[offsets.len() - 1]),
        }
        Ok(())
    }

    /// Removes the rows from `rows` on.
    pub fn truncate(&mut self, rows: usize) {
        match &mut self.values {
            Values::Text { offsets, bytes } => {
                offsets.truncate(rows + 1);
                bytes.truncate(offsets.last().map_or(0, |end| *end as usize));
            }
            Values::Coded(dictionary) => dictionary.truncate(rows),
            Values::Bytea { offsets, bytes } => {
                offsets.truncate(rows + 1);
                bytes.truncate(offsets.last().map_or(0, |end| *end as usize));
            }
            Values::Decimal { values, .. } => values.truncate(rows),
            Values::Array { offsets, items, .. } => {
                offsets.truncate(rows + 1);
                items.truncate(offsets.last().map_or(0, |end| *end as usize));
            }
            Values::Timestamp(values) | Values::Bigint(values) => values.truncate(rows),
            Values::Int(values) => values.truncate(rows),
            Values::IntUnsigned(values) => values.truncate(rows),
            Values::BigintUnsigned(values) => values.truncate(rows),
            Values::Float(values) => values.truncate(rows),
            Values::Double(values) => values.truncate(rows),
            Values::Boolean(values) => values.truncate(rows),
        }
        if let Some(valid) = &mut self.valid {
            valid.truncate(rows);
        }
    }

    /// The instants of a TIMESTAMP column, in nanoseconds; none for other columns.
    pub fn timestamps(&mut self) -> &mut [i64] {
        match &mut self.values {
            Values::Timestamp(values) => values,
            _ => &mut [],
        }
    }

    /// The bytes of text, which may be far more than the request's body when defaults or dictionaries repeat.
    pub fn text_bytes(&self) -> usize {
        match &self.values {
            Values::Text { bytes, .. } | Values::Bytea { bytes, .. } => bytes.len(),
            // Every item takes some room, a null too.
            Values::Array { items, offsets, .. } => {
                items.text_bytes() + 8 * usize::try_from(offsets[offsets.len() - 1]).unwrap_or_default()
            }
            Values::Coded(dictionary) => dictionary.text_bytes(),
            _ => 0,
        }
    }

    /// Ends a dictionary that does not pay.
    fn spell_out_if_wide(&mut self) {
        if let Values::Coded(dictionary) = &mut self.values
            && dictionary.is_wide()
        {
            let (offsets, bytes) = std::mem::take(dictionary).into_plain();
            self.values = Values::Text { offsets, bytes };
        }
    }

    fn mark_valid(&mut self) {
        if let Some(valid) = &mut self.valid {
            valid.push(true);
        }
    }

    /// At most what the values take in a record, paddings and descriptions apart.
    fn data_bytes(&self, rows: usize) -> usize {
        let values = match &self.values {
            // An offset or a dictionary key per row, and a dictionary has at most one value for every four rows.
            Values::Text { bytes, .. } => bytes.len() + rows * 5,
            Values::Coded(dictionary) => dictionary.text_bytes() + rows * 5,
            Values::Timestamp(_) | Values::Bigint(_) | Values::BigintUnsigned(_) | Values::Double(_) => {
                rows * 8
            }
            Values::Int(_) | Values::IntUnsigned(_) | Values::Float(_) => rows * 4,
            Values::Boolean(_) => rows.div_ceil(8),
            Values::Bytea { bytes, .. } => bytes.len() + rows * 4,
            Values::Decimal { .. } => rows * 16,
            Values::Array { offsets, items, .. } => {
                let count = usize::try_from(offsets[offsets.len() - 1]).unwrap_or_default();
                rows * 4 + items.data_bytes(count)
            }
        };
        values + self.valid.as_ref().map_or(0, |_| rows.div_ceil(8))
    }

    fn append(&mut self, other: &Self) {
        match (&mut self.values, &other.values) {
            (Values::Text { offsets, bytes }, Values::Text { offsets: more, bytes: tail })
            | (Values::Bytea { offsets, bytes }, Values::Bytea { offsets: more, bytes: tail }) => {
                let base = offset(bytes.len());
                offsets.extend(more.iter().skip(1).map(|end| base + end));
                bytes.extend_from_slice(tail);
            }
            (Values::Timestamp(all), Values::Timestamp(more)) => all.extend_from_slice(more),
            (Values::Int(all), Values::Int(more)) => all.extend_from_slice(more),
            (Values::Bigint(all), Values::Bigint(more)) => all.extend_from_slice(more),
            (Values::IntUnsigned(all), Values::IntUnsigned(more)) => all.extend_from_slice(more),
            (Values::BigintUnsigned(all), Values::BigintUnsigned(more)) => all.extend_from_slice(more),
            (Values::Float(all), Values::Float(more)) => all.extend_from_slice(more),
            (Values::Double(all), Values::Double(more)) => all.extend_from_slice(more),
            (Values::Boolean(all), Values::Boolean(more)) => all.extend_from_slice(more),
            (Values::Decimal { values, .. }, Values::Decimal { values: more, .. }) => {
                values.extend_from_slice(more);
            }
            (Values::Array { offsets, items, .. }, Values::Array { offsets: more, items: tail, .. }) => {
                let base = offsets[offsets.len() - 1];
                offsets.extend(more.iter().skip(1).map(|end| base + end));
                items.append(tail);
            }
            // One table's rows have one layout; a batch of unequal columns is refused when it is made.
            _ => debug_assert!(false, "columns of different layouts are joined"),
        }
        if let (Some(all), Some(more)) = (&mut self.valid, &other.valid) {
            all.extend_from_slice(more);
        }
    }

    /// The Arrow array.
    ///
    /// # Errors
    /// When text has become longer than Arrow's offsets can say.
    pub fn into_array(self) -> Result<ArrayRef, ArrowError> {
        let nulls = self.valid.map(NullBuffer::from).filter(|nulls| nulls.null_count() > 0);
        Ok(match self.values {
            Values::Text { offsets, bytes } => {
                let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
                Arc::new(StringArray::try_new(offsets, Buffer::from_vec(bytes), nulls)?)
            }
            Values::Coded(dictionary) => dictionary.into_array(nulls)?,
            Values::Timestamp(values) => Arc::new(TimestampNanosecondArray::try_new(values.into(), nulls)?),
            Values::Int(values) => Arc::new(Int32Array::try_new(values.into(), nulls)?),
            Values::Bigint(values) => Arc::new(Int64Array::try_new(values.into(), nulls)?),
            Values::IntUnsigned(values) => Arc::new(UInt32Array::try_new(values.into(), nulls)?),
            Values::BigintUnsigned(values) => Arc::new(UInt64Array::try_new(values.into(), nulls)?),
            Values::Float(values) => Arc::new(Float32Array::try_new(values.into(), nulls)?),
            Values::Double(values) => Arc::new(Float64Array::try_new(values.into(), nulls)?),
            Values::Boolean(values) => Arc::new(BooleanArray::new(values.into(), nulls)),
            Values::Bytea { offsets, bytes } => {
                let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
                Arc::new(BinaryArray::try_new(offsets, Buffer::from_vec(bytes), nulls)?)
            }
            Values::Decimal { precision, scale, values } => {
                let values = Decimal128Array::try_new(values.into(), nulls)?;
                Arc::new(values.with_precision_and_scale(precision, scale.cast_signed())?)
            }
            Values::Array { item, offsets, items } => {
                let field = Arc::new(Field::new_list_field(arrow_type(*item), true));
                let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
                Arc::new(ListArray::try_new(field, offsets, items.into_array()?, nulls)?)
            }
        })
    }
}

/// The digits of a number that a document holds as a float, when they are certain to be those that were written.
fn exact_text(value: f64) -> Result<String, Mismatch> {
    let text = value.to_string();
    let significant = text.trim_start_matches(['-', '0', '.']).trim_end_matches('0');
    let digits = significant.bytes().filter(u8::is_ascii_digit).count();
    // A number of up to 15 digits survives the way through a float.
    if digits > 15 || !value.is_finite() {
        let message =
            format!("the number {text} has more digits than JSON numbers carry; send it as text, \"0.1\"");
        return Err(Mismatch::Form(message));
    }
    Ok(text)
}

fn no_decimal(why: DecimalError, text: &str) -> Mismatch {
    let text = shortened(text);
    match why {
        DecimalError::NoNumber => Mismatch::Form(format!("'{text}' is no number such as 12.5")),
        DecimalError::Scale => Mismatch::Form(format!(
            "{text} has more digits behind the point than the column, and nothing is rounded; round it first"
        )),
        DecimalError::Range => Mismatch::Range(text),
    }
}

fn within_array(mismatch: Mismatch) -> Mismatch {
    match mismatch {
        Mismatch::Type(found) => Mismatch::Type(format!("an array with {found} in it")),
        Mismatch::Range(found) => Mismatch::Range(format!("an array with {found} in it")),
        other => other,
    }
}

/// The rows of one request, or of several joined: columns of equal length in the table's order.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// How many.
    pub count: usize,
    /// In the table's order.
    pub columns: Vec<Column>,
}

impl Rows {
    /// At most what the values take in a record: for a whole record add [`record_overhead`].
    pub fn data_bytes(&self) -> usize {
        self.columns.iter().map(|column| column.data_bytes(self.count)).sum()
    }

    /// The bytes of all text.
    pub fn text_bytes(&self) -> usize {
        self.columns.iter().map(Column::text_bytes).sum()
    }

    /// Adds the rows of another request to the same table.
    pub fn append(&mut self, other: &Self) {
        for (column, more) in self.columns.iter_mut().zip(&other.columns) {
            column.append(more);
        }
        self.count += other.count;
    }

    /// The Arrow batch.
    ///
    /// # Errors
    /// When the columns are not those of `schema`.
    pub fn into_batch(self, schema: SchemaRef) -> Result<RecordBatch, ArrowError> {
        let arrays = self.columns.into_iter().map(Column::into_array).collect::<Result<Vec<_>, _>>()?;
        RecordBatch::try_new(schema, arrays)
    }
}

/// At most what a record of this schema takes besides its values: descriptions, paddings, dictionaries' own messages.
pub fn record_overhead(schema: &SchemaRef) -> usize {
    schema.fields().iter().fold(2048, |sum, field| sum + 1024 + 4 * field.name().len())
}

/// Arrow's offsets are 32 bits; requests and batches are bounded far below that.
fn offset(bytes: usize) -> i32 {
    i32::try_from(bytes).unwrap_or(i32::MAX)
}

/// Enough of a client's text to recognise it in a message.
pub fn shortened(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// What a person would write for a column of that type.
pub fn takes(data_type: ColumnType) -> String {
    let what = match data_type {
        ColumnType::Array(item) => return format!("an array; of its items each {}", takes(*item)),
        ColumnType::Text => "text",
        ColumnType::Timestamp => "RFC 3339 text such as 2026-01-31T18:30:00Z, or an integer of nanoseconds",
        ColumnType::Int | ColumnType::Bigint | ColumnType::IntUnsigned | ColumnType::BigintUnsigned => {
            "an integer"
        }
        ColumnType::Float | ColumnType::Double => "a number",
        ColumnType::Boolean => "true or false",
        ColumnType::Bytea => "base64 text",
        ColumnType::Decimal { .. } => "a number, or its digits as text",
    };
    what.to_owned()
}
