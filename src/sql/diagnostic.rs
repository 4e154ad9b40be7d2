//! What is wrong with a SQL text, where, and what to write instead.

use std::fmt;

use datafusion::sql::sqlparser::tokenizer::{Location, Span};
use serde::Serialize;

use super::SqlFile;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The program does not run.
    Error,
    /// It runs, and may not do what was meant.
    Warning,
}

/// One finding at one place of one file. Printed as `file:line:column: error: message`, the line, a caret, and the
/// suggestion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// The file's name as the user knows it.
    pub file: String,
    /// From 1.
    pub line: u64,
    /// From 1, in characters.
    pub column: u64,
    /// Error or warning.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub suggestion: Option<String>,
    /// The text of that line.
    pub source_line: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        writeln!(f, "{}:{}:{}: {severity}: {}", self.file, self.line, self.column, self.message)?;
        let number = self.line.to_string();
        // Tabs are kept, so that the caret stands under its character however wide the terminal draws them.
        let before = usize::try_from(self.column).unwrap_or(1).saturating_sub(1);
        let indent: String =
            self.source_line.chars().take(before).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        writeln!(f, " {number} | {}", self.source_line)?;
        write!(f, " {} | {indent}^", " ".repeat(number.len()))?;
        if let Some(suggestion) = &self.suggestion {
            write!(f, "\n {} = help: {suggestion}", " ".repeat(number.len()))?;
        }
        Ok(())
    }
}

/// A finding before it is put into its file: what, where, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    severity: Severity,
    message: String,
    at: Location,
    suggestion: Option<String>,
}

impl Finding {
    /// An error at the start of that span. An empty span means the end of the text.
    pub(crate) fn error(at: Span, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, message: message.into(), at: at.start, suggestion: None }
    }

    /// A warning at the start of that span.
    pub(crate) fn warning(at: Span, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(at, message) }
    }

    /// Where it is. Line 0 is the end of the text.
    pub(crate) fn at(&self) -> Location {
        self.at
    }

    /// Whether the program does not run because of it.
    pub(crate) fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// Says what to write instead.
    #[must_use]
    pub(crate) fn help(mut self, suggestion: impl Into<String>) -> Self {
        self.suggestion = Some(suggestion.into());
        self
    }

    /// "did you mean …?" when a name is near, otherwise the list of what there is.
    #[must_use]
    pub(crate) fn help_nearest<'a>(
        self,
        word: &str,
        kind: &str,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let names: Vec<&str> = names.into_iter().collect();
        match nearest(word, names.iter().copied()) {
            Some(name) => self.help(format!("did you mean '{name}'?")),
            None if names.is_empty() || names.len() > 24 => self,
            None => self.help(format!("{kind}: {}", names.join(", "))),
        }
    }

    /// Puts it into its file.
    pub(crate) fn within(self, file: &SqlFile) -> Diagnostic {
        let place = if self.at.line == 0 { end_of(&file.text) } else { self.at };
        let line_index = usize::try_from(place.line).unwrap_or(1).saturating_sub(1);
        Diagnostic {
            file: file.name.clone(),
            line: place.line,
            column: place.column,
            severity: self.severity,
            message: self.message,
            suggestion: self.suggestion,
            source_line: file.text.lines().nth(line_index).unwrap_or_default().to_owned(),
        }
    }
}

/// The span of the text's first character.
pub(crate) fn start_of_text() -> Span {
    let start = Location { line: 1, column: 1 };
    Span { start, end: start }
}

/// Just after the last character that is not white space.
fn end_of(text: &str) -> Location {
    let text = text.trim_end();
    let line = text.lines().count().max(1);
    let column = text.lines().last().map_or(0, |last| last.chars().count()) + 1;
    Location { line: line as u64, column: column as u64 }
}

/// The candidate that is most likely meant: at most one edit for every three characters away, and not another word
/// altogether.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let length = word.chars().count();
    let limit = (length / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= limit && *distance < length)
        .min_by_key(|(distance, candidate)| (*distance, *candidate))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> SqlFile {
        SqlFile { name: "sql/a.sql".into(), text: text.into() }
    }

    fn at(line: u64, column: u64) -> Span {
        let place = Location { line, column };
        Span { start: place, end: place }
    }

    #[test]
    fn a_finding_prints_place_line_caret_and_help() {
        let finding = Finding::error(at(2, 4), "no such thing").help("did you mean 'that'?");
        let printed = finding.within(&file("SELECT\n\t 😀x\n")).to_string();
        let expected =
            "sql/a.sql:2:4: error: no such thing\n 2 | \t 😀x\n   | \t  ^\n   = help: did you mean 'that'?";
        assert_eq!(printed, expected);
    }

    #[test]
    fn a_finding_without_a_place_points_behind_the_last_word() {
        let diagnostic = Finding::error(Span::empty(), "more was expected").within(&file("SELECT\n  a,\n\n"));
        assert_eq!((diagnostic.line, diagnostic.column), (2, 5));
        let diagnostic = Finding::error(Span::empty(), "more was expected").within(&file(""));
        assert_eq!((diagnostic.line, diagnostic.column), (1, 1));
    }

    #[test]
    fn the_nearest_name_is_suggested_only_when_it_is_near() {
        assert_eq!(nearest("topc", ["topic", "type"]), Some("topic"));
        assert_eq!(nearest("TMUBLE", ["tumble", "hop"]), Some("tumble"));
        assert_eq!(nearest("banana", ["topic", "type"]), None);
    }
}
