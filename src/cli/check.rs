//! `emostream check`: plans the SQL and says what is wrong with it, without running anything.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::Failure;
use crate::config::{self, LogKind, Settings};
use crate::engine::compile::CompiledQuery;
use crate::engine::planned::{elsewhere, not_compiled, unfit_configs};
use crate::engine::statics::StaticTables;
use crate::reaction::table::{Table, TableKind, servers_of};
use crate::sql::files::{TABLES_FILE, load_file, load_folder};
use crate::sql::{
    Diagnostic, Program, Query, SqlFile, error_at_table, explain, plan_program_with, warning_at_watermark,
};

/// What the words of a plan mean.
const CUT: &str = "A query is cut at its window: what is below the cut is done with each record as it comes, what is above it \
                   once with each window, when that closes.\n";

/// Plan the SQL and report every error with its file, line and column
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// The files to check, as one program whatever their order; tables not declared among them come from tables.sql in
    /// the same folder [default: all of the folder of --sql]
    pub files: Vec<PathBuf>,
    /// The folder to check when no file is given
    #[arg(long, value_name = "DIR", default_value = "./sql", conflicts_with = "files")]
    pub sql: PathBuf,
    /// Settings in TOML, which some warnings depend on; the environment (EMOSTREAM__SECTION__KEY) wins over it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Also print how every query is cut: what is done with each record, at the window, and with a closed window
    #[arg(long)]
    pub explain: bool,
    /// How to print the findings
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
/// Exit code 1 when a file cannot be read, there is none, or something does not plan; 2 when the settings are not valid.
pub fn run(args: &CheckArgs) -> Result<(), Failure> {
    let usage = |error: config::ConfigError| Failure::usage(error.to_string());
    let sources = config::Sources::of_process(args.config.as_deref()).map_err(usage)?;
    let settings = config::load(&sources).map_err(usage)?.settings;
    let (files, beside) = load(args).map_err(|error| Failure::input(error.to_string()))?;
    if files.is_empty() {
        let message =
            format!("no *.sql file in {}; name the files, or the folder by --sql", args.sql.display());
        return Err(Failure::input(message));
    }
    let read: Vec<SqlFile> = files.iter().chain(&beside).cloned().collect();
    let mut planned = plan_program_with(&files, &beside)
        .and_then(|program| fit_for(program, &read, &settings))
        .and_then(|program| compiled(program, &read));
    if let Ok(program) = &mut planned {
        let warnings = short_delays(program, &read, settings.ingest.flush_interval_ms);
        program.warnings.extend(warnings);
    }
    match args.format {
        Format::Text => print_text(&planned, args.explain),
        Format::Json => print_json(&planned, args.explain),
    }
    match planned {
        Ok(_) => Ok(()),
        // Everything has been said.
        Err(_) => Err(Failure::input("")),
    }
}

/// The program, if its tables fit each other's clients and the configured Kafka, if there is one.
fn fit_for(program: Program, read: &[SqlFile], settings: &Settings) -> Result<Program, Vec<Diagnostic>> {
    let mut refused = unfit_configs(&program, read);
    if settings.log.kind == LogKind::Kafka {
        let servers = servers_of(&settings.log.kafka.bootstrap_servers);
        refused.extend(elsewhere(&program, read, &servers));
    }
    if refused.is_empty() { Ok(program) } else { Err(refused) }
}

/// The program, if every query of it compiles.
pub(super) fn compiled(program: Program, files: &[SqlFile]) -> Result<Program, Vec<Diagnostic>> {
    let selects = program.selects.iter().map(|select| &select.query);
    let queries: Vec<&Query> = program.queries.iter().chain(selects).collect();
    let joined = queries.iter().flat_map(|query| &query.statics);
    let statics = StaticTables::read(joined, files)
        .map_err(|(table, error)| vec![error_at_table(files, &table, &error.to_string())])?;
    let refused = queries.iter().filter_map(|query| {
        let error = CompiledQuery::compile_with(query, &statics).err()?;
        let file = files.iter().find(|file| file.text == query.text);
        let name = file.map_or_else(|| query.name.clone(), |file| file.name.clone());
        Some(not_compiled(name, &query.text, &error.strip_backtrace()))
    });
    let refused: Vec<Diagnostic> = refused.collect();
    if refused.is_empty() { Ok(program) } else { Err(refused) }
}

/// The files to check, and the tables beside them.
fn load(args: &CheckArgs) -> std::io::Result<(Vec<SqlFile>, Vec<SqlFile>)> {
    match args.files.is_empty() {
        true => Ok((load_folder(&args.sql)?, vec![])),
        false => load_files(&args.files),
    }
}

/// These files, and the tables beside them.
pub(super) fn load_files(paths: &[PathBuf]) -> std::io::Result<(Vec<SqlFile>, Vec<SqlFile>)> {
    let files = paths.iter().map(|path| load_file(path)).collect::<Result<Vec<_>, _>>()?;
    let given = paths.iter().map(std::fs::canonicalize).collect::<Result<Vec<_>, _>>()?;
    let mut read = given.clone();
    let mut beside = Vec::new();
    for path in paths {
        let tables = path.parent().unwrap_or(Path::new("")).join(TABLES_FILE);
        let Ok(canonical) = std::fs::canonicalize(&tables) else { continue };
        if !read.contains(&canonical) {
            read.push(canonical);
            beside.push(load_file(&tables)?);
        }
    }
    Ok((files, beside))
}

/// A row may wait as long as a flush before it is in the log, and a partition without rows counts as idle meanwhile: only
/// the watermark's delay keeps its window open for it.
fn short_delays(program: &Program, files: &[SqlFile], flush_interval_ms: u64) -> Vec<Diagnostic> {
    let flush_ns = u128::from(flush_interval_ms) * 1_000_000;
    let warning = |table: &Table| {
        let delay_ns = u128::try_from(table.watermark.as_ref()?.delay_ns).unwrap_or(0);
        if flush_ns * 2 <= delay_ns {
            return None;
        }
        let message = format!(
            "ingest.flush_interval_ms = {flush_interval_ms} is more than half of this delay: rows may come late"
        );
        let help = format!("allow {} milliseconds or more, or flush more often", flush_interval_ms * 2);
        warning_at_watermark(files, &table.name, &message, &help)
    };
    program.tables.iter().filter(|table| table.kind == TableKind::Source).filter_map(warning).collect()
}

fn print_text(planned: &Result<Program, Vec<Diagnostic>>, explained: bool) {
    let diagnostics = match planned {
        Ok(program) => &program.warnings,
        Err(diagnostics) => diagnostics,
    };
    for diagnostic in diagnostics {
        eprintln!("{diagnostic}\n");
    }
    match planned {
        Ok(program) => {
            if explained && !program.queries.is_empty() {
                println!("{CUT}");
            }
            for query in &program.queries {
                let (sources, sinks) = (names(&query.sources), names(query.sinks()));
                let windows: Vec<String> = query.cuts.iter().map(|cut| cut.windowing.to_string()).collect();
                let windows = if windows.is_empty() { "row by row".to_owned() } else { windows.join(", ") };
                println!("{}: {} → {}, {windows}", query.name, sources.join(", "), sinks.join(", "));
                if explained {
                    println!("{}", explain(query));
                }
            }
            for select in &program.selects {
                println!("{}: a SELECT on its own, which 'emostream run' prints", select.query.name);
            }
            let queries = match program.queries.len() {
                1 => "1 query".to_owned(),
                several => format!("{several} queries"),
            };
            println!("ok: {}, {queries}", count(program.tables.len(), "table"));
        }
        Err(diagnostics) => eprintln!("{} found", count(diagnostics.len(), "error")),
    }
}

fn print_json(planned: &Result<Program, Vec<Diagnostic>>, explained: bool) {
    let verdict = match planned {
        Ok(program) => {
            let queries = program.queries.iter().map(|query| {
                json!({
                    "name": query.name,
                    "sources": names(&query.sources),
                    "sinks": names(query.sinks()),
                    "windows": query.cuts.iter().map(|cut| cut.windowing.to_string()).collect::<Vec<_>>(),
                    "plan": explained.then(|| explain(query)),
                })
            });
            let queries: Vec<_> = queries.collect();
            json!({ "ok": true, "diagnostics": program.warnings, "queries": queries })
        }
        Err(diagnostics) => json!({ "ok": false, "diagnostics": diagnostics, "queries": [] }),
    };
    println!("{verdict}");
}

fn names<'t>(tables: impl IntoIterator<Item = &'t Table>) -> Vec<&'t str> {
    tables.into_iter().map(|table| table.name.as_str()).collect()
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
