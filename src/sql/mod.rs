//! Text → statements → catalog → plan: the dialect, its functions, located diagnostics.
//!
//! Knows no stage and no log. The one entrance is [`plan_program`]; what it returns is checked, typed and ready to
//! be compiled by the engine: cut at the window (`cut.rs`).
//!
//! ```text
//!  files ─parse─▶ statements ─catalog─▶ tables ─checks, planner─▶ analysed plan ─cut─▶ Program
//! ```

mod above;
mod aggregates;
mod assign;
mod catalog;
mod checks;
mod constants;
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
mod order;
mod parse;
mod parts;
mod placed;
pub mod planner;
mod program;
mod refusal;
mod rewrite;
pub mod statics;
mod syntax;
mod types;
mod windowing;

use arrow::datatypes::SchemaRef;

use crate::reaction::table::Table;
pub use diagnostic::{Diagnostic, Severity};
pub use explain::explain;
pub use files::load_folder;
pub use placed::{declaring_file, error_at_option, error_at_table, warning_at_watermark};
pub(crate) use program::ONE_LOG;
pub use program::{plan_program, plan_program_with};

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
    /// Every `SELECT` on its own: what 'emostream run' prints.
    pub selects: Vec<Select>,
    /// What is allowed and yet worth saying.
    pub warnings: Vec<Diagnostic>,
}

/// A `SELECT` on its own.
#[derive(Clone, Debug)]
pub struct Select {
    /// Named as the file; its one sink is implied and declares no columns.
    pub query: Query,
    /// What it selects.
    pub columns: SchemaRef,
}

/// A file with `INSERT`s: one name, one version, one transaction.
#[derive(Clone, Debug)]
pub struct Query {
    /// The file's name without `.sql`.
    pub name: String,
    /// The file's whole text.
    pub text: String,
    /// The source tables it reads, by name, each once.
    pub sources: Vec<Table>,
    /// The static tables that it looks rows up in, by name, each once.
    pub statics: Vec<Table>,
    /// Its windowed aggregates, each once, however many of its outputs use it.
    pub cuts: Vec<cut::Cut>,
    /// One per `INSERT`, in the text's order, each into another sink.
    pub outputs: Vec<Output>,
}

/// One `INSERT` of a query.
#[derive(Clone, Debug)]
pub struct Output {
    /// The sink table it writes.
    pub sink: Table,
    /// What it writes: one part, or one for each branch of a UNION ALL whose windows differ.
    pub parts: Vec<cut::Part>,
}

impl Query {
    /// What the state of open windows depends on, as 16 hexadecimal digits; an edit above the cuts leaves it as it is.
    pub fn fingerprint(&self) -> String {
        let cuts: Vec<String> = self.cuts.iter().map(cut::Cut::identity).collect();
        fnv1a(cuts.join("\n\n").into_bytes())
    }

    /// What makes rows one session, as 16 hexadecimal digits, and the longest gap in nanoseconds; `None` where there are no
    /// sessions.
    pub fn sessions(&self) -> Option<(String, i64)> {
        let sessions: Vec<(String, i64)> = self.cuts.iter().filter_map(cut::Cut::sessions).collect();
        let gap_ns = sessions.iter().map(|(_, gap_ns)| *gap_ns).max()?;
        let texts: Vec<String> = sessions.into_iter().map(|(text, _)| text).collect();
        Some((fnv1a(texts.join("\n\n").into_bytes()), gap_ns))
    }

    /// The sinks it writes, in the text's order.
    pub fn sinks(&self) -> impl Iterator<Item = &Table> {
        self.outputs.iter().map(|output| &output.sink)
    }
}

/// FNV-1a, 64 bits, as 16 hexadecimal digits: <http://www.isthe.com/chongo/tech/comp/fnv/>. The standard library's
/// hasher may change.
pub(crate) fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> String {
    let hash = bytes.into_iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}
