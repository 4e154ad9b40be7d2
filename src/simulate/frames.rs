//! WebSocket frames as a viewer needs them (RFC 6455): the server's are read, a pong is written. Pure.

/// The largest message a viewer takes.
const MOST_BYTES: usize = 4 << 20;

const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

/// What the server said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said<'a> {
    /// A whole message.
    Message(&'a [u8]),
    /// To be answered with the same bytes.
    Ping(&'a [u8]),
    /// The connection ends.
    Close,
}

/// What has been read of the frame and the message under way; empty between frames, so that a viewer that waits costs
/// nothing.
#[derive(Debug, Default)]
pub(super) struct Frames {
    rest: Vec<u8>,
    /// A message of several frames.
    message: Option<Vec<u8>>,
}

impl Frames {
    /// Takes the next bytes and hands what they complete to `each`.
    ///
    /// # Errors
    /// What breaks the protocol, or a message larger than any window; and what `each` returns.
    pub(super) fn feed(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(Said<'_>) -> Result<(), String>,
    ) -> Result<(), String> {
        if self.rest.is_empty() {
            let used = self.take(bytes, &mut each)?;
            self.rest.extend_from_slice(&bytes[used..]);
            return Ok(());
        }
        let mut rest = std::mem::take(&mut self.rest);
        rest.extend_from_slice(bytes);
        let used = self.take(&rest, &mut each)?;
        if used < rest.len() {
            rest.drain(..used);
            self.rest = rest;
        }
        Ok(())
    }

    /// Takes the whole frames; returns how many bytes they have.
    fn take(
        &mut self,
        bytes: &[u8],
        each: &mut impl FnMut(Said<'_>) -> Result<(), String>,
    ) -> Result<usize, String> {
        let mut used = 0;
        while let Some(frame) = Frame::read(&bytes[used..])? {
            used += frame.size;
            match (frame.code, &mut self.message) {
                (CLOSE, _) => each(Said::Close)?,
                (PING, _) => each(Said::Ping(frame.payload))?,
                (PONG, _) => {}
                (TEXT | BINARY, None) if frame.is_last => each(Said::Message(frame.payload))?,
                (TEXT | BINARY, None) => self.message = Some(frame.payload.to_vec()),
                (CONTINUATION, Some(message)) => {
                    message.extend_from_slice(frame.payload);
                    if message.len() > MOST_BYTES {
                        return Err(too_large());
                    }
                    if frame.is_last {
                        each(Said::Message(message))?;
                        self.message = None;
                    }
                }
                (code, _) => return Err(format!("a WebSocket frame of kind {code} where none may be")),
            }
        }
        Ok(used)
    }
}

struct Frame<'a> {
    is_last: bool,
    code: u8,
    payload: &'a [u8],
    /// With its head.
    size: usize,
}

impl<'a> Frame<'a> {
    /// The frame at the beginning, `None` when it is not whole.
    fn read(bytes: &'a [u8]) -> Result<Option<Self>, String> {
        let [first, second, ..] = *bytes else { return Ok(None) };
        if first & 0x70 != 0 || second & 0x80 != 0 {
            return Err("a WebSocket frame that is masked or of an extension nobody asked for".to_owned());
        }
        let bytes_of = |from: usize, to: usize| bytes.get(from..to);
        let (head, length) = match second {
            126 => match bytes_of(2, 4) {
                Some(length) => (4, length.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))),
                None => return Ok(None),
            },
            127 => match bytes_of(2, 10) {
                Some(length) => (10, length.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))),
                None => return Ok(None),
            },
            length => (2, u64::from(length)),
        };
        let length = usize::try_from(length).ok().filter(|length| *length <= MOST_BYTES);
        let size = head + length.ok_or_else(too_large)?;
        let (is_last, code) = (first & 0x80 != 0, first & 0x0f);
        Ok(bytes_of(head, size).map(|payload| Self { is_last, code, payload, size }))
    }
}

fn too_large() -> String {
    format!("a WebSocket message of more than {MOST_BYTES} bytes")
}

/// The answer to a ping; a client masks what it sends.
pub(super) fn pong(payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    // What controls has 125 bytes at most.
    let payload = &payload[..payload.len().min(125)];
    let mut frame = vec![0x80 | PONG, 0x80 | payload.len() as u8];
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            short @ 0..126 => frame.push(short as u8),
            long => frame.extend([126, (long >> 8) as u8, long as u8]),
        }
        frame.extend_from_slice(payload);
        frame
    }

    fn read(chunks: &[&[u8]]) -> Result<Vec<String>, String> {
        let (mut frames, mut said) = (Frames::default(), Vec::new());
        for chunk in chunks {
            frames.feed(chunk, |what| {
                said.push(match what {
                    Said::Message(text) => String::from_utf8_lossy(text).into_owned(),
                    Said::Ping(text) => format!("ping {}", String::from_utf8_lossy(text)),
                    Said::Close => "close".to_owned(),
                });
                Ok(())
            })?;
        }
        Ok(said)
    }

    #[test]
    fn messages_are_read_wherever_the_stream_is_cut() {
        let long = "x".repeat(300);
        let mut stream = frame(0x81, b"one");
        stream.extend(frame(0x01, b"two "));
        stream.extend(frame(0x89, b"still there?"));
        stream.extend(frame(0x80, b"parts"));
        stream.extend(frame(0x81, long.as_bytes()));
        stream.extend(frame(0x88, b""));
        let expected = ["one", "ping still there?", "two parts", &long, "close"];
        for cut in 0..stream.len() {
            assert_eq!(read(&[&stream[..cut], &stream[cut..]]).unwrap(), expected, "cut at {cut}");
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(read(&bytes).unwrap(), expected);
    }

    #[test]
    fn what_breaks_the_protocol_is_an_error() {
        for wrong in [
            &[0xc1, 0x00][..],
            &[0x81, 0x80],
            &[0x80, 0x00],
            &[0x83, 0x00],
            &[0x81, 127, 1, 0, 0, 0, 0, 0, 0, 0],
        ] {
            assert!(read(&[wrong]).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_pong_brings_back_what_the_ping_said() {
        assert_eq!(pong(b"ab", [1, 2, 3, 4]), [0x8a, 0x82, 1, 2, 3, 4, b'a' ^ 1, b'b' ^ 2]);
    }
}
