//! Columns of equal length: the rows of a table.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;

use super::Column;

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
