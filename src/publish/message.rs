//! One live message as a subscriber holds it: its text, shared by all clients, and what must be known to route it.
//!
//! Pure: no async, no clock, no I/O.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde::Deserialize;

use super::frame::text_frame;
use super::gzip::Block;
use crate::reaction::live::LiveId;
use crate::reaction::time::Window;

/// A message on its way to clients. Encoded once; clients share the bytes.
#[derive(Debug)]
pub struct Message {
    /// Its place in the one order.
    pub id: LiveId,
    /// The sink.
    pub table: Arc<str>,
    /// The room.
    pub room: Arc<str>,
    /// Its window.
    pub window: Window,
    /// False for an early result.
    pub is_final: bool,
    /// The message in JSON, one line of UTF-8.
    pub json: Bytes,
    sse: OnceLock<Bytes>,
    ws: OnceLock<Bytes>,
    block: OnceLock<Block>,
}

/// What is read of a message; its rows are passed over.
#[derive(Deserialize)]
struct Head {
    id: LiveId,
    table: String,
    room: String,
    window: Window,
    #[serde(rename = "final")]
    is_final: bool,
}

impl Message {
    /// Reads a record of the live topic, or of a cluster's.
    ///
    /// # Errors
    /// Says what is wrong with a text that is no live message.
    pub fn parse(json: Bytes) -> Result<Self, String> {
        let head: Head =
            serde_json::from_slice(&json).map_err(|error| format!("no live message: {error}"))?;
        if !json.ends_with(b"}") || json.contains(&b'\n') || json.contains(&b'\r') {
            return Err("no live message: it is not one line that ends in '}'".to_owned());
        }
        let Head { id, table, room, window, is_final } = head;
        Ok(Self {
            id,
            table: table.into(),
            room: room.into(),
            window,
            is_final,
            json,
            sse: OnceLock::new(),
            ws: OnceLock::new(),
            block: OnceLock::new(),
        })
    }

    /// The message in JSON, with `"skipped": n` when it stands for `skipped` older ones besides itself.
    pub fn json(&self, skipped: u64) -> Bytes {
        if skipped == 0 {
            return self.json.clone();
        }
        let mut text = self.json[..self.json.len() - 1].to_vec();
        text.extend_from_slice(format!(",\"skipped\":{skipped}}}").as_bytes());
        text.into()
    }

    /// The message as a Server-Sent Event: `id:` and one `data:` line, no `event:`.
    pub fn sse(&self, skipped: u64) -> Bytes {
        if skipped > 0 {
            return self.frame(&self.json(skipped));
        }
        self.sse.get_or_init(|| self.frame(&self.json)).clone()
    }

    /// The message as a WebSocket frame.
    pub fn ws(&self, skipped: u64) -> Bytes {
        if skipped > 0 {
            return text_frame(&self.json(skipped));
        }
        self.ws.get_or_init(|| text_frame(&self.json)).clone()
    }

    /// [`Message::sse`] compressed, when it stands for no others.
    pub fn block(&self) -> &Block {
        self.block.get_or_init(|| Block::new(&self.sse(0)))
    }

    /// Whether both tell of the same table and room.
    pub fn is_same_stream(&self, other: &Self) -> bool {
        self.table == other.table && self.room == other.room
    }

    /// Whether this one takes the place of the other, which told the same window early.
    pub fn replaces(&self, other: &Self) -> bool {
        !other.is_final && self.window == other.window && self.is_same_stream(other)
    }

    fn frame(&self, json: &[u8]) -> Bytes {
        [format!("id: {}\ndata: ", self.id).as_bytes(), json, b"\n\n"].concat().into()
    }
}

/// A message for tests of every file here.
#[cfg(test)]
pub(super) fn message(sequence: u64, table: &str, room: &str) -> Arc<Message> {
    let json = serde_json::json!({"id": format!("e1-{sequence}"), "table": table, "room": room,
        "window": {"start": "1970-01-01T00:00:00Z", "end": "1970-01-01T00:00:02Z"}, "final": true, "pace_ms": 2000,
        "rows": [{"count": sequence}]});
    Arc::new(Message::parse(json.to_string().into()).unwrap())
}

/// An early one of the window that starts then.
#[cfg(test)]
pub(super) fn early(sequence: u64, table: &str, room: &str, start_s: i64) -> Arc<Message> {
    let start = start_s * 1000 * crate::reaction::time::NS_PER_MS;
    let window = Window { start, end: start + 2000 * crate::reaction::time::NS_PER_MS };
    let last_word = Arc::into_inner(message(sequence, table, room)).unwrap();
    Arc::new(Message { is_final: false, window, ..last_word })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_framed_with_its_id_and_one_data_line() {
        let message = message(7, "t", "main");
        let frame = String::from_utf8(message.sse(0).to_vec()).unwrap();
        assert_eq!(frame, format!("id: e1-7\ndata: {}\n\n", str::from_utf8(&message.json).unwrap()));
        assert_eq!(message.sse(0).as_ptr(), message.sse(0).as_ptr());
    }

    #[test]
    fn what_was_skipped_is_said_in_the_message() {
        let message = message(7, "t", "main");
        let value: serde_json::Value = serde_json::from_slice(&message.json(3)).unwrap();
        assert_eq!((&value["skipped"], &value["id"]), (&3.into(), &"e1-7".into()));
        assert!(message.sse(3).ends_with(b",\"skipped\":3}\n\n"));
    }

    #[test]
    fn its_websocket_frame_is_made_once() {
        let message = message(7, "t", "main");
        assert_eq!(message.ws(0), text_frame(&message.json));
        assert_eq!(message.ws(0).as_ptr(), message.ws(0).as_ptr());
        assert_eq!(message.ws(3), text_frame(&message.json(3)));
    }

    #[test]
    fn a_text_of_several_lines_is_refused() {
        let text = String::from_utf8(message(7, "t", "main").json.to_vec()).unwrap();
        assert!(Message::parse(text.replace(",\"room\"", ",\n\"room\"").into()).is_err());
        assert!(Message::parse(Bytes::from_static(b"{}")).is_err());
    }
}
