//! Rows received but not yet appended: until they are, no proof of completeness goes past their time of receipt.
//!
//! Without it a stall of the disk makes rows late that waited in this very process: between the end of one append and
//! the beginning of the next nothing is under way, and the end of the partition would be proved for "now".

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::sync::lock;

/// By topic: how many announcements there are of each time of receipt. Bounded by the requests that ingest lets wait.
#[derive(Debug, Default)]
pub(super) struct Announced {
    by_topic: Mutex<HashMap<String, BTreeMap<i64, usize>>>,
}

/// One announcement; dropped when its rows are in the log or refused.
#[derive(Debug)]
pub(super) struct Announcement {
    of: Arc<Announced>,
    topic: String,
    received_ms: i64,
}

impl Announced {
    pub(super) fn announce(self: &Arc<Self>, topic: &str, received_ms: i64) -> Announcement {
        let mut by_topic = self.lock();
        if !by_topic.contains_key(topic) {
            by_topic.insert(topic.to_owned(), BTreeMap::new());
        }
        if let Some(times) = by_topic.get_mut(topic) {
            *times.entry(received_ms).or_default() += 1;
        }
        Announcement { of: Arc::clone(self), topic: topic.to_owned(), received_ms }
    }

    /// `now_ms`, or the oldest time of receipt still waiting, whichever is earlier.
    pub(super) fn complete_until(&self, topic: &str, now_ms: i64) -> i64 {
        let by_topic = self.lock();
        let oldest = by_topic.get(topic).and_then(|times| times.first_key_value());
        oldest.map_or(now_ms, |(received_ms, _)| now_ms.min(*received_ms))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, BTreeMap<i64, usize>>> {
        lock(&self.by_topic)
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        let mut by_topic = self.of.lock();
        let Some(times) = by_topic.get_mut(&self.topic) else { return };
        if let Some(waiting) = times.get_mut(&self.received_ms) {
            *waiting -= 1;
            if *waiting == 0 {
                times.remove(&self.received_ms);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_holds_the_proof_back_until_it_is_written() {
        let announced = Arc::new(Announced::default());
        assert_eq!(announced.complete_until("a", 100), 100);
        let first = announced.announce("a", 50);
        let same_time = announced.announce("a", 50);
        let later = announced.announce("a", 70);
        assert_eq!(announced.complete_until("a", 100), 50);
        assert_eq!(announced.complete_until("b", 100), 100);
        drop(first);
        assert_eq!(announced.complete_until("a", 100), 50);
        drop(same_time);
        assert_eq!(announced.complete_until("a", 100), 70);
        drop(later);
        assert_eq!(announced.complete_until("a", 100), 100);
    }
}
