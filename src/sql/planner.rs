//! A query's syntax tree → analysed plan, by DataFusion's SQL planner over the declared tables and views.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::{DFSchema, Result, TableReference, plan_err};
use datafusion::logical_expr::planner::{ContextProvider, ExprPlanner};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{
    AggregateUDF, Expr, HigherOrderUDF, LogicalPlan, ScalarUDF, TableSource, WindowUDF,
};
use datafusion::optimizer::Analyzer;
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::sql::planner::{PlannerContext, SqlToRel};
use datafusion::sql::sqlparser::ast::{Expr as SqlExpr, Query, Statement};

use super::functions::{Functions, interval_ns};
use crate::reaction::schema::arrow_schema;
use crate::reaction::table::{Table, TableKind};

/// What a name in FROM stands for.
#[derive(Clone)]
pub(crate) enum Relation {
    /// A declared table.
    Table(Table),
    /// The analysed plan of a `CREATE VIEW`.
    View(LogicalPlan),
    /// Declared, but wrongly: what reads it is not reported a second time.
    Broken,
}

/// The session: settings, functions, tables.
pub(crate) struct Planner {
    config: Arc<ConfigOptions>,
    pub(crate) functions: Functions,
    pub(crate) relations: BTreeMap<String, Relation>,
    /// The declared columns of tables where they are not the physical ones, as a plan over those.
    pub(crate) declared: BTreeMap<String, LogicalPlan>,
}

impl Planner {
    /// Without tables.
    pub(crate) fn new() -> Self {
        let mut config = ConfigOptions::default();
        config.sql_parser.map_string_types_to_utf8view = false;
        config.sql_parser.collect_spans = true;
        config.execution.target_partitions = 1;
        Self {
            config: Arc::new(config),
            functions: Functions::new(),
            relations: BTreeMap::new(),
            declared: BTreeMap::new(),
        }
    }

    /// The query's plan after type coercion, before any optimiser rule.
    pub(crate) fn plan(&self, query: Query) -> Result<LogicalPlan> {
        let plan = SqlToRel::new(self).sql_statement_to_plan(Statement::Query(Box::new(query)))?;
        self.analyse(plan)
    }

    /// Resolves types; the plan is executable afterwards.
    pub(crate) fn analyse(&self, plan: LogicalPlan) -> Result<LogicalPlan> {
        Analyzer::new().execute_and_check(plan, &self.config, |_, _| {})
    }

    /// A simplifier over expressions of that schema. Knows no time of day: `now()` has been refused before.
    pub(crate) fn simplifier(&self, schema: &Arc<DFSchema>) -> ExprSimplifier {
        let context = SimplifyContext::builder()
            .with_config_options(Arc::clone(&self.config))
            .with_schema(Arc::clone(schema))
            .build();
        ExprSimplifier::new(context)
    }

    /// The value of a literal INTERVAL in nanoseconds. None when the expression is none; the error says what is wrong
    /// with it.
    pub(crate) fn constant_interval(&self, expr: &SqlExpr) -> Option<std::result::Result<i64, String>> {
        let SqlExpr::Interval(interval) = expr else { return None };
        let planned =
            SqlToRel::new(self).sql_to_expr(expr.clone(), &DFSchema::empty(), &mut PlannerContext::new());
        match planned {
            Ok(Expr::Literal(value, _)) => Some(interval_ns(&value)),
            _ => Some(Err(format!("{interval} is no interval"))),
        }
    }

    /// Whether a literal INTERVAL can be read.
    pub(crate) fn is_readable_interval(&self, expr: &SqlExpr) -> bool {
        SqlToRel::new(self).sql_to_expr(expr.clone(), &DFSchema::empty(), &mut PlannerContext::new()).is_ok()
    }
}

struct Source {
    schema: SchemaRef,
    plan: Option<LogicalPlan>,
}

impl Source {
    fn of_plan(plan: &LogicalPlan) -> Self {
        Self { schema: Arc::new(plan.schema().as_arrow().clone()), plan: Some(plan.clone()) }
    }
}

impl TableSource for Source {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn get_logical_plan(&self) -> Option<Cow<'_, LogicalPlan>> {
        self.plan.as_ref().map(Cow::Borrowed)
    }
}

impl ContextProvider for Planner {
    fn get_table_source(&self, name: TableReference) -> Result<Arc<dyn TableSource>> {
        match self.relations.get(name.table()) {
            Some(Relation::Table(table)) if table.kind == TableKind::Source => {
                Ok(Arc::new(match self.declared.get(&table.name) {
                    Some(plan) => Source::of_plan(plan),
                    None => Source { schema: arrow_schema(table), plan: None },
                }))
            }
            Some(Relation::View(plan)) => Ok(Arc::new(Source::of_plan(plan))),
            _ => plan_err!("no source table or view is called '{name}'"),
        }
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        &self.functions.planners
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        self.functions.scalar.get(name).cloned()
    }

    fn get_higher_order_meta(&self, name: &str) -> Option<Arc<HigherOrderUDF>> {
        self.functions.higher_order.get(name).cloned()
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        self.functions.aggregate.get(name).cloned()
    }

    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        self.functions.window.get(name).cloned()
    }

    fn get_variable_type(&self, _variable_names: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        &self.config
    }

    fn udf_names(&self) -> Vec<String> {
        self.functions.scalar.keys().cloned().collect()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        self.functions.higher_order.keys().cloned().collect()
    }

    fn udaf_names(&self) -> Vec<String> {
        self.functions.aggregate.keys().cloned().collect()
    }

    fn udwf_names(&self) -> Vec<String> {
        self.functions.window.keys().cloned().collect()
    }
}
