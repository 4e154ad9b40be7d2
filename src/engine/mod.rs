//! Stage 2: source → watermark → window → aggregate → closing → sink, with checkpoints.
//!
//! ```text
//!            for all queries       each query's own
//!             ┌ read, decode ┐     ┌ partition: filter, pane, group, accumulate ┐
//!  source ──▶ │ tail         │──┬─▶│ partition                                  │──hand over──▶ closing ──▶ …
//!             └ tail         ┘  │  └ partition                                  ┘   (barrier)    (merge)
//!                               └─▶ another query
//!
//!  … ──▶ plan above (DataFusion) ──▶ sink, figures and positions in one log transaction
//! ```
//!
//! The core ([`watermark`], [`window`], `aggregate`, [`partition`], [`closing`]) is pure: records, times and boundaries
//! are arguments. [`worker`] is the shell that reads, by way of `tail`, waits and commits. The SQL is cut at its window
//! (`sql::cut`): below, compiled expressions run record by record; above, each closed window is an ordinary DataFusion
//! query.
//!
//! Around it, queries change while they run: a [`Seat`] runs the [`Engine`] while this process holds the lease; a slot per
//! query brings one version after the other to run (`slot`), by the arithmetic of [`change`]; texts come over HTTP
//! ([`routes`], `edit`) or from the folder (`follow`).

mod above;
mod aggregate;
pub mod bounded;
pub mod bounds;
pub mod change;
mod chunk;
mod closed;
pub mod closing;
mod committing;
pub mod compile;
pub mod connector;
mod decode;
pub mod early;
mod edit;
mod expression;
mod failure;
mod feed;
mod filling;
mod folder;
mod follow;
mod group;
mod groups;
mod in_sequence;
mod inspect;
pub mod kept;
mod lookup;
mod outlet;
mod outside;
pub mod partition;
pub(crate) mod planned;
mod reading;
mod restoring;
mod ring;
pub mod routes;
mod run;
pub mod saved;
mod seat;
mod seldom;
mod session;
pub mod session_switch;
mod shared;
mod sharing;
pub mod sink;
mod sliding;
mod slot;
mod snapshot;
mod sorted;
pub mod spill;
pub mod statics;
mod steps;
mod tail;
mod taken;
mod takeover;
mod texts;
mod ticks;
pub mod watermark;
pub mod window;
pub mod worker;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

pub use self::edit::{ChangeError, Verdict};
pub use self::inspect::KeptRecord;
use self::partition::TimeRules;
use self::planned::{Files, Planned};
pub use self::seat::Seat;
use self::shared::Shared;
use self::slot::{Slot, Version};
use self::worker::QueryReport;
use crate::clock;
use crate::log::program::{self, ProgramView};
use crate::log::{Lease, Log, LogError};
use crate::reaction::table::Table;
use crate::shutdown::Tasks;
use crate::sql::Diagnostic;
use crate::sync::lock;

/// The section `[engine]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How long a partition must be quiet before its end moves the watermark. Default: 0 on the embedded log, 100 on
    /// Kafka, where the answer comes from a broker.
    pub idle_ms: Option<u64>,
    /// How many partitions are worked on at the same time. Default: the number of cores.
    pub workers: Option<usize>,
    /// The most groups a query may hold in the memory of open windows.
    pub max_groups: u64,
    /// The most bytes a query may hold in the memory of open windows. Default: a quarter of the machine's memory, or of
    /// the container's.
    pub max_state_bytes: Option<u64>,
    /// What happens at either.
    pub on_full: OnFull,
    /// The most bytes that a query may have on disk when windows spill; reaching it stops that query loudly.
    pub max_spill_bytes: u64,
    /// The folder for that. Default: `spill` in the data directory, or on Kafka the system's folder for temporary files.
    pub spill_dir: Option<PathBuf>,
    /// How far a row may be dated after its record's timestamp, in milliseconds.
    pub future_tolerance_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            idle_ms: None,
            workers: None,
            max_groups: 1_000_000,
            max_state_bytes: None,
            on_full: OnFull::Fail,
            max_spill_bytes: 16 << 30,
            spill_dir: None,
            future_tolerance_ms: 5_000,
        }
    }
}

impl Settings {
    /// Where windows spill, and at most how much; nowhere when a query stops instead.
    fn spill(&self) -> Option<(PathBuf, u64)> {
        let dir = || self.spill_dir.clone().unwrap_or_else(std::env::temp_dir);
        (self.on_full == OnFull::Spill).then(|| (dir(), self.max_spill_bytes))
    }
}

/// What a query does when it holds as much as it may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFull {
    /// It stops loudly, its state kept.
    #[default]
    Fail,
    /// It puts open windows on disk and goes on.
    Spill,
}

/// Where the program is, and how its topics are made.
#[derive(Clone, Debug)]
pub struct Place {
    /// The folder of SQL files.
    pub folder: PathBuf,
    /// How many partitions a table's topic is created with.
    pub partitions: u32,
    /// How long a table's topic keeps records.
    pub retention: Duration,
    /// The Kafka that is the log, as [`crate::reaction::table::servers_of`] has it; empty: the embedded one.
    pub servers: Vec<String>,
}

/// What the program is read from at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// The folder: what was edited while nothing ran counts.
    Folder,
    /// What ran in another process until now: the folder here may be another one, or older.
    Log,
}

/// Why the engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The SQL does not plan.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Refused(Vec<Diagnostic>),
    /// The folder cannot be read.
    #[error("{0}")]
    Folder(std::io::Error),
    /// Open windows could not be put aside.
    #[error("{0}")]
    Spill(#[from] spill::ShelfError),
    /// The log does not take the program.
    #[error("the log: {0}")]
    Log(#[from] LogError),
}

/// The queries that run in this process, and the program they came from.
pub struct Engine {
    place: Place,
    log: Arc<dyn Log>,
    shared: Arc<Shared>,
    tasks: Tasks,
    failures: slot::Failures,

    program: Mutex<Arc<Running>>,
    carried: Mutex<outside::Carried>,
    slots: Mutex<BTreeMap<String, Arc<Slot>>>,
    /// One change at a time. Holds the folder's texts as they were when they were last looked at.
    changing: tokio::sync::Mutex<Files>,
}

/// The program as it runs.
struct Running {
    planned: Planned,
    view: ProgramView,
}

impl Engine {
    /// Makes the folder's SQL the running program, creates the tables' topics, starts every query, and from then on
    /// follows the folder. A file whose text was rolled back stays so.
    ///
    /// # Errors
    /// When the SQL does not plan, the folder cannot be read, or the log does not take it; then nothing is started.
    async fn start(
        log: &Arc<dyn Log>,
        lease: &Arc<dyn Lease>,
        source: Source,
        place: Place,
        settings: &Settings,
        tasks: &Tasks,
    ) -> Result<Arc<Self>, EngineError> {
        let seen = blocking({
            let folder = place.folder.clone();
            move || folder::read(&folder)
        });
        let seen = seen.await.map_err(EngineError::Folder)?;
        let before = program::read(log.as_ref()).await?;
        let files = match source {
            Source::Log if !before.files.is_empty() => {
                follow::warn_of_differences(&place.folder, &seen, &before.files);
                before.files.clone()
            }
            _ => follow::without_rolled_back(&before, &seen),
        };
        let shared = Arc::new(Shared::new(Arc::clone(log), Arc::clone(lease), settings));
        let planned = plan(&place, shared.rules, files).await.map_err(EngineError::Refused)?;
        if let Some((dir, limit)) = settings.spill() {
            // Before anything is counted, not when the first window is too large.
            spill::Disk::new(&dir, limit)?;
        }
        log.create_topics(&edit::topics(&planned, &place)).await?;
        let view = program::store(log.as_ref(), &planned.view(), clock::wall_ns()).await?;
        let (failures, failed) = mpsc::channel(FAILURES);
        let engine = Arc::new(Self {
            shared,
            log: Arc::clone(log),
            tasks: tasks.clone(),
            failures,
            program: Mutex::new(Arc::new(Running { planned, view })),
            carried: Mutex::default(),
            slots: Mutex::default(),
            changing: tokio::sync::Mutex::new(seen),
            place,
        });
        let goes_on = engine.versions_at_checkpoints().await?;
        engine.reconcile(goes_on);
        let (rolling_back, watching) = (Arc::clone(&engine), Arc::clone(&engine));
        let token = tasks.token();
        tasks
            .spawn(async move { token.run_until_cancelled(rolling_back.roll_back_what_fails(failed)).await });
        let token = tasks.token();
        tasks.spawn(async move { token.run_until_cancelled(watching.follow_folder()).await });
        Ok(engine)
    }

    /// Whether every query has read its checkpoint and none has failed.
    ///
    /// # Errors
    /// Names those of which that is not so.
    pub fn restored(&self) -> Result<(), String> {
        let slots = lock(&self.slots).clone();
        let waiting = slots.iter().filter(|(_, slot)| !slot.running().is_restored());
        let (failed, waiting): (Vec<_>, Vec<_>) =
            waiting.partition(|(_, slot)| slot.running().state().0 == worker::State::Failed);
        let failed =
            failed.iter().map(|(name, _)| format!("query {name} failed: see last_error in /v1/queries"));
        let waiting = waiting.iter().map(|(name, _)| format!("restoring the checkpoint of {name}"));
        let missing: Vec<String> = failed.chain(waiting).collect();
        if missing.is_empty() { Ok(()) } else { Err(missing.join("; ")) }
    }

    /// The queries' names, in order.
    pub fn names(&self) -> Vec<String> {
        lock(&self.slots).keys().cloned().collect()
    }

    /// A query's state and figures; `None` when there is none of that name.
    ///
    /// # Errors
    /// When the log does not answer.
    pub async fn report(&self, name: &str) -> Result<Option<QueryReport>, LogError> {
        match self.slot(name) {
            Some(slot) => slot.report().await.map(Some),
            None => Ok(None),
        }
    }

    /// The tables of the running program.
    pub fn tables(&self) -> Vec<Table> {
        self.program().planned.tables.clone()
    }

    /// Ends when another process has fenced one of the queries.
    async fn fenced(&self) {
        self.shared.fenced().await;
    }

    fn slot(&self, name: &str) -> Option<Arc<Slot>> {
        lock(&self.slots).get(name).cloned()
    }

    fn program(&self) -> Arc<Running> {
        Arc::clone(&lock(&self.program))
    }

    /// Brings the slots to what the program says. `goes_on` are the versions that wrote the checkpoints and run until the
    /// new ones can take over.
    fn reconcile(&self, mut goes_on: BTreeMap<String, Arc<Version>>) {
        let program = self.program();
        self.carry(&program);
        let mut slots = lock(&self.slots);
        for (name, query) in &program.planned.queries {
            let number = program.view.queries.get(name).map_or(1, |entry| entry.version);
            let version = Arc::new(Version { number, query: query.clone() });
            match slots.get(name) {
                Some(slot) => {
                    let wanted = slot.wanted();
                    if (wanted.number, &wanted.query.identity) != (number, &query.identity) {
                        slot.want(version);
                    }
                }
                None => {
                    let before = goes_on.remove(name);
                    let failures = self.failures.clone();
                    let slot = Slot::start(&self.shared, version, before, failures, &self.tasks);
                    slots.insert(name.clone(), slot);
                }
            }
        }
    }

    /// By query, the version that wrote the checkpoint when that is not the one to run, and can still be planned.
    async fn versions_at_checkpoints(&self) -> Result<BTreeMap<String, Arc<Version>>, LogError> {
        let program = self.program();
        let mut versions = BTreeMap::new();
        for (name, entry) in &program.view.queries {
            // A damaged checkpoint is the query's to report.
            let checkpoint = worker::read_checkpoint(self.log.as_ref(), name).await.ok().flatten();
            let number = checkpoint.map_or(entry.version, |checkpoint| checkpoint.version);
            let history = program.view.versions.get(name);
            let Some(old) = history.and_then(|history| history.get(&number)) else { continue };
            if number == entry.version {
                continue;
            }
            let mut files = program.planned.files.clone();
            files.insert(planned::file_of(name), old.text.clone());
            let planned = plan(&self.place, self.shared.rules, files).await.ok();
            if let Some(query) = planned.and_then(|mut planned| planned.queries.remove(name)) {
                versions.insert(name.clone(), Arc::new(Version { number, query }));
            }
        }
        Ok(versions)
    }
}

/// How many failed versions may wait to be rolled back; a query waits when there are more.
const FAILURES: usize = 16;

/// Plans where it may take its time.
async fn plan(place: &Place, rules: TimeRules, files: Files) -> Result<Planned, Vec<Diagnostic>> {
    let (place, name) = (place.clone(), place.folder.display().to_string());
    let planning = move || Planned::of(&place.folder, &place.servers, rules.future_tolerance_ms, &files);
    let planned = tokio::task::spawn_blocking(planning).await;
    planned.unwrap_or_else(|error| {
        Err(vec![planned::at_start(name, &format!("the planner ended, this is a defect: {error}"), "")])
    })
}

/// Runs what reads or writes files where it may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}
