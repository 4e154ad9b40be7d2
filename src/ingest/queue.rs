//! Which requests are written together, when, and to which partition: the policy of the batcher, pure.
//!
//! A batch is written when the write before it is done. While a write is under way requests gather, and the next
//! batch takes all of them (group commit), so the linger adapts to the log: a lone request waits for nothing. Two
//! things start a further write beside one that is still under way: a full batch, and a request that has waited
//! `flush_interval`. Each write has a partition of its own, so there are at most as many writes as partitions, and
//! a partition's records are never written concurrently. When more than [`FEW`] requests wait, a batch lingers at
//! least [`MIN_LINGER`] from its first request, which keeps records from becoming small under many small requests.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::log::codec::MAX_BYTES;

/// Up to so many waiting requests are written without lingering.
const FEW: usize = 10;
/// How long a batch of more requests gathers at least.
const MIN_LINGER: Duration = Duration::from_millis(5);

/// What of a waiting request the policy looks at.
pub(super) trait Weight {
    /// How many rows it has.
    fn rows(&self) -> usize;
    /// At most how many bytes its rows take in a record; `None` when it is a record of its own already.
    fn bytes(&self) -> Option<usize>;
}

/// The bounds of a batch and of waiting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// See [`super::Settings::flush_interval_ms`].
    pub(super) flush_interval: Duration,
    /// See [`super::Settings::flush_rows`].
    pub(super) flush_rows: usize,
    /// See [`super::Settings::max_wait_ms`].
    pub(super) max_wait: Duration,
    /// What a record takes besides its rows.
    pub(super) record_overhead: usize,
}

/// What is to be done now.
#[derive(Debug, PartialEq)]
pub(super) enum Step<T> {
    /// Write these, together, to that partition, and say [`Queue::written`] afterwards.
    Write(u32, Vec<T>),
    /// These have waited too long, or will never be written: nothing of them is kept.
    Withdraw(Vec<T>),
    /// Nothing until then, or until something happens.
    Wait(Option<Instant>),
    /// Closed and empty.
    Finished,
}

/// The waiting requests of one table, oldest first.
#[derive(Debug)]
pub(super) struct Queue<T> {
    limits: Limits,

    waiting: VecDeque<(Instant, T)>,
    rows: usize,
    bytes: usize,
    /// By partition: whether a write is under way. Empty while the topic is not known to exist.
    busy: Vec<bool>,
    next: usize,
    closed: bool,
}

impl<T: Weight> Queue<T> {
    pub(super) fn new(limits: Limits) -> Self {
        let waiting = VecDeque::new();
        Self { limits, waiting, rows: 0, bytes: 0, busy: Vec::new(), next: 0, closed: false }
    }

    /// Adds a request. `Ok(true)` when the step to take may be another now.
    ///
    /// # Errors
    /// Gives the request back when the queue is closed.
    pub(super) fn push(&mut self, request: T, now: Instant) -> Result<bool, T> {
        if self.closed {
            return Err(request);
        }
        let (was_empty, was_full) = (self.waiting.is_empty(), self.is_full());
        self.rows += request.rows();
        self.bytes += request.bytes().unwrap_or(MAX_BYTES);
        self.waiting.push_back((now, request));
        Ok(was_empty || (self.is_full() && !was_full))
    }

    /// How many partitions are written to.
    pub(super) fn partitions(&self) -> usize {
        self.busy.len()
    }

    /// The topic has so many partitions. 0: it does not exist.
    pub(super) fn set_partitions(&mut self, partitions: usize) {
        self.busy.resize(partitions, false);
    }

    /// A write to that partition has ended, one way or the other.
    pub(super) fn written(&mut self, partition: u32) {
        if let Some(busy) = self.busy.get_mut(partition as usize) {
            *busy = false;
        }
    }

    /// Takes no more requests and lingers no longer.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// What is to be done now. Call again after every step but [`Step::Wait`] and [`Step::Finished`].
    pub(super) fn step(&mut self, now: Instant) -> Step<T> {
        let Some(&(oldest, _)) = self.waiting.front() else {
            let writing = self.busy.contains(&true);
            return if self.closed && !writing { Step::Finished } else { Step::Wait(None) };
        };
        let due = self.due(oldest);
        if due <= now
            && let Some(partition) = self.free_partition()
        {
            return Step::Write(partition, self.take_batch());
        }
        let expires = oldest + self.limits.max_wait;
        if expires <= now || (self.closed && self.busy.is_empty()) {
            return Step::Withdraw(self.take_expired(now));
        }
        // Without a free partition only the end of a write or the expiry changes anything.
        Step::Wait(Some(if due > now { due.min(expires) } else { expires }))
    }

    fn is_full(&self) -> bool {
        self.rows >= self.limits.flush_rows || self.limits.record_overhead + self.bytes >= MAX_BYTES
    }

    /// When a batch whose oldest request arrived at `oldest` is to be written, given a free partition.
    fn due(&self, oldest: Instant) -> Instant {
        let writing = self.busy.contains(&true);
        let linger = match (self.closed || self.is_full(), writing) {
            (true, _) => Duration::ZERO,
            (false, true) => self.limits.flush_interval,
            (false, false) if self.waiting.len() > FEW => MIN_LINGER.min(self.limits.flush_interval),
            (false, false) => Duration::ZERO,
        };
        oldest + linger
    }

    /// Marks the next partition in rotation that has no write under way.
    fn free_partition(&mut self) -> Option<u32> {
        let count = self.busy.len();
        let partition =
            (0..count).map(|step| (self.next + step) % count).find(|&partition| !self.busy[partition])?;
        self.busy[partition] = true;
        self.next = partition + 1;
        u32::try_from(partition).ok()
    }

    /// The oldest requests, as many as fit one record, at least one.
    fn take_batch(&mut self) -> Vec<T> {
        let mut batch = Vec::with_capacity(self.waiting.len().min(1024));
        let (mut rows, mut bytes) = (0, self.limits.record_overhead);
        while let Some((_, request)) = self.waiting.front() {
            let fits = request.bytes().is_some_and(|more| bytes + more <= MAX_BYTES)
                && rows + request.rows() <= self.limits.flush_rows;
            if !batch.is_empty() && !fits {
                break;
            }
            rows += request.rows();
            // A record of its own lets nothing join it.
            bytes += request.bytes().unwrap_or(MAX_BYTES);
            batch.extend(self.pop());
        }
        batch
    }

    fn take_expired(&mut self, now: Instant) -> Vec<T> {
        let mut expired = Vec::new();
        let never = self.closed && self.busy.is_empty();
        while let Some(&(arrived, _)) = self.waiting.front()
            && (never || arrived + self.limits.max_wait <= now)
        {
            expired.extend(self.pop());
        }
        expired
    }

    fn pop(&mut self) -> Option<T> {
        let (_, request) = self.waiting.pop_front()?;
        self.rows -= request.rows();
        self.bytes -= request.bytes().unwrap_or(MAX_BYTES);
        Some(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        flush_interval: Duration::from_millis(200),
        flush_rows: 100,
        max_wait: Duration::from_millis(1000),
        record_overhead: 4000,
    };

    /// A request of so many rows, of ten bytes each; `Alone` is a record of its own.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Request {
        Rows(usize),
        Alone,
    }
    use Request::{Alone, Rows};

    impl Weight for Request {
        fn rows(&self) -> usize {
            match self {
                Rows(rows) => *rows,
                Alone => 90,
            }
        }

        fn bytes(&self) -> Option<usize> {
            match self {
                Rows(rows) => Some(rows * 10),
                Alone => None,
            }
        }
    }

    struct Clock(Instant);

    impl Clock {
        fn ms(&self, ms: u64) -> Instant {
            self.0 + Duration::from_millis(ms)
        }
    }

    fn queue(partitions: usize) -> (Queue<Request>, Clock) {
        let mut queue = Queue::new(LIMITS);
        queue.set_partitions(partitions);
        #[allow(clippy::disallowed_methods)] // tokio's Instant has no other beginning
        (queue, Clock(Instant::now()))
    }

    #[test]
    fn a_lone_request_is_written_at_once_and_partitions_rotate() {
        let (mut queue, clock) = queue(2);
        for (at, partition) in [(0, 0), (1, 1), (2, 0)] {
            assert_eq!(queue.push(Rows(1), clock.ms(at)), Ok(true));
            assert_eq!(queue.step(clock.ms(at)), Step::Write(partition, vec![Rows(1)]));
            assert_eq!(queue.step(clock.ms(at)), Step::Wait(None));
            queue.written(partition);
        }
    }

    #[test]
    fn requests_gather_while_a_write_is_under_way_and_go_together() {
        let (mut queue, clock) = queue(3);
        queue.push(Rows(1), clock.ms(0)).unwrap();
        assert_eq!(queue.step(clock.ms(0)), Step::Write(0, vec![Rows(1)]));
        assert_eq!(queue.push(Rows(2), clock.ms(1)), Ok(true));
        assert_eq!(queue.push(Rows(3), clock.ms(2)), Ok(false));
        assert_eq!(queue.step(clock.ms(2)), Step::Wait(Some(clock.ms(201))));
        queue.written(0);
        assert_eq!(queue.step(clock.ms(3)), Step::Write(1, vec![Rows(2), Rows(3)]));
    }

    #[test]
    fn a_slow_write_does_not_hold_others_longer_than_the_interval() {
        let (mut queue, clock) = queue(2);
        queue.push(Rows(1), clock.ms(0)).unwrap();
        assert_eq!(queue.step(clock.ms(0)), Step::Write(0, vec![Rows(1)]));
        queue.push(Rows(2), clock.ms(10)).unwrap();
        assert_eq!(queue.step(clock.ms(209)), Step::Wait(Some(clock.ms(210))));
        assert_eq!(queue.step(clock.ms(210)), Step::Write(1, vec![Rows(2)]));
        queue.push(Rows(3), clock.ms(220)).unwrap();
        assert_eq!(queue.step(clock.ms(900)), Step::Wait(Some(clock.ms(1220))), "all partitions are busy");
        queue.written(0);
        assert_eq!(queue.step(clock.ms(901)), Step::Write(0, vec![Rows(3)]), "its interval is over");
    }

    #[test]
    fn a_full_batch_does_not_wait_for_the_write_before() {
        let (mut queue, clock) = queue(3);
        queue.push(Rows(1), clock.ms(0)).unwrap();
        assert_eq!(queue.step(clock.ms(0)), Step::Write(0, vec![Rows(1)]));
        assert_eq!(queue.push(Rows(60), clock.ms(1)), Ok(true));
        assert_eq!(queue.push(Rows(39), clock.ms(1)), Ok(false));
        assert_eq!(queue.push(Rows(30), clock.ms(1)), Ok(true), "full now");
        assert_eq!(queue.step(clock.ms(1)), Step::Write(1, vec![Rows(60), Rows(39)]));
        assert_eq!(queue.step(clock.ms(1)), Step::Wait(Some(clock.ms(201))));
    }

    #[test]
    fn a_batch_holds_no_more_bytes_than_a_record() {
        let (mut queue, clock) = queue(4);
        queue.limits.flush_rows = usize::MAX;
        let large = Rows((MAX_BYTES - LIMITS.record_overhead) / 20);
        for request in [large, large, Rows(1), Alone, Rows(2)] {
            queue.push(request, clock.ms(0)).unwrap();
        }
        assert_eq!(queue.step(clock.ms(0)), Step::Write(0, vec![large, large]));
        assert_eq!(queue.step(clock.ms(0)), Step::Write(1, vec![Rows(1)]));
        assert_eq!(queue.step(clock.ms(0)), Step::Write(2, vec![Alone]));
        queue.written(0);
        queue.written(1);
        queue.written(2);
        assert_eq!(queue.step(clock.ms(0)), Step::Write(3, vec![Rows(2)]));
    }

    #[test]
    fn many_small_requests_linger_for_five_milliseconds() {
        let (mut queue, clock) = queue(1);
        queue.push(Rows(1), clock.ms(0)).unwrap();
        assert_eq!(queue.step(clock.ms(0)), Step::Write(0, vec![Rows(1)]));
        for _ in 0..11 {
            queue.push(Rows(1), clock.ms(1)).unwrap();
        }
        queue.written(0);
        assert_eq!(queue.step(clock.ms(2)), Step::Wait(Some(clock.ms(6))));
        assert_eq!(queue.step(clock.ms(6)), Step::Write(0, vec![Rows(1); 11]));
    }

    #[test]
    fn what_cannot_be_written_in_time_is_withdrawn_and_what_came_later_stays() {
        let (mut queue, clock) = queue(0);
        queue.push(Rows(1), clock.ms(0)).unwrap();
        queue.push(Rows(2), clock.ms(500)).unwrap();
        assert_eq!(queue.step(clock.ms(0)), Step::Wait(Some(clock.ms(1000))));
        assert_eq!(queue.step(clock.ms(1000)), Step::Withdraw(vec![Rows(1)]));
        queue.set_partitions(1);
        assert_eq!(queue.step(clock.ms(1001)), Step::Write(0, vec![Rows(2)]));
    }

    #[test]
    fn a_closed_queue_takes_nothing_writes_what_it_has_and_finishes() {
        let (mut queue, clock) = queue(1);
        queue.push(Rows(1), clock.ms(0)).unwrap();
        assert_eq!(queue.step(clock.ms(0)), Step::Write(0, vec![Rows(1)]));
        queue.push(Rows(2), clock.ms(1)).unwrap();
        queue.close();
        assert_eq!(queue.push(Rows(3), clock.ms(2)), Err(Rows(3)));
        assert_eq!(queue.step(clock.ms(2)), Step::Wait(Some(clock.ms(1001))));
        queue.written(0);
        assert_eq!(queue.step(clock.ms(3)), Step::Write(0, vec![Rows(2)]));
        assert_eq!(queue.step(clock.ms(3)), Step::Wait(None), "the last write is under way");
        queue.written(0);
        assert_eq!(queue.step(clock.ms(4)), Step::Finished);
    }

    #[test]
    fn a_closed_queue_without_a_topic_withdraws_at_once() {
        let (mut queue, clock) = queue(0);
        queue.push(Rows(1), clock.ms(0)).unwrap();
        queue.close();
        assert_eq!(queue.step(clock.ms(1)), Step::Withdraw(vec![Rows(1)]));
        assert_eq!(queue.step(clock.ms(1)), Step::Finished);
    }
}
