//! What depends on the order in which rows come: said of a query, and not refused.
//!
//! Aggregates that keep an order are found in the syntax tree. What cuts between rows (`row_number() … <= n`, LIMIT) is
//! found in the plan above the cut, where it is known what tells the rows of a window apart: their group keys.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use datafusion::common::Column;
use datafusion::logical_expr::expr::Sort;
use datafusion::logical_expr::logical_plan::{Distinct, Join};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{BinaryExpr, Expr, LogicalPlan, Operator};
use datafusion::sql::sqlparser::ast::{
    Expr as SqlExpr, Function, FunctionArgumentClause, FunctionArguments, LimitClause, Query, Spanned, Visit,
    Visitor, WindowType, visit_expressions,
};
use datafusion::sql::sqlparser::tokenizer::Span;

use super::checks::last_name;
use super::cut::{Cut, WindowedRows};
use super::diagnostic::Finding;
use super::errors;

/// Aggregates whose result depends on the order of their rows.
pub(crate) const IN_ORDER: [&str; 5] = ["array_agg", "first_value", "last_value", "nth_value", "string_agg"];

/// Functions with OVER that tell rows apart which their ORDER BY does not. `rank` and its like do not.
const APART: [&str; 7] = ["row_number", "ntile", "lag", "lead", "first_value", "last_value", "nth_value"];

/// Warns of aggregates that take rows in the order in which they come.
pub(crate) fn aggregates(query: &Query) -> Vec<Finding> {
    let mut findings = Vec::new();
    let ControlFlow::Continue(()) = visit_expressions(query, |expr| {
        if let SqlExpr::Function(function) = expr
            && function.over.is_none()
            && !is_ordered(function)
            && let Some((name, at)) = last_name(&function.name)
            && IN_ORDER.contains(&name.as_str())
        {
            let message = format!(
                "{name} without ORDER BY takes rows in the order in which they come, which may differ from run to run"
            );
            let help = format!("write {name}(… ORDER BY …)");
            findings.push(Finding::warning(at, message).help(help));
        }
        ControlFlow::<std::convert::Infallible>::Continue(())
    });
    findings
}

fn is_ordered(function: &Function) -> bool {
    match &function.args {
        FunctionArguments::List(list) => {
            list.clauses.iter().any(|clause| matches!(clause, FunctionArgumentClause::OrderBy(_)))
        }
        _ => false,
    }
}

/// Warns of what cuts between rows of a window that its ORDER BY does not tell apart.
pub(crate) fn cuts_between_equals(above: &LogicalPlan, cuts: &[Cut], query: &Query) -> Vec<Finding> {
    let limits = limits(query).into_iter();
    let mut pass = Pass { cuts, query, names: Vec::new(), findings: Vec::new(), limits };
    pass.rows(above);
    pass.findings
}

/// What a column tells of its row.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tells {
    /// What is the same for all rows of a window.
    Window,
    /// The key of that number.
    Key(usize),
    /// Something else.
    Other,
}

/// The rows that a node gives for one window.
struct Rows {
    columns: Vec<(Column, Tells)>,
    /// No two rows have the same values of all these.
    keys: BTreeSet<usize>,
    /// Those of the keys that the rows' order leaves open: all where there is none.
    open: BTreeSet<usize>,
}

impl Rows {
    fn of(&self, expr: &Expr) -> Tells {
        match expr {
            Expr::Alias(alias) => self.of(&alias.expr),
            Expr::Column(column) => self.place(column).map_or(Tells::Other, |place| self.columns[place].1),
            Expr::ScalarFunction(function) if function.func.name() == "coalesce" => {
                let mut tells = function.args.iter().map(|arg| self.of(arg));
                let first = tells.next().unwrap_or(Tells::Other);
                if tells.all(|tells| tells == first) { first } else { Tells::Other }
            }
            other => {
                let is_window = |column: &Column| {
                    self.place(column).is_some_and(|place| self.columns[place].1 == Tells::Window)
                };
                if other.column_refs().into_iter().all(is_window) { Tells::Window } else { Tells::Other }
            }
        }
    }

    fn place(&self, column: &Column) -> Option<usize> {
        let is_it = |(known, _): &(Column, Tells)| {
            known.name == column.name && (column.relation.is_none() || known.relation == column.relation)
        };
        self.columns.iter().position(is_it)
    }

    /// The keys that an order by these leaves open. None when they name every column: rows that are the same throughout
    /// need not be told apart.
    fn left_open<'e>(&self, exprs: impl Iterator<Item = &'e Expr>) -> BTreeSet<usize> {
        let (mut told, mut named) = (BTreeSet::new(), BTreeSet::new());
        for expr in exprs {
            if let Tells::Key(key) = self.of(expr) {
                told.insert(key);
            }
            if let Expr::Column(column) = unaliased(expr) {
                named.extend(self.place(column));
            }
        }
        let is_told = |(place, (_, tells)): (usize, &(Column, Tells))| {
            *tells == Tells::Window || named.contains(&place)
        };
        if self.columns.iter().enumerate().all(is_told) {
            return BTreeSet::new();
        }
        self.keys.difference(&told).copied().collect()
    }

    /// The same rows with these columns.
    fn seen_as(self, plan: &LogicalPlan, tells: Vec<Tells>) -> Self {
        Self { columns: plan.schema().columns().into_iter().zip(tells).collect(), ..self }
    }
}

fn unaliased(expr: &Expr) -> &Expr {
    match expr {
        Expr::Alias(alias) => unaliased(&alias.expr),
        other => other,
    }
}

struct Pass<'a> {
    cuts: &'a [Cut],
    query: &'a Query,
    /// Of the keys, by number.
    names: Vec<String>,
    findings: Vec<Finding>,
    /// Where the LIMITs stand, the outermost first.
    limits: std::vec::IntoIter<Span>,
}

impl Pass<'_> {
    fn rows(&mut self, plan: &LogicalPlan) -> Rows {
        match plan {
            LogicalPlan::Limit(limit) => {
                let at = self.limits.next();
                let rows = self.rows(&limit.input);
                self.warn(
                    at,
                    "this LIMIT cuts between rows that are equal in the ORDER BY",
                    &rows.open,
                    &rows,
                );
                rows
            }
            LogicalPlan::Sort(sort) => {
                let rows = self.rows(&sort.input);
                Rows { open: rows.left_open(sort.expr.iter().map(|by| &by.expr)), ..rows }
            }
            LogicalPlan::SubqueryAlias(alias) => {
                let rows = self.rows(&alias.input);
                let tells = rows.columns.iter().map(|(_, tells)| *tells).collect();
                rows.seen_as(plan, tells)
            }
            LogicalPlan::Projection(projection) => {
                let rows = self.rows(&projection.input);
                let tells = projection.expr.iter().map(|expr| rows.of(expr)).collect();
                rows.seen_as(plan, tells)
            }
            LogicalPlan::Filter(filter) => filtered(self.rows(&filter.input), &filter.predicate),
            LogicalPlan::Window(window) => {
                let mut rows = self.rows(&window.input);
                window.window_expr.iter().for_each(|expr| self.check_over(expr, &rows));
                let added = plan.schema().columns().into_iter().skip(rows.columns.len());
                rows.columns.extend(added.map(|column| (column, Tells::Other)));
                rows
            }
            LogicalPlan::Aggregate(aggregate) => {
                let input = self.rows(&aggregate.input);
                let tells = aggregate.group_expr.iter().map(|expr| input.of(expr)).collect();
                self.told_apart_by(plan, tells)
            }
            LogicalPlan::Distinct(Distinct::All(input)) => {
                let tells = self.rows(input).columns.into_iter().map(|(_, tells)| tells).collect();
                self.told_apart_by(plan, tells)
            }
            LogicalPlan::Join(join) => joined(join, self.rows(&join.left), self.rows(&join.right)),
            LogicalPlan::Union(union) => {
                let branches: Vec<Rows> = union.inputs.iter().map(|input| self.rows(input)).collect();
                let of_all = |place: usize| {
                    let is_window =
                        |rows: &Rows| rows.columns.get(place).is_some_and(|c| c.1 == Tells::Window);
                    if branches.iter().all(is_window) { Tells::Window } else { Tells::Other }
                };
                let tells = (0..plan.schema().fields().len()).map(of_all).collect();
                self.told_apart_by(plan, tells)
            }
            // Static rows come in the order of their file: with no columns of their own as keys.
            LogicalPlan::Extension(leaf) => {
                let leaf = leaf.node.as_any().downcast_ref::<WindowedRows>();
                let cut = leaf.and_then(|rows| self.cuts.get(rows.cut));
                let key =
                    |cut: &Cut, place| if place == cut.window_index { Tells::Window } else { Tells::Other };
                let tells = cut.map_or(vec![], |cut| (0..=cut.keys()).map(|place| key(cut, place)).collect());
                self.told_apart_by(plan, tells)
            }
            other => self.told_apart_by(other, vec![Tells::Other; other.schema().fields().len()]),
        }
    }

    /// Rows that their first columns tell apart: one that is no key yet becomes one.
    fn told_apart_by(&mut self, plan: &LogicalPlan, tells: Vec<Tells>) -> Rows {
        let mut keys = BTreeSet::new();
        let mut columns = Vec::new();
        for (place, column) in plan.schema().columns().into_iter().enumerate() {
            let tells = match tells.get(place) {
                None => Tells::Other,
                Some(Tells::Other) => {
                    self.names.push(column.name.clone());
                    Tells::Key(self.names.len() - 1)
                }
                Some(known) => *known,
            };
            if let Tells::Key(key) = tells {
                keys.insert(key);
            }
            columns.push((column, tells));
        }
        Rows { columns, open: keys.clone(), keys }
    }

    fn check_over(&mut self, expr: &Expr, rows: &Rows) {
        let Expr::WindowFunction(function) = unaliased(expr) else { return };
        let (name, params) = (function.fun.name(), &function.params);
        if APART.contains(&name) {
            let order = params.order_by.iter().map(|by| &by.expr);
            let open = rows.left_open(params.partition_by.iter().chain(order));
            let what = format!("{name}() tells rows apart that are equal in its ORDER BY");
            self.warn(over(self.query, name, &params.order_by), &what, &open, rows);
        }
    }

    fn warn(&mut self, at: Option<Span>, what: &str, open: &BTreeSet<usize>, rows: &Rows) {
        if open.is_empty() {
            return;
        }
        let shown = |key: &usize| {
            let column = rows.columns.iter().find(|(_, tells)| *tells == Tells::Key(*key));
            column.map_or(self.names[*key].as_str(), |(column, _)| column.name.as_str())
        };
        let added: Vec<&str> = open.iter().map(shown).collect();
        let message = format!("{what}: which of them comes first may differ from run to run");
        let finding = Finding::warning(at.unwrap_or_else(|| errors::first_word(self.query)), message);
        self.findings.push(finding.help(format!("end the ORDER BY with {}", added.join(", "))));
    }
}

/// A column that is compared with a constant tells rows apart no more.
fn filtered(mut rows: Rows, predicate: &Expr) -> Rows {
    for condition in split_conjunction(predicate) {
        if let Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) = condition
            && let (Tells::Key(key), Expr::Literal(..)) = (rows.of(left), right.as_ref())
        {
            rows.keys.remove(&key);
            rows.open.remove(&key);
        }
    }
    rows
}

/// The keys of both sides tell the rows of a join apart; those that are equal are one.
fn joined(join: &Join, left: Rows, right: Rows) -> Rows {
    let columns = left.columns.into_iter().chain(right.columns).collect();
    let keys: BTreeSet<usize> = left.keys.into_iter().chain(right.keys).collect();
    let mut rows = Rows { columns, open: BTreeSet::new(), keys };
    let in_filter = join.filter.iter().flat_map(split_conjunction).filter_map(|condition| match condition {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => {
            Some((left.as_ref(), right.as_ref()))
        }
        _ => None,
    });
    for (a, b) in join.on.iter().map(|(a, b)| (a, b)).chain(in_filter) {
        if let (Tells::Key(a), Tells::Key(b)) = (rows.of(a), rows.of(b))
            && a != b
        {
            rows.keys.remove(&b);
            rows.keys.insert(a);
            let same = rows.columns.iter_mut().filter(|(_, tells)| *tells == Tells::Key(b));
            same.for_each(|(_, tells)| *tells = Tells::Key(a));
        }
    }
    Rows { open: rows.keys.clone(), ..rows }
}

/// Where the query's LIMITs stand, the outermost first.
fn limits(query: &Query) -> Vec<Span> {
    struct Limits(Vec<Span>);
    impl Visitor for Limits {
        type Break = std::convert::Infallible;
        fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Self::Break> {
            let limit = match &query.limit_clause {
                Some(LimitClause::LimitOffset { limit, offset, .. }) => {
                    limit.as_ref().or(offset.as_ref().map(|offset| &offset.value))
                }
                Some(LimitClause::OffsetCommaLimit { limit, .. }) => Some(limit),
                None => None,
            };
            self.0.extend(limit.map(Spanned::span));
            ControlFlow::Continue(())
        }
    }
    let mut limits = Limits(vec![]);
    let ControlFlow::Continue(()) = query.visit(&mut limits);
    limits.0
}

/// Where the query calls that function with OVER and an ORDER BY of those columns.
fn over(query: &Query, name: &str, order_by: &[Sort]) -> Option<Span> {
    let columns = |exprs: &[Sort]| -> Vec<String> {
        let names = exprs.iter().flat_map(|by| by.expr.column_refs());
        names.map(|column| column.name.to_lowercase()).collect()
    };
    let wanted = columns(order_by);
    let mut found = Vec::new();
    let ControlFlow::Continue(()) = visit_expressions(query, |expr| {
        if let SqlExpr::Function(Function { name: called, over: Some(WindowType::WindowSpec(spec)), .. }) =
            expr
            && let Some((called, at)) = last_name(called)
            && called == name
        {
            let mut ordered = Vec::new();
            for by in &spec.order_by {
                let ControlFlow::Continue(()) = visit_expressions(&by.expr, |expr| {
                    match expr {
                        SqlExpr::Identifier(ident) => ordered.push(ident.value.to_lowercase()),
                        SqlExpr::CompoundIdentifier(parts) => {
                            ordered.extend(parts.last().map(|ident| ident.value.to_lowercase()));
                        }
                        _ => {}
                    }
                    ControlFlow::<std::convert::Infallible>::Continue(())
                });
            }
            found.push((ordered == wanted, at));
        }
        ControlFlow::<std::convert::Infallible>::Continue(())
    });
    let same = found.iter().find(|(is_same, _)| *is_same).or(found.first());
    same.map(|(_, at)| *at)
}
