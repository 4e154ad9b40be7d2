//! Constant parts of a query, evaluated when it is planned: what cannot be would only fail at the first window.

use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Schema};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, DataFusionError, Result, ScalarValue};
use datafusion::logical_expr::execution_props::ExecutionProps;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};
use datafusion::physical_expr::create_physical_expr;
use datafusion::sql::sqlparser::ast::{Expr as SqlExpr, Query, Spanned, Value, visit_expressions};
use datafusion::sql::sqlparser::tokenizer::Span;

use super::cut::{Cut, Part};
use super::diagnostic::Finding;
use super::errors;
use super::statics::Step;

/// The constant parts of a plan that have no value, each at its place in the query.
pub(crate) fn check(plan: &LogicalPlan, query: &Query) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    plan.apply(|node| {
        node.apply_expressions(|expr| {
            findings.extend(failing(expr).map(|(part, error)| finding(&part, &error, query)));
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    findings.dedup();
    Ok(findings)
}

/// The same in expressions over a source's columns or a window's: there a constant may have come from a sub-select.
pub(crate) fn check_parts(parts: &[Part], cuts: &[Cut], query: &Query) -> Vec<Finding> {
    let of_inputs = cuts.iter().flat_map(|cut| &cut.inputs);
    let of_inputs =
        of_inputs.flat_map(|input| of_steps(&input.steps).chain(&input.keys).chain(&input.aggregates));
    let of_parts = parts.iter().filter_map(|part| match part {
        Part::Windowed(part) => {
            part.row_by_row.as_ref().map(|rows| of_steps(&rows.steps).chain(&rows.columns))
        }
        Part::RowWise(rows) => Some(of_steps(&rows.steps).chain(&rows.columns)),
    });
    let failed = of_inputs.chain(of_parts.flatten()).filter_map(failing);
    let mut findings: Vec<Finding> = failed.map(|(part, error)| finding(&part, &error, query)).collect();
    findings.dedup();
    findings
}

fn of_steps(steps: &[Step]) -> impl Iterator<Item = &Expr> {
    steps.iter().flat_map(Step::exprs)
}

fn finding(part: &Expr, error: &DataFusionError, query: &Query) -> Finding {
    let message = format!("this constant has no value: {}", errors::reason(error));
    let at = place(part, query).unwrap_or_else(|| errors::first_word(query));
    Finding::error(at, message).help(match part {
        Expr::Cast(cast) => match cast.field.data_type() {
            DataType::Timestamp(..) => "write a time as '2026-01-31T18:30:00Z'",
            DataType::Date32 | DataType::Date64 => "write a date as '2026-01-31'",
            _ => "write a value of the type that is needed here",
        },
        _ => "write a constant that can be computed",
    })
}

/// The smallest constant part of the expression that has no value, and why.
fn failing(expr: &Expr) -> Option<(Expr, DataFusionError)> {
    let failed = if is_constant(expr) { Some(evaluate(expr).err()?) } else { None };
    let mut smaller = None;
    let visited = expr.apply_children(|child| {
        smaller = failing(child);
        Ok(if smaller.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    debug_assert!(visited.is_ok(), "looking at the parts does not fail");
    smaller.or_else(|| failed.map(|error| (expr.clone(), error)))
}

/// Whether it is computed from literals alone.
fn is_constant(expr: &Expr) -> bool {
    let computed = |expr: &Expr| match expr {
        Expr::ScalarFunction(function) => function.func.signature().volatility == Volatility::Immutable,
        Expr::Literal(..)
        | Expr::Alias(_)
        | Expr::BinaryExpr(_)
        | Expr::Like(_)
        | Expr::SimilarTo(_)
        | Expr::Not(_)
        | Expr::IsNotNull(_)
        | Expr::IsNull(_)
        | Expr::IsTrue(_)
        | Expr::IsFalse(_)
        | Expr::IsUnknown(_)
        | Expr::IsNotTrue(_)
        | Expr::IsNotFalse(_)
        | Expr::IsNotUnknown(_)
        | Expr::Negative(_)
        | Expr::Between(_)
        | Expr::Case(_)
        | Expr::Cast(_)
        | Expr::TryCast(_)
        | Expr::InList(_) => true,
        _ => false,
    };
    // The closure never fails.
    !expr.exists(|part| Ok(!computed(part))).unwrap_or(true)
}

fn evaluate(expr: &Expr) -> Result<()> {
    let (props, context) = (ExecutionProps::new(), PhysicalPlanningContext::default());
    let compiled = create_physical_expr(expr, &DFSchema::empty(), &props, &context)?;
    let one_row = RecordBatchOptions::new().with_row_count(Some(1));
    let one_row = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &one_row)?;
    compiled.evaluate(&one_row).map(drop)
}

/// Where the query says it: the smallest expression with the same literals.
fn place(part: &Expr, query: &Query) -> Option<Span> {
    let mut wanted = Vec::new();
    let visited = part.apply(|expr| {
        if let Expr::Literal(value, _) = expr {
            wanted.extend(written(value));
        }
        Ok(TreeNodeRecursion::Continue)
    });
    debug_assert!(visited.is_ok(), "collecting literals does not fail");
    let mut found: Vec<Span> = Vec::new();
    let ControlFlow::Continue(()) = visit_expressions(query, |expr| {
        if !wanted.is_empty() && literals(expr) == wanted {
            found.push(expr.span());
        }
        ControlFlow::<std::convert::Infallible>::Continue(())
    });
    let size = |span: &Span| (span.end.line - span.start.line, span.end.column.abs_diff(span.start.column));
    found.into_iter().filter(|span| *span != Span::empty()).min_by_key(size)
}

fn written(value: &ScalarValue) -> Option<String> {
    match value {
        value if value.is_null() => None,
        ScalarValue::Utf8(text) | ScalarValue::LargeUtf8(text) | ScalarValue::Utf8View(text) => text.clone(),
        value if value.data_type().is_numeric() => Some(value.to_string().trim_start_matches('-').to_owned()),
        _ => None,
    }
}

/// The literals of an expression, in the order of the text.
fn literals(expr: &SqlExpr) -> Vec<String> {
    let mut literals = Vec::new();
    let ControlFlow::Continue(()) = visit_expressions(expr, |expr| {
        if let SqlExpr::Value(value) = expr {
            literals.extend(match &value.value {
                Value::Number(number, _) => Some(number.clone()),
                Value::SingleQuotedString(text) => Some(text.clone()),
                _ => None,
            });
        }
        ControlFlow::<std::convert::Infallible>::Continue(())
    });
    literals
}
