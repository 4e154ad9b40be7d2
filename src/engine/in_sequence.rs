//! UNION ALL above the cut, one input after the other. Pure.
//!
//! DataFusion's own union has a partition per input, and whatever puts partitions together starts a task for each: here
//! a closed window's plan is run where it stands, without a runtime. The rule is applied before DataFusion's, so that
//! they see one partition in no order.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, ReplaceChildrenOptions};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning, PlanProperties,
};
use futures::{StreamExt, stream};

/// Puts [`InSequenceExec`] in place of every union.
#[derive(Debug)]
pub(super) struct UnionsInSequence;

impl PhysicalOptimizerRule for UnionsInSequence {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| {
            if !node.is::<UnionExec>() {
                return Ok(Transformed::no(node));
            }
            let inputs = node.children().into_iter().cloned().collect();
            let properties = Arc::new(PlanProperties::new(
                EquivalenceProperties::new(node.schema()),
                Partitioning::UnknownPartitioning(1),
                EmissionType::Final,
                Boundedness::Bounded,
            ));
            Ok(Transformed::yes(Arc::new(InSequenceExec { inputs, properties }) as Arc<dyn ExecutionPlan>))
        })
        .data()
    }

    fn name(&self) -> &'static str {
        "unions_in_sequence"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The rows of its inputs, one input after the other.
#[derive(Debug)]
struct InSequenceExec {
    inputs: Vec<Arc<dyn ExecutionPlan>>,
    properties: Arc<PlanProperties>,
}

impl DisplayAs for InSequenceExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InSequenceExec")
    }
}

impl ExecutionPlan for InSequenceExec {
    fn name(&self) -> &'static str {
        "InSequenceExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        self.inputs.iter().collect()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        inputs: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(Self { inputs, properties: Arc::clone(&self.properties) }))
    }

    fn with_new_children(
        self: Arc<Self>,
        inputs: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(Self { inputs, properties: Arc::clone(&self.properties) }))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if partition != 0 {
            return internal_err!("inputs in sequence have one partition, not {partition}");
        }
        let mut parts = Vec::new();
        for input in &self.inputs {
            for partition in 0..input.output_partitioning().partition_count() {
                parts.push(input.execute(partition, Arc::clone(&context))?);
            }
        }
        let schema = self.schema();
        // Inputs may differ from the union in names and in what may be null.
        let renamed = move |batch: Result<RecordBatch>| {
            Ok(RecordBatch::try_new(Arc::clone(&schema), batch?.columns().to_vec())?)
        };
        let rows = stream::iter(parts).flatten().map(renamed);
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}
