//! A join with static rows: a lookup by the key of each row. Pure.
//!
//! A key that is one dictionary is looked up once per text. A row with several matches is repeated, the copies side by
//! side; [`Rows`] remembers which row each is a copy of, because a reaction counts once in the figures.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{cast, take};
use arrow::datatypes::{DataType, Field, Int32Type, Schema};
use arrow::row::{RowConverter, SortField};
use datafusion::common::{Column, DFSchema, DFSchemaRef, Result, exec_err, plan_err};

use super::expression::{RowExpr, Rows, plain_array};
use super::statics::StaticTables;
use crate::sql::statics::StaticJoin;

/// The most static rows with one key.
const MAX_MATCHES: usize = 1_000;
/// The most rows that the rows of one read may become.
const MAX_ROWS: usize = 4_000_000;

/// A compiled join.
#[derive(Debug)]
pub(crate) struct Lookup {
    tables: String,
    keys: Vec<RowExpr>,
    index: Index,
    /// The static columns that are put beside a row; text as dictionaries, so that it is grouped by codes.
    columns: Vec<ArrayRef>,
    condition: Option<RowExpr>,
    outer: bool,
}

impl Lookup {
    /// Compiles the join over rows of the columns of `read`; also says what columns they have behind it.
    pub(crate) fn compile(
        join: &StaticJoin,
        read: &DFSchema,
        named: &HashSet<Column>,
        statics: &StaticTables,
    ) -> Result<(Self, DFSchema)> {
        let batch = statics.rows(&join.rows)?;
        let tables = join.rows.tables.join(", ");
        let schema: &DFSchemaRef = join.rows.plan.schema();
        let rows = Rows::new(batch.clone());
        let of_table = join.keys.iter().map(|(_, key)| RowExpr::compile(key, schema)?.evaluate_plain(&rows));
        let of_table = of_table.collect::<Result<Vec<_>>>()?;
        let shown = join.columns.columns().into_iter().enumerate();
        let shown: Vec<usize> =
            shown.filter(|(_, column)| named.contains(column)).map(|(at, _)| at).collect();
        let fields = shown.iter().map(|&at| {
            let (relation, field) = join.columns.qualified_field(at);
            (relation.cloned(), Arc::clone(field))
        });
        let wider = read.join(&DFSchema::new_with_metadata(fields.collect(), Default::default())?)?;
        let columns = shown.iter().map(|&at| by_codes(batch.column(at))).collect::<Result<_>>()?;
        let lookup = Self {
            keys: join.keys.iter().map(|(key, _)| RowExpr::compile(key, read)).collect::<Result<_>>()?,
            index: Index::new(&of_table, &tables)?,
            condition: join.condition.as_ref().map(|all| RowExpr::compile(all, &wider)).transpose()?,
            outer: join.outer,
            columns,
            tables,
        };
        Ok((lookup, wider))
    }

    /// The rows with the static columns beside them.
    pub(crate) fn apply(&self, rows: &Rows) -> Result<Rows> {
        let keys = self.keys.iter().map(|key| key.evaluate(rows)).collect::<Result<Vec<_>>>()?;
        let found = self.index.find(&keys)?;
        let mut pairs = Pairs::default();
        for row in 0..rows.len() {
            let matches = found.of(row);
            if pairs.rows.len() + matches.len() > MAX_ROWS {
                return exec_err!(
                    "the join with {} makes more than {MAX_ROWS} rows of {}: too many of its lines match",
                    self.tables,
                    rows.len()
                );
            }
            // With a condition it is known later which rows have none.
            pairs.push(row as u32, matches, self.outer && self.condition.is_none());
        }
        let Some(condition) = &self.condition else { return self.beside(rows, pairs) };
        let candidates = self.beside(rows, pairs.clone())?;
        pairs.retain(&condition.evaluate_condition(&candidates)?, rows.len(), self.outer);
        self.beside(rows, pairs)
    }

    fn beside(&self, rows: &Rows, pairs: Pairs) -> Result<Rows> {
        let each_once =
            pairs.rows.len() == rows.len() && pairs.rows.iter().zip(0..).all(|(&row, at)| row == at);
        let (places, matches) = (UInt32Array::from(pairs.rows), UInt32Array::from(pairs.matches));
        let mut columns = match each_once {
            true => rows.batch().columns().to_vec(),
            false => {
                let taken = rows.batch().columns().iter().map(|column| Ok(take(column, &places, None)?));
                taken.collect::<Result<Vec<_>>>()?
            }
        };
        for column in &self.columns {
            columns.push(take(column, &matches, None)?);
        }
        let fields = columns.iter().enumerate();
        let fields =
            fields.map(|(at, column)| Field::new(format!("c{at}"), column.data_type().clone(), true));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let options = RecordBatchOptions::new().with_row_count(Some(matches.len()));
        let batch = RecordBatch::try_new_with_options(schema, columns, &options)?;
        rows.joined(batch, (!each_once).then_some(&places))
    }
}

/// Text with a code for each; other types as they are.
fn by_codes(column: &ArrayRef) -> Result<ArrayRef> {
    Ok(match column.data_type() {
        DataType::Utf8 => {
            let codes = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
            cast(column, &codes)?
        }
        _ => Arc::clone(column),
    })
}

/// Rows and the static rows that they match, both by place.
#[derive(Clone, Default)]
struct Pairs {
    rows: Vec<u32>,
    matches: Vec<Option<u32>>,
}

impl Pairs {
    fn push(&mut self, row: u32, matches: &[u32], outer: bool) {
        self.rows.extend(std::iter::repeat_n(row, matches.len()));
        self.matches.extend(matches.iter().copied().map(Some));
        if matches.is_empty() && outer {
            self.rows.push(row);
            self.matches.push(None);
        }
    }

    /// Keeps those of which the condition is true; with `outer` also a row of which none is.
    fn retain(&mut self, condition: &BooleanArray, rows: usize, outer: bool) {
        let Self { rows: row_of, matches } = std::mem::take(self);
        let mut pairs = row_of.into_iter().zip(matches).zip(condition.values()).peekable();
        for row in 0..rows as u32 {
            let before = self.rows.len();
            while let Some(((_, found), is_true)) = pairs.next_if(|((of, _), _)| *of == row) {
                if is_true {
                    self.rows.push(row);
                    self.matches.push(found);
                }
            }
            if outer && self.rows.len() == before {
                self.rows.push(row);
                self.matches.push(None);
            }
        }
    }
}

/// Static rows by key.
#[derive(Debug)]
struct Index {
    converter: RowConverter,
    /// By key: where its places are, and how many.
    spans: HashMap<Box<[u8]>, (u32, u32)>,
    places: Vec<u32>,
}

impl Index {
    fn new(keys: &[ArrayRef], tables: &str) -> Result<Self> {
        let fields = keys.iter().map(|key| SortField::new(key.data_type().clone())).collect();
        let converter = RowConverter::new(fields)?;
        let rows = converter.convert_columns(keys)?;
        let mut of_key: HashMap<Box<[u8]>, Vec<u32>> = HashMap::new();
        for (place, row) in (0..).zip(rows.iter()) {
            if !has_null(keys, place as usize) {
                of_key.entry(row.data().into()).or_default().push(place);
            }
        }
        let (mut spans, mut places) = (HashMap::with_capacity(of_key.len()), Vec::new());
        for (key, found) in of_key {
            if found.len() > MAX_MATCHES {
                return plan_err!(
                    "{} lines of {tables} have the same key, the first of them is line {}; at most {MAX_MATCHES} may",
                    found.len(),
                    found[0] + 1
                );
            }
            spans.insert(key, (places.len() as u32, found.len() as u32));
            places.extend(found);
        }
        Ok(Self { converter, spans, places })
    }

    fn find(&self, keys: &[ArrayRef]) -> Result<Found<'_>> {
        if let [key] = keys
            && let Some(codes) = key.as_dictionary_opt::<Int32Type>()
        {
            let of_text = self.spans_of(&[Arc::clone(codes.values())])?;
            let spans = codes.keys().iter().map(|code| code.map_or((0, 0), |code| of_text[code as usize]));
            return Ok(Found { spans: spans.collect(), places: &self.places });
        }
        let keys = keys.iter().map(plain_array).collect::<Result<Vec<_>>>()?;
        Ok(Found { spans: self.spans_of(&keys)?, places: &self.places })
    }

    fn spans_of(&self, keys: &[ArrayRef]) -> Result<Vec<(u32, u32)>> {
        let rows = self.converter.convert_columns(keys)?;
        let span = |(row, key): (usize, arrow::row::Row<'_>)| match has_null(keys, row) {
            true => (0, 0),
            false => self.spans.get(key.data()).copied().unwrap_or_default(),
        };
        Ok(rows.iter().enumerate().map(span).collect())
    }
}

/// A null equals nothing.
fn has_null(keys: &[ArrayRef], row: usize) -> bool {
    keys.iter().any(|key| key.is_null(row))
}

/// The matches of every row.
struct Found<'i> {
    spans: Vec<(u32, u32)>,
    places: &'i [u32],
}

impl Found<'_> {
    fn of(&self, row: usize) -> &[u32] {
        let (from, count) = self.spans[row];
        &self.places[from as usize..(from + count) as usize]
    }
}
