//! A few read-only connections for those who read further back than memory, used on blocking threads.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rusqlite::{Connection, OpenFlags};
use tokio::sync::Semaphore;

use super::not_written;
use crate::log::LogError;
use crate::sync::lock;

/// Connections that are opened when needed and kept; beyond their number, readers wait for one.
pub(super) struct Pool {
    path: PathBuf,
    permits: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<Connection>>>,
}

impl Pool {
    pub(super) fn new(path: &Path, connections: usize) -> Self {
        let permits = Arc::new(Semaphore::new(connections.max(1)));
        Self { path: path.to_owned(), permits, idle: Arc::new(Mutex::new(Vec::new())) }
    }

    /// Runs `work` with a connection, in one read transaction. Dropped, the work still ends, for nothing.
    pub(super) async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, LogError> {
        let closed = || LogError::Unavailable("the log is closed".to_owned());
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| closed())?;
        let (idle, path) = (Arc::clone(&self.idle), self.path.clone());
        let permits = Arc::clone(&self.permits);
        let run = move || {
            let connection = lock(&idle).pop();
            let connection = connection.map_or_else(|| connect(&path), Ok).map_err(|e| not_written(&e))?;
            let transaction = connection.unchecked_transaction().map_err(|e| not_written(&e))?;
            let result = work(&transaction);
            transaction.finish().map_err(|e| not_written(&e))?;
            if !permits.is_closed() {
                lock(&idle).push(connection);
            }
            drop(permit);
            result
        };
        tokio::task::spawn_blocking(run).await.map_err(|_| closed())?
    }

    /// Closes the connections; later reads are `Unavailable`.
    pub(super) fn close(&self) {
        self.permits.close();
        lock(&self.idle).clear();
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    connection.busy_timeout(super::schema::BUSY)?;
    connection.set_prepared_statement_cache_capacity(256);
    Ok(connection)
}
