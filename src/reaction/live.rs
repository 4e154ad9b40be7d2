//! A live message: what one closed window says to the clients of one room.

use serde::{Deserialize, Serialize};

use super::time::Window;

/// The room of reactions and sinks that name none.
pub const DEFAULT_ROOM: &str = "main";
/// The longest name of a room, in bytes. Clients can ask for no longer one; checkpoints and messages repeat it.
pub const MAX_ROOM_BYTES: usize = 256;

/// A message's place in the one order over all tables and rooms: `e{epoch}-{sequence}`.
///
/// The epoch changes only when history is lost; within one, sequences rise by one. Ordered by epoch, then sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LiveId {
    /// Which history the sequence belongs to.
    pub epoch: u64,
    /// The message's number in it.
    pub sequence: u64,
}

impl std::fmt::Display for LiveId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "e{}-{}", self.epoch, self.sequence)
    }
}

impl std::str::FromStr for LiveId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed =
            text.strip_prefix('e').and_then(|rest| rest.split_once('-')).and_then(|(epoch, sequence)| {
                Some(Self { epoch: epoch.parse().ok()?, sequence: sequence.parse().ok()? })
            });
        parsed.ok_or_else(|| format!("'{text}' is no live id such as e1-4711"))
    }
}

impl Serialize for LiveId {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LiveId {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// One closed window of one table and room, as viewers receive it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LiveMessage {
    /// Its place in the one order.
    pub id: LiveId,
    /// The sink table.
    pub table: String,
    /// The room, [`DEFAULT_ROOM`] for a sink without that column.
    pub room: String,
    /// The window's span of event time.
    pub window: Window,
    /// False for an early result, true for the one final.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// How long the client should take to play the rows out, in milliseconds.
    pub pace_ms: u64,
    /// The window's rows, without the window columns and `room`.
    pub rows: Vec<serde_json::Map<String, serde_json::Value>>,
}
