//! One table's requests → records in the log: the shell around the policy in `queue.rs`.
//!
//! What it guarantees: a request is answered `Ok` only after the log has said that its records are durable; its rows
//! are in the records of exactly one append; and it is answered [`Refusal::Withdrawn`] or [`Refusal::Unavailable`] only when
//! nothing of it was or will be written. Anything between is [`Refusal::Unknown`]. A sender that hangs up while its
//! request waits does not take it back: its rows are written like all others.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::budget::Charge;
use super::metrics::Metrics;
use super::queue::{Limits, Queue, Step, Weight};
use super::settings::Settings;
use crate::log::codec::{CodecError, MAX_BYTES, RecordCodec};
use crate::log::{Log, LogError, NewRecord};
use crate::reaction::columns::{Rows, record_overhead};
use crate::reaction::table::Table;
use crate::shutdown::Tasks;
use crate::sync::lock;

/// How often a topic that does not exist is looked for.
const DISCOVERY: Duration = Duration::from_millis(200);
/// How often a topic that is there is looked at for partitions that were added.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// So long after they were found rows are written to them: by then the queries read them too, so that no window is
/// closed without their rows.
const SETTLED: Duration = Duration::from_secs(15);
/// The longest an append may take before its outcome counts as unknown. The log has a limit of its own below this.
const APPEND_LIMIT: Duration = Duration::from_secs(30);
/// The same once the process is asked to stop: everybody is to be answered before it ends.
const DRAIN_LIMIT: Duration = Duration::from_secs(7);

/// Why a request's rows are not known to be in the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// Nothing was written: memory for waiting requests is used up.
    #[error("too much is waiting to be written")]
    Full,
    /// Nothing was written: the process stops, or the table has just changed.
    #[error("the table is not open for writing")]
    Closed,
    /// Nothing was written: the write did not begin in time.
    #[error("{0}")]
    Withdrawn(&'static str),
    /// Nothing was written: the log says so.
    #[error("{0}")]
    Unavailable(Arc<str>),
    /// A write began and its end is not known.
    #[error("{0}")]
    Unknown(Arc<str>),
    /// Nothing was written, and nothing ever will be.
    #[error("{0}")]
    Impossible(Arc<str>),
    /// Nothing was written: the rows do not fit one record.
    #[error("{0} bytes encoded")]
    TooLarge(usize),
}

/// What a request brings.
enum Payload {
    /// To be joined with others.
    Rows(Rows),
    /// So large that it had to be encoded to know whether it fits.
    Records(Vec<NewRecord>),
}

struct Request {
    payload: Payload,
    rows: usize,
    bytes: Option<usize>,
    reply: oneshot::Sender<Result<(), Refusal>>,
    /// Given back when the request is answered.
    _held: Held,
}

/// What counts as waiting until it is dropped: bytes of the budget, rows of the gauge, their time of receipt in the log.
struct Held {
    _charge: Charge,
    _announced: Box<dyn Send + Sync>,
    rows: usize,
    metrics: Arc<Metrics>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.metrics.pending_rows.decrement(self.rows as f64);
    }
}

impl Weight for Request {
    fn rows(&self) -> usize {
        self.rows
    }

    fn bytes(&self) -> Option<usize> {
        self.bytes
    }
}

/// Writes one table's rows.
pub(super) struct Batcher {
    topic: String,
    codec: RecordCodec,
    overhead: usize,
    log: Arc<dyn Log>,
    tasks: Tasks,
    metrics: Arc<Metrics>,

    queue: Mutex<Queue<Request>>,
    wake: Notify,
    /// The topic does not exist any more.
    gone: Notify,
}

impl Batcher {
    /// Starts writing to the table's topic what is submitted, until the tasks are cancelled and everything is answered.
    pub(super) fn start(
        log: Arc<dyn Log>,
        table: &Table,
        settings: &Settings,
        metrics: Arc<Metrics>,
        tasks: &Tasks,
    ) -> Arc<Self> {
        let codec = RecordCodec::new(table).compressing(settings.compression);
        let overhead = if codec.row_bytes().is_some() { 0 } else { record_overhead(codec.schema()) };
        let limits = Limits {
            flush_interval: settings.flush_interval(),
            flush_rows: settings.flush_rows,
            max_wait: Duration::from_millis(settings.max_wait_ms),
            record_overhead: overhead,
        };
        let batcher = Arc::new(Self {
            topic: table.topic.clone(),
            codec,
            overhead,
            log,
            tasks: tasks.clone(),
            metrics,
            queue: Mutex::new(Queue::new(limits)),
            wake: Notify::new(),
            gone: Notify::new(),
        });
        tasks.spawn(Arc::clone(&batcher).run());
        tasks.spawn(Arc::clone(&batcher).discover());
        batcher
    }

    /// Writes the rows, received at that time, and says what became of them. `charge` is given back with the answer.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub(super) async fn submit(&self, rows: Rows, charge: Charge, received_ms: i64) -> Result<(), Refusal> {
        let (reply, answer) = oneshot::channel();
        let count = rows.count;
        let bytes = self.bytes(&rows);
        let (payload, bytes) = if self.overhead + bytes <= MAX_BYTES {
            (Payload::Rows(rows), Some(bytes))
        } else {
            let records = self.encode(rows)?;
            let bytes = records.iter().flat_map(|record| &record.value).map(|value| value.len()).sum();
            if bytes > MAX_BYTES {
                return Err(Refusal::TooLarge(bytes));
            }
            (Payload::Records(records), None)
        };
        self.metrics.pending_rows.increment(count as f64);
        let announced = self.log.announce(&self.topic, received_ms);
        let metrics = Arc::clone(&self.metrics);
        let held = Held { _charge: charge, _announced: announced, rows: count, metrics };
        let request = Request { payload, rows: count, bytes, reply, _held: held };
        let pushed = self.queue().push(request, Instant::now());
        match pushed {
            Ok(true) => self.wake.notify_one(),
            Ok(false) => {}
            Err(_) => return Err(Refusal::Closed),
        }
        // Only a panic loses the reply, and it may have come after the write began.
        answer.await.unwrap_or_else(|_| Err(Refusal::Unknown("the write was interrupted".into())))
    }

    /// Takes no more requests; those that wait are written.
    pub(super) fn close(&self) {
        self.queue().close();
        self.wake.notify_one();
    }

    /// Never held across an await, and nothing in it can be left half-changed.
    fn queue(&self) -> MutexGuard<'_, Queue<Request>> {
        lock(&self.queue)
    }

    async fn run(self: Arc<Self>) {
        loop {
            if self.tasks.is_cancelled() {
                self.queue().close();
            }
            let step = self.queue().step(Instant::now());
            match step {
                Step::Write(partition, batch) => {
                    self.tasks.spawn(Arc::clone(&self).write(partition, batch));
                }
                Step::Withdraw(requests) => self.withdraw(requests),
                Step::Wait(until) => self.wait(until).await,
                Step::Finished => return,
            }
        }
    }

    async fn wait(&self, until: Option<Instant>) {
        let timer = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let cancelled = async {
            match self.tasks.is_cancelled() {
                true => std::future::pending().await,
                false => self.tasks.cancelled().await,
            }
        };
        tokio::select! {
            () = self.wake.notified() => {}
            () = timer => {}
            () = cancelled => {}
        }
    }

    fn withdraw(&self, requests: Vec<Request>) {
        let why = match self.tasks.is_cancelled() {
            true => "this server stops, and its log does not take the rows",
            false => "the log did not take the rows in time",
        };
        tracing::warn!(topic = self.topic, requests = requests.len(), "withdrawn: {why}");
        answer(requests, &Err(Refusal::Withdrawn(why)));
    }

    /// Looks for the topic until it is there, and from then on for partitions that are added.
    async fn discover(self: Arc<Self>) {
        let mut told = false;
        while !self.tasks.is_cancelled() {
            let known = self.queue().partitions();
            match self.log.describe(&self.topic).await {
                Ok(Some(partitions)) if partitions.len() > known => {
                    if known > 0 {
                        tracing::info!(topic = self.topic, partitions = partitions.len(), "more partitions");
                        self.pause(SETTLED).await;
                    }
                    self.queue().set_partitions(partitions.len());
                    self.wake.notify_one();
                    told = false;
                }
                // Writes find out.
                _ if known > 0 => {}
                _ if told => {}
                Err(error) => {
                    tracing::warn!(topic = self.topic, %error, "the topic cannot be described yet");
                    told = true;
                }
                Ok(_) => {
                    tracing::warn!(topic = self.topic, "the topic does not exist yet");
                    told = true;
                }
            }
            let known = self.queue().partitions();
            self.pause(if known > 0 { LOOK_EVERY } else { DISCOVERY }).await;
        }
    }

    /// Waits so long, or until the topic is gone or the tasks end.
    async fn pause(&self, time: Duration) {
        tokio::select! {
            () = self.tasks.cancelled() => {}
            () = self.gone.notified() => {}
            () = tokio::time::sleep(time) => {}
        }
    }

    async fn write(self: Arc<Self>, partition: u32, mut batch: Vec<Request>) {
        let writing = Writing { batcher: &self, partition };
        let outcome = match self.records(&mut batch) {
            Ok(records) => self.append(partition, records).await,
            Err(refusal) => Err(refusal),
        };
        drop(writing);
        if let Err(refusal) = &outcome {
            tracing::warn!(topic = self.topic, partition, requests = batch.len(), "not written: {refusal}");
        } else {
            self.metrics.batch_rows.record(batch.iter().map(|request| request.rows).sum::<usize>() as f64);
        }
        answer(batch, &outcome);
    }

    /// About how many bytes rows take in a record; at most where a record is columns.
    fn bytes(&self, rows: &Rows) -> usize {
        match self.codec.row_bytes() {
            Some(row) => rows.text_bytes() + rows.count * row,
            None => rows.data_bytes(),
        }
    }

    /// The requests' rows as one record, or as many as the table's format needs.
    fn records(&self, batch: &mut [Request]) -> Result<Vec<NewRecord>, Refusal> {
        let empty = || Payload::Rows(Rows { count: 0, columns: Vec::new() });
        let mut joined: Option<Rows> = None;
        for request in batch {
            match std::mem::replace(&mut request.payload, empty()) {
                Payload::Records(records) => return Ok(records),
                Payload::Rows(rows) => match &mut joined {
                    None => joined = Some(rows),
                    Some(joined) => joined.append(&rows),
                },
            }
        }
        self.encode(joined.unwrap_or(Rows { count: 0, columns: Vec::new() }))
    }

    fn encode(&self, rows: Rows) -> Result<Vec<NewRecord>, Refusal> {
        let batch = rows
            .into_batch(Arc::clone(self.codec.schema()))
            .map_err(|error| Refusal::Impossible(error.to_string().into()))?;
        self.codec.encode(&batch).map_err(|error| match error {
            CodecError::TooLarge(bytes) => Refusal::TooLarge(bytes),
            error => Refusal::Impossible(error.to_string().into()),
        })
    }

    async fn append(&self, partition: u32, records: Vec<NewRecord>) -> Result<(), Refusal> {
        let began = Instant::now();
        let stopping = async {
            self.tasks.cancelled().await;
            tokio::time::sleep(DRAIN_LIMIT).await;
        };
        let appended = tokio::select! {
            appended = self.log.append(&self.topic, partition, records) => appended,
            () = tokio::time::sleep(APPEND_LIMIT) => Err(LogError::Indefinite("the log does not answer".to_owned())),
            () = stopping => Err(LogError::Indefinite("this server stops, and its log does not answer".to_owned())),
        };
        self.metrics.append_seconds.record(began.elapsed().as_secs_f64());
        appended.map(|_| ()).map_err(|error| match error {
            LogError::Unavailable(why) => Refusal::Unavailable(why.into()),
            LogError::Indefinite(why) => Refusal::Unknown(why.into()),
            LogError::UnknownTopic(_) => {
                self.queue().set_partitions(0);
                self.gone.notify_one();
                Refusal::Unavailable(error.to_string().into())
            }
            LogError::Fenced(_) | LogError::OffsetGone { .. } | LogError::Refused(_) => {
                Refusal::Impossible(error.to_string().into())
            }
        })
    }
}

fn answer(requests: Vec<Request>, outcome: &Result<(), Refusal>) {
    for request in requests {
        // A sender that has hung up is told nothing.
        drop(request.reply.send(outcome.clone()));
    }
}

/// Frees the partition even when the write panics.
struct Writing<'a> {
    batcher: &'a Batcher,
    partition: u32,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.batcher.queue().written(self.partition);
        self.batcher.wake.notify_one();
    }
}
