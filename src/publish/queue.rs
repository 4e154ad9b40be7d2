//! What waits for one client: bounded, and conflated to the newest window per table and room when the client falls
//! behind.
//!
//! Pure: no async, no clock, no I/O.

use std::collections::VecDeque;
use std::sync::Arc;

use super::message::Message;

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
        /// How many older ones of its table and room were left out just before it.
        skipped: u64,
    },
    /// Messages before this point are missing.
    Gap,
}

/// The client's queue. Ids rise from its head to its tail.
///
/// When more than [`MAX_WAITING`] messages or [`MAX_WAITING_BYTES`] wait, only the newest of each table and room
/// stays, and says how many it stands for. So never more wait than that, or than the tables and rooms asked for.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: VecDeque<Delivery>,
    bytes: usize,
}

impl Queue {
    /// Adds a message, newer than all before it. Returns how many were left out for it.
    pub fn push(&mut self, message: Arc<Message>) -> u64 {
        self.bytes += message.json.len();
        self.waiting.push_back(Delivery::Window { message, skipped: 0 });
        if self.waiting.len() > MAX_WAITING || self.bytes > MAX_WAITING_BYTES { self.conflate() } else { 0 }
    }

    /// Says that messages are missing here.
    pub fn push_gap(&mut self) {
        if !matches!(self.waiting.back(), Some(Delivery::Gap)) {
            self.waiting.push_back(Delivery::Gap);
        }
    }

    /// Takes everything that waits, in order.
    pub fn take(&mut self) -> VecDeque<Delivery> {
        self.bytes = 0;
        std::mem::take(&mut self.waiting)
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Keeps the newest message of each table and room in the place of that newest one, and one gap, at the head.
    fn conflate(&mut self) -> u64 {
        let before = std::mem::take(&mut self.waiting);
        let mut kept: VecDeque<(Arc<Message>, u64)> = VecDeque::new();
        let mut has_gap = false;
        let mut left_out = 0;
        for delivery in before.into_iter().rev() {
            let Delivery::Window { message, skipped } = delivery else {
                has_gap = true;
                continue;
            };
            match kept.iter_mut().find(|(newer, _)| newer.is_same_stream(&message)) {
                Some((_, count)) => {
                    *count += skipped + 1;
                    left_out += 1;
                }
                None => kept.push_front((message, skipped)),
            }
        }
        self.bytes = kept.iter().map(|(message, _)| message.json.len()).sum();
        self.waiting.extend(has_gap.then_some(Delivery::Gap));
        self.waiting.extend(kept.into_iter().map(|(message, skipped)| Delivery::Window { message, skipped }));
        left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::message::message;

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
