//! What is done with a column as a whole: joined, cut back, measured, turned into an Arrow array.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Decimal128Array, Float32Array, Float64Array, Int32Array, Int64Array,
    ListArray, StringArray, TimestampNanosecondArray, UInt32Array, UInt64Array,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::Field;
use arrow::error::ArrowError;

use super::{Column, Values, offset};
use crate::reaction::schema::arrow_type;

impl Column {
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

    /// At most what the values take in a record, paddings and descriptions apart.
    pub(super) fn data_bytes(&self, rows: usize) -> usize {
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

    pub(super) fn append(&mut self, other: &Self) {
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
