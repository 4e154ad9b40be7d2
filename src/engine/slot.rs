//! One query by its name: the version that runs, the one that is to follow, and the one to go back to.
//!
//! ```text
//!  wanted ──▶ same plan at the cut: end the old one, start the new one on its checkpoint
//!        └──▶ another one: the old one goes on to the boundary, ends there, then the new one starts
//!  failed before it has shown that it works ──▶ the engine wants the version before it again
//! ```

use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::change;
use super::compile::CompiledQuery;
use super::planned::PlannedQuery;
use super::shared::Shared;
use super::worker::{Progress, QueryReport, RunningQuery, State};
use crate::log::LogError;
use crate::reaction::time::format_rfc3339;
use crate::shutdown::Tasks;
use crate::sync::lock;

/// A version that has committed so many windows is not rolled back any more: its failure then is of its data.
const PROVEN_WINDOWS: usize = 3;

/// A version of a query, ready to run.
#[derive(Debug)]
pub(super) struct Version {
    /// Its number.
    pub(super) number: u64,
    pub(super) query: PlannedQuery,
}

impl Version {
    pub(super) fn as_compared(&self) -> change::Version<'_> {
        self.query.as_compared()
    }

    fn compiled(&self) -> &Arc<CompiledQuery> {
        &self.query.compiled
    }
}

/// A version that failed before it had shown that it works.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) query: String,
    pub(super) version: u64,
    /// The version to go back to.
    pub(super) to: Arc<Version>,
    pub(super) reason: String,
}

/// Whom a slot tells of a version that failed.
pub(super) type Failures = tokio::sync::mpsc::Sender<Failed>;

/// A query of the running program.
pub(super) struct Slot {
    shared: Arc<Shared>,
    tasks: Tasks,
    stop: CancellationToken,

    wanted: watch::Sender<Arc<Version>>,
    running: Mutex<Arc<RunningQuery>>,
    /// What is wrong with an edit that did not become the running version.
    note: Mutex<Option<String>>,
    has_ended: watch::Sender<bool>,
}

impl Slot {
    /// Starts the query. `before` wrote its checkpoint, if that was another version: it goes on until `wanted` can take over.
    pub(super) fn start(
        shared: &Arc<Shared>,
        wanted: Arc<Version>,
        before: Option<Arc<Version>>,
        failures: Failures,
        tasks: &Tasks,
    ) -> Arc<Self> {
        let first = before.unwrap_or_else(|| Arc::clone(&wanted));
        let slot = Arc::new(Self {
            running: Mutex::new(launch(shared, &first, tasks)),
            shared: Arc::clone(shared),
            tasks: tasks.clone(),
            stop: tasks.token().child_token(),
            wanted: watch::Sender::new(wanted),
            note: Mutex::default(),
            has_ended: watch::Sender::new(false),
        });
        let driven = Arc::clone(&slot);
        tasks.spawn(async move {
            driven.drive(first, failures).await;
            driven.has_ended.send_replace(true);
        });
        slot
    }

    /// What runs, or will as soon as it can take over.
    pub(super) fn wanted(&self) -> Arc<Version> {
        Arc::clone(&self.wanted.borrow())
    }

    /// What runs now.
    pub(super) fn running(&self) -> Arc<RunningQuery> {
        Arc::clone(&lock(&self.running))
    }

    /// Makes that version follow.
    pub(super) fn want(&self, version: Arc<Version>) {
        self.wanted.send_replace(version);
    }

    /// Says in `last_error` what is wrong with an edit, or that nothing is.
    pub(super) fn note(&self, note: Option<String>) {
        *lock(&self.note) = note;
    }

    /// Ends the query; when this returns, nothing in this process commits for it any more.
    pub(super) async fn end(&self) {
        self.stop.cancel();
        // The sender lives as long as this does.
        self.has_ended.subscribe().wait_for(|ended| *ended).await.ok();
    }

    /// The text and number of what is wanted, the state and figures of what runs.
    ///
    /// # Errors
    /// When the log does not answer.
    pub(super) async fn report(&self) -> Result<QueryReport, LogError> {
        let report = self.running().report().await?;
        let wanted = self.wanted();
        let last_error = lock(&self.note).clone().or(report.last_error);
        let is_followed = report.version != wanted.number && report.state == State::Running;
        let state = if is_followed { State::Switching } else { report.state };
        Ok(QueryReport {
            text: wanted.query.text.clone(),
            version: wanted.number,
            state,
            last_error,
            ..report
        })
    }

    async fn drive(&self, first: Arc<Version>, failures: Failures) {
        let mut changes = self.wanted.subscribe();
        let (mut current, mut proven): (Arc<Version>, Option<Arc<Version>>) = (first, None);
        loop {
            let wanted = Arc::clone(&changes.borrow_and_update());
            let running = self.running();
            if Arc::ptr_eq(&wanted, &current) {
                tokio::select! {
                    () = self.stop.cancelled() => break,
                    _ = changes.changed() => {}
                    reason = failed_unproven(&running), if proven.is_some() => {
                        // If it works, what comes before it is not needed any more.
                        if let (Some(reason), Some(to)) = (reason, proven.take()) {
                            let (query, version) = (running.compiled().name.clone(), current.number);
                            // Nobody listens only while the process ends.
                            tokio::select! {
                                () = self.stop.cancelled() => break,
                                _ = failures.send(Failed { query, version, to, reason }) => {}
                            }
                        }
                    }
                }
                continue;
            }
            tokio::select! {
                () = self.stop.cancelled() => break,
                has_ended = hand_over(&running, &current, &wanted, &mut changes) => if has_ended {
                    let failed = running.state().0 == State::Failed;
                    *lock(&self.running) = launch(&self.shared, &wanted, &self.tasks);
                    // The same number: its tables changed. There is no other text to go back to.
                    let going_back = wanted.number <= current.number;
                    proven = (!failed && !going_back).then_some(current);
                    current = wanted;
                },
            }
        }
        self.running().end().await;
    }
}

fn launch(shared: &Arc<Shared>, version: &Version, tasks: &Tasks) -> Arc<RunningQuery> {
    let PlannedQuery { compiled, text, .. } = version.query.clone();
    RunningQuery::start(Arc::clone(shared), compiled, text, version.number, tasks)
}

/// Brings the running version to where the next one takes over. True when it has ended; false when something else is
/// wanted meanwhile.
async fn hand_over(
    running: &RunningQuery,
    old: &Version,
    new: &Version,
    changes: &mut watch::Receiver<Arc<Version>>,
) -> bool {
    let mut progress = running.progress();
    let (before, after) = (old.compiled(), new.compiled());
    let mut stop_at = None;
    if before.fingerprint != after.fingerprint && before.topics() == after.topics() {
        // What it has emitted is known when it has restored its checkpoint.
        let restored = |progress: &Progress| progress.has_ended || progress.state != State::Recovering;
        tokio::select! {
            _ = progress.wait_for(restored) => {}
            _ = changes.changed() => return false,
        }
        if running.is_restored() {
            // Before the first window there is nothing that both could emit.
            let boundary = |emitted| change::boundary(before.rhythm(), after.rhythm(), emitted).at;
            stop_at = running.stop_at(|emitted| emitted.map(boundary));
        }
    }
    let Some(at) = stop_at else {
        running.end().await;
        return true;
    };
    let at = format_rfc3339(at);
    tracing::info!(query = before.name, version = new.number, at, "the new version takes over then");
    tokio::select! {
        ended = progress.wait_for(|progress| progress.has_ended) => ended.is_ok(),
        _ = changes.changed() => {
            running.stop_at(|_| None);
            false
        }
    }
}

/// Why a version failed before it had shown that it works; `None` when it has shown it, or ended otherwise.
async fn failed_unproven(running: &RunningQuery) -> Option<String> {
    let mut progress = running.progress();
    let decided = |progress: &Progress| {
        progress.windows >= PROVEN_WINDOWS || progress.state == State::Failed || progress.has_ended
    };
    let Progress { state, windows, .. } = *progress.wait_for(decided).await.ok()?;
    let (_, reason) = running.state();
    (state == State::Failed && windows < PROVEN_WINDOWS).then(|| reason.unwrap_or_default())
}
