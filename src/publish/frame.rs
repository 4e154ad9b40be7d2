//! WebSocket frames as a server sends them (RFC 6455, 5.2): whole, never masked.
//!
//! What is written to all clients of a room is framed here, once; what one client says and is answered is framed by
//! the library that reads it. Pure: no async, no clock, no I/O.

use bytes::Bytes;

/// A text message in one frame.
pub fn text_frame(text: &[u8]) -> Bytes {
    const FINAL_TEXT: u8 = 0x81;
    let mut frame = Vec::with_capacity(text.len() + 10);
    frame.push(FINAL_TEXT);
    #[allow(clippy::cast_possible_truncation)] // each arm holds what fits
    match text.len() {
        length @ 0..126 => frame.push(length as u8),
        length @ 126..=0xFFFF => {
            frame.push(126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            frame.push(127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(text);
    frame.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_is_written_as_short_as_the_standard_asks() {
        for (length, header) in [
            (0, vec![0x81, 0]),
            (125, vec![0x81, 125]),
            (126, vec![0x81, 126, 0, 126]),
            (65_535, vec![0x81, 126, 0xFF, 0xFF]),
            (65_536, vec![0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let text = vec![b'x'; length];
            assert_eq!(text_frame(&text), [header, text].concat(), "{length}");
        }
    }
}
