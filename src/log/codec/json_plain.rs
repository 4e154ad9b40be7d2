//! The usual JSON row, read without a parser: an object with the fields of the row before, in their order, holding
//! integers, literals and text without escapes. About three times as fast as the general way; whatever is unusual goes
//! there and gets its error there.

use super::json::Reading;
use crate::reaction::parse_time::Times;
use crate::reaction::time::NS_PER_MS;

/// How many rows in a row may be unusual before this is not tried any more.
const PATIENCE: u32 = 16;

/// What is known of the rows so far.
#[derive(Debug, Default)]
pub(super) struct Usual {
    /// The fields of the row before: `"name":`, and which column it is.
    pub(super) fields: Vec<(String, Option<usize>)>,
    times: Times,
    misses: u32,
}

/// A value that is taken as it stands.
enum Plain<'t> {
    /// Not known yet to be UTF-8.
    Text(&'t [u8]),
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
        rest = after_space(after_name(rest, name.as_bytes())?);
        let column = *column;
        let (value, after) = plain_value(rest)?;
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
    if let Plain::Text(text) = value
        && reading.is_timestamp(column)
    {
        let ns = reading.usual.times.read(text)?;
        return reading.slot(column)?.push_i64(ns).ok();
    }
    let values = reading.slot(column)?;
    match value {
        Plain::Text(text) => values.push_utf8(text),
        Plain::Integer(value) if is_millis => values.push_i64(value.checked_mul(NS_PER_MS)?).ok(),
        Plain::Integer(value) => values.push_i64(*value).ok(),
        Plain::Bool(value) => values.push_bool(*value).ok(),
        Plain::Null => values.push_null().ok(),
    }
}

/// What follows the name. Names are short: most are compared as two words, for which no function is called.
fn after_name<'t>(text: &'t [u8], name: &[u8]) -> Option<&'t [u8]> {
    let (head, rest) = text.split_at_checked(name.len())?;
    let is_same = match name.len() {
        8..=16 => {
            head.first_chunk::<8>() == name.first_chunk() && head.last_chunk::<8>() == name.last_chunk()
        }
        _ => head == name,
    };
    is_same.then_some(rest)
}

/// Some writers put a space behind a colon and a comma.
fn after_space(text: &[u8]) -> &[u8] {
    text.strip_prefix(b" ").unwrap_or(text)
}

/// The value that the text begins with, and what follows it.
fn plain_value(text: &[u8]) -> Option<(Plain<'_>, &[u8])> {
    match text.first()? {
        b'"' => {
            let text = &text[1..];
            let end = text_end(text)?;
            (text[end] == b'"').then(|| (Plain::Text(&text[..end]), &text[end + 1..]))
        }
        b't' => Some((Plain::Bool(true), text.strip_prefix(b"true")?)),
        b'f' => Some((Plain::Bool(false), text.strip_prefix(b"false")?)),
        b'n' => Some((Plain::Null, text.strip_prefix(b"null")?)),
        b'-' | b'0'..=b'9' => integer(text),
        _ => None,
    }
}

/// Where the first quote, backslash or control character is. Eight bytes at a time: of each, the highest bit of
/// `(b - n) & !b` says that it is below n (Mycroft), exactly so up to the first that is.
fn text_end(text: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::MAX / 255;
    let (words, rest) = text.as_chunks::<8>();
    for (place, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let below = |word: u64, n: u64| word.wrapping_sub(ONES * n) & !word;
        let is = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
        let found = (is(b'"') | is(b'\\') | below(word, 0x20)) & (ONES << 7);
        if found != 0 {
            return Some(place * 8 + found.trailing_zeros() as usize / 8);
        }
    }
    let end = rest.iter().position(|&byte| byte == b'"' || byte == b'\\' || byte < 0x20)?;
    Some(words.len() * 8 + end)
}

/// Up to 19 digits that fit 64 bits.
fn integer(text: &[u8]) -> Option<(Plain<'_>, &[u8])> {
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let count = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = digits.split_at(count);
    let has_leading_zero = count > 1 && digits[0] == b'0';
    if !(1..=19).contains(&count) || has_leading_zero || !matches!(rest.first(), Some(b',' | b'}')) {
        return None;
    }
    let number = digits.iter().fold(0_u64, |number, digit| number * 10 + u64::from(digit - b'0'));
    let number = i64::try_from(number).ok()?;
    // JSON knows a negative zero; integers do not.
    if negative && number == 0 {
        return None;
    }
    Some((Plain::Integer(if negative { -number } else { number }), rest))
}

#[cfg(test)]
mod tests {
    use super::text_end;

    #[test]
    fn the_end_of_text_is_found_wherever_it_is() {
        for end in [b'"', b'\\', b'\n', 0, 0x1f] {
            for before in 0..20 {
                // Bytes next to those that end it, and of other alphabets.
                let mut text: Vec<u8> = [b'!', b'#', b'[', b']', b' ', 0x7f, 0x80, 0xff, b'a'].repeat(3);
                text.truncate(before);
                assert_eq!(text_end(&text), None);
                text.push(end);
                text.extend(b"\"and so on");
                assert_eq!(text_end(&text), Some(before), "{text:?}");
            }
        }
    }
}
