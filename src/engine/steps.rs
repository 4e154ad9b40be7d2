//! What is done with rows before they are kept: filters and lookups, in the order of the text. Pure.

use std::collections::HashSet;

use datafusion::common::{Column, DFSchema, Result};
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::utils::expr_to_columns;

use super::expression::{RowExpr, Rows};
use super::lookup::Lookup;
use super::statics::StaticTables;
pub(crate) use crate::sql::statics::Step as Planned;

/// One step.
#[derive(Debug)]
pub(crate) enum Step {
    Filter(RowExpr),
    Lookup(Box<Lookup>),
}

/// Compiles the steps over rows of the columns of `read`, and says what columns rows have behind them: those of static
/// tables that are `named`.
pub(crate) fn compile(
    steps: &[Planned],
    read: DFSchema,
    named: &HashSet<Column>,
    statics: &StaticTables,
) -> Result<(Vec<Step>, DFSchema)> {
    let (mut compiled, mut read) = (Vec::with_capacity(steps.len()), read);
    for step in steps {
        match step {
            Planned::Where(condition) => compiled.push(Step::Filter(RowExpr::compile(condition, &read)?)),
            Planned::Join(join) => {
                let (lookup, wider) = Lookup::compile(join, &read, named, statics)?;
                compiled.push(Step::Lookup(Box::new(lookup)));
                read = wider;
            }
        }
    }
    Ok((compiled, read))
}

/// The columns that expressions name.
pub(crate) fn named<'e>(exprs: impl IntoIterator<Item = &'e Expr>) -> Result<HashSet<Column>> {
    let mut named = HashSet::new();
    exprs.into_iter().try_for_each(|expr| expr_to_columns(expr, &mut named))?;
    Ok(named)
}

/// The rows that pass all steps, each evaluated on what the ones before it let through; `None` when all do, as they are.
pub(crate) fn apply(steps: &[Step], rows: &Rows) -> Result<Option<Rows>> {
    let mut kept: Option<Rows> = None;
    for step in steps {
        let input = kept.as_ref().unwrap_or(rows);
        match step {
            Step::Filter(filter) => {
                let condition = filter.evaluate_condition(input)?;
                if condition.true_count() < input.len() {
                    kept = Some(input.filter(&condition)?);
                }
            }
            Step::Lookup(lookup) => kept = Some(lookup.apply(input)?),
        }
    }
    Ok(kept)
}
