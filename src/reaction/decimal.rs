//! DECIMAL values: text ↔ the digits as one integer, exactly.

use super::column_type::MAX_DECIMAL_DIGITS;

/// Why a text is no value of a DECIMAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecimalError {
    /// Not an optional sign, digits, and perhaps a point with digits behind it.
    NoNumber,
    /// It has digits behind the point that the type has no place for.
    Scale,
    /// It has more digits than the type.
    Range,
}

/// `12.3` as a DECIMAL(10, 2) → 1230. Nothing is rounded.
///
/// # Errors
/// [`DecimalError`].
pub fn parse_decimal(text: &str, precision: u8, scale: u8) -> Result<i128, DecimalError> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (whole, fraction) = match unsigned.split_once('.') {
        Some((_, "")) => return Err(DecimalError::NoNumber),
        Some(parts) => parts,
        None => (unsigned, ""),
    };
    let digits_only = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits_only(whole) || !digits_only(fraction) {
        return Err(DecimalError::NoNumber);
    }
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > usize::from(scale) {
        return Err(DecimalError::Scale);
    }
    let whole = whole.trim_start_matches('0');
    if whole.len() + usize::from(scale) > usize::from(precision.min(MAX_DECIMAL_DIGITS)) {
        return Err(DecimalError::Range);
    }
    // One zero before it, so that there is always a digit.
    let digits = format!("0{whole}{fraction:0<width$}", width = usize::from(scale));
    let value = digits.parse::<i128>().map_err(|_| DecimalError::Range)?;
    Ok(if text.starts_with('-') { -value } else { value })
}

/// 1230 as a DECIMAL(10, 2) → `12.30`: always `scale` digits behind the point.
pub fn format_decimal(value: i128, scale: u8) -> String {
    let sign = if value < 0 { "-" } else { "" };
    let digits = format!("{:0>width$}", value.unsigned_abs(), width = usize::from(scale) + 1);
    match digits.split_at(digits.len() - usize::from(scale)) {
        (whole, "") => format!("{sign}{whole}"),
        (whole, fraction) => format!("{sign}{whole}.{fraction}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_written_as_it_was_read() {
        let largest = "9".repeat(38);
        let small = format!("0.{}1", "0".repeat(37));
        for (text, precision, scale, value) in [
            ("0.00", 10, 2, 0),
            ("12.30", 10, 2, 1230),
            ("-0.05", 10, 2, -5),
            ("7", 1, 0, 7),
            (largest.as_str(), 38, 0, i128::from(10).pow(38) - 1),
            (small.as_str(), 38, 38, 1),
        ] {
            assert_eq!(parse_decimal(text, precision, scale), Ok(value), "{text}");
            assert_eq!(format_decimal(value, scale), text);
        }
        assert_eq!(parse_decimal("+1.5000", 10, 2), Ok(150), "zeros behind the point do not count");
        assert_eq!(parse_decimal("0000012", 2, 0), Ok(12), "nor do zeros before it");
    }

    #[test]
    fn what_does_not_fit_is_refused_and_not_rounded() {
        for (text, error) in [
            ("1.005", DecimalError::Scale),
            ("123456789.00", DecimalError::Range),
            ("", DecimalError::NoNumber),
            ("-", DecimalError::NoNumber),
            (".5", DecimalError::NoNumber),
            ("5.", DecimalError::NoNumber),
            ("1e3", DecimalError::NoNumber),
            ("1 ", DecimalError::NoNumber),
            ("--1", DecimalError::NoNumber),
            ("NaN", DecimalError::NoNumber),
            ("١", DecimalError::NoNumber),
        ] {
            assert_eq!(parse_decimal(text, 10, 2), Err(error), "{text}");
        }
    }
}
