//! The cut: an analysed plan divided at its windowed aggregate.

use datafusion::common::DFSchemaRef;
use datafusion::logical_expr::{Expr, LogicalPlan};

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
    /// How event time is divided.
    pub window: Tumble,
    /// The source's columns, as the expressions name them.
    pub source_schema: DFSchemaRef,
    /// Conjuncts of all WHEREs below the window, innermost first.
    pub filters: Vec<Expr>,
    /// The group keys besides the window, with their place among the aggregate's group expressions.
    pub keys: Vec<(usize, Expr)>,
    /// The window's place among the aggregate's group expressions.
    pub window_index: usize,
    /// The aggregate functions.
    pub aggregates: Vec<Expr>,
    /// The aggregate's output: group expressions (the window as `struct<start, end>`), then aggregates.
    pub output_schema: DFSchemaRef,
    /// The plan above; the aggregate is replaced by an opaque leaf of `output_schema`.
    pub above: LogicalPlan,
}
