//! The plan above the cut: each closed window is an ordinary DataFusion query over that window's rows.
//!
//! One plan, made once, run per window: its leaf takes the rows of the run, `reset_plan_states` clears what the
//! operators kept. The leaf's statistics are unknown, so that nothing is folded into a constant.

use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, SessionStateBuilder, TaskContext};
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{LogicalPlan, UserDefinedLogicalNode};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{
    Boundedness, EmissionType, ReplaceChildrenOptions, reset_plan_states,
};
use datafusion::physical_plan::memory::MemoryStream;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, collect,
};
use datafusion::physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner};
use datafusion::prelude::SessionConfig;

use crate::sql::cut::WindowedRows;

/// The compiled plan above the cut.
#[derive(Debug)]
pub(crate) struct Above {
    plan: Arc<dyn ExecutionPlan>,
    rows: Arc<Mutex<Option<RecordBatch>>>,
    context: Arc<TaskContext>,
}

impl Above {
    /// Optimises and compiles the part above the cut; `schema` is what the windowed aggregate yields.
    pub(crate) fn plan(above: &LogicalPlan, schema: SchemaRef) -> Result<Self> {
        let config = SessionConfig::new().with_target_partitions(1);
        let state = SessionStateBuilder::new().with_config(config).with_default_features().build();
        let rows = Arc::new(Mutex::new(None));
        let leaf: Arc<dyn ExecutionPlan> = Arc::new(WindowedRowsExec::new(schema, Arc::clone(&rows)));
        let planner = DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(LeafPlanner { leaf })]);
        let optimized = state.optimize(above)?;
        // Planning is async for the sake of remote catalogs; nothing here waits.
        let plan = futures::executor::block_on(planner.create_physical_plan(&optimized, &state))?;
        Ok(Self { plan, rows, context: state.task_ctx() })
    }

    /// Runs the plan over the rows of one window. The batches have the sink's columns and types, by position.
    pub(crate) fn run(&self, rows: RecordBatch) -> Result<Vec<RecordBatch>> {
        *self.rows.lock().unwrap_or_else(PoisonError::into_inner) = Some(rows);
        let plan = reset_plan_states(Arc::clone(&self.plan))?;
        // With one partition over a leaf in memory no operator waits for anything. Unconstrained: inside a task the
        // operators would spend the task's budget and then wait for a yield that a blocked task never makes.
        let run = tokio::task::unconstrained(collect(plan, Arc::clone(&self.context)));
        futures::executor::block_on(run)
    }
}

struct LeafPlanner {
    leaf: Arc<dyn ExecutionPlan>,
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
        Ok(node.as_any().is::<WindowedRows>().then(|| Arc::clone(&self.leaf)))
    }
}

/// The leaf: the rows of the window of this run.
#[derive(Debug)]
struct WindowedRowsExec {
    schema: SchemaRef,
    rows: Arc<Mutex<Option<RecordBatch>>>,
    properties: Arc<PlanProperties>,
}

impl WindowedRowsExec {
    fn new(schema: SchemaRef, rows: Arc<Mutex<Option<RecordBatch>>>) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        Self { schema, rows, properties: Arc::new(properties) }
    }
}

impl DisplayAs for WindowedRowsExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WindowedRowsExec")
    }
}

impl ExecutionPlan for WindowedRowsExec {
    fn name(&self) -> &'static str {
        "WindowedRowsExec"
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
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Box::pin(MemoryStream::try_new(rows.into_iter().collect(), Arc::clone(&self.schema), None)?))
    }
}
