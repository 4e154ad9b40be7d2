//! The cut: an analysed plan divided at its windowed aggregate.
//!
//! ```text
//!  Projection, Filter, Sort, Window, …        above: an ordinary plan, run over the rows of a closed window
//!  WindowedRows                               its leaf, in place of
//!  ─ ─ Aggregate group by [tumble(…), keys] ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ the cut
//!  Projection, Filter, SubqueryAlias          below: inlined into expressions over the record
//!  TableScan
//! ```
//!
//! It is made before any optimiser rule: those treat the window call as a constant and drop it, or, as it is volatile,
//! prune the event time from the scan and push filters on `window.start` below the aggregate.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchemaRef, DataFusionError, Result};
use datafusion::logical_expr::logical_plan::{Distinct, Extension};
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, UserDefinedLogicalNodeCore, lit};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;

use super::above;
use super::functions::{TUMBLE, interval_ns, tumble_argument};
use super::inline::{Inlined, inline, substitute};
use super::planner::Planner;

/// A tumbling window of that width, aligned to the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tumble {
    /// In nanoseconds, above 0.
    pub width_ns: i64,
}

/// A plan divided at its one windowed aggregate. Every expression at and below the cut is written in terms of the
/// source table's columns (projections and sub-selects are inlined), so that it is evaluated on a record as it was read.
#[derive(Clone, Debug)]
pub struct Cut {
    /// The source table's name.
    pub source: String,
    /// How event time is divided.
    pub window: Tumble,
    /// The source's columns, as the expressions name them: all of them, in declaration order.
    pub source_schema: DFSchemaRef,
    /// Conjuncts of all WHEREs below the window, innermost first. Keys and aggregates are to be evaluated only on rows
    /// that pass them all (`WHERE x <> 0` guards a `10 / x`).
    pub filters: Vec<Expr>,
    /// The group keys besides the window, with their place among the aggregate's group expressions. A key may be a
    /// constant (`SELECT 'all' AS room` below the window).
    pub keys: Vec<(usize, Expr)>,
    /// The window's place among the aggregate's group expressions.
    pub window_index: usize,
    /// The aggregate functions, each an `Expr::AggregateFunction`; none for a SELECT DISTINCT.
    pub aggregates: Vec<Expr>,
    /// The aggregate's output: group expressions (the window as `struct<start, end>`), then aggregates.
    pub output_schema: DFSchemaRef,
    /// The plan above; the aggregate is replaced by [`WindowedRows`] of `output_schema`.
    pub above: LogicalPlan,
}

impl Cut {
    /// What the state of open windows depends on, as 16 hexadecimal digits: source, window, filters, keys, aggregates
    /// and their types. Stable between runs and builds; an edit above the cut leaves it as it is.
    pub fn fingerprint(&self) -> String {
        let mut text = format!("{}\n{}\n{}", self.source, self.window.width_ns, self.window_index);
        for filter in &self.filters {
            text += &format!("\nwhere {filter}");
        }
        for (index, key) in &self.keys {
            text += &format!("\nkey {index} {key} {}", self.output_schema.field(*index).data_type());
        }
        let fields = self.output_schema.fields().iter().skip(self.keys.len() + 1);
        for (aggregate, field) in self.aggregates.iter().zip(fields) {
            text += &format!("\naggregate {aggregate} {}", field.data_type());
        }
        format!("{:016x}", fnv1a(text.as_bytes()))
    }
}

/// FNV-1a, 64 bits: <http://www.isthe.com/chongo/tech/comp/fnv/>. The standard library's hasher may change.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The leaf of the plan above the cut: the rows of closed windows. The engine's physical planner puts its own
/// execution plan here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WindowedRows {
    schema: DFSchemaRef,
}

impl PartialOrd for WindowedRows {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self == other).then_some(Ordering::Equal)
    }
}

impl UserDefinedLogicalNodeCore for WindowedRows {
    fn name(&self) -> &'static str {
        "WindowedRows"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        vec![]
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WindowedRows: {}", self.schema)
    }

    fn with_exprs_and_inputs(&self, _exprs: Vec<Expr>, _inputs: Vec<LogicalPlan>) -> Result<Self> {
        Ok(self.clone())
    }
}

/// Where a refusal points, to be looked up in the query's syntax tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Anchor {
    /// The window call.
    Tumble,
    /// The GROUP BY or DISTINCT next to the source, or its first aggregate function.
    Innermost,
    /// The GROUP BY, DISTINCT or OVER furthest from the source.
    Outermost,
    /// The query's first word.
    Query,
}

/// A plan that cannot be cut.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) at: Anchor,
    pub(crate) message: String,
    pub(crate) help: String,
}

impl From<DataFusionError> for Refusal {
    fn from(error: DataFusionError) -> Self {
        let help = "simplify the query, and report this as a defect of emostream".to_owned();
        Self { at: Anchor::Query, message: error.strip_backtrace(), help }
    }
}

pub(crate) fn refuse<T>(
    at: Anchor,
    message: impl Into<String>,
    help: impl Into<String>,
) -> Result<T, Refusal> {
    Err(Refusal { at, message: message.into(), help: help.into() })
}

const GROUP_BY_WINDOW: &str = "write SELECT tumble(INTERVAL '2 seconds') AS window, … GROUP BY window, …";

/// Divides the analysed plan of a query.
pub(crate) fn cut(plan: LogicalPlan, planner: &Planner) -> Result<Cut, Refusal> {
    let aggregates_above = aggregates(&plan)?;
    let Some(aggregates_above) = aggregates_above.checked_sub(1) else {
        return refuse(Anchor::Query, "the query counts nothing in a window", GROUP_BY_WINDOW);
    };
    let (above, at_cut) = split(plan, aggregates_above)?;
    let parts = Parts::of(&at_cut)?;
    let below = inline(parts.input)?;
    let simplifier = planner.simplifier(&below.source_schema);
    let simplify = |expr: Expr| simplified(expr, &simplifier, &below.source_schema);

    let filters = below.filters.iter().cloned().map(simplify).filter(|expr| *expr != lit(true)).collect();
    let (window_index, window, keys) = group(&parts, &below, &simplifier)?;
    let mut aggregates = Vec::new();
    for expr in parts.aggregates {
        let expr = substitute(expr, parts.input.schema(), &below.columns)?;
        aggregates.push(expr.map_children(|child| Ok(Transformed::yes(simplify(child))))?.data);
    }
    refuse_window_below(&below.filters, &aggregates)?;
    let above = above::within_windows(above, window_index, window, &simplifier)?;
    Ok(Cut {
        source: below.source,
        window,
        source_schema: below.source_schema,
        filters,
        keys,
        window_index,
        aggregates,
        output_schema: parts.schema,
        above,
    })
}

fn is_aggregate(plan: &LogicalPlan) -> bool {
    matches!(plan, LogicalPlan::Aggregate(_) | LogicalPlan::Distinct(Distinct::All(_)))
}

/// How many aggregates lie on the way to the source. The way has no forks: joins and unions are refused.
fn aggregates(plan: &LogicalPlan) -> Result<usize, Refusal> {
    let inputs = plan.inputs();
    let below = match inputs.as_slice() {
        [] => 0,
        [input] => aggregates(input)?,
        _ => {
            return refuse(Anchor::Query, "joins and unions are not supported yet", "read one table in FROM");
        }
    };
    Ok(below + usize::from(is_aggregate(plan)))
}

/// The plan with a leaf in place of its lowest aggregate, and that aggregate.
fn split(plan: LogicalPlan, aggregates_above: usize) -> Result<(LogicalPlan, LogicalPlan), Refusal> {
    let mut seen = 0;
    let mut lowest = None;
    let above = plan.transform_down(|node| {
        if !is_aggregate(&node) {
            return Ok(Transformed::no(node));
        }
        seen += 1;
        if seen <= aggregates_above {
            return Ok(Transformed::no(node));
        }
        let leaf = WindowedRows { schema: Arc::clone(node.schema()) };
        lowest = Some(node);
        let leaf = LogicalPlan::Extension(Extension { node: Arc::new(leaf) });
        Ok(Transformed::new(leaf, true, TreeNodeRecursion::Stop))
    })?;
    match lowest {
        Some(lowest) => Ok((above.data, lowest)),
        None => refuse(Anchor::Query, "the query counts nothing in a window", GROUP_BY_WINDOW),
    }
}

/// An Aggregate, or a DISTINCT as an aggregate without functions.
struct Parts<'a> {
    input: &'a LogicalPlan,
    group: Vec<Expr>,
    aggregates: &'a [Expr],
    schema: DFSchemaRef,
}

impl<'a> Parts<'a> {
    fn of(plan: &'a LogicalPlan) -> Result<Self, Refusal> {
        match plan {
            LogicalPlan::Aggregate(aggregate) => Ok(Self {
                input: &aggregate.input,
                group: distinct(&aggregate.group_expr),
                aggregates: &aggregate.aggr_expr,
                schema: Arc::clone(&aggregate.schema),
            }),
            LogicalPlan::Distinct(Distinct::All(input)) => Ok(Self {
                input,
                group: input.schema().columns().into_iter().map(Expr::Column).collect(),
                aggregates: &[],
                schema: Arc::clone(input.schema()),
            }),
            _ => refuse(Anchor::Query, "the query counts nothing in a window", GROUP_BY_WINDOW),
        }
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

type Keys = Vec<(usize, Expr)>;

/// The window's place, the window, and the keys besides it.
fn group(
    parts: &Parts<'_>,
    below: &Inlined,
    simplifier: &ExprSimplifier,
) -> Result<(usize, Tumble, Keys), Refusal> {
    let mut window = None;
    let mut keys = Vec::new();
    for (index, expr) in parts.group.iter().enumerate() {
        if matches!(expr, Expr::GroupingSet(_)) {
            let help = "write one GROUP BY of a window and columns";
            return refuse(Anchor::Innermost, "GROUPING SETS, ROLLUP and CUBE are not supported yet", help);
        }
        let expr = substitute(expr, parts.input.schema(), &below.columns)?;
        if let Some(width) = tumble_argument(&expr) {
            if window.is_some() {
                return refuse(Anchor::Innermost, "a GROUP BY has one window", "leave the second one out");
            }
            window = Some((index, Tumble { width_ns: width_ns(width, simplifier)? }));
        } else if calls_tumble(&expr) {
            let help = "write GROUP BY window, and window.start in the SELECT list";
            return refuse(Anchor::Tumble, "group by the window itself, not by a part of it", help);
        } else {
            keys.push((index, simplified(expr, simplifier, &below.source_schema)));
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

/// The window's width, constant and above zero.
pub(crate) fn width_ns(width: &Expr, simplifier: &ExprSimplifier) -> Result<i64, Refusal> {
    const HELP: &str = "write tumble(INTERVAL '2 seconds')";
    match simplifier.simplify(width.clone()) {
        Ok(Expr::Literal(value, _)) => match interval_ns(&value) {
            Ok(width) if width > 0 => Ok(width),
            Ok(_) => refuse(Anchor::Tumble, "the window's width must be above zero", HELP),
            Err(why) => refuse(Anchor::Tumble, format!("the window's width: {why}"), HELP),
        },
        _ => refuse(Anchor::Tumble, "the window's width must be a constant interval", HELP),
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

pub(crate) fn calls_tumble(expr: &Expr) -> bool {
    // The closure never fails.
    expr.exists(|expr| Ok(tumble_argument(expr).is_some())).unwrap_or(false)
}

fn refuse_window_below(filters: &[Expr], aggregates: &[Expr]) -> Result<(), Refusal> {
    if filters.iter().any(calls_tumble) {
        let help = "write the condition in HAVING, or in the WHERE of an outer SELECT";
        return refuse(Anchor::Tumble, "WHERE below the GROUP BY cannot see the window", help);
    }
    if aggregates.iter().any(calls_tumble) {
        let help = "window.start and window.end are the same for all its rows: select them directly";
        return refuse(Anchor::Tumble, format!("an aggregate cannot take {TUMBLE}()"), help);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::sql::{SqlFile, plan_program};

    fn shipped(name: &str) -> SqlFile {
        let path = format!("{}/sql/{name}", env!("CARGO_MANIFEST_DIR"));
        SqlFile { name: format!("sql/{name}"), text: std::fs::read_to_string(path).unwrap() }
    }

    #[test]
    fn the_shipped_files_plan() {
        let program = plan_program(&[shipped("emoji_counts.sql"), shipped("tables.sql")]).unwrap();
        assert_eq!(program.tables.len(), 2);
        let query = &program.queries[0];
        assert_eq!((query.name.as_str(), query.sink.name.as_str()), ("emoji_counts", "emoji_counts"));
        assert_eq!(query.cut.window.width_ns, 2_000_000_000);
        assert_eq!(query.cut.keys.len(), 2);
    }
}
