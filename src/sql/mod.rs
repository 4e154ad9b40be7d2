//! Text → statements → catalog → plan: the dialect, its functions, located diagnostics.
//!
//! Knows no stage and no log. The one entrance is [`plan_program`]; what it returns is checked, typed and ready to
//! be compiled by the engine: cut at the window (`cut.rs`).
//!
//! ```text
//!  files ─parse─▶ statements ─catalog─▶ tables ─checks, planner─▶ analysed plan ─cut─▶ Program
//! ```

mod above;
mod catalog;
mod checks;
pub mod cut;
pub mod diagnostic;
mod emoji;
mod errors;
mod event_time;
mod explain;
pub mod files;
pub mod functions;
mod generated;
mod inline;
mod options;
mod parse;
pub mod planner;
mod program;
mod rewrite;
mod types;

use crate::reaction::table::Table;
pub use diagnostic::{Diagnostic, Severity};
pub use explain::{explain, width};
pub use files::load_folder;
pub use program::{plan_program, plan_program_with, warning_at_watermark};

/// One SQL file: the name that diagnostics show, and its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqlFile {
    /// As the user would write it: `sql/emoji_counts.sql`.
    pub name: String,
    /// The whole text.
    pub text: String,
}

/// A planned program: all files of one folder together.
#[derive(Clone, Debug)]
pub struct Program {
    /// Every `CREATE TABLE`, in order of the files' names and the text.
    pub tables: Vec<Table>,
    /// Every file with an `INSERT`.
    pub queries: Vec<Query>,
    /// What is allowed and yet worth saying.
    pub warnings: Vec<Diagnostic>,
}

/// A file with an `INSERT`: one name, one version, one transaction.
#[derive(Clone, Debug)]
pub struct Query {
    /// The file's name without `.sql`.
    pub name: String,
    /// The file's whole text.
    pub text: String,
    /// The sink table it writes.
    pub sink: Table,
    /// The source table it reads.
    pub source: Table,
    /// The analysed plan, cut at its window. The part above ends in the sink's columns and types, by position.
    pub cut: cut::Cut,
}
