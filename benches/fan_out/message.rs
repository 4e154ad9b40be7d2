//! The messages, and the orders by which the servers are told to publish them.

use std::fmt::Write as _;
use std::time::Duration;

use emostream::clock::wall_ns;
use emostream::reaction::time::format_rfc3339;

use crate::AnyError;

/// A live message of about so many bytes whose window ends now.
pub(crate) fn message(sequence: u64, bytes: usize) -> String {
    let end = wall_ns();
    let (start, end) = (format_rfc3339(end - 2_000_000_000), format_rfc3339(end));
    let mut text = format!(
        r#"{{"id":"e1-{sequence}","table":"emoji_counts","room":"main","window":{{"start":"{start}","end":"{end}"}},"final":true,"pace_ms":2000,"rows":["#
    );
    let mut count = 0;
    while text.len() + 40 < bytes || count == 0 {
        let comma = if count == 0 { "" } else { "," };
        // Writing to a text cannot fail.
        write!(text, r#"{comma}{{"emoji_type":"🎉","count":{}}}"#, 1000 + count).ok();
        count += 1;
    }
    text.push_str("]}");
    text
}

/// `publish RATE BYTES SECONDS`, by a server's standard input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    pub(crate) rate: f64,
    pub(crate) bytes: usize,
    pub(crate) seconds: f64,
}

impl Order {
    pub(crate) fn parse(line: &str) -> Result<Self, AnyError> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["publish", rate, bytes, seconds] => {
                Ok(Self { rate: rate.parse()?, bytes: bytes.parse()?, seconds: seconds.parse()? })
            }
            _ => Err(format!("no order: {line}").into()),
        }
    }

    pub(crate) fn text(self) -> String {
        format!("publish {} {} {}", self.rate, self.bytes, self.seconds)
    }

    /// Messages fall due at once in so many, so that no tick is shorter than 10 ms.
    pub(crate) fn at_once(self) -> u64 {
        (self.rate / 100.0).ceil() as u64
    }

    /// The time between two ticks.
    pub(crate) fn tick(self) -> Duration {
        Duration::from_secs_f64(self.at_once() as f64 / self.rate)
    }
}
