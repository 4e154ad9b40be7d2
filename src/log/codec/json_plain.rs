//! The usual JSON row, read without a parser: an object with the fields of the row before, in their order, holding
//! integers, literals and text without escapes. About three times as fast as the general way; whatever is unusual goes
//! there and gets its error there.

use super::json::Reading;
use crate::reaction::time::NS_PER_MS;

/// How many rows in a row may be unusual before this is not tried any more.
const PATIENCE: u32 = 16;

/// What is known of the rows so far.
#[derive(Debug, Default)]
pub(super) struct Usual {
    /// The fields of the row before: `"name"`, and which column it is.
    pub(super) fields: Vec<(String, Option<usize>)>,
    misses: u32,
}

/// A value that is taken as it stands.
enum Plain<'t> {
    Text(&'t str),
    Integer(i64),
    Bool(bool),
    Null,
}

/// Takes the row, all but the columns that it leaves out; `false` when it is not usual, and then some of its columns may
/// have been taken.
pub(super) fn take(reading: &mut Reading<'_>, text: &[u8]) -> bool {
    if reading.usual.fields.is_empty() || reading.usual.misses > PATIENCE {
        return false;
    }
    let taken = try_take(reading, text).is_some();
    reading.usual.misses = if taken { 0 } else { reading.usual.misses + 1 };
    taken
}

fn try_take(reading: &mut Reading<'_>, text: &[u8]) -> Option<()> {
    let mut rest = text.strip_prefix(b"{")?;
    for at in 0..reading.usual.fields.len() {
        if at > 0 {
            rest = after_space(rest.strip_prefix(b",")?);
        }
        let (name, column) = &reading.usual.fields[at];
        rest = after_space(rest.strip_prefix(name.as_bytes())?.strip_prefix(b":")?);
        let column = *column;
        let (value, after) = plain_value(rest, column.is_some())?;
        rest = after;
        if let Some(column) = column {
            push(reading, column, &value)?;
        }
    }
    (rest == b"}").then_some(())
}

fn push(reading: &mut Reading<'_>, column: usize, value: &Plain<'_>) -> Option<()> {
    let (nullable, is_millis) = (reading.is_nullable(column), reading.is_millis(column));
    if matches!(value, Plain::Null) && !nullable {
        return Some(());
    }
    let values = reading.slot(column)?;
    let pushed = match value {
        Plain::Text(text) => values.push_text(text),
        Plain::Integer(value) if is_millis => values.push_i64(value.checked_mul(NS_PER_MS)?),
        Plain::Integer(value) => values.push_i64(*value),
        Plain::Bool(value) => values.push_bool(*value),
        Plain::Null => values.push_null(),
    };
    pushed.ok()
}

/// Some writers put a space behind a colon and a comma.
fn after_space(text: &[u8]) -> &[u8] {
    text.strip_prefix(b" ").unwrap_or(text)
}

/// The value that the text begins with, and what follows it. Text that nobody needs is not looked at as such.
fn plain_value(text: &[u8], is_needed: bool) -> Option<(Plain<'_>, &[u8])> {
    match text.first()? {
        b'"' => {
            let text = &text[1..];
            let end = text.iter().position(|&byte| byte == b'"' || byte == b'\\' || byte < 0x20)?;
            if text[end] != b'"' {
                return None;
            }
            let value = if is_needed { std::str::from_utf8(&text[..end]).ok()? } else { "" };
            Some((Plain::Text(value), &text[end + 1..]))
        }
        b't' => Some((Plain::Bool(true), text.strip_prefix(b"true")?)),
        b'f' => Some((Plain::Bool(false), text.strip_prefix(b"false")?)),
        b'n' => Some((Plain::Null, text.strip_prefix(b"null")?)),
        b'-' | b'0'..=b'9' => integer(text),
        _ => None,
    }
}

/// Up to 18 digits, which fit 64 bits.
fn integer(text: &[u8]) -> Option<(Plain<'_>, &[u8])> {
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let count = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = digits.split_at(count);
    let has_leading_zero = count > 1 && digits[0] == b'0';
    if !(1..=18).contains(&count) || has_leading_zero || !matches!(rest.first(), Some(b',' | b'}')) {
        return None;
    }
    let number = digits.iter().fold(0_i64, |number, digit| number * 10 + i64::from(digit - b'0'));
    // JSON knows a negative zero; integers do not.
    if negative && number == 0 {
        return None;
    }
    Some((Plain::Integer(if negative { -number } else { number }), rest))
}
