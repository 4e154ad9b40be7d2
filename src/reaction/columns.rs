//! Rows as columns of plain vectors: cheap to fill value by value, to join, to cut back, and to turn into one Arrow batch.
//!
//! Arrow's own builders would do for filling; joining the rows of many small requests into one batch would then
//! need the concatenation kernel and an allocation per request and column.

mod bulk;
mod mismatch;
mod rows;
mod whole;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::decimal::parse_decimal;
use super::dictionary::Dictionary;
use super::parse_time::parse_time;
use super::table::ColumnType;
pub use mismatch::{Mismatch, shortened, takes};
use mismatch::{exact_text, no_decimal, within_array};
pub use rows::{Rows, record_overhead};

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
            _ => return Err(Mismatch::Type(format!("the number {value}"))),
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
            Values::Timestamp(_) | Values::Int(_) | Values::Bigint(_) | Values::IntUnsigned(_) => {
                return Err(Mismatch::Range(value.to_string()));
            }
            _ => return Err(Mismatch::Type(format!("the number {value}"))),
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

    /// The instants of a TIMESTAMP column, in nanoseconds; none for other columns.
    pub fn timestamps(&mut self) -> &mut [i64] {
        match &mut self.values {
            Values::Timestamp(values) => values,
            _ => &mut [],
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
}

/// Arrow's offsets are 32 bits; requests and batches are bounded far below that.
fn offset(bytes: usize) -> i32 {
    i32::try_from(bytes).unwrap_or(i32::MAX)
}
