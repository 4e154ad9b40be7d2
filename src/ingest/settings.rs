//! The section `[ingest]` of the settings.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::decode::EventTimeRule;
use crate::log::codec::{Compression, MAX_ROWS};
use crate::reaction::time::NS_PER_MS;

/// The section `[ingest]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The longest a request waits for a write to begin while another write of its table is under way.
    pub flush_interval_ms: u64,
    /// So many waiting rows are written without waiting for the write before; at most 20,000.
    pub flush_rows: usize,
    /// When a request is answered.
    pub ack: Ack,
    /// The longest body, also after decompression.
    pub max_body_bytes: usize,
    /// How far a client's timestamp may be ahead of the clock.
    pub future_tolerance_ms: u64,
    /// Whose clock says when a reaction happened.
    pub event_time: EventTime,
    /// Memory for bodies that are being read and rows that are not in the log yet; above it requests get 503.
    pub max_pending_bytes: usize,
    /// The longest a request waits for its write to begin; then it is withdrawn and gets 503.
    pub max_wait_ms: u64,
    /// The longest a body may take to arrive; then 408.
    pub body_timeout_ms: u64,
    /// What records of 1,000 rows and more are compressed with, column by column; of tables in format `arrow`.
    pub compression: Compression,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            flush_interval_ms: 200,
            flush_rows: MAX_ROWS,
            ack: Ack::Durable,
            max_body_bytes: 8 << 20,
            future_tolerance_ms: 5000,
            event_time: EventTime::Client,
            max_pending_bytes: 64 << 20,
            max_wait_ms: 5000,
            body_timeout_ms: 30_000,
            compression: Compression::None,
        }
    }
}

impl Settings {
    /// Whether the values make sense together.
    ///
    /// # Errors
    /// Says which does not, and its bounds.
    pub fn validate(&self) -> Result<(), String> {
        let between = |key: &str, value: u64, least: u64, most: u64| match (least..=most).contains(&value) {
            true => Ok(()),
            false => Err(format!("ingest.{key} = {value}: between {least} and {most}")),
        };
        between("flush_interval_ms", self.flush_interval_ms, 1, 60_000)?;
        between("flush_rows", self.flush_rows as u64, 1, MAX_ROWS as u64)?;
        between("max_body_bytes", self.max_body_bytes as u64, 1, 1 << 30)?;
        between("future_tolerance_ms", self.future_tolerance_ms, 0, 366 * 86_400_000)?;
        between("max_pending_bytes", self.max_pending_bytes as u64, self.max_body_bytes as u64, 1 << 40)?;
        between("max_wait_ms", self.max_wait_ms, self.flush_interval_ms, 600_000)?;
        between("body_timeout_ms", self.body_timeout_ms, 1, 600_000)
    }

    pub(super) fn flush_interval(&self) -> Duration {
        Duration::from_millis(self.flush_interval_ms)
    }

    pub(super) fn event_time_rule(&self) -> EventTimeRule {
        match self.event_time {
            EventTime::Receipt => EventTimeRule::Receipt,
            EventTime::Client => {
                let tolerance_ms = i64::try_from(self.future_tolerance_ms).unwrap_or(i64::MAX);
                EventTimeRule::Client { future_tolerance_ns: tolerance_ms.saturating_mul(NS_PER_MS) }
            }
        }
    }
}

/// When a request is answered. `buffered` (before its rows are durable) is not built yet and refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ack {
    /// When its rows are durably in the log.
    #[default]
    Durable,
}

impl<'de> Deserialize<'de> for Ack {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        match String::deserialize(from)?.as_str() {
            "durable" => Ok(Self::Durable),
            "buffered" => Err(D::Error::custom("ack = \"buffered\" is not built yet; use \"durable\"")),
            other => Err(D::Error::unknown_variant(other, &["durable", "buffered"])),
        }
    }
}

/// Whose clock says when a reaction happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventTime {
    /// The client's; the time of receipt where a row has none and the table's DEFAULT is `now()`.
    #[default]
    Client,
    /// This server's at the request's receipt, whatever the client wrote.
    Receipt,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_built_and_what_is_unknown_is_refused() {
        let read = |json: &str| serde_json::from_str::<Settings>(json).map_err(|error| error.to_string());
        assert_eq!(read("{}"), Ok(Settings::default()));
        assert_eq!(
            read(r#"{"ack": "durable", "event_time": "receipt"}"#).unwrap().event_time,
            EventTime::Receipt
        );
        assert!(read(r#"{"ack": "buffered"}"#).unwrap_err().contains("not built yet"));
        assert!(read(r#"{"flush_interval": 5}"#).unwrap_err().contains("unknown field"));
        assert_eq!(Settings::default().validate(), Ok(()));
        assert!(
            Settings { flush_rows: 20_001, ..Settings::default() }
                .validate()
                .unwrap_err()
                .contains("flush_rows")
        );
    }
}
