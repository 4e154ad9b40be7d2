//! The plan above the cut: what is made of the rows of closed windows.
//!
//! Filters, lookups and projections are evaluated over all closed windows at once. Anything else is an ordinary DataFusion plan,
//! made once and run per window: its leaves take the rows of the run, `reset_plan_states` clears what the operators
//! kept. The leaves' statistics are unknown, so that nothing is folded into a constant. Rows of a window in parts come as a
//! stream, to operators that have so much memory and no more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, SessionStateBuilder, TaskContext};
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{LogicalPlan, UserDefinedLogicalNode};
use datafusion::optimizer::{Optimizer, OptimizerRule};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::execution_plan::{
    Boundedness, EmissionType, ReplaceChildrenOptions, reset_plan_states,
};
use datafusion::physical_plan::memory::MemoryStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, collect, execute_stream,
};
use datafusion::physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner};
use datafusion::prelude::SessionConfig;
use futures::StreamExt;

use super::closed::{ClosedRows, WindowRows};
use super::expression::{RowExpr, Rows};
use super::in_sequence::UnionsInSequence;
use super::spill::Spill;
use super::statics::StaticTables;
use super::steps::{self, Step};
use crate::reaction::time::Window;
use crate::sql::cut::{RowByRow, Windowed, WindowedRows};
use crate::sql::statics::{StaticRows, leaves};
use crate::sync::lock;

/// The compiled plan above the cuts of one window.
#[derive(Debug)]
pub(crate) enum Above {
    /// Filters, static joins and projections over one cut's rows.
    RowByRow { cut: usize, input: SchemaRef, steps: Vec<Step>, columns: Vec<RowExpr> },
    /// Anything else.
    Plan(Plan),
}

/// The rows of the sink of one closed window.
pub(crate) type SinkRows = (Window, RecordBatch);

impl Above {
    /// Compiles the part above; `schemas` are what the query's cuts yield.
    pub(crate) fn plan(part: &Windowed, schemas: Vec<SchemaRef>, statics: &StaticTables) -> Result<Self> {
        let Some((rows, &cut)) = part.row_by_row.as_ref().zip(part.cuts.first()) else {
            return Ok(Self::Plan(Plan::new(part, schemas, statics)?));
        };
        let RowByRow { schema, steps, columns } = rows;
        let named = steps::named(steps.iter().flat_map(steps::Planned::exprs).chain(columns))?;
        let (steps, row) = steps::compile(steps, schema.as_ref().clone(), &named, statics)?;
        let compile = |expr| RowExpr::compile(expr, &row);
        let columns = columns.iter().map(compile).collect::<Result<_>>()?;
        Ok(Self::RowByRow { cut, input: Arc::clone(schema.inner()), steps, columns })
    }

    /// The cuts that it reads.
    pub(crate) fn cuts(&self) -> Vec<usize> {
        match self {
            Self::RowByRow { cut, .. } => vec![*cut],
            Self::Plan(plan) => plan.slots.keys().copied().collect(),
        }
    }

    /// What the closed windows of the cuts (by the cuts' places) give the sink, by window. The batches have the sink's
    /// columns and types, by position.
    pub(crate) fn run(&self, closed: &[ClosedRows]) -> Result<Vec<SinkRows>> {
        match self {
            Self::RowByRow { cut, input, steps, columns } => {
                let Some(closed) = closed.get(*cut) else { return internal_err!("no cut {cut}") };
                row_by_row(closed, input, steps, columns)
            }
            Self::Plan(plan) => plan.run(closed),
        }
    }
}

fn row_by_row(
    closed: &ClosedRows,
    input: &SchemaRef,
    steps: &[Step],
    columns: &[RowExpr],
) -> Result<Vec<SinkRows>> {
    let mut found = of_whole_windows(closed, input, steps, columns)?;
    for (window, parts) in closed.in_parts() {
        let mut results = parts.spill().results();
        for batch in parts.batches() {
            let rows = Rows::new(batch?);
            let rows = steps::apply(steps, &rows)?.unwrap_or(rows);
            if rows.len() > 0 {
                let batch = batch_of(columns, &rows)?;
                results.add(&batch)?;
                found.push((window, batch));
            }
        }
    }
    Ok(found)
}

fn of_whole_windows(
    closed: &ClosedRows,
    input: &SchemaRef,
    steps: &[Step],
    columns: &[RowExpr],
) -> Result<Vec<SinkRows>> {
    // Where each ends.
    let ends = closed.whole().scan(0, |end, (window, batch)| {
        *end += batch.num_rows();
        Some((window, *end))
    });
    let ends: Vec<(Window, usize)> = ends.collect();
    if ends.is_empty() {
        return Ok(Vec::new());
    }
    let all = Rows::new(closed.together(input)?).numbered();
    let rows = steps::apply(steps, &all)?.unwrap_or(all);
    let result = batch_of(columns, &rows)?;
    let places = rows.of().map(|of| of.values().to_vec()).unwrap_or_default();
    let window_of = |place: &u32| ends.partition_point(|(_, end)| *end <= *place as usize);
    let mut from = 0;
    let same = places.chunk_by(|a, b| window_of(a) == window_of(b));
    Ok(same
        .map(|same| {
            let (window, _) = ends[window_of(&same[0])];
            from += same.len();
            (window, result.slice(from - same.len(), same.len()))
        })
        .collect())
}

/// The values of the expressions over the rows, side by side.
pub(crate) fn batch_of(columns: &[RowExpr], rows: &Rows) -> Result<RecordBatch> {
    let arrays =
        columns.iter().map(|column| column.evaluate_plain(rows)).collect::<Result<Vec<ArrayRef>>>()?;
    let fields = arrays.iter().enumerate();
    let fields = fields.map(|(at, array)| Field::new(format!("c{at}"), array.data_type().clone(), true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    Ok(RecordBatch::try_new_with_options(schema, arrays, &options)?)
}

/// Where a leaf finds the rows of a run.
type Slot = Arc<Mutex<Option<WindowRows>>>;

/// A plan that is run again and again.
#[derive(Debug)]
pub(crate) struct Plan {
    plan: Arc<dyn ExecutionPlan>,
    /// By cut.
    slots: BTreeMap<usize, (SchemaRef, Slot)>,
    context: Arc<TaskContext>,
}

impl Plan {
    fn new(part: &Windowed, schemas: Vec<SchemaRef>, statics: &StaticTables) -> Result<Self> {
        let config = SessionConfig::new().with_target_partitions(1);
        let mut rules = PhysicalOptimizer::new().rules;
        rules.insert(0, Arc::new(UnionsInSequence));
        let state = SessionStateBuilder::new().with_config(config).with_default_features();
        let state = state.with_optimizer_rules(logical_rules()).with_physical_optimizer_rules(rules).build();
        let slots = schemas.into_iter().enumerate().filter(|(cut, _)| part.cuts.contains(cut));
        let slots: BTreeMap<usize, (SchemaRef, Slot)> =
            slots.map(|(cut, schema)| (cut, (schema, Slot::default()))).collect();
        let of_tables = leaves(&part.above)?.into_iter().map(|leaf| {
            let rows = statics.rows(&leaf)?;
            Ok((leaf, rows))
        });
        let leaves = LeafPlanner { slots: slots.clone(), statics: of_tables.collect::<Result<_>>()? };
        let planner = DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(leaves)]);
        let optimized = state.optimize(&part.above)?;
        // Planning is async for the sake of remote catalogs; nothing here waits.
        let plan = futures::executor::block_on(planner.create_physical_plan(&optimized, &state))?;
        Ok(Self { plan, slots, context: state.task_ctx() })
    }

    fn run(&self, closed: &[ClosedRows]) -> Result<Vec<SinkRows>> {
        let read = self.slots.keys().filter_map(|cut| closed.get(*cut));
        let windows: BTreeSet<Window> = read.flat_map(ClosedRows::windows).collect();
        let mut found = Vec::new();
        for window in windows {
            let mut spill = None;
            for (cut, (schema, slot)) in &self.slots {
                let rows = closed.get(*cut).map(|closed| closed.of(window, schema));
                if let Some(WindowRows::InParts(parts)) = &rows {
                    spill = Some(Arc::clone(parts.spill()));
                }
                *lock(slot) = rows;
            }
            let rows = match spill {
                Some(spill) => self.run_within(&spill)?,
                None => self.run_once()?,
            };
            found.extend(rows.into_iter().filter(|rows| rows.num_rows() > 0).map(|rows| (window, rows)));
        }
        Ok(found)
    }

    fn run_once(&self) -> Result<Vec<RecordBatch>> {
        let plan = reset_plan_states(Arc::clone(&self.plan))?;
        // With one partition over leaves in memory no operator waits for anything. Unconstrained: inside a task the
        // operators would spend the task's budget and then wait for a yield that a blocked task never makes.
        let run = tokio::task::unconstrained(collect(plan, Arc::clone(&self.context)));
        futures::executor::block_on(run)
    }

    /// As [`Self::run_once`], over rows in parts.
    fn run_within(&self, spill: &Spill) -> Result<Vec<RecordBatch>> {
        let plan = reset_plan_states(Arc::clone(&self.plan))?;
        let run = async {
            let mut stream = execute_stream(plan, spill.operators())?;
            let (mut results, mut found) = (spill.results(), Vec::new());
            while let Some(batch) = stream.next().await.transpose()? {
                results.add(&batch)?;
                found.push(batch);
            }
            Ok(found)
        };
        let found = futures::executor::block_on(tokio::task::unconstrained(run));
        // What the window was made of is not kept until the next one.
        for (_, slot) in self.slots.values() {
            *lock(slot) = None;
        }
        found
    }
}

/// DataFusion's rules without the two that move `window.start` towards a file that could read it alone: there is none,
/// and over a join of two aggregates they fail on columns of one name.
fn logical_rules() -> Vec<Arc<dyn OptimizerRule + Send + Sync>> {
    let moves = |name: &str| matches!(name, "extract_leaf_expressions" | "push_down_leaf_projections");
    Optimizer::new().rules.into_iter().filter(|rule| !moves(rule.name())).collect()
}

struct LeafPlanner {
    slots: BTreeMap<usize, (SchemaRef, Slot)>,
    statics: Vec<(StaticRows, RecordBatch)>,
}

#[async_trait]
impl ExtensionPlanner for LeafPlanner {
    async fn plan_extension(
        &self,
        _planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        _logical_inputs: &[&LogicalPlan],
        _physical_inputs: &[Arc<dyn ExecutionPlan>],
        _session: &dyn Session,
        _context: &PhysicalPlanningContext,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        if let Some(leaf) = node.as_any().downcast_ref::<StaticRows>()
            && let Some((_, rows)) = self.statics.iter().find(|(known, _)| known == leaf)
        {
            let slot = Arc::new(Mutex::new(Some(WindowRows::Whole(rows.clone()))));
            return Ok(Some(Arc::new(RowsExec::new(rows.schema(), slot))));
        }
        let cut = node.as_any().downcast_ref::<WindowedRows>().map(|rows| rows.cut);
        let slot = cut.and_then(|cut| self.slots.get(&cut));
        Ok(slot.map(|(schema, slot)| {
            let leaf = RowsExec::new(Arc::clone(schema), Arc::clone(slot));
            Arc::new(leaf) as Arc<dyn ExecutionPlan>
        }))
    }
}

/// The leaf: the rows of the window of this run, or static ones.
#[derive(Debug)]
struct RowsExec {
    schema: SchemaRef,
    rows: Slot,
    properties: Arc<PlanProperties>,
}

impl RowsExec {
    fn new(schema: SchemaRef, rows: Slot) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        Self { schema, rows, properties: Arc::new(properties) }
    }
}

impl DisplayAs for RowsExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RowsExec")
    }
}

impl ExecutionPlan for RowsExec {
    fn name(&self) -> &'static str {
        "RowsExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if partition != 0 {
            return internal_err!("windowed rows have one partition, not {partition}");
        }
        let rows = lock(&self.rows).clone();
        let schema = Arc::clone(&self.schema);
        Ok(match rows {
            Some(WindowRows::InParts(parts)) => {
                let batches = futures::stream::iter(parts.batches());
                Box::pin(RecordBatchStreamAdapter::new(schema, batches))
            }
            Some(WindowRows::Whole(rows)) => Box::pin(MemoryStream::try_new(vec![rows], schema, None)?),
            None => Box::pin(MemoryStream::try_new(Vec::new(), schema, None)?),
        })
    }
}
