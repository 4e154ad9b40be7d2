//! The plan above the cut, kept within windows.
//!
//! It is run for one window at a time. So whatever looks at several rows (GROUP BY, DISTINCT, OVER, JOIN) must stay
//! within a window by the text, too; otherwise the text would say one thing and the engine do another. And a GROUP BY may
//! repeat the window call: there it stands for the window's column.

use std::sync::Arc;

use datafusion::common::DFSchema;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::logical_plan::{Distinct, Join};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{BinaryExpr, Expr, LogicalPlan, Operator};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;

use super::cut::{Cut, WindowedRows};
use super::functions::window_call;
use super::planner::Planner;
use super::refusal::{Anchor, Refusal, refuse};
use super::statics::{StaticRows, sides};
use super::windowing::{Windowing, calls_window, windowing};

/// What a column tells of the window of its row.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tells {
    /// Nothing.
    Nothing,
    /// The window, by its start.
    Start,
    /// The window, by its end.
    End,
    /// It is the window.
    Window,
}

impl Tells {
    fn some(self) -> bool {
        self != Self::Nothing
    }
}

/// The plan with repeated window calls replaced by the window's column; refuses what would mix windows. All its leaves
/// have the same window.
pub(crate) fn within_windows(
    plan: LogicalPlan,
    cuts: &[Cut],
    planner: &Planner,
) -> Result<LogicalPlan, Refusal> {
    // Window calls are constants: a simplifier of any schema will do.
    let simplifier = planner.simplifier(plan.schema());
    Above { cuts, simplifier }.resolve(plan).map(|(plan, _)| plan)
}

struct Above<'a> {
    cuts: &'a [Cut],
    simplifier: ExprSimplifier,
}

/// The columns of a node's inputs, side by side.
struct Known {
    schema: DFSchema,
    tells: Vec<Tells>,
    windowing: Option<Windowing>,
}

impl Known {
    fn of(&self, expr: &Expr) -> Tells {
        match expr {
            Expr::Alias(alias) => self.of(&alias.expr),
            Expr::Column(column) => {
                let index = self.schema.maybe_index_of_column(column);
                index.and_then(|index| self.tells.get(index)).copied().unwrap_or(Tells::Nothing)
            }
            Expr::ScalarFunction(ScalarFunction { func, args }) => match func.name() {
                "get_field" => self.field(args),
                // After an outer join one side's window may be null, and then the other's is not.
                "coalesce" => {
                    let tells: Vec<_> = args.iter().map(|arg| self.of(arg)).collect();
                    let first = tells.first().copied().unwrap_or(Tells::Nothing);
                    if tells.iter().all(|tells| *tells == first) { first } else { Tells::Nothing }
                }
                _ => Tells::Nothing,
            },
            _ => Tells::Nothing,
        }
    }

    fn field(&self, args: &[Expr]) -> Tells {
        let [root, Expr::Literal(name, _)] = args else { return Tells::Nothing };
        match (self.of(root), name.try_as_str().flatten()) {
            (Tells::Window, Some("start")) => Tells::Start,
            (Tells::Window, Some("end")) => Tells::End,
            _ => Tells::Nothing,
        }
    }
}

impl Above<'_> {
    /// The node over its resolved inputs, and what its columns tell.
    fn resolve(&self, plan: LogicalPlan) -> Result<(LogicalPlan, Known), Refusal> {
        let inputs: Vec<LogicalPlan> = plan.inputs().into_iter().cloned().collect();
        if inputs.is_empty() {
            return self.leaf(plan);
        }
        let mut resolved = Vec::with_capacity(inputs.len());
        let mut known: Option<Known> = None;
        for input in inputs {
            let schema = input.schema().as_ref().clone();
            let (input, below) = self.resolve(input)?;
            resolved.push(input);
            known = Some(match known {
                None => Known { schema, ..below },
                Some(before) => self.beside(&plan, before, Known { schema, ..below })?,
            });
        }
        let Some(known) = known else { return refuse(Anchor::Query, "the query reads nothing", "add FROM") };
        let plan = self.over(plan, resolved, &known)?;
        let tells = tells(&plan, &known)?;
        let windowing = known.windowing;
        let schema = plan.schema().as_ref().clone();
        Ok((plan, Known { schema, tells, windowing }))
    }

    /// The columns of a second input beside those of the first (a join), or under them (a union).
    fn beside(&self, plan: &LogicalPlan, before: Known, next: Known) -> Result<Known, Refusal> {
        let windowing = before.windowing.or(next.windowing);
        if let LogicalPlan::Union(_) = plan {
            let both = before.tells.iter().zip(&next.tells);
            let tells = both.map(|(a, b)| if a == b { *a } else { Tells::Nothing }).collect();
            return Ok(Known { schema: before.schema, tells, windowing });
        }
        let tells = before.tells.iter().chain(&next.tells).copied().collect();
        Ok(Known { schema: before.schema.join(&next.schema)?, tells, windowing })
    }

    fn leaf(&self, plan: LogicalPlan) -> Result<(LogicalPlan, Known), Refusal> {
        if let LogicalPlan::Extension(leaf) = &plan
            && let Some(rows) = leaf.node.as_any().downcast_ref::<WindowedRows>()
            && let Some(cut) = self.cuts.get(rows.cut)
        {
            let mut tells = vec![Tells::Nothing; plan.schema().fields().len()];
            tells[cut.window_index] = Tells::Window;
            let known =
                Known { schema: plan.schema().as_ref().clone(), tells, windowing: Some(cut.windowing) };
            return Ok((plan, known));
        }
        if let LogicalPlan::Extension(leaf) = &plan
            && leaf.node.as_any().is::<StaticRows>()
        {
            let tells = vec![Tells::Nothing; plan.schema().fields().len()];
            let known = Known { schema: plan.schema().as_ref().clone(), tells, windowing: None };
            return Ok((plan, known));
        }
        refuse(
            Anchor::Query,
            "reactions as they come cannot be put beside the rows of a window: they do not end",
            "count both sides in the same window, then join ON a.window = b.window",
        )
    }

    /// The node with its inputs replaced and window calls resolved.
    fn over(
        &self,
        plan: LogicalPlan,
        inputs: Vec<LogicalPlan>,
        known: &Known,
    ) -> Result<LogicalPlan, Refusal> {
        if let LogicalPlan::Join(join) = plan {
            return joined(join, inputs);
        }
        if !plan.expressions().iter().any(calls_window) {
            return Ok(plan.with_new_exprs(plan.expressions(), inputs)?);
        }
        let exprs = plan.expressions().into_iter();
        let names = NamePreserver::new(&plan);
        let resolved = exprs.map(|expr| {
            let name = names.save(&expr);
            Ok(name.restore(self.without_calls(expr, known)?))
        });
        let exprs = resolved.collect::<Result<Vec<_>, Refusal>>()?;
        Ok(plan.with_new_exprs(exprs, inputs)?)
    }

    /// The expression with the window's column in place of the call, which must be the same one.
    fn without_calls(&self, expr: Expr, known: &Known) -> Result<Expr, Refusal> {
        const HELP: &str = "name the call once AS window, and use that name";
        let mut wrong = None;
        let columns = known.schema.columns();
        let place = known.tells.iter().position(|tells| *tells == Tells::Window);
        let column = place.and_then(|place| columns.get(place));
        let replaced = expr.transform_up(|expr| {
            let Some((call, arguments)) = window_call(&expr) else { return Ok(Transformed::no(expr)) };
            match (windowing(call, arguments, &self.simplifier), column) {
                (Ok(again), Some(column)) if Some(again) == known.windowing => {
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
                    wrong = Some(Refusal { at: Anchor::Window, message: message.into(), help: HELP.into() });
                    Ok(Transformed::no(expr))
                }
            }
        })?;
        wrong.map_or(Ok(replaced.data), Err)
    }
}

fn joined(join: Join, mut inputs: Vec<LogicalPlan>) -> Result<LogicalPlan, Refusal> {
    let (Some(right), Some(left)) = (inputs.pop(), inputs.pop()) else {
        return refuse(Anchor::Query, "a join has two sides", "write JOIN … ON …");
    };
    Ok(LogicalPlan::Join(Join { left: Arc::new(left), right: Arc::new(right), ..join }))
}

/// What the node's columns tell, from what those of its inputs tell.
fn tells(plan: &LogicalPlan, known: &Known) -> Result<Vec<Tells>, Refusal> {
    let of = |expr: &Expr| known.of(expr);
    Ok(match plan {
        LogicalPlan::Projection(projection) => projection.expr.iter().map(of).collect(),
        LogicalPlan::Aggregate(aggregate) => {
            if !aggregate.group_expr.iter().any(|expr| of(expr).some()) {
                let help = "add the window's column to this GROUP BY";
                return refuse(Anchor::Outermost, "this GROUP BY would mix windows", help);
            }
            let keys = aggregate.group_expr.iter().map(of);
            keys.chain(aggregate.aggr_expr.iter().map(|_| Tells::Nothing)).collect()
        }
        LogicalPlan::Window(window) => {
            let within = |expr: &Expr| partition_by(expr).iter().any(|expr| of(expr).some());
            if !window.window_expr.iter().all(within) {
                let help = "write OVER (PARTITION BY window …)";
                return refuse(Anchor::Outermost, "this OVER would mix windows", help);
            }
            let columns = known.tells.iter().copied();
            columns.chain(window.window_expr.iter().map(|_| Tells::Nothing)).collect()
        }
        LogicalPlan::Distinct(Distinct::All(_)) if !known.tells.iter().any(|tells| tells.some()) => {
            let help = "add the window's column to this SELECT DISTINCT";
            return refuse(Anchor::Outermost, "this DISTINCT would mix windows", help);
        }
        LogicalPlan::Distinct(Distinct::On(_)) => {
            let help = "write row_number() OVER (PARTITION BY window …)";
            return refuse(Anchor::Outermost, "DISTINCT ON is not supported", help);
        }
        LogicalPlan::Unnest(_) => {
            return refuse(Anchor::Query, "unnest is not supported", "leave it out");
        }
        LogicalPlan::Join(join) => {
            // Static rows are the same for all windows.
            if sides(join).is_none() && !joins_windows(join, known) {
                let help = "write JOIN … ON a.window = b.window AND …";
                return refuse(Anchor::Join, "this join would mix windows", help);
            }
            let width = plan.schema().fields().len();
            // A semi or anti join shows the columns of one side only.
            match join.join_type {
                datafusion::common::JoinType::RightSemi | datafusion::common::JoinType::RightAnti => {
                    known.tells[known.tells.len().saturating_sub(width)..].to_vec()
                }
                _ => known.tells.iter().take(width).copied().collect(),
            }
        }
        // Filter, Sort, Limit, Union and SubqueryAlias pass their input's columns on, in their order.
        _ => known.tells.clone(),
    })
}

/// Whether the condition asks for the same window on both sides.
fn joins_windows(join: &Join, known: &Known) -> bool {
    let session = matches!(known.windowing, Some(Windowing::Session { .. }));
    let same = |a: &Expr, b: &Expr| match (known.of(a), known.of(b)) {
        (Tells::Nothing, _) | (_, Tells::Nothing) => false,
        // Sessions of one start may end at different times.
        (a, b) => a == b && (!session || a == Tells::Window),
    };
    let in_filter = |condition: &Expr| match condition {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => same(left, right),
        _ => false,
    };
    join.on.iter().any(|(left, right)| same(left, right))
        || join.filter.iter().flat_map(split_conjunction).any(in_filter)
}

fn partition_by(expr: &Expr) -> &[Expr] {
    match expr {
        Expr::Alias(alias) => partition_by(&alias.expr),
        Expr::WindowFunction(function) => &function.params.partition_by,
        _ => &[],
    }
}
