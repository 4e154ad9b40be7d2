//! Aggregate functions of a windowed aggregate: which are refused, and how an order in them is made a total one.

use datafusion::common::{DFSchemaRef, Result};
use datafusion::logical_expr::execution_props::ExecutionProps;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{Expr, ExprSchemable, SortExpr};
use datafusion::physical_expr::aggregate::LoweredAggregateBuilder;

use super::errors;
use super::order::IN_ORDER;
use super::refusal::{Anchor, Refusal, refuse};

/// The function with its first argument as the last word of its ORDER BY, so that rows which are equal there come in the
/// same order in every run.
pub(crate) fn ordered(expr: Expr, schema: &DFSchemaRef) -> Result<Expr> {
    let Expr::AggregateFunction(AggregateFunction { func, mut params }) = expr else { return Ok(expr) };
    let keeps_order = !params.order_by.is_empty() && IN_ORDER.contains(&func.name());
    // With DISTINCT it is the only word there is.
    if let Some(value) = params.args.first().filter(|_| keeps_order && !params.distinct)
        && !value.get_type(schema)?.is_nested()
        && !params.order_by.iter().any(|by| by.expr == *value)
    {
        params.order_by.push(SortExpr::new(value.clone(), true, false));
    }
    Ok(Expr::AggregateFunction(AggregateFunction { func, params }))
}

/// Refuses what DataFusion cannot compute.
pub(crate) fn check(expr: &Expr, schema: &DFSchemaRef) -> Result<(), Refusal> {
    let Expr::AggregateFunction(AggregateFunction { func, params }) = expr else { return Ok(()) };
    let name = func.name();
    if name == "nth_value" && params.distinct {
        let help = "write array_agg(DISTINCT … ORDER BY …)[n]";
        return refuse(Anchor::Function, "nth_value: it takes no DISTINCT", help);
    }
    compute(expr, schema).or_else(|error| {
        let help = if params.distinct && !params.order_by.is_empty() {
            "order by what is aggregated, or leave DISTINCT out"
        } else {
            "its settings are literals: write them so, within their limits"
        };
        let reason = errors::reason(&error);
        let reason = reason.strip_prefix(name).unwrap_or(&reason).trim_start();
        refuse(Anchor::Function, format!("{name}: {reason}"), help)
    })
}

fn compute(expr: &Expr, schema: &DFSchemaRef) -> Result<()> {
    let (props, context) = (ExecutionProps::new(), PhysicalPlanningContext::default());
    let lowered = LoweredAggregateBuilder::new(expr, schema, schema.as_arrow(), &props, &context).build()?;
    match lowered.aggregate {
        function if function.groups_accumulator_supported() => function.create_groups_accumulator().map(drop),
        function => function.create_accumulator().map(drop),
    }
}
