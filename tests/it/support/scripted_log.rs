//! A log in memory whose appends do what a test says: succeed, wait, fail, or fail without saying how it ended.
//!
//! Only for what a real log does not do on demand. It has no readers and no transactions.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use emostream::log::{Log, LogError, NewRecord, PartitionRange, Reader, Record, TopicSpec, Writer};
use tokio::sync::watch;

/// What the next appends do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Take the records.
    Working,
    /// Wait for another mode.
    Stalled,
    /// Take nothing, and say so.
    Unavailable,
    /// Take the records and say that the outcome is not known.
    LostAnswer,
    /// Take nothing and say that the outcome is not known.
    LostRequest,
}

pub(crate) struct ScriptedLog {
    mode: watch::Sender<Mode>,
    partitions: AtomicUsize,
    records: Mutex<Vec<(u32, NewRecord)>>,
    running: Mutex<BTreeMap<u32, usize>>,
    most_running: AtomicUsize,
}

impl ScriptedLog {
    /// A working log whose every topic has so many partitions; with 0, no topic exists.
    pub(crate) fn new(partitions: usize) -> Self {
        Self {
            mode: watch::Sender::new(Mode::Working),
            partitions: AtomicUsize::new(partitions),
            records: Mutex::default(),
            running: Mutex::default(),
            most_running: AtomicUsize::new(0),
        }
    }

    pub(crate) fn set_mode(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    pub(crate) fn set_partitions(&self, partitions: usize) {
        self.partitions.store(partitions, Ordering::SeqCst);
    }

    /// What was taken: partition and record, in order of their appends.
    pub(crate) fn records(&self) -> Vec<(u32, NewRecord)> {
        self.records.lock().unwrap().clone()
    }

    /// How many appends are under way.
    pub(crate) fn running(&self) -> usize {
        self.running.lock().unwrap().values().sum()
    }

    /// How many appends ever were under way together.
    pub(crate) fn most_running(&self) -> usize {
        self.most_running.load(Ordering::SeqCst)
    }

    fn begin(&self, partition: u32) -> Running<'_> {
        let mut running = self.running.lock().unwrap();
        let here = running.entry(partition).or_default();
        *here += 1;
        assert_eq!(*here, 1, "two appends to partition {partition} at once");
        self.most_running.fetch_max(running.values().sum(), Ordering::SeqCst);
        Running { log: self, partition }
    }
}

struct Running<'a> {
    log: &'a ScriptedLog,
    partition: u32,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(running) = self.log.running.lock().unwrap().get_mut(&self.partition) {
            *running -= 1;
        }
    }
}

fn not_scripted<T>() -> Result<T, LogError> {
    Err(LogError::Refused("this log only takes appends".to_owned()))
}

#[async_trait]
impl Log for ScriptedLog {
    async fn create_topics(&self, _: &[TopicSpec]) -> Result<(), LogError> {
        not_scripted()
    }

    async fn describe(&self, _: &str) -> Result<Option<Vec<PartitionRange>>, LogError> {
        let partitions = self.partitions.load(Ordering::SeqCst);
        Ok((partitions > 0).then(|| vec![PartitionRange { start: 0, end: 0 }; partitions]))
    }

    async fn append(&self, topic: &str, partition: u32, records: Vec<NewRecord>) -> Result<i64, LogError> {
        let _running = self.begin(partition);
        // An append is never instantaneous: others run meanwhile.
        tokio::task::yield_now().await;
        let partitions = self.partitions.load(Ordering::SeqCst);
        if partition as usize >= partitions {
            return Err(LogError::UnknownTopic(topic.to_owned()));
        }
        let mut mode = self.mode.subscribe();
        let mode = *mode.wait_for(|mode| *mode != Mode::Stalled).await.unwrap();
        if matches!(mode, Mode::Working | Mode::LostAnswer) {
            let mut taken = self.records.lock().unwrap();
            taken.extend(records.into_iter().map(|record| (partition, record)));
        }
        match mode {
            Mode::Working => Ok(0),
            Mode::Unavailable => Err(LogError::Unavailable("scripted".to_owned())),
            _ => Err(LogError::Indefinite("scripted".to_owned())),
        }
    }

    async fn reader(&self, _: &str, _: u32, _: i64) -> Result<Box<dyn Reader>, LogError> {
        not_scripted()
    }

    async fn offset_at(&self, _: &str, _: u32, _: i64) -> Result<i64, LogError> {
        not_scripted()
    }

    async fn fence(&self, _: &str) -> Result<Box<dyn Writer>, LogError> {
        not_scripted()
    }

    async fn latest(&self, _: &str) -> Result<BTreeMap<Bytes, Record>, LogError> {
        not_scripted()
    }

    async fn trim(&self, _: &str, _: u32, _: i64) -> Result<(), LogError> {
        not_scripted()
    }
}
