//! What a table is to a query: its declared columns in their order, those that are GENERATED computed row by row.
//!
//! Made as a SELECT over the table's physical columns, so that functions, types and places in the text are checked as in any
//! query, and inlined as a sub-select is.

use std::ops::ControlFlow;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::sqlparser::ast::{
    Expr, Function, Ident, Query as SqlQuery, SelectItem, SetExpr, Statement as SqlStatement, Visit, Visitor,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;

use super::catalog::normalized;
use super::checks::last_name;
use super::diagnostic::Finding;
use super::errors;
use super::functions::WindowCall;
use super::parse::CreateTable;
use super::planner::Planner;
use super::types::column_type;
use crate::reaction::schema::arrow_type;
use crate::reaction::table::{Column, ColumnSource, Table};

/// The SELECT that gives a table's declared columns, and the table as if they were its physical ones; `None` when they are.
///
/// # Errors
/// What is not computed row by row.
pub(crate) fn declared_columns(
    decl: &CreateTable,
    table: &Table,
    planner: &Planner,
) -> Result<Option<(SqlQuery, Table)>, Vec<Finding>> {
    let declared = || decl.columns.iter().map(|column| normalized(&column.name));
    if decl.columns.is_empty() && table.columns.iter().all(|column| column.source == ColumnSource::Record)
        || declared().eq(table.columns.iter().map(|column| column.name.clone()))
    {
        return Ok(None);
    }
    let mut items = Vec::new();
    let mut columns = Vec::new();
    let mut findings = Vec::new();
    for column in &decl.columns {
        let name = normalized(&column.name);
        if let Some((expr, at)) = &column.generated {
            findings.extend(not_row_wise(expr, planner));
            items.push(SelectItem::ExprWithAlias { expr: expr.clone(), alias: quoted(&name) });
            let data_type =
                column_type(&column.data_type, column.type_at).map_err(|finding| vec![finding])?;
            let source = ColumnSource::Record;
            columns.push(Column { name, data_type, nullable: !column.not_null, default: None, source });
            if matches!(expr, Expr::Identifier(ident) if normalized(ident) == normalized(&column.name)) {
                findings.push(Finding::error(*at, "a generated column cannot be made of itself"));
            }
        } else if let Some((_, physical)) = table.column(&name) {
            items.push(SelectItem::UnnamedExpr(Expr::Identifier(quoted(&name))));
            columns.push(physical.clone());
        }
    }
    if decl.columns.is_empty() {
        // An impulse: all but the implied event time.
        for column in table.record_columns() {
            items.push(SelectItem::UnnamedExpr(Expr::Identifier(quoted(&column.name))));
            columns.push(column.clone());
        }
    }
    if !findings.is_empty() {
        return Err(findings);
    }
    Ok(select(&table.name, items).map(|query| (query, Table { columns, ..table.clone() })))
}

/// Columns whose expression is of another type than they are declared, at their expressions.
pub(crate) fn mistyped(
    plan: &LogicalPlan,
    declared: &Table,
    query: &SqlQuery,
    is_assignable: impl Fn(&DataType, &DataType) -> bool,
    sql_name: impl Fn(&DataType) -> String,
) -> Vec<Finding> {
    let pairs = plan.schema().fields().iter().zip(&declared.columns).enumerate();
    let wrong =
        pairs.filter(|(_, (field, column))| !is_assignable(field.data_type(), &arrow_type(column.data_type)));
    let finding = |(index, (field, column)): (usize, (&FieldRef, &Column))| {
        let (found, expected) = (sql_name(field.data_type()), column.data_type.sql_name());
        let message = format!("column '{}' is declared {expected}, this is {found}", column.name);
        let finding = Finding::error(errors::output_column(query, index), message);
        finding.help(format!("declare it {found}, or write CAST(… AS {expected})"))
    };
    wrong.map(finding).collect()
}

fn quoted(name: &str) -> Ident {
    Ident::with_quote('"', name)
}

/// `SELECT items FROM table`, parsed rather than built: the tree has some forty fields that do not matter here.
fn select(table: &str, items: Vec<SelectItem>) -> Option<SqlQuery> {
    let text = format!("SELECT 1 FROM {}", quoted(table));
    let statement = Parser::parse_sql(&GenericDialect {}, &text).ok()?.pop()?;
    let SqlStatement::Query(mut query) = statement else { return None };
    let SetExpr::Select(select) = query.body.as_mut() else { return None };
    select.projection = items;
    Some(*query)
}

/// Calls of functions that look at more than one row, at their places.
fn not_row_wise(expr: &Expr, planner: &Planner) -> Vec<Finding> {
    struct Calls<'a>(&'a Planner, Vec<Finding>);
    impl Calls<'_> {
        fn function(&mut self, function: &Function) {
            let Some((name, at)) = last_name(&function.name) else { return };
            let functions = &self.0.functions;
            let many_rows = functions.aggregate.contains_key(&name) || functions.window.contains_key(&name);
            if WindowCall::named(&name).is_some()
                || function.over.is_some()
                || many_rows && !functions.scalar.contains_key(&name)
            {
                let finding = Finding::error(
                    at,
                    format!("a generated column is computed row by row, without {name}()"),
                );
                self.1.push(finding.help("compute it in a query"));
            }
        }
    }
    impl Visitor for Calls<'_> {
        type Break = std::convert::Infallible;
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<Self::Break> {
            if let Expr::Function(function) = expr {
                self.function(function);
            }
            ControlFlow::Continue(())
        }
    }
    let mut calls = Calls(planner, vec![]);
    let ControlFlow::Continue(()) = expr.visit(&mut calls);
    calls.1
}
