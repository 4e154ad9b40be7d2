//! What carries rows besides the log: files, made-up rows, standard output, nothing. Inputs end, outputs are written in
//! order, and no clock plays a part, so that a run over the same files gives the same results.

pub mod file;
pub mod impulse;
pub mod output;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

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
    /// Where the next one begins.
    pub after: Cursor,
}

/// How far an input is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Bytes of a file of lines, records of one in Arrow, rows of an impulse.
    pub next: u64,
    /// Lines before that.
    pub lines: usize,
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

/// The lines of a piece, each as one of its own: what is wrong with one is not wrong with the others.
pub fn lines_of(piece: &Piece) -> Vec<Piece> {
    let value = piece.record.value.clone().unwrap_or_default();
    if piece.place.line == 0 {
        return vec![piece.clone()];
    }
    let mut begin = 0;
    let line = |(nth, text): (usize, &[u8])| {
        let text = value.slice(begin..begin + text.len());
        begin += text.len();
        let place = Place { file: piece.place.file.clone(), line: piece.place.line + nth };
        Piece { record: Record { value: Some(text), ..piece.record.clone() }, place, after: piece.after }
    };
    value.split_inclusive(|byte| *byte == b'\n').enumerate().map(line).collect()
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
