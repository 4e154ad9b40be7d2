//! The plan above the cut, kept within windows.
//!
//! It is run for one window at a time. So whatever looks at several rows (GROUP BY, DISTINCT, OVER) must stay within a window by
//! the text, too; otherwise the text would say one thing and the engine do another. And a GROUP BY may repeat the window call:
//! there it stands for the window's column.

use std::sync::Arc;

use datafusion::common::DFSchema;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::logical_plan::Distinct;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;

use super::cut::{Anchor, Refusal, Tumble, WindowedRows, calls_tumble, refuse, width_ns};
use super::functions::tumble_argument;

/// What a column tells of the window of its row.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tells {
    /// Nothing.
    Nothing,
    /// The window, by its start or its end.
    Part,
    /// It is the window.
    Window,
}

/// The plan with repeated window calls replaced by the window's column; refuses what would mix windows.
pub(crate) fn within_windows(
    plan: LogicalPlan,
    window_index: usize,
    window: Tumble,
    simplifier: &ExprSimplifier,
) -> Result<LogicalPlan, Refusal> {
    Above { window_index, window, simplifier }.resolve(plan).map(|(plan, _)| plan)
}

struct Above<'a> {
    window_index: usize,
    window: Tumble,
    simplifier: &'a ExprSimplifier,
}

impl Above<'_> {
    /// The node over its resolved input, and what its columns tell.
    fn resolve(&self, plan: LogicalPlan) -> Result<(LogicalPlan, Vec<Tells>), Refusal> {
        let inputs = plan.inputs();
        let input = match inputs.as_slice() {
            [] => return self.leaf(plan),
            [input] => (*input).clone(),
            _ => {
                return refuse(
                    Anchor::Query,
                    "joins and unions are not supported yet",
                    "read one table in FROM",
                );
            }
        };
        let calls = plan.expressions().iter().any(calls_tumble);
        let before = Arc::clone(input.schema());
        let (input, known) = self.resolve(input)?;
        let plan = if calls {
            let exprs = plan.expressions().into_iter();
            let names = NamePreserver::new(&plan);
            let resolved = exprs.map(|expr| {
                let name = names.save(&expr);
                Ok(name.restore(self.without_calls(expr, &before, &known)?))
            });
            let exprs = resolved.collect::<Result<Vec<_>, Refusal>>()?;
            plan.with_new_exprs(exprs, vec![input])?
        } else {
            plan.with_new_exprs(plan.expressions(), vec![input])?
        };
        let tells = tells(&plan, &before, known)?;
        Ok((plan, tells))
    }

    fn leaf(&self, plan: LogicalPlan) -> Result<(LogicalPlan, Vec<Tells>), Refusal> {
        match &plan {
            LogicalPlan::Extension(leaf) if leaf.node.as_any().is::<WindowedRows>() => {
                let mut tells = vec![Tells::Nothing; plan.schema().fields().len()];
                tells[self.window_index] = Tells::Window;
                Ok((plan, tells))
            }
            _ => refuse(
                Anchor::Query,
                "the query reads something besides its window",
                "read one table in FROM",
            ),
        }
    }

    /// The expression with the window's column in place of the call, which must be the same one.
    fn without_calls(&self, expr: Expr, schema: &DFSchema, known: &[Tells]) -> Result<Expr, Refusal> {
        const HELP: &str = "name the call once AS window, and use that name";
        let mut wrong = None;
        let columns = schema.columns();
        let column = known.iter().position(|tells| *tells == Tells::Window).and_then(|i| columns.get(i));
        let replaced = expr.transform_up(|expr| {
            let Some(width) = tumble_argument(&expr) else { return Ok(Transformed::no(expr)) };
            match (width_ns(width, self.simplifier), column) {
                (Ok(width), Some(column)) if width == self.window.width_ns => {
                    Ok(Transformed::yes(Expr::Column(column.clone())))
                }
                (Err(refusal), _) => {
                    wrong = Some(refusal);
                    Ok(Transformed::no(expr))
                }
                (Ok(_), column) => {
                    let message = match column {
                        Some(_) => "a second window must be the same as the one below it",
                        None => "the window's column is not selected below this second window call",
                    };
                    wrong = Some(Refusal { at: Anchor::Tumble, message: message.into(), help: HELP.into() });
                    Ok(Transformed::no(expr))
                }
            }
        })?;
        wrong.map_or(Ok(replaced.data), Err)
    }
}

/// What the node's columns tell, from what those of its input tell.
fn tells(plan: &LogicalPlan, input: &DFSchema, known: Vec<Tells>) -> Result<Vec<Tells>, Refusal> {
    let of = |expr: &Expr| tells_window(expr, input, &known);
    let some = |tells: Tells| tells != Tells::Nothing;
    Ok(match plan {
        LogicalPlan::Projection(projection) => projection.expr.iter().map(of).collect(),
        LogicalPlan::Aggregate(aggregate) => {
            if !aggregate.group_expr.iter().any(|expr| some(of(expr))) {
                let help = "add the window's column to this GROUP BY";
                return refuse(Anchor::Outermost, "this GROUP BY would mix windows", help);
            }
            let keys = aggregate.group_expr.iter().map(of);
            keys.chain(aggregate.aggr_expr.iter().map(|_| Tells::Nothing)).collect()
        }
        LogicalPlan::Window(window) => {
            let within = |expr: &Expr| partition_by(expr).iter().any(|expr| some(of(expr)));
            if !window.window_expr.iter().all(within) {
                let help = "write OVER (PARTITION BY window …)";
                return refuse(Anchor::Outermost, "this OVER would mix windows", help);
            }
            let columns = known.iter().copied();
            columns.chain(window.window_expr.iter().map(|_| Tells::Nothing)).collect()
        }
        LogicalPlan::Distinct(Distinct::All(_)) if !known.iter().copied().any(some) => {
            let help = "add the window's column to this SELECT DISTINCT";
            return refuse(Anchor::Outermost, "this DISTINCT would mix windows", help);
        }
        LogicalPlan::Distinct(Distinct::On(_)) => {
            let help = "write row_number() OVER (PARTITION BY window …)";
            return refuse(Anchor::Outermost, "DISTINCT ON is not supported yet", help);
        }
        LogicalPlan::Unnest(_) => {
            return refuse(Anchor::Query, "unnest is not supported yet", "leave it out");
        }
        // Filter, Sort, Limit and SubqueryAlias pass their input's columns on, in their order.
        _ => known,
    })
}

fn tells_window(expr: &Expr, schema: &DFSchema, known: &[Tells]) -> Tells {
    match expr {
        Expr::Alias(alias) => tells_window(&alias.expr, schema, known),
        Expr::Column(column) => {
            let index = schema.maybe_index_of_column(column);
            index.and_then(|index| known.get(index)).copied().unwrap_or(Tells::Nothing)
        }
        Expr::ScalarFunction(ScalarFunction { func, args }) if func.name() == "get_field" => {
            match args.first().map(|root| tells_window(root, schema, known)) {
                Some(Tells::Window) => Tells::Part,
                _ => Tells::Nothing,
            }
        }
        _ => Tells::Nothing,
    }
}

fn partition_by(expr: &Expr) -> &[Expr] {
    match expr {
        Expr::Alias(alias) => partition_by(&alias.expr),
        Expr::WindowFunction(function) => &function.params.partition_by,
        _ => &[],
    }
}
