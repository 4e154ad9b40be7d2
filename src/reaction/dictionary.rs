//! Text that repeats → small integers, while it is read: a column of few values is never stored row by row.

use std::hash::BuildHasher;
use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, Int32Array, StringArray};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::Int32Type;
use arrow::error::ArrowError;
use hashbrown::{DefaultHashBuilder, HashTable};

/// So many different values are kept in any case; beyond, more than one for every four rows ends the dictionary.
const FEW: usize = 64;

/// One text column in the making: a key per row, and the values that the keys stand for.
#[derive(Clone, Debug, Default)]
pub struct Dictionary {
    keys: Vec<i32>,
    /// Value `i` is `bytes[offsets[i]..offsets[i + 1]]`.
    offsets: Vec<i32>,
    bytes: Vec<u8>,
    places: HashTable<i32>,
    hasher: DefaultHashBuilder,
}

/// Two columns are equal when their rows are.
impl PartialEq for Dictionary {
    fn eq(&self, other: &Self) -> bool {
        self.keys.len() == other.keys.len()
            && self.keys.iter().zip(&other.keys).all(|(a, b)| self.value(*a) == other.value(*b))
    }
}

impl Dictionary {
    /// An empty one with room for `rows` rows.
    pub fn with_capacity(rows: usize) -> Self {
        Self { keys: Vec::with_capacity(rows), offsets: vec![0], ..Self::default() }
    }

    /// Appends a row.
    pub fn push(&mut self, text: &str) {
        let key = self.known(text.as_bytes()).unwrap_or_else(|hash| self.insert(hash, text));
        self.keys.push(key);
    }

    /// Appends a row; `None` when the text is not UTF-8. Only text that is new is looked at.
    pub fn push_utf8(&mut self, text: &[u8]) -> Option<()> {
        let key = match self.known(text) {
            Ok(key) => key,
            Err(hash) => self.insert(hash, std::str::from_utf8(text).ok()?),
        };
        self.keys.push(key);
        Some(())
    }

    /// Appends rows by keys: which of `texts` each is. `None` when a key is none of them; then no row is appended.
    pub fn extend(&mut self, texts: &[&str], keys: &[[u8; 4]]) -> Option<()> {
        let known = |key: &[u8; 4]| (u32::from_le_bytes(*key) as usize) < texts.len();
        if !keys.iter().all(known) {
            return None;
        }
        let own = |text: &&str| self.known(text.as_bytes()).unwrap_or_else(|hash| self.insert(hash, text));
        let own: Vec<i32> = texts.iter().map(own).collect();
        match own[..] {
            [only] => self.keys.resize(self.keys.len() + keys.len(), only),
            _ => self.keys.extend(keys.iter().map(|key| own[u32::from_le_bytes(*key) as usize])),
        }
        Some(())
    }

    /// The key of a value; of a new one its hash.
    fn known(&self, text: &[u8]) -> Result<i32, u64> {
        // Rooms, and emojis in a burst, mostly repeat the row before.
        if let Some(&last) = self.keys.last()
            && self.value(last) == text
        {
            return Ok(last);
        }
        let hash = self.hasher.hash_one(text);
        self.places.find(hash, |&key| self.value(key) == text).copied().ok_or(hash)
    }

    fn insert(&mut self, hash: u64, text: &str) -> i32 {
        let Self { offsets, bytes, places, hasher, .. } = self;
        let key = offset(offsets.len() - 1);
        bytes.extend_from_slice(text.as_bytes());
        offsets.push(offset(bytes.len()));
        places.insert_unique(hash, key, |&key| hasher.hash_one(value(offsets, bytes, key)));
        key
    }

    /// Appends a row without a value; that it has none is the caller's to say.
    pub fn push_null(&mut self) {
        match self.keys.last() {
            Some(&last) => self.keys.push(last),
            None => self.push(""),
        }
    }

    /// Removes the rows from `rows` on.
    pub fn truncate(&mut self, rows: usize) {
        self.keys.truncate(rows);
    }

    /// Whether the values are so many that plain text is the better form.
    pub fn is_wide(&self) -> bool {
        let values = self.offsets.len() - 1;
        values > FEW && values > self.keys.len() / 4
    }

    /// The same rows as offsets and bytes.
    pub fn into_plain(self) -> (Vec<i32>, Vec<u8>) {
        let mut offsets = Vec::with_capacity(self.keys.capacity() + 1);
        let mut bytes = Vec::with_capacity(self.bytes.len() * 2);
        offsets.push(0);
        for &key in &self.keys {
            bytes.extend_from_slice(self.value(key));
            offsets.push(offset(bytes.len()));
        }
        (offsets, bytes)
    }

    /// The bytes of the rows' text, each value counted once.
    pub fn text_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The column as a dictionary of Utf8 with Int32 keys.
    ///
    /// # Errors
    /// When `nulls` has another length.
    pub fn into_array(self, nulls: Option<NullBuffer>) -> Result<ArrayRef, ArrowError> {
        let offsets = OffsetBuffer::new(ScalarBuffer::from(self.offsets));
        let values = StringArray::try_new(offsets, Buffer::from_vec(self.bytes), None)?;
        let keys = Int32Array::try_new(self.keys.into(), nulls)?;
        Ok(Arc::new(DictionaryArray::<Int32Type>::try_new(keys, Arc::new(values))?))
    }

    fn value(&self, key: i32) -> &[u8] {
        value(&self.offsets, &self.bytes, key)
    }
}

/// Keys are made here only, so they are in range.
fn value<'a>(offsets: &[i32], bytes: &'a [u8], key: i32) -> &'a [u8] {
    let key = key as usize;
    &bytes[offsets[key] as usize..offsets[key + 1] as usize]
}

/// Arrow's offsets are 32 bits; what is read is bounded far below that.
fn offset(bytes: usize) -> i32 {
    i32::try_from(bytes).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray};

    use super::*;

    #[test]
    fn the_rows_are_what_was_pushed_in_both_forms() {
        let mut dictionary = Dictionary::with_capacity(4);
        let texts: Vec<String> = (0..200).map(|n| format!("room{}", n % 7)).collect();
        texts.iter().for_each(|text| dictionary.push(text));
        assert!(!dictionary.is_wide());
        let array = dictionary.clone().into_array(None).unwrap();
        let array = array.as_dictionary::<Int32Type>();
        assert_eq!(array.values().len(), 7);
        let rows: Vec<_> = array.downcast_dict::<StringArray>().unwrap().into_iter().flatten().collect();
        assert_eq!(rows, texts);
        let (offsets, bytes) = dictionary.into_plain();
        assert_eq!((offsets.len(), bytes.len()), (201, 1000));
    }

    #[test]
    fn a_column_of_many_values_is_wide_and_one_of_few_rows_is_not() {
        let mut dictionary = Dictionary::with_capacity(4);
        (0..64).for_each(|n| dictionary.push(&n.to_string()));
        assert!(!dictionary.is_wide());
        dictionary.push("one more");
        assert!(dictionary.is_wide());
        (0..1000).for_each(|_| dictionary.push("again"));
        assert!(!dictionary.is_wide());
    }
}
