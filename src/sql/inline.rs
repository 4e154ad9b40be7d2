//! What lies below the window, inlined: every column as an expression over the source table's own columns.
//!
//! Sub-selects, views and WHERE below the window are row by row, so that each can be written as expressions over a
//! record as it was read, and the engine needs no plan there. What is not row by row is refused.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, DFSchemaRef, Result};
use datafusion::logical_expr::utils::split_conjunction_owned;
use datafusion::logical_expr::{Expr, LogicalPlan};

use super::cut::WindowedRows;
use super::refusal::{Anchor, Refusal};
use super::statics::{Step, sides};

/// A plan of projections, filters and static joins over one table.
pub(crate) struct Inlined {
    /// The table's name; empty over the rows of a window.
    pub(crate) source: String,
    /// Its columns, as the expressions name them.
    pub(crate) source_schema: DFSchemaRef,
    /// The same and behind them what static joins add.
    pub(crate) row_schema: DFSchemaRef,
    /// Conjuncts and static joins, innermost first.
    pub(crate) steps: Vec<Step>,
    /// The plan's columns, in their order.
    pub(crate) columns: Vec<Expr>,
}

impl Inlined {
    /// All columns of a table.
    fn all(source: String, schema: &DFSchemaRef) -> Self {
        Self {
            source,
            source_schema: Arc::clone(schema),
            row_schema: Arc::clone(schema),
            steps: vec![],
            columns: schema.columns().into_iter().map(Expr::Column).collect(),
        }
    }
}

/// Inlines a plan without aggregates: one result per branch of its UNION ALLs.
pub(crate) fn inline(plan: &LogicalPlan) -> Result<Vec<Inlined>, Refusal> {
    match plan {
        LogicalPlan::TableScan(scan) => {
            Ok(vec![Inlined::all(scan.table_name.table().to_owned(), &scan.projected_schema)])
        }
        LogicalPlan::Extension(leaf) if leaf.node.as_any().is::<WindowedRows>() => {
            Ok(vec![Inlined::all(String::new(), plan.schema())])
        }
        LogicalPlan::Join(join) if let Some(sides) = sides(join) => {
            let mut branches = inline(sides.rows)?;
            branches.iter_mut().try_for_each(|inlined| sides.behind(inlined))?;
            Ok(branches)
        }
        LogicalPlan::SubqueryAlias(alias) => inline(&alias.input),
        LogicalPlan::Union(union) => {
            let branches: Vec<_> =
                union.inputs.iter().map(|input| inline(input)).collect::<Result<_, _>>()?;
            Ok(branches.into_iter().flatten().collect())
        }
        LogicalPlan::Projection(projection) => {
            let mut branches = inline(&projection.input)?;
            let schema = projection.input.schema();
            for inlined in &mut branches {
                let columns = projection.expr.iter().map(|expr| substitute(expr, schema, &inlined.columns));
                inlined.columns = columns.collect::<Result<_>>()?;
            }
            Ok(branches)
        }
        LogicalPlan::Filter(filter) => {
            let mut branches = inline(&filter.input)?;
            for inlined in &mut branches {
                let predicate = substitute(&filter.predicate, filter.input.schema(), &inlined.columns)?;
                inlined.steps.extend(split_conjunction_owned(predicate).into_iter().map(Step::Where));
            }
            Ok(branches)
        }
        other => Err(refused(other)),
    }
}

/// The expression with every column of `schema` replaced by the expression at its place, without aliases.
pub(crate) fn substitute(expr: &Expr, schema: &DFSchema, columns: &[Expr]) -> Result<Expr> {
    let replaced = expr.clone().transform_up(|expr| match expr {
        Expr::Column(column) => Ok(Transformed::yes(columns[schema.index_of_column(&column)?].clone())),
        Expr::Alias(alias) => Ok(Transformed::yes(*alias.expr)),
        other => Ok(Transformed::no(other)),
    })?;
    Ok(replaced.data)
}

fn refused(plan: &LogicalPlan) -> Refusal {
    let (what, help) = match plan {
        LogicalPlan::Window(_) => (
            "a function with OVER below the window",
            "group by a window first, then rank its rows in an outer SELECT",
        ),
        LogicalPlan::Sort(_) | LogicalPlan::Limit(_) => (
            "ORDER BY or LIMIT below the window",
            "put it behind a GROUP BY with a window, where it applies to each window",
        ),
        LogicalPlan::Join(_) => (
            "a join of reactions, which do not end,",
            "count each side in a window first, then join ON a.window = b.window; or join a table in a file without WATERMARK FOR",
        ),
        LogicalPlan::Unnest(_) => ("unnest below the window", "leave it out"),
        _ => ("this form of sub-select below the window", "write SELECT … FROM table WHERE …"),
    };
    let at = if matches!(plan, LogicalPlan::Join(_)) { Anchor::Join } else { Anchor::Innermost };
    Refusal { at, message: format!("{what} is not supported"), help: help.to_owned() }
}
