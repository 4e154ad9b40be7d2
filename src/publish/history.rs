//! The newest messages a subscriber keeps, for clients that resume.
//!
//! Pure: no async, no clock, no I/O.

use std::collections::VecDeque;
use std::sync::Arc;

use super::message::Message;
use crate::reaction::live::LiveId;

/// Bytes of messages kept at most, however few they are.
pub const MAX_BYTES: usize = 16 << 20;
/// How far ahead of this subscriber another one may have been: an id up to so many messages newer than the newest
/// here is a cursor of a client that comes from there; one beyond that is foreign.
const MAX_AHEAD: u64 = 1_000;

/// How a message stands to those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follows {
    /// It is the next one.
    Next,
    /// It is not newer than the newest: seen before, to be left out.
    Again,
    /// Messages between the newest and this one are missing, or another epoch began.
    Gap,
}

/// What a cursor finds.
#[derive(Debug)]
pub enum Resume {
    /// Every message after the cursor, in order.
    After(Vec<Arc<Message>>),
    /// The cursor is too old or foreign: messages may be missing.
    Gap,
}

/// A run of messages without holes: the newest [`MAX_BYTES`], or the newest `limit`.
#[derive(Debug)]
pub struct History {
    limit: usize,
    messages: VecDeque<Arc<Message>>,
    bytes: usize,
    newest: Option<LiveId>,
}

impl History {
    /// Keeps at most `limit` messages.
    pub fn new(limit: usize) -> Self {
        Self { limit, messages: VecDeque::new(), bytes: 0, newest: None }
    }

    /// Adds a message, unless it was seen before. A gap empties what is kept: no cursor reaches across it.
    pub fn push(&mut self, message: Arc<Message>) -> Follows {
        let follows = match self.newest {
            Some(newest) if message.id <= newest => return Follows::Again,
            Some(newest) if !is_next(newest, message.id) => Follows::Gap,
            _ => Follows::Next,
        };
        if follows == Follows::Gap {
            self.messages.clear();
            self.bytes = 0;
        }
        self.newest = Some(message.id);
        self.bytes += message.json.len();
        self.messages.push_back(message);
        while self.messages.len() > self.limit || self.bytes > MAX_BYTES {
            let Some(oldest) = self.messages.pop_front() else { break };
            self.bytes -= oldest.json.len();
        }
        follows
    }

    /// The newest id seen.
    pub fn newest(&self) -> Option<LiveId> {
        self.newest
    }

    /// What came after that id.
    pub fn after(&self, cursor: LiveId) -> Resume {
        let Some(newest) = self.newest.filter(|newest| newest.epoch == cursor.epoch) else {
            return Resume::Gap;
        };
        if cursor.sequence > newest.sequence + MAX_AHEAD {
            return Resume::Gap;
        }
        let oldest = self.messages.front().map_or(newest.sequence + 1, |oldest| oldest.id.sequence);
        if cursor.sequence + 1 < oldest {
            return Resume::Gap;
        }
        let from = self.messages.partition_point(|message| message.id <= cursor);
        Resume::After(self.messages.range(from..).cloned().collect())
    }

    /// The newest final message of every table and room among those that `wanted` accepts, in the order of ids.
    pub fn newest_of_each(&self, wanted: impl Fn(&Message) -> bool) -> Vec<Arc<Message>> {
        let mut found: Vec<Arc<Message>> = Vec::new();
        for message in self.messages.iter().rev().filter(|message| message.is_final && wanted(message)) {
            if !found.iter().any(|newer| newer.is_same_stream(message)) {
                found.push(Arc::clone(message));
            }
        }
        found.reverse();
        found
    }
}

fn is_next(before: LiveId, id: LiveId) -> bool {
    before.epoch == id.epoch && before.sequence + 1 == id.sequence
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::message::message;

    fn history(limit: usize, sequences: impl IntoIterator<Item = u64>) -> History {
        let mut history = History::new(limit);
        for sequence in sequences {
            history.push(message(sequence, "t", if sequence % 2 == 0 { "even" } else { "odd" }));
        }
        history
    }

    fn after(history: &History, id: &str) -> Option<Vec<u64>> {
        match history.after(id.parse().unwrap()) {
            Resume::After(messages) => Some(messages.iter().map(|message| message.id.sequence).collect()),
            Resume::Gap => None,
        }
    }

    #[test]
    fn a_cursor_gets_what_came_after_it() {
        let history = history(10, 1..=5);
        assert_eq!(after(&history, "e1-3"), Some(vec![4, 5]));
        assert_eq!(after(&history, "e1-0"), Some(vec![1, 2, 3, 4, 5]));
        assert_eq!(after(&history, "e1-5"), Some(vec![]));
    }

    #[test]
    fn a_cursor_from_a_subscriber_slightly_ahead_waits_and_one_from_nowhere_is_a_gap() {
        let history = history(10, 1..=5);
        assert_eq!(after(&history, "e1-7"), Some(vec![]));
        assert_eq!(after(&history, "e1-99999"), None);
        assert_eq!(after(&history, "e2-3"), None);
        assert_eq!(after(&History::new(10), "e1-3"), None);
    }

    #[test]
    fn a_cursor_older_than_the_history_is_a_gap() {
        let history = history(3, 1..=10);
        assert_eq!(after(&history, "e1-7"), Some(vec![8, 9, 10]));
        assert_eq!(after(&history, "e1-6"), None);
    }

    #[test]
    fn a_message_seen_before_is_left_out_and_a_hole_forgets_what_was_before_it() {
        let mut history = history(10, 1..=5);
        assert_eq!(history.push(message(5, "t", "odd")), Follows::Again);
        assert_eq!(history.push(message(8, "t", "even")), Follows::Gap);
        assert_eq!(after(&history, "e1-5"), None);
        assert_eq!(after(&history, "e1-7"), Some(vec![8]));
    }

    #[test]
    fn the_newest_of_each_room_comes_in_order() {
        let history = history(10, 1..=5);
        let ids = |wanted: fn(&Message) -> bool| -> Vec<u64> {
            history.newest_of_each(wanted).iter().map(|message| message.id.sequence).collect()
        };
        assert_eq!(ids(|_| true), [4, 5]);
        assert_eq!(ids(|message| &*message.room == "even"), [4]);
    }

    #[test]
    fn bytes_are_bounded_too() {
        let mut history = History::new(usize::MAX);
        let room = "x".repeat(1 << 20);
        for sequence in 1..=40 {
            history.push(message(sequence, "t", &room));
        }
        assert!(history.bytes <= MAX_BYTES && history.messages.len() >= 15);
    }
}
