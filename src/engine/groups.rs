//! Group keys → group numbers: text by interned codes, everything through DataFusion's `GroupValues`.
//!
//! Pure. The fast way is taken when all keys of a record are dictionaries and their combinations are few: rows are
//! numbered, or only counted, through a table over combinations of codes, and only the combinations that occur are
//! hashed.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, DictionaryArray, StringArray, StringBuilder, UInt32Array};
use arrow::compute::{cast, take};
use arrow::datatypes::{DataType, Field, Int32Type, Schema, UInt32Type};
use datafusion::common::{Result, exec_err, internal_err};
use datafusion::logical_expr::EmitTo;
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;
use hashbrown::{DefaultHashBuilder, HashTable};

/// The largest table over combinations of codes: 256 KB, so that it stays in the second-level cache.
const MAX_COMBINATIONS: usize = 1 << 16;

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
pub(crate) struct Groups {
    /// `None` when the window is the only key: there is one group.
    values: Option<Box<dyn GroupValues>>,
    /// By key: the texts seen, for text keys.
    texts: Vec<Option<Texts>>,
    seen_any: bool,
}

impl Groups {
    /// No group yet. `types` are the keys' SQL types, in order.
    pub(crate) fn new(types: &[DataType]) -> Result<Self> {
        let fields = types.iter().enumerate().map(|(place, data_type)| {
            let stored = if is_text(data_type) { DataType::UInt32 } else { data_type.clone() };
            Field::new(format!("key{place}"), stored, true)
        });
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let values = match types {
            [] => None,
            _ => Some(new_group_values(schema, &GroupOrdering::None)?),
        };
        let texts = types.iter().map(|data_type| is_text(data_type).then(Texts::default)).collect();
        Ok(Self { values, texts, seen_any: false })
    }

    /// How many groups there are.
    pub(crate) fn len(&self) -> usize {
        self.values.as_ref().map_or(usize::from(self.seen_any), |values| values.len())
    }

    /// Bytes in memory, about.
    pub(crate) fn size(&self) -> usize {
        let values = self.values.as_ref().map_or(0, |values| values.size());
        values + self.texts.iter().flatten().map(Texts::size).sum::<usize>()
    }

    /// Numbers `rows` rows by their keys into `scratch.group_of_row`.
    pub(crate) fn number(&mut self, keys: &[ArrayRef], rows: usize, scratch: &mut Scratch) -> Result<()> {
        self.seen_any |= rows > 0;
        let Some(values) = &mut self.values else {
            scratch.group_of_row.clear();
            scratch.group_of_row.resize(rows, 0);
            return Ok(());
        };
        if let Some(dictionaries) = few_combinations(keys) {
            return number_by_codes(values.as_mut(), &mut self.texts, &dictionaries, rows, scratch);
        }
        let columns = keys.iter().zip(&mut self.texts).map(|(key, texts)| match texts {
            Some(texts) => texts.codes(key),
            None => Ok(Arc::clone(key)),
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        values.intern(&columns, &mut scratch.group_of_row)
    }

    /// Counts rows by their keys into `scratch.counted` and `scratch.counts`, without numbering each: where it can, which
    /// is what it returns.
    pub(crate) fn count(&mut self, keys: &[ArrayRef], rows: usize, scratch: &mut Scratch) -> Result<bool> {
        let Some(dictionaries) = few_combinations(keys) else { return Ok(false) };
        let Some(values) = &mut self.values else { return Ok(false) };
        let Scratch { combination_of_row, of_combination, combinations, counted, counts, .. } = scratch;
        of_combination.clear();
        of_combination.resize(combinations_of(&dictionaries), 0);
        combinations.clear();
        for &combination in combine(&dictionaries, rows, combination_of_row) {
            let count = &mut of_combination[combination as usize];
            if *count == 0 {
                combinations.push(combination as u32);
            }
            *count += 1;
        }
        counts.clear();
        counts
            .extend(combinations.iter().map(|&combination| i64::from(of_combination[combination as usize])));
        let columns = codes_of_combinations(&mut self.texts, &dictionaries, combinations)?;
        values.intern(&columns, counted)?;
        Ok(true)
    }

    /// The keys of all groups, in the groups' order; text as Utf8.
    pub(crate) fn into_keys(mut self) -> Result<Vec<ArrayRef>> {
        let Some(values) = &mut self.values else { return Ok(Vec::new()) };
        let columns = values.emit(EmitTo::All)?;
        let keys = columns.iter().zip(self.texts).map(|(column, texts)| match texts {
            Some(texts) => Ok(take(&texts.into_array(), column.as_primitive::<UInt32Type>(), None)?),
            None => Ok(Arc::clone(column)),
        });
        keys.collect()
    }
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

type TextDictionary = DictionaryArray<Int32Type>;

/// The keys as dictionaries, when all are, without nulls and with few combinations.
fn few_combinations(keys: &[ArrayRef]) -> Option<Vec<&TextDictionary>> {
    let mut combinations = 1_usize;
    let mut dictionaries = Vec::with_capacity(keys.len());
    for key in keys {
        let dictionary = key.as_dictionary_opt::<Int32Type>()?;
        let values = dictionary.values();
        combinations = combinations.checked_mul(values.len().max(1))?;
        let simple =
            dictionary.null_count() == 0 && *values.data_type() == DataType::Utf8 && values.null_count() == 0;
        if !simple || combinations > MAX_COMBINATIONS {
            return None;
        }
        dictionaries.push(dictionary);
    }
    Some(dictionaries)
}

/// Numbers rows through a table over the combinations of codes: no hashing per row.
fn number_by_codes(
    values: &mut dyn GroupValues,
    texts: &mut [Option<Texts>],
    keys: &[&TextDictionary],
    rows: usize,
    scratch: &mut Scratch,
) -> Result<()> {
    let Scratch { group_of_row, combination_of_row, of_combination, combinations, counted, .. } = scratch;
    of_combination.clear();
    of_combination.resize(combinations_of(keys), u32::MAX);
    combinations.clear();
    group_of_row.clear();
    group_of_row.reserve(rows);
    for &combination in combine(keys, rows, combination_of_row) {
        // Codes were checked against their dictionary's length when the record was decoded.
        let local = &mut of_combination[combination as usize];
        if *local == u32::MAX {
            *local = combinations.len() as u32;
            combinations.push(combination as u32);
        }
        group_of_row.push(*local as usize);
    }
    let columns = codes_of_combinations(texts, keys, combinations)?;
    values.intern(&columns, counted)?;
    for group in group_of_row.iter_mut() {
        *group = counted[*group];
    }
    Ok(())
}

fn combinations_of(keys: &[&TextDictionary]) -> usize {
    keys.iter().map(|key| key.values().len().max(1)).product()
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

/// By key: the interned codes of the combinations that occur.
fn codes_of_combinations(
    texts: &mut [Option<Texts>],
    keys: &[&TextDictionary],
    combinations: &[u32],
) -> Result<Vec<ArrayRef>> {
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(keys.len());
    let mut below: u32 = 1;
    for (key, texts) in keys.iter().zip(texts).rev() {
        let Some(texts) = texts else { return internal_err!("a dictionary key that is no text") };
        let values = key.values().as_string::<i32>();
        let size = values.len().max(1) as u32;
        let mut code_of_value = vec![u32::MAX; size as usize];
        let mut codes = Vec::with_capacity(combinations.len());
        for combination in combinations {
            let value = (combination / below % size) as usize;
            if code_of_value[value] == u32::MAX {
                code_of_value[value] = texts.intern(values.value(value))?;
            }
            codes.push(code_of_value[value]);
        }
        columns.push(Arc::new(UInt32Array::from(codes)));
        below *= size;
    }
    columns.reverse();
    Ok(columns)
}

/// Texts seen and their codes: the n-th distinct text has code n.
#[derive(Debug, Default)]
struct Texts {
    hasher: DefaultHashBuilder,
    codes: HashTable<u32>,
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Texts {
    fn size(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * size_of::<usize>() + self.codes.allocation_size()
    }

    fn text<'b>(bytes: &'b [u8], ends: &[usize], code: u32) -> &'b [u8] {
        let code = code as usize;
        let start = if code == 0 { 0 } else { ends[code - 1] };
        &bytes[start..ends[code]]
    }

    fn intern(&mut self, text: &str) -> Result<u32> {
        use std::hash::BuildHasher;
        let Self { hasher, codes, bytes, ends } = self;
        let hash = hasher.hash_one(text.as_bytes());
        if let Some(code) = codes.find(hash, |&code| Self::text(bytes, ends, code) == text.as_bytes()) {
            return Ok(*code);
        }
        let Ok(code) = u32::try_from(ends.len()) else {
            return exec_err!("more than 2^32 texts in one window");
        };
        bytes.extend_from_slice(text.as_bytes());
        ends.push(bytes.len());
        codes.insert_unique(hash, code, |&code| hasher.hash_one(Self::text(bytes, ends, code)));
        Ok(code)
    }

    /// The column's codes; null stays null.
    fn codes(&mut self, column: &ArrayRef) -> Result<ArrayRef> {
        if let Some(dictionary) = column.as_dictionary_opt::<Int32Type>() {
            let of_values = self.codes(dictionary.values())?;
            return Ok(take(&of_values, dictionary.keys(), None)?);
        }
        let text = if *column.data_type() == DataType::Utf8 {
            Arc::clone(column)
        } else {
            cast(column, &DataType::Utf8)?
        };
        let codes =
            text.as_string::<i32>().iter().map(|value| value.map(|text| self.intern(text)).transpose());
        Ok(Arc::new(codes.collect::<Result<UInt32Array>>()?))
    }

    fn into_array(self) -> ArrayRef {
        let mut array = StringBuilder::with_capacity(self.ends.len(), self.bytes.len());
        for code in 0..self.ends.len() {
            let text = Self::text(&self.bytes, &self.ends, code as u32);
            // Only whole texts were put in.
            array.append_value(std::str::from_utf8(text).unwrap_or_default());
        }
        let array: StringArray = array.finish();
        Arc::new(array)
    }
}
