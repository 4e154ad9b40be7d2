//! Static tables, read whole when a query is compiled.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::Schema;
use arrow::row::{RowConverter, SortField};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Result, plan_err};
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::{SessionConfig, SessionContext};

use super::connector::{ConnectorError, Cursor, beside, file};
use super::expression::plain_array;
use crate::log::codec::RecordCodec;
use crate::reaction::table::{Connector, Table};
use crate::sql::statics::StaticRows;
use crate::sql::{SqlFile, fnv1a};

/// The largest file.
const MAX_BYTES: u64 = 64 << 20;
/// The most lines.
const MAX_ROWS: usize = 1_000_000;

/// Static tables by name.
#[derive(Clone, Debug, Default)]
pub struct StaticTables(BTreeMap<String, StaticTable>);

#[derive(Clone, Debug)]
struct StaticTable {
    rows: RecordBatch,
    /// The same for the same rows.
    version: String,
}

impl StaticTables {
    /// Reads the static tables of queries. Their paths are relative to the file, one of `files`, that declares them.
    ///
    /// # Errors
    /// The table that cannot be read, and why.
    pub fn read<'t>(
        tables: impl IntoIterator<Item = &'t Table>,
        files: &[SqlFile],
    ) -> Result<Self, (String, ConnectorError)> {
        let mut read = BTreeMap::new();
        for table in tables {
            let Connector::SingleFile { path } = &table.with.connector else { continue };
            if !read.contains_key(&table.name) {
                let found = read_table(table, &beside(table, path, files), path);
                let found = found.map_err(|error| (table.name.clone(), named(table, error)))?;
                read.insert(table.name.clone(), found);
            }
        }
        Ok(Self(read))
    }

    /// What of these tables a query depends on: the same as long as their rows are.
    pub(crate) fn version<'n>(&self, names: impl IntoIterator<Item = &'n String>) -> String {
        let of = |name: &String| self.0.get(name).map(|table| format!("{name} {}", table.version));
        names.into_iter().filter_map(of).collect::<Vec<_>>().join(", ")
    }

    /// The rows of a plan over them.
    pub(crate) fn rows(&self, leaf: &StaticRows) -> Result<RecordBatch> {
        let plan = leaf.plan.as_ref().clone().transform_up(|node| {
            let LogicalPlan::TableScan(mut scan) = node else { return Ok(Transformed::no(node)) };
            let Some(table) = self.0.get(scan.table_name.table()) else {
                return plan_err!("static table '{}' has not been read", scan.table_name);
            };
            let rows = MemTable::try_new(table.rows.schema(), vec![vec![table.rows.clone()]])?;
            scan.source = provider_as_source(Arc::new(rows));
            Ok(Transformed::yes(LogicalPlan::TableScan(scan)))
        })?;
        let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
        let state = context.state();
        let schema = Arc::new(leaf.plan.schema().as_arrow().clone());
        // Nothing waits: the rows are in memory. Unconstrained, as the plan above the cut is.
        let run = tokio::task::unconstrained(async {
            let plan = state.create_physical_plan(&plan.data).await?;
            datafusion::physical_plan::collect(plan, context.task_ctx()).await
        });
        let batches = futures::executor::block_on(run)?;
        let columns =
            concat_batches(&batches.first().map_or(Arc::clone(&schema), RecordBatch::schema), &batches)?;
        Ok(RecordBatch::try_new(schema, columns.columns().to_vec())?)
    }
}

fn named(table: &Table, error: ConnectorError) -> ConnectorError {
    let named = |message: String| format!("static table '{}': {message}", table.name);
    match error {
        ConnectorError::Input(message) => ConnectorError::Input(named(message)),
        ConnectorError::Outside(message) => ConnectorError::Outside(named(message)),
    }
}

fn read_table(table: &Table, path: &Path, shown: &str) -> Result<StaticTable, ConnectorError> {
    let input = |message: String| ConnectorError::Input(format!("{shown}: {message}"));
    let metadata = std::fs::metadata(path).map_err(|error| {
        let path = path.display();
        ConnectorError::Input(format!("{shown}: {error} (read as {path}, from the folder of the SQL file)"))
    })?;
    if metadata.len() > MAX_BYTES {
        let limit = MAX_BYTES >> 20;
        return Err(input(format!("{} bytes; a static table is at most {limit} MB", metadata.len())));
    }
    let table = file::as_read(table);
    let codec = RecordCodec::new(&table);
    let columns: Vec<usize> = (0..table.columns.len()).collect();
    let (mut batches, mut rows) = (Vec::new(), 0);
    for piece in file::read(&table, path, shown, Cursor::default())? {
        let piece = piece?;
        let batch = codec.decode(0, &piece.record, &columns).map_err(|error| piece.place.refused(&error))?;
        rows += batch.num_rows();
        if rows > MAX_ROWS {
            return Err(input(format!("more than {MAX_ROWS} rows; a static table has at most so many")));
        }
        batches.push(plain(&batch).map_err(|error| input(error.to_string()))?);
    }
    let schema = crate::reaction::schema::arrow_schema(&table);
    let rows = together(&schema, &batches).map_err(|error| input(error.to_string()))?;
    let version = version(&rows).map_err(|error| input(error.to_string()))?;
    Ok(StaticTable { rows, version })
}

fn plain(batch: &RecordBatch) -> Result<Vec<ArrayRef>> {
    batch.columns().iter().map(plain_array).collect()
}

fn together(schema: &Arc<Schema>, batches: &[Vec<ArrayRef>]) -> Result<RecordBatch> {
    let batches =
        batches.iter().map(|columns| Ok(RecordBatch::try_new(Arc::clone(schema), columns.clone())?));
    Ok(concat_batches(schema, &batches.collect::<Result<Vec<_>>>()?)?)
}

fn version(rows: &RecordBatch) -> Result<String> {
    let fields = rows.columns().iter().map(|column| SortField::new(column.data_type().clone())).collect();
    let converted = RowConverter::new(fields)?.convert_columns(rows.columns())?;
    let rows = converted.iter();
    Ok(fnv1a(rows.flat_map(|row| row.data().iter().copied().chain([0xff]))))
}
