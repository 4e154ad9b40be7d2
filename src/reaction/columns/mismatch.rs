//! Why a column does not take a value, in words for who sent it.

use crate::reaction::decimal::DecimalError;
use crate::reaction::table::ColumnType;

/// What a value has that its column does not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// Null in a `NOT NULL` column.
    Null,
    /// A value of another type; as a person would call it: `the number 5`.
    Type(String),
    /// The right type and too large or too small.
    Range(String),
    /// Text that is no time; a whole sentence.
    Time(String),
    /// A value that is not written as its type is; a whole sentence.
    Form(String),
}

/// The digits of a number that a document holds as a float, when they are certain to be those that were written.
pub(super) fn exact_text(value: f64) -> Result<String, Mismatch> {
    let text = value.to_string();
    let significant = text.trim_start_matches(['-', '0', '.']).trim_end_matches('0');
    let digits = significant.bytes().filter(u8::is_ascii_digit).count();
    // A number of up to 15 digits survives the way through a float.
    if digits > 15 || !value.is_finite() {
        let message =
            format!("the number {text} has more digits than JSON numbers carry; send it as text, \"0.1\"");
        return Err(Mismatch::Form(message));
    }
    Ok(text)
}

pub(super) fn no_decimal(why: DecimalError, text: &str) -> Mismatch {
    let text = shortened(text);
    match why {
        DecimalError::NoNumber => Mismatch::Form(format!("'{text}' is no number such as 12.5")),
        DecimalError::Scale => Mismatch::Form(format!(
            "{text} has more digits behind the point than the column, and nothing is rounded; round it first"
        )),
        DecimalError::Range => Mismatch::Range(text),
    }
}

pub(super) fn within_array(mismatch: Mismatch) -> Mismatch {
    match mismatch {
        Mismatch::Type(found) => Mismatch::Type(format!("an array with {found} in it")),
        Mismatch::Range(found) => Mismatch::Range(format!("an array with {found} in it")),
        other => other,
    }
}

/// Enough of a client's text to recognise it in a message.
pub fn shortened(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// What a person would write for a column of that type.
pub fn takes(data_type: ColumnType) -> String {
    let what = match data_type {
        ColumnType::Array(item) => return format!("an array; of its items each {}", takes(*item)),
        ColumnType::Text => "text",
        ColumnType::Timestamp => "RFC 3339 text such as 2026-01-31T18:30:00Z, or an integer of nanoseconds",
        ColumnType::Int | ColumnType::Bigint | ColumnType::IntUnsigned | ColumnType::BigintUnsigned => {
            "an integer"
        }
        ColumnType::Float | ColumnType::Double => "a number",
        ColumnType::Boolean => "true or false",
        ColumnType::Bytea => "base64 text",
        ColumnType::Decimal { .. } => "a number, or its digits as text",
    };
    what.to_owned()
}
