//! The stretch of a partition that queries read together: from the place of the last of them to the end of what was read,
//! as chunks side by side. Pure.
//!
//! ```text
//!            a place            another          several
//!               ▼                  ▼                ▼
//!  ─ behind ─ ─ ├─ chunk ─┼─ chunk ┼─── chunk ──────┤ ─ ─ not read yet
//!             start                                end
//! ```
//!
//! A chunk goes when every place has passed it. When there is too much the oldest goes, and the places in it are
//! behind: who stands there goes on alone until it reaches the ring again. So the first is never held by the last.

use std::collections::{BTreeMap, VecDeque};

/// How much a ring may hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) records: usize,
    pub(super) bytes: usize,
}

/// What one read brought.
pub(super) struct Weight {
    pub(super) records: usize,
    pub(super) bytes: usize,
}

/// What is at a place.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<C> {
    /// The chunk that holds it.
    Chunk(C),
    /// Nothing yet: it is the end.
    End,
    /// Nothing any more.
    Behind,
}

/// A ring of chunks and those who stand in it.
pub(super) struct Ring<C> {
    limits: Limits,
    chunks: VecDeque<Held<C>>,
    end: i64,
    held: Weight,
    places: BTreeMap<u64, i64>,
}

struct Held<C> {
    chunk: C,
    /// The offsets that it covers, the last one excluded.
    from: i64,
    next: i64,
    weight: Weight,
}

impl<C: Clone> Ring<C> {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            chunks: VecDeque::new(),
            end: 0,
            held: Weight { records: 0, bytes: 0 },
            places: BTreeMap::new(),
        }
    }

    /// Where the next read goes on.
    pub(super) fn end(&self) -> i64 {
        self.end
    }

    /// The first offset that is held, or the end.
    pub(super) fn start(&self) -> i64 {
        self.chunks.front().map_or(self.end, |oldest| oldest.from)
    }

    /// Nobody stands in it.
    pub(super) fn is_deserted(&self) -> bool {
        self.places.is_empty()
    }

    /// `who` is about to go on at `place`: it is kept for it, if it is held or nobody else is here.
    pub(super) fn enter(&mut self, who: u64, place: i64) {
        if self.is_deserted() {
            self.begin_at(place);
        }
        if (self.start()..=self.end).contains(&place) {
            self.places.insert(who, place);
        }
    }

    /// `who` goes on at `place`. A place ahead of all that was read is where the ring begins anew, because it never goes
    /// back for those who are behind.
    pub(super) fn seek(&mut self, who: u64, place: i64) -> Found<C> {
        if self.is_deserted() || place > self.end {
            self.begin_at(place);
        }
        if place < self.start() {
            self.places.remove(&who);
            return Found::Behind;
        }
        self.places.insert(who, place);
        self.drop_passed();
        let holding = self.chunks.partition_point(|held| held.next <= place);
        self.chunks.get(holding).map_or(Found::End, |held| Found::Chunk(held.chunk.clone()))
    }

    /// `who` has come from behind, read from `from` up to `next`. Where it goes on in the ring, at `next` or before it;
    /// `None` when it is behind still.
    pub(super) fn join(&mut self, who: u64, from: i64, next: i64) -> Option<i64> {
        if self.is_deserted() || from > self.end {
            self.begin_at(next);
        }
        if next < self.start() {
            return None;
        }
        let place = next.min(self.end);
        self.places.insert(who, place);
        Some(place)
    }

    /// `who` goes away.
    pub(super) fn leave(&mut self, who: u64) {
        self.places.remove(&who);
        if self.is_deserted() {
            self.begin_at(self.end);
        } else {
            self.drop_passed();
        }
    }

    /// Takes what was read at the end.
    pub(super) fn push(&mut self, chunk: C, next: i64, weight: Weight) {
        self.held.records += weight.records;
        self.held.bytes += weight.bytes;
        self.chunks.push_back(Held { chunk, from: self.end, next, weight });
        self.end = next;
        self.drop_excess();
    }

    /// The chunk that ends at `next` weighs so much more.
    pub(super) fn grow(&mut self, next: i64, bytes: usize) {
        let place = self.chunks.partition_point(|held| held.next < next);
        if let Some(held) = self.chunks.get_mut(place).filter(|held| held.next == next) {
            held.weight.bytes += bytes;
            self.held.bytes += bytes;
            self.drop_excess();
        }
    }

    /// Those who stand elsewhere are behind.
    fn begin_at(&mut self, place: i64) {
        while self.drop_oldest() {}
        self.end = place;
        self.places.clear();
    }

    fn drop_passed(&mut self) {
        let last = self.places.values().copied().min().unwrap_or(self.end);
        while self.chunks.front().is_some_and(|oldest| oldest.next <= last) {
            self.drop_oldest();
        }
    }

    /// The newest chunk stays, however large.
    fn drop_excess(&mut self) {
        let Limits { records, bytes } = self.limits;
        while self.chunks.len() > 1 && (self.held.records > records || self.held.bytes > bytes) {
            self.drop_oldest();
        }
        let start = self.start();
        self.places.retain(|_, place| *place >= start);
    }

    fn drop_oldest(&mut self) -> bool {
        let Some(oldest) = self.chunks.pop_front() else { return false };
        self.held.records -= oldest.weight.records;
        self.held.bytes -= oldest.weight.bytes;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: u64 = 1;
    const B: u64 = 2;
    const C: u64 = 3;

    fn ring() -> Ring<&'static str> {
        Ring::new(Limits { records: 10, bytes: 100 })
    }

    fn weight(records: usize, bytes: usize) -> Weight {
        Weight { records, bytes }
    }

    /// A ring from 10 to 16 in three chunks, with A at its beginning and B at its end.
    fn three_chunks() -> Ring<&'static str> {
        let mut ring = ring();
        ring.enter(A, 10);
        assert_eq!(ring.seek(B, 10), Found::End);
        for (chunk, next) in [("x", 12), ("y", 14), ("z", 16)] {
            ring.push(chunk, next, weight(2, 10));
        }
        assert_eq!(ring.seek(B, 16), Found::End);
        ring
    }

    #[test]
    fn who_stands_in_it_finds_the_chunk_that_holds_its_place() {
        let mut ring = three_chunks();
        for (place, chunk) in [(10, "x"), (11, "x"), (12, "y"), (15, "z")] {
            assert_eq!(ring.seek(A, place), Found::Chunk(chunk), "at {place}");
        }
        assert_eq!(ring.seek(A, 16), Found::End);
    }

    #[test]
    fn a_chunk_goes_when_all_have_passed_it() {
        let mut ring = three_chunks();
        assert_eq!(ring.start(), 10);
        ring.seek(A, 13);
        assert_eq!(ring.start(), 12);
        ring.leave(A);
        assert_eq!((ring.start(), ring.end()), (16, 16), "B is at the end");
        assert_eq!(ring.held.records + ring.held.bytes, 0);
    }

    #[test]
    fn when_it_is_full_the_last_falls_behind_and_the_first_goes_on() {
        for too_much in [weight(8, 0), weight(0, 90)] {
            let mut ring = three_chunks();
            ring.push("w", 20, too_much);
            assert_eq!((ring.start(), ring.end()), (14, 20));
            assert_eq!(ring.seek(B, 16), Found::Chunk("w"));
            assert_eq!(ring.seek(A, 12), Found::Behind);
            assert_eq!(ring.start(), 16, "B alone stands in it");
        }
    }

    #[test]
    fn a_chunk_that_grows_displaces_older_ones_but_never_itself() {
        let mut ring = three_chunks();
        ring.grow(16, 75);
        assert_eq!(ring.start(), 12);
        ring.grow(16, 1_000);
        assert_eq!(ring.start(), 14);
        ring.grow(12, 1_000);
        ring.grow(15, 1_000);
        assert_eq!((ring.start(), ring.held.bytes), (14, 1_085), "no chunk of the ring ends there");
        assert_eq!(ring.seek(B, 15), Found::Chunk("z"));
    }

    #[test]
    fn who_comes_from_behind_joins_where_it_meets_the_ring_and_never_past_its_end() {
        let mut ring = three_chunks();
        ring.seek(A, 12);
        assert_eq!(ring.seek(C, 5), Found::Behind);
        assert_eq!(ring.join(C, 5, 11), None);
        assert_eq!(ring.join(C, 11, 13), Some(13));
        assert_eq!(ring.seek(C, 13), Found::Chunk("y"));
        ring.leave(C);
        assert_eq!(ring.join(C, 11, 99), Some(16), "what was read past the end is left to the ring");
        assert_eq!(ring.seek(C, 16), Found::End);
    }

    #[test]
    fn a_place_ahead_of_it_is_where_it_begins_anew() {
        let mut ring = three_chunks();
        assert_eq!(ring.seek(C, 17), Found::End);
        assert_eq!((ring.start(), ring.end(), ring.held.records), (17, 17, 0));
        assert_eq!(ring.seek(B, 16), Found::Behind);
        // So does one who was behind when the ring went back meanwhile.
        ring.leave(C);
        assert_eq!(ring.seek(A, 3), Found::End, "nobody was there");
        assert_eq!(ring.join(B, 16, 18), Some(18));
        assert_eq!((ring.end(), ring.seek(A, 3)), (18, Found::Behind));
    }

    #[test]
    fn who_enters_is_waited_for_where_it_can_be() {
        let mut ring = three_chunks();
        ring.enter(C, 9);
        ring.enter(C, 17);
        ring.seek(A, 16);
        assert_eq!((ring.start(), ring.end()), (16, 16), "it is neither held back nor moved on");
        ring.enter(C, 16);
        ring.push("w", 18, weight(1, 1));
        assert_eq!((ring.seek(A, 18), ring.seek(B, 18)), (Found::End, Found::End));
        assert_eq!(ring.seek(C, 16), Found::Chunk("w"));
    }

    #[test]
    fn a_deserted_ring_belongs_to_the_next_who_comes() {
        let mut ring = three_chunks();
        ring.leave(A);
        ring.leave(B);
        assert!(ring.is_deserted() && ring.start() == ring.end());
        assert_eq!(ring.seek(C, 4), Found::End);
        ring.push("v", 6, weight(1, 1));
        assert_eq!(ring.seek(C, 4), Found::Chunk("v"));
    }
}
