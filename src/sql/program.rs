//! Files → [`Program`]: all tables first, then views, then one query per file.

mod queries;

use std::collections::BTreeSet;

use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::sqlparser::ast::{CreateView, Query as SqlQuery, Statement as SqlStatement};

use super::assign::{into_sink, is_assignable, sql_name};
use super::diagnostic::Finding;
use super::parse::{CreateTable, Statement, StatementKind, parse};
use super::planner::{Planner, Relation};
use super::{
    Diagnostic, Program, Query, Select, Severity, SqlFile, catalog, checks, constants, errors, generated,
    order, rewrite,
};
use crate::reaction::table::{Table, TableKind};

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

/// Two tables on one topic would mix their rows.
fn shares_topic(one: &Table, other: &Table) -> bool {
    one.is_in_the_log() && other.is_in_the_log() && one.topic == other.topic
}

pub(super) fn declared_name(statement: &Statement) -> Option<String> {
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
