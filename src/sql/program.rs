//! Files → [`Program`]: all tables first, then views, then one query per file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use arrow::compute::can_cast_types;
use arrow::datatypes::DataType;
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder};
use datafusion::sql::sqlparser::ast::{
    CreateView, Insert, Query as SqlQuery, Spanned, Statement as SqlStatement, TableObject,
};
use datafusion::sql::sqlparser::tokenizer::Span;

use super::diagnostic::{Finding, start_of_text};
use super::parse::{CreateTable, Statement, StatementKind, parse};
use super::planner::{Planner, Relation};
use super::statics::{StaticRows, Step};

use super::{
    Diagnostic, Output, Program, Query, Select, Severity, SqlFile, catalog, checks, constants, cut, errors,
    generated, order, rewrite, statics,
};
use crate::reaction::schema::arrow_type;
use crate::reaction::table::{Connector, Format, Table, TableKind, TableOptions};

/// Plans the files as one program, whatever their order: every `CREATE` counts for all of them.
///
/// # Errors
/// Everything that is wrong, in order of files and places, as far as one run can tell.
pub fn plan_program(files: &[SqlFile]) -> Result<Program, Vec<Diagnostic>> {
    plan_program_with(files, &[])
}

/// Plans the files as one program; a table or view that they read and do not declare comes from `beside`, of which only the
/// `CREATE`s count.
///
/// # Errors
/// As [`plan_program`].
pub fn plan_program_with(files: &[SqlFile], beside: &[SqlFile]) -> Result<Program, Vec<Diagnostic>> {
    let mut build = Build::new();
    let mut own = build.parse(files);
    let mut others = build.parse(beside);
    build.keep_missing_creates(&own, &mut others);
    own.extend(others);
    own.sort_by(|a, b| a.file.name.cmp(&b.file.name));
    build.tables(&own);
    build.views(&own);
    build.queries(&own);
    build.finish()
}

/// Why a program has one log.
pub(crate) const ONE_LOG: &str =
    "rows and positions are written in one transaction, which cannot span two logs";

/// An error at the value of a table's option, at its place in the files; at the first character of the first file when
/// none of them declares it.
pub fn error_at_option(files: &[SqlFile], table: &str, key: &str, message: &str, help: &str) -> Diagnostic {
    let placed = files.iter().find_map(|file| {
        let (statements, _) = parse(&file.text);
        let at = statements.iter().find_map(|statement| match &statement.kind {
            StatementKind::CreateTable(decl) if catalog::normalized(&decl.name) == table => {
                decl.options.iter().find(|option| option.key.value == key).map(|option| option.value_at)
            }
            _ => None,
        })?;
        Some(Finding::error(at, message).help(help).within(file))
    });
    let nowhere = SqlFile { name: String::new(), text: String::new() };
    let first = files.first().unwrap_or(&nowhere);
    placed.unwrap_or_else(|| Finding::error(start_of_text(), message).help(help).within(first))
}

/// A warning about a table's watermark, at its place in the files; None when no file declares one for that table.
pub fn warning_at_watermark(files: &[SqlFile], table: &str, message: &str, help: &str) -> Option<Diagnostic> {
    files.iter().find_map(|file| {
        let (statements, _) = parse(&file.text);
        let at = statements.iter().find_map(|statement| match &statement.kind {
            StatementKind::CreateTable(decl) if catalog::normalized(&decl.name) == table => {
                decl.watermarks.first().map(|mark| mark.at)
            }
            _ => None,
        })?;
        Some(Finding::warning(at, message).help(help).within(file))
    })
}

/// An error about a table at its name in the file that declares it.
pub fn error_at_table(files: &[SqlFile], table: &str, message: &str) -> Diagnostic {
    let found = files.iter().find_map(|file| {
        let (statements, _) = parse(&file.text);
        let at = statements.iter().find_map(|statement| match &statement.kind {
            StatementKind::CreateTable(decl) if catalog::normalized(&decl.name) == table => {
                Some(decl.name.span)
            }
            _ => None,
        })?;
        Some((file, at))
    });
    let nowhere = SqlFile { name: table.to_owned(), text: String::new() };
    let (file, at) = found.unwrap_or((&nowhere, start_of_text()));
    Finding::error(at, message).within(file)
}

/// A file with its statements.
struct Parsed<'a> {
    file: &'a SqlFile,
    statements: Vec<Statement>,
}

struct Build {
    planner: Planner,
    tables: Vec<Table>,
    queries: Vec<Query>,
    selects: Vec<Select>,
    diagnostics: Vec<Diagnostic>,
}

impl Build {
    fn new() -> Self {
        Self {
            planner: Planner::new(),
            tables: vec![],
            queries: vec![],
            selects: vec![],
            diagnostics: vec![],
        }
    }

    fn parse<'a>(&mut self, files: &'a [SqlFile]) -> Vec<Parsed<'a>> {
        let mut parsed = Vec::new();
        for file in files {
            let (statements, findings) = parse(&file.text);
            self.report(file, findings);
            parsed.push(Parsed { file, statements });
        }
        parsed
    }

    fn report(&mut self, file: &SqlFile, findings: impl IntoIterator<Item = Finding>) {
        for finding in findings {
            let diagnostic = finding.within(file);
            if !self.diagnostics.contains(&diagnostic) {
                self.diagnostics.push(diagnostic);
            }
        }
    }

    fn keep_missing_creates(&self, own: &[Parsed<'_>], beside: &mut [Parsed<'_>]) {
        let declared: BTreeSet<String> =
            own.iter().flat_map(|parsed| parsed.statements.iter().filter_map(declared_name)).collect();
        for parsed in beside {
            parsed.statements.retain(|s| declared_name(s).is_some_and(|name| !declared.contains(&name)));
        }
    }

    fn tables(&mut self, files: &[Parsed<'_>]) {
        for parsed in files {
            for statement in &parsed.statements {
                match &statement.kind {
                    StatementKind::CreateTable(decl) => self.table(parsed.file, decl),
                    StatementKind::Broken(name) => {
                        self.planner.relations.insert(name.clone(), Relation::Broken);
                    }
                    StatementKind::Other(_) => {}
                }
            }
        }
    }

    fn table(&mut self, file: &SqlFile, decl: &CreateTable) {
        let name = catalog::normalized(&decl.name);
        if self.planner.relations.contains_key(&name) {
            let finding = Finding::error(decl.name.span, format!("'{name}' is declared twice"));
            self.report(file, [finding.help("leave one of the two declarations out")]);
            return;
        }
        let relation = match catalog::table(decl, &self.planner) {
            Ok(table) => match self.at_odds(file, decl, &table) {
                true => Relation::Broken,
                false => {
                    self.tables.push(table.clone());
                    Relation::Table(table)
                }
            },
            Err(findings) => {
                self.report(file, findings);
                Relation::Broken
            }
        };
        let physical = match &relation {
            Relation::Table(table) => Some(table.clone()),
            _ => None,
        };
        self.planner.relations.insert(name.clone(), relation);
        if let Some(table) = physical.filter(|table| table.kind == TableKind::Source)
            && !self.declared_columns(file, decl, &table)
        {
            self.planner.relations.insert(name, Relation::Broken);
        }
    }

    /// Whether it cannot be beside the tables before it; and what of its options is worth a warning.
    fn at_odds(&mut self, file: &SqlFile, decl: &CreateTable, table: &Table) -> bool {
        let option = |key: &str| decl.options.iter().find(|option| option.key.value == key);
        if let Some(other) = self.tables.iter().find(|other| shares_topic(other, table)) {
            let message = format!("topic '{}' is used by table '{}' already", table.topic, other.name);
            let finding = Finding::error(decl.name.span, message).help("give each table a topic of its own");
            self.report(file, [finding]);
            return true;
        }
        let servers = &table.with.bootstrap_servers;
        let named = |other: &&Table| !other.with.bootstrap_servers.is_empty();
        if let (Some(option), Some(other)) = (option("bootstrap_servers"), self.tables.iter().find(named))
            && other.with.bootstrap_servers != *servers
        {
            let elsewhere = other.with.bootstrap_servers.join(",");
            let message = format!("table '{}' is on another Kafka, {elsewhere}: {ONE_LOG}", other.name);
            let finding = Finding::error(option.value_at, message);
            self.report(
                file,
                [finding.help(format!("write bootstrap_servers = '{elsewhere}' or leave it out"))],
            );
            return true;
        }
        if let Some(option) = option("sink.timestamp_field") {
            let message = format!(
                "Kafka removes a record when its stamp, here '{}', is older than log.retention: rows of an older \
                 time may be gone as soon as they are written",
                option.value
            );
            let finding = Finding::warning(option.value_at, message);
            self.report(file, [finding.help("leave the option out where old files are replayed")]);
        }
        false
    }

    /// Plans what a query sees of a source; false when that is wrong.
    fn declared_columns(&mut self, file: &SqlFile, decl: &CreateTable, table: &Table) -> bool {
        let (query, declared) = match generated::declared_columns(decl, table, &self.planner) {
            Ok(None) => return true,
            Ok(Some(declared)) => declared,
            Err(findings) => {
                self.report(file, findings);
                return false;
            }
        };
        let Some(plan) = self.plan(file, &query) else { return false };
        let mistyped = generated::mistyped(&plan, &declared, &query, is_assignable, sql_name);
        if !mistyped.is_empty() {
            self.report(file, mistyped);
            return false;
        }
        let analysed = into_sink(plan, &declared, &query).and_then(|(plan, warnings)| {
            self.report(file, warnings);
            self.planner.analyse(plan).map_err(|error| vec![errors::finding(&error, &query, true)])
        });
        match analysed {
            Ok(plan) => {
                self.planner.declared.insert(table.name.clone(), plan);
                true
            }
            Err(findings) => {
                self.report(file, findings);
                false
            }
        }
    }

    /// Views in any order: one that reads another waits until that is known.
    fn views(&mut self, files: &[Parsed<'_>]) {
        let mut waiting: Vec<(&SqlFile, &CreateView)> = Vec::new();
        for parsed in files {
            for statement in &parsed.statements {
                if let StatementKind::Other(other) = &statement.kind
                    && let SqlStatement::CreateView(view) = other.as_ref()
                {
                    waiting.push((parsed.file, view));
                }
            }
        }
        while !waiting.is_empty() {
            let names: Vec<String> = waiting.iter().filter_map(|(_, view)| view_name(view)).collect();
            let ready = waiting.iter().position(|(_, view)| {
                !checks::relations_read(&view.query).iter().any(|read| names.contains(read))
            });
            let Some(ready) = ready else { return self.circle(&waiting) };
            let (file, view) = waiting.remove(ready);
            self.view(file, view);
        }
    }

    fn circle(&mut self, waiting: &[(&SqlFile, &CreateView)]) {
        for (index, (file, view)) in waiting.iter().enumerate() {
            let Some((name, at)) = checks::last_name(&view.name) else { continue };
            if index == 0 {
                let message = format!("view '{name}' waits for itself: views read each other in a circle");
                self.report(file, [Finding::error(at, message).help("read a table in one of them")]);
            }
            self.planner.relations.insert(name, Relation::Broken);
        }
    }

    fn view(&mut self, file: &SqlFile, view: &CreateView) {
        let Some((name, at)) = checks::last_name(&view.name) else { return };
        if self.planner.relations.contains_key(&name) {
            let finding = Finding::error(at, format!("'{name}' is declared twice"));
            self.report(file, [finding.help("choose another name")]);
            return;
        }
        let plain = view.columns.is_empty() && !view.materialized && !view.temporary && !view.or_replace;
        let planned = if plain {
            self.plan(file, &view.query)
        } else {
            let finding = Finding::error(at, "only CREATE VIEW name AS SELECT … is supported");
            self.report(file, [finding]);
            None
        };
        self.planner.relations.insert(name, planned.map_or(Relation::Broken, Relation::View));
    }

    fn queries(&mut self, files: &[Parsed<'_>]) {
        for parsed in files {
            let mut inserts = Vec::new();
            for statement in &parsed.statements {
                let StatementKind::Other(other) = &statement.kind else { continue };
                match other.as_ref() {
                    SqlStatement::CreateView(_) => {}
                    SqlStatement::Insert(insert) => inserts.push((statement.at, insert)),
                    SqlStatement::Query(select) => self.select(parsed.file, select),
                    _ => {
                        let finding = Finding::error(statement.at, "this statement is not supported");
                        let help = "statements: CREATE TABLE, CREATE VIEW, INSERT INTO … SELECT";
                        self.report(parsed.file, [finding.help(help)]);
                    }
                }
            }
            if !inserts.is_empty() {
                self.query(parsed.file, &inserts);
            }
        }
    }

    /// A SELECT on its own.
    fn select(&mut self, file: &SqlFile, select: &SqlQuery) {
        let Some(plan) = self.plan(file, select) else { return };
        let columns = Arc::clone(plan.schema().inner());
        let name = file.name.clone();
        let mut query = Query {
            name,
            text: file.text.clone(),
            sources: vec![],
            statics: vec![],
            cuts: vec![],
            outputs: vec![],
        };
        match self.output(file, printed(), select, plan, &mut query.cuts) {
            Ok(output) => {
                query.outputs.push(output);
                (query.sources, query.statics) = (self.sources_of(&query), self.statics_of(&query));
                self.selects.push(Select { query, columns });
            }
            Err(findings) => self.report(file, findings),
        }
    }

    fn query(&mut self, file: &SqlFile, inserts: &[(Span, &Insert)]) {
        let name = match query_name(file) {
            Ok(name) => name,
            Err(finding) => return self.report(file, [finding]),
        };
        if self.queries.iter().any(|query| query.name == name) {
            let finding =
                Finding::error(start_of_text(), format!("two files give the query's name '{name}'"));
            return self.report(file, [finding.help("rename one of the files")]);
        }
        let mut query = Query {
            name,
            text: file.text.clone(),
            sources: vec![],
            statics: vec![],
            cuts: vec![],
            outputs: vec![],
        };
        for (at, insert) in inserts {
            self.insert(file, *at, insert, &mut query);
        }
        if query.outputs.len() < inserts.len() {
            return; // something was reported
        }
        (query.sources, query.statics) = (self.sources_of(&query), self.statics_of(&query));
        self.queries.push(query);
    }

    /// The tables that a query's parts read, by name.
    fn sources_of(&self, query: &Query) -> Vec<Table> {
        let inputs = query.cuts.iter().flat_map(|cut| cut.inputs.iter().map(|input| &input.source));
        let parts = query.outputs.iter().flat_map(|output| &output.parts);
        let row_wise = parts.filter_map(|part| match part {
            cut::Part::RowWise(rows) => Some(&rows.source),
            cut::Part::Windowed(_) => None,
        });
        let names: BTreeSet<&String> = inputs.chain(row_wise).collect();
        let mut sources: Vec<Table> =
            self.tables.iter().filter(|table| names.contains(&table.name)).cloned().collect();
        sources.sort_by(|a, b| a.name.cmp(&b.name));
        sources
    }

    /// The static tables that a query's parts look rows up in, by name.
    fn statics_of(&self, query: &Query) -> Vec<Table> {
        let joined = |steps: &[Step]| -> Vec<StaticRows> {
            let rows = steps.iter().filter_map(|step| match step {
                Step::Join(join) => Some(join.rows.clone()),
                Step::Where(_) => None,
            });
            rows.collect()
        };
        let below = query.cuts.iter().flat_map(|cut| &cut.inputs).flat_map(|input| joined(&input.steps));
        let parts = query.outputs.iter().flat_map(|output| &output.parts).flat_map(|part| match part {
            cut::Part::RowWise(rows) => joined(&rows.steps),
            cut::Part::Windowed(part) => statics::leaves(&part.above).unwrap_or_default(),
        });
        let names: BTreeSet<String> = below.chain(parts).flat_map(|rows| rows.tables).collect();
        let tables = names.iter().filter_map(|name| self.tables.iter().find(|table| table.name == *name));
        tables.cloned().collect()
    }

    fn insert(&mut self, file: &SqlFile, at: Span, insert: &Insert, query: &mut Query) {
        let sink = self.sink(insert, query);
        let Some(select) = select_of(insert) else {
            let finding = Finding::error(at, "only INSERT INTO sink SELECT … is supported");
            return self
                .report(file, [finding.help("write the sink's columns in their order, without a list")]);
        };
        let planned = self.plan(file, select);
        let sink = match sink {
            Ok(sink) => sink,
            Err(finding) => return self.report(file, finding),
        };
        let Some(plan) = planned else { return };
        match self.output(file, sink, select, plan, &mut query.cuts) {
            Ok(output) => query.outputs.push(output),
            Err(findings) => self.report(file, findings),
        }
    }

    fn output(
        &mut self,
        file: &SqlFile,
        sink: Table,
        select: &SqlQuery,
        plan: LogicalPlan,
        cuts: &mut Vec<cut::Cut>,
    ) -> Result<Output, Vec<Finding>> {
        let (plan, warnings) =
            if is_printed(&sink) { (plan, vec![]) } else { into_sink(plan, &sink, select)? };
        self.report(file, warnings);
        let failed = |error| vec![errors::finding(&error, select, false)];
        let plan = self.planner.analyse(plan).map_err(failed)?;
        let without_value = constants::check(&plan, select).map_err(failed)?;
        if !without_value.is_empty() {
            return Err(without_value);
        }
        let parts = cut::parts(plan, &self.planner, cuts)
            .map_err(|refusal| vec![errors::refusal(refusal, select)])?;
        let without_value = constants::check_parts(&parts, cuts, select);
        if !without_value.is_empty() {
            return Err(without_value);
        }
        for part in &parts {
            if let cut::Part::Windowed(part) = part {
                self.report(file, order::cuts_between_equals(&part.above, cuts, select));
            }
        }
        if sink.with.emit_every_ns.is_some() && parts.iter().any(|part| reads_sessions(part, cuts)) {
            let message = format!(
                "sink '{}' wants early results (emit_every), and a session's window is known when it is over",
                sink.name
            );
            let finding = Finding::error(errors::first_word(select), message);
            return Err(vec![finding.help("write sessions into a sink without emit_every")]);
        }
        Ok(Output { sink, parts })
    }

    /// The sink that an INSERT names; nothing to report when its declaration is wrong.
    fn sink(&self, insert: &Insert, within: &Query) -> Result<Table, Option<Finding>> {
        let TableObject::TableName(table) = &insert.table else {
            return Err(Some(Finding::error(insert.table.span(), "expected the name of a sink table")));
        };
        let Some((name, at)) = checks::last_name(table).filter(|_| table.0.len() == 1) else {
            return Err(Some(Finding::error(table.span(), "expected the name of a sink table")));
        };
        let sinks = || {
            let sinks = self.tables.iter().filter(|table| table.kind == TableKind::Sink);
            sinks.map(|table| table.name.as_str())
        };
        match self.planner.relations.get(&name) {
            Some(Relation::Table(table)) if table.kind == TableKind::Sink => {
                let writes = |query: &&Query| query.sinks().any(|sink| sink.name == name);
                match self.queries.iter().find(writes) {
                    _ if writes(&within) => {
                        let message = format!("sink '{name}' is written twice in this file");
                        Err(Some(Finding::error(at, message).help("write one INSERT with a UNION ALL")))
                    }
                    Some(other) => {
                        let message = format!("sink '{name}' is written by query '{}' already", other.name);
                        Err(Some(Finding::error(at, message).help("give each query a sink of its own")))
                    }
                    None => Ok(table.clone()),
                }
            }
            Some(Relation::Table(table)) => {
                let what = if table.is_static() {
                    "a static table; its file is read"
                } else {
                    "a source; ingest writes it"
                };
                let finding = Finding::error(at, format!("table '{name}' is {what}"));
                Err(Some(finding.help_nearest(&name, "sinks", sinks())))
            }
            Some(Relation::View(_)) => {
                Err(Some(Finding::error(at, format!("'{name}' is a view, not a sink"))))
            }
            Some(Relation::Broken) => Err(None),
            None => {
                let finding = Finding::error(at, format!("unknown table '{name}'"));
                Err(Some(finding.help_nearest(&name, "sinks", sinks())))
            }
        }
    }

    /// The query's analysed plan; findings are reported.
    fn plan(&mut self, file: &SqlFile, query: &SqlQuery) -> Option<LogicalPlan> {
        let checked = checks::check(query, &self.planner);
        let refused = checked.findings.iter().any(Finding::is_error);
        self.report(file, checked.findings);
        self.report(file, order::aggregates(query));
        if refused || checked.reads_broken {
            return None;
        }
        let mut rewritten = query.clone();
        rewrite::window_fields(&mut rewritten);
        rewrite::unique_outputs(&mut rewritten);
        let planned = self.planner.plan(rewritten);
        match planned.and_then(|plan| Ok((constants::check(&plan, query)?, plan))) {
            Ok((without_value, plan)) => {
                let fine = without_value.is_empty();
                self.report(file, without_value);
                fine.then_some(plan)
            }
            Err(error) => {
                self.report(file, [errors::finding(&error, query, !checked.reads_view)]);
                None
            }
        }
    }

    fn finish(self) -> Result<Program, Vec<Diagnostic>> {
        let mut diagnostics = self.diagnostics;
        diagnostics.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
        if diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error) {
            return Err(diagnostics);
        }
        Ok(Program {
            tables: self.tables,
            queries: self.queries,
            selects: self.selects,
            warnings: diagnostics,
        })
    }
}

fn reads_sessions(part: &cut::Part, cuts: &[cut::Cut]) -> bool {
    let cut::Part::Windowed(part) = part else { return false };
    part.cuts.iter().any(|cut| matches!(cuts[*cut].windowing, cut::Windowing::Session { .. }))
}

/// Two tables on one topic would mix their rows.
fn shares_topic(one: &Table, other: &Table) -> bool {
    one.is_in_the_log() && other.is_in_the_log() && one.topic == other.topic
}

/// Where the rows of a SELECT on its own go. It has no columns of its own: the plan's are not cast to any.
fn printed() -> Table {
    Table {
        name: "standard output".to_owned(),
        kind: TableKind::Sink,
        topic: String::new(),
        format: Format::Json,
        columns: vec![],
        watermark: None,
        key_field: None,
        options: BTreeMap::new(),
        with: TableOptions { connector: Connector::Stdout, ..TableOptions::default() },
    }
}

/// Whether the sink is that of a SELECT on its own.
fn is_printed(sink: &Table) -> bool {
    sink.columns.is_empty()
}

/// The file that declares a table.
pub fn declaring_file<'f>(files: &'f [SqlFile], table: &str) -> Option<&'f SqlFile> {
    files.iter().find(|file| {
        let (statements, _) = parse(&file.text);
        statements.iter().any(|statement| declared_name(statement).is_some_and(|name| name == table))
    })
}

fn declared_name(statement: &Statement) -> Option<String> {
    match &statement.kind {
        StatementKind::CreateTable(decl) => Some(catalog::normalized(&decl.name)),
        StatementKind::Broken(name) => Some(name.clone()),
        StatementKind::Other(other) => match other.as_ref() {
            SqlStatement::CreateView(view) => view_name(view),
            _ => None,
        },
    }
}

fn view_name(view: &CreateView) -> Option<String> {
    checks::last_name(&view.name).map(|(name, _)| name)
}

/// The file's name without `.sql`. It becomes part of addresses and of transactional ids.
fn query_name(file: &SqlFile) -> Result<String, Finding> {
    let stem = Path::new(&file.name).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if stem.is_empty() || stem.len() > 100 || !stem.chars().all(allowed) {
        let message = format!("the file's name gives the query's, and '{stem}' is none");
        let finding = Finding::error(start_of_text(), message);
        return Err(finding.help("name the file with letters, digits, '_', '-' and '.'"));
    }
    Ok(stem.to_owned())
}

fn select_of(insert: &Insert) -> Option<&SqlQuery> {
    let plain = insert.columns.is_empty()
        && insert.into
        && !insert.overwrite
        && insert.partitioned.is_none()
        && insert.on.is_none()
        && insert.returning.is_none()
        && insert.table_alias.is_none();
    insert.source.as_deref().filter(|_| plain)
}

/// The plan with its columns cast to the sink's, by position.
fn into_sink(
    plan: LogicalPlan,
    sink: &Table,
    select: &SqlQuery,
) -> Result<(LogicalPlan, Vec<Finding>), Vec<Finding>> {
    let columns = plan.schema().columns();
    if columns.len() != sink.columns.len() {
        let listed: Vec<String> =
            sink.columns.iter().map(|c| format!("{} {}", c.name, c.data_type.sql_name())).collect();
        let at = if columns.len() > sink.columns.len() {
            errors::output_column(select, sink.columns.len())
        } else {
            errors::first_word(select)
        };
        let message = format!(
            "the SELECT gives {} columns, table '{}' has {}",
            columns.len(),
            sink.name,
            sink.columns.len()
        );
        return Err(vec![Finding::error(at, message).help(format!("columns: {}", listed.join(", ")))]);
    }
    let mut exprs = Vec::new();
    let mut errors = Vec::new();
    let mut warnings = Vec::new();
    for (index, (column, target)) in columns.into_iter().zip(&sink.columns).enumerate() {
        let field = plan.schema().field(index);
        let (from, to) = (field.data_type(), arrow_type(target.data_type));
        let at = errors::output_column(select, index);
        if !is_assignable(from, &to) {
            errors.push(unassignable(at, from, &sink.name, target));
            continue;
        }
        if field.is_nullable() && !target.nullable {
            let message =
                format!("column '{}' of '{}' is NOT NULL, this may be null", target.name, sink.name);
            warnings.push(Finding::warning(at, message).help("a null would be written as null"));
        }
        let expr = Expr::Column(column);
        let cast = if *from == to { Ok(expr) } else { expr.cast_to(&to, plan.schema()) };
        match cast {
            Ok(expr) => exprs.push(expr.alias(&target.name)),
            Err(_) => errors.push(unassignable(at, from, &sink.name, target)),
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let built = LogicalPlanBuilder::from(plan).project(exprs).and_then(LogicalPlanBuilder::build);
    built.map(|plan| (plan, warnings)).map_err(|error| vec![errors::finding(&error, select, false)])
}

fn unassignable(at: Span, from: &DataType, sink: &str, target: &crate::reaction::table::Column) -> Finding {
    let to = target.data_type.sql_name();
    let message = format!("column '{}' of '{sink}' is {to}, this is {}", target.name, sql_name(from));
    Finding::error(at, message).help(match from {
        DataType::Struct(_) => "write window.start or window.end".to_owned(),
        _ => format!("columns go by position; put the right one here, or write CAST(… AS {to})"),
    })
}

/// What an INSERT casts by itself: within numbers, within times, anything to text. Text to numbers is a CAST to be
/// written: it can fail at any row.
fn is_assignable(from: &DataType, to: &DataType) -> bool {
    match to {
        _ if from == to || from.is_null() => true,
        DataType::Utf8 => !from.is_nested() && !from.is_binary() && can_cast_types(from, to),
        DataType::Timestamp(..) => {
            matches!(from, DataType::Timestamp(..) | DataType::Date32 | DataType::Date64)
        }
        DataType::List(to) => match from {
            DataType::List(from) => is_assignable(from.data_type(), to.data_type()),
            _ => false,
        },
        to if to.is_numeric() => from.is_numeric(),
        _ => false,
    }
}

fn sql_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "TEXT".to_owned(),
        DataType::Int32 => "INT".to_owned(),
        DataType::Int64 => "BIGINT".to_owned(),
        DataType::UInt32 => "INT UNSIGNED".to_owned(),
        DataType::UInt64 => "BIGINT UNSIGNED".to_owned(),
        DataType::Float32 => "FLOAT".to_owned(),
        DataType::Float64 => "DOUBLE".to_owned(),
        DataType::Boolean => "BOOLEAN".to_owned(),
        DataType::Timestamp(..) => "TIMESTAMP".to_owned(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "BYTEA".to_owned(),
        DataType::Decimal128(precision, scale) => format!("DECIMAL({precision}, {scale})"),
        DataType::List(item) | DataType::LargeList(item) => format!("{}[]", sql_name(item.data_type())),
        DataType::Struct(_) => "a window".to_owned(),
        other => other.to_string(),
    }
}
