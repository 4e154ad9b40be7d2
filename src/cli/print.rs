//! Rows on standard output: a table for people, or lines for programs.

use std::io::Write;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::csv::WriterBuilder;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::pretty::pretty_format_batches;

use crate::engine::connector::ConnectorError;
use crate::log::codec::JsonText;

/// So many rows are gathered for one table; its columns' widths come from them.
const TABLE_ROWS: usize = 10_000;

/// How rows are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Shape {
    /// A table, for people.
    Table,
    /// One JSON object a line.
    Json,
    /// Comma-separated values with a line of names; a window is two columns.
    Csv,
}

/// Rows on their way to standard output, in one shape.
pub(super) struct Printed {
    shape: Shape,
    /// What the rows' columns are called, by place.
    columns: SchemaRef,
    to: Box<dyn Write>,
    /// Of a table, not printed yet.
    waiting: Vec<RecordBatch>,
    has_begun: bool,
}

impl Printed {
    pub(super) fn new(shape: Shape, columns: &SchemaRef, to: Box<dyn Write>) -> Self {
        Self { shape, columns: Arc::clone(columns), to, waiting: Vec::new(), has_begun: false }
    }

    /// Prints rows, or keeps them for the table.
    ///
    /// # Errors
    /// When standard output fails, or a column has no text.
    pub(super) fn write(&mut self, rows: &RecordBatch) -> Result<(), ConnectorError> {
        let rows = &self.named(rows).map_err(|error| failed(&error))?;
        match self.shape {
            Shape::Table => {
                self.waiting.push(rows.clone());
                let waiting: usize = self.waiting.iter().map(RecordBatch::num_rows).sum();
                if waiting >= TABLE_ROWS { self.table() } else { Ok(()) }
            }
            Shape::Json => self.json(rows),
            Shape::Csv => self.csv(rows),
        }
    }

    /// Nothing follows. Without any rows, what there is of none: a table's head, a line of names.
    ///
    /// # Errors
    /// As [`Printed::write`].
    pub(super) fn finish(mut self) -> Result<(), ConnectorError> {
        let empty = RecordBatch::new_empty(Arc::clone(&self.columns));
        match self.shape {
            Shape::Csv if !self.has_begun => self.csv(&empty)?,
            Shape::Table if !self.waiting.is_empty() => self.table()?,
            Shape::Table if !self.has_begun => {
                self.waiting.push(empty);
                self.table()?;
            }
            _ => {}
        }
        self.to.flush().map_err(|error| failed(&error))
    }

    fn named(&self, rows: &RecordBatch) -> Result<RecordBatch, arrow::error::ArrowError> {
        let schema = rows.schema();
        let fields = schema.fields().iter().zip(self.columns.fields());
        let fields: Vec<Field> =
            fields.map(|(own, named)| own.as_ref().clone().with_name(named.name())).collect();
        RecordBatch::try_new(Arc::new(Schema::new(fields)), rows.columns().to_vec())
    }

    fn table(&mut self) -> Result<(), ConnectorError> {
        self.has_begun = true;
        let table =
            pretty_format_batches(&std::mem::take(&mut self.waiting)).map_err(|error| failed(&error))?;
        writeln!(self.to, "{table}").map_err(|error| failed(&error))
    }

    fn json(&mut self, rows: &RecordBatch) -> Result<(), ConnectorError> {
        let schema = rows.schema();
        let names = schema.fields().iter().map(|field| field.name().as_str());
        let text = JsonText::new(names, rows.columns(), false).map_err(|error| failed(&error))?;
        let mut lines = Vec::new();
        for row in 0..rows.num_rows() {
            text.write(row, &mut lines).map_err(|error| failed(&error))?;
            lines.push(b'\n');
        }
        self.to.write_all(&lines).map_err(|error| failed(&error))
    }

    fn csv(&mut self, rows: &RecordBatch) -> Result<(), ConnectorError> {
        let rows = without_structs(rows).map_err(|error| failed(&error))?;
        let builder = WriterBuilder::new().with_header(!self.has_begun);
        let builder = builder.with_timestamp_format("%Y-%m-%dT%H:%M:%S%.fZ".to_owned());
        self.has_begun = true;
        builder.build(&mut self.to).write(&rows).map_err(|error| failed(&error))
    }
}

/// A struct's fields as columns: `window.start`, `window.end`.
fn without_structs(rows: &RecordBatch) -> Result<RecordBatch, arrow::error::ArrowError> {
    let (mut fields, mut columns) = (Vec::<Field>::new(), Vec::<ArrayRef>::new());
    for (field, column) in rows.schema().fields().iter().zip(rows.columns()) {
        let DataType::Struct(inner) = field.data_type() else {
            fields.push(field.as_ref().clone());
            columns.push(Arc::clone(column));
            continue;
        };
        for (part, values) in inner.iter().zip(column.as_struct().columns()) {
            let name = format!("{}.{}", field.name(), part.name());
            fields.push(Field::new(name, values.data_type().clone(), true));
            columns.push(Arc::clone(values));
        }
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

fn failed(error: &dyn std::fmt::Display) -> ConnectorError {
    ConnectorError::Outside(format!("standard output: {error}"))
}
