//! A query compiled: what to read of a record, how to judge a row, what to keep of it, what to make of a closed window.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use datafusion::common::{Column, DFSchema, DFSchemaRef, Result, internal_datafusion_err, plan_err};
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::execution_props::ExecutionProps;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::physical_expr::aggregate::{AggregateFunctionExpr, LoweredAggregateBuilder};

use super::above::Above;
use super::aggregate::{Aggregation, Arguments};
use super::change::Rhythm;
use super::decode::Columns;
use super::expression::RowExpr;
use super::session_switch::SessionKind;
use super::snapshot::Shape;
use super::statics::StaticTables;
use super::steps::{self, Step};
use super::window::{self, Panes};
use crate::log::ClientConfigs;
use crate::log::codec::RecordCodec;
use crate::reaction::checkpoint::{Checkpoint, Told};
use crate::reaction::table::{SourceOffset, Table};
use crate::sql;
use crate::sql::cut::{Cut, Input, Part, RowWise, Windowing};

/// A query ready to run. Shared by its partitions.
#[derive(Debug)]
pub struct CompiledQuery {
    /// The file's name without `.sql`.
    pub name: String,
    /// What it reads, by table name.
    pub sources: Vec<CompiledSource>,
    /// What it writes, in the text's order.
    pub outputs: Vec<CompiledOutput>,
    /// Identity of the plan at and below the cuts.
    pub fingerprint: String,
    /// What makes rows sessions, where there are any.
    pub(crate) sessions: Option<SessionKind>,
    /// The static tables that it looks rows up in, with their rows' versions.
    pub statics: String,
    pub(crate) cuts: Vec<CompiledCut>,
    /// How the windows of each cut lie in event time.
    pub(crate) windows: Vec<Rhythm>,
}

/// One source table of a query.
#[derive(Debug)]
pub struct CompiledSource {
    /// The table.
    pub table: Table,
    /// How far the watermark stays behind the largest event time.
    pub delay_ns: i64,
    pub(crate) codec: RecordCodec,
    /// The columns that are read.
    pub(crate) columns: Columns,
    /// What its rows go into: each accounts for every row of its own.
    pub(crate) inputs: Vec<CompiledInput>,
}

/// Rows of a source on their way into a cut or straight into an output.
#[derive(Debug)]
pub(crate) struct CompiledInput {
    pub(crate) steps: Vec<Step>,
    pub(crate) into: Target,
    /// What its rows are in panes depends on: queries with the same one can share that. `None` where there are no panes.
    pub(crate) identity: Option<Arc<str>>,
}

/// Where an input's rows go.
#[derive(Debug)]
pub(crate) enum Target {
    /// Into a windowed aggregate.
    Cut { cut: usize, keys: Vec<RowExpr>, arguments: Vec<Arguments> },
    /// Row by row into an output.
    Output { output: usize, columns: Vec<RowExpr> },
}

/// One windowed aggregate.
#[derive(Debug)]
pub(crate) struct CompiledCut {
    pub(crate) windowing: Windowing,
    /// `None` for sessions.
    pub(crate) panes: Option<Panes>,
    pub(crate) aggregation: Arc<Aggregation>,
    pub(crate) shape: Shape,
}

/// One sink of a query.
#[derive(Debug)]
pub struct CompiledOutput {
    /// The table.
    pub sink: Table,
    /// By branch of the INSERT: what is made of closed windows.
    pub(crate) parts: Vec<Above>,
}

impl CompiledQuery {
    /// Compiles a planned query that joins no static table.
    ///
    /// # Errors
    /// As [`Self::compile_with`].
    pub fn compile(query: &sql::Query) -> Result<Self> {
        Self::compile_with(query, &StaticTables::default())
    }

    /// Compiles a planned query over its static tables.
    ///
    /// # Errors
    /// What DataFusion says of an expression that cannot be compiled, and where a static table cannot be looked up in.
    pub fn compile_with(query: &sql::Query, statics: &StaticTables) -> Result<Self> {
        let sources = query.sources.iter().map(|table| CompiledSource::compile(query, table, statics));
        let cuts = query.cuts.iter().map(CompiledCut::compile).collect::<Result<Vec<_>>>()?;
        let outputs = query.outputs.iter().map(|output| {
            let windowed = output.parts.iter().filter_map(|part| match part {
                Part::Windowed(windowed) => Some(windowed),
                Part::RowWise(_) => None,
            });
            let parts = windowed.map(|part| {
                let schemas: Vec<_> = cuts.iter().map(|cut| Arc::clone(&cut.aggregation.output)).collect();
                Above::plan(part, schemas, statics)
            });
            Ok(CompiledOutput { sink: output.sink.clone(), parts: parts.collect::<Result<_>>()? })
        });
        let outputs = outputs.collect::<Result<_>>()?;
        // The accumulators' states are DataFusion's own: another version may not read them.
        let saves_state = cuts.iter().any(CompiledCut::is_saved);
        let fingerprint = match query.fingerprint() {
            plan if saves_state => format!("{plan}-{}", datafusion::DATAFUSION_VERSION),
            plan => plan,
        };
        // Open windows hold rows as they were joined.
        let fingerprint = match statics.version(&joined_below(query)) {
            none if none.is_empty() => fingerprint,
            version => format!("{fingerprint}-{}", sql::fnv1a(version.into_bytes())),
        };
        let statics = statics.version(query.statics.iter().map(|table| &table.name));
        let sources = sources.collect::<Result<Vec<_>>>()?;
        // Records that are read again after a restart have to be judged as they were.
        let judged: String = sources.iter().map(CompiledSource::judged_by).collect();
        let fingerprint = format!("{fingerprint}-{}", sql::fnv1a(judged.into_bytes()));
        let windows = cuts.iter().map(|cut| window::rhythm(cut.windowing)).collect();
        let sessions = query.sessions().map(|(definition, gap_ns)| SessionKind { definition, gap_ns });
        Ok(Self { name: query.name.clone(), sources, outputs, fingerprint, sessions, statics, cuts, windows })
    }

    /// The last instant at or before `ns` at which a window of the query may close; `None` when it has no window.
    pub fn boundary_at_or_before(&self, ns: i64) -> Option<i64> {
        let boundary = |cut: &CompiledCut| window::boundary_at_or_before(cut.windowing, ns);
        self.cuts.iter().map(boundary).max()
    }

    /// The checkpoint of another plan over the same sources that has emitted windows, and what was emitted: this one takes
    /// over from there.
    pub(super) fn taken_over<'a>(&self, checkpoint: &'a Checkpoint) -> Option<(&'a Checkpoint, Told)> {
        let reads = |topic: &String| self.sources.iter().any(|source| source.table.topic == *topic);
        let same_topics =
            checkpoint.sources.keys().all(reads) && checkpoint.sources.len() == self.sources.len();
        let is_other = same_topics && checkpoint.fingerprint != self.fingerprint;
        checkpoint.told().filter(|_| is_other).map(|told| (checkpoint, told))
    }

    /// The topics that it reads, as one text.
    pub(super) fn topics(&self) -> String {
        let topics: Vec<&str> = self.sources.iter().map(|source| source.table.topic.as_str()).collect();
        topics.join(", ")
    }

    /// How its windows lie in event time, all kinds together.
    pub fn rhythm(&self) -> Rhythm {
        let together = self.windows.iter().copied().reduce(Rhythm::together);
        together.unwrap_or(Rhythm { slide_ns: 1, width_ns: 1 })
    }

    /// Whether its first start leaves out what the log holds: a source says `'source.offset' = 'latest'`.
    pub(super) fn starts_at_the_end(&self) -> bool {
        self.sources.iter().any(|source| source.table.with.source_offset == SourceOffset::Latest)
    }

    /// Whether a sink wants early results.
    pub(super) fn tells_early(&self) -> bool {
        self.outputs.iter().any(|output| output.sink.with.emit_every_ns.is_some())
    }

    /// The properties of its writer: those of all its sinks.
    pub(super) fn client_configs(&self) -> ClientConfigs {
        let of_sinks = self.outputs.iter().map(|output| output.sink.with.client_configs.clone());
        of_sinks.flatten().collect()
    }

    /// The longest delay of its sources.
    pub fn delay_ns(&self) -> i64 {
        self.sources.iter().map(|source| source.delay_ns).max().unwrap_or_default()
    }
}

impl CompiledCut {
    fn compile(cut: &Cut) -> Result<Self> {
        let Some(input) = cut.inputs.first() else { return plan_err!("a cut without input") };
        let lowered = lower(input, &input.row_schema)?;
        let key_types = cut.output_schema.fields().iter().enumerate();
        let key_types = key_types.filter(|(place, _)| *place != cut.window_index).take(cut.keys());
        let functions: Vec<_> = lowered.into_iter().map(|lowered| lowered.0).collect();
        let states = functions.iter().map(|function| Ok(function.state_fields()?.len()));
        let shape = Shape { keys: cut.keys(), states: states.collect::<Result<_>>()? };
        let aggregation = Aggregation {
            key_types: key_types.map(|(_, field)| field.data_type().clone()).collect(),
            functions,
            window_index: cut.window_index,
            output: Arc::clone(cut.output_schema.inner()),
        };
        let panes = Panes::of(cut.windowing);
        Ok(Self { windowing: cut.windowing, panes, aggregation: Arc::new(aggregation), shape })
    }

    /// Whether its state is saved with the checkpoint instead of being rebuilt from the log.
    pub(crate) fn is_saved(&self) -> bool {
        self.panes.is_none_or(Panes::is_saved)
    }
}

type Lowered = (Arc<AggregateFunctionExpr>, Option<Arc<dyn datafusion::physical_expr::PhysicalExpr>>);

/// The aggregate functions of an input over its columns, each with its FILTER.
fn lower(input: &Input, schema: &DFSchema) -> Result<Vec<Lowered>> {
    let (context, props) = (PhysicalPlanningContext::default(), ExecutionProps::new());
    let lower = |expr: &Expr| {
        let builder = LoweredAggregateBuilder::new(expr, schema, schema.as_arrow(), &props, &context);
        let lowered = builder.build()?;
        Ok((lowered.aggregate, lowered.filter))
    };
    input.aggregates.iter().map(lower).collect()
}

/// The static tables that are joined below a cut.
fn joined_below(query: &sql::Query) -> BTreeSet<String> {
    let steps = query.cuts.iter().flat_map(|cut| &cut.inputs).flat_map(|input| &input.steps);
    let joined = steps.filter_map(|step| match step {
        steps::Planned::Join(join) => Some(join.rows.tables.clone()),
        steps::Planned::Where(_) => None,
    });
    joined.flatten().collect()
}

impl CompiledSource {
    fn compile(query: &sql::Query, table: &Table, statics: &StaticTables) -> Result<Self> {
        let Some(watermark) = &table.watermark else {
            return plan_err!("table {} has no WATERMARK FOR", table.name);
        };
        let Some((event_place, _)) = table.column(&watermark.column) else {
            return plan_err!("table {} has no column {}", table.name, watermark.column);
        };
        let columns = columns_read(query, table, event_place)?;
        let inputs = query.cuts.iter().enumerate().flat_map(|(cut, planned)| {
            let own = planned.inputs.iter().filter(|input| input.source == table.name);
            own.map(move |input| (cut, planned, input))
        });
        let inputs = inputs.map(|(cut, planned, input)| cut_input(cut, planned, input, &columns, statics));
        let mut inputs = inputs.collect::<Result<Vec<_>>>()?;
        for (output, planned) in query.outputs.iter().enumerate() {
            for part in &planned.parts {
                if let Part::RowWise(rows) = part
                    && rows.source == table.name
                {
                    inputs.push(output_input(output, rows, &columns, statics)?);
                }
            }
        }
        let event_time = columns.iter().position(|&place| place == event_place);
        let event_time = event_time.ok_or_else(|| internal_datafusion_err!("the event time is not read"))?;
        Ok(Self {
            delay_ns: watermark.delay_ns,
            codec: RecordCodec::new(table),
            columns: Columns { places: columns, event_time },
            inputs,
            table: table.clone(),
        })
    }

    /// What decides, besides the plan, whether a record of it can be read, and whether a row is late.
    fn judged_by(&self) -> String {
        let column = |place: &usize| {
            let column = &self.table.columns[*place];
            format!("{} {:?} {} {:?}\n", column.name, column.data_type, column.nullable, column.default)
        };
        let columns: String = self.columns.places.iter().map(column).collect();
        format!("{} by {}\n{columns}", self.table.name, self.columns.event_time)
    }
}

/// The columns that are read, named as an input names them.
fn schema_read(schema: &DFSchemaRef, columns: &[usize]) -> Result<DFSchema> {
    let fields = columns.iter().map(|&place| {
        let (relation, field) = schema.qualified_field(place);
        (relation.cloned(), Arc::clone(field))
    });
    DFSchema::new_with_metadata(fields.collect(), Default::default())
}

fn cut_input(
    cut: usize,
    planned: &Cut,
    input: &Input,
    columns: &[usize],
    statics: &StaticTables,
) -> Result<CompiledInput> {
    let read = schema_read(&input.source_schema, columns)?;
    let named = steps::named(exprs_of(input))?;
    let (steps, row) = steps::compile(&input.steps, read, &named, statics)?;
    let arguments = lower(input, &row)?.into_iter().map(|(function, filter)| {
        let mut values = function.expressions();
        values.extend(function.order_bys().iter().map(|order| Arc::clone(&order.expr)));
        let values = values.into_iter().map(|value| RowExpr::from_physical(value, row.as_arrow()));
        let values = values.collect::<Result<Vec<_>>>()?;
        let filter = filter.map(|filter| RowExpr::from_physical(filter, row.as_arrow())).transpose()?;
        let is_count = function.fun().name() == "count"
            && !function.is_distinct()
            && filter.is_none()
            && matches!(&values[..], [value] if value.is_constant());
        Ok(Arguments { values, filter, is_count })
    });
    let arguments = arguments.collect::<Result<_>>()?;
    let keys = input.keys.iter().map(|key| RowExpr::compile(key, &row)).collect::<Result<_>>()?;
    // What a lookup finds may differ from one query to the other: each reads the file when it starts.
    let is_shared =
        Panes::of(planned.windowing).is_some() && steps.iter().all(|step| matches!(step, Step::Filter(_)));
    let identity = is_shared.then(|| planned.identity_of(input).into());
    Ok(CompiledInput { steps, into: Target::Cut { cut, keys, arguments }, identity })
}

fn output_input(
    output: usize,
    rows: &RowWise,
    columns: &[usize],
    statics: &StaticTables,
) -> Result<CompiledInput> {
    let read = schema_read(&rows.source_schema, columns)?;
    let named = steps::named(exprs_of_rows(rows))?;
    let (steps, row) = steps::compile(&rows.steps, read, &named, statics)?;
    let columns = rows.columns.iter().map(|column| RowExpr::compile(column, &row)).collect::<Result<_>>()?;
    Ok(CompiledInput { steps, into: Target::Output { output, columns }, identity: None })
}

/// Every expression over the row of an input.
fn exprs_of(input: &Input) -> impl Iterator<Item = &Expr> {
    input.steps.iter().flat_map(steps::Planned::exprs).chain(&input.keys).chain(&input.aggregates)
}

fn exprs_of_rows(rows: &RowWise) -> impl Iterator<Item = &Expr> {
    rows.steps.iter().flat_map(steps::Planned::exprs).chain(&rows.columns)
}

/// The places of the source columns that the query names, and of the event time, in order.
fn columns_read(query: &sql::Query, table: &Table, event_place: usize) -> Result<Vec<usize>> {
    let mut places = BTreeSet::from([event_place]);
    // What a source does not have comes from a static table.
    let mut add = |named: HashSet<Column>, schema: &DFSchema| {
        places.extend(named.iter().filter_map(|column| schema.maybe_index_of_column(column)));
    };
    let inputs = query.cuts.iter().flat_map(|cut| &cut.inputs).filter(|input| input.source == table.name);
    for input in inputs {
        add(steps::named(exprs_of(input))?, &input.source_schema);
    }
    for part in query.outputs.iter().flat_map(|output| &output.parts) {
        if let Part::RowWise(rows) = part
            && rows.source == table.name
        {
            add(steps::named(exprs_of_rows(rows))?, &rows.source_schema);
        }
    }
    Ok(places.into_iter().collect())
}
