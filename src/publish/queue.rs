//! What waits for one client: bounded, and conflated to the newest window per table and room when the client falls
//! behind. An early result waits only until a newer one of its window comes.
//!
//! Pure: no async, no clock, no I/O.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::message::Message;
use crate::reaction::live::LiveId;

/// Messages that may wait before a client counts as behind.
pub const MAX_WAITING: usize = 64;
/// Bytes of messages that may wait before a client counts as behind (they are shared with other clients).
pub const MAX_WAITING_BYTES: usize = 1 << 20;

/// What a client is sent next.
#[derive(Clone, Debug)]
pub enum Delivery {
    /// A window.
    Window {
        /// The message.
        message: Arc<Message>,
        /// How many older closed windows of its table and room were left out just before it.
        skipped: u64,
    },
    /// Messages before this point are missing.
    Gap,
}

impl Delivery {
    /// Its id; a gap has none.
    pub fn id(&self) -> Option<LiveId> {
        match self {
            Self::Window { message, .. } => Some(message.id),
            Self::Gap => None,
        }
    }
}

/// The client's queue. Ids rise from its head to its tail.
///
/// When more than [`MAX_WAITING`] messages or [`MAX_WAITING_BYTES`] wait, only the newest closed window of each table and
/// room stays, and says how many it stands for, and what was told early after it. So never more wait than that, or than
/// two of each of the tables and rooms asked for: where those are more, twice that.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    waiting: VecDeque<Delivery>,
    bytes: usize,
    /// How many of them are early results.
    early: usize,
    /// Messages and bytes that the last conflation kept of what waits.
    kept: (usize, usize),
    #[cfg(test)]
    conflations: usize,
}

impl Queue {
    /// Adds a message, newer than all before it. Returns how many closed windows were left out for it.
    pub fn push(&mut self, message: Arc<Message>) -> u64 {
        self.add(Delivery::Window { message, skipped: 0 })
    }

    /// The same with what was left out before it already.
    pub fn add(&mut self, delivery: Delivery) -> u64 {
        let Delivery::Window { message, .. } = &delivery else {
            self.push_gap();
            return 0;
        };
        self.leave_out_replaced(message);
        self.early += usize::from(!message.is_final);
        self.bytes += message.json.len();
        self.waiting.push_back(delivery);
        if self.is_too_long() { self.conflate() } else { 0 }
    }

    /// Where a conflation keeps more than the bounds, the next one comes when there is twice as much: so each message costs
    /// a few steps, however many tables and rooms there are.
    fn is_too_long(&self) -> bool {
        let (messages, bytes) = self.kept;
        self.waiting.len() > MAX_WAITING.max(2 * messages) || self.bytes > MAX_WAITING_BYTES.max(2 * bytes)
    }

    /// Says that messages are missing here.
    pub fn push_gap(&mut self) {
        if !matches!(self.waiting.back(), Some(Delivery::Gap)) {
            self.waiting.push_back(Delivery::Gap);
        }
    }

    /// Takes what waits longest.
    pub fn pop(&mut self) -> Option<Delivery> {
        let delivery = self.waiting.pop_front()?;
        if let Delivery::Window { message, .. } = &delivery {
            self.bytes -= message.json.len();
            self.early -= usize::from(!message.is_final);
        }
        if self.waiting.is_empty() {
            self.kept = (0, 0);
        }
        Some(delivery)
    }

    /// Takes everything that waits, in order.
    pub fn take(&mut self) -> VecDeque<Delivery> {
        (self.bytes, self.early, self.kept) = (0, 0, (0, 0));
        std::mem::take(&mut self.waiting)
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn leave_out_replaced(&mut self, by: &Message) {
        if self.early == 0 {
            return;
        }
        let replaced = |delivery: &Delivery| match delivery {
            Delivery::Window { message, .. } => by.replaces(message),
            Delivery::Gap => false,
        };
        let place = self.waiting.iter().position(replaced);
        if let Some(Delivery::Window { message, .. }) = place.and_then(|place| self.waiting.remove(place)) {
            self.bytes -= message.json.len();
            self.early -= 1;
        }
    }

    /// Keeps the newest closed window of each table and room in its place, of those after it the newest that was told
    /// early, and one gap, at the head.
    fn conflate(&mut self) -> u64 {
        let before = std::mem::take(&mut self.waiting);
        // Newest first.
        let mut kept: Vec<(Arc<Message>, u64)> = Vec::new();
        // Of each stream: whether something of it is kept, and where its closed window is.
        let mut streams: HashMap<(Arc<str>, Arc<str>), Option<usize>> = HashMap::new();
        let mut has_gap = false;
        let mut left_out = 0;
        for delivery in before.into_iter().rev() {
            let Delivery::Window { message, skipped } = delivery else {
                has_gap = true;
                continue;
            };
            let stream = streams.entry((Arc::clone(&message.table), Arc::clone(&message.room)));
            let is_newest = matches!(stream, Entry::Vacant(_));
            let closed = stream.or_default();
            match (message.is_final, *closed) {
                (false, _) if is_newest => kept.push((message, 0)),
                (false, _) => {}
                (true, Some(place)) => {
                    kept[place].1 += skipped + 1;
                    left_out += 1;
                }
                (true, None) => {
                    *closed = Some(kept.len());
                    kept.push((message, skipped));
                }
            }
        }
        self.bytes = kept.iter().map(|(message, _)| message.json.len()).sum();
        self.early = kept.iter().filter(|(message, _)| !message.is_final).count();
        self.waiting.extend(has_gap.then_some(Delivery::Gap));
        let kept = kept.into_iter().rev();
        self.waiting.extend(kept.map(|(message, skipped)| Delivery::Window { message, skipped }));
        self.kept = (self.waiting.len(), self.bytes);
        #[cfg(test)]
        {
            self.conflations += 1;
        }
        left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::message::{early, message};

    fn text(taken: VecDeque<Delivery>) -> Vec<String> {
        let line = |delivery| match delivery {
            Delivery::Gap => "gap".to_owned(),
            Delivery::Window { message, skipped } => {
                format!("{} {} {} +{skipped}", message.id.sequence, message.table, message.room)
            }
        };
        taken.into_iter().map(line).collect()
    }

    #[test]
    fn a_client_that_keeps_up_gets_every_message_in_order() {
        let mut queue = Queue::default();
        for sequence in 1..=MAX_WAITING as u64 {
            assert_eq!(queue.push(message(sequence, "t", "main")), 0);
        }
        let taken = text(queue.take());
        assert_eq!((taken.len(), taken[0].as_str()), (MAX_WAITING, "1 t main +0"));
        assert!(queue.is_empty());
    }

    #[test]
    fn a_client_that_falls_behind_gets_the_newest_of_each_table_and_room() {
        let mut queue = Queue::default();
        let streams = [("t", "a"), ("t", "b"), ("u", "a")];
        let mut skipped = 0;
        for sequence in 0..=MAX_WAITING as u64 {
            let (table, room) = streams[sequence as usize % 3];
            skipped += queue.push(message(sequence, table, room));
        }
        assert_eq!(text(queue.take()), ["62 u a +20", "63 t a +21", "64 t b +21"]);
        assert_eq!(skipped, 62);
    }

    #[test]
    fn what_was_skipped_adds_up_over_conflations() {
        let mut queue = Queue::default();
        for sequence in 0..1000 {
            queue.push(message(sequence, "t", "main"));
        }
        let taken = queue.take();
        let told: u64 = taken
            .iter()
            .map(|d| if let Delivery::Window { skipped, .. } = d { skipped + 1 } else { 0 })
            .sum();
        assert_eq!(told, 1000);
        assert!(taken.len() <= MAX_WAITING);
    }

    #[test]
    fn more_rooms_than_the_bound_lose_nothing() {
        let mut queue = Queue::default();
        for sequence in 0..200 {
            queue.push(message(sequence, "t", &format!("room{sequence}")));
        }
        assert_eq!(queue.take().len(), 200);
    }

    #[test]
    fn many_streams_are_conflated_seldom() {
        let mut queue = Queue::default();
        let mut skipped = 0;
        for window in 0..20 {
            for room in 0..5_000 {
                skipped += queue.push(message(window * 5_000 + room, "t", &format!("room{room}")));
                assert!(queue.waiting.len() <= 2 * 5_000);
            }
        }
        assert!(queue.conflations < 40, "{} conflations", queue.conflations);
        let taken = queue.take();
        let stands_for = |delivery: &Delivery| match delivery {
            Delivery::Window { skipped, .. } => skipped + 1,
            Delivery::Gap => 0,
        };
        assert_eq!(taken.iter().map(stands_for).sum::<u64>(), 100_000);
        assert_eq!(taken.len() as u64, 100_000 - skipped);
        assert!(taken.iter().map(Delivery::id).is_sorted());
    }

    #[test]
    fn an_early_result_waits_until_a_newer_one_of_its_window_comes() {
        let mut queue = Queue::default();
        queue.push(early(1, "t", "main", 2));
        queue.push(early(2, "t", "other", 2));
        queue.push(early(3, "t", "main", 4));
        for sequence in 4..1000 {
            assert_eq!(queue.push(early(sequence, "t", "main", 2)), 0);
        }
        assert_eq!(text(queue.take()), ["2 t other +0", "3 t main +0", "999 t main +0"]);
        // The helper's closed windows start at 0.
        queue.push(early(1000, "t", "main", 0));
        queue.push(message(1001, "t", "main"));
        assert_eq!(text(queue.take()), ["1001 t main +0"]);
        assert!((queue.bytes, queue.early) == (0, 0));
    }

    #[test]
    fn early_results_are_neither_skipped_nor_in_place_of_a_closed_window() {
        let mut queue = Queue::default();
        for sequence in 0..=MAX_WAITING as u64 {
            let next = match sequence % 4 {
                0 => early(sequence, "t", "main", 1 + sequence as i64),
                _ => message(sequence, "t", "main"),
            };
            queue.push(next);
        }
        assert_eq!(text(queue.take()), ["63 t main +47", "64 t main +0"]);
    }

    #[test]
    fn what_is_taken_one_by_one_is_no_longer_counted() {
        let mut queue = Queue::default();
        queue.push_gap();
        queue.push(message(1, "t", "main"));
        queue.add(Delivery::Window { message: message(9, "t", "main"), skipped: 7 });
        queue.push(early(10, "t", "main", 8));
        let taken = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(text(taken), ["gap", "1 t main +0", "9 t main +7", "10 t main +0"]);
        assert!(queue.is_empty() && (queue.bytes, queue.early) == (0, 0));
    }

    #[test]
    fn a_gap_survives_conflation_once() {
        let mut queue = Queue::default();
        queue.push(message(1, "t", "main"));
        queue.push_gap();
        queue.push_gap();
        for sequence in 3..=MAX_WAITING as u64 + 2 {
            queue.push(message(sequence, "t", "main"));
        }
        assert_eq!(text(queue.take())[..2], ["gap", "65 t main +63"]);
    }
}
