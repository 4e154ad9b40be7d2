//! Static tables: what a query looks up beside the rows that come.
//!
//! A file that declares no event time does not grow. So a side of a join that reads nothing else is known when the query
//! starts: it becomes one leaf of the plan, and the join a lookup by its equalities, below the window as above it.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, DFSchemaRef, JoinType, Result, TableReference};
use datafusion::logical_expr::logical_plan::{Extension, Join};
use datafusion::logical_expr::utils::{conjunction, split_conjunction};
use datafusion::logical_expr::{BinaryExpr, Expr, LogicalPlan, Operator, UserDefinedLogicalNodeCore};

use super::inline::{Inlined, substitute};
use super::planner::{Planner, Relation};
use super::refusal::{Anchor, Refusal, refuse};
use super::windowing::calls_window;

/// What is done with each row before it is kept, in order. What stands behind one is evaluated only on rows that pass it
/// (`WHERE x <> 0` guards a `10 / x`).
#[derive(Clone, Debug)]
pub enum Step {
    /// Rows for which it is not true are left out.
    Where(Expr),
    /// Columns of a static table are put beside each row.
    Join(StaticJoin),
}

impl Step {
    /// The expressions over the row.
    pub fn exprs(&self) -> Vec<&Expr> {
        match self {
            Self::Where(condition) => vec![condition],
            Self::Join(join) => join.keys.iter().map(|(key, _)| key).chain(&join.condition).collect(),
        }
    }

    pub(crate) fn map(self, change: impl Fn(Expr) -> Expr) -> Self {
        match self {
            Self::Where(condition) => Self::Where(change(condition)),
            Self::Join(join) => Self::Join(StaticJoin {
                keys: join.keys.into_iter().map(|(key, of_table)| (change(key), of_table)).collect(),
                condition: join.condition.map(change),
                ..join
            }),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Where(condition) => write!(f, "where {condition}"),
            Self::Join(join) => {
                let keys = join.keys.iter().map(|(key, of_table)| format!("{key} = {of_table}"));
                let on: Vec<String> = keys.chain(join.condition.iter().map(ToString::to_string)).collect();
                let word = if join.outer { "left join" } else { "join" };
                write!(f, "{word} ({}) on {}", join.rows, on.join(" and "))
            }
        }
    }
}

/// A lookup in static rows.
#[derive(Clone, Debug)]
pub struct StaticJoin {
    /// What is looked up.
    pub rows: StaticRows,
    /// What is equal: over the row so far, and over the static rows. At least one.
    pub keys: Vec<(Expr, Expr)>,
    /// What else has to be true, over the row with the static columns.
    pub condition: Option<Expr>,
    /// A row without a match stays, with nulls.
    pub outer: bool,
    /// The static columns as what follows names them.
    pub columns: DFSchemaRef,
}

/// The leaf: all rows of a plan over static tables.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StaticRows {
    /// Its leaves are scans of static tables.
    pub plan: Arc<LogicalPlan>,
    /// Their names.
    pub tables: Vec<String>,
}

/// Its plan in one line, from the top to the table.
impl fmt::Display for StaticRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = self.plan.display_indent().to_string();
        let steps: Vec<&str> = plan.lines().map(str::trim).collect();
        f.write_str(&steps.join(" ← "))
    }
}

impl PartialOrd for StaticRows {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self == other).then_some(Ordering::Equal)
    }
}

impl UserDefinedLogicalNodeCore for StaticRows {
    fn name(&self) -> &'static str {
        "StaticRows"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![]
    }

    fn schema(&self) -> &DFSchemaRef {
        self.plan.schema()
    }

    fn expressions(&self) -> Vec<Expr> {
        vec![]
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StaticRows: {self}")
    }

    fn with_exprs_and_inputs(&self, _exprs: Vec<Expr>, _inputs: Vec<LogicalPlan>) -> Result<Self> {
        Ok(self.clone())
    }
}

/// The static leaves of a plan.
pub(crate) fn leaves(plan: &LogicalPlan) -> Result<Vec<StaticRows>> {
    let mut leaves = Vec::new();
    plan.apply(|node| {
        leaves.extend(leaf(node).cloned());
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(leaves)
}

fn leaf(plan: &LogicalPlan) -> Option<&StaticRows> {
    match plan {
        LogicalPlan::Extension(leaf) => leaf.node.as_any().downcast_ref(),
        _ => None,
    }
}

/// The plan with a leaf in place of every side of a join that is static.
pub(crate) fn with_leaves(plan: LogicalPlan, planner: &Planner) -> Result<LogicalPlan, Refusal> {
    let mut refused: Option<Refusal> = None;
    let plan = plan.transform_up(|node| {
        let LogicalPlan::Join(join) = &node else { return Ok(Transformed::no(node)) };
        let (left, right) = (static_tables(&join.left, planner)?, static_tables(&join.right, planner)?);
        let side = |side: &Arc<LogicalPlan>, tables: Option<Vec<String>>| match tables {
            None => Arc::clone(side),
            Some(tables) => {
                let node = Arc::new(StaticRows { plan: Arc::clone(side), tables });
                Arc::new(LogicalPlan::Extension(Extension { node }))
            }
        };
        if left.is_some() == right.is_some() {
            return Ok(Transformed::no(node));
        }
        let join = Join { left: side(&join.left, left), right: side(&join.right, right), ..join.clone() };
        refused = refused.take().or(check(&join).err());
        Ok(Transformed::yes(LogicalPlan::Join(join)))
    })?;
    if let Some(refusal) = refused {
        return Err(refusal);
    }
    let plan = plan.data;
    plan.apply(|node| {
        let table = static_table(node, planner);
        refused = refused.take().or(table.map(|table| Refusal {
            at: Anchor::Table,
            message: format!(
                "'{table}' declares no event time: it is a static table, to be joined with rows that come"
            ),
            help: format!(
                "write JOIN {table} ON …, or declare WATERMARK FOR a TIMESTAMP NOT NULL column of '{table}'"
            ),
        }));
        Ok(TreeNodeRecursion::Continue)
    })?;
    refused.map_or(Ok(plan), Err)
}

/// The tables of a plan that reads static ones only, by name.
fn static_tables(plan: &LogicalPlan, planner: &Planner) -> Result<Option<Vec<String>>> {
    let (mut tables, mut others) = (Vec::new(), false);
    plan.apply(|node| {
        match static_table(node, planner) {
            Some(table) if !tables.contains(&table) => tables.push(table),
            Some(_) => {}
            None => others |= node.inputs().is_empty() || node.expressions().iter().any(calls_window),
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok((!others).then_some(tables))
}

fn static_table(node: &LogicalPlan, planner: &Planner) -> Option<String> {
    let LogicalPlan::TableScan(scan) = node else { return None };
    match planner.relations.get(scan.table_name.table()) {
        Some(Relation::Table(table)) if table.is_static() => Some(table.name.clone()),
        _ => None,
    }
}

/// A join of which one side is static.
pub(crate) struct Sides<'a> {
    join: &'a Join,
    /// The other side.
    pub(crate) rows: &'a LogicalPlan,
    statics: &'a StaticRows,
    static_first: bool,
}

/// `None` for other joins.
pub(crate) fn sides(join: &Join) -> Option<Sides<'_>> {
    match (leaf(&join.left), leaf(&join.right)) {
        (Some(statics), None) => Some(Sides { join, rows: &join.right, statics, static_first: true }),
        (None, Some(statics)) => Some(Sides { join, rows: &join.left, statics, static_first: false }),
        _ => None,
    }
}

/// Refuses what would need rows of the table that nothing matches (the rows that come do not end), and what would read all
/// of it for each row.
fn check(join: &Join) -> Result<(), Refusal> {
    let Some(sides) = sides(join) else { return Ok(()) };
    let table = sides.statics.tables.join("', '");
    let keeps_rows = match join.join_type {
        JoinType::Inner => true,
        JoinType::Left => !sides.static_first,
        JoinType::Right => sides.static_first,
        _ => false,
    };
    if !keeps_rows {
        let kind = join.join_type.to_string().to_uppercase();
        let message =
            format!("this {kind} JOIN asks which rows of '{table}' match nothing; what comes does not end");
        return refuse(Anchor::Join, message, "write FROM what comes LEFT JOIN the static table");
    }
    if sides.conditions().0.is_empty() {
        let message = format!("a join with the static table '{table}' looks rows up by an equality");
        return refuse(
            Anchor::Join,
            message,
            "write ON a column of what comes = a column of the static table AND …",
        );
    }
    Ok(())
}

impl Sides<'_> {
    /// What is equal, over the rows that come and over the static ones, and what else is asked for.
    fn conditions(&self) -> (Vec<(Expr, Expr)>, Vec<Expr>) {
        let is_of = |expr: &Expr, schema: &DFSchema| {
            let columns = expr.column_refs();
            !columns.is_empty() && columns.iter().all(|column| schema.has_column(column))
        };
        let (rows, statics) = (self.rows.schema(), self.statics.schema());
        let (mut keys, mut rest) = (Vec::new(), Vec::new());
        for (left, right) in &self.join.on {
            let (left, right) = (left.clone(), right.clone());
            keys.push(if self.static_first { (right, left) } else { (left, right) });
        }
        for condition in self.join.filter.iter().flat_map(split_conjunction) {
            match condition {
                Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right })
                    if is_of(left, rows) && is_of(right, statics) =>
                {
                    keys.push((left.as_ref().clone(), right.as_ref().clone()));
                }
                Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right })
                    if is_of(right, rows) && is_of(left, statics) =>
                {
                    keys.push((right.as_ref().clone(), left.as_ref().clone()));
                }
                other => rest.push(other.clone()),
            }
        }
        (keys, rest)
    }

    /// The lookup behind what was inlined of the rows that come.
    pub(crate) fn behind(&self, inlined: &mut Inlined) -> Result<()> {
        let outer = self.join.join_type != JoinType::Inner;
        let columns = self.renamed(&inlined.row_schema, outer)?;
        let (keys, rest) = self.conditions();
        let keys = keys.into_iter().map(|(key, of_table)| {
            Ok((substitute(&key, self.rows.schema(), &inlined.columns)?, unaliased(of_table)))
        });
        let keys = keys.collect::<Result<_>>()?;
        let before = std::mem::take(&mut inlined.columns);
        let added = columns.columns().into_iter().map(Expr::Column);
        inlined.columns = if self.static_first {
            added.chain(before).collect()
        } else {
            before.into_iter().chain(added).collect()
        };
        let both = &self.join.schema;
        let condition = conjunction(rest).map(|all| substitute(&all, both, &inlined.columns)).transpose()?;
        inlined.row_schema = Arc::new(inlined.row_schema.join(&columns)?);
        let (rows, columns) = (self.statics.clone(), Arc::new(columns));
        inlined.steps.push(Step::Join(StaticJoin { rows, keys, condition, outer, columns }));
        Ok(())
    }

    /// The static columns by names that nothing in the row has yet.
    fn renamed(&self, row: &DFSchema, outer: bool) -> Result<DFSchema> {
        let fields = self.statics.schema().iter().map(|(relation, field)| {
            let table = relation.map_or(self.statics.tables[0].as_str(), |relation| relation.table());
            let is_taken =
                |name: &str| row.has_column_with_qualified_name(&TableReference::bare(name), field.name());
            let mut name = table.to_owned();
            while is_taken(&name) {
                name.push('\'');
            }
            let field = field.as_ref().clone();
            let is_nullable = outer || field.is_nullable();
            (Some(TableReference::bare(name)), Arc::new(field.with_nullable(is_nullable)))
        });
        DFSchema::new_with_metadata(fields.collect(), Default::default())
    }
}

fn unaliased(expr: Expr) -> Expr {
    match expr {
        Expr::Alias(alias) => unaliased(*alias.expr),
        other => other,
    }
}
