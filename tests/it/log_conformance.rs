//! What every log must do, written once against the trait; each implementation's own test file calls all of it.
//!
//! A function makes topics with names of its own, so that all can run at the same time on one log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use emostream::clock;
use emostream::log::{
    Log, LogError, NewRecord, PartitionRange, Reader, Record, Retention, TopicSpec, Transaction, Writer,
};
use emostream::shutdown::Tasks;
use tokio::time::Instant;

/// How long anything may take before a test fails. Nothing waits for it when all is well.
const LIMIT: Duration = Duration::from_secs(30);
const SOME: usize = 1 << 20;

/// A name that no other test and no earlier run has.
pub(crate) fn unique(name: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{name}-{}-{}-{count}", clock::wall_ms(), std::process::id())
}

/// Creates a topic with a name like `name`.
pub(crate) async fn topic(log: &Arc<dyn Log>, name: &str, partitions: u32, retention: Retention) -> String {
    let name = unique(name);
    create(log, &name, partitions, retention).await;
    name
}

/// Creates that topic if it does not exist.
pub(crate) async fn create(log: &Arc<dyn Log>, name: &str, partitions: u32, retention: Retention) {
    let spec = TopicSpec { name: name.to_owned(), partitions, retention, log_append_time: true };
    log.create_topics(&[spec]).await.unwrap();
}

/// Kept longer than any test runs.
pub(crate) const DAY: Retention = Retention::Age(Duration::from_secs(24 * 60 * 60));

/// A record with that value.
pub(crate) fn record(value: impl ToString) -> NewRecord {
    NewRecord { value: Some(Bytes::from(value.to_string())), ..NewRecord::default() }
}

/// A record with that key and value; without a value a tombstone.
pub(crate) fn keyed(key: &str, value: Option<&str>) -> NewRecord {
    let value = value.map(|value| Bytes::from(value.to_owned()));
    NewRecord { key: Some(Bytes::from(key.to_owned())), value, ..NewRecord::default() }
}

/// The values of records as text; a tombstone is empty.
pub(crate) fn texts(records: &[Record]) -> Vec<String> {
    let text =
        |record: &Record| String::from_utf8(record.value.clone().unwrap_or_default().to_vec()).unwrap();
    records.iter().map(text).collect()
}

/// Commits these records of `(topic, partition, record)`.
pub(crate) async fn commit(
    writer: &mut dyn Writer,
    records: Vec<(&str, u32, NewRecord)>,
) -> Result<(), LogError> {
    let records = records.into_iter().map(|(topic, partition, record)| (topic.to_owned(), partition, record));
    writer.commit(Transaction { records: records.collect(), consumed: Vec::new() }).await
}

/// The range of one partition.
pub(crate) async fn range(log: &Arc<dyn Log>, topic: &str, partition: usize) -> PartitionRange {
    log.describe(topic).await.unwrap().unwrap()[partition]
}

/// Everything a partition holds now.
pub(crate) async fn read_all(log: &Arc<dyn Log>, topic: &str, partition: u32) -> Vec<Record> {
    let PartitionRange { start, end } = range(log, topic, partition as usize).await;
    let mut reader = log.reader(topic, partition, start).await.unwrap();
    let (mut records, mut next) = (Vec::new(), start);
    let deadline = Instant::now() + LIMIT;
    while next < end {
        assert!(Instant::now() < deadline, "{topic}/{partition} stays at {next}, its end is {end}");
        let batch = reader.read(SOME, Duration::from_millis(100)).await.unwrap();
        records.extend(batch.records);
        next = batch.next;
    }
    records
}

/// The next `count` records of a reader.
pub(crate) async fn read_some(reader: &mut dyn Reader, count: usize) -> Vec<Record> {
    let mut records = Vec::new();
    let deadline = Instant::now() + LIMIT;
    while records.len() < count {
        assert!(Instant::now() < deadline, "only {} of {count} records came", records.len());
        records.extend(reader.read(SOME, Duration::from_millis(100)).await.unwrap().records);
    }
    records
}

/// Records come back in the order, with the keys, values and headers they were written with, and rising offsets.
pub(crate) async fn records_come_back_in_order(log: Arc<dyn Log>) {
    let name = topic(&log, "order", 2, DAY).await;
    let full = NewRecord { key: Some(Bytes::from_static(b"k")), ..record(0) };
    let full = full.header("rows", "20").header("rows", "").header("content-type", "text/plain");
    let mut offsets = vec![log.append(&name, 1, vec![full.clone()]).await.unwrap()];
    for n in 1..50 {
        offsets.push(log.append(&name, 1, vec![record(n), record(format!("{n}b"))]).await.unwrap());
    }
    assert!(offsets.is_sorted_by(|a, b| a < b), "{offsets:?}");

    let records = read_all(&log, &name, 1).await;
    let expected = (1..50).flat_map(|n| [n.to_string(), format!("{n}b")]);
    assert_eq!(texts(&records), ["0".to_owned()].into_iter().chain(expected).collect::<Vec<_>>());
    assert!(records.is_sorted_by(|a, b| a.offset < b.offset && a.timestamp_ms <= b.timestamp_ms));
    assert_eq!(records.last().unwrap().offset, *offsets.last().unwrap(), "append answers the last offset");
    let first = &records[0];
    assert_eq!((&first.key, &first.value, &first.headers), (&full.key, &full.value, &full.headers));
    assert!((clock::wall_ms() - first.timestamp_ms).abs() < 60_000, "stamped {}", first.timestamp_ms);
    assert_eq!(read_all(&log, &name, 0).await, [], "the other partition got nothing");
}

/// A record is stamped with the time it brings, whatever came before it, and with that of its writing where it brings
/// none; order and what is found by offset stay.
pub(crate) async fn a_record_keeps_the_stamp_it_brings(log: Arc<dyn Log>) {
    let name = unique("stamps");
    let spec = TopicSpec { name: name.clone(), partitions: 1, retention: DAY, log_append_time: false };
    log.create_topics(&[spec]).await.unwrap();
    let before = clock::wall_ms();
    let stamped = |n: usize, stamp: i64| NewRecord { timestamp_ms: Some(stamp), ..record(n) };
    let stamps = [before - 5_000, before - 9_000, before - 1];
    let records: Vec<_> = (0..3).map(|n| stamped(n, stamps[n])).collect();
    log.append(&name, 0, records.clone()).await.unwrap();
    let mut writer = log.fence(&unique("writer")).await.unwrap();
    let again = records.into_iter().chain([record(3)]).map(|record| (name.as_str(), 0, record));
    commit(&mut *writer, again.collect()).await.unwrap();
    let found = read_all(&log, &name, 0).await;
    assert_eq!(texts(&found), ["0", "1", "2", "0", "1", "2", "3"]);
    let found: Vec<i64> = found.iter().map(|record| record.timestamp_ms).collect();
    assert_eq!(found[..6], [stamps, stamps].concat());
    assert!((before..before + 60_000).contains(&found[6]), "stamped {}", found[6]);
}

/// A reader may begin at any offset, reads within its limit, waits for what is not there yet, and says from where
/// to go on.
pub(crate) async fn a_reader_goes_on_from_any_offset(log: Arc<dyn Log>) {
    let name = topic(&log, "offsets", 1, DAY).await;
    let big = |n: usize| record(format!("{n:0>1000}"));
    log.append(&name, 0, (0..100).map(big).collect()).await.unwrap();
    let records = read_all(&log, &name, 0).await;
    for from in [0, 1, 57, 99] {
        let mut reader = log.reader(&name, 0, records[from].offset).await.unwrap();
        assert_eq!(read_some(&mut *reader, 100 - from).await, records[from..]);
    }

    let mut reader = log.reader(&name, 0, records[0].offset).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 100 {
        let batch = reader.read(10_000, LIMIT).await.unwrap();
        assert!(!batch.records.is_empty() && batch.records.len() <= 20, "{} records", batch.records.len());
        assert!(batch.next > batch.records.last().unwrap().offset);
        seen.extend(batch.records);
    }
    assert_eq!(seen, records);
    let batch = reader.read(10_000, Duration::ZERO).await.unwrap();
    assert_eq!((batch.records.len(), batch.next), (0, range(&log, &name, 0).await.end));

    let waiting = Tasks::new().spawn(async move { reader.read(1, LIMIT).await.unwrap() });
    log.append(&name, 0, vec![record("new")]).await.unwrap();
    assert_eq!(texts(&waiting.await.unwrap().records), ["new"]);
}

/// A read that is dropped while it waits loses nothing.
pub(crate) async fn a_dropped_read_loses_nothing(log: Arc<dyn Log>) {
    let name = topic(&log, "dropped", 1, DAY).await;
    let mut reader = log.reader(&name, 0, 0).await.unwrap();
    let mut seen = Vec::new();
    for n in 0..20 {
        let dropped = tokio::time::timeout(Duration::from_millis(1), reader.read(SOME, LIMIT)).await;
        seen.extend(dropped.map_or(Vec::new(), |batch| batch.unwrap().records));
        log.append(&name, 0, vec![record(n)]).await.unwrap();
    }
    let rest = read_some(&mut *reader, 20 - seen.len()).await;
    seen.extend(rest);
    assert_eq!(texts(&seen), (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
}

/// A topic is created once, keeps what it holds when asked for again, and is refused with more partitions.
pub(crate) async fn topics_are_created_once(log: Arc<dyn Log>) {
    let name = unique("once");
    assert_eq!(log.describe(&name).await.unwrap(), None);
    assert!(matches!(log.append(&name, 0, vec![record(1)]).await, Err(LogError::UnknownTopic(_))));
    create(&log, &name, 3, DAY).await;
    log.append(&name, 2, vec![record("kept")]).await.unwrap();
    create(&log, &name, 3, DAY).await;
    create(&log, &name, 2, DAY).await;
    let ranges = log.describe(&name).await.unwrap().unwrap();
    assert_eq!(ranges.len(), 3);
    assert_eq!((ranges[0].start, ranges[0].end), (0, 0));
    assert_eq!(texts(&read_all(&log, &name, 2).await), ["kept"]);
    assert!(matches!(log.append(&name, 3, vec![record(1)]).await, Err(LogError::UnknownTopic(_))));
    assert!(matches!(log.reader(&name, 3, 0).await, Err(LogError::UnknownTopic(_))));
    let more = TopicSpec { name, partitions: 4, retention: DAY, log_append_time: true };
    assert!(matches!(log.create_topics(&[more]).await, Err(LogError::Refused(_))));
}

/// A transaction's records over topics and partitions are seen as a whole. `at_once`: whoever has seen one of them
/// finds the others without waiting; else they follow.
pub(crate) async fn a_transaction_is_seen_as_a_whole(log: Arc<dyn Log>, at_once: bool) {
    const COMMITS: usize = 40;
    let (results, positions) = (topic(&log, "results", 2, DAY).await, topic(&log, "positions", 1, DAY).await);
    let places = [(results.as_str(), 0), (positions.as_str(), 0), (results.as_str(), 1)];
    let mut readers = Vec::new();
    for (topic, partition) in places {
        readers.push(log.reader(topic, partition, 0).await.unwrap());
    }
    let mut writer = log.fence(&unique("whole")).await.unwrap();
    let (of, at) = (results.clone(), positions.clone());
    let writing = Tasks::new().spawn(async move {
        for n in 0..COMMITS {
            let records =
                (0..5).flat_map(|_| [(&*of, 1, record(n)), (&*at, 0, record(n)), (&*of, 0, record(n))]);
            commit(&mut *writer, records.collect()).await.unwrap();
        }
    });
    let mut seen = [0; 3];
    let deadline = Instant::now() + LIMIT;
    while seen[0] < COMMITS * 5 {
        assert!(Instant::now() < deadline, "seen {seen:?}");
        seen[0] += readers[0].read(SOME, LIMIT).await.unwrap().records.len();
        for (other, reader) in readers.iter_mut().enumerate().skip(1) {
            while seen[other] < seen[0] {
                let wait = if at_once { Duration::ZERO } else { Duration::from_millis(100) };
                let count = reader.read(SOME, wait).await.unwrap().records.len();
                assert!(count > 0 || (!at_once && Instant::now() < deadline), "seen {seen:?}");
                seen[other] += count;
            }
        }
    }
    writing.await.unwrap();
    for (topic, partition) in places {
        let values = texts(&read_all(&log, topic, partition).await);
        assert_eq!(values, (0..COMMITS * 5).map(|n| (n / 5).to_string()).collect::<Vec<_>>());
    }
}

/// What a transaction that failed would have written is seen by nobody, and the others' records are.
pub(crate) async fn a_refused_transaction_leaves_nothing(log: Arc<dyn Log>) {
    let name = topic(&log, "refused", 1, DAY).await;
    let mut writer = log.fence(&unique("refused")).await.unwrap();
    let records = vec![(&*name, 0, record("never")), ("no-such-topic", 0, record("never"))];
    assert!(commit(&mut *writer, records).await.is_err());
    log.append(&name, 0, vec![record("append")]).await.unwrap();
    let mut writer = log.fence(&unique("refused")).await.unwrap();
    commit(&mut *writer, vec![(&*name, 0, record("commit"))]).await.unwrap();
    assert_eq!(texts(&read_all(&log, &name, 0).await), ["append", "commit"]);
}

/// Once a writer id is fenced anew, its earlier writer commits nothing any more; other ids are untouched.
pub(crate) async fn an_old_writer_is_fenced(log: Arc<dyn Log>) {
    let name = topic(&log, "fenced", 1, DAY).await;
    let (id, other) = (unique("writer"), unique("other"));
    let mut other = log.fence(&other).await.unwrap();
    let mut old = log.fence(&id).await.unwrap();
    commit(&mut *old, vec![(&*name, 0, record("old"))]).await.unwrap();
    let mut new = log.fence(&id).await.unwrap();
    for _ in 0..2 {
        let refused = commit(&mut *old, vec![(&*name, 0, record("zombie"))]).await;
        assert!(matches!(refused, Err(LogError::Fenced(_))), "{refused:?}");
    }
    commit(&mut *new, vec![(&*name, 0, record("new"))]).await.unwrap();
    commit(&mut *other, vec![(&*name, 0, record("other"))]).await.unwrap();
    assert_eq!(texts(&read_all(&log, &name, 0).await), ["old", "new", "other"]);
}

/// The latest value of every key is exact, whoever wrote it, and a tombstone removes it.
pub(crate) async fn the_latest_value_per_key_is_exact(log: Arc<dyn Log>) {
    let name = topic(&log, "latest", 1, Retention::LatestPerKey).await;
    assert!(log.latest(&name).await.unwrap().is_empty());
    let mut writer = log.fence(&unique("latest")).await.unwrap();
    for n in 0..20 {
        log.append(&name, 0, vec![keyed("a", Some(&n.to_string()))]).await.unwrap();
        let both = [keyed("b", Some("early")), keyed("b", Some(&n.to_string())), keyed("c", Some("c"))];
        commit(&mut *writer, both.map(|record| (&*name, 0, record)).into()).await.unwrap();
        let latest = log.latest(&name).await.unwrap();
        let expected = [("a", n.to_string()), ("b", n.to_string()), ("c", "c".to_owned())];
        let values = latest.iter().map(|(key, record)| (key.clone(), record.value.clone().unwrap()));
        assert!(values.eq(expected.map(|(key, value)| (Bytes::from(key), Bytes::from(value)))), "{latest:?}");
    }
    commit(&mut *writer, vec![(&*name, 0, keyed("b", None)), (&*name, 0, keyed("c", None))]).await.unwrap();
    log.append(&name, 0, vec![keyed("c", Some("again"))]).await.unwrap();
    let latest = log.latest(&name).await.unwrap();
    assert_eq!(latest.keys().collect::<Vec<_>>(), ["a", "c"]);

    // Whoever reads it all and keeps the newest has the same, and offsets never come twice.
    let records = read_all(&log, &name, 0).await;
    assert!(records.is_sorted_by(|a, b| a.offset < b.offset));
    let mut folded = std::collections::BTreeMap::new();
    for record in records {
        folded.insert(record.key.clone().unwrap(), record);
    }
    folded.retain(|_, record| record.value.is_some());
    assert_eq!(folded, latest);
}

/// A trim removes what is below its offset and nothing else. Not for a log that leaves trims to its retention.
pub(crate) async fn a_trim_removes_what_is_below(log: Arc<dyn Log>) {
    let name = topic(&log, "trim", 2, DAY).await;
    for partition in 0..2 {
        log.append(&name, partition, (0..10).map(record).collect()).await.unwrap();
    }
    let before = read_all(&log, &name, 0).await;
    let mut slow = log.reader(&name, 0, before[0].offset).await.unwrap();
    let mut ahead = log.reader(&name, 0, before[6].offset).await.unwrap();
    log.trim(&name, 0, before[6].offset).await.unwrap();
    assert_eq!(range(&log, &name, 0).await.start, before[6].offset);
    assert_eq!(read_all(&log, &name, 0).await, before[6..]);
    assert_eq!(read_some(&mut *ahead, 4).await, before[6..]);
    assert_eq!(read_all(&log, &name, 1).await.len(), 10);

    let is_gone = |error: LogError, asked: i64| match error {
        LogError::OffsetGone { topic, partition, asked: said, start } => {
            (topic, partition, said, start) == (name.clone(), 0, asked, before[6].offset)
        }
        _ => false,
    };
    assert!(is_gone(slow.read(SOME, Duration::ZERO).await.unwrap_err(), before[0].offset));
    let late = async {
        let mut reader = log.reader(&name, 0, before[5].offset).await?;
        reader.read(SOME, Duration::ZERO).await
    };
    assert!(is_gone(late.await.unwrap_err(), before[5].offset));

    let end = range(&log, &name, 0).await.end;
    log.trim(&name, 0, end).await.unwrap();
    assert_eq!(read_all(&log, &name, 0).await, []);
    let offset = log.append(&name, 0, vec![record("after")]).await.unwrap();
    assert!(offset >= end, "{offset} after {end}");
}

/// A time is found in the stamps of the records; past the last stamp there is the end.
pub(crate) async fn a_time_is_found_as_an_offset(log: Arc<dyn Log>) {
    let name = topic(&log, "times", 1, DAY).await;
    assert_eq!(log.offset_at(&name, 0, 0).await.unwrap(), 0, "an empty partition ends where it begins");
    for n in 0..5 {
        log.append(&name, 0, vec![record(n)]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let records = read_all(&log, &name, 0).await;
    assert!(records.first().unwrap().timestamp_ms < records.last().unwrap().timestamp_ms);
    for record in &records {
        let first = records.iter().find(|other| other.timestamp_ms >= record.timestamp_ms).unwrap();
        assert_eq!(log.offset_at(&name, 0, record.timestamp_ms).await.unwrap(), first.offset);
    }
    let (first, last) = (records[0].offset, records[4].timestamp_ms);
    assert_eq!(log.offset_at(&name, 0, i64::MIN).await.unwrap(), first);
    assert_eq!(log.offset_at(&name, 0, last + 1).await.unwrap(), range(&log, &name, 0).await.end);
    let unknown = log.offset_at(&name, 1, 0).await.unwrap_err();
    assert!(matches!(unknown, LogError::UnknownTopic(_)), "{unknown}");
}

/// Whoever was told that all up to a time was returned gets no record any more whose append was answered before it.
/// `from_call`: none that was stamped before it, and not even one whose append was called before it.
pub(crate) async fn a_proof_of_completeness_holds(log: Arc<dyn Log>, from_call: bool) {
    const WRITERS: usize = 3;
    const EACH: usize = 60;
    let name = topic(&log, "proof", 1, DAY).await;
    let mut reader = log.reader(&name, 0, 0).await.unwrap();
    let before_ms = clock::wall_ms();
    proof_since(&mut *reader, before_ms).await;

    let mut writing = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let (log, name) = (Arc::clone(&log), name.clone());
        writing.spawn(async move {
            let mut answered = Vec::with_capacity(EACH);
            for n in 0..EACH {
                let called_ms = clock::wall_ms();
                let offset = log.append(&name, 0, vec![record(called_ms)]).await.unwrap();
                answered.push((offset, clock::wall_ms()));
                // Gaps, in which the end is reached.
                tokio::time::sleep(Duration::from_millis(((n + writer) % 5) as u64)).await;
            }
            answered
        });
    }
    let (mut seen, mut proven_ms, mut proofs) = (0, before_ms, 0);
    let mut proven_at = std::collections::BTreeMap::new();
    let deadline = Instant::now() + LIMIT;
    while seen < WRITERS * EACH {
        assert!(Instant::now() < deadline, "{seen} records");
        let batch = reader.read(SOME, Duration::from_micros(500)).await.unwrap();
        for record in &batch.records {
            let stamped_ms = record.timestamp_ms;
            assert!(!from_call || stamped_ms >= proven_ms, "stamped {stamped_ms} after {proven_ms}");
            proven_at.insert(record.offset, proven_ms);
            let called_ms: i64 = texts(std::slice::from_ref(record))[0].parse().unwrap();
            assert!(!from_call || called_ms >= proven_ms, "called {called_ms} after {proven_ms}");
        }
        seen += batch.records.len();
        proofs += usize::from(batch.complete_until_ms.is_some());
        proven_ms = proven_ms.max(batch.complete_until_ms.unwrap_or(0));
    }
    for (offset, answered_ms) in writing.join_all().await.into_iter().flatten() {
        let proven_ms = proven_at[&offset];
        assert!(answered_ms >= proven_ms, "{offset} was answered at {answered_ms}, before {proven_ms}");
    }
    assert!(!from_call || proofs > 0, "the end was never reached");
    proof_since(&mut *reader, clock::wall_ms()).await;
}

/// Reads, at the end, until everything before `since_ms` is proven to be seen.
async fn proof_since(reader: &mut dyn Reader, since_ms: i64) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let batch = reader.read(SOME, Duration::from_millis(1)).await.unwrap();
        assert!(batch.records.is_empty());
        if batch.complete_until_ms.is_some_and(|until_ms| until_ms >= since_ms) {
            assert!(batch.complete_until_ms.unwrap() <= clock::wall_ms(), "proven for the future");
            return;
        }
        assert!(Instant::now() < deadline, "no proof since {since_ms}");
    }
}

/// The topics of a process that is going to be killed.
#[derive(Clone, Debug)]
pub(crate) struct Doomed {
    /// Two partitions; appended to in turn.
    pub(crate) source: String,
    /// Two partitions; both in each transaction.
    pub(crate) sink: String,
    /// Compacted; key `q`, in each transaction.
    pub(crate) checkpoints: String,
}

impl Doomed {
    /// Names that begin like this; the same for the process to be killed and for the one that looks after it.
    pub(crate) fn new(prefix: &str) -> Self {
        let [source, sink, checkpoints] =
            ["source", "sink", "checkpoints"].map(|name| format!("{prefix}-{name}"));
        Self { source, sink, checkpoints }
    }

    /// Appends and commits the numbers from 1 on until the process is killed; `report` hears `append N` and
    /// `commit N` once they are answered, before the next begins.
    pub(crate) async fn work(&self, log: Arc<dyn Log>, mut report: impl FnMut(String)) {
        create(&log, &self.source, 2, DAY).await;
        create(&log, &self.sink, 2, DAY).await;
        create(&log, &self.checkpoints, 1, Retention::LatestPerKey).await;
        let mut writer = log.fence(&self.sink).await.unwrap();
        for n in 1_u32.. {
            log.append(&self.source, n % 2, vec![record(n)]).await.unwrap();
            report(format!("append {n}"));
            let both = [(&*self.sink, 0, record(n)), (&*self.sink, 1, record(n))];
            let position = (&*self.checkpoints, 0, keyed("q", Some(&n.to_string())));
            commit(&mut *writer, both.into_iter().chain([position]).collect()).await.unwrap();
            report(format!("commit {n}"));
        }
    }

    /// Checks what is left: all that was reported, in order and once, at most one step more, and every transaction
    /// as a whole. Fences first, as recovery does. Returns how many appends and commits there are.
    pub(crate) async fn inspect(&self, log: Arc<dyn Log>, reported: &[String]) -> (usize, usize) {
        let mut writer = log.fence(&self.sink).await.unwrap();
        let count = |step: &str| reported.iter().filter(|line| line.starts_with(step)).count();
        let (appended, committed) = (count("append"), count("commit"));

        let numbers =
            |records: &[Record]| texts(records).iter().map(|n| n.parse().unwrap()).collect::<Vec<usize>>();
        let mut source = Vec::new();
        for partition in 0..2 {
            let part = numbers(&read_all(&log, &self.source, partition).await);
            assert!(part.is_sorted(), "{part:?}");
            source.extend(part);
        }
        source.sort_unstable();
        assert_eq!(source, (1..=source.len()).collect::<Vec<_>>());
        assert!(
            (appended..=appended + 1).contains(&source.len()),
            "{appended} answered, {} there",
            source.len()
        );

        let sink = numbers(&read_all(&log, &self.sink, 0).await);
        assert_eq!(sink, (1..=sink.len()).collect::<Vec<_>>());
        assert!(
            (committed..=committed + 1).contains(&sink.len()),
            "{committed} answered, {} there",
            sink.len()
        );
        assert_eq!(numbers(&read_all(&log, &self.sink, 1).await), sink);
        let checkpoint = log.latest(&self.checkpoints).await.unwrap().remove(&b"q"[..]);
        let checkpoint = checkpoint.map_or(0, |record| numbers(&[record])[0]);
        assert_eq!(checkpoint, sink.len(), "the position belongs to the results");

        // The log is as good as before.
        let next = (&*self.sink, 0, record(sink.len() + 1));
        commit(&mut *writer, vec![next]).await.unwrap();
        assert_eq!(read_all(&log, &self.sink, 0).await.len(), sink.len() + 1);
        (source.len(), sink.len())
    }
}
