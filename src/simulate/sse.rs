//! Server-Sent Events out of a byte stream, as far as a viewer needs them. Pure.

use std::borrow::Cow;

/// The most bytes of one event; a longer one is an error of the server.
const MOST_BYTES: usize = 4 << 20;

/// One event. Comments (heartbeats) are none.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// `event:`; empty for a window.
    pub name: String,
    /// `data:`, lines joined by newlines.
    pub data: String,
    /// `retry:` in milliseconds.
    pub retry_ms: Option<u64>,
}

/// What has been read of the line and the event under way.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    event: Event,
    has_fields: bool,
}

impl Parser {
    /// Takes the next bytes and hands each event that they complete to `each`.
    ///
    /// # Errors
    /// When an event grows beyond what any window needs, or is not UTF-8; and what `each` returns.
    pub fn feed(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(Event) -> Result<(), String>,
    ) -> Result<(), String> {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (part, rest) = bytes.split_at(end + 1);
            bytes = rest;
            let begun = std::mem::take(&mut self.line);
            let line =
                if begun.is_empty() { Cow::Borrowed(part) } else { Cow::Owned([&begun, part].concat()) };
            self.check(line.len())?;
            let line = std::str::from_utf8(&line).map_err(|_| "an event that is not UTF-8".to_owned())?;
            if let Some(event) = self.end_line(line.trim_end_matches(['\n', '\r'])) {
                each(event)?;
            }
        }
        self.line.extend_from_slice(bytes);
        self.check(self.line.len())
    }

    fn check(&self, line_bytes: usize) -> Result<(), String> {
        if line_bytes + self.event.data.len() > MOST_BYTES {
            return Err(format!("an event of more than {MOST_BYTES} bytes"));
        }
        Ok(())
    }

    fn end_line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            return std::mem::take(&mut self.has_fields).then(|| std::mem::take(&mut self.event));
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event.name),
            "data" if self.event.data.is_empty() => value.clone_into(&mut self.event.data),
            "data" => {
                self.event.data.push('\n');
                self.event.data.push_str(value);
            }
            "retry" => self.event.retry_ms = value.parse().ok(),
            // A comment, or a field that this client does not need.
            _ => return None,
        }
        self.has_fields = true;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(chunks: &[&str]) -> Vec<Event> {
        let (mut parser, mut events) = (Parser::default(), Vec::new());
        for chunk in chunks {
            let mut each = |event| {
                events.push(event);
                Ok(())
            };
            parser.feed(chunk.as_bytes(), &mut each).unwrap();
        }
        events
    }

    #[test]
    fn an_event_is_read_wherever_the_stream_is_cut() {
        let text = ": heartbeat\n\nid: e1-1\ndata: {\"a\":1}\n\nevent: drain\r\nretry: 2500\r\ndata:\r\n\r\n";
        let window = Event { data: r#"{"a":1}"#.to_owned(), ..Event::default() };
        let drain = Event { name: "drain".to_owned(), retry_ms: Some(2500), ..Event::default() };
        for cut in 0..text.len() {
            assert_eq!(
                read(&[&text[..cut], &text[cut..]]),
                [&window, &drain].map(|event| Event {
                    name: event.name.clone(),
                    data: event.data.clone(),
                    retry_ms: event.retry_ms,
                })
            );
        }
    }

    #[test]
    fn an_endless_event_is_an_error_and_not_an_endless_buffer() {
        let mut parser = Parser::default();
        let chunk = vec![b'x'; 1 << 20];
        assert!((0..8).any(|_| parser.feed(&chunk, |_| Ok(())).is_err()));
    }
}
