//! Proof of having reached a partition's end.
//!
//! The end of a partition comes to a consumer once per offset, not again while nothing happens, so silence proves
//! nothing. A thread of its own asks the brokers where partitions end, every [`TICK`], for the readers that wait there;
//! a reader whose position is the answer has returned everything appended before the question was asked.
//!
//! - The end asked for is the high watermark: records of open transactions count, so that a reader is not said to be
//!   complete while some are to come.
//! - "Appended" is what was answered to its writer. A broker stamps a record a moment before the end covers it (11 ms
//!   were seen on an overloaded machine); like a record still on its way, that one is covered by a table's delay only.
//! - An answer counts for [`VALID`]. An error or a time-out gives none, which stops the reader's clock.
//! - Transaction markers take offsets that no reader sees. Where a position stays below the end, a second consumer
//!   reads from there: when it too meets the end (after the last stable offset had reached it) there is nothing between,
//!   and the reader's position moves up to it.
//! - A reader of an `emostream.` topic needs no clock, only that its position moves past markers: it is asked for until
//!   it was found at the end once, and again after its next record.
//!
//! The price is one small request a tick and broker, whatever the number of partitions, while any reader waits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::Offset;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::create;
use super::meta::{Counting, Meta, Place};
use super::settings::{Context, KafkaSettings};
use crate::clock;
use crate::log::LogError;
use crate::sync::lock;

/// How often is asked: a quarter of the engine's `idle_ms`, which is 100 on Kafka.
const TICK: Duration = Duration::from_millis(25);
/// How long an answer counts, and how long one is waited for: half of `idle_ms`.
const VALID: Duration = Duration::from_millis(50);
/// How long after its last read a reader still counts as waiting.
const LINGER: Duration = Duration::from_secs(1);
/// How often librdkafka's log lines are handed on while nobody waits.
const SERVE: Duration = Duration::from_secs(5);
/// How long the second consumer may take to find the end.
const PROBE: Duration = Duration::from_millis(500);

/// What one reader and the thread tell each other.
pub(super) struct Watch {
    place: Place,
    /// Wakes the reader.
    woken: Arc<Notify>,
    /// Whether the answer has to be fresh at any time.
    clocked: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The reader's: where it goes on.
    position: i64,
    /// The reader's: until when it is to be asked for; `None` while it has records.
    waits_until: Option<Instant>,
    /// It was found at the end since its last record.
    found: bool,
    /// The end at the last tick, when that lay above the position.
    behind: Option<(i64, i64)>,
    proof: Option<Proof>,
}

/// A reader at `position` had everything appended before `before_ms`; nothing lies between it and `end`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Proof {
    position: i64,
    end: i64,
    before_ms: i64,
    asked: Instant,
}

impl Watch {
    /// The reader got records and goes on at `position`.
    pub(super) fn moved(&self, position: i64) {
        let mut state = lock(&self.state);
        *state = State { position, ..State::default() };
    }

    /// The reader's position moved up to the end over offsets that hold nothing; what was proven still is.
    pub(super) fn skipped(&self, end: i64) {
        let mut state = lock(&self.state);
        state.position = end;
        if let Some(proof) = &mut state.proof {
            proof.position = end;
        }
    }

    /// The proof for this position, if there is a fresh one: the end, and the time before which all was read.
    pub(super) fn proof(&self, position: i64) -> Option<(i64, i64)> {
        let state = lock(&self.state);
        let proof =
            state.proof.filter(|proof| proof.position == position && proof.asked.elapsed() < VALID)?;
        Some((proof.end, proof.before_ms))
    }

    /// Up to where no record follows this position, if that was found. It stays so, however old the answer is.
    pub(super) fn nothing_before(&self, position: i64) -> Option<i64> {
        let state = lock(&self.state);
        state.proof.filter(|proof| proof.position == position).map(|proof| proof.end)
    }

    /// The position, when the reader is to be asked for now.
    fn wanted(&self, now: Instant) -> Option<i64> {
        let state = lock(&self.state);
        let waits = state.waits_until.is_some_and(|until| now < until);
        (waits && (self.clocked || !state.found)).then_some(state.position)
    }

    /// Takes an answer. True when the end lies above the position for the second time: a gap is to be looked into.
    fn answered(&self, position: i64, end: i64, before_ms: i64, asked: Instant) -> bool {
        let mut state = lock(&self.state);
        if state.position != position {
            return false;
        }
        if end > position {
            let seen = state.behind.replace((position, end));
            return seen == Some((position, end));
        }
        state.found = true;
        state.proof = Some(Proof { position, end: position, before_ms, asked });
        false
    }

    /// Nothing lies between the position and the end.
    fn bridged(&self, proof: Proof) {
        let mut state = lock(&self.state);
        if state.position == proof.position {
            state.found = true;
            state.proof = Some(proof);
            self.woken.notify_one();
        }
    }
}

#[derive(Default)]
struct Shared {
    watches: Vec<Weak<Watch>>,
    stop: bool,
    poked: bool,
}

/// Stops the thread when the log and all readers are gone.
pub(super) struct Ends {
    shared: Arc<(Mutex<Shared>, Condvar)>,
}

impl Ends {
    pub(super) fn start(settings: &KafkaSettings, meta: &Arc<Meta>) -> Result<Arc<Self>, LogError> {
        let shared = Arc::new((Mutex::new(Shared::default()), Condvar::new()));
        let asker = Asker { settings: settings.clone(), meta: Arc::clone(meta), probe: None };
        let seen = Arc::clone(&shared);
        let thread =
            std::thread::Builder::new().name("kafka-ends".to_owned()).spawn(move || asker.run(&seen));
        thread.map_err(|error| LogError::Unavailable(format!("no thread for Kafka's ends: {error}")))?;
        Ok(Arc::new(Self { shared }))
    }

    /// Follows a new reader.
    pub(super) fn watch(&self, place: Place, position: i64, woken: Arc<Notify>) -> Arc<Watch> {
        let clocked = !place.0.starts_with("emostream.");
        let state = Mutex::new(State { position, ..State::default() });
        let watch = Arc::new(Watch { place, woken, clocked, state });
        let mut shared = lock(&self.shared.0);
        shared.watches.retain(|watch| watch.strong_count() > 0);
        shared.watches.push(Arc::downgrade(&watch));
        watch
    }

    /// The reader has nothing and waits up to `wait`.
    pub(super) fn waits(&self, watch: &Watch, wait: Duration) {
        let first = {
            let mut state = lock(&watch.state);
            state.waits_until.replace(Instant::now() + wait + LINGER).is_none()
        };
        if first {
            lock(&self.shared.0).poked = true;
            self.shared.1.notify_one();
        }
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        lock(&self.shared.0).stop = true;
        self.shared.1.notify_one();
    }
}

struct Asker {
    settings: KafkaSettings,
    meta: Arc<Meta>,
    probe: Option<BaseConsumer<Context>>,
}

impl Asker {
    fn run(mut self, shared: &(Mutex<Shared>, Condvar)) {
        loop {
            let begun = Instant::now();
            let watches: Vec<Arc<Watch>> = {
                let mut shared = lock(&shared.0);
                shared.poked = false;
                shared.watches.iter().filter_map(Weak::upgrade).collect()
            };
            let wanted: Vec<(Arc<Watch>, i64)> = watches
                .into_iter()
                .filter_map(|watch| watch.wanted(begun).map(|position| (watch, position)))
                .collect();
            self.meta.serve();
            let idle = wanted.is_empty();
            if !idle {
                self.round(&wanted);
            }
            drop(wanted);
            if stopped(shared, begun, idle) {
                return;
            }
        }
    }

    /// Asks once for all that wait.
    fn round(&mut self, wanted: &[(Arc<Watch>, i64)]) {
        let places: BTreeSet<Place> = wanted.iter().map(|(watch, _)| watch.place.clone()).collect();
        let (before_ms, asked) = (clock::wall_ms(), Instant::now());
        let ends = match self.meta.ends(&places, Counting::All, VALID) {
            Ok(ends) => ends,
            Err(error) => {
                tracing::debug!("no answer about the ends of partitions: {error}");
                return;
            }
        };
        // Readers of one partition often wait at the same place: it is looked into once.
        let mut gaps: BTreeMap<(&Place, i64, i64), Vec<&Watch>> = BTreeMap::new();
        for (watch, position) in wanted {
            let Some(&end) = ends.get(&watch.place) else { continue };
            if watch.answered(*position, end, before_ms, asked) {
                gaps.entry((&watch.place, *position, end)).or_default().push(watch);
            }
        }
        for ((place, position, end), watches) in gaps {
            if self.nothing_between(place, position, end) {
                let proof = Proof { position, end, before_ms, asked };
                watches.iter().for_each(|watch| watch.bridged(proof));
            }
        }
    }

    /// Whether no record will ever be read from `position` to `end`.
    fn nothing_between(&mut self, place: &Place, position: i64, end: i64) -> bool {
        let decided = self.meta.ends(&BTreeSet::from([place.clone()]), Counting::Stable, VALID);
        if !decided.is_ok_and(|ends| ends.get(place).is_some_and(|&stable| stable >= end)) {
            return false;
        }
        if self.probe.is_none() {
            self.probe = create(&self.settings.scanner(), Context).ok();
        }
        let Some(consumer) = &self.probe else { return false };
        // A probe that took too long is kept: the next one finds its connection open.
        meets_end(consumer, place, position).unwrap_or_else(|error| {
            tracing::debug!("{}/{} could not be probed at {position}: {error}", place.0, place.1);
            false
        })
    }
}

/// Whether a fresh read from `position` meets the end without meeting a record.
fn meets_end(consumer: &BaseConsumer<Context>, place: &Place, position: i64) -> KafkaResult<bool> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&place.0, place.1, Offset::Offset(position))?;
    consumer.assign(&list)?;
    let begun = Instant::now();
    let mut met = Err(KafkaError::NoMessageReceived);
    while begun.elapsed() < PROBE {
        match consumer.poll(Duration::from_millis(10)) {
            None => continue,
            Some(Ok(_)) => met = Ok(false),
            Some(Err(KafkaError::PartitionEOF(_))) => met = Ok(true),
            // Of a connection, not of the partition: librdkafka goes on by itself.
            Some(Err(error)) if is_passing(&error) => continue,
            Some(Err(error)) => met = Err(error),
        }
        break;
    }
    consumer.unassign()?;
    while consumer.poll(Duration::ZERO).is_some() {}
    met
}

fn is_passing(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{AllBrokersDown, BrokerTransportFailure, OperationTimedOut};
    let passing = [AllBrokersDown, BrokerTransportFailure, OperationTimedOut];
    error.rdkafka_error_code().is_some_and(|code| passing.contains(&code))
}

/// Sleeps to the next tick, or while nobody waits until somebody does. True when the thread is to end.
fn stopped(shared: &(Mutex<Shared>, Condvar), begun: Instant, idle: bool) -> bool {
    let mut state = lock(&shared.0);
    loop {
        let until = if idle && !state.poked { SERVE } else { TICK };
        let left = until.saturating_sub(begun.elapsed());
        if state.stop || left.is_zero() {
            return state.stop;
        }
        let waited = shared.1.wait_timeout(state, left);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(topic: &str, position: i64) -> Watch {
        let clocked = !topic.starts_with("emostream.");
        let until = Some(Instant::now() + Duration::from_secs(60));
        let state = State { position, waits_until: until, ..State::default() };
        let place = (topic.to_owned(), 0);
        Watch { place, woken: Arc::default(), clocked, state: Mutex::new(state) }
    }

    #[test]
    fn a_position_at_the_end_is_proof_for_that_position_only() {
        let watch = watch("reactions", 7);
        assert!(!watch.answered(7, 7, 1000, Instant::now()));
        assert_eq!(watch.proof(7), Some((7, 1000)));
        assert_eq!(watch.proof(8), None);
        watch.moved(8);
        assert_eq!(watch.proof(7), None);
    }

    #[test]
    fn an_old_answer_is_no_proof() {
        let watch = watch("reactions", 7);
        let long_ago = Instant::now().checked_sub(VALID).unwrap();
        watch.answered(7, 7, 1000, long_ago);
        assert_eq!(watch.proof(7), None);
    }

    #[test]
    fn a_gap_is_looked_into_when_it_stays() {
        let watch = watch("reactions", 7);
        assert!(!watch.answered(7, 9, 1000, Instant::now()));
        assert!(!watch.answered(7, 10, 1001, Instant::now()));
        assert!(watch.answered(7, 10, 1002, Instant::now()));
        assert_eq!(watch.proof(7), None);
        watch.bridged(Proof { position: 7, end: 10, before_ms: 1002, asked: Instant::now() });
        assert_eq!(watch.proof(7), Some((10, 1002)));
    }

    #[test]
    fn a_gap_without_records_stays_one_when_the_answer_is_old() {
        let watch = watch("emostream.live", 7);
        let long_ago = Instant::now().checked_sub(VALID).unwrap();
        watch.bridged(Proof { position: 7, end: 10, before_ms: 1000, asked: long_ago });
        assert_eq!(
            (watch.proof(7), watch.nothing_before(7), watch.nothing_before(8)),
            (None, Some(10), None)
        );
        watch.skipped(10);
        assert_eq!(watch.nothing_before(10), Some(10));
        watch.moved(11);
        assert_eq!(watch.nothing_before(11), None);
    }

    #[test]
    fn an_answer_for_a_position_that_was_left_is_dropped() {
        let watch = watch("reactions", 7);
        watch.moved(9);
        watch.answered(7, 7, 1000, Instant::now());
        assert_eq!(watch.proof(9), None);
        assert_eq!(watch.proof(7), None);
    }

    #[test]
    fn a_reader_of_our_own_topics_is_asked_for_until_it_was_found_at_the_end() {
        let watch = watch("emostream.live", 7);
        assert_eq!(watch.wanted(Instant::now()), Some(7));
        watch.answered(7, 7, 1000, Instant::now());
        assert_eq!(watch.wanted(Instant::now()), None);
    }
}
