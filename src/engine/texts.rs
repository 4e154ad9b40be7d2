//! Text keys → group numbers. Every text of a pane has a code, and a group is a pair of codes, so that a row is numbered
//! by looking into tables, and only texts are hashed: of a dictionary each once. Pure.

use std::hash::BuildHasher;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringBuilder, UInt32Array};
use arrow::compute::{cast, take};
use arrow::datatypes::{DataType, Int32Type};
use datafusion::common::{Result, exec_err};
use hashbrown::{DefaultHashBuilder, HashTable};

/// No code, no number.
pub(crate) const NONE: u32 = u32::MAX;
/// The most pairs for which a table has a cell whether they occur or not: 1 MB.
const MAX_CELLS: usize = 1 << 18;

/// Texts seen and their codes: the n-th distinct one has code n. Null is one of them.
#[derive(Debug, Default)]
pub(crate) struct Texts {
    hasher: DefaultHashBuilder,
    codes: HashTable<u32>,
    bytes: Vec<u8>,
    ends: Vec<usize>,
    null: Option<u32>,
}

impl Texts {
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Bytes in memory, about.
    pub(crate) fn size(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * size_of::<usize>() + self.codes.allocation_size()
    }

    fn text<'b>(bytes: &'b [u8], ends: &[usize], code: u32) -> &'b [u8] {
        let code = code as usize;
        let start = if code == 0 { 0 } else { ends[code - 1] };
        &bytes[start..ends[code]]
    }

    pub(crate) fn intern(&mut self, text: &str) -> Result<u32> {
        let hash = self.hasher.hash_one(text.as_bytes());
        let Self { codes, bytes, ends, null, .. } = self;
        let is_it = |code: u32| Self::text(bytes, ends, code) == text.as_bytes() && *null != Some(code);
        if let Some(code) = codes.find(hash, |&code| is_it(code)) {
            return Ok(*code);
        }
        let code = self.add(text)?;
        let Self { hasher, codes, bytes, ends, .. } = self;
        codes.insert_unique(hash, code, |&code| hasher.hash_one(Self::text(bytes, ends, code)));
        Ok(code)
    }

    fn null(&mut self) -> Result<u32> {
        if self.null.is_none() {
            self.null = Some(self.add("")?);
        }
        Ok(self.null.unwrap_or(NONE))
    }

    fn add(&mut self, text: &str) -> Result<u32> {
        match u32::try_from(self.ends.len()) {
            Ok(code) if code != NONE => {
                self.bytes.extend_from_slice(text.as_bytes());
                self.ends.push(self.bytes.len());
                Ok(code)
            }
            _ => exec_err!("more than 2^32 texts in one window"),
        }
    }

    /// The code of every row. Only texts that a row has get one: each may become a group.
    pub(crate) fn codes(&mut self, column: &ArrayRef) -> Result<Vec<u32>> {
        let Some(dictionary) = column.as_dictionary_opt::<Int32Type>() else {
            let text = as_utf8(column)?;
            return text.as_string::<i32>().iter().map(|text| self.code(text)).collect();
        };
        let values = as_utf8(dictionary.values())?;
        let values = values.as_string::<i32>();
        let value = |key: usize| (!values.is_null(key)).then(|| values.value(key));
        let mut code_of_value = vec![NONE; values.len()];
        let mut code_of_key = |key: usize| {
            if code_of_value[key] == NONE {
                code_of_value[key] = self.code(value(key))?;
            }
            Ok(code_of_value[key])
        };
        if dictionary.null_count() == 0 {
            // Keys were checked against their dictionary's length when the record was decoded.
            return dictionary.keys().values().iter().map(|&key| code_of_key(key as usize)).collect();
        }
        dictionary.keys_iter().map(|key| self.code(key.and_then(value))).collect()
    }

    fn code(&mut self, text: Option<&str>) -> Result<u32> {
        match text {
            Some(text) => self.intern(text),
            None => self.null(),
        }
    }

    /// All texts, by code.
    pub(crate) fn into_array(self) -> ArrayRef {
        let mut array = StringBuilder::with_capacity(self.ends.len(), self.bytes.len());
        for code in 0..self.ends.len() as u32 {
            // Only whole texts were put in.
            let text = std::str::from_utf8(Self::text(&self.bytes, &self.ends, code)).ok();
            array.append_option(text.filter(|_| self.null != Some(code)));
        }
        Arc::new(array.finish())
    }
}

fn as_utf8(column: &ArrayRef) -> Result<ArrayRef> {
    match column.data_type() {
        DataType::Utf8 => Ok(Arc::clone(column)),
        _ => Ok(cast(column, &DataType::Utf8)?),
    }
}

/// Groups whose keys are all text: the codes of the first two keys make a number, that and the third key's code another,
/// and so on; the last is the group.
#[derive(Debug)]
pub(crate) struct TextGroups {
    texts: Vec<Texts>,
    /// For every key but the first.
    pairs: Vec<Pairs>,
}

impl TextGroups {
    pub(crate) fn new(keys: usize) -> Self {
        let texts = std::iter::repeat_with(Texts::default).take(keys).collect();
        Self { texts, pairs: std::iter::repeat_with(Pairs::default).take(keys.saturating_sub(1)).collect() }
    }

    pub(crate) fn texts(&mut self) -> &mut [Texts] {
        &mut self.texts
    }

    pub(crate) fn len(&self) -> usize {
        match self.pairs.last() {
            Some(pairs) => pairs.pairs.len(),
            None => self.texts.first().map_or(0, Texts::len),
        }
    }

    /// Bytes in memory, about.
    pub(crate) fn size(&self) -> usize {
        let texts = self.texts.iter().map(Texts::size).sum::<usize>();
        texts + self.pairs.iter().map(Pairs::size).sum::<usize>()
    }

    /// The group of every row, whose keys have these codes.
    pub(crate) fn number(&mut self, codes: &[Vec<u32>], group_of_row: &mut Vec<usize>) -> Result<()> {
        group_of_row.clear();
        let Some((first, others)) = codes.split_first() else { return Ok(()) };
        group_of_row.extend(first.iter().map(|&code| code as usize));
        let mut lefts = self.texts[0].len();
        for ((codes, pairs), texts) in others.iter().zip(&mut self.pairs).zip(&self.texts[1..]) {
            pairs.number(group_of_row, lefts, codes, texts.len())?;
            lefts = pairs.pairs.len();
        }
        Ok(())
    }

    /// The keys of all groups, in the groups' order.
    pub(crate) fn into_keys(self) -> Result<Vec<ArrayRef>> {
        let mut left: Vec<u32> = (0..self.len() as u32).collect();
        let mut codes = Vec::with_capacity(self.texts.len());
        for pairs in self.pairs.iter().rev() {
            codes.push(left.iter().map(|&number| pairs.pairs[number as usize].1).collect());
            left.iter_mut().for_each(|number| *number = pairs.pairs[*number as usize].0);
        }
        codes.push(left);
        let keys = self.texts.into_iter().zip(codes.into_iter().rev());
        keys.map(|(texts, codes)| Ok(take(&texts.into_array(), &UInt32Array::from(codes), None)?)).collect()
    }
}

/// Two numbers → one: the n-th distinct pair has number n.
#[derive(Debug, Default)]
struct Pairs {
    pairs: Vec<(u32, u32)>,
    numbers: Numbers,
}

/// From a pair to its number.
#[derive(Debug)]
enum Numbers {
    /// For few: at `left << shift | right`.
    Cells {
        cells: Vec<u32>,
        shift: u32,
    },
    Hashed {
        hasher: DefaultHashBuilder,
        table: HashTable<u32>,
    },
}

impl Default for Numbers {
    fn default() -> Self {
        Self::Cells { cells: Vec::new(), shift: 0 }
    }
}

impl Pairs {
    fn size(&self) -> usize {
        let numbers = match &self.numbers {
            Numbers::Cells { cells, .. } => cells.capacity() * size_of::<u32>(),
            Numbers::Hashed { table, .. } => table.allocation_size(),
        };
        self.pairs.capacity() * size_of::<(u32, u32)>() + numbers
    }

    /// Makes of the left numbers, which are below `lefts`, and the right ones, below `rights`, those of the pairs.
    fn number(&mut self, left: &mut [usize], lefts: usize, right: &[u32], rights: usize) -> Result<()> {
        self.make_room(lefts, rights);
        if NONE as usize - self.pairs.len() < left.len() {
            return exec_err!("more than 2^32 groups in one window");
        }
        let Self { pairs, numbers } = self;
        match numbers {
            Numbers::Cells { cells, shift } => {
                for (number, &right) in left.iter_mut().zip(right) {
                    let cell = &mut cells[*number << *shift | right as usize];
                    if *cell == NONE {
                        *cell = pairs.len() as u32;
                        pairs.push((*number as u32, right));
                    }
                    *number = *cell as usize;
                }
            }
            Numbers::Hashed { hasher, table } => {
                for (number, &right) in left.iter_mut().zip(right) {
                    let pair = (*number as u32, right);
                    let hash = hasher.hash_one(pair);
                    let known = table.find(hash, |&known| pairs[known as usize] == pair);
                    *number = match known {
                        Some(known) => *known as usize,
                        None => {
                            let next = pairs.len();
                            pairs.push(pair);
                            table.insert_unique(hash, next as u32, |&known| {
                                hasher.hash_one(pairs[known as usize])
                            });
                            next
                        }
                    };
                }
            }
        }
        Ok(())
    }

    /// A cell for every pair, as long as they are few.
    fn make_room(&mut self, lefts: usize, rights: usize) {
        let Numbers::Cells { cells, shift } = &mut self.numbers else { return };
        let (lefts, rights) = (lefts.next_power_of_two(), rights.next_power_of_two());
        let wanted = rights.ilog2();
        if wanted <= *shift && lefts << *shift <= cells.len() {
            return;
        }
        let shift = wanted.max(*shift);
        let count = lefts.checked_mul(1 << shift).filter(|count| *count <= MAX_CELLS);
        self.numbers = match count {
            Some(count) => {
                let mut cells = vec![NONE; count];
                for (number, (left, right)) in (0..).zip(&self.pairs) {
                    cells[(*left as usize) << shift | *right as usize] = number;
                }
                Numbers::Cells { cells, shift }
            }
            None => {
                let hasher = DefaultHashBuilder::default();
                let mut table = HashTable::with_capacity(self.pairs.len() * 2);
                for (number, pair) in (0..).zip(&self.pairs) {
                    let hash = hasher.hash_one(pair);
                    table.insert_unique(hash, number, |&known| hasher.hash_one(self.pairs[known as usize]));
                }
                Numbers::Hashed { hasher, table }
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{DictionaryArray, StringArray};
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    use std::collections::HashMap;

    use super::*;

    type Row = Vec<Option<String>>;

    /// Rows by rows: each gets the number under which its keys come back.
    fn check(sizes: &[u32], batches: usize, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        let mut groups = TextGroups::new(sizes.len());
        let mut numbers: HashMap<Row, usize> = HashMap::new();
        for batch in 0..batches {
            let columns = sizes.iter().map(|&size| {
                let text = |n: u32| (n > 0).then(|| if n == 1 { String::new() } else { format!("text {n}") });
                let column: Vec<_> = (0..500).map(|_| text(random.random_range(0..size))).collect();
                let array: ArrayRef = match batch % 2 {
                    0 => Arc::new(StringArray::from(column.clone())),
                    _ => {
                        Arc::new(DictionaryArray::<Int32Type>::from_iter(column.iter().map(Option::as_deref)))
                    }
                };
                (column, array)
            });
            let columns: Vec<_> = columns.collect();
            let codes = groups.texts.iter_mut().zip(&columns).map(|(texts, (_, array))| texts.codes(array));
            let codes = codes.collect::<Result<Vec<_>>>().unwrap();
            let mut group_of_row = Vec::new();
            groups.number(&codes, &mut group_of_row).unwrap();
            for (row, group) in group_of_row.into_iter().enumerate() {
                let keys: Row = columns.iter().map(|(column, _)| column[row].clone()).collect();
                let next = numbers.len();
                assert_eq!(*numbers.entry(keys).or_insert(next), group);
            }
        }
        assert_eq!(groups.len(), numbers.len());
        let keys = groups.into_keys().unwrap();
        for (row, group) in numbers {
            let back: Row = keys
                .iter()
                .map(|key| key.as_string::<i32>())
                .map(|key| (!key.is_null(group)).then(|| key.value(group).to_owned()))
                .collect();
            assert_eq!(back, row);
        }
    }

    #[test]
    fn rows_of_the_same_texts_are_one_group_and_null_is_not_the_empty_text() {
        for (sizes, batches) in [
            (&[3][..], 4),
            (&[700], 4),
            (&[3, 2], 4),
            (&[40, 300], 8),
            (&[300, 40, 3], 8),
            // Too many pairs for cells.
            (&[3000, 3000], 8),
            (&[3000, 3000, 2, 5], 8),
        ] {
            check(sizes, batches, sizes.len() as u64);
        }
    }

    #[test]
    fn values_that_no_row_has_are_no_groups() {
        let column: ArrayRef = Arc::new(DictionaryArray::<Int32Type>::from_iter(["a", "b", "c"]).slice(1, 1));
        let mut groups = TextGroups::new(1);
        let codes = groups.texts()[0].codes(&column).unwrap();
        let mut group_of_row = Vec::new();
        groups.number(&[codes], &mut group_of_row).unwrap();
        assert_eq!((group_of_row, groups.len()), (vec![0], 1));
    }
}
