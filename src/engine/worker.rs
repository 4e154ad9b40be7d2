//! The shell around the pure core: starts the readers, waits for windows to end, commits, recovers.
//!
//! One task per partition (`reading`) feeds the run (`run`); one task per query closes windows when the minimum of the
//! watermarks passes a boundary, and commits rows, figures and positions in one transaction. While a commit is under
//! way partitions go on reading. After any doubt about the log — the process was killed, a commit's end is not known —
//! the query starts over: fence, read the checkpoint, rebuild what was open.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::closing::{Closer, Start};
use super::committing::{RETRY, commit, hold, observe, save_ahead, transaction, writer_id};
use super::compile::CompiledQuery;
use super::failure::Failure;
use super::reading::{describe, observe_lag, ranges, read_partition};
use super::run::{COMMIT_EVERY, Committed, Run};
use super::shared::Shared;
use super::ticks::Ticks;
use super::{group, restoring, takeover};
use crate::clock;
use crate::log::{Log, LogError, Record, TOPIC_CHECKPOINTS, Writer};
use crate::reaction::checkpoint::{Checkpoint, Gap};
use crate::reaction::figures::Figures;
use crate::reaction::time::{NS_PER_MS, format_rfc3339};
use crate::shutdown::Tasks;
use crate::sync::lock;

/// How long a request for figures waits for the readers to reach the log's end.
const FIGURES_WAIT: Duration = Duration::from_secs(1);
/// On a shared log, how long after a (re)start no partition counts as idle, besides the table's delay: a flush of
/// ingest that may be under way (200 ms) and a second.
const SHARED_HOLD_MS: i64 = 1_200;

/// What a query is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Reading its checkpoint, rebuilding open windows, or waiting for the log.
    #[default]
    Recovering,
    /// Up to date or catching up.
    Running,
    /// Up to date or catching up, until its next version takes over at a boundary.
    Switching,
    /// Another process runs it.
    Fenced,
    /// Stopped by an error that needs somebody; see `last_error`.
    Failed,
}

/// A query's state as `GET /v1/queries/{name}` tells it.
#[derive(Clone, Debug, Serialize)]
pub struct QueryReport {
    /// The file's name without `.sql`.
    pub name: String,
    /// The file's text.
    pub text: String,
    /// Rises with every change of the text.
    pub version: u64,
    /// What it is doing.
    pub state: State,
    /// RFC 3339; null before the first row.
    pub watermark: Option<String>,
    /// Records of the source topic not read yet at this cut.
    pub lag_records: i64,
    /// The account at this cut.
    #[serde(flatten)]
    pub figures: Figures,
    /// Why it failed, or what it last recovered from.
    pub last_error: Option<String>,
    /// Event time for which this version emitted nothing.
    pub gap: Option<Gap>,
    /// How much of its open windows is on disk.
    pub spilled_bytes: u64,
}

/// How far a version has come, for those who wait for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) state: State,
    /// Windows committed in this process.
    pub(super) windows: usize,
    /// Its tasks have ended: it commits nothing any more.
    pub(super) has_ended: bool,
}

/// One version of a query in this process.
pub struct RunningQuery {
    query: Arc<CompiledQuery>,
    text: String,
    version: u64,
    shared: Arc<Shared>,
    stop: CancellationToken,
    status: Mutex<Status>,
    progress: watch::Sender<Progress>,
}

struct Status {
    state: State,
    last_error: Option<String>,
    /// Where its next version takes over.
    stop_at: Option<i64>,
    run: Option<Arc<Run>>,
}

impl RunningQuery {
    /// Starts the query's tasks.
    pub(super) fn start(
        shared: Arc<Shared>,
        query: Arc<CompiledQuery>,
        text: String,
        version: u64,
        tasks: &Tasks,
    ) -> Arc<Self> {
        let status = Status { state: State::Recovering, last_error: None, stop_at: None, run: None };
        let (status, progress) = (Mutex::new(status), watch::Sender::new(Progress::default()));
        let stop = tasks.token().child_token();
        let running = Arc::new(Self { query, text, version, shared, stop, status, progress });
        let supervised = Arc::clone(&running);
        tasks.spawn(async move {
            let supervising = AssertUnwindSafe(supervised.supervise(supervised.stop.clone()));
            if supervising.catch_unwind().await.is_err() {
                // Whoever waits for its end would wait for ever.
                let reason = "closing windows panicked, this is a defect; the process's log says where";
                tracing::error!(query = supervised.query.name, reason, "the query stopped");
                supervised.set(State::Failed, Some(reason.to_owned()));
            }
            supervised.progress.send_modify(|progress| progress.has_ended = true);
        });
        running
    }

    /// The compiled plan it runs.
    pub(super) fn compiled(&self) -> &Arc<CompiledQuery> {
        &self.query
    }

    /// How far it is, and every change of that.
    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Ends its tasks after a commit that is under way, and waits for that.
    pub(super) async fn end(&self) {
        self.stop.cancel();
        // The sender lives as long as this does.
        self.progress.subscribe().wait_for(|progress| progress.has_ended).await.ok();
    }

    /// Emits no window that ends after what `choose` answers, which is told the end of the last window emitted, and ends
    /// once everything up to there is committed. `None` takes that back.
    pub(super) fn stop_at(&self, choose: impl FnOnce(Option<i64>) -> Option<i64>) -> Option<i64> {
        let mut status = lock(&self.status);
        let stop_at = match &status.run {
            Some(run) => run.stop_at(choose),
            None => choose(None),
        };
        status.stop_at = stop_at;
        if let (State::Running | State::Switching, stops) = (status.state, stop_at.is_some()) {
            status.state = if stops { State::Switching } else { State::Running };
        }
        stop_at
    }

    /// The watermark, or `None` before the first row.
    pub(super) fn watermark(&self) -> Option<i64> {
        lock(&self.status).run.as_ref().and_then(|run| run.watermark())
    }

    /// Whether its checkpoint is read and its open windows are rebuilt.
    pub fn is_restored(&self) -> bool {
        matches!(lock(&self.status).state, State::Running | State::Switching)
    }

    /// What it is doing, and why it stopped if it did.
    pub fn state(&self) -> (State, Option<String>) {
        let status = lock(&self.status);
        (status.state, status.last_error.clone())
    }

    async fn supervise(&self, token: CancellationToken) {
        let mut wait = RETRY.0;
        while !token.is_cancelled() {
            let began = Instant::now();
            let failure = match self.run(&token).await {
                Ok(()) => return,
                Err(failure) => failure,
            };
            let (state, reason) = match failure {
                Failure::Renew(reason) => {
                    tracing::info!(query = self.query.name, reason, "the query goes on from its checkpoint");
                    self.set(State::Recovering, None);
                    continue;
                }
                Failure::Recover(reason) => (State::Recovering, reason),
                Failure::Fenced(reason) => (State::Fenced, reason),
                Failure::Stop(reason) => (State::Failed, reason),
            };
            // As `/v1/queries` writes it.
            let written = format!("{state:?}").to_lowercase();
            tracing::error!(query = self.query.name, state = written, reason, "the query stopped");
            self.set(state, Some(reason));
            if state == State::Fenced {
                self.shared.fenced.cancel();
            }
            if state != State::Recovering {
                return;
            }
            wait = if began.elapsed() > RETRY.1 { RETRY.0 } else { (wait * 2).min(RETRY.1) };
            tokio::select! {
                () = token.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn set(&self, state: State, error: Option<String>) {
        let mut status = lock(&self.status);
        let switches = state == State::Running && status.stop_at.is_some();
        status.state = if switches { State::Switching } else { state };
        if error.is_some() {
            status.last_error = error;
        }
        self.progress.send_if_modified(|progress| {
            std::mem::replace(&mut progress.state, status.state) != status.state
        });
    }

    /// Recovers, then runs until the token is cancelled or something fails.
    async fn run(&self, token: &CancellationToken) -> Result<(), Failure> {
        let (run, start, writer) = self.recover().await?;
        let ended = self.run_from(&run, &start, writer, token).await;
        run.forget_spilled();
        ended
    }

    async fn run_from(
        &self,
        run: &Arc<Run>,
        start: &Start,
        writer: Box<dyn Writer>,
        token: &CancellationToken,
    ) -> Result<(), Failure> {
        {
            let mut status = lock(&self.status);
            if let Some(at) = status.stop_at {
                run.stop_at(|_| Some(at));
            }
            status.run = Some(Arc::clone(run));
        }
        let stop = token.child_token();
        let _stop_readers = stop.clone().drop_guard();
        let mut readers = tokio::task::JoinSet::new();
        for (index, lane) in start.lanes.iter().enumerate() {
            let (shared, run, stop, lane) = (Arc::clone(&self.shared), Arc::clone(run), stop.clone(), *lane);
            readers.spawn(async move { read_partition(&shared, &run, index, lane, &stop).await });
        }
        let (shared, observed, stopped) = (Arc::clone(&self.shared), Arc::clone(run), stop.clone());
        readers.spawn(async move { observe_lag(&shared, &observed, &stopped).await });
        let committing = self.close_and_commit(run, start, writer, &stop);
        tokio::pin!(committing);
        loop {
            tokio::select! {
                ended = &mut committing => return ended,
                Some(ended) = readers.join_next() => match ended {
                    Ok(Ok(())) => {}
                    Ok(Err(renew @ Failure::Renew(_))) => {
                        // What is being committed is finished first.
                        stop.cancel();
                        committing.as_mut().await?;
                        return Err(renew);
                    }
                    Ok(Err(failure)) => return Err(failure),
                    Err(error) => return Err(Failure::Stop(format!("a reader ended: {error}"))),
                },
            }
        }
    }

    /// Fences, then reads the checkpoint, then decides from where to read.
    async fn recover(&self) -> Result<(Arc<Run>, Start, Box<dyn Writer>), Failure> {
        let (log, query) = (&self.shared.log, &self.query);
        if !self.shared.is_leader() {
            return Err(Failure::Fenced("this process does not hold the lease".to_owned()));
        }
        let writer = log.fence_with(&writer_id(&query.name), &query.client_configs()).await?;
        let latest = log.latest_of(TOPIC_CHECKPOINTS, query.name.as_bytes()).await?;
        let checkpoint = checkpoint_of(&latest, &query.name)?;
        let ranges = ranges(log.as_ref(), query).await?;
        let starts = group::starts(log.as_ref(), query, checkpoint.as_ref(), &ranges).await?;
        let start = match checkpoint.as_ref().and_then(|checkpoint| query.taken_over(checkpoint)) {
            Some((checkpoint, told)) => {
                let tolerance_ms = self.shared.rules.future_tolerance_ms;
                takeover::start(log.as_ref(), query, checkpoint, told, &ranges, tolerance_ms).await?
            }
            None if checkpoint.is_none() && query.starts_at_the_end() => {
                let ends = ranges.iter().map(|ranges| ranges.iter().map(|range| range.end).collect());
                Start::from_now_on(query, &ends.collect::<Vec<_>>(), clock::wall_ns())
            }
            None => Start::decide(query, checkpoint.as_ref(), &starts),
        };
        if let Some(gap) = start.gap {
            let (from, to) = (format_rfc3339(gap.from), format_rfc3339(gap.to));
            tracing::warn!(query = query.name, from, to, "the new version starts after a gap");
        }
        let mut closer = Closer::new(Arc::clone(query), self.version, &start);
        let (bounds, spill) = (self.shared.bounds, self.shared.spill()?);
        restoring::restore(log.as_ref(), &mut closer, &start, &latest, bounds, spill.as_ref()).await?;
        let hold_ms = if log.is_shared() { SHARED_HOLD_MS + query.delay_ns() / NS_PER_MS } else { 0 };
        let rules = self.shared.rules;
        let hold_until_ms = clock::wall_ms() + hold_ms;
        let run = Run::new(Arc::clone(query), closer, rules, &start, hold_until_ms, spill)?;
        Ok((Arc::new(run), start, writer))
    }

    /// Closes windows when they are over, and commits.
    async fn close_and_commit(
        &self,
        run: &Run,
        start: &Start,
        mut writer: Box<dyn Writer>,
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        let mut sink_partitions = Vec::with_capacity(self.query.outputs.len());
        for output in &self.query.outputs {
            let partitions = match output.sink.is_in_the_log() {
                true => describe(self.shared.log.as_ref(), &output.sink.topic).await?.len(),
                false => 0,
            };
            sink_partitions.push(u32::try_from(partitions).unwrap_or(u32::MAX));
        }
        let mut committed = Committed { at: Instant::now(), rows: 0, positions: BTreeMap::new() };
        let mut ticks = Ticks::new(&self.query, Instant::now());
        loop {
            let progress = run.progress.notified();
            if run.is_rebuilt() {
                self.set(State::Running, None);
                let began = Instant::now();
                let closed = run.close(&committed, &ticks.due(began))?;
                if committed.is_due() || closed.is_some() {
                    committed.at = Instant::now();
                }
                if let Some(closed) = closed {
                    committed.rows = closed.checkpoint.figures.accepted - start.figures.accepted;
                    committed.positions = closed.checkpoint.sources.clone();
                    let transaction = transaction(&self.query, &closed, &sink_partitions)?;
                    let _committing = run.committing();
                    if !save_ahead(writer.as_mut(), &closed.saved, stop).await? {
                        return Ok(());
                    }
                    if !commit(writer.as_mut(), transaction, stop).await? {
                        return Ok(());
                    }
                    run.committed(closed.checkpoint.figures.counted);
                    hold(self.shared.log.as_ref(), &self.query.name, &closed.checkpoint).await?;
                    observe(&self.query.name, &closed);
                    self.progress.send_modify(|progress| progress.windows += closed.windows().count());
                    if run.is_at_its_stop() {
                        return Ok(());
                    }
                    ticks.done(began, Instant::now());
                    continue;
                }
                ticks.done(began, Instant::now());
            }
            let due = committed.at + COMMIT_EVERY;
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = progress => {}
                () = tokio::time::sleep_until(ticks.next().map_or(due, |tick| tick.min(due))) => {}
            }
        }
    }

    /// The query's state and figures at one consistent cut: the log's end at this moment, if the readers reach it
    /// within a second, else where they are (`lag_records` says so).
    ///
    /// # Errors
    /// When the log does not answer.
    pub async fn report(&self) -> Result<QueryReport, LogError> {
        let ranges = ranges(self.shared.log.as_ref(), &self.query).await?;
        let run = lock(&self.status).run.clone();
        let mut figures = Figures::default();
        let (mut lag_records, mut watermark, mut gap, mut spilled_bytes) = (0, None, None, 0);
        if let Some(run) = run {
            if self.is_restored() {
                let reached = run.reach(&ranges);
                // Not reached in time is an answer too: `lag_records` tells.
                tokio::time::timeout(FIGURES_WAIT, reached).await.unwrap_or_default();
            }
            lag_records = run.lag(&ranges);
            figures = run.figures();
            watermark = run.watermark().map(format_rfc3339);
            gap = run.gap;
            spilled_bytes = run.spilled_bytes();
        }
        let (state, last_error) = self.state();
        Ok(QueryReport {
            name: self.query.name.clone(),
            text: self.text.clone(),
            version: self.version,
            state,
            watermark,
            lag_records,
            figures,
            last_error,
            gap,
            spilled_bytes,
        })
    }
}

/// The query's newest committed checkpoint.
pub(super) async fn read_checkpoint(log: &dyn Log, query: &str) -> Result<Option<Checkpoint>, Failure> {
    checkpoint_of(&log.latest_of(TOPIC_CHECKPOINTS, query.as_bytes()).await?, query)
}

fn checkpoint_of(latest: &BTreeMap<Bytes, Record>, query: &str) -> Result<Option<Checkpoint>, Failure> {
    let Some(value) = latest.get(query.as_bytes()).and_then(|record| record.value.as_ref()) else {
        return Ok(None);
    };
    let checkpoint = serde_json::from_slice(value);
    checkpoint
        .map(Some)
        .map_err(|error| Failure::Stop(format!("the checkpoint of {query} is damaged: {error}")))
}
