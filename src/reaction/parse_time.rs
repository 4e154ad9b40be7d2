//! RFC 3339 text → nanoseconds, fast for the shapes that clients send; all others go the domain's own way.

use super::time::parse_rfc3339;

const NS_PER_S: i64 = 1_000_000_000;

/// Reads what [`parse_rfc3339`] reads, with the same result, some ten times faster for
/// `2026-01-31T18:30:00[.fraction][Z]`.
///
/// # Errors
/// As [`parse_rfc3339`].
pub fn parse_time(text: &str) -> Result<i64, String> {
    match plain_utc(text.as_bytes()) {
        Some(ns) => Ok(ns),
        None => parse_rfc3339(text),
    }
}

/// Reads times that mostly lie in the minute of the one before, which is then not read again.
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// `2026-01-31T18:30:`, and when it begins.
    minute: Option<([u8; MINUTE], i64)>,
}

const MINUTE: usize = 17;

impl Times {
    /// A time of the usual shape. `None` for every other: it may be a time all the same.
    pub fn read(&mut self, text: &[u8]) -> Option<i64> {
        let (minute, rest) = text.split_first_chunk::<MINUTE>()?;
        let start_ns = match &self.minute {
            Some((known, start_ns)) if known == minute => *start_ns,
            _ => self.minute.insert((*minute, minute_ns(minute)?)).1,
        };
        start_ns.checked_add(within_minute_ns(rest)?)
    }
}

/// `None` for every other shape, zones other than `Z`, leap seconds and what does not exist in the calendar.
fn plain_utc(text: &[u8]) -> Option<i64> {
    let (minute, rest) = text.split_first_chunk::<MINUTE>()?;
    minute_ns(minute)?.checked_add(within_minute_ns(rest)?)
}

/// When the minute begins.
fn minute_ns(text: &[u8; MINUTE]) -> Option<i64> {
    if text[4] != b'-'
        || text[7] != b'-'
        || !matches!(text[10], b'T' | b' ')
        || text[13] != b':'
        || text[16] != b':'
    {
        return None;
    }
    let year = digits(&text[..2])? * 100 + digits(&text[2..4])?;
    let (month, day) = (digits(&text[5..7])?, digits(&text[8..10])?);
    let (hour, minute) = (digits(&text[11..13])?, digits(&text[14..16])?);
    if !(1..=12).contains(&month) || day < 1 || day > days_in(year, month) || hour > 23 || minute > 59 {
        return None;
    }
    let seconds = days_since_epoch(year, month, day) * 86_400 + hour * 3600 + minute * 60;
    seconds.checked_mul(NS_PER_S)
}

/// `00[.fraction][Z]`.
fn within_minute_ns(text: &[u8]) -> Option<i64> {
    let (second, tail) = text.split_first_chunk::<2>()?;
    let second = digits(second).filter(|second| *second <= 59)?;
    let fraction_ns = match tail.strip_suffix(b"Z").unwrap_or(tail) {
        [] => 0,
        [b'.', fraction @ ..] if (1..=9).contains(&fraction.len()) => {
            let scale = 10_i64.pow(9 - u32::try_from(fraction.len()).ok()?);
            digits(fraction)? * scale
        }
        _ => return None,
    };
    Some(second * NS_PER_S + fraction_ns)
}

fn digits(text: &[u8]) -> Option<i64> {
    text.iter().try_fold(0, |number, byte| {
        let digit = byte.wrapping_sub(b'0');
        (digit < 10).then(|| number * 10 + i64::from(digit))
    })
}

fn days_in(year: i64, month: i64) -> i64 {
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 in the proleptic Gregorian calendar, for years from 0 on (Hinnant's `days_from_civil`:
/// <https://howardhinnant.github.io/date_algorithms.html>).
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    #[test]
    fn the_fast_way_and_the_domains_way_agree() {
        let mut random = StdRng::seed_from_u64(1);
        let separators = ["T", " "];
        let ends = [
            "",
            "Z",
            ".5",
            ".25Z",
            ".123456789",
            ".000001Z",
            ".",
            ".1234567890",
            "+02:00",
            "-00:30",
            "z",
            "ZZ",
        ];
        let mut times = Times::default();
        for _ in 0..100_000 {
            let text = format!(
                "{:04}-{:02}-{:02}{}{:02}:{:02}:{:02}{}",
                random.random_range(1600..2300),
                random.random_range(0..14),
                random.random_range(0..33),
                separators[random.random_range(0..2)],
                random.random_range(0..25),
                random.random_range(0..61),
                random.random_range(0..61),
                ends[random.random_range(0..ends.len())],
            );
            let fast = plain_utc(text.as_bytes());
            if let Some(fast) = fast {
                assert_eq!(Ok(fast), parse_rfc3339(&text), "{text}");
            }
            for _ in 0..2 {
                assert_eq!(times.read(text.as_bytes()), fast, "{text}");
            }
        }
    }

    #[test]
    fn the_shapes_that_clients_send_take_the_fast_way() {
        for text in [
            "2026-01-31T18:30:00Z",
            "2026-01-31T18:30:00.250Z",
            "2026-01-31 18:30:00",
            "2024-02-29T00:00:00.123456",
        ] {
            assert_eq!(plain_utc(text.as_bytes()), parse_rfc3339(text).ok(), "{text}");
            assert!(plain_utc(text.as_bytes()).is_some(), "{text}");
        }
        for text in
            ["", "2026-01-31", "2026-02-29T00:00:00Z", "9999-01-01T00:00:00Z", "2026-01-31T18:30:00+02:00"]
        {
            assert_eq!(plain_utc(text.as_bytes()), None, "{text}");
        }
    }
}
