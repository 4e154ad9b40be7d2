//! Expressions over the rows of one record, evaluated once per dictionary value where that is enough.
//!
//! Pure. TEXT columns of a record are Utf8 or `Dictionary(Int32, Utf8)`. An expression over one such column is
//! evaluated on the dictionary's values and spread by code: `upper(emoji_type)` over 20,000 rows of 50 emojis costs 50
//! evaluations.

use std::sync::{Arc, OnceLock};

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, DictionaryArray, RecordBatch, UInt32Array};
use arrow::compute::{cast, take};
use arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef, UInt32Type};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{DFSchema, DataFusionError, Result, ScalarValue, internal_err};
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::execution_props::ExecutionProps;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::physical_expr::expressions::{Column, Literal};
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_expr::{PhysicalExpr, create_physical_expr};

/// The rows of one record (or of a part of it), as read.
#[derive(Debug)]
pub(crate) struct Rows {
    batch: RecordBatch,
    /// The same with every dictionary spelled out; made when an expression needs it.
    plain: OnceLock<RecordBatch>,
    /// Where a join repeats rows or they are told apart by place: which row each is. Copies are side by side.
    of: Option<UInt32Array>,
}

impl Rows {
    pub(crate) fn new(batch: RecordBatch) -> Self {
        Self { batch, plain: OnceLock::new(), of: None }
    }

    /// The same rows, that know their places from now on.
    pub(crate) fn numbered(&self) -> Self {
        // A batch has far fewer than 2^32 rows.
        let places = UInt32Array::from_iter_values(0..self.len() as u32);
        Self { of: Some(places), ..Self::new(self.batch.clone()) }
    }

    /// Which row each is; `None` when each is its own.
    pub(crate) fn of(&self) -> Option<&UInt32Array> {
        self.of.as_ref()
    }

    /// These rows joined: `batch` has one of them at each of `places`, or as they are.
    pub(crate) fn joined(&self, batch: RecordBatch, places: Option<&UInt32Array>) -> Result<Self> {
        let of = match (&self.of, places) {
            (Some(of), Some(places)) => Some(take(of, places, None)?.as_primitive::<UInt32Type>().clone()),
            (of, None) => of.clone(),
            (None, Some(places)) => Some(places.clone()),
        };
        Ok(Self { of, ..Self::new(batch) })
    }

    /// How many reactions they are: copies count once.
    pub(crate) fn reactions(&self) -> usize {
        match &self.of {
            None => self.len(),
            Some(of) => of.values().chunk_by(|a, b| a == b).count(),
        }
    }

    /// Row by row, whether it counts as a reaction: the first of its copies does.
    pub(crate) fn counts(&self) -> impl Iterator<Item = bool> {
        let of = self.of.as_ref().map(|of| of.values());
        (0..self.len()).map(move |row| of.is_none_or(|of| row == 0 || of[row] != of[row - 1]))
    }

    pub(crate) fn len(&self) -> usize {
        self.batch.num_rows()
    }

    pub(crate) fn slice(&self, from: usize, rows: usize) -> Self {
        Self {
            of: self.of.as_ref().map(|of| of.slice(from, rows)),
            ..Self::new(self.batch.slice(from, rows))
        }
    }

    pub(crate) fn batch(&self) -> &RecordBatch {
        &self.batch
    }

    /// The rows for which `keep` is true.
    pub(crate) fn filter(&self, keep: &BooleanArray) -> Result<Self> {
        let of = self.of.as_ref().map(|of| arrow::compute::filter(of, keep)).transpose()?;
        Ok(Self {
            of: of.map(|of| of.as_primitive::<UInt32Type>().clone()),
            ..Self::new(arrow::compute::filter_record_batch(&self.batch, keep)?)
        })
    }

    /// The rows at these places.
    pub(crate) fn at(&self, places: &UInt32Array) -> Result<Self> {
        self.joined(arrow::compute::take_record_batch(&self.batch, places)?, Some(places))
    }

    fn plain(&self) -> Result<&RecordBatch> {
        if let Some(plain) = self.plain.get() {
            return Ok(plain);
        }
        let columns = self.batch.columns().iter().map(plain_array).collect::<Result<Vec<_>>>()?;
        let schema = self.batch.schema();
        let fields =
            schema.fields().iter().zip(&columns).map(|(field, column)| {
                Field::new(field.name(), column.data_type().clone(), field.is_nullable())
            });
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let plain = RecordBatch::try_new(schema, columns)?;
        Ok(self.plain.get_or_init(|| plain))
    }
}

/// A dictionary spelled out; any other array as it is.
pub(crate) fn plain_array(array: &ArrayRef) -> Result<ArrayRef> {
    match array.data_type() {
        DataType::Dictionary(_, values) => Ok(cast(array, values)?),
        _ => Ok(Arc::clone(array)),
    }
}

/// One compiled expression.
#[derive(Debug, Clone)]
pub(crate) struct RowExpr {
    shape: Shape,
}

#[derive(Debug, Clone)]
enum Shape {
    Column(usize),
    Constant(ScalarValue),
    /// Depends on one column only; `expr` reads it as column 0.
    OneColumn {
        column: usize,
        expr: Arc<dyn PhysicalExpr>,
        schema: SchemaRef,
    },
    Any(Arc<dyn PhysicalExpr>),
}

impl RowExpr {
    /// Compiles a logical expression over the columns of `schema`.
    pub(crate) fn compile(expr: &Expr, schema: &DFSchema) -> Result<Self> {
        let physical =
            create_physical_expr(expr, schema, &ExecutionProps::new(), &PhysicalPlanningContext::default())?;
        Self::from_physical(physical, schema.as_arrow())
    }

    /// Takes over a physical expression over the columns of `schema`.
    pub(crate) fn from_physical(physical: Arc<dyn PhysicalExpr>, schema: &Schema) -> Result<Self> {
        if let Some(column) = physical.downcast_ref::<Column>() {
            return Ok(Self { shape: Shape::Column(column.index()) });
        }
        if let Some(literal) = physical.downcast_ref::<Literal>() {
            return Ok(Self { shape: Shape::Constant(literal.value().clone()) });
        }
        let columns = collect_columns(&physical);
        let shape = match columns.iter().next() {
            Some(only) if columns.len() == 1 => {
                let field = schema.field(only.index()).clone();
                let expr = physical.transform(|node| {
                    Ok(match node.downcast_ref::<Column>() {
                        Some(column) => Transformed::yes(Arc::new(Column::new(column.name(), 0)) as _),
                        None => Transformed::no(node),
                    })
                });
                Shape::OneColumn {
                    column: only.index(),
                    expr: expr.data()?,
                    schema: Arc::new(Schema::new(vec![field])),
                }
            }
            _ => Shape::Any(physical),
        };
        Ok(Self { shape })
    }

    /// Whether it is the same for all rows, and not null.
    pub(crate) fn is_constant(&self) -> bool {
        matches!(&self.shape, Shape::Constant(value) if !value.is_null())
    }

    /// One value a row; text may come as `Dictionary(Int32, Utf8)`.
    pub(crate) fn evaluate(&self, rows: &Rows) -> Result<ArrayRef> {
        match &self.shape {
            Shape::Column(column) => Ok(Arc::clone(rows.batch.column(*column))),
            Shape::Constant(value) => value.to_array_of_size(rows.len()),
            Shape::OneColumn { column, expr, schema } => {
                let input = rows.batch.column(*column);
                match input.as_dictionary_opt::<Int32Type>() {
                    // A null's result is not the null of the results (coalesce): those records go the plain way.
                    Some(codes) if codes.null_count() == 0 && codes.values().len() < codes.len() => {
                        self.on_dictionary(codes, expr, schema)
                    }
                    _ => evaluate_on(expr, schema, plain_array(input)?),
                }
            }
            Shape::Any(expr) => expr.evaluate(rows.plain()?)?.into_array(rows.len()),
        }
    }

    /// One value a row, never a dictionary.
    pub(crate) fn evaluate_plain(&self, rows: &Rows) -> Result<ArrayRef> {
        plain_array(&self.evaluate(rows)?)
    }

    /// One boolean a row; null counts as false.
    pub(crate) fn evaluate_condition(&self, rows: &Rows) -> Result<BooleanArray> {
        let result = self.evaluate_plain(rows)?;
        let Some(condition) = result.as_boolean_opt() else {
            return internal_err!("a filter is {} instead of BOOLEAN", result.data_type());
        };
        if condition.null_count() == 0 {
            return Ok(condition.clone());
        }
        Ok(arrow::compute::prep_null_mask_filter(condition))
    }

    fn on_dictionary(
        &self,
        codes: &DictionaryArray<Int32Type>,
        expr: &Arc<dyn PhysicalExpr>,
        schema: &SchemaRef,
    ) -> Result<ArrayRef> {
        let results = evaluate_on(expr, schema, Arc::clone(codes.values()))?;
        if *results.data_type() == DataType::Utf8 && results.null_count() == 0 {
            return Ok(Arc::new(DictionaryArray::try_new(codes.keys().clone(), results)?));
        }
        Ok(take(&results, codes.keys(), None)?)
    }
}

fn evaluate_on(expr: &Arc<dyn PhysicalExpr>, schema: &SchemaRef, values: ArrayRef) -> Result<ArrayRef> {
    let count = values.len();
    let batch = RecordBatch::try_new(Arc::clone(schema), vec![values]).map_err(DataFusionError::from)?;
    expr.evaluate(&batch)?.into_array(count)
}
