//! What carries rows besides the log: files, made-up rows, standard output, nothing. Inputs end, outputs are written in
//! order, and no clock plays a part, so that a run over the same files gives the same results.

pub mod file;
pub mod impulse;
pub mod output;

use std::path::{Path, PathBuf};

use crate::log::Record;
use crate::log::codec::CodecError;
use crate::reaction::table::Table;
use crate::sql::{SqlFile, declaring_file};

/// Why an input or an output cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectorError {
    /// What was read is not what the table says: `file:line: what is wrong`.
    #[error("{0}")]
    Input(String),
    /// A file or the terminal failed.
    #[error("{0}")]
    Outside(String),
}

/// Some rows of an input.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// In the table's format.
    pub record: Record,
    /// Where it stands.
    pub place: Place,
}

/// Where rows stand, for messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// As the user wrote it.
    pub file: String,
    /// Of the record's first row, from 1; 0 where a file has no lines.
    pub line: usize,
}

impl Place {
    /// That the record at this place cannot be decoded.
    pub fn refused(&self, error: &CodecError) -> ConnectorError {
        let file = &self.file;
        ConnectorError::Input(match error {
            CodecError::Line { line, reason } => format!("{file}:{}: {reason}", self.line + line - 1),
            error if self.line > 0 => format!("{file}:{}: {error}", self.line),
            error => format!("{file}: {error}"),
        })
    }
}

/// An input's pieces, in order.
pub type Input = Box<dyn Iterator<Item = Result<Piece, ConnectorError>> + Send>;

/// A path as a table writes it: relative to the folder of the SQL file that declares the table.
pub fn resolve(path: &str, folder: &Path) -> PathBuf {
    folder.join(path)
}

/// Where the file of a table is: its path is relative to that one of `files` which declares the table.
pub fn beside(table: &Table, path: &str, files: &[SqlFile]) -> PathBuf {
    let folder = declaring_file(files, &table.name).and_then(|file| Path::new(&file.name).parent());
    resolve(path, folder.unwrap_or(Path::new("")))
}

#[cfg(test)]
mod tests;
