//! `emostream check`: plans the SQL and says what is wrong with it, without running anything.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::Failure;
use crate::sql::files::{TABLES_FILE, load_file, load_folder};
use crate::sql::{Diagnostic, Program, SqlFile, plan_program_with};

/// Plans the SQL and reports every error with its file, line and column.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// The files to check, as one program whatever their order. Tables not declared among them come from
    /// tables.sql in the same folder. Without a file: the whole folder of --sql.
    pub files: Vec<PathBuf>,
    /// The folder to check when no file is given.
    #[arg(long, value_name = "DIR", default_value = "./sql", conflicts_with = "files")]
    pub sql: PathBuf,
    /// How to print the findings.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// How findings are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people: place, line, caret, help on standard error; what was planned on standard output.
    Text,
    /// One JSON object on standard output.
    Json,
}

/// Plans the files.
///
/// # Errors
/// Exit code 1 when a file cannot be read, there is none, or something does not plan.
pub fn run(args: &CheckArgs) -> Result<(), Failure> {
    let (files, beside) = load(args).map_err(|error| Failure::input(error.to_string()))?;
    if files.is_empty() {
        let message =
            format!("no *.sql file in {}; name the files, or the folder by --sql", args.sql.display());
        return Err(Failure::input(message));
    }
    let planned = plan_program_with(&files, &beside);
    match args.format {
        Format::Text => print_text(&planned),
        Format::Json => print_json(&planned),
    }
    match planned {
        Ok(_) => Ok(()),
        // Everything has been said.
        Err(_) => Err(Failure::input("")),
    }
}

/// The files to check, and the tables beside them.
fn load(args: &CheckArgs) -> std::io::Result<(Vec<SqlFile>, Vec<SqlFile>)> {
    if args.files.is_empty() {
        return Ok((load_folder(&args.sql)?, vec![]));
    }
    let files = args.files.iter().map(|path| load_file(path)).collect::<Result<Vec<_>, _>>()?;
    let given = args.files.iter().map(std::fs::canonicalize).collect::<Result<Vec<_>, _>>()?;
    let mut read = given.clone();
    let mut beside = Vec::new();
    for path in &args.files {
        let tables = path.parent().unwrap_or(Path::new("")).join(TABLES_FILE);
        let Ok(canonical) = std::fs::canonicalize(&tables) else { continue };
        if !read.contains(&canonical) {
            read.push(canonical);
            beside.push(load_file(&tables)?);
        }
    }
    Ok((files, beside))
}

fn print_text(planned: &Result<Program, Vec<Diagnostic>>) {
    let diagnostics = match planned {
        Ok(program) => &program.warnings,
        Err(diagnostics) => diagnostics,
    };
    for diagnostic in diagnostics {
        eprintln!("{diagnostic}\n");
    }
    match planned {
        Ok(program) => {
            for query in &program.queries {
                let (source, sink) = (&query.source.name, &query.sink.name);
                let width = width(query.cut.window.width_ns);
                println!("{}: {source} → {sink}, a window every {width}", query.name);
            }
            println!("ok: {} tables, {} queries", program.tables.len(), program.queries.len());
        }
        Err(diagnostics) => eprintln!("{} found", count(diagnostics.len(), "error")),
    }
}

fn print_json(planned: &Result<Program, Vec<Diagnostic>>) {
    let verdict = match planned {
        Ok(program) => {
            let queries = program.queries.iter().map(|query| {
                json!({
                    "name": query.name,
                    "source": query.source.name,
                    "sink": query.sink.name,
                    "window_ms": query.cut.window.width_ns / 1_000_000,
                })
            });
            let queries: Vec<_> = queries.collect();
            json!({ "ok": true, "diagnostics": program.warnings, "queries": queries })
        }
        Err(diagnostics) => json!({ "ok": false, "diagnostics": diagnostics, "queries": [] }),
    };
    println!("{verdict}");
}

fn width(ns: i64) -> String {
    match ns {
        ns if ns % 1_000_000_000 == 0 => format!("{} s", ns / 1_000_000_000),
        ns if ns % 1_000_000 == 0 => format!("{} ms", ns / 1_000_000),
        ns => format!("{ns} ns"),
    }
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
