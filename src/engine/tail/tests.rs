//! What queries that read a partition together see, on a log in memory that counts who reads it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::engine::compile::CompiledQuery;
use crate::log::{NewRecord, PartitionRange, Record, TopicSpec, Writer};
use crate::reaction::checkpoint::Position;
use crate::sql::{SqlFile, plan_program};
use crate::sync::lock;

const SOON: Duration = Duration::from_millis(3);
/// Longer than any of these tests takes.
const LONG: Duration = Duration::from_secs(60);
/// So many records come with one read.
const PER_READ: usize = 2;

/// A partition in memory that counts who reads it.
#[derive(Default)]
struct Memory {
    records: Mutex<Vec<Record>>,
    appended: Notify,
    is_broken: AtomicBool,
    opened: AtomicUsize,
    open: Arc<AtomicUsize>,
    /// Records that were read, and reads that found none.
    read: AtomicUsize,
    empty: AtomicUsize,
}

impl Memory {
    fn append_text(&self, text: &str) {
        let mut records = lock(&self.records);
        let value = Some(Bytes::copy_from_slice(text.as_bytes()));
        let offset = records.len() as i64;
        records.push(Record { offset, timestamp_ms: 1_000, key: None, value, headers: Vec::new() });
        self.appended.notify_waiters();
    }

    fn append_many(&self, count: usize) {
        (0..count).for_each(|_| self.append_text(r#"{"room": "a", "weight": 1, "at": 1000}"#));
    }
}

fn not_here<T>() -> Result<T, LogError> {
    Err(LogError::Refused("this log is only read".to_owned()))
}

#[async_trait]
impl Log for Arc<Memory> {
    async fn create_topics(&self, _: &[TopicSpec]) -> Result<(), LogError> {
        not_here()
    }

    async fn describe(&self, _: &str) -> Result<Option<Vec<PartitionRange>>, LogError> {
        not_here()
    }

    async fn append(&self, _: &str, _: u32, _: Vec<NewRecord>) -> Result<i64, LogError> {
        not_here()
    }

    async fn reader(&self, _: &str, _: u32, offset: i64) -> Result<Box<dyn Reader>, LogError> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        self.open.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(MemoryReader { log: Self::clone(self), next: offset as usize }))
    }

    async fn offset_at(&self, _: &str, _: u32, _: i64) -> Result<i64, LogError> {
        not_here()
    }

    async fn fence(&self, _: &str) -> Result<Box<dyn Writer>, LogError> {
        not_here()
    }

    async fn latest(&self, _: &str) -> Result<BTreeMap<Bytes, Record>, LogError> {
        not_here()
    }

    async fn trim(&self, _: &str, _: u32, _: i64) -> Result<(), LogError> {
        not_here()
    }
}

struct MemoryReader {
    log: Arc<Memory>,
    next: usize,
}

impl Drop for MemoryReader {
    fn drop(&mut self) {
        self.log.open.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Reader for MemoryReader {
    async fn read(&mut self, _: usize, wait: Duration) -> Result<ReadBatch, LogError> {
        let until = Instant::now() + wait;
        loop {
            let appended = self.log.appended.notified();
            tokio::pin!(appended);
            appended.as_mut().enable();
            if self.log.is_broken.swap(false, Ordering::SeqCst) {
                return Err(LogError::Unavailable("broken".to_owned()));
            }
            let now_ms = clock::wall_ms();
            let all = lock(&self.log.records).clone();
            let records: Vec<Record> = all.iter().skip(self.next).take(PER_READ).cloned().collect();
            let is_over = Instant::now() >= until;
            if !records.is_empty() || is_over {
                self.next += records.len();
                self.log.read.fetch_add(records.len(), Ordering::SeqCst);
                self.log.empty.fetch_add(usize::from(records.is_empty()), Ordering::SeqCst);
                let complete_until_ms = (self.next == all.len()).then_some(now_ms);
                return Ok(ReadBatch { records, next: self.next as i64, complete_until_ms });
            }
            drop(tokio::time::timeout_at(until, appended).await);
        }
    }
}

/// A query over rows with a room, a weight and a time, which reads of them what `aggregate` names.
fn query(aggregate: &str, options: &str) -> SourceOf {
    let tables = format!(
        "CREATE TABLE given (room TEXT NOT NULL, weight BIGINT, at BIGINT NOT NULL, \
           event TIMESTAMP NOT NULL DEFAULT now(), WATERMARK FOR event) \
         WITH (connector = 'kafka', type = 'source', format = 'json'{options});\
         CREATE TABLE sums (room TEXT, value BIGINT) WITH (connector = 'kafka', type = 'sink');"
    );
    let text = format!(
        "INSERT INTO sums SELECT room, value FROM (
           SELECT tumble(INTERVAL '1 second') AS window, room, {aggregate} AS value FROM given GROUP BY 1, 2);"
    );
    let file = |name: &str, text: String| SqlFile { name: name.to_owned(), text };
    let program = plan_program(&[file("tables.sql", tables), file("sums.sql", text)]).unwrap();
    SourceOf { query: Arc::new(CompiledQuery::compile(&program.queries[0]).unwrap()), source: 0 }
}

struct House {
    log: Arc<Memory>,
    tails: Tails,
    counts: SourceOf,
    workers: Semaphore,
}

impl House {
    fn new(limits: Limits) -> Self {
        let log = Arc::new(Memory::default());
        let tails = Tails::new(Arc::new(Arc::clone(&log)), limits);
        Self { log, tails, counts: query("count(*)", ""), workers: Semaphore::new(2) }
    }

    fn enter(&self, resume: i64) -> Guest {
        self.enter_as(&self.counts, resume)
    }

    fn enter_as(&self, reader: &SourceOf, resume: i64) -> Guest {
        let from = Position { resume, seen: resume, watermark: None };
        let lane = Lane { source: 0, partition: 0, from };
        Guest { follower: self.tails.follow(reader.clone(), lane), place: resume, seen: Vec::new() }
    }

    fn opened(&self) -> usize {
        self.log.opened.load(Ordering::SeqCst)
    }

    fn open(&self) -> usize {
        self.log.open.load(Ordering::SeqCst)
    }
}

/// A query as a test sees it.
struct Guest {
    follower: Follower,
    place: i64,
    /// The offsets of what it got.
    seen: Vec<i64>,
}

impl Guest {
    async fn step(&mut self, wait: Duration) -> Stretch {
        let stretch = self.follower.next(wait).await.unwrap();
        if let Some(chunk) = &stretch.chunk {
            let offsets = chunk.records.iter().map(|record| record.offset);
            self.seen.extend(offsets.filter(|offset| *offset >= self.place));
        }
        assert!(stretch.next >= self.place, "a place never goes back");
        self.place = stretch.next;
        stretch
    }

    async fn read_to(&mut self, next: i64) {
        while self.place < next {
            self.step(LONG).await;
        }
    }

    fn saw_all(&self, count: i64) {
        assert_eq!(self.seen, (0..count).collect::<Vec<_>>());
    }

    fn is_alone(&self) -> bool {
        self.follower.alone.is_some()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_queries_at_the_tail_have_one_reader_and_one_decode() {
    let house = Arc::new(House::new(LIMITS));
    let guests: Vec<Guest> = (0..10).map(|_| house.enter(0)).collect();
    let mut tasks = tokio::task::JoinSet::new();
    for mut guest in guests {
        let house = Arc::clone(&house);
        tasks.spawn(async move {
            let mut parts = Vec::new();
            while guest.place < 100 {
                let Some(chunk) = guest.step(SOON).await.chunk else { continue };
                let mut place = 0;
                while place < chunk.records.len() {
                    let part = guest.follower.part(&chunk, place, &house.workers).await;
                    place += part.spans.len();
                    parts.push(part);
                }
            }
            guest.saw_all(100);
            parts
        });
    }
    for _ in 0..50 {
        house.log.append_many(2);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let decoded = tasks.join_all().await;
    assert_eq!((house.opened(), house.log.read.load(Ordering::SeqCst)), (1, 100));
    let different: BTreeSet<_> = decoded.iter().flatten().map(Arc::as_ptr).collect();
    let rows: usize = decoded[0].iter().map(|part| part.rows().len()).sum();
    assert_eq!((rows, different.len()), (100, decoded[0].len()), "they have the same parts");
    assert_eq!(house.open(), 0, "the last query took the reader with it");
    assert!(lock(&house.tails.tails).iter().all(|tail| tail.strong_count() == 0));
}

#[tokio::test]
async fn a_read_waits_as_long_as_the_most_impatient_and_each_as_long_as_it_said() {
    let house = House::new(LIMITS);
    let (mut patient, mut hasty) = (house.enter(0), house.enter(0));
    let began = Instant::now();
    tokio::select! {
        biased;
        _ = patient.step(LONG) => panic!("nothing came, and its wait is not over"),
        stretch = async {
            tokio::task::yield_now().await;
            hasty.step(SOON).await
        } => assert!(stretch.chunk.is_none() && stretch.complete_until_ms.is_some()),
    }
    assert!(began.elapsed() >= SOON && began.elapsed() < LONG / 2);
    assert_eq!(house.opened(), 1);
    house.log.append_many(1);
    tokio::join!(patient.read_to(1), hasty.read_to(1));
}

#[tokio::test]
async fn what_one_look_proves_of_the_end_is_told_to_all_whose_wait_was_over_then() {
    let house = House::new(LIMITS);
    let mut guests = [house.enter(0), house.enter(0), house.enter(0)];
    let until = Instant::now() + SOON;
    let [a, b, c] = &mut guests;
    let next = |guest: &Guest| (Arc::clone(&guest.follower.tail), guest.follower.id);
    let ((tail, a), (_, b), (_, c)) = (next(a), next(b), next(c));
    let (a, b, c) = tokio::join!(tail.next(a, 0, until), tail.next(b, 0, until), tail.next(c, 0, until));
    let proofs: Vec<_> =
        [a, b, c].into_iter().map(|stretch| stretch.unwrap().unwrap().complete_until_ms).collect();
    assert!(proofs[0].is_some() && proofs.iter().all(|proof| *proof == proofs[0]), "{proofs:?}");
    assert_eq!(house.log.empty.load(Ordering::SeqCst), 1);
    // That is no proof for one who asks later.
    guests[0].step(SOON).await;
    assert_eq!(house.log.empty.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn one_that_falls_behind_holds_nobody_catches_up_alone_and_joins() {
    let house = House::new(Limits { records: 6, bytes: 1 << 20 });
    let (mut first, mut slow) = (house.enter(0), house.enter(0));
    house.log.append_many(20);
    slow.read_to(2).await;
    first.read_to(20).await;
    slow.step(LONG).await;
    assert!(slow.is_alone() && house.open() == 2);
    slow.read_to(20).await;
    assert!(!slow.is_alone());
    assert_eq!((house.opened(), house.open()), (2, 1), "its own reader is closed");
    house.log.append_many(2);
    tokio::join!(first.read_to(22), slow.read_to(22));
    assert_eq!(house.opened(), 2);
    first.saw_all(22);
    slow.saw_all(22);
}

#[tokio::test]
async fn one_that_starts_behind_reads_alone_up_to_where_the_others_are_and_no_further() {
    let house = House::new(LIMITS);
    let mut first = house.enter(8);
    house.log.append_many(9);
    first.read_to(9).await;
    first.step(SOON).await;
    house.log.append_many(3);
    let mut late = house.enter(0);
    while late.place < 9 {
        assert!(late.step(LONG).await.complete_until_ms.is_none(), "there is more");
    }
    assert!(!late.is_alone(), "the rest is read together");
    tokio::join!(first.read_to(12), late.read_to(12));
    late.saw_all(12);
    assert_eq!(first.seen, [8, 9, 10, 11]);
    // Everybody who was there has gone: it goes on with the reader that it had.
    let mut last = house.enter(0);
    last.step(LONG).await;
    assert!(last.is_alone());
    drop((first, late));
    last.read_to(12).await;
    last.saw_all(12);
    assert_eq!((house.opened(), house.open()), (3, 1));
}

#[tokio::test]
async fn an_error_goes_to_the_one_that_read_and_the_next_opens_the_log_anew() {
    let house = House::new(LIMITS);
    let (mut one, mut other) = (house.enter(0), house.enter(0));
    house.log.append_many(4);
    tokio::join!(one.read_to(2), other.read_to(2));
    house.log.is_broken.store(true, Ordering::SeqCst);
    let failed = one.follower.next(LONG).await.map(|stretch| stretch.next);
    assert!(matches!(failed, Err(LogError::Unavailable(_))), "{failed:?}");
    drop(one);
    other.read_to(4).await;
    other.saw_all(4);
    assert_eq!((house.opened(), house.open()), (2, 1));
}

#[tokio::test]
async fn when_the_one_that_reads_goes_away_another_reads_on_and_nothing_is_lost() {
    let house = House::new(LIMITS);
    let (mut one, mut other) = (house.enter(0), house.enter(0));
    let leading = tokio::time::timeout(SOON, one.step(LONG));
    let (left, ()) = tokio::join!(leading, async {
        tokio::task::yield_now().await;
        tokio::time::timeout(SOON * 3, other.step(LONG)).await.map(|_| ()).unwrap_err();
    });
    assert!(left.is_err());
    house.log.append_many(3);
    other.read_to(3).await;
    one.read_to(3).await;
    one.saw_all(3);
    other.saw_all(3);
    assert_eq!((house.opened(), house.log.read.load(Ordering::SeqCst)), (1, 3));
}

#[tokio::test]
async fn tables_that_are_declared_otherwise_are_read_apart() {
    let house = House::new(LIMITS);
    let strict = query("count(*)", ", bad_data = 'drop'");
    let (mut one, mut other) = (house.enter(0), house.enter_as(&strict, 0));
    house.log.append_many(2);
    tokio::join!(one.read_to(2), other.read_to(2));
    assert_eq!((house.opened(), house.open()), (2, 2));
}

/// Rows and bad records that a query finds in what is there.
async fn found(house: &House, guest: &mut Guest, next: i64) -> (usize, usize) {
    let (mut rows, mut bad) = (0, 0);
    while guest.place < next {
        let Some(chunk) = guest.step(LONG).await.chunk else { continue };
        let mut place = 0;
        while place < chunk.records.len() {
            let part = guest.follower.part(&chunk, place, &house.workers).await;
            assert_eq!(part.rows().batch().num_columns(), guest.follower.reader.columns().places.len());
            rows += part.rows().len();
            bad += part.bad.len();
            place += part.spans.len();
        }
    }
    (rows, bad)
}

#[tokio::test]
async fn each_finds_the_columns_and_the_bad_records_that_it_would_find_alone() {
    let house = House::new(LIMITS);
    let (sums, times) = (query("sum(weight)", ""), query("max(at)", ""));
    let (mut one, mut other) = (house.enter(0), house.enter_as(&sums, 0));
    house.log.append_many(1);
    house.log.append_text(r#"{"room": "a", "weight": "heavy", "at": 1}"#);
    house.log.append_text(r#"{"room": "a", "weight": 1, "at": "noon"}"#);
    house.log.append_text("{");
    let (alone, both) = (found(&house, &mut one, 2).await, found(&house, &mut other, 2).await);
    assert_eq!((alone, both), ((2, 0), (1, 1)), "a weight is bad for who reads it");
    // One that reads a column which nobody wanted when the records were read.
    found(&house, &mut one, 4).await;
    let mut third = house.enter_as(&times, 2);
    assert_eq!(found(&house, &mut third, 4).await, (0, 2));
    assert!(!third.is_alone(), "the ring still had it");
    assert_eq!(found(&house, &mut other, 4).await, (1, 1));
}

#[tokio::test]
async fn whatever_they_do_each_sees_every_record_once_and_in_order() {
    for seed in 0..40 {
        let mut random = StdRng::seed_from_u64(seed);
        let house = House::new(Limits { records: random.random_range(1..12), bytes: 1 << 20 });
        let mut guests: Vec<Guest> = (0..4).map(|_| house.enter(0)).collect();
        let mut count = 0;
        for _ in 0..300 {
            match random.random_range(0..10) {
                0..3 => {
                    let more = random.random_range(1..6);
                    house.log.append_many(more);
                    count += more as i64;
                }
                3 => {
                    // It recovers: it goes on from an earlier place.
                    let guest = random.random_range(0..guests.len());
                    let from = random.random_range(0..=guests[guest].place);
                    let seen = guests[guest].seen[..from as usize].to_vec();
                    guests[guest] = Guest { seen, ..house.enter(from) };
                }
                _ => {
                    let (one, other) = (random.random_range(0..4), random.random_range(0..4));
                    let limit = Duration::from_micros(random.random_range(0..300));
                    let wait = Duration::from_micros(random.random_range(0..300));
                    for (at, guest) in guests.iter_mut().enumerate() {
                        if at == one || at == other {
                            // Whether it comes to its end or not.
                            drop(tokio::time::timeout(limit, guest.step(wait)).await);
                        }
                    }
                }
            }
        }
        for guest in &mut guests {
            tokio::time::timeout(LONG, guest.read_to(count)).await.unwrap_or_else(|_| panic!("seed {seed}"));
            guest.saw_all(count);
        }
    }
}
