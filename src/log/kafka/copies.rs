//! Copies of messages out of librdkafka's memory. Large ones go into buffers that are used again once nobody holds what
//! was in them: fresh memory of that size has to be mapped and cleared by the system each time, which was a tenth of all
//! the work of catching up.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// From here on a copy goes into a buffer.
const LARGE: usize = 64 << 10;
/// What a buffer holds: the largest message of ours, with room.
const BUFFER_BYTES: usize = 1 << 20;
/// As many as one read brings. When all are held, a copy is memory of its own.
const MAX_BUFFERS: usize = 8;
/// Arrow reads in place what lies at a multiple of this.
const ALIGNMENT: usize = 64;

/// The buffers of one reader.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// The one handed out longest ago first.
    buffers: VecDeque<BytesMut>,
}

impl Copies {
    pub(super) fn copy(&mut self, bytes: &[u8]) -> Bytes {
        let room = bytes.len().next_multiple_of(ALIGNMENT);
        if bytes.len() < LARGE || room > BUFFER_BYTES {
            return Bytes::copy_from_slice(bytes);
        }
        let is_free = self.buffers.front_mut().is_some_and(|buffer| buffer.try_reclaim(room));
        let mut buffer = match self.buffers.len() {
            _ if is_free => self.buffers.pop_front().unwrap_or_default(),
            MAX_BUFFERS.. => return Bytes::copy_from_slice(bytes),
            _ => BytesMut::with_capacity(BUFFER_BYTES),
        };
        buffer.extend_from_slice(bytes);
        buffer.resize(room, 0);
        let mut copy = buffer.split().freeze();
        copy.truncate(bytes.len());
        self.buffers.push_back(buffer);
        copy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_once_its_copy_is_dropped_and_never_before() {
        let mut copies = Copies::default();
        let message = |n: u8| vec![n; 700_000];
        let held: Vec<Bytes> = (0..20).map(|n| copies.copy(&message(n))).collect();
        assert_eq!(copies.buffers.len(), MAX_BUFFERS);
        assert!(held.iter().zip(0..).all(|(copy, n)| copy == &message(n)));
        let place = held[0].as_ptr();
        drop(held);
        let again = copies.copy(&message(1));
        assert_eq!((again.as_ptr(), copies.buffers.len()), (place, MAX_BUFFERS));
        assert_eq!(
            (copies.copy(b"small"), copies.copy(&[7; 2 << 20]).len()),
            (Bytes::from("small"), 2 << 20)
        );
    }

    #[test]
    fn copies_in_one_buffer_are_aligned() {
        let mut copies = Copies::default();
        let held: Vec<Bytes> = (0..3).map(|n| copies.copy(&[n; 100_001])).collect();
        assert_eq!(copies.buffers.len(), 1);
        let from_first = |copy: &Bytes| copy.as_ptr() as usize - held[0].as_ptr() as usize;
        assert!(held.iter().all(|copy| from_first(copy) % ALIGNMENT == 0));
        assert!(held.iter().zip(0..).all(|(copy, n)| copy[..] == [n; 100_001]));
    }
}
