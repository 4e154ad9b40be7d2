//! The folder of SQL files: read, planned, and made the running program. Only `up` and `engine` do this.

use std::path::{Path, PathBuf};

use super::Failure;
use super::serve::{Failed, log_failure};
use crate::config::{Loaded, LogKind, Settings};
use crate::engine::{EngineError, Place, Seat};
use crate::reaction::table::{TableKind, servers_of};
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
    if !program.tables.iter().any(|table| table.kind == TableKind::Source && !table.is_static()) {
        let detail = "no file declares a source table (CREATE TABLE … WITH (type = 'source', …))";
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

/// The settings, with the log that the program's tables name where the settings leave it open.
pub(super) fn with_log_of(program: &Program, loaded: Loaded) -> Settings {
    let is_open = loaded.origins.get("log.kind").is_none_or(|(_, origin)| origin == "default");
    let mut settings = loaded.settings;
    let configured = servers_of(&settings.log.kafka.bootstrap_servers);
    let mut named = program.tables.iter().map(|table| &table.with.bootstrap_servers);
    if let Some(named) = named.find(|named| !named.is_empty())
        && is_open
        && (configured.is_empty() || configured == *named)
    {
        settings.log.kind = LogKind::Kafka;
        settings.log.kafka.bootstrap_servers = named.join(",");
    }
    settings
}

/// Where the program is, and how its topics are made. A role of its own is always on Kafka.
pub(super) fn place(dir: Option<&Path>, settings: &Settings, is_on_kafka: bool) -> Place {
    Place {
        folder: dir.map_or_else(|| PathBuf::from(DEFAULT_DIR), Path::to_path_buf),
        partitions: settings.log.partitions,
        retention: settings.log.retention,
        servers: match is_on_kafka {
            true => servers_of(&settings.log.kafka.bootstrap_servers),
            false => Vec::new(),
        },
    }
}

/// Ends when the engine can neither run nor stand by.
pub(super) fn when_stopped(seat: &Seat) -> Failed {
    let mut failure = seat.failure();
    Box::pin(async move {
        let stopped = failure.wait_for(Option::is_some).await.ok().and_then(|error| error.clone());
        match stopped.as_deref() {
            Some(error) => engine_failure(error),
            None => std::future::pending().await,
        }
    })
}

/// An engine that cannot start.
pub(super) fn engine_failure(error: &EngineError) -> Failure {
    match error {
        EngineError::Log(error) => log_failure(error.clone()),
        EngineError::Spill(error) => Failure::outside(error.to_string()),
        error => Failure::input(error.to_string()),
    }
}

/// For `/readyz`: as soon as it runs, and every query has read its checkpoint; or `stands_by` and nothing runs here.
///
/// # Errors
/// Says what is missing.
pub(super) fn ready(seat: &Seat, stands_by: bool) -> Result<(), String> {
    match seat.engine() {
        Some(engine) => engine.restored(),
        None if stands_by => Ok(()),
        None => Err("the queries are being started".to_owned()),
    }
}
