//! Group keys → group numbers: text by its codes, keys of other types through DataFusion's `GroupValues`.
//!
//! Pure. Where all keys of the rows at hand are dictionaries of few combinations and rows are only counted, they are
//! counted by combination of codes, and only the combinations that occur become groups.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, DictionaryArray, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, Int32Type, Schema, UInt32Type};
use datafusion::common::Result;
use datafusion::logical_expr::EmitTo;
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;

use super::texts::{NONE, TextGroups, Texts};

/// The largest table over combinations of codes: 256 KB, so that it stays in the second-level cache.
const MAX_COMBINATIONS: usize = 1 << 16;
/// And of few rows: clearing it costs less than numbering them.
const FEW_COMBINATIONS: usize = 1 << 12;

/// Memory used again and again, one per partition.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// The group of every row of the batch at hand.
    pub(crate) group_of_row: Vec<usize>,
    combination_of_row: Vec<i32>,
    of_combination: Vec<u32>,
    combinations: Vec<u32>,
    /// The groups of what [`Groups::count`] counted, and how many rows each has.
    pub(crate) counted: Vec<usize>,
    pub(crate) counts: Vec<i64>,
}

/// The groups of one pane.
pub(crate) enum Groups {
    /// The window is the only key: there is one group, once there is a row.
    One { has_rows: bool },
    /// All keys are text.
    Text(TextGroups),
    /// By key: the texts seen, for text keys, which take part by their codes.
    Any { values: Box<dyn GroupValues>, texts: Vec<Option<Texts>> },
}

impl Groups {
    /// No group yet. `types` are the keys' SQL types, in order.
    pub(crate) fn new(types: &[DataType]) -> Result<Self> {
        if types.is_empty() {
            return Ok(Self::One { has_rows: false });
        }
        if types.iter().all(is_text) {
            return Ok(Self::Text(TextGroups::new(types.len())));
        }
        let fields = types.iter().enumerate().map(|(place, data_type)| {
            let stored = if is_text(data_type) { DataType::UInt32 } else { data_type.clone() };
            Field::new(format!("key{place}"), stored, true)
        });
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let texts = types.iter().map(|data_type| is_text(data_type).then(Texts::default)).collect();
        Ok(Self::Any { values: new_group_values(schema, &GroupOrdering::None)?, texts })
    }

    /// How many groups there are.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::One { has_rows } => usize::from(*has_rows),
            Self::Text(groups) => groups.len(),
            Self::Any { values, .. } => values.len(),
        }
    }

    /// Bytes in memory, about.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::One { .. } => 0,
            Self::Text(groups) => groups.size(),
            Self::Any { values, texts } => {
                values.size() + texts.iter().flatten().map(Texts::size).sum::<usize>()
            }
        }
    }

    /// Numbers `rows` rows by their keys into `scratch.group_of_row`.
    pub(crate) fn number(&mut self, keys: &[ArrayRef], rows: usize, scratch: &mut Scratch) -> Result<()> {
        match self {
            Self::One { has_rows } => {
                *has_rows |= rows > 0;
                scratch.group_of_row.clear();
                scratch.group_of_row.resize(rows, 0);
                Ok(())
            }
            Self::Text(groups) => {
                let codes = keys.iter().zip(groups.texts()).map(|(key, texts)| texts.codes(key));
                let codes = codes.collect::<Result<Vec<_>>>()?;
                groups.number(&codes, &mut scratch.group_of_row)
            }
            Self::Any { values, texts } => {
                let columns = keys.iter().zip(texts).map(|(key, texts)| match texts {
                    Some(texts) => Ok(Arc::new(UInt32Array::from(texts.codes(key)?)) as ArrayRef),
                    None => Ok(Arc::clone(key)),
                });
                values.intern(&columns.collect::<Result<Vec<_>>>()?, &mut scratch.group_of_row)
            }
        }
    }

    /// Counts rows by their keys into `scratch.counted` and `scratch.counts`, without numbering each: where that pays,
    /// which is what it returns.
    pub(crate) fn count(&mut self, keys: &[ArrayRef], rows: usize, scratch: &mut Scratch) -> Result<bool> {
        let Self::Text(groups) = self else { return Ok(false) };
        let most = rows.clamp(FEW_COMBINATIONS, MAX_COMBINATIONS);
        let Some(dictionaries) = few_combinations(keys, most) else { return Ok(false) };
        let Scratch { combination_of_row, of_combination, combinations, counted, counts, .. } = scratch;
        of_combination.clear();
        of_combination.resize(dictionaries.iter().map(|key| size(key)).product(), 0);
        combinations.clear();
        for &combination in combine(&dictionaries, rows, combination_of_row) {
            // Codes were checked against their dictionary's length when the record was decoded.
            let count = &mut of_combination[combination as usize];
            if *count == 0 {
                combinations.push(combination as u32);
            }
            *count += 1;
        }
        counts.clear();
        counts
            .extend(combinations.iter().map(|&combination| i64::from(of_combination[combination as usize])));
        let codes = codes_of_combinations(groups.texts(), &dictionaries, combinations)?;
        groups.number(&codes, counted)?;
        Ok(true)
    }

    /// The keys of all groups, in the groups' order; text as Utf8.
    pub(crate) fn into_keys(self) -> Result<Vec<ArrayRef>> {
        match self {
            Self::One { .. } => Ok(Vec::new()),
            Self::Text(groups) => groups.into_keys(),
            Self::Any { mut values, texts } => {
                let columns = values.emit(EmitTo::All)?;
                let keys = columns.iter().zip(texts).map(|(column, texts)| match texts {
                    Some(texts) => Ok(take(&texts.into_array(), column.as_primitive::<UInt32Type>(), None)?),
                    None => Ok(Arc::clone(column)),
                });
                keys.collect()
            }
        }
    }
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

type TextDictionary = DictionaryArray<Int32Type>;

fn size(key: &TextDictionary) -> usize {
    key.values().len().max(1)
}

/// The keys as dictionaries, when all are, without nulls and with at most so many combinations.
fn few_combinations(keys: &[ArrayRef], most: usize) -> Option<Vec<&TextDictionary>> {
    let mut combinations = 1_usize;
    let mut dictionaries = Vec::with_capacity(keys.len());
    for key in keys {
        let dictionary = key.as_dictionary_opt::<Int32Type>()?;
        let values = dictionary.values();
        combinations = combinations.checked_mul(size(dictionary))?;
        let simple =
            dictionary.null_count() == 0 && *values.data_type() == DataType::Utf8 && values.null_count() == 0;
        if !simple || combinations > most {
            return None;
        }
        dictionaries.push(dictionary);
    }
    Some(dictionaries)
}

/// Row by row: the codes of all keys as one number. A key of one value adds nothing to it, and one key alone is that
/// number.
fn combine<'a>(keys: &[&'a TextDictionary], rows: usize, combination_of_row: &'a mut Vec<i32>) -> &'a [i32] {
    let mut varying = keys.iter().filter(|key| key.values().len() > 1);
    combination_of_row.clear();
    let Some(first) = varying.next() else {
        combination_of_row.resize(rows, 0);
        return combination_of_row;
    };
    let mut varying = varying.peekable();
    if varying.peek().is_none() {
        return first.keys().values();
    }
    combination_of_row.extend_from_slice(first.keys().values());
    for key in varying {
        let size = key.values().len() as i32;
        for (combination, &code) in combination_of_row.iter_mut().zip(key.keys().values()) {
            *combination = *combination * size + code;
        }
    }
    combination_of_row
}

/// By key: the texts' codes of the combinations that occur.
fn codes_of_combinations(
    texts: &mut [Texts],
    keys: &[&TextDictionary],
    combinations: &[u32],
) -> Result<Vec<Vec<u32>>> {
    let mut columns = Vec::with_capacity(keys.len());
    let mut below: u32 = 1;
    for (key, texts) in keys.iter().zip(texts).rev() {
        let values = key.values().as_string::<i32>();
        let size = size(key) as u32;
        let mut code_of_value = vec![NONE; size as usize];
        let codes = combinations.iter().map(|combination| {
            let value = (combination / below % size) as usize;
            if code_of_value[value] == NONE {
                code_of_value[value] = texts.intern(values.value(value))?;
            }
            Ok(code_of_value[value])
        });
        columns.push(codes.collect::<Result<Vec<_>>>()?);
        below *= size;
    }
    columns.reverse();
    Ok(columns)
}
