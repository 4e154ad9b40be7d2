//! Event time: nanoseconds since the Unix epoch, UTC, as `i64`; its text form; windows.

use chrono::{DateTime, NaiveDateTime, SecondsFormat, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::columns::shortened;

/// Nanoseconds in a millisecond.
pub const NS_PER_MS: i64 = 1_000_000;

/// A span `[start, end)` of event time, in nanoseconds since the Unix epoch. In JSON both are RFC 3339 text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Window {
    /// The first instant that belongs to the window.
    #[serde(with = "rfc3339")]
    pub start: i64,
    /// The first instant after the window.
    #[serde(with = "rfc3339")]
    pub end: i64,
}

/// RFC 3339 in UTC, with as many fractional digits as the value needs (0, 3, 6 or 9): `2026-11-21T06:05:39.5Z`
/// is written `2026-11-21T06:05:39.500Z`.
pub fn format_rfc3339(ns: i64) -> String {
    DateTime::<Utc>::from_timestamp_nanos(ns).to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// Reads RFC 3339 text, the zone optional (UTC without one), `T` or a space between date and time.
///
/// # Errors
/// Says what was expected when the text is no such time, or lies outside 1677 … 2262 (what nanoseconds hold).
pub fn parse_rfc3339(text: &str) -> Result<i64, String> {
    let instant = DateTime::parse_from_rfc3339(text).map(|zoned| zoned.with_timezone(&Utc)).or_else(|_| {
        NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f")
            .or_else(|_| NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f"))
            .map(|naive| naive.and_utc())
    });
    let instant = instant.map_err(|_| {
        let text = shortened(text);
        format!("'{text}' is no time; write RFC 3339 such as 2026-01-31T18:30:00Z or 2026-01-31T18:30:00.250")
    })?;
    let ns = instant.timestamp_nanos_opt();
    ns.ok_or_else(|| format!("'{}' lies outside the years 1678 to 2261", shortened(text)))
}

/// For `#[serde(with = "…")]`: nanoseconds in memory, RFC 3339 text in JSON.
pub mod rfc3339 {
    use super::{Deserialize, Deserializer, Serializer};

    #[allow(missing_docs, clippy::missing_errors_doc)]
    pub fn serialize<S: Serializer>(ns: &i64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&super::format_rfc3339(*ns))
    }

    #[allow(missing_docs, clippy::missing_errors_doc)]
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(from)?;
        super::parse_rfc3339(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_back_as_it_was_written() {
        for ns in [0, 1, 1_500_000_000, 1_700_000_000_123_456_789, -1] {
            assert_eq!(parse_rfc3339(&format_rfc3339(ns)), Ok(ns));
        }
    }

    #[test]
    fn the_zone_is_optional_and_converted() {
        let utc = parse_rfc3339("2026-01-01T12:00:00Z");
        assert_eq!(parse_rfc3339("2026-01-01T12:00:00"), utc);
        assert_eq!(parse_rfc3339("2026-01-01 12:00:00.000"), utc);
        assert_eq!(parse_rfc3339("2026-01-01T14:00:00+02:00"), utc);
        assert!(parse_rfc3339("yesterday").is_err());
        assert!(parse_rfc3339("9999-01-01T00:00:00Z").is_err());
    }
}
