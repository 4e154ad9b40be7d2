//! What waits for the writer thread: bounded, orders of writers before appends, and whatever did not begin in time
//! can be taken back.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::partition::{Partition, UnderWay};
use crate::log::{LogError, NewRecord, TopicSpec};
use crate::sync::lock;

/// What one group takes from the appends, so that none waits for a group without end.
const GROUP_BYTES: usize = 16 << 20;
/// Orders other than appends that may wait: a writer has one at a time.
const MAX_ORDERS: usize = 1024;

/// What the writer thread does. Every kind answers with a number, most with one that means nothing.
#[derive(Debug)]
pub(super) enum Work {
    /// Answers the last offset.
    Append {
        partition: Arc<Partition>,
        records: Vec<NewRecord>,
    },
    Commit {
        writer: Arc<str>,
        epoch: i64,
        records: Vec<(Arc<Partition>, NewRecord)>,
    },
    /// Answers the new epoch.
    Fence(Arc<str>),
    CreateTopics(Vec<TopicSpec>),
    /// Raises the start, as far as holds allow.
    Trim {
        partition: Arc<Partition>,
        offset: i64,
    },
    /// Removes tombstones stamped before that time.
    Expire {
        partition: Arc<Partition>,
        before_ms: i64,
    },
    /// Sets a hold on trims, or removes it.
    Hold {
        holder: String,
        partition: Arc<Partition>,
        offset: Option<i64>,
    },
}

/// Some work and whom to tell.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) work: Work,
    pub(super) bytes: usize,
    pub(super) answer: oneshot::Sender<Result<i64, LogError>>,
    pub(super) under_way: Vec<UnderWay>,
    _room: Option<OwnedSemaphorePermit>,
}

impl Order {
    pub(super) fn new(
        work: Work,
        under_way: Vec<UnderWay>,
        room: Option<OwnedSemaphorePermit>,
        bytes: usize,
    ) -> (Self, oneshot::Receiver<Result<i64, LogError>>) {
        let (answer, receiver) = oneshot::channel();
        (Self { work, bytes, answer, under_way, _room: room }, receiver)
    }
}

/// An order's place in the queue; whoever takes it out first has it, the writer or the one who gave up.
#[derive(Clone, Debug)]
pub(super) struct Slot(Arc<Mutex<Option<Order>>>);

impl Slot {
    fn take(&self) -> Option<Order> {
        lock(&self.0).take()
    }

    /// True when the order had not begun; it never will.
    pub(super) fn withdraw(&self) -> bool {
        self.take().is_some()
    }
}

/// What the writer thread does next.
#[derive(Debug, Default)]
pub(super) struct Next {
    pub(super) orders: Vec<Order>,
    /// The housekeeping moved nearly all of the write-ahead log; now is the time for the rest.
    pub(super) finish_checkpoint: bool,
}

/// The queue.
#[derive(Debug)]
pub(super) struct Queue {
    append_bytes: u32,
    append_room: Arc<Semaphore>,
    order_room: Arc<Semaphore>,

    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    orders: VecDeque<Slot>,
    appends: VecDeque<Slot>,
    finish_checkpoint: bool,
    is_closed: bool,
}

impl Queue {
    pub(super) fn new(append_bytes: u32) -> Self {
        let room = usize::try_from(append_bytes).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self {
            append_bytes,
            append_room: Arc::new(Semaphore::new(room)),
            order_room: Arc::new(Semaphore::new(MAX_ORDERS)),
            waiting: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Waits for room; `None` when the queue is closed, which [`Queue::push`] reports.
    pub(super) async fn room(&self, work: &Work, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let (room, permits) = match work {
            Work::Append { .. } => {
                let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
                (&self.append_room, bytes.min(self.append_bytes))
            }
            _ => (&self.order_room, 1),
        };
        Arc::clone(room).acquire_many_owned(permits).await.ok()
    }

    /// Adds an order that has its room.
    pub(super) fn push(&self, order: Order) -> Result<Slot, LogError> {
        let mut waiting = lock(&self.waiting);
        if waiting.is_closed {
            return Err(LogError::Unavailable("the log is closed".to_owned()));
        }
        let is_append = matches!(order.work, Work::Append { .. });
        let slot = Slot(Arc::new(Mutex::new(Some(order))));
        let queue = if is_append { &mut waiting.appends } else { &mut waiting.orders };
        queue.push_back(slot.clone());
        self.changed.notify_one();
        Ok(slot)
    }

    /// Whether the writer has taken everything.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let waiting = lock(&self.waiting);
        waiting.orders.is_empty() && waiting.appends.is_empty()
    }

    /// Asks the writer to move what is left of the write-ahead log.
    pub(super) fn finish_checkpoint(&self) {
        lock(&self.waiting).finish_checkpoint = true;
        self.changed.notify_one();
    }

    /// Takes no more orders; what is queued is still done.
    pub(super) fn close(&self) {
        lock(&self.waiting).is_closed = true;
        self.append_room.close();
        self.order_room.close();
        self.changed.notify_one();
    }

    /// The next group, waiting for one if `wait`; `None` when the queue is closed and empty.
    pub(super) fn next(&self, wait: bool) -> Option<Next> {
        let mut waiting = lock(&self.waiting);
        loop {
            let next = waiting.take();
            if !next.orders.is_empty() || next.finish_checkpoint {
                return Some(next);
            }
            if waiting.is_closed {
                return None;
            }
            if !wait {
                return Some(next);
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Waiting {
    fn take(&mut self) -> Next {
        let mut orders: Vec<Order> = self.orders.drain(..).filter_map(|slot| slot.take()).collect();
        let mut bytes: usize = orders.iter().map(|order| order.bytes).sum();
        while bytes < GROUP_BYTES
            && let Some(slot) = self.appends.pop_front()
        {
            if let Some(order) = slot.take() {
                bytes += order.bytes;
                orders.push(order);
            }
        }
        Next { orders, finish_checkpoint: std::mem::take(&mut self.finish_checkpoint) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fence(id: &str) -> (Order, oneshot::Receiver<Result<i64, LogError>>) {
        Order::new(Work::Fence(Arc::from(id)), Vec::new(), None, 0)
    }

    #[test]
    fn what_was_withdrawn_is_never_done() {
        let queue = Queue::new(1);
        let slot = queue.push(fence("a").0).unwrap();
        queue.push(fence("b").0).unwrap();
        assert!(slot.withdraw());
        let group = queue.next(false).unwrap();
        assert!(matches!(&group.orders[..], [Order { work: Work::Fence(id), .. }] if &**id == "b"));
        assert!(!slot.withdraw(), "nothing is there to be withdrawn twice");
    }

    #[test]
    fn what_began_cannot_be_withdrawn() {
        let queue = Queue::new(1);
        let slot = queue.push(fence("a").0).unwrap();
        let group = queue.next(false).unwrap();
        assert_eq!(group.orders.len(), 1);
        assert!(!slot.withdraw());
    }

    #[test]
    fn a_closed_queue_gives_out_what_it_has_and_takes_no_more() {
        let queue = Queue::new(1);
        queue.push(fence("a").0).unwrap();
        queue.close();
        assert!(matches!(queue.push(fence("b").0), Err(LogError::Unavailable(_))));
        assert_eq!(queue.next(true).map(|group| group.orders.len()), Some(1));
        assert!(queue.next(true).is_none());
    }
}
