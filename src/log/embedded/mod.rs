//! The embedded log: one SQLite file under the data directory, for everything in one process.
//!
//! ```text
//!  append ─┐                        ┌─▶ COMMIT + fsync, once per group ─▶ tail of each partition ─▶ answers
//!  commit ─┼─▶ queue ─▶ one writer ─┘                                           │
//!  fence  ─┘  (bounded)   thread                                                ├─▶ readers at the end (no SQLite)
//!                                     emostream.db + WAL ──────────────────────┴─▶ readers further back (pool)
//! ```
//!
//! - Everything that waits while a group is being written goes into the next one, orders of a writer (commit, fence)
//!   before appends, so that one fsync serves all and an idle log answers after a single one.
//! - A partition's range, its newest records and the number of writes under way are in memory; a reader at the end
//!   waits there and never asks SQLite. A group becomes visible in all its partitions at one instant.
//! - Bounds: the queue by bytes (full: appends wait up to the write time-out, then [`LogError::Unavailable`]); a
//!   record; the newest records in memory per partition; the file (past `max_bytes` appends are `Unavailable`, past
//!   an eighth more commits are too).
//!
//! # What survives
//!
//! *A kill of the process* (`kill -9`, abort, out of memory): every append and commit that was answered. One that was
//! not answered is there as a whole or not at all; which of the two, the next open shows.
//!
//! *A power cut or a crash of the machine*: the same, as far as the disk keeps its word about fsync. Each group is
//! synced to the write-ahead log before anything is answered (`synchronous = FULL`, on macOS `F_FULLFSYNC`); a torn
//! end is recognised by its checksum and dropped. Not survived: a disk that lies about fsync, a copy of the
//! database file alone (its `-wal` belongs to it), the same folder on two machines.
//!
//! A second process on the same folder is refused by a lock of the operating system, which ends with the process.

mod announced;
mod folder;
mod headers;
mod housekeeping;
mod partition;
mod pool;
mod queue;
mod reader;
mod schema;
#[cfg(test)]
mod tests;
mod topics;
mod writer;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use self::announced::Announced;
use self::housekeeping::Housekeeper;
use self::partition::UnderWay;
use self::pool::Pool;
use self::queue::{Order, Queue, Work};
use self::reader::EmbeddedReader;
use self::topics::{Holds, Topics};
use self::writer::WriterThread;
use super::{Log, LogError, NewRecord, PartitionRange, Reader, Record, TopicSpec, Transaction, Writer};
use crate::sync::lock;

/// The database's name under the data directory.
pub const FILE: &str = "emostream.db";
/// The largest record: key, value and headers together.
pub const MAX_RECORD_BYTES: usize = 16 << 20;

/// The bounds of an embedded log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How long a write waits for its turn, and once begun again for its end.
    pub write_timeout_ms: u64,
    /// What the file may hold; free pages and the write-ahead log not counted.
    pub max_bytes: u64,
    /// What may wait for the writer thread.
    pub queue_bytes: u32,
    /// The newest records kept in memory, per partition.
    pub tail_bytes: usize,
    /// How many readers that are behind may read the file at the same time.
    pub readers: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            write_timeout_ms: 5_000,
            max_bytes: 64 << 30,
            queue_bytes: 64 << 20,
            tail_bytes: 8 << 20,
            readers: 4,
        }
    }
}

impl Settings {
    fn write_timeout(&self) -> Duration {
        Duration::from_millis(self.write_timeout_ms)
    }
}

/// Why a folder cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("{dir} is in use by process {pid}")]
    Held {
        /// The folder.
        dir: String,
        /// The process that holds it; `?` when it did not get to writing that down.
        pid: String,
    },
    /// The folder or its lock cannot be made.
    #[error("{path}: {error}")]
    Folder {
        /// What was tried.
        path: String,
        /// What the operating system said.
        error: std::io::Error,
    },
    /// The file is of a later version of this program, or of another one.
    #[error("{0}")]
    NotOurs(String),
    /// SQLite cannot open or read the file.
    #[error("{path}: {message}")]
    Database {
        /// The file.
        path: String,
        /// What SQLite said.
        message: String,
    },
}

/// What callers, readers and the threads share.
struct Shared {
    settings: Settings,
    topics: Topics,
    holds: Mutex<Holds>,
    queue: Queue,
    pool: Pool,
    announced: Arc<Announced>,
}

/// The log in one SQLite file. Close it with [`EmbeddedLog::close`]; dropped, it does the same but blocks.
pub struct EmbeddedLog {
    shared: Arc<Shared>,
    housekeeper: Arc<Housekeeper>,
    running: Mutex<Option<Running>>,
}

/// The threads and the lock that a closed log no longer has.
struct Running {
    writer: JoinHandle<()>,
    housekeeping: JoinHandle<()>,
    folder: File,
}

impl EmbeddedLog {
    /// Opens the folder, creating it and the file when missing, and starts the two threads.
    ///
    /// # Errors
    /// When another process holds the folder, or the file cannot be read or is not ours.
    pub fn open(dir: &Path, settings: Settings) -> Result<Arc<Self>, OpenError> {
        let folder = folder::lock(dir)?;
        let path = dir.join(FILE);
        let failed = |error: rusqlite::Error| OpenError::Database {
            path: path.display().to_string(),
            message: error.to_string(),
        };
        let connection = schema::open(&path)?;
        let topics = schema::load_topics(&connection, settings.tail_bytes).map_err(failed)?;
        let holds = schema::load_holds(&connection).map_err(failed)?;
        let shared = Arc::new(Shared {
            topics,
            holds: Mutex::new(holds),
            queue: Queue::new(settings.queue_bytes),
            pool: Pool::new(&path, settings.readers),
            announced: Arc::default(),
            settings,
        });
        let housekeeper = Arc::new(Housekeeper::new());
        let writer = WriterThread::new(Arc::clone(&shared), Arc::clone(&housekeeper), connection);
        let keeping = schema::connect(&path).map_err(failed)?;
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let unstarted = |error| OpenError::Folder { path: "a thread of the log".to_owned(), error };
        let writer = thread("log-writer").spawn(move || writer.run()).map_err(unstarted)?;
        let (keeper, of) = (Arc::clone(&housekeeper), Arc::clone(&shared));
        let housekeeping = thread("log-housekeeping").spawn(move || keeper.run(&of, &keeping));
        let housekeeping = housekeeping.map_err(unstarted)?;
        let running = Mutex::new(Some(Running { writer, housekeeping, folder }));
        Ok(Arc::new(Self { shared, housekeeper, running }))
    }

    /// Writes what is queued, moves the write-ahead log into the file, ends the threads and frees the folder.
    /// From its start on, writes are `Unavailable`. A second call does nothing.
    pub async fn close(&self) {
        if let Some(stop) = self.stop()
            && tokio::task::spawn_blocking(stop).await.is_err()
        {
            tracing::error!("closing the log failed; what was answered is in its write-ahead log");
        }
    }

    /// Applies every topic's retention as of `now_ms`, as the housekeeping does each minute.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub async fn apply_retention(&self, now_ms: i64) -> Result<(), LogError> {
        let topics = self.shared.topics.all();
        let due = self.shared.pool.with(move |db| housekeeping::due(db, &topics, now_ms)).await?;
        for work in due {
            self.submit(work, Vec::new(), 0).await?;
        }
        Ok(())
    }

    /// What is left to do for the end; `None` when someone else does it or did.
    fn stop(&self) -> Option<impl FnOnce() + Send + use<>> {
        let Running { writer, housekeeping, folder } = lock(&self.running).take()?;
        self.shared.queue.close();
        self.housekeeper.stop();
        let shared = Arc::clone(&self.shared);
        Some(move || {
            shared.pool.close();
            if housekeeping.join().is_err() || writer.join().is_err() {
                tracing::error!("a thread of the log had panicked");
            }
            drop(folder);
        })
    }

    async fn submit(&self, work: Work, under_way: Vec<UnderWay>, bytes: usize) -> Result<i64, LogError> {
        self.shared.submit(work, under_way, bytes).await
    }

    async fn latest_with(
        &self,
        topic: &str,
        only: Option<Bytes>,
    ) -> Result<BTreeMap<Bytes, Record>, LogError> {
        let topic = self.shared.topics.get(topic)?;
        if !topic.is_compacted() {
            return Err(LogError::Refused(format!("{} keeps no latest value per key", topic.name)));
        }
        self.shared.pool.with(move |db| schema::latest(db, &topic, only.as_ref())).await
    }
}

impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        if let Some(stop) = self.stop() {
            stop();
        }
    }
}

impl Shared {
    /// Queues an order and waits for its answer, with the time-outs that the trait promises.
    async fn submit(&self, work: Work, under_way: Vec<UnderWay>, bytes: usize) -> Result<i64, LogError> {
        let limit = self.settings.write_timeout();
        let deadline = tokio::time::Instant::now() + limit;
        let room = tokio::time::timeout_at(deadline, self.queue.room(&work, bytes)).await;
        let Ok(room) = room else {
            return Err(LogError::Unavailable(format!("its queue was full for {limit:?}")));
        };
        let (order, mut answer) = Order::new(work, under_way, room, bytes);
        let slot = self.queue.push(order)?;
        let lost = || LogError::Indefinite("the log's writer ended before it answered".to_owned());
        if let Ok(answer) = tokio::time::timeout_at(deadline, &mut answer).await {
            return answer.unwrap_or_else(|_| Err(lost()));
        }
        if slot.withdraw() {
            return Err(LogError::Unavailable(format!("the write did not begin within {limit:?}")));
        }
        match tokio::time::timeout(limit, answer).await {
            Ok(answer) => answer.unwrap_or_else(|_| Err(lost())),
            Err(_) => Err(LogError::Indefinite(format!("the write did not end within {limit:?}"))),
        }
    }
}

#[async_trait]
impl Log for EmbeddedLog {
    fn announce(&self, topic: &str, received_ms: i64) -> Box<dyn Send + Sync> {
        Box::new(self.shared.announced.announce(topic, received_ms))
    }

    async fn create_topics(&self, specs: &[TopicSpec]) -> Result<(), LogError> {
        specs.iter().try_for_each(topics::check)?;
        self.submit(Work::CreateTopics(specs.to_vec()), Vec::new(), 0).await?;
        Ok(())
    }

    async fn describe(&self, topic: &str) -> Result<Option<Vec<PartitionRange>>, LogError> {
        Ok(self.shared.topics.ranges(topic))
    }

    async fn append(&self, topic: &str, partition: u32, records: Vec<NewRecord>) -> Result<i64, LogError> {
        let partition = self.shared.topics.partition(topic, partition)?;
        let under_way = vec![UnderWay::new(&partition)];
        let mut bytes = 0;
        for record in &records {
            bytes += partition.check(record)?;
        }
        if records.is_empty() {
            return Ok(partition.range().end - 1);
        }
        self.submit(Work::Append { partition, records }, under_way, bytes).await
    }

    async fn reader(&self, topic: &str, partition: u32, offset: i64) -> Result<Box<dyn Reader>, LogError> {
        let partition = self.shared.topics.partition(topic, partition)?;
        Ok(Box::new(EmbeddedReader::new(Arc::clone(&self.shared), partition, offset)?))
    }

    async fn offset_at(&self, topic: &str, partition: u32, timestamp_ms: i64) -> Result<i64, LogError> {
        let partition = self.shared.topics.partition(topic, partition)?;
        let find = move |db: &rusqlite::Connection| {
            housekeeping::first_since(db, &partition, timestamp_ms).map_err(|error| not_written(&error))
        };
        self.shared.pool.with(find).await
    }

    async fn fence(&self, writer_id: &str) -> Result<Box<dyn Writer>, LogError> {
        let id: Arc<str> = Arc::from(writer_id);
        let epoch = self.submit(Work::Fence(Arc::clone(&id)), Vec::new(), 0).await?;
        Ok(Box::new(EmbeddedWriter { shared: Arc::clone(&self.shared), id, epoch, dead: None }))
    }

    async fn latest(&self, topic: &str) -> Result<BTreeMap<Bytes, Record>, LogError> {
        self.latest_with(topic, None).await
    }

    async fn latest_of(&self, topic: &str, key: &[u8]) -> Result<BTreeMap<Bytes, Record>, LogError> {
        self.latest_with(topic, Some(Bytes::copy_from_slice(key))).await
    }

    async fn trim(&self, topic: &str, partition: u32, offset: i64) -> Result<(), LogError> {
        let partition = self.shared.topics.partition(topic, partition)?;
        self.submit(Work::Trim { partition, offset }, Vec::new(), 0).await?;
        Ok(())
    }

    async fn hold(
        &self,
        holder: &str,
        topic: &str,
        partition: u32,
        offset: Option<i64>,
    ) -> Result<(), LogError> {
        let partition = self.shared.topics.partition(topic, partition)?;
        if let Some(offset) = offset
            && lock(&self.shared.holds).move_to(holder, partition.id, offset)
        {
            return Ok(());
        }
        self.submit(Work::Hold { holder: holder.to_owned(), partition, offset }, Vec::new(), 0).await?;
        Ok(())
    }
}

/// A writer id at the epoch it was fenced with.
struct EmbeddedWriter {
    shared: Arc<Shared>,
    id: Arc<str>,
    epoch: i64,

    /// Why it commits nothing any more.
    dead: Option<LogError>,
}

#[async_trait]
impl Writer for EmbeddedWriter {
    async fn commit(&mut self, transaction: Transaction) -> Result<(), LogError> {
        if let Some(error) = &self.dead {
            return Err(error.clone());
        }
        let mut records = Vec::with_capacity(transaction.records.len());
        let mut bytes = 0;
        for (topic, partition, record) in transaction.records {
            let partition = self.shared.topics.partition(&topic, partition)?;
            bytes += partition.check(&record)?;
            records.push((partition, record));
        }
        let under_way = records.iter().map(|(partition, _)| UnderWay::new(partition)).collect();
        let work = Work::Commit { writer: Arc::clone(&self.id), epoch: self.epoch, records };
        match self.shared.submit(work, under_way, bytes).await {
            Ok(_) => Ok(()),
            Err(error) => {
                if matches!(error, LogError::Indefinite(_) | LogError::Fenced(_)) {
                    self.dead = Some(error.clone());
                }
                Err(error)
            }
        }
    }
}

/// What an error of SQLite means for the caller when nothing was committed.
fn not_written(error: &rusqlite::Error) -> LogError {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    match error.sqlite_error_code() {
        Some(DatabaseCorrupt | NotADatabase) => {
            LogError::Refused(format!("the log's file is damaged: {error}"))
        }
        _ => LogError::Unavailable(error.to_string()),
    }
}
