//! A cluster: copies the live topic to its region's own topic, in order, each message once.
//!
//! The copies are plain appends. Where to go on after a restart, or after an append whose outcome is not known, stands
//! in its own topic: the last message there says its id, and in a header the offset it was copied from. So the two
//! topics may be on different logs. Should an append that was taken for lost still arrive later, its messages stand
//! there twice; subscribers leave out what is not newer than what they have.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::message::Message;
use super::tail::{last_record, range};
use crate::log::program::system_topics;
use crate::log::{
    Log, LogError, NewRecord, Reader, Record, Retention, TOPIC_LIVE, TopicSpec, cluster_topic, failpoint,
};
use crate::reaction::live::LiveId;
use crate::shutdown::Tasks;

/// How long a cluster keeps its copies: twice as long as the live topic, so that it never copies one again.
const RETENTION: Duration = Duration::from_secs(48 * 3600);
/// Header of a copy: the offset of the original on the live topic; decimal.
const HEADER_LIVE_OFFSET: &str = "live-offset";
/// Bytes of one read, about, and so of one append.
const READ_BYTES: usize = 512 << 10;
/// How long one read waits for messages. It returns at once when some come.
const READ_WAIT: Duration = Duration::from_secs(5);
/// How long to wait before the log is tried again: from, to.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// One region's copy.
pub struct Cluster {
    /// Holds the live topic.
    center: Arc<dyn Log>,
    /// Holds the cluster's own topic; often the same one.
    region: Arc<dyn Log>,
    name: String,
    topic: String,
    copying: AtomicBool,
}

/// The topic of a cluster, as cluster and subscribers create it.
pub(super) fn topic_spec(cluster: &str) -> TopicSpec {
    TopicSpec {
        name: cluster_topic(cluster),
        partitions: 1,
        retention: Retention::Age(RETENTION),
        log_append_time: false,
    }
}

impl Cluster {
    /// A cluster of that name (letters, digits, `.`, `_`, `-`); [`Cluster::run`] copies.
    pub fn new(log: Arc<dyn Log>, name: &str) -> Arc<Self> {
        Self::between(Arc::clone(&log), log, name)
    }

    /// One that copies from the log `center` to another one.
    pub fn between(center: Arc<dyn Log>, region: Arc<dyn Log>, name: &str) -> Arc<Self> {
        let copying = AtomicBool::new(false);
        Arc::new(Self { center, region, name: name.to_owned(), topic: cluster_topic(name), copying })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it knows where its topic ends and copies from there.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn ready(&self) -> Result<(), String> {
        if self.copying.load(Ordering::Relaxed) {
            Ok(())
        } else {
            Err(format!("cluster {} has not found the end of its topic yet", self.name))
        }
    }

    /// Copies until the process stops; waits while a log is not available.
    pub async fn run(&self, tasks: &Tasks) {
        let stop = tasks.token();
        let mut pause = RETRY.0;
        while let Some(Err(error)) = stop.run_until_cancelled(self.session()).await {
            let was_copying = self.copying.swap(false, Ordering::Relaxed);
            pause = if was_copying { RETRY.0 } else { (pause * 2).min(RETRY.1) };
            tracing::warn!(cluster = %self.name, %error, "copying stopped; going on from the topic's end");
            stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        }
    }

    /// From finding the end of its topic to the first failure.
    async fn session(&self) -> Result<std::convert::Infallible, LogError> {
        self.center.create_topics(&system_topics()).await?;
        self.region.create_topics(&[topic_spec(&self.name)]).await?;
        let last = last_record(self.region.as_ref(), &self.topic).await?;
        let mut last = last.as_ref().and_then(Copied::of);
        let mut reader = self.reader(last.as_ref()).await?;
        self.copying.store(true, Ordering::Relaxed);
        loop {
            let batch = match reader.read(READ_BYTES, READ_WAIT).await {
                Err(LogError::OffsetGone { asked, start, .. }) => {
                    tracing::error!(cluster = %self.name, asked, start, "messages are lost: the live topic was trimmed");
                    reader = self.center.reader(TOPIC_LIVE, 0, start).await?;
                    continue;
                }
                other => other?,
            };
            let copies = self.copies(batch.records, &mut last);
            if copies.is_empty() {
                continue;
            }
            failpoint::hit("cluster.append.before");
            self.append(copies).await?;
            failpoint::hit("cluster.append.after");
        }
    }

    /// A reader that brings everything after the last copy.
    async fn reader(&self, last: Option<&Copied>) -> Result<Box<dyn Reader>, LogError> {
        let log = self.center.as_ref();
        let live = range(log, TOPIC_LIVE).await?;
        if let Some(last) = last.filter(|last| (live.start..live.end).contains(&last.offset)) {
            let mut reader = log.reader(TOPIC_LIVE, 0, last.offset).await?;
            let first = reader.read(1, Duration::from_secs(1)).await?;
            let original = first.records.first().and_then(message_id);
            if original == Some(last.id) {
                return log.reader(TOPIC_LIVE, 0, last.offset).await;
            }
        }
        log.reader(TOPIC_LIVE, 0, live.start).await
    }

    fn copies(&self, records: Vec<Record>, last: &mut Option<Copied>) -> Vec<NewRecord> {
        let mut copies = Vec::with_capacity(records.len());
        for record in records {
            let Some(id) = message_id(&record) else {
                tracing::warn!(
                    offset = record.offset,
                    "a record of the live topic is no live message; not copied"
                );
                continue;
            };
            if last.as_ref().is_some_and(|last| id <= last.id) {
                continue;
            }
            *last = Some(Copied { id, offset: record.offset });
            let copy = NewRecord { value: record.value, ..NewRecord::default() };
            copies.push(copy.header(HEADER_LIVE_OFFSET, record.offset.to_string()));
        }
        copies
    }

    /// `Unavailable` means that nothing was written: tried again until the log takes it.
    async fn append(&self, copies: Vec<NewRecord>) -> Result<(), LogError> {
        let mut pause = RETRY.0;
        loop {
            match self.region.append(&self.topic, 0, copies.clone()).await {
                Err(LogError::Unavailable(error)) => {
                    tracing::warn!(cluster = %self.name, error, "messages wait for the log");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY.1);
                }
                other => return other.map(|_| ()),
            }
        }
    }
}

/// The last message of its own topic.
#[derive(Clone, Copy, Debug)]
struct Copied {
    id: LiveId,
    offset: i64,
}

impl Copied {
    fn of(copy: &Record) -> Option<Self> {
        let offset = copy.header(HEADER_LIVE_OFFSET).and_then(|text| text.parse().ok()).unwrap_or(-1);
        Some(Self { id: message_id(copy)?, offset })
    }
}

fn message_id(record: &Record) -> Option<LiveId> {
    Message::parse(record.value.clone()?).ok().map(|message| message.id)
}
