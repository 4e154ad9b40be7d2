//! Events compressed once for all clients: a gzip stream that is put together from blocks.
//!
//! A block is one event in deflate (RFC 1951), compressed without looking back and ended by a full flush: byte-aligned
//! and meaning the same wherever it stands. So a client's stream is gzip's header (RFC 1952), the shared blocks of what
//! it is sent, and at its end the checksum, combined from those of the blocks.
//!
//! Pure: no async, no clock, no I/O.

use bytes::Bytes;
use flate2::{Compress, Compression, Crc, FlushCompress, Status};

/// Deflate, no file name, no time, unknown system.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
/// The last block: empty, with the fixed code.
const LAST_BLOCK: [u8; 2] = [0x03, 0x00];
/// What is added to the room for a block at a time; most blocks are less.
const ROOM_BYTES: usize = 1 << 10;

/// One event, compressed.
#[derive(Debug)]
pub struct Block {
    bytes: Bytes,
    crc: Crc,
}

impl Block {
    /// Compresses an event.
    pub fn new(event: &[u8]) -> Self {
        let mut crc = Crc::new();
        crc.update(event);
        let mut deflate = Compress::new(Compression::default(), false);
        let mut bytes = Vec::with_capacity(ROOM_BYTES);
        loop {
            let taken = usize::try_from(deflate.total_in()).unwrap_or(usize::MAX).min(event.len());
            let status = deflate.compress_vec(&event[taken..], &mut bytes, FlushCompress::Full);
            // All is written when room is left; an error can only be that there was nothing more to write.
            if !matches!(status, Ok(Status::Ok)) || bytes.len() < bytes.capacity() {
                break;
            }
            bytes.reserve(ROOM_BYTES);
        }
        Self { bytes: bytes.into(), crc }
    }
}

/// One client's stream.
#[derive(Debug, Default)]
pub struct Stream {
    crc: Crc,
}

impl Stream {
    /// What the stream begins with.
    pub fn begin(&self) -> Bytes {
        Bytes::from_static(&HEADER)
    }

    /// What is sent of a block.
    pub fn next(&mut self, block: &Block) -> Bytes {
        self.crc.combine(&block.crc);
        block.bytes.clone()
    }

    /// What the stream ends with.
    pub fn end(&self) -> Bytes {
        [&LAST_BLOCK[..], &self.crc.sum().to_le_bytes(), &self.crc.amount().to_le_bytes()].concat().into()
    }
}

/// Whether a client takes gzip, by its `Accept-Encoding` (RFC 9110, 12.5.3).
pub fn accepts(accept_encoding: &str) -> bool {
    let weight_of = |wanted: &str| {
        accept_encoding.split(',').find_map(|coding| {
            let (name, parameters) = coding.split_once(';').unwrap_or((coding, ""));
            let weight = parameters.trim().strip_prefix("q=").map_or(Ok(1.0), str::parse::<f32>);
            (name.trim().eq_ignore_ascii_case(wanted)).then_some(weight.unwrap_or_default())
        })
    };
    weight_of("gzip").or_else(|| weight_of("*")).is_some_and(|weight| weight > 0.0)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn blocks_make_a_whole_gzip_stream_in_any_order() {
        let long = "é😀 a line of an event\n".repeat(5_000);
        let noise: String = (0..40_000u32).map(|n| char::from(b' ' + (n * n % 89 % 64) as u8)).collect();
        let events = [long.as_str(), "", ": still here\n\n", noise.as_str()];
        let blocks = events.map(|event| Block::new(event.as_bytes()));
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 2, 0, 0]] {
            let mut stream = Stream::default();
            let mut bytes = stream.begin().to_vec();
            let mut expected = String::new();
            for at in order {
                bytes.extend_from_slice(&stream.next(&blocks[at]));
                expected.push_str(events[at]);
            }
            let mut so_far = vec![0; expected.len()];
            GzDecoder::new(&bytes[..]).read_exact(&mut so_far).unwrap();
            assert_eq!(str::from_utf8(&so_far), Ok(expected.as_str()), "before its end");

            bytes.extend_from_slice(&stream.end());
            let mut whole = String::new();
            GzDecoder::new(&bytes[..]).read_to_string(&mut whole).unwrap();
            assert_eq!(whole, expected);
        }
        assert!(blocks[0].bytes.len() < long.len() / 20);
    }

    #[test]
    fn who_takes_gzip_says_so() {
        for yes in ["gzip", "gzip, deflate, br", "br;q=1.0, GZIP;q=0.5", "*", "identity;q=0, *;q=0.1"] {
            assert!(accepts(yes), "{yes}");
        }
        for no in ["", "identity", "br", "gzip;q=0", "gzip;q=0, *", "gzip;q=nonsense"] {
            assert!(!accepts(no), "{no}");
        }
    }
}
