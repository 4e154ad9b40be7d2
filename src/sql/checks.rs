//! What a query may not say, found in its syntax tree before it is planned: there every part has its place.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use datafusion::logical_expr::Volatility;
use datafusion::sql::sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, ObjectName, Query, Select, SetExpr,
    SetOperator, Spanned, TableFactor, Visit, Visitor,
};
use datafusion::sql::sqlparser::tokenizer::Span;

use super::catalog::normalized;
use super::diagnostic::Finding;
use super::functions::WindowCall;
use super::planner::{Planner, Relation};
use crate::reaction::table::TableKind;

/// What the syntax tree alone tells of a query.
pub(crate) struct Checked {
    /// What is wrong with it.
    pub(crate) findings: Vec<Finding>,
    /// It reads a table or view that is declared wrongly: planning it would report that again.
    pub(crate) reads_broken: bool,
    /// It reads a view, whose places in the text are another file's.
    pub(crate) reads_view: bool,
}

/// Checks a query's names, functions and forms.
pub(crate) fn check(query: &Query, planner: &Planner) -> Checked {
    let mut visitor = Checks {
        planner,
        ctes: BTreeSet::new(),
        checked: Checked { findings: vec![], reads_broken: false, reads_view: false },
    };
    // The visitor never breaks.
    let ControlFlow::Continue(()) = query.visit(&mut visitor);
    visitor.checked
}

/// The names that a query reads, common table expressions left out.
pub(crate) fn relations_read(query: &Query) -> Vec<String> {
    struct Names(BTreeSet<String>, Vec<String>);
    impl Visitor for Names {
        type Break = std::convert::Infallible;
        fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Self::Break> {
            self.0.extend(cte_names(query));
            ControlFlow::Continue(())
        }
        fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<Self::Break> {
            self.1.extend(last_name(relation).map(|(name, _)| name));
            ControlFlow::Continue(())
        }
    }
    let mut names = Names(BTreeSet::new(), vec![]);
    let ControlFlow::Continue(()) = query.visit(&mut names);
    names.1.retain(|name| !names.0.contains(name));
    names.1
}

/// The last part of a possibly qualified name, and where it stands.
pub(crate) fn last_name(name: &ObjectName) -> Option<(String, Span)> {
    let ident = name.0.last()?.as_ident()?;
    Some((normalized(ident), ident.span))
}

fn cte_names(query: &Query) -> impl Iterator<Item = String> {
    query.with.iter().flat_map(|with| with.cte_tables.iter().map(|cte| normalized(&cte.alias.name)))
}

struct Checks<'a> {
    planner: &'a Planner,
    ctes: BTreeSet<String>,
    checked: Checked,
}

impl Checks<'_> {
    fn refuse(&mut self, at: Span, message: impl Into<String>, help: &str) {
        self.checked.findings.push(Finding::error(at, message).help(help));
    }

    fn relation(&mut self, name: &ObjectName) {
        let Some((table, at)) = last_name(name) else { return };
        if name.0.len() > 1 {
            self.refuse(at, format!("'{name}': there are no schemas"), "write the table's name alone");
            return;
        }
        if self.ctes.contains(&table) {
            return;
        }
        match self.planner.relations.get(&table) {
            Some(Relation::Table(found)) if found.kind == TableKind::Sink => {
                self.refuse(
                    at,
                    format!("'{table}' is a sink; a query that reads one is not supported yet"),
                    "read the source table, and repeat the sink's SELECT as a sub-select",
                );
            }
            Some(Relation::Table(_)) => {}
            Some(Relation::View(_)) => self.checked.reads_view = true,
            Some(Relation::Broken) => self.checked.reads_broken = true,
            None => {
                let readable = self.planner.relations.iter().filter(|(_, relation)| {
                    !matches!(relation, Relation::Table(table) if table.kind == TableKind::Sink)
                });
                let names = readable.map(|(name, _)| name.as_str());
                let finding = Finding::error(at, format!("unknown table '{table}'"));
                self.checked.findings.push(finding.help_nearest(&table, "tables", names));
            }
        }
    }

    fn function(&mut self, function: &Function) {
        let Some((name, at)) = last_name(&function.name) else { return };
        let functions = &self.planner.functions;
        if let Some(call) = WindowCall::named(&name) {
            self.window_call(call, function, at);
        } else if let Some(scalar) = functions.scalar.get(&name)
            && scalar.signature().volatility != Volatility::Immutable
        {
            let message =
                format!("{name}() differs from run to run, so results could not be repeated after a crash");
            self.refuse(at, message, "use the window's time, window.start or window.end, or a column");
        } else if !functions.contains(&name) {
            let finding = Finding::error(at, format!("unknown function '{name}'"));
            self.checked.findings.push(finding.help_nearest(&name, "functions", functions.names()));
        }
    }

    fn window_call(&mut self, call: WindowCall, function: &Function, at: Span) {
        let arguments = match &function.args {
            FunctionArguments::List(list) => list.args.as_slice(),
            _ => &[],
        };
        for argument in arguments {
            if let FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(value))) = argument {
                let message = format!("{call} takes INTERVALs, found {value}");
                return self.refuse(value.span, message, call.example());
            }
        }
        if arguments.len() != call.arguments().len() {
            let expected = call.arguments().join(" and the window's ");
            let message =
                format!("{call} takes the window's {expected}, found {} arguments", arguments.len());
            self.refuse(at, message, call.example());
        }
        if function.over.is_some() {
            let message = format!("{call} divides time for GROUP BY; it takes no OVER");
            self.refuse(at, message, call.example());
        }
    }

    fn from(&mut self, select: &Select) {
        if let Some(second) = select.from.get(1) {
            let help = "write JOIN … ON a.window = b.window AND …";
            self.refuse(second.relation.span(), "a list of tables in FROM is not supported", help);
        }
        if select.from.is_empty() {
            self.refuse(select.span(), "a SELECT needs a FROM", "read a source table");
        }
    }
}

impl Visitor for Checks<'_> {
    type Break = std::convert::Infallible;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Self::Break> {
        self.ctes.extend(cte_names(query));
        if let Some(with) = query.with.as_ref().filter(|with| with.recursive) {
            self.refuse(with.with_token.0.span, "WITH RECURSIVE is not supported", "write WITH alone");
        }
        match query.body.as_ref() {
            SetExpr::Select(_) | SetExpr::Query(_) => {}
            SetExpr::SetOperation { op: SetOperator::Union, .. } => {}
            SetExpr::SetOperation { op, right, .. } => {
                self.refuse(right.span(), format!("{op} is not supported"), "write a join, or WHERE");
            }
            other => self.refuse(other.span(), "only SELECT is supported here", "write a SELECT"),
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<Self::Break> {
        self.from(select);
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<Self::Break> {
        self.relation(relation);
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<Self::Break> {
        match factor {
            TableFactor::Table { args: None, .. }
            | TableFactor::Derived { lateral: false, .. }
            | TableFactor::NestedJoin { .. } => {}
            other => {
                let help = "read a table, a view or a sub-select";
                self.refuse(other.span(), "this form of FROM is not supported", help);
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<Self::Break> {
        match expr {
            Expr::Function(function) => self.function(function),
            Expr::Subquery(_) | Expr::InSubquery { .. } | Expr::Exists { .. } => {
                let help = "compute it in a sub-select in FROM";
                self.refuse(expr.span(), "a sub-select inside an expression is not supported yet", help);
            }
            Expr::Interval(interval) if !self.planner.is_readable_interval(expr) => {
                let help = "write INTERVAL '2 seconds'";
                self.refuse(expr.span(), format!("{interval} is no interval"), help);
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}
