//! Questions to the brokers: which partitions a topic has, where they begin and end.
//!
//! Two clients, because a client's isolation level decides which end it is told: the last stable offset
//! (`read_committed`: everything below is committed or aborted) or the high watermark (`read_uncommitted`: records of
//! open transactions count). Neither fetches records, so no waiting fetch is ahead of a question on its connection.
//! All functions block.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::Offset;

use tokio::time::Instant;

use super::create;
use super::settings::{Context, KafkaSettings};
use crate::log::{LogError, PartitionRange};
use crate::sync::lock;

/// How long a question may take.
pub(super) const ANSWER: Duration = Duration::from_secs(5);
/// How long to wait before a partition without a leader is asked about again.
const LEADERLESS: Duration = Duration::from_millis(100);

/// How long open transactions are waited for when the ends of partitions are asked for.
const DECIDED: Duration = Duration::from_secs(1);

/// How long new word of the leaders may take, and how often it is asked for.
const REFRESH: Duration = Duration::from_millis(250);

/// A topic's partition.
pub(super) type Place = (String, i32);

/// Which records count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counting {
    /// Those whose transaction is decided.
    Stable,
    /// All that were appended.
    All,
}

/// The two clients, and what was learnt about topics.
pub(super) struct Meta {
    stable: BaseConsumer<Context>,
    all: BaseConsumer<Context>,
    /// Partitions by topic, as last seen; a topic never loses any.
    partitions: Mutex<HashMap<String, u32>>,
    /// When leaders were last asked for anew.
    refreshed: Mutex<Option<Instant>>,
}

impl Meta {
    pub(super) fn new(settings: &KafkaSettings) -> Result<Arc<Self>, LogError> {
        Ok(Arc::new(Self {
            stable: create(&settings.asking("read_committed"), Context)?,
            all: create(&settings.asking("read_uncommitted"), Context)?,
            partitions: Mutex::default(),
            refreshed: Mutex::default(),
        }))
    }

    fn client(&self, counting: Counting) -> &BaseConsumer<Context> {
        match counting {
            Counting::Stable => &self.stable,
            Counting::All => &self.all,
        }
    }

    /// Hands librdkafka's log lines on; they queue up otherwise.
    pub(super) fn serve(&self) {
        for client in [&self.stable, &self.all] {
            while client.poll(Duration::ZERO).is_some() {}
        }
    }

    /// Whether any broker answers.
    pub(super) fn reach(&self, timeout: Duration) -> KafkaResult<()> {
        self.stable.fetch_metadata(None, timeout).map(drop)
    }

    /// How many partitions a topic has, by the brokers' word; `None` when there is no such topic.
    pub(super) fn ask_partitions(&self, topic: &str) -> Result<Option<u32>, LogError> {
        self.serve();
        let metadata =
            self.stable.fetch_metadata(Some(topic), ANSWER).map_err(|error| failed(topic, &error))?;
        let found = metadata.topics().iter().find(|entry| entry.name() == topic);
        let Some(found) = found else { return Ok(None) };
        match found.error().map(RDKafkaErrorCode::from) {
            None => {}
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                return Ok(None);
            }
            Some(code) => return Err(failed(topic, &KafkaError::MetadataFetch(code))),
        }
        let count = u32::try_from(found.partitions().len()).unwrap_or(u32::MAX);
        if count == 0 {
            return Ok(None);
        }
        lock(&self.partitions).insert(topic.to_owned(), count);
        Ok(Some(count))
    }

    /// Whether every one of a topic's partitions has a leader.
    pub(super) fn is_led(&self, topic: &str) -> bool {
        let metadata = self.stable.fetch_metadata(Some(topic), ANSWER);
        let led = |topic: &rdkafka::metadata::MetadataTopic| {
            topic.error().is_none() && topic.partitions().iter().all(|partition| partition.leader() >= 0)
        };
        metadata.is_ok_and(|metadata| metadata.topics().iter().all(led))
    }

    /// Whether the partition is known without asking.
    pub(super) fn knows(&self, topic: &str, partition: u32) -> bool {
        lock(&self.partitions).get(topic).is_some_and(|&count| partition < count)
    }

    /// That the partition exists; asks only when it was not seen before.
    pub(super) fn require(&self, topic: &str, partition: u32) -> Result<(), LogError> {
        if self.knows(topic, partition) || self.ask_partitions(topic)?.is_some_and(|count| partition < count)
        {
            return Ok(());
        }
        Err(LogError::UnknownTopic(format!("{topic}/{partition}")))
    }

    /// The ranges of a topic's partitions, ends by what is decided.
    pub(super) fn ranges(&self, topic: &str) -> Result<Option<Vec<PartitionRange>>, LogError> {
        let Some(count) = self.ask_partitions(topic)? else { return Ok(None) };
        let count = i32::try_from(count).unwrap_or(i32::MAX);
        let places: BTreeSet<Place> = (0..count).map(|partition| (topic.to_owned(), partition)).collect();
        let starts = self.starts(&places).map_err(|error| failed(topic, &error))?;
        let ends = self.decided(&places).map_err(|error| failed(topic, &error))?;
        let range = |place: &Place| {
            let (start, end) = (starts.get(place).copied(), ends.get(place).copied());
            match (start, end) {
                (Some(start), Some(end)) => Ok(PartitionRange { start, end }),
                _ => Err(LogError::Unavailable(format!(
                    "the brokers do not say where {topic}/{} begins and ends",
                    place.1
                ))),
            }
        };
        places.iter().map(range).collect::<Result<Vec<_>, _>>().map(Some)
    }

    /// The last stable offsets. A commit is answered before its markers stand in the partitions, so that one's own
    /// records may lie behind them for a moment: open transactions are waited for, briefly, for others' may stay open.
    fn decided(&self, places: &BTreeSet<Place>) -> KafkaResult<HashMap<Place, i64>> {
        let all = self.ends(places, Counting::All, ANSWER)?;
        let begun = Instant::now();
        loop {
            let stable = self.ends(places, Counting::Stable, ANSWER)?;
            let caught_up =
                all.iter().all(|(place, end)| stable.get(place).is_some_and(|stable| stable >= end));
            if caught_up || begun.elapsed() > DECIDED {
                return Ok(stable);
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// Where partitions begin; those about which the brokers gave no answer are missing.
    pub(super) fn starts(&self, places: &BTreeSet<Place>) -> KafkaResult<HashMap<Place, i64>> {
        self.offsets(&self.stable, places, Offset::Beginning, ANSWER)
    }

    /// Where partitions end; those about which the brokers gave no answer are missing.
    pub(super) fn ends(
        &self,
        places: &BTreeSet<Place>,
        counting: Counting,
        timeout: Duration,
    ) -> KafkaResult<HashMap<Place, i64>> {
        self.offsets(self.client(counting), places, Offset::End, timeout)
    }

    /// The same for one partition.
    pub(super) fn end(&self, place: &Place, counting: Counting) -> Result<i64, LogError> {
        let places = BTreeSet::from([place.clone()]);
        let ends = self.ends(&places, counting, ANSWER).map_err(|error| failed(&place.0, &error))?;
        ends.get(place).copied().ok_or_else(|| {
            LogError::Unavailable(format!("the brokers do not say where {}/{} ends", place.0, place.1))
        })
    }

    /// The first offset stamped at or after that time; the end of what is decided when there is none.
    pub(super) fn offset_at(&self, place: &Place, timestamp_ms: i64) -> Result<i64, LogError> {
        let places = BTreeSet::from([place.clone()]);
        // Before the question: a record appended meanwhile is at or after it.
        let end = self.end(place, Counting::Stable)?;
        // Negative times have special meanings; no record is stamped so early.
        let at = Offset::Offset(timestamp_ms.max(0));
        let found =
            self.offsets(&self.stable, &places, at, ANSWER).map_err(|error| failed(&place.0, &error))?;
        let found = found.get(place).ok_or_else(|| {
            LogError::Unavailable(format!(
                "the brokers do not say what {}/{} has since then",
                place.0, place.1
            ))
        })?;
        Ok((*found).min(end))
    }

    /// Asks, and where an answer is missing asks for the leaders anew and then once more: this kind of question
    /// leaves an outdated leader epoch in librdkafka's cache for a quarter of an hour (seen after a broker had hung).
    /// Begins again while a partition has no leader: one that was just created, or whose broker was just lost.
    #[allow(clippy::disallowed_methods)] // the questions block too: they are asked on threads of their own
    fn offsets(
        &self,
        client: &BaseConsumer<Context>,
        places: &BTreeSet<Place>,
        at: Offset,
        timeout: Duration,
    ) -> KafkaResult<HashMap<Place, i64>> {
        let ask = || {
            let first = list_offsets(client, places, at, timeout);
            if first.as_ref().is_ok_and(|offsets| offsets.len() == places.len()) || !self.may_refresh() {
                return first;
            }
            let topics: BTreeSet<&str> = places.iter().map(|(topic, _)| topic.as_str()).collect();
            for topic in topics {
                client.fetch_metadata(Some(topic), timeout.max(REFRESH))?;
            }
            list_offsets(client, places, at, timeout)
        };
        let deadline = Instant::now() + timeout;
        loop {
            match ask() {
                Err(error) if lacks_leader(&error) && Instant::now() < deadline => {
                    std::thread::sleep(LEADERLESS);
                }
                answer => return answer,
            }
        }
    }

    /// Not more often than the brokers bear.
    fn may_refresh(&self) -> bool {
        let now = Instant::now();
        let mut last = lock(&self.refreshed);
        let due = last.is_none_or(|last| now - last >= REFRESH);
        if due {
            *last = Some(now);
        }
        due
    }
}

fn lacks_leader(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(error.rdkafka_error_code(), Some(Code::NotLeaderForPartition | Code::LeaderNotAvailable))
}

/// One ListOffsets request per broker. (`offsets_for_times` passes the special times "beginning" and "end" on.)
fn list_offsets(
    client: &BaseConsumer<Context>,
    places: &BTreeSet<Place>,
    at: Offset,
    timeout: Duration,
) -> KafkaResult<HashMap<Place, i64>> {
    let mut list = TopicPartitionList::with_capacity(places.len());
    for (topic, partition) in places {
        list.add_partition_offset(topic, *partition, at)?;
    }
    let answer = client.offsets_for_times(list, timeout)?;
    let mut offsets = HashMap::with_capacity(places.len());
    for element in answer.elements() {
        let offset = match (element.error(), element.offset()) {
            (Ok(()), Offset::Offset(offset)) => offset,
            // The answer when nothing is stamped so late.
            (Ok(()), Offset::End) => i64::MAX,
            _ => continue,
        };
        offsets.insert((element.topic().to_owned(), element.partition()), offset);
    }
    Ok(offsets)
}

/// What a failed question means to the caller.
pub(super) fn failed(about: &str, error: &KafkaError) -> LogError {
    use RDKafkaErrorCode as Code;
    match error.rdkafka_error_code() {
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition) => {
            LogError::UnknownTopic(about.to_owned())
        }
        Some(
            Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::InvalidTopic,
        ) => LogError::Refused(format!("{about}: {error}")),
        _ => LogError::Unavailable(format!("{about}: {error}")),
    }
}
