//! Files → a planned program with every query compiled: what is checked before anything that runs is touched.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::change;
use super::compile::CompiledQuery;
use super::statics::StaticTables;
use crate::log::kafka::check_client_configs;
use crate::log::late_topic;
use crate::log::program::{ProgramView, QueryEntry};
use crate::reaction::table::{LateRows, Table, TableKind};
use crate::sql::{self, Diagnostic, Program, Severity, SqlFile};

/// The files' texts by name without folder.
pub(super) type Files = BTreeMap<String, String>;

/// A query that compiles.
#[derive(Clone, Debug)]
pub(super) struct PlannedQuery {
    pub(super) text: String,
    /// What lies below, at and above the cut, in words.
    pub(super) plan: String,
    /// Text, tables and plan: equal when nothing at all changed.
    pub(super) identity: String,
    /// The topics that it reads.
    topics: String,
    pub(super) compiled: Arc<CompiledQuery>,
}

impl PlannedQuery {
    pub(super) fn as_compared(&self) -> change::Version<'_> {
        change::Version {
            plan: &self.identity,
            fingerprint: &self.compiled.fingerprint,
            topic: &self.topics,
            rhythm: self.compiled.rhythm(),
            windows: &self.compiled.windows,
            sessions: self.compiled.sessions.as_ref().map(|sessions| sessions.definition.as_str()),
        }
    }
}

/// A program that can run.
#[derive(Clone, Debug, Default)]
pub(super) struct Planned {
    pub(super) files: Files,
    pub(super) tables: Vec<Table>,
    pub(super) queries: BTreeMap<String, PlannedQuery>,
    pub(super) warnings: Vec<Diagnostic>,
}

impl Planned {
    /// Plans and compiles. Takes as long as a planner takes: not for a thread that serves others.
    ///
    /// # Errors
    /// Everything that is wrong, each at its place; files are named as in `folder`.
    /// `servers` is the Kafka that is the log, if that is one; `tolerance_ms` how far rows may be ahead of their record.
    pub(super) fn of(
        folder: &Path,
        servers: &[String],
        tolerance_ms: i64,
        files: &Files,
    ) -> Result<Self, Vec<Diagnostic>> {
        let named = |(name, text): (&String, &String)| SqlFile {
            name: folder.join(name).display().to_string(),
            text: text.clone(),
        };
        let named: Vec<SqlFile> = files.iter().map(named).collect();
        let program = sql::plan_program(&named)?;
        let refused = elsewhere(&program, &named, servers).into_iter().chain(unfit_configs(&program, &named));
        let refused: Vec<Diagnostic> = refused.collect();
        if !refused.is_empty() {
            return Err(refused);
        }
        if !program.tables.iter().any(|table| table.kind == TableKind::Source && !table.is_static()) {
            let message = "no file declares a source table (CREATE TABLE … WITH (type = 'source', …))";
            return Err(vec![at_start(folder.display().to_string(), message, "")]);
        }
        // Static tables are the engine's alone: nobody posts to them, and they have no topic.
        let tables: Vec<Table> = program.tables.into_iter().filter(|table| !table.is_static()).collect();
        if let Some((sink, source)) = written_twice(&tables) {
            let message = format!(
                "the topic '{}' of '{}' is that of the late rows of '{}' (late_rows = 'table')",
                sink.topic, sink.name, source.name
            );
            let suggestion = Some(format!("write topic = '{}_results', say", sink.name));
            return Err(vec![Diagnostic { message, suggestion, ..place_of(files, folder, &sink.name) }]);
        }
        let joined = program.queries.iter().flat_map(|query| &query.statics);
        let statics = StaticTables::read(joined, &named)
            .map_err(|(table, error)| vec![sql::error_at_table(&named, &table, &error.to_string())])?;
        let (mut queries, mut refused) = (BTreeMap::new(), Vec::new());
        for query in &program.queries {
            match CompiledQuery::compile_with(query, &statics) {
                Ok(mut compiled) => {
                    // Records that are read again have to be judged as they were.
                    compiled.fingerprint += &format!("-{tolerance_ms}");
                    let (plan, text) = (sql::explain(query), query.text.clone());
                    let sinks: Vec<&Table> = query.sinks().collect();
                    let (sources, joined) = (&query.sources, &compiled.statics);
                    let identity = format!("{text}\n{plan}\n{sources:?}\n{sinks:?}\n{joined}");
                    let (topics, compiled) = (compiled.topics(), Arc::new(compiled));
                    queries
                        .insert(query.name.clone(), PlannedQuery { text, plan, identity, topics, compiled });
                }
                Err(error) => {
                    let file = folder.join(file_of(&query.name)).display().to_string();
                    refused.push(not_compiled(file, &query.text, &error.strip_backtrace()));
                }
            }
        }
        if !refused.is_empty() {
            return Err(refused);
        }
        Ok(Self { files: files.clone(), tables, queries, warnings: program.warnings })
    }

    /// Whether files besides the SQL are part of it.
    pub(super) fn joins_files(&self) -> bool {
        self.queries.values().any(|query| !query.compiled.statics.is_empty())
    }

    /// As it is stored in the log; versions are given there.
    pub(super) fn view(&self) -> ProgramView {
        let entry = |(name, query): (&String, &PlannedQuery)| {
            let entry = QueryEntry {
                name: name.clone(),
                text: query.text.clone(),
                version: 0,
                sinks: query.compiled.outputs.iter().map(|output| output.sink.name.clone()).collect(),
                sources: query.compiled.sources.iter().map(|source| source.table.name.clone()).collect(),
            };
            (name.clone(), entry)
        };
        ProgramView {
            tables: self.tables.iter().map(|table| (table.name.clone(), table.clone())).collect(),
            queries: self.queries.iter().map(entry).collect(),
            versions: BTreeMap::new(),
            files: self.files.clone(),
        }
    }

    /// What of the tables cannot change while they are in use.
    pub(super) fn refuse_table_changes(&self, running: &Self, folder: &Path) -> Result<(), Vec<Diagnostic>> {
        let mut refused = Vec::new();
        for old in &running.tables {
            let Some(new) = self.tables.iter().find(|table| table.name == old.name) else { continue };
            let mut refuse = |message: String| {
                let place = place_of(&self.files, folder, &old.name);
                let suggestion = "declare a table with another name and topic beside it";
                refused.push(Diagnostic { message, suggestion: Some(suggestion.to_owned()), ..place });
            };
            let connector = |table: &Table| std::mem::discriminant(&table.with.connector);
            if (old.kind, &old.topic, old.format, connector(old))
                != (new.kind, &new.topic, new.format, connector(new))
            {
                let what = "type, connector, topic and format of a table in use cannot change";
                refuse(format!("table '{}': {what}", old.name));
            }
            if old.with.timestamp_field.is_some() != new.with.timestamp_field.is_some() {
                refuse(format!(
                    "table '{}': whether the log stamps the records of a topic cannot change",
                    old.name
                ));
            }
            for column in &old.columns {
                let changed = new.column(&column.name).filter(|(_, new)| new.data_type != column.data_type);
                if let Some((_, new)) = changed {
                    let (from, to) = (column.data_type.sql_name(), new.data_type.sql_name());
                    refuse(format!(
                        "column '{}' of '{}' is {from} and cannot become {to}: records hold it so",
                        column.name, old.name
                    ));
                }
            }
        }
        if refused.is_empty() { Ok(()) } else { Err(refused) }
    }
}

/// Tables on another log than the program's.
pub(crate) fn elsewhere(program: &Program, files: &[SqlFile], servers: &[String]) -> Vec<Diagnostic> {
    let named = |table: &&Table| !table.with.bootstrap_servers.is_empty();
    let tables = program.tables.iter().filter(named).filter(|table| table.with.bootstrap_servers != servers);
    let here = if servers.is_empty() { "the embedded one".to_owned() } else { servers.join(",") };
    let refuse = |table: &Table| {
        let message = format!("the log is {here}, not this Kafka: {}", sql::ONE_LOG);
        let help = "leave the option out, or start with --kafka and these servers";
        sql::error_at_option(files, &table.name, "bootstrap_servers", &message, help)
    };
    tables.map(refuse).collect()
}

/// Tables with properties that librdkafka does not take, or that one writer cannot have both.
pub(crate) fn unfit_configs(program: &Program, files: &[SqlFile]) -> Vec<Diagnostic> {
    let refuse = |table: &Table, message: &str, help: &str| {
        sql::error_at_option(files, &table.name, "client_configs", message, help)
    };
    let mut refused = Vec::new();
    for table in &program.tables {
        if let Err(why) = check_client_configs(&table.with.client_configs) {
            refused.push(refuse(table, &why, "librdkafka's CONFIGURATION.md lists the properties"));
        }
    }
    for query in &program.queries {
        let mut known: BTreeMap<&String, (&String, &Table)> = BTreeMap::new();
        for sink in query.sinks() {
            for (name, value) in &sink.with.client_configs {
                let (first, other) = *known.entry(name).or_insert((value, sink));
                if first != value {
                    let message =
                        format!("'{}' says {name}={first}, and one writer writes both sinks", other.name);
                    refused.push(refuse(sink, &message, &format!("write {name}={first}, or leave it out")));
                }
            }
        }
    }
    refused
}

/// A sink on the topic that a source's late rows go to.
fn written_twice(tables: &[Table]) -> Option<(&Table, &Table)> {
    let keeps = |table: &&Table| table.kind == TableKind::Source && table.with.late_rows == LateRows::Table;
    tables.iter().filter(keeps).find_map(|source| {
        let is_its =
            |table: &&Table| table.kind == TableKind::Sink && table.topic == late_topic(&source.topic);
        Some((tables.iter().find(is_its)?, source))
    })
}

/// The name of a query's file.
pub(super) fn file_of(query: &str) -> String {
    format!("{query}.sql")
}

/// An error at the first character of a file.
pub(super) fn at_start(file: String, message: &str, source_line: &str) -> Diagnostic {
    Diagnostic {
        file,
        line: 1,
        column: 1,
        severity: Severity::Error,
        message: message.to_owned(),
        suggestion: None,
        source_line: source_line.to_owned(),
    }
}

/// What a query that was planned cannot be compiled for, at its first INSERT, or SELECT.
pub(crate) fn not_compiled(file: String, text: &str, message: &str) -> Diagnostic {
    let first = |word: &str| {
        let mut lines = text.lines().enumerate();
        lines.find_map(|(index, line)| Some((index, line, line.to_lowercase().find(word)?)))
    };
    let Some((index, line, before)) = first("insert").or_else(|| first("select")) else {
        return at_start(file, message, text.lines().next().unwrap_or_default());
    };
    let column = line.char_indices().take_while(|(place, _)| *place < before).count() as u64 + 1;
    Diagnostic { line: index as u64 + 1, column, ..at_start(file, message, line) }
}

/// Where a table is declared, by the first line that names it in a file that creates tables.
fn place_of(files: &Files, folder: &Path, table: &str) -> Diagnostic {
    let creates = |line: &str| {
        let line = line.to_lowercase();
        line.contains("create table") && line.contains(table)
    };
    for (name, text) in files {
        if let Some((index, line)) = text.lines().enumerate().find(|(_, line)| creates(line)) {
            let file = folder.join(name).display().to_string();
            return Diagnostic { line: index as u64 + 1, ..at_start(file, "", line) };
        }
    }
    at_start(folder.display().to_string(), "", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(sink_topic: &str) -> Result<Planned, Vec<Diagnostic>> {
        let tables = format!(
            "CREATE TABLE given (at TIMESTAMP NOT NULL, WATERMARK FOR at)
WITH (connector = 'kafka', type = 'source', late_rows = 'table');
CREATE TABLE counts (count BIGINT) WITH (connector = 'kafka', type = 'sink', topic = '{sink_topic}');"
        );
        Planned::of(Path::new("sql"), &[], 5000, &Files::from([("tables.sql".to_owned(), tables)]))
    }

    #[test]
    fn results_do_not_go_where_late_rows_do() {
        assert!(planned("counts").is_ok());
        let refused = planned("given_late").unwrap_err();
        let [only] = &refused[..] else { panic!("{refused:?}") };
        assert_eq!(only.line, 3);
        assert!(only.message.contains("late rows of 'given'"), "{only}");
    }
}
