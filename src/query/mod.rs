//! Stage 3b: closed windows of every sink, read from the log, kept in memory within a bound, answered over HTTP.
//!
//! `gather` waits for the rest of a window, `store` keeps the windows, `tail` fills it from the sinks' topics, `results` reads a request's parameters and
//! answers it from the store, `routes` is the HTTP around it. After a restart everything is read back from the
//! topics, from the start of their retention; what the bound pushed out is still in the log, but not answered here.

mod gather;
pub mod results;
pub mod routes;
pub mod store;
pub mod tail;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};

use crate::log::Log;
use crate::log::program::ProgramView;
use crate::shutdown::Tasks;
use store::ResultStore;

/// `[query]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The most windows kept per sink; the oldest go first.
    pub history_windows: usize,
    /// The most bytes of rows kept over all sinks; the oldest windows of the largest sink go first.
    pub history_bytes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { history_windows: 100_000, history_bytes: 256 << 20 }
    }
}

/// How long an answer waits for results that are committed and not read yet.
const CATCH_UP: Duration = Duration::from_secs(1);

/// How many pages of results are put together at the same time; a page may take some tens of megabytes. Further
/// requests wait, at most [`PAGE_WAIT`], then get 503.
const PAGES: usize = 8;
const PAGE_WAIT: Duration = Duration::from_secs(5);

/// The running stage.
pub struct Query {
    log: Arc<dyn Log>,
    program: watch::Receiver<Arc<ProgramView>>,
    store: Arc<ResultStore>,
    pages: Arc<Semaphore>,
}

impl Query {
    /// Starts reading the results of the program's sinks.
    pub fn start(
        log: Arc<dyn Log>,
        program: watch::Receiver<Arc<ProgramView>>,
        settings: &Settings,
        tasks: &Tasks,
    ) -> Arc<Self> {
        let store = Arc::new(ResultStore::new(settings));
        let query = Arc::new(Self { log, program, store, pages: Arc::new(Semaphore::new(PAGES)) });
        let (log, program, store) = (Arc::clone(&query.log), query.program.clone(), Arc::clone(&query.store));
        tasks.spawn(tail::follow_sinks(log, program, store, tasks.clone()));
        query
    }

    /// Waits until every result that was committed before the call can be read at `/v1/results`; at most one second,
    /// then false.
    pub async fn caught_up(&self) -> bool {
        let reach = async {
            let program = self.program();
            let mut ends = BTreeMap::new();
            for sink in program.result_tables() {
                match self.log.describe(&sink.topic).await {
                    Ok(Some(ranges)) => {
                        let partitions = (0..).zip(ranges).map(|(partition, range)| (partition, range.end));
                        ends.insert(sink.name.clone(), partitions.collect());
                    }
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(sink = sink.name, %error, "the end of a sink's topic is not known");
                        return false;
                    }
                }
            }
            self.store.reached(&ends).await;
            true
        };
        tokio::time::timeout(CATCH_UP, reach).await.unwrap_or(false)
    }

    /// For `/readyz`: what is missing before results can be answered in full.
    ///
    /// # Errors
    /// Says which sinks are still being read back, or that there is no program yet.
    pub fn ready(&self) -> Result<(), String> {
        let program = self.program();
        if program.tables.is_empty() {
            return Err("the log holds no program yet; the engine writes it".to_owned());
        }
        let sinks = program.result_tables().map(|sink| sink.name.as_str());
        let behind: Vec<&str> = sinks.filter(|sink| !self.store.is_read_back(sink)).collect();
        if behind.is_empty() {
            Ok(())
        } else {
            Err(format!("reading back the results of {}", behind.join(", ")))
        }
    }

    fn program(&self) -> Arc<ProgramView> {
        Arc::clone(&self.program.borrow())
    }
}
