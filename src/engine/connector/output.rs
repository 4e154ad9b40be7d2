//! Sinks besides the log: a file, standard output, nothing.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use arrow::array::RecordBatch;
use arrow::ipc::writer::StreamWriter;

use super::ConnectorError;
use crate::log::codec::{RecordCodec, arrow_schema};
use crate::reaction::table::{Format, Table};

/// Where a query's rows go.
pub enum Output {
    /// One row a line: a JSON object, or text.
    Lines {
        /// How a row is written.
        codec: RecordCodec,
        /// What messages call it.
        shown: String,
        /// Where to.
        to: Box<dyn Write>,
    },
    /// One Arrow IPC stream.
    Arrow {
        /// What messages call it.
        shown: String,
        /// Where to.
        to: Box<StreamWriter<BufWriter<File>>>,
    },
    /// Rows are counted and forgotten.
    Nothing,
}

impl Output {
    /// The file at `path`, whatever it held before; messages call it `shown`.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn file(sink: &Table, path: &Path, shown: &str) -> Result<Self, ConnectorError> {
        let outside = |error: &dyn std::fmt::Display| ConnectorError::Outside(format!("{shown}: {error}"));
        let file = BufWriter::new(File::create(path).map_err(|error| outside(&error))?);
        let shown = shown.to_owned();
        Ok(match sink.format {
            Format::Arrow => {
                let to = StreamWriter::try_new(file, &arrow_schema(sink)).map_err(|error| outside(&error))?;
                Self::Arrow { shown, to: Box::new(to) }
            }
            Format::Json | Format::RawString => {
                let codec = RecordCodec::in_format(sink, sink.format);
                Self::Lines { codec, shown, to: Box::new(file) }
            }
        })
    }

    /// Lines to `to`, which is standard output, as they come.
    pub fn stdout(sink: &Table, to: Box<dyn Write>) -> Self {
        let codec = RecordCodec::in_format(sink, sink.format);
        Self::Lines { codec, shown: "standard output".to_owned(), to }
    }

    /// Writes rows with the sink's columns.
    ///
    /// # Errors
    /// When they are not written.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), ConnectorError> {
        match self {
            Self::Nothing => Ok(()),
            Self::Arrow { shown, to } => to.write(batch).map_err(|error| failed(shown, &error)),
            Self::Lines { codec, shown, to } => {
                let lines = codec.lines(batch).map_err(|error| failed(shown, &error))?;
                to.write_all(&lines).map_err(|error| failed(shown, &error))
            }
        }
    }

    /// Nothing follows: everything is handed to the system.
    ///
    /// # Errors
    /// When that fails.
    pub fn finish(self) -> Result<(), ConnectorError> {
        match self {
            Self::Nothing => Ok(()),
            Self::Arrow { shown, mut to } => {
                to.finish().map_err(|error| failed(&shown, &error))?;
                to.get_mut().flush().map_err(|error| failed(&shown, &error))
            }
            Self::Lines { shown, mut to, .. } => to.flush().map_err(|error| failed(&shown, &error)),
        }
    }
}

/// The rows of a batch as they follow others in a file or on standard output, in the sink's format; an Arrow stream
/// begins with its schema, and never says that it ends.
///
/// # Errors
/// When they cannot be shown so.
pub fn following(sink: &Table, batch: &RecordBatch, is_first: bool) -> Result<Vec<u8>, ConnectorError> {
    let failed = |error: &dyn std::fmt::Display| ConnectorError::Outside(format!("{}: {error}", sink.name));
    if sink.format != Format::Arrow {
        let codec = RecordCodec::in_format(sink, sink.format);
        return codec.lines(batch).map_err(|error| failed(&error));
    }
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).map_err(|error| failed(&error))?;
    let schema_bytes = writer.get_ref().len();
    writer.write(batch).map_err(|error| failed(&error))?;
    let bytes = writer.get_ref();
    Ok(bytes[if is_first { 0 } else { schema_bytes }..].to_vec())
}

fn failed(shown: &str, error: &dyn std::fmt::Display) -> ConnectorError {
    ConnectorError::Outside(format!("{shown}: {error}"))
}
