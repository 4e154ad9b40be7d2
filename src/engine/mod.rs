//! Stage 2: source → watermark → window → aggregate → closing → sink, with checkpoints.
//!
//! ```text
//!            ┌ partition: decode, filter, pane, group, accumulate ┐
//!  source ──▶│ partition                                          │──hand over──▶ closing ──▶ plan above ──▶ sink
//!            └ partition                                          ┘   (barrier)    (merge)     (DataFusion)
//!                                                                                     └── one log transaction ──┘
//! ```
//!
//! The core ([`watermark`], [`window`], `aggregate`, [`partition`], [`closing`]) is pure: records, times and boundaries
//! are arguments. [`worker`] is the shell that reads, waits and commits. The SQL is cut at its window (`sql::cut`):
//! below, compiled expressions run record by record; above, each closed window is an ordinary DataFusion query.

mod above;
mod aggregate;
pub mod bounded;
mod closed;
pub mod closing;
pub mod compile;
pub mod connector;
mod decode;
mod expression;
mod groups;
pub mod partition;
pub mod routes;
mod run;
pub mod saved;
mod session;
pub mod sink;
mod sliding;
mod snapshot;
pub mod watermark;
pub mod window;
pub mod worker;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::log::Log;
use crate::log::program::ProgramView;
use crate::shutdown::Tasks;
use crate::sql;
use compile::CompiledQuery;
use worker::RunningQuery;

/// The section `[engine]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How long a partition must be quiet before its end moves the watermark. Default: 0 on the embedded log, 100 on
    /// Kafka, where the answer comes from a broker.
    pub idle_ms: Option<u64>,
    /// How many partitions are worked on at the same time. Default: the number of cores.
    pub workers: Option<usize>,
    /// The most groups a query may hold in open windows; reaching it stops that query loudly.
    pub max_groups: u64,
    /// How far a row may be dated after its record's timestamp, in milliseconds.
    pub future_tolerance_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { idle_ms: None, workers: None, max_groups: 1_000_000, future_tolerance_ms: 5_000 }
    }
}

/// Why the engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A query passed the planner and cannot be compiled.
    #[error("{query}: {reason}")]
    Compile {
        /// The query.
        query: String,
        /// What DataFusion says.
        reason: String,
    },
}

/// The queries that run in this process.
pub struct Engine {
    queries: BTreeMap<String, Arc<RunningQuery>>,
}

impl Engine {
    /// Compiles every query of the program, then starts them. `versions` is what the log knows of the program.
    ///
    /// The topics of the tables, and the checkpoints' topic, must exist.
    ///
    /// # Errors
    /// When one does not compile; then none is started.
    pub fn start(
        log: &Arc<dyn Log>,
        program: &sql::Program,
        versions: &ProgramView,
        settings: &Settings,
        tasks: &Tasks,
    ) -> Result<Arc<Self>, EngineError> {
        let compiled = program.queries.iter().map(|query| {
            let compiled = CompiledQuery::compile(query).map_err(|error| EngineError::Compile {
                query: query.name.clone(),
                reason: error.to_string(),
            })?;
            Ok((query, Arc::new(compiled)))
        });
        let compiled = compiled.collect::<Result<Vec<_>, _>>()?;
        let shared = Arc::new(worker::Shared::new(Arc::clone(log), settings));
        let queries = compiled.into_iter().map(|(query, compiled)| {
            let version = versions.queries.get(&query.name).map_or(1, |entry| entry.version);
            let running =
                RunningQuery::start(Arc::clone(&shared), compiled, query.text.clone(), version, tasks);
            (query.name.clone(), running)
        });
        Ok(Arc::new(Self { queries: queries.collect() }))
    }

    /// The queries, by name.
    pub fn queries(&self) -> &BTreeMap<String, Arc<RunningQuery>> {
        &self.queries
    }
}
