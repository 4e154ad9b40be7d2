//! What all queries of the process share: the log, the lease, the rules of time, the bounds.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::bounds::Bounds;
use super::failure::Failure;
use super::feed::Fed;
use super::partition::TimeRules;
use super::spill::{Disk, Spill};
use super::tail::{self, Tails};
use crate::log::{Lease, Log};

/// What all queries of the process share.
pub(super) struct Shared {
    pub(super) log: Arc<dyn Log>,
    /// What queries read together.
    pub(super) tails: Tails,
    /// Who does not hold it fences nobody.
    lease: Arc<dyn Lease>,
    /// Another process has fenced one of the queries: it runs them now.
    pub(super) fenced: CancellationToken,
    /// Of each query.
    pub(super) bounds: Bounds,
    /// Where it puts aside what is more, and at most how much; nowhere when it stops then.
    pub(super) spill: Option<(PathBuf, u64)>,
    pub(super) rules: TimeRules,
    /// As many partitions are worked on at the same time.
    pub(super) workers: Semaphore,
    /// Topics that are written from here.
    pub(super) fed: Fed,
}

impl Shared {
    /// From the settings, and what the log is.
    pub(super) fn new(log: Arc<dyn Log>, lease: Arc<dyn Lease>, settings: &Settings) -> Self {
        let idle_ms = settings.idle_ms.unwrap_or(if log.is_shared() { 100 } else { 0 });
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            rules: TimeRules {
                future_tolerance_ms: i64::try_from(settings.future_tolerance_ms).unwrap_or(i64::MAX),
                idle_ms: i64::try_from(idle_ms).unwrap_or(i64::MAX),
            },
            bounds: Bounds::new(settings),
            spill: settings.spill(),
            workers: Semaphore::new(settings.workers.unwrap_or(cores).max(1)),
            tails: Tails::new(Arc::clone(&log), tail::LIMITS),
            lease,
            fenced: CancellationToken::new(),
            fed: Fed::default(),
            log,
        }
    }

    /// What a run of a query puts aside in, if it does.
    pub(super) fn spill(&self) -> Result<Option<Arc<Spill>>, Failure> {
        let Some((dir, limit)) = &self.spill else { return Ok(None) };
        let disk = Disk::new(dir, *limit).map_err(|error| Failure::Stop(error.to_string()))?;
        Ok(Some(Arc::new(Spill::new(Arc::new(disk), self.bounds.bytes())?)))
    }

    /// Whether this process may fence, as far as it can know.
    pub(super) fn is_leader(&self) -> bool {
        self.lease.is_held()
    }

    /// Ends when another process has fenced one of the queries.
    pub(super) async fn fenced(&self) {
        self.fenced.cancelled().await;
    }
}
