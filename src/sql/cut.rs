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

mod divide;

use std::cmp::Ordering;
use std::fmt;

use datafusion::common::{DFSchemaRef, Result};
use datafusion::logical_expr::{Expr, LogicalPlan, UserDefinedLogicalNodeCore};

use super::statics::Step;
pub use super::windowing::Windowing;
pub(crate) use divide::parts;

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
