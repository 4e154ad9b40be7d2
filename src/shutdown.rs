//! Tasks that end together: spawned here, cancelled by one token, awaited with a limit.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The tasks of one process. Clones share one token and one tracker.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    token: CancellationToken,
    tracker: TaskTracker,
}

impl Tasks {
    /// A set with no task yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `task` until it ends; it should watch [`Tasks::cancelled`] and end soon after.
    pub fn spawn<F>(&self, task: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn(task)
    }

    /// Runs blocking work on the runtime's blocking threads, tracked like any task.
    pub fn spawn_blocking<F, T>(&self, work: F) -> tokio::task::JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.tracker.spawn_blocking(work)
    }

    /// Ends when the process is asked to stop.
    pub async fn cancelled(&self) {
        self.token.cancelled().await;
    }

    /// Whether the process was asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Asks every task to stop.
    pub fn cancel(&self) {
        self.token.cancel();
    }

    /// The token, for code that takes one.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// A set of its own that is cancelled with this one, and can be cancelled and awaited alone before it.
    pub fn child(&self) -> Self {
        Self { token: self.token.child_token(), tracker: TaskTracker::new() }
    }

    /// Asks every task to stop and waits for all of them, at most `limit`. False when some did not end.
    pub async fn stop(&self, limit: Duration) -> bool {
        self.token.cancel();
        self.tracker.close();
        tokio::time::timeout(limit, self.tracker.wait()).await.is_ok()
    }
}
