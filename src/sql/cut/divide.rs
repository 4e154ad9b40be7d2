//! An analysed plan → its cuts, and the plans above them.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchemaRef, Result};
use datafusion::logical_expr::logical_plan::{Distinct, Extension};
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, lit};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;

use super::{Cut, Input, Part, RowByRow, RowWise, Windowed, WindowedRows};
use crate::sql::functions::window_call;
use crate::sql::inline::{Inlined, inline, substitute};
use crate::sql::parts::union_parts;
use crate::sql::planner::Planner;
use crate::sql::refusal::{Anchor, GROUP_BY_WINDOW, Refusal, refuse};
use crate::sql::statics::{Step, with_leaves};
use crate::sql::windowing::{Windowing, calls_window, windowing};
use crate::sql::{above, aggregates};

/// Divides the analysed plan of an INSERT. Cuts are added to those of the query, each once.
pub(crate) fn parts(plan: LogicalPlan, planner: &Planner, cuts: &mut Vec<Cut>) -> Result<Vec<Part>, Refusal> {
    let plan = with_leaves(plan, planner)?;
    match part(plan.clone(), planner, cuts) {
        // Branches of different windows are written side by side.
        Err(refusal) => match union_parts(plan)? {
            branches if branches.len() > 1 => {
                branches.into_iter().map(|branch| part(branch, planner, cuts)).collect()
            }
            _ => Err(refusal),
        },
        Ok(part) => Ok(vec![part]),
    }
}

fn part(plan: LogicalPlan, planner: &Planner, cuts: &mut Vec<Cut>) -> Result<Part, Refusal> {
    if !plan.exists(|node| Ok(is_aggregate(node)))? {
        return row_wise(&plan, planner);
    }
    let mut found = cuts.clone();
    let (above, used) = divide(plan, planner, &mut found)?;
    let windowing = same_window(&used, &found)?;
    let above = above::within_windows(above, &found, planner)?;
    *cuts = found;
    let row_by_row = row_by_row(&above, planner);
    Ok(Part::Windowed(Box::new(Windowed { windowing, cuts: used, above, row_by_row })))
}

fn row_by_row(above: &LogicalPlan, planner: &Planner) -> Option<RowByRow> {
    let mut branches = inline(above).ok()?;
    let inlined = branches.pop().filter(|_| branches.is_empty())?;
    let (steps, columns) = inlined.simplified(planner);
    Some(RowByRow { schema: inlined.source_schema, steps, columns })
}

fn row_wise(plan: &LogicalPlan, planner: &Planner) -> Result<Part, Refusal> {
    let mut inputs = inline(plan)?;
    let Some(input) = inputs.pop().filter(|_| inputs.is_empty()) else {
        return refuse(
            Anchor::Query,
            "this UNION cannot be read row by row",
            "write each branch as an INSERT",
        );
    };
    if input.columns.iter().chain(input.steps.iter().flat_map(Step::exprs)).any(calls_window) {
        return refuse(Anchor::Window, "a window divides time for GROUP BY", GROUP_BY_WINDOW);
    }
    let (steps, columns) = input.simplified(planner);
    let Inlined { source, source_schema, .. } = input;
    Ok(Part::RowWise(RowWise { source, source_schema, steps, columns }))
}

pub(crate) fn is_aggregate(plan: &LogicalPlan) -> bool {
    matches!(plan, LogicalPlan::Aggregate(_) | LogicalPlan::Distinct(Distinct::All(_)))
}

fn has_aggregate_below(plan: &LogicalPlan) -> Result<bool> {
    for input in plan.inputs() {
        if input.exists(|node| Ok(is_aggregate(node)))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The plan with a leaf in place of each aggregate next to a source, and the places of their cuts.
fn divide(
    plan: LogicalPlan,
    planner: &Planner,
    cuts: &mut Vec<Cut>,
) -> Result<(LogicalPlan, Vec<usize>), Refusal> {
    let mut used = Vec::new();
    let mut refused = None;
    let above = plan.transform_down(|node| {
        if !is_aggregate(&node) || has_aggregate_below(&node)? {
            return Ok(Transformed::no(node));
        }
        let cut = match cut(&node, planner) {
            Ok(cut) => cut,
            Err(refusal) => {
                refused = refused.take().or(Some(refusal));
                return Ok(Transformed::new(node, false, TreeNodeRecursion::Stop));
            }
        };
        let identity = cut.identity();
        let place = cuts.iter().position(|known| known.identity() == identity).unwrap_or_else(|| {
            cuts.push(cut);
            cuts.len() - 1
        });
        if !used.contains(&place) {
            used.push(place);
        }
        let leaf = WindowedRows { cut: place, schema: Arc::clone(node.schema()) };
        let leaf = LogicalPlan::Extension(Extension { node: Arc::new(leaf) });
        Ok(Transformed::new(leaf, true, TreeNodeRecursion::Jump))
    })?;
    refused.map_or(Ok((above.data, used)), Err)
}

fn same_window(used: &[usize], cuts: &[Cut]) -> Result<Windowing, Refusal> {
    let mut windows = used.iter().filter_map(|place| cuts.get(*place)).map(|cut| cut.windowing);
    let Some(first) = windows.next() else {
        return refuse(Anchor::Query, "the query counts nothing in a window", GROUP_BY_WINDOW);
    };
    match windows.find(|other| *other != first) {
        None => Ok(first),
        Some(other) => refuse(
            Anchor::Window,
            format!("{first} and {other} in one SELECT: their windows are never the same"),
            "give both sides the same window, or write a UNION ALL or a second INSERT",
        ),
    }
}

/// A windowed aggregate over inlined inputs.
fn cut(plan: &LogicalPlan, planner: &Planner) -> Result<Cut, Refusal> {
    let aggregate = Aggregate::of(plan)?;
    let mut found: Option<(usize, Windowing)> = None;
    let mut inputs = Vec::new();
    for below in inline(aggregate.input)? {
        let simplifier = planner.simplifier(&below.row_schema);
        let (window_index, windowing, keys) = group(&aggregate, &below, &simplifier)?;
        if found.is_some_and(|found| found != (window_index, windowing)) {
            let help = "give every branch of the UNION ALL the same window call";
            return refuse(Anchor::Window, "the branches below this GROUP BY have different windows", help);
        }
        found = Some((window_index, windowing));
        inputs.push(aggregate.input_of(below, keys, planner)?);
    }
    let Some((window_index, windowing)) = found else {
        return refuse(Anchor::Query, "the query reads no source", "read a source table in FROM");
    };
    Ok(Cut { windowing, inputs, window_index, output_schema: aggregate.schema })
}

/// An Aggregate, or a DISTINCT as an aggregate without functions.
struct Aggregate<'a> {
    input: &'a LogicalPlan,
    group: Vec<Expr>,
    functions: &'a [Expr],
    schema: DFSchemaRef,
}

impl<'a> Aggregate<'a> {
    fn of(plan: &'a LogicalPlan) -> Result<Self, Refusal> {
        match plan {
            LogicalPlan::Aggregate(aggregate) => Ok(Self {
                input: &aggregate.input,
                group: distinct(&aggregate.group_expr),
                functions: &aggregate.aggr_expr,
                schema: Arc::clone(&aggregate.schema),
            }),
            LogicalPlan::Distinct(Distinct::All(input)) => Ok(Self {
                input,
                group: input.schema().columns().into_iter().map(Expr::Column).collect(),
                functions: &[],
                schema: Arc::clone(input.schema()),
            }),
            _ => refuse(Anchor::Query, "the query counts nothing in a window", GROUP_BY_WINDOW),
        }
    }

    fn input_of(&self, below: Inlined, keys: Vec<Expr>, planner: &Planner) -> Result<Input, Refusal> {
        let simplifier = planner.simplifier(&below.row_schema);
        let simplify = |expr: Expr| simplified(expr, &simplifier, &below.row_schema);
        let mut aggregates = Vec::new();
        for expr in self.functions {
            let expr = substitute(expr, self.input.schema(), &below.columns)?;
            let expr = expr.map_children(|child| Ok(Transformed::yes(simplify(child))))?.data;
            let expr = aggregates::ordered(expr, &below.row_schema)?;
            aggregates::check(&expr, &below.row_schema)?;
            aggregates.push(expr);
        }
        let (steps, _) = below.simplified(planner);
        refuse_window_below(&steps, &aggregates)?;
        let Inlined { source, source_schema, row_schema, .. } = below;
        Ok(Input { steps, keys, aggregates, source, source_schema, row_schema })
    }
}

impl Inlined {
    /// Steps and columns with their constant parts folded.
    fn simplified(&self, planner: &Planner) -> (Vec<Step>, Vec<Expr>) {
        let simplifier = planner.simplifier(&self.row_schema);
        let simplify = |expr: Expr| simplified(expr, &simplifier, &self.row_schema);
        let steps = self.steps.iter().cloned().map(|step| step.map(simplify));
        let is_true = |step: &Step| matches!(step, Step::Where(condition) if *condition == lit(true));
        let steps = steps.filter(|step| !is_true(step)).collect();
        (steps, self.columns.iter().cloned().map(simplify).collect())
    }
}

/// The schema has each group expression once, however often GROUP BY names it.
fn distinct(exprs: &[Expr]) -> Vec<Expr> {
    let mut distinct: Vec<Expr> = Vec::with_capacity(exprs.len());
    for expr in exprs {
        if !distinct.contains(expr) {
            distinct.push(expr.clone());
        }
    }
    distinct
}

/// The window's place, the window, and the keys besides it.
fn group(
    aggregate: &Aggregate<'_>,
    below: &Inlined,
    simplifier: &ExprSimplifier,
) -> Result<(usize, Windowing, Vec<Expr>), Refusal> {
    let mut window = None;
    let mut keys = Vec::new();
    for (index, expr) in aggregate.group.iter().enumerate() {
        if matches!(expr, Expr::GroupingSet(_)) {
            let help = "write one GROUP BY of a window and columns";
            return refuse(Anchor::Innermost, "GROUPING SETS, ROLLUP and CUBE are not supported", help);
        }
        let expr = substitute(expr, aggregate.input.schema(), &below.columns)?;
        if let Some((call, arguments)) = window_call(&expr) {
            if window.is_some() {
                return refuse(Anchor::Innermost, "a GROUP BY has one window", "leave the second one out");
            }
            window = Some((index, windowing(call, arguments, simplifier)?));
        } else if calls_window(&expr) {
            let help = "write GROUP BY window, and window.start in the SELECT list";
            return refuse(Anchor::Window, "group by the window itself, not by a part of it", help);
        } else {
            keys.push(simplified(expr, simplifier, &below.row_schema));
        }
    }
    match window {
        Some((index, window)) => Ok((index, window, keys)),
        None => refuse(
            Anchor::Innermost,
            "without a window this never has a result: the reactions do not end",
            GROUP_BY_WINDOW,
        ),
    }
}

/// The expression with its constant parts folded; as it was where that fails or would change its type.
fn simplified(expr: Expr, simplifier: &ExprSimplifier, schema: &DFSchemaRef) -> Expr {
    match simplifier.simplify(expr.clone()) {
        Ok(simple) => match (simple.get_type(schema), expr.get_type(schema)) {
            (Ok(after), Ok(before)) if after == before => simple,
            _ => expr,
        },
        Err(_) => expr,
    }
}

fn refuse_window_below(steps: &[Step], aggregates: &[Expr]) -> Result<(), Refusal> {
    if steps.iter().flat_map(Step::exprs).any(calls_window) {
        let help = "write the condition in HAVING, or in the WHERE of an outer SELECT";
        return refuse(Anchor::Window, "WHERE below the GROUP BY cannot see the window", help);
    }
    if aggregates.iter().any(calls_window) {
        let help = "window.start and window.end are the same for all its rows: select them directly";
        return refuse(Anchor::Window, "an aggregate cannot take the window", help);
    }
    Ok(())
}
