//! The newest messages a subscriber keeps, for clients that resume.
//!
//! Pure: no async, no clock, no I/O.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::message::Message;
use crate::reaction::live::LiveId;
use crate::reaction::time::Window;

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

/// The newest [`MAX_BYTES`] of messages, or the newest `limit`. Of an open window only what was told last is among them;
/// otherwise there are no holes.
#[derive(Debug)]
pub struct History {
    limit: usize,
    messages: VecDeque<Arc<Message>>,
    bytes: usize,
    newest: Option<LiveId>,
    /// The last sequence that is gone and was not replaced.
    gone: u64,
    /// Which of the messages tells an open window.
    early: BTreeMap<WindowOf, LiveId>,
}

/// Table, room and window.
type WindowOf = (Arc<str>, Arc<str>, Window);

impl History {
    /// Keeps at most `limit` messages.
    pub fn new(limit: usize) -> Self {
        Self { limit, messages: VecDeque::new(), bytes: 0, newest: None, gone: 0, early: BTreeMap::new() }
    }

    /// Adds a message, unless it was seen before. A gap empties what is kept: no cursor reaches across it.
    pub fn push(&mut self, message: Arc<Message>) -> Follows {
        let follows = match self.newest {
            Some(newest) if message.id <= newest => return Follows::Again,
            Some(newest) if !is_next(newest, message.id) => Follows::Gap,
            _ => Follows::Next,
        };
        if follows == Follows::Gap || self.newest.is_none() {
            self.messages.clear();
            self.early.clear();
            (self.bytes, self.gone) = (0, message.id.sequence.saturating_sub(1));
        }
        self.newest = Some(message.id);
        self.replace_early(&message);
        self.bytes += message.json.len();
        self.messages.push_back(message);
        while self.messages.len() > self.limit || self.bytes > MAX_BYTES {
            let Some(oldest) = self.messages.pop_front() else { break };
            self.bytes -= oldest.json.len();
            self.gone = oldest.id.sequence;
            if !oldest.is_final {
                self.early.remove(&window_of(&oldest));
            }
        }
        follows
    }

    fn replace_early(&mut self, by: &Message) {
        if by.is_final && self.early.is_empty() {
            return;
        }
        let window = window_of(by);
        let replaced = match by.is_final {
            true => self.early.remove(&window),
            false => self.early.insert(window, by.id),
        };
        let place = replaced.and_then(|id| self.messages.binary_search_by_key(&id, |known| known.id).ok());
        if let Some(replaced) = place.and_then(|place| self.messages.remove(place)) {
            self.bytes -= replaced.json.len();
        }
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
        if cursor.sequence < self.gone {
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

fn window_of(message: &Message) -> WindowOf {
    (Arc::clone(&message.table), Arc::clone(&message.room), message.window)
}

fn is_next(before: LiveId, id: LiveId) -> bool {
    before.epoch == id.epoch && before.sequence + 1 == id.sequence
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::message::{early, message};

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
    fn of_an_open_window_only_what_was_told_last_is_kept_and_that_is_no_gap() {
        let mut history = History::new(3);
        for sequence in 1..=100 {
            history.push(early(sequence, "t", "main", 2 * (sequence as i64 % 2)));
        }
        assert_eq!(after(&history, "e1-0"), Some(vec![99, 100]));
        // The helper's closed windows start at 0, as every second one above.
        history.push(message(101, "t", "main"));
        assert_eq!(after(&history, "e1-98"), Some(vec![99, 101]));
        assert_eq!(history.bytes, history.messages.iter().map(|message| message.json.len()).sum::<usize>());
        assert_eq!(history.newest_of_each(|_| true).len(), 1);
        for sequence in 102..=104 {
            history.push(message(sequence, "t", "main"));
        }
        assert_eq!((after(&history, "e1-100"), after(&history, "e1-101")), (None, Some(vec![102, 103, 104])));
        assert_eq!(history.early.len(), 0);
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
