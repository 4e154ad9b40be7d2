//! A query's cut, compiled: what to read of a record, how to judge a row, what to keep of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::{Column, DFSchema, Result, internal_datafusion_err, plan_err};
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::execution_props::ExecutionProps;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::utils::expr_to_columns;
use datafusion::physical_expr::aggregate::LoweredAggregateBuilder;

use super::above::Above;
use super::aggregate::{Aggregate, Aggregation};
use super::change::Rhythm;
use super::expression::RowExpr;
use super::window::Panes;
use crate::log::codec;
use crate::reaction::checkpoint::Checkpoint;
use crate::reaction::table::Table;
use crate::sql;

/// A query ready to run. Shared by its partitions.
#[derive(Debug)]
pub struct CompiledQuery {
    /// The file's name without `.sql`.
    pub name: String,
    /// The table it reads.
    pub source: Table,
    /// The table it writes.
    pub sink: Table,
    /// Identity of the plan at and below the cut.
    pub fingerprint: String,
    pub(crate) panes: Panes,
    pub(crate) delay_ns: i64,
    pub(crate) schema: SchemaRef,
    /// The source columns that are read, by place in the table.
    pub(crate) columns: Vec<usize>,
    /// The event time's place among `columns`.
    pub(crate) event_time: usize,
    pub(crate) filters: Vec<RowExpr>,
    pub(crate) aggregation: Aggregation,
    pub(crate) above: Above,
}

impl CompiledQuery {
    /// Compiles a planned query.
    ///
    /// # Errors
    /// What DataFusion says of an expression that cannot be compiled.
    pub fn compile(query: &sql::Query) -> Result<Self> {
        let cut = &query.cut;
        let Some(watermark) = &query.source.watermark else {
            return plan_err!("table {} has no WATERMARK FOR", query.source.name);
        };
        let Some((event_place, _)) = query.source.column(&watermark.column) else {
            return plan_err!("table {} has no column {}", query.source.name, watermark.column);
        };
        let columns = columns_read(cut, event_place)?;
        let fields = columns.iter().map(|&place| {
            let (relation, field) = cut.source_schema.qualified_field(place);
            (relation.cloned(), Arc::clone(field))
        });
        let read = DFSchema::new_with_metadata(fields.collect(), Default::default())?;
        let compile = |expr: &Expr| RowExpr::compile(expr, &read);
        let aggregates = cut.aggregates.iter().map(|aggregate| compile_aggregate(aggregate, &read));
        let aggregation = Aggregation {
            keys: cut.keys.iter().map(|(_, key)| compile(key)).collect::<Result<_>>()?,
            aggregates: aggregates.collect::<Result<_>>()?,
            window_index: cut.window_index,
            output: Arc::clone(cut.output_schema.inner()),
        };
        let event_time = columns.iter().position(|&place| place == event_place);
        Ok(Self {
            name: query.name.clone(),
            source: query.source.clone(),
            sink: query.sink.clone(),
            fingerprint: cut.fingerprint(),
            panes: Panes::new(cut.window.width_ns),
            delay_ns: watermark.delay_ns,
            schema: codec::arrow_schema(&query.source),
            event_time: event_time.ok_or_else(|| internal_datafusion_err!("the event time is not read"))?,
            columns,
            filters: cut.filters.iter().map(compile).collect::<Result<_>>()?,
            aggregation,
            above: Above::plan(&cut.above, Arc::clone(cut.output_schema.inner()))?,
        })
    }
}

impl CompiledQuery {
    /// The checkpoint of another plan that has emitted windows, and up to where: this one takes over from there.
    pub(super) fn taken_over<'a>(&self, checkpoint: &'a Checkpoint) -> Option<(&'a Checkpoint, i64)> {
        let is_other = checkpoint.topic == self.source.topic && checkpoint.fingerprint != self.fingerprint;
        checkpoint.emitted.filter(|_| is_other).map(|emitted| (checkpoint, emitted))
    }

    /// How its windows lie in event time.
    pub fn rhythm(&self) -> Rhythm {
        Rhythm { slide_ns: self.panes.width_ns(), width_ns: self.panes.width_ns() }
    }
}

/// The places of the source columns that the query names, and of the event time, in order.
fn columns_read(cut: &sql::cut::Cut, event_place: usize) -> Result<Vec<usize>> {
    let mut named = std::collections::HashSet::new();
    let keys = cut.keys.iter().map(|(_, key)| key);
    for expr in cut.filters.iter().chain(keys).chain(&cut.aggregates) {
        expr_to_columns(expr, &mut named)?;
    }
    let mut places = BTreeSet::from([event_place]);
    for column in &named {
        places.insert(place_of(&cut.source_schema, column)?);
    }
    Ok(places.into_iter().collect())
}

fn place_of(schema: &DFSchema, column: &Column) -> Result<usize> {
    schema.index_of_column(column)
}

fn compile_aggregate(expr: &Expr, read: &DFSchema) -> Result<Aggregate> {
    let context = PhysicalPlanningContext::default();
    let props = ExecutionProps::new();
    let lowered = LoweredAggregateBuilder::new(expr, read, read.as_arrow(), &props, &context).build()?;
    if lowered.aggregate.order_sensitivity() == AggregateOrderSensitivity::HardRequirement {
        return plan_err!("{} needs its input sorted, which is not built yet", lowered.aggregate.name());
    }
    let mut arguments = lowered.aggregate.expressions();
    arguments.extend(lowered.aggregate.order_bys().iter().map(|order| Arc::clone(&order.expr)));
    let arguments = arguments.into_iter().map(|argument| RowExpr::from_physical(argument, read.as_arrow()));
    let filter = lowered.filter.map(|filter| RowExpr::from_physical(filter, read.as_arrow())).transpose()?;
    Ok(Aggregate { arguments: arguments.collect::<Result<_>>()?, function: lowered.aggregate, filter })
}
