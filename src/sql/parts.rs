//! A UNION ALL at the top of an INSERT, taken apart: each branch becomes a plan of its own.
//!
//! Needed where the branches have different windows (they close at different times) or one of them has none.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::logical_expr::{Expr, Filter, LogicalPlan, Projection, SubqueryAlias};

/// The branches of the plan's topmost UNION ALL, each under what stands above it; the plan itself when there is none.
pub(crate) fn union_parts(plan: LogicalPlan) -> Result<Vec<LogicalPlan>> {
    match plan {
        LogicalPlan::Union(union) => {
            let mut parts = Vec::new();
            for input in &union.inputs {
                for part in union_parts(input.as_ref().clone())? {
                    parts.push(renamed(part, union.schema.columns())?);
                }
            }
            Ok(parts)
        }
        LogicalPlan::Projection(projection) => over(&projection.input, |input| {
            Ok(LogicalPlan::Projection(Projection::try_new(projection.expr.clone(), input)?))
        }),
        LogicalPlan::Filter(filter) => over(&filter.input, |input| {
            Ok(LogicalPlan::Filter(Filter::try_new(filter.predicate.clone(), input)?))
        }),
        LogicalPlan::SubqueryAlias(alias) => over(&alias.input, |input| {
            Ok(LogicalPlan::SubqueryAlias(SubqueryAlias::try_new(input, alias.alias.clone())?))
        }),
        other => Ok(vec![other]),
    }
}

fn over(
    input: &LogicalPlan,
    node: impl Fn(Arc<LogicalPlan>) -> Result<LogicalPlan>,
) -> Result<Vec<LogicalPlan>> {
    union_parts(input.clone())?.into_iter().map(|part| node(Arc::new(part))).collect()
}

/// The branch with its columns named as the union names them.
fn renamed(part: LogicalPlan, names: Vec<datafusion::common::Column>) -> Result<LogicalPlan> {
    let columns = part.schema().columns().into_iter().zip(names);
    let exprs = columns.map(|(column, name)| Expr::Column(column).alias_qualified(name.relation, name.name));
    Ok(LogicalPlan::Projection(Projection::try_new(exprs.collect(), Arc::new(part))?))
}
