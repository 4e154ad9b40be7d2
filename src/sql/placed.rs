//! Diagnostics about a table, at its place in the files; for what is found only after the files are planned.

use datafusion::sql::sqlparser::tokenizer::Span;

use super::diagnostic::{Finding, start_of_text};
use super::parse::{CreateTable, StatementKind, parse};
use super::program::declared_name;
use super::{Diagnostic, SqlFile, catalog};

/// An error at the value of a table's option, at its place in the files; at the first character of the first file when
/// none of them declares it.
pub fn error_at_option(files: &[SqlFile], table: &str, key: &str, message: &str, help: &str) -> Diagnostic {
    let value_of = |decl: &CreateTable| {
        decl.options.iter().find(|option| option.key.value == key).map(|option| option.value_at)
    };
    let nowhere = SqlFile { name: String::new(), text: String::new() };
    let first = (files.first().unwrap_or(&nowhere), start_of_text());
    let (file, at) = place(files, table, value_of).unwrap_or(first);
    Finding::error(at, message).help(help).within(file)
}

/// A warning about a table's watermark, at its place in the files; None when no file declares one for that table.
pub fn warning_at_watermark(files: &[SqlFile], table: &str, message: &str, help: &str) -> Option<Diagnostic> {
    let (file, at) = place(files, table, |decl| decl.watermarks.first().map(|mark| mark.at))?;
    Some(Finding::warning(at, message).help(help).within(file))
}

/// An error about a table at its name in the file that declares it.
pub fn error_at_table(files: &[SqlFile], table: &str, message: &str) -> Diagnostic {
    let nowhere = SqlFile { name: table.to_owned(), text: String::new() };
    let found = place(files, table, |decl| Some(decl.name.span));
    let (file, at) = found.unwrap_or((&nowhere, start_of_text()));
    Finding::error(at, message).within(file)
}

/// The file that declares a table.
pub fn declaring_file<'f>(files: &'f [SqlFile], table: &str) -> Option<&'f SqlFile> {
    files.iter().find(|file| {
        let (statements, _) = parse(&file.text);
        statements.iter().any(|statement| declared_name(statement).is_some_and(|name| name == table))
    })
}

/// The first place that `of` finds in a declaration of that table.
fn place<'f>(
    files: &'f [SqlFile],
    table: &str,
    of: impl Fn(&CreateTable) -> Option<Span>,
) -> Option<(&'f SqlFile, Span)> {
    files.iter().find_map(|file| {
        let (statements, _) = parse(&file.text);
        let at = statements.iter().find_map(|statement| match &statement.kind {
            StatementKind::CreateTable(decl) if catalog::normalized(&decl.name) == table => of(decl),
            _ => None,
        })?;
        Some((file, at))
    })
}
