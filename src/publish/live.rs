//! What a process offers at `/v1/live` beside windows, and how long it waits for clients.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::command::Accepted;
use crate::http::{Origins, Problem, STALLED_FOR};

/// Takes rows (JSON: an array, or one object) into the table of that name, as a POST does. Ingest is another stage:
/// whoever starts both brings them together.
pub type TakeRows = Arc<dyn Fn(String, Bytes) -> BoxFuture<'static, Result<Accepted, Problem>> + Send + Sync>;

/// What clients may do besides watching.
#[derive(Clone, Default)]
pub struct Live {
    /// Where rows go that they send; without it they may send none here.
    pub take_rows: Option<TakeRows>,
    /// From which pages they may send rows. Watching is free.
    pub origins: Origins,
    /// How long the server waits for them.
    pub patience: Patience,
}

/// How long a WebSocket client is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// How often it is pinged.
    pub ping_every: Duration,
    /// After so long without a word, pongs included, it is taken for gone.
    pub silent_for: Duration,
    /// After so long in which it read nothing of what it is sent, it is closed.
    pub stalled_for: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            ping_every: Duration::from_secs(25),
            silent_for: Duration::from_secs(60),
            stalled_for: STALLED_FOR,
        }
    }
}
