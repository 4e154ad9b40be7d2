//! JSON and NDJSON → rows, straight into typed columns.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::decode::{DecodeError, Decoder, Filling};
use crate::reaction::columns::{Column, Mismatch, Rows, shortened};
use crate::reaction::json_row::{RowReader, read_fields};

/// About how long a row is, for reserving room.
const ROW_BYTES: usize = 64;

/// The rows of an object or of an array of objects.
pub(super) fn json(decoder: &Decoder, body: &[u8], receipt_ns: i64) -> Result<Rows, DecodeError> {
    let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
    let expected = if first == Some(&b'[') { body.len() / ROW_BYTES } else { 1 };
    let mut reading = Reading::new(decoder, receipt_ns, expected);
    let mut from = serde_json::Deserializer::from_slice(body);
    let read = match first {
        None => {
            return Err(syntax(
                None,
                "the body is empty; send a JSON object or an array of objects".to_owned(),
            ));
        }
        Some(b'{') => RowSeed(&mut reading).deserialize(&mut from),
        Some(b'[') => from.deserialize_seq(ArrayVisitor(&mut reading)),
        Some(_) => return Err(syntax(None, "the body is no JSON object and no array of objects".to_owned())),
    };
    if let Err(error) = read {
        return Err(reading.failed(&error));
    }
    from.end().map_err(|error| {
        let place = format!("line {} column {}", error.line(), error.column());
        let detail =
            format!("there is more at {place}, after the end; send several rows as an array or as NDJSON");
        syntax(None, detail)
    })?;
    Ok(reading.filling.rows)
}

/// The rows of objects, one per line. Empty lines count for nothing.
pub(super) fn ndjson(decoder: &Decoder, body: &[u8], receipt_ns: i64) -> Result<Rows, DecodeError> {
    let expected = body.len() / ROW_BYTES;
    let mut reading = Reading::new(decoder, receipt_ns, expected);
    for line in body.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty()) {
        let mut from = serde_json::Deserializer::from_slice(line);
        let read = RowSeed(&mut reading).deserialize(&mut from);
        if let Err(error) = read.and_then(|()| from.end()) {
            return Err(reading.failed(&error));
        }
    }
    Ok(reading.filling.rows)
}

fn syntax(row: Option<usize>, detail: String) -> DecodeError {
    DecodeError::Syntax { row, detail }
}

/// The rows so far, and what stopped them: serde's errors are text, ours name row and column.
struct Reading<'a> {
    filling: Filling<'a>,
    /// Rows mostly name their columns in the same order: the place of the next one.
    guess: usize,
    error: Option<DecodeError>,
}

impl<'a> Reading<'a> {
    fn new(decoder: &'a Decoder, receipt_ns: i64, expected: usize) -> Self {
        Self { filling: Filling::new(decoder, receipt_ns, expected), guess: 0, error: None }
    }

    fn row(&self) -> usize {
        self.filling.rows.count
    }

    fn refuse<E: Error>(&mut self, error: DecodeError) -> E {
        self.error = Some(error);
        E::custom("refused")
    }

    fn refuse_row<E: Error>(&mut self, found: &str) -> E {
        let row = self.row();
        let detail = format!("row {row} is {found}; a row is an object such as {{\"emoji_type\": \"😀\"}}");
        self.refuse(DecodeError::Row { row, column: None, detail })
    }

    fn failed(self, error: &serde_json::Error) -> DecodeError {
        let row = self.row();
        self.error.unwrap_or_else(|| syntax(Some(row), format!("row {row} is no valid JSON: {error}")))
    }
}

impl RowReader for Reading<'_> {
    fn column<E: Error>(&mut self, _: usize, name: &str) -> Result<Option<usize>, E> {
        let decoder = self.filling.decoder;
        let Some(place) = decoder.place(name, self.guess) else {
            let row = self.row();
            return Err(self.refuse(decoder.unknown_column(row, name)));
        };
        self.guess = place + 1;
        Ok(Some(place))
    }

    fn push<E: Error>(
        &mut self,
        column: usize,
        push: impl FnOnce(&mut Column) -> Result<(), Mismatch>,
    ) -> Result<(), E> {
        let row = self.row();
        let pushed = match self.filling.column(column) {
            Ok(values) => push(values),
            Err(error) => return Err(self.refuse(error)),
        };
        pushed.map_err(|mismatch| {
            let error = self.filling.decoder.mismatch(row, column, &mismatch);
            self.refuse(error)
        })
    }

    fn is_array(&self, column: usize) -> bool {
        self.filling.rows.columns[column].is_array()
    }
}

struct ArrayVisitor<'s, 'a>(&'s mut Reading<'a>);

impl<'de> Visitor<'de> for ArrayVisitor<'_, '_> {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<(), A::Error> {
        while rows.next_element_seed(RowSeed(self.0))?.is_some() {}
        Ok(())
    }
}

/// One row, appended to the rows so far.
struct RowSeed<'s, 'a>(&'s mut Reading<'a>);

impl<'de> DeserializeSeed<'de> for RowSeed<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for RowSeed<'_, '_> {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, row: A) -> Result<(), A::Error> {
        self.0.guess = 0;
        read_fields(self.0, row)?;
        self.0.filling.end_row().map_err(|error| self.0.refuse(error))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(self.0.refuse_row("an array"))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        Err(self.0.refuse_row(&format!("the text '{}'", shortened(text))))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        Err(self.0.refuse_row(&format!("the number {value}")))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        Err(self.0.refuse_row(&format!("the number {value}")))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        Err(self.0.refuse_row(&format!("the number {value}")))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        Err(self.0.refuse_row(&value.to_string()))
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Err(self.0.refuse_row("null"))
    }
}
