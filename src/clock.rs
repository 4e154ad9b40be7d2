//! The one place where the wall clock is read. Everywhere else time is an argument.

use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds since the Unix epoch, UTC, by this machine's wall clock; 0 before 1970.
#[allow(clippy::disallowed_methods)] // the one place
pub fn wall_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Milliseconds since the Unix epoch, UTC, by this machine's wall clock.
pub fn wall_ms() -> i64 {
    wall_ns() / 1_000_000
}
