//! A JSON object read as a row, field by field into typed columns: no tree of values is built, and text without escapes
//! is copied once. What a field is, and what becomes of one that is no column, is for the reader to say.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::columns::{Column, Mismatch};

/// Who reads rows. Errors are serde's; a reader that has more to say keeps it for itself.
pub trait RowReader {
    /// The column that a field is, by name; `at` counts the fields of the row from 0. `None`: its value is skipped.
    ///
    /// # Errors
    /// When the row must not have such a field.
    fn column<E: Error>(&mut self, at: usize, name: &str) -> Result<Option<usize>, E>;

    /// Pushes the row's value into a column.
    ///
    /// # Errors
    /// When the column does not take it, or the row has it twice.
    fn push<E: Error>(
        &mut self,
        column: usize,
        push: impl FnOnce(&mut Column) -> Result<(), Mismatch>,
    ) -> Result<(), E>;

    /// The same for an integer.
    ///
    /// # Errors
    /// As [`RowReader::push`].
    fn push_integer<E: Error>(&mut self, column: usize, value: i64) -> Result<(), E> {
        self.push(column, |column| column.push_i64(value))
    }

    /// The same for null.
    ///
    /// # Errors
    /// As [`RowReader::push`].
    fn push_null<E: Error>(&mut self, column: usize) -> Result<(), E> {
        self.push(column, Column::push_null)
    }

    /// Whether the column takes arrays.
    fn is_array(&self, column: usize) -> bool;
}

/// Reads the fields of an object as those of the reader's next row. Returns how many there were.
///
/// # Errors
/// When the text is no JSON, or the reader refuses a field.
pub fn read_fields<'de, A: MapAccess<'de>>(
    reader: &mut impl RowReader,
    mut object: A,
) -> Result<usize, A::Error> {
    let mut at = 0;
    while let Some(column) = object.next_key_seed(Name { reader: &mut *reader, at })? {
        match column {
            Some(column) => object.next_value_seed(Field { reader: &mut *reader, column })?,
            None => drop(object.next_value::<IgnoredAny>()?),
        }
        at += 1;
    }
    Ok(at)
}

/// A field's name → the column it is.
struct Name<'r, R> {
    reader: &'r mut R,
    at: usize,
}

impl<'de, R: RowReader> DeserializeSeed<'de> for Name<'_, R> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Option<usize>, D::Error> {
        from.deserialize_str(self)
    }
}

impl<R: RowReader> Visitor<'_> for Name<'_, R> {
    type Value = Option<usize>;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a column's name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Option<usize>, E> {
        self.reader.column(self.at, name)
    }
}

/// A value, pushed into its column.
struct Field<'r, R> {
    reader: &'r mut R,
    column: usize,
}

impl<'de, R: RowReader> DeserializeSeed<'de> for Field<'_, R> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de, R: RowReader> Visitor<'de> for Field<'_, R> {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a value")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.reader.push(self.column, |column| column.push_text(text))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.reader.push_integer(self.column, value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        match i64::try_from(value) {
            Ok(value) => self.reader.push_integer(self.column, value),
            Err(_) => self.reader.push(self.column, |column| column.push_u64(value)),
        }
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.reader.push(self.column, |column| column.push_f64(value))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.reader.push(self.column, |column| column.push_bool(value))
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.reader.push_null(self.column)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let mut array = Vec::new();
        if self.reader.is_array(self.column) {
            while let Some(item) = items.next_element::<Value>()? {
                array.push(item);
            }
        }
        self.reader.push(self.column, |column| column.push_json(&Value::Array(array)))
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        self.reader.push(self.column, |_| Err(Mismatch::Type("an object".to_owned())))
    }
}
