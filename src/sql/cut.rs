//! The cut: an analysed plan divided at its windowed aggregates.
//!
//! ```text
//!  Projection, Filter, Sort, Join, …          above: an ordinary plan, run over the rows of a closed window
//!  WindowedRows                               its leaves, in place of
//!  ─ ─ Aggregate group by [tumble(…), keys] ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ the cut
//!  Projection, Filter, SubqueryAlias, Union   below: inlined into expressions over the record,
//!  Join with StaticRows                       and lookups
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

use super::functions::{WindowCall, interval_ns, window_call};
use super::inline::{Inlined, inline, substitute};
use super::parts::union_parts;
use super::planner::Planner;
use super::statics::{Step, with_leaves};
use super::{above, aggregates};

/// How event time is divided into windows. Tumbling and hopping ones align to the Unix epoch. All spans are in
/// nanoseconds, above 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Windowing {
    /// Windows side by side.
    Tumble {
        /// The length of a window.
        width_ns: i64,
    },
    /// Windows that overlap.
    Hop {
        /// From one window's start to the next one's.
        slide_ns: i64,
        /// The length of a window: a multiple of the slide.
        width_ns: i64,
    },
    /// One window per group and burst of rows.
    Session {
        /// A row this long after the last one, or longer, starts a new session.
        gap_ns: i64,
    },
}

impl fmt::Display for Windowing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |ns: &i64| format!("{} s", *ns as f64 / 1e9);
        match self {
            Self::Tumble { width_ns } => write!(f, "tumble({})", seconds(width_ns)),
            Self::Hop { slide_ns, width_ns } => {
                write!(f, "hop({}, {})", seconds(slide_ns), seconds(width_ns))
            }
            Self::Session { gap_ns } => write!(f, "session({})", seconds(gap_ns)),
        }
    }
}

/// A windowed aggregate. Every expression is written in terms of a source table's columns (projections and sub-selects
/// are inlined), so that it is evaluated on a record as it was read.
#[derive(Clone, Debug)]
pub struct Cut {
    /// How event time is divided.
    pub windowing: Windowing,
    /// What is aggregated: one input, or one for each branch of a UNION ALL below the window.
    pub inputs: Vec<Input>,
    /// The window's place among the aggregate's group expressions.
    pub window_index: usize,
    /// The aggregate's output: group expressions (the window as `struct<start, end>`), then aggregates.
    pub output_schema: DFSchemaRef,
}

/// Rows of one source on their way into a windowed aggregate.
#[derive(Clone, Debug)]
pub struct Input {
    /// The source table's name.
    pub source: String,
    /// The source's columns, as the expressions name them: all of them, in declaration order.
    pub source_schema: DFSchemaRef,
    /// The same and behind them the columns of static tables: what a row has once it has gone through all steps.
    pub row_schema: DFSchemaRef,
    /// WHEREs and static joins below the window, innermost first. Keys and aggregates are evaluated only on rows that pass
    /// them all.
    pub steps: Vec<Step>,
    /// The group keys besides the window, in order. A key may be a constant (`SELECT 'all' AS room` below the window).
    pub keys: Vec<Expr>,
    /// The aggregate functions, each an `Expr::AggregateFunction`; none for a SELECT DISTINCT.
    pub aggregates: Vec<Expr>,
}

impl Cut {
    /// How many keys there are besides the window.
    pub fn keys(&self) -> usize {
        self.inputs.first().map_or(0, |input| input.keys.len())
    }

    /// What the state of open windows depends on: sources, window, filters, keys, aggregates and their types. Stable
    /// between runs and builds; an edit above the cut leaves it as it is.
    pub fn identity(&self) -> String {
        self.identity_over(&self.inputs)
    }

    /// The same for the rows of one of its inputs: two of them with one identity have the same partial aggregates.
    pub fn identity_of(&self, input: &Input) -> String {
        self.identity_over(std::slice::from_ref(input))
    }

    fn identity_over(&self, inputs: &[Input]) -> String {
        let mut text = format!("{:?}\n{}", self.windowing, self.window_index);
        for input in inputs {
            text += &format!("\nfrom {}", input.source);
            for step in &input.steps {
                text += &format!("\n{step}");
            }
            for (what, exprs) in [("key", &input.keys), ("aggregate", &input.aggregates)] {
                for expr in exprs {
                    text += &format!("\n{what} {expr}");
                }
            }
        }
        for field in self.output_schema.fields() {
            text += &format!("\n{}", field.data_type());
        }
        text
    }

    /// What makes rows one session of it, and the gap; `None` for windows of other kinds.
    pub fn sessions(&self) -> Option<(String, i64)> {
        let Windowing::Session { gap_ns } = self.windowing else { return None };
        let mut text = format!("{gap_ns}");
        for input in &self.inputs {
            text += &format!("\nfrom {}", input.source);
            input.steps.iter().for_each(|step| text += &format!("\n{step}"));
            input.keys.iter().for_each(|key| text += &format!("\nkey {key}"));
        }
        Some((text, gap_ns))
    }
}

/// FNV-1a, 64 bits, as 16 hexadecimal digits: <http://www.isthe.com/chongo/tech/comp/fnv/>. The standard library's
/// hasher may change.
pub(crate) fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> String {
    let hash = bytes.into_iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// What an INSERT writes, or one branch of its UNION ALL.
#[derive(Clone, Debug)]
pub enum Part {
    /// Rows of closed windows.
    Windowed(Box<Windowed>),
    /// Rows of a source, one by one, as they come.
    RowWise(RowWise),
}

/// The plan above one or several cuts of the same window; it ends in the sink's columns and types, by position.
#[derive(Clone, Debug)]
pub struct Windowed {
    /// The cuts' windows, which are the same.
    pub windowing: Windowing,
    /// Places among the query's cuts, without repetition.
    pub cuts: Vec<usize>,
    /// Its leaves are [`WindowedRows`].
    pub above: LogicalPlan,
    /// The same as expressions over the cut's output, where the plan is only filters and projections over one cut.
    pub row_by_row: Option<RowByRow>,
}

/// Filters, static joins and projections over the rows of a cut: needs no plan to be run.
#[derive(Clone, Debug)]
pub struct RowByRow {
    /// The cut's output, as the expressions name its columns.
    pub schema: DFSchemaRef,
    /// WHEREs and static joins, innermost first.
    pub steps: Vec<Step>,
    /// The sink's columns, by position.
    pub columns: Vec<Expr>,
}

/// A SELECT without a window: filters and expressions over a source's columns.
#[derive(Clone, Debug)]
pub struct RowWise {
    /// The source table's name.
    pub source: String,
    /// The source's columns, as the expressions name them.
    pub source_schema: DFSchemaRef,
    /// WHEREs and static joins, innermost first.
    pub steps: Vec<Step>,
    /// The sink's columns, by position.
    pub columns: Vec<Expr>,
}

/// The leaf of the plan above the cut: the rows of closed windows. The engine's physical planner puts its own
/// execution plan here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WindowedRows {
    /// The cut's place among the query's cuts.
    pub cut: usize,
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
        write!(f, "WindowedRows: cut {}", self.cut)
    }

    fn with_exprs_and_inputs(&self, _exprs: Vec<Expr>, _inputs: Vec<LogicalPlan>) -> Result<Self> {
        Ok(self.clone())
    }
}

/// Where a refusal points, to be looked up in the query's syntax tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Anchor {
    /// The window call.
    Window,
    /// The first table that is joined.
    Join,
    /// The table whose name the message quotes first.
    Table,
    /// The GROUP BY or DISTINCT next to the source, or its first aggregate function.
    Innermost,
    /// The GROUP BY, DISTINCT or OVER furthest from the source.
    Outermost,
    /// The aggregate function that the message begins with.
    Function,
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

pub(crate) const GROUP_BY_WINDOW: &str =
    "write SELECT tumble(INTERVAL '2 seconds') AS window, … GROUP BY window, …";

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

/// The windowing that a call says, all its spans constant and above zero.
pub(crate) fn windowing(
    call: WindowCall,
    arguments: &[Expr],
    simplifier: &ExprSimplifier,
) -> Result<Windowing, Refusal> {
    let span = |index: usize, what: &str| match arguments.get(index) {
        Some(argument) => span_ns(argument, &format!("{call}'s {what}"), call, simplifier),
        None => refuse(Anchor::Window, format!("{call} lacks its {what}"), call.example()),
    };
    Ok(match call {
        WindowCall::Tumble => Windowing::Tumble { width_ns: span(0, "width")? },
        WindowCall::Session => Windowing::Session { gap_ns: span(0, "gap")? },
        WindowCall::Hop => {
            let (slide_ns, width_ns) = (span(0, "slide")?, span(1, "width")?);
            if width_ns % slide_ns != 0 {
                let message =
                    "hop's width must be a multiple of its slide, so that windows share their parts";
                return refuse(Anchor::Window, message, call.example());
            }
            match width_ns / slide_ns {
                1 => Windowing::Tumble { width_ns },
                2..=MAX_OVERLAP => Windowing::Hop { slide_ns, width_ns },
                overlap => {
                    let message = format!("every row would be in {overlap} windows; at most {MAX_OVERLAP}");
                    return refuse(Anchor::Window, message, "make the slide longer");
                }
            }
        }
    })
}

/// The most windows of one hop that a row may be in: a day by the half minute.
const MAX_OVERLAP: i64 = 2_880;

fn span_ns(span: &Expr, what: &str, call: WindowCall, simplifier: &ExprSimplifier) -> Result<i64, Refusal> {
    match simplifier.simplify(span.clone()) {
        Ok(Expr::Literal(value, _)) => match interval_ns(&value) {
            Ok(span) if span > 0 => Ok(span),
            Ok(_) => refuse(Anchor::Window, format!("{what} must be above zero"), call.example()),
            Err(why) => refuse(Anchor::Window, format!("{what}: {why}"), call.example()),
        },
        _ => refuse(Anchor::Window, format!("{what} must be a constant interval"), call.example()),
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

pub(crate) fn calls_window(expr: &Expr) -> bool {
    // The closure never fails.
    expr.exists(|expr| Ok(window_call(expr).is_some())).unwrap_or(false)
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
        let sink = &query.outputs[0].sink;
        assert_eq!((query.name.as_str(), sink.name.as_str()), ("emoji_counts", "emoji_counts"));
        assert_eq!(query.cuts[0].windowing, super::Windowing::Tumble { width_ns: 2_000_000_000 });
        assert_eq!(query.cuts[0].keys(), 2);
    }
}
