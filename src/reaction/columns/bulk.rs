//! Many values at once, as they lie side by side in a record: little-endian, without nulls.

use super::{Column, Values, offset};

/// Text that is given by keys is not spelled out to more than this: a long text may stand in every row.
const MAX_SPELLED_OUT: usize = 1 << 20;

impl Column {
    /// As [`Column::push_text`], for bytes that need not be UTF-8. `None` when they are not, or the column does not take
    /// them; the column is then as it was. Text that a dictionary knows is not looked at again.
    pub fn push_utf8(&mut self, text: &[u8]) -> Option<()> {
        let Values::Coded(dictionary) = &mut self.values else {
            return self.push_text(std::str::from_utf8(text).ok()?).ok();
        };
        dictionary.push_utf8(text)?;
        self.spell_out_if_wide();
        self.mark_valid_many(1);
        Some(())
    }

    /// Whether values of a fixed width can be appended by [`Column::extend_fixed`], and that width.
    pub fn fixed_width(&self) -> Option<usize> {
        match &self.values {
            Values::Timestamp(_) | Values::Bigint(_) | Values::BigintUnsigned(_) | Values::Double(_) => {
                Some(8)
            }
            Values::Int(_) | Values::IntUnsigned(_) | Values::Float(_) => Some(4),
            _ => None,
        }
    }

    /// Appends values of the column's width. `None` when it takes no such values; the column is then as it was.
    pub fn extend_fixed(&mut self, bytes: &[u8]) -> Option<()> {
        let width = self.fixed_width()?;
        let (eight, four) = (bytes.as_chunks::<8>().0, bytes.as_chunks::<4>().0);
        match &mut self.values {
            Values::Timestamp(values) | Values::Bigint(values) => {
                values.extend(eight.iter().map(|value| i64::from_le_bytes(*value)));
            }
            Values::BigintUnsigned(values) => {
                values.extend(eight.iter().map(|value| u64::from_le_bytes(*value)))
            }
            Values::Double(values) => values.extend(eight.iter().map(|value| f64::from_le_bytes(*value))),
            Values::Int(values) => values.extend(four.iter().map(|value| i32::from_le_bytes(*value))),
            Values::IntUnsigned(values) => values.extend(four.iter().map(|value| u32::from_le_bytes(*value))),
            Values::Float(values) => values.extend(four.iter().map(|value| f32::from_le_bytes(*value))),
            _ => return None,
        }
        self.mark_valid_many(bytes.len() / width);
        Some(())
    }

    /// Appends text by keys, 32 bits each: which of `texts` a row is. `None` when a key is none of them, or the column
    /// no text, or the text is too long to be spelled out; the column has then still the rows that it had, after [`Column::truncate`].
    pub fn extend_coded(&mut self, texts: &[&str], keys: &[u8]) -> Option<()> {
        let keys = keys.as_chunks::<4>().0;
        match &mut self.values {
            Values::Coded(dictionary) => dictionary.extend(texts, keys)?,
            Values::Text { offsets, bytes } => {
                let most = bytes.len() + MAX_SPELLED_OUT;
                for key in keys {
                    let text = texts.get(u32::from_le_bytes(*key) as usize)?;
                    if bytes.len() + text.len() > most {
                        return None;
                    }
                    bytes.extend_from_slice(text.as_bytes());
                    offsets.push(offset(bytes.len()));
                }
            }
            _ => return None,
        }
        self.spell_out_if_wide();
        self.mark_valid_many(keys.len());
        Some(())
    }

    fn mark_valid_many(&mut self, rows: usize) {
        if let Some(valid) = &mut self.valid {
            valid.resize(valid.len() + rows, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray};
    use arrow::compute::cast;
    use arrow::datatypes::{DataType, TimestampNanosecondType};

    use super::*;
    use crate::reaction::table::ColumnType;

    fn keys(keys: impl IntoIterator<Item = u32>) -> Vec<u8> {
        keys.into_iter().flat_map(u32::to_le_bytes).collect()
    }

    #[test]
    fn times_and_text_of_several_records_are_joined() {
        let mut times = Column::coded(ColumnType::Timestamp, true, 4);
        times.push_null().unwrap();
        times.extend_fixed(&[1, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255]).unwrap();
        let times = times.into_array().unwrap();
        let expected = [None, Some(1), Some(-1)];
        assert_eq!(times.as_primitive::<TimestampNanosecondType>().iter().collect::<Vec<_>>(), expected);

        let mut text = Column::coded(ColumnType::Text, false, 4);
        text.push_text("b").unwrap();
        text.extend_coded(&["a", "b"], &keys([1, 0, 1])).unwrap();
        text.extend_coded(&["c", "a"], &keys([0, 1])).unwrap();
        // Many values: the rows are spelled out, and further ones are appended to those.
        let many: Vec<String> = (0..200).map(|n| n.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        text.extend_coded(&many, &keys(0..200)).unwrap();
        text.extend_coded(&["a"], &keys([0])).unwrap();
        let text = text.into_array().unwrap();
        assert_eq!(text.data_type(), &DataType::Utf8);
        let rows: Vec<_> = text.as_string::<i32>().iter().flatten().collect();
        assert_eq!(rows, [&["b", "b", "a", "b", "c", "a"], &many[..], &["a"]].concat());
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        let mut text = Column::coded(ColumnType::Text, true, 4);
        for (bytes, taken) in [(&b"a"[..], true), (b"\xff", false), (b"a", true), ("é".as_bytes(), true)] {
            assert_eq!(text.push_utf8(bytes).is_some(), taken);
        }
        assert_eq!(Column::coded(ColumnType::Bigint, true, 4).push_utf8(b"a"), None);
        assert_eq!(text.into_array().unwrap().len(), 3);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_can_be_taken_back() {
        let mut text = Column::coded(ColumnType::Text, false, 4);
        text.extend_coded(&["a"], &keys([0, 0])).unwrap();
        assert_eq!(text.extend_coded(&["b"], &keys([0, 1])), None);
        assert_eq!(text.extend_coded(&["b"], &keys([u32::MAX])), None);
        assert_eq!(text.extend_fixed(&[0; 8]), None);
        text.truncate(2);
        text.extend_coded(&["b"], &keys([0])).unwrap();
        let rows = cast(&text.into_array().unwrap(), &DataType::Utf8).unwrap();
        assert_eq!(rows.as_string::<i32>().iter().flatten().collect::<Vec<_>>(), ["a", "a", "b"]);
        assert_eq!(Column::coded(ColumnType::Boolean, false, 1).extend_fixed(&[0; 8]), None);
        assert_eq!(Column::coded(ColumnType::Int, false, 1).extend_coded(&[], &[]), None);
    }
}
