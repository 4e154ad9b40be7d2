//! Locks that a panic elsewhere does not close.
//!
//! What is kept behind them holds after every statement, so what a panicking thread left is as good as before.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, also after a panic of the thread that held it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
