//! Files → queries: each `INSERT` and each `SELECT` on its own, planned and cut at its windows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::sqlparser::ast::{
    Insert, Query as SqlQuery, Spanned, Statement as SqlStatement, TableObject,
};
use datafusion::sql::sqlparser::tokenizer::Span;

use super::{Build, Parsed};
use crate::reaction::table::{Connector, Format, Table, TableKind, TableOptions};
use crate::sql::assign::into_sink;
use crate::sql::diagnostic::{Finding, start_of_text};
use crate::sql::parse::StatementKind;
use crate::sql::planner::Relation;
use crate::sql::statics::{StaticRows, Step};
use crate::sql::{Output, Query, Select, SqlFile, checks, constants, cut, errors, order, statics};

impl Build {
    pub(super) fn queries(&mut self, files: &[Parsed<'_>]) {
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
        let mut query = empty(file.name.clone(), file);
        match self.output(file, printed(), select, plan, &mut query.cuts) {
            Ok(output) => {
                query.outputs.push(output);
                self.selects.push(Select { query: self.with_tables(query), columns });
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
        let mut query = empty(name, file);
        for (at, insert) in inserts {
            self.insert(file, *at, insert, &mut query);
        }
        if query.outputs.len() < inserts.len() {
            return; // something was reported
        }
        let query = self.with_tables(query);
        self.queries.push(query);
    }

    /// A query whose parts are all there, with the tables that these read.
    fn with_tables(&self, query: Query) -> Query {
        Query { sources: self.sources_of(&query), statics: self.statics_of(&query), ..query }
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
}

/// A query before its statements are planned.
fn empty(name: String, file: &SqlFile) -> Query {
    let text = file.text.clone();
    Query { name, text, sources: vec![], statics: vec![], cuts: vec![], outputs: vec![] }
}

fn reads_sessions(part: &cut::Part, cuts: &[cut::Cut]) -> bool {
    let cut::Part::Windowed(part) = part else { return false };
    part.cuts.iter().any(|cut| matches!(cuts[*cut].windowing, cut::Windowing::Session { .. }))
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
