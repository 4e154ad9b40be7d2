//! What a viewer makes of what it is told: thousands hear the same text, and it is read once. Pure.

use std::borrow::Cow;

use hashbrown::HashMap;
use serde::Deserialize;

use crate::reaction::live::LiveId;
use crate::reaction::time::Window;

/// Texts that are remembered; all are forgotten when it is one more.
const MOST_TEXTS: usize = 256;

/// A message as a viewer needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// A window.
    Window {
        /// Its place in the order.
        id: LiveId,
        /// Its end, nanoseconds since the Unix epoch.
        end: i64,
        /// How many older ones were left out before it.
        skipped: u64,
    },
    /// Windows are missing.
    Gap,
    /// The viewer should connect again after so many milliseconds.
    Drain(u64),
    /// Something that viewers need not know.
    Other,
}

/// The rows are passed over unread.
#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
    id: Option<LiveId>,
    window: Option<Window>,
    skipped: Option<u64>,
    retry: Option<u64>,
}

impl Heard {
    fn read(text: &[u8]) -> Result<Self, String> {
        let message: Message<'_> = serde_json::from_slice(text)
            .map_err(|error| format!("a live message that cannot be read: {error}"))?;
        Ok(match message {
            Message { kind: None, id: Some(id), window: Some(window), skipped, .. } => {
                Self::Window { id, end: window.end, skipped: skipped.unwrap_or_default() }
            }
            Message { kind: Some(kind), .. } if kind == "gap" => Self::Gap,
            Message { kind: Some(_), retry: Some(retry_ms), .. } => Self::Drain(retry_ms),
            _ => Self::Other,
        })
    }
}

/// The texts heard of late.
#[derive(Debug, Default)]
pub(super) struct Texts {
    known: HashMap<Box<[u8]>, Heard>,
}

impl Texts {
    /// What the text says.
    ///
    /// # Errors
    /// When it is no live message.
    pub(super) fn read(&mut self, text: &[u8]) -> Result<Heard, String> {
        if let Some(heard) = self.known.get(text) {
            return Ok(*heard);
        }
        let heard = Heard::read(text)?;
        if self.known.len() >= MOST_TEXTS {
            self.known.clear();
        }
        self.known.insert(text.into(), heard);
        Ok(heard)
    }
}

/// A window's id after those that came before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// It rises.
    Next,
    /// It came before.
    Again,
    /// One above it came before.
    Back,
}

/// Takes note of an id. `last` is the highest before.
pub(super) fn follow(last: &mut Option<LiveId>, id: LiveId) -> Order {
    let order = match *last {
        Some(last) if id == last => Order::Again,
        Some(last) if id < last => Order::Back,
        _ => Order::Next,
    };
    *last = (*last).max(Some(id));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(id: &str) -> String {
        format!(
            r#"{{"id":"{id}","table":"t","room":"main","window":{{"start":"2026-01-01T00:00:00Z","end":"2026-01-01T00:00:02Z"}},"final":true,"pace_ms":2000,"rows":[{{"a":1}}]}}"#
        )
    }

    #[test]
    fn an_id_heard_twice_or_a_lower_one_is_noticed() {
        let (mut last, mut texts) = (None, Texts::default());
        let orders = ["e1-1", "e1-3", "e1-3", "e1-2", "e2-1"].map(|id| {
            let Heard::Window { id, .. } = texts.read(window(id).as_bytes()).unwrap() else { panic!() };
            follow(&mut last, id)
        });
        assert_eq!(orders, [Order::Next, Order::Next, Order::Again, Order::Back, Order::Next]);
        assert_eq!(last, Some(LiveId { epoch: 2, sequence: 1 }));
    }

    #[test]
    fn a_gap_a_drain_and_what_was_skipped_are_understood() {
        let mut texts = Texts::default();
        let mut read = |text: &str| texts.read(text.as_bytes());
        assert_eq!(read(r#"{"type":"gap","after":null}"#), Ok(Heard::Gap));
        assert_eq!(read(r#"{"type":"drain","retry":3000}"#), Ok(Heard::Drain(3000)));
        assert_eq!(read(r#"{"type":"error","detail":"x"}"#), Ok(Heard::Other));
        let skipped = read(&window("e1-1").replace("true", r#"true,"skipped":4"#));
        assert!(matches!(skipped, Ok(Heard::Window { skipped: 4, .. })), "{skipped:?}");
        assert!(read("no JSON").is_err());
    }

    #[test]
    fn what_is_remembered_is_bounded_and_read_the_same_again() {
        let mut texts = Texts::default();
        for sequence in 0..3 * MOST_TEXTS as u64 {
            let text = window(&format!("e1-{sequence}"));
            let first = texts.read(text.as_bytes()).unwrap();
            assert_eq!(texts.read(text.as_bytes()).unwrap(), first);
            assert!(texts.known.len() <= MOST_TEXTS);
        }
    }
}
