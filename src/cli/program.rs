//! The folder of SQL files: read, planned, and made the running program. Only `up` and `engine` do this.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Failure;
use super::serve::log_failure;
use crate::config::Settings;
use crate::engine::Engine;
use crate::log::Log;
use crate::log::program::{self, ProgramView, QueryEntry};
use crate::reaction::table::{Connector, Table, TableKind};
use crate::sql::{self, Program, SqlFile};

/// Where the SQL is when nobody says.
const DEFAULT_DIR: &str = "./sql";
/// What is written there when there is none.
const FIRST_FILES: [(&str, &str); 2] = [
    ("tables.sql", include_str!("../../sql/tables.sql")),
    ("emoji_counts.sql", include_str!("../../sql/emoji_counts.sql")),
];

/// Reads and plans the folder. A default folder that is missing is written first.
///
/// # Errors
/// Exit code 1 when the folder is missing, does not plan or has no source; the diagnostics are printed.
pub(super) fn load(dir: Option<&Path>) -> Result<Program, Failure> {
    let folder = dir.map_or_else(|| PathBuf::from(DEFAULT_DIR), Path::to_path_buf);
    if !folder.is_dir() {
        if dir.is_some() {
            return Err(Failure::input(format!("--sql {}: there is no such folder", folder.display())));
        }
        write_first_files(&folder)?;
    }
    let files = sql::load_folder(&folder).map_err(|error| Failure::input(error.to_string()))?;
    let program = plan(&files)?;
    if !program.tables.iter().any(|table| table.kind == TableKind::Source) {
        let detail = "no file declares a source table (CREATE TABLE … WITH (type = 'source', …))";
        return Err(Failure::input(format!("{}: {detail}", folder.display())));
    }
    if let Some(table) = program.tables.iter().find(|table| table.with.connector != Connector::Kafka) {
        let detail = format!("table '{}' is not in the log: only connector 'kafka' runs here", table.name);
        return Err(Failure::input(format!("{}: {detail}", folder.display())));
    }
    if program.queries.is_empty() {
        eprintln!("emostream: {} has tables and no query: nothing is counted yet", folder.display());
    }
    Ok(program)
}

fn plan(files: &[SqlFile]) -> Result<Program, Failure> {
    match sql::plan_program(files) {
        Ok(program) => {
            for warning in &program.warnings {
                eprintln!("{warning}");
            }
            Ok(program)
        }
        Err(diagnostics) => {
            for diagnostic in &diagnostics {
                eprintln!("{diagnostic}");
            }
            Err(Failure::input("the SQL does not plan; nothing was started"))
        }
    }
}

fn write_first_files(folder: &Path) -> Result<(), Failure> {
    let outside = |error| Failure::outside(format!("{} cannot be written: {error}", folder.display()));
    std::fs::create_dir_all(folder).map_err(outside)?;
    for (name, text) in FIRST_FILES {
        std::fs::write(folder.join(name), text).map_err(outside)?;
    }
    let names = FIRST_FILES.map(|(name, _)| name).join(" and ");
    eprintln!("emostream: there was no {}; wrote {names} there", folder.display());
    Ok(())
}

/// Creates the tables' topics, then makes the program the running one.
///
/// # Errors
/// When the log does not take it.
pub(super) async fn store(
    log: &Arc<dyn Log>,
    program: &Program,
    settings: &Settings,
) -> Result<ProgramView, Failure> {
    let mut topics = program::system_topics();
    let (partitions, retention) = (settings.log.partitions, settings.log.retention);
    let with_topic = program.tables.iter().filter(|table| !table.topic.is_empty());
    topics.extend(with_topic.map(|table| program::table_topic(table, partitions, retention)));
    log.create_topics(&topics).await.map_err(log_failure)?;
    program::store(log.as_ref(), &view(program)).await.map_err(log_failure)
}

/// For `/readyz`: whether every query has read its checkpoint.
///
/// # Errors
/// Names those that have not.
pub(super) fn restored(engine: &Engine) -> Result<(), String> {
    let waiting = engine.queries().iter().filter(|(_, query)| !query.is_restored());
    let waiting: Vec<&str> = waiting.map(|(name, _)| name.as_str()).collect();
    if waiting.is_empty() {
        Ok(())
    } else {
        Err(format!("restoring the checkpoint of {}", waiting.join(", ")))
    }
}

fn view(program: &Program) -> ProgramView {
    let table = |table: &Table| (table.name.clone(), table.clone());
    let query = |query: &sql::Query| {
        let entry = QueryEntry {
            name: query.name.clone(),
            text: query.text.clone(),
            version: 0,
            sinks: query.sinks().map(|sink| sink.name.clone()).collect(),
            sources: query.sources.iter().map(|source| source.name.clone()).collect(),
        };
        (entry.name.clone(), entry)
    };
    ProgramView {
        tables: program.tables.iter().map(table).collect(),
        queries: program.queries.iter().map(query).collect(),
    }
}
